//! What commands print: tables and sentences for people, JSON for programs.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::failure::Failure;

/// A terminal that is narrower than this cuts the lines itself. Some say that they are 0 wide.
const NARROW: u16 = 60;

/// What stands for something that isn't known: never a zero.
pub(crate) const UNKNOWN: &str = "?";

/// Prints a JSON value, indented on a terminal, in one line for programs.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = if io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    line(&text.map_err(|error| Failure::other(error.to_string()))?)
}

/// Prints lines. A reader that has gone away (`| head`) ends the program quietly.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| Failure::other(error.to_string())),
    }
}

/// A table with a line for each row, as wide as the terminal allows.
pub(crate) fn table<R: IntoIterator<Item = String>>(
    header: &[&str],
    rows: impl IntoIterator<Item = R>,
) -> String {
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
pub(crate) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The time from one moment to another, in the one or two units that matter: `12s`, `3m`, `2h5m`, `4d`.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) if minutes < 10 && seconds % 60 > 0 => format!("{minutes}m{}s", seconds % 60),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) if hours < 10 && minutes % 60 > 0 => format!("{hours}h{}m", minutes % 60),
        (0, hours, _) => format!("{hours}h"),
        (days, _, _) => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_the_units_that_matter() {
        let ago = |seconds| age(Timestamp::UNIX_EPOCH, Timestamp::from_second(seconds).expect("a time"));
        let told = [-5, 0, 59, 60, 61, 600, 3600, 7500, 86_399, 864_000].map(ago);
        assert_eq!(told, ["0s", "0s", "59s", "1m", "1m1s", "10m", "1h", "2h5m", "23h", "10d"]);
    }
}
