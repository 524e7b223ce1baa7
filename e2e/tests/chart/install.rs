//! The chart on a real cluster, with the operator's image loaded.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::chart::NAMESPACE;
use e2e::cluster::Cluster;
use e2e::go_tools::GoTools;
use e2e::paths::repository;
use e2e::soloist::{self, START, Test, holds};
use e2e::{command, testing, wait};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::helm::CHART;
use crate::values::COMBINATIONS;

const DEADLINE: Duration = Duration::from_secs(240);

/// Held by the tests that use the release `soloist`, which is one for the whole cluster.
pub(crate) static RELEASE: Mutex<()> = Mutex::const_new(());

/// A program of the cluster's own, with all rights on it.
pub(crate) fn program(cluster: &Cluster, name: &str) -> Result<Command> {
    let mut command = Command::new(GoTools::built()?.program(name));
    command.current_dir(repository()).env("KUBECONFIG", cluster.kubeconfig());
    Ok(command)
}

pub(crate) async fn run(cluster: &Cluster, name: &str, args: &[&str]) -> Result<String> {
    command::output(program(cluster, name)?.args(args), Duration::from_secs(120)).await
}

fn task_queues(client: &kube::Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("soloist.dev", "v1alpha1", "TaskQueue");
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk(&kind))
}

pub(crate) async fn install(cluster: &Cluster) -> Result<String> {
    let place = ["--namespace", NAMESPACE, "--create-namespace"];
    let args =
        [&["upgrade", "--install", "soloist", CHART, "--wait", "--timeout", "90s"][..], &place[..]].concat();
    run(cluster, "helm", &args).await
}

/// What `helm test` runs must pass, and must leave nothing behind.
async fn passes_its_test(cluster: &Cluster, release: &str, namespace: &str) -> Result<()> {
    let said = run(cluster, "helm", &["test", release, "--namespace", namespace, "--timeout", "60s"]).await?;
    ensure!(said.matches("Succeeded").count() >= 2, "helm test said: {said}");
    let pods: Api<Pod> = Api::namespaced(cluster.client().await?, namespace);
    let tests = ListParams::default().labels("app.kubernetes.io/component=test");
    wait::until("the test's pods to be gone", Duration::from_secs(30), || async {
        Ok(pods.list(&tests).await?.items.is_empty().then_some(()))
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster, with the operator's image"]
async fn installs_tests_uninstalls_and_adopts_what_was_kept() -> Result<()> {
    let cluster = Cluster::attach()?;
    let client = cluster.client().await?;
    let _release = RELEASE.lock().await;
    let test = testing::namespace_for_test(&client, "chart-install").await?;
    test.run(DEADLINE, async {
        install(&cluster).await?;
        passes_its_test(&cluster, "soloist", NAMESPACE).await?;

        test.apply(&std::fs::read_to_string(repository().join("manifests/samples/taskqueue.yaml"))?).await?;
        let task_queues = task_queues(&client, &test.name);
        let uid = task_queues.get("emails").await?.metadata.uid;
        run(&cluster, "helm", &["uninstall", "soloist", "--namespace", NAMESPACE, "--wait"]).await?;
        ensure!(task_queues.get("emails").await?.metadata.uid == uid, "the TaskQueue did not survive");

        install(&cluster).await?;
        ensure!(task_queues.get("emails").await?.metadata.uid == uid, "the TaskQueue is another one");
        passes_its_test(&cluster, "soloist", NAMESPACE).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster, with the operator's image"]
async fn a_restricted_namespace_takes_an_install_without_cluster_wide_rights() -> Result<()> {
    let cluster = Cluster::attach()?;
    let client = cluster.client().await?;
    let _release = RELEASE.lock().await;
    let test = testing::namespace_for_test(&client, "chart-single").await?;
    test.run(DEADLINE, async {
        restrict(&client, &test.name).await?;
        // The API server has to know the kind, whoever installed it.
        run(
            &cluster,
            "kubectl",
            &["apply", "--server-side", "--force-conflicts", "-f", "manifests/crd.yaml"],
        )
        .await?;

        let watch = format!("watch.namespaces={{{}}}", test.name);
        let place =
            ["--namespace", &test.name, "--set", "crds.enabled=false,replicaCount=1", "--set", &watch];
        let args = [&["install", "single", CHART, "--wait", "--timeout", "90s"][..], &place[..]].concat();
        run(&cluster, "helm", &args).await?;
        passes_its_test(&cluster, "single", &test.name).await?;
        let manifest =
            run(&cluster, "helm", &["get", "manifest", "single", "--namespace", &test.name]).await?;
        ensure!(!manifest.contains("kind: Cluster"), "{manifest}");

        // The test has to notice a single rule that is missing, and name it.
        let roles: Api<Role> = Api::namespaced(client.clone(), &test.name);
        let mut role = roles.get("single-soloist").await?;
        let scale = Some(vec!["deployments/scale".to_owned()]);
        role.rules.iter_mut().for_each(|rules| rules.retain(|rule| rule.resources != scale));
        roles.replace("single-soloist", &PostParams::default(), &role).await?;
        let failed = passes_its_test(&cluster, "single", &test.name).await;
        ensure!(failed.is_err(), "helm test passes without a rule");
        let logs = ["logs", "single-soloist-test-operator", "--namespace", &test.name];
        let said = run(&cluster, "kubectl", &logs).await?;
        ensure!(said.contains("deployments/scale"), "it does not name what is missing: {said}");
        run(&cluster, "helm", &["uninstall", "single", "--namespace", &test.name]).await.map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster, with the images"]
async fn an_upgrade_and_the_way_back_leave_workers_alone() -> Result<()> {
    let _release = RELEASE.lock().await;
    let test = Test::new("chart-upgrade").await?;
    test.run(DEADLINE, async {
        install(&test.cluster).await?;
        // Where only pods of the restricted standard are let in, which the workers are too.
        restrict(&test.client, &test.namespace.name).await?;
        test.task_queue("jobs", "{minReplicas: 2, maxReplicas: 3}").await?;
        wait::until("two workers to be ready", START, || async {
            Ok((test.pods("jobs").await?.iter().filter(|pod| soloist::is_ready(pod)).count() == 2)
                .then_some(()))
        })
        .await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        let workers = async || -> Result<Vec<_>> {
            let mut pods: Vec<_> = test.pods("jobs").await?.into_iter().map(|pod| pod.metadata.uid).collect();
            pods.sort();
            Ok(pods)
        };
        let before = workers().await?;
        let template = test.deployment("jobs").await?.metadata.generation;

        let changed = "log.level=debug,replicaCount=1,podAnnotations.changed=yes";
        let upgrade = ["upgrade", "soloist", CHART, "--reset-values", "--set", changed];
        let back = ["rollback", "soloist"];
        for step in [&upgrade[..], &back[..]] {
            let args = [step, &["--namespace", NAMESPACE, "--wait", "--timeout", "90s"][..]].concat();
            let stepping = run(&test.cluster, "helm", &args);
            tokio::pin!(stepping);
            // All the while, and for a few rounds of the new operator.
            let unharmed = || async {
                ensure!(workers().await? == before, "{step:?}: other workers than before");
                let task_queue = test.task_queues().get("jobs").await?;
                let ready = soloist::condition(&task_queue, "Ready").context("no condition")?;
                ensure!(ready["status"] == "True", "{step:?}: {ready}");
                Ok(())
            };
            loop {
                tokio::select! {
                    stepped = &mut stepping => break drop(stepped?),
                    unharmed = holds(Duration::from_millis(500), &unharmed) => unharmed?,
                }
            }
            holds(Duration::from_secs(5), &unharmed).await?;
        }
        ensure!(test.deployment("jobs").await?.metadata.generation == template, "the Deployment was written");
        ensure!(soloist::restarts(&test.pods("jobs").await?) == 0, "a worker was restarted");
        // And the operator that is back does its work.
        test.task_queue("jobs", "{minReplicas: 3, maxReplicas: 3}").await?;
        test.until_replicas("jobs", 3, START).await
    })
    .await
}

/// Lets no pod into a namespace but those of the restricted standard.
async fn restrict(client: &kube::Client, namespace: &str) -> Result<()> {
    let label =
        serde_json::json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
    namespaces.patch(namespace, &PatchParams::default(), &Patch::Merge(label)).await?;
    Ok(())
}

#[tokio::test]
#[ignore = "needs the cluster"]
async fn the_api_server_takes_every_combination_of_values() -> Result<()> {
    // What is there already is patched, so that nobody may take it away meanwhile.
    let _release = RELEASE.lock().await;
    let cluster = Cluster::attach()?;
    let client = cluster.client().await?;
    let test = testing::namespace_for_test(&client, "chart-values").await?;
    test.run(DEADLINE, async {
        for (name, values) in COMBINATIONS {
            // All in one namespace, which exists.
            let values = values.replace("[team-a, team-b]", "[team-a]").replace("team-a", &test.name);
            let file = std::env::temp_dir().join(format!("{}.yaml", test.name));
            let path = file.to_str().context("a temporary folder with a name of plain text")?;
            std::fs::write(&file, values)?;
            // Without the test's pods: dry, they miss the service accounts that are made just before them.
            let place = ["--no-hooks", "--namespace", &test.name, "--values", path];
            let rendered =
                run(&cluster, "helm", &[&["template", "soloist", CHART][..], &place[..]].concat()).await?;
            std::fs::write(&file, rendered)?;
            let dry =
                ["apply", "--dry-run=server", "--validate=strict", "--namespace", &test.name, "-f", path];
            run(&cluster, "kubectl", &dry).await.with_context(|| format!("with {name}"))?;
            std::fs::remove_file(&file)?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster, with the operator's image"]
async fn the_operator_may_read_secrets_only_where_an_owner_said_so() -> Result<()> {
    let cluster = Cluster::attach()?;
    let client = cluster.client().await?;
    let _release = RELEASE.lock().await;
    let test = testing::namespace_for_test(&client, "chart-secrets").await?;
    test.run(DEADLINE, async {
        install(&cluster).await?;
        let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
        let allowed = async |verb: &str, namespace: &str| -> Result<bool> {
            let attributes = ResourceAttributes {
                verb: Some(verb.to_owned()),
                resource: Some("secrets".to_owned()),
                namespace: Some(namespace.to_owned()),
                ..Default::default()
            };
            let spec = SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{NAMESPACE}:soloist")),
                resource_attributes: Some(attributes),
                ..Default::default()
            };
            let review = SubjectAccessReview { spec, ..Default::default() };
            let review = reviews.create(&PostParams::default(), &review).await?;
            Ok(review.status.is_some_and(|status| status.allowed))
        };
        for place in ["", "kube-system", NAMESPACE, &test.name] {
            for verb in ["get", "list", "watch"] {
                ensure!(!allowed(verb, place).await?, "may {verb} secrets in `{place}`");
            }
        }
        test.apply(&std::fs::read_to_string(repository().join("manifests/samples/secret-reader.yaml"))?)
            .await?;
        wait::until("the binding to hold", Duration::from_secs(10), || async {
            Ok(allowed("get", &test.name).await?.then_some(()))
        })
        .await?;
        ensure!(!allowed("list", &test.name).await?, "may list secrets where it was to get them");
        ensure!(!allowed("get", "").await?, "may read secrets everywhere");
        Ok(())
    })
    .await
}
