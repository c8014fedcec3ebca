//! Refusals: a TCP RST (RFC 9293, 3.10.7.1), or an ICMP error (RFC 792, RFC 4443), sent back where the packet came
//! from.

use aya_ebpf::bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_redirect, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::metrics::reason;
use hawser_ebpf_common::{PROTO_ICMP, PROTO_ICMP6, PROTO_TCP, PROTO_UDP};

use crate::family::Family;
use crate::far;
use crate::forward::Verdict;
use crate::frame::Frame;
use crate::packet::{
    ETH_LEN, ICMP_LEN, IP_LEN, IP6_LEN, Ipv4Header, Ipv6Header, Packet, Part, TCP_ACK, TCP_FIN, TCP_RST,
    TCP_SYN,
};

const TTL: u8 = 64;
/// "Don't fragment".
const IP_DF: u16 = 0x4000;
/// How much of the refused packet an ICMP error quotes beyond the IP header.
const QUOTED: usize = 8;

/// Type, code, and the last word of the header.
struct Message {
    v4: (u8, u8),
    v6: (u8, u8),
    /// Next-hop MTU where the type has one.
    mtu: u16,
}

const PORT_UNREACHABLE: Message = Message { v4: (3, 3), v6: (1, 4), mtu: 0 };

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

/// What the checksum covers beside the message, with room for either family; unused words are zero.
#[repr(C)]
struct Pseudo<T> {
    saddr_be: [u32; 4],
    daddr_be: [u32; 4],
    len_be: u32,
    protocol_be: u32,
    message: T,
}

/// An ICMP error with the refused packet's headers.
#[repr(C)]
#[derive(Clone, Copy)]
struct IcmpQuote<const N: usize> {
    kind: u8,
    code: u8,
    checksum: u16,
    unused: [u8; 2],
    mtu_be: u16,
    quoted: [u8; N],
}

/// Answers a packet that no backend will get. `reason` is what is counted.
#[inline(always)]
pub fn reject<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, reason: u32) -> Result<Verdict, u32> {
    far::unpack(reject_far::<F>(ctx, packet, reason))
}

#[inline(never)]
fn reject_far<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, reason: u32) -> u64 {
    far::pack(reject_near::<F>(ctx, packet, reason))
}

#[inline(always)]
fn reject_near<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, reason: u32) -> Result<Verdict, u32> {
    if packet.part == Part::Later {
        return Err(reason);
    }
    match packet.tuple.protocol {
        PROTO_TCP if packet.tcp_flags & TCP_RST == 0 => reset::<F>(ctx, packet)?,
        PROTO_UDP => icmp::<F>(ctx, packet, &PORT_UNREACHABLE)?,
        _ => return Err(reason),
    }
    turn_around(ctx, reason)
}

/// Tells the sender that the way on takes packets of `mtu` bytes only (RFC 1191, RFC 8201).
#[inline(always)]
pub fn too_big<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, mtu: u16) -> Result<Verdict, u32> {
    far::unpack(too_big_far::<F>(ctx, packet, mtu))
}

#[inline(never)]
fn too_big_far<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, mtu: u16) -> u64 {
    far::pack(too_big_near::<F>(ctx, packet, mtu))
}

#[inline(always)]
fn too_big_near<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, mtu: u16) -> Result<Verdict, u32> {
    icmp::<F>(ctx, packet, &Message { v4: (3, 4), v6: (2, 0), mtu })?;
    turn_around(ctx, reason::TOO_BIG)
}

#[inline(always)]
fn pseudo<F: Family, T>(packet: &Packet<F::Address>, protocol: u8, message: T) -> Pseudo<T> {
    Pseudo {
        saddr_be: F::words(packet.tuple.daddr_be),
        daddr_be: F::words(packet.tuple.saddr_be),
        len_be: (size_of::<T>() as u32).to_be(),
        protocol_be: u32::from(protocol).to_be(),
        message,
    }
}

#[inline(always)]
fn reset<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>) -> Result<(), u32> {
    let tcp: TcpHeader = Frame::load(ctx, packet.l4)?;
    let headers = (packet.l4 - ETH_LEN) as u32 + u32::from(tcp.offset >> 4) * 4;
    let payload = packet.total_len.wrapping_sub(headers);
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
    let mut pseudo = pseudo::<F, _>(packet, PROTO_TCP, answer);
    // SAFETY: the struct has no padding and its size is a multiple of 4.
    answer.checksum = fold(unsafe { sum((&raw mut pseudo).cast(), size_of::<Pseudo<TcpHeader>>() as u32) });
    change_tail(ctx, ETH_LEN + ip_len::<F>() + size_of::<TcpHeader>())?;
    write_ip::<F>(ctx, packet, PROTO_TCP, size_of::<TcpHeader>())?;
    Frame::store(ctx, ETH_LEN + ip_len::<F>(), &answer)
}

#[inline(always)]
fn ip_len<F: Family>() -> usize {
    if F::V6 { IP6_LEN } else { IP_LEN }
}

/// Makes an ICMP error of the packet. What it quotes are the IP header and 8 bytes after it: the ports, unless there are
/// options or extension headers, in which case the receiver finds no socket and the sender times out.
#[inline(always)]
fn icmp<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, message: &Message) -> Result<(), u32> {
    if F::V6 {
        let quote = quote::<{ IP6_LEN + QUOTED }>(ctx, message.v6, message.mtu)?;
        let mut pseudo = pseudo::<F, _>(packet, PROTO_ICMP6, quote);
        let len = size_of::<Pseudo<IcmpQuote<{ IP6_LEN + QUOTED }>>>();
        // SAFETY: the struct has no padding and its size is a multiple of 4.
        pseudo.message.checksum = fold(unsafe { sum((&raw mut pseudo).cast(), len as u32) });
        write_icmp::<F, _>(ctx, packet, PROTO_ICMP6, IP6_LEN + ICMP_LEN, &pseudo.message)
    } else {
        let mut quote = quote::<{ IP_LEN + QUOTED }>(ctx, message.v4, message.mtu)?;
        let len = size_of::<IcmpQuote<{ IP_LEN + QUOTED }>>();
        // SAFETY: the struct has no padding and its size is a multiple of 4.
        quote.checksum = fold(unsafe { sum((&raw mut quote).cast(), len as u32) });
        write_icmp::<F, _>(ctx, packet, PROTO_ICMP, IP_LEN + ICMP_LEN, &quote)
    }
}

#[inline(always)]
fn quote<const N: usize>(ctx: &TcContext, (kind, code): (u8, u8), mtu: u16) -> Result<IcmpQuote<N>, u32> {
    let quoted = Frame::load(ctx, ETH_LEN)?;
    Ok(IcmpQuote { kind, code, checksum: 0, unused: [0; 2], mtu_be: mtu.to_be(), quoted })
}

#[inline(always)]
fn write_icmp<F: Family, T: Copy>(
    ctx: &TcContext,
    packet: &Packet<F::Address>,
    protocol: u8,
    room: usize,
    message: &T,
) -> Result<(), u32> {
    ctx.adjust_room(room as i32, BPF_ADJ_ROOM_MAC, 0).map_err(|_| reason::WRITE_FAILED)?;
    change_tail(ctx, ETH_LEN + ip_len::<F>() + size_of::<T>())?;
    write_ip::<F>(ctx, packet, protocol, size_of::<T>())?;
    Frame::store(ctx, ETH_LEN + ip_len::<F>(), message)
}

/// Writes the IP header of the answer: from the address that was asked to the one that asked.
#[inline(always)]
fn write_ip<F: Family>(
    ctx: &TcContext,
    packet: &Packet<F::Address>,
    protocol: u8,
    len: usize,
) -> Result<(), u32> {
    if F::V6 {
        let ip = Ipv6Header {
            version_class: [0x60, 0, 0, 0],
            payload_len_be: (len as u16).to_be(),
            next: protocol,
            hops: TTL,
            saddr_be: F::words(packet.tuple.daddr_be),
            daddr_be: F::words(packet.tuple.saddr_be),
        };
        return Frame::store(ctx, ETH_LEN, &ip);
    }
    let mut ip = Ipv4Header {
        version_ihl: 0x45,
        tos: 0,
        total_len_be: ((IP_LEN + len) as u16).to_be(),
        id_be: 0,
        fragment_be: IP_DF.to_be(),
        ttl: TTL,
        protocol,
        checksum_be: 0,
        saddr_be: F::words(packet.tuple.daddr_be)[0],
        daddr_be: F::words(packet.tuple.saddr_be)[0],
    };
    // SAFETY: the struct has no padding and its size is a multiple of 4.
    ip.checksum_be = fold(unsafe { sum((&raw mut ip).cast(), IP_LEN as u32) });
    Frame::store(ctx, ETH_LEN, &ip)
}

/// Swaps the link-layer addresses and sends back.
#[inline(always)]
pub fn turn_around(ctx: &TcContext, reason: u32) -> Result<Verdict, u32> {
    let old: [u16; 6] = Frame::load(ctx, 0)?;
    let new = [old[3], old[4], old[5], old[0], old[1], old[2]];
    Frame::store(ctx, 0, &new)?;
    // SAFETY: the context is valid; the interface is the one the packet came from.
    Ok((unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) } as i32, reason))
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
