//! Python's display form of values, which Celery puts into messages, events and logs: `(1, 'two', None)`.
//!
//! For people to read; nothing parses it.

use crate::Map;
use serde_json::Value;
use std::fmt::Write as _;

/// Longest display form in characters, as Celery cuts them.
pub const LIMIT: usize = 1024;

/// The display form of any value.
#[must_use]
pub fn value(value: &Value) -> String {
    cut(|out| write_value(out, value))
}

/// The display form of positional arguments: `(1, 2)`, `(1,)`, `()`.
#[must_use]
pub fn tuple(items: &[Value]) -> String {
    cut(|out| {
        out.push('(')?;
        write_items(out, items)?;
        out.push_str(if items.len() == 1 { ",)" } else { ")" })
    })
}

/// The display form of keyword arguments: `{'n': 1}`.
#[must_use]
pub fn dict(items: &Map) -> String {
    cut(|out| write_dict(out, items))
}

/// The display form of a text: `'two'`.
#[must_use]
pub fn string(text: &str) -> String {
    cut(|out| write_string(out, text))
}

/// Text that refuses to grow beyond the limit, so that a huge value costs no more than its first characters.
struct Cut {
    text: String,
    left: usize,
}

/// The limit was reached.
struct Full;

impl Cut {
    fn push(&mut self, character: char) -> Result<(), Full> {
        self.left = self.left.checked_sub(1).ok_or(Full)?;
        self.text.push(character);
        Ok(())
    }

    fn push_str(&mut self, text: &str) -> Result<(), Full> {
        text.chars().try_for_each(|character| self.push(character))
    }
}

fn cut(write: impl FnOnce(&mut Cut) -> Result<(), Full>) -> String {
    const DOTS: &str = "...";
    let mut out = Cut { text: String::new(), left: LIMIT };
    if write(&mut out).is_err() {
        for _ in DOTS.chars() {
            out.text.pop();
        }
        out.text.push_str(DOTS);
    }
    out.text
}

fn write_value(out: &mut Cut, value: &Value) -> Result<(), Full> {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Number(number) if number.is_f64() => out.push_str(&float(number.as_f64().unwrap_or_default())),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[')?;
            write_items(out, items)?;
            out.push(']')
        }
        Value::Object(items) => write_dict(out, items),
    }
}

fn write_items(out: &mut Cut, items: &[Value]) -> Result<(), Full> {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ")?;
        }
        write_value(out, item)?;
    }
    Ok(())
}

fn write_dict(out: &mut Cut, items: &Map) -> Result<(), Full> {
    out.push('{')?;
    for (index, (key, item)) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ")?;
        }
        write_string(out, key)?;
        out.push_str(": ")?;
        write_value(out, item)?;
    }
    out.push('}')
}

fn write_string(out: &mut Cut, text: &str) -> Result<(), Full> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote)?;
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\")?,
            '\n' => out.push_str("\\n")?,
            '\r' => out.push_str("\\r")?,
            '\t' => out.push_str("\\t")?,
            _ if character == quote => {
                out.push('\\')?;
                out.push(quote)?;
            }
            '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' => {
                out.push_str(&format!("\\x{:02x}", u32::from(character)))?;
            }
            _ => out.push(character)?,
        }
    }
    out.push(quote)
}

/// The shortest digits that read back as the same number, in Python's notation: `1e+16` and `1e-05` rather than
/// `1e16` and `0.00001`.
fn float(number: f64) -> String {
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    let mut text = digits.to_owned();
    let sign = if exponent < 0 { '-' } else { '+' };
    let _ = write!(text, "e{sign}{:02}", exponent.abs());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shows_values_as_python_does() {
        for (json, python) in [
            (json!(null), "None"),
            (json!(true), "True"),
            (json!([1, -2.5, "two"]), "[1, -2.5, 'two']"),
            (json!({"a": [], "b": {"c": false}}), "{'a': [], 'b': {'c': False}}"),
            (json!("it's"), "\"it's\""),
            (json!("it's \"so\""), r#"'it\'s "so"'"#),
            (json!("tab\t\u{1}\u{e9}"), r"'tab\t\x01é'"),
            (json!(1.0), "1.0"),
            (json!(1e16), "1e+16"),
            (json!(1.5e-5), "1.5e-05"),
            (json!(0.0001), "0.0001"),
            (json!(123_456_789.125), "123456789.125"),
        ] {
            assert_eq!(value(&json), python);
        }
    }

    #[test]
    fn a_tuple_of_one_keeps_its_comma() {
        assert_eq!(tuple(&[]), "()");
        assert_eq!(tuple(&[json!(1)]), "(1,)");
        assert_eq!(tuple(&[json!(1), json!("x")]), "(1, 'x')");
    }

    #[test]
    fn a_long_value_is_cut_and_says_so() {
        let text = string(&"x".repeat(5000));
        assert_eq!(text.chars().count(), LIMIT);
        assert!(text.ends_with("x..."));
        assert_eq!(string(&"x".repeat(LIMIT - 2)).len(), LIMIT);
    }
}
