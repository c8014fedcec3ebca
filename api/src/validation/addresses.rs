//! IP addresses and CIDR values as fields may have them (KEP-4858: no leading zeros, no IPv4 inside IPv6, no bits
//! beyond a prefix).

use super::checks::Errors;
use crate::status::Path;
use std::net::IpAddr;

const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NO_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// An address, also one that has leading zeros in its numbers.
pub fn sloppy(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| without_zeros(text)?.parse().ok())
}

fn without_zeros(text: &str) -> Option<String> {
    let (head, v4) = match text.rfind(':') {
        Some(at) => text.split_at(at + 1),
        None => ("", text),
    };
    let bare = |n: &str| -> Option<String> {
        let digits = !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
        let rest = n.trim_start_matches('0');
        digits.then(|| if rest.is_empty() { "0".to_owned() } else { rest.to_owned() })
    };
    let parts: Option<Vec<String>> = v4.split('.').map(bare).collect();
    Some(format!("{head}{}", parts.filter(|p| p.len() == 4)?.join(".")))
}

fn mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

/// An IP address; what it is, when it is one at all.
pub fn ip(at: Path<'_>, text: &str, e: &mut Errors) -> Option<IpAddr> {
    let Some(ip) = sloppy(text) else {
        e.invalid(at, text, NO_IP);
        return None;
    };
    if text.parse::<IpAddr>().is_err() {
        e.invalid(at, text, "must not have leading 0s");
    } else if mapped(ip) {
        e.invalid(at, text, "must not be an IPv4-mapped IPv6 address");
    }
    Some(ip)
}

/// A CIDR value.
pub fn cidr(at: Path<'_>, text: &str, e: &mut Errors) {
    let parts = text.split_once('/').and_then(|(ip, length)| {
        let length = length.bytes().all(|b| b.is_ascii_digit()).then(|| length.parse::<u8>().ok())??;
        Some((sloppy(ip)?, ip.parse::<IpAddr>().is_ok(), length))
    });
    let Some((ip, strict, length)) = parts else { return e.invalid(at, text, NO_CIDR) };
    let Ok(net) = ipnet::IpNet::new(ip, length) else { return e.invalid(at, text, NO_CIDR) };
    let zeros = text.rsplit('/').next().is_some_and(|l| l.len() > 1 && l.starts_with('0'));
    if !strict || zeros {
        e.invalid(at, text, "must not have leading 0s in IP or prefix length");
    } else if mapped(ip) {
        e.invalid(at, text, "must not have an IPv4-mapped IPv6 address");
    } else if net.network() != ip {
        e.invalid(at, text, "must not have bits set beyond the prefix length");
    }
}

/// What a `Warning` says about an address that is let pass for the sake of old objects.
pub fn ip_warning(at: Path<'_>, text: &str) -> Option<String> {
    let ip = sloppy(text)?;
    let quoted = crate::text::quote(text);
    let canonical = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or_else(|| ip.to_string(), |v4| v4.to_string()),
        IpAddr::V4(_) => ip.to_string(),
    };
    let shown = crate::text::quote(&canonical);
    if text.parse::<IpAddr>().is_err() || mapped(ip) {
        return Some(format!("{at}: non-standard IP address {quoted} is invalid: use {shown}"));
    }
    (ip.is_ipv6() && canonical != text)
        .then(|| format!("{at}: IPv6 address {quoted} should be in RFC 5952 canonical format ({shown})"))
}

/// The same for a CIDR value.
pub fn cidr_warnings(at: Path<'_>, text: &str) -> Vec<String> {
    let Some((ip, length)) = text.split_once('/') else { return Vec::new() };
    let (Some(address), Ok(prefix)) = (sloppy(ip), length.parse::<u8>()) else { return Vec::new() };
    let Ok(net) = ipnet::IpNet::new(address, prefix).map(|n| n.trunc()) else { return Vec::new() };
    let (quoted, shown) = (crate::text::quote(text), crate::text::quote(&net.to_string()));
    let mut out = Vec::new();
    if net.network() != address {
        let single = crate::text::quote(&format!("{address}/{}", net.max_prefix_len()));
        out.push(format!(
            "{at}: CIDR value {quoted} is ambiguous in this context (should be {shown} or {single}?)"
        ));
    }
    let zeros = ip.parse::<IpAddr>().is_err() || (length.len() > 1 && length.starts_with('0'));
    if zeros || mapped(address) {
        out.push(format!("{at}: non-standard CIDR value {quoted} is invalid: use {shown}"));
    }
    if out.is_empty() && address.is_ipv6() && net.to_string() != text {
        out.push(format!("{at}: IPv6 CIDR value {quoted} should be in RFC 5952 canonical format ({shown})"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        type Check = fn(Path<'_>, &str, &mut Errors);
        let ip_check: Check = |at, text, e| {
            ip(at, text, e);
        };
        let cases: [(Check, &str, &str); 14] = [
            (ip_check, "10.0.0.1", ""),
            (ip_check, "::1", ""),
            (ip_check, "010.0.0.1", "must not have leading 0s"),
            (ip_check, "::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
            (ip_check, "1.2.3", NO_IP),
            (ip_check, "", NO_IP),
            (cidr, "10.0.0.0/8", ""),
            (cidr, "fd00::/8", ""),
            (cidr, "10.0.0.1/8", "must not have bits set beyond the prefix length"),
            (cidr, "10.00.0.0/8", "must not have leading 0s in IP or prefix length"),
            (cidr, "10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
            (cidr, "::ffff:10.0.0.0/104", "must not have an IPv4-mapped IPv6 address"),
            (cidr, "10.0.0.0", NO_CIDR),
            (cidr, "10.0.0.0/33", NO_CIDR),
        ];
        for (check, text, want) in cases {
            let mut e = Errors::default();
            check(Path::new("f"), text, &mut e);
            let found: Vec<String> = e.into_vec().into_iter().map(|e| e.detail).collect();
            assert_eq!(found, if want.is_empty() { vec![] } else { vec![want.to_owned()] }, "{text}");
        }
    }
}
