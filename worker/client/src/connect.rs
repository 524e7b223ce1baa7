//! Connections to the broker: named, over ring TLS, and given up after a while.

use crate::broker::BrokerAddress;
use lapin::{Connection, ConnectionProperties};
use std::time::Duration;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The broker could not be reached, or refused.
    #[error("connect to {address}")]
    Refused {
        /// The broker, without the password.
        address: String,
        /// Why.
        source: lapin::Error,
    },
    /// The broker did not answer in time.
    #[error("connect to {address}: no answer in {timeout:?}")]
    Timeout {
        /// The broker, without the password.
        address: String,
        /// How long was waited.
        timeout: Duration,
    },
}

impl ConnectError {
    /// A fixed word for logs, metric labels and reasons: `timeout`, `access_refused`, `unreachable`.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Refused { source, .. } if is_access_refused(source) => "access_refused",
            Self::Refused { .. } => "unreachable",
        }
    }
}

/// Whether the broker refused the user, the password or the virtual host.
fn is_access_refused(error: &lapin::Error) -> bool {
    // 403 for a wrong password or a forbidden virtual host, 530 for a virtual host that doesn't exist.
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error) if matches!(error.get_id(), 403 | 530))
}

/// Connects, under a name that RabbitMQ's management shows.
///
/// Lost connections are not recovered behind the caller's back: deliveries die with their channel, so whoever holds
/// some has to know.
///
/// TLS needs ring as the process's crypto provider (`rustls::crypto::ring::default_provider().install_default()`).
///
/// # Errors
/// When the broker can't be reached, refuses, or doesn't answer within the address's timeout.
pub async fn connect(address: &BrokerAddress, name: &str) -> Result<Connection, ConnectError> {
    let refused = |source| ConnectError::Refused { address: address.to_string(), source };
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime().map_err(refused)?;
    let mut uri = address.amqp_uri();
    // One clock decides. Lapin's would end as another error, and not at every stage of connecting.
    uri.query.connection_timeout = None;
    let connecting = Connection::connect_uri_with_config(uri, properties, address.tls_config(), runtime);
    match tokio::time::timeout(address.connect_timeout, connecting).await {
        Ok(connected) => connected.map_err(refused),
        Err(_) => {
            Err(ConnectError::Timeout { address: address.to_string(), timeout: address.connect_timeout })
        }
    }
}
