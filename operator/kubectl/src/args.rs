//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::EXIT_CODES;

/// Tells how TaskQueues are, why they have so many workers, and what is wrong with them.
#[derive(Debug, Parser)]
#[command(name = "kubectl-soloist", bin_name = "kubectl soloist", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster, and where in it.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// Context of the kubeconfig. The current one if not given.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// The kubeconfig. $KUBECONFIG or ~/.kube/config if not given.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Namespace of the TaskQueues. That of the context if not given.
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,

    /// Namespace of the operator. It is looked for if not given.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) operator_namespace: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How TaskQueues are; with a NAME, all of one: its workers, its conditions, what happened last.
    Status(Which),
    /// Why a TaskQueue has so many workers, what bounds the number, and what would change it.
    Why(One),
    /// Hold the number of workers of a TaskQueue.
    Pause(Name),
    /// Let the number of workers of a TaskQueue follow its backlog again.
    Resume(Name),
    /// Replace a worker pod by another, after it has finished its task.
    Drain(Drain),
    /// What is wrong with the operator and the TaskQueues, how that is known, and what to type.
    Doctor(Which),
    /// Print the completions of `kubectl-soloist` for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// One TaskQueue, those of a namespace, or all.
#[derive(Args, Debug)]
pub(crate) struct Which {
    /// Name of the TaskQueue. All of the namespace if not given.
    pub(crate) name: Option<String>,

    /// The TaskQueues of all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["name", "namespace"])]
    pub(crate) all_namespaces: bool,

    #[command(flatten)]
    pub(crate) output: Output,
}

/// One TaskQueue, and how to answer.
#[derive(Args, Debug)]
pub(crate) struct One {
    /// Name of the TaskQueue.
    pub(crate) name: String,

    #[command(flatten)]
    pub(crate) output: Output,
}

/// One TaskQueue.
#[derive(Args, Debug)]
pub(crate) struct Name {
    /// Name of the TaskQueue.
    pub(crate) name: String,
}

/// A worker that is to go.
#[derive(Args, Debug)]
pub(crate) struct Drain {
    /// Name of the worker's pod.
    pub(crate) pod: String,

    /// Seconds that its task may still take. After that the pod is killed, and another worker runs the task again. The default is a week.
    #[arg(long, value_name = "SECONDS", default_value_t = 604_800)]
    pub(crate) grace_period: u32,

    /// Seconds to wait here for it to be gone; 0 doesn't wait. It goes on draining when the time is over.
    #[arg(long, value_name = "SECONDS", default_value_t = 604_800)]
    pub(crate) timeout: u32,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Format of the output.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// How a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: JSON.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
