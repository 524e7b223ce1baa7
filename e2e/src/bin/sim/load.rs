//! What arrives: the shapes of load, drawn in advance so that every autoscaler gets the very same tasks.

use crate::random::{Duration, Random};

/// A task: when it is published, and for how long it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arrival {
    pub(crate) at: f64,
    pub(crate) service: f64,
}

/// When tasks arrive.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// At random, so many a second.
    Poisson(f64),
    /// So many within a few seconds, again and again; nothing between.
    Bursts { tasks: u32, over: f64, every: f64 },
    /// At random, with another rate for the middle third.
    Step { low: f64, high: f64 },
    /// At random, with a rate that swings as the traffic of a day does; the period is the day.
    Diurnal { low: f64, high: f64, period: f64 },
    /// All at once, at these times.
    Batch { tasks: u32, at: Vec<f64> },
    /// As recorded.
    Trace(Vec<Arrival>),
}

impl Shape {
    /// The tasks of `seconds` of this load.
    pub(crate) fn draw(&self, service: Duration, seconds: f64, seed: u64) -> Vec<Arrival> {
        let mut times = Random::new(seed, "arrivals");
        let mut services = Random::new(seed, "services");
        let at: Vec<f64> = match self {
            Self::Poisson(rate) => thinned(|_| *rate, *rate, seconds, &mut times),
            Self::Step { low, high } => {
                let third = seconds / 3.0;
                let rate = |at: f64| if at >= third && at < 2.0 * third { *high } else { *low };
                thinned(rate, low.max(*high), seconds, &mut times)
            }
            Self::Diurnal { low, high, period } => {
                let rate = |at: f64| {
                    let phase = std::f64::consts::TAU * at / period;
                    low + (high - low) * (1.0 - phase.cos()) / 2.0
                };
                thinned(rate, *high, seconds, &mut times)
            }
            Self::Bursts { tasks, over, every } => {
                let mut at = Vec::new();
                let mut start = times.uniform() * every / 2.0;
                while start < seconds {
                    at.extend((0..*tasks).map(|_| start + times.uniform() * over));
                    start += every;
                }
                at
            }
            Self::Batch { tasks, at } => {
                at.iter().flat_map(|at| std::iter::repeat_n(*at, *tasks as usize)).collect()
            }
            Self::Trace(recorded) => return recorded.clone(),
        };
        let mut arrivals: Vec<_> =
            at.into_iter().map(|at| Arrival { at, service: service.draw(&mut services) }).collect();
        arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
        arrivals
    }
}

/// A Poisson process whose rate changes: one with the highest rate, of which a part is kept.
fn thinned(rate: impl Fn(f64) -> f64, highest: f64, seconds: f64, random: &mut Random) -> Vec<f64> {
    let mut at = 0.0;
    let mut kept = Vec::new();
    loop {
        at += random.exponential(1.0 / highest);
        if at >= seconds {
            return kept;
        }
        if random.uniform() * highest < rate(at) {
            kept.push(at);
        }
    }
}
