use super::*;
use proptest::prelude::*;

const TIMEOUT: Duration = Duration::from_secs(300);

fn pod(name: &str, state: State, activity: Activity) -> Pod {
    Pod {
        name: name.to_owned(),
        replica_set: "new".to_owned(),
        state,
        draining_for: state.is_leaving().then_some(Duration::ZERO),
        stage: Stage::Running,
        activity,
        confirmed: false,
        refused: false,
    }
}

fn idle(seconds: u64) -> Activity {
    Activity::Idle { since: ORIGIN.with(|origin| *origin) + Duration::from_secs(1000 - seconds) }
}

fn busy(seconds: u64) -> Activity {
    Activity::Busy { since: ORIGIN.with(|origin| *origin) + Duration::from_secs(1000 - seconds) }
}

thread_local! {
    static ORIGIN: Instant = Instant::now();
}

fn sets(replicas: &[(&str, u16)]) -> Vec<ReplicaSet> {
    replicas
        .iter()
        .map(|(uid, replicas)| ReplicaSet { uid: (*uid).to_owned(), replicas: *replicas })
        .collect()
}

/// One ReplicaSet that follows its Deployment.
fn situation<'a>(pods: &'a [Pod], replica_sets: &'a [ReplicaSet], wanted: u16) -> Situation<'a> {
    Situation {
        pods,
        replica_sets,
        replicas: replica_sets.last().unwrap().replicas,
        wanted: Some(wanted),
        can_tell: true,
        drain_timeout: TIMEOUT,
        force: false,
    }
}

fn steps(situation: &Situation<'_>) -> Vec<(String, Step)> {
    plan(situation).steps.into_iter().collect()
}

fn step(name: &str, step: Step) -> (String, Step) {
    (name.to_owned(), step)
}

#[test]
fn the_longest_idle_leave_first_then_the_longest_busy_and_the_silent_last() {
    let pods = [
        pod("busy-long", State::Serving, busy(50)),
        pod("busy-short", State::Serving, busy(5)),
        pod("idle-long", State::Serving, idle(50)),
        pod("idle-short", State::Serving, idle(5)),
        pod("silent", State::Serving, Activity::Silent),
        Pod { stage: Stage::Starting, ..pod("starting", State::Serving, Activity::Silent) },
    ];
    let sets = sets(&[("new", 6)]);
    let leaving = |wanted| steps(&situation(&pods, &sets, wanted)).into_iter().map(|(name, _)| name);
    let order: Vec<Vec<String>> = (0..6).rev().map(|wanted| leaving(wanted).collect()).collect();
    assert_eq!(order[0], ["starting"]);
    assert_eq!(order[1], ["idle-long", "starting"]);
    assert_eq!(order[2], ["idle-long", "idle-short", "starting"]);
    assert_eq!(order[3], ["busy-long", "idle-long", "idle-short", "starting"]);
    assert_eq!(order[4].len(), 5);
    assert!(!order[4].contains(&"silent".to_owned()));
}

#[test]
fn a_worker_is_marked_when_it_has_said_that_it_is_drained() {
    let sets = sets(&[("new", 1)]);
    let draining = [pod("a", State::Draining, busy(9))];
    assert_eq!(steps(&situation(&draining, &sets, 0)), []);
    assert_eq!(replicas(&situation(&draining, &sets, 0)), 1);
    let said = [Pod { confirmed: true, ..draining[0].clone() }];
    assert_eq!(steps(&situation(&said, &sets, 0)), [step("a", Step::Mark)]);
    assert_eq!(replicas(&situation(&said, &sets, 0)), 1, "not before it is marked");
    let marked = [pod("a", State::Drained, idle(0))];
    assert_eq!(steps(&situation(&marked, &sets, 0)), []);
    assert_eq!(replicas(&situation(&marked, &sets, 0)), 0);
}

#[test]
fn a_pod_that_cannot_run_is_marked_and_one_that_no_node_has_needs_no_mark() {
    let stuck = Pod { stage: Stage::Stuck, ..pod("stuck", State::Serving, Activity::Silent) };
    let unscheduled =
        Pod { stage: Stage::Unscheduled, ..pod("unscheduled", State::Serving, Activity::Silent) };
    let pods = [stuck, unscheduled];
    let sets = sets(&[("new", 2)]);
    assert_eq!(steps(&situation(&pods, &sets, 1)), []);
    assert_eq!(replicas(&situation(&pods, &sets, 1)), 1);
    assert_eq!(steps(&situation(&pods, &sets, 0)), [step("stuck", Step::Mark)]);
}

#[test]
fn a_pod_that_was_marked_because_it_could_not_run_is_drained_once_it_can() {
    let sets = sets(&[("new", 1)]);
    let marked = Pod { draining_for: None, ..pod("a", State::Drained, Activity::Silent) };
    for (stage, expected) in
        [(Stage::Stuck, None), (Stage::Starting, Some(Step::Drain)), (Stage::Running, Some(Step::Drain))]
    {
        let pods = [Pod { stage, ..marked.clone() }];
        assert_eq!(plan(&situation(&pods, &sets, 0)).steps.get("a").copied(), expected);
    }
}

#[test]
fn another_worker_leaves_where_the_label_of_one_is_refused() {
    let refused = Pod { refused: true, ..pod("a", State::Serving, idle(50)) };
    let pods = [refused, pod("b", State::Serving, idle(5)), pod("c", State::Serving, busy(5))];
    let sets = sets(&[("new", 3)]);
    assert_eq!(steps(&situation(&pods, &sets, 2)), [step("b", Step::Drain)]);
    assert_eq!(steps(&situation(&pods, &sets, 0)), [step("b", Step::Drain), step("c", Step::Drain)]);
    assert_eq!(replicas(&situation(&pods, &sets, 2)), 3, "none of them may go yet");
}

#[test]
fn load_that_returns_brings_the_farthest_from_leaving_back() {
    let pods = [
        pod("drained", State::Drained, idle(5)),
        Pod { confirmed: true, ..pod("said", State::Draining, idle(5)) },
        pod("draining", State::Draining, busy(5)),
    ];
    let sets = sets(&[("new", 3)]);
    assert_eq!(
        steps(&situation(&pods, &sets, 1)),
        [step("draining", Step::Resume), step("said", Step::Mark)]
    );
    let all = [step("drained", Step::Resume), step("draining", Step::Resume), step("said", Step::Resume)];
    assert_eq!(steps(&situation(&pods, &sets, 3)), all);
    assert_eq!(replicas(&situation(&pods, &sets, 5)), 5);
}

#[test]
fn a_worker_serves_again_once_it_has_said_so() {
    let sets = sets(&[("new", 1)]);
    let resuming = pod("a", State::Resuming, idle(1));
    assert_eq!(steps(&situation(std::slice::from_ref(&resuming), &sets, 1)), []);
    let said = Pod { confirmed: true, ..resuming };
    assert_eq!(steps(&situation(std::slice::from_ref(&said), &sets, 1)), [step("a", Step::Serve)]);
    assert_eq!(steps(&situation(&[said], &sets, 0)), [step("a", Step::Drain)]);
}

#[test]
fn nothing_begins_while_the_broker_is_away() {
    let pods = [pod("a", State::Serving, idle(9)), pod("b", State::Draining, busy(9))];
    let sets = sets(&[("new", 2)]);
    let away = Situation { can_tell: false, ..situation(&pods, &sets, 0) };
    assert_eq!(steps(&away), []);
    assert_eq!(replicas(&away), 2);
}

#[test]
fn a_drained_worker_that_works_again_is_protected_again() {
    let pods = [pod("a", State::Drained, busy(1))];
    let sets = sets(&[("new", 1)]);
    assert_eq!(steps(&situation(&pods, &sets, 0)), [step("a", Step::Drain)]);
}

#[test]
fn what_hangs_is_overdue_and_given_up_only_if_the_user_said_so() {
    let hung = Pod { draining_for: Some(TIMEOUT * 2), ..pod("a", State::Draining, busy(900)) };
    let pods = [hung];
    let sets = sets(&[("new", 1)]);
    let waits = plan(&situation(&pods, &sets, 0));
    assert_eq!((waits.steps.len(), waits.overdue), (0, vec!["a".to_owned()]));
    let forced = plan(&Situation { force: true, ..situation(&pods, &sets, 0) });
    assert_eq!((forced.steps["a"], forced.overdue), (Step::Force, vec!["a".to_owned()]));
}

#[test]
fn a_rollout_drains_the_old_pods_and_holds_the_number_meanwhile() {
    let old = |name: &str| Pod { replica_set: "old".to_owned(), ..pod(name, State::Serving, busy(9)) };
    let pods = [old("a"), old("b"), pod("c", State::Serving, idle(9)), pod("d", State::Serving, idle(1))];
    let sets_midway = sets(&[("old", 1), ("new", 2)]);
    let midway = Situation { replicas: 3, ..situation(&pods, &sets_midway, 1) };
    assert_eq!(steps(&midway), [step("a", Step::Drain)], "the surplus of the old ReplicaSet, no more");
    assert_eq!(replicas(&midway), 3);
    // The tail: the old ReplicaSet keeps nothing, its busy pods hold nobody up.
    let sets_at_last = sets(&[("old", 0), ("new", 2)]);
    let tail = situation(&pods, &sets_at_last, 1);
    let expected = [step("a", Step::Drain), step("b", Step::Drain), step("c", Step::Drain)];
    assert_eq!(steps(&tail), expected);
}

#[test]
fn a_rollout_that_gets_nowhere_does_not_keep_the_last_workers() {
    let old = |state| Pod { replica_set: "old".to_owned(), ..pod("a", state, busy(9)) };
    let stuck = |state| Pod { stage: Stage::Stuck, ..pod("b", state, Activity::Silent) };
    let sets = sets(&[("old", 1), ("new", 1)]);
    let midway = |old, stuck| {
        let pods = [old, stuck];
        let situation = Situation { replicas: 1, ..situation(&pods, &sets, 0) };
        (steps(&situation), replicas(&situation))
    };
    let begins = midway(old(State::Serving), stuck(State::Serving));
    assert_eq!(begins, (vec![step("a", Step::Drain), step("b", Step::Mark)], 1));
    assert_eq!(midway(old(State::Draining), stuck(State::Drained)), (vec![], 1), "it still has a task");
    let drained = Pod { activity: idle(1), ..old(State::Drained) };
    assert_eq!(midway(drained.clone(), stuck(State::Serving)), (vec![step("b", Step::Mark)], 1));
    assert_eq!(midway(drained, stuck(State::Drained)), (vec![], 0));
}

#[test]
fn what_somebody_else_scales_in_is_drained_too() {
    let pods = [pod("a", State::Serving, busy(9)), pod("b", State::Serving, idle(9))];
    let sets = sets(&[("new", 1)]);
    let by_hand = Situation { wanted: None, replicas: 1, ..situation(&pods, &sets, 0) };
    assert_eq!(steps(&by_hand), [step("b", Step::Drain)]);
    assert_eq!(replicas(&by_hand), 1);
}

#[test]
fn a_deployment_scaled_in_ahead_of_its_replica_set_keeps_the_marks() {
    let pods = [pod("a", State::Drained, idle(9)), pod("b", State::Serving, idle(9))];
    let sets = sets(&[("new", 2)]);
    let just_patched = Situation { replicas: 1, ..situation(&pods, &sets, 1) };
    assert_eq!(steps(&just_patched), []);
}

#[test]
fn leaving_workers_do_not_count() {
    let pods = [
        pod("a", State::Draining, busy(9)),
        pod("b", State::Drained, idle(9)),
        pod("c", State::Serving, busy(9)),
    ];
    let by_decision = sets(&[("new", 3)]);
    assert_eq!(counting(&situation(&pods, &by_decision, 1)), 1);
    let already_shrunk = sets(&[("new", 2)]);
    assert_eq!(counting(&situation(&pods, &already_shrunk, 1)), 1);
}

#[test]
fn labels_are_read_as_they_are_written() {
    for state in [State::Serving, State::Draining, State::Drained, State::Resuming] {
        assert_eq!(State::from_label(state.label()), state);
    }
    assert_eq!(State::from_label(Some("asleep")), State::Serving);
}

fn any_state() -> impl Strategy<Value = State> {
    prop_oneof![
        4 => Just(State::Serving),
        2 => Just(State::Draining),
        2 => Just(State::Drained),
        1 => Just(State::Resuming),
    ]
}

fn any_stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        6 => Just(Stage::Running),
        1 => Just(Stage::Starting),
        1 => Just(Stage::Stuck),
        1 => Just(Stage::Unscheduled),
    ]
}

fn any_activity() -> impl Strategy<Value = Activity> {
    prop_oneof![(0..1000_u64).prop_map(idle), (0..1000_u64).prop_map(busy), Just(Activity::Silent),]
}

prop_compose! {
    fn any_pod()(
        replica_set in prop_oneof![3 => Just("new"), 1 => Just("old")],
        state in any_state(),
        stage in any_stage(),
        activity in any_activity(),
        confirmed: bool,
        draining in proptest::option::of(0..600_u64),
    ) -> Pod {
        Pod {
            name: String::new(),
            replica_set: replica_set.to_owned(),
            state,
            draining_for: draining.map(Duration::from_secs),
            stage,
            activity,
            confirmed,
            refused: false,
        }
    }
}

prop_compose! {
    fn any_world()(
        mut pods in proptest::collection::vec(any_pod(), 0..12),
        old in prop_oneof![2 => Just(0), 1 => 0..4_u16],
        new in 0..12_u16,
        replicas in 0..12_u16,
        wanted in proptest::option::of(0..12_u16),
        can_tell in proptest::bool::weighted(0.8),
        force: bool,
    ) -> World {
        for (number, pod) in pods.iter_mut().enumerate() {
            pod.name = format!("pod-{number}");
        }
        World { pods, sets: sets(&[("old", old), ("new", new)]), replicas, wanted, can_tell, force }
    }
}

#[derive(Clone, Debug)]
struct World {
    pods: Vec<Pod>,
    sets: Vec<ReplicaSet>,
    replicas: u16,
    wanted: Option<u16>,
    can_tell: bool,
    force: bool,
}

impl World {
    fn situation(&self) -> Situation<'_> {
        Situation {
            pods: &self.pods,
            replica_sets: &self.sets,
            replicas: self.replicas,
            wanted: self.wanted,
            can_tell: self.can_tell,
            drain_timeout: TIMEOUT,
            force: self.force,
        }
    }

    fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.name == name).unwrap()
    }

    fn apply(&mut self, plan: &Plan) {
        for pod in &mut self.pods {
            if let Some(step) = plan.steps.get(&pod.name) {
                // What can't run is marked without being told.
                let was_told = *step == Step::Drain || pod.state == State::Draining;
                pod.draining_for = was_told.then_some(Duration::ZERO);
                pod.state = step.state();
                pod.confirmed = false;
            }
        }
    }

    /// What time brings: workers start, finish and answer; the ReplicaSet controller deletes what the fence lets it, the last in the list
    /// first, which is an order as bad as any.
    fn live(&mut self) {
        let asked_for = self.replicas;
        for set in self.sets.iter_mut() {
            // The rollout is over.
            set.replicas = if set.uid == "new" { asked_for } else { 0 };
        }
        for pod in &mut self.pods {
            pod.activity = idle(1);
            if pod.stage == Stage::Starting {
                pod.stage = Stage::Running;
            }
            pod.confirmed =
                pod.stage == Stage::Running && matches!(pod.state, State::Draining | State::Resuming);
        }
        for set in self.sets.clone() {
            let mut surplus = of(&set, &self.pods).count().saturating_sub(set.replicas.into());
            for index in (0..self.pods.len()).rev() {
                let pod = &self.pods[index];
                let may_go = pod.state == State::Drained || pod.stage == Stage::Unscheduled;
                if surplus > 0 && pod.replica_set == set.uid && may_go {
                    self.pods.remove(index);
                    surplus -= 1;
                }
            }
        }
        let missing = usize::from(asked_for).saturating_sub(of(&self.sets[1], &self.pods).count());
        for _ in 0..missing {
            let name = format!("pod-{}", 100 + fastrand::u32(..));
            self.pods.push(pod(&name, State::Serving, idle(1)));
        }
    }
}

proptest! {
    #[test]
    fn no_more_leave_than_there_are_too_many_of(world in any_world()) {
        let mut after = world.clone();
        after.apply(&plan(&world.situation()));
        for set in &world.sets {
            let pods: Vec<&Pod> = of(set, &world.pods).collect();
            let surplus = surplus(&world.situation(), set, &pods);
            prop_assert!(of(set, &after.pods).filter(|pod| pod.state.is_leaving()).count() <= surplus);
        }
    }

    #[test]
    fn nothing_is_marked_that_has_not_said_so(world in any_world()) {
        for (name, step) in plan(&world.situation()).steps {
            let pod = world.pod(&name);
            match step {
                Step::Mark => prop_assert!(
                    pod.stage == Stage::Stuck || (pod.state == State::Draining && pod.confirmed)
                ),
                Step::Force => prop_assert!(world.force && pod.draining_for > Some(TIMEOUT)),
                Step::Drain => prop_assert!(world.can_tell || pod.state == State::Drained),
                Step::Resume => prop_assert!(pod.state.is_leaving()),
                Step::Serve => prop_assert!(pod.state == State::Resuming && pod.confirmed),
            }
        }
    }

    /// Whatever pods Kubernetes would choose, there are enough that the fence lets go.
    #[test]
    fn the_number_is_lowered_only_by_pods_that_may_go(world in any_world()) {
        let replicas = replicas(&world.situation());
        if replicas < world.replicas {
            let current = current(&world.sets).map(|set| set.uid.clone());
            let staying = world.pods.iter().filter(|pod| {
                Some(&pod.replica_set) == current.as_ref()
                    && pod.state != State::Drained
                    && pod.stage != Stage::Unscheduled
            });
            prop_assert!(usize::from(replicas) >= staying.count());
            prop_assert!(Some(replicas) >= world.wanted);
        }
    }

    /// Whether a rollout is over or gets nowhere: all leave in the end, and none before it may.
    #[test]
    fn where_none_is_wanted_all_leave_whatever_the_rollout_does(mut world in any_world(), old in 0..4_u16) {
        (world.wanted, world.can_tell) = (Some(0), true);
        (world.sets[0].replicas, world.sets[1].replicas) = (old, world.sets[1].replicas.max(1));
        // What no node has was never told anything.
        world.pods.iter_mut().filter(|pod| pod.stage == Stage::Unscheduled).for_each(|pod| pod.state = State::Serving);
        for _ in 0..6 {
            let plan = plan(&world.situation());
            world.apply(&plan);
            let stays = |pod: &Pod| pod.state != State::Drained && pod.stage != Stage::Unscheduled;
            let asked_for = replicas(&world.situation());
            let of_current = world.pods.iter().filter(|pod| old > 0 || pod.replica_set == "new");
            if of_current.filter(|pod| stays(pod)).count() > 0 && world.replicas > 0 {
                prop_assert!(asked_for > 0);
            }
            for pod in &mut world.pods {
                pod.activity = idle(1);
                pod.confirmed = pod.state == State::Draining;
            }
        }
        prop_assert_eq!(replicas(&world.situation()), 0);
        prop_assert_eq!(&plan(&world.situation()), &Plan::default());
    }

    #[test]
    fn in_the_end_there_are_as_many_as_wanted_and_all_of_them_serve(mut world in any_world()) {
        world.can_tell = true;
        for _ in 0..12 {
            let plan = plan(&world.situation());
            world.apply(&plan);
            world.replicas = replicas(&world.situation());
            world.live();
        }
        prop_assert_eq!(&plan(&world.situation()), &Plan::default());
        if let Some(wanted) = world.wanted {
            prop_assert_eq!(world.replicas, wanted);
            prop_assert_eq!(counting(&world.situation()), wanted);
        }
        prop_assert_eq!(world.pods.len(), usize::from(world.replicas));
        // One that can't run can't say that it consumes again.
        let serves = |pod: &Pod| {
            pod.state == State::Serving || (pod.state == State::Resuming && pod.stage != Stage::Running)
        };
        prop_assert!(world.pods.iter().all(serves));
    }
}
