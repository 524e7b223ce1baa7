//! The command line.

use crate::failure::Failure;
use crate::{call, control, events, inspect, queues, result};
use celery_client::{Builder, Celery, SetupError};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use soloist_worker::Addresses;
use std::time::Duration;

/// What `--help` ends with; docs/cli.md has it too.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something else went wrong
  2  wrong usage, or a question that was not answered with yes
  3  the broker or the result store can't be reached, or refuses
  4  no answer in time: the task has not ended, or no worker has answered
  5  the task failed or was revoked, or a worker answered with an error";

/// Calls Celery tasks, asks and tells workers, and looks after queues.
#[derive(Debug, Parser)]
#[command(name = "soloist", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Call a task.
    Call(call::Call),
    /// Call tasks at the same time.
    Group(call::Canvas),
    /// Call tasks one after the other, each with the result of the one before.
    Chain(call::Canvas),
    /// Call tasks at the same time, and then one more with the list of their results.
    Chord(call::Chord),
    /// Show, or wait for, what came of tasks.
    Result(result::ResultArgs),
    /// Ask workers what they do.
    Inspect(inspect::Inspect),
    /// Tell workers what to do.
    Control(control::ControlArgs),
    /// Delete all messages that wait in queues.
    Purge(queues::Purge),
    /// Move messages from one queue to another, such as dead letters back to where they came from.
    Move(queues::Move),
    /// Watch what workers tell of themselves and their tasks.
    Events(events::EventsArgs),
    /// Run the stock worker, with a few sample tasks.
    Worker(Box<soloist_worker::Options>),
    /// Print the completions for a shell: `source <(soloist completion bash)`.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// The command line as clap knows it.
    pub(crate) fn definition() -> clap::Command {
        // So that they may also stand after the order, where people put them.
        Self::command().mut_subcommand("control", |control| control.mut_args(|arg| arg.global(true)))
    }

    /// What was asked for; ends the program with a message if it makes no sense.
    pub(crate) fn read() -> Self {
        Self::from_arg_matches(&Self::definition().get_matches()).unwrap_or_else(|error| error.exit())
    }
}

/// How a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: JSON.
    Json,
}

/// What all commands that talk to the broker take.
#[derive(Debug, Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) addresses: Addresses,

    /// Format of the output.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
}

impl Common {
    /// A client's settings as the flags say.
    pub(crate) fn builder(&self) -> Result<Builder, Failure> {
        let builder = Celery::builder(self.addresses.broker()?).name("soloist");
        Ok(match self.addresses.results()? {
            Some(results) => builder.results(results),
            None => builder,
        })
    }

    /// Connects as the settings say.
    pub(crate) async fn connect(&self, settings: Builder) -> Result<Celery, Failure> {
        match settings.connect().await {
            Err(error @ SetupError::Results(_)) => {
                let failure = Failure::from(error);
                Err(match self.addresses.results()? {
                    Some(address) => failure.at(&address),
                    None => failure,
                })
            }
            connected => Ok(connected?),
        }
    }

    /// A client for commands that don't look at results.
    pub(crate) async fn control(&self) -> Result<Celery, Failure> {
        Ok(Celery::builder(self.addresses.broker()?).name("soloist").connect().await?)
    }

    pub(crate) fn is_json(&self) -> bool {
        self.output == Format::Json
    }
}

/// Which workers are meant, and how long they may take to answer.
#[derive(Debug, Args)]
pub(crate) struct Workers {
    /// Only workers with these node names, with commas between them.
    #[arg(short, long, value_delimiter = ',', value_name = "NODES")]
    pub(crate) destination: Vec<String>,

    /// Only workers whose node names match a shell pattern, such as `celery@emails-*`.
    #[arg(long, value_name = "GLOB", conflicts_with = "destination")]
    pub(crate) pattern: Option<String>,

    /// Seconds to wait for answers. With --destination it ends when all have answered.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

impl Workers {
    pub(crate) fn control(&self, celery: &Celery) -> celery_client::Control {
        let mut control = celery.control().timeout(self.timeout);
        if !self.destination.is_empty() {
            control = control.to(&self.destination);
        }
        match &self.pattern {
            Some(pattern) => control.matching(pattern),
            None => control,
        }
    }

    /// Whether all workers are meant.
    pub(crate) fn is_everyone(&self) -> bool {
        self.destination.is_empty() && self.pattern.is_none()
    }

    /// What to say when nobody has answered.
    pub(crate) fn silence(&self) -> Failure {
        let who = match (&*self.destination, &self.pattern) {
            ([], None) => "no worker has".to_owned(),
            ([], Some(pattern)) => format!("no worker that matches `{pattern}` has"),
            (nodes, _) => format!("none of {} has", nodes.join(", ")),
        };
        let after = self.timeout.as_secs_f64();
        Failure::no_answer(format!("{who} answered within {after} s"))
            .hint("is one running on this virtual host of the broker? Give it longer with --timeout SECONDS")
    }
}

/// A time in seconds, with a fraction if need be.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::definition().debug_assert();
    }

    /// Run with `UPDATE_DOCS=1` to write it.
    #[test]
    fn the_documentation_has_the_help() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- soloist --help -->\n```text\n", "```\n<!-- end -->");
        let (before, rest) = text.split_once(begin).unwrap();
        let (_, after) = rest.split_once(end).unwrap();
        let help = Cli::definition().term_width(110).render_help().to_string();
        let expected = format!("{before}{begin}{help}{end}{after}");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &expected).unwrap();
        }
        assert!(text == expected || std::env::var_os("UPDATE_DOCS").is_some(), "docs/cli.md is out of date");
    }
}
