//! What a failure leaves behind: everything that was to follow, and that somebody may be waiting for.

use super::kind::{Kind, take_list};
use crate::Signature;
use serde::Deserialize as _;
use serde_json::Value;

/// A call that will never be made, because something before it failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Abandoned {
    /// Its id: a client may be waiting for its result.
    pub task_id: String,
    /// The client's queue, where results come over RPC.
    pub reply_to: Option<String>,
    /// The group that it belongs to.
    pub group_id: Option<String>,
    /// Its position in the group.
    pub group_index: Option<i64>,
    /// Body of the chord that it is a member of, whose other members wait for it.
    pub chord: Option<Signature>,
}

/// All calls with an id that some signatures would have led to: steps of chains, members of groups, bodies of chords
/// (nobody waits for the members of a header that was never begun), and what was to come after each.
#[must_use]
pub fn abandoned<'a>(signatures: impl IntoIterator<Item = &'a Signature>) -> Vec<Abandoned> {
    let mut all = Vec::new();
    for signature in signatures {
        collect(signature, &mut all);
    }
    all
}

fn collect(signature: &Signature, all: &mut Vec<Abandoned>) {
    match signature.kind() {
        Ok(Kind::Chain(members) | Kind::Group(members)) => {
            members.iter().for_each(|member| collect(member, all));
        }
        Ok(Kind::Chord { body, .. }) => collect(&body, all),
        // Its id is good even where the rest makes no sense.
        Ok(Kind::Task) | Err(_) => all.extend(call(signature)),
    }
    if let Some(rest) = signature.option("chain").and_then(Value::as_array) {
        let steps = rest.iter().filter_map(|step| Signature::deserialize(step).ok());
        steps.for_each(|step| collect(&step, all));
    }
}

fn call(signature: &Signature) -> Option<Abandoned> {
    let text = |name| signature.text_option(name).map(str::to_owned);
    Some(Abandoned {
        task_id: text("task_id")?,
        reply_to: text("reply_to"),
        group_id: text("group_id"),
        group_index: signature.option("group_index").and_then(Value::as_i64),
        chord: signature.option("chord").and_then(|chord| Signature::deserialize(chord).ok()),
    })
}

/// The errbacks of a chord's body that will not be called, each with the id that it is called with.
///
/// Those of a group are its members', with their ids; those of a chain with the id of its last step, which clients know.
#[must_use]
pub fn errbacks(body: &Signature) -> Vec<(Signature, String)> {
    let mut all = Vec::new();
    collect_errbacks(body, &mut all);
    all
}

fn collect_errbacks(body: &Signature, all: &mut Vec<(Signature, String)>) {
    let id = body.text_option("task_id").unwrap_or_default().to_owned();
    let own = take_list(&mut body.options.clone(), "link_error");
    let own = own.into_iter().filter_map(|errback| Signature::deserialize(errback).ok());
    all.extend(own.map(|errback| (errback, id.clone())));
    match body.kind() {
        Ok(Kind::Group(members)) => members.iter().for_each(|member| collect_errbacks(member, all)),
        // Added to each step: one of them is enough.
        Ok(Kind::Chain(steps)) => {
            if let (Some(first), true) = (steps.first(), body.option("link_error").is_none()) {
                collect_errbacks(&first.clone().task_id(id), all);
            }
        }
        Ok(Kind::Chord { body, .. }) => collect_errbacks(&body, all),
        Ok(Kind::Task) | Err(_) => {}
    }
}
