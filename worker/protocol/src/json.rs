//! JSON as Celery's serialiser speaks it: numbers of any size, and values tagged with a Python type.

mod base64;
mod finite;
mod typed;

pub use base64::decode_base64;
pub use typed::{Bytes, Date, DateTime, Decimal, Time, Uuid};

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;
use serde_json::value::RawValue;

/// Why a text could not be read as the JSON that was expected.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON (Python's `NaN` and `Infinity` included), or JSON of another type.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Python's integers have no bound; one beyond 64 bits would lose digits here.
    #[error("an integer is beyond 64 bits")]
    IntegerTooLarge,
    /// JSON, but not the array or object that belongs in this place.
    #[error("{0}")]
    Shape(&'static str),
}

impl JsonError {
    pub(crate) fn shape(message: &'static str) -> Self {
        Self::Shape(message)
    }
}

/// Parses a JSON text, refusing integers that would lose digits.
///
/// # Errors
/// When the text isn't JSON of this type, or holds an integer beyond 64 bits.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    refuse_large_integers(text)?;
    Ok(serde_json::from_slice(text)?)
}

/// The JSON text of a value.
///
/// # Errors
/// When it has none: a map with keys that aren't strings, or a float that JSON has no number for (`serde_json` would write `null`).
pub fn to_raw(value: &(impl Serialize + ?Sized)) -> serde_json::Result<Box<RawValue>> {
    let raw = serde_json::value::to_raw_value(value)?;
    if raw.get().contains("null") {
        finite::check(value).map_err(serde_json::Error::custom)?;
    }
    Ok(raw)
}

/// A value as JSON.
///
/// # Errors
/// As [`to_raw`].
pub(crate) fn to_value(value: &(impl Serialize + ?Sized)) -> serde_json::Result<Value> {
    finite::check(value).map_err(serde_json::Error::custom)?;
    serde_json::to_value(value)
}

/// Refuses a text with an integer that neither `i64` nor `u64` holds.
///
/// # Errors
/// [`JsonError::IntegerTooLarge`].
pub fn refuse_large_integers(text: &[u8]) -> Result<(), JsonError> {
    let mut index = 0;
    while let Some(&byte) = text.get(index) {
        match byte {
            b'"' => index = end_of_string(text, index + 1),
            b'-' | b'0'..=b'9' => {
                let rest = &text[index..];
                let length = rest.iter().take_while(|byte| is_number(**byte)).count();
                if is_large_integer(&rest[..length]) {
                    return Err(JsonError::IntegerTooLarge);
                }
                index += length;
            }
            _ => index += 1,
        }
    }
    Ok(())
}

fn end_of_string(text: &[u8], mut index: usize) -> usize {
    while let Some(&byte) = text.get(index) {
        match byte {
            b'\\' => index += 2,
            b'"' => return index + 1,
            _ => index += 1,
        }
    }
    index
}

fn is_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}

/// Nineteen digits always fit; from twenty on it takes a real parse.
fn is_large_integer(number: &[u8]) -> bool {
    number.len() > 19
        && number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-')
        && std::str::from_utf8(number)
            .is_ok_and(|text| text.parse::<i64>().is_err() && text.parse::<u64>().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_64_bits_are_refused_rather_than_rounded() {
        for text in ["18446744073709551615", "-9223372036854775808", "[1e400000000000000000000]"] {
            assert!(refuse_large_integers(text.as_bytes()).is_ok(), "{text}");
        }
        for text in
            ["18446744073709551616", "[1, -9223372036854775809]", "{\"a\": 123456789012345678901234567890}"]
        {
            assert!(matches!(parse::<Value>(text.as_bytes()), Err(JsonError::IntegerTooLarge)), "{text}");
        }
    }

    #[test]
    fn floats_that_json_has_no_number_for_are_refused_rather_than_null() {
        #[derive(Serialize)]
        enum Shape {
            Circle { radius: f32 },
            Line(f64, Option<f64>),
        }
        let infinite = f64::INFINITY;
        assert_eq!(to_raw(&infinite).unwrap_err().to_string(), "JSON has no number for inf");
        assert!(to_raw(&vec![1.0, f64::NAN]).unwrap_err().to_string().contains("NaN"));
        assert!(to_raw(&Shape::Circle { radius: f32::NEG_INFINITY }).is_err());
        assert!(to_raw(&[("a", Shape::Line(1.0, Some(infinite)))]).is_err());
        assert!(to_raw(&std::collections::BTreeMap::from([("a", (1, Some(infinite)))])).is_err());
        let fine = (Shape::Line(1.0, None), "null", Option::<f64>::None, serde_json::json!({"a": null}));
        assert_eq!(to_raw(&fine).unwrap().get(), r#"[{"Line":[1.0,null]},"null",null,{"a":null}]"#);
    }

    #[test]
    fn floats_keep_their_last_digit() {
        for text in ["0.0055062999999999996", "5e-324", "1.7976931348623157e308"] {
            assert_eq!(parse::<f64>(text.as_bytes()).unwrap(), text.parse::<f64>().unwrap(), "{text}");
        }
    }

    #[test]
    fn digits_in_strings_and_fractions_are_no_integers() {
        let text =
            br#"["123456789012345678901234567890 \" 123456789012345678901", 0.12345678901234567890123, 1.5]"#;
        assert!(parse::<Value>(text).is_ok());
    }

    #[test]
    fn python_constants_outside_of_json_are_errors() {
        for text in ["NaN", "[Infinity]", "-Infinity", r#""\ud800""#] {
            assert!(parse::<Value>(text.as_bytes()).is_err(), "{text}");
        }
    }
}
