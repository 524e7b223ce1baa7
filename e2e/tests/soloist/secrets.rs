//! What is in Secrets: certificates that are used, and passwords that show nowhere.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::command;
use e2e::go_tools::GoTools;
use e2e::http;
use e2e::soloist::{self, START, Test};
use serde_json::json;
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(240);
/// The part of the password that no encoding changes.
const CANARY: &str = "canary8d1f";

/// Makes a Secret of these keys.
async fn secret(test: &Test, name: &str, keys: &BTreeMap<String, String>) -> Result<()> {
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys});
    test.namespace.apply(&secret.to_string()).await.map(drop)
}

async fn kubectl(test: &Test, arguments: &str) -> Result<String> {
    let mut kubectl = Command::new(GoTools::built()?.program("kubectl"));
    kubectl.env("KUBECONFIG", test.cluster.kubeconfig()).args(arguments.split(' '));
    command::output(&mut kubectl, Duration::from_secs(30)).await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn operator_and_worker_speak_tls_with_an_authority_and_a_certificate_of_ones_own() -> Result<()> {
    let test = Test::new("tls").await?;
    test.run(DEADLINE, async {
        let folder = test.cluster.rabbitmq.tls_secret().context("needs a RabbitMQ of our own")?;
        let mut keys = BTreeMap::new();
        for file in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let file = file?;
            keys.insert(
                file.file_name().to_string_lossy().into_owned(),
                std::fs::read_to_string(file.path())?,
            );
        }
        let uri = keys.get_mut("uri").context("no key `uri`")?;
        uri.push_str(&format!("/{}", test.namespace.name));
        secret(&test, "rabbitmq", &keys).await?;
        test.task_queue("jobs", "{minReplicas: 1, maxReplicas: 1}").await?;
        test.condition("jobs", "Ready", "True", "Ready").await?;
        let broker = test.task_queues().get("jobs").await?.data["status"]["broker"].to_string();
        ensure!(broker.contains("amqps://"), "the operator is connected to {broker}");
        let celery = test.celery().await?;
        let result = soloist::send(&celery, "jobs", "tasks.add", (2, 2)).await?;
        ensure!(soloist::value(&result, START).await? == json!(4), "2 + 2 is not 4");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: cargo e2e"]
async fn a_password_shows_nowhere() -> Result<()> {
    let test = Test::new("canary").await?;
    test.run(DEADLINE, async {
        let (user, vhost) = (&test.namespace.name, &test.namespace.name);
        let password = format!("p@ss:w/rd?#%zz&\"'\\<é>{CANARY}");
        let api = format!("{}/api", test.cluster.rabbitmq.management_url());
        let body = json!({"password": password, "tags": "policymaker"}).to_string();
        http::send("PUT", &format!("{api}/users/{user}"), "guest:guest", &body).await?;
        let all = r#"{"configure":".*","write":".*","read":".*"}"#;
        http::send("PUT", &format!("{api}/permissions/{vhost}/{user}"), "guest:guest", all).await?;
        let host = test.broker_url.split(['@', '/']).nth(3).context("no host")?;
        let (host, port) = host.split_once(':').context("no port")?;
        let address = [("host", host), ("port", port), ("username", user), ("vhost", vhost)];
        let mut fields: BTreeMap<String, String> =
            address.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        fields.insert("password".to_owned(), password.clone());
        // Once as fields, once raw in a URI, and once where it is refused.
        let uri =
            BTreeMap::from([("uri".to_owned(), format!("amqp://{user}:{password}@{host}:{port}/{vhost}"))]);
        let wrong =
            BTreeMap::from([("uri".to_owned(), format!("amqp://nobody:{password}@{host}:{port}/{vhost}"))]);
        let broken = BTreeMap::from([("uri".to_owned(), format!("amqp://{user}:{password}@{host}:port"))]);
        for (name, keys, kind, reason) in [
            ("fields", &fields, "True", "Ready"),
            ("uri", &uri, "True", "Ready"),
            ("wrong", &wrong, "False", "AuthFailed"),
            ("broken", &broken, "False", "SecretInvalid"),
        ] {
            secret(&test, name, keys).await?;
            let yaml = soloist::task_queue(name, "{minReplicas: 1, maxReplicas: 1}")
                .replace("name: rabbitmq", &format!("name: {name}"))
                .replace("  worker:\n", "  worker:\n    env: [{name: SOLOIST_LOG, value: trace}]\n");
            test.namespace.apply(&yaml).await?;
            test.condition(name, "Ready", kind, reason).await?;
        }
        let celery = test.celery().await?;
        for name in ["fields", "uri"] {
            let result = soloist::send(&celery, name, "tasks.add", (2, 2)).await?;
            ensure!(soloist::value(&result, START).await? == json!(4), "2 + 2 is not 4");
        }

        let mut said = Vec::new();
        let namespace = &test.namespace.name;
        for what in ["taskqueues", "deployments", "pods", "events", "configmaps"] {
            let arguments = format!("get {what} --namespace {namespace} -o yaml");
            said.push((what.to_owned(), kubectl(&test, &arguments).await?));
        }
        for (of, label) in
            [("soloist-system", "app.kubernetes.io/name=soloist"), (namespace, "soloist.dev/task-queue")]
        {
            let arguments = format!(
                "logs --namespace {of} -l {label} --tail=-1 --prefix --ignore-errors --max-log-requests=20"
            );
            said.push((format!("logs in {of}"), kubectl(&test, &arguments).await?));
            let arguments =
                format!("get pods --namespace {of} -l {label} -o jsonpath={{.items[*].status.podIP}}");
            for address in kubectl(&test, &arguments).await?.split(' ') {
                // A worker that waits for a better password may not answer.
                let metrics = http::get(&format!("http://{address}:8080/metrics")).await.unwrap_or_default();
                said.push((format!("metrics of {address} in {of}"), metrics));
            }
        }
        for (what, text) in &said {
            ensure!(!text.contains(CANARY), "{what} have the password");
        }
        let logs = said.iter().filter(|(what, text)| what.starts_with("logs") && text.contains("canary-"));
        ensure!(logs.count() == 2, "the logs were not read");
        http::send("DELETE", &format!("{api}/users/{user}"), "guest:guest", "").await.map(drop)
    })
    .await
}
