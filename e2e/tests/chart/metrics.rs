//! What operator and workers tell Prometheus, asked of a real one.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::soloist::{self, START, Test, send, value};
use e2e::{http, wait};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::Value;
use tokio::time::sleep;

use crate::helm::dashboards;
use crate::install::{RELEASE, install, program};
use crate::monitoring::{alerts, list};

const DEADLINE: Duration = Duration::from_secs(300);
/// A scrape comes every second; a rate takes two.
const SEEN: Duration = Duration::from_secs(20);

/// What dashboards made for controllers written in Go ask for: names and labels of controller-runtime, as kubebuilder's have them.
const STOCK: &[&str] = &[
    "sum(rate(controller_runtime_reconcile_total{JOB}[5m])) by (instance, pod)",
    "sum(rate(controller_runtime_reconcile_errors_total{JOB}[5m])) by (instance, pod)",
    "sum(rate(controller_runtime_reconcile_total{JOB, result='success'}[5m])) by (controller)",
    "controller_runtime_active_workers{JOB}",
    "controller_runtime_max_concurrent_reconciles{JOB}",
    "sum(rate(workqueue_adds_total{JOB}[5m])) by (instance, name)",
    "workqueue_depth{JOB}",
    "sum(rate(workqueue_retries_total{JOB}[5m])) by (instance, name)",
    "histogram_quantile(0.99, sum(rate(workqueue_queue_duration_seconds_bucket{JOB}[5m])) by (instance, name, le))",
    "histogram_quantile(0.99, sum(rate(workqueue_work_duration_seconds_bucket{JOB}[5m])) by (instance, name, le))",
    "rate(workqueue_unfinished_work_seconds{JOB}[5m])",
    "rate(process_cpu_seconds_total{JOB}[5m]) * 100",
    "process_resident_memory_bytes{JOB}",
];

/// Fails unless promtool has nothing to say about these metrics.
fn lint(whose: &str, metrics: &str) -> Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run promtool")?;
    promtool.stdin.take().context("standard input is piped")?.write_all(metrics.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success() && said.is_empty(), "{whose}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

/// Waits until a query has a result that is a number.
async fn returns_data(test: &Test, query: &str) -> Result<()> {
    let parameters = form_urlencoded::Serializer::new(String::new()).append_pair("query", query).finish();
    let url = format!("{}/api/v1/query?{parameters}", test.cluster.prometheus.url());
    wait::until(&format!("data for {query}"), SEEN, || async {
        let answer = http::get_json(&url).await?;
        let results = list(&answer["data"]["result"]).iter();
        let mut numbers = results.filter_map(|result| result["value"][1].as_str());
        Ok(numbers.any(|number| number != "NaN").then_some(()))
    })
    .await
}

fn metrics_url(pod: &Pod) -> Result<String> {
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).context("no address yet")?;
    Ok(format!("http://{address}:8080/metrics"))
}

#[tokio::test]
#[ignore = "needs the cluster, with the images"]
async fn every_query_of_the_dashboards_returns_data() -> Result<()> {
    let _release = RELEASE.lock().await;
    let test = Test::new("metrics").await?;
    test.run(DEADLINE, async {
        install(&test.cluster).await?;
        // A worker that says it is to be scraped, and a TaskQueue whose broker refuses it.
        let scraped = "  worker:
    template: {metadata: {annotations: {prometheus.io/scrape: 'true', prometheus.io/port: '8080'}}}
";
        let yaml =
            soloist::task_queue("jobs", "{minReplicas: 1, maxReplicas: 2}").replace("  worker:\n", scraped);
        test.namespace.apply(&yaml).await?;
        test.secret("wrong", &test.broker_url.replacen("://", "://nobody-", 1)).await?;
        let refused =
            soloist::task_queue("refused", "{maxReplicas: 1}").replace("name: rabbitmq", "name: wrong");
        test.namespace.apply(&refused).await?;
        test.condition("refused", "BrokerReachable", "False", "AuthFailed").await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        wait::until("a worker to be ready", START, || async {
            Ok(test.pods("jobs").await?.iter().any(soloist::is_ready).then_some(()))
        })
        .await?;

        let celery = test.celery().await?;
        // Enough for a second worker: a decision that followed from a backlog.
        for _ in 0..100 {
            drop(send(&celery, "jobs", "tasks.sleep", (0.5,)).await?);
        }
        test.until_replicas("jobs", 2, START).await?;
        let working = async {
            loop {
                let done = send(&celery, "jobs", "tasks.add", (1, 2)).await?;
                drop(send(&celery, "jobs", "tasks.fail", ("on purpose",)).await?);
                drop(send(&celery, "jobs", "tasks.no_such_task", ()).await?);
                value(&done, START).await?;
                sleep(Duration::from_millis(500)).await;
            }
        };
        let looking = async {
            for dashboard in dashboards() {
                for panel in list(&dashboard["panels"]) {
                    for target in list(&panel["targets"]) {
                        let query = target["expr"].as_str().context("a query")?;
                        let query =
                            query.replace("$namespace", &test.namespace.name).replace("$taskqueue", "jobs");
                        returns_data(&test, &query.replace("$__rate_interval", "2m")).await?;
                    }
                }
            }
            for query in STOCK {
                let job = "job='soloist', namespace='soloist-system'";
                returns_data(&test, &query.replace("JOB", job)).await?;
            }
            // Alerts are quiet when all is well; that there is what they look at can be seen all the same.
            for alert in alerts() {
                for metric in metrics_of(&alert) {
                    returns_data(&test, &format!("count({metric})")).await?;
                }
            }

            let worker = test.pods("jobs").await?.into_iter().next().context("a worker")?;
            lint("worker", &http::get(&metrics_url(&worker)?).await?)?;
            let leader = leader(&test).await?;
            let metrics = http::get(&metrics_url(&leader)?).await?;
            lint("operator", &metrics)?;
            let ours = format!("namespace=\"{}\",taskqueue=\"jobs\"", test.namespace.name);
            let series = metrics.matches(&ours).count();
            ensure!((8..=15).contains(&series), "{series} series for a TaskQueue");
            Ok(())
        };
        tokio::select! {
            looked = looking => looked,
            worked = working => worked,
        }
    })
    .await
}

/// The names of the metrics in an alert's expression.
fn metrics_of(alert: &Value) -> Vec<String> {
    let expression = alert["expr"].as_str().unwrap_or_default();
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = ["soloist_", "controller_runtime_", "workqueue_", "leader_election_"];
    words.filter(|word| ours.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned).collect()
}

/// The pod that holds the lease. One that was there before may have left it behind.
async fn leader(test: &Test) -> Result<Pod> {
    let leases: Api<Lease> = Api::namespaced(test.client.clone(), e2e::chart::NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(test.client.clone(), e2e::chart::NAMESPACE);
    wait::until("an operator to lead", START, || async {
        let holder = leases.get("soloist-operator").await?.spec.and_then(|spec| spec.holder_identity);
        let Some(pod) = pods.get_opt(&holder.unwrap_or_default()).await? else { return Ok(None) };
        Ok(pod.metadata.deletion_timestamp.is_none().then_some(pod))
    })
    .await
}

#[tokio::test]
#[ignore = "needs the cluster, with the images"]
async fn the_log_level_changes_while_the_operator_runs() -> Result<()> {
    let _release = RELEASE.lock().await;
    let test = Test::new("log-level").await?;
    test.run(DEADLINE, async {
        install(&test.cluster).await?;
        let pod = leader(&test).await?.metadata.name.context("a name")?;
        let pod = format!("pod/{pod}");
        let mut forward = program(&test.cluster, "kubectl")?;
        forward
            .args(["port-forward", "--namespace", e2e::chart::NAMESPACE, &pod, "18081:8081"])
            .kill_on_drop(true);
        let _forward = forward.stdout(Stdio::null()).spawn()?;
        let put =
            async |filter: &str| http::send("PUT", "http://127.0.0.1:18081/log-level", "", filter).await;
        wait::until("the port to be forwarded", START, || async { put("info").await.map(Some) }).await?;
        ensure!(put("debug=loud=yes").await.is_err(), "it took what is no filter");
        let answer = put("info,soloist_operator=debug").await?;
        ensure!(answer.trim() == "info,soloist_operator=debug", "{answer}");

        let pods: Api<Pod> = Api::namespaced(test.client.clone(), e2e::chart::NAMESPACE);
        let name = pod.trim_start_matches("pod/");
        let log = pods.logs(name, &Default::default()).await?;
        let lines: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(lines.iter().any(|line| line["message"] == "log level changed"), "{log}");

        // Lines of one reconciliation share an id, and say of which TaskQueue it was.
        test.task_queue("jobs", "{maxReplicas: 1}").await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        wait::until("a line of a reconciliation", START, || async {
            let log = pods.logs(name, &Default::default()).await?;
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut spans = lines.map(|line| line["span"].clone());
            let ours = |span: &Value| {
                span["namespace"] == test.namespace.name.as_str() && span["taskqueue"] == "jobs"
            };
            Ok(spans.any(|span| ours(&span) && span["reconcile_id"].is_string()).then_some(()))
        })
        .await
    })
    .await
}
