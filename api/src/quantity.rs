//! `resource.Quantity`: decimal and binary suffixes, nano precision, the canonical text.

use std::cmp::Ordering;
use std::fmt;

const NANO: i128 = 1_000_000_000;
/// The largest magnitude a quantity holds; larger ones are capped, as in Kubernetes.
const MAX: i128 = i64::MAX as i128 * NANO;

/// How a quantity was written, and so how it is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// A fixed-point number with a suffix. Equality and order look at the value only.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    /// In units of 10⁻⁹.
    nanos: i128,
    format: Format,
}

/// A text that is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Zero, written `0`.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// A whole number.
    pub fn from_int(n: i64) -> Quantity {
        Quantity { nanos: i128::from(n) * NANO, format: Format::DecimalSi }
    }

    /// Thousandths.
    pub fn from_milli(n: i64) -> Quantity {
        Quantity { nanos: i128::from(n) * 1_000_000, format: Format::DecimalSi }
    }

    /// A whole number written with binary suffixes.
    pub fn from_bytes(n: i64) -> Quantity {
        Quantity { nanos: i128::from(n) * NANO, format: Format::BinarySi }
    }

    /// The value rounded up to a whole number.
    pub fn value(&self) -> i64 {
        clamp(ceil(self.nanos, NANO))
    }

    /// The value in thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        clamp(ceil(self.nanos, 1_000_000))
    }

    /// As a floating point number.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// How the quantity is written.
    pub fn format(&self) -> Format {
        self.format
    }
    /// Whether the value is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
    /// Whether the value is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }
    /// Whether the value has no fraction.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }
    /// Whether the value has no fraction of a thousandth.
    pub fn is_whole_milli(&self) -> bool {
        self.nanos % 1_000_000 == 0
    }

    /// Parses a text.
    ///
    /// # Errors
    /// [`ParseError`] as `resource.ParseQuantity` tells them.
    pub fn parse(text: &str) -> Result<Quantity, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(split);
        let (int, frac) = number.split_once('.').unwrap_or((number, ""));
        if (int.is_empty() && frac.is_empty()) || frac.contains('.') {
            return Err(ParseError::Format);
        }
        let (scale, format) = parse_suffix(suffix)?;
        let nanos = scaled(int, frac, scale);
        let nanos = nanos.min(MAX);
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// The sum. A zero takes the other's format.
impl std::ops::Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), format }
    }
}

/// The difference. A zero takes the other's format.
impl std::ops::Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: (self.nanos - other.nanos).clamp(-MAX, MAX), format }
    }
}

/// What a suffix multiplies with.
#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Binary(u32),
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Format), ParseError> {
    let decimal = |e| Ok((Scale::Ten(e), Format::DecimalSi));
    let binary = |e| Ok((Scale::Binary(e), Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let well_formed = {
                let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
                letters.trim_start_matches(['-', '+']).bytes().all(|b| b.is_ascii_digit())
            };
            let exponent = suffix.strip_prefix(['e', 'E']).and_then(|e| e.parse::<i32>().ok());
            match exponent {
                Some(e) => Ok((Scale::Ten(e), Format::DecimalExponent)),
                None if well_formed => Err(ParseError::Suffix),
                None => Err(ParseError::Format),
            }
        }
    }
}

/// The number in nanos, rounded up, capped at [`MAX`].
fn scaled(int: &str, frac: &str, scale: Scale) -> i128 {
    // Digits beyond 40 cannot matter below the cap, only whether they are zero.
    let mut digits: i128 = 0;
    let mut dropped: i32 = 0;
    let mut inexact = false;
    for b in int.bytes().chain(frac.bytes()) {
        if digits > i128::MAX / 100 {
            dropped += 1;
            inexact |= b != b'0';
        } else {
            digits = digits * 10 + i128::from(b - b'0');
        }
    }
    let mut power = 9 + dropped - i32::try_from(frac.len()).unwrap_or(i32::MAX);
    if let Scale::Ten(e) = scale {
        power = power.saturating_add(e);
    }
    let mut n = digits;
    if n == 0 {
        return 0;
    }
    // Divide first only when the binary factor could not overflow a reduced number.
    if let Scale::Binary(bits) = scale {
        match n.checked_mul(1i128 << bits) {
            Some(m) => n = m,
            None => {
                while power < 0 && n > 1 << 60 {
                    inexact |= n % 10 != 0;
                    n /= 10;
                    power += 1;
                }
                n = n.checked_mul(1i128 << bits).unwrap_or(i128::MAX);
            }
        }
    }
    while power > 0 && n <= MAX {
        n = n.saturating_mul(10);
        power -= 1;
    }
    while power < 0 && n > 0 {
        inexact |= n % 10 != 0;
        n /= 10;
        power += 1;
    }
    if inexact { n.saturating_add(1) } else { n }
}

fn ceil(n: i128, unit: i128) -> i128 {
    n.div_euclid(unit) + i128::from(n.rem_euclid(unit) != 0)
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The canonical text.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let mut n = self.nanos;
        let binary =
            self.format == Format::BinarySi && n.unsigned_abs() >= 1024 * NANO as u128 && self.is_integer();
        if binary {
            n /= NANO;
            let mut i = 0;
            while n % 1024 == 0 && i < 6 {
                n /= 1024;
                i += 1;
            }
            return write!(f, "{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][i]);
        }
        let mut i = 0;
        while n % 1000 == 0 && i < 9 {
            n /= 1000;
            i += 1;
        }
        if self.format == Format::DecimalExponent {
            return match 3 * i as i32 - 9 {
                0 => write!(f, "{n}"),
                e => write!(f, "{n}e{e}"),
            };
        }
        write!(f, "{n}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][i])
    }
}

impl std::str::FromStr for Quantity {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Quantity::parse(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_texts() {
        for (input, want) in [
            ("0", "0"),
            ("1", "1"),
            ("1.0", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("100m", "100m"),
            ("1500m", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1Gi", "1Gi"),
            ("512Ki", "512Ki"),
            ("100Ki", "100Ki"),
            ("1023", "1023"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1000e3", "1e6"),
            ("5e-3", "5e-3"),
            ("12E", "9223372036854775807"),
            ("1000000", "1M"),
            ("1000k", "1M"),
            ("2.5M", "2500k"),
            ("-1", "-1"),
            ("+3", "3"),
            ("0.0000000001", "1n"),
            ("1n", "1n"),
            ("0Gi", "0"),
            ("16Ei", "9223372036854775807"),
            ("00012", "12"),
            ("1.2.", "!"),
            ("", "!"),
            ("x", "!"),
            ("1x", "!"),
            ("1mm", "!"),
            ("1Kii", "!"),
        ] {
            let got = Quantity::parse(input).map_or("!".to_owned(), |q| q.to_string());
            assert_eq!(got, want, "{input}");
        }
        assert_eq!(Quantity::parse("1mm"), Err(ParseError::Suffix));
        assert_eq!(Quantity::parse("abc"), Err(ParseError::Format));
    }

    #[test]
    fn arithmetic() {
        let q = |s| Quantity::parse(s).expect("quantity");
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((q("0") + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1") - q("1500m")).to_string(), "-500m");
        assert_eq!((q("1500m").value(), q("1500m").milli_value(), q("-1500m").value()), (2, 1500, -1));
        assert!(q("1Ki") > q("1k") && q("1.5") == q("1500m") && !q("1500m").is_integer());
    }

    proptest! {
        #[test]
        fn canonical_is_stable(n in any::<i64>(), suffix in "(n|u|m|k|M|G|Ki|Mi|Gi|e3|)") {
            let q = Quantity::parse(&format!("{n}{suffix}")).expect("quantity");
            let again = Quantity::parse(&q.to_string()).expect("canonical");
            prop_assert_eq!(q, again);
            prop_assert_eq!(q.to_string(), again.to_string());
        }

        #[test]
        fn any_text_is_survived(s in ".{0,60}") {
            let _ = Quantity::parse(&s);
        }
    }
}
