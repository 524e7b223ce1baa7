//! One broken thing at a time, and what the doctor says of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use soloist_operator::api::custom_resource_definitions;

use super::*;
use crate::snapshot::{
    Address, Fence, Form, Operator, Purpose, SecretFacts, ServiceFacts, Subject, Surroundings,
};

const NOW: &str = "2026-11-21T12:00:00Z";

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn unread<T>(what: &str) -> Seen<T> {
    Err(Unread { what: what.to_owned(), why: "you may not read it".to_owned() })
}

fn lease(renewed: &str) -> Value {
    json!({"metadata": {"name": "soloist-operator"}, "spec": {
        "holderIdentity": "soloist-1", "renewTime": renewed, "leaseDurationSeconds": 15}})
}

fn operator(args: &[&str]) -> Operator {
    Operator {
        deployment: object(json!({
            "metadata": {"name": "soloist", "namespace": "soloist-system",
                "labels": {"app.kubernetes.io/version": env!("CARGO_PKG_VERSION")}},
            "spec": {"replicas": 2, "selector": {}, "template": {"metadata": {"labels": {"app": "soloist"}},
                "spec": {"serviceAccountName": "soloist", "containers": [{"name": "operator", "args": args}]}}},
        })),
        pods: Ok(vec![object(
            json!({"metadata": {"name": "soloist-1"}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
        )]),
        lease: Ok(Some(object(lease("2026-11-21T11:59:58.000000Z")))),
        denied: Ok(Vec::new()),
        network_policies: Ok(Vec::new()),
    }
}

fn address() -> Address {
    let (shown, host) = ("amqp://shop@rabbitmq:5672/shop".to_owned(), "rabbitmq".to_owned());
    let (user, vhost, form) = ("shop".to_owned(), "shop".to_owned(), Form::Uri("url".to_owned()));
    Address { shown, host, port: 5672, user, vhost, form }
}

fn task_queue(conditions: Value) -> Subject {
    Subject::new(object(json!({
        "apiVersion": "soloist.dev/v1alpha1", "kind": "TaskQueue",
        "metadata": {"name": "emails", "namespace": "shop", "generation": 1, "creationTimestamp": "2026-11-21T11:00:00Z"},
        "spec": {"broker": {"secretRef": {"name": "rabbitmq"}}, "worker": {"image": "i"}, "scaling": {"maxReplicas": 1}},
        "status": {"observedGeneration": 1, "broker": "amqp://shop@rabbitmq:5672/shop", "conditions": conditions},
    })))
}

fn condition(kind: &str, status: &str, reason: Reason, message: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason.as_str(), "message": message, "lastTransitionTime": "2026-11-21T11:55:00Z"})
}

/// A cluster in which nothing is wrong.
fn healthy() -> Snapshot {
    let secret = SecretFacts { content: Ok(Some(Ok(address()))), operator_may: Ok(true) };
    let around = Surroundings {
        deployments: Ok(Vec::new()),
        pods: Ok(Vec::new()),
        waiting_for: BTreeMap::new(),
        warnings: BTreeMap::new(),
        network_policies: Ok(Vec::new()),
        secrets: BTreeMap::from([((Purpose::Broker, "rabbitmq".to_owned()), secret)]),
        services: BTreeMap::from([(
            "rabbitmq".to_owned(),
            Ok(Some(ServiceFacts { ready: Some(1), ports: vec![5672] })),
        )]),
    };
    Snapshot {
        now: time(NOW),
        definition: Ok(custom_resource_definitions().pop()),
        fence: Ok(Fence::Denies),
        operators: Ok(vec![operator(&[])]),
        task_queues: vec![task_queue(json!([condition(
            "BrokerReachable",
            "True",
            Reason::Connected,
            "connected"
        )]))],
        namespaces: BTreeMap::from([("shop".to_owned(), around)]),
    }
}

impl Snapshot {
    fn operator(&mut self) -> &mut Operator {
        &mut self.operators.as_mut().unwrap()[0]
    }

    fn around(&mut self) -> &mut Surroundings {
        self.namespaces.get_mut("shop").unwrap()
    }

    fn secret(&mut self) -> &mut SecretFacts {
        self.around().secrets.values_mut().next().unwrap()
    }

    fn says(&mut self, kind: &str, reason: Reason, message: &str) {
        self.task_queues = vec![task_queue(json!([condition(kind, "False", reason, message)]))];
    }

    fn has_pod(&mut self, status: Value) {
        let pod = json!({"metadata": {"name": "emails-worker-a", "labels": {"soloist.dev/task-queue": "emails"}},
            "spec": {"nodeName": "n", "containers": [{"name": "worker"}]}, "status": status});
        self.around().pods = Ok(vec![object(pod)]);
    }

    fn has_policy(&mut self) {
        let policy = json!({"metadata": {"name": "deny", "namespace": "shop"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"]}});
        self.around().network_policies = Ok(vec![object(policy)]);
    }
}

/// Breaks something, and checks that this and nothing else is found, with a remedy that has these words.
#[track_caller]
fn finds(cause: Cause, remedy: &str, breaks: impl FnOnce(&mut Snapshot)) {
    let mut snapshot = healthy();
    breaks(&mut snapshot);
    let report = diagnose(&snapshot);
    let causes: Vec<Cause> = report.findings.iter().map(|finding| finding.cause).collect();
    assert_eq!(causes, [cause], "{report:#?}");
    assert!(!report.findings[0].evidence.is_empty(), "{report:#?}");
    let said = report.findings[0].remedy.join("\n");
    assert!(said.contains(remedy), "{said}");
    assert!(report.unknown.is_empty(), "{report:#?}");
}

fn waiting(reason: &str) -> Value {
    json!({"phase": "Pending", "containerStatuses": [{"name": "worker", "image": "shop:1", "imageID": "", "ready": false,
        "restartCount": 3, "state": {"waiting": {"reason": reason, "message": "said"}}}]})
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let report = diagnose(&healthy());
    assert!(report.findings.is_empty() && report.unknown.is_empty(), "{report:#?}");
    assert_eq!(text(&report), "the operator and 1 TaskQueue: nothing wrong was found");
}

#[test]
fn the_definition_is_missing_or_of_another_time() {
    let with = |change: fn(&mut Value)| {
        let mut definition = serde_json::to_value(&custom_resource_definitions()[0]).unwrap();
        change(
            &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"],
        );
        Ok(Some(object::<CustomResourceDefinition>(definition)))
    };
    finds(Cause::DefinitionMissing, "manifests/crd.yaml", |snapshot| {
        snapshot.definition = Ok(None);
        snapshot.task_queues.clear();
    });
    finds(Cause::DefinitionOlder, "helm upgrade", |snapshot| {
        snapshot.definition = with(|spec| drop(spec.as_object_mut().unwrap().remove("deletionPolicy")));
    });
    finds(Cause::DefinitionNewer, "helm upgrade", |snapshot| {
        snapshot.definition = with(|spec| spec["priority"] = json!({"type": "integer"}));
    });
    finds(Cause::DefinitionNewer, "helm upgrade", |snapshot| {
        let labels = &mut snapshot.operator().deployment.metadata.labels;
        labels.as_mut().unwrap().insert("app.kubernetes.io/version".to_owned(), "0.0.9".to_owned());
    });
}

#[test]
fn the_operator_is_away_or_may_not_work() {
    finds(Cause::OperatorMissing, "helm install", |snapshot| snapshot.operators = Ok(Vec::new()));
    finds(Cause::OperatorNotRunning, "kubectl scale deployment/soloist", |snapshot| {
        snapshot.operator().deployment.spec.as_mut().unwrap().replicas = Some(0);
    });
    finds(Cause::OperatorNotRunning, "kubectl logs deployment/soloist", |snapshot| {
        snapshot.operator().pods = Ok(Vec::new());
    });
    finds(Cause::OperatorForbidden, "rbac.create=true", |snapshot| {
        snapshot.operator().denied = Ok(vec!["patch pods in all namespaces".to_owned()]);
    });
    finds(Cause::NoLeader, "kubectl logs deployment/soloist", |snapshot| {
        snapshot.operator().lease = Ok(None)
    });
    finds(Cause::LeaseStale, "kubectl logs deployment/soloist", |snapshot| {
        snapshot.operator().lease = Ok(Some(object(lease("2026-11-21T11:50:00.000000Z"))));
    });
    finds(Cause::NamespaceNotWatched, "watch.namespaces={other,shop}", |snapshot| {
        snapshot.operators = Ok(vec![operator(&["--namespaces=other"])]);
    });
    finds(Cause::Condition(Reason::BestEffort), "scaleInProtection.enabled", |snapshot| {
        snapshot.fence = Ok(Fence::Missing)
    });
    finds(Cause::NotServed, "kubectl logs deployment/soloist", |snapshot| {
        snapshot.task_queues[0].task_queue.as_mut().unwrap().metadata.generation = Some(2);
    });
}

#[test]
fn secrets_are_missing_wrong_or_forbidden() {
    finds(
        Cause::Condition(Reason::SecretNotFound),
        "kubectl create secret generic rabbitmq -n shop",
        |snapshot| {
            snapshot.secret().content = Ok(None);
        },
    );
    finds(Cause::Condition(Reason::SecretInvalid), "kubectl patch secret rabbitmq -n shop", |snapshot| {
        snapshot.secret().content = Ok(Some(Err("no address: expected `host`; found `hots`".to_owned())));
    });
    finds(Cause::Condition(Reason::SecretForbidden), "--serviceaccount=soloist-system:soloist", |snapshot| {
        snapshot.secret().operator_may = Ok(false);
    });
    finds(
        Cause::Condition(Reason::AuthFailed),
        r#""url":"amqp://shop:PASSWORD@rabbitmq:5672/shop""#,
        |snapshot| {
            snapshot.says("BrokerReachable", Reason::AuthFailed, "refuses user name and password");
        },
    );
}

#[test]
fn what_the_operator_has_not_noticed_yet_is_not_told() {
    let mut snapshot = healthy();
    snapshot.says("BrokerReachable", Reason::SecretNotFound, "Secret `rabbitmq` does not exist");
    assert!(diagnose(&snapshot).findings.is_empty());
    snapshot.secret().content = unread("the Secret rabbitmq");
    assert_eq!(diagnose(&snapshot).findings.len(), 1, "where it can't be read, the operator's word counts");
}

#[test]
fn the_broker_is_somewhere_else_or_refuses() {
    let broken = |cause, remedy: &str, said: &str| {
        finds(cause, remedy, |snapshot| snapshot.says("BrokerReachable", Reason::BrokerUnreachable, said));
    };
    broken(
        Cause::BrokerNameUnknown,
        "rabbitmq.shop.svc",
        "connect: failed to lookup address information: Name does not resolve",
    );
    broken(
        Cause::BrokerRefused,
        "kubectl patch secret rabbitmq",
        "connect: Connection refused (os error 111)",
    );
    broken(Cause::BrokerSilent, "kubectl get networkpolicies -n shop", "connect: no answer in 10s");
    broken(Cause::BrokerTls, "ca.crt", "connect: invalid peer certificate: UnknownIssuer");
    finds(Cause::Condition(Reason::VhostRefused), "rabbitmqctl add_vhost 'shop'", |snapshot| {
        snapshot.says("BrokerReachable", Reason::VhostRefused, "virtual host `shop`");
    });
    finds(
        Cause::Condition(Reason::QueueArgumentMismatch),
        "rabbitmqctl delete_queue 'emails' --vhost 'shop' --if-empty",
        |snapshot| {
            snapshot.says(
                "QueuesDeclared",
                Reason::QueueArgumentMismatch,
                "queue `emails` exists with other settings",
            );
        },
    );
}

#[test]
fn workers_are_kept_from_running() {
    finds(Cause::Condition(Reason::ImagePullFailed), r#""image":"IMAGE:TAG""#, |snapshot| {
        snapshot.has_pod(waiting("ErrImagePull"))
    });
    finds(
        Cause::Condition(Reason::CrashLooping),
        "kubectl logs emails-worker-a -n shop -c worker --previous",
        |snapshot| {
            snapshot.has_pod(waiting("CrashLoopBackOff"));
        },
    );
    finds(Cause::Condition(Reason::Unschedulable), "kubectl describe nodes", |snapshot| {
        snapshot.has_pod(json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient cpu"}]}));
    });
    finds(Cause::OutOfMemory, r#""limits":{"memory":"MORE"}"#, |snapshot| {
        snapshot.has_pod(json!({"phase": "Running", "containerStatuses": [{"name": "worker", "image": "i", "imageID": "", "ready": true,
            "started": true, "restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}));
    });
    finds(Cause::Condition(Reason::QuotaExceeded), "kubectl edit resourcequota small -n shop", |snapshot| {
        let message = "pods \"a\" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2";
        let deployment = json!({"metadata": {"name": "emails-worker", "labels": {"soloist.dev/task-queue": "emails"}},
            "status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}]}});
        snapshot.around().deployments = Ok(vec![object(deployment)]);
    });
}

#[test]
fn what_is_typed_fits_the_fault() {
    let says = |kind: &'static str, reason, said: &'static str, remedy: &str| {
        finds(Cause::Condition(reason), remedy, |snapshot| snapshot.says(kind, reason, said));
    };
    let declared = "QueuesDeclared";
    says(declared, Reason::DeclareFailed, "queue `emails`: refused", "set_permissions -p 'shop' 'shop' '.*'");
    says(declared, Reason::PoliciesNotApplied, "the tag `policymaker`", "set_user_tags 'shop' policymaker");
    says(
        declared,
        Reason::PoliciesNotApplied,
        "not reachable: refused",
        r#""managementUri":"http://shop:PASSWORD@HOST"#,
    );
    says(
        declared,
        Reason::QueueClaimed,
        "queue `a` on this broker belongs to the older TaskQueue other/mails: use another queue",
        "kubectl delete taskqueue mails -n other",
    );
    let workers = "WorkersAvailable";
    finds(Cause::Condition(Reason::ImagesDiffer), "by its digest", |snapshot| {
        snapshot.task_queues =
            vec![task_queue(json!([condition(workers, "True", Reason::ImagesDiffer, "different images")]))];
    });
    says(
        workers,
        Reason::NameConflict,
        "a Deployment `emails-worker` exists",
        "kubectl delete deployment emails-worker -n shop",
    );
    says(
        workers,
        Reason::TemplateInvalid,
        "spec.worker.template: invalid",
        "kubectl edit taskqueue emails -n shop",
    );
    says(
        workers,
        Reason::DeploymentRefused,
        "forbidden: exceeded quota: small, requested: a=1",
        "kubectl edit resourcequota small",
    );
}

#[test]
fn an_address_is_corrected_in_the_way_it_is_written() {
    let tls = Address { shown: "amqps://shop@rabbitmq:5671/".to_owned(), vhost: "/".to_owned(), ..address() };
    assert_eq!(tls.uri("HOST:PORT"), "amqps://shop:PASSWORD@HOST:PORT/");
    finds(Cause::Condition(Reason::AuthFailed), "in the URI or in a key of its own", |snapshot| {
        snapshot.says("BrokerReachable", Reason::AuthFailed, "refuses user name and password");
        snapshot.secret().content = Ok(Some(Ok(Address { form: Form::Unknown, ..address() })));
    });
    finds(Cause::BrokerTls, "5671 is the usual port", |snapshot| {
        let said = "connect: received corrupt message of type InvalidContentType";
        snapshot.says("BrokerReachable", Reason::BrokerUnreachable, said);
    });
    finds(Cause::BrokerRefused, "kubectl patch secret rabbitmq", |snapshot| {
        snapshot.says(
            "BrokerReachable",
            Reason::BrokerUnreachable,
            "connect: Host is unreachable (os error 113)",
        );
        let other = ServiceFacts { ready: Some(1), ports: vec![15672] };
        snapshot.around().services.insert("rabbitmq".to_owned(), Ok(Some(other)));
    });
}

#[test]
fn a_volume_that_cannot_be_made_and_a_worker_that_waits_say_what_for() {
    let not_prepared = json!([{"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": "2026-11-21T11:58:00Z"}]);
    finds(
        Cause::Condition(Reason::ContainerNotCreated),
        "kubectl create configmap settings -n shop",
        |snapshot| {
            snapshot.has_pod(json!({"phase": "Pending", "conditions": not_prepared, "containerStatuses": [{"name": "worker", "image": "i",
            "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]}));
            let said = "MountVolume.SetUp failed for volume \"v\" : configmap \"settings\" not found";
            snapshot.around().warnings.insert("emails-worker-a".to_owned(), said.to_owned());
        },
    );
    let mut snapshot = healthy();
    snapshot.has_pod(json!({"phase": "Running", "containerStatuses": [{"name": "worker", "image": "i", "imageID": "", "ready": false,
        "started": true, "restartCount": 0, "state": {"running": {"startedAt": "2026-11-21T11:50:00Z"}}}]}));
    snapshot
        .around()
        .waiting_for
        .insert("emails-worker-a".to_owned(), "connect in redis: refused".to_owned());
    let finding = &diagnose(&snapshot).findings[0];
    assert_eq!(finding.cause, Cause::Condition(Reason::WorkersNotReady));
    assert!(finding.evidence.iter().any(|seen| seen.contains("connect in redis")), "{finding:?}");
}

#[test]
fn a_network_policy_is_an_error_where_it_shows_and_else_a_warning() {
    finds(Cause::NetworkPolicy, "kubectl patch networkpolicy deny -n shop", Snapshot::has_policy);
    let mut snapshot = healthy();
    snapshot.has_policy();
    assert_eq!(diagnose(&snapshot).findings[0].level, Level::Warning);
    snapshot.says("WorkersAvailable", Reason::WorkersNotReady, "not ready");
    let report = diagnose(&snapshot);
    let found = report.findings.iter().find(|finding| finding.cause == Cause::NetworkPolicy).unwrap();
    assert_eq!(found.level, Level::Error);
}

#[test]
fn a_pause_is_a_note_and_no_problem() {
    let mut snapshot = healthy();
    snapshot.says("ScalingActive", Reason::Paused, "spec.scaling.paused is set");
    let report = diagnose(&snapshot);
    assert_eq!((report.findings[0].level, report.problems()), (Level::Note, 0));
}

#[test]
fn what_may_not_be_read_is_told_and_never_taken_for_nothing() {
    let mut snapshot = healthy();
    snapshot.definition = unread("the definition");
    snapshot.operators = unread("the operator's Deployment");
    snapshot.fence = unread("the policy");
    snapshot.around().pods = unread("the worker pods");
    snapshot.around().network_policies = unread("the NetworkPolicies");
    snapshot.secret().operator_may = unread("what the operator may do");
    let report = diagnose(&snapshot);
    assert!(report.findings.is_empty(), "{report:#?}");
    assert_eq!(report.unknown.len(), 6, "{report:#?}");
    let said = text(&report);
    assert!(
        said.contains("the worker pods: you may not read it")
            && said.ends_with("6 things could not be looked at"),
        "{said}"
    );
}

#[test]
fn a_deletion_that_waits_for_an_operator_that_is_gone_is_told_with_the_way_out() {
    finds_all(&[Cause::OperatorMissing, Cause::DeletionStuck], |snapshot| {
        snapshot.operators = Ok(Vec::new());
        let metadata = &mut snapshot.task_queues[0].task_queue.as_mut().unwrap().metadata;
        metadata.finalizers = Some(vec!["soloist.dev/queues".to_owned()]);
        metadata.deletion_timestamp = object(json!("2026-11-21T11:30:00Z"));
    });
}

#[track_caller]
fn finds_all(causes: &[Cause], breaks: impl FnOnce(&mut Snapshot)) {
    let mut snapshot = healthy();
    breaks(&mut snapshot);
    let found: Vec<Cause> = diagnose(&snapshot).findings.iter().map(|finding| finding.cause).collect();
    assert_eq!(found, causes);
}

#[test]
fn the_page_lists_the_words_that_conditions_do_not_have() {
    let page = include_str!("../../../../docs/kubectl.md");
    for (word, meaning) in Cause::OWN {
        let row = format!("| `{word}` | {} |", meaning.trim());
        assert!(page.contains(&row), "docs/kubectl.md lacks: {row}");
    }
}
