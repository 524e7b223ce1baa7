//! `spec.scaling`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many workers run, and when that changes.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.maxReplicas")
        .message("scaling.minReplicas may not be greater than scaling.maxReplicas"),
    validation = Rule::new("!(has(self.maxWaitSeconds) && has(self.tasksPerWorker))")
        .message("scaling.maxWaitSeconds and scaling.tasksPerWorker exclude each other: say how long a task may wait, or how many tasks there are for one worker"),
    validation = Rule::new("!self.paused || self.mode == 'Auto'")
        .message("scaling.paused holds the number of workers, which modes Recommend and Off leave alone anyway: remove it, or set scaling.mode to Auto"),
    validation = Rule::new("!has(self.fallback) || self.fallback.replicas <= self.maxReplicas")
        .message("scaling.fallback.replicas may not be greater than scaling.maxReplicas"),
    validation = Rule::new("!has(self.schedules) || self.schedules.all(s, (has(s.minReplicas) ? s.minReplicas : self.minReplicas) <= (has(s.maxReplicas) ? s.maxReplicas : self.maxReplicas))")
        .message("in scaling.schedules, minReplicas may not be greater than maxReplicas; what a schedule leaves out is taken from scaling"),
)]
#[serde(rename_all = "camelCase")]
pub struct ScalingSpec {
    /// Fewest workers, also when nothing waits. 0 (the default) means that an idle TaskQueue costs nothing.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub min_replicas: u16,

    /// Most workers, whatever the backlog.
    #[schemars(range(min = 1, max = 10000))]
    pub max_replicas: u16,

    /// How many seconds a task may wait for a worker. The operator finds out how many tasks arrive, how long they take and how long a
    /// worker takes to start, and runs as few workers as keep the wait. Shorter than a start, it keeps idle workers ready; longer, an
    /// idle TaskQueue costs nothing. When neither this nor tasksPerWorker is given: 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_wait_seconds: Option<u32>,

    /// How many tasks there are for one worker, instead of maxWaitSeconds: the number of workers is
    /// (messages ready + tasks running) / tasksPerWorker, rounded up. 1 is the quickest and the most expensive; 10 means that a worker does
    /// about ten tasks of a burst one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub tasks_per_worker: Option<u32>,

    /// Auto (the default): the operator sets the number of workers. Recommend: it says in status.decision what it would set, and leaves
    /// the number to whoever else sets it, such as a HorizontalPodAutoscaler on the workers' Deployment. "Off": it doesn't even say; write it
    /// in quotes, as YAML takes a bare Off for `false`.
    /// spec.replicas counts in every mode.
    #[serde(default)]
    pub mode: ScalingMode,

    /// Hold the number of workers where it is. The backlog is still shown. The annotation `soloist.dev/paused: "true"` does the same, for
    /// those who may not or cannot change the spec, such as where GitOps would change it back.
    #[serde(default)]
    pub paused: bool,

    /// Times at which other bounds hold than minReplicas and maxReplicas: more workers before the working day begins, fewer while a
    /// database is being backed up. Where two of them overlap, the later one in the list counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub schedules: Vec<ScheduleSpec>,

    /// How careful scale-in is. Scale-out is always immediate.
    #[serde(default)]
    pub scale_down: ScaleDownSpec,

    /// How many workers to have at least when the backlog has not been known for long, as when the broker can't be reached. When left
    /// out, the number is held. It only adds workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<FallbackSpec>,
}

/// What the operator does about the number of workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ScalingMode {
    /// It sets it.
    #[default]
    Auto,
    /// It says what it would be.
    Recommend,
    /// Nothing.
    Off,
}

/// A time, again and again, at which other bounds hold.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.minReplicas) || has(self.maxReplicas)").message("a schedule needs minReplicas, maxReplicas, or both"))]
#[serde(rename_all = "camelCase")]
pub struct ScheduleSpec {
    /// When it begins: minute, hour, day of month, month, day of week, as in a crontab. `30 7 * * MON-FRI` is half past seven on working
    /// days.
    #[schemars(length(min = 9, max = 100), regex(pattern = r"^\S+(\s+\S+){4}$"))]
    pub cron: String,

    /// The time zone of cron, by its name in the IANA database, such as Europe/Berlin. When left out: UTC.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,

    /// How many seconds it lasts.
    #[schemars(range(min = 60, max = 2_678_400))]
    pub duration_seconds: u32,

    /// Fewest workers in that time. When left out: scaling.minReplicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub min_replicas: Option<u16>,

    /// Most workers in that time. When left out: scaling.maxReplicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_replicas: Option<u16>,
}

fn utc() -> String {
    "UTC".to_owned()
}

/// How careful scale-in is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleDownSpec {
    /// Workers are taken away only down to the greatest number that was needed within this many seconds, and once in this time at most.
    /// When left out: four times what a worker takes to start, or twice what a task takes (120 at most), whichever is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_seconds: Option<u32>,

    /// What becomes of a worker that was told to take no more tasks and isn't done after worker.drainTimeoutSeconds.
    #[serde(default)]
    pub on_drain_timeout: OnDrainTimeout,
}

/// Wait (the default): it is left alone until it is done; an event says so, so that somebody can look. Force: it is deleted, and another
/// worker gets its task after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDrainTimeout {
    /// It is left alone until it is done.
    #[default]
    Wait,
    /// It is deleted.
    Force,
}

/// What to do when the backlog has not been known for long.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FallbackSpec {
    /// For how many seconds the backlog must not have been known.
    #[schemars(range(min = 10, max = 86400))]
    pub after_seconds: u32,

    /// Workers to have then, at least.
    #[schemars(range(min = 1, max = 10000))]
    pub replicas: u16,
}
