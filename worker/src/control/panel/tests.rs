use celery_protocol::Arguments as CallArguments;
use jiff::Timestamp;

use super::*;
use crate::{
    broker::Link,
    metrics::Metrics,
    task::{DeliveryInfo, Task},
};

fn panel() -> Panel {
    let mut registry = Registry::default();
    registry.insert(Task::new("t.add", |x: i64, y: i64| x + y));
    registry.insert(Task::new("t.fib", |n: u64| n));
    let metrics = Arc::new(Metrics::new(registry.names(), "1").unwrap());
    let clock = Arc::new(Clock::default());
    let (events, _) = Events::new("celery@test".into(), Arc::clone(&clock), metrics, Link::never());
    Panel {
        node: "celery@test".into(),
        app: "shop".into(),
        broker: "amqp://user:hunter2@broker/v".parse().unwrap(),
        results: "disabled".into(),
        create_missing_queues: true,
        track_started: false,
        started: Instant::now(),
        clock,
        registry: Arc::new(registry),
        postponed: Arc::default(),
        tracker: Arc::default(),
        revoked: Arc::new(Revoked::new().0),
        limits: Arc::new(Limits::new(TimeLimits::default())),
        queues: Arc::new(Queues::new(["red".to_owned()], None)),
        events,
        activity: Arc::new(Activity::new()),
        stop: Stop::new(),
    }
}

fn obey(panel: &Panel, method: &str, arguments: Value) -> Value {
    let arguments = arguments.as_object().unwrap().clone();
    panel.obey(&Command { method: method.into(), arguments, ..Command::default() }).unwrap()
}

fn request(id: &str) -> Arc<Request> {
    let arguments = CallArguments::new(&(1, "two"), &json!({"k": null})).unwrap();
    Arc::new(Request { shadow: Some("shown".into()), ..Request::new("t.add", id, arguments) })
}

#[test]
fn unknown_commands_are_key_errors() {
    assert_eq!(obey(&panel(), "make_coffee", json!({})), json!({"error": "KeyError('make_coffee')"}));
    assert_eq!(obey(&panel(), "ping", json!({"whatever": 1})), json!({"ok": "pong"}));
}

#[test]
fn a_call_is_shown_while_it_is_in_hand() {
    let panel = panel();
    let tracking =
        panel.tracker.track(request("id1"), DeliveryInfo { routing_key: "red".into(), ..Default::default() });
    assert_eq!(obey(&panel, "reserved", json!({}))[0]["id"], "id1");
    assert_eq!(obey(&panel, "active", json!({})), json!([]));
    tracking.begin(Timestamp::constant(1_795_000_000, 0));
    let active = obey(&panel, "active", json!({"safe": null}));
    assert_eq!(
        active[0],
        json!({
            "id": "id1", "name": "shown", "args": [1, "two"], "kwargs": {"k": null}, "type": "t.add",
            "hostname": "celery@test", "time_start": 1_795_000_000.0, "acknowledged": false,
            "delivery_info": {"exchange": "", "routing_key": "red", "priority": null, "redelivered": false},
            "worker_pid": std::process::id(),
        })
    );
    let safe = obey(&panel, "dump_active", json!({"safe": true}));
    assert_eq!((&safe[0]["args"], &safe[0]["kwargs"]), (&json!("(1, 'two')"), &json!("{'k': None}")));
    let found = obey(&panel, "query_task", json!({"ids": ["id1", "id2"]}));
    assert_eq!((&found["id1"][0], found.get("id2")), (&json!("active"), None));
    assert_eq!(obey(&panel, "stats", json!({}))["total"], json!({"t.add": 1}));
    drop(tracking);
    assert_eq!(obey(&panel, "active", json!({})), json!([]));
}

#[test]
fn revoking_takes_one_id_or_many() {
    let panel = panel();
    assert_eq!(
        obey(&panel, "revoke", json!({"task_id": "a"})),
        json!({"ok": "tasks {'a'} flagged as revoked"})
    );
    obey(&panel, "revoke", json!({"task_id": ["b", "c"], "terminate": false, "signal": null}));
    assert_eq!(obey(&panel, "revoked", json!({})), json!(["a", "b", "c"]));
    assert_eq!(
        obey(&panel, "terminate", json!({"signal": "KILL", "task_id": ["a"]})),
        json!({"ok": "terminate: tasks unknown"})
    );
}

#[test]
fn terminating_reaches_the_running_call() {
    let panel = panel();
    let tracking = panel.tracker.track(request("id1"), DeliveryInfo::default());
    tracking.begin(Timestamp::UNIX_EPOCH);
    let reply = obey(&panel, "revoke", json!({"task_id": "id1", "terminate": 1, "signal": "SIGKILL"}));
    assert_eq!(reply, json!({"ok": "terminate: id1"}));
    assert_eq!(*tracking.terminate().borrow(), Some(9));
}

#[test]
fn stamps_come_as_a_map_or_from_the_command_line() {
    let panel = panel();
    let reply = obey(&panel, "revoke_by_stamped_headers", json!({"headers": ["tenant=a"]}));
    assert_eq!(reply, json!({"ok": "headers {'tenant': 'a'} flagged as revoked, but not terminated"}));
    let stamps = json!({"tenant": "a"}).as_object().unwrap().clone();
    let stamped =
        Request { stamped_headers: Some(vec!["tenant".into()]), stamps, ..(*request("id1")).clone() };
    assert!(panel.revoked.contains(&stamped));
}

#[test]
fn limits_are_set_for_known_tasks_only() {
    let panel = panel();
    let rate =
        |task: &str, rate: Value| obey(&panel, "rate_limit", json!({"task_name": task, "rate_limit": rate}));
    assert_eq!(rate("t.fib", json!("10/m")), json!({"ok": "new rate limit set successfully"}));
    assert_eq!(obey(&panel, "registered", json!({})), json!(["t.add", "t.fib [rate_limit=10/m]"]));
    assert_eq!(
        obey(&panel, "registered", json!({"taskinfoitems": ["serializer"]})),
        json!(["t.add", "t.fib"])
    );
    assert_eq!(rate("t.fib", json!(0)), json!({"ok": "rate limit disabled successfully"}));
    assert_eq!(rate("t.fib", json!("soon")), json!({"error": "Invalid rate limit string: 'soon'"}));
    assert_eq!(rate("t.nope", json!("1/s")), json!({"error": "unknown task"}));
    let reply = obey(&panel, "time_limit", json!({"task_name": "t.fib", "soft": null, "hard": 2.5}));
    assert_eq!(reply, json!({"ok": "time limits set successfully"}));
    assert_eq!(panel.limits.times("t.fib").hard, Some(Duration::from_millis(2500)));
}

#[test]
fn consumers_are_added_and_cancelled() {
    let panel = panel();
    assert_eq!(obey(&panel, "add_consumer", json!({"queue": "blue"})), json!({"ok": "add consumer blue"}));
    let bound = json!({"queue": "green", "exchange": "x", "exchange_type": "topic", "routing_key": "g.#"});
    obey(&panel, "add_consumer", bound);
    obey(&panel, "cancel_consumer", json!({"queue": "red"}));
    let queues = obey(&panel, "active_queues", json!({}));
    let shown: Vec<_> =
        queues.as_array().unwrap().iter().map(|queue| (&queue["name"], &queue["routing_key"])).collect();
    assert_eq!(shown, [(&json!("blue"), &json!("blue")), (&json!("green"), &json!("g.#"))]);
}

#[test]
fn a_greeting_exchanges_revocations_of_any_version() {
    let panel = panel();
    assert_eq!(obey(&panel, "hello", json!({"from_node": "celery@test", "revoked": ["x"]})), Value::Null);
    obey(&panel, "hello", json!({"from_node": "celery@5.7", "revoked": ["a"]}));
    obey(&panel, "hello", json!({"from_node": "celery@5.6", "revoked": {"b": [12.5, "b"]}}));
    let reply = obey(&panel, "hello", json!({"from_node": "celery@new", "revoked": null}));
    assert_eq!(reply["revoked"], json!(["a", "b"]));
    assert!(reply["clock"].is_u64());
}

#[test]
fn nothing_shows_the_password() {
    let panel = panel();
    for method in ["conf", "report", "stats"] {
        assert!(!obey(&panel, method, json!({})).to_string().contains("hunter2"), "{method}");
    }
}

#[test]
fn shutting_down_is_not_replied_to() {
    let panel = panel();
    assert_eq!(panel.obey(&Command { method: "shutdown".into(), ..Command::default() }), None);
    assert!(panel.stop.is_requested());
}

#[test]
fn signals_are_known_by_name_and_number() {
    let parse = |given: Value| signal(Some(&given));
    assert_eq!(signal(None), Some(15));
    assert_eq!(
        (parse(json!("TERM")), parse(json!("sigkill")), parse(json!(2)), parse(json!(null))),
        (Some(15), Some(9), Some(2), Some(15))
    );
    assert_eq!(parse(json!("NOPE")), None);
}
