//! The operator's HTTP servers: `/livez`, `/readyz` and `/metrics` for all, `/log-level` for who may forward a port of the pod.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::logging::Level;
use crate::metrics::Metrics;

/// What the server answers from.
pub struct Health {
    ready: AtomicBool,
    metrics: Arc<Metrics>,
    refresh: Box<dyn Fn() + Send + Sync>,
}

impl Health {
    /// Not ready yet. `refresh` is called before each scrape.
    pub fn new(metrics: Arc<Metrics>, refresh: impl Fn() + Send + Sync + 'static) -> Self {
        Self { ready: AtomicBool::new(false), metrics, refresh: Box::new(refresh) }
    }

    /// States whether this instance does its part: leads with all watches running, or waits to lead.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve(address: SocketAddr, health: Arc<Health>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(%address, "serving /livez, /readyz and /metrics");
    axum::serve(listener, router(health)).await
}

/// Serves `/log-level` until the process ends: GET tells what is logged, PUT changes it. Whoever reaches the address may do so; it is to be
/// one of the loopback interface.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve_admin(address: SocketAddr, level: Level) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let router = Router::new().route("/log-level", get(log_level).put(set_log_level)).with_state(level);
    axum::serve(listener, router).await
}

async fn log_level(State(level): State<Level>) -> String {
    format!("{}\n", level.get())
}

async fn set_log_level(State(level): State<Level>, filter: String) -> (StatusCode, String) {
    match level.set(&filter) {
        Ok(()) => (StatusCode::OK, format!("{}\n", level.get())),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}: `{}`\n", filter.trim())),
    }
}

fn router(health: Arc<Health>) -> Router {
    Router::new()
        // That the runtime answers is all that is asked: no restart would bring back a broker or an API server.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn readyz(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: the API server has not shown everything yet\n")
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    (health.refresh)();
    match health.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
