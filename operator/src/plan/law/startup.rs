//! How long a worker takes to start: the 95th percentile of what the last ones took.

use std::collections::VecDeque;

/// What a worker takes as long as none was seen, in seconds.
const PRIOR_SECONDS: f64 = 10.0;
/// Start-ups that are remembered.
const MEMORY: usize = 64;

/// Learns the start-up time.
#[derive(Clone, Debug)]
pub(super) struct StartUp {
    latest: VecDeque<f64>,
    seconds: f64,
}

impl Default for StartUp {
    fn default() -> Self {
        Self { latest: VecDeque::new(), seconds: PRIOR_SECONDS }
    }
}

impl StartUp {
    /// Takes in start-ups, in seconds; `complete` if no worker is still starting.
    pub(super) fn observe(&mut self, started: impl Iterator<Item = f64>, complete: bool) {
        for seconds in started {
            if self.latest.len() == MEMORY {
                self.latest.pop_front();
            }
            self.latest.push_back(seconds.max(0.0));
            self.seconds = self.seconds.max(seconds.min(self.percentile()));
        }
        // The first ones of many to come up are the quickest, so they alone don't make the estimate shorter.
        if complete && !self.latest.is_empty() {
            self.seconds = self.percentile();
        }
    }

    /// What a worker takes to start, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.seconds
    }

    fn percentile(&self) -> f64 {
        let mut sorted: Vec<f64> = self.latest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * 95).div_ceil(100);
        rank.checked_sub(1).map_or(PRIOR_SECONDS, |index| sorted[index])
    }
}

#[cfg(test)]
mod tests;
