//! How long a worker takes to start: the 95th percentile of what the last ones took.

use std::collections::VecDeque;

/// What a worker takes as long as too few were seen, in seconds.
const PRIOR_SECONDS: f64 = 10.0;
/// Start-ups that are remembered.
const MEMORY: usize = 40;
/// Start-ups that it takes to trust them.
const FEW: usize = 3;

/// Learns the start-up time.
#[derive(Clone, Debug, Default)]
pub(super) struct StartUp {
    latest: VecDeque<f64>,
}

impl StartUp {
    /// Takes in one start-up, in seconds.
    pub(super) fn record(&mut self, seconds: f64) {
        if self.latest.len() == MEMORY {
            self.latest.pop_front();
        }
        self.latest.push_back(seconds.max(0.0));
    }

    /// What a worker takes to start, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        let mut sorted: Vec<f64> = self.latest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * 95).div_ceil(100);
        let percentile = rank.checked_sub(1).map_or(PRIOR_SECONDS, |index| sorted[index]);
        if sorted.len() < FEW { percentile.max(PRIOR_SECONDS) } else { percentile }
    }
}
