//! What runs, written down, so that a later run of the harness finds it again.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::paths;
use crate::process::Process;

/// The programs of a cluster by name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// Whether `up` came to its end.
    pub(crate) complete: bool,
    /// Each with the process it is.
    pub(crate) processes: BTreeMap<String, Process>,
}

impl State {
    fn file() -> PathBuf {
        paths::cluster().join("state.json")
    }

    /// Reads it; `None` if no cluster was started here, or it was stopped.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub(crate) fn load() -> Result<Option<Self>> {
        let file = Self::file();
        match std::fs::read(&file) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).with_context(|| format!("read {}", file.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Changes it. Two programs may do so at once.
    pub(crate) fn update(change: impl FnOnce(&mut Self)) -> Result<()> {
        let _lock = lock("state")?;
        let mut state = Self::load()?.unwrap_or_default();
        change(&mut state);
        let file = Self::file();
        let aside = file.with_extension("part");
        std::fs::write(&aside, serde_json::to_vec_pretty(&state)?)
            .and_then(|()| std::fs::rename(&aside, &file))
            .with_context(|| format!("write {}", file.display()))
    }

    /// Writes down that a program runs.
    pub(crate) fn record(name: &str, process: &Process) -> Result<()> {
        Self::update(|state| {
            state.processes.insert(name.to_owned(), process.clone());
        })
    }

    /// The process of a program, if it runs.
    ///
    /// # Errors
    /// If no cluster is up.
    pub(crate) fn running(name: &str) -> Result<Option<Process>> {
        let state = Self::load()?.context("no cluster is up")?;
        Ok(state.processes.get(name).filter(|process| process.is_alive()).cloned())
    }

    /// Names of the programs that should run and don't.
    pub(crate) fn dead(&self) -> Vec<&str> {
        let dead = self.processes.iter().filter(|(_, process)| !process.is_alive());
        dead.map(|(name, _)| name.as_str()).collect()
    }
}

/// Waits for a lock that the kernel gives back when its holder ends, however it ends.
pub(crate) fn lock(name: &str) -> Result<File> {
    let path = paths::cache().join(format!("{name}.lock"));
    std::fs::create_dir_all(paths::cache()).context("create the cache folder")?;
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        // The state is locked for an instant only; whatever else takes minutes at most.
        if name != "state" {
            eprintln!("waiting for another run of the harness to let go of {}", path.display());
        }
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}
