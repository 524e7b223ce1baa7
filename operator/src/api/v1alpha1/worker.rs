//! `spec.worker`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The worker pods.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.taskTimeLimitSeconds) || !has(self.drainTimeoutSeconds) || self.taskTimeLimitSeconds <= self.drainTimeoutSeconds")
        .message("worker.drainTimeoutSeconds may not be less than worker.taskTimeLimitSeconds, or a task that is allowed to run for so long is killed with its pod: set drainTimeoutSeconds to null, and it is the same (an earlier release may have stored 300)"),
    validation = Rule::new("!has(self.taskSoftTimeLimitSeconds) || !has(self.taskTimeLimitSeconds) || self.taskSoftTimeLimitSeconds < self.taskTimeLimitSeconds")
        .message("worker.taskSoftTimeLimitSeconds must be less than worker.taskTimeLimitSeconds, or no task has the time to end by itself"),
)]
#[serde(rename_all = "camelCase")]
pub struct WorkerSpec {
    /// Image of the worker: `soloist-worker`, or one built with the soloist-worker library. A new image is rolled out as by any
    /// Deployment; workers finish their task first.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,

    /// When the image is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,

    /// Program to run, instead of the image's entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,

    /// Arguments of the program, instead of the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,

    /// Environment variables of the worker container. They win over those that the operator sets (SOLOIST_…).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub env: Vec<EnvVar>,

    /// Secrets and ConfigMaps whose keys become environment variables of the worker container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFromSource>,

    /// CPU and memory of the worker container. A worker runs one task at a time, so these are the resources of one task.
    #[serde(default)]
    pub resources: Resources,

    /// Seconds that a task may run before a soloist-worker ends it, and it fails with TimeLimitExceeded, if it has no limit of its own. None if
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub task_time_limit_seconds: Option<u32>,

    /// Seconds after which a soloist-worker tells a task to end (SoftTimeLimitExceeded), if it has no limit of its own. None if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub task_soft_time_limit_seconds: Option<u32>,

    /// Seconds that a worker gets to finish its task when its pod is deleted (node drain, eviction). After that it is killed, and the
    /// broker gives the task to another worker. Scale-in and rollouts wait for it to finish, and tell of one that takes longer;
    /// onDrainTimeout: Force gives it up then. If left out: taskTimeLimitSeconds, or 300 without one. Make it longer than your longest task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 604_800))]
    pub drain_timeout_seconds: Option<u32>,

    /// Everything else about the pods, as metadata and spec of a pod template: labels, nodeSelector, tolerations, volumes, sidecars,
    /// serviceAccountName and so on. It is merged over what the operator makes; items of lists are matched by their key (containers,
    /// volumes and env by name, volumeMounts by mountPath), and the worker container is named `worker`. A field that Kubernetes
    /// doesn't know is refused with a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_template_overlay")]
    pub template: Option<serde_json::Value>,
}

/// Longer than most tasks, and no longer than people wait for a node to be drained.
const DRAIN_TIMEOUT_SECONDS: u32 = 300;

impl WorkerSpec {
    /// Seconds that a worker gets to finish its task.
    pub fn drain_timeout_seconds(&self) -> u32 {
        self.drain_timeout_seconds.or(self.task_time_limit_seconds).unwrap_or(DRAIN_TIMEOUT_SECONDS)
    }

    /// The pod template overlay as a typed value, or what is wrong with it: a value of the wrong type, a field that pods do not have, or
    /// too little time for a worker to finish its task.
    pub fn template(&self) -> Result<Option<PodTemplateSpec>, String> {
        let Some(written) = &self.template else { return Ok(None) };
        let typed: PodTemplateSpec =
            serde_path_to_error::deserialize(written).map_err(|error| error.to_string())?;
        let known = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
        if let Some(path) = unknown_field("", written, &known) {
            return Err(format!("unknown field `{path}`"));
        }
        let grace = typed.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let drain = self.drain_timeout_seconds();
        match grace.filter(|grace| *grace < drain.into()) {
            Some(grace) => Err(format!(
                "spec.terminationGracePeriodSeconds is {grace}, less than the {drain} of spec.worker.drainTimeoutSeconds: a worker would be \
                 killed with its task; leave it out, or lower drainTimeoutSeconds"
            )),
            None => Ok(Some(typed)),
        }
    }
}

/// The first field that was written but does not come back from the typed value.
pub(super) fn unknown_field(
    path: &str,
    written: &serde_json::Value,
    known: &serde_json::Value,
) -> Option<String> {
    use serde_json::Value;
    match (written, known) {
        (Value::Object(written), known) => written.iter().find_map(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match known.get(name) {
                Some(known) => unknown_field(&path, value, known),
                // Typed values leave out what is null or empty: that is not a field that got lost.
                None if is_empty(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(written), Value::Array(known)) => {
            written.iter().zip(known).enumerate().find_map(|(index, (written, known))| {
                unknown_field(&format!("{path}[{index}]"), written, known)
            })
        }
        _ => None,
    }
}

fn is_empty(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

/// When the image is pulled: Always, IfNotPresent or Never. When left out: as Kubernetes does it (Always for the tag latest,
/// IfNotPresent for any other).
// (For an optional enum, kube takes the description from the type and drops that of the field.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// Before every start.
    Always,
    /// If the node doesn't have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// The word that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// CPU and memory of a container.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the container is guaranteed, and what the scheduler counts: `{cpu: 100m, memory: 64Mi}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,

    /// What the container may use at most. Beyond its memory limit a worker is killed, and the broker gives its task to another one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

impl Default for Resources {
    fn default() -> Self {
        let requests = [("cpu", "100m"), ("memory", "64Mi")];
        Self {
            requests: requests.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).into(),
            limits: BTreeMap::new(),
        }
    }
}

fn pod_template_overlay(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "metadata": {
                "type": "object",
                "description": "Labels and annotations of the pods.",
                "x-kubernetes-preserve-unknown-fields": true,
            },
            "spec": {
                "type": "object",
                "description": "Fields of a pod's spec (`kubectl explain pod.spec`).",
                "x-kubernetes-preserve-unknown-fields": true,
            },
        },
    })
}

fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true,
        },
    })
}
