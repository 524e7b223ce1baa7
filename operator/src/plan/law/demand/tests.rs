use std::time::Duration;

use super::*;

fn standard(late: f64, wait_seconds: f64) -> Standard {
    Standard { late, wait_seconds, needed_within_seconds: 1e9 }
}

#[test]
fn follows_erlangs_delay_formula() {
    // With 20 Erlangs, 28 servers delay 6.28 % of the arrivals and 29 delay 4.01 %; with 1 Erlang, 4 delay 2.04 %.
    assert_eq!(for_load(10.0, 2.0, standard(0.05, 0.0), 1000), 29);
    assert_eq!(for_load(10.0, 2.0, standard(0.063, 0.0), 1000), 28);
    assert_eq!(for_load(1.0, 1.0, standard(0.021, 0.0), 1000), 4);
}

#[test]
fn tasks_that_may_wait_need_fewer_workers_but_always_more_than_the_load() {
    let workers = |wait| for_load(10.0, 2.0, standard(0.05, wait), 1000);
    assert_eq!([workers(0.0), workers(1.0), workers(10.0), workers(1000.0)], [29, 24, 21, 21]);
}

#[test]
fn a_worker_that_is_hardly_ever_needed_is_not_kept() {
    let workers = |every: f64| {
        let standard = Standard { late: 0.05, wait_seconds: 0.0, needed_within_seconds: 300.0 };
        for_load(1.0 / every, 1.0, standard, 1000)
    };
    assert_eq!([workers(10.0), workers(200.0), workers(400.0)], [2, 1, 0]);
}

#[test]
fn no_load_needs_no_workers() {
    assert_eq!(for_load(0.0, 2.0, standard(0.05, 0.0), 1000), 0);
}

#[test]
fn gives_up_at_the_limit() {
    assert_eq!(for_load(1e6, 100.0, standard(0.05, 0.0), 50), 50);
    assert_eq!(for_load(24.0, 2.0, standard(0.0, 0.0), 50), 50);
}

const WAIT_30: Backpressure = Backpressure { wait_seconds: 30.0, answer_seconds: 6.0 };

fn workers(consuming: u16, starting: &[u64]) -> Capacity {
    let starting = starting.iter().copied().map(Duration::from_secs).collect();
    Capacity::new(&Workers { consuming, starting, ..Workers::default() }, 2.0, 5.0)
}

fn waiting(messages: u64) -> Vec<Waiting> {
    vec![Waiting { waited_seconds: 0.0, messages }]
}

#[test]
fn a_burst_gets_the_workers_that_start_it_all_in_time() {
    // Each worker has 24 seconds when it has started, and starts 13 tasks in them.
    assert_eq!(WAIT_30.workers(&waiting(500), &workers(0, &[])), 39);
}

#[test]
fn asks_for_no_more_while_the_workers_of_the_answer_start() {
    for age in 0..5 {
        let waiting = [Waiting { waited_seconds: age as f64, messages: 500 }];
        let needed = WAIT_30.workers(&waiting, &workers(0, &[age; 39]));
        assert!(needed <= 39, "{needed} after {age} s");
    }
}

#[test]
fn never_asks_for_more_workers_than_messages() {
    let long = Capacity::new(&Workers::default(), 600.0, 5.0);
    assert_eq!(WAIT_30.workers(&waiting(7), &long), 7);
    assert_eq!(Backpressure { wait_seconds: 0.0, ..WAIT_30 }.workers(&waiting(7), &long), 7);
}

#[test]
fn workers_that_suffice_are_kept_only_as_far_as_needed() {
    assert_eq!(WAIT_30.workers(&waiting(150), &workers(50, &[])), 10);
}

#[test]
fn nothing_is_taken_away_while_a_message_is_late() {
    let late = [Waiting { waited_seconds: 31.0, messages: 150 }];
    assert_eq!(WAIT_30.workers(&late, &workers(50, &[])), 50);
}

#[test]
fn workers_that_do_not_get_on_are_not_counted_on() {
    let overdue = [Waiting { waited_seconds: 60.0, messages: 4 }];
    assert_eq!(WAIT_30.workers(&overdue, &workers(50, &[])), 51);
}

#[test]
fn each_age_of_messages_has_its_own_deadline() {
    let old = Waiting { waited_seconds: 20.0, messages: 300 };
    let young = Waiting { waited_seconds: 0.0, messages: 100 };
    let alone = WAIT_30.workers(&[Waiting { waited_seconds: 0.0, messages: 300 }], &workers(0, &[]));
    assert!(WAIT_30.workers(&[old, young], &workers(0, &[])) > alone);
}
