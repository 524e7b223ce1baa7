//! The cluster itself: what every other test takes for granted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::testing::{TestNamespace, namespace_for_test};
use e2e::{audit, command, go_tools::GoTools, http, images, wait};
use k8s_openapi::api::core::v1::Pod;
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(120);

/// A pod that says what it can see, behind a Service of the same name.
fn probe() -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: probe
  labels: {{app: probe, app.kubernetes.io/name: probe}}
  annotations: {{prometheus.io/scrape: "true", prometheus.io/port: "8080"}}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
  - name: probe
    image: {}
    imagePullPolicy: Never
    readinessProbe:
      httpGet: {{path: /readyz, port: 8080}}
      periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata: {{name: probe}}
spec:
  selector: {{app: probe}}
  ports:
  - {{port: 80, targetPort: 8080}}
"#,
        images::PROBE
    )
}

/// Starts the probe and gives back where it answers.
async fn start_probe(test: &TestNamespace) -> Result<String> {
    test.apply(&probe()).await?;
    let pods = test.api::<Pod>();
    wait::until("the probe to be Ready", Duration::from_secs(60), || async {
        let status = pods.get("probe").await?.status.context("no status yet")?;
        let is_ready =
            status.conditions.unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True");
        Ok(status.pod_ip.filter(|_| is_ready).map(|address| format!("http://{address}:8080")))
    })
    .await
}

/// Asks the probe until it answers as wanted.
async fn until_answer(probe: &str, question: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
    wait::until(&format!("the answer to {question}"), Duration::from_secs(30), || async {
        let answer = http::get(&format!("{probe}{question}")).await?;
        ensure!(wanted(&answer), "the answer was {answer:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_pod_becomes_ready_and_is_reached_through_its_service_by_name() -> Result<()> {
    let cluster = Cluster::attach()?;
    let test = namespace_for_test(&cluster.client().await?, "pod").await?;
    test.run(DEADLINE, async {
        let probe = start_probe(&test).await?;
        let name = format!("probe.{}.svc", test.name);
        until_answer(&probe, &format!("/lookup?host={name}"), |answer| answer.starts_with("10.96.")).await?;
        // A pod that reaches itself through its own Service takes the longest way round there is.
        until_answer(&probe, &format!("/get?url=http://{name}/hostname"), |answer| answer.trim() == "probe")
            .await
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn pods_reach_the_brokers_beside_the_cluster_by_name_and_nothing_outside() -> Result<()> {
    let cluster = Cluster::attach()?;
    let test = namespace_for_test(&cluster.client().await?, "brokers").await?;
    test.run(DEADLINE, async {
        let probe = start_probe(&test).await?;
        for broker in ["rabbitmq.default.svc:5672", "rabbitmq.default.svc:15672", "redis.default.svc:6379"] {
            until_answer(&probe, &format!("/connect?to={broker}"), |answer| answer.trim() == "connected")
                .await?;
        }
        // 192.0.2.0/24 is kept for documentation, so this leads nowhere even if packets did get out.
        let outside = http::get(&format!("{probe}/connect?to=192.0.2.1:80")).await;
        ensure!(outside.is_err(), "a pod reached the outside");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn prometheus_scrapes_a_pod_that_asks_for_it() -> Result<()> {
    let cluster = Cluster::attach()?;
    let test = namespace_for_test(&cluster.client().await?, "scrape").await?;
    test.run(DEADLINE, async {
        start_probe(&test).await?;
        let selector = format!(r#"up{{namespace="{}",pod="probe",job="probe"}}"#, test.name);
        let query = format!("{}/api/v1/query?query={selector}", cluster.prometheus.url());
        wait::until("a sample of the probe", Duration::from_secs(30), || async {
            let answer = http::get_json(&query).await?;
            Ok(answer["data"]["result"].as_array().is_some_and(|series| series.len() == 1).then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn helm_lists_releases_of_a_namespace() -> Result<()> {
    let cluster = Cluster::attach()?;
    let test = namespace_for_test(&cluster.client().await?, "helm").await?;
    test.run(DEADLINE, async {
        let mut helm = Command::new(GoTools::built()?.program("helm"));
        helm.args(["list", "--output", "json", "--namespace", &test.name])
            .env("KUBECONFIG", cluster.kubeconfig());
        let releases = command::output(&mut helm, Duration::from_secs(30)).await?;
        ensure!(releases.trim() == "[]", "helm said {releases:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn every_write_is_in_the_audit_log_once_it_is_answered() -> Result<()> {
    let cluster = Cluster::attach()?;
    let test = namespace_for_test(&cluster.client().await?, "audit").await?;
    test.run(DEADLINE, async {
        let mark = audit::mark()?;
        let written = |namespace: &str| {
            let namespace = namespace.to_owned();
            move |event: &audit::Event| {
                event.user.username == "admin"
                    && event.is_write()
                    && event.is_about("configmaps")
                    && event.object_ref.as_ref().is_some_and(|object| object.namespace == namespace)
            }
        };
        test.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: one}}").await?;
        ensure!(audit::count(mark, written(&test.name))? == 1);
        test.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: two}}").await?;
        ensure!(audit::count(mark, written(&test.name))? == 2);
        ensure!(audit::count(audit::mark()?, written(&test.name))? == 0);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_namespace_is_deleted_although_its_test_failed() -> Result<()> {
    let cluster = Cluster::attach()?;
    let client = cluster.client().await?;
    let test = namespace_for_test(&client, "failing").await?;
    let failed = test.run(Duration::from_secs(1), std::future::pending::<Result<()>>()).await;
    ensure!(format!("{:#}", failed.unwrap_err()).contains("longer than 1s"));
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> = kube::Api::all(client);
    wait::until("the namespace to be gone", Duration::from_secs(60), || async {
        Ok(namespaces.get_opt(&test.name).await?.is_none().then_some(()))
    })
    .await
}
