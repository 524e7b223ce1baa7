//! RabbitMQ, seen from outside of the worker.

use std::time::{Duration, Instant};

use celery_client::{BrokerAddress, amqp};
use lapin::{
    BasicProperties, Channel, Connection,
    options::{
        BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use serde_json::{Value, json};

use super::{PATIENCE, env, http, unique};

/// A message to publish.
pub(crate) struct Message {
    pub(crate) headers: Value,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// A call of protocol 2 that any worker would run.
    pub(crate) fn call(id: &str, task: &str, args: &Value) -> Self {
        Self {
            headers: json!({"lang": "py", "task": task, "id": id}),
            content_type: Some("application/json"),
            body: json!([args, {}, {}]).to_string().into_bytes(),
        }
    }

    pub(crate) fn header(mut self, name: &str, value: Value) -> Self {
        self.headers[name] = value;
        self
    }
}

/// A connection of the test's own, and the management API.
pub(crate) struct Broker {
    _connection: Connection,
    channel: Channel,
    address: BrokerAddress,
    management: BrokerAddress,
}

/// A virtual host for programs that show everything in theirs. Removed when dropped.
pub(crate) struct Vhost {
    outer: Broker,
    name: String,
}

impl Vhost {
    pub(crate) async fn create() -> Self {
        let vhost = Self { outer: Broker::connect().await, name: unique("vhost") };
        vhost.put(&format!("/api/vhosts/{}", vhost.name), "{}");
        vhost.permit_configuring(".*");
        vhost
    }

    /// What the user may declare and delete from now on, as a pattern.
    pub(crate) fn permit_configuring(&self, pattern: &str) {
        let (user, _) = self.outer.management.management_credentials();
        let permissions = format!(r#"{{"configure":"{pattern}","write":".*","read":".*"}}"#);
        self.put(&format!("/api/permissions/{}/{user}", self.name), &permissions);
    }

    fn put(&self, path: &str, body: &str) {
        let (status, answer) = self.outer.manage("PUT", path, body);
        assert_eq!(status / 100, 2, "{path}: {answer}");
    }

    pub(crate) fn amqp_url(&self) -> String {
        let mut address = self.outer.address.clone();
        address.vhost.clone_from(&self.name);
        address.to_uri()
    }

    /// The management API, with the credentials in the URL.
    pub(crate) fn management_url(&self) -> String {
        let (user, password) = self.outer.management.management_credentials();
        let url = self.outer.management.management_url();
        url.replacen("://", &format!("://{user}:{password}@"), 1)
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        self.outer.manage("DELETE", &format!("/api/vhosts/{}", self.name), "");
    }
}

impl Broker {
    pub(crate) async fn connect() -> Self {
        Self::at(&env("AMQP_URL")).await
    }

    /// The broker of a URL of the same server.
    pub(crate) async fn at(url: &str) -> Self {
        let address: BrokerAddress = url.parse().unwrap();
        let management =
            BrokerAddress::from_fields([("uri", env("AMQP_URL")), ("managementUri", env("MANAGEMENT_URL"))]);
        let connection = celery_client::connect(&address, "test").await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { _connection: connection, channel, address, management: management.unwrap() }
    }

    /// Publishes to a queue, and waits until the broker has it.
    pub(crate) async fn publish(&self, queue: &str, message: Message) {
        let headers = message.headers.as_object().unwrap();
        let mut properties =
            BasicProperties::default().with_headers(amqp::table(headers)).with_delivery_mode(2);
        if let Some(content_type) = message.content_type {
            properties = properties.with_content_type(content_type.into());
        }
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = self
            .channel
            .basic_publish("".into(), queue.into(), options, &message.body, properties)
            .await
            .unwrap()
            .await
            .unwrap();
        assert!(confirm.take_message().is_none(), "nowhere to route to: {queue}");
    }

    /// Makes a durable queue.
    pub(crate) async fn declare(&self, queue: &str) {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), durable, FieldTable::default()).await.unwrap();
    }

    /// Makes a durable quorum queue.
    pub(crate) async fn declare_quorum(&self, queue: &str) {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let arguments = amqp::table(json!({"x-queue-type": "quorum"}).as_object().unwrap());
        self.channel.queue_declare(queue.into(), durable, arguments).await.unwrap();
    }

    /// Takes a message out of a queue and gives it back, as a worker does that has too many.
    pub(crate) async fn give_back(&self, queue: &str) {
        let message = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
        let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        message.expect("a message waits").nack(requeue).await.unwrap();
    }

    /// Waits until a queue holds exactly this many messages, ready and unacknowledged, by the broker's own statistics.
    pub(crate) async fn wait_for_counts(&self, queue: &str, ready: u64, unacked: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counts = self.queue(queue);
            let number = |key: &str| counts[key].as_u64();
            if (number("messages_ready"), number("messages_unacknowledged")) == (Some(ready), Some(unacked)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "queue {queue} has not {ready} ready, {unacked} unacknowledged: {counts}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the management API says of a queue.
    pub(crate) fn queue(&self, queue: &str) -> Value {
        self.manage("GET", &format!("/api/queues/{}/{queue}", self.vhost()), "").1
    }

    /// Removes a queue, and the exchange of its name.
    pub(crate) fn remove(&self, queue: &str) {
        for kind in ["queues", "exchanges"] {
            self.manage("DELETE", &format!("/api/{kind}/{}/{queue}", self.vhost()), "");
        }
    }

    fn vhost(&self) -> String {
        self.address.vhost.replace('/', "%2F")
    }

    fn manage(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (username, password) = self.management.management_credentials();
        let authorization =
            format!("Authorization: Basic {}\r\n", base64(format!("{username}:{password}").as_bytes()));
        let url = self.management.management_url();
        let host =
            url.strip_prefix("http://").expect("the management API of a test broker speaks plain http");
        let (status, body) = http::request(host, method, path, &authorization, body);
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let encode = |chunk: &[u8]| {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digit = |index: usize| char::from(ALPHABET[(bits >> (18 - 6 * index)) as usize & 63]);
        (0..4).map(|index| if index <= chunk.len() { digit(index) } else { '=' }).collect::<String>()
    };
    bytes.chunks(3).map(encode).collect()
}
