//! Dates as Celery writes and reads them: ISO 8601 with microseconds, UTC unless an offset says otherwise.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

/// A text that is not one of the date forms Celery reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an ISO 8601 date: `{0}`")]
pub struct DateError(String);

/// Reads a date in any of the forms Celery accepts.
///
/// `T` or a space between date and time, `.` or `,` before any number of fraction digits (cut to microseconds), an
/// offset of `Z`, `+HH:MM`, `+HHMM` or `+HH`, or a date alone. Without an offset the date is in UTC, which is what
/// Celery means with its default `enable_utc`.
///
/// # Errors
/// When the text has another form, or names a moment outside of the years -9999 to 9999.
pub fn parse(text: &str) -> Result<Timestamp, DateError> {
    parse_parts(text.trim().as_bytes()).ok_or_else(|| DateError(text.chars().take(64).collect()))
}

fn parse_parts(text: &[u8]) -> Option<Timestamp> {
    let mut rest = text;
    let year = digits(&mut rest, 4)?;
    literal(&mut rest, b"-")?;
    let month = digits(&mut rest, 2)?;
    literal(&mut rest, b"-")?;
    let day = digits(&mut rest, 2)?;
    let (mut hour, mut minute, mut second, mut micros) = (0, 0, 0, 0);
    let mut offset = Offset::UTC;
    if !rest.is_empty() {
        literal(&mut rest, b"T t")?;
        hour = digits(&mut rest, 2)?;
        literal(&mut rest, b":")?;
        minute = digits(&mut rest, 2)?;
        if literal(&mut rest, b":").is_some() {
            second = digits(&mut rest, 2)?;
            if literal(&mut rest, b".,").is_some() {
                micros = fraction(&mut rest)?;
            }
        }
        offset = parse_offset(&mut rest)?;
    }
    if !rest.is_empty() {
        return None;
    }
    let small = |number: i32| i8::try_from(number).ok();
    let year = i16::try_from(year).ok()?;
    let datetime = DateTime::new(
        year,
        small(month)?,
        small(day)?,
        small(hour)?,
        small(minute)?,
        small(second)?,
        micros * 1000,
    );
    offset.to_timestamp(datetime.ok()?).ok()
}

fn digits(rest: &mut &[u8], count: usize) -> Option<i32> {
    let (head, tail) = rest.split_at_checked(count)?;
    let mut number = 0;
    for byte in head {
        number = number * 10 + i32::from(byte.is_ascii_digit().then(|| byte - b'0')?);
    }
    *rest = tail;
    Some(number)
}

fn literal(rest: &mut &[u8], any_of: &[u8]) -> Option<u8> {
    let (first, tail) = rest.split_first()?;
    any_of.contains(first).then(|| {
        *rest = tail;
        *first
    })
}

fn fraction(rest: &mut &[u8]) -> Option<i32> {
    let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (head, tail) = rest.split_at(length);
    *rest = tail;
    if head.is_empty() {
        return None;
    }
    let micros = (0..6)
        .fold(0, |micros, place| micros * 10 + head.get(place).map_or(0, |digit| i32::from(digit - b'0')));
    Some(micros)
}

fn parse_offset(rest: &mut &[u8]) -> Option<Offset> {
    if rest.is_empty() || literal(rest, b"Zz").is_some() {
        return Some(Offset::UTC);
    }
    let sign = if literal(rest, b"+-")? == b'-' { -1 } else { 1 };
    let hours = digits(rest, 2)?;
    let mut minutes = 0;
    if !rest.is_empty() {
        let _ = literal(rest, b":");
        minutes = digits(rest, 2)?;
    }
    if hours > 23 || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

/// Writes a moment as Celery does: `2026-11-21T02:57:45.037066+00:00`, the fraction left out when it is zero.
#[must_use]
pub fn format(moment: Timestamp) -> String {
    let utc = Offset::UTC.to_datetime(moment);
    let micros = utc.subsec_nanosecond() / 1000;
    let seconds = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        utc.year(),
        utc.month(),
        utc.day(),
        utc.hour(),
        utc.minute(),
        utc.second()
    );
    if micros == 0 { format!("{seconds}+00:00") } else { format!("{seconds}.{micros:06}+00:00") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn reads_every_form_celery_accepts() {
        let moment = at("2026-11-21T02:57:45.037066Z");
        for text in [
            "2026-11-21T02:57:45.037066+00:00",
            "2026-11-21T02:57:45.037066Z",
            "2026-11-21 02:57:45.037066",
            "2026-11-21T02:57:45,037066",
            "2026-11-21T03:57:45.037066+01:00",
            "2026-11-20T21:27:45.037066-0530",
            "2026-11-21T02:57:45.037066999+00",
            " 2026-11-21T02:57:45.037066 ",
        ] {
            assert_eq!(parse(text), Ok(moment), "{text}");
        }
        assert_eq!(parse("2026-11-21"), Ok(at("2026-11-21T00:00:00Z")));
        assert_eq!(parse("2026-11-21T02:57"), Ok(at("2026-11-21T02:57:00Z")));
        assert_eq!(parse("2026-11-21T02:57:45.5"), Ok(at("2026-11-21T02:57:45.5Z")));
    }

    #[test]
    fn refuses_other_forms() {
        for text in [
            "",
            "tomorrow",
            "2026-11-21T02:57:45 UTC",
            "2026-13-01",
            "2026-11-21T25:00:00",
            "2026-11-21T",
            "12",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in ["2026-11-21T02:57:45.", "2026-11-21T02:57:45+1", "9999-12-31T23:59:59-23:59"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn writes_microseconds_only_when_there_are_some() {
        assert_eq!(format(at("2026-11-21T02:57:45.037066Z")), "2026-11-21T02:57:45.037066+00:00");
        assert_eq!(format(at("2026-11-21T02:57:45Z")), "2026-11-21T02:57:45+00:00");
        assert_eq!(format(at("2026-11-21T02:57:45.000000900Z")), "2026-11-21T02:57:45+00:00");
    }
}
