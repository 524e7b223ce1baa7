//! What can be wrong with observations.

/// From when to when, in seconds.
pub(crate) type Span = (f64, f64);

/// Faults of the observations.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    /// Part of the readings that fail.
    pub(crate) lost: f64,
    /// When nothing can be read.
    pub(crate) absent: Option<Span>,
    /// When only old numbers are had, known to be old.
    pub(crate) stale: Option<Span>,
    /// When the broker says that nothing waits and nobody consumes, as of a quorum queue whose leader does not answer.
    pub(crate) lying: Option<Span>,
    /// When workers do not say what they run.
    pub(crate) silent: Option<Span>,
    /// Running tasks are counted this many times, which makes the service time wrong by as much.
    pub(crate) running_factor: f64,
}

impl Default for Faults {
    fn default() -> Self {
        Self { lost: 0.0, absent: None, stale: None, lying: None, silent: None, running_factor: 1.0 }
    }
}

fn within(span: Option<Span>, now: f64) -> bool {
    span.is_some_and(|(from, to)| now >= from && now < to)
}

impl Faults {
    pub(crate) fn absent(&self, now: f64) -> bool {
        within(self.absent, now)
    }

    pub(crate) fn stale(&self, now: f64) -> bool {
        within(self.stale, now)
    }

    pub(crate) fn lying(&self, now: f64) -> bool {
        within(self.lying, now)
    }

    pub(crate) fn silent(&self, now: f64) -> bool {
        within(self.silent, now)
    }

    /// Whether what can be observed is not what is.
    pub(crate) fn in_doubt(&self, now: f64) -> bool {
        self.absent(now) || self.stale(now) || self.lying(now) || self.silent(now)
    }
}
