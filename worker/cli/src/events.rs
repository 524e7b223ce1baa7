//! `events`.

use crate::args::Common;
use crate::failure::Failure;
use crate::output;
use celery_client::{Celery, Event, EventKind, EventsError};
use celery_protocol::{Glob, Map};
use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Names of tasks that are remembered: events after the first don't tell them.
const NAMES: usize = 10_000;

/// Pause before a lost broker is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Watch what workers tell of themselves and their tasks.
#[derive(Debug, Args)]
#[command(after_help = "\
Soloist's workers tell of all tasks. Celery's do so when started with -E, or after `soloist control enable_events`.
Ends with Ctrl-C.")]
pub(crate) struct EventsArgs {
    /// Print all fields of each event.
    #[arg(long)]
    dump: bool,

    /// Only events whose type matches a shell pattern, such as `task-*`; without, all but heartbeats.
    #[arg(long = "type", value_name = "GLOB")]
    kind: Option<String>,

    /// End after so many events.
    #[arg(long, value_name = "NUMBER")]
    count: Option<u64>,

    #[command(flatten)]
    common: Common,
}

impl EventsArgs {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let celery = self.common.control().await?;
        let mut watch = Watch {
            pattern: self.kind.as_deref().map(Glob::new),
            dump: self.dump,
            is_json: self.common.is_json(),
            left: self.count,
            names: Names::default(),
        };
        tokio::select! {
            ended = watch.run(&celery) => ended,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    }
}

struct Watch {
    pattern: Option<Glob>,
    dump: bool,
    is_json: bool,
    left: Option<u64>,
    names: Names,
}

impl Watch {
    async fn run(&mut self, celery: &Celery) -> Result<(), Failure> {
        // Refused the first time is refused; lost later is waited for.
        let mut events = celery.events().await?;
        while self.left != Some(0) {
            let problem = match events.next().await {
                Ok(event) => {
                    self.show(&event)?;
                    continue;
                }
                Err(problem) => problem,
            };
            eprintln!("{problem}; connecting again");
            events = loop {
                tokio::time::sleep(RETRY_AFTER).await;
                match celery.events().await {
                    Ok(events) => break events,
                    Err(EventsError::Connect(_)) => {}
                    Err(problem) => return Err(problem.into()),
                }
            };
        }
        Ok(())
    }

    fn show(&mut self, event: &Event) -> Result<(), Failure> {
        let line = self.names.line(event);
        let is_meant = match &self.pattern {
            Some(pattern) => pattern.is_match(event.kind.name()),
            None => !matches!(event.kind, EventKind::WorkerHeartbeat(_)) || self.dump || self.is_json,
        };
        if !is_meant {
            return Ok(());
        }
        self.left = self.left.map(|left| left - 1);
        if self.is_json {
            return output::line(&serde_json::to_string(event).map_err(|error| Failure::other(&error))?);
        }
        if self.dump {
            return output::line(&dump(event));
        }
        let time = clock(event.timestamp);
        output::line(format!("{time} {} {} {line}", event.hostname, event.kind.name()).trim_end())
    }
}

/// The time of day here.
fn clock(timestamp: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds since 1970 fit by far")]
    let moment = Timestamp::from_millisecond((timestamp * 1000.0) as i64).unwrap_or(Timestamp::UNIX_EPOCH);
    moment.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string()
}

/// All fields, a line each below the type.
fn dump(event: &Event) -> String {
    let fields = match serde_json::to_value(event) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let mut text = format!("{} {}", clock(event.timestamp), event.kind.name());
    for (name, value) in fields.iter().filter(|(name, _)| *name != "type") {
        text.push_str(&format!("\n  {name}: {}", output::cell(value).replace('\n', "\n    ")));
    }
    text
}

/// Names of tasks by their ids, the oldest of which are forgotten.
#[derive(Default)]
struct Names {
    names: HashMap<String, String>,
    order: VecDeque<String>,
}

impl Names {
    /// What an event says, in one line.
    fn line(&mut self, event: &Event) -> String {
        match &event.kind {
            EventKind::TaskReceived(task) => {
                let line = self.named(&task.uuid, task.name.as_deref());
                format!(
                    "{line} {} {}",
                    task.args.as_deref().unwrap_or("()"),
                    task.kwargs.as_deref().unwrap_or("{}")
                )
            }
            EventKind::TaskSent(task) => {
                let line = self.named(&task.uuid, task.name.as_deref());
                format!("{line} to {}", task.queue.as_deref().unwrap_or_default())
            }
            EventKind::TaskStarted { uuid } => self.named(uuid, None),
            EventKind::TaskSucceeded { uuid, result, runtime } => {
                format!("{} {result} in {runtime:.3} s", self.named(uuid, None))
            }
            EventKind::TaskFailed { uuid, exception, .. }
            | EventKind::TaskRetried { uuid, exception, .. } => {
                format!("{} {exception}", self.named(uuid, None))
            }
            EventKind::TaskRevoked { uuid, terminated, expired, .. } => {
                let how = if *terminated {
                    "terminated"
                } else if *expired {
                    "expired"
                } else {
                    "revoked"
                };
                format!("{} {how}", self.named(uuid, None))
            }
            EventKind::TaskRejected { uuid, requeue } => {
                format!("{}{}", self.named(uuid, None), if *requeue { " requeued" } else { "" })
            }
            EventKind::WorkerOnline(state)
            | EventKind::WorkerHeartbeat(state)
            | EventKind::WorkerOffline(state) => {
                let active = state.active.map(|active| format!("{active} active")).unwrap_or_default();
                let processed =
                    state.processed.map(|count| format!(", {count} processed")).unwrap_or_default();
                format!("{active}{processed}")
            }
            EventKind::Other(_) => String::new(),
        }
    }

    /// `name[id]`; the name is remembered if it is given.
    fn named(&mut self, id: &str, name: Option<&str>) -> String {
        if let Some(name) = name
            && self.names.insert(id.to_owned(), name.to_owned()).is_none()
        {
            self.order.push_back(id.to_owned());
            if self.order.len() > NAMES
                && let Some(oldest) = self.order.pop_front()
            {
                self.names.remove(&oldest);
            }
        }
        format!("{}[{id}]", self.names.get(id).map_or("?", String::as_str))
    }
}
