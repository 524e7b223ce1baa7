//! What workers say of themselves in their heartbeats, and what follows from how their counts grow.
//!
//! Times are those at which a heartbeat arrived, by our own clock: what a broker or a worker takes for the time doesn't matter.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::SILENT_AFTER;
use crate::plan::drain::Activity;

/// A worker that hasn't been heard of for this long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// The counts in a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Tasks that run.
    pub(super) active: u32,
    /// Tasks begun since the worker's start.
    pub(super) processed: u64,
}

impl Counts {
    fn finished(self) -> u64 {
        self.processed.saturating_sub(self.active.into())
    }
}

/// What workers said last, by node name.
#[derive(Debug, Default)]
pub(super) struct Reports(HashMap<String, Report>);

#[derive(Clone, Copy, Debug)]
struct Report {
    counts: Counts,
    /// Tasks running when the queues were read last. A task that a worker takes leaves the queue and shows here, and would count twice
    /// if one were older than the other.
    active_when_read: Option<u32>,
    /// Since when it runs what it runs, or nothing.
    since: Instant,
    /// Tasks finished that [`Reports::count_finished`] hasn't told yet.
    uncounted: u64,
    seen_at: Instant,
    /// It has said that it stops.
    is_offline: bool,
}

impl Reports {
    /// Takes in a heartbeat.
    pub(super) fn take_in(&mut self, node: &str, counts: Counts, now: Instant) {
        let report = Report {
            counts,
            active_when_read: None,
            since: now,
            // What it did before we heard of it was not done just now.
            uncounted: 0,
            seen_at: now,
            is_offline: false,
        };
        let report = match self.0.get(node) {
            None => report,
            Some(before) => {
                // Counts that begin again are those of a worker that was started again.
                let known =
                    if counts.processed < before.counts.processed { 0 } else { before.counts.finished() };
                let same_task = counts.processed == before.counts.processed
                    && (counts.active > 0) == (before.counts.active > 0);
                Report {
                    active_when_read: before.active_when_read,
                    since: if same_task { before.since } else { now },
                    uncounted: before.uncounted + counts.finished().saturating_sub(known),
                    ..report
                }
            }
        };
        self.0.insert(node.to_owned(), report);
    }

    /// A worker says that it stops, and its last counts if it knows them.
    pub(super) fn offline(&mut self, node: &str, counts: Option<Counts>, now: Instant) {
        if let (Some(counts), true) = (counts, self.0.contains_key(node)) {
            self.take_in(node, counts, now);
        }
        if let Some(report) = self.0.get_mut(node) {
            report.is_offline = true;
        }
    }

    /// Notes that the queues were read: what workers say from now on belongs to the next reading.
    pub(super) fn settle(&mut self, now: Instant) {
        self.0.retain(|_, report| {
            report.active_when_read = Some(report.counts.active);
            !report.is_offline && now.duration_since(report.seen_at) < FORGET_AFTER
        });
    }

    /// Tasks that a worker has finished since this was asked last.
    pub(super) fn count_finished(&mut self, node: &str) -> u64 {
        self.0.get_mut(node).map(|report| std::mem::take(&mut report.uncounted)).unwrap_or_default()
    }

    /// Tasks that a worker runs, if it has said so lately.
    pub(super) fn active(&self, node: &str, now: Instant) -> Option<u32> {
        let report = self.recent(node, now)?;
        Some(report.active_when_read.unwrap_or(report.counts.active))
    }

    /// For how long a worker has been running what it runs, if it has said so lately. Of several tasks: the last one begun.
    pub(super) fn busy_for(&self, node: &str, now: Instant) -> Option<Duration> {
        let report = self.recent(node, now).filter(|report| report.counts.active > 0)?;
        Some(now.duration_since(report.since))
    }

    /// What a worker does and since when, if it has said so lately.
    pub(super) fn activity(&self, node: &str, now: Instant) -> Option<Activity> {
        let Report { counts, since, .. } = *self.recent(node, now)?;
        Some(if counts.active > 0 { Activity::Busy { since } } else { Activity::Idle { since } })
    }

    fn recent(&self, node: &str, now: Instant) -> Option<&Report> {
        let report = self.0.get(node).filter(|report| !report.is_offline)?;
        (now.duration_since(report.seen_at) < SILENT_AFTER).then_some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "celery@red-1";

    /// Reports that have taken in these counts (active, processed), one a second from now on, and the time of the last.
    fn reported(counts: &[(u32, u64)]) -> (Reports, Instant) {
        let (mut reports, mut now) = (Reports::default(), Instant::now());
        for &(active, processed) in counts {
            now += Duration::from_secs(1);
            reports.take_in(NODE, Counts { active, processed }, now);
        }
        (reports, now)
    }

    #[test]
    fn finished_tasks_are_those_begun_that_do_not_run() {
        let (mut reports, _) = reported(&[(0, 0), (1, 1), (1, 2), (0, 2)]);
        assert_eq!(reports.count_finished(NODE), 2);
        assert_eq!(reports.count_finished(NODE), 0, "each is counted once");
    }

    #[test]
    fn what_was_finished_before_we_heard_of_a_worker_does_not_count() {
        assert_eq!(reported(&[(1, 5000)]).0.count_finished(NODE), 0);
        assert_eq!(reported(&[(1, 5000), (1, 5001)]).0.count_finished(NODE), 1);
    }

    #[test]
    fn a_worker_that_starts_again_counts_on() {
        let (mut reports, _) = reported(&[(1, 100), (1, 103), (0, 0), (1, 3)]);
        assert_eq!(reports.count_finished(NODE), 3 + 2);
    }

    #[test]
    fn a_task_runs_from_when_it_shows_until_another_one_does() {
        let (reports, now) = reported(&[(0, 7), (1, 8), (1, 8), (1, 8)]);
        assert_eq!(reports.busy_for(NODE, now), Some(Duration::from_secs(2)));
        let (reports, now) = reported(&[(1, 8), (1, 8), (1, 9)]);
        assert_eq!(reports.busy_for(NODE, now), Some(Duration::ZERO));
        let (reports, now) = reported(&[(1, 8), (0, 8)]);
        assert_eq!(reports.busy_for(NODE, now), None);
    }

    #[test]
    fn a_worker_that_is_silent_is_not_idle() {
        let (reports, now) = reported(&[(0, 7)]);
        assert_eq!(reports.active(NODE, now), Some(0));
        assert_eq!(reports.active(NODE, now + SILENT_AFTER), None);
        assert_eq!(reports.active("celery@red-2", now), None);
    }

    #[test]
    fn running_tasks_are_those_of_the_time_of_the_reading() {
        let (mut reports, now) = reported(&[(0, 7)]);
        reports.settle(now);
        reports.take_in(NODE, Counts { active: 1, processed: 8 }, now);
        assert_eq!(reports.active(NODE, now), Some(0));
        reports.settle(now);
        assert_eq!(reports.active(NODE, now), Some(1));
    }

    #[test]
    fn the_last_word_of_a_worker_counts() {
        let (mut reports, now) = reported(&[(1, 8)]);
        reports.offline(NODE, Some(Counts { active: 0, processed: 8 }), now);
        assert_eq!(reports.active(NODE, now), None);
        assert_eq!(reports.count_finished(NODE), 1);
        reports.settle(now);
        assert!(reports.0.is_empty());
    }

    #[test]
    fn workers_that_are_gone_are_forgotten() {
        let (mut reports, now) = reported(&[(1, 8)]);
        reports.settle(now + FORGET_AFTER);
        assert!(reports.0.is_empty());
    }
}
