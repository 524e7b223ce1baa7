//! Names and labels of what belongs to a TaskQueue.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource as _, ResourceExt as _};

use crate::api::v1alpha1::TaskQueue;

/// The field manager of everything the operator applies, and its name in events and in `app.kubernetes.io/managed-by`.
pub const OPERATOR: &str = "soloist-operator";

/// The field manager of the number of replicas alone, so that applying the rest never touches it.
pub const AUTOSCALER: &str = "soloist-autoscaler";

/// The label by which the workers of a TaskQueue are found; its value is the name of the TaskQueue.
pub const TASK_QUEUE_LABEL: &str = "soloist.dev/task-queue";

/// The annotation with the hash of what was applied last: a field that is no longer wanted shows in it.
pub const APPLIED_HASH_ANNOTATION: &str = "soloist.dev/applied-hash";

/// The label that says how far a worker is in leaving; see [`drain::State`](super::drain::State).
pub const STATE_LABEL: &str = "soloist.dev/state";

/// The annotation that says since when a worker is draining.
pub const DRAINING_SINCE_ANNOTATION: &str = "soloist.dev/draining-since";

/// The annotation that says since when a worker is to consume again.
pub const RESUMING_SINCE_ANNOTATION: &str = "soloist.dev/resuming-since";

/// The annotation by which Kubernetes prefers one pod of a ReplicaSet to another when it scales in.
pub const DELETION_COST_ANNOTATION: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The annotation on a TaskQueue by which scaling is held without a change of the spec, which GitOps would take back.
pub const PAUSED_ANNOTATION: &str = "soloist.dev/paused";

/// Name of the ValidatingAdmissionPolicy, and of its binding, by which the API server refuses the deletion of workers that aren't drained.
pub const SCALE_IN_POLICY: &str = "soloist-scale-in";

/// Name of the Deployment of a TaskQueue. The schema keeps names short enough for it to be a label, too.
pub fn deployment_name(task_queue: &str) -> String {
    format!("{task_queue}-worker")
}

/// Node name of the worker in a pod, as Celery's events and remote control know it.
pub fn node_name(pod: &str) -> String {
    format!("celery@{pod}")
}

/// The labels by which the Deployment selects its pods. They never change: a selector is immutable.
pub fn selector(task_queue: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(TASK_QUEUE_LABEL.to_owned(), task_queue.to_owned())])
}

/// The selector as text, for the scale subresource.
pub fn selector_text(task_queue: &str) -> String {
    format!("{TASK_QUEUE_LABEL}={task_queue}")
}

/// The labels of the Deployment and its pods.
///
/// The version is that of the worker's image, not of the operator: it may change only when the pods do anyway.
pub fn labels(task_queue: &TaskQueue) -> BTreeMap<String, String> {
    let name = task_queue.name_any();
    let mut labels = selector(&name);
    labels.extend(
        [
            ("app.kubernetes.io/name", "soloist-worker"),
            ("app.kubernetes.io/instance", &name),
            ("app.kubernetes.io/component", "worker"),
            ("app.kubernetes.io/part-of", "soloist"),
            ("app.kubernetes.io/managed-by", OPERATOR),
        ]
        .map(|(label, value)| (label.to_owned(), value.to_owned())),
    );
    if let Some(version) = image_version(&task_queue.spec.worker.image) {
        labels.insert("app.kubernetes.io/version".to_owned(), version);
    }
    labels
}

/// The tag of an image, if it can be the value of a label.
fn image_version(image: &str) -> Option<String> {
    let without_digest = image.split('@').next()?;
    let (_, tag) = without_digest.rsplit_once(':')?;
    // `registry:5000/image` has a port, not a tag; and tags are at most 128 characters, labels 63.
    let is_label = !tag.contains('/')
        && tag.len() <= 63
        && tag.starts_with(|first: char| first.is_ascii_alphanumeric())
        && tag.ends_with(|last: char| last.is_ascii_alphanumeric());
    is_label.then(|| tag.to_owned())
}

/// The reference by which Kubernetes deletes the workers with their TaskQueue.
pub fn owner_reference(task_queue: &TaskQueue) -> Option<OwnerReference> {
    task_queue.controller_owner_ref(&())
}

/// FNV-1a, 64 bits: unlike the standard library's hash it stays the same with every version of Rust.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1alpha1::MAX_NAME_LENGTH;

    #[test]
    fn longest_name_makes_a_deployment_name_that_is_a_label() {
        assert_eq!(deployment_name("red"), "red-worker");
        assert!(deployment_name(&"q".repeat(MAX_NAME_LENGTH)).len() <= 63);
    }

    #[test]
    fn version_is_the_tag_of_the_image() {
        assert_eq!(image_version("ghcr.io/soloist-dev/soloist-worker:0.1.0").as_deref(), Some("0.1.0"));
        assert_eq!(image_version("registry:5000/worker"), None);
        assert_eq!(image_version("worker"), None);
        assert_eq!(image_version("worker:1.2@sha256:0123").as_deref(), Some("1.2"));
        assert_eq!(image_version("worker:1.2-"), None);
    }

    #[test]
    fn hash_is_fnv1a() {
        // Published test vectors of FNV-1a, 64 bits.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
