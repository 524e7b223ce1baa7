//! What single workers are told, and whether they have done it: to stop consuming, or to consume again.
//!
//! The commands are Celery's own (`cancel_consumer`, `add_consumer`), so that a worker of Celery's obeys as well. Whether a worker is
//! drained is asked, not assumed: it consumes from no queue, and *after that* it neither runs, nor holds, nor waits with a task. A mailbox is
//! answered in order, so the four answers to four questions in a row say just that. A worker of Celery's solo pool answers when its task
//! is done; ours at any time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::runtime::reflector::ObjectRef;
use serde_json::{Map, Value};
use tokio::sync::Notify;

use crate::api::v1alpha1::TaskQueue;

/// The questions whose answers say whether a worker is drained, in the order in which they are asked.
const QUESTIONS: [&str; 4] = [ACTIVE_QUEUES, "active", "reserved", "scheduled"];

const ACTIVE_QUEUES: &str = "active_queues";

/// Wait before asking again a worker that hasn't quite done it yet; it takes a round trip to the broker.
const SOON: Duration = Duration::from_millis(100);

/// Wait before asking again a worker that still has a task. Its heartbeat says earlier when it is done.
const BUSY: Duration = Duration::from_secs(5);

/// First wait for an answer; it doubles from question to question. A worker that isn't there yet gets no message at all; one of Celery's
/// with a task answers all of them later.
const UNANSWERED: Duration = Duration::from_millis(500);

/// Longest wait for an answer.
const UNANSWERED_AT_MOST: Duration = Duration::from_secs(30);

/// A worker that shows a sign of life without having answered is asked again, if the last question is older than this.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// What a worker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What to do.
    pub kind: OrderKind,
    /// The queues that it was started with.
    pub queues: Vec<String>,
}

/// What a worker is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// Consume from nothing, and finish what it has.
    Drain,
    /// Consume again.
    Resume,
}

/// A command to be sent to a worker.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Command {
    pub(super) method: &'static str,
    pub(super) arguments: Map<String, Value>,
    /// The label of the reply, if one is wanted.
    pub(super) ticket: Option<String>,
}

/// All orders on a broker, by node.
#[derive(Default)]
pub(super) struct Errands {
    errands: Mutex<HashMap<String, Errand>>,
    /// There is something to be sent that wasn't before.
    pub(super) changed: Notify,
}

/// An order, and how far it is.
struct Errand {
    task_queue: ObjectRef<TaskQueue>,
    order: Order,
    /// Tells the replies to this order from those to others.
    id: u64,
    survey: Survey,
    /// What the worker consumed from when it was asked last.
    found: BTreeSet<String>,
    /// When it is to be asked next; never if it has obeyed.
    due: Option<Instant>,
    sent: Option<Instant>,
    unanswered: Duration,
}

/// One round of questions.
#[derive(Default)]
struct Survey {
    number: u32,
    answers: HashMap<&'static str, Value>,
}

impl Errands {
    fn errands(&self) -> MutexGuard<'_, HashMap<String, Errand>> {
        self.errands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// States what the workers of a TaskQueue are told, in place of all that was stated before. Returns those that have obeyed.
    pub(super) fn order(
        &self,
        task_queue: &ObjectRef<TaskQueue>,
        orders: BTreeMap<String, Order>,
        now: Instant,
    ) -> HashSet<String> {
        let mut errands = self.errands();
        errands.retain(|node, errand| errand.task_queue != *task_queue || orders.contains_key(node));
        for (node, order) in orders {
            if errands.get(&node).is_none_or(|errand| errand.order != order) {
                errands.insert(node, Errand::new(task_queue.clone(), order, now));
                self.changed.notify_one();
            }
        }
        errands
            .iter()
            .filter(|(_, errand)| errand.task_queue == *task_queue && errand.due.is_none())
            .map(|(node, _)| node.clone())
            .collect()
    }

    /// What is to be sent now, by node.
    pub(super) fn due(&self, now: Instant) -> Vec<(String, Vec<Command>)> {
        let mut errands = self.errands();
        let due = errands.iter_mut().filter(|(_, errand)| errand.due.is_some_and(|due| due <= now));
        due.map(|(node, errand)| (node.clone(), errand.send(now))).collect()
    }

    /// When something is to be sent next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.errands().values().filter_map(|errand| errand.due).min()
    }

    /// Takes in a reply. Returns the TaskQueue whose worker has obeyed by that.
    pub(super) fn answered(
        &self,
        node: &str,
        ticket: &str,
        reply: Value,
        now: Instant,
    ) -> Option<ObjectRef<TaskQueue>> {
        let mut errands = self.errands();
        let errand = errands.get_mut(node)?;
        errand.answered(ticket, reply, now).then(|| errand.task_queue.clone())
    }

    /// Takes in a sign of life of a worker: one that is idle, or was not there, has something to say now.
    pub(super) fn nudge(&self, node: &str, active: u32, now: Instant) {
        if let Some(errand) = self.errands().get_mut(node)
            && errand.nudge(active, now)
        {
            self.changed.notify_one();
        }
    }

    /// Nothing that was said before counts any more: the connection is lost.
    pub(super) fn ask_anew(&self, now: Instant) {
        for errand in self.errands().values_mut() {
            *errand = Errand::new(errand.task_queue.clone(), errand.order.clone(), now);
        }
    }
}

impl Errand {
    fn new(task_queue: ObjectRef<TaskQueue>, order: Order, now: Instant) -> Self {
        Self {
            task_queue,
            order,
            id: fastrand::u64(..),
            survey: Survey::default(),
            found: BTreeSet::new(),
            due: Some(now),
            sent: None,
            unanswered: UNANSWERED,
        }
    }

    /// The commands and questions to send now.
    fn send(&mut self, now: Instant) -> Vec<Command> {
        self.sent = Some(now);
        self.due = Some(now + self.unanswered);
        self.unanswered = (self.unanswered * 2).min(UNANSWERED_AT_MOST);
        self.survey = Survey { number: self.survey.number + 1, answers: HashMap::new() };
        let (method, queues): (_, BTreeSet<&String>) = match self.order.kind {
            OrderKind::Drain => ("cancel_consumer", self.order.queues.iter().chain(&self.found).collect()),
            OrderKind::Resume => ("add_consumer", self.order.queues.iter().collect()),
        };
        let tell = queues.into_iter().map(|queue| Command {
            method,
            arguments: Map::from_iter([("queue".to_owned(), queue.as_str().into())]),
            ticket: None,
        });
        let ask = self.questions().iter().map(|question| Command {
            method: question,
            arguments: Map::new(),
            ticket: Some(format!("{}.{}.{question}", self.id, self.survey.number)),
        });
        tell.chain(ask).collect()
    }

    fn questions(&self) -> &'static [&'static str] {
        match self.order.kind {
            OrderKind::Drain => &QUESTIONS,
            OrderKind::Resume => &QUESTIONS[..1],
        }
    }

    /// Takes in a reply. Returns whether the worker has obeyed by that.
    fn answered(&mut self, ticket: &str, reply: Value, now: Instant) -> bool {
        let prefix = format!("{}.{}.", self.id, self.survey.number);
        let Some(question) = ticket.strip_prefix(&prefix) else { return false };
        let Some(question) = QUESTIONS.into_iter().find(|known| *known == question) else { return false };
        self.survey.answers.insert(question, reply);
        if self.due.is_none() || self.survey.answers.len() < self.questions().len() {
            return false;
        }
        self.unanswered = UNANSWERED;
        self.found = queue_names(self.survey.answers.get(ACTIVE_QUEUES));
        self.due = match self.order.kind {
            // An answer that isn't a list is an error, and no proof of anything.
            OrderKind::Drain if !self.survey.answers.values().all(Value::is_array) => Some(now + BUSY),
            OrderKind::Drain if !self.survey.answers[ACTIVE_QUEUES].as_array().is_none_or(Vec::is_empty) => {
                Some(now + SOON)
            }
            OrderKind::Drain if !self.survey.answers.values().all(is_empty_list) => Some(now + BUSY),
            OrderKind::Resume if !self.order.queues.iter().all(|queue| self.found.contains(queue)) => {
                Some(now + SOON)
            }
            OrderKind::Drain | OrderKind::Resume => None,
        };
        self.due.is_none()
    }

    /// Brings the next question forward if there may be an answer by now. Returns whether it did.
    fn nudge(&mut self, active: u32, now: Instant) -> bool {
        if self.due.is_none() && self.order.kind == OrderKind::Drain && active > 0 {
            // It works after it has said that it doesn't: what it said is void, and it has to be told again.
            *self = Self::new(self.task_queue.clone(), self.order.clone(), now);
            return true;
        }
        let (Some(due), Some(sent)) = (self.due, self.sent) else { return false };
        let is_answered = self.survey.answers.len() == self.questions().len();
        let is_worth_it = if is_answered { active == 0 } else { now.duration_since(sent) >= LOST_AFTER };
        if is_worth_it && due > now {
            self.due = Some(now);
            return true;
        }
        false
    }
}

fn is_empty_list(answer: &Value) -> bool {
    answer.as_array().is_some_and(Vec::is_empty)
}

fn queue_names(active_queues: Option<&Value>) -> BTreeSet<String> {
    let queues = active_queues.and_then(Value::as_array).into_iter().flatten();
    queues.filter_map(|queue| Some(queue.get("name")?.as_str()?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NODE: &str = "celery@a";

    fn red() -> ObjectRef<TaskQueue> {
        ObjectRef::new("red").within("default")
    }

    fn told(kind: OrderKind, now: Instant) -> Errands {
        let errands = Errands::default();
        errands.order(&red(), orders(kind), now);
        errands
    }

    fn orders(kind: OrderKind) -> BTreeMap<String, Order> {
        BTreeMap::from([(NODE.to_owned(), Order { kind, queues: vec!["red".to_owned()] })])
    }

    fn sent(errands: &Errands, now: Instant) -> Vec<Command> {
        errands.due(now).pop().map(|(_, commands)| commands).unwrap_or_default()
    }

    /// Answers all questions among these commands.
    fn answer(errands: &Errands, commands: &[Command], queues: Value, active: Value, now: Instant) -> bool {
        let mut obeyed = false;
        for command in commands {
            let reply = match command.method {
                "active_queues" => queues.clone(),
                "active" => active.clone(),
                _ => json!([]),
            };
            if let Some(ticket) = &command.ticket {
                obeyed |= errands.answered(NODE, ticket, reply, now).is_some();
            }
        }
        obeyed
    }

    fn methods(commands: &[Command]) -> Vec<&str> {
        commands.iter().map(|command| command.method).collect()
    }

    #[test]
    fn an_idle_worker_is_drained_in_one_round() {
        let now = Instant::now();
        let errands = told(OrderKind::Drain, now);
        let commands = sent(&errands, now);
        assert_eq!(
            methods(&commands),
            ["cancel_consumer", "active_queues", "active", "reserved", "scheduled"]
        );
        assert!(answer(&errands, &commands, json!([]), json!([]), now));
        assert_eq!(errands.next_due(), None);
        let obeyed = errands.order(&red(), orders(OrderKind::Drain), now);
        assert_eq!(obeyed, HashSet::from([NODE.to_owned()]));
    }

    #[test]
    fn a_worker_is_not_drained_while_it_consumes_or_has_a_task() {
        let now = Instant::now();
        let errands = told(OrderKind::Drain, now);
        let commands = sent(&errands, now);
        assert!(!answer(&errands, &commands, json!([{"name": "other"}]), json!([]), now));
        let commands = sent(&errands, now + SOON);
        assert_eq!(
            methods(&commands)[..2],
            ["cancel_consumer", "cancel_consumer"],
            "what it was found to consume too"
        );
        assert!(!answer(&errands, &commands, json!([]), json!([{"id": "1"}]), now + SOON));
        assert_eq!(errands.next_due(), Some(now + SOON + BUSY));
        errands.nudge(NODE, 1, now + SOON);
        assert_eq!(errands.next_due(), Some(now + SOON + BUSY));
        errands.nudge(NODE, 0, now + SOON);
        let commands = sent(&errands, now + SOON);
        assert!(answer(&errands, &commands, json!([]), json!([]), now + SOON));
    }

    #[test]
    fn a_worker_that_works_again_is_told_again_and_is_not_drained_until_it_has_said_so_again() {
        let now = Instant::now();
        let errands = told(OrderKind::Drain, now);
        let commands = sent(&errands, now);
        assert!(answer(&errands, &commands, json!([]), json!([]), now));
        errands.nudge(NODE, 0, now);
        assert_eq!(errands.next_due(), None, "it is idle, as it said");
        errands.nudge(NODE, 1, now);
        assert_eq!(errands.order(&red(), orders(OrderKind::Drain), now), HashSet::new());
        let commands = sent(&errands, now);
        assert_eq!(methods(&commands)[0], "cancel_consumer");
        assert!(!answer(&errands, &commands, json!([]), json!([{"id": "1"}]), now));
        errands.nudge(NODE, 1, now);
        assert_eq!(errands.next_due(), Some(now + BUSY), "one order is enough");
        errands.nudge(NODE, 0, now);
        assert!(answer(&errands, &sent(&errands, now), json!([]), json!([]), now));
    }

    #[test]
    fn a_worker_that_has_resumed_may_work() {
        let now = Instant::now();
        let errands = told(OrderKind::Resume, now);
        let commands = sent(&errands, now);
        assert!(answer(&errands, &commands, json!([{"name": "red"}]), json!([]), now));
        errands.nudge(NODE, 1, now);
        assert_eq!(errands.next_due(), None);
    }

    #[test]
    fn an_error_is_no_proof() {
        let now = Instant::now();
        let errands = told(OrderKind::Drain, now);
        let commands = sent(&errands, now);
        assert!(!answer(&errands, &commands, json!([]), json!({"error": "KeyError('active')"}), now));
    }

    #[test]
    fn answers_to_an_earlier_order_do_not_count() {
        let now = Instant::now();
        let errands = told(OrderKind::Drain, now);
        let commands = sent(&errands, now);
        errands.order(&red(), orders(OrderKind::Resume), now);
        errands.order(&red(), orders(OrderKind::Drain), now);
        let _ = sent(&errands, now);
        assert!(!answer(&errands, &commands, json!([]), json!([]), now));
    }

    #[test]
    fn a_silent_worker_is_asked_ever_more_rarely_and_at_once_when_it_is_heard() {
        let now = Instant::now();
        let errands = told(OrderKind::Drain, now);
        let mut at = now;
        for _ in 0..20 {
            let _ = sent(&errands, at);
            at = errands.next_due().unwrap();
        }
        let _ = sent(&errands, at);
        assert_eq!(errands.next_due(), Some(at + UNANSWERED_AT_MOST));
        errands.nudge(NODE, 1, at + LOST_AFTER);
        assert_eq!(errands.next_due(), Some(at + LOST_AFTER));
    }

    #[test]
    fn a_worker_has_resumed_when_it_consumes_all_of_its_queues() {
        let now = Instant::now();
        let errands = told(OrderKind::Resume, now);
        let commands = sent(&errands, now);
        assert_eq!(methods(&commands), ["add_consumer", "active_queues"]);
        assert!(!answer(&errands, &commands, json!([]), json!([]), now));
        let commands = sent(&errands, now + SOON);
        assert!(answer(&errands, &commands, json!([{"name": "red"}]), json!([]), now));
    }

    #[test]
    fn what_was_said_before_the_connection_was_lost_is_asked_again() {
        let now = Instant::now();
        let errands = told(OrderKind::Drain, now);
        let commands = sent(&errands, now);
        assert!(answer(&errands, &commands, json!([]), json!([]), now));
        errands.ask_anew(now);
        assert_eq!(errands.order(&red(), orders(OrderKind::Drain), now), HashSet::new());
        assert_eq!(errands.next_due(), Some(now));
    }

    #[test]
    fn an_order_that_is_withdrawn_is_forgotten() {
        let now = Instant::now();
        let errands = told(OrderKind::Drain, now);
        errands.order(&red(), BTreeMap::new(), now);
        assert_eq!(errands.next_due(), None);
    }
}
