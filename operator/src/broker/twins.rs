//! Whether two addresses lead to the same broker: an IP address and a service name, say.
//!
//! The broker is asked itself: a queue that one connection has for itself is locked for a connection to the same virtual host of the same
//! broker, and unknown to any other. Asked only where it matters, which is when two TaskQueues name the same queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use celery_client::BrokerAddress;
use celery_client::amqp::short;
use celery_client::queue::reply_code;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

/// An answer counts this long: names may lead elsewhere one day.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// What could not be answered is asked again after this long.
const RETRY: Duration = Duration::from_secs(30);

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Host, port and virtual host.
type Place = (String, u16, String);

/// What is known about pairs of addresses.
#[derive(Clone, Default)]
pub(super) struct Twins(Arc<Mutex<HashMap<(Place, Place), Answer>>>);

struct Answer {
    same: Option<bool>,
    /// Until when nobody has to ask.
    fresh_until: Instant,
}

impl Twins {
    fn answers(&self) -> MutexGuard<'_, HashMap<(Place, Place), Answer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known about two addresses. If that is nothing or old, the brokers are asked, and `told` is called when they have said something new.
    pub(super) fn same(
        &self,
        one: &BrokerAddress,
        other: &BrokerAddress,
        name: &str,
        told: impl FnOnce() + Send + 'static,
    ) -> Option<bool> {
        let pair = (place(one), place(other));
        if pair.0 == pair.1 {
            return Some(true);
        }
        let now = Instant::now();
        let mut answers = self.answers();
        let known = answers.get(&pair);
        let same = known.and_then(|answer| answer.same);
        if known.is_none_or(|answer| answer.fresh_until <= now) {
            answers.insert(pair.clone(), Answer { same, fresh_until: now + TIMEOUT + RETRY });
            let (twins, one, other, name) = (self.clone(), one.clone(), other.clone(), name.to_owned());
            tokio::spawn(async move {
                let asked = tokio::time::timeout(TIMEOUT, ask(&one, &other, &name)).await.ok().flatten();
                tracing::info!(%one, %other, same = asked, "asked whether two addresses lead to the same broker");
                let fresh_for = if asked.is_some() { ASK_AGAIN } else { RETRY };
                // What isn't known now is as it was.
                let answer = Answer { same: asked.or(same), fresh_until: Instant::now() + fresh_for };
                twins.answers().insert(pair, answer);
                if asked.is_some_and(|asked| Some(asked) != same) {
                    told();
                }
            });
        }
        same
    }
}

fn place(address: &BrokerAddress) -> Place {
    (address.host.clone(), address.port, address.vhost.clone())
}

/// Asks the brokers; nothing if they don't answer, or otherwise than expected.
async fn ask(one: &BrokerAddress, other: &BrokerAddress, name: &str) -> Option<bool> {
    let one = celery_client::connect(one, name).await.ok()?;
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let channel = one.create_channel().await.ok()?;
    let queue = channel.queue_declare(short(""), own, FieldTable::default()).await.ok()?;
    let other = celery_client::connect(other, name).await.ok()?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let asking = other.create_channel().await.ok()?;
    let asked = asking.queue_declare(queue.name().clone(), passive, FieldTable::default());
    let same = match asked.await.err().as_ref().and_then(reply_code) {
        Some(405) => Some(true),
        Some(404) => Some(false),
        _ => None,
    };
    // An error means that it is closed already.
    let _ = one.close(200, short("asked")).await;
    let _ = other.close(200, short("asked")).await;
    same
}
