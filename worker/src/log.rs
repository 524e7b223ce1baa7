//! The log: one line an event, to standard error.

use std::io;

use tracing_subscriber::{
    filter::{LevelFilter, ParseError, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Libraries whose own lines say nothing that ours don't say better.
const QUIET: [&str; 1] = ["lapin"];

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter can't be read.
    #[error("read the log filter: {0}")]
    Filter(#[from] ParseError),
    /// The program has a log already.
    #[error("start the log: {0}")]
    Started(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts the log.
pub(crate) fn start(filter: &str, format: LogFormat) -> Result<(), LogError> {
    // Not `EnvFilter`, which knows spans and their fields, too: it brings regular expressions, and 0.4 MB of program with them.
    let mut directives: Targets = filter.parse()?;
    for library in QUIET {
        if !filter.contains(library) {
            directives = directives.with_target(library, LevelFilter::OFF);
        }
    }
    let registry = tracing_subscriber::registry().with(directives);
    match format {
        LogFormat::Text => registry.with(fmt::layer().with_writer(io::stderr).with_ansi(false)).try_init()?,
        LogFormat::Json => {
            let json =
                fmt::layer().json().flatten_event(true).with_current_span(false).with_writer(io::stderr);
            registry.with(json).try_init()?;
        }
    }
    Ok(())
}
