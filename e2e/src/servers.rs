//! A RabbitMQ and a Redis of a benchmark's own, on this machine, that end with it.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};

use crate::wait;

/// Where Debian puts RabbitMQ's programs.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// It boots in about 5 seconds on two idle cores.
const BOOT: Duration = Duration::from_secs(120);

/// Servers on the loopback interface. They are killed when this is dropped.
pub struct Servers {
    /// RabbitMQ's default virtual host.
    pub amqp_url: String,
    /// Redis's database 0.
    pub redis_url: String,
    _processes: Vec<Child>,
}

impl Servers {
    /// Those that `AMQP_URL` and `REDIS_URL` name; none if one of them is missing.
    pub fn given() -> Option<Self> {
        let url = |name| std::env::var(name).ok();
        Some(Self { amqp_url: url("AMQP_URL")?, redis_url: url("REDIS_URL")?, _processes: Vec::new() })
    }

    /// Starts new ones, with nothing in them, and returns once they answer.
    ///
    /// # Errors
    /// If one is not installed or doesn't come up; its log in `folder` says why.
    pub async fn start(folder: &Path) -> Result<Self> {
        if folder.exists() {
            std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let [amqp, distribution, names, redis] = free_ports()?;
        let mut epmd = Command::new("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &names.to_string()]);
        let mut redis_server = Command::new("redis-server");
        redis_server.args(["--bind", "127.0.0.1", "--port", &redis.to_string(), "--dir"]).arg(folder).args([
            "--appendonly",
            "no",
            "--save",
            "",
        ]);
        let mut processes = Vec::new();
        for (name, command) in [
            ("epmd", epmd),
            ("redis", redis_server),
            ("rabbitmq", rabbitmq(folder, amqp, distribution, names)?),
        ] {
            processes.push(spawn(command, &folder.join(name).with_extension("log"), name)?);
        }
        let servers = Self {
            amqp_url: format!("amqp://guest:guest@127.0.0.1:{amqp}"),
            redis_url: format!("redis://127.0.0.1:{redis}/0"),
            _processes: processes,
        };
        servers.ready().await?;
        Ok(servers)
    }

    async fn ready(&self) -> Result<()> {
        wait::until("RabbitMQ to answer", BOOT, || async {
            let properties = lapin::ConnectionProperties::default();
            let connection = lapin::Connection::connect(&self.amqp_url, properties).await?;
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
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    };
    let listener = format!("listeners.tcp.default = 127.0.0.1:{amqp}\n");
    let limits = "log.console = true\nlog.file = false\ndisk_free_limit.absolute = 50MB\n";
    let mut command = Command::new(PathBuf::from(SCRIPTS).join("rabbitmq-server"));
    command
        .env("HOME", folder)
        .env("RABBITMQ_NODENAME", "benchmark@localhost")
        .env("RABBITMQ_DIST_PORT", distribution.to_string())
        .env("ERL_EPMD_PORT", names.to_string())
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_CONFIG_FILE", write("rabbitmq.conf", &format!("{listener}{limits}"))?)
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", write("enabled_plugins", "[].\n")?)
        .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
        .env("RABBITMQ_LOG_BASE", folder.join("log"))
        .env("RABBITMQ_PID_FILE", folder.join("pid"))
        // The script then becomes the server: what is killed is the server itself.
        .env("RUNNING_UNDER_SYSTEMD", "true");
    Ok(command)
}

fn spawn(mut command: Command, log: &Path, name: &str) -> Result<Child> {
    let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    command.spawn().with_context(|| format!("start {name}"))
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
