//! `cargo bench-fleet`: what the operator costs with many TaskQueues.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use celery_client::Celery;
use clap::Parser;
use e2e::audit::{self, Event};
use e2e::benchmark::{self, Verdict, quantile, rounded};
use e2e::progress::Progress;
use e2e::replicas::{Replicas, unix_now};
use e2e::soloist::{self, Scrape, Test};
use e2e::{chart, wait};
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Creates many TaskQueues on the real cluster, with no worker each, and measures what the operator uses once nothing
/// changes any more; then how quickly bursts on some of them are answered. Their pods are for a node that doesn't exist:
/// the operator is measured, not the node.
///
/// The last line printed is JSON. The exit code is 0 only if the operator stays within 100 MiB and writes nothing to
/// the API server, and 99 % of the observations and the answers to bursts are at most 2 seconds old.
#[derive(Parser)]
#[command(name = "cargo bench-fleet", bin_name = "cargo bench-fleet")]
struct Arguments {
    /// How many TaskQueues
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    task_queues: u32,
    /// Over how many virtual hosts to spread them: what RabbitMQ takes to write a policy grows with the policies and queues
    /// that a virtual host has
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    vhosts: u32,
    /// For how many seconds to watch the operator with nothing to do
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(10..=3600))]
    seconds: u32,
    /// How many bursts
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    bursts: u32,
    /// On the cluster that is up, with the Soloist that is installed there
    #[arg(long)]
    attached: bool,
}

const MESSAGES: usize = 100;
const LIMIT: f64 = 2.0;
const MEMORY_LIMIT: f64 = 100.0;
/// No write for so long means that nothing is left to be done.
const QUIET: Duration = Duration::from_secs(10);
/// Between two scrapes: an answer with fifteen thousand series is work for the operator too.
const SCRAPE: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Outcome {
    bench: &'static str,
    task_queues: u32,
    vhosts: u32,
    /// From the first one created to the last one Ready.
    ready_seconds: f64,
    /// Of the instance that leads.
    rss_mib: f64,
    /// Of all instances.
    cpu_cores: f64,
    /// What is written of the fleet: without those that renew the lease.
    api_writes_per_minute: f64,
    api_requests_per_minute: BTreeMap<String, f64>,
    /// A poll reads every queue of a virtual host.
    broker_polls_per_second: f64,
    observation_age_p50_seconds: f64,
    observation_age_p99_seconds: f64,
    bursts: u32,
    burst_to_patch_p50_seconds: f64,
    burst_to_patch_p99_seconds: f64,
}

impl Verdict for Outcome {
    fn is_good(&self) -> bool {
        self.rss_mib <= MEMORY_LIMIT
            && self.api_writes_per_minute == 0.0
            && self.observation_age_p99_seconds <= LIMIT
            && self.burst_to_patch_p99_seconds <= LIMIT
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let progress = Progress::new();
    let inside = progress.clone();
    benchmark::run(&progress, arguments.attached, move || async move {
        let test = Test::new("bench-fleet").await?;
        let within = Duration::from_secs(1200 + u64::from(arguments.task_queues));
        let fleet = Fleet::new(&test, &arguments).await?;
        let outcome = test.run(within, fleet.measure(&inside, &arguments)).await;
        let cleared = fleet.clear().await;
        let outcome = outcome?;
        cleared.map(|()| outcome)
    })
    .await
}

/// The TaskQueues, and the virtual hosts that their queues are in.
struct Fleet<'a> {
    test: &'a Test,
    count: u32,
    /// Name and URL of each.
    vhosts: Vec<(String, String)>,
}

impl<'a> Fleet<'a> {
    /// Makes the virtual hosts, each with a Secret of its name.
    async fn new(test: &'a Test, arguments: &Arguments) -> Result<Self> {
        let mut vhosts = Vec::new();
        for number in 1..=arguments.vhosts {
            let name = format!("{}-{number}", test.namespace.name);
            let url = test.cluster.rabbitmq.create_vhost(&name).await?;
            test.secret(&name, &url).await?;
            vhosts.push((name, url));
        }
        Ok(Self { test, count: arguments.task_queues, vhosts })
    }

    /// Deletes the virtual hosts.
    async fn clear(&self) -> Result<()> {
        for (name, _) in &self.vhosts {
            self.test.cluster.rabbitmq.delete_vhost(name).await?;
        }
        Ok(())
    }

    /// Name and URL of the virtual host of a TaskQueue.
    fn vhost_of(&self, number: u32) -> &(String, String) {
        &self.vhosts[number as usize % self.vhosts.len()]
    }

    async fn measure(&self, progress: &Progress, arguments: &Arguments) -> Result<Outcome> {
        let started = Instant::now();
        self.create(progress).await?;
        until_ready(self.test, progress, self.count).await?;
        let ready_seconds = rounded(started.elapsed().as_secs_f64());
        until_quiet(self.test, progress, self.count).await?;

        let seconds = Duration::from_secs(arguments.seconds.into());
        let steady = watch(self.test, progress, seconds).await?;
        let bursts = self.bursts(progress, arguments.bursts).await?;
        let age = |part| quantile(&steady.ages, part).context("the operator told no age of an observation");
        let burst = |part| quantile(&bursts, part).context("no burst");
        Ok(Outcome {
            bench: "fleet",
            task_queues: self.count,
            vhosts: arguments.vhosts,
            ready_seconds,
            rss_mib: steady.rss_mib,
            cpu_cores: steady.cpu_cores,
            api_writes_per_minute: steady.writes_per_minute,
            api_requests_per_minute: steady.requests_per_minute,
            broker_polls_per_second: steady.broker_polls_per_second,
            observation_age_p50_seconds: age(0.5)?,
            observation_age_p99_seconds: age(0.99)?,
            bursts: arguments.bursts,
            burst_to_patch_p50_seconds: burst(0.5)?,
            burst_to_patch_p99_seconds: burst(0.99)?,
        })
    }

    async fn create(&self, progress: &Progress) -> Result<()> {
        let step = progress.step(format!("{} TaskQueues", self.count));
        stream::iter(1..=self.count)
            .map(|number| async move { self.test.namespace.apply(&self.yaml(number)).await.map(drop) })
            .buffer_unordered(16)
            .try_collect::<()>()
            .await?;
        step.done("created");
        Ok(())
    }

    fn yaml(&self, number: u32) -> String {
        let scaling = "{minReplicas: 0, maxReplicas: 10, tasksPerWorker: 10}";
        soloist::on_no_node(&soloist::task_queue(&name(number), scaling)).replacen(
            "name: rabbitmq",
            &format!("name: {}", self.vhost_of(number).0),
            1,
        )
    }

    /// From the last message of a burst to the patch, for TaskQueues all over the fleet.
    async fn bursts(&self, progress: &Progress, count: u32) -> Result<Vec<f64>> {
        let step = progress.step(format!("{count} bursts"));
        let replicas = Replicas::watch(self.test.client.clone(), &self.test.namespace.name);
        let mut seconds = Vec::new();
        for turn in 0..count {
            let number = turn * (self.count / count).max(1) % self.count + 1;
            let (vhost, url) = self.vhost_of(number);
            let celery = self.test.celery_of(url).await?;
            seconds.push(burst(&celery, &replicas, &name(number)).await?);
            self.test.cluster.rabbitmq.purge(vhost, &name(number)).await?;
            step.note(format!("{} of {count}", turn + 1));
        }
        step.done("");
        Ok(seconds)
    }
}

fn name(number: u32) -> String {
    format!("fleet-{number}")
}

async fn until_ready(test: &Test, progress: &Progress, count: u32) -> Result<()> {
    let step = progress.step("every one Ready");
    let task_queues = test.task_queues();
    let within = Duration::from_secs(300 + u64::from(count));
    wait::until("every TaskQueue to be Ready", within, || async {
        let began = Instant::now();
        let listed = task_queues.list(&ListParams::default()).await?;
        let is_ready = |queue: &&kube::api::DynamicObject| {
            soloist::condition(queue, "Ready").is_some_and(|condition| condition["status"] == "True")
        };
        let ready = listed.items.iter().filter(is_ready).count();
        step.note(format!("{ready} of {count}"));
        // A list of thousands is work for the API server, which the operator needs too.
        sleep((4 * began.elapsed()).max(Duration::from_secs(1))).await;
        ensure!(ready == usize::try_from(count)?, "{ready} of {count} are");
        Ok(Some(()))
    })
    .await?;
    step.done("");
    Ok(())
}

async fn until_quiet(test: &Test, progress: &Progress, count: u32) -> Result<()> {
    let step = progress.step("the operator at rest");
    // RabbitMQ writes some dozen policies a second, and each shows in a status.
    let within = Duration::from_secs(180 + u64::from(count / 5));
    wait::until(&format!("the operator to write nothing for {QUIET:?}"), within, || async {
        let mark = audit::mark()?;
        sleep(QUIET).await;
        let writes = audit::writes_by_operator(mark, &test.namespace.name)?.len();
        ensure!(writes == 0, "{writes} writes");
        Ok(Some(()))
    })
    .await?;
    step.done("");
    Ok(())
}

struct Steady {
    rss_mib: f64,
    cpu_cores: f64,
    writes_per_minute: f64,
    requests_per_minute: BTreeMap<String, f64>,
    broker_polls_per_second: f64,
    ages: Vec<f64>,
}

/// Looks at the operator while nothing happens.
async fn watch(test: &Test, progress: &Progress, how_long: Duration) -> Result<Steady> {
    let step = progress.step(format!("{} s with nothing to do", how_long.as_secs()));
    let pods: Api<Pod> = Api::namespaced(test.client.clone(), chart::NAMESPACE);
    let pods = pods.list(&ListParams::default().labels("app.kubernetes.io/name=soloist")).await?.items;
    let (mark, started) = (audit::mark()?, Instant::now());
    let before = scrape(&pods).await?;
    let (mut ages, mut tick) = (Vec::new(), interval(SCRAPE));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while started.elapsed() < how_long {
        tick.tick().await;
        for instance in scrape(&pods).await? {
            ages.extend(instance.values("soloist_observation_age_seconds"));
        }
    }
    let after = scrape(&pods).await?;
    let seconds = started.elapsed().as_secs_f64();
    let grown = |metric: &str| {
        let sum = |scrapes: &[Scrape]| scrapes.iter().map(|scrape| scrape.sum(metric)).sum::<f64>();
        (sum(&after) - sum(&before)) / seconds
    };
    let leader = after.iter().find(|scrape| scrape.sum("leader_election_master_status") == 1.0);
    let memory = leader.context("no instance of the operator leads")?.sum("process_resident_memory_bytes");
    let minutes = seconds / 60.0;
    let writes = audit::writes_by_operator(mark, &test.namespace.name)?.len() as f64;
    let is_operators = |event: &Event| event.is_from(chart::NAMESPACE, chart::SERVICE_ACCOUNT);
    let mut requests = BTreeMap::new();
    for event in audit::since(mark)?.into_iter().filter(is_operators) {
        let what = if event.is_about("leases") { "lease" } else { event.verb.as_str() };
        *requests.entry(what.to_owned()).or_insert(0.0) += 1.0 / minutes;
    }
    requests.values_mut().for_each(|value| *value = rounded(*value));
    step.done("");
    Ok(Steady {
        rss_mib: rounded(memory / f64::from(1 << 20)),
        cpu_cores: rounded(grown("process_cpu_seconds_total")),
        writes_per_minute: rounded(writes / minutes),
        requests_per_minute: requests,
        broker_polls_per_second: rounded(grown("soloist_broker_poll_duration_seconds_count")),
        ages,
    })
}

async fn scrape(pods: &[Pod]) -> Result<Vec<Scrape>> {
    try_join_all(pods.iter().map(Scrape::of)).await
}

async fn burst(celery: &Celery, replicas: &Replicas, name: &str) -> Result<f64> {
    let started = unix_now();
    try_join_all((0..MESSAGES).map(|_| soloist::send(celery, name, "tasks.sleep", (1.0,)))).await?;
    let published = unix_now();
    let reached = wait::until(&format!("{name} to be scaled out"), Duration::from_secs(60), || async {
        Ok(replicas.changes(name, started).into_iter().find(|change| change.replicas > 0))
    })
    .await?;
    Ok((reached.at - published).max(0.0))
}
