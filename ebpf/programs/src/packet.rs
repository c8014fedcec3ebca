//! Reading packets: IP headers, fragments, transport headers.

use hawser_ebpf_common::ct::{CtEntry, CtKey, FragmentKey, FragmentPorts, OldCtEntry};
use hawser_ebpf_common::lb::Address6;
use hawser_ebpf_common::metrics::reason;
use hawser_ebpf_common::{PROTO_SCTP, PROTO_TCP, PROTO_UDP};

use crate::ct::{Rewrite, Translation};
use crate::family::Family;
use crate::far;
use crate::frame::Frame;

/// Length of an Ethernet header.
pub const ETH_LEN: usize = 14;
/// Length of an IPv4 header without options.
pub const IP_LEN: usize = 20;
/// Length of an IPv6 header.
pub const IP6_LEN: usize = 40;
/// Ethertypes as they lie in the packet.
pub const ETH_P_IP_BE: u16 = 0x0800u16.to_be();
pub const ETH_P_IPV6_BE: u16 = 0x86ddu16.to_be();
pub const ETH_P_ARP_BE: u16 = 0x0806u16.to_be();

/// TCP flags.
pub const TCP_FIN: u8 = 1;
pub const TCP_SYN: u8 = 2;
pub const TCP_RST: u8 = 4;
pub const TCP_ACK: u8 = 16;

pub const ICMP_LEN: usize = 8;

/// "More fragments" and the offset in an IPv4 header; the offset and "more" in IPv6's fragment header.
const IP_MORE: u16 = 0x2000;
const IP_OFFSET: u16 = 0x1fff;
const IP6_MORE: u16 = 1;
const IP6_OFFSET: u16 = 0xfff8;

/// How many extension headers are skipped (RFC 8200 names six that may come once each, and one twice).
const MAX_EXTENSIONS: usize = 6;
const EXT_HOP_BY_HOP: u8 = 0;
const EXT_ROUTING: u8 = 43;
const EXT_FRAGMENT: u8 = 44;
const EXT_DESTINATION: u8 = 60;

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

/// An IPv6 header (RFC 8200).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6Header {
    pub version_class: [u8; 4],
    pub payload_len_be: u16,
    pub next: u8,
    pub hops: u8,
    pub saddr_be: Address6,
    pub daddr_be: Address6,
}

/// A fragment's place in its datagram.
#[derive(Clone, Copy, PartialEq)]
pub enum Part {
    Whole,
    /// It has the transport header, or its beginning.
    First,
    /// It has no transport header.
    Later,
}

/// What an IP header says, whatever its version.
#[derive(Clone, Copy)]
pub struct Header<A> {
    pub saddr_be: A,
    pub daddr_be: A,
    pub protocol: u8,
    pub ttl: u8,
    pub part: Part,
    /// Do not fragment. Always so in IPv6.
    pub whole_only: bool,
    pub id_be: u32,
    /// Offset of the transport header.
    pub l4: usize,
    /// Bytes from the IP header on.
    pub total_len: u32,
}

/// What the programs need to know of a packet.
#[derive(Clone, Copy)]
pub struct Packet<A> {
    /// Ports are 0 when the packet is not `trackable`.
    pub tuple: CtKey<A>,
    /// Offset of the transport header.
    pub l4: usize,
    /// Bytes from the IP header on.
    pub total_len: u32,
    pub ttl: u8,
    pub tcp_flags: u8,
    pub part: Part,
    pub whole_only: bool,
    /// TCP, UDP, SCTP or ICMP echo, and not a later fragment of something unknown: the tuple names a flow.
    pub trackable: bool,
    pub icmp_request: bool,
    /// An ICMP error: it is about the flow that it quotes.
    pub icmp_error: bool,
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy)]
pub struct Quoted<A> {
    pub tuple: CtKey<A>,
    /// Offset of its transport header.
    pub l4: usize,
}

/// Ports of a flow, as far as a packet names them.
struct Ports {
    sport_be: u16,
    dport_be: u16,
}

/// Offset of the IP header that an ICMP error quotes.
#[inline(always)]
pub fn quoted_l3<A>(packet: &Packet<A>) -> usize {
    packet.l4 + ICMP_LEN
}

impl<A> Packet<A> {
    /// The first packet of a flow, as far as one packet can tell.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        match self.tuple.protocol {
            PROTO_TCP => self.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN,
            PROTO_UDP | PROTO_SCTP => true,
            _ => self.icmp_request,
        }
    }
}

/// Reads an IPv4 header.
#[inline(always)]
pub fn header4<P: Frame>(frame: &P, l3: usize) -> Result<Header<u32>, u32> {
    let ip: Ipv4Header = frame.load(l3)?;
    let mut len = usize::from(ip.version_ihl & 0xf) * 4;
    if ip.version_ihl >> 4 != 4 || len < IP_LEN {
        return Err(reason::MALFORMED);
    }
    if P::PLAIN {
        if len != IP_LEN {
            return Err(reason::STACK);
        }
        len = IP_LEN;
    }
    let fragment = u16::from_be(ip.fragment_be);
    let part = match (fragment & IP_OFFSET != 0, fragment & IP_MORE != 0) {
        (true, _) => Part::Later,
        (false, true) => Part::First,
        (false, false) => Part::Whole,
    };
    Ok(Header {
        saddr_be: ip.saddr_be,
        daddr_be: ip.daddr_be,
        protocol: ip.protocol,
        ttl: ip.ttl,
        part,
        whole_only: fragment & 0x4000 != 0,
        id_be: u32::from(ip.id_be),
        l4: l3 + len,
        total_len: u32::from(u16::from_be(ip.total_len_be)),
    })
}

/// Reads an IPv6 header and skips extension headers.
#[inline(always)]
pub fn header6<P: Frame>(frame: &P, l3: usize) -> Result<Header<Address6>, u32> {
    let ip: Ipv6Header = frame.load(l3)?;
    if ip.version_class[0] >> 4 != 6 {
        return Err(reason::MALFORMED);
    }
    let mut header = Header {
        saddr_be: ip.saddr_be,
        daddr_be: ip.daddr_be,
        protocol: ip.next,
        ttl: ip.hops,
        part: Part::Whole,
        whole_only: true,
        id_be: 0,
        l4: l3 + IP6_LEN,
        total_len: IP6_LEN as u32 + u32::from(u16::from_be(ip.payload_len_be)),
    };
    if P::PLAIN {
        return Ok(header);
    }
    for _ in 0..MAX_EXTENSIONS {
        match header.protocol {
            EXT_HOP_BY_HOP | EXT_ROUTING | EXT_DESTINATION => {
                let start: [u8; 2] = frame.load(header.l4)?;
                header.protocol = start[0];
                header.l4 += (usize::from(start[1]) + 1) * 8;
            }
            EXT_FRAGMENT => {
                let start: [u16; 4] = frame.load(header.l4)?;
                let fragment = u16::from_be(start[1]);
                header.part = match (fragment & IP6_OFFSET != 0, fragment & IP6_MORE != 0) {
                    (true, _) => Part::Later,
                    (false, true) => Part::First,
                    (false, false) => Part::Whole,
                };
                header.id_be = u32::from(start[2]) | u32::from(start[3]) << 16;
                header.protocol = start[0].to_ne_bytes()[0];
                header.l4 += 8;
                if header.part == Part::Later {
                    break;
                }
            }
            _ => break,
        }
    }
    Ok(header)
}

/// Ports of a transport header, or what stands for them; `None` for a protocol without.
#[inline(always)]
fn ports<F: Family, P: Frame>(frame: &P, protocol: u8, l4: usize) -> Result<Option<Ports>, u32> {
    if protocol == F::ICMP {
        let start: [u16; 4] = frame.load(l4)?;
        let kind = start[0].to_ne_bytes()[0];
        return Ok(if kind == F::ECHO_REQUEST {
            Some(Ports { sport_be: start[2], dport_be: 0 })
        } else if kind == F::ECHO_REPLY {
            Some(Ports { sport_be: 0, dport_be: start[2] })
        } else {
            None
        });
    }
    if protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP {
        let ports: [u16; 2] = frame.load(l4)?;
        return Ok(Some(Ports { sport_be: ports[0], dport_be: ports[1] }));
    }
    Ok(None)
}

/// Reads the headers.
#[inline(always)]
fn parse<F: Family, P: Frame>(frame: &P) -> Result<Packet<F::Address>, u32> {
    let header = F::header(frame, ETH_LEN)?;
    let mut packet = Packet {
        tuple: CtKey {
            saddr_be: header.saddr_be,
            daddr_be: header.daddr_be,
            sport_be: 0,
            dport_be: 0,
            protocol: header.protocol,
            pad: [0; 3],
        },
        l4: header.l4,
        total_len: header.total_len,
        ttl: header.ttl,
        tcp_flags: 0,
        part: header.part,
        whole_only: header.whole_only,
        trackable: false,
        icmp_request: false,
        icmp_error: false,
    };
    if P::PLAIN && header.part != Part::Whole {
        return Err(reason::STACK);
    }
    let fragment = FragmentKey {
        saddr_be: header.saddr_be,
        daddr_be: header.daddr_be,
        id_be: header.id_be,
        protocol: header.protocol,
        pad: [0; 3],
    };
    if header.part == Part::Later {
        // SAFETY: copied at once. An element that the LRU map recycles meanwhile belongs to another datagram; its
        // ports name a flow that has no entry, or the checksum of the whole tells.
        if let Some(ports) = unsafe { F::fragments().get(&fragment) }.copied() {
            packet.tuple.sport_be = ports.sport_be;
            packet.tuple.dport_be = ports.dport_be;
            packet.icmp_request = packet.tuple.dport_be == 0;
            packet.trackable = true;
        }
        return Ok(packet);
    }
    match ports::<F, P>(frame, header.protocol, header.l4)? {
        Some(ports) => {
            packet.tuple.sport_be = ports.sport_be;
            packet.tuple.dport_be = ports.dport_be;
            packet.trackable = true;
        }
        None if header.protocol == F::ICMP => {
            let kind: u8 = frame.load(header.l4)?;
            packet.icmp_error = F::is_error(kind);
        }
        None => {}
    }
    if header.protocol == PROTO_TCP {
        packet.tcp_flags = frame.load(header.l4 + 13)?;
    }
    if header.protocol == F::ICMP {
        packet.icmp_request = packet.trackable && packet.tuple.dport_be == 0;
    }
    if header.part == Part::First && packet.trackable {
        let ports = FragmentPorts { sport_be: packet.tuple.sport_be, dport_be: packet.tuple.dport_be };
        // A failure costs the later fragments, which are then counted as dropped.
        let _ = F::fragments().insert(&fragment, &ports, 0);
    }
    Ok(packet)
}

/// Memory of one run of a program, which spares the stack.
#[repr(C)]
pub struct Aside<A> {
    pub packet: Packet<A>,
    pub entry: CtEntry<A>,
    pub renewed: CtEntry<A>,
    pub old: OldCtEntry<A>,
    pub translation: Translation<A>,
    pub to: Rewrite<A>,
    pub next: NextHop,
}

/// Where XDP sends a packet.
#[derive(Clone, Copy)]
pub struct NextHop {
    pub ifindex: u32,
    pub to: [u8; 6],
    pub from: [u8; 6],
}

/// Reads the headers into memory of this CPU's own, which spares the stack: nothing interrupts one of
/// these programs for another one.
#[inline(always)]
pub fn parse_aside<F: Family, P: Frame>(frame: &P) -> Result<&'static mut Packet<F::Address>, u32> {
    far::unpack_unit(parse_far::<F, P>(frame))?;
    let place = F::aside().ok_or(reason::MALFORMED)?;
    // SAFETY: an element of a per-CPU array, always there, and used by one program at a time.
    Ok(unsafe { &mut (*place).packet })
}

#[inline(never)]
fn parse_far<F: Family, P: Frame>(frame: &P) -> u64 {
    let Some(place) = F::aside() else { return far::pack_unit(Err(reason::MALFORMED)) };
    match parse::<F, P>(frame) {
        Ok(packet) => {
            // SAFETY: as in `parse_aside`.
            unsafe { (*place).packet = packet };
            far::pack_unit(Ok(()))
        }
        Err(reason) => far::pack_unit(Err(reason)),
    }
}

/// Reads what an ICMP error quotes; `None` when it is not about a flow.
#[inline(always)]
pub fn quoted<F: Family, P: Frame>(frame: &P, packet: &Packet<F::Address>) -> Option<Quoted<F::Address>> {
    let header = F::header(frame, quoted_l3(packet)).ok()?;
    if header.part == Part::Later {
        return None;
    }
    let ports = ports::<F, P>(frame, header.protocol, header.l4).ok()??;
    let tuple = CtKey {
        saddr_be: header.saddr_be,
        daddr_be: header.daddr_be,
        sport_be: ports.sport_be,
        dport_be: ports.dport_be,
        protocol: header.protocol,
        pad: [0; 3],
    };
    Some(Quoted { tuple, l4: header.l4 })
}
