//! Timestamps as Kubernetes prints them, durations as Go and as kubectl's tables print them.
//!
//! `now` is always an argument: a [`jiff::Timestamp`].

use jiff::Timestamp;
use serde_json::Value;

/// RFC 3339 in UTC with whole seconds: `metav1.Time`.
pub fn rfc3339(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 in UTC with microseconds: `metav1.MicroTime`.
pub fn rfc3339_micro(t: Timestamp) -> String {
    let micros = t.subsec_nanosecond().div_euclid(1000);
    format!("{}.{micros:06}Z", t.strftime("%Y-%m-%dT%H:%M:%S"))
}

/// Parses RFC 3339 with any offset and precision.
pub fn parse(s: &str) -> Option<Timestamp> {
    s.parse().ok()
}

/// Parses the timestamp held by a JSON string.
pub fn from_value(v: Option<&Value>) -> Option<Timestamp> {
    parse(v?.as_str()?)
}

/// Seconds from `earlier` to `later`, rounded towards zero.
pub fn seconds_between(earlier: Timestamp, later: Timestamp) -> i64 {
    later.as_second()
        - earlier.as_second()
        - i64::from(later.subsec_nanosecond() < earlier.subsec_nanosecond())
}

/// An age as tables show it: `5s`, `3m21s`, `2d3h`, `4y11d`. Slight negatives (clock skew) are `0s`.
pub fn human_duration(seconds: i64) -> String {
    match seconds {
        s if s < -1 => return "<invalid>".into(),
        s if s < 0 => return "0s".into(),
        s if s < 120 => return format!("{s}s"),
        _ => {}
    }
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |a: i64, unit_a: &str, b: i64, unit_b: &str| {
        if b == 0 { format!("{a}{unit_a}") } else { format!("{a}{unit_a}{b}{unit_b}") }
    };
    if minutes < 10 {
        two(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 24 * 8 {
        two(hours / 24, "d", hours % 24, "h")
    } else if hours < 24 * 365 * 2 {
        format!("{}d", hours / 24)
    } else if hours < 24 * 365 * 8 {
        two(hours / 24 / 365, "y", (hours / 24) % 365, "d")
    } else {
        format!("{}y", hours / 24 / 365)
    }
}

/// The age of a timestamp in a table; `<unknown>` when it is absent or malformed.
pub fn age(timestamp: Option<&Value>, now: Timestamp) -> String {
    match from_value(timestamp) {
        Some(t) => human_duration(seconds_between(t, now)),
        None => "<unknown>".into(),
    }
}

/// Parses a Go duration such as `1h30m` or `250ms`. Answers nanoseconds.
pub fn parse_go_duration(s: &str) -> Option<i64> {
    let (negative, mut rest) = match s.as_bytes().first()? {
        b'-' => (true, &s[1..]),
        b'+' => (false, &s[1..]),
        _ => (false, s),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (int, frac) = number.split_once('.').unwrap_or((number, ""));
        if (int.is_empty() && frac.is_empty()) || frac.contains('.') || number.len() > 30 {
            return None;
        }
        if !int.is_empty() {
            total += int.parse::<i128>().ok()?.checked_mul(scale)?;
        }
        let mut unit = scale;
        for digit in frac.bytes() {
            unit /= 10;
            total += i128::from(digit - b'0') * unit;
        }
        if total > i128::from(i64::MAX) {
            return None;
        }
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Prints nanoseconds as Go's `Duration.String`: `1h30m0s`, `1.5s`, `250ms`.
pub fn go_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let with_fraction = |n: u64, unit: u64, suffix: &str| {
        let frac = format!("{:0width$}", n % unit, width = unit.ilog10() as usize);
        let frac = frac.trim_end_matches('0');
        let dot = if frac.is_empty() || unit == 1 { String::new() } else { format!(".{frac}") };
        format!("{}{dot}{suffix}", n / unit)
    };
    let text = match n {
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => with_fraction(n, 1_000, "µs"),
        n if n < 1_000_000_000 => with_fraction(n, 1_000_000, "ms"),
        n => {
            let (minutes, rest) = (n / 60_000_000_000, n % 60_000_000_000);
            let seconds = with_fraction(rest, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, m) => format!("{m}m{seconds}"),
                (h, m) => format!("{h}h{m}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn timestamps() {
        let t = parse("2024-01-02T05:04:05.678901234+02:00").expect("time");
        assert_eq!(rfc3339(t), "2024-01-02T03:04:05Z");
        assert_eq!(rfc3339_micro(t), "2024-01-02T03:04:05.678901Z");
        assert_eq!(parse("yesterday"), None);
        assert_eq!(age(Some(&json!("2024-01-02T03:04:00Z")), t), "5s");
        assert_eq!(age(None, t), "<unknown>");
    }

    #[test]
    fn ages() {
        for (s, want) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (201, "3m21s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (183_600, "2d3h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (64_022_400, "2y11d"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(human_duration(s), want, "{s}");
        }
    }

    #[test]
    fn go_durations() {
        for (n, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (5_400_000_000_000, "1h30m0s"),
            (-1_000_000_000, "-1s"),
        ] {
            assert_eq!(go_duration(n), want);
            assert_eq!(parse_go_duration(want), Some(n));
        }
        for bad in ["", "1", "s", "1x", "1..s", "-", "1s2"] {
            assert_eq!(parse_go_duration(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn go_duration_round_trips(n in any::<i64>()) {
            prop_assume!(n != i64::MIN);
            prop_assert_eq!(parse_go_duration(&go_duration(n)), Some(n));
        }
    }
}
