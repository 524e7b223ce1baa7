//! Addresses that are mounted from Secrets: when one changes, the worker starts anew with it.

use std::{path::PathBuf, time::Duration};

use celery_client::{BrokerAddress, ResultStoreAddress};
use tracing::{debug, info};

use crate::stop::Stop;

/// How often the directories are read. The kubelet takes about a minute to bring a change to them.
const PERIOD: Duration = Duration::from_secs(5);

/// What was read from the directories of Secrets when the worker started.
#[derive(Debug, Default)]
pub(crate) struct Mounted {
    pub(crate) broker: Option<(PathBuf, BrokerAddress)>,
    pub(crate) results: Option<(PathBuf, ResultStoreAddress)>,
}

impl Mounted {
    /// Asks for a restart when an address has changed: the present task is finished first.
    pub(crate) async fn watch(self, stop: Stop) {
        if self.broker.is_none() && self.results.is_none() {
            return;
        }
        loop {
            tokio::time::sleep(PERIOD).await;
            if self.has_changed() {
                info!("the Secret of the broker or of the result store has changed: starting anew with it");
                stop.restart();
                return;
            }
        }
    }

    /// A directory that can't be read, or makes no sense, is no reason to leave what works.
    fn has_changed(&self) -> bool {
        let broker = self.broker.as_ref().is_some_and(|(directory, address)| {
            is_another(BrokerAddress::from_directory(directory).map(|now| now != *address))
        });
        let results = self.results.as_ref().is_some_and(|(directory, address)| {
            is_another(ResultStoreAddress::from_directory(directory).map(|now| now != *address))
        });
        broker || results
    }
}

fn is_another<E: std::fmt::Display>(compared: Result<bool, E>) -> bool {
    compared.unwrap_or_else(|error| {
        debug!(%error, "can't read a mounted Secret");
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_password_is_a_change_and_an_unreadable_directory_is_none() {
        let directory = std::env::temp_dir().join(format!("soloist-mounted-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let uri = directory.join("uri");
        std::fs::write(&uri, "amqp://user:old@broker").unwrap();
        let address = BrokerAddress::from_directory(&directory).unwrap();
        let mounted = Mounted { broker: Some((directory.clone(), address)), results: None };
        assert!(!mounted.has_changed());
        std::fs::write(&uri, "amqp://user:new@broker").unwrap();
        assert!(mounted.has_changed());
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(!mounted.has_changed());
    }
}
