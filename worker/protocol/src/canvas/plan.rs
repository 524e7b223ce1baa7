//! What to publish for a canvas: a pure function from a signature to messages, chords to announce, and result handles.

use super::kind::{
    Header, Kind, add_callback, add_errback, flatten, rechain, size, splice, take, take_list, take_text,
    upgrade,
};
use super::value;
use crate::result::ResultTuple;
use crate::{Map, Signature};
use serde::Deserialize as _;
use serde_json::Value;

/// Why a canvas can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum CanvasError {
    /// A kind that Celery doesn't have.
    #[error("`{0}` is no kind of canvas")]
    Unknown(String),
    /// Members that aren't a list.
    #[error("`{key}` of `{canvas}` is not a list of signatures")]
    Members {
        /// Which canvas.
        canvas: String,
        /// Which of its arguments.
        key: String,
    },
    /// A member that isn't a signature.
    #[error("a member of `{canvas}` is not a signature")]
    Member {
        /// Which canvas.
        canvas: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A chord without a body.
    #[error("a chord has no body")]
    NoBody,
    /// A chain without steps.
    #[error("a chain has no steps")]
    EmptyChain,
    /// A callback of a group as a whole, which a chord is for.
    #[error("a group can't have a callback: a chord can")]
    LinkedGroup,
    /// Canvases within canvases beyond reason.
    #[error("canvases are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// Deeper nesting is a mistake or an attack. JSON that was parsed is less deep than that anyway.
const MAX_DEPTH: u32 = 64;

/// What to publish for a canvas.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Chords whose parts are among the calls: to be announced to the result store before anything is published.
    pub chords: Vec<ChordStart>,
    /// Plain tasks to publish, each with an id.
    pub calls: Vec<Signature>,
    /// Handle of the canvas's result: the last of a chain, the body of a chord, a group's members.
    pub result: ResultTuple,
}

/// A chord that begins.
#[derive(Clone, Debug, PartialEq)]
pub struct ChordStart {
    /// Id of the header's group.
    pub group_id: String,
    /// Number of results that the body waits for.
    pub size: u64,
    /// Handle of the header, where it has groups within: results are then collected along it.
    pub nested_header: Option<ResultTuple>,
}

/// Plans a signature of any kind, called with some arguments in front of its own.
///
/// The overrides are options that win over the signature's; a worker gives `root_id`, `parent_id`, and for a chain's
/// step the rest of the `chain`. New ids come from `new_id`; those that a signature has already are kept.
///
/// # Errors
/// When the canvas isn't well-formed.
pub fn plan(
    signature: Signature,
    incoming: &[Value],
    overrides: Map,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Plan, CanvasError> {
    let mut planner = Planner { new_id, calls: Vec::new(), chords: Vec::new(), depth: 0 };
    let result = planner.emit(signature, incoming, overrides)?;
    Ok(Plan { chords: planner.chords, calls: planner.calls, result })
}

struct Planner<'a> {
    new_id: &'a mut dyn FnMut() -> String,
    calls: Vec<Signature>,
    chords: Vec<ChordStart>,
    depth: u32,
}

/// What the last element of something is to be: all of its own that it has already is kept, but for the chord.
#[derive(Clone, Default)]
struct Place {
    task_id: Option<String>,
    group_id: Option<String>,
    group_index: Option<Value>,
    chord: Option<Value>,
}

impl Place {
    fn take(options: &mut Map) -> Self {
        Self {
            task_id: take_text(options, "task_id"),
            group_id: take_text(options, "group_id"),
            group_index: take(options, "group_index"),
            chord: take(options, "chord"),
        }
    }

    fn member(group_id: Option<&str>, index: usize) -> Self {
        let group_id = group_id.map(str::to_owned);
        Self { group_id, group_index: Some(index.into()), ..Self::default() }
    }

    fn give(self, options: &mut Map) {
        if let Some(group_id) = self.group_id
            && options.get("group_id").is_none_or(Value::is_null)
        {
            options.insert("group_id".to_owned(), group_id.into());
        }
        for (name, value) in [("group_index", self.group_index), ("chord", self.chord)] {
            if let Some(value) = value {
                options.insert(name.to_owned(), value);
            }
        }
    }
}

impl Planner<'_> {
    fn deeper<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, CanvasError>,
    ) -> Result<T, CanvasError> {
        if self.depth == MAX_DEPTH {
            return Err(CanvasError::TooDeep);
        }
        self.depth += 1;
        let result = step(self);
        self.depth -= 1;
        result
    }

    /// The id that an option has, or else the one given, or else a new one; the option has it afterwards.
    fn identify(&mut self, options: &mut Map, given: Option<String>) -> String {
        let id = take_text(options, "task_id").or(given).unwrap_or_else(|| (self.new_id)());
        options.insert("task_id".to_owned(), id.as_str().into());
        id
    }

    /// Plans the publishing of a signature.
    fn emit(
        &mut self,
        signature: Signature,
        incoming: &[Value],
        overrides: Map,
    ) -> Result<ResultTuple, CanvasError> {
        self.deeper(|planner| match signature.kind()? {
            Kind::Task => Ok(planner.emit_task(signature, incoming, overrides)),
            Kind::Chain(tasks) => planner.emit_chain(signature, tasks, incoming, overrides),
            Kind::Group(members) => planner.emit_group(signature, members, incoming, overrides),
            Kind::Chord { header, body } => planner.emit_chord(signature, header, *body, incoming, overrides),
        })
    }

    fn emit_task(&mut self, mut signature: Signature, incoming: &[Value], overrides: Map) -> ResultTuple {
        if !signature.immutable {
            signature.args.splice(0..0, incoming.iter().cloned());
        }
        let mut signature = signature.with_options(overrides);
        let id = self.identify(&mut signature.options, None);
        self.calls.push(signature);
        ResultTuple::task(id)
    }

    fn emit_chain(
        &mut self,
        chain: Signature,
        tasks: Vec<Signature>,
        incoming: &[Value],
        overrides: Map,
    ) -> Result<ResultTuple, CanvasError> {
        let own_args = chain.args.clone();
        let incoming = if chain.immutable { &[] } else { incoming };
        let mut options = chain.with_options(overrides).options;
        let place = Place::take(&mut options);
        let errbacks = signatures(take_list(&mut options, "link_error"))?;
        let callbacks = signatures(take_list(&mut options, "link"))?;
        // What comes after this chain, reversed like the rest of it.
        let mut rest = take_list(&mut options, "chain");

        let (mut steps, result) = self.prepare(tasks, place)?;
        for errback in &errbacks {
            for step in &mut steps {
                add_errback(step, errback)?;
            }
        }
        for callback in &callbacks {
            if let Some(last) = steps.last_mut() {
                add_callback(last, callback)?;
            }
        }
        let mut steps = steps.into_iter();
        let first = steps.next().ok_or(CanvasError::EmptyChain)?;
        rest.extend(steps.rev().map(|step| value(&step)));
        if !rest.is_empty() {
            options.insert("chain".to_owned(), rest.into());
        }
        self.emit(first, &[incoming, &own_args].concat(), options)?;
        Ok(result)
    }

    /// The steps of a chain with ids, and the handle of the last, whose parents are those before it.
    fn prepare(
        &mut self,
        tasks: Vec<Signature>,
        place: Place,
    ) -> Result<(Vec<Signature>, ResultTuple), CanvasError> {
        let mut steps = upgrade(splice(tasks)?);
        let count = steps.len();
        let mut result: Option<ResultTuple> = None;
        for (index, step) in steps.iter_mut().enumerate() {
            let place = if index + 1 == count { place.clone() } else { Place::default() };
            let mut handle = self.freeze(step, place)?;
            if let Some(before) = result.take() {
                attach(&mut handle, before);
            }
            result = Some(handle);
        }
        Ok((steps, result.ok_or(CanvasError::EmptyChain)?))
    }

    fn emit_group(
        &mut self,
        group: Signature,
        members: Vec<Signature>,
        incoming: &[Value],
        overrides: Map,
    ) -> Result<ResultTuple, CanvasError> {
        let mut options = group.with_options(overrides).options;
        if !take_list(&mut options, "link").is_empty() {
            return Err(CanvasError::LinkedGroup);
        }
        let errbacks = signatures(take_list(&mut options, "link_error"))?;
        let Place { task_id, group_id: outer, chord, .. } = Place::take(&mut options);
        let group_id = task_id.unwrap_or_else(|| (self.new_id)());
        let mut members = flatten(members)?;
        for member in &mut members {
            for errback in &errbacks {
                add_errback(member, errback)?;
            }
        }
        // Members of a group that is part of a chord's header by itself belong to the header's group.
        let membership = outer.as_deref().unwrap_or(&group_id);
        if let Some(chord) = chord {
            if outer.is_none() {
                self.announce(&group_id, &members, None)?;
            }
            options.insert("chord".to_owned(), chord);
        }
        let handles = self.emit_members(members, membership, incoming, &options)?;
        Ok(ResultTuple::group(group_id, handles))
    }

    fn emit_members(
        &mut self,
        members: Vec<Signature>,
        group_id: &str,
        incoming: &[Value],
        options: &Map,
    ) -> Result<Vec<ResultTuple>, CanvasError> {
        let mut handles = Vec::with_capacity(members.len());
        for (index, mut member) in members.into_iter().enumerate() {
            handles.push(self.freeze(&mut member, Place::member(Some(group_id), index))?);
            self.emit(member, incoming, options.clone())?;
        }
        Ok(handles)
    }

    fn announce(
        &mut self,
        group_id: &str,
        members: &[Signature],
        nested_header: Option<ResultTuple>,
    ) -> Result<(), CanvasError> {
        let size = members.iter().map(size).sum::<Result<u64, _>>()?;
        self.chords.push(ChordStart { group_id: group_id.to_owned(), size, nested_header });
        Ok(())
    }

    fn emit_chord(
        &mut self,
        mut chord: Signature,
        header: Header,
        mut body: Signature,
        incoming: &[Value],
        mut overrides: Map,
    ) -> Result<ResultTuple, CanvasError> {
        let incoming = if chord.immutable { &[] } else { incoming };
        // A chord's own id is its header's, but one that it is called with is its body's.
        let own_id = take_text(&mut chord.options, "task_id");
        let body_id = take_text(&mut overrides, "task_id");
        let mut options = chord.with_options(overrides).options;
        for errback in signatures(take_list(&mut options, "link_error"))? {
            add_errback(&mut body, &errback)?;
        }
        for callback in signatures(take_list(&mut options, "link"))? {
            add_callback(&mut body, &callback)?;
        }

        let mut header_options = header.options;
        let header_id = take_text(&mut header_options, "task_id").or(own_id);
        let group_id = header_id.unwrap_or_else(|| (self.new_id)());
        for (name, value) in options.clone() {
            let is_for_the_body = ["chain", "chord", "group_id", "group_index"].contains(&name.as_str());
            if !is_for_the_body && !value.is_null() {
                header_options.insert(name, value);
            }
        }
        for name in ["parent_id", "countdown", "eta"] {
            take(&mut options, name);
        }
        let outer = options.get("group_id").and_then(Value::as_str).map(str::to_owned);
        body.options.extend(options.into_iter().filter(|(_, value)| !value.is_null()));
        let place = Place {
            task_id: body_id,
            group_id: Some(outer.unwrap_or_else(|| group_id.clone())),
            ..Place::default()
        };
        let mut result = self.freeze(&mut body, place)?;

        let members = flatten(header.members)?;
        if members.is_empty() {
            self.emit(body, &[Value::Array(Vec::new())], Map::new())?;
            attach(&mut result, ResultTuple::group(group_id, Vec::new()));
            return Ok(result);
        }
        let announced = self.chords.len();
        self.announce(&group_id, &members, None)?;
        header_options.insert("chord".to_owned(), value(&body));
        let handles = self.emit_members(members, &group_id, incoming, &header_options)?;
        let is_nested = handles.iter().any(|handle| handle.members.is_some());
        let header = ResultTuple::group(group_id, handles);
        if is_nested {
            self.chords[announced].nested_header = Some(header.clone());
        }
        attach(&mut result, header);
        Ok(result)
    }

    /// Gives ids to all that a signature will publish, sooner or later, and returns the handle of its result.
    fn freeze(&mut self, signature: &mut Signature, place: Place) -> Result<ResultTuple, CanvasError> {
        self.deeper(|planner| match signature.kind()? {
            Kind::Task => {
                let id = planner.identify(&mut signature.options, place.task_id.clone());
                place.give(&mut signature.options);
                Ok(ResultTuple::task(id))
            }
            Kind::Chain(tasks) => planner.freeze_chain(signature, tasks, place),
            Kind::Group(members) => planner.freeze_group(signature, members, place),
            Kind::Chord { header, body } => planner.freeze_chord(signature, header, *body, place),
        })
    }

    fn freeze_chain(
        &mut self,
        chain: &mut Signature,
        tasks: Vec<Signature>,
        place: Place,
    ) -> Result<ResultTuple, CanvasError> {
        let task_id = take_text(&mut chain.options, "task_id").or(place.task_id);
        let (steps, result) = self.prepare(tasks, Place { task_id, ..place })?;
        rechain(chain, steps);
        chain.options.insert("task_id".to_owned(), result.id.as_str().into());
        Ok(result)
    }

    fn freeze_group(
        &mut self,
        group: &mut Signature,
        members: Vec<Signature>,
        place: Place,
    ) -> Result<ResultTuple, CanvasError> {
        let group_id = self.identify(&mut group.options, None);
        let mut members = flatten(members)?;
        let mut handles = Vec::with_capacity(members.len());
        for (index, member) in members.iter_mut().enumerate() {
            let chord = place.chord.clone();
            let place = Place { chord, ..Place::member(place.group_id.as_deref(), index) };
            handles.push(self.freeze(member, place)?);
        }
        place.give(&mut group.options);
        group.set_members(members);
        Ok(ResultTuple::group(group_id, handles))
    }

    fn freeze_chord(
        &mut self,
        chord: &mut Signature,
        mut header: Header,
        mut body: Signature,
        place: Place,
    ) -> Result<ResultTuple, CanvasError> {
        let own_id = chord.take_option("task_id").and_then(|id| id.as_str().map(str::to_owned));
        let group_id = self.identify(&mut header.options, own_id);
        let mut members = flatten(header.members)?;
        let mut handles = Vec::with_capacity(members.len());
        for (index, member) in members.iter_mut().enumerate() {
            handles.push(self.freeze(member, Place::member(None, index))?);
        }
        let mut result = self.freeze(&mut body, place)?;
        attach(&mut result, ResultTuple::group(&*group_id, handles));
        chord.set_chord(Header { members, options: header.options }, &body);
        chord.options.insert("task_id".to_owned(), group_id.into());
        Ok(result)
    }
}

/// Makes a handle the parent of another's first ancestor.
fn attach(handle: &mut ResultTuple, parent: ResultTuple) {
    let mut first = handle;
    while let Some(ref mut before) = first.parent {
        first = before;
    }
    first.parent = Some(Box::new(parent));
}

fn signatures(list: Vec<Value>) -> Result<Vec<Signature>, CanvasError> {
    let read = |value: Value| {
        Signature::deserialize(value)
            .map_err(|source| CanvasError::Member { canvas: "link".to_owned(), source })
    };
    list.into_iter().map(read).collect()
}
