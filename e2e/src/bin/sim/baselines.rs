//! The simplest autoscalers: what many operators do, and none at all.

use crate::engine::{Autoscaler, ScaleIn, Wish, World};

/// ceil(backlog / target), looked at every few seconds, without memory.
pub(crate) struct Proportional {
    pub(crate) target: f64,
    pub(crate) interval: f64,
    pub(crate) max: u16,
}

impl Autoscaler for Proportional {
    fn scale_in(&self) -> ScaleIn {
        ScaleIn::Kill { grace: 30.0 }
    }

    fn tick(&mut self, world: &World, now: f64) -> (Wish, f64) {
        let replicas = world.ready().map(|ready| {
            let messages = ready + world.running().count() as u64;
            (messages as f64 / self.target).ceil().min(self.max.into()) as u16
        });
        let wish = Wish { replicas: replicas.unwrap_or(world.asked_for()), in_doubt: replicas.is_none() };
        (wish, now + self.interval)
    }
}

/// Always so many.
pub(crate) struct Fixed(pub(crate) u16);

impl Autoscaler for Fixed {
    fn scale_in(&self) -> ScaleIn {
        ScaleIn::Drain
    }

    fn tick(&mut self, _: &World, now: f64) -> (Wish, f64) {
        (Wish { replicas: self.0, in_doubt: false }, now + 3600.0)
    }
}
