//! `cargo chaos`: kills workers, the broker and the result store under load, and counts what is lost.

mod workers;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use celery_client::broker::BrokerAddress;
use celery_client::{Celery, delays};
use clap::{Parser, ValueEnum};
use e2e::newer_rabbitmq::NewerRabbit;
use e2e::progress::{Progress, Step};
use e2e::servers::{Servers, Settings};
use e2e::{images, interrupt, paths, python, wait};
use futures_util::future::try_join_all;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::workers::{Again, QUEUE, Workers};

/// Kills workers, RabbitMQ and Redis at random moments, while a Celery client in Python sends chains, groups and chords; then
/// looks at what became of each of them. Before that, restarts all workers with a backlog of tasks.
///
/// The last line printed is JSON. The exit code is 0 only if no task and no result was lost, no result is wrong, no task (and so no
/// body of a chord) was begun again once its result was stored, and no worker ended by itself.
#[derive(Parser)]
#[command(name = "cargo chaos", bin_name = "cargo chaos")]
struct Arguments {
    /// How many kills: a third of workers, a third of RabbitMQ, a third of Redis
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// How many tasks wait when the workers are restarted
    #[arg(long, default_value_t = 10_000)]
    backlog: usize,
    /// How many workers
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// Type of the queue that all tasks go through
    #[arg(long, value_enum, default_value_t = QueueType::Classic)]
    queue_type: QueueType,
    /// The RabbitMQ of this release of Debian (`trixie`, `sid`) instead of the installed one
    #[arg(long, value_name = "RELEASE")]
    rabbitmq: Option<String>,
    /// Decides about the moments and what is killed; by default another one each time
    #[arg(long)]
    seed: Option<u64>,
    /// The worker's program, instead of building it
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// A Python interpreter with Celery, instead of making an environment
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
}

/// How long everything in flight may take to end once the killing is over. Messages that a broker which was killed had given out
/// are given out again at once, but clients back off for up to 15 seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Redis has what it answered to on its disk: only then nothing may be lost when it is killed. RabbitMQ has two schedulers that
/// don't wait busily, to leave the cores to the workers.
const SERVERS: Settings = Settings {
    redis: &["--appendonly", "yes", "--appendfsync", "always", "--save", ""],
    erlang: "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
};

/// Type of a queue, by RabbitMQ's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum QueueType {
    Classic,
    Quorum,
}

impl QueueType {
    fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        }
    }
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Worker,
    RabbitMq,
    Redis,
}

/// What the client in Python has to say at its end, see `e2e/chaos/load.py`.
#[derive(Deserialize)]
struct Told {
    workflows: usize,
    unsure: usize,
    ids: Vec<String>,
    bodies: Vec<String>,
    lost: Vec<serde_json::Value>,
    wrong: Vec<serde_json::Value>,
}

#[derive(Default, Serialize)]
struct Kills {
    worker: u32,
    rabbitmq: u32,
    redis: u32,
}

/// What came of it.
#[derive(Serialize)]
struct Outcome {
    seed: u64,
    queue_type: QueueType,
    kills: Kills,
    backlog: usize,
    /// Seconds from the restart of all workers to the last result of the backlog.
    backlog_seconds: f64,
    /// Sent without an error, and so to be carried out.
    workflows: usize,
    /// Sent with an error, because the broker was down: perhaps in part.
    unsure: usize,
    tasks: usize,
    chords: usize,
    /// Without a stored success at the end.
    lost: usize,
    wrong: usize,
    /// What was done more than once of all tasks,
    again: Again,
    /// and of those of them that are bodies of chords.
    bodies_again: Again,
    /// Workers that ended by themselves.
    crashes: usize,
    seconds: f64,
}

impl Outcome {
    fn is_good(&self) -> bool {
        [self.lost, self.wrong, self.again.stored, self.crashes] == [0; 4]
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    drop(rustls::crypto::ring::default_provider().install_default());
    let arguments = Arguments::parse();
    let progress = Progress::new();
    let outcome = tokio::select! {
        outcome = run(&arguments, &progress) => outcome,
        interrupted = interrupt::requested() => interrupted.and_then(|()| Err(anyhow!("interrupted"))),
    };
    match outcome.and_then(|outcome| Ok((serde_json::to_string(&outcome)?, outcome.is_good()))) {
        Ok((line, is_good)) => {
            println!("{line}");
            if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments, progress: &Progress) -> Result<Outcome> {
    let python = match &arguments.python {
        Some(python) => python.clone(),
        None => python::ensure(progress, python::NEWEST).await?,
    };
    let program = match &arguments.worker {
        Some(program) => program.clone(),
        None => images::programs(progress).await?.worker,
    };
    let folder = paths::target().join("chaos");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    progress.say(format!("logs are in {}", folder.display()));
    let mut servers = match &arguments.rabbitmq {
        Some(release) => {
            Servers::start_newer(&folder, SERVERS, &NewerRabbit::ensure(progress, release).await?).await?
        }
        None => Servers::start(&folder, SERVERS).await?,
    };
    let broker: BrokerAddress = servers.amqp_url.parse()?;
    let mut random =
        Random(arguments.seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | seconds_of_day()));
    let seed = random.0;

    let begun = Instant::now();
    let step = progress.step("backlog");
    declare(&broker, arguments.queue_type).await?;
    let celery = Celery::builder(broker.clone())
        .default_queue(QUEUE)
        .results(servers.redis_url.parse()?)
        .connect()
        .await?;
    let backlog = send_backlog(&celery, arguments.backlog).await?;
    let mut workers = Workers::start(&program, &folder, &servers, arguments.workers)?;
    let backlog_seconds = drain(&celery, &backlog, &mut workers).await?;
    step.done(format!(
        "{} tasks, all workers restarted, all done {backlog_seconds:.1} s later",
        arguments.backlog
    ));

    let step = progress.step("kills");
    let mut load = start_load(&python, &servers, &folder, arguments.queue_type)?;
    let kills = kill(arguments.kills, &mut servers, &mut workers, &mut random, &step).await?;
    step.done(format!(
        "{} of workers, {} of RabbitMQ, {} of Redis",
        kills.worker, kills.rabbitmq, kills.redis
    ));
    let step = progress.step("everything in flight comes to its end");
    let told = finish_load(&mut load).await?;
    workers.replace_ended()?;
    wait::until("the queue to be empty", PATIENCE, || async {
        let connection = celery_client::connect(&broker, "chaos").await?;
        let state = celery_client::queue::inspect(&connection, QUEUE).await?;
        connection.close(200, "seen".into()).await?;
        Ok((state.ready == 0).then_some(()))
    })
    .await?;
    step.done(format!("{} workflows", told.workflows));

    let calls = workers.calls()?;
    let again = |ids: &[String]| Again::of(ids.iter().filter_map(|id| calls.get(id)));
    for what in told.lost.iter().chain(&told.wrong) {
        progress.say(what.to_string());
    }
    Ok(Outcome {
        seed,
        queue_type: arguments.queue_type,
        kills,
        backlog: arguments.backlog,
        backlog_seconds,
        workflows: told.workflows,
        unsure: told.unsure,
        tasks: told.ids.len(),
        chords: told.bodies.len(),
        lost: told.lost.len(),
        wrong: told.wrong.len(),
        again: again(&told.ids),
        bodies_again: again(&told.bodies),
        crashes: workers.crashes,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// Makes the queue, which everybody else takes as it is, and those that delayed messages wait in: a quorum queue that RabbitMQ 3.10
/// made a moment before it was killed may have no leader any more, and keeps what it gets.
async fn declare(broker: &BrokerAddress, queue_type: QueueType) -> Result<()> {
    let connection = celery_client::connect(broker, "chaos").await?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue_type.name().into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(QUEUE.into(), durable, arguments).await.context("declare the queue")?;
    delays::declare(&connection).await?;
    delays::bind(&connection, QUEUE).await?;
    Ok(connection.close(200, "declared".into()).await?)
}

/// Sends additions, and gives back their ids.
async fn send_backlog(celery: &Celery, tasks: usize) -> Result<Vec<String>> {
    let mut ids = Vec::with_capacity(tasks);
    for first in (0..tasks).step_by(1000) {
        let sent = (first..tasks.min(first + 1000)).map(|n| async move {
            celery.send_task("tasks.add", &(n, 1), &()).await.map(|result| result.id().to_owned())
        });
        ids.extend(try_join_all(sent).await?);
    }
    Ok(ids)
}

/// Restarts all workers, and waits until each task of the backlog has its result. Gives back the seconds that took.
async fn drain(celery: &Celery, ids: &[String], workers: &mut Workers) -> Result<f64> {
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let results = async || celery.results(&ids).await;
    // They have begun, and are far from the end.
    wait::until("the first result of the backlog", PATIENCE, || async {
        Ok(results().await?.iter().any(Option::is_some).then_some(()))
    })
    .await?;
    let begun = Instant::now();
    workers.restart().await?;
    let metas = wait::until("the results of the backlog", PATIENCE, || async {
        Ok(results().await?.into_iter().collect::<Option<Vec<_>>>())
    })
    .await?;
    let seconds = begun.elapsed().as_secs_f64();
    for (n, meta) in metas.iter().enumerate() {
        ensure!(
            meta.result_as::<usize>()? == n + 1,
            "task {n} of the backlog has the result {}",
            meta.result
        );
    }
    workers.replace_ended()?;
    Ok(seconds)
}

fn start_load(python: &Path, servers: &Servers, folder: &Path, queue_type: QueueType) -> Result<Child> {
    let log = std::fs::File::create(folder.join("load.log"))?;
    Command::new(python)
        .arg(paths::repository().join("e2e/chaos/load.py"))
        .args([&servers.amqp_url, &servers.redis_url, QUEUE, queue_type.name()])
        .arg(PATIENCE.as_secs().to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("start the client in Python")
}

/// Tells the client to send no more, and reads what it has to say.
async fn finish_load(load: &mut Child) -> Result<Told> {
    let mut input = load.stdin.take().context("its standard input is piped")?;
    input.shutdown().await?;
    drop(input);
    let mut text = String::new();
    let output = load.stdout.as_mut().context("its standard output is piped")?;
    tokio::time::timeout(PATIENCE * 2, output.read_to_string(&mut text))
        .await
        .context("wait for the client's end")??;
    serde_json::from_str(&text).context("read what the client says: see load.log")
}

async fn kill(
    kills: u32,
    servers: &mut Servers,
    workers: &mut Workers,
    random: &mut Random,
    step: &Step,
) -> Result<Kills> {
    let mut done = Kills::default();
    // In each three one of each, in any order.
    let mut bag = Vec::new();
    for number in 1..=kills {
        random.pause(0.1..1.5).await;
        if bag.is_empty() {
            bag = vec![Target::Worker, Target::RabbitMq, Target::Redis];
        }
        let target = bag.swap_remove(random.below(bag.len()));
        step.note(format!("{number} of {kills}: {target:?}"));
        let server = match target {
            Target::Worker => {
                done.worker += 1;
                workers.kill(random.below(usize::MAX)).await?;
                continue;
            }
            Target::RabbitMq => {
                done.rabbitmq += 1;
                &mut servers.rabbitmq
            }
            Target::Redis => {
                done.redis += 1;
                &mut servers.redis
            }
        };
        server.kill().await?;
        random.pause(0.0..1.0).await;
        server.start()?;
        // Now and then the next blow falls while it is still coming up.
        if random.below(4) > 0 {
            servers.ready().await?;
        }
        workers.replace_ended()?;
    }
    servers.ready().await?;
    Ok(done)
}

fn seconds_of_day() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs() % 86_400)
}

/// SplitMix64: as random as this needs, and the same again for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        // The remainder of a usize fits into one.
        usize::try_from(self.next() % limit as u64).unwrap_or_default()
    }

    async fn pause(&mut self, seconds: std::ops::Range<f64>) {
        let part = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        tokio::time::sleep(Duration::from_secs_f64(seconds.start + part * (seconds.end - seconds.start)))
            .await;
    }
}
