//! Cron schedules: five fields, or a descriptor such as `@daily` and `@every 1h`.

use crate::time;

/// A field's name, its least and greatest value, and names for values.
struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Bounds; 5] = [
    Bounds { min: 0, max: 59, names: &[] },
    Bounds { min: 0, max: 23, names: &[] },
    Bounds { min: 1, max: 31, names: &[] },
    Bounds { min: 1, max: 12, names: MONTHS },
    Bounds { min: 0, max: 6, names: DAYS },
];

/// Checks a schedule.
///
/// # Errors
/// With the text of the parser that Kubernetes uses.
pub fn check(schedule: &str) -> Result<(), String> {
    if let Some(descriptor) = schedule.strip_prefix('@') {
        return match descriptor {
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly" => Ok(()),
            d => match d.strip_prefix("every ") {
                Some(duration) => time::parse_go_duration(duration).map(|_| ()).ok_or_else(|| {
                    format!("failed to parse duration {schedule}: time: invalid duration \"{duration}\"")
                }),
                None => Err(format!("unrecognized descriptor: {schedule}")),
            },
        };
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    for (field, bounds) in fields.iter().zip(&FIELDS) {
        for part in field.split(',') {
            range(part, bounds)?;
        }
    }
    Ok(())
}

fn number(text: &str, whole: &str, bounds: &Bounds) -> Result<u32, String> {
    if let Some(i) = bounds.names.iter().position(|n| n.eq_ignore_ascii_case(text)) {
        return Ok(u32::try_from(i).unwrap_or(0) + bounds.min);
    }
    text.parse::<i64>()
        .map_err(|_| {
            format!("failed to parse int from {text}: strconv.Atoi: parsing \"{text}\": invalid syntax")
        })
        .and_then(|n| u32::try_from(n).map_err(|_| format!("negative number ({n}) not allowed: {whole}")))
}

fn range(part: &str, bounds: &Bounds) -> Result<(), String> {
    let mut pieces = part.split('/');
    let span = pieces.next().unwrap_or("");
    let step = pieces.next();
    if pieces.next().is_some() {
        return Err(format!("too many slashes: {part}"));
    }
    let (start, end) = if matches!(span, "*" | "?") {
        (bounds.min, bounds.max)
    } else {
        let mut ends = span.split('-');
        let start = number(ends.next().unwrap_or(""), part, bounds)?;
        let end = match ends.next() {
            Some(end) => number(end, part, bounds)?,
            None if step.is_some() => bounds.max,
            None => start,
        };
        if ends.next().is_some() {
            return Err(format!("too many hyphens: {part}"));
        }
        (start, end)
    };
    let step = step.map_or(Ok(1), |s| number(s, part, &Bounds { min: 0, max: 0, names: &[] }))?;
    if start < bounds.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {part}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("end of range ({end}) above maximum ({}): {part}", bounds.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn schedules() {
        for good in ["*/5 * * * *", "0 0 1,15 * mon-fri", "@daily", "@every 1h30m", "5/10 0 ? JAN 0"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, want) in [
            ("every day", "expected exactly 5 fields, found 2: [every day]"),
            ("61 * * * *", "end of range (61) above maximum (59): 61"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
        ] {
            assert_eq!(check(bad), Err(want.to_owned()));
        }
        for bad in ["@never", "@every x", "a * * * *", "1/2/3 * * * *", "1-2-3 * * * *", "-1 * * * *"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(s in "[@*/,0-9a-z -]{0,20}") {
            let _ = check(&s);
        }
    }
}
