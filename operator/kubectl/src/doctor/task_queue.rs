//! What is wrong with a TaskQueue.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use soloist_operator::api::v1alpha1::TaskQueue;
use soloist_operator::plan::metadata::labels;
use soloist_operator::plan::reason::Reason;
use soloist_operator::plan::status::{
    BROKER_REACHABLE, FALSE, QUEUES_DECLARED, READY, SCALE_IN_PROTECTION, SCALING_ACTIVE, TRUE,
    WORKERS_AVAILABLE,
};

use super::network::{Destination, cut, opening};
use super::{Cause, Finding, Level, Report, broker, workers};
use crate::output::age;
use crate::snapshot::{Address, Leadership, Operator, Purpose, Snapshot, Subject, Surroundings};

/// How long the operator may take for a first look, or for a change: it needs a moment, and may just be starting.
const FIRST_LOOK_SECONDS: i64 = 30;

/// How long a deletion may take by itself: a minute for the broker, and some for the workers.
const DELETION_SECONDS: i64 = 120;

/// What a Secret may say.
const BROKER_EXAMPLE: &str = "amqp://USER:PASSWORD@HOST:5672/VHOST";
const RESULTS_EXAMPLE: &str = "redis://HOST:6379/0";

/// A TaskQueue with what is around it.
pub(super) struct Patient<'a> {
    /// How findings call it.
    pub(super) object: String,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) now: Timestamp,
    pub(super) around: &'a Surroundings,
    /// Name of the broker's Secret.
    pub(super) secret: &'a str,
    operator: Option<&'a Operator>,
}

impl Patient<'_> {
    /// Where the operator is, as far as that is known.
    pub(super) fn operator_namespace(&self) -> String {
        self.operator.map_or_else(|| "soloist-system".to_owned(), Operator::namespace)
    }

    /// The command that changes a key of the broker's Secret.
    pub(super) fn change_secret(&self, key: &str, value: &str) -> String {
        let (secret, namespace) = (self.secret, self.namespace);
        format!(
            "kubectl patch secret {secret} -n {namespace} --type=merge -p '{{\"stringData\":{{\"{key}\":\"{value}\"}}}}'"
        )
    }
}

pub(super) fn examine(snapshot: &Snapshot, subject: &Subject, report: &mut Report) {
    let (namespace, name) = (subject.namespace(), subject.name());
    let object = format!("taskqueue {namespace}/{name}");
    let task_queue = match &subject.task_queue {
        Ok(task_queue) => task_queue,
        Err(error) => {
            let finding = Finding::new(
                Level::Error,
                Cause::Condition(Reason::ResourceInvalid),
                &object,
                "it can't be read as a TaskQueue",
            );
            report.add(finding.seen(error).remedy(format!("kubectl edit taskqueue {name} -n {namespace}")));
            return;
        }
    };
    let Some(around) = snapshot.namespaces.get(&namespace) else { return };
    let operators = snapshot.operators.as_deref().ok();
    let operator =
        operators.and_then(|operators| operators.iter().find(|operator| operator.serves(&namespace)));
    let patient = Patient {
        object,
        namespace: &namespace,
        name: &name,
        now: snapshot.now,
        around,
        secret: &task_queue.spec.broker.secret_ref.name,
        operator,
    };
    if let (Some(operators), None) = (operators, operator)
        && !operators.is_empty()
    {
        not_watched(&patient, operators, report);
    }
    served(&patient, task_queue, operators, report);
    secrets(&patient, subject, report);
    let conditions =
        task_queue.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let address = address(&patient, task_queue);
    for condition in conditions {
        told(&patient, condition, address.as_ref(), report);
    }
    workers::examine(&patient, report);
    if let Some(address) = &address {
        networks(&patient, task_queue, conditions, address, report);
    }
}

/// Where its broker is: by its Secret if that may be read, or else by its status.
fn address(patient: &Patient<'_>, task_queue: &TaskQueue) -> Option<Address> {
    let facts = patient.around.secrets.get(&(Purpose::Broker, patient.secret.to_owned()));
    let read = facts.and_then(|facts| facts.content.as_ref().ok()?.as_ref()?.as_ref().ok().cloned());
    read.or_else(|| Address::of(task_queue.status.as_ref()?))
}

fn not_watched(patient: &Patient<'_>, operators: &[Operator], report: &mut Report) {
    let namespace = patient.namespace;
    let what = format!("no operator serves namespace {namespace}");
    let mut finding = Finding::new(Level::Error, Cause::NamespaceNotWatched, &patient.object, what);
    for operator in operators {
        let (of, name, watched) = (operator.namespace(), operator.name(), operator.watched().join(", "));
        finding = finding.seen(format!("the operator {of}/{name} serves {watched}")).remedy(
            operator.upgrade(&format!(
                "--set 'watch.namespaces={{{}}}'",
                [operator.watched(), vec![namespace.to_owned()]].concat().join(",")
            )),
        );
    }
    report.add(finding);
}

/// Whether the operator has looked at it, as it is now.
fn served(
    patient: &Patient<'_>,
    task_queue: &TaskQueue,
    operators: Option<&[Operator]>,
    report: &mut Report,
) {
    let Patient { namespace, name, now, .. } = patient;
    let leads = |operator: &Operator| {
        matches!(operator.leadership(*now), Ok(Leadership::Held { .. } | Leadership::NotNeeded))
    };
    let is_led = patient.operator.map(leads);
    let metadata = &task_queue.metadata;
    if let Some(deleted) = &metadata.deletion_timestamp {
        let waits = now.duration_since(deleted.0).as_secs() > DELETION_SECONDS;
        let nobody = operators.is_some_and(<[Operator]>::is_empty) || is_led == Some(false);
        if waits && nobody && !task_queue.finalizers().is_empty() {
            let what = format!(
                "its deletion waits since {} for an operator that is not there",
                age(deleted.0, *now)
            );
            let finding = Finding::new(Level::Error, Cause::DeletionStuck, &patient.object, what);
            report.add(
                finding
                    .seen(format!("finalizers: {}", task_queue.finalizers().join(", ")))
                    .remedy("bring the operator back; or, if its queues may stay on the broker:")
                    .remedy(format!("kubectl patch taskqueue {name} -n {namespace} --type=merge -p '{{\"metadata\":{{\"finalizers\":null}}}}'")),
            );
        }
        return;
    }
    let changed = metadata.managed_fields.iter().flatten().filter(|entry| entry.subresource.is_none());
    let changed = changed.filter_map(|entry| Some(entry.time.as_ref()?.0)).max();
    let changed = changed.or(metadata.creation_timestamp.as_ref().map(|created| created.0));
    let is_recent = changed.is_some_and(|changed| now.duration_since(changed).as_secs() < FIRST_LOOK_SECONDS);
    let looked = task_queue.status.as_ref().and_then(|status| status.observed_generation);
    if looked >= metadata.generation || is_recent || is_led != Some(true) {
        return;
    }
    let what = match looked {
        None => "the operator works, but has never looked at it",
        Some(_) => "the operator works, but has not looked at its last change",
    };
    let finding = Finding::new(Level::Error, Cause::NotServed, &patient.object, what);
    let seen = match looked {
        None => "it has no status".to_owned(),
        Some(looked) => format!(
            "its generation is {}, the status speaks of {looked}",
            metadata.generation.unwrap_or_default()
        ),
    };
    let logs = patient.operator.map(|operator| {
        format!(
            "kubectl logs deployment/{} -n {} --all-pods=true | grep {name}",
            operator.name(),
            operator.namespace()
        )
    });
    report.add(finding.seen(seen).remedy(logs.unwrap_or_default()));
}

/// Whether its Secrets are there, can be read by the operator, and lead somewhere.
fn secrets(patient: &Patient<'_>, subject: &Subject, report: &mut Report) {
    let namespace = patient.namespace;
    for (purpose, name) in subject.secrets() {
        let Some(facts) = patient.around.secrets.get(&(purpose, name.clone())) else { continue };
        let (of, example) = match purpose {
            Purpose::Broker => ("broker", BROKER_EXAMPLE),
            Purpose::Results => ("results", RESULTS_EXAMPLE),
        };
        let finding = |reason, what: String| {
            Finding::new(Level::Error, Cause::Condition(reason), &patient.object, what)
                .seen(format!("spec.{of}.secretRef.name is `{name}`"))
        };
        match &facts.content {
            Ok(None) => {
                let missing = finding(
                    Reason::SecretNotFound,
                    format!("there is no Secret `{name}` in namespace {namespace}"),
                );
                report.add(missing.remedy(create_secret(&name, namespace, example)));
            }
            Ok(Some(Err(error))) => {
                let is_foreign = error.contains("is not supported");
                let reason = if is_foreign { Reason::BrokerNotSupported } else { Reason::SecretInvalid };
                let invalid = finding(reason, format!("Secret `{name}`: {error}"));
                report.add(invalid.remedy(format!(
                    "kubectl patch secret {name} -n {namespace} --type=merge -p '{{\"stringData\":{{\"uri\":\"{example}\"}}}}'"
                )));
            }
            // Its conditions have it, if the operator may read it.
            Ok(Some(Ok(_))) | Err(_) => {}
        }
        match &facts.operator_may {
            Ok(true) => {}
            Ok(false) => {
                let forbidden =
                    finding(Reason::SecretForbidden, format!("the operator may not read Secret `{name}`"));
                report.add(forbidden.remedy(allow_secrets(patient)));
            }
            Err(unread) => report.unknown(unread),
        }
        let reachable =
            condition(subject, BROKER_REACHABLE).is_some_and(|condition| condition.status == TRUE);
        if let (Err(unread), false) = (&facts.content, reachable) {
            report.unknown(unread);
        }
    }
}

/// The command that makes a Secret.
fn create_secret(name: &str, namespace: &str, uri: &str) -> String {
    format!("kubectl create secret generic {name} -n {namespace} --from-literal=uri='{uri}'")
}

/// The command that lets the operator read Secrets of the namespace.
fn allow_secrets(patient: &Patient<'_>) -> String {
    let namespace = patient.namespace;
    let Some(operator) = patient.operator else {
        return Reason::SecretForbidden.remedy().to_owned();
    };
    let (of, account) = (operator.namespace(), operator.account());
    if operator.watched().is_empty() {
        format!(
            "kubectl create rolebinding soloist-secret-reader -n {namespace} --clusterrole=soloist-secret-reader --serviceaccount={of}:{account}"
        )
    } else {
        operator.upgrade(&format!(
            "--set 'rbac.secrets[0].namespace={namespace}' --set 'rbac.secrets[0].names={{{}}}'",
            patient.secret
        ))
    }
}

fn condition<'a>(subject: &'a Subject, kind: &str) -> Option<&'a Condition> {
    subject.status()?.conditions.iter().find(|condition| condition.type_ == kind)
}

/// A condition, as evidence; without its message if that is said already.
pub(super) fn stated(condition: &Condition, now: Timestamp, is_repeated: bool) -> String {
    let Condition { type_, status, reason, message, last_transition_time, .. } = condition;
    let said = format!("condition {type_} is {status} ({reason}) since {}", age(last_transition_time.0, now));
    if is_repeated { said } else { format!("{said}: {message}") }
}

/// What the operator says, in a condition, that is wrong.
fn told(patient: &Patient<'_>, condition: &Condition, address: Option<&Address>, report: &mut Report) {
    let Some(reason) = Reason::ALL.iter().copied().find(|reason| reason.as_str() == condition.reason) else {
        return;
    };
    let cause = Cause::Condition(reason);
    let level = match (condition.type_.as_str(), reason) {
        // Summary; the doctor looks for the policy itself.
        (READY | SCALE_IN_PROTECTION, _) => return,
        (
            SCALING_ACTIVE,
            Reason::Paused | Reason::ManualReplicas | Reason::Recommending | Reason::ScalingOff,
        ) => Level::Note,
        (SCALING_ACTIVE, Reason::ScheduleInvalid | Reason::WorkersDetached | Reason::WorkersSilent) => {
            Level::Warning
        }
        // Another condition has the cause.
        (SCALING_ACTIVE, _) => return,
        (QUEUES_DECLARED, Reason::PoliciesNotApplied) | (WORKERS_AVAILABLE, Reason::ImagesDiffer) => {
            Level::Warning
        }
        _ if condition.status != FALSE => return,
        _ => Level::Error,
    };
    let mut secrets = patient.around.secrets.values();
    let is_outdated = match reason {
        // Somebody has just put it right, and the operator hasn't noticed yet.
        Reason::SecretNotFound => secrets.all(|facts| matches!(facts.content, Ok(Some(_)))),
        Reason::SecretInvalid | Reason::BrokerNotSupported => {
            secrets.all(|facts| matches!(facts.content, Ok(Some(Ok(_)))))
        }
        Reason::SecretForbidden => secrets.all(|facts| facts.operator_may == Ok(true)),
        // The pods and the Deployment say it themselves.
        _ => {
            condition.type_ == WORKERS_AVAILABLE
                && is_of_pods(reason)
                && patient.around.pods.is_ok()
                && patient.around.deployments.is_ok()
        }
    };
    if is_outdated || report.has(&patient.object, cause) {
        return;
    }
    if condition.type_ == BROKER_REACHABLE
        && !matches!(
            reason,
            Reason::SecretNotFound
                | Reason::SecretForbidden
                | Reason::SecretInvalid
                | Reason::BrokerNotSupported
        )
    {
        return broker::unreachable(patient, condition, reason, address, report);
    }
    let mut finding = Finding::new(level, cause, &patient.object, &condition.message).seen(stated(
        condition,
        patient.now,
        true,
    ));
    for remedy in remedies(patient, reason, condition, address) {
        finding = finding.remedy(remedy);
    }
    report.add(finding);
}

/// Whether pods or their Deployment show it.
fn is_of_pods(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ImagePullFailed
            | Reason::ContainerNotCreated
            | Reason::CrashLooping
            | Reason::WorkersNotReady
            | Reason::Unschedulable
            | Reason::QuotaExceeded
            | Reason::PodsRefused
    )
}

fn remedies(
    patient: &Patient<'_>,
    reason: Reason,
    condition: &Condition,
    address: Option<&Address>,
) -> Vec<String> {
    let Patient { namespace, name, .. } = patient;
    let vhost = address.map_or("VHOST", |address| address.vhost.as_str());
    let user = address.map_or("USER", |address| address.user.as_str());
    let said = &condition.message;
    // Most messages begin with what they are about.
    let named = said.split('`').nth(1).unwrap_or("NAME");
    let edit = format!("kubectl edit taskqueue {name} -n {namespace}");
    match reason {
        Reason::SecretNotFound => {
            let example = if named == patient.secret { BROKER_EXAMPLE } else { RESULTS_EXAMPLE };
            vec![create_secret(named, namespace, example)]
        }
        Reason::DeclareFailed => vec![
            format!(
                "on the broker, if the user may not: rabbitmqctl set_permissions -p '{vhost}' '{user}' '.*' '.*' '.*'"
            ),
            "it declares its queues and their `.dead` queues; what else there may be says the message"
                .to_owned(),
        ],
        Reason::PoliciesNotApplied if said.contains("policymaker") => vec![format!(
            "on the broker; it replaces the user's tags, which `rabbitmqctl list_users` has: rabbitmqctl set_user_tags '{user}' policymaker"
        )],
        Reason::PoliciesNotApplied => {
            vec![patient.change_secret("managementUri", &format!("http://{user}:PASSWORD@HOST:15672"))]
        }
        Reason::ScheduleInvalid | Reason::TemplateInvalid => vec![edit],
        Reason::DeploymentRefused if said.contains("exceeded quota") => {
            workers::remedies(patient, Cause::Condition(Reason::QuotaExceeded), said, None)
        }
        Reason::DeploymentRefused => vec![format!("change what the message names: {edit}")],
        Reason::NameConflict => vec![
            format!("see what it is: kubectl describe deployment {named} -n {namespace}"),
            format!("and, if it isn't needed: kubectl delete deployment {named} -n {namespace}"),
        ],
        Reason::SecretForbidden => vec![allow_secrets(patient)],
        Reason::QueueArgumentMismatch => {
            vec![
                format!("use the same settings, or another name: {edit}"),
                format!(
                    "or on the broker, which loses nothing if it refuses: rabbitmqctl delete_queue '{named}' --vhost '{vhost}' --if-empty --if-unused"
                ),
            ]
        }
        Reason::QueueClaimed => {
            let holder = said
                .split_once("older TaskQueue ")
                .and_then(|(_, rest)| rest.split_once(':')?.0.split_once('/'));
            let (of, holder) = holder.unwrap_or(("NAMESPACE", "NAME"));
            vec![
                format!("use another queue: {edit}"),
                format!("or, if the other isn't needed: kubectl delete taskqueue {holder} -n {of}"),
            ]
        }
        Reason::Paused => vec![format!("kubectl soloist resume {name} -n {namespace}")],
        Reason::ManualReplicas => {
            vec![format!(
                "kubectl patch taskqueue {name} -n {namespace} --type=json -p '[{{\"op\":\"remove\",\"path\":\"/spec/replicas\"}}]'"
            )]
        }
        reason if is_of_pods(reason) => {
            workers::remedies(patient, Cause::Condition(reason), &condition.message, None)
        }
        reason => vec![reason.remedy().to_owned()],
    }
}

/// Whether NetworkPolicies keep the workers, or the operator, from the broker.
fn networks(
    patient: &Patient<'_>,
    task_queue: &TaskQueue,
    conditions: &[Condition],
    address: &Address,
    report: &mut Report,
) {
    let destination = Destination { host: &address.host, port: address.port };
    let is_false =
        |kind: &str| conditions.iter().any(|condition| condition.type_ == kind && condition.status == FALSE);
    let worker_labels = match patient.around.deployment_of(patient.name) {
        Ok(Some(deployment)) => template_labels(deployment),
        _ => labels(task_queue),
    };
    let of_operator =
        patient.operator.map(|operator| (&operator.network_policies, template_labels(&operator.deployment)));
    let both = [
        (Some((&patient.around.network_policies, worker_labels)), "workers", is_false(WORKERS_AVAILABLE)),
        (of_operator, "the operator", is_false(BROKER_REACHABLE)),
    ];
    for (policies, who, shows) in both {
        let Some((policies, labels)) = policies else { continue };
        let Some(policies) = report.known(policies) else { continue };
        if let Some((by, what)) = cut(policies, &labels, destination) {
            report.add(cut_off(patient, (who, shows), (&by, &what), destination));
        }
    }
}

fn template_labels(deployment: &k8s_openapi::api::apps::v1::Deployment) -> BTreeMap<String, String> {
    let template = deployment.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    template.and_then(|metadata| metadata.labels.clone()).unwrap_or_default()
}

fn cut_off(
    patient: &Patient<'_>,
    (who, shows): (&str, bool),
    (by, what): (&[&NetworkPolicy], &str),
    destination: Destination<'_>,
) -> Finding {
    // Not every network enforces policies: where nothing else shows it, it may do no harm yet.
    let level = if shows { Level::Error } else { Level::Warning };
    let mut finding = Finding::new(
        level,
        Cause::NetworkPolicy,
        &patient.object,
        format!("NetworkPolicies cut {who} off from {what}, where the network enforces them"),
    );
    for policy in by {
        let (name, namespace) = (policy.name_any(), policy.namespace().unwrap_or_default());
        finding = finding.seen(format!(
            "NetworkPolicy {name} of namespace {namespace} selects {who}, and no rule lets them there"
        ));
    }
    match by.first() {
        Some(first) => finding.remedy(opening(first, destination)),
        None => finding,
    }
}
