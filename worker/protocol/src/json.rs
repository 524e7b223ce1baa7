//! JSON as Celery's serialiser speaks it: numbers of any size, and values tagged with a Python type.

mod base64;
mod typed;

pub use base64::decode_base64;
pub use typed::{Bytes, Date, DateTime, Decimal, Time, Uuid};

use serde::de::DeserializeOwned;

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
    use serde_json::Value;

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
