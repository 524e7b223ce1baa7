//! Being told to stop: once for finishing the present task first, twice for leaving at once.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::warn;

/// How urgently the worker is to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Not at all.
    #[default]
    None,
    /// Take no more messages, finish the present one, and start anew.
    Restart,
    /// Take no more messages, finish the present task.
    Warm,
    /// Give the present message back, now.
    Cold,
}

/// Tells when to stop. Clones hear the same.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    urgency: watch::Sender<Urgency>,
}

impl Stop {
    pub(crate) fn new() -> Self {
        Self { urgency: watch::Sender::new(Urgency::None) }
    }

    /// Turns SIGTERM and SIGINT into requests to stop: the first warm, any other cold.
    pub(crate) fn on_signals(&self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stop.escalate();
            }
        });
        Ok(())
    }

    /// The worker is to finish its present task and leave. Asking again changes nothing.
    pub(crate) fn warm(&self) {
        if self.urgency() < Urgency::Warm {
            self.escalate();
        }
    }

    /// One more request to stop.
    pub(crate) fn escalate(&self) {
        self.urgency.send_modify(|urgency| {
            *urgency = match *urgency {
                Urgency::None | Urgency::Restart => {
                    warn!(
                        "stopping: taking no more messages, finishing the present task; once more to leave it"
                    );
                    Urgency::Warm
                }
                Urgency::Warm | Urgency::Cold => {
                    warn!("stopping at once: giving the present message back");
                    Urgency::Cold
                }
            };
        });
    }

    /// The process is to be replaced by a fresh one.
    pub(crate) fn restart(&self) {
        self.urgency.send_modify(|urgency| *urgency = (*urgency).max(Urgency::Restart));
    }

    /// How urgently the worker is to stop.
    pub(crate) fn urgency(&self) -> Urgency {
        *self.urgency.borrow()
    }

    /// Waits until the worker is to stop, whatever the urgency.
    pub(crate) async fn requested(&self) {
        self.wait_for(Urgency::Restart).await;
    }

    /// Waits until the worker is to stop at least this urgently.
    pub(crate) async fn wait_for(&self, least: Urgency) {
        // The sender is held by `self`, so waiting can't fail.
        let _ = self.urgency.subscribe().wait_for(|urgency| *urgency >= least).await;
    }

    /// Whether the worker is to stop.
    pub(crate) fn is_requested(&self) -> bool {
        self.urgency() > Urgency::None
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_restart_gives_way_to_a_stop() {
        let stop = Stop::new();
        stop.restart();
        assert!(stop.is_requested());
        stop.escalate();
        stop.restart();
        assert_eq!(stop.urgency(), Urgency::Warm);
    }

    #[test]
    fn the_first_request_is_warm_and_the_second_cold() {
        let stop = Stop::new();
        assert!(!stop.is_requested() && stop.requested().now_or_never().is_none());
        stop.escalate();
        assert!(stop.is_requested() && stop.requested().now_or_never().is_some());
        assert!(stop.wait_for(Urgency::Cold).now_or_never().is_none());
        stop.escalate();
        assert!(stop.wait_for(Urgency::Cold).now_or_never().is_some());
    }
}
