//! The stock worker: everything that `soloist-worker` can do, with a few tasks to try it on.

use std::process::ExitCode;

fn main() -> ExitCode {
    soloist_worker::main(soloist_worker::sample_tasks)
}
