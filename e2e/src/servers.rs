//! A RabbitMQ and a Redis of a run's own, on this machine, that end with it. They may be killed at any moment and started again.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};

use crate::{http, newer_rabbitmq::NewerRabbit, paths, rabbitmq, wait};

/// Where Debian puts RabbitMQ's programs.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// It boots in about 5 seconds on two idle cores.
const BOOT: Duration = Duration::from_secs(120);

/// What they are started with, beside what every run needs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Arguments of `redis-server`: what it keeps.
    pub redis: &'static [&'static str],
    /// Arguments of the Erlang machine that RabbitMQ runs in.
    pub erlang: &'static str,
}

/// A server that can be killed and started again.
pub struct Server {
    name: &'static str,
    command: Command,
    process: Option<Child>,
}

impl Server {
    /// Prepares it, with its output in a file.
    fn new(name: &'static str, mut command: Command, log: &Path) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        Ok(Self { name, command, process: None })
    }

    /// Kills it as a power cut would, and returns once it is gone.
    ///
    /// # Errors
    /// If the system refuses it.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().await.with_context(|| format!("kill {}", self.name))?;
        }
        Ok(())
    }

    /// Starts it, without waiting until it answers.
    ///
    /// # Errors
    /// If it is not installed.
    pub fn start(&mut self) -> Result<()> {
        self.process = Some(self.command.spawn().with_context(|| format!("start {}", self.name))?);
        Ok(())
    }
}

/// Both servers, and the daemon that Erlang programs find one another by, on the loopback interface. They are killed when this is
/// dropped.
pub struct Servers {
    /// RabbitMQ's default virtual host.
    pub amqp_url: String,
    /// The management API; only that of another release's RabbitMQ is on.
    pub management_url: Option<String>,
    /// Redis's database 0.
    pub redis_url: String,
    /// The broker.
    pub rabbitmq: Server,
    /// The result store.
    pub redis: Server,
    _epmd: Server,
}

impl Servers {
    /// Starts new ones, with their data in `folder`, which must exist, and returns once they answer.
    ///
    /// # Errors
    /// If one is not installed or doesn't come up; its log in `folder` says why.
    pub async fn start(folder: &Path, settings: Settings) -> Result<Self> {
        Self::start_with(folder, settings, None).await
    }

    /// The same with another RabbitMQ than this machine's, and with its management API.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_newer(folder: &Path, settings: Settings, newer: &NewerRabbit) -> Result<Self> {
        Self::start_with(folder, settings, Some(newer)).await
    }

    async fn start_with(folder: &Path, settings: Settings, newer: Option<&NewerRabbit>) -> Result<Self> {
        let [amqp, distribution, names, redis, management] = free_ports()?;
        let data = |name: &str| -> Result<PathBuf> {
            let data = folder.join(name);
            std::fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
            Ok(data)
        };
        let mut epmd = Command::new("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &names.to_string()]);
        let ports = Ports { amqp, distribution, names, management };
        let rabbitmq = rabbitmq(&data("rabbitmq")?, settings, &ports, newer)?;
        let mut redis_server = Command::new("redis-server");
        redis_server.args(["--bind", "127.0.0.1", "--port", &redis.to_string(), "--dir"]).arg(data("redis")?);
        redis_server.args(settings.redis);
        let mut servers = Self {
            amqp_url: format!("amqp://guest:guest@127.0.0.1:{amqp}"),
            management_url: newer.map(|_| format!("http://127.0.0.1:{management}")),
            redis_url: format!("redis://127.0.0.1:{redis}/0"),
            rabbitmq: Server::new("RabbitMQ", rabbitmq, &folder.join("rabbitmq.log"))?,
            redis: Server::new("Redis", redis_server, &folder.join("redis.log"))?,
            _epmd: Server::new("epmd", epmd, &folder.join("epmd.log"))?,
        };
        servers._epmd.start()?;
        servers.redis.start()?;
        servers.rabbitmq.start()?;
        servers.ready().await.with_context(|| {
            let logs = ["rabbitmq.log", "epmd.log", "redis.log"];
            let ends = logs.map(|name| format!("{name} ends with:\n{}", paths::tail(&folder.join(name), 20)));
            format!("the servers don't come up\n{}", ends.join("\n"))
        })?;
        Ok(servers)
    }

    /// Waits until both answer.
    ///
    /// # Errors
    /// If one doesn't within two minutes.
    pub async fn ready(&self) -> Result<()> {
        wait::until("RabbitMQ to answer", BOOT, || async {
            rabbitmq::greets(&self.amqp_url).await?;
            if let Some(management) = &self.management_url {
                http::send("GET", &format!("{management}/api/overview"), "guest:guest", "").await?;
            }
            Ok(Some(()))
        })
        .await?;
        wait::until("Redis to answer", BOOT, || async {
            let client = redis::Client::open(self.redis_url.as_str())?;
            let mut connection = client.get_multiplexed_async_connection().await?;
            redis::cmd("PING").query_async::<()>(&mut connection).await?;
            Ok(Some(()))
        })
        .await
    }
}

/// Where RabbitMQ listens.
struct Ports {
    amqp: u16,
    distribution: u16,
    /// Of the daemon that Erlang programs find one another by.
    names: u16,
    management: u16,
}

fn rabbitmq(
    folder: &Path,
    settings: Settings,
    ports: &Ports,
    newer: Option<&NewerRabbit>,
) -> Result<Command> {
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    };
    let mut conf = format!("listeners.tcp.default = 127.0.0.1:{}\n", ports.amqp);
    conf.push_str("log.console = true\nlog.file = false\ndisk_free_limit.absolute = 50MB\n");
    let script = Path::new(SCRIPTS).join("rabbitmq-server");
    let (mut command, plugins) = match newer {
        None => (Command::new(script), "[].\n"),
        Some(newer) => {
            let port = ports.management;
            conf.push_str(&format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n"));
            conf.push_str("collect_statistics_interval = 1000\n");
            (newer.command(&script, folder), "[rabbitmq_management].\n")
        }
    };
    command
        .env("HOME", folder)
        .env("RABBITMQ_NODENAME", "soloist@localhost")
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("ERL_EPMD_PORT", ports.names.to_string())
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_CONFIG_FILE", write("rabbitmq.conf", &conf)?)
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", write("enabled_plugins", plugins)?)
        .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
        .env("RABBITMQ_LOG_BASE", folder.join("log"))
        .env("RABBITMQ_PID_FILE", folder.join("pid"))
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", settings.erlang)
        // The script then becomes the server: what is killed is the server itself.
        .env("RUNNING_UNDER_SYSTEMD", "true");
    Ok(command)
}

/// Ports that nothing listens at now.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let listeners = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
