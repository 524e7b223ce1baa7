//! The worker's command line and environment, the same for the stock worker and for every program built on this crate.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use celery_client::{AddressError, BrokerAddress, ResultStoreAddress};
use clap::Parser;
use tracing::{error, warn};

use crate::{
    attempts,
    consume::Stopped,
    log::{self, LogFormat},
    mounted::Mounted,
    worker::{MOST_IN_HAND, Worker, WorkerBuilder, host_name},
};

/// Where RabbitMQ is when nothing is said.
const LOCAL_BROKER: &str = "amqp://guest:guest@localhost:5672//";

/// Where the broker and the results are: the same flags and environment variables for all programs of Soloist.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Addresses {
    /// The broker: amqp://user:password@host:port/vhost, or amqps://. Wins over --broker-dir. Default:
    /// RabbitMQ on this machine.
    #[arg(short, long, env = "SOLOIST_BROKER", value_name = "URL", hide_env_values = true)]
    #[arg(value_parser = parse_broker)]
    broker: Option<BrokerAddress>,

    /// Directory with one file for each key of a broker Secret: host, port, username, password and vhost, or uri.
    #[arg(long, env = "SOLOIST_BROKER_DIR", value_name = "DIRECTORY")]
    broker_dir: Option<PathBuf>,

    /// Where results go: redis://host:port/database, rediss://, or rpc:// for back to the caller. Wins over
    /// --results-dir. Default: nowhere.
    #[arg(long, env = "SOLOIST_RESULTS", value_name = "URL", hide_env_values = true)]
    #[arg(value_parser = parse_results)]
    results: Option<ResultStoreAddress>,

    /// Directory with one file for each key of a results Secret: uri, or host, port, password and db.
    #[arg(long, env = "SOLOIST_RESULTS_DIR", value_name = "DIRECTORY")]
    results_dir: Option<PathBuf>,
}

impl Addresses {
    /// The broker, on this machine unless said otherwise.
    ///
    /// # Errors
    /// When the directory or an address in it can't be read.
    pub fn broker(&self) -> Result<BrokerAddress, AddressError> {
        match (&self.broker, &self.broker_dir) {
            (Some(address), _) => Ok(address.clone()),
            (None, Some(directory)) => BrokerAddress::from_directory(directory),
            (None, None) => LOCAL_BROKER.parse(),
        }
    }

    /// Where results go, if anywhere.
    ///
    /// # Errors
    /// When the directory or an address in it can't be read.
    pub fn results(&self) -> Result<Option<ResultStoreAddress>, AddressError> {
        match (&self.results, &self.results_dir) {
            (Some(address), _) => Ok(Some(address.clone())),
            (None, Some(directory)) => ResultStoreAddress::from_directory(directory).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The directories that addresses were read from, which may change.
    fn mounted(&self, broker: &BrokerAddress, results: Option<&ResultStoreAddress>) -> Mounted {
        let directory = |given: bool, directory: &Option<PathBuf>| directory.clone().filter(|_| !given);
        Mounted {
            broker: directory(self.broker.is_some(), &self.broker_dir).zip(Some(broker.clone())),
            results: directory(self.results.is_some(), &self.results_dir).zip(results.cloned()),
        }
    }
}

/// What a worker can be told from outside. Every flag has an environment variable; the flag wins.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    about = "A Celery worker that runs one task at a time",
    long_about = "A Celery worker that runs one task at a time, made for Kubernetes: while a task runs it still answers its \
                  probes, its broker and remote control.\n\nOn SIGTERM or SIGINT it takes no more messages, finishes the \
                  task it runs, stores the result, acknowledges the message and exits with 0. On a second signal it gives \
                  the message back to its queue and exits with 1.",
    next_line_help = true
)]
pub struct Options {
    /// Name of the application, for people.
    #[arg(short = 'A', long, env = "SOLOIST_APP", default_value = "soloist")]
    app: String,

    #[command(flatten)]
    addresses: Addresses,

    /// Queues to take tasks from, with commas between them.
    #[arg(short = 'Q', long, env = "SOLOIST_QUEUES", value_delimiter = ',', value_name = "NAMES")]
    #[arg(default_value = "celery", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    queues: Vec<String>,

    /// Whether a queue that does not exist is made as Celery would make it, or waited for.
    #[arg(long, env = "SOLOIST_CREATE_MISSING_QUEUES", value_name = "BOOL", action = clap::ArgAction::Set)]
    #[arg(default_value_t = true)]
    create_missing_queues: bool,

    /// Queue for tasks that follow one of this worker's (in a chain, as a callback...), name no queue of their own and are
    /// not known to this worker. Those that it knows go to where the first one came from.
    #[arg(long, env = "SOLOIST_DEFAULT_QUEUE", value_name = "NAME", default_value = "celery")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    default_queue: String,

    /// Name of this worker, different from all others on the broker; %h stands for the machine's name.
    #[arg(short = 'n', long, visible_alias = "hostname", env = "SOLOIST_NODE_NAME", value_name = "NAME")]
    #[arg(default_value = "celery@%h", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node_name: String,

    /// Where probes and metrics are served: /livez, /readyz and /metrics.
    #[arg(long, env = "SOLOIST_HTTP_ADDRESS", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    http_address: SocketAddr,

    /// Seconds after which a task is ended, unless its message or remote control says otherwise. Default: never.
    #[arg(long, env = "SOLOIST_TIME_LIMIT", value_name = "SECONDS", value_parser = parse_seconds)]
    time_limit: Option<Duration>,

    /// Seconds after which a task is asked to stop. Default: never.
    #[arg(long, env = "SOLOIST_SOFT_TIME_LIMIT", value_name = "SECONDS", value_parser = parse_seconds)]
    soft_time_limit: Option<Duration>,

    /// How often a message may come back without its task having come to an end, before it is given up.
    #[arg(long, env = "SOLOIST_DELIVERY_LIMIT", value_name = "NUMBER", default_value_t = attempts::DEFAULT_LIMIT)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    delivery_limit: u32,

    /// Stores the state STARTED when a task begins, with the process and the node that run it, unless the task says otherwise. In the
    /// environment: true or false.
    #[arg(long, env = "SOLOIST_TRACK_STARTED")]
    track_started: bool,

    /// Directory that outlives a restart of the container, where queues that remote control has cancelled are remembered as such.
    /// Default: they aren't.
    #[arg(long, env = "SOLOIST_STATE_DIR", value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,

    /// Messages of a queue to hold at once, at most. More than one are held only while tasks take less than about a
    /// millisecond; 1 means never more than the one that is being worked on.
    #[arg(long, env = "SOLOIST_MAX_PREFETCH", value_name = "MESSAGES", default_value_t = MOST_IN_HAND)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    max_prefetch: u16,

    /// What is logged: a level, or levels by module as in `info,soloist_worker=debug`.
    #[arg(long, env = "SOLOIST_LOG", value_name = "FILTER", default_value = "info")]
    log: String,

    /// How it is logged.
    #[arg(long, env = "SOLOIST_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// As for Celery, in place of --log: DEBUG, INFO, WARNING, ERROR, CRITICAL or FATAL.
    #[arg(short, long, value_name = "LEVEL", ignore_case = true)]
    #[arg(value_parser = ["debug", "info", "warning", "error", "critical", "fatal"])]
    loglevel: Option<String>,

    /// Execution pool: solo, the only one there is.
    #[arg(short = 'P', long, env = "SOLOIST_POOL", default_value = "solo", value_parser = parse_pool)]
    pool: String,

    /// Accepted for Celery's sake and ignored: this worker runs one task at a time.
    #[arg(short, long, env = "SOLOIST_CONCURRENCY", value_name = "NUMBER")]
    concurrency: Option<u32>,

    /// Accepted for Celery's sake: events are always sent.
    #[arg(short = 'E', long, env = "SOLOIST_TASK_EVENTS")]
    task_events: bool,
}

impl Options {
    /// Sends the log to standard error, as the options say.
    ///
    /// # Errors
    /// When the filter can't be read, or the program has set up a log of its own already.
    pub fn start_log(&self) -> Result<(), log::LogError> {
        let filter = match self.loglevel.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None => &self.log,
            Some("warning") => "warn",
            Some("critical" | "fatal") => "error",
            Some("debug") => "debug",
            Some("error") => "error",
            Some(_) => "info",
        };
        log::start(filter, self.log_format)
    }

    /// A worker as the options say, without tasks yet.
    ///
    /// # Errors
    /// When a directory or an address in it can't be read.
    pub fn builder(&self) -> Result<WorkerBuilder, AddressError> {
        let broker = self.addresses.broker()?;
        let results = self.addresses.results()?;
        let mounted = self.addresses.mounted(&broker, results.as_ref());
        let builder = Worker::builder(broker)
            .app(&self.app)
            .queues(&self.queues)
            .create_missing_queues(self.create_missing_queues)
            .default_queue(&self.default_queue)
            .node_name(self.whole_node_name())
            .time_limits(self.soft_time_limit, self.time_limit)
            .delivery_limit(self.delivery_limit)
            .track_started(self.track_started)
            .max_prefetch(self.max_prefetch)
            .http(self.http_address)
            .mounted(mounted);
        let builder = match results {
            Some(address) => builder.results(address),
            None => builder,
        };
        Ok(match &self.state_dir {
            Some(directory) => builder.state_dir(directory),
            None => builder,
        })
    }

    /// A name without `@` is the machine's, as for Celery's workers.
    fn whole_node_name(&self) -> String {
        let name = self.node_name.replace("%h", &host_name());
        if name.contains('@') { name } else { format!("celery@{name}") }
    }

    /// Runs a worker with these tasks until it is told to stop, and gives the program's exit code.
    #[must_use]
    pub fn run(&self, tasks: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> ExitCode {
        if let Err(error) = self.start_log() {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
        if let (Some(soft), Some(hard)) = (self.soft_time_limit, self.time_limit)
            && soft >= hard
        {
            eprintln!(
                "error: --soft-time-limit ({soft:?}) is to be less than --time-limit ({hard:?}): a task would be ended before it is asked to stop"
            );
            return ExitCode::from(2);
        }
        if let Some(concurrency) = self.concurrency.filter(|concurrency| *concurrency != 1) {
            warn!(
                concurrency,
                "--concurrency is ignored: this worker runs one task at a time; run more workers instead"
            );
        }
        let builder = match self.builder() {
            Ok(builder) => builder,
            Err(error) => {
                error!(%error, "can't read the addresses");
                return ExitCode::from(2);
            }
        };
        match tasks(builder).build().run() {
            Ok(Stopped::Warm) => ExitCode::SUCCESS,
            Ok(Stopped::Cold) => ExitCode::FAILURE,
            Err(failure) => {
                let cause = std::error::Error::source(&failure).map(ToString::to_string);
                error!(error = %failure, cause, "the worker can't start");
                ExitCode::FAILURE
            }
        }
    }
}

/// A whole worker program: reads the command line and the environment, adds the tasks, runs until told to stop.
///
/// ```no_run
/// fn add(x: i64, y: i64) -> i64 {
///     x + y
/// }
///
/// fn main() -> std::process::ExitCode {
///     soloist_worker::main(|worker| worker.task("shop.add", add))
/// }
/// ```
pub fn main(tasks: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> ExitCode {
    Options::parse().run(tasks)
}

fn parse_broker(text: &str) -> Result<BrokerAddress, AddressError> {
    text.parse()
}

fn parse_results(text: &str) -> Result<ResultStoreAddress, AddressError> {
    text.parse()
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than zero".to_owned()),
    }
}

fn parse_pool(name: &str) -> Result<String, String> {
    match name {
        "solo" => Ok(name.to_owned()),
        _ => Err(
            "only `solo` exists here: one process runs one task at a time. To run several at once, run more \
                  workers (on Kubernetes: raise maxReplicas of the TaskQueue)"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["soloist-worker"], args].concat())
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }

    #[test]
    fn reads_celerys_short_flags() {
        let options = parse(&[
            "-A", "shop", "-Q", "red,blue", "-n", "w1@%h", "-l", "INFO", "-P", "solo", "-c", "8", "-E",
        ])
        .unwrap();
        assert_eq!(options.queues, ["red", "blue"]);
        assert_eq!((options.app.as_str(), options.concurrency), ("shop", Some(8)));
        assert!(options.builder().is_ok());
    }

    #[test]
    fn a_node_name_is_completed_as_celery_does() {
        let name = |given: &str| parse(&["-n", given]).unwrap().whole_node_name();
        assert_eq!([name("a@b"), name("b")], ["a@b", "celery@b"]);
        assert_eq!(name("a@%h"), format!("a@{}", host_name()));
        assert!(parse(&["-n", ""]).is_err() && parse(&["--delivery-limit", "0"]).is_err());
    }

    #[test]
    fn other_pools_are_refused_with_the_remedy() {
        let error = parse(&["--pool", "prefork"]).unwrap_err().to_string();
        assert!(error.contains("only `solo` exists here") && error.contains("maxReplicas"), "{error}");
    }

    #[test]
    fn addresses_are_checked_and_never_repeated() {
        let error = parse(&["--broker", "http://user:hunter2@host/"]).unwrap_err().to_string();
        assert!(error.contains("not supported as broker"), "{error}");
        assert!(parse(&["--results", "memcached://x"]).is_err());
        assert!(parse(&["--queues", ""]).is_err());
    }
}
