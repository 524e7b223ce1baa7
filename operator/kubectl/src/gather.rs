//! Reads the cluster into a [`Snapshot`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, ListParams, PostParams};
use kube::{Api, Client, CustomResourceExt as _, Resource};
use serde::de::DeserializeOwned;
use soloist_operator::api::v1alpha1::TaskQueue;
use soloist_operator::permissions::{OWN_PERMISSIONS, PERMISSIONS, attributes};
use soloist_operator::plan::metadata::{SCALE_IN_POLICY, TASK_QUEUE_LABEL};
use soloist_operator::plan::workers::WorkerPod;
use soloist_terminal::{Failure, told};

use crate::cluster::Cluster;
use crate::failure;
use crate::snapshot::{
    Address, Fence, Operator, Purpose, SecretFacts, Seen, ServiceFacts, Snapshot, Subject, Surroundings,
    Unread, service_of,
};
use crate::status::{happened, waits_for};

/// Questions under way at a time: as many as an API server gladly takes from one client.
const CONCURRENCY: usize = 16;

/// Where the chart's notes and the samples put the operator.
const OPERATOR_NAMESPACE: &str = "soloist-system";

/// How a Deployment is found that is an operator, whatever its name.
const OPERATOR_LABELS: &str = "app.kubernetes.io/part-of=soloist,app.kubernetes.io/component=operator";

/// Which TaskQueues are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope<'a> {
    /// Those of all namespaces.
    All,
    /// Those of a namespace.
    Namespace(&'a str),
    /// One.
    One(&'a str, &'a str),
}

/// Everything that the doctor looks at.
pub(crate) async fn snapshot(cluster: &Cluster, scope: Scope<'_>) -> Result<Snapshot, Failure> {
    let client = &cluster.client;
    // Whether there is an API server at all, and whether it knows us.
    let now = cluster.now().await?;
    let definition = definition(client).await;
    let task_queues = match &definition {
        Ok(None) => Vec::new(),
        _ => task_queues(client, scope).await?,
    };
    let (operators, fence) = (operators(cluster).await, fence(client).await);
    let names: BTreeSet<String> = task_queues.iter().map(Subject::namespace).collect();
    let around = join_all(names.into_iter().map(|namespace| {
        let here: Vec<&Subject> =
            task_queues.iter().filter(|task_queue| task_queue.namespace() == namespace).collect();
        let operators = &operators;
        async move {
            let surroundings = surroundings(client, &namespace, &here, operators).await;
            (namespace, surroundings)
        }
    }));
    let namespaces = around.await.into_iter().collect();
    Ok(Snapshot { now, definition, fence, operators, task_queues, namespaces })
}

/// The TaskQueues that were asked for, sorted.
pub(crate) async fn task_queues(client: &Client, scope: Scope<'_>) -> Result<Vec<Subject>, Failure> {
    let kind = ApiResource::erase::<TaskQueue>(&());
    let list = ListParams::default();
    let found = match scope {
        Scope::All => Api::<DynamicObject>::all_with(client.clone(), &kind).list(&list).await,
        Scope::Namespace(namespace) => {
            Api::namespaced_with(client.clone(), namespace, &kind).list(&list).await
        }
        Scope::One(namespace, name) => {
            let one = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind).get(name).await;
            return one.map(|object| vec![Subject::new(object)]).map_err(|error| {
                failure::of(&error).hint(format!("in namespace {namespace}; another one: -n NAMESPACE"))
            });
        }
    };
    let mut found: Vec<Subject> =
        found.map_err(|error| failure::of(&error))?.items.into_iter().map(Subject::new).collect();
    found.sort_by_key(|task_queue| (task_queue.namespace(), task_queue.name()));
    Ok(found)
}

/// One TaskQueue, of the type that this program knows.
pub(crate) async fn task_queue(cluster: &Cluster, name: &str) -> Result<TaskQueue, Failure> {
    let scope = Scope::One(&cluster.namespace, name);
    let mut found = task_queues(&cluster.client, scope).await?;
    let found = found.pop().ok_or_else(|| Failure::other(format!("there is no TaskQueue {name}")))?;
    found.task_queue.map_err(|error| {
        Failure::other(format!("TaskQueue {name} can't be read: {error}")).hint(
            "is this program of the same version as the operator? `kubectl soloist doctor` compares them",
        )
    })
}

async fn definition(client: &Client) -> Seen<Option<CustomResourceDefinition>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = TaskQueue::crd_name();
    seen("the definition of TaskQueues (CRD)", definitions.get_opt(name).await)
}

async fn fence(client: &Client) -> Seen<Fence> {
    let what = format!("the ValidatingAdmissionPolicy {SCALE_IN_POLICY} and its binding");
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    if seen(&what, policies.get_opt(SCALE_IN_POLICY).await)?.is_none() {
        return Ok(Fence::Missing);
    }
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
    let Some(binding) = seen(&what, bindings.get_opt(SCALE_IN_POLICY).await)? else {
        return Ok(Fence::Unbound);
    };
    let actions = binding.spec.and_then(|spec| spec.validation_actions).unwrap_or_default();
    Ok(if actions.iter().any(|action| action == "Deny") { Fence::Denies } else { Fence::Lenient })
}

/// The operators of the cluster, with what they need.
pub(crate) async fn operators(cluster: &Cluster) -> Seen<Vec<Operator>> {
    let client = &cluster.client;
    let list = ListParams::default().labels(OPERATOR_LABELS);
    let what = "the operator's Deployment";
    let deployments = match &cluster.operator_namespace {
        Some(namespace) => seen(what, api::<Deployment>(client, namespace).list(&list).await)?,
        None => match seen(what, Api::<Deployment>::all(client.clone()).list(&list).await) {
            Ok(everywhere) => everywhere,
            Err(unread) => {
                // Not in all namespaces, but perhaps in the one where it usually is.
                let usual = api::<Deployment>(client, OPERATOR_NAMESPACE).list(&list).await;
                usual.ok().filter(|found| !found.items.is_empty()).ok_or(unread)?
            }
        },
    };
    Ok(join_all(deployments.items.into_iter().map(|deployment| operator(client, deployment))).await)
}

async fn operator(client: &Client, deployment: Deployment) -> Operator {
    let mut operator = Operator {
        pods: not_asked(),
        lease: not_asked(),
        denied: not_asked(),
        network_policies: not_asked(),
        deployment,
    };
    let namespace = operator.namespace();
    let selector = operator.deployment.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone());
    let labels: Vec<String> =
        selector.unwrap_or_default().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let list = ListParams::default().labels(&labels.join(","));
    let pods = api::<Pod>(client, &namespace).list(&list).await.map(|pods| pods.items);
    operator.pods = seen(&format!("the operator's pods in namespace {namespace}"), pods);
    let (lease, of) = operator.lease_name();
    let found = api::<Lease>(client, &of).get_opt(&lease).await;
    operator.lease = seen(&format!("the operator's Lease {lease} in namespace {of}"), found);
    operator.network_policies = network_policies(client, &namespace).await;
    operator.denied = denied(client, &operator).await;
    operator
}

/// What an operator's service account may not do and has to.
async fn denied(client: &Client, operator: &Operator) -> Seen<Vec<String>> {
    let (watched, own) = (operator.watched(), operator.namespace());
    let everywhere = [String::new()];
    let served = if watched.is_empty() { everywhere.as_slice() } else { &watched };
    let needed = served.iter().map(|namespace| (namespace.as_str(), PERMISSIONS));
    let mut questions = Vec::new();
    for (namespace, permissions) in needed.chain([(own.as_str(), OWN_PERMISSIONS)]) {
        for (group, resource, verbs) in permissions {
            for verb in *verbs {
                let place = match namespace {
                    "" => "all namespaces".to_owned(),
                    namespace => format!("namespace {namespace}"),
                };
                let what = format!("{verb} {resource} in {place}");
                questions.push((what, attributes(namespace, group, resource, verb)));
            }
        }
    }
    let asked = questions.into_iter().map(|(what, attributes)| async move {
        may(client, operator, attributes).await.map(|allowed| (!allowed).then_some(what))
    });
    let answers: Vec<_> = stream::iter(asked).buffered(CONCURRENCY).collect().await;
    answers.into_iter().filter_map(Result::transpose).collect()
}

/// Whether an operator may do this.
async fn may(client: &Client, operator: &Operator, attributes: ResourceAttributes) -> Seen<bool> {
    let (namespace, account) = (operator.namespace(), operator.account());
    let groups =
        ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"];
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{namespace}:{account}")),
            groups: Some(groups.map(str::to_owned).to_vec()),
            resource_attributes: Some(attributes),
            ..Default::default()
        },
        ..Default::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    let what = format!("what the service account {account} of the operator may do (subjectaccessreviews)");
    Ok(seen(&what, answer)?.status.is_some_and(|status| status.allowed))
}

async fn surroundings(
    client: &Client,
    namespace: &str,
    task_queues: &[&Subject],
    operators: &Seen<Vec<Operator>>,
) -> Surroundings {
    let (pods, deployments) = (pods(client, namespace), deployments(client, namespace));
    let (pods, deployments, network_policies, warnings) =
        tokio::join!(pods, deployments, network_policies(client, namespace), warnings(client, namespace));
    let named: BTreeSet<(Purpose, String)> =
        task_queues.iter().flat_map(|subject| subject.secrets()).collect();
    let secrets = join_all(named.into_iter().map(|(purpose, name)| async move {
        let facts = secret(client, namespace, purpose, &name, operators).await;
        ((purpose, name), facts)
    }));
    let secrets: BTreeMap<_, _> = secrets.await.into_iter().collect();
    let read =
        secrets.values().filter_map(|facts| facts.content.as_ref().ok()?.as_ref()?.as_ref().ok().cloned());
    let told = task_queues.iter().filter_map(|subject| Address::of(subject.status()?));
    let hosts: BTreeSet<String> =
        read.chain(told).map(|address| address.host).filter(|host| !host.is_empty()).collect();
    let services = join_all(hosts.into_iter().filter_map(|host| {
        let (name, of) = service_of(&host, namespace)?;
        Some(async move { (host, service(client, &name, &of).await) })
    }));
    Surroundings {
        waiting_for: waiting_for(client, namespace, pods.as_deref().unwrap_or_default()).await,
        warnings,
        deployments,
        pods,
        network_policies,
        services: services.await.into_iter().collect(),
        secrets,
    }
}

/// The worker pods of a namespace.
pub(crate) async fn pods(client: &Client, namespace: &str) -> Seen<Vec<Pod>> {
    let list = ListParams::default().labels(TASK_QUEUE_LABEL);
    let found = api::<Pod>(client, namespace).list(&list).await;
    seen(&format!("the worker pods of namespace {namespace}"), found.map(|found| found.items))
}

/// What the workers that run and aren't ready say they wait for.
async fn waiting_for(client: &Client, namespace: &str, pods: &[Pod]) -> BTreeMap<String, String> {
    let unready =
        pods.iter().filter_map(WorkerPod::new).filter(|pod| !pod.never_ran && pod.not_ready_since.is_some());
    let asked =
        unready.map(|pod| async move { Some((waits_for(client, namespace, &pod.name).await?, pod.name)) });
    let said: Vec<_> = stream::iter(asked).buffered(CONCURRENCY).collect().await;
    said.into_iter().flatten().map(|(said, pod)| (pod, said)).collect()
}

/// The last warning about each pod of a namespace.
async fn warnings(client: &Client, namespace: &str) -> BTreeMap<String, String> {
    let list = ListParams::default().fields("type=Warning,involvedObject.kind=Pod");
    let mut events =
        api::<Event>(client, namespace).list(&list).await.map(|found| found.items).unwrap_or_default();
    events.sort_by_key(happened);
    let of_pod = |event: Event| Some((event.involved_object.name?, event.message?));
    events.into_iter().filter_map(of_pod).collect()
}

async fn deployments(client: &Client, namespace: &str) -> Seen<Vec<Deployment>> {
    let list = ListParams::default().labels(TASK_QUEUE_LABEL);
    let found = api::<Deployment>(client, namespace).list(&list).await;
    seen(&format!("the workers' Deployments of namespace {namespace}"), found.map(|found| found.items))
}

async fn network_policies(
    client: &Client,
    namespace: &str,
) -> Seen<Vec<k8s_openapi::api::networking::v1::NetworkPolicy>> {
    let found = api(client, namespace).list(&ListParams::default()).await;
    seen(&format!("the NetworkPolicies of namespace {namespace}"), found.map(|found| found.items))
}

async fn secret(
    client: &Client,
    namespace: &str,
    purpose: Purpose,
    name: &str,
    operators: &Seen<Vec<Operator>>,
) -> SecretFacts {
    let found = api::<Secret>(client, namespace).get_opt(name).await;
    let content = seen(&format!("the Secret {name} of namespace {namespace}"), found);
    let address = |secret: Secret| Address::read(purpose, &secret.data.unwrap_or_default());
    let operator_may = match operators {
        Err(unread) => Err(unread.clone()),
        Ok(operators) => match operators.iter().find(|operator| operator.serves(namespace)) {
            // That there is none is said elsewhere.
            None => Ok(true),
            Some(operator) => {
                let named = ResourceAttributes {
                    name: Some(name.to_owned()),
                    ..attributes(namespace, "", "secrets", "get")
                };
                may(client, operator, named).await
            }
        },
    };
    SecretFacts { content: content.map(|secret| secret.map(address)), operator_may }
}

async fn service(client: &Client, name: &str, namespace: &str) -> Seen<Option<ServiceFacts>> {
    let what = format!("the Service {name} of namespace {namespace}");
    let Some(service) = seen(&what, api::<Service>(client, namespace).get_opt(name).await)? else {
        return Ok(None);
    };
    let list = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
    let slices = api::<EndpointSlice>(client, namespace).list(&list).await.ok();
    let ready = slices.filter(|slices| !slices.items.is_empty()).map(|slices| {
        let endpoints = slices.items.iter().flat_map(|slice| &slice.endpoints);
        let is_ready = |ready: Option<bool>| ready != Some(false);
        endpoints.filter(|endpoint| is_ready(endpoint.conditions.as_ref().and_then(|now| now.ready))).count()
    });
    let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
    Ok(Some(ServiceFacts {
        ready,
        ports: ports.iter().filter_map(|port| u16::try_from(port.port).ok()).collect(),
    }))
}

fn api<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    Api::namespaced(client.clone(), namespace)
}

fn not_asked<T>() -> Seen<T> {
    Err(Unread { what: "the operator".to_owned(), why: "not asked".to_owned() })
}

/// An answer of the API server, or why there is none.
pub(crate) fn seen<T>(what: &str, answer: Result<T, kube::Error>) -> Seen<T> {
    answer.map_err(|error| Unread {
        what: what.to_owned(),
        why: match &error {
            kube::Error::Api(status) if status.is_forbidden() => "you may not read it".to_owned(),
            kube::Error::Api(status) => status.message.clone(),
            error => told(error),
        },
    })
}
