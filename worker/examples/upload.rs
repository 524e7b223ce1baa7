//! What is done with an uploaded file: a scan for viruses and a look at its contents, at the same time by two workers, and then a
//! report of both. `upload.py` calls it.
//!
//! `cargo run --example upload -- --queues uploads --results redis://localhost --node-name celery@one`, and again as `celery@two`, on
//! a machine that has the files.

use std::{fs, path::PathBuf, process::ExitCode, thread, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use soloist_worker::{Context, Task, TaskError};

/// What scanners take for a virus, for tests: the beginning of the EICAR file.
const VIRUS: &[u8] = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR";
/// As long as the real thing might take.
const WORK: Duration = Duration::from_millis(500);

/// One of the two findings, and when and by whom it was made.
#[derive(Deserialize, Serialize)]
struct Step<T> {
    found: T,
    worker: String,
    began: f64,
    ended: f64,
}

#[derive(Deserialize, Serialize)]
struct Metadata {
    bytes: u64,
    lines: usize,
}

#[derive(Serialize)]
struct Report {
    is_clean: bool,
    metadata: Metadata,
    workers: [String; 2],
    /// Seconds during which both steps were under way.
    overlap: f64,
}

fn step<T>(context: &Context, work: impl FnOnce() -> Result<T, TaskError>) -> Result<Step<T>, TaskError> {
    let now = || Timestamp::now().as_duration().as_secs_f64();
    let began = now();
    thread::sleep(WORK);
    Ok(Step { found: work()?, worker: context.hostname().to_owned(), began, ended: now() })
}

fn scan(context: Context, path: PathBuf) -> Result<Step<bool>, TaskError> {
    step(&context, || Ok(!fs::read(&path)?.windows(VIRUS.len()).any(|window| window == VIRUS)))
}

fn metadata(context: Context, path: PathBuf) -> Result<Step<Metadata>, TaskError> {
    step(&context, || {
        let lines = fs::read(&path)?.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        Ok(Metadata { bytes: fs::metadata(&path)?.len(), lines })
    })
}

/// Takes the results of both steps, in the order in which the chord names them.
fn report((scan, metadata): (Step<bool>, Step<Metadata>)) -> Report {
    Report {
        is_clean: scan.found,
        overlap: scan.ended.min(metadata.ended) - scan.began.max(metadata.began),
        workers: [scan.worker, metadata.worker],
        metadata: metadata.found,
    }
}

fn main() -> ExitCode {
    soloist_worker::main(|worker| {
        worker
            .register(Task::new("upload.scan", scan).parameters(["path"]))
            .register(Task::new("upload.metadata", metadata).parameters(["path"]))
            .register(Task::new("upload.report", report).parameters(["steps"]))
    })
}
