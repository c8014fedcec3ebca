//! Where a packet goes: to a pod of this node, to another node, or to the kernel's stack.

use aya_ebpf::bindings::bpf_redir_neigh;
use aya_ebpf::helpers::{bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::endpoint::{
    Endpoint4, IDENTITY_PODS, IDENTITY_REMOTE_NODE, IDENTITY_SERVICES, IPCACHE_ON_LINK, IpcacheEntry4,
    NodeConfig,
};
use hawser_ebpf_common::metrics::reason;

use crate::maps::{CONFIG, ENDPOINTS, IPCACHE};
use crate::packet::{Packet, decrement_ttl};

/// `TC_ACT_UNSPEC`: the next program, and then the stack.
pub const NEXT: i32 = -1;
const AF_INET: u32 = 2;

/// What a program did with a packet: what it returns, and what it counts.
pub type Verdict = (i32, u32);

/// The pod of this node that has an address.
#[inline(always)]
pub fn endpoint(address_be: u32) -> Option<Endpoint4> {
    // SAFETY: the map is not preallocated, so an element that is removed stays readable.
    unsafe { ENDPOINTS.get(&address_be) }.copied()
}

/// Node and identity of an address.
#[inline(always)]
pub fn ipcache(address_be: u32) -> Option<IpcacheEntry4> {
    IPCACHE.get(&Key::new(32, address_be)).copied()
}

/// This node.
#[inline(always)]
pub fn config() -> NodeConfig {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// Delivers to a pod of this node, past the stack.
#[inline(always)]
pub fn to_endpoint(
    ctx: &TcContext,
    packet: &Packet,
    endpoint: &Endpoint4,
    done: u32,
) -> Result<Verdict, u32> {
    decrement_ttl(ctx, packet)?;
    let to = endpoint.pod_mac;
    let from = endpoint.host_mac;
    let addresses =
        [to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4], from[5]];
    ctx.store(0, &addresses, 0).map_err(|_| reason::WRITE_FAILED)?;
    // SAFETY: the helper checks the interface.
    Ok((unsafe { bpf_redirect_peer(endpoint.ifindex, 0) } as i32, done))
}

/// Sends out of the uplink: to the node when it is on the link, else where the routes say.
#[inline(always)]
pub fn to_node(
    ctx: &TcContext,
    packet: &Packet,
    next_hop_be: Option<u32>,
    done: u32,
) -> Result<Verdict, u32> {
    let uplink = config().uplink_ifindex;
    if uplink == 0 {
        return Ok((NEXT, reason::STACK));
    }
    decrement_ttl(ctx, packet)?;
    let code = match next_hop_be {
        Some(address_be) => {
            // SAFETY: all zeroes is a value of this C struct.
            let mut params: bpf_redir_neigh = unsafe { core::mem::zeroed() };
            params.nh_family = AF_INET;
            params.__bindgen_anon_1.ipv4_nh = address_be;
            // SAFETY: pointer and length describe `params`.
            unsafe { bpf_redirect_neigh(uplink, &mut params, size_of::<bpf_redir_neigh>() as i32, 0) }
        }
        // SAFETY: without parameters the helper looks the route up itself.
        None => unsafe { bpf_redirect_neigh(uplink, core::ptr::null_mut(), 0, 0) },
    };
    Ok((code as i32, done))
}

/// Routes a packet that a pod sent. `Err(NO_SERVICE)` is for the caller to answer.
#[inline(always)]
pub fn route(ctx: &TcContext, packet: &Packet, done: u32) -> Result<Verdict, u32> {
    let daddr = packet.tuple.daddr_be;
    if let Some(endpoint) = endpoint(daddr) {
        return to_endpoint(ctx, packet, &endpoint, done);
    }
    let Some(entry) = ipcache(daddr) else { return Ok((NEXT, reason::STACK)) };
    match entry.identity {
        IDENTITY_SERVICES if packet.fragment => Err(reason::FRAGMENT),
        IDENTITY_SERVICES => Err(reason::NO_SERVICE),
        IDENTITY_PODS if entry.node_ip_be == 0 => Err(reason::NO_ENDPOINT),
        IDENTITY_PODS | IDENTITY_REMOTE_NODE => {
            let on_link = entry.flags & IPCACHE_ON_LINK != 0;
            to_node(ctx, packet, on_link.then_some(entry.node_ip_be), done)
        }
        _ => Ok((NEXT, reason::STACK)),
    }
}
