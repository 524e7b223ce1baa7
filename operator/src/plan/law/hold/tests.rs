use super::*;

const WINDOW: Duration = Duration::from_secs(20);

fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn remembers_the_greatest_number_of_the_window() {
    let (mut wanted, start) = (Wanted::default(), Instant::now());
    for (second, number) in [(0, 10), (1, 50), (2, 7), (3, 12)] {
        wanted.record(at(start, second), number, 50, WINDOW);
    }
    assert_eq!(wanted.greatest(at(start, 3), WINDOW), 50);
    assert_eq!(wanted.greatest(at(start, 22), WINDOW), 12);
}

#[test]
fn a_large_step_down_is_made_after_the_window_and_a_small_one_much_later() {
    let (mut wanted, start) = (Wanted::default(), Instant::now());
    wanted.record(start, 50, 50, WINDOW);
    for second in 1..=400 {
        let number = if second < 100 { 45 } else { 10 };
        wanted.record(at(start, second), number, 50, WINDOW);
        let lowered = wanted.lowered(at(start, second), WINDOW, 50, 0, 0.3);
        match second {
            ..120 => assert_eq!(lowered, 50, "at {second}"),
            _ => assert_eq!(lowered, 10, "at {second}"),
        }
    }
    let mut small = Wanted::default();
    for second in 0..=400 {
        small.record(at(start, second), if second == 0 { 50 } else { 45 }, 50, WINDOW);
        let lowered = small.lowered(at(start, second), WINDOW, 50, 0, 0.3);
        assert_eq!(lowered, if second <= 240 { 50 } else { 45 }, "at {second}");
    }
}

#[test]
fn the_minimum_is_reached_by_any_step() {
    let (mut wanted, start) = (Wanted::default(), Instant::now());
    wanted.record(start, 0, 10, WINDOW);
    assert_eq!(wanted.lowered(start, WINDOW, 10, 9, 0.3), 9);
}

#[test]
fn a_small_step_up_is_noise_until_it_lasts() {
    let (mut wanted, start) = (Wanted::default(), Instant::now());
    for second in 0..=200 {
        wanted.record(at(start, second), 33, 30, WINDOW);
        assert_eq!(wanted.is_noise(30, 33, 0.3, at(start, second)), second < 60, "at {second}");
    }
    wanted.record(at(start, 201), 30, 30, WINDOW);
    wanted.record(at(start, 202), 33, 30, WINDOW);
    assert!(wanted.is_noise(30, 33, 0.3, at(start, 202)));
    assert!(!wanted.is_noise(30, 39, 0.3, at(start, 202)));
    assert!(!wanted.is_noise(0, 1, 0.3, at(start, 202)));
}

#[test]
fn lowers_once_in_a_window() {
    let (mut wanted, start) = (Wanted::default(), Instant::now());
    assert!(wanted.may_lower(start, WINDOW));
    wanted.changed(start);
    assert!(!wanted.may_lower(at(start, 19), WINDOW));
    assert!(wanted.may_lower(at(start, 20), WINDOW));
}

#[test]
fn the_window_follows_start_up_and_service_times() {
    let window = |startup_seconds, service_seconds| {
        window(&Terms { startup_seconds, service_seconds, ..Terms::default() }).as_secs()
    };
    assert_eq!([window(5.0, 1.0), window(5.0, 30.0), window(5.0, 3600.0)], [20, 60, 120]);
}
