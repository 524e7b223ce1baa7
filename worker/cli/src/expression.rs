//! Calls written down: `tasks.add(1, 2)`, or a signature as JSON.

use celery_client::Signature;
use celery_client::chain;
use celery_protocol::json;
use serde::Deserialize as _;
use serde_json::Value;

/// Reads a call: `name`, `name(1, "two", key=[3])`, several of them as a chain with ` | ` between them, or a signature of
/// any kind as a JSON object.
pub(crate) fn parse(text: &str) -> Result<Signature, String> {
    let text = text.trim();
    if text.starts_with('{') {
        return json::parse(text.as_bytes()).map_err(|error| format!("not a signature: {error}"));
    }
    let mut steps = Vec::new();
    let mut rest = text;
    loop {
        let (call, after) = call(rest)?;
        steps.push(call);
        rest = after.trim_start();
        match rest.strip_prefix('|') {
            Some(next) => rest = next.trim_start(),
            None if rest.is_empty() => break,
            None => return Err(format!("`{rest}` after the call")),
        }
    }
    match <[Signature; 1]>::try_from(steps) {
        Ok([only]) => Ok(only),
        Err(steps) => Ok(chain(steps)),
    }
}

/// Reads a signature from JSON: an object, or a text in the short form.
pub(crate) fn from_json(value: Value) -> Result<Signature, String> {
    match value {
        Value::String(text) => parse(&text),
        value => serde_json::from_value(value).map_err(|error| format!("not a signature: {error}")),
    }
}

/// Reads one call, and returns what comes after it.
fn call(text: &str) -> Result<(Signature, &str), String> {
    let end = text.find(['(', '|']).unwrap_or(text.len());
    let name = text[..end].trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(format!("`{name}` is not the name of a task; a call is written as `tasks.add(1, 2)`"));
    }
    let mut call = Signature::new(name);
    let Some(mut rest) = text[end..].strip_prefix('(') else { return Ok((call, &text[end..])) };
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(')') {
            return Ok((call, after));
        }
        let key = keyword(rest);
        let (value, after) = value(key.map_or(rest, |(_, after)| after))?;
        call = match key {
            Some((key, _)) => call.kwarg(key, value),
            None if !call.kwargs.is_empty() => {
                return Err(format!("`{value}` comes after a keyword argument"));
            }
            None => call.arg(value),
        };
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with(')') => {}
            None => return Err(format!("`,` or `)` is missing before `{rest}` in the call of `{name}`")),
        }
    }
}

/// `key=` in front of a value, and what comes after it.
fn keyword(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|character: char| !(character.is_alphanumeric() || character == '_'))?;
    let after = text[end..].trim_start().strip_prefix('=')?;
    (end > 0).then(|| (&text[..end], after))
}

/// A JSON value, and what comes after it.
fn value(text: &str) -> Result<(Value, &str), String> {
    if text.trim_start().is_empty() {
        return Err("`)` is missing".to_owned());
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    match Value::deserialize(&mut reader) {
        Ok(value) => {
            let (read, rest) = text.split_at(reader.into_iter::<Value>().byte_offset());
            json::refuse_large_integers(read.as_bytes())
                .map_err(|error| format!("`{}`: {error}", read.trim()))?;
            Ok((value, rest))
        }
        Err(error) => {
            let shown = text.trim_start();
            Err(format!(
                "`{shown}` does not begin with a JSON value: {error} (a text is written as \"text\")"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn calls_are_written_as_in_python_with_json_values() {
        let call = parse(r#"tasks.add(1, "two, (2)", [3], key={"a": null}, other = 4)"#).unwrap();
        assert_eq!(call.task, "tasks.add");
        assert_eq!(call.args, [json!(1), json!("two, (2)"), json!([3])]);
        assert_eq!(Value::Object(call.kwargs), json!({"key": {"a": null}, "other": 4}));
        assert_eq!(parse("tasks.none").unwrap(), Signature::new("tasks.none"));
        assert_eq!(parse(" tasks.none() ").unwrap(), Signature::new("tasks.none"));
        assert_eq!(parse("t(true)").unwrap().args, [json!(true)]);
    }

    #[test]
    fn steps_of_a_chain_have_a_bar_between_them() {
        let steps = parse("a(1) | b | c(2)").unwrap();
        assert_eq!(
            steps,
            chain([Signature::new("a").arg(1), Signature::new("b"), Signature::new("c").arg(2)])
        );
    }

    #[test]
    fn a_signature_may_be_given_as_celery_writes_it() {
        let call = parse(r#"{"task": "t", "args": [1], "options": {"queue": "red"}}"#).unwrap();
        assert_eq!(call, Signature::new("t").arg(1).queue("red"));
        assert_eq!(from_json(json!("t(1)")).unwrap(), Signature::new("t").arg(1));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("", "not the name of a task"),
            ("a b(1)", "not the name of a task"),
            ("a(1", "`,` or `)` is missing"),
            ("a(", "`)` is missing"),
            ("a(one)", "a text is written as"),
            ("a(k=1, 2)", "after a keyword argument"),
            ("a(1) b", "after the call"),
            ("a([1, 123456789012345678901])", "an integer is beyond 64 bits"),
            ("{}", "not a signature"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
