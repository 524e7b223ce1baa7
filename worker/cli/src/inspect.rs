//! `inspect`.

use crate::args::{Common, Workers};
use crate::failure::Failure;
use crate::output::{self, cell};
use celery_protocol::Map;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Ask workers what they do.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// What to ask.
    #[arg(value_enum)]
    method: Method,

    /// For query_task, the ids of tasks; for registered, the settings of tasks to show.
    arguments: Vec<String>,

    #[command(flatten)]
    workers: Workers,

    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Method {
    /// Which workers are there.
    Ping,
    /// The tasks that they run.
    Active,
    /// The tasks that they have and haven't begun.
    Reserved,
    /// The tasks that they hold until their time.
    Scheduled,
    /// The tasks that they know.
    Registered,
    /// The queues that they take tasks from.
    ActiveQueues,
    /// The tasks that they were told not to run.
    Revoked,
    /// Where tasks are, by their ids.
    QueryTask,
    /// Tasks begun, pool, broker.
    Stats,
    /// Their settings.
    Conf,
    /// A text for a bug report.
    Report,
    /// Their logical clocks.
    Clock,
}

impl Method {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Ping | Self::Report => &["NODE", "ANSWER"],
            Self::Active | Self::Reserved => &["NODE", "ID", "TASK", "ARGS", "KWARGS", "QUEUE"],
            Self::Scheduled => &["NODE", "ID", "TASK", "ETA", "ARGS", "KWARGS"],
            Self::Registered => &["NODE", "TASK"],
            Self::ActiveQueues => &["NODE", "QUEUE", "EXCHANGE", "TYPE", "ROUTING KEY"],
            Self::Revoked => &["NODE", "ID"],
            Self::QueryTask => &["NODE", "ID", "STATE", "TASK"],
            Self::Stats => &["NODE", "PID", "UPTIME", "POOL", "CONCURRENCY", "PREFETCH", "TASKS"],
            Self::Conf => &["NODE", "SETTING", "VALUE"],
            Self::Clock => &["NODE", "CLOCK"],
        }
    }

    /// The rows of one worker's answer, without the node.
    fn rows(self, answer: &Value) -> Vec<Vec<String>> {
        let list = || answer.as_array().map(Vec::as_slice).unwrap_or_default().iter();
        let fields = || answer.as_object().into_iter().flatten();
        let task = |task: &Value, second: &Value, last: &Value| {
            let name = if task["type"].is_null() { &task["name"] } else { &task["type"] };
            let mut row = vec![cell(&task["id"]), cell(name)];
            row.extend([second, &task["args"], &task["kwargs"], last].map(cell));
            row
        };
        match self {
            Self::Ping | Self::Report => vec![vec![cell(&answer["ok"]).trim().to_owned()]],
            Self::Active | Self::Reserved => list()
                .map(|info| {
                    let mut row = task(info, &Value::Null, &info["delivery_info"]["routing_key"]);
                    row.remove(2);
                    row
                })
                .collect(),
            Self::Scheduled => list()
                .map(|scheduled| {
                    let mut row = task(&scheduled["request"], &scheduled["eta"], &Value::Null);
                    row.pop();
                    row
                })
                .collect(),
            Self::Registered | Self::Revoked => list().map(|item| vec![cell(item)]).collect(),
            Self::ActiveQueues => list()
                .map(|queue| {
                    let exchange = &queue["exchange"];
                    [&queue["name"], &exchange["name"], &exchange["type"], &queue["routing_key"]]
                        .map(cell)
                        .into()
                })
                .collect(),
            Self::QueryTask => fields()
                .map(|(id, found)| vec![id.clone(), cell(&found[0]), cell(&found[1]["name"])])
                .collect(),
            Self::Stats => {
                let pool = &answer["pool"];
                let totals = answer["total"].as_object().into_iter().flatten();
                let totals: Vec<_> = totals.map(|(task, count)| format!("{task} {count}")).collect();
                let uptime = answer["uptime"].as_u64().map(|seconds| {
                    let hours = seconds / 3600;
                    format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60)
                });
                vec![vec![
                    cell(&answer["pid"]),
                    uptime.unwrap_or_default(),
                    cell(&pool["implementation"]),
                    cell(&pool["max-concurrency"]),
                    cell(&answer["prefetch_count"]),
                    totals.join(", "),
                ]]
            }
            Self::Conf => fields().map(|(name, value)| vec![name.clone(), cell(value)]).collect(),
            Self::Clock => vec![vec![cell(&answer["clock"])]],
        }
    }
}

impl Inspect {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let arguments = match self.method {
            Method::QueryTask if self.arguments.is_empty() => {
                return Err(Failure::usage("query_task needs the ids of tasks"));
            }
            Method::QueryTask => json!({"ids": self.arguments}),
            Method::Registered if !self.arguments.is_empty() => json!({"taskinfoitems": self.arguments}),
            _ if !self.arguments.is_empty() => {
                return Err(Failure::usage(format!("{} takes no arguments", self.method.name())));
            }
            Method::Conf => json!({"with_defaults": false}),
            _ => json!({}),
        };
        let celery = self.common.control().await?;
        let control = self.workers.control(&celery);
        let arguments: Map = arguments.as_object().cloned().unwrap_or_default();
        let answers = control.call(&self.method.name(), arguments).await?;
        celery.close().await;
        if self.common.is_json() {
            output::json(&answers)?;
        } else if answers.values().any(|answer| answer["error"].is_null()) {
            let rows =
                answers.iter().filter(|(_, answer)| answer["error"].is_null()).flat_map(|(node, answer)| {
                    let rows = self.method.rows(answer).into_iter();
                    rows.map(move |row| std::iter::once(node.clone()).chain(row).collect::<Vec<_>>())
                });
            output::table(self.method.columns(), rows)?;
        }
        verdict(&answers, &self.workers)
    }
}

/// The exit code for what workers have answered; their errors are shown.
pub(crate) fn verdict(answers: &BTreeMap<String, Value>, workers: &Workers) -> Result<(), Failure> {
    if answers.is_empty() {
        return Err(workers.silence());
    }
    let errors = answers.iter().filter(|(_, answer)| !answer["error"].is_null());
    let errors: Vec<_> = errors.map(|(node, answer)| format!("{node}: {}", cell(&answer["error"]))).collect();
    if errors.is_empty() { Ok(()) } else { Err(Failure::task(errors.join("\nerror: "))) }
}
