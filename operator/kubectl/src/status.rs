//! How TaskQueues are: a line for each, or a page for one.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::client::Body;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use soloist_operator::api::v1alpha1::{QueueType, TaskQueue, TaskQueueStatus};
use soloist_operator::plan::autoscaler::DEFAULT_WAIT_SECONDS;
use soloist_operator::plan::drain::{Stage, State};
use soloist_operator::plan::status::{FALSE, READY, SCALE_IN_PROTECTION, SCALING_ACTIVE, TRUE};
use soloist_operator::plan::topology::Topology;
use soloist_operator::plan::workers::WorkerPod;
use soloist_terminal::{Failure, json as print_json, line, table};

use crate::args::{Format, Output};
use crate::cluster::Cluster;
use crate::gather::{self, Scope};
use crate::output::{UNKNOWN, age};
use crate::snapshot::{Leadership, Operator, Seen, Subject};

/// Longest wait for what one worker says of itself.
const WORKER_ANSWERS: Duration = Duration::from_secs(3);

/// Workers that are asked at a time.
const CONCURRENCY: usize = 16;

/// Events that a page shows.
const EVENTS: usize = 8;

/// Characters of the trouble that a line shows.
const TROUBLE: usize = 100;

/// Runs the command.
pub(crate) async fn run(cluster: &Cluster, scope: Scope<'_>, output: Output) -> Result<(), Failure> {
    let now = cluster.now().await?;
    let task_queues = gather::task_queues(&cluster.client, scope).await?;
    let operators = gather::operators(cluster).await;
    match scope {
        Scope::One(namespace, _) => {
            let Some(subject) = task_queues.first() else { return Ok(()) };
            let page = Page::of(&cluster.client, namespace, subject).await;
            match output.format {
                Format::Json => print_json(&page.json(subject, &observed(subject, &operators, now), now)),
                Format::Text => line(&page.text(subject, &observed(subject, &operators, now), now)),
            }
        }
        _ => {
            let lines: Vec<Line> = task_queues
                .iter()
                .map(|subject| Line::of(subject, &observed(subject, &operators, now)))
                .collect();
            match output.format {
                Format::Json => print_json(&lines.iter().map(Line::json).collect::<Vec<_>>()),
                Format::Text if lines.is_empty() => match scope {
                    Scope::Namespace(namespace) => {
                        line(&format!("no TaskQueues in namespace {namespace}; of all namespaces: -A"))
                    }
                    _ => line("no TaskQueues"),
                },
                Format::Text => line(&lines_text(&lines, matches!(scope, Scope::All))),
            }
        }
    }
}

/// How old what the status says is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    /// For people: `2s ago`.
    pub(crate) shown: String,
    /// Seconds, if they are known.
    seconds: Option<i64>,
    /// Why it may be out of date.
    trouble: Option<String>,
}

/// A status is as old as the last sign of life of the operator that leads: it looks every few seconds, and writes what has changed.
pub(crate) fn observed(subject: &Subject, operators: &Seen<Vec<Operator>>, now: Timestamp) -> Observed {
    let since = |time: Timestamp| (age(time, now), Some(now.duration_since(time).as_secs().max(0)));
    let stale = |trouble: &str| Some(trouble.to_owned());
    let serving = match operators {
        Err(_) => return Observed { shown: UNKNOWN.to_owned(), seconds: None, trouble: None },
        Ok(operators) => operators.iter().find(|operator| operator.serves(&subject.namespace())),
    };
    let written =
        subject.object.managed_fields().iter().filter(|entry| entry.subresource.as_deref() == Some("status"));
    let written = written.filter_map(|entry| Some(entry.time.as_ref()?.0)).max().map(since);
    let (shown, seconds) = written.unwrap_or_else(|| ("never".to_owned(), None));
    let Some(operator) = serving else {
        return Observed { shown, seconds, trouble: stale("no operator serves this namespace") };
    };
    match operator.leadership(now) {
        Err(_) => Observed { shown: UNKNOWN.to_owned(), seconds: None, trouble: None },
        Ok(Leadership::Held { renewed, .. }) => {
            let (shown, seconds) = since(renewed);
            let looked = subject.status().and_then(|status| status.observed_generation);
            let is_new = looked < subject.object.metadata.generation;
            let trouble = is_new.then(|| "the operator has not seen the last change yet".to_owned());
            Observed { shown, seconds, trouble }
        }
        Ok(Leadership::Stale { renewed, .. }) => {
            let (shown, seconds) = since(renewed);
            Observed { shown, seconds, trouble: stale("the operator has stopped") }
        }
        Ok(Leadership::Released | Leadership::Never) => {
            Observed { shown, seconds, trouble: stale("no operator leads") }
        }
        Ok(Leadership::NotNeeded) => Observed { shown, seconds, trouble: None },
    }
}

/// A TaskQueue in one line.
struct Line {
    namespace: String,
    name: String,
    ready: String,
    status: Option<TaskQueueStatus>,
    observed: Observed,
    trouble: Option<String>,
}

impl Line {
    fn of(subject: &Subject, observed: &Observed) -> Self {
        let status = subject.status().cloned();
        let ready =
            status.as_ref().and_then(|status| status.conditions.iter().find(|one| one.type_ == READY));
        Self {
            namespace: subject.namespace(),
            name: subject.name(),
            ready: ready.map_or_else(|| UNKNOWN.to_owned(), |ready| ready.status.clone()),
            trouble: observed.trouble.clone().or_else(|| trouble(subject)),
            observed: observed.clone(),
            status,
        }
    }

    fn row(&self) -> Vec<String> {
        let status = self.status.as_ref();
        let known =
            |number: Option<u64>| number.map_or_else(|| UNKNOWN.to_owned(), |number| number.to_string());
        let trouble: String = self.trouble.as_deref().unwrap_or_default().chars().take(TROUBLE).collect();
        vec![
            self.name.clone(),
            self.ready.clone(),
            known(status.and_then(|status| status.ready)),
            known(status.and_then(|status| status.running).map(u64::from)),
            known(status.map(|status| status.desired_replicas.into())),
            status.map_or_else(
                || UNKNOWN.to_owned(),
                |status| format!("{}/{}", status.ready_replicas, status.replicas),
            ),
            self.observed.shown.clone(),
            trouble,
        ]
    }

    fn json(&self) -> Value {
        let status = self.status.as_ref();
        json!({
            "namespace": self.namespace,
            "name": self.name,
            "ready": self.ready,
            "backlog": status.and_then(|status| status.ready),
            "running": status.and_then(|status| status.running),
            "desiredReplicas": status.map(|status| status.desired_replicas),
            "replicas": status.map(|status| status.replicas),
            "readyReplicas": status.map(|status| status.ready_replicas),
            "observedSecondsAgo": self.observed.seconds,
            "trouble": self.trouble,
        })
    }
}

fn lines_text(lines: &[Line], with_namespace: bool) -> String {
    let header =
        ["NAMESPACE", "NAME", "READY", "BACKLOG", "RUNNING", "DESIRED", "WORKERS", "OBSERVED", "TROUBLE"];
    let skipped = usize::from(!with_namespace);
    let rows = lines.iter().map(|line| {
        let mut row = line.row();
        if with_namespace {
            row.insert(0, line.namespace.clone());
        }
        row
    });
    table(&header[skipped..], rows)
}

/// The first thing that is not as it should be.
fn trouble(subject: &Subject) -> Option<String> {
    if let Err(error) = &subject.task_queue {
        return Some(format!("can't be read: {error}"));
    }
    let Some(status) = subject.status() else { return Some("the operator has not looked at it".to_owned()) };
    let wrong = |scaling: bool| {
        status.conditions.iter().find(|one| {
            one.status != TRUE
                && one.type_ != SCALE_IN_PROTECTION
                && (one.type_ == SCALING_ACTIVE) == scaling
                && one.type_ != READY
        })
    };
    // What is unknown is so because of what is false.
    let first = status.conditions.iter().find(|one| {
        one.status == FALSE && ![READY, SCALE_IN_PROTECTION, SCALING_ACTIVE].contains(&one.type_.as_str())
    });
    let wrong = first.or_else(|| wrong(false)).or_else(|| wrong(true))?;
    Some(format!("{}: {}", wrong.reason, wrong.message))
}

/// What a page shows besides the TaskQueue itself.
struct Page {
    workers: Seen<Vec<(Pod, WorkerPod, Option<bool>)>>,
    events: Seen<Vec<Event>>,
}

impl Page {
    async fn of(client: &Client, namespace: &str, subject: &Subject) -> Self {
        let name = subject.name();
        let regarding = ListParams::default()
            .fields(&format!("involvedObject.kind=TaskQueue,involvedObject.name={name}"));
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let what = format!("the events of namespace {namespace}");
        let (pods, events) = tokio::join!(gather::pods(client, namespace), events.list(&regarding));
        let events = gather::seen(&what, events).map(|events| {
            let mut events = events.items;
            events.sort_by_key(happened);
            events.split_off(events.len().saturating_sub(EVENTS))
        });
        let workers = match pods {
            Err(unread) => Err(unread),
            Ok(pods) => {
                let label = soloist_operator::plan::metadata::TASK_QUEUE_LABEL;
                let its = pods.into_iter().filter(|pod| pod.labels().get(label) == Some(&name));
                let seen = its.filter_map(|pod| WorkerPod::new(&pod).map(|worker| (pod, worker)));
                let asked = seen.map(|(pod, worker)| async move {
                    let busy = is_busy(client, namespace, &pod.name_any()).await;
                    (pod, worker, busy)
                });
                Ok(stream::iter(asked).buffered(CONCURRENCY).collect().await)
            }
        };
        Self { workers, events }
    }

    fn text(&self, subject: &Subject, observed: &Observed, now: Timestamp) -> String {
        let (namespace, name) = (subject.namespace(), subject.name());
        let mut facts = vec![("TaskQueue", format!("{namespace}/{name}"))];
        let line = Line::of(subject, observed);
        facts.push(("Ready", line.ready.clone()));
        if let Some(trouble) = &line.trouble {
            facts.push(("Trouble", trouble.clone()));
        }
        if let Ok(task_queue) = &subject.task_queue {
            facts.extend(spec_facts(task_queue));
        }
        let status = subject.status();
        let broker = status.and_then(|status| status.broker.clone());
        facts.push(("Broker", broker.unwrap_or_else(|| UNKNOWN.to_owned())));
        let row = line.row();
        facts.push(("Backlog", format!("{} waiting, {} running", row[2], row[3])));
        facts.push((
            "Workers",
            format!(
                "{} ready of {}",
                status.map_or_else(|| UNKNOWN.to_owned(), |status| status.ready_replicas.to_string()),
                status.map_or_else(|| UNKNOWN.to_owned(), |status| status.replicas.to_string())
            ),
        ));
        if let Some(decision) = status.and_then(|status| status.decision.as_ref()) {
            facts.push(("Desired", format!("{} ({})", decision.message, decision.reason)));
        }
        facts.push(("Observed", observed.shown.clone()));
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        let facts: Vec<String> =
            facts.into_iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();

        let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let conditions = table(
            &["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"],
            conditions.iter().map(|one| {
                [
                    one.type_.clone(),
                    one.status.clone(),
                    one.reason.clone(),
                    age(one.last_transition_time.0, now),
                    one.message.clone(),
                ]
            }),
        );
        let workers = match &self.workers {
            Err(unread) => format!("workers: not known: {}", unread.why),
            Ok(workers) if workers.is_empty() => "no worker pods".to_owned(),
            Ok(workers) => table(
                &["WORKER", "STATE", "READY", "RESTARTS", "AGE", "NODE"],
                workers.iter().map(|(pod, worker, busy)| worker_row(pod, worker, *busy, now)),
            ),
        };
        let events = match &self.events {
            Err(unread) => format!("events: not known: {}", unread.why),
            Ok(events) if events.is_empty() => "no events in the last hour".to_owned(),
            Ok(events) => table(
                &["LAST", "TYPE", "REASON", "EVENT"],
                events.iter().map(|event| {
                    let text = |text: &Option<String>| text.clone().unwrap_or_default();
                    let last = happened(event).map_or_else(|| UNKNOWN.to_owned(), |time| age(time, now));
                    [last, text(&event.type_), text(&event.reason), text(&event.message)]
                }),
            ),
        };
        [facts.join("\n"), conditions, workers, events].join("\n\n")
    }

    fn json(&self, subject: &Subject, observed: &Observed, now: Timestamp) -> Value {
        let mut page = Line::of(subject, observed).json();
        let workers = self.workers.as_ref().ok().map(|workers| {
            let worker = |(pod, worker, busy): &(Pod, WorkerPod, Option<bool>)| {
                let created = pod.metadata.creation_timestamp.as_ref();
                json!({
                    "pod": worker.name,
                    "state": worker_state(worker, *busy),
                    "busy": busy,
                    "ready": worker.ready,
                    "ageSeconds": created.map(|created| now.duration_since(created.0).as_secs()),
                    "node": pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
                    "problem": worker.problem.as_ref().map(|problem| &problem.message),
                })
            };
            workers.iter().map(worker).collect::<Vec<_>>()
        });
        let events = self.events.as_ref().ok().map(|events| {
            let event = |event: &Event| {
                json!({
                    "time": happened(event).map(|time| time.to_string()),
                    "type": event.type_,
                    "reason": event.reason,
                    "message": event.message,
                })
            };
            events.iter().map(event).collect::<Vec<_>>()
        });
        let status = subject.status();
        page["broker"] = json!(status.and_then(|status| status.broker.as_ref()));
        page["conditions"] = json!(status.map(|status| &status.conditions));
        page["decision"] = json!(status.and_then(|status| status.decision.as_ref()));
        page["workers"] = json!(workers);
        page["events"] = json!(events);
        page
    }
}

/// What the user wants, in a few words.
fn spec_facts(task_queue: &TaskQueue) -> Vec<(&'static str, String)> {
    let spec = &task_queue.spec;
    let topology = Topology::new(task_queue);
    let queue = |queue: &soloist_operator::plan::topology::Queue| {
        let kind = match queue.queue_type {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
        };
        match &queue.dead_letters {
            Some(dead) => format!("{} ({kind}, dead letters in {dead})", queue.name),
            None => format!("{} ({kind})", queue.name),
        }
    };
    let queues: Vec<String> = topology.queues.iter().map(queue).collect();
    let scaling = &spec.scaling;
    let goal = match (scaling.max_wait_seconds, scaling.tasks_per_worker) {
        (None, Some(tasks)) => format!("a worker for each {tasks} tasks"),
        (wait, _) => format!("a task may wait {} s", wait.unwrap_or(DEFAULT_WAIT_SECONDS)),
    };
    let bounds =
        format!("{:?}, {} to {} workers; {goal}", scaling.mode, scaling.min_replicas, scaling.max_replicas);
    vec![("Image", spec.worker.image.clone()), ("Queues", queues.join(", ")), ("Scaling", bounds)]
}

pub(crate) fn happened(event: &Event) -> Option<Timestamp> {
    let series =
        event.series.as_ref().and_then(|series| series.last_observed_time.as_ref().map(|time| time.0));
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    series
        .or(last)
        .or_else(|| event.event_time.as_ref().map(|time| time.0))
        .or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

fn worker_row(pod: &Pod, worker: &WorkerPod, busy: Option<bool>, now: Timestamp) -> [String; 6] {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let restarts: i32 = containers.map(|container| container.restart_count).sum();
    let created = pod.metadata.creation_timestamp.as_ref();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    [
        worker.name.clone(),
        worker_state(worker, busy),
        if worker.ready { "yes" } else { "no" }.to_owned(),
        restarts.to_string(),
        created.map_or_else(|| UNKNOWN.to_owned(), |created| age(created.0, now)),
        node.unwrap_or_default(),
    ]
}

/// What a worker does: its own word for it, if it says.
pub(crate) fn worker_state(worker: &WorkerPod, busy: Option<bool>) -> String {
    let does = match busy {
        Some(true) => "busy",
        Some(false) => "idle",
        None => UNKNOWN,
    };
    if worker.terminating {
        return if busy == Some(true) { "stopping (busy)".to_owned() } else { "stopping".to_owned() };
    }
    match worker.state {
        State::Draining if busy == Some(true) => return "draining (busy)".to_owned(),
        State::Serving => {}
        state => return state.label().unwrap_or_default().to_owned(),
    }
    if let Some(problem) = &worker.problem {
        return problem.reason.to_string();
    }
    match worker.stage {
        Stage::Unscheduled => "pending".to_owned(),
        Stage::Starting | Stage::Stuck => "starting".to_owned(),
        Stage::Running => does.to_owned(),
    }
}

/// What a worker that isn't ready waits for; none if it is, doesn't say, or may not be asked.
pub(crate) async fn waits_for(client: &Client, namespace: &str, pod: &str) -> Option<String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy/readyz");
    let request = http::Request::get(path).body(Body::empty()).ok()?;
    let answer = tokio::time::timeout(WORKER_ANSWERS, client.send(request)).await.ok()?.ok()?;
    // What the API server itself says, for want of an answer, is JSON.
    let is_text = |kind: &http::HeaderValue| kind.as_bytes().starts_with(b"text/plain");
    let is_its_own = answer.headers().get(http::header::CONTENT_TYPE).is_some_and(is_text);
    if answer.status() != http::StatusCode::SERVICE_UNAVAILABLE || !is_its_own {
        return None;
    }
    let said = answer.into_body().collect_bytes().await.ok()?;
    Some(String::from_utf8_lossy(&said).trim().to_owned()).filter(|said| !said.is_empty())
}

/// Whether a worker runs a task, by its own metrics; none if it doesn't say, or may not be asked.
pub(crate) async fn is_busy(client: &Client, namespace: &str, pod: &str) -> Option<bool> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy/metrics");
    let request = http::Request::get(path).body(Vec::new()).ok()?;
    let metrics = tokio::time::timeout(WORKER_ANSWERS, client.request_text(request)).await.ok()?.ok()?;
    let busy = metrics.lines().find_map(|line| line.strip_prefix("soloist_worker_busy "))?;
    Some(busy.trim() == "1")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn worker(metadata: serde_json::Value) -> WorkerPod {
        let pod = json!({
            "metadata": metadata,
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "containerStatuses": [{
                "name": "worker", "image": "i", "imageID": "", "ready": true, "started": true, "restartCount": 0,
                "state": {"running": {}},
            }]},
        });
        WorkerPod::new(&serde_json::from_value(pod).unwrap()).unwrap()
    }

    #[test]
    fn a_worker_is_what_it_says_or_else_not_known() {
        let serving = worker(json!({"name": "a"}));
        assert_eq!(worker_state(&serving, Some(true)), "busy");
        assert_eq!(worker_state(&serving, Some(false)), "idle");
        assert_eq!(worker_state(&serving, None), "?");
        let draining = worker(json!({"name": "a", "labels": {"soloist.dev/state": "draining"}}));
        assert_eq!(worker_state(&draining, Some(true)), "draining (busy)");
        let stopping = worker(json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert_eq!(worker_state(&stopping, None), "stopping");
    }

    #[test]
    fn what_is_not_known_is_no_zero() {
        let object = json!({
            "apiVersion": "soloist.dev/v1alpha1", "kind": "TaskQueue", "metadata": {"name": "emails", "namespace": "shop"},
            "spec": {"broker": {"secretRef": {"name": "rabbitmq"}}, "worker": {"image": "i"}, "scaling": {"maxReplicas": 1}},
            "status": {"replicas": 2, "readyReplicas": 1, "desiredReplicas": 2, "conditions": [
                {"type": "BrokerReachable", "status": "False", "reason": "AuthFailed", "message": "no", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]},
        });
        let subject = Subject::new(serde_json::from_value(object).unwrap());
        let observed = Observed { shown: "2s".to_owned(), seconds: Some(2), trouble: None };
        let line = Line::of(&subject, &observed);
        assert_eq!(line.row(), ["emails", "?", "?", "?", "2", "1/2", "2s", "AuthFailed: no"]);
        assert_eq!(line.json()["backlog"], serde_json::Value::Null);
    }
}
