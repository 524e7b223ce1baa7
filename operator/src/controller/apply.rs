//! The third step of a reconciliation: writes what the plan says, and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
use crate::plan::law;
use crate::plan::metadata::{AUTOSCALER, OPERATOR, deployment_name};
use crate::plan::reason::Reason;
use crate::plan::status::Problem;

/// What the API server refused is tried again after this long: a policy or a quota may have changed.
pub(super) const RETRY_REFUSED: Duration = Duration::from_secs(30);

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
    let mut before = observed.deployment.as_deref().map(replicas);
    let mut refused = None;
    if let Some(wanted) = &changes.apply {
        match apply_deployment(task_queue, observed, wanted, memory, context).await? {
            Applied::Done => before = before.or(Some(0)),
            Applied::Outdated => return Ok(Applied::Outdated),
            Applied::Refused(problem) => refused = Some(problem),
        }
    }
    // Where the Deployment could not be changed it still can be scaled, as long as there is one.
    if let (Some(wanted), Some(from)) = (changes.scale, before) {
        let scaling_refused = scale(task_queue, wanted, memory, context).await?;
        if from != wanted || scaling_refused.is_some() {
            tell(task_queue, observed, (from, wanted), decision, scaling_refused.as_ref(), context).await;
        }
        refused = refused.or(scaling_refused);
    }
    Ok(refused.map_or(Applied::Done, Applied::Refused))
}

/// Applies the Deployment. What was refused a moment ago isn't tried again.
async fn apply_deployment(
    task_queue: &TaskQueue,
    observed: &Observed,
    wanted: &Deployment,
    memory: &mut Memory,
    context: &Context,
) -> Result<Applied, Error> {
    let hash = applied_hash(wanted).unwrap_or_default();
    if let Some((refused_hash, problem, at)) = &memory.refused
        && refused_hash == hash
        && at.elapsed() < RETRY_REFUSED
    {
        return Ok(Applied::Refused(problem.clone()));
    }
    let name = wanted.name_any();
    let failed = |source| Error::ApplyDeployment { name: name.clone(), source };
    let api = deployments(task_queue.namespace(), &context.client);
    // The watch shows only Deployments with our label. One without it may have the name, and must not be taken over.
    let found = match observed.deployment {
        Some(_) => None,
        None => api.get_opt(&name).await.map_err(failed)?,
    };
    let problem = match found {
        Some(found) if belongs_to(&found, task_queue) => {
            remember(found, memory);
            return Ok(Applied::Outdated);
        }
        Some(found) => name_conflict(&found),
        None => match api.patch(&name, &PatchParams::apply(OPERATOR).force(), &Patch::Apply(wanted)).await {
            Ok(written) => {
                tracing::info!(deployment = name, "Deployment applied");
                let drifted = has_drifted(&written, wanted);
                memory.known_drift = drifted.then(|| (hash.to_owned(), written.metadata.generation));
                memory.refused = None;
                remember(written, memory);
                return Ok(Applied::Done);
            }
            Err(error) => refusal(error).map_err(failed)?,
        },
    };
    memory.refused = Some((hash.to_owned(), problem.clone(), Instant::now()));
    Ok(Applied::Refused(problem))
}

fn deployments(namespace: Option<String>, client: &Client) -> Api<Deployment> {
    Api::namespaced(client.clone(), &namespace.unwrap_or_default())
}

/// Keeps what the API server returned: the watch may lag behind.
fn remember(mut written: Deployment, memory: &mut Memory) {
    trim(&mut written);
    memory.written = Some((Arc::new(written), Instant::now()));
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
            let written = memory.written.take().map(|(written, _)| written);
            if let Some(written) = written.or_else(|| context.deployment(&namespace, &name)) {
                let mut written = Arc::unwrap_or_clone(written);
                written.metadata.resource_version = scaled.metadata.resource_version;
                own_replicas(&mut written, wanted);
                memory.written = Some((Arc::new(written), Instant::now()));
            }
            Ok(None)
        }
        Err(source) => refusal(source).map(Some).map_err(|source| Error::Scale { name, source }),
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
    (from, to): (u16, u16),
    decision: &Decision,
    refused: Option<&Problem>,
    context: &Context,
) {
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
    let prompt =
        [law::Reason::Backlog, law::Reason::Ceiling].map(DecisionReason::Law).contains(&decision.reason);
    if let (Some(changed), true, "up") = (observed.backlog_changed_at, prompt, direction) {
        context.metrics.decision_latency.observe(Instant::now().duration_since(changed).as_secs_f64());
    }
    tracing::info!(from, to, reason = %decision.reason, decision = decision.sentence, "scaled");
    let note = format!("from {from} to {to}: {}", decision.sentence);
    publish(task_queue, context, News { warning: false, reason: Reason::Scaled, action, note: &note }).await;
}

/// Tells what the API server refuses for good, which is for the user to see, from what may go well the next time.
pub(super) fn refusal(error: kube::Error) -> Result<Problem, kube::Error> {
    match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => {
            Ok(Problem { reason: Reason::DeploymentRefused, message: status.message })
        }
        error => Err(error),
    }
}
