//! Messages that come back: because another worker has lost its connection, or has died, perhaps of this very message.
//!
//! Where results are in Redis, workers tell each other there: a call that still runs elsewhere is left alone, one that is done, or
//! whose success is stored, is not run, and one that was begun too often is given up. Without Redis, nothing is known of other
//! workers. A quorum queue then counts by itself and has a limit of its own. For a classic queue, which only tells that it has
//! delivered a message before, the count is kept in a header: the message is replaced by a copy. The first goes to the end of the
//! queue at once, as most that come back were only given back; later ones some random time later, so that their neighbours are run
//! without them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use celery_client::results::{OtherRuns, RunKey};
use celery_protocol::{Message, Request, Signature, State, request::ATTEMPTS_HEADER};
use lapin::{message::Delivery, types::AMQPValue};
use serde_json::{Value, value::RawValue};
use tokio::{sync::mpsc, time::sleep};
use tracing::debug;
use uuid::Uuid;

use crate::{health::Health, metrics::Metrics, results::Results};

/// How often a call is begun without coming to an end, unless set. A worker may be killed for other reasons, so it is no small
/// number.
pub(crate) const DEFAULT_LIMIT: u32 = 10;

/// Header of what a worker sent to follow a task, with an id that was made for it alone.
const SEQUEL_HEADER: &str = "soloist-sequel";

/// Headers of a quorum queue's messages that came back. RabbitMQ 4.3 counts in the second one alone what was only given back; before, all
/// was counted in the first.
const QUEUE_COUNTS: [&str; 2] = ["x-delivery-count", "x-acquired-count"];

/// Longest delay of a copy without Redis, from the second on.
const APART: Duration = Duration::from_secs(20);

/// When others are told that a call is being run. Shorter runs than that are not worth it.
const HELD_AFTER: Duration = Duration::from_secs(2);

/// How long that holds unless it is renewed, and so how long a call waits whose worker has died.
const HELD: Duration = Duration::from_secs(6);

/// When to look again at a call that another worker runs.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What is to be done with a message that came back.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Run it.
    Run,
    /// It is done already.
    Done,
    /// It has succeeded with this value, as is stored, but who did that may not have come further.
    Succeeded(Box<RawValue>),
    /// Put it off for this time.
    Later(Duration),
    /// Another worker runs it: put it off for [`LOOK_AGAIN`].
    Elsewhere,
    /// Don't try again: it was begun so often.
    GiveUp(u32),
}

/// Whether a message may have been delivered before, to this worker or another.
pub(crate) fn is_redelivered(delivery: &Delivery) -> bool {
    delivery.redelivered || header(delivery, ATTEMPTS_HEADER).is_some()
}

/// The header that a copy of this message needs, if any.
pub(crate) fn mark(delivery: &Delivery) -> Option<(String, Value)> {
    let before = header(delivery, ATTEMPTS_HEADER);
    let attempts = before.unwrap_or(0) + u32::from(delivery.redelivered);
    is_redelivered(delivery).then(|| (ATTEMPTS_HEADER.to_owned(), attempts.into()))
}

/// Whether a message is what a worker sent to follow a task, with an id that was made for it alone.
pub(crate) fn is_sequel(delivery: &Delivery) -> bool {
    delivery.properties.headers().as_ref().is_some_and(|headers| headers.contains_key(SEQUEL_HEADER))
}

/// What follows a task, with the header that says so.
pub(crate) fn sequel(call: Signature) -> Signature {
    call.header(SEQUEL_HEADER, true)
}

/// Whether an id is of one call only: a random one, as clients make them, or one that was made from such. Who chooses an id himself
/// may use the same again tomorrow.
pub(crate) fn is_unique(id: &str, is_sequel: bool) -> bool {
    is_sequel || Uuid::parse_str(id).is_ok_and(|id| id.get_version_num() == 4)
}

/// The call with the header that says that there may be two of it.
pub(crate) fn sent_again(call: Signature) -> Signature {
    call.header(ATTEMPTS_HEADER, 0)
}

/// Gives a message that header, as it may have been sent before.
pub(crate) fn mark_again(message: &mut Message) {
    message.headers.entry(ATTEMPTS_HEADER).or_insert(0.into());
}

/// What is to be done with a message that came back and may now begin. `chance` is uniform in 0 to 1.
pub(crate) async fn verdict(
    delivery: &Delivery,
    request: &Request,
    limit: u32,
    chance: f64,
    results: &Results,
    (health, metrics): (&Health, &Metrics),
) -> Verdict {
    let Some(redis) = results.redis(health, metrics).await else {
        let is_counted_by_queue = QUEUE_COUNTS.iter().any(|count| header(delivery, count).is_some());
        let attempts = header(delivery, ATTEMPTS_HEADER).unwrap_or(0);
        return by_header(delivery.redelivered, is_counted_by_queue, attempts, limit, chance);
    };
    let run = RunKey::of(request);
    let begun = match results.insist("begin a run again", || redis.begin_again(&run), health, metrics).await {
        Ok(OtherRuns::Done) => return Verdict::Done,
        Ok(OtherRuns::Running) => return Verdict::Elsewhere,
        Ok(OtherRuns::Begun(begun)) => begun,
        // Somebody else's value under our key tells nothing.
        Err(_) => 0,
    };
    // Under another id this may be an earlier call's.
    if is_unique(&request.id, is_sequel(delivery)) {
        let stored = results.insist("read a result", || redis.get(&request.id), health, metrics).await;
        if let Ok(Some(meta)) = stored
            && meta.status == State::Success
        {
            return Verdict::Succeeded(meta.result);
        }
    }
    if begun > limit { Verdict::GiveUp(begun) } else { Verdict::Run }
}

fn by_header(
    is_redelivered: bool,
    is_counted_by_queue: bool,
    attempts: u32,
    limit: u32,
    chance: f64,
) -> Verdict {
    let attempts = attempts + u32::from(is_redelivered);
    match (is_redelivered, is_counted_by_queue) {
        (_, true) => Verdict::Run,
        _ if attempts > limit => Verdict::GiveUp(attempts),
        // Most were only given back, unstarted: the copy goes to the end of the queue, and is run when it comes.
        (true, false) if attempts == 1 => Verdict::Later(Duration::ZERO),
        (true, false) => Verdict::Later(Duration::from_secs(1) + APART.mul_f64(chance.clamp(0.0, 1.0))),
        (false, false) => Verdict::Run,
    }
}

/// Lets other workers know, for as long as it is waited for, that this one isn't done with a call.
pub(crate) async fn hold(
    request: &Request,
    node: &str,
    results: &Results,
    health: &Health,
    metrics: &Metrics,
) -> Infallible {
    sleep(HELD_AFTER).await;
    // Few calls come to this.
    Box::pin(async {
        let Some(redis) = results.redis(health, metrics).await else { return std::future::pending().await };
        let run = RunKey::of(request);
        loop {
            if let Err(error) = redis.hold_run(&run, node, HELD).await {
                debug!(id = request.id, %error, "others can't be told that the task runs here");
            }
            sleep(HELD / 3).await;
        }
    })
    .await
}

/// The task itself, which ran this long, wants its message to be delivered again: it has come to an end, and was no worker's
/// death.
pub(crate) async fn forget(
    delivery: &Delivery,
    request: &Request,
    runtime: Duration,
    node: &str,
    results: &Results,
    health: &Health,
    metrics: &Metrics,
) {
    // Nothing is counted with the first delivery, and others aren't told of a short run.
    if !is_redelivered(delivery) && runtime < HELD_AFTER {
        return;
    }
    let Some(redis) = results.redis(health, metrics).await else { return };
    if let Err(error) = redis.forget_run(&RunKey::of(request), node).await {
        debug!(id = request.id, %error, "that the task was begun stays counted, or that it runs here known");
    }
}

/// Lets other workers know which calls are done whose messages will be delivered again.
pub(crate) async fn announce(
    mut done: mpsc::UnboundedReceiver<RunKey>,
    results: Arc<Results>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
) {
    while let Some(run) = done.recv().await {
        let Some(redis) = results.redis(&health, &metrics).await else { continue };
        // A plain SET, which replaces whatever is there.
        let _ = results.insist("finish a run", || redis.finish_run(&run), &health, &metrics).await;
    }
}

fn header(delivery: &Delivery, name: &str) -> Option<u32> {
    let headers = delivery.properties.headers().as_ref()?;
    let count = match headers.inner().get(name)? {
        AMQPValue::LongInt(count) => i64::from(*count),
        AMQPValue::LongLongInt(count) => *count,
        _ => return None,
    };
    u32::try_from(count).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_redis_a_classic_queues_messages_are_counted_in_a_header() {
        let verdict = |is_redelivered, attempts| by_header(is_redelivered, false, attempts, 2, 0.5);
        assert!(matches!(verdict(true, 0), Verdict::Later(Duration::ZERO)), "behind others");
        assert!(matches!(verdict(false, 1), Verdict::Run));
        assert!(matches!(verdict(true, 1), Verdict::Later(later) if later == Duration::from_secs(11)));
        assert_eq!(crate::delay::whole_seconds(Duration::ZERO), 0, "needs no delay queues");
        assert!(matches!(verdict(false, 2), Verdict::Run));
        assert!(matches!(verdict(true, 2), Verdict::GiveUp(3)));
    }

    #[test]
    fn an_id_that_somebody_chose_may_be_used_again() {
        let random = Uuid::new_v4().to_string();
        let made = Uuid::new_v5(&Uuid::NAMESPACE_OID, b"daily-report:0:0:1").to_string();
        assert!(is_unique(&random, false));
        for id in ["daily-report", &made] {
            assert!(!is_unique(id, false) && is_unique(id, true), "{id}");
        }
    }

    #[test]
    fn without_redis_a_quorum_queue_counts_by_itself() {
        assert!(matches!(by_header(true, true, 0, 2, 0.5), Verdict::Run));
    }
}
