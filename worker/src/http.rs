//! The worker's HTTP endpoint: probes and metrics.
//!
//! It is served by the loop that talks to the broker, so `/livez` answering at all shows that this loop turns; it says
//! nothing about the task, which may take as long as it likes.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{health::Health, metrics::Metrics};

/// What the endpoint shows.
#[derive(Clone, Debug)]
pub(crate) struct Exposed {
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Serves on `address` until the runtime ends; gives back the address it is bound to.
pub(crate) async fn serve(address: SocketAddr, exposed: Exposed) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(exposed);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "http endpoint stopped");
        }
    });
    Ok(bound)
}

async fn readyz(State(exposed): State<Exposed>) -> Response {
    match exposed.health.problem() {
        None => "ok".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

async fn metrics(State(exposed): State<Exposed>) -> Response {
    exposed.metrics.consuming.set(exposed.health.is_consuming().into());
    match exposed.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
