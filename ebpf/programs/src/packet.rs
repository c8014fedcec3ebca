//! IPv4 packets at tc: reading the headers and rewriting addresses and ports.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::ct::{CtEntry4, CtKey4};
use hawser_ebpf_common::metrics::reason;
use hawser_ebpf_common::{PROTO_ICMP, PROTO_TCP, PROTO_UDP};

/// Length of an Ethernet header.
pub const ETH_LEN: usize = 14;
const ETH_P_IP_BE: u32 = 0x0800u16.to_be() as u32;
const IP_TTL: usize = ETH_LEN + 8;
const IP_CHECKSUM: usize = ETH_LEN + 10;
const IP_SADDR: usize = ETH_LEN + 12;
const IP_DADDR: usize = ETH_LEN + 16;

/// TCP flags.
pub const TCP_FIN: u8 = 1;
pub const TCP_SYN: u8 = 2;
pub const TCP_RST: u8 = 4;
pub const TCP_ACK: u8 = 16;

/// ICMP types with an identifier.
const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO_REQUEST: u8 = 8;
/// ICMP types that quote the packet they are about.
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_TIME_EXCEEDED: u8 = 11;
const ICMP_PARAMETER: u8 = 12;
const ICMP_LEN: usize = 8;

/// An IPv4 header without options (RFC 791).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4Header {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len_be: u16,
    pub id_be: u16,
    pub fragment_be: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum_be: u16,
    pub saddr_be: u32,
    pub daddr_be: u32,
}

/// What the programs need to know of a packet.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Ports are 0 when the packet is not `trackable`.
    pub tuple: CtKey4,
    /// Offset of the transport header.
    pub l4: usize,
    pub total_len: u16,
    pub ttl: u8,
    pub tcp_flags: u8,
    /// TCP, UDP or ICMP echo, and not a later fragment: the tuple names a flow.
    pub trackable: bool,
    /// A later fragment: it has no transport header.
    pub fragment: bool,
    pub icmp_request: bool,
    /// An ICMP error: it is about the flow that it quotes.
    pub icmp_error: bool,
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy)]
pub struct Quoted {
    pub tuple: CtKey4,
    /// Offset of its IP header.
    l3: usize,
    /// Offset of its transport header.
    l4: usize,
}

impl Quoted {
    /// The tuple of packets in the other direction: those that an entry of the flow would match.
    #[inline(always)]
    pub fn reversed(&self) -> CtKey4 {
        CtKey4 {
            saddr_be: self.tuple.daddr_be,
            daddr_be: self.tuple.saddr_be,
            sport_be: self.tuple.dport_be,
            dport_be: self.tuple.sport_be,
            protocol: self.tuple.protocol,
            pad: [0; 3],
        }
    }
}

impl Packet {
    /// The first packet of a flow, as far as one packet can tell.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        match self.tuple.protocol {
            PROTO_TCP => self.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN,
            PROTO_ICMP => self.icmp_request,
            _ => true,
        }
    }
}

/// Reads the headers; `None` for what is not IPv4.
#[inline(always)]
pub fn parse(ctx: &TcContext) -> Result<Option<Packet>, u32> {
    if ctx.skb.protocol() != ETH_P_IP_BE {
        return Ok(None);
    }
    let ip: Ipv4Header = ctx.load(ETH_LEN).map_err(|_| reason::MALFORMED)?;
    let header_len = usize::from(ip.version_ihl & 0xf) * 4;
    if ip.version_ihl >> 4 != 4 || header_len < 20 {
        return Err(reason::MALFORMED);
    }
    let mut packet = Packet {
        tuple: CtKey4 {
            saddr_be: ip.saddr_be,
            daddr_be: ip.daddr_be,
            sport_be: 0,
            dport_be: 0,
            protocol: ip.protocol,
            pad: [0; 3],
        },
        l4: ETH_LEN + header_len,
        total_len: u16::from_be(ip.total_len_be),
        ttl: ip.ttl,
        tcp_flags: 0,
        trackable: false,
        fragment: u16::from_be(ip.fragment_be) & 0x1fff != 0,
        icmp_request: false,
        icmp_error: false,
    };
    if packet.fragment {
        return Ok(Some(packet));
    }
    match ip.protocol {
        PROTO_TCP => {
            let ports: [u16; 2] = ctx.load(packet.l4).map_err(|_| reason::MALFORMED)?;
            packet.tuple.sport_be = ports[0];
            packet.tuple.dport_be = ports[1];
            packet.tcp_flags = ctx.load(packet.l4 + 13).map_err(|_| reason::MALFORMED)?;
            packet.trackable = true;
        }
        PROTO_UDP => {
            let ports: [u16; 2] = ctx.load(packet.l4).map_err(|_| reason::MALFORMED)?;
            packet.tuple.sport_be = ports[0];
            packet.tuple.dport_be = ports[1];
            packet.trackable = true;
        }
        PROTO_ICMP => {
            let header: [u16; 4] = ctx.load(packet.l4).map_err(|_| reason::MALFORMED)?;
            let kind = header[0].to_ne_bytes()[0];
            if kind == ICMP_ECHO_REQUEST {
                packet.tuple.sport_be = header[2];
                packet.icmp_request = true;
                packet.trackable = true;
            } else if kind == ICMP_ECHO_REPLY {
                packet.tuple.dport_be = header[2];
                packet.trackable = true;
            } else if kind == ICMP_UNREACHABLE || kind == ICMP_TIME_EXCEEDED || kind == ICMP_PARAMETER {
                packet.icmp_error = true;
            }
        }
        _ => {}
    }
    Ok(Some(packet))
}

/// Reads what an ICMP error quotes; `None` when it is not about a flow.
#[inline(always)]
pub fn quoted(ctx: &TcContext, packet: &Packet) -> Option<Quoted> {
    let l3 = packet.l4 + ICMP_LEN;
    let ip: Ipv4Header = ctx.load(l3).ok()?;
    let header_len = usize::from(ip.version_ihl & 0xf) * 4;
    if ip.version_ihl >> 4 != 4 || header_len < 20 || u16::from_be(ip.fragment_be) & 0x1fff != 0 {
        return None;
    }
    let l4 = l3 + header_len;
    let (sport_be, dport_be) = match ip.protocol {
        PROTO_TCP | PROTO_UDP => {
            let ports: [u16; 2] = ctx.load(l4).ok()?;
            (ports[0], ports[1])
        }
        PROTO_ICMP => {
            let header: [u16; 4] = ctx.load(l4).ok()?;
            match header[0].to_ne_bytes()[0] {
                ICMP_ECHO_REQUEST => (header[2], 0),
                ICMP_ECHO_REPLY => (0, header[2]),
                _ => return None,
            }
        }
        _ => return None,
    };
    let protocol = ip.protocol;
    let tuple =
        CtKey4 { saddr_be: ip.saddr_be, daddr_be: ip.daddr_be, sport_be, dport_be, protocol, pad: [0; 3] };
    Some(Quoted { tuple, l3, l4 })
}

/// Translates an ICMP error with the entry of the flow's other direction: the quoted packet becomes what
/// its sender sent, and the error goes to that sender.
#[inline(always)]
pub fn rewrite_error(
    ctx: &TcContext,
    packet: &mut Packet,
    quoted: &Quoted,
    entry: &CtEntry4,
) -> Result<(), u32> {
    let old = quoted.tuple;
    // The quoted header's own checksum makes up for the addresses, so the ICMP checksum stays right.
    for (offset, from, to) in [(12, old.saddr_be, entry.new_daddr_be), (16, old.daddr_be, entry.new_saddr_be)]
    {
        if from != to {
            ctx.l3_csum_replace(quoted.l3 + 10, u64::from(from), u64::from(to), 4)
                .map_err(|_| reason::WRITE_FAILED)?;
            ctx.store(quoted.l3 + offset, &to, 0).map_err(|_| reason::WRITE_FAILED)?;
        }
    }
    let (sport, dport) = match old.protocol {
        PROTO_ICMP => (quoted.l4 + 4, quoted.l4 + 4),
        _ => (quoted.l4, quoted.l4 + 2),
    };
    if old.sport_be != entry.new_dport_be {
        replace_port(ctx, packet, sport, old.sport_be, entry.new_dport_be)?;
    }
    if old.dport_be != entry.new_sport_be {
        replace_port(ctx, packet, dport, old.dport_be, entry.new_sport_be)?;
    }
    // Written by the one who got the packet: it goes by the name that the sender knows.
    if packet.tuple.saddr_be == old.daddr_be && old.daddr_be != entry.new_saddr_be {
        replace_address(ctx, packet, IP_SADDR, old.daddr_be, entry.new_saddr_be)?;
        packet.tuple.saddr_be = entry.new_saddr_be;
    }
    if packet.tuple.daddr_be != entry.new_daddr_be {
        replace_address(ctx, packet, IP_DADDR, packet.tuple.daddr_be, entry.new_daddr_be)?;
        packet.tuple.daddr_be = entry.new_daddr_be;
    }
    Ok(())
}

/// Applies the rewrite of a CT entry; the packet's tuple is then the new one.
#[inline(always)]
pub fn rewrite(ctx: &TcContext, packet: &mut Packet, entry: &CtEntry4) -> Result<(), u32> {
    let old = packet.tuple;
    if old.saddr_be != entry.new_saddr_be {
        replace_address(ctx, packet, IP_SADDR, old.saddr_be, entry.new_saddr_be)?;
        packet.tuple.saddr_be = entry.new_saddr_be;
    }
    if old.daddr_be != entry.new_daddr_be {
        replace_address(ctx, packet, IP_DADDR, old.daddr_be, entry.new_daddr_be)?;
        packet.tuple.daddr_be = entry.new_daddr_be;
    }
    let (sport, dport) = match old.protocol {
        PROTO_ICMP => (packet.l4 + 4, packet.l4 + 4),
        _ => (packet.l4, packet.l4 + 2),
    };
    if old.sport_be != entry.new_sport_be {
        replace_port(ctx, packet, sport, old.sport_be, entry.new_sport_be)?;
        packet.tuple.sport_be = entry.new_sport_be;
    }
    if old.dport_be != entry.new_dport_be {
        replace_port(ctx, packet, dport, old.dport_be, entry.new_dport_be)?;
        packet.tuple.dport_be = entry.new_dport_be;
    }
    Ok(())
}

/// Where the transport checksum lies, and the flags its update needs: a UDP checksum of 0 means
/// that there is none.
#[inline(always)]
fn checksum(packet: &Packet) -> (usize, u64) {
    match packet.tuple.protocol {
        PROTO_TCP => (packet.l4 + 16, 0),
        PROTO_UDP => (packet.l4 + 6, u64::from(BPF_F_MARK_MANGLED_0)),
        _ => (packet.l4 + 2, 0),
    }
}

#[inline(always)]
fn replace_address(ctx: &TcContext, packet: &Packet, offset: usize, old: u32, new: u32) -> Result<(), u32> {
    if packet.tuple.protocol != PROTO_ICMP {
        let (checksum, flags) = checksum(packet);
        let flags = flags | u64::from(BPF_F_PSEUDO_HDR) | 4;
        ctx.l4_csum_replace(checksum, u64::from(old), u64::from(new), flags)
            .map_err(|_| reason::WRITE_FAILED)?;
    }
    ctx.l3_csum_replace(IP_CHECKSUM, u64::from(old), u64::from(new), 4).map_err(|_| reason::WRITE_FAILED)?;
    ctx.store(offset, &new, 0).map_err(|_| reason::WRITE_FAILED)
}

#[inline(always)]
fn replace_port(ctx: &TcContext, packet: &Packet, offset: usize, old: u16, new: u16) -> Result<(), u32> {
    let (checksum, flags) = checksum(packet);
    ctx.l4_csum_replace(checksum, u64::from(old), u64::from(new), flags | 2)
        .map_err(|_| reason::WRITE_FAILED)?;
    ctx.store(offset, &new, 0).map_err(|_| reason::WRITE_FAILED)
}

/// One hop less. The caller has seen that the TTL is above 1.
#[inline(always)]
pub fn decrement_ttl(ctx: &TcContext, packet: &Packet) -> Result<(), u32> {
    let old = u16::from_ne_bytes([packet.ttl, packet.tuple.protocol]);
    let new = u16::from_ne_bytes([packet.ttl - 1, packet.tuple.protocol]);
    ctx.l3_csum_replace(IP_CHECKSUM, u64::from(old), u64::from(new), 2).map_err(|_| reason::WRITE_FAILED)?;
    ctx.store(IP_TTL, &(packet.ttl - 1), 0).map_err(|_| reason::WRITE_FAILED)
}
