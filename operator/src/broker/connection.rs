//! The connection to one broker: made, used until it is lost, and made again.
//!
//! Lapin's own recovery stays off: what is read and declared here has no state worth recovering, and a fresh connection is the
//! simplest state there is. Nothing is ever published on it, so that a broker in memory or disk alarm, which stops reading from
//! publishers, goes on answering.

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use celery_client::queue::reply_code;
use celery_client::{BrokerAddress, ConnectError};
use futures_util::StreamExt as _;
use lapin::{Connection, Event};

use super::state::Shared;
use super::{declarations, heartbeats, orders, policies, poller};
use crate::metrics::Metrics;
use crate::plan::reason::Reason;
use crate::plan::status::Problem;

/// Longest wait between two attempts to connect: after an outage all is well again soon, and one attempt each ten seconds
/// burdens nobody.
const RETRY_AT_MOST: Duration = Duration::from_secs(10);

/// First wait after a failed attempt; it doubles from attempt to attempt.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Wait after the broker refused the credentials: only a changed Secret can help, which comes as another address.
const RETRY_REFUSED: Duration = Duration::from_secs(30);

/// Longest wait for an answer of the broker to anything but a poll or a declaration.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps a connection to the broker for as long as it isn't aborted.
pub(super) async fn run(address: BrokerAddress, name: String, shared: Arc<Shared>, metrics: Arc<Metrics>) {
    let mut attempt = 0;
    loop {
        let problem = match celery_client::connect(&address, &name).await {
            Ok(connection) => {
                tracing::info!(broker = %address, "connected to broker");
                shared.connected(Instant::now());
                let since = Instant::now();
                let lost = session(&connection, &address, &name, &shared, &metrics).await;
                tracing::warn!(broker = %address, error = %lost, "connection to broker lost");
                // A broker that lets us in and throws us out again gets no burst of attempts.
                if since.elapsed() > RETRY_AT_MOST {
                    attempt = 0;
                }
                Problem {
                    reason: Reason::ConnectionLost,
                    message: format!("connection to {address} lost: {lost}"),
                }
            }
            Err(error) => {
                let problem = connect_problem(&address, &error);
                tracing::warn!(broker = %address, reason = %problem.reason, error = %problem.message, "connecting to broker failed");
                problem
            }
        };
        metrics.broker_errors.with_label_values(&[problem.reason.as_str()]).inc();
        let wait = retry_after(problem.reason, attempt);
        attempt += 1;
        shared.disconnected(problem, Instant::now());
        tokio::time::sleep(wait).await;
    }
}

/// Everything that happens on one connection. Returns why it ended.
async fn session(
    connection: &Connection,
    address: &BrokerAddress,
    name: &str,
    shared: &Shared,
    metrics: &Metrics,
) -> Lost {
    tokio::select! {
        lost = until_error(connection) => lost,
        lost = poller::run(connection, shared, metrics) => lost,
        lost = declarations::run(connection, shared, metrics) => lost,
        lost = heartbeats::run(connection, shared) => lost,
        () = policies::run(address, shared, metrics) => Lost("policies ended".to_owned()),
        () = orders::run(address, name, shared) => Lost("orders ended".to_owned()),
    }
}

async fn until_error(connection: &Connection) -> Lost {
    let mut events = std::pin::pin!(connection.events_listener());
    while let Some(event) = events.next().await {
        match event {
            // An error of one channel, such as a queue that is missing, is the business of whoever uses the channel.
            Event::Error(error) if !error.is_amqp_soft_error() => return Lost::from(error),
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(reason, "broker blocks publishers");
            }
            _ => {}
        }
    }
    Lost("closed".to_owned())
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) struct Lost(pub(super) String);

impl std::fmt::Display for Lost {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<lapin::Error> for Lost {
    fn from(error: lapin::Error) -> Self {
        Self(error.to_string())
    }
}

/// What an operation on a connection came to.
pub(super) enum Failure {
    /// The connection is of no more use.
    Lost(Lost),
    /// The broker refused this one thing, and closed the channel.
    Refused(lapin::Error),
}

/// Waits for an answer of the broker, but not for ever.
pub(super) async fn answered<T>(
    connection: &Connection,
    what: &str,
    operation: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Failure> {
    answered_within(REPLY_TIMEOUT, connection, what, operation).await
}

/// The same for what may take longer.
pub(super) async fn answered_within<T>(
    limit: Duration,
    connection: &Connection,
    what: &str,
    operation: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, operation).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if connection.status().connected() && reply_code(&error).is_some() => {
            Err(Failure::Refused(error))
        }
        Ok(Err(error)) => Err(Failure::Lost(error.into())),
        Err(_) => Err(Failure::Lost(Lost(format!("{what}: no answer in {limit:?}")))),
    }
}

fn connect_problem(address: &BrokerAddress, error: &ConnectError) -> Problem {
    let ConnectError::Refused { source, .. } = error else {
        return Problem { reason: Reason::BrokerUnreachable, message: error.to_string() };
    };
    let (reason, text) = match reply_code(source) {
        Some(403) => (
            Reason::AuthFailed,
            format!("{address} refuses user name and password of user `{}`", address.username),
        ),
        Some(530) => (
            Reason::VhostRefused,
            format!(
                "{address} does not let user `{}` into virtual host `{}`: it does not exist, or there are no permissions on it",
                address.username, address.vhost
            ),
        ),
        _ => {
            let cause = source.source().map_or_else(|| source.to_string(), ToString::to_string);
            let wants_certificate =
                address.tls && address.certificates.client.is_none() && was_dropped(source);
            let hint = wants_certificate.then_some(CLIENT_CERTIFICATE).or_else(|| hint(&cause));
            let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            (Reason::BrokerUnreachable, format!("connect to {address}: {cause}{hint}"))
        }
    };
    Problem { reason, message: text }
}

/// A broker that misses a client certificate says so and hangs up. In TLS 1.3 the client has begun to write by then, and may see the
/// hanging up alone (RFC 8446, 4.4.2.4 and 6.1).
const CLIENT_CERTIFICATE: &str = "a broker that wants a client certificate hangs up like this: the Secret's keys tls.crt and tls.key give one";

/// Whether the other side hung up.
fn was_dropped(error: &lapin::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let lapin::ErrorKind::IOError(error) = error.kind() else { return false };
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// What a cause means whose own words don't say it.
fn hint(cause: &str) -> Option<&'static str> {
    let has = |words| cause.contains(words);
    if has("failed to lookup") {
        Some("the name can't be resolved from the operator's pod")
    } else if has("InvalidContentType") {
        Some("that port doesn't speak TLS: 5671 usually does")
    } else if has("UnknownIssuer") {
        Some("the Secret's key ca.crt needs the authority that signed the broker's certificate")
    } else {
        None
    }
}

fn retry_after(reason: Reason, attempt: u32) -> Duration {
    let wait = match reason {
        Reason::AuthFailed | Reason::VhostRefused => RETRY_REFUSED,
        _ => RETRY_FIRST.saturating_mul(1 << attempt.min(10)).min(RETRY_AT_MOST),
    };
    // Between half and all of it, so that many operators don't come back in step.
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_in_words_that_help() {
        assert!(hint("failed to lookup address information: Try again").is_some());
        assert!(hint("received corrupt message of type InvalidContentType").is_some());
        assert!(hint("invalid peer certificate: UnknownIssuer").is_some());
        assert_eq!(hint("Connection refused (os error 111)"), None);
    }

    #[test]
    fn hanging_up_on_tls_without_a_client_certificate_is_explained() {
        let message = |uri: &str, kind: std::io::ErrorKind| {
            let address: BrokerAddress = uri.parse().unwrap();
            let source = lapin::Error::from(std::io::Error::from(kind));
            connect_problem(&address, &ConnectError::Refused { address: address.to_string(), source }).message
        };
        for kind in [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe] {
            assert!(message("amqps://rabbit", kind).contains("tls.key"), "{kind}");
            assert!(!message("amqp://rabbit", kind).contains("tls.key"), "{kind}");
        }
        assert!(!message("amqps://rabbit", std::io::ErrorKind::ConnectionRefused).contains("tls.key"));
    }

    #[test]
    fn waits_grow_to_a_limit() {
        for attempt in 0..40 {
            assert!(retry_after(Reason::BrokerUnreachable, attempt) <= RETRY_AT_MOST);
        }
        assert!(retry_after(Reason::BrokerUnreachable, 0) <= RETRY_FIRST);
        assert!(retry_after(Reason::BrokerUnreachable, 9) >= RETRY_AT_MOST / 2);
        assert!(retry_after(Reason::AuthFailed, 0) >= RETRY_REFUSED / 2);
    }
}
