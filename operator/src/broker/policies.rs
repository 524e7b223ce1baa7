//! Keeps one policy per queue in force, over the management API: dead letters, TTL, lengths, delivery limit.
//!
//! RabbitMQ applies only one policy to a queue. Where somebody else's applies already, ours would take that one out of force, so it isn't
//! set, and the condition says what to add to the other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use celery_client::BrokerAddress;
use serde_json::Value;
use tokio::time::sleep;

use super::management::{Management, ManagementError, Policy};
use super::removals::{Removal, Removed};
use super::state::{Shared, Turn};
use crate::metrics::Metrics;
use crate::plan::topology::{POLICY_PREFIX, Queue, exact_pattern};

/// What is in force is looked at again after this long.
const REPEAT: Duration = Duration::from_secs(60);

/// Longest wait for declarations under way.
const DECLARATIONS: Duration = Duration::from_secs(60);

/// Time between two looks whether there still are any.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Policies written before it is looked again what is wanted by now: each may take seconds on a broker with a thousand of them.
const WRITES_AT_A_TIME: usize = 20;

/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(15);

/// Brings policies in line, again and again. The management API may come and go; nothing else depends on it.
pub(super) async fn run(address: &BrokerAddress, shared: &Shared, metrics: &Metrics) {
    let management = Management::new(address);
    loop {
        for (task_queue, removal, mut removed) in shared.due_policy_removals() {
            remove(&management, address, &removal, &mut removed).await;
            shared.policies_removed(&task_queue, &removal, removed, Instant::now());
        }
        until_declared(shared).await;
        let mut queues = shared.policy_queues();
        let mut wait = REPEAT;
        if !queues.is_empty() {
            let problems = match &management {
                Ok(management) => synchronize(management, &address.vhost, &queues, &shared.policy_turn).await,
                Err(error) => Err(error.clone()),
            };
            let (problems, examined) = problems.unwrap_or_else(|error| {
                let problem = format!("management API at {}: {}", address.management_url(), error);
                let set = queues.iter().filter(|queue| !queue.policy.is_empty());
                (set.map(|queue| (queue.name.clone(), problem.clone())).collect(), queues.len())
            });
            if let Some((queue, problem)) = problems.iter().next() {
                metrics.broker_errors.with_label_values(&["PoliciesNotApplied"]).inc();
                tracing::warn!(broker = %address, queue, problem, "policies are not in force");
                wait = RETRY;
            }
            if examined < queues.len() {
                wait = Duration::ZERO;
            }
            queues.truncate(examined);
            shared.policies(&problems, &queues, Instant::now());
        }
        tokio::select! {
            () = shared.policies.notified() => {}
            () = sleep(wait) => {}
        }
    }
}

/// Waits for the declarations under way, though not for ever: a queue is worth more than its policy, and each policy that is written holds
/// up the declarations of all others on the broker.
async fn until_declared(shared: &Shared) {
    let deadline = Instant::now() + DECLARATIONS;
    while shared.is_declaring() && Instant::now() < deadline {
        sleep(LOOK_AGAIN).await;
    }
}

/// Deletes the policies of queues that are gone.
async fn remove(
    management: &Result<Management, ManagementError>,
    address: &BrokerAddress,
    removal: &Removal,
    removed: &mut Removed,
) {
    let with_policy = removal.queues.iter().filter(|queue| !queue.policy.is_empty());
    for queue in with_policy {
        if !removed.gone.contains(&queue.name) {
            continue;
        }
        let name = queue.policy_name();
        let deleted = match management {
            Ok(management) => management.delete_policy(&address.vhost, &name).await,
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = deleted {
            let why = format!("management API at {}: {error}", address.management_url());
            removed.kept.push((format!("policy `{name}`"), why));
        }
    }
}

/// Compares policies with what is wanted and writes what differs, up to a limit. Returns what keeps the policy of which queue from being in
/// force, and how many queues were examined.
async fn synchronize(
    management: &Management,
    vhost: &str,
    queues: &[Queue],
    turn: &Turn,
) -> Result<(HashMap<String, String>, usize), ManagementError> {
    let mut problems = HashMap::new();
    let mut writes = 0;
    // A queue without settings needs no policy, and so no management API; one that had settings before is seen to if the API is there.
    let wants_policies = queues.iter().any(|queue| !queue.policy.is_empty());
    let existing = match management.policies(vhost).await {
        Ok(existing) => existing,
        Err(_) if !wants_policies => return Ok((problems, queues.len())),
        Err(error) => return Err(error),
    };
    let existing: HashMap<&str, &Policy> = existing
        .iter()
        .filter(|policy| policy.name.starts_with(POLICY_PREFIX))
        .map(|policy| (policy.name.as_str(), policy))
        .collect();
    // Asked for only if something is to be written.
    let mut applied: Option<HashMap<String, String>> = None;
    for (examined, queue) in queues.iter().enumerate() {
        if writes == WRITES_AT_A_TIME {
            return Ok((problems, examined));
        }
        let name = queue.policy_name();
        let found = existing.get(name.as_str());
        if queue.policy.is_empty() {
            if found.is_some() {
                management.delete_policy(vhost, &name).await?;
                tracing::info!(queue = queue.name, "policy deleted");
            }
            continue;
        }
        let wanted = Policy {
            name: name.clone(),
            pattern: exact_pattern(&queue.name),
            apply_to: "queues".to_owned(),
            priority: 0,
            definition: queue.policy.clone(),
        };
        if found == Some(&&wanted) {
            continue;
        }
        let applied = match &applied {
            Some(applied) => applied,
            None => applied.insert(management.applied_policies(vhost).await?),
        };
        match applied.get(&queue.name) {
            Some(foreign) if *foreign != name => {
                let definition = Value::Object(queue.policy.clone());
                problems.insert(
                    queue.name.clone(),
                    format!(
                        "the policy `{foreign}` applies to queue `{}` already: add {definition} to it",
                        queue.name
                    ),
                );
            }
            _ => {
                let turn = turn.lock().await;
                let began = Instant::now();
                management.put_policy(vhost, &wanted).await?;
                drop(turn);
                writes += 1;
                // While it is written nothing can be declared: somebody else's turn, for as long.
                sleep(began.elapsed()).await;
                tracing::info!(queue = queue.name, "policy set");
            }
        }
    }
    Ok((problems, queues.len()))
}
