//! Telling monitors what this worker does: Celery's events.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use celery_client::amqp;
use celery_protocol::{
    Map, Message, Properties, content,
    event::{self, Event, EventKind, WorkerState},
};
use jiff::Timestamp;
use lapin::{Channel, options::BasicPublishOptions};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use crate::{
    broker::Link,
    heartbeat::{INTERVAL, Throttle},
    metrics::Metrics,
};

/// A worker that begins its next task within this time was not idle in between. Said to be idle, it would seem so until the throttle
/// allows the next heartbeat: for a quarter of the time, if its tasks take two seconds.
const BETWEEN_TASKS: Duration = Duration::from_millis(50);

/// Events that may wait for the broker. Beyond it new ones are dropped: monitors can live without them, tasks can't
/// live without memory.
const WAITING_MAX: usize = 4096;

/// Most events in one message.
const BATCH: usize = 200;

/// Least time between two messages with events. A worker with short tasks has tens of thousands of events a second, and each message costs the broker
/// as much as one with a task; nobody who watches minds a delay that can't be seen.
const PAUSE: Duration = Duration::from_millis(10);

/// Longest wait for the broker to take an event.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Name of this software, as workers give it in their events.
const SOFTWARE: &str = "soloist";

/// Celery's logical clock: it counts what this process says, and jumps to what it hears.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// The time of the next thing said.
    pub(crate) fn forward(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Somebody else's clock shows this: never fall behind it.
    pub(crate) fn adjust(&self, other: u64) {
        self.0.fetch_max(other, Ordering::Relaxed);
        self.forward();
    }

    /// The time of the last thing said.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the worker is doing, as heartbeats tell it.
#[derive(Debug)]
pub(crate) struct Activity {
    active: watch::Sender<u32>,
    processed: AtomicU64,
    prefetch: AtomicU16,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self { active: watch::Sender::new(0), processed: AtomicU64::new(0), prefetch: AtomicU16::new(1) }
    }

    /// Each queue's consumer may have so many messages unacknowledged.
    pub(crate) fn set_prefetch(&self, prefetch: u16) {
        self.prefetch.store(prefetch, Ordering::Relaxed);
    }

    /// Messages that each queue's consumer may have unacknowledged.
    pub(crate) fn prefetch(&self) -> u16 {
        self.prefetch.load(Ordering::Relaxed)
    }

    /// A task has begun.
    pub(crate) fn begin(&self) {
        self.processed.fetch_add(1, Ordering::Relaxed);
        self.active.send_modify(|active| *active += 1);
    }

    /// A task has ended.
    pub(crate) fn end(&self) {
        self.active.send_modify(|active| *active = active.saturating_sub(1));
    }

    /// Tasks that have begun and whose messages aren't done with: one, or none. The next may begin while the result of the
    /// last is on its way to its store.
    pub(crate) fn active(&self) -> u32 {
        (*self.active.borrow()).min(1)
    }

    fn state(&self) -> WorkerState {
        WorkerState {
            freq: INTERVAL.as_secs_f64(),
            active: Some(self.active()),
            processed: Some(self.processed.load(Ordering::Relaxed)),
            loadavg: Some(load_average()),
            sw_ident: SOFTWARE.to_owned(),
            sw_ver: crate::VERSION.to_owned(),
            sw_sys: "Linux".to_owned(),
        }
    }
}

/// The machine's load averages, or zeros where there is no `/proc`.
fn load_average() -> [f64; 3] {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut averages = text.split(' ').map(|average| average.parse().unwrap_or(0.0));
    std::array::from_fn(|_| averages.next().unwrap_or(0.0))
}

/// An event that waits for the broker, as it will be sent: as a value it takes twice the memory, and thousands wait when tasks are
/// short.
#[derive(Debug)]
struct Waiting {
    routing_key: String,
    /// Seconds since 1970.
    timestamp: f64,
    body: Box<[u8]>,
}

impl Waiting {
    fn new(event: &Event) -> Self {
        // A copy takes only what it needs.
        let body = event.encode().as_slice().into();
        Self { routing_key: event.kind.routing_key(), timestamp: event.timestamp, body }
    }

    /// Events of tasks may be sent many at once.
    fn is_of_task(&self) -> bool {
        self.routing_key.starts_with("task.")
    }

    /// After an interruption a fresh heartbeat says more than all that were missed.
    fn is_stale(&self, now: f64) -> bool {
        self.routing_key == "worker.heartbeat" && now - self.timestamp > INTERVAL.as_secs_f64()
    }
}

/// Sends events. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    node: Arc<str>,
    pid: i64,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    queue: mpsc::Sender<Waiting>,
    /// Whether events of tasks are sent; those of the worker always are.
    task_events: Arc<AtomicBool>,
}

/// The end of [`Events`] that talks to the broker.
#[derive(Debug)]
pub(crate) struct Publisher {
    queue: mpsc::Receiver<Waiting>,
    node: Arc<str>,
    link: Link,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Events of the worker called `node`, sent over `link` by [`Publisher::run`].
    pub(crate) fn new(
        node: Arc<str>,
        clock: Arc<Clock>,
        metrics: Arc<Metrics>,
        link: Link,
    ) -> (Self, Publisher) {
        let (sender, queue) = mpsc::channel(WAITING_MAX);
        let publisher = Publisher { queue, node: Arc::clone(&node), link, metrics: Arc::clone(&metrics) };
        (
            Self {
                node,
                pid: std::process::id().into(),
                clock,
                metrics,
                queue: sender,
                task_events: Arc::new(AtomicBool::new(true)),
            },
            publisher,
        )
    }

    /// Sends events of tasks from now on, or no longer; false if that is so already.
    pub(crate) fn enable(&self, enable: bool) -> bool {
        self.task_events.swap(enable, Ordering::Relaxed) != enable
    }

    /// Whether events of tasks are sent.
    pub(crate) fn is_enabled(&self) -> bool {
        self.task_events.load(Ordering::Relaxed)
    }

    /// Sends an event of a task, without waiting. It is lost if the broker takes none for long.
    pub(crate) fn task(&self, kind: EventKind) {
        if self.is_enabled() {
            self.emit(kind);
        }
    }

    /// Says that the worker is alive.
    pub(crate) fn heartbeat(&self, activity: &Activity) {
        self.emit(EventKind::WorkerHeartbeat(activity.state()));
    }

    fn emit(&self, kind: EventKind) {
        let event = Event {
            hostname: self.node.to_string(),
            utcoffset: 0.0,
            pid: self.pid,
            clock: self.clock.forward(),
            timestamp: now_seconds(),
            kind,
        };
        if self.queue.try_send(Waiting::new(&event)).is_err() {
            self.metrics.events_dropped.inc();
        }
    }

    /// Announces the worker and then says for ever that it is alive: every two seconds, and when it gets busy or idle.
    pub(crate) async fn keep_alive(self, activity: Arc<Activity>) {
        let mut changes = activity.active.subscribe();
        self.emit(EventKind::WorkerOnline(activity.state()));
        loop {
            let throttle = Throttle::sent(Instant::now(), activity.active());
            self.heartbeat(&activity);
            loop {
                let active = (*changes.borrow_and_update()).min(1);
                let due = throttle.due(active);
                if Instant::now() >= due {
                    if active < throttle.active() {
                        sleep(BETWEEN_TASKS).await;
                    }
                    break;
                }
                if active == throttle.active() {
                    tokio::select! {
                        () = sleep_until(due) => {}
                        changed = changes.changed() => if changed.is_err() { return },
                    }
                } else {
                    // Whatever changes until then is told together.
                    sleep_until(due).await;
                }
            }
        }
    }

    /// Says that the worker leaves.
    pub(crate) fn offline(&self, activity: &Activity) {
        self.emit(EventKind::WorkerOffline(activity.state()));
    }
}

impl Publisher {
    /// Publishes events until the last [`Events`] is gone and all are sent.
    pub(crate) async fn run(mut self) {
        let mut events = Vec::with_capacity(BATCH);
        let mut array = Vec::new();
        while self.queue.recv_many(&mut events, BATCH).await > 0 {
            let channel = self.link.ready().await.channel;
            let now = now_seconds();
            let count = events.len();
            events.retain(|event: &Waiting| !event.is_stale(now));
            let mut dropped = count - events.len();
            for together in events.chunk_by(|one, next| one.is_of_task() && next.is_of_task()) {
                if !publish(&channel, &self.node, together, &mut array).await {
                    dropped += together.len();
                }
            }
            self.metrics.events_dropped.inc_by(u64::try_from(dropped).unwrap_or(u64::MAX));
            events.clear();
            // What happens meanwhile goes out together. Where a whole message was full, another is there already.
            if count < BATCH {
                sleep(PAUSE).await;
            }
        }
    }
}

/// Publishes an event, or several of tasks: as an array then, as Celery's workers do.
async fn publish(channel: &Channel, node: &str, events: &[Waiting], array: &mut Vec<u8>) -> bool {
    let (routing_key, body) = match events {
        [] => return true,
        [single] => (single.routing_key.as_str(), &*single.body),
        several => {
            join(several, array);
            ("task.multi", array.as_slice())
        }
    };
    let message = Message {
        headers: Map::from_iter([("hostname".to_owned(), node.into())]),
        properties: Properties {
            content_type: Some(content::JSON.to_owned()),
            content_encoding: Some(content::UTF_8.to_owned()),
            delivery_mode: Some(1),
            priority: Some(0),
            ..Properties::default()
        },
        ..Message::default()
    };
    let sent = channel.basic_publish(
        amqp::short(event::EXCHANGE),
        amqp::short(routing_key),
        BasicPublishOptions::default(),
        body,
        amqp::basic_properties(&message),
    );
    // Not confirmed: an event that is lost is followed by others.
    match timeout(PUBLISH_TIMEOUT, sent).await {
        Ok(Ok(_confirm)) => true,
        Ok(Err(error)) => {
            debug!(%error, event = routing_key, "event not sent");
            false
        }
        Err(_) => false,
    }
}

/// Several events as a JSON array, in a buffer that is used again and again.
fn join(events: &[Waiting], array: &mut Vec<u8>) {
    array.clear();
    for event in events {
        array.push(if array.is_empty() { b'[' } else { b',' });
        array.extend_from_slice(&event.body);
    }
    array.push(b']');
}

fn now_seconds() -> f64 {
    // Microseconds since 1970 stay far below 2^53.
    #[expect(clippy::cast_precision_loss, reason = "exact for the next 285 years")]
    let microseconds = Timestamp::now().as_microsecond() as f64;
    microseconds / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_between_two_tasks_is_not_idle() {
        let (queue, mut told) = mpsc::channel(100);
        let events = Events {
            pid: 1,
            node: "celery@a".into(),
            clock: Arc::default(),
            metrics: Arc::new(Metrics::new(Vec::new(), "1").unwrap()),
            queue,
            task_events: Arc::default(),
        };
        let activity = Arc::new(Activity::new());
        let telling = tokio::spawn(events.keep_alive(Arc::clone(&activity)));
        for _ in 0..5 {
            activity.begin();
            sleep(Duration::from_millis(1900)).await;
            activity.end();
            sleep(Duration::from_millis(5)).await;
        }
        sleep(Duration::from_secs(1)).await;
        telling.abort();
        let mut heartbeats = Vec::new();
        while let Some(event) = told.recv().await {
            for event in Event::decode(&event.body).unwrap() {
                if let EventKind::WorkerHeartbeat(state) = event.kind {
                    heartbeats.push((state.active.unwrap(), state.processed.unwrap()));
                }
            }
        }
        let idle = heartbeats.iter().filter(|(active, _)| *active == 0).count();
        assert!(idle <= 2, "before the first task and after the last one: {heartbeats:?}");
        assert!(heartbeats.contains(&(1, 3)) && heartbeats.ends_with(&[(0, 5)]), "{heartbeats:?}");
    }

    #[test]
    fn several_events_are_an_array() {
        let events = ["a", "b"].map(|uuid| {
            let kind = EventKind::TaskStarted { uuid: uuid.to_owned() };
            Event { hostname: "celery@a".to_owned(), utcoffset: 0.0, pid: 1, clock: 2, timestamp: 3.5, kind }
        });
        let waiting = events.each_ref().map(Waiting::new);
        let mut array = b"what was there before".to_vec();
        join(&waiting, &mut array);
        assert_eq!(Event::decode(&array).unwrap(), events);
        assert!(waiting.iter().all(Waiting::is_of_task));
    }
}
