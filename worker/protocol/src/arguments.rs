//! The arguments of a call, kept as JSON text until somebody knows their types.

use crate::Map;
use crate::json::{self, JsonError};
use crate::repr;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Positional and keyword arguments, as the JSON text they arrived in.
///
/// Text is not parsed into a tree: a task's own types read it directly, and a retry sends it on byte for byte.
#[derive(Clone, Debug)]
pub struct Arguments {
    positional: Box<RawValue>,
    keyword: Box<RawValue>,
}

impl Arguments {
    /// Serialises any sequence (a tuple, a slice, a `Vec`) and any map or struct.
    ///
    /// `()` stands for no positional, and for no keyword arguments.
    ///
    /// # Errors
    /// When a value has no JSON form (a map with keys that aren't strings), or isn't a sequence or map.
    pub fn new(positional: &impl Serialize, keyword: &impl Serialize) -> Result<Self, JsonError> {
        let positional = json::to_raw(positional)?;
        let keyword = json::to_raw(keyword)?;
        Self::from_raw(
            if positional.get() == "null" { empty("[]") } else { positional },
            if keyword.get() == "null" { empty("{}") } else { keyword },
        )
    }

    /// Arguments from JSON texts: an array and an object.
    ///
    /// # Errors
    /// When they are anything else.
    pub fn from_raw(positional: Box<RawValue>, keyword: Box<RawValue>) -> Result<Self, JsonError> {
        if !positional.get().starts_with('[') {
            return Err(JsonError::shape("positional arguments are not an array"));
        }
        if !keyword.get().starts_with('{') {
            return Err(JsonError::shape("keyword arguments are not an object"));
        }
        Ok(Self { positional, keyword })
    }

    pub(crate) fn from_optional_raw(
        positional: Option<Box<RawValue>>,
        keyword: Option<Box<RawValue>>,
    ) -> Result<Self, JsonError> {
        Self::from_raw(positional.unwrap_or_else(|| empty("[]")), keyword.unwrap_or_else(|| empty("{}")))
    }

    /// Arguments from JSON values, as signatures hold them.
    #[must_use]
    pub fn from_values(positional: &[Value], keyword: &Map) -> Self {
        let raw = |text: serde_json::Result<Box<RawValue>>| text.expect("JSON values always serialise");
        Self {
            positional: raw(serde_json::value::to_raw_value(positional)),
            keyword: raw(serde_json::value::to_raw_value(keyword)),
        }
    }

    /// The positional arguments as one JSON array.
    #[must_use]
    pub fn positional(&self) -> &RawValue {
        &self.positional
    }

    /// The keyword arguments as one JSON object.
    #[must_use]
    pub fn keyword(&self) -> &RawValue {
        &self.keyword
    }

    /// Each positional argument's text, in order.
    #[must_use]
    pub fn positional_items(&self) -> Vec<&RawValue> {
        serde_json::from_str(self.positional.get()).expect("checked to be a JSON array when it was made")
    }

    /// Each keyword argument's text by name.
    ///
    /// # Errors
    /// When a name isn't Unicode (half of a surrogate pair).
    pub fn keyword_items(&self) -> Result<BTreeMap<String, &RawValue>, JsonError> {
        Ok(serde_json::from_str(self.keyword.get())?)
    }

    /// Reads the positional arguments as a type, such as a tuple.
    ///
    /// # Errors
    /// When they don't fit the type.
    pub fn positional_as<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        Ok(serde_json::from_str(self.positional.get())?)
    }

    /// Reads the keyword arguments as a type, such as a struct.
    ///
    /// # Errors
    /// When they don't fit the type.
    pub fn keyword_as<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        Ok(serde_json::from_str(self.keyword.get())?)
    }

    /// Parses both into values, for looking at or changing them.
    ///
    /// # Errors
    /// When a number is beyond 64 bits, see [`json::parse`].
    pub fn to_values(&self) -> Result<(Vec<Value>, Map), JsonError> {
        Ok((json::parse(self.positional.get().as_bytes())?, json::parse(self.keyword.get().as_bytes())?))
    }

    /// The display form of the positional arguments that messages and events carry: `(1, 'two')`.
    #[must_use]
    pub fn positional_repr(&self) -> String {
        repr::tuple(&serde_json::from_str::<Vec<Value>>(self.positional.get()).unwrap_or_default())
    }

    /// The display form of the keyword arguments: `{'n': 1}`.
    #[must_use]
    pub fn keyword_repr(&self) -> String {
        repr::dict(&serde_json::from_str::<Map>(self.keyword.get()).unwrap_or_default())
    }
}

impl Default for Arguments {
    fn default() -> Self {
        Self { positional: empty("[]"), keyword: empty("{}") }
    }
}

impl PartialEq for Arguments {
    fn eq(&self, other: &Self) -> bool {
        self.positional.get() == other.positional.get() && self.keyword.get() == other.keyword.get()
    }
}

fn empty(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).expect("an empty array or object is JSON")
}
