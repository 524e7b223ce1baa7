//! What the harness is doing, while it does it: spinners on a terminal, timed lines elsewhere. All of it goes to
//! standard error.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Without a terminal, a step that takes longer than this is named again, so that a log never falls silent.
const REMINDER: Duration = Duration::from_secs(15);

/// The steps of one run. Clones speak for the same run.
#[derive(Clone)]
pub struct Progress(Arc<Inner>);

struct Inner {
    started: Instant,
    bars: Option<MultiProgress>,
    running: Mutex<Vec<Running>>,
}

struct Running {
    name: String,
    note: String,
    started: Instant,
    reminded: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Starts the clock.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let inner = Arc::new(Inner {
            started: Instant::now(),
            bars: terminal.then(MultiProgress::new),
            running: Mutex::default(),
        });
        if !terminal {
            let watched = Arc::downgrade(&inner);
            std::thread::spawn(move || remind(&watched));
        }
        Self(inner)
    }

    /// Starts a step; it ends with [`Step::done`], or as failed when it is dropped before.
    pub fn step(&self, name: impl Into<String>) -> Step {
        let name = name.into();
        let bar = self.0.bars.as_ref().map(|bars| {
            let style =
                ProgressStyle::with_template("{spinner:.cyan} {prefix:<28} {elapsed:>4} {wide_msg:.dim}")
                    .expect("the template is well-formed");
            let bar = bars.add(ProgressBar::new_spinner().with_style(style).with_prefix(name.clone()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let now = Instant::now();
        let running = Running { name: name.clone(), note: String::new(), started: now, reminded: now };
        self.0.running().push(running);
        Step { progress: self.clone(), name, started: now, bar, ended: false }
    }

    /// Prints a line above whatever is running.
    pub fn say(&self, line: impl AsRef<str>) {
        let line = line.as_ref();
        match &self.0.bars {
            // Fails only when standard error is closed, and then nobody reads it.
            Some(bars) => drop(bars.println(line)),
            None => eprintln!("[{:6.1} s] {line}", self.0.started.elapsed().as_secs_f64()),
        }
    }
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something under way.
pub struct Step {
    progress: Progress,
    name: String,
    started: Instant,
    bar: Option<ProgressBar>,
    ended: bool,
}

impl Step {
    /// Says how far it is.
    pub fn note(&self, note: impl Into<String>) {
        let note = note.into();
        match &self.bar {
            Some(bar) => bar.set_message(note),
            None => {
                if let Some(step) = self.progress.0.running().iter_mut().find(|step| step.name == self.name) {
                    step.note = note;
                }
            }
        }
    }

    /// It went well: prints what came of it, with the time it took.
    pub fn done(mut self, outcome: impl AsRef<str>) {
        self.end("✓", outcome.as_ref());
    }

    fn end(&mut self, mark: &str, outcome: &str) {
        self.ended = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.progress.0.running().retain(|step| step.name != self.name);
        let seconds = self.started.elapsed().as_secs_f64();
        let line = format!("{mark} {:<28} {seconds:6.1} s  {outcome}", self.name);
        self.progress.say(line.trim_end());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            self.end("✗", "");
        }
    }
}

/// Names the steps that take long, until the run is over.
fn remind(watched: &Weak<Inner>) {
    while let Some(inner) = watched.upgrade() {
        let seconds = inner.started.elapsed().as_secs_f64();
        for step in inner.running().iter_mut().filter(|step| step.reminded.elapsed() >= REMINDER) {
            step.reminded = Instant::now();
            let so_far = step.started.elapsed().as_secs();
            eprintln!("[{seconds:6.1} s] … {:<28} {so_far:4} s so far  {}", step.name, step.note);
        }
        drop(inner);
        std::thread::sleep(Duration::from_secs(1));
    }
}
