//! A call that takes the place of another.

use celery_protocol::{Map, Request, Signature};
use serde_json::Value;

use super::{FollowError, list};

/// The signature to send in place of `request`, and what it is called with: the id of what it replaces, its place in a group
/// or chord, and everything that was to follow.
pub(super) fn replacement(request: &Request, signature: Signature) -> Result<(Signature, Map), FollowError> {
    if signature.option("chord").is_some() {
        return Err(FollowError::ReplacedByMember);
    }
    let mut signature = match signature.subtask_type.as_deref() {
        // A group has many results and what it replaces one: the list of them.
        Some("group") => signature | Signature::new("celery.accumulate").kwarg("index", 0),
        _ => signature,
    };
    for callback in request.embed.callbacks.iter().flatten() {
        signature = signature.link(callback.clone());
    }
    for errback in request.embed.errbacks.iter().flatten() {
        signature = signature.link_error(errback.clone());
    }
    let nesting = request.replaced_task_nesting + 1;
    if signature.subtask_type.as_deref() == Some("chain") {
        // The last step has the id of what is replaced as well.
        let steps = signature.kwargs.get_mut("tasks").and_then(Value::as_array_mut);
        for step in steps.into_iter().flatten() {
            if let Some(options) = step.get_mut("options").and_then(Value::as_object_mut) {
                options.insert("replaced_task_nesting".to_owned(), nesting.into());
            }
        }
    }
    let mut overrides = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            overrides.insert(name.to_owned(), value);
        }
    };
    put("task_id", request.id.as_str().into());
    put("group_id", request.group.clone().into());
    put("group_index", request.group_index.into());
    put("chord", request.embed.chord.as_deref().map(super::value_of).into());
    put("ignore_result", request.ignore_result.into());
    put("replaced_task_nesting", nesting.into());
    if let Some(rest) = request.embed.chain.as_deref().filter(|rest| !rest.is_empty()) {
        put("chain", list(rest));
    }
    Ok((signature, overrides))
}

#[cfg(test)]
mod tests {
    use celery_protocol::{Arguments, Embed, canvas};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_replacement_has_the_id_and_all_that_was_to_follow() {
        let request = Request {
            group: Some("g".into()),
            group_index: Some(1),
            embed: Embed {
                callbacks: Some(vec![Signature::new("t.callback")]),
                errbacks: Some(vec![Signature::new("t.errback")]),
                chain: Some(vec![Signature::new("t.last"), Signature::new("t.next")]),
                chord: Some(Box::new(Signature::new("t.body"))),
            },
            ..Request::new("t.old", "id1", Arguments::default())
        };
        let chain = Signature::new("t.first") | Signature::new("t.second");
        let (signature, overrides) = replacement(&request, chain).unwrap();
        let mut ids = 0;
        let plan = canvas::plan(signature, &[], overrides, &mut || {
            ids += 1;
            ids.to_string()
        })
        .unwrap();
        assert_eq!((plan.calls.len(), plan.result.id.as_str()), (1, "id1"));
        let first = &plan.calls[0];
        assert_eq!((first.task.as_str(), &first.options["replaced_task_nesting"]), ("t.first", &json!(1)));
        let rest: Vec<_> = first.options["chain"].as_array().unwrap().iter().collect();
        let tasks: Vec<_> = rest.iter().map(|step| step["task"].clone()).collect();
        assert_eq!(tasks, ["t.last", "t.next", "t.second"]);
        let second = &rest[2]["options"];
        assert_eq!(
            (
                &second["task_id"],
                &second["group_id"],
                &second["group_index"],
                &second["replaced_task_nesting"]
            ),
            (&json!("id1"), &json!("g"), &json!(1), &json!(1))
        );
        assert_eq!(
            (&second["chord"]["task"], &second["link"][0]["task"]),
            (&json!("t.body"), &json!("t.callback"))
        );
        assert_eq!(first.options["link_error"][0]["task"], "t.errback");
    }

    #[test]
    fn a_group_is_replaced_by_the_list_of_its_results() {
        let request = Request::new("t.old", "id1", Arguments::default());
        let group = canvas::group([Signature::new("t.a"), Signature::new("t.b")]);
        let (signature, overrides) = replacement(&request, group).unwrap();
        let plan = canvas::plan(signature, &[], overrides, &mut || "new".into()).unwrap();
        assert_eq!((plan.calls.len(), plan.result.id.as_str()), (2, "id1"));
        let body = &plan.calls[0].options["chord"];
        assert_eq!(
            (&body["task"], &body["options"]["replaced_task_nesting"]),
            (&json!("celery.accumulate"), &json!(1))
        );
        let member = Signature::new("t.a").set("chord", json!({"task": "t.body"}));
        assert!(replacement(&request, member).is_err());
    }
}
