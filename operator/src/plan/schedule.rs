//! Bounds that hold at certain times: which of a TaskQueue's schedules are in force now.

use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::api::v1alpha1::{ScalingSpec, ScheduleSpec};

/// Fewest and most workers at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest workers.
    pub min: u16,
    /// Most workers.
    pub max: u16,
    /// The first schedule that can't be read, and why. It is left out.
    pub problem: Option<String>,
}

impl Bounds {
    /// The bounds at a time: those of the last schedule that is in force, and of the spec where no schedule says otherwise.
    pub fn at(now: Timestamp, scaling: &ScalingSpec) -> Self {
        let mut bounds = Self { min: scaling.min_replicas, max: scaling.max_replicas, problem: None };
        for (index, schedule) in scaling.schedules.iter().enumerate() {
            match is_in_force(schedule, now) {
                Ok(true) => {
                    bounds.min = schedule.min_replicas.unwrap_or(bounds.min);
                    bounds.max = schedule.max_replicas.unwrap_or(bounds.max);
                }
                Ok(false) => {}
                Err(why) => {
                    let problem = || format!("spec.scaling.schedules[{index}] is left out: {why}");
                    bounds.problem = bounds.problem.or_else(|| Some(problem()));
                }
            }
        }
        bounds
    }
}

/// Whether a schedule has begun and has not ended yet.
fn is_in_force(schedule: &ScheduleSpec, now: Timestamp) -> Result<bool, String> {
    let ScheduleSpec { cron, time_zone, duration_seconds, .. } = schedule;
    let zone = TimeZone::get(time_zone).map_err(|_| format!("there is no time zone `{time_zone}`"))?;
    let minutes = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    let pattern = minutes.parse(cron).map_err(|error| format!("cron `{cron}`: {error}"))?;
    let now = now.to_zoned(zone);
    // Not to be found means that it never was.
    let Ok(began) = pattern.find_previous_occurrence(&now, true) else { return Ok(false) };
    Ok(now.duration_since(&began).as_secs() < i64::from(*duration_seconds))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Bounds at a time, of a TaskQueue with 1 to 50 workers and these schedules.
    fn bounds(now: &str, schedules: Value) -> (u16, u16) {
        let bounds = at(now, schedules);
        assert_eq!(bounds.problem, None);
        (bounds.min, bounds.max)
    }

    fn at(now: &str, schedules: Value) -> Bounds {
        let scaling = json!({"minReplicas": 1, "maxReplicas": 50, "schedules": schedules});
        Bounds::at(now.parse().unwrap(), &serde_json::from_value(scaling).unwrap())
    }

    #[test]
    fn hold_from_the_minute_on_for_as_long_as_they_last() {
        let hour = || json!([{"cron": "30 7 * * *", "durationSeconds": 3600, "minReplicas": 5}]);
        for (now, expected) in [
            ("2026-11-23T07:29:59Z", (1, 50)),
            ("2026-11-23T07:30:00Z", (5, 50)),
            ("2026-11-23T08:29:59Z", (5, 50)),
            ("2026-11-23T08:30:00Z", (1, 50)),
        ] {
            assert_eq!(bounds(now, hour()), expected, "{now}");
        }
    }

    #[test]
    fn begin_in_their_time_zone_in_summer_and_in_winter() {
        let berlin = |now| {
            bounds(
                now,
                json!([{"cron": "0 8 * * *", "timeZone": "Europe/Berlin", "durationSeconds": 60, "minReplicas": 5}]),
            )
        };
        assert_eq!([berlin("2026-07-01T06:00:00Z"), berlin("2026-07-01T07:00:00Z")], [(5, 50), (1, 50)]);
        assert_eq!([berlin("2026-12-01T06:00:00Z"), berlin("2026-12-01T07:00:00Z")], [(1, 50), (5, 50)]);
    }

    #[test]
    fn last_their_time_also_when_the_clock_is_put_back() {
        // At 3:00 on 25 October 2026 it was 2:00 again in Berlin.
        let night = |now| {
            bounds(
                now,
                json!([{"cron": "0 1 * * *", "timeZone": "Europe/Berlin", "durationSeconds": 10800, "maxReplicas": 5}]),
            )
        };
        assert_eq!(night("2026-10-24T22:59:59Z"), (1, 50));
        assert_eq!(night("2026-10-24T23:00:00Z"), (1, 5));
        assert_eq!(night("2026-10-25T01:59:59Z"), (1, 5));
        assert_eq!(night("2026-10-25T02:00:00Z"), (1, 50));
    }

    #[test]
    fn may_last_longer_than_until_they_begin_again() {
        let always = json!([{"cron": "0 0 * * MON-FRI", "durationSeconds": 259_200, "minReplicas": 5}]);
        assert_eq!(bounds("2026-11-22T12:00:00Z", always), (5, 50));
    }

    #[test]
    fn of_two_that_overlap_the_later_in_the_list_counts() {
        let two = json!([
            {"cron": "0 8 * * *", "durationSeconds": 3600, "minReplicas": 5, "maxReplicas": 80},
            {"cron": "30 8 * * *", "durationSeconds": 3600, "minReplicas": 3},
        ]);
        assert_eq!(bounds("2026-11-23T08:15:00Z", two.clone()), (5, 80));
        assert_eq!(bounds("2026-11-23T08:45:00Z", two.clone()), (3, 80));
        assert_eq!(bounds("2026-11-23T09:15:00Z", two), (3, 50));
    }

    #[test]
    fn one_that_cannot_be_read_is_named_and_left_out() {
        let good = json!({"cron": "0 8 * * *", "durationSeconds": 3600, "minReplicas": 5});
        for (bad, why) in [
            (json!({"cron": "0 25 * * *", "durationSeconds": 60, "minReplicas": 9}), "cron `0 25 * * *`: "),
            (json!({"cron": "0 0 8 * * *", "durationSeconds": 60, "minReplicas": 9}), "cron `0 0 8 * * *`: "),
            (
                json!({"cron": "0 8 * * *", "timeZone": "Europe/Berlim", "durationSeconds": 60, "minReplicas": 9}),
                "there is no time zone `Europe/Berlim`",
            ),
        ] {
            let bounds = at("2026-11-23T08:15:00Z", json!([bad, good]));
            assert_eq!(bounds.min, 5);
            let problem = bounds.problem.unwrap();
            assert!(problem.starts_with("spec.scaling.schedules[0] is left out: "), "{problem}");
            assert!(problem.contains(why), "{problem}");
        }
    }

    #[test]
    fn a_day_that_never_comes_is_no_harm() {
        let never = json!([{"cron": "0 0 30 2 *", "durationSeconds": 60, "minReplicas": 5}]);
        assert_eq!(bounds("2026-11-23T08:15:00Z", never), (1, 50));
    }
}
