//! Binding the arguments of a call to the parameters of a function, with Python's rules and messages.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::value::RawValue;

use super::{Context, Task, TaskError};

/// Something a task function may take as a parameter.
///
/// - any type that serde can deserialize: the next argument of the call, positional or by name.
///   An `Option` may be left out by the caller;
/// - [`Args<T>`]: all remaining arguments as one struct, whose field names are the parameter names and
///   whose `#[serde(default)]` fields may be left out;
/// - [`Context`]: the call's id, retries and so on. It takes no argument;
/// - [`State<T>`](super::State): something that tasks share. It takes no argument either.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be a parameter of a task",
    label = "not an argument",
    note = "a parameter is a type that implements `serde::Deserialize` and owns its data, `Args<T>`, or `Context`"
)]
pub trait Parameter: Sized {
    /// Takes this parameter's value out of the call.
    ///
    /// # Errors
    /// Celery's `TypeError`, naming the argument, if it is missing or of the wrong type.
    fn bind(binder: &mut Binder<'_>) -> Result<Self, TaskError>;
}

/// All remaining arguments of a call as one struct.
///
/// ```
/// use serde::Deserialize;
/// use soloist_worker::{Args, Task};
///
/// #[derive(Deserialize)]
/// struct Resize {
///     path: String,
///     #[serde(default)]
///     quality: Option<u8>,
/// }
/// fn resize(Args(resize): Args<Resize>) -> String {
///     resize.path
/// }
/// let task = Task::new("images.resize", resize);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Args<T>(pub T);

impl Parameter for Context {
    fn bind(binder: &mut Binder<'_>) -> Result<Self, TaskError> {
        Ok(binder.context.clone())
    }
}

impl<T: DeserializeOwned> Parameter for T {
    fn bind(binder: &mut Binder<'_>) -> Result<Self, TaskError> {
        binder.next()
    }
}

impl<T: DeserializeOwned> Parameter for Args<T> {
    fn bind(binder: &mut Binder<'_>) -> Result<Self, TaskError> {
        binder.rest().map(Args)
    }
}

/// Hands out the arguments of one call, parameter by parameter.
#[derive(Debug)]
pub struct Binder<'a> {
    task: &'a Task,
    context: &'a Context,
    given: usize,
    bound: usize,
    positional: std::vec::IntoIter<&'a RawValue>,
    keyword: BTreeMap<String, &'a RawValue>,
}

impl<'a> Binder<'a> {
    pub(super) fn new(context: &'a Context, task: &'a Task) -> Result<Self, TaskError> {
        let positional = context.request().arguments.positional_items();
        let keyword = context.request().arguments.keyword_items().map_err(|source| {
            TaskError::new("TypeError", format!("{}() can't take its keyword arguments: {source}", task.name))
        })?;
        Ok(Self {
            task,
            context,
            given: positional.len(),
            bound: 0,
            positional: positional.into_iter(),
            keyword,
        })
    }

    /// The call whose arguments these are.
    pub fn context(&self) -> &Context {
        self.context
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<T, TaskError> {
        let position = self.bound;
        self.bound += 1;
        let name = self.task.parameters.get(position).copied();
        let label =
            || name.map_or_else(|| format!("argument {}", position + 1), |name| format!("argument '{name}'"));
        let keyword = name.and_then(|name| self.keyword.remove(name));
        match (self.positional.next(), keyword) {
            (Some(_), Some(_)) => Err(self.type_error(format_args!("got multiple values for {}", label()))),
            (Some(value), None) | (None, Some(value)) => T::deserialize(value).map_err(|source| {
                self.type_error(format_args!("can't take {}: {}", label(), unplaced(&source)))
            }),
            (None, None) => T::deserialize(Absent).map_err(|_| {
                let which =
                    name.map_or_else(|| format!("number {}", position + 1), |name| format!("'{name}'"));
                self.type_error(format_args!("missing 1 required positional argument: {which}"))
            }),
        }
    }

    fn rest<T: DeserializeOwned>(&mut self) -> Result<T, TaskError> {
        let positional = std::mem::take(&mut self.positional);
        let keyword = std::mem::take(&mut self.keyword);
        T::deserialize(Rest { positional, keyword })
            .map_err(|Mismatch(text)| self.type_error(format_args!("{text}")))
    }

    /// Checks that every argument of the call found its parameter.
    pub(super) fn finish(self) -> Result<(), TaskError> {
        if self.positional.len() > 0 {
            let (takes, given) = (self.bound, self.given);
            let plural = if takes == 1 { "" } else { "s" };
            let were = if given == 1 { "was" } else { "were" };
            return Err(self.type_error(format_args!(
                "takes {takes} positional argument{plural} but {given} {were} given"
            )));
        }
        match self.keyword.keys().next() {
            None => Ok(()),
            Some(name) if self.task.parameters.is_empty() && self.bound > 0 => Err(self.type_error(
                format_args!("takes positional arguments only, but got the keyword argument '{name}'"),
            )),
            Some(name) => Err(self.type_error(format_args!("got an unexpected keyword argument '{name}'"))),
        }
    }

    fn type_error(&self, problem: fmt::Arguments<'_>) -> TaskError {
        TaskError::new("TypeError", format!("{}() {problem}", self.task.name))
    }
}

/// Stands for an argument that wasn't given: only what can do without a value accepts it.
struct Absent;

impl<'de> Deserializer<'de> for Absent {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("missing"))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_none()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Arguments that don't fit a struct; the text follows the task's name.
#[derive(Debug)]
struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(text.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("missing 1 required positional argument: '{field}'"))
    }
}

/// A call's arguments as the source of one value: a struct takes them by name and position, a list takes the
/// positional ones, a map the keyword ones.
struct Rest<'a> {
    positional: std::vec::IntoIter<&'a RawValue>,
    keyword: BTreeMap<String, &'a RawValue>,
}

impl<'a> Rest<'a> {
    fn keywords(self) -> Keywords<'a> {
        Keywords { entries: self.keyword.into_iter(), current: None }
    }
}

impl<'de, 'a: 'de> Deserializer<'de> for Rest<'a> {
    type Error = Mismatch;

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let (takes, given) = (fields.len(), self.positional.len());
        if given > takes {
            return Err(Mismatch(format!("takes {takes} positional arguments but {given} were given")));
        }
        for (field, value) in fields.iter().zip(self.positional.by_ref()) {
            if self.keyword.insert((*field).to_owned(), value).is_some() {
                return Err(Mismatch(format!("got multiple values for argument '{field}'")));
            }
        }
        if let Some(name) = self.keyword.keys().find(|name| !fields.contains(&name.as_str())) {
            return Err(Mismatch(format!("got an unexpected keyword argument '{name}'")));
        }
        visitor.visit_map(self.keywords())
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.positional.len() {
            0 => visitor.visit_map(self.keywords()),
            given => Err(Mismatch(format!("takes keyword arguments only but {given} positional were given"))),
        }
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.keyword.keys().next() {
            None => visitor.visit_seq(Positional { items: self.positional, index: 0 }),
            Some(name) => Err(Mismatch(format!(
                "takes positional arguments only, but got the keyword argument '{name}'"
            ))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct enum identifier ignored_any
    }
}

/// Positional arguments, named by their place in errors.
struct Positional<'a> {
    items: std::vec::IntoIter<&'a RawValue>,
    index: usize,
}

impl<'de, 'a: 'de> SeqAccess<'de> for Positional<'a> {
    type Error = Mismatch;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Mismatch> {
        let Some(value) = self.items.next() else { return Ok(None) };
        self.index += 1;
        seed.deserialize(value)
            .map(Some)
            .map_err(|source| Mismatch(format!("can't take argument {}: {}", self.index, unplaced(&source))))
    }
}

/// Keyword arguments, named in errors.
struct Keywords<'a> {
    entries: std::collections::btree_map::IntoIter<String, &'a RawValue>,
    current: Option<(String, &'a RawValue)>,
}

impl<'de, 'a: 'de> MapAccess<'de> for Keywords<'a> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        self.current = self.entries.next();
        match &self.current {
            Some((name, _)) => seed.deserialize(name.clone().into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let (name, value) =
            self.current.take().ok_or_else(|| Mismatch("a value comes after its name".into()))?;
        seed.deserialize(value)
            .map_err(|source| Mismatch(format!("can't take argument '{name}': {}", unplaced(&source))))
    }
}

/// The problem without the place in the JSON text, which the caller has never seen.
fn unplaced(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((problem, _)) => problem.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use celery_protocol::Arguments;
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;
    use crate::task::{TaskFunction, TaskResult};

    fn call(task: &Task, args: Value, kwargs: Value) -> TaskResult {
        let TaskFunction::Blocking(function) = &task.function else { panic!("not a plain function") };
        function(&Context::for_tests(Arguments::new(&args, &kwargs).unwrap()), task)
    }

    fn message(task: &Task, args: Value, kwargs: Value) -> String {
        call(task, args, kwargs).unwrap_err().to_string()
    }

    fn subtract() -> Task {
        Task::new("t.subtract", |x: i64, y: i64| x - y).parameters(["x", "y"])
    }

    #[test]
    fn takes_arguments_by_position_and_by_name() {
        let task = subtract();
        for (args, kwargs) in
            [(json!([5, 3]), json!({})), (json!([5]), json!({"y": 3})), (json!([]), json!({"y": 3, "x": 5}))]
        {
            assert_eq!(call(&task, args, kwargs).unwrap().get(), "2");
        }
    }

    #[test]
    fn explains_calls_that_do_not_fit() {
        let task = subtract();
        for (args, kwargs, expected) in [
            (json!([5]), json!({}), "missing 1 required positional argument: 'y'"),
            (json!([1, 2, 3]), json!({}), "takes 2 positional arguments but 3 were given"),
            (json!([1, 2]), json!({"z": 3}), "got an unexpected keyword argument 'z'"),
            (json!([1, 2]), json!({"x": 3}), "got multiple values for argument 'x'"),
            (json!([1, "a"]), json!({}), "can't take argument 'y': invalid type: string \"a\", expected i64"),
            (
                json!([1.5, 1]),
                json!({}),
                "can't take argument 'x': invalid type: floating point `1.5`, expected i64",
            ),
            (json!([1]), json!({"y": null}), "can't take argument 'y': invalid type: null, expected i64"),
        ] {
            assert_eq!(message(&task, args, kwargs), format!("TypeError: t.subtract() {expected}"));
        }
    }

    #[test]
    fn refuses_an_integer_that_does_not_fit() {
        let task = Task::new("t.same", |n: u64| n).parameters(["n"]);
        assert_eq!(
            message(&task, json!([-1]), json!({})),
            "TypeError: t.same() can't take argument 'n': invalid value: integer `-1`, expected u64"
        );
    }

    #[test]
    fn counts_the_parameters_of_a_task_without_names() {
        let task = Task::new("t.subtract", |x: i64, y: i64| x - y);
        assert_eq!(call(&task, json!([5, 3]), json!({})).unwrap().get(), "2");
        assert_eq!(
            message(&task, json!([5]), json!({})),
            "TypeError: t.subtract() missing 1 required positional argument: number 2"
        );
        assert_eq!(
            message(&task, json!([5, 3]), json!({"x": 5})),
            "TypeError: t.subtract() takes positional arguments only, but got the keyword argument 'x'"
        );
    }

    #[test]
    fn an_option_may_be_left_out() {
        let task = Task::new("t.greet", |name: String, title: Option<String>| {
            title.map_or(name.clone(), |title| format!("{title} {name}"))
        })
        .parameters(["name", "title"]);
        assert_eq!(call(&task, json!(["Ada"]), json!({})).unwrap().get(), "\"Ada\"");
        assert_eq!(call(&task, json!(["Ada"]), json!({"title": "Lady"})).unwrap().get(), "\"Lady Ada\"");
    }

    #[test]
    fn the_context_takes_no_argument() {
        let task =
            Task::new("t.id", |context: Context, n: i64| format!("{}{n}", context.id())).parameters(["n"]);
        assert_eq!(call(&task, json!([]), json!({"n": 1})).unwrap().get(), "\"id11\"");
    }

    #[derive(Deserialize)]
    struct Resize {
        path: String,
        width: u32,
        #[serde(default)]
        quality: u8,
    }

    fn resize() -> Task {
        Task::new("t.resize", |Args(resize): Args<Resize>| {
            format!("{}:{}:{}", resize.path, resize.width, resize.quality)
        })
    }

    #[test]
    fn fills_a_struct_by_position_name_and_default() {
        for (args, kwargs, expected) in [
            (json!(["a", 1]), json!({}), "\"a:1:0\""),
            (json!(["a"]), json!({"quality": 9, "width": 1}), "\"a:1:9\""),
            (json!([]), json!({"path": "a", "width": 1}), "\"a:1:0\""),
        ] {
            assert_eq!(call(&resize(), args, kwargs).unwrap().get(), expected);
        }
    }

    #[test]
    fn explains_calls_that_do_not_fit_a_struct() {
        for (args, kwargs, expected) in [
            (json!(["a"]), json!({}), "missing 1 required positional argument: 'width'"),
            (json!(["a", 1, 2, 3]), json!({}), "takes 3 positional arguments but 4 were given"),
            (json!(["a", 1]), json!({"path": "b"}), "got multiple values for argument 'path'"),
            (json!(["a", 1]), json!({"height": 1}), "got an unexpected keyword argument 'height'"),
            (
                json!(["a", "b"]),
                json!({}),
                "can't take argument 'width': invalid type: string \"b\", expected u32",
            ),
        ] {
            assert_eq!(message(&resize(), args, kwargs), format!("TypeError: t.resize() {expected}"));
        }
    }

    #[test]
    fn a_list_takes_any_number_of_arguments() {
        let task = Task::new("t.sum", |Args(numbers): Args<Vec<i64>>| numbers.iter().sum::<i64>());
        assert_eq!(call(&task, json!([1, 2, 3]), json!({})).unwrap().get(), "6");
        assert_eq!(
            message(&task, json!([1, "a"]), json!({})),
            "TypeError: t.sum() can't take argument 2: invalid type: string \"a\", expected i64"
        );
    }

    #[test]
    fn a_function_without_parameters_takes_nothing() {
        let task = Task::new("t.nothing", || ());
        assert_eq!(call(&task, json!([]), json!({})).unwrap().get(), "null");
        assert_eq!(
            message(&task, json!([1]), json!({})),
            "TypeError: t.nothing() takes 0 positional arguments but 1 was given"
        );
    }
}
