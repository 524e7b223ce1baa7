//! Whether there is an operator that works.

use jiff::Timestamp;
use kube::ResourceExt as _;
use soloist_operator::plan::workers::WorkerPod;

use super::{Cause, Finding, Level, Report};
use crate::output::age;
use crate::snapshot::{Fence, Leadership, Operator, Snapshot};

/// What installs the operator, and with it the definition.
pub(super) const INSTALL: &str = "helm install soloist charts/soloist -n soloist-system --create-namespace";

/// Denied permissions that are named one by one.
const NAMED: usize = 8;

pub(super) fn examine(snapshot: &Snapshot, report: &mut Report) {
    let Some(operators) = report.known(&snapshot.operators) else {
        fence(snapshot, report);
        return;
    };
    if operators.is_empty() {
        let missing = Finding::new(
            Level::Error,
            Cause::OperatorMissing,
            "the operator",
            "there is no operator: nothing is done about TaskQueues",
        );
        let labels = "no Deployment has the labels app.kubernetes.io/part-of=soloist and app.kubernetes.io/component=operator";
        report.add(missing.seen(labels).remedy(INSTALL));
    }
    for operator in operators {
        running(operator, report);
        leading(operator, snapshot.now, report);
        permitted(operator, report);
        alone(operator, operators, report);
    }
    fence(snapshot, report);
}

/// How an operator is called in findings.
fn object(operator: &Operator) -> String {
    format!("operator {}/{}", operator.namespace(), operator.name())
}

/// Whether it has pods, and what keeps them from running.
fn running(operator: &Operator, report: &mut Report) {
    let (object, namespace, name) = (object(operator), operator.namespace(), operator.name());
    let not_running = |what: String| Finding::new(Level::Error, Cause::OperatorNotRunning, &object, what);
    if operator.deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(0) {
        let stopped =
            not_running("the operator is scaled to zero: nothing is done about TaskQueues".to_owned());
        report.add(
            stopped
                .seen(format!("spec.replicas of Deployment {name} is 0"))
                .remedy(format!("kubectl scale deployment/{name} -n {namespace} --replicas=2")),
        );
        return;
    }
    let status = operator.deployment.status.as_ref();
    for condition in status.and_then(|status| status.conditions.as_ref()).into_iter().flatten() {
        if condition.type_ == "ReplicaFailure" && condition.status == "True" {
            let refused = not_running("the API server refuses the operator's pods".to_owned());
            let said = condition.message.clone().unwrap_or_default();
            report.add(refused.seen(said).remedy(format!("kubectl describe replicasets -n {namespace}")));
        }
    }
    let Some(pods) = report.known(&operator.pods) else { return };
    let mut ready = 0;
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let Some(seen) = WorkerPod::new(pod) else { continue };
        ready += usize::from(seen.ready);
        if let Some(problem) = seen.problem {
            let cause = Cause::Condition(problem.reason);
            let finding = Finding::new(Level::Error, cause, &object, problem.message);
            report.add(
                finding
                    .seen(format!("pod {}", pod.name_any()))
                    .remedy(format!("kubectl logs {} -n {namespace} --previous", pod.name_any()))
                    .remedy(format!("kubectl describe pod {} -n {namespace}", pod.name_any())),
            );
        }
    }
    if ready == 0 && !report.findings.iter().any(|finding| finding.object == object) {
        let what = "the operator has no pod that is ready: nothing is done about TaskQueues".to_owned();
        report.add(
            not_running(what)
                .seen(format!("pods: {}", pods.len()))
                .remedy(format!("kubectl logs deployment/{name} -n {namespace} --all-pods=true"))
                .remedy(format!("kubectl describe deployment/{name} -n {namespace}")),
        );
    }
}

/// Whether a pod of it leads.
fn leading(operator: &Operator, now: Timestamp, report: &mut Report) {
    let (lease, namespace) = operator.lease_name();
    let logs =
        format!("kubectl logs deployment/{} -n {} --all-pods=true", operator.name(), operator.namespace());
    let finding =
        |cause, what: &str| Finding::new(Level::Error, cause, &object(operator), what).remedy(&logs);
    match operator.leadership(now) {
        Err(unread) => report.unknown(unread),
        Ok(Leadership::Held { .. } | Leadership::NotNeeded) => {}
        Ok(Leadership::Never) => {
            let what = "no pod of the operator leads, or ever has: nothing is done about TaskQueues";
            report.add(
                finding(Cause::NoLeader, what)
                    .seen(format!("there is no Lease {lease} in namespace {namespace}")),
            );
        }
        Ok(Leadership::Released) => {
            let what = "no pod of the operator leads: nothing is done about TaskQueues";
            let seen = format!("nobody holds the Lease {lease} in namespace {namespace}, which was given up");
            report.add(finding(Cause::NoLeader, what).seen(seen));
        }
        Ok(Leadership::Stale { by, renewed }) => {
            let what = "the operator that led has stopped, and no other has taken over: nothing is done about TaskQueues";
            let ago = age(renewed, now);
            let seen = format!("the Lease {lease} in namespace {namespace} was renewed {ago} ago, by {by}");
            let pods = operator.pods.as_ref().ok();
            let gone = pods.is_some_and(|pods| !pods.iter().any(|pod| pod.name_any() == by));
            let stale = finding(Cause::LeaseStale, what).seen(seen);
            report.add(if gone { stale.seen(format!("there is no pod {by} any more")) } else { stale });
        }
    }
}

/// Whether it may do what it has to.
fn permitted(operator: &Operator, report: &mut Report) {
    let Some(denied) = report.known(&operator.denied) else { return };
    if denied.is_empty() {
        return;
    }
    let (namespace, account) = (operator.namespace(), operator.account());
    let what = format!("the operator's service account {account} lacks {} of its permissions", denied.len());
    let mut finding = Finding::new(Level::Error, Cause::OperatorForbidden, &object(operator), what);
    for one in denied.iter().take(NAMED) {
        finding = finding.seen(format!("it may not {one}"));
    }
    if denied.len() > NAMED {
        finding = finding.seen(format!("and {} more", denied.len() - NAMED));
    }
    report.add(finding.remedy(operator.upgrade("--set rbac.create=true")).remedy(format!(
        "to see them all: kubectl auth can-i --list --as=system:serviceaccount:{namespace}:{account}"
    )));
}

/// Whether no other serves the same namespaces.
fn alone(operator: &Operator, operators: &[Operator], report: &mut Report) {
    let watched = operator.watched();
    let shares = |other: &&Operator| {
        let theirs = other.watched();
        let shared =
            watched.is_empty() || theirs.is_empty() || theirs.iter().any(|name| watched.contains(name));
        shared && (other.namespace(), other.name()) > (operator.namespace(), operator.name())
    };
    if let Some(other) = operators.iter().find(shares) {
        let (namespace, name) = (other.namespace(), other.name());
        let what = format!(
            "the operator {namespace}/{name} serves the same namespaces: the two undo what the other does"
        );
        let finding = Finding::new(Level::Error, Cause::OperatorsCompete, &object(operator), what);
        report.add(
            finding
                .seen(said(&watched))
                .remedy("give each its own namespaces (chart value watch.namespaces), or uninstall one"),
        );
    }
}

fn said(watched: &[String]) -> String {
    match watched {
        [] => "it serves all namespaces".to_owned(),
        watched => format!("it serves {}", watched.join(", ")),
    }
}

/// Whether the API server keeps scale-in from deleting workers with a task.
fn fence(snapshot: &Snapshot, report: &mut Report) {
    let Some(fence) = report.known(&snapshot.fence) else { return };
    let seen = match fence {
        Fence::Denies => return,
        Fence::Lenient => "its binding has no validationAction Deny",
        Fence::Unbound => "there is no ValidatingAdmissionPolicyBinding soloist-scale-in",
        Fence::Missing => "there is no ValidatingAdmissionPolicy soloist-scale-in",
    };
    let what =
        "workers drain before they go, but nothing keeps Kubernetes from deleting another one, with its task";
    let cause = Cause::Condition(soloist_operator::plan::reason::Reason::BestEffort);
    let finding = Finding::new(Level::Warning, cause, "scale-in", what).seen(seen);
    let operators = snapshot.operators.as_deref().unwrap_or_default();
    report.add(match operators.first() {
        Some(operator) => finding.remedy(operator.upgrade("--set scaleInProtection.enabled=true")),
        None => finding.remedy(INSTALL),
    });
}
