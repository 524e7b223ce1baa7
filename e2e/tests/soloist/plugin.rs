//! `kubectl soloist`, as kubectl finds it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::go_tools::GoTools;
use e2e::soloist::{self, START, Test};
use e2e::{paths, wait};
use kube::ResourceExt;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(300);
/// Until every fault shows: a container has to crash a second time, and a name has to be looked for.
const SHOWS: Duration = Duration::from_secs(150);
/// Longer than a worker gets that is told to go by anybody else: a second, and ten for the way out.
const TASK_SECONDS: f64 = 20.0;

/// Runs `kubectl soloist`. Returns its exit code and what it says.
async fn soloist(test: &Test, args: &[&str]) -> Result<(i32, String)> {
    // Where cargo puts the programs of the workspace; beside them is this test's own.
    let plugins = paths::target().join("debug");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut kubectl = Command::new(GoTools::built()?.program("kubectl"));
    kubectl
        .env("KUBECONFIG", test.cluster.kubeconfig())
        .env("PATH", format!("{}:{path}", plugins.display()))
        .arg("soloist")
        .args(args)
        .args(["-n", &test.namespace.name])
        .stdin(Stdio::null());
    let said = tokio::time::timeout(START, kubectl.output()).await.context("it took too long")??;
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    Ok((said.status.code().context("it was killed")?, text))
}

/// The same, where it is to succeed.
async fn succeeds(test: &Test, args: &[&str]) -> Result<String> {
    let (code, said) = soloist(test, args).await?;
    ensure!(code == 0, "kubectl soloist {args:?} ended with {code}: {said}");
    Ok(said)
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn status_why_pause_and_resume_say_what_they_see_and_do() -> Result<()> {
    let test = Test::new("plugin").await?;
    test.run(DEADLINE, async {
        test.task_queue("jobs", "{minReplicas: 1, maxReplicas: 5}").await?;
        test.until_replicas("jobs", 1, START).await?;
        wait::until("an idle worker in the page of jobs", START, || async {
            let page = succeeds(&test, &["status", "jobs"]).await?;
            ensure!(page.contains(" idle "), "{page}");
            Ok(Some(()))
        })
        .await?;
        // The table is of the TaskQueue's status, which follows.
        wait::until("the worker in the table", START, || async {
            let table = succeeds(&test, &["status"]).await?;
            for word in ["BACKLOG", "OBSERVED", "jobs", "1/1"] {
                ensure!(table.contains(word), "{word} is missing: {table}");
            }
            Ok(Some(()))
        })
        .await?;
        test.condition("jobs", "ScalingActive", "True", "Active").await?;
        let why = succeeds(&test, &["why", "jobs"]).await?;
        ensure!(why.contains("jobs has 1 worker") && why.contains("1 to 5 workers"), "{why}");

        let paused = succeeds(&test, &["pause", "jobs"]).await?;
        ensure!(paused.contains("paused at 1 worker"), "{paused}");
        test.condition("jobs", "ScalingActive", "False", "Paused").await?;
        let why = succeeds(&test, &["why", "jobs"]).await?;
        ensure!(why.contains("kubectl soloist resume jobs"), "{why}");
        succeeds(&test, &["resume", "jobs"]).await?;
        test.condition("jobs", "ScalingActive", "True", "Active").await?;

        let (code, said) = soloist(&test, &["status", "nothing"]).await?;
        ensure!(code == 1 && said.contains("nothing"), "{code}: {said}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_worker_drained_by_hand_finishes_a_task_that_outlasts_its_drain_timeout() -> Result<()> {
    let test = Test::new("drain-pod").await?;
    test.run(DEADLINE, async {
        let yaml = soloist::task_queue("jobs", "{minReplicas: 1, maxReplicas: 1}")
            .replace("  worker:\n", "  worker:\n    drainTimeoutSeconds: 1\n");
        test.namespace.apply(&yaml).await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        let worker = wait::until("a worker", START, || async {
            Ok(test.pods("jobs").await?.into_iter().find(soloist::is_ready).map(|pod| pod.name_any()))
        })
        .await?;
        let celery = test.celery().await?;
        let result = soloist::send(&celery, "jobs", "tasks.sleep", (TASK_SECONDS,)).await?;
        wait::until("the worker to be busy", START, || async {
            let page = succeeds(&test, &["status", "jobs"]).await?;
            Ok(page.contains(" busy ").then_some(()))
        })
        .await?;

        let said = succeeds(&test, &["drain", &worker]).await?;
        ensure!(said.contains("runs its task") && said.contains("is gone"), "{said}");
        // The first run's result: had the task been interrupted, another worker would need TASK_SECONDS more.
        soloist::value(&result, Duration::from_secs(2)).await?;
        let (code, said) = soloist(&test, &["drain", &worker]).await?;
        ensure!(code == 1, "it is gone: {said}");
        Ok(())
    })
    .await
}

/// A TaskQueue whose Secret is this one.
fn with_secret(name: &str, secret: &str) -> String {
    soloist::task_queue(name, "{maxReplicas: 1}").replace("name: rabbitmq", &format!("name: {secret}"))
}

/// A TaskQueue that wants a worker, and whose spec.worker has this line.
fn with_worker(name: &str, line: &str) -> String {
    soloist::task_queue(name, "{minReplicas: 1, maxReplicas: 1}")
        .replace("  worker:\n", &format!("  worker:\n    {line}\n"))
}

/// Everything that is broken in the namespace of the test, and the word that the doctor is to have for it.
async fn break_everything(test: &Test) -> Result<Vec<(&'static str, &'static str)>> {
    let broker = test.broker_url.clone();
    let vhost = format!("/{}", test.namespace.name);
    let host = broker.split_once('@').context("no user in the URL")?.1.trim_end_matches(vhost.as_str());
    let address = host.rsplit_once(':').map_or(host, |(address, _)| address);
    for (secret, uri) in [
        ("wrong-password", broker.replace("guest:guest@", "guest:not-the-password@")),
        ("wrong-name", broker.replace(host, "no-such-broker.invalid:5672")),
        ("wrong-port", broker.replace(host, &format!("{address}:1"))),
        ("wrong-vhost", broker.replace(&vhost, "/no-such-vhost")),
        ("wrong-scheme", broker.replace("amqp://", "amqps://")),
    ] {
        test.secret(secret, &uri).await?;
    }
    let wrong_keys = "{apiVersion: v1, kind: Secret, metadata: {name: wrong-keys}, stringData: {hots: a}}";
    let quota =
        "{apiVersion: v1, kind: ResourceQuota, metadata: {name: small}, spec: {hard: {requests.cpu: '1'}}}";
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {policyTypes: [Egress], \
                  podSelector: {matchLabels: {soloist.dev/task-queue: cut-off}}}}";
    for yaml in [wrong_keys, quota, policy] {
        test.namespace.apply(yaml).await?;
    }
    let connection = Connection::connect(&broker, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-priority".into(), 5.into());
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("arguments".into(), durable, arguments).await?;

    let image = with_worker("image", "imagePullPolicy: Never").replace("/soloist-worker:", "/no-such-image:");
    let quota = with_worker("quota", "").replace("cpu: 5m", "cpu: 2");
    let minute_61 = "{cron: '61 * * * *', durationSeconds: 60, minReplicas: 1}";
    let nowhere = with_worker("nowhere", "template: {spec: {nodeSelector: {no: node}}}");
    for yaml in [
        with_secret("missing", "missing"),
        with_secret("keys", "wrong-keys"),
        with_secret("password", "wrong-password"),
        with_secret("name", "wrong-name"),
        with_secret("port", "wrong-port"),
        with_secret("vhost", "wrong-vhost"),
        with_secret("scheme", "wrong-scheme"),
        with_secret("arguments", "rabbitmq"),
        with_secret("cut-off", "rabbitmq"),
        image,
        quota,
        nowhere,
        with_worker("crash", "args: [--no-such-flag]"),
        with_worker("template", "template: {spec: {containers: 5}}"),
        soloist::task_queue("schedule", &format!("{{maxReplicas: 1, schedules: [{minute_61}]}}")),
    ] {
        test.namespace.apply(&yaml).await?;
    }
    Ok(vec![
        ("missing", "SecretNotFound"),
        ("keys", "SecretInvalid"),
        ("password", "AuthFailed"),
        ("name", "BrokerNameUnknown"),
        ("port", "BrokerRefused"),
        ("vhost", "VhostRefused"),
        ("scheme", "BrokerTls"),
        ("arguments", "QueueArgumentMismatch"),
        ("cut-off", "NetworkPolicy"),
        ("image", "ImagePullFailed"),
        ("quota", "QuotaExceeded"),
        ("nowhere", "Unschedulable"),
        ("crash", "CrashLooping"),
        ("template", "TemplateInvalid"),
        ("schedule", "ScheduleInvalid"),
    ])
}

/// An operator of another version that may do nothing, and whose last leader is long gone.
const POWERLESS: &str = "
{apiVersion: v1, kind: ServiceAccount, metadata: {name: powerless}}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: soloist-operator}
spec: {holderIdentity: soloist-0, leaseDurationSeconds: 15, renewTime: '2026-01-01T00:00:00.000000Z'}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: powerless
  labels: {app.kubernetes.io/part-of: soloist, app.kubernetes.io/component: operator, app.kubernetes.io/version: 0.0.1}
spec:
  replicas: 0
  selector: {matchLabels: {app: powerless}}
  template:
    metadata: {labels: {app: powerless}}
    spec:
      serviceAccountName: powerless
      containers: [{name: operator, image: none, args: [--namespaces=NAMESPACE]}]
";

/// What the doctor finds.
async fn findings(test: &Test, args: &[&str]) -> Result<Vec<Value>> {
    let (code, said) = soloist(test, &[&["doctor", "-o", "json"], args].concat()).await?;
    ensure!(code == 5, "it ended with {code}: {said}");
    let report: Value = serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))?;
    Ok(report["findings"].as_array().context("no findings")?.clone())
}

/// Checks that this was found, with evidence and a remedy, and that no password is told.
fn ensure_found(found: &[Value], object: &str, cause: &str) -> Result<()> {
    let finding = found.iter().find(|finding| finding["object"] == object && finding["cause"] == cause);
    let causes: Vec<_> = found.iter().map(|finding| (&finding["object"], &finding["cause"])).collect();
    let finding = finding.with_context(|| format!("{cause} of {object} is not in {causes:?}"))?;
    for part in ["evidence", "remedy"] {
        ensure!(finding[part].as_array().is_some_and(|lines| !lines.is_empty()), "no {part}: {finding}");
    }
    ensure!(!json!(found).to_string().contains("not-the-password"), "it tells a password");
    Ok(())
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn the_doctor_names_the_cause_of_every_seeded_fault() -> Result<()> {
    let test = Test::new("doctor").await?;
    test.run(DEADLINE, async {
        let namespace = test.namespace.name.clone();
        let faults = break_everything(&test).await?;
        wait::until("the doctor to name every cause", SHOWS, || async {
            let found = findings(&test, &[]).await?;
            for (name, cause) in &faults {
                ensure_found(&found, &format!("taskqueue {namespace}/{name}"), cause)?;
            }
            Ok(Some(()))
        })
        .await?;

        // An operator's own troubles. The one that serves the cluster has none.
        test.namespace.apply(&POWERLESS.replace("NAMESPACE", &namespace)).await?;
        let found = findings(&test, &["--operator-namespace", &namespace]).await?;
        let operator = format!("operator {namespace}/powerless");
        for cause in ["OperatorNotRunning", "LeaseStale", "OperatorForbidden"] {
            ensure_found(&found, &operator, cause)?;
        }
        ensure_found(&found, "the definition of TaskQueues", "DefinitionNewer")?;
        ensure_found(&found, &format!("taskqueue {namespace}/crash"), "SecretForbidden")?;

        // For people, as well.
        let (code, said) = soloist(&test, &["doctor"]).await?;
        println!("{said}");
        ensure!(
            code == 5 && said.contains("rabbitmqctl set_permissions") && said.contains("TaskQueues: "),
            "{said}"
        );
        Ok(())
    })
    .await
}
