//! What was seen of a cluster at one moment, as one value: what the doctor judges.
//!
//! What could not be read is in here as such, with the cause: it is told, and never taken for nothing.

use std::collections::BTreeMap;

use celery_client::{BrokerAddress, ResultStoreAddress};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde::Serialize;
use soloist_operator::api::v1alpha1::{TaskQueue, TaskQueueStatus};
use soloist_operator::leader;
use soloist_operator::plan::metadata::{OPERATOR, TASK_QUEUE_LABEL};

/// What was asked for, or why there is no answer.
pub(crate) type Seen<T> = Result<T, Unread>;

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Unread {
    /// What that is: `the Lease of the operator`.
    pub(crate) what: String,
    /// Why.
    pub(crate) why: String,
}

/// A cluster at one moment.
pub(crate) struct Snapshot {
    /// That moment, by the API server's clock.
    pub(crate) now: Timestamp,
    pub(crate) definition: Seen<Option<CustomResourceDefinition>>,
    pub(crate) fence: Seen<Fence>,
    pub(crate) operators: Seen<Vec<Operator>>,
    pub(crate) task_queues: Vec<Subject>,
    /// The namespaces of these TaskQueues.
    pub(crate) namespaces: BTreeMap<String, Surroundings>,
}

/// The ValidatingAdmissionPolicy that keeps scale-in from deleting workers that aren't drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// It is in force.
    Denies,
    /// Its binding warns or audits only.
    Lenient,
    /// It has no binding.
    Unbound,
    /// There is none.
    Missing,
}

/// An operator, by its Deployment.
pub(crate) struct Operator {
    pub(crate) deployment: Deployment,
    pub(crate) pods: Seen<Vec<Pod>>,
    pub(crate) lease: Seen<Option<Lease>>,
    /// What its service account may not do and has to.
    pub(crate) denied: Seen<Vec<String>>,
    pub(crate) network_policies: Seen<Vec<NetworkPolicy>>,
}

/// Who leads, by the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// This pod, which has said so at this time.
    Held { by: String, renewed: Timestamp },
    /// This pod was the last to, and has not said so for too long.
    Stale { by: String, renewed: Timestamp },
    /// Nobody, since somebody gave it up.
    Released,
    /// Nobody ever has.
    Never,
    /// There is no election: whoever runs works.
    NotNeeded,
}

impl Operator {
    pub(crate) fn namespace(&self) -> String {
        self.deployment.namespace().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> String {
        self.deployment.name_any()
    }

    /// The version that its chart gave it.
    pub(crate) fn version(&self) -> Option<&str> {
        self.deployment.labels().get("app.kubernetes.io/version").map(String::as_str)
    }

    /// The command that upgrades its release of the chart with these flags.
    pub(crate) fn upgrade(&self, flags: &str) -> String {
        // Helm notes it on what it installs.
        let release = self.deployment.annotations().get("meta.helm.sh/release-name");
        let release = release.map_or("RELEASE", String::as_str);
        let command = format!("helm upgrade {release} charts/soloist -n {} --reuse-values", self.namespace());
        if flags.is_empty() { command } else { format!("{command} {flags}") }
    }

    /// Its service account.
    pub(crate) fn account(&self) -> String {
        let template = self.deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        template.and_then(|pod| pod.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
    }

    /// The namespaces that it serves; all if there are none.
    pub(crate) fn watched(&self) -> Vec<String> {
        let listed = self.setting("--namespaces", "SOLOIST_NAMESPACES").unwrap_or_default();
        listed.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// Whether it serves a namespace.
    pub(crate) fn serves(&self, namespace: &str) -> bool {
        let watched = self.watched();
        watched.is_empty() || watched.iter().any(|name| name == namespace)
    }

    /// Name and namespace of its Lease.
    pub(crate) fn lease_name(&self) -> (String, String) {
        let name = self.setting("--lease-name", "SOLOIST_LEASE_NAME");
        let namespace = self.setting("--lease-namespace", "SOLOIST_LEASE_NAMESPACE");
        (name.unwrap_or_else(|| OPERATOR.to_owned()), namespace.unwrap_or_else(|| self.namespace()))
    }

    /// Who leads.
    pub(crate) fn leadership(&self, now: Timestamp) -> Result<Leadership, &Unread> {
        if self.setting("--leader-election", "SOLOIST_LEADER_ELECTION").as_deref() == Some("false") {
            return Ok(Leadership::NotNeeded);
        }
        let Some(lease) = self.lease.as_ref()? else { return Ok(Leadership::Never) };
        let spec = lease.spec.clone().unwrap_or_default();
        let renewed = spec.renew_time.map(|time| time.0);
        Ok(match (spec.holder_identity.filter(|holder| !holder.is_empty()), renewed) {
            (Some(by), Some(renewed)) => {
                let holds = spec.lease_duration_seconds.unwrap_or(0).max(0);
                let holds = i64::from(holds).max(i64::try_from(leader::DURATION.as_secs()).unwrap_or(0));
                if now.duration_since(renewed).as_secs() > holds {
                    Leadership::Stale { by, renewed }
                } else {
                    Leadership::Held { by, renewed }
                }
            }
            _ => Leadership::Released,
        })
    }

    fn container(&self) -> Option<&Container> {
        let pod = self.deployment.spec.as_ref()?.template.spec.as_ref()?;
        pod.containers.iter().find(|container| container.name == "operator").or(pod.containers.first())
    }

    /// A flag as it is given, or the variable that stands for it.
    fn setting(&self, flag: &str, variable: &str) -> Option<String> {
        let container = self.container()?;
        let mut args = container.args.iter().flatten();
        let given = args.find_map(|arg| arg.strip_prefix(flag)?.strip_prefix('=').map(str::to_owned));
        let variables = || container.env.iter().flatten();
        given.or_else(|| variables().find(|set| set.name == variable)?.value.clone())
    }
}

/// A TaskQueue.
pub(crate) struct Subject {
    pub(crate) object: DynamicObject,
    /// The same as the type that this program knows, or why it isn't one.
    pub(crate) task_queue: Result<TaskQueue, String>,
}

impl Subject {
    pub(crate) fn new(object: DynamicObject) -> Self {
        let task_queue = object.clone().try_parse().map_err(|error| error.to_string());
        Self { object, task_queue }
    }

    pub(crate) fn namespace(&self) -> String {
        self.object.namespace().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> String {
        self.object.name_any()
    }

    pub(crate) fn status(&self) -> Option<&TaskQueueStatus> {
        self.task_queue.as_ref().ok()?.status.as_ref()
    }

    /// The names of its Secrets, and what they are for.
    pub(crate) fn secrets(&self) -> Vec<(Purpose, String)> {
        let Ok(task_queue) = &self.task_queue else { return Vec::new() };
        let spec = &task_queue.spec;
        let results = spec.results.as_ref().and_then(|results| results.secret_ref.as_ref());
        let mut secrets = vec![(Purpose::Broker, spec.broker.secret_ref.name.clone())];
        secrets.extend(results.map(|secret| (Purpose::Results, secret.name.clone())));
        secrets
    }
}

/// What a Secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    Broker,
    Results,
}

/// What is around the TaskQueues of a namespace.
pub(crate) struct Surroundings {
    pub(crate) deployments: Seen<Vec<Deployment>>,
    /// Pods of workers.
    pub(crate) pods: Seen<Vec<Pod>>,
    /// What workers that aren't ready say they wait for, and what was said last in a warning about a pod, by pod. Evidence: where they may not
    /// be asked, there is none.
    pub(crate) waiting_for: BTreeMap<String, String>,
    pub(crate) warnings: BTreeMap<String, String>,
    pub(crate) network_policies: Seen<Vec<NetworkPolicy>>,
    /// Secrets that TaskQueues name.
    pub(crate) secrets: BTreeMap<(Purpose, String), SecretFacts>,
    /// Services that the hosts of brokers name, by host.
    pub(crate) services: BTreeMap<String, Seen<Option<ServiceFacts>>>,
}

impl Surroundings {
    /// The worker pods of a TaskQueue.
    pub(crate) fn pods_of(&self, task_queue: &str) -> Result<Vec<&Pod>, &Unread> {
        let is_its = |pod: &&Pod| pod.labels().get(TASK_QUEUE_LABEL).is_some_and(|name| name == task_queue);
        Ok(self.pods.as_ref()?.iter().filter(is_its).collect())
    }

    /// The Deployment of a TaskQueue.
    pub(crate) fn deployment_of(&self, task_queue: &str) -> Result<Option<&Deployment>, &Unread> {
        let is_its = |deployment: &&Deployment| {
            deployment.labels().get(TASK_QUEUE_LABEL).is_some_and(|name| name == task_queue)
        };
        Ok(self.deployments.as_ref()?.iter().find(is_its))
    }
}

/// A Secret, without what is secret.
pub(crate) struct SecretFacts {
    /// Where it leads, or what is wrong with it; none if there is no such Secret.
    pub(crate) content: Seen<Option<Result<Address, String>>>,
    /// Whether each of the operators may read it.
    pub(crate) operator_may: Seen<bool>,
}

/// Where a broker is; of a result store, only how to show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Address {
    /// Without the password.
    pub(crate) shown: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) vhost: String,
    /// How its Secret says it.
    pub(crate) form: Form,
}

/// How a Secret says where the broker is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// The Secret was not read.
    #[default]
    Unknown,
    /// In a key for each part.
    Parts,
    /// In one, of this name.
    Uri(String),
}

impl Address {
    /// Reads the keys of a Secret.
    pub(crate) fn read(purpose: Purpose, data: &BTreeMap<String, ByteString>) -> Result<Self, String> {
        let fields = data.iter().map(|(key, value)| (key, &value.0));
        match purpose {
            Purpose::Broker => {
                let address = BrokerAddress::from_fields(fields).map_err(|error| error.to_string())?;
                let is_uri = |key: &&String| {
                    *key != "managementUri" && data[*key].0.windows(3).any(|part| part == b"://")
                };
                let uri_key = data.keys().find(is_uri).filter(|_| !data.contains_key("host")).cloned();
                Ok(Self { form: uri_key.map_or(Form::Parts, Form::Uri), ..Self::from(address) })
            }
            Purpose::Results => {
                let store = ResultStoreAddress::from_fields(fields).map_err(|error| error.to_string())?;
                Ok(Self { shown: store.to_string(), ..Self::default() })
            }
        }
    }

    /// It as a URI, with a placeholder for the password.
    pub(crate) fn uri(&self, host: &str) -> String {
        let scheme = self.shown.split_once("://").map_or("amqp", |(scheme, _)| scheme);
        let vhost = if self.vhost == "/" { "" } else { &self.vhost };
        format!("{scheme}://{}:PASSWORD@{host}/{vhost}", self.user)
    }

    /// The broker that a status names.
    pub(crate) fn of(status: &TaskQueueStatus) -> Option<Self> {
        status.broker.as_ref()?.parse::<BrokerAddress>().ok().map(Self::from)
    }
}

impl From<BrokerAddress> for Address {
    fn from(address: BrokerAddress) -> Self {
        let shown = address.to_string();
        let BrokerAddress { host, port, username: user, vhost, .. } = address;
        Self { shown, host, port, user, vhost, form: Form::Unknown }
    }
}

/// A Service, and how many of its pods are ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceFacts {
    pub(crate) ready: Option<usize>,
    pub(crate) ports: Vec<u16>,
}

/// Name and namespace of the Service that a host may name, seen from a namespace.
pub(crate) fn service_of(host: &str, namespace: &str) -> Option<(String, String)> {
    let mut parts = host.split('.');
    let name = parts.next().filter(|name| !name.is_empty())?;
    match (parts.next(), parts.next()) {
        (None, _) => Some((name.to_owned(), namespace.to_owned())),
        (Some(of), Some("svc")) => Some((name.to_owned(), of.to_owned())),
        _ => None,
    }
}
