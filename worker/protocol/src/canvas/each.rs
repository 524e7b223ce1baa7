//! Changing all calls of a canvas before it is sent.

use super::kind::{Header, Kind};
use super::{CanvasError, built_in, group};
use crate::Signature;
use serde::Deserialize as _;
use serde_json::Value;

/// Canvases nested deeper than this are a mistake.
const MAX_DEPTH: u32 = 64;

/// Changes each plain task that a canvas leads to if all goes well: the steps of chains, the members of groups, headers
/// and bodies of chords. Callbacks and errbacks are left alone.
///
/// # Errors
/// When the canvas isn't well-formed.
pub fn change_calls(
    signature: &mut Signature,
    change: &mut dyn FnMut(&mut Signature),
) -> Result<(), CanvasError> {
    descend(signature, change, 0)
}

fn descend(
    signature: &mut Signature,
    change: &mut dyn FnMut(&mut Signature),
    depth: u32,
) -> Result<(), CanvasError> {
    if depth > MAX_DEPTH {
        return Err(CanvasError::TooDeep);
    }
    match signature.kind()? {
        Kind::Task => change(signature),
        Kind::Chain(mut members) | Kind::Group(mut members) => {
            for member in &mut members {
                descend(member, change, depth + 1)?;
            }
            signature.set_members(members);
        }
        Kind::Chord { header: Header { mut members, options }, mut body } => {
            for member in &mut members {
                descend(member, change, depth + 1)?;
            }
            descend(&mut body, change, depth + 1)?;
            signature.set_chord(Header { members, options }, &body);
        }
    }
    Ok(())
}

impl Signature {
    /// The task that a call is really about: for `celery.map` and its like, the one that is called with each item.
    #[must_use]
    pub fn routed_task(&self) -> &str {
        match self.task.as_str() {
            "celery.map" | "celery.starmap" | "celery.chunks" => {
                let inner = self.kwargs.get("task").and_then(|task| task.get("task"));
                inner.and_then(Value::as_str).unwrap_or(&self.task)
            }
            task => task,
        }
    }

    /// For `celery.chunks`, the group of `celery.starmap` calls that a client makes of it; none for anything else.
    #[must_use]
    pub fn chunks_as_group(&self) -> Option<Signature> {
        if self.task != "celery.chunks" {
            return None;
        }
        let task = Signature::deserialize(self.kwargs.get("task")?).ok()?;
        let items = self.kwargs.get("it")?.as_array()?;
        let size = usize::try_from(self.kwargs.get("n")?.as_u64()?).ok()?.max(1);
        let runs = items.chunks(size).map(|items| built_in("celery.starmap", &task, items.iter().cloned()));
        Some(Signature { options: self.options.clone(), ..group(runs) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{chain, chord, chunks, map, plan, value};
    use super::*;
    use crate::Map;
    use serde_json::json;

    fn task(name: &str) -> Signature {
        Signature::new(name)
    }

    #[test]
    fn each_call_is_changed_however_deep_it_is() {
        let mut canvas = task("a")
            | group([task("b") | task("c"), map(&task("d"), [json!(1)])])
            | chord([task("e")], chain([task("f"), task("g").link(task("callback"))]));
        let mut seen = Vec::new();
        change_calls(&mut canvas, &mut |call| {
            seen.push(call.routed_task().to_owned());
            call.options.insert("queue".to_owned(), "red".into());
        })
        .unwrap();
        assert_eq!(seen, ["a", "b", "c", "d", "e", "f", "g"]);
        let text = value(&canvas).to_string();
        assert_eq!(text.matches(r#""queue":"red""#).count(), 7, "{text}");
    }

    #[test]
    fn chunks_are_a_group_to_a_client() {
        let items = (0..5).map(|n| json!([n, n]));
        let group = chunks(&task("add"), items, 2).queue("red").chunks_as_group().unwrap();
        let mut id = 0;
        let mut new_id = || {
            id += 1;
            id.to_string()
        };
        let plan = plan(group, &[], Map::new(), &mut new_id).unwrap();
        let items: Vec<_> = plan.calls.iter().map(|call| call.kwargs["it"].to_string()).collect();
        assert_eq!(items, ["[[0,0],[1,1]]", "[[2,2],[3,3]]", "[[4,4]]"]);
        assert!(plan.calls.iter().all(|call| call.task == "celery.starmap"
            && call.immutable
            && call.text_option("queue") == Some("red")));
        assert!(task("add").chunks_as_group().is_none());
    }

    #[test]
    fn nesting_has_an_end() {
        let mut canvas = (0..70).fold(task("a"), |inner, _| chain([inner]));
        assert!(matches!(change_calls(&mut canvas, &mut |_| {}), Err(CanvasError::TooDeep)));
    }
}
