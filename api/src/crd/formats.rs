//! The string formats that are checked; all others are ignored.
//!
//! The list and what each format takes are of the API documentation of `JSONSchemaProps.format`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr as _;
use std::sync::LazyLock;

use base64::Engine as _;
use regex::Regex;

use crate::names;

/// How a format is checked.
#[derive(Clone, Copy)]
enum Check {
    Pattern(&'static LazyLock<Option<Regex>>),
    Function(fn(&str) -> bool),
}

macro_rules! patterns {
    ($($name:ident = $pattern:expr;)*) => {
        $(static $name: LazyLock<Option<Regex>> = LazyLock::new(|| super::pattern::compile($pattern).ok());)*

        #[cfg(test)]
        const PATTERNS: &[(&str, &str)] = &[$((stringify!($name), $pattern)),*];
    };
}

/// Whether a pattern of this module matches.
fn is(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern.as_ref().is_some_and(|p| p.is_match(text))
}

patterns! {
    UUID = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 = "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    OBJECT_ID = "(?i)^[0-9a-f]{24}$";
    HEX_COLOR = "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB_COLOR = "^rgb\\(\\s*(0|[1-9]\\d?|1\\d\\d?|2[0-4]\\d|25[0-5])\\s*,\\s*(0|[1-9]\\d?|1\\d\\d?|2[0-4]\\d|25[0-5])\\s*,\\s*(0|[1-9]\\d?|1\\d\\d?|2[0-4]\\d|25[0-5])\\s*\\)$";
    SSN = "^\\d{3}[- ]?\\d{2}[- ]?\\d{4}$";
    CREDIT_CARD = "^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\\d{3})\\d{11})$";
    TIME = "(?i)^([01]\\d|2[0-3]):[0-5]\\d:([0-5]\\d|60)(.\\d+)?(z|[+-]\\d{2}:\\d{2})$";
    HOSTNAME = "^[a-zA-Z0-9\\p{S}\\p{L}](-?[a-zA-Z0-9\\p{S}\\p{L}]{0,62})*(\\.[a-zA-Z0-9\\p{S}\\p{L}]([a-zA-Z0-9\\-\\p{S}\\p{L}]{0,61}[a-zA-Z0-9\\p{S}\\p{L}])?)*\\.?$";
    GO_DURATION = "^[+-]?(0|((\\d+\\.?\\d*|\\.\\d+)(ns|us|µs|μs|ms|s|m|h))+)$";
    SCALA_DURATION = "(?i)^\\d+\\s*(ns|nanos?|nanoseconds?|us|µs|micros?|microseconds?|ms|millis?|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|wks?|weeks?)$";
}

/// The formats of strings; names are compared without dashes.
const STRINGS: &[(&str, Check)] = &[
    ("bsonobjectid", Check::Pattern(&OBJECT_ID)),
    ("uri", Check::Function(uri)),
    ("email", Check::Function(email)),
    ("hostname", Check::Function(hostname)),
    ("ipv4", Check::Function(|s| Ipv4Addr::from_str(s).is_ok())),
    ("ipv6", Check::Function(|s| Ipv6Addr::from_str(s).is_ok())),
    ("cidr", Check::Function(|s| s.contains('/') && ipnet::IpNet::from_str(s).is_ok())),
    ("mac", Check::Function(mac)),
    ("uuid", Check::Pattern(&UUID)),
    ("uuid3", Check::Pattern(&UUID3)),
    ("uuid4", Check::Pattern(&UUID4)),
    ("uuid5", Check::Pattern(&UUID5)),
    ("isbn", Check::Function(|s| isbn10(s) || isbn13(s))),
    ("isbn10", Check::Function(isbn10)),
    ("isbn13", Check::Function(isbn13)),
    ("creditcard", Check::Function(credit_card)),
    ("ssn", Check::Pattern(&SSN)),
    ("hexcolor", Check::Pattern(&HEX_COLOR)),
    ("rgbcolor", Check::Pattern(&RGB_COLOR)),
    ("byte", Check::Function(|s| base64::engine::general_purpose::STANDARD.decode(s).is_ok())),
    ("password", Check::Function(|_| true)),
    ("date", Check::Function(|s| s.len() == 10 && jiff::civil::Date::from_str(s).is_ok())),
    ("duration", Check::Function(|s| is(&GO_DURATION, s) || is(&SCALA_DURATION, s))),
    ("datetime", Check::Function(date_time)),
    ("k8sshortname", Check::Function(|s| names::dns1123_label(s).is_empty())),
    ("k8slongname", Check::Function(|s| names::dns1123_subdomain(s).is_empty())),
];

fn find(format: &str) -> Option<Check> {
    let name = format.replace('-', "");
    STRINGS.iter().find(|(n, _)| *n == name).map(|(_, c)| *c)
}

/// Whether a format counts for values of these types.
pub fn is_known(types: &[&str], format: &str) -> bool {
    match types {
        ["integer"] => matches!(format, "int32" | "int64"),
        ["number"] => matches!(format, "float" | "double"),
        ["string"] | [] | [_, _, ..] => find(format).is_some(),
        _ => false,
    }
}

/// Whether a string is of a format; of an unknown one it always is.
pub fn matches(format: &str, text: &str) -> bool {
    match find(format) {
        Some(Check::Pattern(p)) => is(p, text),
        Some(Check::Function(f)) => f(text),
        None => true,
    }
}

fn date_time(s: &str) -> bool {
    let Some((date, time)) = s.split_once(['T', 't']) else { return false };
    date.len() == 10 && jiff::civil::Date::from_str(date).is_ok() && is(&TIME, time)
}

fn hostname(s: &str) -> bool {
    s.len() <= 255 && s.split('.').all(|part| part.len() <= 63) && is(&HOSTNAME, s)
}

/// A request URI: absolute, or a rooted path.
fn uri(s: &str) -> bool {
    if s.is_empty() || s.chars().any(|c| c.is_ascii_control() || c == ' ') {
        return false;
    }
    if s.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = s.split_once(':') else { return false };
    let mut letters = scheme.bytes();
    letters.next().is_some_and(|b| b.is_ascii_alphabetic())
        && letters.all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        && !rest.is_empty()
}

/// `local@domain`, with or without a name around it in angle brackets.
fn email(s: &str) -> bool {
    let address = match (s.rfind('<'), s.strip_suffix('>')) {
        (Some(open), Some(inner)) => inner.get(open + 1..).unwrap_or_default(),
        (None, None) => s.trim(),
        _ => return false,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let atom = |s: &str| {
        !s.is_empty()
            && s.split('.').all(|part| {
                !part.is_empty()
                    && part.chars().all(|c| {
                        c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || u32::from(c) > 0x7f
                    })
            })
    };
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    (atom(local) || quoted) && (atom(domain) || (domain.starts_with('[') && domain.ends_with(']')))
}

/// EUI-48, EUI-64 or a 20-octet address, by colons, dashes or dots.
fn mac(s: &str) -> bool {
    let groups = |separator: char, digits: usize| {
        let parts: Vec<&str> = s.split(separator).collect();
        let good = parts.iter().all(|p| p.len() == digits && p.bytes().all(|b| b.is_ascii_hexdigit()));
        good && matches!(parts.len() * digits, 12 | 16 | 40)
    };
    groups(':', 2) || groups('-', 2) || groups('.', 4)
}

fn digits_of(s: &str) -> Vec<u32> {
    s.chars().filter(|c| !matches!(c, ' ' | '-')).map(|c| c.to_digit(10).unwrap_or(u32::MAX)).collect()
}

fn isbn10(s: &str) -> bool {
    let text: String = s.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    let Some((body, check)) = text.split_at_checked(9) else { return false };
    let body = digits_of(body);
    let check =
        if matches!(check, "X" | "x") { Some(10) } else { check.parse::<u32>().ok().filter(|c| *c < 10) };
    let Some(check) = check.filter(|_| body.iter().all(|d| *d < 10)) else { return false };
    let sum: u32 = body.iter().zip(1..).map(|(d, i)| d * i).sum();
    (sum + 10 * check).is_multiple_of(11)
}

fn isbn13(s: &str) -> bool {
    let digits = digits_of(s);
    if digits.len() != 13 || digits.iter().any(|d| *d > 9) {
        return false;
    }
    digits.iter().enumerate().map(|(i, d)| d * if i % 2 == 0 { 1 } else { 3 }).sum::<u32>().is_multiple_of(10)
}

/// A number of a known issuer whose check digit holds (Luhn).
fn credit_card(s: &str) -> bool {
    let text: String = s.chars().filter(char::is_ascii_digit).collect();
    let sum: u32 = digits_of(&text)
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| if i % 2 == 0 { *d } else { d * 2 - if *d > 4 { 9 } else { 0 } })
        .sum();
    is(&CREDIT_CARD, &text) && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_compile() {
        for (name, pattern) in PATTERNS {
            assert!(super::super::pattern::compile(pattern).is_ok(), "{name}");
        }
    }

    #[test]
    fn every_format_takes_its_own() {
        for (format, good, bad) in [
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f"),
            ("uri", "https://example.com/x", "example"),
            ("email", "a.b@example.com", "a@"),
            ("hostname", "node-1.example.com", "-x"),
            ("ipv4", "192.0.2.1", "192.0.2"),
            ("ipv6", "2001:db8::1", "192.0.2.1"),
            ("cidr", "192.0.2.0/24", "192.0.2.0"),
            ("mac", "00:00:5e:00:53:01", "00:00"),
            ("uuid", "123E4567-e89b-12d3-a456-426614174000", "123"),
            ("uuid3", "123e4567-e89b-32d3-a456-426614174000", "123e4567-e89b-42d3-a456-426614174000"),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-42d3-c456-426614174000"),
            ("uuid5", "123e4567-e89b-52d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("isbn10", "0321751043", "0321751044"),
            ("isbn13", "978-0321751041", "0321751043"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("ssn", "111-22-3333", "11-22"),
            ("hexcolor", "#FFFFFF", "#GG"),
            ("rgbcolor", "rgb(255,0,12)", "rgb(256,0,0)"),
            ("byte", "aGVsbG8=", "a"),
            ("date", "2006-01-02", "2006-13-02"),
            ("duration", "1h30m", "soon"),
            ("duration", "22 ns", "22 parsecs"),
            ("date-time", "2014-12-15T19:30:20.000Z", "2014-12-15"),
            ("k8s-short-name", "a-b", "a.b"),
            ("k8s-long-name", "a.b", "A"),
        ] {
            assert!(is_known(&["string"], format), "{format}");
            assert!(matches(format, good), "{format} {good}");
            assert!(!matches(format, bad), "{format} {bad}");
        }
        assert!(matches("password", "") && matches("whatever", "x") && !is_known(&["string"], "whatever"));
        assert!(is_known(&["integer"], "int32") && !is_known(&["boolean"], "int32"));
    }
}
