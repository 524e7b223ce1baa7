use super::*;
use crate::result::ResultTuple;
use serde_json::json;

fn add(n: i64) -> Signature {
    Signature::new("add").arg(n)
}

fn sum() -> Signature {
    Signature::new("sum")
}

/// Plans with ids 1, 2, 3...
fn planned(signature: Signature) -> Plan {
    planned_with(signature, &[], json!({}))
}

fn planned_with(signature: Signature, incoming: &[Value], overrides: Value) -> Plan {
    let mut last = 0;
    let mut new_id = || {
        last += 1;
        last.to_string()
    };
    plan(signature, incoming, overrides.as_object().cloned().unwrap(), &mut new_id).unwrap()
}

fn chain_of(signature: &Signature) -> Vec<Signature> {
    serde_json::from_value(signature.options.get("chain").cloned().unwrap_or(json!([]))).unwrap()
}

#[test]
fn a_chain_sends_its_first_step_with_the_others_reversed() {
    let plan = planned(add(1).arg(2) | add(3) | add(4));
    let [first] = plan.calls.as_slice() else { panic!("{plan:?}") };
    let rest = chain_of(first);
    assert_eq!(
        (first.args.clone(), rest[0].args.clone(), rest[1].args.clone()),
        (vec![json!(1), json!(2)], vec![json!(4)], vec![json!(3)])
    );
    assert_eq!(plan.result.id, rest[0].text_option("task_id").unwrap());
    let parents: Vec<_> =
        std::iter::successors(plan.result.parent.as_deref(), |tuple| tuple.parent.as_deref())
            .map(|tuple| tuple.id.as_str())
            .collect();
    assert_eq!(parents, [rest[1].text_option("task_id").unwrap(), first.text_option("task_id").unwrap()]);
}

#[test]
fn an_incoming_value_goes_to_the_first_step_only() {
    let plan = planned_with(add(1) | add(2), &[json!("v")], json!({}));
    assert_eq!(plan.calls[0].args, [json!("v"), json!(1)]);
    assert_eq!(chain_of(&plan.calls[0])[0].args, [json!(2)]);
    let plan = planned_with(add(1).immutable() | add(2), &[json!("v")], json!({}));
    assert_eq!(plan.calls[0].args, [json!(1)]);
    let plan = planned_with(group([add(1), add(2).immutable()]), &[json!("v")], json!({}));
    assert_eq!((plan.calls[0].args.len(), plan.calls[1].args.len()), (2, 1));
    let plan = planned_with(chord([add(1)], sum()), &[json!("v")], json!({}));
    assert_eq!(plan.calls[0].args, [json!("v"), json!(1)]);
}

#[test]
fn the_last_step_gets_what_the_chain_was_called_with() {
    let overrides = json!({"task_id": "chosen", "group_id": "g", "group_index": 1, "chord": {"task": "body"}, "root_id": "r"});
    let plan = planned_with(add(1) | add(2), &[], overrides);
    let last = &chain_of(&plan.calls[0])[0];
    assert_eq!(plan.result.id, "chosen");
    assert_eq!(
        Value::Object(last.options.clone()),
        json!({"task_id": "chosen", "group_id": "g", "group_index": 1, "chord": {"task": "body"}})
    );
    assert_eq!(plan.calls[0].text_option("root_id"), Some("r"));
    assert!(plan.calls[0].option("chord").is_none() && plan.calls[0].option("group_id").is_none());
}

#[test]
fn the_rest_of_an_outer_chain_comes_after_the_inner_one() {
    let outer = json!({"chain": [add(9), add(8)]});
    let plan = planned_with(add(1) | add(2) | add(3), &[], outer);
    let order: Vec<_> =
        chain_of(&plan.calls[0]).iter().rev().map(|step| step.args[0].as_i64().unwrap()).collect();
    assert_eq!(order, [2, 3, 8, 9]);
}

#[test]
fn errbacks_go_to_every_step_and_callbacks_to_the_last() {
    let canvas = (add(1) | group([add(2), add(3)]) | sum() | add(4)).link(add(5)).link_error(add(6));
    let plan = planned(canvas);
    let rest = chain_of(&plan.calls[0]);
    assert_eq!(plan.calls[0].options["link_error"][0]["args"], json!([6]));
    assert_eq!(rest[0].options["link_error"][0]["args"], json!([6]));
    assert_eq!(rest[0].options["link"][0]["args"], json!([5]));
    assert_eq!(rest[1].kwargs["body"]["options"]["link_error"][0]["args"], json!([6]));
    assert!(plan.calls[0].option("link").is_none());
}

#[test]
fn a_group_sends_all_members_under_its_id() {
    let plan = planned(group([add(1), group([add(2), add(3)]), add(4)]).task_id("g"));
    let indices: Vec<_> =
        plan.calls.iter().map(|call| call.options["group_index"].as_i64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert!(plan.calls.iter().all(|call| call.text_option("group_id") == Some("g")));
    assert_eq!(plan.result.id, "g");
    assert_eq!(plan.result.members.unwrap().len(), 4);
    assert!(plan.chords.is_empty());
}

#[test]
fn a_group_in_front_of_something_is_a_chord() {
    let plan = planned(group([add(1), add(2)]) | sum());
    assert_eq!(plan.calls.len(), 2);
    assert_eq!(plan.chords.len(), 1);
    assert_eq!((plan.chords[0].size, plan.chords[0].nested_header.as_ref()), (2, None));
    let body = &plan.calls[0].options["chord"];
    assert_eq!(
        (&body["task"], body["options"]["task_id"].as_str()),
        (&json!("sum"), Some(plan.result.id.as_str()))
    );
    assert_eq!(body["options"]["group_id"].as_str(), Some(plan.chords[0].group_id.as_str()));
    assert_eq!(plan.result.parent.unwrap().members.unwrap().len(), 2);
}

#[test]
fn a_group_of_one_is_its_member_and_an_empty_one_is_nothing() {
    let plan = planned(group([add(1)]) | add(2));
    assert!(plan.chords.is_empty());
    assert_eq!(chain_of(&plan.calls[0]).len(), 1);
    let plan = planned(add(1) | group([]) | add(2));
    assert_eq!(chain_of(&plan.calls[0]).len(), 1);
    let plan = planned(group([]));
    assert_eq!(plan.result.members, Some(vec![]));
    assert!(plan.calls.is_empty());
}

#[test]
fn a_chord_without_members_calls_its_body_at_once() {
    let plan = planned(chord([], sum()));
    assert_eq!(plan.calls[0].args, [json!([])]);
    assert!(plan.chords.is_empty());
    let plan = planned(chord([add(1)], sum()));
    assert_eq!((plan.chords[0].size, plan.calls.len()), (1, 1), "one member is still a chord");
}

#[test]
fn options_of_a_chord_go_where_they_belong() {
    let overrides = json!({
        "task_id": "body", "chain": [add(9)], "chord": {"task": "outer"}, "parent_id": "p", "root_id": "r",
        "countdown": 5, "queue": "q", "link": [add(7)],
    });
    let plan = planned_with(chord([add(1)], sum()), &[], overrides);
    let header = &plan.calls[0].options;
    let body = &header["chord"]["options"];
    for (name, in_header, in_body) in [
        ("parent_id", true, false),
        ("countdown", true, false),
        ("queue", true, true),
        ("root_id", true, true),
        ("chain", false, true),
        ("link", false, true),
        ("chord", true, true),
    ] {
        assert_eq!((header.contains_key(name), body.get(name).is_some()), (in_header, in_body), "{name}");
    }
    assert_eq!(body["chord"]["task"], "outer");
    assert_eq!((body["task_id"].as_str(), plan.result.id.as_str()), (Some("body"), "body"));
}

#[test]
fn a_chain_within_a_header_counts_by_its_end() {
    let plan = planned(chord(
        [add(1) | add(2), add(3) | group([add(4), add(5)]), chord([add(6), add(7)], sum())],
        sum(),
    ));
    let outer = &plan.chords[0];
    assert_eq!(outer.size, 4);
    let header = outer.nested_header.as_ref().unwrap();
    assert_eq!(header.members.as_ref().unwrap()[1].members.as_ref().unwrap().len(), 2);
    let [_, inner] = plan.chords.as_slice() else { panic!("{:?}", plan.chords) };
    assert_eq!(inner.size, 2);
    // The inner chord's body is the member of the outer one.
    let inner_body = &plan.calls.last().unwrap().options["chord"]["options"];
    assert_eq!(inner_body["group_id"].as_str(), Some(outer.group_id.as_str()));
    assert_eq!((&inner_body["group_index"], &inner_body["chord"]["task"]), (&json!(2), &json!("sum")));
}

#[test]
fn planning_what_was_planned_before_keeps_all_ids() {
    let first = planned(add(1) | group([add(2), add(3)]) | (sum() | add(4)));
    let rest = chain_of(&first.calls[0]);
    // What a worker does with the next step.
    let (next, rest) = (rest.last().unwrap().clone(), &rest[..rest.len() - 1]);
    let again =
        planned_with(next.clone(), &[json!(1)], json!({"chain": rest, "root_id": "r", "parent_id": "p"}));
    let ids: Vec<_> = again.calls.iter().map(|call| call.options["task_id"].clone()).collect();
    let expected: Vec<_> = next.kwargs["header"]["kwargs"]["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["options"]["task_id"].clone())
        .collect();
    assert_eq!(ids, expected);
    assert_eq!(Some(again.chords[0].group_id.as_str()), next.text_option("task_id"));
    let body = &again.calls[0].options["chord"];
    assert_eq!(body["options"]["task_id"], next.kwargs["body"]["options"]["task_id"]);
    assert_eq!(body["options"]["chain"][0]["args"], json!([4]));
    assert!(again.calls.iter().all(|call| !call.options.contains_key("chain")), "it goes to the body alone");
}

#[test]
fn what_is_malformed_is_an_error() {
    let refused =
        |signature: Signature| plan(signature, &[], Map::new(), &mut || "id".into()).unwrap_err().to_string();
    assert_eq!(refused(chain([])), "a chain has no steps");
    assert_eq!(refused(group([add(1)]).link(add(2))), "a group can't have a callback: a chord can");
    assert_eq!(
        refused(Signature { subtask_type: Some("loop".into()), ..add(1) }),
        "`loop` is no kind of canvas"
    );
    assert_eq!(refused(Signature { subtask_type: Some("chord".into()), ..sum() }), "a chord has no body");
    let members =
        Signature { subtask_type: Some("group".into()), ..Signature::new("celery.group").kwarg("tasks", 5) };
    assert_eq!(refused(members), "`tasks` of `celery.group` is not a list of signatures");
    let member = Signature {
        subtask_type: Some("group".into()),
        ..Signature::new("celery.group").kwarg("tasks", vec![5])
    };
    assert_eq!(refused(member), "a member of `celery.group` is not a signature");
    let deep = (0..200).fold(add(1), |inner, _| chord([inner, add(2)], sum()));
    assert!(refused(deep).contains("nested more than"));
}

#[test]
fn built_in_tasks_are_calls_like_any_other() {
    let plan = planned(starmap(&add(0), [json!([1, 2])]));
    assert_eq!(plan.calls[0].task, "celery.starmap");
    assert_eq!(plan.result, ResultTuple::task("1"));
    assert_eq!(chunks(&add(0), [json!([1])], 3).kwargs["n"], 3);
    assert_eq!(map(&sum(), [json!([1])]).subtask_type, None);
}

#[test]
fn what_is_abandoned_has_an_id_somebody_may_wait_for() {
    let body = sum().task_id("body").set("chain", vec![value(&add(9).task_id("after"))]);
    let steps = [
        add(1).task_id("one").set("reply_to", "client"),
        group([add(2).task_id("two"), add(3)]),
        chord([add(4).task_id("header")], body),
        (add(5).task_id("five")
            | add(6).task_id("six").set("chord", value(&sum())).set("group_id", "g").set("group_index", 1)),
    ];
    let all = abandoned(&steps);
    let ids: Vec<_> = all.iter().map(|call| call.task_id.as_str()).collect();
    assert_eq!(ids, ["one", "two", "body", "after", "five", "six"]);
    assert_eq!(all[0].reply_to.as_deref(), Some("client"));
    let last = all.last().unwrap();
    assert_eq!((last.group_id.as_deref(), last.group_index), (Some("g"), Some(1)));
    assert_eq!(last.chord.as_ref().unwrap().task, "sum");
}
