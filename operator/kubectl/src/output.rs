//! What stands in cells: what is not known, and how long ago something was.

use jiff::Timestamp;

/// What stands for something that isn't known: never a zero.
pub(crate) const UNKNOWN: &str = "?";

/// The time from one moment to another, in the one or two units that matter: `12s`, `3m`, `2h5m`, `4d`.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) if minutes < 10 && seconds % 60 > 0 => format!("{minutes}m{}s", seconds % 60),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) if hours < 10 && minutes % 60 > 0 => format!("{hours}h{}m", minutes % 60),
        (0, hours, _) => format!("{hours}h"),
        (days, _, _) => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_the_units_that_matter() {
        let ago = |seconds| age(Timestamp::UNIX_EPOCH, Timestamp::from_second(seconds).expect("a time"));
        let told = [-5, 0, 59, 60, 61, 600, 3600, 7500, 86_399, 864_000].map(ago);
        assert_eq!(told, ["0s", "0s", "59s", "1m", "1m1s", "10m", "1h", "2h5m", "23h", "10d"]);
    }
}
