//! Every rule of the schema with a resource that passes and one that does not.

use std::cell::Cell;

use super::worker::unknown_field;
use super::*;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

/// A TaskQueue with the fewest lines a user can write, with parts of its spec replaced.
fn task_queue(spec: serde_json::Value) -> TaskQueue {
    let mut minimal = json!({
        "broker": {"secretRef": {"name": "rabbitmq"}},
        "worker": {"image": "soloist-worker:0.1.0"},
        "scaling": {"maxReplicas": 50},
    });
    for (name, value) in spec.as_object().unwrap() {
        minimal[name] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "soloist.dev/v1alpha1",
        "kind": "TaskQueue",
        "metadata": {"name": "red", "namespace": "default"},
        "spec": minimal,
    }))
    .unwrap()
}

fn queue(settings: serde_json::Value) -> TaskQueue {
    let mut queue = json!({"name": "red"});
    for (name, value) in settings.as_object().unwrap() {
        queue[name] = value.clone();
    }
    task_queue(json!({"queues": [queue]}))
}

/// A TaskQueue with up to 50 workers and these settings of `scaling`.
fn scaling(settings: serde_json::Value) -> TaskQueue {
    let mut scaling = json!({"maxReplicas": 50});
    scaling.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    task_queue(json!({"scaling": scaling}))
}

thread_local! {
    /// Whether this thread asks an API server too.
    static API_SERVER: Cell<bool> = const { Cell::new(false) };
}

#[track_caller]
fn accepts(task_queue: TaskQueue) {
    task_queue.validate_cel().unwrap();
    if API_SERVER.get() {
        created(&task_queue).unwrap();
    }
}

#[track_caller]
fn refuses(task_queue: TaskQueue, message: &str) {
    let mut refusals = vec![task_queue.validate_cel().expect_err("a rule refuses this").to_string()];
    if API_SERVER.get() {
        refusals.push(created(&task_queue).expect_err("the API server refuses this").to_string());
    }
    for refused in refusals {
        assert!(refused.contains(message), "{refused}");
    }
}

/// What the API server says to a new TaskQueue. It is only asked.
fn created(task_queue: &TaskQueue) -> kube::Result<()> {
    on_api_server(async |api| {
        let dry_run = PostParams { dry_run: true, ..Default::default() };
        api.create(&dry_run, task_queue).await.map(drop)
    })
}

/// What the API server says to a change of a TaskQueue, which is there for a moment.
fn updated(new: &TaskQueue, old: &TaskQueue) -> kube::Result<()> {
    on_api_server(async |api| {
        let name = format!("rules-{:08x}", fastrand::u32(..));
        let named = |task_queue: &TaskQueue| {
            let mut named = task_queue.clone();
            let before = named.metadata.name.replace(name.clone());
            let own = named.spec.queues.iter_mut().filter(|queue| Some(&queue.name) == before.as_ref());
            own.for_each(|queue| queue.name.clone_from(&name));
            named
        };
        let there = api.create(&PostParams::default(), &named(old)).await?;
        let mut new = named(new);
        new.metadata.resource_version = there.metadata.resource_version;
        let replaced = api.replace(&name, &PostParams { dry_run: true, ..Default::default() }, &new).await;
        api.delete(&name, &DeleteParams::default()).await?;
        replaced.map(drop)
    })
}

fn on_api_server<T>(ask: impl AsyncFnOnce(Api<TaskQueue>) -> T) -> T {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::try_default().await.expect("KUBECONFIG says where the API server is");
        ask(Api::namespaced(client, "default")).await
    })
}

#[test]
#[ignore = "needs a cluster: KUBECONFIG"]
fn api_server_agrees_with_every_rule() {
    API_SERVER.set(true);
    accepts(task_queue(json!({})));
    min_replicas_may_not_exceed_max_replicas();
    tasks_wait_or_are_counted();
    only_the_mode_auto_can_be_paused();
    fallback_stays_within_the_bounds();
    schedules_have_bounds_that_fit();
    name_leaves_room_for_the_names_of_pods();
    results_are_redis_or_rpc();
    priorities_are_for_classic_queues();
    delivery_limit_is_for_quorum_queues();
    reject_publish_dlx_is_for_classic_queues();
    overflow_needs_a_length();
    names_of_the_broker_are_refused();
    a_queue_may_not_be_anothers_dead_letter_queue();
    type_and_priorities_of_a_queue_are_immutable();
    the_queue_of_a_task_queue_without_queues_is_immutable_too();
    what_earlier_releases_stored_is_valid_and_keeps_every_field();
}

#[test]
fn what_earlier_releases_stored_is_valid_and_keeps_every_field() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/taskqueues");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let stored = serde_json::Value::deserialize(document).unwrap();
            let task_queue: TaskQueue = serde_json::from_value(stored.clone()).unwrap();
            let known = serde_json::to_value(&task_queue).unwrap();
            assert_eq!(unknown_field("", &stored, &known), None, "of {}", stored["metadata"]["name"]);
            accepts(task_queue);
            count += 1;
        }
    }
    assert!(count > 0, "there are no files in {folder}");
}

#[test]
fn time_limits_fit_one_another() {
    let worker = |settings: serde_json::Value| {
        let mut worker = json!({"image": "i"});
        worker.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        task_queue(json!({"worker": worker}))
    };
    let limited = worker(json!({"taskTimeLimitSeconds": 3600, "taskSoftTimeLimitSeconds": 3000}));
    assert_eq!(limited.spec.worker.drain_timeout_seconds(), 3600);
    accepts(limited);
    accepts(worker(json!({"taskTimeLimitSeconds": 60, "drainTimeoutSeconds": 60})));
    refuses(
        worker(json!({"taskTimeLimitSeconds": 60, "drainTimeoutSeconds": 59})),
        "worker.drainTimeoutSeconds may not be less than worker.taskTimeLimitSeconds",
    );
    refuses(
        worker(json!({"taskTimeLimitSeconds": 60, "taskSoftTimeLimitSeconds": 60})),
        "worker.taskSoftTimeLimitSeconds must be less than worker.taskTimeLimitSeconds",
    );
}

#[test]
fn minimal_task_queue_gets_its_defaults() {
    let spec = task_queue(json!({})).spec;
    assert_eq!(spec.scaling.min_replicas, 0);
    assert_eq!(spec.scaling.scale_down.stabilization_seconds, None);
    assert_eq!((spec.scaling.max_wait_seconds, spec.scaling.mode), (None, ScalingMode::Auto));
    assert!(!spec.scaling.paused);
    assert_eq!(spec.worker.drain_timeout_seconds(), 300);
    assert_eq!(spec.worker.resources.requests["cpu"], Quantity("100m".into()));
    assert!(spec.queues.is_empty());
    accepts(task_queue(json!({})));
}

#[test]
fn min_replicas_may_not_exceed_max_replicas() {
    accepts(task_queue(json!({"scaling": {"minReplicas": 3, "maxReplicas": 3}})));
    refuses(
        task_queue(json!({"scaling": {"minReplicas": 4, "maxReplicas": 3}})),
        "scaling.minReplicas may not be greater than scaling.maxReplicas",
    );
}

#[test]
fn tasks_wait_or_are_counted() {
    accepts(scaling(json!({"maxWaitSeconds": 30})));
    accepts(scaling(json!({"tasksPerWorker": 10})));
    refuses(scaling(json!({"maxWaitSeconds": 30, "tasksPerWorker": 10})), "exclude each other");
}

#[test]
fn only_the_mode_auto_can_be_paused() {
    accepts(scaling(json!({"paused": true})));
    accepts(scaling(json!({"mode": "Recommend"})));
    refuses(scaling(json!({"mode": "Recommend", "paused": true})), "set scaling.mode to Auto");
    refuses(scaling(json!({"mode": "Off", "paused": true})), "set scaling.mode to Auto");
}

#[test]
fn fallback_stays_within_the_bounds() {
    accepts(scaling(json!({"fallback": {"afterSeconds": 60, "replicas": 50}})));
    refuses(
        scaling(json!({"fallback": {"afterSeconds": 60, "replicas": 51}})),
        "scaling.fallback.replicas may not be greater",
    );
}

#[test]
fn schedules_have_bounds_that_fit() {
    let schedule = |bounds: serde_json::Value| {
        let mut schedule = json!({"cron": "30 7 * * MON-FRI", "durationSeconds": 3600});
        schedule.as_object_mut().unwrap().extend(bounds.as_object().unwrap().clone());
        scaling(json!({"minReplicas": 2, "schedules": [schedule]}))
    };
    assert_eq!(schedule(json!({"minReplicas": 5})).spec.scaling.schedules[0].time_zone, "UTC");
    accepts(schedule(json!({"minReplicas": 5})));
    accepts(schedule(json!({"minReplicas": 60, "maxReplicas": 60})));
    accepts(schedule(json!({"maxReplicas": 2})));
    refuses(schedule(json!({})), "a schedule needs minReplicas, maxReplicas, or both");
    let misfit = "in scaling.schedules, minReplicas may not be greater than maxReplicas";
    refuses(schedule(json!({"minReplicas": 51})), misfit);
    refuses(schedule(json!({"maxReplicas": 1})), misfit);
    refuses(schedule(json!({"minReplicas": 9, "maxReplicas": 8})), misfit);
}

#[test]
fn name_leaves_room_for_the_names_of_pods() {
    let named = |length: usize| {
        let mut task_queue = task_queue(json!({}));
        task_queue.metadata.name = Some("q".repeat(length));
        task_queue
    };
    accepts(named(MAX_NAME_LENGTH));
    refuses(named(MAX_NAME_LENGTH + 1), "52 characters at most");
}

#[test]
fn results_are_redis_or_rpc() {
    accepts(task_queue(json!({"results": {"secretRef": {"name": "redis"}}})));
    accepts(task_queue(json!({"results": {"rpc": {}}})));
    refuses(task_queue(json!({"results": {}})), "exactly one of secretRef (Redis) and rpc");
    refuses(
        task_queue(json!({"results": {"secretRef": {"name": "redis"}, "rpc": {}}})),
        "exactly one of secretRef (Redis) and rpc",
    );
}

#[test]
fn priorities_are_for_classic_queues() {
    accepts(queue(json!({"maxPriority": 5})));
    refuses(queue(json!({"type": "quorum", "maxPriority": 5})), "maxPriority works on classic queues only");
}

#[test]
fn delivery_limit_is_for_quorum_queues() {
    accepts(queue(json!({"type": "quorum", "deliveryLimit": 5})));
    refuses(queue(json!({"deliveryLimit": 5})), "deliveryLimit works on quorum queues only");
}

#[test]
fn reject_publish_dlx_is_for_classic_queues() {
    accepts(queue(json!({"maxLength": 9, "overflow": "rejectPublishDlx"})));
    accepts(queue(json!({"type": "quorum", "maxLength": 9, "overflow": "rejectPublish"})));
    refuses(
        queue(json!({"type": "quorum", "maxLength": 9, "overflow": "rejectPublishDlx"})),
        "rejectPublishDlx works on classic queues only",
    );
}

#[test]
fn overflow_needs_a_length() {
    accepts(queue(json!({"maxLength": 9, "overflow": "dropHead"})));
    refuses(queue(json!({"overflow": "dropHead"})), "set maxLength too");
}

#[test]
fn names_of_the_broker_are_refused() {
    accepts(queue(json!({"name": "amqp"})));
    refuses(queue(json!({"name": "amq.red"})), "belong to the broker");
}

#[test]
fn a_queue_may_not_be_anothers_dead_letter_queue() {
    accepts(task_queue(json!({"queues": [{"name": "red"}, {"name": "red.dead.letters"}]})));
    accepts(task_queue(
        json!({"queues": [{"name": "red", "deadLetter": {"enabled": false}}, {"name": "red.dead"}]}),
    ));
    refuses(
        task_queue(json!({"queues": [{"name": "red"}, {"name": "red.dead"}]})),
        "has the name of another one's dead letter queue",
    );
}

#[track_caller]
fn accepts_update(new: &TaskQueue, old: &TaskQueue) {
    new.validate_cel_update(old).unwrap();
    if API_SERVER.get() {
        updated(new, old).unwrap();
    }
}

#[track_caller]
fn refuses_update(new: &TaskQueue, old: &TaskQueue, message: &str, remedy: &str) {
    let mut refusals = vec![new.validate_cel_update(old).expect_err("a rule refuses this").to_string()];
    if API_SERVER.get() {
        refusals.push(updated(new, old).expect_err("the API server refuses this").to_string());
    }
    for refused in refusals {
        assert!(refused.contains(message) && refused.contains(remedy), "{refused}");
    }
}

#[test]
fn type_and_priorities_of_a_queue_are_immutable() {
    let remedy = "make another TaskQueue, whose queue has a new name";
    let classic = queue(json!({}));
    let quorum = queue(json!({"type": "quorum"}));
    let prioritized = queue(json!({"maxPriority": 5}));
    refuses_update(&quorum, &classic, "type can't change", remedy);
    refuses_update(&prioritized, &classic, "maxPriority can't change", remedy);
    refuses_update(&classic, &prioritized, "maxPriority can't change", remedy);
    let limited = queue(json!({"maxLength": 9}));
    accepts_update(&limited, &classic);
    accepts_update(&classic, &classic);
}

#[test]
fn the_queue_of_a_task_queue_without_queues_is_immutable_too() {
    let (default, classic) = (task_queue(json!({})), queue(json!({})));
    let other = queue(json!({"name": "blue", "type": "quorum"}));
    for alike in [&classic, &other] {
        accepts_update(alike, &default);
        accepts_update(&default, alike);
    }
    for settings in [json!({"type": "quorum"}), json!({"maxPriority": 5})] {
        let unlike = queue(settings);
        let (message, remedy) = ("there is a classic one", "give the queue another name");
        refuses_update(&unlike, &default, message, remedy);
        refuses_update(&default, &unlike, message, remedy);
    }
}

#[test]
fn quantities_may_be_numbers() {
    let spec = task_queue(json!({"worker": {"image": "i", "resources": {"limits": {"cpu": 2}}}})).spec;
    assert_eq!(spec.worker.resources.limits["cpu"], Quantity("2".into()));
}

#[test]
fn template_names_a_field_that_pods_do_not_have() {
    let template =
        |template| task_queue(json!({"worker": {"image": "i", "template": template}})).spec.worker.template();
    let good = template(json!({"spec": {"nodeSelector": {"disk": "ssd"}, "tolerations": [], "containers": [
        {"name": "worker", "env": [{"name": "A", "value": ""}], "resources": {"limits": {"cpu": 1}}}]}}));
    assert_eq!(good.unwrap().unwrap().spec.unwrap().node_selector.unwrap()["disk"], "ssd");
    let typo = template(json!({"spec": {"containers": [{"name": "worker", "imagePulPolicy": "Always"}]}}));
    assert_eq!(typo.unwrap_err(), "unknown field `spec.containers[0].imagePulPolicy`");
    assert_eq!(template(serde_json::Value::Null), Ok(None));
}

#[test]
fn template_leaves_a_worker_the_time_to_finish_its_task() {
    let template = |seconds| {
        let template = json!({"spec": {"terminationGracePeriodSeconds": seconds}});
        let worker = json!({"image": "i", "drainTimeoutSeconds": 60, "template": template});
        task_queue(json!({"worker": worker})).spec.worker.template()
    };
    assert!(template(60).is_ok());
    let refused = template(59).unwrap_err();
    let says =
        "spec.terminationGracePeriodSeconds is 59, less than the 60 of spec.worker.drainTimeoutSeconds";
    assert!(refused.starts_with(says) && refused.ends_with("or lower drainTimeoutSeconds"), "{refused}");
}

#[test]
fn template_names_the_field_whose_value_is_of_the_wrong_type() {
    let misfit = |template| {
        let spec = task_queue(json!({"worker": {"image": "i", "template": template}})).spec;
        spec.worker.template().unwrap_err()
    };
    assert_eq!(
        misfit(json!({"spec": {"nodeSelector": {"disk": "ssd"}, "terminationGracePeriodSeconds": "x"}})),
        "spec.terminationGracePeriodSeconds: invalid type: string \"x\", expected i64"
    );
    assert_eq!(
        misfit(json!({"spec": {"containers": [{"name": "worker", "env": [{"name": "A", "value": 1}]}]}})),
        "spec.containers[0].env[0].value: invalid type: integer `1`, expected a string"
    );
    assert_eq!(
        misfit(json!({"metadata": {"labels": {"a/b": true}}})),
        "metadata.labels.a/b: invalid type: boolean `true`, expected a string"
    );
}
