//! The operator's Prometheus metrics.
//!
//! A TaskQueue has at most 15 series, which go when it goes. The names `controller_runtime_*` and `workqueue_*` are those of controllers
//! written in Go, so that their stock dashboards and alerts work.

mod task_queues;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use self::task_queues::Quantity;
use self::task_queues::TaskQueues;
use crate::plan::law::Terms;
use crate::plan::status::{FALSE, SCALE_IN_PROTECTION, Stated, TRUE};

/// The value of the labels `controller` and `name` of the stock metrics.
const CONTROLLER: &str = "taskqueue";

/// All metrics of the operator.
pub struct Metrics {
    registry: Registry,

    task_queues: TaskQueues,
    /// Whether the API server protects workers that aren't drained.
    scale_in_protection: Gauge,
    /// Tasks on workers that scale-in took away though they weren't drained.
    pub interrupted_tasks: IntCounter,
    /// Workers that took longer than the drain timeout.
    pub drain_timeouts: IntCounter,
    /// From telling a worker to drain to knowing that it has.
    pub drain_duration: Histogram,
    /// Every quantity that led to a decision, if asked for.
    decision: Option<GaugeVec>,
    /// From the creation of a pod to its readiness.
    pub startup: Histogram,
    /// Changes of the number of replicas, by direction and reason.
    pub scale_decisions: IntCounterVec,
    /// From a change of the backlog seen to the patch acknowledged by the API server.
    pub decision_latency: Histogram,
    /// Time to read all queues of a broker.
    pub broker_poll_duration: Histogram,
    /// Errors of brokers, by reason.
    pub broker_errors: IntCounterVec,

    /// 1 if this instance leads.
    pub leader: IntGauge,

    reconcile_total: IntCounterVec,
    reconcile_errors: IntCounter,
    reconcile_time: Histogram,
    active_workers: IntGauge,
    max_concurrent_reconciles: IntGauge,
    queue: WorkQueue,
}

impl Metrics {
    /// Registers everything, with the metrics of the process where the system has them.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let make = Maker { registry: &registry };
        let metrics = Self {
            task_queues: TaskQueues::default(),
            scale_in_protection: make.gauge(
                "soloist_scale_in_protection",
                "Condition ScaleInProtection, the same for all TaskQueues: 1 True, 0 False, -1 Unknown.",
            )?,
            interrupted_tasks: make.counter(
                "soloist_scale_in_interrupted_tasks_total",
                "Tasks on workers that scale-in took away though they were not drained.",
            )?,
            drain_timeouts: make.counter(
                "soloist_scale_in_drain_timeouts_total",
                "Workers that were not drained within the drain timeout.",
            )?,
            drain_duration: make.histogram(
                "soloist_scale_in_drain_duration_seconds",
                "From telling a worker to take no more tasks to knowing that it has none.",
                &[0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0],
            )?,
            decision: None,
            startup: make.histogram(
                "soloist_worker_startup_seconds",
                "From the creation of a worker pod to its being ready for tasks.",
                &[1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0],
            )?,
            scale_decisions: make.counters(
                "soloist_scale_decisions_total",
                "Changes of the number of replicas.",
                &["direction", "reason"],
            )?,
            decision_latency: make.histogram(
                "soloist_decision_latency_seconds",
                "From a change of the backlog seen to the replicas patch acknowledged.",
                &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0],
            )?,
            broker_poll_duration: make.histogram(
                "soloist_broker_poll_duration_seconds",
                "Time to read all queues of a broker once.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5],
            )?,
            broker_errors: make.counters("soloist_broker_errors_total", "Errors of brokers.", &["reason"])?,
            leader: make.labelled_gauge(
                "leader_election_master_status",
                "1 if this instance leads, 0 if it waits.",
                "name",
                crate::plan::metadata::OPERATOR,
            )?,
            reconcile_total: make.counters(
                "controller_runtime_reconcile_total",
                "Reconciliations per controller.",
                &["controller", "result"],
            )?,
            reconcile_errors: make.labelled_counter(
                "controller_runtime_reconcile_errors_total",
                "Reconciliations that failed per controller.",
                "controller",
            )?,
            reconcile_time: make.labelled_histogram(
                "controller_runtime_reconcile_time_seconds",
                "Length of time per reconciliation per controller.",
                "controller",
            )?,
            active_workers: make.labelled_gauge(
                "controller_runtime_active_workers",
                "Reconciliations that run now per controller.",
                "controller",
                CONTROLLER,
            )?,
            max_concurrent_reconciles: make.labelled_gauge(
                "controller_runtime_max_concurrent_reconciles",
                "Most reconciliations at a time per controller.",
                "controller",
                CONTROLLER,
            )?,
            queue: WorkQueue::new(&make)?,
            registry: registry.clone(),
        };
        let build_info = Gauge::with_opts(
            Opts::new("soloist_operator_build_info", "Version of the operator; always 1.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build_info.set(1.0);
        // Zeros from the start, so that rates are right.
        for outcome in [Outcome::Success, Outcome::RequeueAfter, Outcome::Error] {
            metrics.reconcile_total.with_label_values(&[CONTROLLER, outcome.as_str()]);
        }
        registry.register(Box::new(build_info))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// All metrics as text, for a scrape.
    pub fn render(&self) -> prometheus::Result<String> {
        self.queue.refresh();
        let mut text = String::new();
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text)?;
        self.task_queues.render(&mut text);
        Ok(text)
    }

    /// States quantities of a TaskQueue, or that they aren't known.
    pub fn set(&self, namespace: &str, task_queue: &str, quantities: &[(Quantity, Option<f64>)]) {
        self.task_queues.set(namespace, task_queue, quantities);
    }

    /// A quantity of a TaskQueue, if it is known.
    #[cfg(test)]
    pub(crate) fn get(&self, namespace: &str, task_queue: &str, quantity: Quantity) -> Option<f64> {
        self.task_queues.get(namespace, task_queue, quantity)
    }

    /// Removes the series of a TaskQueue that is gone.
    pub fn forget(&self, namespace: &str, task_queue: &str) {
        self.task_queues.forget(namespace, task_queue);
        if let Some(decision) = &self.decision {
            for (term, _) in Terms::default().quantities() {
                // An error means that there was no such series, which is as good.
                let _ = decision.remove_label_values(&[namespace, task_queue, term]);
            }
        }
    }

    /// States the conditions of a TaskQueue.
    pub fn set_conditions(&self, namespace: &str, task_queue: &str, stated: &[Stated]) {
        for condition in stated {
            let value = match condition.status {
                TRUE => 1,
                FALSE => 0,
                _ => -1,
            };
            if condition.type_ == SCALE_IN_PROTECTION {
                // The same for all of them.
                self.scale_in_protection.set(value.into());
            } else {
                self.task_queues.set_condition(namespace, task_queue, condition.type_, value);
            }
        }
    }

    /// From now on every quantity of each decision is told, which is a dozen series more for each TaskQueue.
    ///
    /// # Errors
    /// When it was called before.
    pub fn tell_decisions(&mut self) -> prometheus::Result<()> {
        let make = Maker { registry: &self.registry };
        let labels = &["namespace", "taskqueue", "term"];
        let help = "The quantities that the last decision rests on, as in status.decision.";
        self.decision = Some(make.gauges("soloist_taskqueue_decision", help, labels)?);
        Ok(())
    }

    /// States the quantities that a decision rests on.
    pub fn set_decision(&self, namespace: &str, task_queue: &str, terms: &Terms) {
        let Some(decision) = &self.decision else { return };
        for (term, value) in terms.quantities() {
            decision.with_label_values(&[namespace, task_queue, term]).set(value);
        }
    }

    /// States how many reconciliations may run at a time.
    pub fn set_max_concurrent_reconciles(&self, max: u16) {
        self.max_concurrent_reconciles.set(max.into());
    }

    /// Notes that something asks for a reconciliation of an object.
    pub fn enqueued(&self, key: &str) {
        self.queue.add(key);
    }

    /// Notes the start of a reconciliation; its end is noted with [`reconciled`](Self::reconciled).
    pub fn reconciling(&self, key: &str) {
        self.active_workers.inc();
        self.queue.start(key);
    }

    /// Notes the end of a reconciliation.
    pub fn reconciled(&self, key: &str, outcome: Outcome) {
        self.active_workers.dec();
        if matches!(outcome, Outcome::Error) {
            self.reconcile_errors.inc();
            self.queue.retries.inc();
        }
        self.reconcile_total.with_label_values(&[CONTROLLER, outcome.as_str()]).inc();
        self.reconcile_time.observe(self.queue.finish(key).as_secs_f64());
    }
}

/// How a reconciliation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as it is to be.
    Success,
    /// The same, but to be looked at again after a while.
    RequeueAfter,
    /// It is to be tried again.
    Error,
}

impl Outcome {
    /// The word of the label `result`.
    fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::RequeueAfter => "requeue_after",
            Self::Error => "error",
        }
    }
}

/// What client-go's work queue exports, measured around kube-rs's scheduler, which has no metrics of its own.
struct WorkQueue {
    depth: IntGauge,
    adds: IntCounter,
    retries: IntCounter,
    queue_duration: Histogram,
    work_duration: Histogram,
    unfinished: Gauge,
    longest_running: Gauge,
    objects: Mutex<Objects>,
}

#[derive(Default)]
struct Objects {
    waiting: HashMap<String, Instant>,
    running: HashMap<String, Instant>,
}

impl WorkQueue {
    fn new(make: &Maker<'_>) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::with_opts(Opts::new(name, help).const_label("name", CONTROLLER))?;
            make.register(gauge)
        };
        Ok(Self {
            depth: make.labelled_gauge(
                "workqueue_depth",
                "Objects that wait to be reconciled.",
                "name",
                CONTROLLER,
            )?,
            adds: make.labelled_counter("workqueue_adds_total", "Objects put into the queue.", "name")?,
            retries: make.labelled_counter(
                "workqueue_retries_total",
                "Objects put back after an error.",
                "name",
            )?,
            queue_duration: make.labelled_histogram(
                "workqueue_queue_duration_seconds",
                "How long an object waits in the queue.",
                "name",
            )?,
            work_duration: make.labelled_histogram(
                "workqueue_work_duration_seconds",
                "How long an object is worked on.",
                "name",
            )?,
            unfinished: gauge(
                "workqueue_unfinished_work_seconds",
                "Seconds of work in progress that work_duration has not yet counted.",
            )?,
            longest_running: gauge(
                "workqueue_longest_running_processor_seconds",
                "Seconds that the longest reconciliation has run so far.",
            )?,
            objects: Mutex::default(),
        })
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, key: &str) {
        let mut objects = self.objects();
        if !objects.waiting.contains_key(key) {
            objects.waiting.insert(key.to_owned(), Instant::now());
            self.adds.inc();
        }
    }

    fn start(&self, key: &str) {
        let mut objects = self.objects();
        let now = Instant::now();
        let waited = match objects.waiting.remove(key) {
            Some(since) => now.duration_since(since),
            // A timer of the scheduler has put it there.
            None => {
                self.adds.inc();
                Duration::ZERO
            }
        };
        objects.running.insert(key.to_owned(), now);
        self.queue_duration.observe(waited.as_secs_f64());
    }

    fn finish(&self, key: &str) -> Duration {
        let started = self.objects().running.remove(key);
        let worked = started.map(|started| started.elapsed()).unwrap_or_default();
        self.work_duration.observe(worked.as_secs_f64());
        worked
    }

    fn refresh(&self) {
        let objects = self.objects();
        self.depth.set(i64::try_from(objects.waiting.len()).unwrap_or(i64::MAX));
        let running = || objects.running.values().map(|since| since.elapsed().as_secs_f64());
        self.unfinished.set(running().sum());
        self.longest_running.set(running().fold(0.0, f64::max));
    }
}

/// Makes metrics and registers them.
struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(&self, metric: C) -> prometheus::Result<C> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        self.register(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.register(Gauge::new(name, help)?)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
    }

    fn labelled_gauge(
        &self,
        name: &str,
        help: &str,
        label: &str,
        value: &str,
    ) -> prometheus::Result<IntGauge> {
        Ok(self.register(IntGaugeVec::new(Opts::new(name, help), &[label])?)?.with_label_values(&[value]))
    }

    fn labelled_counter(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounter> {
        Ok(self.counters(name, help, &[label])?.with_label_values(&[CONTROLLER]))
    }

    fn labelled_histogram(&self, name: &str, help: &str, label: &str) -> prometheus::Result<Histogram> {
        let buckets = vec![0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let options = HistogramOpts::new(name, help).buckets(buckets);
        Ok(self.register(HistogramVec::new(options, &[label])?)?.with_label_values(&[CONTROLLER]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::task_queues::QUANTITIES;
    use super::*;
    use crate::plan::reason::Reason;
    use crate::plan::status::{CONDITIONS, UNKNOWN};

    fn series(metrics: &Metrics, name: &str) -> Vec<String> {
        let text = metrics.render().unwrap();
        text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    /// Metrics with every series that a TaskQueue may have.
    fn with_a_task_queue() -> Metrics {
        let metrics = Metrics::new().unwrap();
        metrics.set("default", "red", &QUANTITIES.map(|(quantity, ..)| (quantity, Some(5.0))));
        let stated = |type_| Stated { type_, status: TRUE, reason: Reason::Ready, message: String::new() };
        metrics.set_conditions("default", "red", &CONDITIONS.map(stated));
        metrics
    }

    #[test]
    fn a_task_queue_has_few_series_which_go_with_it() {
        let metrics = with_a_task_queue();
        let of_task_queue = || metrics.render().unwrap().matches("taskqueue=\"red\"").count();
        assert!((8..=15).contains(&of_task_queue()), "{}", of_task_queue());
        metrics.forget("default", "red");
        assert_eq!(of_task_queue(), 0);
    }

    #[test]
    fn quantities_of_decisions_are_told_if_asked_for() {
        let mut metrics = Metrics::new().unwrap();
        let terms = Terms { arrival_rate: 2.5, ..Terms::default() };
        metrics.set_decision("default", "red", &terms);
        assert_eq!(series(&metrics, "soloist_taskqueue_decision"), [""; 0]);
        metrics.tell_decisions().unwrap();
        metrics.set_decision("default", "red", &terms);
        let told = series(&metrics, "soloist_taskqueue_decision");
        let rate =
            "soloist_taskqueue_decision{namespace=\"default\",taskqueue=\"red\",term=\"arrivalRate\"} 2.5";
        assert!(told.iter().any(|series| series == rate), "{told:?}");
        metrics.forget("default", "red");
        assert_eq!(series(&metrics, "soloist_taskqueue_decision"), [""; 0]);
    }

    #[test]
    fn a_condition_is_one_number() {
        let metrics = Metrics::new().unwrap();
        let stated =
            |status| Stated { type_: "Ready", status, reason: Reason::Ready, message: String::new() };
        for (status, value) in [(TRUE, "1"), (FALSE, "0"), (UNKNOWN, "-1")] {
            metrics.set_conditions("default", "red", &[stated(status)]);
            let series = series(&metrics, "soloist_taskqueue_condition");
            let wanted =
                "soloist_taskqueue_condition{condition=\"Ready\",namespace=\"default\",taskqueue=\"red\"} ";
            assert_eq!(series, [format!("{wanted}{value}")]);
        }
    }

    /// Dashboards and alerts of others rest on these: a name or label that is gone breaks them.
    #[test]
    fn names_and_labels_are_those_of_the_golden_file() {
        let metrics = with_a_task_queue();
        metrics.scale_decisions.with_label_values(&["up", "Backlog"]).inc();
        metrics.broker_errors.with_label_values(&["AuthFailed"]).inc();
        metrics.reconciling("default/red");
        metrics.reconciled("default/red", Outcome::Success);
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/metrics.txt");
        let text = metrics.render().unwrap();
        let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let labels_of = |name: &str| {
            let parts = ["", "_bucket"].map(|part| format!("{name}{part}{{"));
            let series = text.lines().filter_map(|line| {
                parts
                    .iter()
                    .find_map(|part| line.strip_prefix(part.as_str()))
                    .and_then(|rest| rest.split_once('}'))
            });
            let labels =
                series.flat_map(|(labels, _)| labels.split(',')).filter_map(|label| label.split_once('='));
            Vec::from_iter(BTreeSet::from_iter(labels.map(|(label, _)| label).filter(|label| *label != "le")))
                .join(",")
        };
        let lines: BTreeMap<&str, String> =
            kinds.map(|(name, kind)| (name, format!("{kind} {name}{{{}}}\n", labels_of(name)))).collect();
        let there = String::from_iter(lines.into_values());
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(golden, &there).unwrap();
        }
        assert_eq!(there, std::fs::read_to_string(golden).unwrap(), "rewrite it with UPDATE_DOCS=1");
    }

    #[test]
    fn queue_counts_an_object_once_however_often_it_is_asked_for() {
        let metrics = Metrics::new().unwrap();
        metrics.enqueued("default/red");
        metrics.enqueued("default/red");
        assert_eq!(series(&metrics, "workqueue_depth"), ["workqueue_depth{name=\"taskqueue\"} 1"]);
        metrics.reconciling("default/red");
        metrics.reconciled("default/red", Outcome::Success);
        assert_eq!(series(&metrics, "workqueue_depth"), ["workqueue_depth{name=\"taskqueue\"} 0"]);
        assert_eq!(series(&metrics, "workqueue_adds_total"), ["workqueue_adds_total{name=\"taskqueue\"} 1"]);
        assert_eq!(
            series(&metrics, "controller_runtime_reconcile_total")[2],
            "controller_runtime_reconcile_total{controller=\"taskqueue\",result=\"success\"} 1"
        );
    }
}
