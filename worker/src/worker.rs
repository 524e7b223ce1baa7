//! The worker: what it is told, and how it starts and stops.

use std::{
    borrow::Cow, io, net::SocketAddr, os::unix::process::CommandExt, path::PathBuf, sync::Arc, time::Duration,
};

use celery_client::{BrokerAddress, ResultStoreAddress};
use celery_protocol::event;
use lapin::{Channel, ExchangeKind, options::ExchangeDeclareOptions, types::FieldTable};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::{
    attempts,
    broker::{Link, Prepare, SessionOptions, answer},
    canvas::{Canvas, Sender},
    consume::{self, Stopped},
    control::{self, Panel},
    done::Done,
    events::{Activity, Clock, Events},
    executor::Executor,
    health::Health,
    http,
    limits::Limits,
    metrics::Metrics,
    mounted::Mounted,
    queues::Queues,
    results::Results,
    revoked::{self, Revoked},
    stop::{Stop, Urgency},
    supervise::TimeLimits,
    task::{IntoTaskFunction, Registry, States, Task},
    work::Work,
};

/// Messages of a queue that a worker holds at most. With more, tasks of microseconds don't become faster.
pub(crate) const MOST_IN_HAND: u16 = 64;

/// How long the last events may take to go out when the worker stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The HTTP endpoint could not be opened.
    #[error("listen for http on {address}")]
    Listen {
        /// Where it should have been.
        address: SocketAddr,
        /// Why it is not.
        source: io::Error,
    },
    /// The operating system gave no thread, timer or signal handler.
    #[error("start the worker's threads")]
    Threads(#[from] io::Error),
    /// The process could not be replaced by a fresh one, to be rid of a task that can't be stopped, or to use another address.
    #[error("restart")]
    Restart(#[source] io::Error),
    /// The metrics contradict each other.
    #[error("set up the metrics")]
    Metrics(#[from] prometheus::Error),
}

/// A worker that is ready to run.
///
/// ```no_run
/// use soloist_worker::Worker;
///
/// fn add(x: i64, y: i64) -> i64 {
///     x + y
/// }
///
/// let worker = Worker::builder("amqp://guest:guest@localhost:5672//".parse()?)
///     .queues(["shop"])
///     .task("shop.add", add)
///     .build();
/// worker.run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Worker(WorkerBuilder);

/// What a worker is to be; made by [`Worker::builder`].
#[derive(Debug)]
pub struct WorkerBuilder {
    broker: BrokerAddress,
    results: Option<ResultStoreAddress>,
    app: String,
    queues: Vec<String>,
    node: String,
    create_missing_queues: bool,
    default_queue: String,
    http: Option<SocketAddr>,
    time_limits: TimeLimits,
    delivery_limit: u32,
    track_started: bool,
    most_in_hand: u16,
    registry: Registry,
    states: States,
    mounted: Mounted,
    state_dir: Option<PathBuf>,
}

impl Worker {
    /// Begins a worker that takes its tasks from `broker`: from the queue `celery`, with no result store and no HTTP
    /// endpoint, until told otherwise.
    pub fn builder(broker: BrokerAddress) -> WorkerBuilder {
        WorkerBuilder {
            broker,
            results: None,
            app: "soloist".to_owned(),
            queues: vec!["celery".to_owned()],
            node: format!("celery@{}", host_name()),
            create_missing_queues: true,
            default_queue: "celery".to_owned(),
            http: None,
            time_limits: TimeLimits::default(),
            delivery_limit: attempts::DEFAULT_LIMIT,
            track_started: false,
            most_in_hand: MOST_IN_HAND,
            registry: Registry::default(),
            states: States::default(),
            mounted: Mounted::default(),
            state_dir: None,
        }
    }

    /// Runs until SIGTERM or SIGINT, or until told to shut down by remote control. Blocks the calling thread.
    ///
    /// # Guarantees
    /// A message is acknowledged after its result is stored, never before: whatever happens to this process, the task
    /// is run at least once.
    ///
    /// A plain function that outlives its time limit, or its revocation, can't be stopped from outside. When that happens
    /// its end is stored and acknowledged, and the process replaces itself (`exec`) with a fresh start of the same program
    /// and arguments. The same, after the present task, when a Secret changes that an address was read from.
    ///
    /// # Errors
    /// When it can't start. A broker or result store that is away is no such reason: the worker waits for it.
    pub fn run(self) -> Result<Stopped, WorkerError> {
        // A program may have installed one already, for its own use.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopped = runtime.block_on(self.0.run())?;
        drop(runtime);
        match stopped {
            Some(stopped) => Ok(stopped),
            None => Err(WorkerError::Restart(start_anew())),
        }
    }
}

/// Replaces the process by a fresh one; returns only if that fails.
fn start_anew() -> io::Error {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    std::process::Command::new("/proc/self/exe").arg0(name).args(args).exec()
}

impl WorkerBuilder {
    /// Stores results there.
    #[must_use]
    pub fn results(mut self, address: ResultStoreAddress) -> Self {
        self.results = Some(address);
        self
    }

    /// Name of the application, for people.
    #[must_use]
    pub fn app(mut self, app: impl Into<String>) -> Self {
        self.app = app.into();
        self
    }

    /// The queues to consume from, in place of `celery`.
    #[must_use]
    pub fn queues<Q: Into<String>>(mut self, queues: impl IntoIterator<Item = Q>) -> Self {
        self.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// Name of this worker among all on the broker, such as `celery@<pod>`. Two must not share one.
    #[must_use]
    pub fn node_name(mut self, node: impl Into<String>) -> Self {
        self.node = node.into();
        self
    }

    /// Whether a queue that does not exist is made, as Celery would make it (the default), or waited for.
    #[must_use]
    pub fn create_missing_queues(mut self, create: bool) -> Self {
        self.create_missing_queues = create;
        self
    }

    /// The queue for tasks that follow one of this worker's and name no queue of their own, unless this worker knows them:
    /// those go to where the first one came from. `celery` until told otherwise; Celery's `task_default_queue`.
    #[must_use]
    pub fn default_queue(mut self, queue: impl Into<String>) -> Self {
        self.default_queue = queue.into();
        self
    }

    /// Serves probes and metrics there.
    #[must_use]
    pub fn http(mut self, address: SocketAddr) -> Self {
        self.http = Some(address);
        self
    }

    /// How long tasks may take that have no limits of their own: after `soft` a task is asked to stop, after `hard` it is
    /// ended.
    #[must_use]
    pub fn time_limits(mut self, soft: Option<Duration>, hard: Option<Duration>) -> Self {
        self.time_limits = TimeLimits { soft, hard };
        self
    }

    /// Remembers in this directory which queues remote control has cancelled: a worker that was told to take no more tasks takes none
    /// after a restart either. In a pod it is to outlive the container, as an `emptyDir` does. Not remembered until told where.
    #[must_use]
    pub fn state_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(directory.into());
        self
    }

    /// How often a message may come back without its task having come to an end, 10 times unless set: after that it is
    /// rejected, as it seems to take each worker down, and the call fails with `WorkerLostError`.
    #[must_use]
    pub fn delivery_limit(mut self, deliveries: u32) -> Self {
        self.delivery_limit = deliveries;
        self
    }

    /// Whether the state `STARTED` is stored when a call begins, for tasks that don't say so [themselves](Task::track_started): not
    /// unless set, as with Celery's `task_track_started`.
    #[must_use]
    pub fn track_started(mut self, track: bool) -> Self {
        self.track_started = track;
        self
    }

    /// Holds at most so many messages of a queue at once, 64 unless set. A worker holds more than one only while its tasks
    /// are short: below about a millisecond.
    #[must_use]
    pub fn max_prefetch(mut self, messages: u16) -> Self {
        self.most_in_hand = messages.max(1);
        self
    }

    /// Registers `function` as the task called `name`: a plain `fn`, run on a thread where it may block, or an `async
    /// fn`. See [`Task`] for naming its parameters.
    #[must_use]
    pub fn task<M>(self, name: impl Into<Cow<'static, str>>, function: impl IntoTaskFunction<M>) -> Self {
        self.register(Task::new(name, function))
    }

    /// Registers a task.
    #[must_use]
    pub fn register(mut self, task: Task) -> Self {
        self.registry.insert(task);
        self
    }

    /// Gives tasks something to share, such as a pool of connections: those get it that take a [`State`](crate::State) of its
    /// type.
    #[must_use]
    pub fn state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.states.insert(state);
        self
    }

    /// Starts anew when an address in these directories is no longer the one that was read from it.
    pub(crate) fn mounted(mut self, mounted: Mounted) -> Self {
        self.mounted = mounted;
        self
    }

    /// The worker.
    pub fn build(self) -> Worker {
        Worker(self)
    }

    /// Runs until told to stop; `None` if the process is to start anew.
    async fn run(mut self) -> Result<Option<Stopped>, WorkerError> {
        self.log_banner();
        let stop = Stop::new();
        stop.on_signals()?;
        tokio::spawn(std::mem::take(&mut self.mounted).watch(stop.clone()));
        let queues = Arc::new(Queues::new(std::mem::take(&mut self.queues), self.state_dir.take()));
        let health = Arc::new(Health::new(&queues.list()));
        let metrics = Arc::new(Metrics::new(self.registry.served(), crate::VERSION)?);
        if let Some(address) = self.http {
            let exposed = http::Exposed { health: Arc::clone(&health), metrics: Arc::clone(&metrics) };
            let bound = http::serve(address, exposed)
                .await
                .map_err(|source| WorkerError::Listen { address, source })?;
            info!(address = %bound, "serving probes and metrics");
        }
        let node: Arc<str> = self.node.as_str().into();
        let results_shown = self.show_results();
        let prepare: Arc<Prepare> = Arc::new(|channel| Box::pin(declare_events(channel)));
        let carries_results = matches!(self.results, Some(ResultStoreAddress::Rpc));
        let link = Link::keep(self.broker.clone(), format!("{node} (publishing)"), prepare, carries_results);
        let results = Arc::new(match self.results {
            None => Results::Nowhere,
            Some(ResultStoreAddress::Redis(address)) => Results::in_redis(address),
            Some(ResultStoreAddress::Rpc) => Results::Rpc { link: link.clone() },
        });
        tokio::spawn(Arc::clone(&results).prepare(Arc::clone(&health)));
        let activity = Arc::new(Activity::new());
        let clock = Arc::new(Clock::default());
        let (events, publisher) =
            Events::new(Arc::clone(&node), Arc::clone(&clock), Arc::clone(&metrics), link.clone());
        let publishing = tokio::spawn(publisher.run());
        let beating = tokio::spawn(events.clone().keep_alive(Arc::clone(&activity)));
        let executor = Executor::start(self.registry.has_async_task())?;
        let registry = Arc::new(self.registry);
        let sender = Sender::new(
            self.broker.clone(),
            format!("{node} (tasks)"),
            self.create_missing_queues,
            self.default_queue,
            Arc::clone(&registry),
        );
        let canvas = Canvas {
            sender,
            results: Arc::clone(&results),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
        };
        let (revoked, revocations) = Revoked::new();
        let (done, unacknowledged) = Done::new();
        let work = Work {
            node,
            registry,
            states: Arc::new(self.states),
            executor,
            tracker: Arc::default(),
            postponed: Arc::default(),
            revoked: Arc::new(revoked),
            limits: Arc::new(Limits::new(self.time_limits)),
            delivery_limit: self.delivery_limit,
            track_started: self.track_started,
            done: Arc::new(done),
            results,
            canvas,
            events,
            activity,
            health,
            metrics,
            stop,
        };
        tokio::spawn(attempts::announce(
            unacknowledged,
            Arc::clone(&work.results),
            Arc::clone(&work.health),
            Arc::clone(&work.metrics),
        ));
        tokio::spawn(revoked::store_at_once(
            revocations,
            Arc::clone(&work.tracker),
            Arc::clone(&work.results),
            Arc::clone(&work.health),
            Arc::clone(&work.metrics),
        ));
        let panel = Panel {
            node: Arc::clone(&work.node),
            app: self.app,
            broker: self.broker.clone(),
            results: results_shown,
            create_missing_queues: self.create_missing_queues,
            track_started: self.track_started,
            started: Instant::now(),
            clock,
            registry: Arc::clone(&work.registry),
            tracker: Arc::clone(&work.tracker),
            postponed: Arc::clone(&work.postponed),
            revoked: Arc::clone(&work.revoked),
            limits: Arc::clone(&work.limits),
            queues: Arc::clone(&queues),
            events: work.events.clone(),
            activity: Arc::clone(&work.activity),
            stop: work.stop.clone(),
        };
        let controlling = tokio::spawn(control::serve(Arc::new(panel), link));
        let options = SessionOptions {
            address: self.broker,
            name: self.node,
            create_missing_queues: self.create_missing_queues,
        };
        let stopped = consume::run(&work, &options, &queues, self.most_in_hand).await;
        let stop = work.stop.clone();
        beating.abort();
        controlling.abort();
        work.events.offline(&work.activity);
        drop(work);
        // All senders of events are gone once these are, so the publisher ends after the last of them.
        let _ = tokio::join!(beating, controlling);
        if timeout(FAREWELL, publishing).await.is_err() {
            warn!("the last events could not be sent");
        }
        // Asked only now: the process that comes next knows nothing of a signal that this one had.
        if stop.urgency() == Urgency::Restart {
            info!("starting anew");
            return Ok(None);
        }
        info!(?stopped, "stopped");
        Ok(Some(stopped))
    }

    fn show_results(&self) -> String {
        self.results.as_ref().map_or_else(|| "disabled".to_owned(), ToString::to_string)
    }

    fn log_banner(&self) {
        info!(
            version = crate::VERSION,
            app = self.app,
            node = self.node,
            broker = %self.broker,
            results = self.show_results(),
            pool = "solo",
            concurrency = 1,
            queues = self.queues.join(","),
            tasks = self.registry.names().join(","),
            "starting"
        );
    }
}

async fn declare_events(channel: Channel) -> Result<(), crate::broker::BrokerError> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declare =
        channel.exchange_declare(event::EXCHANGE.into(), ExchangeKind::Topic, options, FieldTable::default());
    answer("declare the exchange for events", declare).await
}

/// The machine's name; in a pod, the pod's.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}
