//! The operator's log, and changing while it runs what is logged.

use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, reload};

/// What is logged.
#[derive(Clone)]
pub struct Level {
    current: Arc<Mutex<String>>,
    replace: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

/// Why the level could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a level nor a filter.
    #[error("not a log filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The log is gone, which happens only when the program ends.
    #[error("change the log filter")]
    Reload(#[from] reload::Error),
}

impl Level {
    /// Starts to log to standard error. `filter` is a level, also by module: `info,soloist_operator::broker=debug`.
    ///
    /// # Errors
    /// If the filter can't be read.
    ///
    /// # Panics
    /// If the process logs already.
    pub fn start(filter: &str, json: bool) -> Result<Self, Error> {
        let (layer, handle) = reload::Layer::new(parsed(filter)?);
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = if json {
            lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        } else {
            lines.boxed()
        };
        tracing_subscriber::registry().with(layer).with(lines).init();
        Ok(Self {
            current: Arc::new(Mutex::new(filter.to_owned())),
            replace: Arc::new(move |filter| handle.reload(filter)),
        })
    }

    /// What is logged now.
    pub fn get(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it.
    ///
    /// # Errors
    /// If the filter can't be read.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        let filter = filter.trim();
        (self.replace)(parsed(filter)?)?;
        filter.clone_into(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner));
        tracing::info!(filter, "log level changed");
        Ok(())
    }
}

fn parsed(filter: &str) -> Result<EnvFilter, Error> {
    // kube-rs opens a span of its own around each reconciliation; ours says the same. What lapin says of a connection that fails is told
    // once, with the broker, by ours.
    Ok(EnvFilter::try_new(format!("kube_runtime::controller=warn,lapin=off,{filter}"))?)
}
