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
    let seen: Vec<WorkerPod> = seen.into_iter().map(|(_, worker)| worker).collect();
    if let Some(problem) = workers(&seen, deployment, patient.now).problem {
        add(patient, Cause::Condition(problem.reason), &problem.message, None, report);
    }
}

fn add(patient: &Patient<'_>, cause: Cause, message: &str, pod: Option<&Pod>, report: &mut Report) {
    if report.has(&patient.object, cause) {
        return;
    }
    let by = match pod {
        Some(pod) => format!("pod {}", pod.name_any()),
        None => format!("Deployment {}, and its pods", deployment_name(patient.name)),
    };
    let mut finding = Finding::new(Level::Error, cause, &patient.object, message).seen(by);
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
        Reason::ImagePullFailed => vec![
            change(r#"{"worker":{"image":"IMAGE:TAG"}}"#),
            format!(
                "if the registry wants a password: kubectl create secret docker-registry NAME -n {namespace} …, named in spec.worker.template as spec.imagePullSecrets"
            ),
        ],
        Reason::QuotaExceeded => {
            let quota = message.split("exceeded quota: ").nth(1).and_then(|rest| rest.split(',').next());
            vec![
                format!("kubectl edit resourcequota {} -n {namespace}", quota.unwrap_or("NAME")),
                format!("or ask for less: {}", change(r#"{"scaling":{"maxReplicas":N}}"#)),
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
        Reason::CrashLooping => vec![logs(" --previous")],
        Reason::WorkersNotReady => vec![logs("")],
        Reason::ContainerNotCreated => pod
            .map(|pod| format!("kubectl describe pod {} -n {namespace}", pod.name_any()))
            .into_iter()
            .collect(),
        Reason::PodsRefused => {
            vec![format!("kubectl describe replicasets -n {namespace} -l soloist.dev/task-queue={name}")]
        }
        reason => vec![reason.remedy().to_owned()],
    }
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
