//! Shell patterns of names: nodes that a command is for, tasks that a route is for.

use regex_lite::Regex;

/// A shell pattern: `*`, `?`, `[abc]` and `[!abc]`.
///
/// ```
/// use celery_protocol::Glob;
///
/// assert!(Glob::new("reports.*").is_match("reports.monthly"));
/// ```
#[derive(Clone, Debug)]
pub struct Glob {
    pattern: String,
    /// None for a pattern that can't be read, which matches nothing.
    expression: Option<Regex>,
}

impl Glob {
    /// Reads a pattern. One that can't be read, such as `[z-a]`, matches nothing.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self { pattern: pattern.to_owned(), expression: Regex::new(&expression(pattern)).ok() }
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Whether a name matches as a whole.
    #[must_use]
    pub fn is_match(&self, name: &str) -> bool {
        self.expression.as_ref().is_some_and(|expression| expression.is_match(name))
    }
}

/// A shell pattern as a regular expression.
fn expression(pattern: &str) -> String {
    let mut expression = String::from("^(?s:");
    let mut rest = pattern.chars();
    while let Some(character) = rest.next() {
        match character {
            '*' => expression.push_str(".*"),
            '?' => expression.push('.'),
            '[' => match class(rest.as_str()) {
                Some((text, tail)) => {
                    expression.push_str(&text);
                    rest = tail.chars();
                }
                None => expression.push_str("\\["),
            },
            other => expression.push_str(&regex_lite::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    expression.push_str(")$");
    expression
}

/// The expression of a character class, and what follows it; none if the class is never closed.
fn class(text: &str) -> Option<(String, &str)> {
    let (negated, members) = match text.strip_prefix('!') {
        Some(members) => ("^", members),
        None => ("", text),
    };
    // A bracket right at the start is a member.
    let end = members.char_indices().skip(1).find(|(_, character)| *character == ']')?.0;
    let escaped =
        members[..end].replace('\\', "\\\\").replace('[', "\\[").replace(']', "\\]").replace('^', "\\^");
    Some((format!("[{negated}{escaped}]"), &members[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_the_shells() {
        for (glob, name, expected) in [
            ("celery@*", "celery@red-1", true),
            ("celery@red-?", "celery@red-1", true),
            ("celery@red-?", "celery@red-12", false),
            ("red", "celery@red", false),
            ("*@[a-c]1", "w@b1", true),
            ("*@[!a-c]1", "w@b1", false),
            ("a.c", "abc", false),
            ("a[", "a[", true),
            ("[]]", "]", true),
            ("[z-a]", "a", false),
        ] {
            assert_eq!(Glob::new(glob).is_match(name), expected, "{glob} {name}");
        }
    }
}
