//! Every rule of the schema with a resource that passes and one that does not.

use super::*;
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

#[track_caller]
fn accepts(task_queue: TaskQueue) {
    task_queue.validate_cel().unwrap();
}

#[track_caller]
fn refuses(task_queue: TaskQueue, message: &str) {
    let refused = task_queue.validate_cel().expect_err("a rule refuses this").to_string();
    assert!(refused.contains(message), "{refused}");
}

#[test]
fn minimal_task_queue_gets_its_defaults() {
    let spec = task_queue(json!({})).spec;
    assert_eq!(spec.scaling.min_replicas, 0);
    assert_eq!(spec.scaling.scale_down.stabilization_seconds, None);
    assert_eq!((spec.scaling.max_wait_seconds, spec.scaling.mode), (None, ScalingMode::Auto));
    assert!(!spec.scaling.paused);
    assert_eq!(spec.worker.drain_timeout_seconds, 300);
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

#[test]
fn type_and_priorities_of_a_queue_are_immutable() {
    #[track_caller]
    fn refuses_update(new: &TaskQueue, old: &TaskQueue, message: &str) {
        let refused = new.validate_cel_update(old).expect_err("a rule refuses this").to_string();
        assert!(refused.contains(message) && refused.contains("add a queue with a new name"), "{refused}");
    }
    let classic = queue(json!({}));
    let quorum = queue(json!({"type": "quorum"}));
    let prioritized = queue(json!({"maxPriority": 5}));
    refuses_update(&quorum, &classic, "type can't change");
    refuses_update(&prioritized, &classic, "maxPriority can't change");
    refuses_update(&classic, &prioritized, "maxPriority can't change");
    queue(json!({"maxLength": 9})).validate_cel_update(&classic).unwrap();
    classic.validate_cel_update(&classic).unwrap();
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
    assert!(template(json!({"spec": {"containers": "worker"}})).unwrap_err().contains("invalid type"));
    assert_eq!(template(serde_json::Value::Null), Ok(None));
}
