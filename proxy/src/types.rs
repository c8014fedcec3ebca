//! The load balancer's nouns, as the agent thinks of them: both families in one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hawser_ebpf_common::lb::Address6;
pub use hawser_watch::Protocol;
use ipnet::IpNet;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Address, port and protocol: of a frontend or of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct L4Addr {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl L4Addr {
    /// All three parts.
    pub fn new(address: impl Into<IpAddr>, port: u16, protocol: Protocol) -> Self {
        Self { address: address.into(), port, protocol }
    }

    /// Of the address.
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }
}

impl fmt::Display for L4Addr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", std::net::SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// Backends with their `BACKEND_*` flags, by address, each once. Frontends of one port share them.
pub type Backends = Arc<[(L4Addr, u8)]>;

/// What one frontend should lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontendSpec {
    /// `KIND_*`.
    pub kind: u8,
    /// `ALGORITHM_*`.
    pub algorithm: u8,
    /// `SERVICE_*`.
    pub flags: u32,
    /// Seconds of session affinity; with `SERVICE_AFFINITY`.
    pub affinity_timeout_s: u32,
    /// Who may connect; with `SERVICE_SOURCE_RANGES`.
    pub source_ranges: Arc<[IpNet]>,
    /// For connections from inside, and for all without `SERVICE_TWO_SCOPES`.
    pub backends: Backends,
    /// For connections from outside the cluster; with `SERVICE_TWO_SCOPES`, else empty.
    pub external: Backends,
}

/// What should be known of a prefix of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixSpec {
    /// Node behind which the prefix lies; none when it is this node or none.
    pub node: Option<IpAddr>,
    /// `IDENTITY_*`.
    pub identity: u32,
    /// `IPCACHE_*`.
    pub flags: u32,
}

/// An address as the maps hold it: network byte order in memory.
pub fn address_be(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// Reverse of [`address_be`].
pub fn address_from_be(address: u32) -> Ipv4Addr {
    Ipv4Addr::from(address.to_ne_bytes())
}

/// As [`address_be`], of IPv6.
pub fn address6_be(address: Ipv6Addr) -> Address6 {
    let bytes = address.octets();
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

/// Reverse of [`address6_be`].
pub fn address6_from_be(address: Address6) -> Ipv6Addr {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(address) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes)
}

/// An address of either family in four words, IPv4 in the first.
pub fn words_be(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [address_be(address), 0, 0, 0],
        IpAddr::V6(address) => address6_be(address),
    }
}
