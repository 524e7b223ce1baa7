//! `soloist-operator check`: what `helm test` runs. Each check prints a line, and the first that fails ends it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use soloist_operator::api::v1alpha1::TaskQueue;
use soloist_operator::permissions::{OWN_PERMISSIONS, PERMISSIONS, attributes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An operator that does not answer within this time is as good as down: its probes give it two seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to check.
#[derive(clap::Args, Debug)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("checks").required(true).multiple(true))]
pub(crate) struct Checks {
    /// An operator's address, as http://HOST:PORT: it must be ready and show metrics
    #[arg(long, value_name = "URL", group = "checks")]
    url: Option<String>,

    /// May this service account do what the operator does?
    #[arg(long, group = "checks")]
    permissions: bool,

    /// A namespace in which the API server must take a right TaskQueue and refuse a wrong one; nothing is stored
    #[arg(long, value_name = "NAMESPACE", group = "checks")]
    dry_run: Option<String>,

    /// Namespaces that the operator watches, separated by commas; all if empty
    #[arg(long, env = "SOLOIST_NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,

    /// The operator's own namespace
    #[arg(long, env = "POD_NAMESPACE", hide = true, default_value = "default")]
    own_namespace: String,
}

/// Runs the checks and says how they went: to standard output what holds, to standard error what does not.
pub(crate) fn main(checks: &Checks) -> ExitCode {
    // An error means that a provider is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let checked = runtime.context("start the runtime").and_then(|runtime| runtime.block_on(run(checks)));
    match checked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soloist-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(checks: &Checks) -> Result<()> {
    if let Some(url) = &checks.url {
        answers(url).await?;
    }
    if checks.permissions {
        permitted(&checks.namespaces, &checks.own_namespace).await?;
    }
    if let Some(namespace) = &checks.dry_run {
        validates(namespace).await?;
    }
    Ok(())
}

/// The operator is ready, and its metrics are Soloist's.
async fn answers(url: &str) -> Result<()> {
    let (status, body) = get(url, "/readyz").await?;
    ensure!(status == 200, "{url}/readyz answered {status}: {}", body.trim());
    println!("ready: {url}");
    let (status, body) = get(url, "/metrics").await?;
    ensure!(status == 200, "{url}/metrics answered {status}");
    let series = body.lines().filter(|line| line.starts_with("soloist_")).count();
    ensure!(series > 0, "{url}/metrics shows no series of Soloist's");
    println!("metrics: {series} series");
    Ok(())
}

/// A GET without an HTTP client: this is the only place that would need one.
async fn get(url: &str, path: &str) -> Result<(u16, String)> {
    let address =
        url.strip_prefix("http://").with_context(|| format!("`{url}` does not start with http://"))?;
    let address = address.trim_end_matches('/');
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        // HTTP/1.0: the answer ends where the connection does.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange)
        .await
        .with_context(|| format!("{url}{path} did not answer within {PATIENCE:?}"))?
        .with_context(|| format!("ask {url}{path}"))?;
    parse(&answer).with_context(|| format!("{url}{path} did not answer as an HTTP server does"))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The API server would let this service account do all that the operator does.
async fn permitted(namespaces: &[String], own_namespace: &str) -> Result<()> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(Client::try_default().await?);
    let everywhere = [String::new()];
    let served = if namespaces.is_empty() { &everywhere } else { namespaces };
    let needed = served.iter().map(|namespace| (namespace.as_str(), PERMISSIONS));
    let mut asked = 0;
    for (namespace, permissions) in needed.chain([(own_namespace, OWN_PERMISSIONS)]) {
        for (group, resource, verbs) in permissions {
            for verb in *verbs {
                let review = review(namespace, group, resource, verb);
                let answer =
                    reviews.create(&PostParams::default(), &review).await.context("ask for permissions")?;
                if !answer.status.is_some_and(|status| status.allowed) {
                    let place = if namespace.is_empty() { "all namespaces" } else { namespace };
                    bail!("not permitted to {verb} {resource}.{group} in {place}");
                }
                asked += 1;
            }
        }
    }
    println!("permissions: {asked} needed, all given");
    Ok(())
}

fn review(namespace: &str, group: &str, resource: &str, verb: &str) -> SelfSubjectAccessReview {
    let attributes = Some(attributes(namespace, group, resource, verb));
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: attributes, ..Default::default() };
    SelfSubjectAccessReview { spec, ..Default::default() }
}

/// The API server knows TaskQueues and holds them to their rules.
async fn validates(namespace: &str) -> Result<()> {
    let task_queues: Api<TaskQueue> = Api::namespaced(Client::try_default().await?, namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    task_queues.create(&dry_run, &task_queue(0)?).await.context("a right TaskQueue is refused")?;
    match task_queues.create(&dry_run, &task_queue(2)?).await {
        Ok(_) => bail!("a TaskQueue with minReplicas above maxReplicas is taken"),
        Err(kube::Error::Api(status)) if status.code == 422 => {}
        Err(error) => return Err(error).context("a wrong TaskQueue is not refused as it should be"),
    }
    println!("API: takes a right TaskQueue, refuses a wrong one");
    Ok(())
}

/// A TaskQueue with at most one worker; with more than one at least, it is wrong.
fn task_queue(min_replicas: u16) -> Result<TaskQueue> {
    serde_json::from_value(json!({
        "apiVersion": "soloist.dev/v1alpha1",
        "kind": "TaskQueue",
        "metadata": {"name": "soloist-check"},
        "spec": {
            "broker": {"secretRef": {"name": "soloist-check"}},
            "worker": {"image": "soloist-check"},
            "scaling": {"minReplicas": min_replicas, "maxReplicas": 1},
        },
    }))
    .context("make a TaskQueue")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::api::rbac::v1::PolicyRule;

    use super::*;

    #[test]
    fn reads_status_and_body_of_an_answer() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\ncontent-type: text/plain\r\n\r\nnot yet\r\n\r\n";
        assert_eq!(parse(answer), Some((503, "not yet\r\n\r\n".to_owned())));
        assert_eq!(parse("SSH-2.0-OpenSSH_9.2\r\n"), None);
    }

    #[test]
    fn asks_for_what_the_chart_allows() {
        let chart = include_str!("../../charts/soloist/templates/_helpers.tpl");
        let rules = chart.split_once("{{- define \"soloist.rules\" -}}").unwrap().1;
        let rules = rules.split_once("{{- end -}}").unwrap().0;
        let rules: Vec<PolicyRule> = serde_yaml::from_str(rules).unwrap();
        let mut allowed = BTreeSet::new();
        for rule in rules {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    allowed.extend(
                        rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())),
                    );
                }
            }
        }
        let mut asked = BTreeSet::new();
        for (group, resource, verbs) in PERMISSIONS {
            asked.extend(
                verbs.iter().map(|verb| [group, resource, verb].map(|word| (*word).to_owned()).into()),
            );
        }
        assert_eq!(asked, allowed, "left: asked for, right: in the chart");
    }

    #[test]
    fn the_task_queue_of_the_check_is_one() {
        assert_eq!(task_queue(0).unwrap().spec.scaling.max_replicas, 1);
    }
}
