//! RabbitMQ beside the cluster: a server of its own, which tests may stop, kill and start again.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::timeout;

use crate::certificates::{Authority, Identity};
use crate::netns::{NODE_ADDRESS, Namespace};
use crate::process::{Launch, Process};
use crate::state::State;
use crate::{command, debian, http, paths, wait};

const NAME: &str = "rabbitmq";
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
const NODE: &str = "rabbit@localhost";
/// It boots in about 5 seconds on two idle cores; cold and with the machine busy it may take ten times that.
const BOOT: Duration = Duration::from_secs(90);
/// How long it may take to greet a client, once it takes connections at all.
const GREETING: Duration = Duration::from_secs(5);

/// The RabbitMQ server of a cluster.
#[derive(Clone, Debug)]
pub struct Rabbit {
    /// Where it runs, if it is ours.
    namespace: Option<Namespace>,
    amqp_url: String,
    management_url: String,
}

impl Rabbit {
    /// The user `guest`, whom it has from the start, may come from anywhere here.
    pub(crate) fn own(namespace: Namespace) -> Self {
        Self {
            namespace: Some(namespace),
            amqp_url: format!("amqp://guest:guest@{NODE_ADDRESS}:5672"),
            management_url: format!("http://{NODE_ADDRESS}:15672"),
        }
    }

    pub(crate) fn given(amqp_url: String, management_url: String) -> Self {
        Self { namespace: None, amqp_url, management_url }
    }

    /// Its default virtual host, as seen from the cluster's network.
    pub fn amqp_url(&self) -> String {
        self.amqp_url.clone()
    }

    /// Its management API, as seen from the cluster's network.
    pub fn management_url(&self) -> String {
        self.management_url.clone()
    }

    /// A folder with the keys of a Secret for its TLS ports (of AMQP and of the management API), which want a client
    /// certificate; none if it isn't ours.
    pub fn tls_secret(&self) -> Option<PathBuf> {
        self.namespace.is_some().then(|| folder().join("tls-secret"))
    }

    /// `user:password` of the URL.
    fn user(&self) -> &str {
        user_and_host(&self.amqp_url).0
    }

    /// Makes a virtual host, for tests that want a broker to themselves, and gives back its URL; the management API
    /// answers for it too.
    ///
    /// # Errors
    /// If the management API refuses it.
    pub async fn create_vhost(&self, name: &str) -> Result<String> {
        let (api, user) = (&self.management_url, self.user());
        let (user_name, _) = user.split_once(':').unwrap_or((user, ""));
        http::send("PUT", &format!("{api}/api/vhosts/{name}"), user, "{}").await?;
        let all = r#"{"configure":".*","write":".*","read":".*"}"#;
        http::send("PUT", &format!("{api}/api/permissions/{name}/{user_name}"), user, all).await?;
        let (user, host) = user_and_host(&self.amqp_url);
        Ok(format!("amqp://{user}@{host}/{name}"))
    }

    /// Removes a virtual host with everything in it.
    ///
    /// # Errors
    /// If the management API refuses it.
    pub async fn delete_vhost(&self, name: &str) -> Result<()> {
        let url = format!("{}/api/vhosts/{name}", self.management_url);
        http::send("DELETE", &url, self.user(), "").await.map(drop)
    }

    /// Takes all messages that wait out of a queue.
    ///
    /// # Errors
    /// If the management API refuses it.
    pub async fn purge(&self, vhost: &str, queue: &str) -> Result<()> {
        let url = format!("{}/api/queues/{vhost}/{queue}/contents", self.management_url);
        http::send("DELETE", &url, self.user(), "").await.map(drop)
    }

    /// Takes an exchange away, with its bindings.
    ///
    /// # Errors
    /// If the management API refuses it.
    pub async fn delete_exchange(&self, vhost: &str, exchange: &str) -> Result<()> {
        let url = format!("{}/api/exchanges/{vhost}/{exchange}", self.management_url);
        http::send("DELETE", &url, self.user(), "").await.map(drop)
    }

    /// Starts it, if it isn't running, and waits until it takes connections. It has what it had before.
    ///
    /// # Errors
    /// If it doesn't come up within 90 seconds; its log says why.
    pub async fn start(&self) -> Result<()> {
        if self.process()?.is_none() {
            self.launch(&[])?;
        }
        self.ready().await
    }

    /// The same, with a clock that [`set_clock`](Self::set_clock) sets. It needs the Debian package `libfaketime`.
    ///
    /// # Errors
    /// As [`start`](Self::start), and if it runs already.
    pub async fn start_with_clock(&self) -> Result<()> {
        ensure!(self.process()?.is_none(), "RabbitMQ runs already, with the machine's clock");
        self.set_clock("+0")?;
        self.launch(&[
            ("LD_PRELOAD", debian::FAKETIME.into()),
            ("FAKETIME_TIMESTAMP_FILE", clock_file()),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            // Erlang measures durations by another clock, which never jumps.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ])?;
        self.ready().await
    }

    /// Has the clock of a broker so started jump: `-2h` is two hours before the machine's.
    ///
    /// # Errors
    /// If the file that says so can't be written.
    pub fn set_clock(&self, offset: &str) -> Result<()> {
        std::fs::write(clock_file(), format!("{offset}\n")).context("set RabbitMQ's clock")
    }

    /// Switches the management plugin on or off.
    ///
    /// # Errors
    /// If RabbitMQ's own program fails at that.
    pub async fn manage(&self, on: bool) -> Result<()> {
        self.namespace()?;
        let mut plugins = Command::new(script("rabbitmq-plugins"));
        plugins.args([if on { "enable" } else { "disable" }, "rabbitmq_management"]).envs(environment());
        command::output(&mut plugins, BOOT).await.map(drop)
    }

    /// Has it stand still: it keeps its connections and answers nothing, until [`resume`](Self::resume).
    ///
    /// # Errors
    /// If it doesn't run.
    pub fn suspend(&self) -> Result<()> {
        self.process()?.context("RabbitMQ doesn't run")?.signal(Signal::STOP)
    }

    /// Has it go on.
    ///
    /// # Errors
    /// If it doesn't run.
    pub fn resume(&self) -> Result<()> {
        self.process()?.context("RabbitMQ doesn't run")?.signal(Signal::CONT)
    }

    /// Stops it as an administrator would: it closes its connections and keeps what is durable.
    ///
    /// # Errors
    /// If it is still there after 60 seconds.
    pub async fn stop(&self) -> Result<()> {
        self.end(Signal::TERM).await
    }

    /// Kills it, as a power cut would.
    ///
    /// # Errors
    /// If it is still there after 60 seconds.
    pub async fn kill(&self) -> Result<()> {
        self.end(Signal::KILL).await
    }

    async fn end(&self, signal: Signal) -> Result<()> {
        let Some(process) = self.process()? else { return Ok(()) };
        process.signal(signal)?;
        process.gone("RabbitMQ", Duration::from_secs(60)).await
    }

    fn namespace(&self) -> Result<&Namespace> {
        self.namespace.as_ref().ok_or_else(|| anyhow!("this RabbitMQ isn't ours to start or stop"))
    }

    fn process(&self) -> Result<Option<Process>> {
        self.namespace()?;
        State::running(NAME)
    }

    /// Starts the daemon that Erlang programs find one another by. RabbitMQ would start one too, but on its own terms.
    pub(crate) fn launch_epmd(&self) -> Result<()> {
        let process = Launch::new("epmd", "epmd").start(self.namespace()?)?;
        State::record("epmd", &process)
    }

    pub(crate) fn launch(&self, settings: &[(&str, PathBuf)]) -> Result<()> {
        let folder = folder();
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let write = |name: &str, text: &str| {
            let file = folder.join(name);
            std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))
        };
        let tls = folder.join("tls");
        if !tls.exists() {
            let authority = Authority::create(&tls)?;
            authority.server("server", &[NODE_ADDRESS])?;
            let client = authority.client("client", &Identity { user: "soloist", group: "" })?;
            let secret = folder.join("tls-secret");
            std::fs::create_dir_all(&secret).with_context(|| format!("create {}", secret.display()))?;
            let (certificate, key) = (client.certificate, client.key);
            for (file, name) in
                [(authority.file("ca.crt"), "ca.crt"), (certificate, "tls.crt"), (key, "tls.key")]
            {
                std::fs::copy(&file, secret.join(name))
                    .with_context(|| format!("copy {}", file.display()))?;
            }
            let uri = format!("amqps://{}@{NODE_ADDRESS}:5671", self.user());
            std::fs::write(secret.join("uri"), uri).context("write the address for TLS")?;
        }
        let ssl = |prefix: &str| {
            let file = |name: &str| tls.join(name).display().to_string();
            format!(
                "{prefix}.cacertfile = {}\n{prefix}.certfile = {}\n{prefix}.keyfile = {}\n\
                 {prefix}.verify = verify_peer\n{prefix}.fail_if_no_peer_cert = true\n",
                file("ca.crt"),
                file("server.crt"),
                file("server.key")
            )
        };
        // The limits are absolute: relative ones depend on a machine that the broker shares with everything else.
        let conf = "loopback_users = none\n\
             log.console = true\n\
             log.console.level = info\n\
             log.file = false\n\
             vm_memory_high_watermark.absolute = 2GB\n\
             disk_free_limit.absolute = 50MB\n\
             management.rates_mode = basic\n\
             collect_statistics_interval = 1000\n\
             listeners.ssl.default = 5671\n\
             management.tcp.port = 15672\n\
             management.ssl.port = 15671\n";
        write("rabbitmq.conf", &format!("{conf}{}{}", ssl("ssl_options"), ssl("management.ssl")))?;
        write("enabled_plugins", "[rabbitmq_management,rabbitmq_prometheus].\n")?;
        let mut launch = Launch::new(NAME, PathBuf::from(SCRIPTS).join("rabbitmq-server"));
        for (name, value) in environment() {
            launch = launch.env(name, value);
        }
        for (name, value) in settings {
            launch = launch.env(name, value);
        }
        let process = launch.start(self.namespace()?)?;
        State::record(NAME, &process)
    }

    /// Waits until both its doors answer: AMQP and the management API.
    pub(crate) async fn ready(&self) -> Result<()> {
        let overview = format!("{}/api/overview", self.management_url);
        let (url, user) = (self.amqp_url.clone(), self.user().to_owned());
        self.namespace()?
            .run(move || async move {
                wait::until("RabbitMQ to answer", BOOT, || async {
                    greets(&url).await?;
                    http::send("GET", &overview, &user, "").await?;
                    Ok(Some(()))
                })
                .await
            })
            .await
    }
}

/// Connects to a RabbitMQ, and leaves it again.
///
/// # Errors
/// If it isn't there, refuses, or says nothing for 5 seconds: lapin itself waits for ever for a greeting that doesn't come, as from a server
/// that is just starting.
pub(crate) async fn greets(amqp_url: &str) -> Result<()> {
    let connecting = lapin::Connection::connect(amqp_url, lapin::ConnectionProperties::default());
    let connection = timeout(GREETING, connecting).await.context("RabbitMQ says nothing")??;
    Ok(connection.close(200, "ready".into()).await?)
}

/// `user:password` and `host:port` of an AMQP URL.
fn user_and_host(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (user, rest) = rest.rsplit_once('@').unwrap_or(("guest:guest", rest));
    (user, rest.split('/').next().unwrap_or(rest))
}

/// What `rabbitmqctl` and the server agree on.
pub(crate) fn environment() -> Vec<(&'static str, String)> {
    let file = |name: &str| folder().join(name).display().to_string();
    vec![
        ("HOME", folder().display().to_string()),
        ("RABBITMQ_NODENAME", NODE.to_owned()),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
        ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins")),
        ("RABBITMQ_MNESIA_BASE", file("data")),
        ("RABBITMQ_LOG_BASE", file("log")),
        ("RABBITMQ_PID_FILE", file("pid")),
        // Two schedulers that don't spin while they wait: the machine has other things to do.
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none".to_owned()),
        // The script then becomes the server, instead of starting it as a child and passing signals on.
        ("RUNNING_UNDER_SYSTEMD", "true".to_owned()),
    ]
}

/// The file of one of RabbitMQ's programs.
pub(crate) fn script(name: &str) -> PathBuf {
    PathBuf::from(SCRIPTS).join(name)
}

/// What the clock of a broker with a clock of its own is set to.
fn clock_file() -> PathBuf {
    folder().join("clock")
}

fn folder() -> PathBuf {
    paths::cluster().join(NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_user_means_guest() {
        assert_eq!(user_and_host("amqp://a:b@host:5672/vhost"), ("a:b", "host:5672"));
        assert_eq!(user_and_host("amqp://host"), ("guest:guest", "host"));
    }
}
