use super::*;

#[test]
fn assumes_a_usual_time_at_first() {
    assert_eq!(StartUp::default().seconds(), PRIOR_SECONDS);
}

#[test]
fn the_quickest_of_many_do_not_make_the_estimate_shorter() {
    let mut startup = StartUp::default();
    startup.observe([1.0, 1.5].into_iter(), false);
    assert_eq!(startup.seconds(), PRIOR_SECONDS);
    startup.observe([6.0].into_iter(), true);
    assert_eq!(startup.seconds(), 6.0);
}

#[test]
fn is_the_95th_percentile_of_the_last_ones() {
    let mut startup = StartUp::default();
    startup.observe(std::iter::repeat_n(100.0, 10), true);
    startup.observe((1..=MEMORY).map(|n| n as f64), true);
    assert_eq!(startup.seconds(), 61.0);
}

#[test]
fn slower_starts_count_at_once() {
    let mut startup = StartUp::default();
    startup.observe(std::iter::repeat_n(2.0, 20), true);
    startup.observe(std::iter::repeat_n(30.0, 5), false);
    assert_eq!(startup.seconds(), 30.0);
}
