//! What keeps workers from running, by their pods and their Deployment.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use soloist_operator::plan::deployment::WORKER_CONTAINER;
use soloist_operator::plan::metadata::deployment_name;
use soloist_operator::plan::reason::Reason;
use soloist_operator::plan::workers::{WorkerPod, workers};

use super::task_queue::Patient;
use super::{Cause, Finding, Level, Report};

/// Finds what is wrong with the workers. Each cause is told once, with one of the pods that show it.
pub(super) fn examine(patient: &Patient<'_>, report: &mut Report) {
    let deployment = match patient.around.deployment_of(patient.name) {
        Ok(deployment) => deployment,
        Err(unread) => {
            report.unknown(unread);
            None
        }
    };
    let pods = match patient.around.pods_of(patient.name) {
        Ok(pods) => pods,
        Err(unread) => {
            report.unknown(unread);
            Vec::new()
        }
    };
    let seen: Vec<(&Pod, WorkerPod)> = pods
        .iter()
        .filter_map(|pod| Some((*pod, WorkerPod::new(pod)?)))
        .filter(|(_, pod)| !pod.terminating)
        .collect();
    for (pod, worker) in &seen {
        let (reason, message) = match &worker.problem {
            Some(problem) => (problem.reason, &problem.message),
            None => continue,
        };
        add(patient, Cause::Condition(reason), message, Some(pod), report);
    }
    for (pod, _) in &seen {
        if let Some(message) = out_of_memory(pod) {
            add(patient, Cause::OutOfMemory, &message, Some(pod), report);
        }
    }
    // What the pods themselves don't say: a quota, a policy that refuses them, or that they run and don't become ready.
    let (pods, seen): (Vec<&Pod>, Vec<WorkerPod>) = seen.into_iter().unzip();
    if let Some(problem) = workers(&seen, deployment, patient.now).problem {
        let named = pods.into_iter().find(|pod| problem.message.contains(&pod.name_any()));
        add(patient, Cause::Condition(problem.reason), &problem.message, named, report);
    }
}

fn add(patient: &Patient<'_>, cause: Cause, message: &str, pod: Option<&Pod>, report: &mut Report) {
    // The volume of a Secret that is missing is a consequence.
    let explains = match cause {
        Cause::Condition(Reason::ContainerNotCreated) => Cause::Condition(Reason::SecretNotFound),
        cause => cause,
    };
    if report.has(&patient.object, cause) || report.has(&patient.object, explains) {
        return;
    }
    let by = match pod {
        Some(pod) => format!("pod {}", pod.name_any()),
        None => format!("Deployment {}, and its pods", deployment_name(patient.name)),
    };
    let mut finding = Finding::new(Level::Error, cause, &patient.object, message).seen(by);
    let name = pod.map(|pod| pod.name_any()).unwrap_or_default();
    if let Some(said) = patient.around.waiting_for.get(&name) {
        finding = finding.seen(format!("it says that it waits for this: {said}"));
    }
    let warning =
        patient.around.warnings.get(&name).filter(|_| cause == Cause::Condition(Reason::ContainerNotCreated));
    if let Some(warning) = warning {
        finding = finding.seen(format!("last warning about it: {warning}"));
    }
    let message = warning.map_or(message, String::as_str);
    for remedy in remedies(patient, cause, message, pod) {
        finding = finding.remedy(remedy);
    }
    report.add(finding);
}

/// What to do about workers that don't run.
pub(super) fn remedies(patient: &Patient<'_>, cause: Cause, message: &str, pod: Option<&Pod>) -> Vec<String> {
    let Patient { namespace, name, .. } = patient;
    let change = |spec: &str| {
        format!("kubectl patch taskqueue {name} -n {namespace} --type=merge -p '{{\"spec\":{spec}}}'")
    };
    let logs = |flags: &str| match pod {
        Some(pod) => format!("kubectl logs {} -n {namespace} -c {WORKER_CONTAINER}{flags}", pod.name_any()),
        None => format!("kubectl logs deployment/{name}-worker -n {namespace} --all-pods=true{flags}"),
    };
    let reason = match cause {
        Cause::Condition(reason) => reason,
        Cause::OutOfMemory => {
            return vec![change(r#"{"worker":{"resources":{"limits":{"memory":"MORE"}}}}"#)];
        }
        _ => return Vec::new(),
    };
    match reason {
        Reason::ImagePullFailed if message.contains("pull policy of Never") => vec![
            change(r#"{"worker":{"imagePullPolicy":"IfNotPresent"}}"#),
            "or load the image into each node".to_owned(),
        ],
        Reason::ImagePullFailed if is_unauthorized(message) => vec![
            format!(
                "kubectl create secret docker-registry registry -n {namespace} --docker-server=HOST --docker-username=USER --docker-password=PASSWORD"
            ),
            change(r#"{"worker":{"template":{"spec":{"imagePullSecrets":[{"name":"registry"}]}}}}"#),
            format!("or, if there is no such image: {}", change(r#"{"worker":{"image":"IMAGE:TAG"}}"#)),
        ],
        Reason::ImagePullFailed => vec![change(r#"{"worker":{"image":"IMAGE:TAG"}}"#)],
        Reason::QuotaExceeded => {
            let quota = message.split("exceeded quota: ").nth(1).and_then(|rest| rest.split(',').next());
            vec![
                format!("kubectl edit resourcequota {} -n {namespace}", quota.unwrap_or("NAME")),
                format!("or have fewer workers: {}", change(r#"{"scaling":{"maxReplicas":N}}"#)),
                format!(
                    "or smaller ones: {}",
                    change(r#"{"worker":{"resources":{"requests":{"cpu":"LESS","memory":"LESS"}}}}"#)
                ),
            ]
        }
        Reason::Unschedulable if !message.contains("Insufficient") => {
            vec![format!(
                "a node must have what spec.worker.template asks for (nodeSelector, affinity, tolerations): kubectl edit taskqueue {name} -n {namespace}"
            )]
        }
        Reason::Unschedulable => vec![
            change(r#"{"worker":{"resources":{"requests":{"cpu":"LESS","memory":"LESS"}}}}"#),
            "or add nodes; what they have left says: kubectl describe nodes".to_owned(),
        ],
        // Nothing ran, so there is no log.
        Reason::CrashLooping if message.contains("StartError") => {
            vec![format!("correct command, args or image: kubectl edit taskqueue {name} -n {namespace}")]
        }
        Reason::CrashLooping => vec![logs(" --previous")],
        Reason::WorkersNotReady => vec![logs("")],
        Reason::ContainerNotCreated | Reason::PodsRefused => match missing(namespace, message) {
            Some(create) => vec![create],
            None if reason == Reason::PodsRefused => {
                vec![format!("change what the message names: kubectl edit taskqueue {name} -n {namespace}")]
            }
            None => pod
                .map(|pod| format!("kubectl describe pod {} -n {namespace}", pod.name_any()))
                .into_iter()
                .collect(),
        },
        reason => vec![reason.remedy().to_owned()],
    }
}

/// Whether a registry wants to know who asks.
fn is_unauthorized(message: &str) -> bool {
    let said = message.to_lowercase();
    ["unauthorized", "authorization", "authentication", "denied", "forbidden"]
        .iter()
        .any(|word| said.contains(word))
}

/// The command that makes what isn't there, by the words of Kubernetes: `configmap "settings" not found`.
fn missing(namespace: &str, message: &str) -> Option<String> {
    [
        ("configmap", "configmap", " --from-literal=KEY=VALUE"),
        ("secret", "secret generic", " --from-literal=KEY=VALUE"),
        ("serviceaccount", "serviceaccount", ""),
    ]
    .into_iter()
    .find_map(|(kind, create, content)| {
        let (_, rest) = message.split_once(&format!("{kind} \""))?;
        let (name, rest) = rest.split_once('"')?;
        rest.starts_with(" not found")
            .then(|| format!("kubectl create {create} {name} -n {namespace}{content}"))
    })
}

fn out_of_memory(pod: &Pod) -> Option<String> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let killed = containers.iter().find(|container| {
        let ends = [&container.state, &container.last_state];
        let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref().and_then(|state| state.terminated.as_ref()?.reason.clone())
        };
        ends.into_iter().any(|state| ended(state).as_deref() == Some("OOMKilled"))
    })?;
    Some(format!(
        "container `{}` was killed because it used more memory than its limit; it was started again {} times",
        killed.name, killed.restart_count
    ))
}
