//! The Deployment of a TaskQueue's workers.
//!
//! Pods are as restricted as Kubernetes' `restricted` standard asks: no root, no capabilities, no writable root file system, no
//! service-account token. `spec.worker.template` is merged over all of it.

use std::collections::BTreeMap;

use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
    ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use super::metadata::{
    APPLIED_HASH_ANNOTATION, deployment_name, fnv1a, labels, node_name, owner_reference, selector,
};
use super::topology::Topology;
use crate::api::v1alpha1::{ImagePullPolicy, TaskQueue, WorkerSpec};

/// Name of the container that runs tasks.
pub const WORKER_CONTAINER: &str = "worker";

/// The user of the images, and of the containers unless the template says otherwise.
const USER: i64 = 65532;

/// Name of the variable with the queues that a worker consumes.
pub const QUEUES_VARIABLE: &str = "SOLOIST_QUEUES";

const HTTP_PORT: i32 = 8080;
/// What a worker remembers when its container is started again: that it is to take no more tasks.
const STATE_DIRECTORY: &str = "/var/lib/soloist";
const BROKER_DIRECTORY: &str = "/etc/soloist/broker";
const RESULTS_DIRECTORY: &str = "/etc/soloist/results";

/// How much longer than its drain timeout a worker gets before it is killed: to give back what it doesn't do, and to say goodbye.
const SHUTDOWN_MARGIN_SECONDS: u32 = 10;

/// The Deployment that a TaskQueue is to have, without its number of replicas.
///
/// `template` is the parsed `spec.worker.template`.
pub fn deployment(
    task_queue: &TaskQueue,
    topology: &Topology,
    template: Option<PodTemplateSpec>,
) -> Deployment {
    let name = task_queue.name_any();
    let mut pod = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(task_queue)), ..Default::default() }),
        spec: Some(pod_spec(task_queue, topology)),
    };
    if let Some(template) = template {
        let own = own_probes(&template);
        if !own.is_empty() {
            forget_probes(&mut pod, &own);
        }
        pod.merge_from(template);
        // The Deployment finds its pods by this label, whatever the template says.
        let labels = pod.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.extend(selector(&name));
    }
    let mut deployment = Deployment {
        metadata: ObjectMeta {
            name: Some(deployment_name(&name)),
            namespace: task_queue.namespace(),
            labels: Some(labels(task_queue)),
            owner_references: owner_reference(task_queue).map(|owner| vec![owner]),
            ..Default::default()
        },
        spec: Some(DeploymentSpec {
            selector: LabelSelector { match_labels: Some(selector(&name)), ..Default::default() },
            template: pod,
            // A rollout waits for tasks, and isn't stuck because of that.
            progress_deadline_seconds: Some(progress_deadline_seconds(task_queue)),
            ..Default::default()
        }),
        status: None,
    };
    let hash = hash(&deployment);
    deployment.metadata.annotations = Some(BTreeMap::from([(APPLIED_HASH_ANNOTATION.to_owned(), hash)]));
    deployment
}

/// The probes by which the template has its worker asked. Then ours, over HTTP, are not for it. A probe that says only how often is one of ours
/// with other numbers.
fn own_probes(template: &PodTemplateSpec) -> Vec<&Probe> {
    let containers = template.spec.iter().flat_map(|spec| &spec.containers);
    let workers = containers.filter(|container| container.name == WORKER_CONTAINER);
    let probes = workers.flat_map(|worker| {
        [&worker.startup_probe, &worker.readiness_probe, &worker.liveness_probe].into_iter().flatten()
    });
    let has_a_way = |probe: &&Probe| {
        probe.exec.is_some() || probe.grpc.is_some() || probe.http_get.is_some() || probe.tcp_socket.is_some()
    };
    probes.filter(has_a_way).collect()
}

/// Takes our probes off, and with them the port where nobody answers.
fn forget_probes(pod: &mut PodTemplateSpec, own: &[&Probe]) {
    for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        (container.startup_probe, container.readiness_probe, container.liveness_probe) = (None, None, None);
        if own.iter().all(|probe| probe.http_get.is_none()) {
            container.ports = None;
        }
    }
}

/// Kubernetes' own deadline for a step of a rollout, and the time that a worker may take to finish its task.
fn progress_deadline_seconds(task_queue: &TaskQueue) -> i32 {
    let drain = i32::try_from(task_queue.spec.worker.drain_timeout_seconds()).unwrap_or(i32::MAX);
    drain.saturating_add(600)
}

fn hash(deployment: &Deployment) -> String {
    // Maps are sorted, so equal Deployments are equal texts.
    let text = serde_json::to_vec(deployment).unwrap_or_default();
    format!("{:016x}", fnv1a(&text))
}

fn pod_spec(task_queue: &TaskQueue, topology: &Topology) -> PodSpec {
    let spec = &task_queue.spec;
    let results_secret = spec.results.as_ref().and_then(|results| results.secret_ref.as_ref());
    let secret_volume = |name: &str, secret: &str| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource { secret_name: Some(secret.to_owned()), ..Default::default() }),
        ..Default::default()
    };
    let empty_volume = |name: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Default::default()
    };
    let mut volumes = vec![
        secret_volume("broker", &spec.broker.secret_ref.name),
        // The root file system is read-only, and most programs need some place for temporary files.
        empty_volume("tmp"),
        empty_volume("state"),
    ];
    volumes.extend(results_secret.map(|secret| secret_volume("results", &secret.name)));
    PodSpec {
        containers: vec![container(task_queue, topology)],
        volumes: Some(volumes),
        termination_grace_period_seconds: Some(i64::from(
            spec.worker.drain_timeout_seconds().saturating_add(SHUTDOWN_MARGIN_SECONDS),
        )),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        // The worker isn't process 1 then. The kernel drops signals to process 1 until it has asked for them: a SIGTERM that
        // comes while the container starts would be lost, and the pod would go on working for its whole grace period.
        share_process_namespace: Some(true),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container(task_queue: &TaskQueue, topology: &Topology) -> Container {
    let worker = &task_queue.spec.worker;
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..Default::default()
    };
    let mut mounts = vec![
        mount("broker", BROKER_DIRECTORY, true),
        mount("tmp", "/tmp", false),
        mount("state", STATE_DIRECTORY, false),
    ];
    if task_queue.spec.results.as_ref().is_some_and(|results| results.secret_ref.is_some()) {
        mounts.push(mount("results", RESULTS_DIRECTORY, true));
    }
    let probe = |path: &str, period_seconds: i32, failure_threshold: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..Default::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failure_threshold),
        ..Default::default()
    };
    let optional = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    Container {
        name: WORKER_CONTAINER.to_owned(),
        image: Some(worker.image.clone()),
        image_pull_policy: worker.image_pull_policy.map(ImagePullPolicy::as_str).map(str::to_owned),
        command: optional(&worker.command),
        args: optional(&worker.args),
        env: Some(environment(task_queue, topology)),
        env_from: (!worker.env_from.is_empty()).then(|| worker.env_from.clone()),
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: HTTP_PORT,
            protocol: Some("TCP".to_owned()),
            ..Default::default()
        }]),
        resources: Some(resources(worker)),
        volume_mounts: Some(mounts),
        // Asked every second until the first answer, so that readiness is asked right then and not a period later. It looks at
        // liveness: a broker that is down must not restart workers.
        startup_probe: Some(probe("/livez", 1, 120)),
        // Quick to tell that a worker drains: a rollout goes on when the workers that it has chosen aren't ready any more.
        readiness_probe: Some(probe("/readyz", 2, 2)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn resources(worker: &WorkerSpec) -> ResourceRequirements {
    let optional = |amounts: &BTreeMap<_, _>| (!amounts.is_empty()).then(|| amounts.clone());
    ResourceRequirements {
        requests: optional(&worker.resources.requests),
        limits: optional(&worker.resources.limits),
        ..Default::default()
    }
}

fn environment(task_queue: &TaskQueue, topology: &Topology) -> Vec<EnvVar> {
    let set = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        ..Default::default()
    };
    let queues: Vec<_> = topology.consumed().collect();
    let mut environment = vec![
        EnvVar {
            name: "POD_NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    field_path: "metadata.name".to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        },
        set("SOLOIST_APP", &task_queue.name_any()),
        set("SOLOIST_BROKER_DIR", BROKER_DIRECTORY),
        set(QUEUES_VARIABLE, &queues.join(",")),
        set("SOLOIST_STATE_DIR", STATE_DIRECTORY),
        // Kubernetes puts in the value of the variable above.
        set("SOLOIST_NODE_NAME", &node_name("$(POD_NAME)")),
        set("SOLOIST_CREATE_MISSING_QUEUES", "false"),
        set("SOLOIST_HTTP_ADDRESS", &format!("0.0.0.0:{HTTP_PORT}")),
        set("SOLOIST_LOG_FORMAT", "json"),
        set("SOLOIST_LOG", "info"),
    ];
    if let Some(results) = &task_queue.spec.results {
        environment.push(match results.secret_ref {
            Some(_) => set("SOLOIST_RESULTS_DIR", RESULTS_DIRECTORY),
            None => set("SOLOIST_RESULTS", "rpc://"),
        });
    }
    let worker = &task_queue.spec.worker;
    let limits = [
        ("SOLOIST_TIME_LIMIT", worker.task_time_limit_seconds),
        ("SOLOIST_SOFT_TIME_LIMIT", worker.task_soft_time_limit_seconds),
    ];
    environment
        .extend(limits.into_iter().filter_map(|(name, seconds)| Some(set(name, &seconds?.to_string()))));
    for own in &worker.env {
        environment.retain(|variable| variable.name != own.name);
        environment.push(own.clone());
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn task_queue(spec: Value) -> TaskQueue {
        let mut whole = json!({
            "broker": {"secretRef": {"name": "rabbitmq"}},
            "worker": {"image": "soloist-worker:0.1.0"},
            "scaling": {"maxReplicas": 5},
        });
        for (name, value) in spec.as_object().unwrap() {
            whole[name] = value.clone();
        }
        serde_json::from_value(json!({
            "apiVersion": "soloist.dev/v1alpha1",
            "kind": "TaskQueue",
            "metadata": {"name": "red", "namespace": "default", "uid": "1"},
            "spec": whole,
        }))
        .unwrap()
    }

    fn planned(spec: Value) -> Value {
        let task_queue = task_queue(spec);
        let template = task_queue.spec.worker.template().unwrap();
        serde_json::to_value(deployment(&task_queue, &Topology::new(&task_queue), template)).unwrap()
    }

    fn env(deployment: &Value) -> BTreeMap<String, Value> {
        let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        env.iter()
            .map(|variable| (variable["name"].as_str().unwrap().into(), variable["value"].clone()))
            .collect()
    }

    #[test]
    fn belongs_to_its_task_queue() {
        let deployment = planned(json!({}));
        let owner = &deployment["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["uid"], &owner["controller"]),
            (&"TaskQueue".into(), &"1".into(), &true.into())
        );
        assert_eq!(deployment["metadata"]["name"], "red-worker");
        assert_eq!(deployment["spec"]["selector"]["matchLabels"], json!({"soloist.dev/task-queue": "red"}));
        assert_eq!(
            deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/version"],
            "0.1.0"
        );
    }

    #[test]
    fn leaves_the_number_of_replicas_to_the_autoscaler() {
        assert_eq!(planned(json!({}))["spec"].get("replicas"), None);
    }

    #[test]
    fn worker_is_told_where_and_what_it_is() {
        let env = env(&planned(json!({"queues": [{"name": "a"}, {"name": "b"}]})));
        assert_eq!(env["SOLOIST_QUEUES"], "a,b");
        assert_eq!(env["SOLOIST_NODE_NAME"], "celery@$(POD_NAME)");
        assert_eq!(env["SOLOIST_APP"], "red");
        assert!(!env.contains_key("SOLOIST_RESULTS") && !env.contains_key("SOLOIST_RESULTS_DIR"));
    }

    #[test]
    fn results_come_from_a_secret_or_go_over_the_broker() {
        let redis = planned(json!({"results": {"secretRef": {"name": "redis"}}}));
        assert_eq!(env(&redis)["SOLOIST_RESULTS_DIR"], "/etc/soloist/results");
        assert_eq!(redis["spec"]["template"]["spec"]["volumes"][3]["secret"]["secretName"], "redis");
        assert_eq!(env(&planned(json!({"results": {"rpc": {}}})))["SOLOIST_RESULTS"], "rpc://");
    }

    #[test]
    fn variables_of_the_user_win() {
        let worker = json!({"image": "i", "env": [{"name": "SOLOIST_LOG", "value": "debug"}, {"name": "A", "value": "1"}]});
        let deployment = planned(json!({"worker": worker}));
        let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
        let logs: Vec<_> = env.iter().filter(|variable| variable["name"] == "SOLOIST_LOG").collect();
        assert_eq!(logs, [&json!({"name": "SOLOIST_LOG", "value": "debug"})]);
    }

    #[test]
    fn pods_meet_the_restricted_standard() {
        let pod = &planned(json!({}))["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(container["readOnlyRootFilesystem"], true);
    }

    #[test]
    fn grace_period_is_longer_than_the_drain_timeout() {
        let deployment = planned(json!({"worker": {"image": "i", "drainTimeoutSeconds": 60}}));
        assert_eq!(deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 70);
    }

    #[test]
    fn a_time_limit_for_tasks_sets_all_that_has_to_fit_it() {
        let worker = json!({"image": "i", "taskTimeLimitSeconds": 3600, "taskSoftTimeLimitSeconds": 3000});
        let deployment = planned(json!({"worker": worker}));
        let variables = env(&deployment);
        assert_eq!(
            (&variables["SOLOIST_TIME_LIMIT"], &variables["SOLOIST_SOFT_TIME_LIMIT"]),
            (&"3600".into(), &"3000".into())
        );
        assert_eq!(deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 3610);
        assert_eq!(deployment["spec"]["progressDeadlineSeconds"], 4200);
        assert!(!env(&planned(json!({}))).contains_key("SOLOIST_TIME_LIMIT"));
    }

    #[test]
    fn a_rollout_may_wait_for_as_long_as_workers_may_drain() {
        let deployment = planned(json!({"worker": {"image": "i", "drainTimeoutSeconds": 3600}}));
        assert_eq!(deployment["spec"]["progressDeadlineSeconds"], 4200);
    }

    #[test]
    fn template_is_merged_over_the_pod() {
        let template = json!({
            "metadata": {"labels": {"team": "a", "soloist.dev/task-queue": "other"}, "annotations": {"note": "b"}},
            "spec": {
                "nodeSelector": {"disk": "ssd"},
                "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}],
                "containers": [
                    {"name": "worker", "securityContext": {"readOnlyRootFilesystem": false}},
                    {"name": "proxy", "image": "proxy"},
                ],
            },
        });
        let deployment = planned(json!({"worker": {"image": "i", "template": template}}));
        let pod = &deployment["spec"]["template"];
        assert_eq!(pod["metadata"]["labels"]["team"], "a");
        assert_eq!(pod["metadata"]["labels"]["soloist.dev/task-queue"], "red", "the selector must match");
        assert_eq!(pod["metadata"]["annotations"]["note"], "b");
        assert_eq!(pod["spec"]["nodeSelector"]["disk"], "ssd");
        assert_eq!(pod["spec"]["volumes"][1]["emptyDir"]["medium"], "Memory");
        let containers = &pod["spec"]["containers"];
        assert_eq!((&containers[0]["name"], &containers[1]["name"]), (&"worker".into(), &"proxy".into()));
        assert_eq!(containers[0]["image"], "i");
        assert_eq!(containers[0]["securityContext"]["readOnlyRootFilesystem"], false);
        assert_eq!(containers[0]["securityContext"]["allowPrivilegeEscalation"], false);
    }

    #[test]
    fn a_probe_of_the_templates_own_takes_the_place_of_all_of_ours() {
        let probes = |probes: Value| {
            let mut worker = probes;
            worker["name"] = "worker".into();
            let template = json!({"spec": {"containers": [worker]}});
            let deployment = planned(json!({"worker": {"image": "i", "template": template}}));
            let container = &deployment["spec"]["template"]["spec"]["containers"][0];
            ["startupProbe", "readinessProbe", "livenessProbe", "ports"].map(|field| container[field].clone())
        };
        let own = json!({"exec": {"command": ["/bin/true"]}});
        let [startup, readiness, liveness, ports] = probes(json!({"startupProbe": own}));
        assert_eq!((startup, readiness, liveness), (own, Value::Null, Value::Null));
        assert_eq!(ports, Value::Null, "Prometheus isn't sent where nobody answers");
        let [startup, _, liveness, _] = probes(json!({"livenessProbe": {"periodSeconds": 30}}));
        assert_eq!(
            (&liveness["periodSeconds"], &liveness["httpGet"]["path"]),
            (&30.into(), &"/livez".into())
        );
        assert_eq!(startup["httpGet"]["path"], "/livez");
    }

    #[test]
    fn hash_changes_with_what_is_applied_and_only_then() {
        let hash = |spec| planned(spec)["metadata"]["annotations"]["soloist.dev/applied-hash"].clone();
        assert_eq!(hash(json!({})), hash(json!({"scaling": {"maxReplicas": 9}})));
        assert_ne!(hash(json!({})), hash(json!({"worker": {"image": "other"}})));
    }
}
