use std::time::Duration;

use super::*;

/// Feeds `seconds` of readings, one a second, of a queue that is served at once.
fn feed(arrivals: &mut Arrivals, start: Instant, seconds: u64, arrived: impl Fn(u64) -> u64) -> Instant {
    let mut finished = arrivals.previous.map_or(0, |(_, _, finished)| finished);
    for second in 1..=seconds {
        finished += arrived(second);
        let tasks = Tasks { finished, ..Tasks::default() };
        arrivals.observe(0, &tasks, start + Duration::from_secs(second));
    }
    start + Duration::from_secs(seconds)
}

fn started() -> (Arrivals, Instant) {
    let mut arrivals = Arrivals::default();
    let now = Instant::now();
    arrivals.observe(0, &Tasks::default(), now);
    (arrivals, now)
}

#[test]
fn learns_a_steady_rate_over_the_longest_window() {
    let (mut arrivals, now) = started();
    let now = feed(&mut arrivals, now, 1200, |_| 8);
    let rate = arrivals.rate(5.0, now);
    assert!((rate.rate - 8.0).abs() < 0.2, "{rate:?}");
    assert_eq!(rate.window_seconds, 320.0);
}

#[test]
fn a_step_up_is_followed_by_the_short_window() {
    let (mut arrivals, now) = started();
    let now = feed(&mut arrivals, now, 1200, |_| 2);
    let now = feed(&mut arrivals, now, 30, |_| 20);
    let rate = arrivals.rate(5.0, now);
    assert!(rate.rate > 15.0, "{rate:?}");
    assert_eq!(rate.window_seconds, 20.0);
}

#[test]
fn silence_after_a_burst_ends_the_rate() {
    let (mut arrivals, now) = started();
    let now = feed(&mut arrivals, now, 3, |_| 100);
    let now = feed(&mut arrivals, now, 60, |_| 0);
    assert!(arrivals.rate(5.0, now).rate <= 4.6 / 60.0);
}

#[test]
fn a_sparse_rate_survives_its_own_gaps() {
    let (mut arrivals, now) = started();
    let now = feed(&mut arrivals, now, 3600, |second| u64::from(second % 60 == 0));
    let rate = arrivals.rate(5.0, now + Duration::from_secs(60)).rate;
    assert!((0.010..0.025).contains(&rate), "{rate}");
}

#[test]
fn readings_of_different_instants_cancel_out() {
    // A task that is in neither count for a moment, as it passes from the queue to a worker, has not arrived twice.
    let (mut arrivals, now) = started();
    let at = |second| now + Duration::from_secs(second);
    for second in 1..=600 {
        let ready = if second % 2 == 0 { 10 } else { 8 };
        arrivals.observe(ready, &Tasks::default(), at(second));
    }
    assert!(arrivals.rate(5.0, at(600)).rate < 0.2);
}

#[test]
fn a_purge_does_not_hide_what_arrives_later() {
    let (mut arrivals, now) = started();
    let at = |second| now + Duration::from_secs(second);
    arrivals.observe(10_000, &Tasks::default(), at(1));
    arrivals.observe(0, &Tasks::default(), at(2));
    for second in 3..=200 {
        let tasks = Tasks { finished: 5 * second, ..Tasks::default() };
        arrivals.observe(0, &tasks, at(second));
    }
    assert!(arrivals.rate(5.0, at(200)).rate > 4.0);
}

#[test]
fn a_counter_that_starts_again_hides_no_arrivals() {
    let (mut arrivals, now) = started();
    let now = feed(&mut arrivals, now, 1200, |_| 8);
    arrivals.observe(0, &Tasks::default(), now + Duration::from_secs(1));
    let now = feed(&mut arrivals, now + Duration::from_secs(1), 60, |_| 8);
    assert!((7.0..9.0).contains(&arrivals.rate(5.0, now).rate));
}

#[test]
fn knows_how_long_messages_have_waited() {
    let (mut arrivals, now) = started();
    let at = |second| now + Duration::from_secs(second);
    arrivals.observe(30, &Tasks::default(), at(1));
    arrivals.observe(50, &Tasks::default(), at(2));
    arrivals.observe(50, &Tasks::default(), at(3));
    let waiting = |ready| arrivals.waiting(ready, at(3));
    let group = |waited_seconds, messages| Waiting { waited_seconds, messages };
    // The oldest thirty came in the first second, so they may have waited for three. All fifty must start in time for the others.
    assert_eq!(waiting(50), [group(3.0, 30), group(2.0, 50)]);
    assert_eq!(waiting(15), [group(2.0, 15)]);
    assert_eq!(waiting(0), []);
}

#[test]
fn the_curve_stays_bounded_while_nothing_is_served() {
    let (mut arrivals, now) = started();
    for second in 1..=5000 {
        arrivals.observe(second * 3, &Tasks::default(), now + Duration::from_secs(second));
    }
    assert!(arrivals.curve.len() <= CURVE_STEPS + 1);
    // What is older than the curve counts as being as old as its oldest step.
    let waiting = arrivals.waiting(15_000, now + Duration::from_secs(5000));
    let younger = 3 * (arrivals.curve.len() as u64 - 1);
    assert_eq!(waiting.first().map(|group| group.messages), Some(15_000 - younger));
    assert_eq!(waiting.last().map(|group| group.messages), Some(15_000));
}
