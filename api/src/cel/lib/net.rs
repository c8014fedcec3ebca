//! Addresses and networks. IPv4 addresses written as IPv6 are refused, as are zones.

use std::fmt;
use std::net::IpAddr;

use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Value};

const NO: EvalError = EvalError::NoSuchOverload;

/// An address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip(IpAddr);

impl Ip {
    fn parse(text: &str) -> Result<Self, String> {
        match text.parse::<IpAddr>() {
            Ok(IpAddr::V6(a)) if a.to_ipv4_mapped().is_some() => {
                Err("IPv4-mapped IPv6 address is not allowed".into())
            }
            Ok(a) => Ok(Self(a)),
            Err(_) => Err(format!(
                "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
            )),
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        if self.0.is_ipv4() { 4 } else { 16 }
    }

    fn bits(&self) -> u128 {
        match self.0 {
            IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
            IpAddr::V6(a) => u128::from(a),
        }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    ip: Ip,
    length: u8,
}

impl Cidr {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "network address parse error during conversion from string: netip.ParsePrefix({text:?}): invalid"
            )
        };
        let (ip, length) = text.rsplit_once('/').ok_or_else(wrong)?;
        let ip = Ip::parse(ip).map_err(|e| if e.contains("mapped") { e } else { wrong() })?;
        let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
        if !digits || (length.len() > 1 && length.starts_with('0')) {
            return Err(wrong());
        }
        let most = if ip.0.is_ipv4() { 32 } else { 128 };
        let length = length.parse().ok().filter(|l| *l <= most).ok_or_else(wrong)?;
        Ok(Self { ip, length })
    }

    /// Bytes of the prefix.
    pub fn size(&self) -> u64 {
        u64::from(self.length).div_ceil(8)
    }

    fn prefix(&self, ip: Ip) -> u128 {
        if self.length == 0 { 0 } else { ip.bits() >> (128 - u32::from(self.length)) }
    }

    fn contains(&self, ip: Ip) -> bool {
        self.ip.0.is_ipv4() == ip.0.is_ipv4() && self.prefix(self.ip) == self.prefix(ip)
    }

    fn masked(&self) -> Self {
        let bits = if self.length == 0 { 0 } else { self.prefix(self.ip) << (128 - u32::from(self.length)) };
        let ip = match self.ip.0 {
            IpAddr::V4(_) => IpAddr::from(((bits >> 96) as u32).to_be_bytes()),
            IpAddr::V6(_) => IpAddr::from(bits.to_be_bytes()),
        };
        Self { ip: Ip(ip), length: self.length }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

pub fn ip<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ip::parse(s).map(Value::Ip).map_err(EvalError::Value),
        [Value::Cidr(c)] => Ok(Value::Ip(c.ip)),
        _ => Err(NO),
    }
}

pub fn is_ip<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::Bool(Ip::parse(s).is_ok())),
        _ => Err(NO),
    }
}

pub fn is_canonical<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => {
            Ip::parse(s).map(|ip| Value::Bool(ip.to_string() == **s)).map_err(EvalError::Value)
        }
        _ => Err(NO),
    }
}

fn address<'a>(args: &[Value<'a>], holds: impl Fn(IpAddr) -> bool) -> Outcome<'a> {
    match args {
        [Value::Ip(Ip(a))] => Ok(Value::Bool(holds(*a))),
        _ => Err(NO),
    }
}

pub fn family<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Ip(Ip(a))] => Ok(Value::Int(if a.is_ipv4() { 4 } else { 6 })),
        _ => Err(NO),
    }
}
pub fn is_unspecified<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    address(args, |a| a.is_unspecified())
}
pub fn is_loopback<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    address(args, |a| a.is_loopback())
}
/// `224.0.0.0/24`, `ff02::/16` whatever the flags.
fn link_local_multicast(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => a.segments()[0] & 0xff0f == 0xff02,
    }
}
fn link_local(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}
pub fn is_link_local_multicast<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    address(args, link_local_multicast)
}
pub fn is_link_local_unicast<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    address(args, link_local)
}
pub fn is_global_unicast<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    address(args, |a| {
        let broadcast = matches!(a, IpAddr::V4(a) if a.is_broadcast());
        !(broadcast || a.is_unspecified() || a.is_loopback() || a.is_multicast() || link_local(a))
    })
}

pub fn cidr<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Cidr::parse(s).map(Value::Cidr).map_err(EvalError::Value),
        _ => Err(NO),
    }
}

pub fn is_cidr<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::Bool(Cidr::parse(s).is_ok())),
        _ => Err(NO),
    }
}

pub fn contains_ip<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (cidr, ip) = match args {
        [Value::Cidr(c), Value::Ip(ip)] => (c, *ip),
        [Value::Cidr(c), Value::String(s)] => (c, Ip::parse(s).map_err(EvalError::Value)?),
        _ => return Err(NO),
    };
    Ok(Value::Bool(cidr.contains(ip)))
}

pub fn contains_cidr<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let (cidr, other) = match args {
        [Value::Cidr(c), Value::Cidr(other)] => (c, *other),
        [Value::Cidr(c), Value::String(s)] => (c, Cidr::parse(s).map_err(EvalError::Value)?),
        _ => return Err(NO),
    };
    Ok(Value::Bool(cidr.length <= other.length && cidr.contains(other.ip)))
}

pub fn prefix_length<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Cidr(c)] => Ok(Value::Int(i64::from(c.length))),
        _ => Err(NO),
    }
}

pub fn masked<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::Cidr(c)] => Ok(Value::Cidr(c.masked())),
        _ => Err(NO),
    }
}
