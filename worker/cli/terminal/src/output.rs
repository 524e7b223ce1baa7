//! What commands print: tables and sentences for people, JSON for programs.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// A terminal that is narrower than this cuts the lines itself. Some say that they are 0 wide.
const NARROW: u16 = 60;

/// Prints a JSON value, indented on a terminal, in one line for programs.
///
/// # Errors
/// When it can't be written, as [`line()`].
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = if io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    line(&text.map_err(|error| Failure::other(error.to_string()))?)
}

/// Prints lines. A reader that has gone away (`| head`) ends the program quietly, with exit code 0.
///
/// # Errors
/// When standard output can't be written for another reason, such as a full disk.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| Failure::other(error.to_string())),
    }
}

/// A table with a line for each row, as wide as the terminal allows.
pub fn table<R: IntoIterator<Item = String>>(header: &[&str], rows: impl IntoIterator<Item = R>) -> String {
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
    lines.join("\n")
}

/// `1 worker`, `2 workers`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_row_without_blanks_around_it() {
        let rows = [["emails", "12"], ["reports", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&["NAME", "READY"], rows), "NAME     READY\nemails   12\nreports");
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|number| count(number, "worker")), ["0 workers", "1 worker", "2 workers"]);
    }
}
