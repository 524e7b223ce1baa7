//! Reads numbers from Prometheus' HTTP API.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::http;
use serde::Deserialize;

/// Samples in order of time: (seconds since the start of the range, value).
pub(crate) type Series = Vec<(f64, f64)>;

/// A Prometheus server.
pub(crate) struct Prometheus {
    url: String,
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    result: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    metric: BTreeMap<String, String>,
    value: Option<Sample>,
    #[serde(default)]
    values: Vec<Sample>,
}

/// A time in Unix seconds, and a number as text: how Prometheus writes a sample.
#[derive(Deserialize)]
struct Sample(f64, String);

impl Prometheus {
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned() }
    }

    /// The present value of `query` for each TaskQueue. A TaskQueue without a sample is absent, not zero.
    pub(crate) async fn now(&self, query: &str) -> Result<BTreeMap<String, f64>> {
        let entries = self.get("query", &[("query", query.to_owned())]).await?;
        entries
            .into_iter()
            .filter_map(|entry| Some(number(entry.value.as_ref()?).map(|value| (name(&entry), value))))
            .collect()
    }

    /// `query` from `start` to `end` (Unix seconds), one sample a second, for each TaskQueue.
    pub(crate) async fn range(&self, query: &str, start: f64, end: f64) -> Result<BTreeMap<String, Series>> {
        let parameters = [
            ("query", query.to_owned()),
            ("start", start.to_string()),
            ("end", end.to_string()),
            ("step", "1".to_owned()),
        ];
        let entries = self.get("query_range", &parameters).await?;
        entries
            .into_iter()
            .map(|e| {
                let samples: Result<Series> =
                    e.values.iter().map(|s| Ok((s.0 - start, number(s)?))).collect();
                Ok((name(&e), samples?))
            })
            .collect()
    }

    async fn get(&self, path: &str, parameters: &[(&str, String)]) -> Result<Vec<Entry>> {
        let parameters = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        let answer = http::get(&format!("{}/api/v1/{path}?{parameters}", self.url)).await?;
        let answer: Answer = serde_json::from_str(&answer).context("read Prometheus' answer")?;
        ensure!(answer.status == "success", "Prometheus refused the query: {}", answer.error);
        Ok(answer.data.context("Prometheus sent no data")?.result)
    }
}

fn name(entry: &Entry) -> String {
    entry.metric.get("taskqueue").cloned().unwrap_or_default()
}

fn number(sample: &Sample) -> Result<f64> {
    sample.1.parse().with_context(|| format!("Prometheus sent {:?} for a number", sample.1))
}
