//! Cron schedules: five fields or a word, in a time zone. PURE.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// How far to look for a matching day: beyond that a schedule (30 February) never comes.
const HORIZON_DAYS: usize = 5 * 366;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// One field: the values that match, as bits, and whether it was left open.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Field {
    bits: u64,
    open: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|v| v < 64 && self.bits & (1 << v) != 0)
    }
}

/// A parsed schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
    zone: TimeZone,
}

/// A time zone by its name.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| format!("unknown time zone {name}"))
}

fn field(text: &str, low: u64, high: u64, names: &[&str]) -> Result<Field, String> {
    let number = |t: &str| -> Result<u64, String> {
        let lower = t.to_ascii_lowercase();
        let at = names.iter().position(|n| *n == lower).and_then(|at| u64::try_from(at).ok());
        // Months are named from one, days of the week from zero.
        if let Some(at) = at {
            return Ok(at + low);
        }
        t.parse().map_err(|_| format!("failed to parse int from {t}"))
    };
    let mut bits = 0;
    let mut open = false;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (part, None),
        };
        let (first, last) = match range {
            "*" | "?" => {
                open |= step.is_none_or(|s| s <= 1);
                (low, high)
            }
            _ => match range.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                // `5/10` means: from five to the end.
                None if step.is_some() => (number(range)?, high),
                None => (number(range)?, number(range)?),
            },
        };
        let step = step.unwrap_or(1);
        if first < low || last > high || first > last || step == 0 {
            return Err(format!("{part} is not within {low}-{high}"));
        }
        let mut value = first;
        while value <= last {
            bits |= 1 << value;
            value += step;
        }
    }
    Ok(Field { bits, open })
}

impl Schedule {
    /// Parses a schedule; without a zone, times are UTC.
    ///
    /// # Errors
    /// A text that says what cannot be understood.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, String> {
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => self::zone(name)?,
        };
        let text = text.trim();
        let spelled = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = spelled.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: {text}", fields.len()));
        };
        let mut weekday = field(weekday, 0, 7, &DAYS)?;
        // Seven is Sunday as well.
        if weekday.bits & (1 << 7) != 0 {
            weekday.bits |= 1;
        }
        Ok(Self {
            minute: field(minute, 0, 59, &[])?,
            hour: field(hour, 0, 23, &[])?,
            day: field(day, 1, 31, &[])?,
            month: field(month, 1, 12, &MONTHS)?,
            weekday,
            zone,
        })
    }

    /// The zone of its times.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Days match by date or by weekday, if both are given; else by the one that is.
    fn day_matches(&self, date: Date) -> bool {
        if !self.month.has(date.month()) {
            return false;
        }
        let by_date = self.day.has(date.day());
        let by_week = self.weekday.has(date.weekday().to_sunday_zero_offset());
        if self.day.open || self.weekday.open { by_date && by_week } else { by_date || by_week }
    }

    /// The instant at which a clock in the zone shows this; `None` if it never does (it is put forward).
    fn instant(&self, at: DateTime) -> Option<Timestamp> {
        let zoned = self.zone.to_zoned(at).ok()?;
        (zoned.datetime() == at).then(|| zoned.timestamp())
    }

    /// The times of a day, in order.
    fn times(&self, date: Date) -> impl DoubleEndedIterator<Item = DateTime> + '_ {
        let hours = (0..24i8).filter(|h| self.hour.has(*h));
        hours.flat_map(move |hour| {
            let minutes = (0..60i8).filter(|m| self.minute.has(*m));
            minutes.map(move |minute| date.at(hour, minute, 0, 0))
        })
    }

    /// The first time after `after`.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let mut date = after.to_zoned(self.zone.clone()).date();
        for _ in 0..HORIZON_DAYS {
            if self.day_matches(date) {
                let found = self.times(date).filter_map(|t| self.instant(t)).find(|t| *t > after);
                if found.is_some() {
                    return found;
                }
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    /// The last time in `(after, until]`.
    pub fn last(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let mut date = until.to_zoned(self.zone.clone()).date();
        let first = after.to_zoned(self.zone.clone()).date();
        for _ in 0..HORIZON_DAYS {
            if date < first {
                return None;
            }
            if self.day_matches(date) {
                let found = self.times(date).rev().filter_map(|t| self.instant(t)).find(|t| *t <= until);
                if let Some(found) = found {
                    return (found > after).then_some(found);
                }
            }
            date = date.checked_sub(1.day()).ok()?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn next(schedule: &str, zone: Option<&str>, after: &str) -> String {
        let found = Schedule::parse(schedule, zone).unwrap().next(after.parse().unwrap());
        found.map(|t| t.to_string()).unwrap_or_default()
    }

    #[test]
    fn schedules_mean_what_cron_means() {
        let cases = [
            ("*/15 * * * *", "2026-01-01T00:01:00Z", "2026-01-01T00:15:00Z"),
            ("5/20 * * * *", "2026-01-01T00:05:00Z", "2026-01-01T00:25:00Z"),
            ("0 12 * * mon-fri", "2026-01-02T12:00:00Z", "2026-01-05T12:00:00Z"),
            ("0 0 13 * FRI", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("0 0 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("30 1 31 * ?", "2026-01-31T01:30:00Z", "2026-03-31T01:30:00Z"),
            ("0 0 30 2 *", "2026-01-01T00:00:00Z", ""),
        ];
        for (schedule, after, want) in cases {
            assert_eq!(next(schedule, None, after), want, "{schedule}");
        }
        let berlin = Some("Europe/Berlin");
        // The clock is put forward over 02:30 on 29 March 2026.
        assert_eq!(next("30 2 * * *", berlin, "2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z");
        assert_eq!(next("0 9 * * *", berlin, "2026-07-01T08:00:00Z"), "2026-07-02T07:00:00Z");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["", "* * * *", "60 * * * *", "* * 0 * *", "*/0 * * * *", "5-1 * * * *", "x * * * *", "@never"]
        {
            assert!(Schedule::parse(bad, None).is_err(), "{bad}");
        }
        assert!(Schedule::parse("* * * * *", Some("Mars/Olympus")).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "[0-9*/,?a-z@ -]{0,30}") {
            if let Ok(schedule) = Schedule::parse(&text, None) {
                let _ = schedule.next(Timestamp::UNIX_EPOCH);
            }
        }

        /// The last time up to a next time is that time.
        #[test]
        fn next_and_last_agree(
            minute in 0..60u8, hour in 0..24u8, step in 1..30u8, at in 1_600_000_000..1_900_000_000i64,
        ) {
            for text in [format!("{minute} {hour} * * *"), format!("*/{step} * * * *"), format!("{minute} * 1,15 * 3")] {
                let schedule = Schedule::parse(&text, None).unwrap();
                let at = Timestamp::from_second(at).unwrap();
                let next = schedule.next(at).unwrap();
                prop_assert!(next > at);
                prop_assert_eq!(schedule.last(at, next), Some(next));
                let before = Timestamp::from_second(next.as_second() - 1).unwrap();
                prop_assert_eq!(schedule.last(at, before), None);
            }
        }
    }
}
