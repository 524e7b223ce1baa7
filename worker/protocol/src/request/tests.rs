use super::*;
use crate::content::Limits;
use crate::message::Properties;
use serde_json::json;

fn json_properties() -> Properties {
    Properties { content_type: Some("application/json".into()), ..Properties::default() }
}

fn headers(value: Value) -> Map {
    value.as_object().cloned().unwrap()
}

fn decode(header_values: Value, body: &str) -> Result<Request, DecodeError> {
    Request::decode(headers(header_values), &json_properties(), body.as_bytes(), &Limits::default())
}

fn malformed(header_values: Value, body: &str) -> Malformed {
    decode(header_values, body).unwrap_err().malformed
}

const MINIMAL_BODY: &str = "[[1, 2], {}, {}]";

fn minimal() -> Value {
    json!({"lang": "py", "task": "tk.add", "id": "1-2"})
}

#[test]
fn task_and_id_are_enough() {
    let request = decode(minimal(), MINIMAL_BODY).unwrap();
    assert_eq!((request.task.as_str(), request.id.as_str(), request.root()), ("tk.add", "1-2", "1-2"));
    assert_eq!(request.arguments.positional_as::<(i32, i32)>().unwrap(), (1, 2));
    assert_eq!(request.args_repr(), "(1, 2)");
    assert_eq!(request.correlation(), "1-2");
    assert_eq!(request.embed, Embed::default());
}

#[test]
fn null_headers_are_as_good_as_absent_ones() {
    let mut all = headers(minimal());
    for key in [
        "shadow",
        "eta",
        "expires",
        "group",
        "group_index",
        "retries",
        "timelimit",
        "root_id",
        "parent_id",
        "argsrepr",
        "kwargsrepr",
        "origin",
        "ignore_result",
        "replaced_task_nesting",
        "stamped_headers",
        "stamps",
    ] {
        all.insert(key.into(), Value::Null);
    }
    assert_eq!(decode(Value::Object(all), MINIMAL_BODY).unwrap(), decode(minimal(), MINIMAL_BODY).unwrap());
}

#[test]
fn a_body_of_two_elements_is_an_invalid_task() {
    let error = decode(minimal(), "[[1], {}]").unwrap_err();
    assert_eq!(error.task_id.as_deref(), Some("1-2"));
    assert_eq!(error.malformed, Malformed::InvalidTask("the body has 2 elements instead of 3".into()));
    assert_eq!(error.exception().exc_type, "InvalidTaskError");
}

#[test]
fn each_kind_of_bad_message_has_its_exception() {
    let kind = |malformed: Malformed| malformed.exception().exc_type;
    assert_eq!(kind(malformed(minimal(), "[[1], {}")), "DecodeError");
    assert_eq!(kind(malformed(minimal(), "[[NaN], {}, {}]")), "DecodeError");
    assert_eq!(kind(malformed(minimal(), "[[123456789012345678901234567890], {}, {}]")), "DecodeError");
    assert_eq!(kind(malformed(minimal(), "\"text\"")), "InvalidTaskError");
    assert_eq!(kind(malformed(minimal(), "[[1], [], {}]")), "InvalidTaskError");
    assert_eq!(kind(malformed(minimal(), "[1, {}, {}]")), "InvalidTaskError");
    assert_eq!(kind(malformed(minimal(), "[[], {}, []]")), "InvalidTaskError");
    assert_eq!(kind(malformed(json!({"task": "t"}), MINIMAL_BODY)), "InvalidTaskError");
    assert_eq!(
        kind(malformed(json!({"task": "t", "id": "1", "eta": "soon"}), MINIMAL_BODY)),
        "InvalidTaskError"
    );
    assert_eq!(malformed(json!({}), MINIMAL_BODY), Malformed::NotATask);
    assert_eq!(malformed(json!({}), "{\"a\": 1}"), Malformed::NotATask);
}

#[test]
fn pickle_is_refused_with_the_id_kept() {
    let properties =
        Properties { content_type: Some("application/x-python-serialize".into()), ..Properties::default() };
    let error =
        Request::decode(headers(minimal()), &properties, b"\x80\x04", &Limits::default()).unwrap_err();
    assert_eq!(error.task_id.as_deref(), Some("1-2"));
    assert_eq!(error.task.as_deref(), Some("tk.add"));
    assert_eq!(error.exception().exc_type, "ContentDisallowed");
    assert!(error.to_string().contains("pickle"));
}

#[test]
fn protocol_1_is_one_object() {
    let body = json!({
        "task": "tk.add", "id": "9", "args": [1], "kwargs": {"n": 2}, "retries": 1, "group": "g", "taskset": "s",
        "eta": "2026-11-21T02:57:45", "utc": true, "timelimit": [3, 2.5], "callbacks": [{"task": "tk.cb"}],
    });
    let request = decode(json!({}), &body.to_string()).unwrap();
    assert_eq!((request.task.as_str(), request.id.as_str(), request.retries), ("tk.add", "9", 1));
    assert_eq!(request.group.as_deref(), Some("s"), "`taskset` is the older name and wins");
    assert_eq!(request.time_limit, TimeLimit { hard: Some(3.0), soft: Some(2.5) });
    assert_eq!(request.embed.callbacks.unwrap()[0].task, "tk.cb");
    assert!(request.eta.is_some());
    assert_eq!(
        decode(json!({}), "{\"task\": \"t\", \"id\": \"1\"}").unwrap().arguments,
        Arguments::default()
    );
}

#[test]
fn headers_win_over_the_body_in_a_hybrid() {
    let request = decode(
        json!({"task": "header", "id": "h", "retries": 2}),
        r#"{"task": "body", "id": "b", "args": [1]}"#,
    )
    .unwrap();
    assert_eq!((request.task.as_str(), request.id.as_str(), request.retries), ("header", "h", 2));
    assert_eq!(request.arguments.positional().get(), "[1]");
}

#[test]
fn the_callers_own_headers_survive_but_never_replace_the_protocols() {
    let mut request = decode(json!({"task": "t", "id": "1", "tenant": {"a": [1]}}), MINIMAL_BODY).unwrap();
    assert_eq!(Value::Object(request.headers.clone()), json!({"tenant": {"a": [1]}}));
    request.headers.insert("id".into(), "other".into());
    let message = request.encode(Timestamp::UNIX_EPOCH);
    assert_eq!(message.headers["id"], "1");
    assert_eq!(message.headers["tenant"], json!({"a": [1]}));
}

#[test]
fn encoding_a_call_writes_what_celery_writes() {
    let arguments = Arguments::new(&(1, 2), &()).unwrap();
    let mut request = Request::new("tk.add", "u", arguments);
    request.expires = Some("2026-11-21T00:01:00Z".parse().unwrap());
    request.time_limit = TimeLimit { hard: Some(10.0), soft: None };
    let message = request.encode("2026-11-21T00:00:00Z".parse().unwrap());
    assert_eq!(
        Value::Object(message.headers),
        json!({
            "lang": "rs", "task": "tk.add", "id": "u", "shadow": null, "eta": null,
            "expires": "2026-11-21T00:01:00+00:00", "group": null, "group_index": null, "retries": 0,
            "timelimit": [10, null], "root_id": "u", "parent_id": null, "argsrepr": "(1, 2)", "kwargsrepr": "{}",
            "origin": null, "ignore_result": null, "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {},
        })
    );
    assert_eq!(message.body, br#"[[1,2],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]"#);
    assert_eq!(message.properties.expiration.as_deref(), Some("60000"));
    assert_eq!(message.properties.correlation_id.as_deref(), Some("u"));
    assert_eq!(message.properties.reply_to.as_deref(), Some(""));
}

#[test]
fn what_expired_in_the_past_has_no_lifetime_left() {
    let request =
        Request { expires: Some(Timestamp::UNIX_EPOCH), ..Request::new("t", "1", Arguments::default()) };
    let now: Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
    assert_eq!(request.encode(now).properties.expiration.as_deref(), Some("0"));
    assert!(request.is_expired(now));
}

#[test]
fn a_name_that_is_half_a_surrogate_pair_is_an_error_not_a_panic() {
    let request = decode(minimal(), r#"[["\ud800"], {"\ud800": 1}, {}]"#);
    if let Ok(request) = request {
        assert!(request.arguments.keyword_items().is_err());
        assert_eq!(request.arguments.positional_items().len(), 1);
        assert_eq!(request.kwargs_repr(), "{}");
    }
}

#[test]
fn what_follows_a_refused_call_is_known() {
    let headers = json!({"task": "t", "id": "i", "eta": "soon", "group": "g", "group_index": 3});
    let headers = headers.as_object().unwrap();
    let properties = Properties { content_type: Some("application/json".into()), ..Properties::default() };
    let limits = Limits::default();
    let body = br#"[[], {}, {"chain": [{"task": "next", "options": {"task_id": "n"}}]}]"#;
    assert!(Request::decode(headers.clone(), &properties, body, &limits).is_err());
    let request = Request::salvage(headers, &properties, body, &limits).unwrap();
    assert_eq!(
        (request.id.as_str(), request.group.as_deref(), request.group_index),
        ("i", Some("g"), Some(3))
    );
    assert_eq!(request.embed.chain.unwrap()[0].task, "next");
    assert!(Request::salvage(headers, &properties, b"[[], {}]", &limits).is_none());
    assert!(Request::salvage(headers, &properties, b"\xff", &limits).is_none());
}
