//! Taking canvases apart and putting them together again.

use super::{CanvasError, chain, group, value};
use crate::{Map, Signature};
use serde::Deserialize as _;
use serde_json::Value;

/// What a signature stands for.
pub(super) enum Kind {
    /// One message.
    Task,
    Chain(Vec<Signature>),
    Group(Vec<Signature>),
    Chord {
        header: Header,
        body: Box<Signature>,
    },
}

/// The members of a chord's header, and the options of the group that they may be wrapped in.
pub(super) struct Header {
    pub(super) members: Vec<Signature>,
    pub(super) options: Map,
}

impl Signature {
    /// What it stands for.
    pub(super) fn kind(&self) -> Result<Kind, CanvasError> {
        match self.subtask_type.as_deref() {
            None => Ok(Kind::Task),
            Some("chain") => Ok(Kind::Chain(self.members("tasks")?)),
            Some("group") => Ok(Kind::Group(self.members("tasks")?)),
            Some("chord") => {
                let body = self.kwargs.get("body").filter(|body| !body.is_null());
                let body = self.read(body.ok_or(CanvasError::NoBody)?)?;
                Ok(Kind::Chord { header: self.chord_header()?, body: Box::new(body) })
            }
            Some(other) => Err(CanvasError::Unknown(other.to_owned())),
        }
    }

    fn chord_header(&self) -> Result<Header, CanvasError> {
        match self.kwargs.get("header") {
            Some(wrapped @ Value::Object(_)) => {
                let wrapped = self.read(wrapped)?;
                match wrapped.kind()? {
                    Kind::Group(members) => Ok(Header { members, options: wrapped.options }),
                    // One signature by itself.
                    _ => Ok(Header { members: vec![wrapped], options: Map::new() }),
                }
            }
            _ => Ok(Header { members: self.members("header")?, options: Map::new() }),
        }
    }

    fn members(&self, key: &str) -> Result<Vec<Signature>, CanvasError> {
        match self.kwargs.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(members)) => members.iter().map(|member| self.read(member)).collect(),
            Some(_) => Err(CanvasError::Members { canvas: self.task.clone(), key: key.to_owned() }),
        }
    }

    fn read(&self, member: &Value) -> Result<Signature, CanvasError> {
        Signature::deserialize(member)
            .map_err(|source| CanvasError::Member { canvas: self.task.clone(), source })
    }

    pub(super) fn is_group(&self) -> bool {
        self.subtask_type.as_deref() == Some("group")
    }

    pub(super) fn set_members(&mut self, members: Vec<Signature>) {
        self.kwargs.insert("tasks".to_owned(), super::values(members));
    }

    pub(super) fn set_chord(&mut self, header: Header, body: &Signature) {
        let wrapped = Signature { options: header.options, ..group(header.members) };
        self.kwargs.insert("header".to_owned(), value(&wrapped));
        self.kwargs.insert("body".to_owned(), value(body));
    }

    /// Removes an option and returns it unless it was null.
    pub(super) fn take_option(&mut self, name: &str) -> Option<Value> {
        take(&mut self.options, name)
    }
}

/// Removes an option and returns it unless it was null.
pub(super) fn take(options: &mut Map, name: &str) -> Option<Value> {
    options.shift_remove(name).filter(|value| !value.is_null())
}

/// Removes an option that is a text.
pub(super) fn take_text(options: &mut Map, name: &str) -> Option<String> {
    match take(options, name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// Removes an option that is a list, or a single element of one.
pub(super) fn take_list(options: &mut Map, name: &str) -> Vec<Value> {
    match take(options, name) {
        None => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(single) => vec![single],
    }
}

/// The steps of a chain, or a signature by itself.
pub(super) fn steps(signature: Signature) -> Vec<Signature> {
    // A chain with options of its own is one step: they are for it alone.
    match signature.kind() {
        Ok(Kind::Chain(tasks)) if signature.options.is_empty() => tasks,
        _ => vec![signature],
    }
}

/// All members of nested groups, in order.
pub(super) fn flatten(members: Vec<Signature>) -> Result<Vec<Signature>, CanvasError> {
    let mut flat = Vec::with_capacity(members.len());
    for member in members {
        match member.kind()? {
            Kind::Group(nested) => flat.extend(flatten(nested)?),
            Kind::Chain(tasks) if tasks.is_empty() => {}
            _ => flat.push(member),
        }
    }
    Ok(flat)
}

/// How many results a member of a chord's header contributes.
pub(super) fn size(member: &Signature) -> Result<u64, CanvasError> {
    match member.kind()? {
        Kind::Task => Ok(1),
        Kind::Group(members) => members.iter().map(size).sum(),
        // A chain contributes its last element, an empty one at the end counting for nothing.
        Kind::Chain(tasks) => {
            for task in tasks.iter().rev() {
                let size = size(task)?;
                if size > 0 {
                    return Ok(size);
                }
            }
            Ok(0)
        }
        Kind::Chord { body, .. } => size(&body),
    }
}

/// Adds an errback wherever a failure of the step would be noticed.
pub(super) fn add_errback(step: &mut Signature, errback: &Signature) -> Result<(), CanvasError> {
    match step.kind()? {
        Kind::Task | Kind::Chain(_) => {
            *step = std::mem::take(step).push_to("link_error", errback.clone());
        }
        Kind::Group(mut members) => {
            for member in &mut members {
                add_errback(member, errback)?;
            }
            step.set_members(members);
        }
        Kind::Chord { header, mut body } => {
            add_errback(&mut body, errback)?;
            step.set_chord(header, &body);
        }
    }
    Ok(())
}

/// Adds a callback to what a step's result comes from.
pub(super) fn add_callback(step: &mut Signature, callback: &Signature) -> Result<(), CanvasError> {
    match step.kind()? {
        Kind::Task | Kind::Chain(_) => {
            *step = std::mem::take(step).push_to("link", callback.clone());
        }
        Kind::Group(_) => return Err(CanvasError::LinkedGroup),
        Kind::Chord { header, mut body } => {
            add_callback(&mut body, callback)?;
            step.set_chord(header, &body);
        }
    }
    Ok(())
}

/// Splices nested chains, turns groups of one into their member, and drops empty groups, but for the very last step.
pub(super) fn splice(tasks: Vec<Signature>) -> Result<Vec<Signature>, CanvasError> {
    let mut steps = Vec::with_capacity(tasks.len());
    let mut empty = None;
    for mut task in tasks {
        loop {
            match task.kind()? {
                Kind::Group(members) => match <[Signature; 1]>::try_from(members) {
                    Ok([only]) => task = only,
                    Err(members) if members.is_empty() => {
                        empty = Some(task);
                        break;
                    }
                    Err(_) => {
                        steps.push(task);
                        break;
                    }
                },
                Kind::Chain(nested) => {
                    let mut nested = splice(nested)?;
                    for errback in take_list(&mut task.options, "link_error") {
                        let errback = task.read(&errback)?;
                        for step in &mut nested {
                            add_errback(step, &errback)?;
                        }
                    }
                    for callback in take_list(&mut task.options, "link") {
                        let callback = task.read(&callback)?;
                        if let Some(last) = nested.last_mut() {
                            add_callback(last, &callback)?;
                        }
                    }
                    steps.extend(nested);
                    break;
                }
                Kind::Task | Kind::Chord { .. } => {
                    steps.push(task);
                    break;
                }
            }
        }
    }
    if steps.is_empty() {
        steps.extend(empty);
    }
    Ok(steps)
}

/// A group that something follows becomes a chord with it.
pub(super) fn upgrade(steps: Vec<Signature>) -> Vec<Signature> {
    let mut upgraded: Vec<Signature> = Vec::with_capacity(steps.len());
    for step in steps.into_iter().rev() {
        let step = match upgraded.pop() {
            Some(next) if step.is_group() => super::chord_of(value(&step), next),
            Some(next) => {
                upgraded.push(next);
                step
            }
            None => step,
        };
        upgraded.push(step);
    }
    upgraded.reverse();
    upgraded
}

/// A chain again, of steps that were taken apart.
pub(super) fn rechain(signature: &mut Signature, steps: Vec<Signature>) {
    signature.kwargs = chain(steps).kwargs;
}
