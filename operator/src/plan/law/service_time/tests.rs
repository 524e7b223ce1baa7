use super::*;

/// Keeps `running` workers busy for `seconds`, each finishing a task every `service` seconds.
fn work(time: &mut ServiceTime, start: Instant, seconds: u64, running: u32, service: f64) -> Instant {
    let before = time.previous.map_or(0, |(_, tasks)| tasks.finished);
    for second in 0..=seconds {
        let finished = before + (second as f64 * f64::from(running) / service) as u64;
        let tasks = Tasks { running, finished, ..Tasks::default() };
        time.observe(&tasks, start + Duration::from_secs(second));
    }
    start + Duration::from_secs(seconds)
}

#[test]
fn assumes_a_usual_time_at_first() {
    assert_eq!(ServiceTime::default().seconds(Duration::ZERO), PRIOR_SECONDS);
}

#[test]
fn learns_from_busy_time_and_finished_tasks() {
    let mut time = ServiceTime::default();
    work(&mut time, Instant::now(), 300, 20, 2.0);
    let learned = time.seconds(Duration::from_secs(2));
    assert!((learned - 2.0).abs() < 0.1, "{learned}");
}

#[test]
fn forgets_what_tasks_took_before() {
    let mut time = ServiceTime::default();
    let now = work(&mut time, Instant::now(), 600, 20, 2.0);
    work(&mut time, now, 3000, 20, 20.0);
    let learned = time.seconds(Duration::from_secs(20));
    assert!((learned - 20.0).abs() < 1.0, "{learned}");
}

#[test]
fn a_gap_in_the_observation_changes_nothing() {
    let mut time = ServiceTime::default();
    let now = work(&mut time, Instant::now(), 300, 20, 2.0);
    // Ten minutes later, twenty tasks still run, and six thousand were finished in the meantime.
    let tasks = Tasks { running: 20, finished: 9000, ..Tasks::default() };
    time.observe(&tasks, now + Duration::from_secs(600));
    let learned = time.seconds(Duration::from_secs(2));
    assert!((learned - 2.0).abs() < 0.05, "{learned}");
}

#[test]
fn long_tasks_show_before_the_first_is_done() {
    let mut time = ServiceTime::default();
    let now = Instant::now();
    for second in 0..=60 {
        let tasks = Tasks { running: 10, ..Tasks::default() };
        time.observe(&tasks, now + Duration::from_secs(second));
    }
    // Ten tasks started at once and run for a minute: the estimate grows with them, not with their number.
    let learned = time.seconds(Duration::from_secs(60));
    assert!((60.0..=120.0).contains(&learned), "{learned}");
}

#[test]
fn one_hanging_task_raises_the_estimate_no_further_than_its_own_time() {
    let mut time = ServiceTime::default();
    let now = work(&mut time, Instant::now(), 300, 20, 2.0);
    let tasks = Tasks { running: 1, finished: 3000, ..Tasks::default() };
    time.observe(&tasks, now + Duration::from_secs(86_400));
    assert!(time.seconds(Duration::from_secs(86_400)) <= 2.0 * 86_400.0);
    assert!(time.seconds(Duration::from_secs(1)) <= 2.1);
}

#[test]
fn a_counter_that_starts_again_is_no_harm() {
    let mut time = ServiceTime::default();
    let now = work(&mut time, Instant::now(), 300, 20, 2.0);
    time.observe(&Tasks { running: 20, finished: 0, ..Tasks::default() }, now + Duration::from_secs(1));
    let learned = time.seconds(Duration::from_secs(2));
    assert!((learned - 2.0).abs() < 0.1, "{learned}");
}
