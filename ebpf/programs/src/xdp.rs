//! XDP on the uplink: packets to Services whose backend is on another node, and the answers to them, leave again
//! before the stack sees them. All else, and all that needs more than one look, goes up to tc, which finds the same
//! flow in connection tracking.

use aya_ebpf::bindings::{bpf_fib_lookup as FibParams, xdp_action};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use hawser_ebpf_common::metrics::{direction, reason};
use hawser_ebpf_common::{PROTO_TCP, PROTO_UDP};

use crate::count::count;
use crate::ct::{self, Rewrite};
use crate::dsr;
use crate::family::Family;
use crate::far;
use crate::flow;
use crate::forward::{config, is_tunnelled};
use crate::frame::Frame;
use crate::hop;
use crate::lb::{V4, V6};
use crate::nat::{Origin, Standing, open, standing};
use crate::packet::{ETH_P_IP_BE, ETH_P_IPV6_BE, NextHop, Packet, parse_aside};
use crate::rewrite::{decrement_ttl, rewrite};

/// What becomes of a packet: `None` is left to tc.
type Outcome = Result<Option<u32>, u32>;

#[xdp]
pub fn xdp_uplink(ctx: XdpContext) -> u32 {
    let outcome = match ctx.load::<u16>(12) {
        Ok(ETH_P_IP_BE) => handle::<V4>(&ctx),
        Ok(ETH_P_IPV6_BE) => handle::<V6>(&ctx),
        _ => Ok(None),
    };
    let (action, reason) = match outcome {
        Ok(Some(action)) => (action, reason::TRANSLATED),
        // What tc counts is not counted twice.
        Ok(None) => return xdp_action::XDP_PASS,
        Err(reason) => (xdp_action::XDP_DROP, reason),
    };
    count(direction::XDP, reason, Frame::len(&ctx));
    action
}

/// Lets everything through: on a peer of a veth uplink, which takes what XDP sends back only then.
#[xdp]
pub fn xdp_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// One step after the other, each in a function of its own: they share the stack, and hand on what they found in memory
/// aside.
#[inline(always)]
fn handle<F: Family>(ctx: &XdpContext) -> Outcome {
    // Options, fragments and what is malformed: for tc to judge.
    let Ok(packet) = parse_aside::<F, _>(ctx) else { return Ok(None) };
    if packet.tuple.protocol != PROTO_TCP && packet.tuple.protocol != PROTO_UDP || packet.ttl <= 1 {
        return Ok(None);
    }
    let found = match flow::serve::<F, _>(ctx, packet) {
        0 => find::<F>(ctx, packet),
        _ => FOUND,
    };
    match found {
        FOR_TC => return Ok(None),
        FOUND => {}
        UNKNOWN => {
            if !far::unpack_bool(choose::<F>(ctx, packet))? {
                return Ok(None);
            }
        }
        reason => return Err((reason - FIRST_REASON) as u32),
    }
    match send::<F>(ctx, packet) {
        FOR_TC => Ok(None),
        failed if failed & FAILED != 0 => Err(failed as u32),
        action => Ok(Some(action as u32)),
    }
}

/// What [`find`] says: leave the packet to tc; its flow is known and its rewriting aside; it opens a flow; or one of
/// the reasons, which begin here.
const FOR_TC: u64 = 0;
const FOUND: u64 = 1;
const UNKNOWN: u64 = 2;
const FIRST_REASON: u64 = 3;
/// Tells a reason from an action, which is never 0, in what [`send`] says.
const FAILED: u64 = 1 << 32;

/// Rewrites a packet as is written aside, and says where to.
#[inline(never)]
fn send<F: Family>(ctx: &XdpContext, packet: &mut Packet<F::Address>) -> u64 {
    match send_near::<F>(ctx, packet) {
        Ok(None) => FOR_TC,
        Ok(Some(action)) => u64::from(action),
        Err(reason) => FAILED | u64::from(reason),
    }
}

#[inline(always)]
fn send_near<F: Family>(ctx: &XdpContext, packet: &mut Packet<F::Address>) -> Outcome {
    let Some(aside) = F::aside() else { return Ok(None) };
    // SAFETY: an element of a per-CPU array, always there, and used by one program at a time.
    let to = unsafe { &(*aside).to };
    let Some(next) = next_hop::<F>(ctx, packet, to) else { return Ok(None) };
    let (frontend_be, port_be) = (F::words(packet.tuple.daddr_be)[0], packet.tuple.dport_be);
    let tell = !F::V6 && dsr::must_tell(packet, to.flags);
    if tell {
        let mtu = u32::from(config().mtu);
        if mtu != 0 && packet.total_len + dsr::OPTION_LEN as u32 > mtu {
            return Ok(None);
        }
    }
    rewrite::<F, _>(ctx, packet, to)?;
    decrement_ttl::<F, _>(ctx, packet)?;
    if tell {
        tell_frontend(ctx, frontend_be, port_be)?;
    }
    let (mac, from) = (next.to, next.from);
    let addresses = [
        mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], from[0], from[1], from[2], from[3], from[4], from[5],
    ];
    ctx.store(0, &addresses)?;
    if next.ifindex == config().uplink_ifindex {
        return Ok(Some(xdp_action::XDP_TX));
    }
    // SAFETY: the helper checks the interface.
    Ok(Some(unsafe { bpf_redirect(next.ifindex, 0) } as u32))
}

/// The next hop of a translated packet; `None` when it stays on this node, goes through a tunnel, or must wait until a
/// neighbour has answered. Asked of the kernel once a second; meanwhile the flow's entry knows it.
#[inline(always)]
fn next_hop<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Address>,
    to: &Rewrite<F::Address>,
) -> Option<NextHop> {
    let config = config();
    if to.next_hop != [0; 6] {
        return Some(NextHop { ifindex: config.uplink_ifindex, to: to.next_hop, from: config.uplink_mac });
    }
    if F::endpoint(to.daddr_be).is_some() || to.daddr_be == F::node_ip(&config) {
        return None;
    }
    if config.vxlan_ifindex != 0
        && F::ipcache(to.daddr_be).is_some_and(|prefix| is_tunnelled::<F>(&config, &prefix, to.saddr_be))
    {
        return None;
    }
    if ask_next_hop::<F>(ctx, packet, to) == 0 {
        return None;
    }
    // SAFETY: as in `send_near`.
    Some(unsafe { (*F::aside()?).next })
}

/// Looks a packet's flow up.
#[inline(never)]
fn find<F: Family>(ctx: &XdpContext, packet: &Packet<F::Address>) -> u64 {
    if !packet.trackable {
        return UNKNOWN;
    }
    let untold = flow::take::<F, _>(ctx, packet);
    let found = match ct::lookup::<F>(packet, untold) {
        Ok(Some(found)) => found,
        Ok(None) => return UNKNOWN,
        Err(reason) => return u64::from(reason) + FIRST_REASON,
    };
    match standing::<F>(packet, &found, Origin::Uplink) {
        Standing::Elsewhere => FOR_TC,
        Standing::Stale => UNKNOWN,
        Standing::Good => {
            flow::keep::<F>(packet, &found, untold.packets > 1);
            keep::<F>(&found)
        }
    }
}

/// Decides what a packet that opens a flow becomes, in memory aside; the answer is one of `far::pack_bool`, `false` for
/// one that is tc's.
#[inline(never)]
fn choose<F: Family>(ctx: &XdpContext, packet: &Packet<F::Address>) -> u64 {
    match open::<F, _>(ctx, packet, Origin::Uplink) {
        Ok(Some(to)) => keep::<F>(&to),
        // What the load balancer refuses is answered by tc, which asks again.
        Ok(None) | Err(reason::NO_BACKEND) => 0,
        Err(reason) => far::pack_bool(Err(reason)),
    }
}

/// [`FOUND`], or `true`.
#[inline(always)]
fn keep<F: Family>(to: &Rewrite<F::Address>) -> u64 {
    let Some(aside) = F::aside() else { return FOR_TC };
    // SAFETY: as in `send_near`.
    unsafe { (*aside).to = *to };
    FOUND
}

/// Puts the frontend into a flow's first packet, which is of IPv4 and goes to the backend already.
#[inline(always)]
fn tell_frontend(ctx: &XdpContext, frontend_be: u32, port_be: u16) -> Result<(), u32> {
    far::unpack_unit(tell_frontend_far(ctx, frontend_be, port_be))
}

#[inline(never)]
fn tell_frontend_far(ctx: &XdpContext, frontend_be: u32, port_be: u16) -> u64 {
    far::pack_unit(tell_frontend_near(ctx, frontend_be, port_be))
}

#[inline(always)]
fn tell_frontend_near(ctx: &XdpContext, frontend_be: u32, port_be: u16) -> Result<(), u32> {
    let packet = parse_aside::<V4, _>(ctx)?;
    dsr::tell(ctx, packet, frontend_be, port_be)
}

#[inline(never)]
fn ask_next_hop<F: Family>(ctx: &XdpContext, packet: &Packet<F::Address>, to: &Rewrite<F::Address>) -> u64 {
    let config = config();
    // SAFETY: all zeroes is a value of this C struct.
    let mut params: FibParams = unsafe { core::mem::zeroed() };
    params.family = F::AF as u8;
    params.l4_protocol = packet.tuple.protocol;
    params.sport = to.sport_be;
    params.dport = to.dport_be;
    params.__bindgen_anon_1.tot_len = packet.total_len as u16;
    params.ifindex = config.uplink_ifindex;
    params.__bindgen_anon_3.ipv6_src = F::words(to.saddr_be);
    params.__bindgen_anon_4.ipv6_dst = F::words(to.daddr_be);
    // SAFETY: pointer and length describe `params`.
    let found = unsafe { bpf_fib_lookup(ctx.ctx.cast(), &mut params, size_of::<FibParams>() as i32, 0) };
    // Anything else (no neighbour yet, too big, no route) is for tc and the stack.
    if found != 0 {
        return 0;
    }
    if params.ifindex == config.uplink_ifindex {
        ct::set_next_hop::<F>(&packet.tuple, params.dmac);
        if config.vxlan_ifindex == 0 {
            hop::learn::<F>(to.daddr_be, params.dmac);
        }
    }
    let Some(aside) = F::aside() else { return 0 };
    // SAFETY: as in `send_near`.
    unsafe { (*aside).next = NextHop { ifindex: params.ifindex, to: params.dmac, from: params.smac } };
    1
}
