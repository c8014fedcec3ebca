//! Answers to who asks for the link-layer address of a Service: ARP (RFC 826) and neighbour discovery (RFC 4861), for
//! the addresses that this node announces.

use aya_ebpf::helpers::bpf_csum_diff;
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::PROTO_ICMP6;
use hawser_ebpf_common::lb::Address6;
use hawser_ebpf_common::metrics::reason;

use crate::far;
use crate::forward::{NEXT, Verdict, config};
use crate::frame::Frame;
use crate::maps::{ANNOUNCE, ANNOUNCE6};
use crate::packet::{ETH_LEN, IP6_LEN, Ipv6Header};

const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// "Solicited" and "override".
const ADVERTISEMENT_FLAGS: u8 = 0x60;
const TARGET_LINK_ADDRESS: u8 = 2;
/// Neighbour discovery never comes through a router.
const HOPS: u8 = 255;

/// An ARP packet between Ethernet and IPv4.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arp {
    kinds: [u8; 6],
    operation: [u8; 2],
    sender_mac: [u8; 6],
    sender_ip: [u8; 4],
    target_mac: [u8; 6],
    target_ip: [u8; 4],
}

/// A neighbour solicitation or advertisement with one option.
#[repr(C)]
#[derive(Clone, Copy)]
struct Neighbour {
    kind: u8,
    code: u8,
    checksum: u16,
    flags: [u8; 4],
    target_be: Address6,
    option: u8,
    option_len: u8,
    mac: [u8; 6],
}

#[repr(C)]
struct Pseudo {
    saddr_be: Address6,
    daddr_be: Address6,
    len_be: u32,
    protocol_be: u32,
    message: Neighbour,
}

/// Sends the packet back to the one who asked.
#[inline(always)]
fn send_back(ctx: &TcContext, to: [u8; 6], from: [u8; 6]) -> Result<Verdict, u32> {
    let addresses =
        [to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4], from[5]];
    Frame::store(ctx, 0, &addresses)?;
    // SAFETY: the context is valid; the interface is the one the packet came from.
    let code = unsafe { aya_ebpf::helpers::bpf_redirect((*ctx.skb.skb).ifindex, 0) };
    Ok((code as i32, reason::ANNOUNCED))
}

/// An ARP packet.
#[inline(always)]
pub fn arp(ctx: &TcContext) -> Result<Verdict, u32> {
    far::unpack(arp_far(ctx))
}

#[inline(never)]
fn arp_far(ctx: &TcContext) -> u64 {
    far::pack(arp_near(ctx))
}

#[inline(always)]
fn arp_near(ctx: &TcContext) -> Result<Verdict, u32> {
    let pass = Ok((NEXT, reason::STACK));
    let Ok(arp) = Frame::load::<Arp>(ctx, ETH_LEN) else { return pass };
    if arp.kinds != ARP_ETHERNET_IPV4 || arp.operation != ARP_REQUEST {
        return pass;
    }
    let address_be = u32::from_ne_bytes(arp.target_ip);
    // SAFETY: the map is not preallocated; only the element's presence matters.
    if unsafe { ANNOUNCE.get(&address_be) }.is_none() {
        return pass;
    }
    let mac = config().uplink_mac;
    let answer = Arp {
        kinds: arp.kinds,
        operation: ARP_REPLY,
        sender_mac: mac,
        sender_ip: arp.target_ip,
        target_mac: arp.sender_mac,
        target_ip: arp.sender_ip,
    };
    Frame::store(ctx, ETH_LEN, &answer)?;
    send_back(ctx, arp.sender_mac, mac)
}

/// An IPv6 packet, perhaps a neighbour solicitation.
#[inline(always)]
pub fn solicitation(ctx: &TcContext) -> Result<Verdict, u32> {
    far::unpack(solicitation_far(ctx))
}

#[inline(never)]
fn solicitation_far(ctx: &TcContext) -> u64 {
    far::pack(solicitation_near(ctx))
}

#[inline(always)]
fn solicitation_near(ctx: &TcContext) -> Result<Verdict, u32> {
    let pass = Ok((NEXT, reason::STACK));
    // What tells solicitations from nearly all other packets first.
    let Ok([next, hops]) = Frame::load::<[u8; 2]>(ctx, ETH_LEN + 6) else { return pass };
    if next != PROTO_ICMP6 || hops != HOPS {
        return pass;
    }
    let Ok(ip) = Frame::load::<Ipv6Header>(ctx, ETH_LEN) else { return pass };
    let Ok(asked) = Frame::load::<Neighbour>(ctx, ETH_LEN + IP6_LEN) else { return pass };
    // Without the sender's address this is a test for duplicates, which is for the stack to hear.
    if asked.kind != SOLICITATION || ip.saddr_be == [0; 4] {
        return pass;
    }
    // SAFETY: the map is not preallocated; only the element's presence matters.
    if unsafe { ANNOUNCE6.get(&asked.target_be) }.is_none() {
        return pass;
    }
    let mac = config().uplink_mac;
    let mut pseudo = Pseudo {
        saddr_be: asked.target_be,
        daddr_be: ip.saddr_be,
        len_be: (size_of::<Neighbour>() as u32).to_be(),
        protocol_be: u32::from(PROTO_ICMP6).to_be(),
        message: Neighbour {
            kind: ADVERTISEMENT,
            code: 0,
            checksum: 0,
            flags: [ADVERTISEMENT_FLAGS, 0, 0, 0],
            target_be: asked.target_be,
            option: TARGET_LINK_ADDRESS,
            option_len: 1,
            mac,
        },
    };
    let len = size_of::<Pseudo>() as u32;
    // SAFETY: the struct has no padding and its size is a multiple of 4; with a length of 0 the other pointer is not
    // read.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, (&raw mut pseudo).cast(), len, 0) } as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    pseudo.message.checksum = !(sum as u16);
    let header = Ipv6Header {
        payload_len_be: (size_of::<Neighbour>() as u16).to_be(),
        saddr_be: asked.target_be,
        daddr_be: ip.saddr_be,
        ..ip
    };
    Frame::store(ctx, ETH_LEN, &header)?;
    Frame::store(ctx, ETH_LEN + IP6_LEN, &pseudo.message)?;
    let source: [u8; 6] = Frame::load(ctx, 6)?;
    send_back(ctx, source, mac)
}
