//! Values that JSON has no form for, tagged by Celery's serialiser with a Python type.
//!
//! As an argument or a result, each reads `{"__type__": …, "__value__": …}` and also the bare value, which Celery before
//! 5.3 wrote and any other producer would; it writes the tagged form.

use super::base64::{decode_base64, encode_base64};
use jiff::Timestamp;
use jiff::civil;
use serde::de::Error as _;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// A moment: Python's `datetime`, one without a time zone taken as UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DateTime(pub Timestamp);

/// A day: Python's `date`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Date(pub civil::Date);

/// A time of day: Python's `time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(pub civil::Time);

/// A decimal number as its digits: Python's `Decimal`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decimal(pub String);

/// A UUID as text with hyphens: Python's `UUID`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub String);

/// Bytes: Python's `bytes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
struct Hex {
    hex: String,
}

fn tagged<S: Serializer>(serializer: S, name: &str, value: &impl Serialize) -> Result<S::Ok, S::Error> {
    let mut tagged = serializer.serialize_struct("Tagged", 2)?;
    tagged.serialize_field("__type__", name)?;
    tagged.serialize_field("__value__", value)?;
    tagged.end()
}

/// The name of the type, if the value is tagged, and the value itself.
fn untagged<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(Option<String>, Value), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Tagged {
        #[serde(rename = "__type__")]
        name: String,
        #[serde(rename = "__value__")]
        value: Value,
    }
    let value = Value::deserialize(deserializer)?;
    Ok(match Tagged::deserialize(&value) {
        Ok(Tagged { name, value }) => (Some(name), value),
        Err(_) => (None, value),
    })
}

/// The text of a value of one of these types.
fn text<'de, D: Deserializer<'de>>(deserializer: D, names: &[&str]) -> Result<String, D::Error> {
    match untagged(deserializer)? {
        (None, Value::String(text)) => Ok(text),
        (Some(name), Value::String(text)) if names.contains(&name.as_str()) => Ok(text),
        (Some(name), _) => Err(D::Error::custom(format!("a {name} instead of a {}", names[0]))),
        (None, other) => Err(D::Error::custom(format!("{other} is no {}", names[0]))),
    }
}

impl Serialize for DateTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        tagged(serializer, "datetime", &crate::date::format(self.0))
    }
}

impl<'de> Deserialize<'de> for DateTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A date alone is its midnight.
        let text = text(deserializer, &["datetime", "date"])?;
        crate::date::parse(&text).map(Self).map_err(D::Error::custom)
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        tagged(serializer, "date", &self.0.to_string())
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, &["date"])?.parse().map(Self).map_err(D::Error::custom)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        tagged(serializer, "time", &self.0.to_string())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, &["time"])?.parse().map(Self).map_err(D::Error::custom)
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        tagged(serializer, "decimal", &self.0)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, &["decimal"]).map(Self)
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        tagged(serializer, "uuid", &Hex { hex: self.0.replace('-', "") })
    }
}

impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match untagged(deserializer)? {
            (Some(name), value) if name == "uuid" => Hex::deserialize(value).map_err(D::Error::custom)?.hex,
            (None, Value::String(text)) => text,
            (_, other) => return Err(D::Error::custom(format!("{other} is no uuid"))),
        };
        let hex: String = text.chars().filter(|character| *character != '-').collect();
        if hex.len() != 32 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(D::Error::custom(format!("`{text}` is no uuid")));
        }
        let (time, rest) = hex.split_at(8);
        let parts = [time, &rest[..4], &rest[4..8], &rest[8..12], &rest[12..]];
        Ok(Self(parts.join("-").to_ascii_lowercase()))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => tagged(serializer, "bytes", &text),
            Err(_) => tagged(serializer, "base64", &encode_base64(&self.0)),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match untagged(deserializer)? {
            (Some(name), Value::String(text)) if name == "base64" => {
                decode_base64(&text).map(Self).ok_or_else(|| D::Error::custom("damaged base64"))
            }
            (Some(name), Value::String(text)) if name == "bytes" => Ok(Self(text.into_bytes())),
            (None, Value::String(text)) => Ok(Self(text.into_bytes())),
            (_, other) => Err(D::Error::custom(format!("{other} are no bytes"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;
    use serde_json::json;
    use std::fmt::Debug;

    fn both_ways<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, tagged: Value) {
        assert_eq!(serde_json::to_value(value).unwrap(), tagged);
        assert_eq!(&serde_json::from_value::<T>(tagged).unwrap(), value);
    }

    #[test]
    fn each_type_is_written_as_celery_writes_it() {
        let moment = DateTime("2026-11-21T02:57:45.037066Z".parse().unwrap());
        both_ways(&moment, json!({"__type__": "datetime", "__value__": "2026-11-21T02:57:45.037066+00:00"}));
        both_ways(&Date(civil::date(2026, 11, 21)), json!({"__type__": "date", "__value__": "2026-11-21"}));
        let time = Time(civil::time(2, 57, 45, 5000));
        both_ways(&time, json!({"__type__": "time", "__value__": "02:57:45.000005"}));
        both_ways(&Decimal("1.10".into()), json!({"__type__": "decimal", "__value__": "1.10"}));
        let uuid = Uuid("6b1f6f5c-52a1-4d8d-8b6c-3f1f9d0d8a11".into());
        let hex = json!({"hex": "6b1f6f5c52a14d8d8b6c3f1f9d0d8a11"});
        both_ways(&uuid, json!({"__type__": "uuid", "__value__": hex}));
        both_ways(&Bytes(b"text".into()), json!({"__type__": "bytes", "__value__": "text"}));
        both_ways(&Bytes(b"\xff\x00\x80".into()), json!({"__type__": "base64", "__value__": "/wCA"}));
    }

    #[test]
    fn bare_values_are_read_too() {
        let read = |value| serde_json::from_value::<DateTime>(value).map(|moment| moment.0).ok();
        let midnight: Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        assert_eq!(read(json!("2026-11-21T00:00:00")), Some(midnight));
        assert_eq!(read(json!({"__type__": "date", "__value__": "2026-11-21"})), Some(midnight));
        assert_eq!(serde_json::from_value::<Bytes>(json!("text")).unwrap(), Bytes(b"text".into()));
        assert!(serde_json::from_value::<Uuid>(json!("6b1f6f5c-52a1-4d8d-8b6c-3f1f9d0d8a11")).is_ok());
    }

    #[test]
    fn another_type_is_an_error() {
        let decimal = json!({"__type__": "decimal", "__value__": "1"});
        let error = serde_json::from_value::<Date>(decimal).unwrap_err().to_string();
        assert_eq!(error, "a decimal instead of a date");
        assert!(serde_json::from_value::<Uuid>(json!("é".repeat(16))).is_err());
        assert!(serde_json::from_value::<Decimal>(json!(1)).is_err());
    }
}
