//! What commands print: tables for people, JSON for programs.

use crate::failure::Failure;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;
use std::io::{self, IsTerminal, Write};

/// A terminal that is narrower than this cuts the lines itself. Some say that they are 0 wide.
const NARROW: u16 = 60;

/// Prints a JSON value, indented on a terminal, in one line for programs.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = if io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    line(&text.map_err(|error| Failure::other(&error))?)
}

/// Prints a line. A reader that has gone away (`| head`) ends the program quietly.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| Failure::other(&error)),
    }
}

/// Prints a table with a line for each row, as wide as the terminal allows.
pub(crate) fn table<R: IntoIterator<Item = String>>(
    header: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().copied());
    // Cells are cut into lines only where people read them, and where that leaves something to read.
    let is_wide = io::stdout().is_terminal() && table.width().is_some_and(|width| width >= NARROW);
    table.set_content_arrangement(if is_wide {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table.add_rows(rows);
    let text = table.to_string();
    let lines: Vec<&str> =
        text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    line(&lines.join("\n"))
}

/// `1 message`, `2 messages`.
pub(crate) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
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
