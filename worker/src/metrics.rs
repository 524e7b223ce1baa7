//! What the worker counts, for Prometheus.

use std::{collections::HashMap, time::Duration};

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Label of messages whose task isn't registered here. Their names come from outside, so there is no end to them.
const UNREGISTERED: &str = "unregistered";

/// Upper bounds of the runtime histogram, in seconds: tasks last from microseconds to hours.
const RUNTIME_BUCKETS: [f64; 16] =
    [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0];

/// How a message ended, as far as counting goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Counted {
    Received,
    Started,
    Succeeded,
    Failed,
    Retried,
    Ignored,
    Revoked,
    Rejected,
}

impl Counted {
    const ALL: [Self; 8] = [
        Self::Received,
        Self::Started,
        Self::Succeeded,
        Self::Failed,
        Self::Retried,
        Self::Ignored,
        Self::Revoked,
        Self::Rejected,
    ];

    fn name_and_help(self) -> (&'static str, &'static str) {
        match self {
            Self::Received => ("soloist_task_received_total", "Messages taken from a queue."),
            Self::Started => ("soloist_task_started_total", "Tasks started."),
            Self::Succeeded => ("soloist_task_succeeded_total", "Tasks that returned a result."),
            Self::Failed => {
                ("soloist_task_failed_total", "Tasks that failed, and messages that could not be run.")
            }
            Self::Retried => ("soloist_task_retried_total", "Tasks that are to be run again."),
            Self::Ignored => {
                ("soloist_task_ignored_total", "Tasks that ended without a result of their own.")
            }
            Self::Revoked => {
                ("soloist_task_revoked_total", "Tasks that were revoked, terminated, or had expired.")
            }
            Self::Rejected => {
                ("soloist_task_rejected_total", "Messages rejected, without being run or by their task.")
            }
        }
    }
}

/// All metrics of one worker.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    tasks: HashMap<Counted, IntCounterVec>,
    runtime: HistogramVec,
    known: Vec<String>,
    pub(crate) busy: IntGauge,
    pub(crate) consuming: IntGauge,
    pub(crate) connects: IntCounter,
    pub(crate) store_retries: IntCounter,
    pub(crate) events_dropped: IntCounter,
}

impl Metrics {
    /// Metrics of a worker that knows the tasks `known`; each has its zeros from the start, so that rates are right.
    pub(crate) fn new(known: Vec<String>, version: &str) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let tasks = Counted::ALL
            .into_iter()
            .map(|counted| {
                let (name, help) = counted.name_and_help();
                let counter = IntCounterVec::new(Opts::new(name, help), &["task"])?;
                registry.register(Box::new(counter.clone()))?;
                for task in known.iter().map(String::as_str).chain([UNREGISTERED]) {
                    counter.with_label_values(&[task]);
                }
                Ok((counted, counter))
            })
            .collect::<Result<_, prometheus::Error>>()?;
        let runtime = HistogramVec::new(
            HistogramOpts::new("soloist_task_runtime_seconds", "How long tasks ran.")
                .buckets(RUNTIME_BUCKETS.to_vec()),
            &["task"],
        )?;
        registry.register(Box::new(runtime.clone()))?;
        for task in &known {
            runtime.with_label_values(&[task]);
        }
        let info = IntGaugeVec::new(
            Opts::new("soloist_worker_build_info", "Constant 1, labelled with the worker's version."),
            &["version"],
        )?;
        info.with_label_values(&[version]).set(1);
        registry.register(Box::new(info))?;
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let metrics = Self {
            tasks,
            runtime,
            known,
            busy: gauge("soloist_worker_busy", "1 while a task runs.")?,
            consuming: gauge(
                "soloist_worker_consuming",
                "1 while the worker consumes from all of its queues.",
            )?,
            connects: counter("soloist_worker_broker_connects_total", "Connections made to the broker.")?,
            store_retries: counter(
                "soloist_worker_result_store_retries_total",
                "Attempts to store a result that failed and were repeated.",
            )?,
            events_dropped: counter(
                "soloist_worker_events_dropped_total",
                "Events not sent because the broker did not take them.",
            )?,
            registry: registry.clone(),
        };
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Counts one more of `counted` for the task called `name`.
    pub(crate) fn count(&self, counted: Counted, name: &str) {
        if let Some(counter) = self.tasks.get(&counted) {
            counter.with_label_values(&[self.label(name)]).inc();
        }
    }

    /// Records how long the task called `name` ran.
    pub(crate) fn observe_runtime(&self, name: &str, runtime: Duration) {
        self.runtime.with_label_values(&[self.label(name)]).observe(runtime.as_secs_f64());
    }

    /// All metrics in Prometheus's text format.
    pub(crate) fn encode(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    fn label<'a>(&'a self, name: &'a str) -> &'a str {
        if self.known.binary_search_by(|known| known.as_str().cmp(name)).is_ok() {
            name
        } else {
            UNREGISTERED
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(vec!["tasks.add".into(), "tasks.fib".into()], "1.2.3").unwrap()
    }

    #[test]
    fn known_tasks_start_at_zero() {
        let text = metrics().encode().unwrap();
        assert!(text.contains("soloist_task_failed_total{task=\"tasks.fib\"} 0\n"), "{text}");
        assert!(text.contains("soloist_worker_build_info{version=\"1.2.3\"} 1\n"), "{text}");
    }

    #[test]
    fn unknown_tasks_share_one_label() {
        let metrics = metrics();
        metrics.count(Counted::Rejected, "no.such.task");
        metrics.count(Counted::Rejected, "another");
        let text = metrics.encode().unwrap();
        assert!(text.contains("soloist_task_rejected_total{task=\"unregistered\"} 2\n"), "{text}");
        assert!(!text.contains("no.such.task"), "{text}");
    }

    #[test]
    fn runtimes_are_kept_by_task() {
        let metrics = metrics();
        metrics.observe_runtime("tasks.add", Duration::from_millis(20));
        let text = metrics.encode().unwrap();
        assert!(
            text.contains("soloist_task_runtime_seconds_bucket{task=\"tasks.add\",le=\"0.025\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("soloist_task_runtime_seconds_bucket{task=\"tasks.add\",le=\"0.005\"} 0\n"),
            "{text}"
        );
    }
}
