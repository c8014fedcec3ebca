//! Where a packet goes: to a pod of this node, to another node, or to the kernel's stack.

use aya_ebpf::bindings::{BPF_F_TUNINFO_IPV6, bpf_redir_neigh, bpf_tunnel_key};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_set_tunnel_key};
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::endpoint::{
    Endpoint4, IDENTITY_PODS, IDENTITY_REMOTE_NODE, IDENTITY_SERVICES, IPCACHE_ON_LINK, NodeConfig,
    TUNNEL_MAC, VXLAN_VNI, tunnel_overhead,
};
use hawser_ebpf_common::lb::Address6;
use hawser_ebpf_common::metrics::reason;

use crate::family::{Family, Prefix, unmapped};
use crate::far;
use crate::frame::Frame;
use crate::maps::{CONFIG, TUNNEL_END};
use crate::near;
use crate::packet::{Packet, Part};
use crate::reject;
use crate::rewrite::{decrement_ttl, hand_on};

/// `TC_ACT_UNSPEC`: the next program, and then the stack.
pub const NEXT: i32 = -1;
/// What no program returns: a step that has nothing to do with a packet.
pub const ELSEWHERE: i32 = i32::MAX;
/// Hop limit of the outer header (RFC 1700).
const TUNNEL_TTL: u8 = 64;

/// What a program did with a packet: what it returns, and what it counts.
pub type Verdict = (i32, u32);

/// This node.
#[inline(always)]
pub fn config() -> NodeConfig {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// Delivers to a pod of this node, past the stack.
#[inline(always)]
pub fn to_endpoint<F: Family>(
    ctx: &TcContext,
    packet: &Packet<F::Address>,
    endpoint: &Endpoint4,
    done: u32,
) -> Result<Verdict, u32> {
    hand_on::<F, _>(ctx, packet, endpoint.pod_mac, endpoint.host_mac)?;
    // SAFETY: the helper checks the interface.
    Ok((unsafe { bpf_redirect_peer(endpoint.ifindex, 0) } as i32, done))
}

/// Sends out of the uplink, to where the kernel's routes say.
#[inline(always)]
pub fn to_uplink<F: Family>(
    ctx: &TcContext,
    packet: &Packet<F::Address>,
    next_hop_be: Option<F::Address>,
    done: u32,
) -> Result<Verdict, u32> {
    let uplink = config().uplink_ifindex;
    if uplink == 0 {
        return Ok((NEXT, reason::STACK));
    }
    decrement_ttl::<F, _>(ctx, packet)?;
    let code = match next_hop_be {
        Some(address_be) => {
            // SAFETY: all zeroes is a value of this C struct.
            let mut params: bpf_redir_neigh = unsafe { core::mem::zeroed() };
            params.nh_family = F::AF;
            params.__bindgen_anon_1.ipv6_nh = F::words(address_be);
            // SAFETY: pointer and length describe `params`.
            unsafe { bpf_redirect_neigh(uplink, &mut params, size_of::<bpf_redir_neigh>() as i32, 0) }
        }
        // SAFETY: without parameters the helper looks the route up itself.
        None => unsafe { bpf_redirect_neigh(uplink, core::ptr::null_mut(), 0, 0) },
    };
    Ok((code as i32, done))
}

/// Whether packets to a prefix go through a tunnel. Those of a node to a node do not: no pod's address is in them,
/// and so the network between knows the way.
#[inline(always)]
pub fn is_tunnelled<F: Family>(
    config: &NodeConfig,
    prefix: &Prefix<F::Address>,
    saddr_be: F::Address,
) -> bool {
    config.vxlan_ifindex != 0
        && prefix.tunnel_be != [0; 4]
        && (prefix.identity == IDENTITY_PODS || F::endpoint(saddr_be).is_some())
}

/// What a step says that has found out that a packet goes through a tunnel, with the counted reason in the low bits of the
/// code; the tunnel's other end is in [`TUNNEL_END`]. Its caller sends the packet, and so with less on the stack.
const TUNNEL: u32 = 0x100;

/// Sends to another node: through a tunnel (see [`through_tunnel`]), to the node itself when it is on the link, else where
/// the routes say.
#[inline(always)]
pub fn to_node<F: Family>(
    ctx: &TcContext,
    packet: &Packet<F::Address>,
    prefix: &Prefix<F::Address>,
    done: u32,
) -> Result<Verdict, u32> {
    let config = config();
    if is_tunnelled::<F>(&config, prefix, packet.tuple.saddr_be) {
        let end = TUNNEL_END.get_ptr_mut(0).ok_or(reason::WRITE_FAILED)?;
        // SAFETY: an element of this CPU alone, and nothing else runs on it meanwhile that would write it.
        unsafe { *end = prefix.tunnel_be };
        return Ok(((TUNNEL | done) as i32, 0));
    }
    let on_link = prefix.flags & IPCACHE_ON_LINK != 0;
    to_uplink::<F>(ctx, packet, on_link.then_some(prefix.node_be), done)
}

/// Whether packets to a prefix leave by the uplink for a node on the link.
#[inline(always)]
fn goes_straight<F: Family>(packet: &Packet<F::Address>, prefix: &Prefix<F::Address>) -> bool {
    prefix.flags & IPCACHE_ON_LINK != 0 && !is_tunnelled::<F>(&config(), prefix, packet.tuple.saddr_be)
}

/// Ends a step that may have called [`to_node`].
#[inline(always)]
pub fn through_tunnel<F: Family>(
    ctx: &TcContext,
    packet: &Packet<F::Address>,
    outcome: Result<Verdict, u32>,
) -> Result<Verdict, u32> {
    match outcome {
        Ok((code, _)) if code > 0 && code as u32 & TUNNEL != 0 => {
            far::unpack(to_tunnel_far::<F>(ctx, packet, code as u32 & !TUNNEL))
        }
        outcome => outcome,
    }
}

#[inline(never)]
fn to_tunnel_far<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, done: u32) -> u64 {
    far::pack(to_tunnel_near::<F>(ctx, packet, done))
}

#[inline(always)]
fn to_tunnel_near<F: Family>(
    ctx: &TcContext,
    packet: &Packet<F::Address>,
    done: u32,
) -> Result<Verdict, u32> {
    let config = config();
    let end_be = *TUNNEL_END.get(0).ok_or(reason::WRITE_FAILED)?;
    let mtu = u32::from(config.mtu).saturating_sub(tunnel_overhead(unmapped(end_be).is_none()));
    if config.mtu != 0
        && segment_len::<F>(ctx, packet) > mtu
        && packet.whole_only
        && packet.part != Part::Later
    {
        return reject::too_big::<F>(ctx, packet, mtu as u16);
    }
    decrement_ttl::<F, _>(ctx, packet)?;
    set_tunnel(ctx, end_be)?;
    // The address of every node's tunnel interface, which the stack at the other end wants to see.
    Frame::store(ctx, 0, &TUNNEL_MAC)?;
    // SAFETY: the helper checks the interface.
    Ok((unsafe { bpf_redirect(config.vxlan_ifindex, 0) } as i32, done))
}

/// Names the other end of the tunnel; one of IPv4 is IPv4-mapped.
#[inline(always)]
pub fn set_tunnel(ctx: &TcContext, end_be: Address6) -> Result<(), u32> {
    // SAFETY: all zeroes is a value of this C struct.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = VXLAN_VNI;
    let flags = match unmapped(end_be) {
        Some(address_be) => {
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be(address_be);
            0
        }
        None => {
            key.__bindgen_anon_1.remote_ipv6 = end_be;
            u64::from(BPF_F_TUNINFO_IPV6)
        }
    };
    key.tunnel_ttl = TUNNEL_TTL;
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: pointer and length describe `key`.
    match unsafe { bpf_skb_set_tunnel_key(ctx.skb.skb, &mut key, size, flags) } {
        0 => Ok(()),
        _ => Err(reason::WRITE_FAILED),
    }
}

/// Length on the wire from the IP header on: of each segment that the kernel will cut the packet into.
#[inline(always)]
fn segment_len<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>) -> u32 {
    // SAFETY: the context is valid for the whole program.
    match unsafe { (*ctx.skb.skb).gso_size } {
        0 => packet.total_len,
        // The longest TCP header; the shortest would let packets through that are too big.
        size => (packet.l4 - crate::packet::ETH_LEN) as u32 + 20 + size,
    }
}

/// Routes a packet that a pod sent. `Err(NO_SERVICE)` is for the caller to answer.
#[inline(always)]
pub fn route<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, done: u32) -> Result<Verdict, u32> {
    through_tunnel::<F>(ctx, packet, far::unpack(route_far::<F>(ctx, packet, done)))
}

#[inline(never)]
fn route_far<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, done: u32) -> u64 {
    far::pack(route_near::<F>(ctx, packet, done))
}

#[inline(always)]
fn route_near<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, done: u32) -> Result<Verdict, u32> {
    let daddr = packet.tuple.daddr_be;
    if let Some(endpoint) = F::endpoint(daddr) {
        return to_endpoint::<F>(ctx, packet, &endpoint, done);
    }
    let Some(prefix) = F::ipcache(daddr) else {
        if F::endpoint(packet.tuple.saddr_be).is_none() && packet.tuple.saddr_be != F::hairpin() {
            // An answer under a frontend's name, which may be an address of this node: the stack would call it a
            // martian.
            return to_uplink::<F>(ctx, packet, None, done);
        }
        return Ok((NEXT, reason::STACK));
    };
    match prefix.identity {
        IDENTITY_SERVICES if packet.part == Part::Later => Err(reason::FRAGMENT),
        IDENTITY_SERVICES => Err(reason::NO_SERVICE),
        IDENTITY_PODS if !prefix.remote => Err(reason::NO_ENDPOINT),
        IDENTITY_PODS | IDENTITY_REMOTE_NODE => {
            if done == reason::FORWARDED && near::fits(packet) && goes_straight::<F>(packet, &prefix) {
                near::keep::<F>(ctx, packet, &Endpoint4::default(), prefix.node_be);
            }
            to_node::<F>(ctx, packet, &prefix, done)
        }
        _ => Ok((NEXT, reason::STACK)),
    }
}
