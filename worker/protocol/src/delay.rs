//! Celery's delay queues: a message with an `eta` waits in the broker, not in a worker.
//!
//! There are 28 levels, each an exchange and a queue of one name; a message in the queue of level L stays for 2^L seconds. The
//! routing key begins with the delay in binary, a digit for each level: a 1 leads through the level's queue, a 0 past it.
//!
//! ```text
//!   celery_delayed_27 --1.#--> [2^27 s] --v
//!          `------0.#------> celery_delayed_26 --*.1.#--> [2^26 s] --v
//!                                  `-----*.0.#-----> ... celery_delayed_0 ... --> celery_delayed_delivery --> queue
//! ```
//!
//! All names, arguments and keys are Celery's own (5.5 and newer), so that whoever declares them finds what it expects.

/// Exchange that messages come out of.
pub const DELIVERY_EXCHANGE: &str = "celery_delayed_delivery";

/// Number of levels.
const LEVELS: u8 = 28;

/// Longest delay in seconds, 8.5 years. What is due later goes round again.
pub const MAX_SECONDS: u32 = (1 << LEVELS) - 1;

/// Longest routing key that AMQP can carry, in bytes.
const KEY_MAX: usize = 255;

/// Type of the delay queues unless Celery is told otherwise. Only quorum queues hand on messages without ever losing one.
pub const DEFAULT_QUEUE_TYPE: &str = "quorum";

/// Name of a level's queue, and of its exchange: durable, the exchange of type topic.
#[must_use]
pub fn level_name(level: u8) -> String {
    format!("celery_delayed_{level}")
}

/// Exchange that delayed messages are published to.
#[must_use]
pub fn entry_exchange() -> String {
    level_name(LEVELS - 1)
}

/// One level: what is to be declared for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// Name of its queue and of its exchange.
    pub name: String,
    /// The queue's `x-message-ttl`, in milliseconds.
    pub message_ttl_ms: u64,
    /// Exchange that comes after it: the queue's `x-dead-letter-exchange`, bound to this level's exchange too.
    pub next_exchange: String,
    /// Binds the queue to the level's exchange.
    pub queue_key: String,
    /// Binds the next exchange to the level's exchange.
    pub next_key: String,
}

/// All levels, the longest first.
///
/// The queues have `x-queue-type`, `x-overflow` `reject-publish`, and quorum ones `x-dead-letter-strategy` `at-least-once`
/// besides.
pub fn levels() -> impl Iterator<Item = Level> {
    (0..LEVELS).rev().map(|level| {
        let before = "*.".repeat(usize::from(LEVELS - 1 - level));
        let next_exchange = level.checked_sub(1).map_or_else(|| DELIVERY_EXCHANGE.to_owned(), level_name);
        Level {
            name: level_name(level),
            message_ttl_ms: 1000 << level,
            next_exchange,
            queue_key: format!("{before}1.#"),
            next_key: format!("{before}0.#"),
        }
    })
}

/// Key to publish with for a queue or routing key that the message is to come out with after some seconds, at most
/// [`MAX_SECONDS`]; none if it would be too long.
#[must_use]
pub fn routing_key(seconds: u32, key: &str) -> Option<String> {
    let seconds = seconds.min(MAX_SECONDS);
    let mut delayed: String = (0..LEVELS)
        .rev()
        .flat_map(|level| [if seconds >> level & 1 == 1 { '1' } else { '0' }, '.'])
        .collect();
    delayed.push_str(key);
    (delayed.len() <= KEY_MAX).then_some(delayed)
}

/// Key that binds a queue to [`DELIVERY_EXCHANGE`], so that messages delayed for the queue's name come to it and no others; none
/// for a name that can't be told from others, or is too long.
///
/// Celery's own `#.red` would also match what is meant for a queue `dark.red`.
#[must_use]
pub fn queue_key(queue: &str) -> Option<String> {
    let is_pattern = queue.split('.').any(|word| word == "*" || word == "#");
    let key = format!("{}{queue}", "*.".repeat(usize::from(LEVELS)));
    (!is_pattern && key.len() <= KEY_MAX).then_some(key)
}

/// Key that Celery binds an exchange other than a direct one to [`DELIVERY_EXCHANGE`] with, and a queue to that exchange, for what
/// is published there with a routing key.
#[must_use]
pub fn exchange_key(routing_key: &str) -> String {
    if routing_key.starts_with('#') { routing_key.to_owned() } else { format!("#.{routing_key}") }
}

/// Whether a message that came over this exchange was delayed.
#[must_use]
pub fn is_delay_exchange(exchange: &str) -> bool {
    exchange.starts_with("celery_delayed_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_celerys() {
        let levels: Vec<_> = levels().collect();
        assert_eq!(levels.len(), 28);
        assert_eq!(
            levels[0],
            Level {
                name: "celery_delayed_27".into(),
                message_ttl_ms: 134_217_728_000,
                next_exchange: "celery_delayed_26".into(),
                queue_key: "1.#".into(),
                next_key: "0.#".into(),
            }
        );
        let last = &levels[27];
        assert_eq!((last.message_ttl_ms, last.next_exchange.as_str()), (1000, DELIVERY_EXCHANGE));
        assert_eq!(last.queue_key, format!("{}1.#", "*.".repeat(27)));
        assert_eq!(entry_exchange(), levels[0].name);
    }

    #[test]
    fn a_key_begins_with_the_delay_in_binary() {
        let zeros = "0.".repeat(25);
        assert_eq!(routing_key(5, "tq").unwrap(), format!("{zeros}1.0.1.tq"));
        let longest = format!("{}tq", "1.".repeat(28));
        assert_eq!(routing_key(MAX_SECONDS, "tq").unwrap(), longest);
        assert_eq!(routing_key(u32::MAX, "tq").unwrap(), longest);
        assert_eq!(routing_key(1, &"q".repeat(200)), None);
    }

    #[test]
    fn a_queue_gets_its_own_messages_only() {
        assert_eq!(queue_key("dark.red").unwrap(), format!("{}dark.red", "*.".repeat(28)));
        assert_eq!(queue_key("dark.#"), None);
        assert_eq!(queue_key(&"q".repeat(200)), None);
        assert_eq!((exchange_key("red"), exchange_key("#")), ("#.red".into(), "#".into()));
        assert!(is_delay_exchange("celery_delayed_3") && is_delay_exchange(DELIVERY_EXCHANGE));
    }
}
