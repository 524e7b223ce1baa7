//! Against a real RabbitMQ: each test in a virtual host of its own, which goes with it.

mod celery;

use std::time::{Duration, Instant};

use celery_client::amqp::short;
use celery_protocol::event::EXCHANGE;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, BasicRejectOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep, timeout};

use super::*;
use crate::plan::autoscaler::Backlog;
use crate::plan::reason::Reason;
use crate::plan::status::{BrokerState, Policies, QueueState};

/// Longest wait for something to be seen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A virtual host, and a hub that uses it.
struct World {
    hub: Hub,
    changes: UnboundedReceiver<ObjectRef<TaskQueue>>,
    address: BrokerAddress,
    channel: Channel,
    http: Http,
    /// Its drop ends the connection.
    _connection: lapin::Connection,
}

/// The management API.
struct Http {
    client: reqwest::Client,
    base: String,
    vhost: String,
}

impl Http {
    async fn send(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Option<Value> {
        let mut request = self
            .client
            .request(method, format!("{}/api/{path}", self.base))
            .basic_auth("guest", Some("guest"))
            .header("content-type", "application/json");
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let answer = request.send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&answer).ok()
    }

    async fn put(&self, path: &str, body: Value) {
        self.send(reqwest::Method::PUT, path, Some(body)).await;
    }

    /// Name of the policy that applies to a queue.
    async fn policy_of(&self, queue: &str) -> Value {
        let path = format!("queues/{}?disable_stats=true", self.vhost);
        let queues = self.send(reqwest::Method::GET, &path, None).await.unwrap();
        let found = queues.as_array().unwrap().iter().find(|listed| listed["name"] == queue).unwrap();
        found["policy"].clone()
    }
}

fn management_url() -> String {
    std::env::var("MANAGEMENT_URL").expect("MANAGEMENT_URL says where the management API is")
}

impl World {
    async fn new(name: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Http {
            client: reqwest::Client::new(),
            base: management_url(),
            vhost: format!("operator-{name}-{:08x}", fastrand::u32(..)),
        };
        let vhost = &http.vhost;
        http.put(&format!("vhosts/{vhost}"), json!({})).await;
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        http.put(&format!("permissions/{vhost}/guest"), all).await;
        let address = address(&[("vhost", vhost)]);
        let connection = celery_client::connect(&address, "test").await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let (sender, changes) = unbounded_channel();
        let trigger = Arc::new(move |task_queue| drop(sender.send(task_queue)));
        let hub = Hub::new(format!("hub of {vhost}"), trigger, Arc::new(Metrics::new().unwrap()));
        Self { hub, changes, address, channel, http, _connection: connection }
    }

    fn subscribe(&self, task_queue: &str, queues: Value) -> ObjectRef<TaskQueue> {
        self.subscribe_at(&self.address, task_queue, queues)
    }

    fn subscribe_at(&self, address: &BrokerAddress, task_queue: &str, queues: Value) -> ObjectRef<TaskQueue> {
        let key = ObjectRef::new(task_queue).within("default");
        let nodes = vec![format!("celery@{task_queue}-worker")];
        self.hub.subscribe(&key, address, &Arc::new(topology(task_queue, queues)), nodes);
        key
    }

    /// Waits until what is known of a TaskQueue is as expected.
    async fn until(&mut self, task_queue: &ObjectRef<TaskQueue>, expected: impl Fn(&View) -> bool) -> View {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.hub.view(task_queue, Instant::now()).unwrap();
            if expected(&view) {
                return view;
            }
            assert!(Instant::now() < deadline, "still {view:?}");
            // A change is told; looking without one too only helps tests about time.
            let _ = timeout(Duration::from_millis(100), self.changes.recv()).await;
        }
    }

    async fn until_declared(&mut self, task_queue: &ObjectRef<TaskQueue>) {
        self.until(task_queue, |view| view.queues == QueueState::Declared(Policies::Applied)).await;
    }

    async fn publish(&self, queue: &str, messages: usize) {
        for _ in 0..messages {
            let options = BasicPublishOptions::default();
            let properties = BasicProperties::default();
            self.channel.basic_publish(short(""), short(queue), options, b"x", properties).await.unwrap();
        }
    }

    /// Publishes an event as a worker does.
    async fn event(&self, kind: &str, node: &str, active: u32) {
        let event = json!({
            "type": kind, "hostname": node, "active": active, "processed": 1, "freq": 2.0, "loadavg": [0.1, 0.1, 0.1],
            "sw_ident": "test", "sw_ver": "0", "sw_sys": "Linux", "pid": 1, "clock": 1, "utcoffset": 0, "timestamp": 1.5,
        });
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let (key, body) = (kind.replace('-', "."), event.to_string());
        self.channel
            .basic_publish(short(EXCHANGE), short(&key), options, body.as_bytes(), properties)
            .await
            .unwrap();
    }

    async fn end(self) {
        let path = format!("vhosts/{}", self.http.vhost);
        self.http.send(reqwest::Method::DELETE, &path, None).await;
    }
}

/// The address of the test broker with some keys of its Secret replaced.
fn address(replaced: &[(&str, &str)]) -> BrokerAddress {
    let url = std::env::var("AMQP_URL").expect("AMQP_URL says where the broker is");
    let broker: BrokerAddress = url.parse().unwrap();
    let (port, management) = (broker.port.to_string(), management_url());
    let mut keys = std::collections::BTreeMap::from([
        ("host", broker.host.as_str()),
        ("port", &port),
        ("username", &broker.username),
        ("password", &broker.password),
        ("managementUri", &management),
    ]);
    keys.extend(replaced.iter().copied());
    BrokerAddress::from_fields(keys).unwrap()
}

fn topology(task_queue: &str, queues: Value) -> Topology {
    let task_queue = json!({
        "apiVersion": "soloist.dev/v1alpha1",
        "kind": "TaskQueue",
        "metadata": {"name": task_queue},
        "spec": {
            "broker": {"secretRef": {"name": "rabbitmq"}},
            "queues": queues,
            "worker": {"image": "w"},
            "scaling": {"maxReplicas": 5},
        },
    });
    Topology::new(&serde_json::from_value(task_queue).unwrap())
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn declares_queues_as_celery_clients_expect_them() {
    let mut world = World::new("declare").await;
    let red = world.subscribe("red", json!([]));
    world.until_declared(&red).await;
    // What every Celery client does before it publishes.
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    world.channel.queue_declare(short("red"), durable, FieldTable::default()).await.unwrap();
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    world.channel.basic_publish(short("red"), short("red"), options, b"x", properties).await.unwrap();
    world.until(&red, |view| view.backlog == Backlog::Fresh { ready: 1 }).await;
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn rejected_messages_go_to_the_dead_letter_queue() {
    for queue_type in ["classic", "quorum"] {
        let mut world = World::new("dead").await;
        let red = world.subscribe("red", json!([{"name": "red", "type": queue_type}]));
        world.until_declared(&red).await;
        assert_eq!(world.http.policy_of("red").await, "soloist.red");
        world.publish("red", 1).await;
        world.until(&red, |view| view.backlog == Backlog::Fresh { ready: 1 }).await;
        let got = world.channel.basic_get(short("red"), BasicGetOptions::default()).await.unwrap().unwrap();
        got.reject(BasicRejectOptions { requeue: false }).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        let dead = || {
            world.hub.refresh_metrics();
            world.hub.metrics.get("default", "red", Quantity::MessagesDead).unwrap_or_default()
        };
        while dead() < 1.0 {
            assert!(Instant::now() < deadline, "the message did not arrive, or was not counted");
            sleep(Duration::from_millis(20)).await;
        }
        let got = world.channel.basic_get(short("red.dead"), BasicGetOptions::default()).await.unwrap();
        assert!(got.is_some(), "counted, and not there");
        world.end().await;
    }
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn policies_follow_the_spec() {
    let mut world = World::new("policies").await;
    let policy = async |world: &World| {
        let path = format!("policies/{}/soloist.red", world.http.vhost);
        world.http.send(reqwest::Method::GET, &path, None).await.unwrap()["definition"].clone()
    };
    let red = world.subscribe("red", json!([{"name": "red", "maxLength": 5}]));
    world.until_declared(&red).await;
    assert_eq!(policy(&world).await["max-length"], 5);
    world.subscribe("red", json!([{"name": "red", "maxLength": 7, "deadLetter": {"enabled": false}}]));
    world.until_declared(&red).await;
    assert_eq!(policy(&world).await, json!({"max-length": 7}));
    world.subscribe("red", json!([{"name": "red", "deadLetter": {"enabled": false}}]));
    world.until_declared(&red).await;
    assert_eq!(policy(&world).await, Value::Null);
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn policy_of_somebody_else_stays_in_force() {
    let mut world = World::new("foreign").await;
    let path = format!("policies/{}/theirs", world.http.vhost);
    world
        .http
        .put(&path, json!({"pattern": "^red$", "definition": {"max-length": 100}, "apply-to": "queues"}))
        .await;
    let red = world.subscribe("red", json!([]));
    let view =
        world.until(&red, |view| matches!(view.queues, QueueState::Declared(Policies::NotApplied(_)))).await;
    let QueueState::Declared(Policies::NotApplied(problem)) = view.queues else { unreachable!() };
    assert!(problem.contains("`theirs`") && problem.contains("dead-letter-routing-key"), "{problem}");
    assert_eq!(world.http.policy_of("red").await, "theirs");
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn everything_but_policies_works_without_the_management_api() {
    let mut world = World::new("nomgmt").await;
    let vhost = world.http.vhost.clone();
    let address = address(&[("vhost", &vhost), ("managementUri", "http://127.0.0.1:9")]);
    let red = world.subscribe_at(&address, "red", json!([]));
    let view =
        world.until(&red, |view| matches!(view.queues, QueueState::Declared(Policies::NotApplied(_)))).await;
    let QueueState::Declared(Policies::NotApplied(problem)) = view.queues else { unreachable!() };
    assert!(problem.contains("http://127.0.0.1:9: not reachable"), "{problem}");
    world.publish("red", 2).await;
    world.until(&red, |view| view.backlog == Backlog::Fresh { ready: 2 }).await;
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn backlog_goes_up_and_down() {
    let mut world = World::new("backlog").await;
    let red = world.subscribe("red", json!([{"name": "red"}, {"name": "blue", "type": "quorum"}]));
    world.until(&red, |view| view.backlog == Backlog::Fresh { ready: 0 }).await;
    world.publish("red", 300).await;
    world.publish("blue", 200).await;
    world.until(&red, |view| view.backlog == Backlog::Fresh { ready: 500 }).await;
    world.channel.queue_purge(short("red"), QueuePurgeOptions::default()).await.unwrap();
    world.until(&red, |view| view.backlog == Backlog::Fresh { ready: 200 }).await;
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn queue_that_somebody_deleted_comes_back() {
    let mut world = World::new("deleted").await;
    let red = world.subscribe("red", json!([]));
    let blue = world.subscribe("blue", json!([]));
    world.until_declared(&red).await;
    world.until_declared(&blue).await;
    world.until(&blue, |view| view.backlog == Backlog::Fresh { ready: 0 }).await;
    world.channel.queue_delete(short("red"), QueueDeleteOptions::default()).await.unwrap();
    // It comes back bound to its exchange. What is published before is lost.
    let deadline = Instant::now() + PATIENCE;
    while !matches!(world.hub.view(&red, Instant::now()).unwrap().backlog, Backlog::Fresh { ready: 1.. }) {
        assert!(Instant::now() < deadline, "the queue did not come back");
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        world.channel.basic_publish(short("red"), short("red"), options, b"x", properties).await.unwrap();
        let _ = timeout(Duration::from_millis(100), world.changes.recv()).await;
    }
    assert_eq!(world.hub.view(&blue, Instant::now()).unwrap().backlog, Backlog::Fresh { ready: 0 });
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn a_queue_that_refuses_to_be_read_concerns_its_task_queue_only() {
    let mut world = World::new("refused").await;
    // RabbitMQ tells nobody but its owner anything of an exclusive queue.
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    world.channel.queue_declare(short("locked"), exclusive, FieldTable::default()).await.unwrap();
    let red = world.subscribe("red", json!([{"name": "red"}, {"name": "locked"}]));
    let blue = world.subscribe("blue", json!([]));
    world.until(&red, |view| matches!(view.queues, QueueState::Failed(_))).await;
    world.publish("red", 2).await;
    world.until_declared(&blue).await;
    world.publish("blue", 3).await;
    world.until(&blue, |view| view.backlog == Backlog::Fresh { ready: 3 }).await;
    let view = world.until(&red, |view| view.backlog == Backlog::Partial { ready: 2 }).await;
    assert_eq!(view.attached, None, "consumers of the queue with the fewest are not known");
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn queue_with_other_settings_is_reported_and_left_alone() {
    let mut world = World::new("mismatch").await;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let mut arguments = FieldTable::default();
    arguments.insert(short("x-max-priority"), AMQPValue::LongInt(5));
    world.channel.queue_declare(short("red"), durable, arguments).await.unwrap();
    world.publish("red", 3).await;
    let red = world.subscribe("red", json!([]));
    let blue = world.subscribe("blue", json!([]));
    let view = world.until(&red, |view| matches!(view.queues, QueueState::Failed(_))).await;
    let QueueState::Failed(problem) = view.queues else { unreachable!() };
    assert_eq!(problem.reason, Reason::QueueArgumentMismatch);
    assert!(
        problem.message.contains("'x-max-priority'") && problem.message.contains("'5'"),
        "{}",
        problem.message
    );
    // The messages are there and can be worked on; the other TaskQueue doesn't notice.
    world.until(&red, |view| view.backlog == Backlog::Fresh { ready: 3 }).await;
    world.until_declared(&blue).await;
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn problems_with_the_connection_have_their_reasons() {
    let mut world = World::new("reasons").await;
    let vhost = world.http.vhost.clone();
    for (task_queue, replaced, reason) in [
        ("password", ("password", "canary-8d1f"), Reason::AuthFailed),
        ("vhost", ("vhost", "no-such-vhost"), Reason::VhostRefused),
        ("port", ("port", "9"), Reason::BrokerUnreachable),
        ("host", ("host", "no-such-host.invalid"), Reason::BrokerUnreachable),
    ] {
        let address = address(&[("vhost", vhost.as_str()), replaced]);
        let key = world.subscribe_at(&address, task_queue, json!([]));
        let view = world.until(&key, |view| matches!(view.broker, BrokerState::Failed(_))).await;
        let BrokerState::Failed(problem) = view.broker else { unreachable!() };
        assert_eq!(problem.reason, reason, "{}", problem.message);
        assert!(!problem.message.contains("canary-8d1f"), "the message has the password");
        assert_eq!(view.backlog, Backlog::Unknown);
    }
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn lost_connection_makes_the_backlog_stale_and_comes_back() {
    let mut world = World::new("lost").await;
    let red = world.subscribe("red", json!([]));
    world.publish("red", 1).await;
    world.until_declared(&red).await;
    world.publish("red", 4).await;
    world.until(&red, |view| matches!(view.backlog, Backlog::Fresh { ready: 4.. })).await;
    let name = format!("hub of {}", world.http.vhost);
    let deadline = Instant::now() + PATIENCE;
    // The management API shows a connection only after a few seconds.
    let connection = loop {
        let listed = world.http.send(reqwest::Method::GET, "connections", None).await.unwrap();
        let listed = listed.as_array().cloned().unwrap_or_default();
        if let Some(found) = listed.iter().find(|listed| listed["user_provided_name"] == name.as_str()) {
            break found["name"].as_str().unwrap().replace(' ', "%20").replace('>', "%3E");
        }
        assert!(Instant::now() < deadline, "the connection is not listed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    world.http.send(reqwest::Method::DELETE, &format!("connections/{connection}"), None).await;
    let view = world.until(&red, |view| matches!(view.broker, BrokerState::Failed(_))).await;
    assert!(matches!(view.backlog, Backlog::Stale { ready: 4.. }), "{view:?}");
    world.until(&red, |view| matches!(view.backlog, Backlog::Fresh { ready: 4.. })).await;
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn heartbeats_say_what_workers_run() {
    let mut world = World::new("heartbeat").await;
    let red = world.subscribe("red", json!([]));
    world.until_declared(&red).await;
    // The queue of events may not be bound yet when the first one is published.
    let deadline = Instant::now() + PATIENCE;
    while world.hub.view(&red, Instant::now()).unwrap().active.is_empty() {
        assert!(Instant::now() < deadline, "no heartbeat arrived");
        world.event("worker-heartbeat", "celery@red-worker", 1).await;
        world.event("worker-heartbeat", "celery@somebody-else", 7).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let view = world.hub.view(&red, Instant::now()).unwrap();
    assert_eq!(view.active, [("celery@red-worker".to_owned(), 1)].into());
    let later = Instant::now() + SILENT_AFTER;
    assert!(world.hub.view(&red, later).unwrap().active.is_empty(), "an old heartbeat says nothing");
    world.event("worker-offline", "celery@red-worker", 0).await;
    world.until(&red, |view| view.active.is_empty()).await;
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn many_task_queues_share_one_connection() {
    let mut world = World::new("share").await;
    let keys: Vec<_> = (0..50)
        .map(|number| {
            world.subscribe(
                &format!("q{number}"),
                json!([{"name": format!("q{number}"), "deadLetter": {"enabled": false}}]),
            )
        })
        .collect();
    for key in &keys {
        world.until(key, |view| matches!(view.backlog, Backlog::Fresh { .. })).await;
    }
    assert_eq!(world.hub.brokers().all.len(), 1);
    for key in &keys {
        world.hub.unsubscribe(key);
    }
    assert_eq!(world.hub.brokers().all.len(), 0, "a connection that nobody uses is closed");
    world.end().await;
}

impl World {
    /// Lets the queues of a TaskQueue go, as its deletion does, and waits until that is done.
    async fn remove(
        &mut self,
        task_queue: &ObjectRef<TaskQueue>,
        queues: Value,
        only_if_empty: bool,
    ) -> Removed {
        let removal = Removal { queues: topology(&task_queue.name, queues).queues, only_if_empty };
        self.hub.subscribe(task_queue, &self.address, &Arc::default(), Vec::new());
        self.hub.remove(task_queue, &removal);
        self.until(task_queue, |view| view.removed.is_some()).await.removed.unwrap()
    }

    /// Waits until a queue has as many messages.
    async fn until_length(&self, queue: &str, messages: u32) {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found =
                self.channel.queue_declare(short(queue), passive, FieldTable::default()).await.unwrap();
            if found.message_count() == messages {
                return;
            }
            assert!(Instant::now() < deadline, "{} messages in {queue}", found.message_count());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether there is a queue of this name.
    async fn has_queue(&self, queue: &str) -> bool {
        let channel = self._connection.create_channel().await.unwrap();
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        channel.queue_declare(short(queue), passive, FieldTable::default()).await.is_ok()
    }

    async fn has_policy(&self, name: &str) -> bool {
        let path = format!("policies/{}/{name}", self.http.vhost);
        self.http.send(reqwest::Method::GET, &path, None).await.unwrap()["name"] == name
    }
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn queues_go_with_their_messages_dead_letters_and_policies() {
    for queue_type in ["classic", "quorum"] {
        let mut world = World::new("remove").await;
        let queues = json!([{"name": "red", "type": queue_type}]);
        let red = world.subscribe("red", queues.clone());
        let blue = world.subscribe("blue", json!([]));
        world.until_declared(&red).await;
        world.until_declared(&blue).await;
        world.publish("red", 3).await;
        world.publish("red.dead", 1).await;
        let removed = world.remove(&red, queues, false).await;
        assert_eq!(removed, Removed { gone: vec!["red".into(), "red.dead".into()], kept: vec![] });
        assert!(!world.has_queue("red").await && !world.has_queue("red.dead").await);
        assert!(!world.has_policy("soloist.red").await);
        assert!(world.has_queue("blue").await && world.has_policy("soloist.blue").await);
        let exchanges = format!("exchanges/{}", world.http.vhost);
        let exchanges = world.http.send(reqwest::Method::GET, &exchanges, None).await.unwrap();
        let named =
            |name: &str| exchanges.as_array().unwrap().iter().any(|exchange| exchange["name"] == name);
        assert!(!named("red") && named("blue"));
        world.end().await;
    }
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn queues_with_messages_stay_where_only_empty_ones_are_to_go() {
    let mut world = World::new("removeempty").await;
    let queues = json!([{"name": "red"}, {"name": "green"}, {"name": "safe", "type": "quorum"}]);
    let red = world.subscribe("red", queues.clone());
    world.until_declared(&red).await;
    world.publish("red", 3).await;
    world.publish("safe.dead", 1).await;
    world.until_length("red", 3).await;
    world.until_length("safe.dead", 1).await;
    let removed = world.remove(&red, queues, true).await;
    assert_eq!(removed.gone, ["red.dead", "green", "green.dead", "safe"]);
    let kept =
        |queue: &str, messages| (format!("queue `{queue}`"), format!("{messages} messages wait in it"));
    assert_eq!(removed.kept, [kept("red", 3), kept("safe.dead", 1)]);
    assert!(
        world.has_queue("red").await && world.has_policy("soloist.red").await,
        "what stays keeps its policy"
    );
    assert!(!world.has_policy("soloist.green").await && !world.has_policy("soloist.safe").await);
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn queue_of_somebody_else_never_goes() {
    let mut world = World::new("removeforeign").await;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let mut arguments = FieldTable::default();
    arguments.insert(short("x-max-priority"), AMQPValue::LongInt(5));
    world.channel.queue_declare(short("red"), durable, arguments).await.unwrap();
    let red = world.subscribe("red", json!([{"name": "red"}, {"name": "blue"}]));
    world.until(&red, |view| matches!(view.queues, QueueState::Failed(_))).await;
    let removed = world.remove(&red, json!([{"name": "red"}, {"name": "blue"}]), false).await;
    assert!(removed.kept[0].1.contains("other settings"), "{removed:?}");
    assert!(removed.gone.contains(&"blue".to_owned()) && world.has_queue("red").await);
    world.end().await;
}

/// `TASK_QUEUES=1000` makes it as many. Prints how long they take.
#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn hundreds_of_task_queues_are_declared_soon() {
    use std::io::Write as _;
    let mut world = World::new("many").await;
    let number: u64 = std::env::var("TASK_QUEUES").map_or(60, |number| number.parse().unwrap());
    let started = Instant::now();
    let keys: Vec<_> = (0..number).map(|number| world.subscribe(&format!("q{number}"), json!([]))).collect();
    // A tenth of a second for each; without pipelining they took half a second each on a busy machine.
    let mut deadline = started + PATIENCE.max(Duration::from_millis(100 * number));
    let mut declared = None;
    loop {
        let states = || keys.iter().map(|key| world.hub.view(key, Instant::now()).unwrap().queues);
        if declared.is_none() && states().all(|state| matches!(state, QueueState::Declared(_))) {
            declared = Some(started.elapsed().as_secs_f64());
            // Policies may take their time: each write costs RabbitMQ time in proportion to policies times queues.
            deadline = Instant::now() + Duration::from_secs(2 * number);
        }
        if states().all(|state| state == QueueState::Declared(Policies::Applied)) {
            break;
        }
        assert!(Instant::now() < deadline, "declared after {declared:?}; still {:?}", states().last());
        let _ = timeout(Duration::from_millis(100), world.changes.recv()).await;
    }
    writeln!(
        std::io::stdout(),
        r#"{{"test":"taskQueues","number":{number},"declaredSeconds":{:.1},"policiesSeconds":{:.1}}}"#,
        declared.unwrap_or_default(),
        started.elapsed().as_secs_f64()
    )
    .unwrap();
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn one_broker_under_two_names_is_recognized() {
    let (mut world, other) = (World::new("twin").await, World::new("stranger").await);
    let host = if world.address.host == "localhost" { "127.0.0.1" } else { "localhost" };
    // Where the broker isn't on this machine, its port there leads nowhere, and the test of the cluster's own broker says it.
    let twin = address(&[("vhost", &world.http.vhost), ("host", host)]);
    if celery_client::connect(&twin, "test").await.is_err() {
        panic!("the broker of AMQP_URL has to be reachable as {host} too");
    }
    let red = world.subscribe("red", json!([]));
    for (one, expected) in [(&twin, true), (&other.address, false)] {
        let deadline = Instant::now() + PATIENCE;
        while world.hub.is_same_broker(&world.address, one, &red) != Some(expected) {
            assert!(Instant::now() < deadline, "{one} is not known to be {expected}");
            let _ = timeout(Duration::from_millis(100), world.changes.recv()).await;
        }
    }
    assert_eq!(world.hub.is_same_broker(&world.address, &world.address, &red), Some(true));
    world.end().await;
    other.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ with TLS: AMQPS_DIRECTORY"]
async fn tls_takes_an_authority_and_a_client_certificate_of_ones_own() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = std::env::var("AMQPS_DIRECTORY").expect("AMQPS_DIRECTORY has the keys of a Secret");
    let secret = |without: &str| {
        let files = std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path());
        let named = files.map(|file| (file.file_name().unwrap().to_str().unwrap().to_owned(), file));
        let kept = named.filter(|(name, _)| name != without);
        BrokerAddress::from_fields(kept.map(|(name, file)| (name, std::fs::read(file).unwrap()))).unwrap()
    };
    let hub = Hub::new("tls".to_owned(), Arc::new(|_| ()), Arc::new(Metrics::new().unwrap()));
    let view = async |key: &ObjectRef<TaskQueue>, expected: fn(&View) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = hub.view(key, Instant::now()).unwrap();
            if expected(&view) {
                return view;
            }
            assert!(Instant::now() < deadline, "still {view:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    for without in ["ca.crt", "tls.key"] {
        let key = ObjectRef::new(without).within("default");
        hub.subscribe(&key, &secret(without), &Arc::default(), Vec::new());
        // A busy broker may not have answered the first attempt in time.
        view(&key, |view| {
            let BrokerState::Failed(problem) = &view.broker else { return false };
            problem.reason == Reason::BrokerUnreachable
                && problem.message.to_lowercase().contains("certificate")
        })
        .await;
    }
    // Queue over AMQP, policy over the management API.
    let name = format!("tls-{:08x}", fastrand::u32(..));
    let (key, queues) = (ObjectRef::new(&name).within("default"), topology(&name, json!([])));
    hub.subscribe(&key, &secret(""), &Arc::new(queues.clone()), Vec::new());
    view(&key, |view| view.queues == QueueState::Declared(Policies::Applied)).await;
    hub.subscribe(&key, &secret(""), &Arc::default(), Vec::new());
    hub.remove(&key, &Removal { queues: queues.queues, only_if_empty: false });
    let removed = view(&key, |view| view.removed.is_some()).await.removed.unwrap();
    assert_eq!(removed.kept, []);
}

impl World {
    /// Publishes one message, with a priority, over an exchange.
    async fn route(&self, exchange: &str, key: &str, body: &str, priority: u8) {
        let properties = BasicProperties::default().with_priority(priority);
        let options = BasicPublishOptions::default();
        self.channel
            .basic_publish(short(exchange), short(key), options, body.as_bytes(), properties)
            .await
            .unwrap();
    }

    async fn take(&self, queue: &str) -> lapin::message::BasicGetMessage {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(got) = self.channel.basic_get(short(queue), BasicGetOptions::default()).await.unwrap()
            {
                return got;
            }
            assert!(Instant::now() < deadline, "nothing in {queue}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn every_setting_of_a_queue_is_in_force() {
    let mut world = World::new("settings").await;
    let red = world.subscribe(
        "red",
        json!([
            {"name": "urgent", "maxPriority": 9},
            {"name": "short-lived", "messageTtlSeconds": 1},
            {"name": "newest", "maxLength": 2},
            {"name": "first", "maxLength": 2, "overflow": "rejectPublishDlx"},
            {"name": "stubborn", "type": "quorum", "deliveryLimit": 2},
            {"name": "careless", "maxLength": 1, "deadLetter": {"enabled": false}},
        ]),
    );
    world.until_declared(&red).await;

    for priority in [1, 9, 5] {
        world.route("", "urgent", &priority.to_string(), priority).await;
    }
    world.until_length("urgent", 3).await;
    for expected in ["9", "5", "1"] {
        assert_eq!(world.take("urgent").await.data, expected.as_bytes());
    }

    world.route("", "short-lived", "x", 0).await;
    assert_eq!(world.take("short-lived.dead").await.data, b"x");

    for (queue, dead) in [("newest", "1"), ("first", "3")] {
        for body in ["1", "2", "3"] {
            world.route("", queue, body, 0).await;
        }
        assert_eq!(world.take(&format!("{queue}.dead")).await.data, dead.as_bytes());
        world.until_length(queue, 2).await;
    }

    world.route("", "stubborn", "x", 0).await;
    for _ in 0..3 {
        world.take("stubborn").await.reject(BasicRejectOptions { requeue: true }).await.unwrap();
    }
    assert_eq!(world.take("stubborn.dead").await.data, b"x");

    world.route("", "careless", "1", 0).await;
    world.route("", "careless", "2", 0).await;
    world.until_length("careless", 1).await;
    assert_eq!(world.take("careless").await.data, b"2");
    assert!(!world.has_queue("careless.dead").await);
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn exchanges_route_by_key_by_pattern_and_to_all() {
    let mut world = World::new("bindings").await;
    let one = world.subscribe(
        "one",
        json!([{"name": "one", "bindings": [
            {"exchange": {"name": "exact"}, "routingKey": "1"},
            {"exchange": {"name": "patterns", "type": "topic"}, "routingKey": "paint.#"},
            {"exchange": {"name": "all", "type": "fanout"}},
        ]}]),
    );
    let two = world.subscribe(
        "two",
        json!([{"name": "two", "bindings": [{"exchange": {"name": "all", "type": "fanout"}}]}]),
    );
    world.until_declared(&one).await;
    world.until_declared(&two).await;
    for (exchange, key) in
        [("exact", "1"), ("exact", "2"), ("patterns", "paint.red.dark"), ("patterns", "draw"), ("all", "")]
    {
        world.route(exchange, key, exchange, 0).await;
    }
    world.until_length("one", 3).await;
    world.until_length("two", 1).await;
    for expected in ["exact", "patterns", "all"] {
        assert_eq!(world.take("one").await.data, expected.as_bytes());
    }
    world.end().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ: AMQP_URL, MANAGEMENT_URL"]
async fn messages_with_an_eta_find_a_quorum_queue_without_workers() {
    use celery_protocol::delay;
    let mut world = World::new("delay").await;
    let red = world.subscribe("red", json!([{"name": "red", "type": "quorum"}]));
    world.until_declared(&red).await;
    world.route(&delay::entry_exchange(), &delay::routing_key(1, "red").unwrap(), "later", 0).await;
    assert_eq!(world.take("red").await.data, b"later");
    world.end().await;
}
