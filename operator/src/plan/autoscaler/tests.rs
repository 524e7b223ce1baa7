use serde_json::{Value, json};

use super::law::{Reason, Tasks, Workers};
use super::*;

/// What a spec with up to 50 workers and these settings of `scaling` says on a Monday at noon.
fn policy(settings: Value) -> Policy {
    spec_policy(settings, None, false)
}

fn spec_policy(settings: Value, manual: Option<u16>, claimed: bool) -> Policy {
    policy_of(json!({}), settings, manual, claimed)
}

/// The same of a TaskQueue with these annotations.
fn policy_of(annotations: Value, settings: Value, manual: Option<u16>, claimed: bool) -> Policy {
    let mut scaling = json!({"maxReplicas": 50});
    scaling.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    let spec = json!({
        "broker": {"secretRef": {"name": "rabbitmq"}},
        "worker": {"image": "w"},
        "replicas": manual,
        "scaling": scaling,
    });
    let noon = "2026-11-23T12:00:00Z".parse().unwrap();
    let task_queue = json!({
        "apiVersion": "soloist.dev/v1alpha1",
        "kind": "TaskQueue",
        "metadata": {"name": "red", "annotations": annotations},
        "spec": spec,
    });
    Policy::new(&serde_json::from_value(task_queue).unwrap(), claimed, noon)
}

/// One worker for ten tasks.
fn tens() -> Policy {
    policy(json!({"tasksPerWorker": 10}))
}

fn observed(ready: u64, running: u32, asked_for: u16) -> Observation {
    Observation {
        backlog: Backlog::Fresh { ready },
        tasks: Tasks { running, ..Tasks::default() },
        workers: Workers { asked_for, consuming: asked_for, ..Workers::default() },
    }
}

/// The first decision.
fn decided(observation: &Observation, policy: &Policy) -> Decision {
    decide(observation, History::default(), policy, Instant::now()).0
}

/// Decisions second by second, each done at once.
fn replay(
    policy: &Policy,
    start: u16,
    seconds: u64,
    observe: impl Fn(u64, u16) -> Observation,
) -> Vec<Decision> {
    let origin = Instant::now();
    let mut history = History::default();
    let mut asked_for = start;
    let mut decisions = Vec::new();
    for second in 0..seconds {
        let now = origin + Duration::from_secs(second);
        let decision;
        (decision, history) = decide(&observe(second, asked_for), history, policy, now);
        asked_for = decision.ask_for.unwrap_or(asked_for);
        decisions.push(decision);
    }
    decisions
}

#[test]
fn thirty_seconds_are_kept_if_the_user_says_nothing() {
    assert_eq!(policy(json!({})).law.goal, Goal::MaxWaitSeconds(30.0));
    assert_eq!(policy(json!({"maxWaitSeconds": 5})).law.goal, Goal::MaxWaitSeconds(5.0));
    assert_eq!(tens().law.goal, Goal::TasksPerWorker(NonZeroU32::new(10).unwrap()));
}

#[test]
fn the_law_gets_what_the_spec_says() {
    let policy = policy(json!({
        "minReplicas": 2,
        "schedules": [{"cron": "0 11 * * MON", "durationSeconds": 7200, "maxReplicas": 80}],
        "scaleDown": {"stabilizationSeconds": 45},
        "fallback": {"afterSeconds": 60, "replicas": 8},
    }));
    let expected = law::Policy {
        min: 2,
        max: 80,
        goal: Goal::MaxWaitSeconds(30.0),
        stabilization: Some(Duration::from_secs(45)),
        fallback: Some(Fallback { after: Duration::from_secs(60), replicas: 8 }),
    };
    assert_eq!((policy.law, policy.problem), (expected, None));
}

#[test]
fn what_the_law_says_is_done() {
    let decision = decided(&observed(350, 20, 0), &tens());
    assert_eq!((decision.replicas, decision.ask_for), (37, Some(37)));
    assert_eq!(decision.reason, DecisionReason::Law(Reason::Backlog));
    assert_eq!(decision.sentence, "37: ceil((350 ready + 20 running) / 10)");
    assert_eq!((decision.terms.ready, decision.bounds), (Some(350), (0, 50)));
}

#[test]
fn tasks_that_run_are_no_floor() {
    let decisions = replay(&tens(), 12, 300, |_, asked_for| observed(0, 7, asked_for));
    assert_eq!(decisions.last().unwrap().replicas, 1);
}

#[test]
fn tasks_on_workers_that_leave_are_no_reason_for_more() {
    assert_eq!(decided(&observed(0, 7, 3), &tens()).replicas, 3);
}

#[test]
fn pause_holds_within_the_bounds() {
    let paused = policy(json!({"paused": true, "tasksPerWorker": 10}));
    let decision = decided(&observed(500, 0, 4), &paused);
    let reason = DecisionReason::Paused(Pause::Spec);
    assert_eq!((decision.replicas, decision.ask_for, decision.reason), (4, Some(4), reason));
    assert_eq!(
        decision.sentence,
        "4: held, spec.scaling.paused is set; otherwise 50: ceil((500 ready + 0 running) / 10)"
    );
    assert_eq!(decided(&observed(500, 0, 80), &paused).replicas, 50);
}

#[test]
fn an_annotation_pauses_where_the_spec_does_not() {
    let annotated = |value: &str, mode: &str| {
        let settings = json!({"mode": mode, "tasksPerWorker": 10});
        policy_of(json!({"soloist.dev/paused": value}), settings, None, false)
    };
    let decision = decided(&observed(500, 0, 4), &annotated("true", "Auto"));
    let reason = DecisionReason::Paused(Pause::Annotation);
    assert_eq!((decision.ask_for, decision.reason), (Some(4), reason));
    assert!(decision.sentence.starts_with("4: held, the annotation soloist.dev/paused is set;"));
    assert_eq!(decided(&observed(500, 0, 4), &annotated("", "Auto")).reason, reason);
    assert_eq!(decided(&observed(500, 0, 4), &annotated("false", "Auto")).ask_for, Some(50));
    // Nothing moves the number there anyway.
    assert_eq!(decided(&observed(500, 0, 4), &annotated("true", "Off")).reason, DecisionReason::Off);
}

#[test]
fn a_number_set_by_hand_wins_over_bounds_and_pause() {
    let manual = spec_policy(json!({"paused": true, "tasksPerWorker": 10}), Some(70), false);
    let decision = decided(&observed(350, 20, 4), &manual);
    assert_eq!((decision.ask_for, decision.reason), (Some(70), DecisionReason::Manual));
    assert_eq!(
        decision.sentence,
        "70 = spec.replicas, set by hand; otherwise 37: ceil((350 ready + 20 running) / 10)"
    );
}

#[test]
fn claimed_queue_runs_nothing() {
    let claimed = spec_policy(json!({"minReplicas": 2}), Some(3), true);
    let decision = decided(&observed(500, 0, 4), &claimed);
    assert_eq!((decision.ask_for, decision.reason), (Some(0), DecisionReason::QueueClaimed));
}

#[test]
fn a_recommendation_changes_nothing_and_follows_from_the_one_before() {
    let recommend = policy(json!({"mode": "Recommend", "tasksPerWorker": 10}));
    // Somebody else keeps 12 workers all the time.
    let decisions = replay(&recommend, 12, 300, |second, asked_for| {
        assert_eq!(asked_for, 12);
        observed(if second < 60 { 200 } else { 0 }, 0, asked_for)
    });
    assert!(decisions.iter().all(|decision| decision.ask_for.is_none()));
    assert!(decisions.iter().all(|decision| decision.reason == DecisionReason::Recommended));
    assert_eq!([59, 299].map(|second: usize| decisions[second].replicas), [20, 0]);
    let changes = decisions.windows(2).filter(|two| two[0].replicas != two[1].replicas).count();
    assert_eq!(changes, 1, "it comes down once and stays there");
    assert_eq!(
        decisions[0].sentence,
        "recommended, where 12 are asked for: 20: ceil((200 ready + 0 running) / 10)"
    );
}

#[test]
fn a_number_set_by_hand_is_done_while_another_is_recommended() {
    let manual = spec_policy(json!({"mode": "Recommend", "tasksPerWorker": 10}), Some(3), false);
    let decision = decided(&observed(200, 0, 12), &manual);
    assert_eq!((decision.replicas, decision.ask_for), (20, Some(3)));
}

#[test]
fn off_leaves_the_number_alone() {
    let off = policy(json!({"mode": "Off"}));
    let decision = decided(&observed(500, 0, 80), &off);
    assert_eq!((decision.replicas, decision.ask_for, decision.reason), (80, None, DecisionReason::Off));
    let manual = spec_policy(json!({"mode": "Off"}), Some(3), false);
    assert_eq!(decided(&observed(500, 0, 80), &manual).ask_for, Some(3));
}

#[test]
fn what_is_learned_while_a_number_is_set_by_hand_is_not_lost() {
    let fixed = spec_policy(json!({"tasksPerWorker": 10}), Some(30), false);
    let mut history = History::default();
    let mut now = Instant::now();
    for _ in 0..10 {
        now += Duration::from_secs(1);
        history = decide(&observed(300, 0, 30), history, &fixed, now).1;
    }
    // The number is given back as the backlog goes: the window still knows what was wanted.
    let (decision, _) = decide(&observed(0, 0, 30), history, &tens(), now + Duration::from_secs(1));
    assert_eq!((decision.replicas, decision.reason), (30, DecisionReason::Law(Reason::Stabilizing)));
}

#[test]
fn looks_more_often_while_something_happens() {
    let after = |observation: &Observation| decided(observation, &tens()).recheck_after;
    assert_eq!(after(&observed(0, 0, 0)), WHILE_IDLE);
    assert_eq!(after(&observed(1, 0, 1)), WHILE_ACTIVE);
    assert_eq!(after(&observed(0, 1, 1)), WHILE_ACTIVE);
    assert_eq!(after(&observed(0, 0, 3)), WHILE_ACTIVE, "workers are to go");
    assert_eq!(after(&Observation { backlog: Backlog::Unknown, ..observed(0, 0, 0) }), WHILE_ACTIVE);
}
