//! The stock worker: everything that `soloist-worker` can do, with a few tasks to try it on.

mod tasks;

use std::process::ExitCode;

fn main() -> ExitCode {
    soloist_worker::main(tasks::register)
}
