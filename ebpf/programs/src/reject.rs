//! Refusals: a TCP RST (RFC 9293, 3.10.7.1) or an ICMP port unreachable (RFC 792), sent back where
//! the packet came from.

use aya_ebpf::bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_redirect, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::metrics::reason;
use hawser_ebpf_common::{PROTO_ICMP, PROTO_TCP, PROTO_UDP};

use crate::forward::Verdict;
use crate::packet::{ETH_LEN, Ipv4Header, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

const IP_LEN: usize = 20;
const TTL: u8 = 64;
/// "Don't fragment".
const IP_DF: u16 = 0x4000;
const ICMP_LEN: usize = 8;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_PORT: u8 = 3;
/// How much of the refused packet an ICMP error quotes beyond the IP header.
const QUOTED: usize = 8;

/// A TCP header without options.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpHeader {
    sport_be: u16,
    dport_be: u16,
    seq_be: u32,
    ack_be: u32,
    offset: u8,
    flags: u8,
    window_be: u16,
    checksum: u16,
    urgent: u16,
}

/// What the checksum of a TCP segment covers.
#[repr(C)]
struct TcpPseudo {
    saddr_be: u32,
    daddr_be: u32,
    zero: u8,
    protocol: u8,
    len_be: u16,
    tcp: TcpHeader,
}

/// An ICMP error with the refused packet's headers.
#[repr(C)]
struct IcmpQuote {
    kind: u8,
    code: u8,
    checksum: u16,
    unused: u32,
    quoted: [u8; IP_LEN + QUOTED],
}

/// Answers a packet that no backend will get. `reason` is what is counted.
#[inline(always)]
pub fn reject(ctx: &TcContext, packet: &Packet, reason: u32) -> Result<Verdict, u32> {
    match packet.tuple.protocol {
        PROTO_TCP if packet.tcp_flags & TCP_RST == 0 => reset(ctx, packet)?,
        // With IP options the quotation would need a length known only at run time.
        PROTO_UDP if packet.l4 == ETH_LEN + IP_LEN => unreachable(ctx, packet)?,
        _ => return Err(reason),
    }
    turn_around(ctx)?;
    // SAFETY: the context is valid; the interface is the one the packet came from.
    Ok((unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) } as i32, reason))
}

#[inline(always)]
fn reset(ctx: &TcContext, packet: &Packet) -> Result<(), u32> {
    let tcp: TcpHeader = ctx.load(packet.l4).map_err(|_| reason::MALFORMED)?;
    let headers = (packet.l4 - ETH_LEN) as u32 + u32::from(tcp.offset >> 4) * 4;
    let payload = u32::from(packet.total_len).wrapping_sub(headers);
    let mut answer = TcpHeader {
        sport_be: tcp.dport_be,
        dport_be: tcp.sport_be,
        seq_be: 0,
        ack_be: 0,
        offset: 5 << 4,
        flags: TCP_RST,
        window_be: 0,
        checksum: 0,
        urgent: 0,
    };
    if tcp.flags & TCP_ACK != 0 {
        answer.seq_be = tcp.ack_be;
    } else {
        let control = u32::from(tcp.flags & TCP_SYN != 0) + u32::from(tcp.flags & TCP_FIN != 0);
        answer.ack_be = u32::from_be(tcp.seq_be).wrapping_add(payload).wrapping_add(control).to_be();
        answer.flags |= TCP_ACK;
    }
    let mut pseudo = TcpPseudo {
        saddr_be: packet.tuple.daddr_be,
        daddr_be: packet.tuple.saddr_be,
        zero: 0,
        protocol: PROTO_TCP,
        len_be: (size_of::<TcpHeader>() as u16).to_be(),
        tcp: answer,
    };
    // SAFETY: the struct has no padding and its size is a multiple of 4.
    let sum = unsafe { sum((&raw mut pseudo).cast(), size_of::<TcpPseudo>() as u32) };
    answer.checksum = fold(sum);
    let len = ETH_LEN + IP_LEN + size_of::<TcpHeader>();
    change_tail(ctx, len)?;
    write_ip(ctx, packet, PROTO_TCP, IP_LEN + size_of::<TcpHeader>())?;
    ctx.store(ETH_LEN + IP_LEN, &answer, 0).map_err(|_| reason::WRITE_FAILED)
}

#[inline(always)]
fn unreachable(ctx: &TcContext, packet: &Packet) -> Result<(), u32> {
    let mut icmp = IcmpQuote {
        kind: ICMP_UNREACHABLE,
        code: ICMP_PORT,
        checksum: 0,
        unused: 0,
        quoted: ctx.load(ETH_LEN).map_err(|_| reason::MALFORMED)?,
    };
    // SAFETY: the struct has no padding and its size is a multiple of 4.
    icmp.checksum = fold(unsafe { sum((&raw mut icmp).cast(), size_of::<IcmpQuote>() as u32) });
    ctx.adjust_room((IP_LEN + ICMP_LEN) as i32, BPF_ADJ_ROOM_MAC, 0).map_err(|_| reason::WRITE_FAILED)?;
    change_tail(ctx, ETH_LEN + IP_LEN + size_of::<IcmpQuote>())?;
    write_ip(ctx, packet, PROTO_ICMP, IP_LEN + size_of::<IcmpQuote>())?;
    ctx.store(ETH_LEN + IP_LEN, &icmp, 0).map_err(|_| reason::WRITE_FAILED)
}

/// Writes the IP header of the answer: from the address that was asked to the one that asked.
#[inline(always)]
fn write_ip(ctx: &TcContext, packet: &Packet, protocol: u8, len: usize) -> Result<(), u32> {
    let mut ip = Ipv4Header {
        version_ihl: 0x45,
        tos: 0,
        total_len_be: (len as u16).to_be(),
        id_be: 0,
        fragment_be: IP_DF.to_be(),
        ttl: TTL,
        protocol,
        checksum_be: 0,
        saddr_be: packet.tuple.daddr_be,
        daddr_be: packet.tuple.saddr_be,
    };
    // SAFETY: the struct has no padding and its size is a multiple of 4.
    ip.checksum_be = fold(unsafe { sum((&raw mut ip).cast(), IP_LEN as u32) });
    ctx.store(ETH_LEN, &ip, 0).map_err(|_| reason::WRITE_FAILED)
}

/// Swaps the link-layer addresses.
#[inline(always)]
fn turn_around(ctx: &TcContext) -> Result<(), u32> {
    let old: [u16; 6] = ctx.load(0).map_err(|_| reason::WRITE_FAILED)?;
    let new = [old[3], old[4], old[5], old[0], old[1], old[2]];
    ctx.store(0, &new, 0).map_err(|_| reason::WRITE_FAILED)
}

#[inline(always)]
fn change_tail(ctx: &TcContext, len: usize) -> Result<(), u32> {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid; the helper checks the length.
    match unsafe { bpf_skb_change_tail(skb, len as u32, 0) } {
        0 => Ok(()),
        _ => Err(reason::WRITE_FAILED),
    }
}

/// Sum of 16-bit words, not yet folded.
///
/// # Safety
/// `data` must point to `len` initialised bytes; `len` must be a multiple of 4.
#[inline(always)]
unsafe fn sum(data: *mut u32, len: u32) -> u32 {
    // SAFETY: the caller vouches for `data`; with a length of 0 the other pointer is not read.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, data, len, 0) as u32 }
}

/// Folds a sum to the Internet checksum (RFC 1071), as it goes into the packet.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
