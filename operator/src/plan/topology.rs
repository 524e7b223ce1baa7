//! What a TaskQueue needs on the broker: queues, their dead letter queues, exchanges, bindings and policies.
//!
//! Arguments of a queue can't change once it exists, and a client that declares it with others is refused. So they are as few as
//! can be (its type and its priorities), and everything that RabbitMQ lets a policy set is set by a policy.

use std::collections::BTreeMap;

use kube::ResourceExt as _;
use serde_json::{Map, Value};

use crate::api::v1alpha1::{ExchangeType, Overflow, QueueSpec, QueueType, TaskQueue};

/// What the name of a dead letter queue ends with.
const DEAD_LETTERS: &str = ".dead";

/// What one TaskQueue needs on the broker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// The queues that its workers consume, in the order of the spec.
    pub queues: Vec<Queue>,
}

impl Topology {
    /// The topology of a TaskQueue.
    pub fn new(task_queue: &TaskQueue) -> Self {
        let spec = &task_queue.spec;
        if spec.queues.is_empty() {
            let default = QueueSpec {
                name: task_queue.name_any(),
                queue_type: QueueType::default(),
                max_priority: None,
                message_ttl_seconds: None,
                max_length: None,
                overflow: None,
                delivery_limit: None,
                dead_letter: Default::default(),
                bindings: Vec::new(),
            };
            return Self { queues: vec![Queue::new(&default)] };
        }
        Self { queues: spec.queues.iter().map(Queue::new).collect() }
    }

    /// Names of the queues that workers consume.
    pub fn consumed(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().map(|queue| queue.name.as_str())
    }

    /// Names of all queues: those that workers consume and the dead letter queues.
    pub fn all_names(&self) -> impl Iterator<Item = &str> {
        self.queues
            .iter()
            .flat_map(|queue| std::iter::once(queue.name.as_str()).chain(queue.dead_letters.as_deref()))
    }
}

/// Whether a TaskQueue names this queue, as one that its workers consume or as their dead letter queue: what its topology would say,
/// without making one.
pub fn names(task_queue: &TaskQueue, queue: &str) -> bool {
    let queues = &task_queue.spec.queues;
    let is_dead_letter_queue_of =
        |name: &str| queue.strip_suffix(DEAD_LETTERS).is_some_and(|consumed| consumed == name);
    if queues.is_empty() {
        let name = task_queue.metadata.name.as_deref().unwrap_or_default();
        return queue == name || is_dead_letter_queue_of(name);
    }
    queues
        .iter()
        .any(|spec| spec.name == queue || (spec.dead_letter.enabled && is_dead_letter_queue_of(&spec.name)))
}

/// A queue to declare.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its type.
    pub queue_type: QueueType,
    /// Number of priorities (`x-max-priority`).
    pub max_priority: Option<u8>,
    /// Name of its dead letter queue, which has the same type and nothing else.
    pub dead_letters: Option<String>,
    /// Exchanges that route to it.
    pub bindings: Vec<Binding>,
    /// The definition of its policy; empty if it needs none.
    pub policy: Map<String, Value>,
}

impl Queue {
    fn new(spec: &QueueSpec) -> Self {
        let dead_letters = spec.dead_letter.enabled.then(|| format!("{}{DEAD_LETTERS}", spec.name));
        let bindings = if spec.bindings.is_empty() {
            // What Celery declares for a queue it knows nothing else about.
            vec![Binding {
                exchange: spec.name.clone(),
                exchange_type: ExchangeType::Direct,
                routing_key: spec.name.clone(),
            }]
        } else {
            let binding = |binding: &crate::api::v1alpha1::BindingSpec| Binding {
                exchange: binding.exchange.name.clone(),
                exchange_type: binding.exchange.exchange_type,
                routing_key: binding.routing_key.clone().unwrap_or_else(|| spec.name.clone()),
            };
            spec.bindings.iter().map(binding).collect()
        };
        Self {
            name: spec.name.clone(),
            queue_type: spec.queue_type,
            max_priority: spec.max_priority,
            policy: policy(spec, dead_letters.as_deref()),
            dead_letters,
            bindings,
        }
    }

    /// The arguments with which the queue is declared.
    pub fn arguments(&self) -> BTreeMap<&'static str, Argument> {
        let mut arguments =
            BTreeMap::from([("x-queue-type", Argument::Text(queue_type_word(self.queue_type)))]);
        if let Some(priorities) = self.max_priority {
            arguments.insert("x-max-priority", Argument::Integer(priorities.into()));
        }
        arguments
    }

    /// The arguments with which its dead letter queue is declared.
    pub fn dead_letter_arguments(&self) -> BTreeMap<&'static str, Argument> {
        BTreeMap::from([("x-queue-type", Argument::Text(queue_type_word(self.queue_type)))])
    }

    /// Name of its policy.
    pub fn policy_name(&self) -> String {
        format!("{POLICY_PREFIX}{}", self.name)
    }
}

/// What the names of our policies start with.
pub const POLICY_PREFIX: &str = "soloist.";

/// A value of a queue argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A string.
    Text(&'static str),
    /// An integer.
    Integer(i32),
}

/// An exchange that routes to a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Name of the exchange.
    pub exchange: String,
    /// Its type.
    pub exchange_type: ExchangeType,
    /// The routing key of the binding.
    pub routing_key: String,
}

/// RabbitMQ's word for a queue type.
pub fn queue_type_word(queue_type: QueueType) -> &'static str {
    match queue_type {
        QueueType::Classic => "classic",
        QueueType::Quorum => "quorum",
    }
}

fn policy(spec: &QueueSpec, dead_letters: Option<&str>) -> Map<String, Value> {
    let mut definition = Map::new();
    let mut set = |key: &str, value: Value| definition.insert(key.to_owned(), value);
    if let Some(dead_letters) = dead_letters {
        // The default exchange routes by the name of the queue.
        set("dead-letter-exchange", Value::from(""));
        set("dead-letter-routing-key", Value::from(dead_letters));
    }
    if let Some(seconds) = spec.message_ttl_seconds {
        set("message-ttl", Value::from(u64::from(seconds) * 1000));
    }
    if let Some(length) = spec.max_length {
        set("max-length", Value::from(length));
    }
    if let Some(overflow) = spec.overflow {
        let word = match overflow {
            Overflow::DropHead => "drop-head",
            Overflow::RejectPublish => "reject-publish",
            Overflow::RejectPublishDlx => "reject-publish-dlx",
        };
        set("overflow", Value::from(word));
    }
    if let Some(limit) = spec.delivery_limit {
        set("delivery-limit", Value::from(limit));
    }
    definition
}

/// A regular expression that matches exactly this name, for the pattern of a policy.
pub fn exact_pattern(name: &str) -> String {
    let mut pattern = String::from("^");
    for character in name.chars() {
        if !character.is_alphanumeric() && !matches!(character, '_' | '-') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('$');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn topology(spec: Value) -> Topology {
        Topology::new(&task_queue(spec))
    }

    fn task_queue(spec: Value) -> TaskQueue {
        let mut whole = json!({
            "broker": {"secretRef": {"name": "rabbitmq"}},
            "worker": {"image": "w"},
            "scaling": {"maxReplicas": 5},
        });
        whole["queues"] = spec;
        let task_queue = json!({
            "apiVersion": "soloist.dev/v1alpha1", "kind": "TaskQueue", "metadata": {"name": "red"}, "spec": whole,
        });
        serde_json::from_value(task_queue).unwrap()
    }

    #[test]
    fn a_task_queue_names_the_queues_of_its_topology() {
        let specs = [json!([]), json!([{"name": "low"}, {"name": "red", "deadLetter": {"enabled": false}}])];
        for spec in specs {
            let (task_queue, topology) = (task_queue(spec.clone()), topology(spec));
            for queue in ["red", "red.dead", "low", "low.dead", "low.dead.dead", ".dead", ""] {
                let expected = topology.all_names().any(|name| name == queue);
                assert_eq!(names(&task_queue, queue), expected, "{queue} of {topology:?}");
            }
        }
    }

    #[test]
    fn default_is_one_queue_as_celery_declares_it() {
        let topology = topology(json!([]));
        assert_eq!(topology.consumed().collect::<Vec<_>>(), ["red"]);
        assert_eq!(topology.all_names().collect::<Vec<_>>(), ["red", "red.dead"]);
        let queue = &topology.queues[0];
        assert_eq!(queue.arguments(), [("x-queue-type", Argument::Text("classic"))].into());
        let binding = Binding {
            exchange: "red".into(),
            exchange_type: ExchangeType::Direct,
            routing_key: "red".into(),
        };
        assert_eq!(queue.bindings, [binding]);
        assert_eq!(
            Value::from(queue.policy.clone()),
            json!({"dead-letter-exchange": "", "dead-letter-routing-key": "red.dead"})
        );
    }

    #[test]
    fn only_what_no_policy_can_set_is_an_argument() {
        let topology = topology(json!([
            {"name": "low", "maxPriority": 9, "messageTtlSeconds": 60, "maxLength": 7, "overflow": "rejectPublishDlx"},
            {"name": "safe", "type": "quorum", "deliveryLimit": 3, "deadLetter": {"enabled": false}},
        ]));
        let [low, safe] = &topology.queues[..] else { panic!("two queues") };
        assert_eq!(
            low.arguments(),
            [("x-queue-type", Argument::Text("classic")), ("x-max-priority", Argument::Integer(9))].into()
        );
        assert_eq!(
            Value::from(low.policy.clone()),
            json!({
                "dead-letter-exchange": "", "dead-letter-routing-key": "low.dead",
                "message-ttl": 60_000, "max-length": 7, "overflow": "reject-publish-dlx",
            })
        );
        assert_eq!(safe.arguments(), [("x-queue-type", Argument::Text("quorum"))].into());
        assert_eq!(Value::from(safe.policy.clone()), json!({"delivery-limit": 3}));
        assert_eq!(safe.dead_letters, None);
    }

    #[test]
    fn queue_without_settings_needs_no_policy() {
        assert!(
            topology(json!([{"name": "plain", "deadLetter": {"enabled": false}}])).queues[0]
                .policy
                .is_empty()
        );
    }

    #[test]
    fn routing_key_defaults_to_the_queue() {
        let topology = topology(json!([{"name": "red", "bindings": [
            {"exchange": {"name": "colors", "type": "topic"}, "routingKey": "paint.#"}, {"exchange": {"name": "all"}},
        ]}]));
        let keys: Vec<_> =
            topology.queues[0].bindings.iter().map(|binding| binding.routing_key.as_str()).collect();
        assert_eq!(keys, ["paint.#", "red"]);
    }

    #[test]
    fn pattern_matches_one_name() {
        assert_eq!(exact_pattern("a_b-c"), "^a_b-c$");
        assert_eq!(exact_pattern("a.b|c*"), r"^a\.b\|c\*$");
    }
}
