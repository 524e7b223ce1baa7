use super::*;
use crate::Request;
use jiff::Timestamp;
use serde_json::json;
use std::time::Duration;

fn now() -> Timestamp {
    "2026-11-21T00:00:00Z".parse().unwrap()
}

fn request(signature: &Signature) -> Request {
    signature.to_request(|| "new".into(), now()).unwrap()
}

#[test]
fn all_six_keys_are_written() {
    let signature = Signature::new("tk.add").arg(1).queue("q").countdown(Duration::from_secs(3));
    let text = r#"{"task":"tk.add","args":[1],"kwargs":{},"options":{"queue":"q","countdown":3},"subtask_type":null,"immutable":false}"#;
    assert_eq!(serde_json::to_string(&signature).unwrap(), text);
    assert_eq!(serde_json::from_str::<Signature>(text).unwrap(), signature);
}

#[test]
fn keys_may_be_missing_or_null() {
    let signature: Signature =
        serde_json::from_value(json!({"task": "t", "args": null, "extra": 1})).unwrap();
    assert_eq!(signature, Signature::new("t"));
    let signature: Signature = serde_json::from_value(json!({"task": "t", "chord_size": 3})).unwrap();
    assert_eq!(signature.chord_size, Some(3));
}

#[test]
fn arguments_come_from_anything_that_is_a_sequence_or_a_map() {
    let signature =
        Signature::new("t").with_args(&(1, "two")).unwrap().with_kwargs(&json!({"k": 3})).unwrap();
    assert_eq!((signature.args, signature.kwargs["k"].clone()), (vec![json!(1), json!("two")], json!(3)));
    assert!(Signature::new("t").with_args(&()).unwrap().args.is_empty());
    assert!(Signature::new("t").with_args(&5).is_err());
    assert!(Signature::new("t").with_kwargs(&[1]).is_err());
}

#[test]
fn options_become_headers_and_properties() {
    let signature = Signature::new("t")
        .task_id("chosen")
        .countdown(Duration::from_millis(1500))
        .expires_at("2026-11-22T00:00:00Z".parse().unwrap())
        .priority(5)
        .time_limit(Duration::from_secs(10))
        .ignore_result(true)
        .shadow("shown")
        .header("tenant", "acme")
        .link(Signature::new("next"))
        .link(Signature::new("next"))
        .link_error(Signature::new("failed"))
        .stamp("label", "x")
        .set("group_id", "g")
        .set("group_index", 2)
        .set("route_name", Value::Null)
        .set("add_to_parent", true);
    let request = request(&signature);
    assert_eq!(request.id, "chosen");
    assert_eq!(request.eta, Some("2026-11-21T00:00:01.5Z".parse().unwrap()));
    assert_eq!(request.expires, Some("2026-11-22T00:00:00Z".parse().unwrap()));
    assert_eq!((request.priority, request.ignore_result), (Some(5), Some(true)));
    assert_eq!((request.time_limit.hard, request.time_limit.soft), (Some(10.0), None));
    assert_eq!(request.display_name(), "shown");
    assert_eq!(Value::Object(request.headers), json!({"tenant": "acme"}));
    assert_eq!(request.embed.callbacks.unwrap().len(), 1, "the same callback twice is sent once");
    assert_eq!(request.embed.errbacks.unwrap()[0].task, "failed");
    assert_eq!((request.group.as_deref(), request.group_index), (Some("g"), Some(2)));
    assert_eq!(Value::Object(request.stamps), json!({"label": "x"}));
    assert_eq!(request.stamped_headers.unwrap(), ["label"]);
}

#[test]
fn an_expiry_in_seconds_counts_from_now() {
    let signature = Signature::new("t").expires(Duration::from_secs(60));
    assert_eq!(request(&signature).expires, Some("2026-11-21T00:01:00Z".parse().unwrap()));
    assert_eq!(request(&Signature::new("t").countdown(Duration::ZERO)).eta, None);
    let tagged = json!({"__type__": "datetime", "__value__": "2026-11-21T00:01:00"});
    assert_eq!(request(&Signature::new("t").set("eta", tagged)).eta, request(&signature).expires);
}

#[test]
fn a_single_link_is_as_good_as_a_list() {
    let link = json!({"task": "next"});
    let signature = Signature::new("t").set("link", link).link(Signature::new("other"));
    assert_eq!(request(&signature).embed.callbacks.unwrap().len(), 2);
}

#[test]
fn what_can_not_be_sent_says_why() {
    let refused = |signature: Signature| signature.to_request(String::new, now()).unwrap_err().to_string();
    assert_eq!(
        refused(Signature::new("t").set("serializer", "pickle")),
        "serializer `pickle` is not supported, only json is"
    );
    assert_eq!(refused(Signature::new("t").set("eta", "soon")), "option `eta` of `t` is no moment: \"soon\"");
    assert_eq!(
        refused(Signature::new("t").set("countdown", 1e300)),
        "option `countdown` of `t` is no moment: 1e+300"
    );
    assert_eq!(refused(Signature::new("t").set("priority", 300)), "option `priority` of `t`");
    let canvas = Signature { subtask_type: Some("chain".into()), ..Signature::new("celery.chain") };
    assert_eq!(refused(canvas), "`chain` is not a single task");
}

#[test]
fn an_incoming_value_is_the_first_argument_unless_immutable() {
    assert_eq!(Signature::new("t").arg(1).with_incoming(json!("v")).args, [json!("v"), json!(1)]);
    assert_eq!(Signature::new("t").arg(1).immutable().with_incoming(json!("v")).args, [json!(1)]);
}

#[test]
fn overrides_win_but_for_the_group_and_the_stamps() {
    let own = Signature::new("t").queue("own").set("group_id", "own").stamp("label", "own");
    let overrides =
        json!({"queue": "over", "group_id": "over", "label": "over", "root_id": "r", "priority": null});
    let merged = own.with_options(overrides.as_object().cloned().unwrap());
    assert_eq!(
        Value::Object(merged.options),
        json!({"queue": "over", "group_id": "own", "label": "own", "stamped_headers": ["label"], "root_id": "r"})
    );
}
