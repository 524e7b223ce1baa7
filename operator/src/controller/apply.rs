//! The third step of a reconciliation: writes what the plan says, and nothing else.

use std::time::Instant;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource as _, ResourceExt as _};
use serde_json::json;

use super::Error;
use super::context::{Context, Memory};
use super::events::{News, publish};
use super::observe::Observed;
use crate::api::v1alpha1::TaskQueue;
use crate::plan::autoscaler::{Decision, DecisionReason};
use crate::plan::changes::{Changes, applied_hash, belongs_to, has_drifted, name_conflict, replicas, trim};
use crate::plan::metadata::{AUTOSCALER, OPERATOR, deployment_name};
use crate::plan::reason::Reason;
use crate::plan::status::Problem;

/// What writing came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Applied {
    /// Everything is as decided.
    Done,
    /// The API server refuses it for good.
    Refused(Problem),
    /// There is more in the cluster than the watches have shown, so the decision has to be made anew.
    Outdated,
}

/// Writes the changes.
///
/// # Errors
/// When something could not be written that may go well the next time.
pub(super) async fn apply(
    task_queue: &TaskQueue,
    observed: &Observed,
    changes: &Changes,
    decision: &Decision,
    memory: &mut Memory,
    context: &Context,
) -> Result<Applied, Error> {
    let mut before = observed.deployment.as_ref().map(replicas);
    if let Some(wanted) = &changes.apply {
        if observed.deployment.is_none()
            && let Some(found) = existing(task_queue, wanted, &context.client).await?
        {
            if !belongs_to(&found, task_queue) {
                return Ok(Applied::Refused(name_conflict(&found)));
            }
            remember(found, memory);
            return Ok(Applied::Outdated);
        }
        match apply_deployment(wanted, &context.client).await? {
            Ok(written) => {
                tracing::info!(deployment = written.name_any(), "Deployment applied");
                before = before.or(Some(0));
                memory.known_drift = has_drifted(&written, wanted).then(|| {
                    (applied_hash(wanted).unwrap_or_default().to_owned(), written.metadata.generation)
                });
                remember(written, memory);
            }
            Err(problem) => return Ok(Applied::Refused(problem)),
        }
    }
    if let Some(wanted) = changes.scale {
        let refused = scale(task_queue, wanted, memory, context).await?;
        let from = before.unwrap_or_default();
        if from != wanted || refused.is_some() {
            tell(task_queue, observed, from, decision, refused.as_ref(), context).await;
        }
        return Ok(refused.map_or(Applied::Done, Applied::Refused));
    }
    Ok(Applied::Done)
}

fn deployments(namespace: Option<String>, client: &Client) -> Api<Deployment> {
    Api::namespaced(client.clone(), &namespace.unwrap_or_default())
}

/// The Deployment of the wanted name, asked from the API server: the watch shows only those with our label, and one without it
/// must not be taken over.
async fn existing(
    task_queue: &TaskQueue,
    wanted: &Deployment,
    client: &Client,
) -> Result<Option<Deployment>, Error> {
    let name = wanted.name_any();
    let found = deployments(task_queue.namespace(), client).get_opt(&name).await;
    found.map_err(|source| Error::ApplyDeployment { name, source })
}

async fn apply_deployment(
    wanted: &Deployment,
    client: &Client,
) -> Result<Result<Deployment, Problem>, Error> {
    let name = wanted.name_any();
    let api = deployments(wanted.namespace(), client);
    match api.patch(&name, &PatchParams::apply(OPERATOR).force(), &Patch::Apply(wanted)).await {
        Ok(written) => Ok(Ok(written)),
        Err(source) => refused(source).map(Err).map_err(|source| Error::ApplyDeployment { name, source }),
    }
}

/// Keeps what the API server returned: the watch may lag behind.
fn remember(mut written: Deployment, memory: &mut Memory) {
    trim(&mut written);
    memory.written = Some(written);
    memory.written_seen = false;
}

/// Sets the number of replicas in one patch, under a manager of its own: applying the rest of the Deployment never touches it.
async fn scale(
    task_queue: &TaskQueue,
    wanted: u16,
    memory: &mut Memory,
    context: &Context,
) -> Result<Option<Problem>, Error> {
    let name = deployment_name(&task_queue.name_any());
    let namespace = task_queue.namespace().unwrap_or_default();
    let api = deployments(task_queue.namespace(), &context.client);
    let patch = json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {"name": name},
        "spec": {"replicas": wanted},
    });
    let parameters = PatchParams::apply(AUTOSCALER).force();
    match api.patch_scale(&name, &parameters, &Patch::Apply(&patch)).await {
        Ok(scaled) => {
            let shown = memory
                .written
                .take()
                .or_else(|| context.deployment(&namespace, &name).map(std::sync::Arc::unwrap_or_clone));
            if let Some(mut written) = shown {
                written.metadata.resource_version = scaled.metadata.resource_version;
                own_replicas(&mut written, wanted);
                memory.written = Some(written);
                memory.written_seen = false;
            }
            Ok(None)
        }
        Err(source) => refused(source).map(Some).map_err(|source| Error::Scale { name, source }),
    }
}

/// Repeats on our copy what the patch did in the cluster.
fn own_replicas(deployment: &mut Deployment, replicas: u16) {
    deployment.spec.get_or_insert_default().replicas = Some(replicas.into());
    let owned = json!({
        "manager": AUTOSCALER,
        "operation": "Apply",
        "subresource": "scale",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    });
    deployment.metadata.managed_fields = serde_json::from_value(owned).ok().map(|entry| vec![entry]);
}

/// Tells of a change of the number of workers: log, metrics and event.
async fn tell(
    task_queue: &TaskQueue,
    observed: &Observed,
    from: u16,
    decision: &Decision,
    refused: Option<&Problem>,
    context: &Context,
) {
    let to = decision.replicas;
    let task_queue = &task_queue.object_ref(&());
    let action = format!("ScaleTo{to}");
    if let Some(problem) = refused {
        tracing::warn!(from, to, error = problem.message, "scaling refused");
        let note = format!("from {from} to {to}: {}", problem.message);
        publish(
            task_queue,
            context,
            News { warning: true, reason: Reason::ScalingFailed, action, note: &note },
        )
        .await;
        return;
    }
    let direction = if to > from { "up" } else { "down" };
    context.metrics.scale_decisions.with_label_values(&[direction, decision.reason.as_str()]).inc();
    // What waited for the stabilization window wasn't late.
    if let (Some(changed), DecisionReason::Backlog, "up") =
        (observed.backlog_changed_at, decision.reason, direction)
    {
        context.metrics.decision_latency.observe(Instant::now().duration_since(changed).as_secs_f64());
    }
    tracing::info!(from, to, reason = %decision.reason, decision = decision.sentence, "scaled");
    let note = format!("from {from} to {to}: {}", decision.sentence);
    publish(task_queue, context, News { warning: false, reason: Reason::Scaled, action, note: &note }).await;
}

/// Tells what the API server refuses for good, which is for the user to see, from what may go well the next time.
fn refused(error: kube::Error) -> Result<Problem, kube::Error> {
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => {
            Ok(Problem { reason: Reason::DeploymentRefused, message: status.message })
        }
        error => Err(error),
    }
}
