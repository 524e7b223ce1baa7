//! KEDA with the HorizontalPodAutoscaler that it makes, modelled from their documented timing.
//!
//! KEDA looks every `pollingInterval` and alone decides between none and one; the HPA, which syncs every 15 seconds, does the rest. Both
//! get the messages ready and unacknowledged (the scaler's `protocol: http`), always fresh, which is in KEDA's favour: RabbitMQ's
//! statistics are 5 seconds old. Between the reading and the pod there is no delay here either.

use std::collections::VecDeque;

use crate::engine::{Autoscaler, ScaleIn, Wish, World};
use crate::random::Random;

/// The HPA controller's `--horizontal-pod-autoscaler-sync-period`.
const SYNC_SECONDS: f64 = 15.0;
/// Its `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;
/// Kubernetes' `terminationGracePeriodSeconds`, if nobody sets it.
const GRACE_SECONDS: f64 = 30.0;

/// How fast the HPA may add pods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ScaleUp {
    /// Without `behavior`: to double the pods, or to 4, in a sync. Measured on a cluster: 1, 4, 8, 16, 32, 50.
    Default,
    /// With `behavior`: as many as wanted.
    Unlimited,
}

/// A ScaledObject.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Messages for one pod (`value`).
    pub(crate) value: f64,
    pub(crate) polling_interval: f64,
    pub(crate) cooldown_period: f64,
    /// `behavior.scaleDown.stabilizationWindowSeconds`.
    pub(crate) stabilization: f64,
    pub(crate) scale_up: ScaleUp,
    pub(crate) max: u16,
}

impl Settings {
    /// What one gets by naming the queue and the workload.
    pub(crate) fn default_timing(value: f64, max: u16) -> Self {
        Self {
            value,
            polling_interval: 30.0,
            cooldown_period: 300.0,
            stabilization: 300.0,
            scale_up: ScaleUp::Default,
            max,
        }
    }

    /// What somebody sets who has read all the documentation and knows his tasks: quick polls, short windows, no limit on scale-up.
    pub(crate) fn tuned(value: f64, max: u16) -> Self {
        Self {
            polling_interval: 5.0,
            cooldown_period: 60.0,
            stabilization: 60.0,
            scale_up: ScaleUp::Unlimited,
            ..Self::default_timing(value, max)
        }
    }
}

/// KEDA and the HPA.
pub(crate) struct Keda {
    settings: Settings,
    next_poll: f64,
    next_sync: f64,
    active_at: f64,
    recommendations: VecDeque<(f64, u16)>,
}

impl Keda {
    /// A ScaledObject that was made some time ago: its loops have any phase.
    pub(crate) fn new(settings: Settings, seed: u64) -> Self {
        let mut phases = Random::new(seed, "keda");
        Self {
            settings,
            next_poll: phases.uniform() * settings.polling_interval,
            next_sync: phases.uniform() * SYNC_SECONDS,
            active_at: 0.0,
            recommendations: VecDeque::new(),
        }
    }

    fn poll(&mut self, messages: u64, replicas: u16, now: f64) -> u16 {
        if messages > 0 {
            self.active_at = now;
            replicas.max(1)
        } else if now - self.active_at >= self.settings.cooldown_period {
            0
        } else {
            replicas
        }
    }

    fn sync(&mut self, messages: u64, replicas: u16, now: f64) -> u16 {
        let Settings { value, stabilization, max, .. } = self.settings;
        let ratio = messages as f64 / (value * f64::from(replicas));
        let proposed = if (ratio - 1.0).abs() <= TOLERANCE {
            replicas
        } else {
            (messages as f64 / value).ceil().clamp(1.0, f64::from(max)) as u16
        };
        self.recommendations.retain(|(at, _)| now - at < stabilization);
        self.recommendations.push_back((now, proposed));
        let stabilized = self.recommendations.iter().map(|(_, proposed)| *proposed).max().unwrap_or(proposed);
        let limit = match self.settings.scale_up {
            ScaleUp::Default => replicas.saturating_mul(2).max(4),
            ScaleUp::Unlimited => max,
        };
        let wanted = if proposed >= replicas { proposed } else { stabilized.min(replicas) };
        wanted.min(limit).min(max)
    }
}

impl Autoscaler for Keda {
    fn scale_in(&self) -> ScaleIn {
        ScaleIn::Kill { grace: GRACE_SECONDS }
    }

    fn tick(&mut self, world: &World, now: f64) -> (Wish, f64) {
        let mut replicas = world.asked_for();
        let messages = world.ready().map(|ready| ready + world.running().count() as u64);
        if now >= self.next_poll {
            self.next_poll += self.settings.polling_interval;
            if let Some(messages) = messages {
                replicas = self.poll(messages, replicas, now);
            }
        }
        if now >= self.next_sync {
            self.next_sync += SYNC_SECONDS;
            // The HPA rests while there is nothing to scale, and without a metric.
            if let Some(messages) = messages
                && replicas > 0
            {
                replicas = self.sync(messages, replicas, now);
            }
        }
        (Wish { replicas, in_doubt: messages.is_none() }, self.next_poll.min(self.next_sync))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Conditions, Wish, run};
    use crate::load::Shape;
    use crate::random::Duration;

    /// Notes what another autoscaler does.
    struct Recorder {
        keda: Keda,
        steps: Vec<(f64, u16)>,
    }

    impl Autoscaler for Recorder {
        fn scale_in(&self) -> ScaleIn {
            self.keda.scale_in()
        }

        fn tick(&mut self, world: &World, now: f64) -> (Wish, f64) {
            let (wish, next) = self.keda.tick(world, now);
            if self.steps.last().is_none_or(|(_, replicas)| *replicas != wish.replicas) {
                self.steps.push((now, wish.replicas));
            }
            (wish, next)
        }
    }

    /// The steps that a ScaledObject takes for 500 long tasks at once.
    fn burst(settings: Settings) -> Vec<(f64, u16)> {
        let shape = Shape::Batch { tasks: 500, at: vec![5.0] };
        let arrivals = shape.draw(Duration::Constant(60.0), 600.0, 0);
        let conditions = Conditions {
            start_up: Duration::Constant(2.0),
            outages: Vec::new(),
            seconds: 600.0,
            sample_seconds: 60.0,
            seed: 0,
        };
        let mut recorder = Recorder { keda: Keda::new(settings, 3), steps: Vec::new() };
        run(&arrivals, &conditions, &mut recorder);
        recorder.steps
    }

    #[test]
    fn takes_the_steps_that_were_measured_on_a_cluster() {
        // Measured with pollingInterval 1, value 10, at most 50: 1 at 7 s, 4 at 17 s, then 8, 16, 32, and 50 at 78 s.
        let steps = burst(Settings { polling_interval: 1.0, ..Settings::default_timing(10.0, 50) });
        let numbers: Vec<u16> = steps.iter().map(|step| step.1).collect();
        assert_eq!(numbers[..7], [0, 1, 4, 8, 16, 32, 50]);
        let seconds = steps[6].0 - 5.0;
        assert!((60.0..=80.0).contains(&seconds), "50 after {seconds} s");
    }

    #[test]
    fn without_a_limit_it_takes_one_sync() {
        let steps = burst(Settings::tuned(10.0, 50));
        assert_eq!(steps.iter().take(3).map(|step| step.1).collect::<Vec<_>>(), [0, 1, 50]);
    }

    #[test]
    fn lowers_after_the_stabilization_window_and_to_zero_after_the_cooldown() {
        let settings = Settings::default_timing(1.0, 50);
        let mut keda = Keda::new(settings, 0);
        assert_eq!(keda.sync(40, 40, 0.0), 40);
        assert_eq!(keda.sync(10, 40, 15.0), 40);
        assert_eq!(keda.sync(10, 40, 299.0), 40);
        assert_eq!(keda.sync(10, 40, 301.0), 10);
        assert_eq!(keda.poll(1, 5, 400.0), 5);
        assert_eq!(keda.poll(0, 5, 699.0), 5);
        assert_eq!(keda.poll(0, 5, 700.0), 0);
        assert_eq!(keda.poll(1, 0, 730.0), 1);
    }

    #[test]
    fn a_tenth_is_tolerated() {
        let mut keda = Keda::new(Settings::default_timing(1.0, 50), 0);
        assert_eq!([keda.sync(21, 20, 0.0), keda.sync(23, 20, 0.0)], [20, 23]);
    }
}
