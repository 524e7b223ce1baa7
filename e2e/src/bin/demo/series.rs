//! Reads numbers from Prometheus' HTTP API.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::Deserialize;

/// Samples in order of time: (seconds since the start of the range, value).
pub(crate) type Series = Vec<(f64, f64)>;

/// A Prometheus server.
pub(crate) struct Prometheus {
    client: reqwest::Client,
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
        Self { client: reqwest::Client::new(), url: url.trim_end_matches('/').to_owned() }
    }

    /// The present value of `query` for each TaskQueue. A TaskQueue without a sample is absent, not zero.
    pub(crate) async fn now(&self, query: &str) -> anyhow::Result<BTreeMap<String, f64>> {
        let entries = self.get("query", &[("query", query.to_owned())]).await?;
        entries
            .into_iter()
            .filter_map(|e| e.value.as_ref().map(|v| Ok((name(&e), number(v)?))))
            .collect()
    }

    /// `query` from `start` to `end` (Unix seconds), one sample a second, for each TaskQueue.
    pub(crate) async fn range(
        &self,
        query: &str,
        start: f64,
        end: f64,
    ) -> anyhow::Result<BTreeMap<String, Series>> {
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
                let samples: anyhow::Result<Series> =
                    e.values.iter().map(|s| Ok((s.0 - start, number(s)?))).collect();
                Ok((name(&e), samples?))
            })
            .collect()
    }

    async fn get(&self, path: &str, parameters: &[(&str, String)]) -> anyhow::Result<Vec<Entry>> {
        let url = format!("{}/api/v1/{path}", self.url);
        let response = self.client.get(&url).query(parameters).send().await.context("ask Prometheus")?;
        let answer: Answer = response.json().await.context("read Prometheus' answer")?;
        ensure!(answer.status == "success", "Prometheus refused the query: {}", answer.error);
        Ok(answer.data.context("Prometheus sent no data")?.result)
    }
}

fn name(entry: &Entry) -> String {
    entry.metric.get("taskqueue").cloned().unwrap_or_default()
}

fn number(sample: &Sample) -> anyhow::Result<f64> {
    sample.1.parse().with_context(|| format!("Prometheus sent {:?} for a number", sample.1))
}
