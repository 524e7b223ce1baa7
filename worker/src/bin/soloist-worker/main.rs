//! The stock worker: everything that `soloist-worker` can do, with a few tasks to try it on.

use std::process::ExitCode;

// musl's own allocator is one for all threads, and gives memory back to the system and asks for it again with each task.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    soloist_worker::main(soloist_worker::sample_tasks)
}
