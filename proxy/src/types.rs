//! The load balancer's nouns, as the agent thinks of them.

use std::fmt;
use std::net::Ipv4Addr;

use hawser_ebpf_common::{PROTO_TCP, PROTO_UDP};

/// Transport protocols that are translated. SCTP is not: its checksum covers what tc cannot rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// From the API's name; an absent protocol means TCP.
    pub fn from_api(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some(_) => None,
        }
    }

    /// `IPPROTO_*`.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => PROTO_TCP,
            Self::Udp => PROTO_UDP,
        }
    }

    /// From `IPPROTO_*`.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            PROTO_TCP => Some(Self::Tcp),
            PROTO_UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Address, port and protocol: of a frontend or of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct L4Addr {
    /// Address.
    pub address: Ipv4Addr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl L4Addr {
    /// All three parts.
    pub fn new(address: Ipv4Addr, port: u16, protocol: Protocol) -> Self {
        Self { address, port, protocol }
    }
}

impl fmt::Display for L4Addr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}/{}", self.address, self.port, self.protocol)
    }
}

/// What one frontend should lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontendSpec {
    /// Backends with their `BACKEND_*` flags, by address, each once.
    pub backends: Vec<(L4Addr, u8)>,
    /// `SERVICE_*`.
    pub flags: u16,
}

/// An address as the maps hold it: network byte order in memory.
pub fn address_be(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// Reverse of [`address_be`].
pub fn address_from_be(address: u32) -> Ipv4Addr {
    Ipv4Addr::from(address.to_ne_bytes())
}
