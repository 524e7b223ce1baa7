//! What commands print, and ask.

use crate::failure::Failure;
use serde::Serialize;
use serde_json::Value;
use std::io::{self, IsTerminal};

/// Prints a JSON value.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    Ok(soloist_terminal::json(value)?)
}

/// Prints a line.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    Ok(soloist_terminal::line(text)?)
}

/// Prints a table.
pub(crate) fn table<R: IntoIterator<Item = String>>(
    header: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> Result<(), Failure> {
    line(&soloist_terminal::table(header, rows))
}

/// A value in a cell: texts as they are, nothing for null, JSON for the rest.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Asks a question on the terminal. Without one, or without a yes, the answer is no.
pub(crate) fn confirm(question: &str) -> Result<(), Failure> {
    let refused = || Failure::usage("not done").hint("--yes answers the question without a terminal");
    if !io::stdin().is_terminal() {
        return Err(refused());
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Failure::other(&error))?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") { Ok(()) } else { Err(refused()) }
}
