//! Canvases planned here against those that real Celery sent: the same messages, but for their random ids.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use celery_protocol::canvas::{chain, chord, group, plan};
use celery_protocol::{Map, Signature};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

/// What one message says, in a form that can be compared: no nulls, nothing that Celery keeps for itself, and ids
/// replaced by the order of their first appearance.
fn comparable(messages: Vec<(Map, Value)>) -> Value {
    let mut ids = HashMap::new();
    let messages = messages.into_iter().map(|(headers, body)| {
        let mut message = Map::new();
        for key in ["task", "id", "group", "group_index"] {
            message.insert(key.to_owned(), headers.get(key).cloned().unwrap_or_default());
        }
        message.insert("body".to_owned(), body);
        Value::Object(message)
    });
    cleaned(messages.collect(), &mut ids)
}

fn cleaned(value: Value, ids: &mut HashMap<String, usize>) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(|item| cleaned(item, ids)).collect(),
        Value::Object(mut items) => {
            for noise in ["reply_to", "add_to_parent", "root_id", "parent_id"] {
                items.shift_remove(noise);
            }
            let mut keys: Vec<String> = items.keys().cloned().collect();
            keys.sort();
            let mut kept = Map::new();
            for key in keys {
                let item = items.shift_remove(&key).unwrap();
                if !item.is_null() {
                    kept.insert(key, cleaned(item, ids));
                }
            }
            Value::Object(kept)
        }
        Value::String(text) if uuid_like(&text) => {
            let next = ids.len();
            format!("id-{}", ids.entry(text).or_insert(next)).into()
        }
        other => other,
    }
}

fn uuid_like(text: &str) -> bool {
    text.len() == 36 && text.bytes().filter(|byte| *byte == b'-').count() == 4
}

fn captured(version: &str, name: &str) -> Value {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version).join("messages.json");
    let messages: Vec<Map> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let of_name = messages.into_iter().filter(|message| message["name"] == name).map(|message| {
        let body = serde_json::from_str(message["body"].as_str().unwrap()).unwrap();
        (message["headers"].as_object().cloned().unwrap(), body)
    });
    comparable(of_name.collect())
}

fn planned(canvas: Signature) -> Value {
    let mut last = 0;
    let mut new_id = || {
        last += 1;
        format!("00000000-0000-4000-8000-{last:012}")
    };
    let plan = plan(canvas, &[], Map::new(), &mut new_id).unwrap();
    let calls = plan.calls.iter().map(|call| {
        let message =
            call.to_request(String::new, Timestamp::UNIX_EPOCH).unwrap().encode(Timestamp::UNIX_EPOCH);
        (message.headers, serde_json::from_slice(&message.body).unwrap())
    });
    comparable(calls.collect())
}

fn add(args: impl IntoIterator<Item = i64>) -> Signature {
    args.into_iter().fold(Signature::new("tk.add"), Signature::arg)
}

fn sum() -> Signature {
    Signature::new("tk.sum")
}

#[test]
fn chains_are_sent_as_by_celery() {
    for version in ["5.3.6", "5.6.3", "5.7.0"] {
        let on = |n: i64| add([n]).queue("capture");
        let steps = chain([add([0, 0]).queue("capture"), on(1), on(2), on(3)]);
        assert_eq!(planned(steps), captured(version, "chain"), "{version}");
        let errback = Signature::new("tk.echo");
        let guarded = (add([0, 0]) | add([1])).link_error(errback);
        assert_eq!(planned(guarded), captured(version, "chain_with_errback"), "{version}");
        let ending = add([1, 1]) | group([add([1]), add([2])]);
        assert_eq!(planned(ending), captured(version, "chain_ending_in_group"), "{version}");
    }
}

#[test]
fn groups_are_sent_as_by_celery() {
    for version in ["5.3.6", "5.6.3", "5.7.0"] {
        assert_eq!(planned(group((0..3).map(|n| add([n, n])))), captured(version, "group"), "{version}");
        let chained = group([add([1, 1]) | add([2]), add([5, 5])]);
        assert_eq!(planned(chained), captured(version, "chain_in_group"), "{version}");
    }
}

#[test]
fn chords_are_sent_as_by_celery() {
    // 5.3 leaves the group's id out of the body.
    for version in ["5.6.3", "5.7.0"] {
        let plain = chord([add([1, 2]), add([3, 4])], sum());
        assert_eq!(planned(plain), captured(version, "chord"), "{version}");
        let errback = Signature::new("tk.echo");
        let guarded = chord([add([1, 2]), Signature::new("tk.fail")], sum().link_error(errback));
        assert_eq!(planned(guarded), captured(version, "chord_with_errback"), "{version}");
        let nested = chord([chord([add([1, 1])], sum()), add([2, 2])], sum());
        assert_eq!(planned(nested), captured(version, "chord_in_chord"), "{version}");
    }
}

#[test]
fn a_chord_within_a_chain_is_sent_as_by_celery() {
    let canvas = add([1, 1]) | group([add([1]), add([2])]) | sum() | add([100]);
    assert_eq!(planned(canvas), captured("5.7.0", "chord_in_chain"));
}

#[test]
fn built_in_tasks_are_sent_as_by_celery() {
    use celery_protocol::canvas::{chunks, map, starmap};
    for version in ["5.3.6", "5.6.3", "5.7.0"] {
        assert_eq!(planned(map(&sum(), [json!([1, 2]), json!([3])])), captured(version, "map"), "{version}");
        let pairs = [json!([1, 2]), json!([3, 4])];
        assert_eq!(planned(starmap(&add([]), pairs.clone())), captured(version, "starmap"), "{version}");
        assert_eq!(planned(chunks(&add([]), pairs, 1)), captured(version, "chunks_itself"), "{version}");
    }
}
