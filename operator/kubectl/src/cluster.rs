//! The cluster that the kubeconfig names.

use std::time::Duration;

use http::header::DATE;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use soloist_terminal::Failure;

use crate::args::Target;
use crate::failure;

/// Longest wait for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// A connection to an API server.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Where the API server is.
    server: String,
    /// The namespace that was asked for, or else that of the context.
    pub(crate) namespace: String,
    /// The namespace to look for the operator in, if it was given.
    pub(crate) operator_namespace: Option<String>,
}

impl Cluster {
    /// Reads the kubeconfig as kubectl does. Nothing is asked of the API server yet.
    pub(crate) async fn new(target: &Target) -> Result<Self, Failure> {
        let options = KubeConfigOptions { context: target.context.clone(), ..KubeConfigOptions::default() };
        let config = match &target.kubeconfig {
            Some(file) => match Kubeconfig::read_from(file) {
                Ok(read) => Config::from_custom_kubeconfig(read, &options).await,
                Err(error) => Err(error),
            },
            None => Config::from_kubeconfig(&options).await,
        };
        let mut config = config.map_err(|error| failure::unreachable(&error))?;
        config.connect_timeout = Some(PATIENCE);
        config.read_timeout = Some(PATIENCE);
        let namespace = target.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| failure::unreachable(&error))?;
        Ok(Self { client, server, namespace, operator_namespace: target.operator_namespace.clone() })
    }

    /// The API server's time: ages are its, and this machine's clock may be off.
    pub(crate) async fn now(&self) -> Result<Timestamp, Failure> {
        let request = http::Request::get("/version").body(Body::empty());
        let request = request.map_err(|error| failure::unreachable(&error))?;
        let answer = self.client.send(request).await.map_err(|error| failure::of(&error).at(&self.server))?;
        let date = answer.headers().get(DATE).and_then(|date| rfc2822::parse(date.to_str().ok()?).ok());
        Ok(date.map_or_else(Timestamp::now, |date| date.timestamp()))
    }
}
