//! RabbitMQ takes the channel from who leaves a message unacknowledged for too long: half an hour, by default.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::paths;
use e2e::servers::{Servers, Settings};
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::Value;
use tokio::process::Command;

/// Two seconds, for which the broker looks twice a second instead of once a minute.
const SETTINGS: Settings = Settings {
    redis: &["--appendonly", "no", "--save", ""],
    erlang: "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -rabbit consumer_timeout 2000 -rabbit channel_tick_interval 500",
};
const QUEUE: &str = "delayed";
/// Sends a task that is due well after that, and waits for its result.
const CLIENT: &str = "
import sys
from celery import Celery
app = Celery('test', broker=sys.argv[1], backend=sys.argv[2])
print(app.send_task('tasks.add', args=(1, 2), queue=sys.argv[3], countdown=float(sys.argv[4])).get(timeout=60))
";

#[tokio::test]
#[ignore = "needs RabbitMQ's and Redis's programs, and Celery: PYTHON"]
async fn a_delay_that_outlasts_the_consumer_timeout_disturbs_nobody() -> Result<()> {
    let python = std::env::var_os("PYTHON").context("PYTHON must name a Python with Celery")?;
    let folder = paths::target().join("consumer-timeout");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let servers = Servers::start(&folder, SETTINGS).await?;
    let log = folder.join("worker.log");
    // Built for the worker's own tests.
    let program = Path::new(env!("CARGO_BIN_EXE_chaos")).with_file_name("soloist-worker");
    let mut worker = Command::new(program)
        .args(["--queues", QUEUE, "--http-address", "127.0.0.1:0"])
        .env("SOLOIST_BROKER", &servers.amqp_url)
        .env("SOLOIST_RESULTS", &servers.redis_url)
        .env("SOLOIST_LOG_FORMAT", "json")
        .stdin(Stdio::null())
        .stderr(File::create(&log)?)
        .kill_on_drop(true)
        .spawn()
        .context("start the worker")?;
    let call = async |queue: &str, countdown: &str| -> Result<String> {
        let mut client = Command::new(&python);
        client.args(["-c", CLIENT, &servers.amqp_url, &servers.redis_url, queue, countdown]);
        let ended = client.kill_on_drop(true).output().await?;
        ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned())
    };
    let value = call(QUEUE, "7").await?;
    ensure!(value == "3", "the result is {value}");
    ensure!(worker.try_wait()?.is_none(), "the worker has ended");

    let text = std::fs::read_to_string(&log)?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let count = |message: &str| lines.iter().filter(|line| line["message"] == message).count();
    ensure!(count("task succeeded") == 1 && count("ready") == 1 && count("not ready") == 0, "{text}");
    ensure!(count("to be run later: it waits in the broker") == 1, "{text}");
    the_timeout_is_in_force(&servers.amqp_url).await
}

/// A consumer that holds a message loses its channel.
async fn the_timeout_is_in_force(amqp_url: &str) -> Result<()> {
    let connection = lapin::Connection::connect(amqp_url, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_declare("held".into(), QueueDeclareOptions::default(), FieldTable::default()).await?;
    let publish = lapin::options::BasicPublishOptions::default();
    let properties = lapin::BasicProperties::default();
    channel.basic_publish("".into(), "held".into(), publish, b"held", properties).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume("held".into(), "holder".into(), options, FieldTable::default()).await?;
    let _held = consumer.next().await.context("no message")??;
    let end = tokio::time::timeout(Duration::from_secs(20), consumer.next()).await?;
    ensure!(!matches!(end, Some(Ok(_))), "another message");
    Ok(())
}
