//! Input from the network: whatever it is, decoding ends, without a panic and without more memory than was allowed.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use celery_protocol::content::Limits;
use celery_protocol::control::Command;
use celery_protocol::event::Event;
use celery_protocol::request::Malformed;
use celery_protocol::{Map, Properties, Request, Signature, TaskMeta, date};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::Write;

const LIMITS: Limits = Limits { decompressed_bytes: 1 << 20 };

/// Any JSON, and now and then something that the protocol gives a meaning to.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("2026-11-21T02:57:45.037066+00:00")),
        Just(json!({"__type__": "datetime", "__value__": "2026-11-21"})),
        Just(json!({"task": "t", "args": [1], "kwargs": {}, "options": {"task_id": "x"}})),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "task",
            "id",
            "args",
            "kwargs",
            "eta",
            "expires",
            "retries",
            "timelimit",
            "group",
            "group_index",
            "root_id",
            "parent_id",
            "callbacks",
            "errbacks",
            "chain",
            "chord",
            "stamps",
            "stamped_headers",
            "compression",
            "options",
            "link",
            "status",
            "result",
            "children",
            "type",
            "hostname",
            "timestamp",
            "uuid",
            "method",
            "arguments",
            "destination",
            "pattern",
            "matcher",
            "reply_to",
            "ignore_result",
            "taskset",
            "utc",
            "shadow",
        ])
        .prop_map(str::to_owned),
        ".{0,8}",
    ]
}

fn headers() -> impl Strategy<Value = Map> {
    let named = prop::collection::vec((key(), value()), 0..8);
    (named, any::<bool>()).prop_map(|(pairs, is_named)| {
        let mut headers: Map = pairs.into_iter().collect();
        if is_named {
            headers.insert("task".into(), "t".into());
            headers.insert("id".into(), "1".into());
        }
        headers
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        value().prop_map(|value| value.to_string().into_bytes()),
        (value(), value(), value()).prop_map(|triple| serde_json::to_vec(&triple).unwrap()),
        prop::collection::vec((key(), value()), 0..8)
            .prop_map(|pairs| serde_json::to_vec(&Value::Object(pairs.into_iter().collect())).unwrap()),
        // What it should be, but for the last element.
        (value(), value())
            .prop_map(|(value, embed)| json!([[value], {"k": value}, embed]).to_string().into_bytes()),
        (value(), value())
            .prop_map(|(a, b)| json!([[a], {"k": b}, {"chain": null}]).to_string().into_bytes()),
        // Valid JSON cut short, or with a byte changed.
        (value(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(value, index, byte)| {
            let mut text = json!([[value], {}, {}]).to_string().into_bytes();
            let index = index.index(text.len());
            text[index] = byte;
            text
        }),
    ]
}

fn properties() -> impl Strategy<Value = Properties> {
    let content_type = prop_oneof![
        4 => Just(Some("application/json".to_owned())),
        1 => prop::option::of(".{0,8}"),
    ];
    (content_type, prop::option::of(".{0,8}"), prop::option::of(any::<u8>())).prop_map(
        |(content_type, reply_to, priority)| Properties {
            content_type,
            reply_to,
            priority,
            ..Properties::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_message_is_a_request_or_an_error(headers in headers(), properties in properties(), body in body()) {
        match Request::decode(headers.clone(), &properties, &body, &LIMITS) {
            Err(error) => {
                prop_assert!(!error.to_string().is_empty());
                prop_assert!(!error.exception().repr().is_empty());
                if let Some(id) = headers.get("id").and_then(Value::as_str) {
                    prop_assert_eq!(error.task_id.as_deref(), Some(id));
                }
            }
            Ok(request) => {
                let _ = (request.args_repr(), request.kwargs_repr(), request.arguments.positional_items());
                let _ = (request.arguments.keyword_items(), request.arguments.to_values());
                let now = Timestamp::UNIX_EPOCH;
                let _ = (request.delay(now), request.is_expired(now), request.time_limit.hard());
                // What was understood once is understood again.
                let message = request.encode(now);
                let again = Request::decode(message.headers, &message.properties, &message.body, &LIMITS);
                let again = again.map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(&again.arguments, &request.arguments);
                prop_assert_eq!(&again.embed, &request.embed);
                prop_assert_eq!(again.id, request.id);
            }
        }
    }

    #[test]
    fn any_signature_is_a_request_or_an_error(options in prop::collection::vec((key(), value()), 0..6)) {
        let signature = Signature { options: options.into_iter().collect(), ..Signature::new("t") };
        let _ = signature.to_request(|| "1".into(), Timestamp::UNIX_EPOCH).map(|request| request.encode(Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn any_bytes_are_a_result_an_event_or_a_command_or_an_error(body in body()) {
        if let Ok(meta) = TaskMeta::decode(&body) {
            let _ = (meta.exception(), meta.encode());
        }
        if let Ok(events) = Event::decode(&body) {
            for event in events {
                let _ = (event.kind.routing_key(), event.encode());
            }
        }
        if let Ok(command) = Command::decode(&body) {
            let _ = (command.is_for("celery@a"), command.encode());
        }
    }

    #[test]
    fn any_pattern_matches_or_not(pattern in ".{0,40}", matcher in prop::sample::select(vec!["glob", "pcre"])) {
        let command = Command { pattern: Some(pattern), matcher: Some(matcher.into()), ..Command::default() };
        let _ = command.is_for("celery@red-7c9f");
    }

    #[test]
    fn a_glob_without_wildcards_matches_itself(name in "[^*?\\[\\]]{0,20}") {
        let command = Command { pattern: Some(name.clone()), matcher: Some("glob".into()), ..Command::default() };
        prop_assert!(command.is_for(&name));
    }

    #[test]
    fn any_text_is_a_date_or_not(text in "[-0-9T:.,+Z ]{0,40}") {
        if let Ok(moment) = date::parse(&text) {
            prop_assert!(moment.duration_since(date::parse(&date::format(moment)).unwrap()).is_zero());
        }
    }

    #[test]
    fn any_moment_survives_to_the_microsecond(micros in -377_000_000_000_000_000_i64..253_000_000_000_000_000) {
        let moment = Timestamp::from_microsecond(micros).unwrap();
        if moment.strftime("%Y").to_string().starts_with('-') {
            return Ok(());
        }
        prop_assert_eq!(date::parse(&date::format(moment)), Ok(moment));
    }
}

fn compressed(text: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn decode(headers: Value, body: &[u8]) -> Result<Request, Malformed> {
    let properties = Properties { content_type: Some("application/json".into()), ..Properties::default() };
    Request::decode(headers.as_object().cloned().unwrap(), &properties, body, &LIMITS)
        .map_err(|error| error.malformed)
}

#[test]
fn a_small_body_that_expands_without_end_is_stopped() {
    let bomb = compressed(&vec![b'['; 64 << 20]);
    assert!(bomb.len() < 100_000);
    let error =
        decode(json!({"task": "t", "id": "1", "compression": "application/x-gzip"}), &bomb).unwrap_err();
    assert_eq!(error, Malformed::Undecodable("the body expands beyond 1048576 bytes".into()));
}

#[test]
fn nesting_does_not_overflow_the_stack() {
    let headers = json!({"task": "t", "id": "1"});
    let deep = "[".repeat(500_000) + &"]".repeat(500_000);
    // As an argument it is only text, until somebody wants to look into it.
    let request = decode(headers.clone(), format!("[[{deep}], {{}}, {{}}]").as_bytes()).unwrap();
    assert!(request.arguments.to_values().is_err());
    assert_eq!(request.args_repr(), "()");
    assert!(decode(headers, format!("[[], {{}}, {{\"chain\": {deep}}}]").as_bytes()).is_err());
    assert!(decode(json!({}), deep.as_bytes()).is_err());
    assert!(Command::decode(deep.as_bytes()).is_err());
    assert!(Event::decode(deep.as_bytes()).is_err());
}

#[test]
fn an_expression_that_backtracks_elsewhere_takes_no_time_here() {
    let command =
        Command { pattern: Some("(a+)+$".into()), matcher: Some("pcre".into()), ..Command::default() };
    assert!(!command.is_for(&("a".repeat(10_000) + "!")));
}
