//! The closed set of reasons: of conditions, of events, and of the operator's log lines.
//!
//! `docs/reasons.md` is this list with a word on what to do; a test keeps the two equal.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $meaning:literal])+ $name:ident => $remedy:literal,)+) => {
        /// Why a condition is what it is: CamelCase words that users may match on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $meaning])+ $name,)+
        }

        impl Reason {
            /// All reasons, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word, as it stands in conditions and events.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What the reason means.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($meaning),+),)+ }
            }

            /// What to do about it.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)+ }
            }
        }
    };
}

reasons! {
    /// Everything works.
    Ready => "Nothing.",
    /// The operator is connected to the broker.
    Connected => "Nothing.",
    /// The first connection to the broker is being made.
    Connecting => "Wait a few seconds.",
    /// The Secret of spec.broker or spec.results doesn't exist.
    SecretNotFound => "Create it in the namespace of the TaskQueue, or correct secretRef.name.",
    /// The operator may not read the Secret.
    SecretForbidden => "Run the command of the message (`kubectl create rolebinding`, or `helm upgrade` where the operator serves certain namespaces only), or ask who may.",
    /// The Secret doesn't say where the broker is, or says it in a way that can't be read.
    SecretInvalid => "Give it the keys username, password, host, port and vhost, or the key uri.",
    /// The address is of a kind of broker that Soloist can't use, such as redis:// or sqs://.
    BrokerNotSupported => "Use RabbitMQ (amqp:// or amqps://).",
    /// The broker refuses user name and password.
    AuthFailed => "Correct the Secret: it is read again every 30 seconds.",
    /// The broker lets the user in, but not into the virtual host.
    VhostRefused => "Create the virtual host or give the user permissions on it (`rabbitmqctl set_permissions`).",
    /// No connection to the broker: host name, network, TLS, or the broker is down.
    BrokerUnreachable => "See the message for the cause. Workers stay as they are, and scaling goes on when the broker is back.",
    /// The broker closed the connection.
    ConnectionLost => "Nothing: it is being connected again. Workers stay as they are meanwhile.",
    /// All queues are declared, with their dead letter queues and policies.
    Declared => "Nothing.",
    /// The broker can't be reached, so nothing is known about the queues.
    WaitingForBroker => "See the condition BrokerReachable.",
    /// The queues are being declared.
    Declaring => "Wait a few seconds.",
    /// The queues are declared, but what is set through policies (dead letters, TTL, lengths, delivery limit) isn't in force.
    PoliciesNotApplied => "Make the management API reachable (Secret key managementUri) and give the user the tag policymaker. Tasks run without.",
    /// A queue or exchange of that name exists with other settings.
    QueueArgumentMismatch => "Use the settings of the message, or another name; or empty and delete the queue on the broker. Soloist never deletes it.",
    /// Another, older TaskQueue already uses a queue of this one on the same broker.
    QueueClaimed => "Use another queue name, or delete the other TaskQueue. Until then this one runs nothing.",
    /// The broker refused to declare a queue, for another cause than different settings.
    DeclareFailed => "See the message; the user needs configure permission on the queues and on their `.dead` queues.",
    /// The TaskQueue was deleted, and its queues with it, as spec.deletionPolicy says (only in events).
    QueuesDeleted => "Nothing.",
    /// The TaskQueue was deleted, but queues that were to go with it are still on the broker (only in events).
    QueuesKept => "See the message for which, and why; delete them on the broker if they are of no more use.",
    /// The API server refuses to let scale-in delete a worker that has not drained.
    Guaranteed => "Nothing.",
    /// Workers drain before they go, but nothing keeps Kubernetes from choosing another one than the drained: the policy is missing, or the operator may not look for it.
    BestEffort => "Install the ValidatingAdmissionPolicy `soloist-scale-in` (chart value `scaleInProtection.enabled`), and let the operator read it.",
    /// A worker was told to take no more tasks, and isn't done after worker.drainTimeoutSeconds (only in events).
    DrainTimeout => "See the worker's log for what its task does. It stays until it is done; scaling.scaleDown.onDrainTimeout: Force gives such workers up.",
    /// As many workers as decided are ready.
    WorkersReady => "Nothing.",
    /// No worker is needed now.
    Idle => "Nothing.",
    /// Workers are starting, without an error so far.
    WorkersStarting => "Wait.",
    /// Workers of different versions of the pod template run side by side: those of the older one go when their tasks are done.
    RollingOut => "Wait. Until then the number of workers is not lowered.",
    /// Workers of the same version of the pod template run different images: the image's tag has come to mean another one.
    ImagesDiffer => "Name the image by its digest in spec.worker.image (NAME@sha256:…), or use a new tag: that is a rollout, after which all run the same. imagePullPolicy: Always is no help for workers that run already. docs/taskqueue.md (One image) says when digests differ though the images are the same.",
    /// A worker's image can't be pulled.
    ImagePullFailed => "Correct spec.worker.image, or the pull secret in spec.worker.template.",
    /// A worker's container can't be created, for example because a Secret or ConfigMap that it mounts is missing.
    ContainerNotCreated => "See the message for what is missing.",
    /// A worker stops again and again after its start.
    CrashLooping => "See `kubectl logs --previous` of the pod.",
    /// A worker has been running for a minute or longer, but is not ready.
    WorkersNotReady => "See `kubectl logs` of the pod, its /readyz, and the condition BrokerReachable: a worker is ready when it consumes its queues.",
    /// No node has room for a worker.
    Unschedulable => "Lower spec.worker.resources or add nodes.",
    /// A resource quota of the namespace doesn't allow more workers.
    QuotaExceeded => "Raise the quota, or lower maxReplicas or resources.",
    /// The API server refuses to create the workers' pods.
    PodsRefused => "See the message: an admission policy, a limit range or a missing service account.",
    /// The resource doesn't fit its definition, so the operator can't read it (only in events).
    ResourceInvalid => "Correct the field that the message names; perhaps the definition (CRD) is of another version than the operator.",
    /// Workers were added or taken away (only in events).
    Scaled => "Nothing.",
    /// The API server refused to change the number of workers (only in events).
    ScalingFailed => "See the message.",
    /// spec.worker.template isn't a pod template.
    TemplateInvalid => "Correct the field that the message names.",
    /// The API server refuses the Deployment of the workers.
    DeploymentRefused => "See the message.",
    /// A Deployment of that name exists and belongs to something else.
    NameConflict => "Rename the TaskQueue, or delete the Deployment.",
    /// The number of workers follows the backlog.
    Active => "Nothing.",
    /// spec.scaling.paused or the annotation soloist.dev/paused is set: the number of workers is held.
    Paused => "Set spec.scaling.paused to false, or remove the annotation (`kubectl annotate tq NAME soloist.dev/paused-`), to go on.",
    /// spec.replicas is set: the number of workers is fixed by hand.
    ManualReplicas => "Remove spec.replicas to go on.",
    /// The length of the queues isn't known: the number of workers is held.
    BacklogUnknown => "See the condition BrokerReachable.",
    /// spec.scaling.mode is Recommend: the operator says what it would do, and leaves the number to others.
    Recommending => "Set spec.scaling.mode to Auto to have it done.",
    /// spec.scaling.mode is Off: the operator leaves the number of workers to others.
    ScalingOff => "Set spec.scaling.mode to Auto to go on.",
    /// A schedule can't be read and is left out. Everything else goes on.
    ScheduleInvalid => "Correct the cron pattern or the time zone that the message names.",
    /// The length of the queues has not been known for long: spec.scaling.fallback says how many workers there are at least.
    Fallback => "See the condition BrokerReachable.",
    /// Fewer workers consume from the queues than should, as after a restart of the broker: workers are added, but none is taken away.
    WorkersDetached => "Wait. If it lasts, see the worker's log: it should consume all of its queues.",
    /// A worker doesn't report what it runs: workers are added, but none is taken away.
    WorkersSilent => "Workers must send Celery events (`worker-heartbeat`) on this broker; soloist-worker does. Those of Celery's solo pool send none during a task.",
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The page `docs/reasons.md`.
pub fn documentation() -> String {
    let mut page = String::from(
        "# Reasons\n\n\
         What a condition of a TaskQueue (`kubectl describe taskqueue`) or an event gives as its reason, and what to do about it.\n\
         The list is complete: it is generated from `operator/src/plan/reason.rs`.\n\n\
         | reason | meaning | what to do |\n|---|---|---|\n",
    );
    for reason in Reason::ALL {
        page.push_str(&format!("| `{reason}` | {} | {} |\n", reason.meaning().trim(), reason.remedy()));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_lists_every_reason() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(page, documentation()).unwrap();
        }
        let committed = std::fs::read_to_string(page).expect("docs/reasons.md is in the repository");
        assert!(
            committed == documentation(),
            "docs/reasons.md is out of date: \
             run `UPDATE_DOCS=1 cargo test -p soloist-operator documentation_lists_every_reason`"
        );
    }
}
