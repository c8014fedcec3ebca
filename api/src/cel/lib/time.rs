//! Timestamps and durations.

use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};

use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Value};

const NANOS: i64 = 1_000_000_000;

/// CEL's timestamps lie in the years 1 to 9999.
pub fn in_range(t: Timestamp) -> bool {
    (-62_135_596_800..=253_402_300_799).contains(&t.as_second())
}

/// A duration as Go reads it: `1h30m`.
pub fn parse_duration(text: &str) -> Option<i64> {
    crate::time::parse_go_duration(text)
}

/// RFC 3339.
pub fn parse_timestamp(text: &str) -> Option<Timestamp> {
    // jiff reads more than RFC 3339: `T` is wanted, and an offset.
    let date_and_time = text.as_bytes().get(10) == Some(&b'T');
    crate::time::parse(text).filter(|t| date_and_time && in_range(*t))
}

/// Seconds with an `s`: `90s`, `1.5s`.
pub fn duration_text(nanos: i64) -> String {
    let (sign, n) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let (seconds, rest) = (n / 1_000_000_000, n % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{rest:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

/// The timestamp in the zone of the second argument, UTC without one.
fn zoned(args: &[Value<'_>]) -> Result<Zoned, EvalError> {
    match args {
        [Value::Timestamp(t)] => Ok(t.to_zoned(TimeZone::UTC)),
        [Value::Timestamp(t), Value::String(zone)] => Ok(t.to_zoned(time_zone(zone)?)),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// A name of the time zone database, or an offset `-08:00`.
fn time_zone(text: &str) -> Result<TimeZone, EvalError> {
    let unknown = || EvalError::value(format!("unknown time zone {text}"));
    let Some((hours, minutes)) = text.split_once(':') else {
        return TimeZone::get(text).map_err(|_| unknown());
    };
    let negative = hours.starts_with('-');
    let hours: i32 = hours.parse().map_err(|_| unknown())?;
    let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
    let seconds = hours.checked_mul(3600).zip(minutes.checked_mul(if negative { -60 } else { 60 }));
    let offset = seconds.and_then(|(h, m)| h.checked_add(m)).and_then(|s| Offset::from_seconds(s).ok());
    offset.map(TimeZone::fixed).ok_or_else(unknown)
}

fn int<'a>(n: impl Into<i64>) -> Outcome<'a> {
    Ok(Value::Int(n.into()))
}

pub fn full_year<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    int(zoned(args)?.year())
}
/// From 0.
pub fn month<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    int(zoned(args)?.month() - 1)
}
/// From 0.
pub fn day_of_year<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    int(zoned(args)?.day_of_year() - 1)
}
/// From 0.
pub fn day_of_month<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    int(zoned(args)?.day() - 1)
}
/// From 1.
pub fn date<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    int(zoned(args)?.day())
}
/// Sunday is 0.
pub fn day_of_week<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    int(zoned(args)?.weekday().to_sunday_zero_offset())
}
pub fn hours<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Duration(n)] => int(n / (3600 * NANOS)),
        _ => int(zoned(args)?.hour()),
    }
}
pub fn minutes<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Duration(n)] => int(n / (60 * NANOS)),
        _ => int(zoned(args)?.minute()),
    }
}
pub fn seconds<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Duration(n)] => int(n / NANOS),
        _ => int(zoned(args)?.second()),
    }
}
pub fn milliseconds<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Duration(n)] => int(n / (NANOS / 1000)),
        _ => int(zoned(args)?.millisecond()),
    }
}
