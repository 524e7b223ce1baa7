//! Asking a running task to stop.

use tokio::sync::watch;

/// Why a running task is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// It has taken longer than its soft time limit. What it returns still counts.
    SoftTimeLimit,
    /// It has taken longer than its hard time limit, and fails.
    HardTimeLimit,
    /// Somebody has revoked it while it ran.
    Revoked,
    /// The worker has to leave at once; the call will be run again by another worker.
    Shutdown,
}

/// What a running task is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Stop(Cancellation),
    /// Nobody waits any longer: an `async` task is dropped where it stands.
    Abort(Cancellation),
}

/// Tells a running task to stop.
#[derive(Debug)]
pub(crate) struct CancelHandle(watch::Sender<Told>);

/// The task's end of a [`CancelHandle`].
#[derive(Clone, Debug)]
pub(crate) struct Cancelled(watch::Receiver<Told>);

impl CancelHandle {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Told::Nothing))
    }

    pub(crate) fn subscribe(&self) -> Cancelled {
        Cancelled(self.0.subscribe())
    }

    /// Asks the task to stop.
    pub(crate) fn ask(&self, reason: Cancellation) {
        self.0.send_replace(Told::Stop(reason));
    }

    /// Stops an `async` task at its next `await`. A plain function can't be stopped.
    pub(crate) fn abort(&self, reason: Cancellation) {
        self.0.send_replace(Told::Abort(reason));
    }
}

impl Cancelled {
    /// Why the task is to stop, if it is.
    pub(crate) fn reason(&self) -> Option<Cancellation> {
        match *self.0.borrow() {
            Told::Nothing => None,
            Told::Stop(reason) | Told::Abort(reason) => Some(reason),
        }
    }

    /// Waits until the task is asked to stop.
    pub(crate) async fn asked(&self) {
        self.wait(|told| *told != Told::Nothing).await;
    }

    /// Waits until the task is to be dropped.
    pub(crate) async fn aborted(&self) {
        self.wait(|told| matches!(told, Told::Abort(_))).await;
    }

    async fn wait(&self, is_told: impl FnMut(&Told) -> bool) {
        if self.0.clone().wait_for(is_told).await.is_err() {
            // The handle is gone: the call is over and nobody can tell it anything any more.
            std::future::pending::<()>().await;
        }
    }
}
