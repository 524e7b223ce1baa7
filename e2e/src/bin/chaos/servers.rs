//! A RabbitMQ and a Redis of the run's own, on this machine, that may be killed at any moment and have all they had when they
//! start again.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use celery_client::BrokerAddress;
use e2e::wait;
use tokio::process::{Child, Command};

/// Where Debian puts RabbitMQ's programs.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// It boots in about 5 seconds on two idle cores.
const BOOT: Duration = Duration::from_secs(120);

/// A server that can be killed and started again.
pub(crate) struct Server {
    name: &'static str,
    command: Command,
    process: Option<Child>,
}

impl Server {
    /// Kills it as a power cut would, and returns once it is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().await.with_context(|| format!("kill {}", self.name))?;
        }
        Ok(())
    }

    /// Starts it, without waiting until it answers.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.process = Some(self.command.spawn().with_context(|| format!("start {}", self.name))?);
        Ok(())
    }
}

/// Both servers, and the daemon that Erlang programs find one another by.
pub(crate) struct Servers {
    _epmd: Child,
    pub(crate) rabbitmq: Server,
    pub(crate) redis: Server,
    pub(crate) broker: BrokerAddress,
    pub(crate) amqp_url: String,
    pub(crate) redis_url: String,
}

impl Servers {
    /// Starts them with their data in `folder`, and returns once they answer.
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let [amqp, distribution, names, redis] = free_ports()?;
        let mut epmd = Command::new("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &names.to_string()]);
        let amqp_url = format!("amqp://guest:guest@127.0.0.1:{amqp}");
        let mut servers = Self {
            _epmd: prepared(epmd, &folder.join("epmd.log"))?.spawn().context("start epmd")?,
            rabbitmq: Server {
                name: "RabbitMQ",
                command: rabbitmq(&folder.join("rabbitmq"), amqp, distribution, names)?,
                process: None,
            },
            redis: Server {
                name: "Redis",
                command: redis_server(&folder.join("redis"), redis)?,
                process: None,
            },
            broker: amqp_url.parse()?,
            amqp_url,
            redis_url: format!("redis://127.0.0.1:{redis}/0"),
        };
        servers.redis.start()?;
        servers.rabbitmq.start()?;
        servers.ready().await?;
        Ok(servers)
    }

    /// Waits until both answer.
    pub(crate) async fn ready(&self) -> Result<()> {
        wait::until("RabbitMQ to answer", BOOT, || async {
            let connection = celery_client::connect(&self.broker, "chaos").await?;
            connection.close(200, "ready".into()).await?;
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

fn rabbitmq(folder: &Path, amqp: u16, distribution: u16, names: u16) -> Result<Command> {
    std::fs::create_dir_all(folder)?;
    let write = |name: &str, text: &str| -> Result<String> {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file.display().to_string())
    };
    let configuration = write(
        "rabbitmq.conf",
        &format!(
            "listeners.tcp.default = 127.0.0.1:{amqp}\nlog.console = true\nlog.file = false\ndisk_free_limit.absolute = 50MB\n"
        ),
    )?;
    let plugins = write("enabled_plugins", "[].\n")?;
    let inside = |name: &str| folder.join(name).display().to_string();
    let mut command = Command::new(PathBuf::from(SCRIPTS).join("rabbitmq-server"));
    command
        .env("HOME", folder)
        .env("RABBITMQ_NODENAME", "chaos@localhost")
        .env("RABBITMQ_DIST_PORT", distribution.to_string())
        .env("ERL_EPMD_PORT", names.to_string())
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_CONFIG_FILE", configuration)
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", plugins)
        .env("RABBITMQ_MNESIA_BASE", inside("data"))
        .env("RABBITMQ_LOG_BASE", inside("log"))
        .env("RABBITMQ_PID_FILE", inside("pid"))
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none")
        // The script then becomes the server: what is killed is the server itself.
        .env("RUNNING_UNDER_SYSTEMD", "true");
    prepared(command, &folder.join("server.log"))
}

fn redis_server(folder: &Path, port: u16) -> Result<Command> {
    std::fs::create_dir_all(folder)?;
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
        .arg(folder)
        // With `everysec` it answers before the disk has it: a result of the last second or two may be gone, whose message
        // is acknowledged.
        .args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
    prepared(command, &folder.join("server.log"))
}

/// With its output in a file; it ends with us.
fn prepared(mut command: Command, log: &Path) -> Result<Command> {
    let log = std::fs::File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
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
