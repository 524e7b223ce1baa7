use super::*;
use crate::plan::autoscaler::Decision;

fn decision(replicas: u16, reason: DecisionReason) -> Decision {
    Decision { replicas, reason, sentence: String::new(), wanted: replicas, recheck_after: None }
}

fn problem(reason: Reason) -> Problem {
    Problem { reason, message: format!("{reason} happened") }
}

/// The conditions when all is well, but for what `change` changes.
fn stated(change: impl FnOnce(&mut World)) -> Vec<Stated> {
    let mut world = World {
        broker: BrokerState::Connected,
        queues: QueueState::Declared(Policies::Applied),
        claim: None,
        workers: Workers { pods: 1, ready: 1, problem: None },
        decision: decision(1, DecisionReason::Backlog),
    };
    change(&mut world);
    conditions(&Facts {
        topology: &Topology::default(),
        broker: &world.broker,
        queues: &world.queues,
        claim: world.claim.as_ref(),
        workers: &world.workers,
        decision: &world.decision,
    })
}

struct World {
    broker: BrokerState,
    queues: QueueState,
    claim: Option<Claim>,
    workers: Workers,
    decision: Decision,
}

/// Type, status and reason of a condition.
fn brief(stated: &[Stated], type_: &str) -> (&'static str, Reason) {
    let stated = stated.iter().find(|stated| stated.type_ == type_).unwrap();
    (stated.status, stated.reason)
}

#[test]
fn all_is_well() {
    let all = stated(|_| {});
    let types: Vec<_> = all.iter().map(|stated| stated.type_).collect();
    assert_eq!(types, [READY, BROKER_REACHABLE, QUEUES_DECLARED, WORKERS_AVAILABLE, SCALING_ACTIVE]);
    assert!(all.iter().all(|stated| stated.status == "True" && !stated.is_warning()));
}

#[test]
fn summary_gives_the_first_cause() {
    let all = stated(|world| {
        world.broker = BrokerState::Failed(problem(Reason::AuthFailed));
        world.queues = QueueState::WaitingForBroker;
        world.decision = decision(1, DecisionReason::BacklogUnknown);
    });
    assert_eq!(brief(&all, READY), ("False", Reason::AuthFailed));
    assert_eq!(brief(&all, BROKER_REACHABLE), ("False", Reason::AuthFailed));
    assert_eq!(brief(&all, QUEUES_DECLARED), ("Unknown", Reason::WaitingForBroker));
    assert_eq!(brief(&all, SCALING_ACTIVE), ("Unknown", Reason::BacklogUnknown));
    assert_eq!(all[0].message, "AuthFailed happened");
}

#[test]
fn failure_counts_more_than_ignorance() {
    let all = stated(|world| {
        world.queues = QueueState::Declaring;
        world.workers.problem = Some(problem(Reason::ImagePullFailed));
    });
    assert_eq!(brief(&all, READY), ("False", Reason::ImagePullFailed));
}

#[test]
fn missing_policies_warn_but_do_not_stop() {
    let all = stated(|world| {
        world.queues = QueueState::Declared(Policies::NotApplied("no management".into()));
    });
    assert_eq!(brief(&all, READY), ("True", Reason::Ready));
    assert_eq!(brief(&all, QUEUES_DECLARED), ("True", Reason::PoliciesNotApplied));
    assert!(all[2].message.ends_with("no management") && all[2].is_warning());
}

#[test]
fn pause_is_shown_but_nothing_is_wrong() {
    let all = stated(|world| world.decision = decision(1, DecisionReason::Paused));
    assert_eq!(brief(&all, SCALING_ACTIVE), ("False", Reason::Paused));
    assert_eq!(brief(&all, READY), ("True", Reason::Ready));
    assert!(all.iter().all(|stated| !stated.is_warning()));
}

#[test]
fn claimed_queue_names_the_holder() {
    let all = stated(|world| {
        world.claim = Some(Claim { queue: "red".into(), holder: "default/one".into() });
        world.decision = decision(0, DecisionReason::QueueClaimed);
    });
    assert_eq!(brief(&all, READY), ("False", Reason::QueueClaimed));
    assert!(all[0].message.contains("`red`") && all[0].message.contains("default/one"));
}

#[test]
fn starting_workers_are_no_failure() {
    let all = stated(|world| world.workers.ready = 0);
    assert_eq!(brief(&all, WORKERS_AVAILABLE), ("True", Reason::WorkersStarting));
    let all = stated(|world| world.decision = decision(0, DecisionReason::Idle));
    assert_eq!(brief(&all, WORKERS_AVAILABLE), ("True", Reason::Idle));
}

fn at(second: i64) -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
}

#[test]
fn transition_time_moves_with_the_status_only() {
    let first = merged(&[], &stated(|_| {}), Some(1), &at(100));
    assert!(first.iter().all(|condition| condition.last_transition_time == at(100)));
    let idle = stated(|world| world.decision = decision(0, DecisionReason::Idle));
    let second = merged(&first, &idle, Some(2), &at(200));
    assert_eq!(second[3].reason, "Idle");
    assert!(second.iter().all(|condition| condition.last_transition_time == at(100)));
    assert!(second.iter().all(|condition| condition.observed_generation == Some(2)));
    let lost = stated(|world| world.broker = BrokerState::Failed(problem(Reason::BrokerUnreachable)));
    let third = merged(&second, &lost, Some(2), &at(300));
    assert_eq!(third[1].last_transition_time, at(300));
    assert_eq!(third[2].last_transition_time, at(100));
}

fn told(previous: &[Condition], stated: &[Stated]) -> Vec<Reason> {
    transitions(previous, stated).into_iter().map(|stated| stated.reason).collect()
}

#[test]
fn transitions_are_told_once() {
    let well = stated(|_| {});
    assert_eq!(told(&[], &well), [], "a new TaskQueue that works is no news");
    let before = merged(&[], &well, Some(1), &at(100));
    assert_eq!(told(&before, &well), []);
    let lost = stated(|world| world.broker = BrokerState::Failed(problem(Reason::BrokerUnreachable)));
    assert_eq!(told(&before, &lost), [Reason::BrokerUnreachable]);
    let before = merged(&before, &lost, Some(1), &at(200));
    assert_eq!(told(&before, &lost), []);
    assert_eq!(told(&before, &well), [Reason::Connected]);
}

#[test]
fn what_the_user_switches_is_told_both_ways() {
    let well = stated(|_| {});
    let before = merged(&[], &well, Some(1), &at(100));
    let paused = stated(|world| world.decision = decision(1, DecisionReason::Paused));
    assert_eq!(told(&before, &paused), [Reason::Paused]);
    assert_eq!(told(&merged(&before, &paused, Some(2), &at(200)), &well), [Reason::Active]);
}

#[test]
fn first_steps_are_no_event() {
    let first = stated(|world| {
        world.broker = BrokerState::Connecting;
        world.queues = QueueState::WaitingForBroker;
        world.decision = decision(0, DecisionReason::BacklogUnknown);
    });
    assert_eq!(told(&[], &first), []);
    assert_eq!(told(&merged(&[], &first, Some(1), &at(100)), &stated(|_| {})), []);
}

#[test]
fn ordinary_work_is_no_event() {
    let before = merged(&[], &stated(|_| {}), Some(1), &at(100));
    let starting = stated(|world| world.workers.ready = 0);
    assert_eq!(told(&before, &starting), []);
}

#[test]
fn first_failure_is_told_without_a_past() {
    let missing = stated(|world| world.broker = BrokerState::Failed(problem(Reason::SecretNotFound)));
    assert_eq!(told(&[], &missing), [Reason::SecretNotFound]);
}
