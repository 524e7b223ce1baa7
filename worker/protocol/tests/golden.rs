//! What real Celery puts on the wire, decoded and encoded again without loss.
//!
//! The fixtures are made by `fixtures/capture.py`, once for each version of Celery.

#![expect(clippy::unwrap_used, reason = "a fixture that can't be read fails its test")]

use celery_protocol::content::Limits;
use celery_protocol::control::{Command, QueueInfo, ScheduledTask, Stats, TaskInfo, decode_reply};
use celery_protocol::event::{Event, EventKind};
use celery_protocol::request::Malformed;
use celery_protocol::result::{State, task_key};
use celery_protocol::{Map, Properties, Request, TaskMeta, date};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;

const VERSIONS: [&str; 3] = ["5.3.6", "5.6.3", "5.7.0"];

#[derive(Deserialize)]
struct Captured {
    #[serde(default)]
    name: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    routing_key: String,
    #[serde(default)]
    properties: Properties,
    #[serde(default)]
    headers: Map,
    body: Option<String>,
    base64: Option<String>,
}

#[derive(Deserialize)]
struct Stored {
    key: String,
    body: String,
}

impl Captured {
    fn bytes(&self) -> Vec<u8> {
        match (&self.body, &self.base64) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(base64)) => celery_protocol::json::decode_base64(base64).unwrap(),
            (None, None) => panic!("{}: no body", self.name),
        }
    }

    fn decode(&self) -> Result<Request, Malformed> {
        Request::decode(self.headers.clone(), &self.properties, &self.bytes(), &Limits::default())
            .map_err(|error| error.malformed)
    }
}

fn read<T: DeserializeOwned>(version: &str, name: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version).join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn messages() -> Vec<(String, Captured)> {
    let mut messages = Vec::new();
    for version in VERSIONS {
        for file in ["messages.json", "worker_messages.json"] {
            for message in read::<Captured>(version, file) {
                messages.push((format!("{version} {}", message.name), message));
            }
        }
    }
    messages
}

/// One moment has several texts; only the moment has to survive.
fn with_plain_dates(mut headers: Map) -> Map {
    for key in ["eta", "expires"] {
        if let Some(text) = headers.get(key).and_then(Value::as_str) {
            let moment = date::parse(text).unwrap();
            headers.insert(key.into(), date::format(moment).into());
        }
    }
    headers
}

#[test]
fn messages_survive_decoding_and_encoding() {
    let mut seen = 0;
    for (name, captured) in messages() {
        if name.contains("pickle") || name.contains("v1_") {
            continue;
        }
        seen += 1;
        let request = captured.decode().unwrap_or_else(|error| panic!("{name}: {error}"));
        let encoded = request.encode(Timestamp::UNIX_EPOCH);
        let mut headers = with_plain_dates(captured.headers.clone());
        let is_compressed = headers.shift_remove("compression").is_some();
        assert_eq!(Value::Object(encoded.headers), Value::Object(headers), "{name}");
        if !is_compressed {
            let body: Value = serde_json::from_slice(&captured.bytes()).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&encoded.body).unwrap(), body, "{name}");
        }
        let mut properties = captured.properties.clone();
        properties.priority = properties.priority.or(Some(0));
        // What is left of the lifetime depends on the time of encoding.
        let lifetime = properties.expiration.take();
        let encoded = celery_protocol::Properties { expiration: None, ..encoded.properties };
        assert_eq!(encoded, properties, "{name}");
        assert_eq!(lifetime.is_some(), request.expires.is_some(), "{name}");
    }
    assert!(seen > 150, "{seen} messages");
}

#[test]
fn keyword_arguments_keep_their_order_and_display_forms_match() {
    for (name, captured) in messages() {
        // Python shows values that JSON has no form for, and cuts long ones inside.
        if captured.name.starts_with("typed") || !captured.headers.contains_key("argsrepr") {
            continue;
        }
        let Ok(mut request) = captured.decode() else { continue };
        let (args, kwargs) = (request.argsrepr.take().unwrap(), request.kwargsrepr.take().unwrap());
        if args.contains("...")
            || args.contains("<")
            || kwargs.contains("...")
            || captured.name.contains("chunk")
        {
            continue;
        }
        if !kwargs.contains('(') && !kwargs.contains("%") {
            assert_eq!(request.kwargs_repr(), kwargs, "{name}");
        }
        if !args.contains("((") && !args.contains("[(") {
            assert_eq!(request.args_repr(), args, "{name}");
        }
    }
}

#[test]
fn messages_of_protocol_1_become_the_same_calls() {
    let mut seen = 0;
    for (name, captured) in messages() {
        if !captured.name.starts_with("v1_") {
            continue;
        }
        seen += 1;
        assert!(!captured.headers.contains_key("task"), "{name}");
        let request = captured.decode().unwrap_or_else(|error| panic!("{name}: {error}"));
        let body: Value = serde_json::from_slice(&captured.bytes()).unwrap();
        assert_eq!(request.task, body["task"].as_str().unwrap(), "{name}");
        assert_eq!(request.id, body["id"].as_str().unwrap(), "{name}");
        assert_eq!(request.embed.callbacks.is_some(), !body["callbacks"].is_null(), "{name}");
        assert_eq!(request.expires.is_some(), !body["expires"].is_null(), "{name}");
        // Encoded, it is protocol 2; decoded again it is the same call, but for what only protocol 2 says.
        let message = request.encode(Timestamp::UNIX_EPOCH);
        let again =
            Request::decode(message.headers, &message.properties, &message.body, &Limits::default()).unwrap();
        let expected = Request {
            lang: again.lang.clone(),
            root_id: again.root_id.clone(),
            argsrepr: again.argsrepr.clone(),
            kwargsrepr: again.kwargsrepr.clone(),
            priority: again.priority,
            ..request
        };
        assert_eq!(again, expected, "{name}");
    }
    assert!(seen >= 24, "{seen} messages");
}

#[test]
fn what_is_not_json_is_refused_by_name() {
    let mut seen = 0;
    for (name, captured) in messages() {
        if captured.name != "pickle" {
            continue;
        }
        seen += 1;
        let error = captured.decode().unwrap_err();
        assert!(matches!(&error, Malformed::ContentDisallowed(text) if text.contains("pickle")), "{name}");
    }
    assert_eq!(seen, VERSIONS.len());
}

#[test]
fn the_headers_of_special_calls_are_understood() {
    for (name, captured) in messages() {
        let Ok(request) = captured.decode() else { continue };
        match captured.name.as_str() {
            "eta" | "eta_offset" => {
                assert_eq!(request.eta, Some("2026-11-21T02:57:45.037066Z".parse().unwrap()), "{name}");
            }
            "eta_naive" => assert_eq!(request.eta, Some("2026-11-21T02:57:00Z".parse().unwrap()), "{name}"),
            "countdown" => assert!(request.eta.is_some(), "{name}"),
            "priority" => assert_eq!(request.priority, Some(5), "{name}"),
            "time_limits" => {
                assert_eq!(
                    (request.time_limit.hard, request.time_limit.soft),
                    (Some(10.0), Some(7.5)),
                    "{name}"
                );
            }
            "ignore_result" => assert_eq!(request.ignore_result, Some(true), "{name}"),
            "shadow" => assert_eq!(request.display_name(), "shown", "{name}"),
            "custom_headers" => {
                let expected = json!({"tenant": "acme", "big": 5_000_000_000_i64, "n": {"a": [1]}});
                assert_eq!(Value::Object(request.headers), expected, "{name}");
            }
            "stamped" => {
                assert_eq!(
                    Value::Object(request.stamps),
                    json!({"tenant": "acme", "tags": ["x", "y"]}),
                    "{name}"
                );
                assert_eq!(request.stamped_headers.unwrap().len(), 2, "{name}");
            }
            "link_many" => assert_eq!(request.embed.callbacks.unwrap().len(), 3, "{name}"),
            "link_error" => assert_eq!(request.embed.errbacks.unwrap().len(), 2, "{name}"),
            "chain" => {
                let chain = request.embed.chain.unwrap();
                assert_eq!(
                    chain.iter().map(|step| step.args[0].as_i64()).collect::<Vec<_>>(),
                    [3, 2, 1].map(Some)
                );
            }
            "chord" => assert_eq!(request.embed.chord.unwrap().task, "tk.sum", "{name}"),
            "gzip" | "bzip2" => {
                let (text,): (String,) = request.arguments.positional_as().unwrap();
                assert_eq!(text.len(), 3000, "{name}");
            }
            "retry" => {
                assert_eq!(request.retries, 1, "{name}");
                assert_eq!(request.parent_id.as_deref(), Some(request.id.as_str()), "{name}");
                assert_eq!(Value::Object(request.headers), json!({"tenant": "acme"}), "{name}");
            }
            _ => {}
        }
    }
}

#[test]
fn results_survive_byte_for_byte_but_for_spaces() {
    let mut states = std::collections::BTreeSet::new();
    for version in VERSIONS {
        for file in ["results.json", "results_extended.json"] {
            for Stored { key, body } in read(version, file) {
                let value: Value = serde_json::from_str(&body).unwrap();
                if key.starts_with("celery-taskset-meta-") {
                    continue;
                }
                let meta = TaskMeta::decode(body.as_bytes()).unwrap();
                assert_eq!(task_key(&meta.task_id), key);
                assert_eq!(
                    meta.exception().is_some(),
                    meta.status.is_exception() && !value["result"].is_null(),
                    "{body}"
                );
                // The order of keys is compared too. Celery 5.3 leaves out the offset of its dates.
                let encoded: Value = serde_json::from_slice(&meta.encode()).unwrap();
                let mut expected = value.clone();
                if let Some(text) = value["date_done"].as_str() {
                    expected["date_done"] = date::format(date::parse(text).unwrap()).into();
                }
                assert_eq!(encoded.to_string(), expected.to_string());
                assert_eq!(meta.date_done.is_some(), meta.status.is_final(), "{body}");
                states.insert(meta.status.to_string());
            }
        }
    }
    let expected = ["FAILURE", "PROGRESS", "RETRY", "REVOKED", "STARTED", "SUCCESS"];
    assert_eq!(states.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn compressed_results_are_read() {
    #[derive(Deserialize)]
    struct Compressed {
        key: String,
        base64: String,
    }
    for Compressed { key, base64 } in read("5.7.0", "results_compressed.json") {
        let stored = celery_protocol::json::decode_base64(&base64).unwrap();
        assert!(stored.starts_with(b"\0"));
        let meta = TaskMeta::decode(&stored).unwrap();
        assert_eq!(task_key(&meta.task_id), key);
        let (args, _): (Vec<String>, Value) = meta.result_as().unwrap();
        assert_eq!(args[0].len(), 3000);
        let damaged = TaskMeta::decode(&stored[..stored.len() - 10]).unwrap_err();
        assert!(damaged.to_string().contains("damaged"), "{damaged}");
    }
}

#[test]
fn a_saved_group_holds_its_members() {
    for version in VERSIONS {
        let stored: Vec<Stored> = read(version, "results.json");
        let group = stored.iter().find(|stored| stored.key.starts_with("celery-taskset-meta-")).unwrap();
        let value: Value = serde_json::from_str(&group.body).unwrap();
        let tuple: celery_protocol::result::ResultTuple =
            serde_json::from_value(value["result"].clone()).unwrap();
        assert!(group.key.ends_with(&tuple.id));
        assert_eq!(tuple.members.as_ref().map(Vec::len), Some(2));
        assert_eq!(serde_json::to_value(tuple).unwrap(), value["result"]);
    }
}

#[test]
fn exceptions_are_those_of_celery() {
    for version in VERSIONS {
        let stored: Vec<Stored> = read(version, "results.json");
        let exceptions: Vec<_> = stored
            .iter()
            .filter_map(|stored| TaskMeta::decode(stored.body.as_bytes()).ok()?.exception())
            .map(|exception| (exception.exc_module.clone().unwrap(), exception.repr()))
            .collect();
        for (module, repr) in [
            ("builtins", "ValueError('boom', 3)"),
            ("celery.exceptions", "NotRegistered('tk.not_registered')"),
            ("celery.exceptions", "TaskRevokedError('expired')"),
        ] {
            assert!(exceptions.contains(&(module.into(), repr.into())), "{version} {repr}: {exceptions:?}");
        }
        assert!(stored.iter().any(|stored| {
            TaskMeta::decode(stored.body.as_bytes())
                .is_ok_and(|meta| meta.status == State::Custom("PROGRESS".into()))
        }));
    }
}

#[test]
fn events_survive_decoding_and_encoding() {
    let mut kinds = std::collections::BTreeSet::new();
    for version in VERSIONS {
        for captured in read::<Captured>(version, "events.json") {
            let body = captured.bytes();
            let events = Event::decode(&body).unwrap();
            let original: Value = serde_json::from_slice(&body).unwrap();
            let originals = original.as_array().cloned().unwrap_or_else(|| vec![original.clone()]);
            assert_eq!(events.len(), originals.len());
            for (event, original) in events.iter().zip(originals) {
                assert!(!matches!(event.kind, EventKind::Other(_)), "{original}");
                let encoded: Value = serde_json::from_slice(&event.encode()).unwrap();
                assert!(
                    contains(&original, &encoded) && contains(&encoded, &original),
                    "{encoded} for {original}"
                );
                if captured.routing_key != "task.multi" {
                    assert_eq!(event.kind.routing_key(), captured.routing_key);
                }
                kinds.insert(event.kind.name().to_owned());
            }
        }
    }
    let expected = [
        "task-failed",
        "task-received",
        "task-rejected",
        "task-retried",
        "task-revoked",
        "task-sent",
        "task-started",
        "task-succeeded",
        "worker-heartbeat",
        "worker-offline",
        "worker-online",
    ];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn commands_and_replies_survive_decoding_and_encoding() {
    for version in VERSIONS {
        let mut seen = 0;
        for captured in read::<Captured>(version, "control.json") {
            let body = captured.bytes();
            let original: Value = serde_json::from_slice(&body).unwrap();
            if captured.kind == "request" {
                let command = Command::decode(&body).unwrap();
                assert!(command.is_for("w1@host"), "{}", captured.name);
                assert_eq!(serde_json::from_slice::<Value>(&command.encode()).unwrap(), original);
                assert_eq!(command.reply_to.is_some(), captured.name != "broadcast", "{}", captured.name);
            } else {
                let reply = decode_reply(&body).unwrap();
                assert_eq!(reply.keys().collect::<Vec<_>>(), ["w1@host"]);
                check_reply(&captured.name, &reply["w1@host"]);
                seen += 1;
            }
        }
        assert!(seen > 30, "{version}: {seen} replies");
    }
}

/// Replies of the shapes that have a type of ours go through it unchanged, but for keys that came with later versions.
fn check_reply(name: &str, reply: &Value) {
    fn through<T: DeserializeOwned + serde::Serialize>(reply: &Value) -> Value {
        serde_json::to_value(serde_json::from_value::<T>(reply.clone()).unwrap()).unwrap()
    }
    let again = match name {
        "stats" => through::<Stats>(reply),
        "active" | "active_safe" | "reserved" => through::<Vec<TaskInfo>>(reply),
        "scheduled" => through::<Vec<ScheduledTask>>(reply),
        "active_queues" => through::<Vec<QueueInfo>>(reply),
        _ => return,
    };
    assert!(contains(reply, &again), "{name}: {again} is not in {reply}");
    match name {
        "scheduled" => assert_eq!(reply[0]["request"]["type"], "tk.add"),
        "active_queues" => assert_eq!(again[0], serde_json::to_value(QueueInfo::durable("work")).unwrap()),
        _ => {}
    }
}

/// Whether all that is in one value is in the other, numbers compared as numbers.
fn contains(outer: &Value, inner: &Value) -> bool {
    match (outer, inner) {
        (Value::Object(outer), Value::Object(inner)) => {
            inner.iter().all(|(key, inner)| outer.get(key).is_some_and(|outer| contains(outer, inner)))
        }
        (Value::Array(outer), Value::Array(inner)) => {
            outer.len() == inner.len() && outer.iter().zip(inner).all(|(outer, inner)| contains(outer, inner))
        }
        (Value::Number(outer), Value::Number(inner)) => outer.as_f64() == inner.as_f64(),
        _ => outer == inner,
    }
}
