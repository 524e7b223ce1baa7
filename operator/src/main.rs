//! The operator's program.

mod check;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::{HeaderValue, header};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kube::Client;
use soloist_operator::api;
use soloist_operator::controller::watch::{Operator, Settings};
use soloist_operator::http::{Health, serve, serve_admin};
use soloist_operator::leader::Election;
use soloist_operator::logging::Level;
use soloist_operator::metrics::Metrics;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Longest wait for an answer of the API server, which itself gives up on most requests after a minute. Without it a request on a
/// connection that died unnoticed would keep its TaskQueue waiting for ever.
const API_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for reconciliations under way when the operator is to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);

/// Runs task queues on Kubernetes: watches TaskQueues, declares their RabbitMQ queues and scales their workers.
#[derive(Parser)]
#[command(name = "soloist-operator", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// Print the custom resource definitions as YAML.
    Crd,
    /// Check an installation: what `helm test` runs.
    Check(check::Checks),
}

/// Settings of the operator itself. How a TaskQueue behaves is set in the TaskQueue.
#[derive(Args)]
struct Run {
    /// Namespaces to watch, separated by commas. All if empty.
    #[arg(long, env = "SOLOIST_NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,

    /// Where to serve /livez, /readyz and /metrics.
    #[arg(long, env = "SOLOIST_HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    http_address: SocketAddr,

    /// Where to serve /log-level: an address of the loopback interface, which is reached by `kubectl port-forward` only. Not served if
    /// not set.
    #[arg(long, env = "SOLOIST_ADMIN_ADDRESS", value_parser = loopback)]
    admin_address: Option<SocketAddr>,

    /// Whether of several instances only one works, the one that holds the Lease.
    #[arg(
        long,
        env = "SOLOIST_LEADER_ELECTION",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    leader_election: bool,

    /// Name of the Lease.
    #[arg(long, env = "SOLOIST_LEASE_NAME", default_value = "soloist-operator")]
    lease_name: String,

    /// Namespace of the Lease. By default the operator's own.
    #[arg(long, env = "SOLOIST_LEASE_NAMESPACE")]
    lease_namespace: Option<String>,

    /// Name of this instance, unique among all: its pod's name.
    #[arg(long, env = "POD_NAME", hide = true)]
    identity: Option<String>,

    /// The operator's own namespace.
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    own_namespace: Option<String>,

    /// Whether metrics have every quantity that the last decision on each TaskQueue rests on: twelve series more for each.
    #[arg(long, env = "SOLOIST_DECISION_METRICS")]
    decision_metrics: bool,

    /// What is logged: error, warn, info, debug or trace, also by module (`info,soloist_operator::broker=debug`).
    #[arg(long, env = "SOLOIST_LOG", default_value = "info")]
    log: String,

    /// How it is logged.
    #[arg(long, env = "SOLOIST_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Crd) => print_definitions(),
        Some(Command::Check(checks)) => check::main(&checks),
        None => run(cli.run),
    }
}

/// An address that only this machine, or this pod, can connect to.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "not an address with a port".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("not an address of the loopback interface".to_owned())
    }
}

fn print_definitions() -> ExitCode {
    match api::custom_resource_definitions_yaml() {
        Ok(yaml) => {
            print!("{yaml}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("soloist-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: Run) -> ExitCode {
    let level = match Level::start(&settings.log, matches!(settings.log_format, LogFormat::Json)) {
        Ok(level) => level,
        Err(error) => {
            eprintln!("soloist-operator: --log: {:#}", anyhow::Error::from(error));
            return ExitCode::from(2);
        }
    };
    // Two crates speak TLS here, and both take the process's provider.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::warn!("another crypto provider is installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(operate(settings, level));
    // What still runs after leadership was lost must not finish in peace.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped");
            ExitCode::FAILURE
        }
    }
}

/// Runs until a signal comes or the leadership is lost.
async fn operate(settings: Run, level: Level) -> anyhow::Result<()> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "soloist-operator");
    let mut config = kube::Config::infer().await.context("find the Kubernetes API server")?;
    // Names us in the API server's audit log.
    let user_agent = concat!("soloist-operator/", env!("CARGO_PKG_VERSION"));
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(user_agent)));
    let own_namespace = settings.own_namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    // The client's own retries, up to 15 within one request, would be seen by nobody, and hold up what else there is to do: whoever asks
    // tries again.
    config.default_retry = false;
    let watching = Client::try_from(config.clone()).context("make a Kubernetes client")?;
    // Not for watches: nothing may happen for minutes, and they have a limit of their own.
    config.read_timeout = Some(API_TIMEOUT);
    config.reset_reader_on_write = true;
    let client = Client::try_from(config).context("make a Kubernetes client")?;
    let identity = settings.identity.clone().unwrap_or_else(|| format!("local-{:08x}", fastrand::u32(..)));
    let mut metrics = Metrics::new().context("register metrics")?;
    if settings.decision_metrics {
        metrics.tell_decisions().context("register metrics")?;
    }
    let metrics = Arc::new(metrics);
    let namespaces = settings.namespaces.into_iter().filter(|namespace| !namespace.is_empty()).collect();
    let operator_settings = Settings { namespaces, instance: identity.clone() };
    let operator = Operator::new(client.clone(), watching, operator_settings, Arc::clone(&metrics));
    let health = Arc::new(Health::new(Arc::clone(&metrics), operator.metrics_refresher()));
    let server = tokio::spawn(serve(settings.http_address, Arc::clone(&health)));
    if let Some(address) = settings.admin_address {
        tokio::spawn(async move {
            // A convenience: scaling goes on without.
            if let Err(error) = serve_admin(address, level).await {
                tracing::warn!(%address, %error, "can't serve /log-level");
            }
        });
    }

    let (stop, stopping) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let signalled = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    };
    let served = async {
        match server.await {
            Ok(Ok(())) => anyhow::anyhow!("the HTTP server ended"),
            Ok(Err(error)) => {
                anyhow::Error::new(error).context(format!("serve HTTP on {}", settings.http_address))
            }
            Err(error) => anyhow::Error::new(error),
        }
    };
    tokio::pin!(signalled, served);

    let mut election = settings.leader_election.then(|| {
        let namespace = settings.lease_namespace.as_deref().unwrap_or(&own_namespace);
        Election::new(client, namespace, &settings.lease_name, identity)
    });
    if let Some(election) = &mut election {
        tokio::select! {
            // An instance that waits does its part: were it not ready, no rollout could ever finish.
            () = election.acquire(|| health.set_ready(true)) => {}
            () = &mut signalled => return Ok(()),
            error = &mut served => return Err(error),
        }
        health.set_ready(false);
    }
    metrics.leader.set(1);

    let ready = Arc::clone(&health);
    let working = operator.run(stopping, move || ready.set_ready(true));
    tokio::pin!(working);
    let lost = async {
        match &mut election {
            Some(election) => election.hold().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        lost = lost => return Err(lost.into()),
        () = &mut working => anyhow::bail!("the controller ended"),
        error = &mut served => return Err(error),
        () = &mut signalled => {}
    }

    health.set_ready(false);
    stop.send_replace(true);
    if tokio::time::timeout(DRAIN_TIMEOUT, working).await.is_err() {
        tracing::warn!("reconciliations under way were cut off");
    }
    metrics.leader.set(0);
    if let Some(election) = election {
        election.release().await;
    }
    tracing::info!("stopped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_level_is_served_to_the_own_pod_only() {
        let parse =
            |address: &str| Cli::try_parse_from(["soloist-operator", "--admin-address", address]).is_ok();
        assert!(parse("127.0.0.1:8081") && parse("[::1]:8081"));
        assert!(!parse("0.0.0.0:8081") && !parse("10.0.0.1:8081") && !parse("[::]:8081"));
    }
}
