//! Connections to RabbitMQ. Every wait for the broker has an end, and nothing is recovered behind our back: a
//! connection that failed is replaced by a new one.

mod acks;
mod link;
mod session;

use std::{error::Error as StdError, future::Future, time::Duration};

use celery_client::{amqp, queue::QueueError};
use celery_protocol::{DecodeError, Request, content::Limits};
use lapin::message::Delivery;
use tokio::time::timeout;

pub(crate) use self::{
    acks::Acks,
    link::{Link, Linked, Prepare},
    session::{Arrival, Incoming, Receipt, Session, SessionOptions},
};

/// Longest wait for the broker to answer a request. A broker under load answers in milliseconds; one that takes longer
/// than this is as good as gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A request to the broker that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokerError {
    #[error(transparent)]
    Connect(#[from] celery_client::ConnectError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("{doing}")]
    Refused { doing: &'static str, source: lapin::Error },
    #[error("{doing}: no answer in {ANSWER_TIMEOUT:?}")]
    TimedOut { doing: &'static str },
    #[error("the broker closed the connection")]
    Closed,
}

impl BrokerError {
    /// The problem and its causes, on one line.
    pub(crate) fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}

/// Waits for the broker's answer, but not forever.
pub(crate) async fn answer<T>(
    doing: &'static str,
    request: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(ANSWER_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|source| BrokerError::Refused { doing, source }),
        Err(_) => Err(BrokerError::TimedOut { doing }),
    }
}

/// Waits for what the client does with a queue, but not forever.
async fn bounded<T>(
    doing: &'static str,
    request: impl Future<Output = Result<T, QueueError>>,
) -> Result<T, BrokerError> {
    match timeout(ANSWER_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(BrokerError::TimedOut { doing }),
    }
}

/// Reads a delivery as a call of a task.
pub(crate) fn decode(delivery: &Delivery) -> Result<Request, DecodeError> {
    let headers = delivery.properties.headers().as_ref().map(amqp::headers).unwrap_or_default();
    Request::decode(headers, &amqp::properties(&delivery.properties), &delivery.data, &Limits::default())
}

/// Reads of a delivery that can't be decoded who waits for the call.
pub(crate) fn salvage(delivery: &Delivery) -> Option<Request> {
    let headers = delivery.properties.headers().as_ref().map(amqp::headers).unwrap_or_default();
    Request::salvage(&headers, &amqp::properties(&delivery.properties), &delivery.data, &Limits::default())
}
