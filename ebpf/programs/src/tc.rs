//! tc programs.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::PROTO_UDP;
use hawser_ebpf_common::ct::CT_MASQUERADE;
use hawser_ebpf_common::endpoint::{CONFIG_MASQUERADE, IDENTITY_PODS, TUNNEL_SOURCE_MAC};
use hawser_ebpf_common::metrics::{direction, reason};

use crate::announce;
use crate::count::count;
use crate::ct;
use crate::dsr;
use crate::family::Family;
use crate::far;
use crate::forward::{self, ELSEWHERE, NEXT, Verdict, config};
use crate::frame::Frame;
use crate::lb::{V4, V6};
use crate::nat::{Origin, Seen, Translated, masquerade, translate, translate_known, translate_seen};
use crate::near;
use crate::packet::{ETH_P_ARP_BE, ETH_P_IP_BE, ETH_P_IPV6_BE, Packet, Part, parse_aside};
use crate::reject::{reject, too_big};

/// `TC_ACT_SHOT`.
const DROP: i32 = 2;

const IP: u32 = ETH_P_IP_BE as u32;
const IPV6: u32 = ETH_P_IPV6_BE as u32;
const ARP: u32 = ETH_P_ARP_BE as u32;
const PASS: Result<Verdict, u32> = Ok((NEXT, reason::STACK));

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let outcome = match ctx.skb.protocol() {
        IP => try_from_pod::<V4>(&ctx),
        IPV6 => from_pod6(&ctx),
        _ => PASS,
    };
    finish(&ctx, direction::FROM_POD, outcome)
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    let outcome = match ctx.skb.protocol() {
        IP => try_to_pod::<V4>(&ctx),
        IPV6 => to_pod6(&ctx),
        _ => PASS,
    };
    finish(&ctx, direction::TO_POD, outcome)
}

#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    let outcome = match ctx.skb.protocol() {
        IP => dsr::accept(&ctx).and_then(|()| try_from_uplink::<V4>(&ctx)),
        IPV6 => match announce::solicitation(&ctx) {
            Ok((NEXT, _)) => from_uplink6(&ctx),
            answered => answered,
        },
        ARP => announce::arp(&ctx),
        _ => PASS,
    };
    finish(&ctx, direction::FROM_UPLINK, outcome)
}

#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    let outcome = match ctx.skb.protocol() {
        IP => try_to_uplink::<V4>(&ctx),
        IPV6 => to_uplink6(&ctx),
        _ => PASS,
    };
    finish(&ctx, direction::TO_UPLINK, outcome)
}

#[classifier]
pub fn from_tunnel(ctx: TcContext) -> i32 {
    let outcome = match ctx.skb.protocol() {
        IP => try_from_uplink::<V4>(&ctx),
        IPV6 => from_uplink6(&ctx),
        _ => PASS,
    };
    finish(&ctx, direction::FROM_TUNNEL, outcome)
}

/// What the stack sends into the tunnels' interface: the other end is in the ipcache.
#[classifier]
pub fn to_tunnel(ctx: TcContext) -> i32 {
    let outcome = match ctx.skb.protocol() {
        IP => try_to_tunnel::<V4>(&ctx),
        IPV6 => to_tunnel6(&ctx),
        _ => Err(reason::NO_ROUTE),
    };
    finish(&ctx, direction::TO_UPLINK, outcome)
}

// IPv6 in functions of their own: with both families in one, the stack would not do.

#[inline(always)]
fn from_pod6(ctx: &TcContext) -> Result<Verdict, u32> {
    far::unpack(from_pod6_far(ctx))
}

#[inline(never)]
fn from_pod6_far(ctx: &TcContext) -> u64 {
    far::pack(from_pod6_near(ctx))
}

#[inline(always)]
fn from_pod6_near(ctx: &TcContext) -> Result<Verdict, u32> {
    try_from_pod::<V6>(ctx)
}

#[inline(always)]
fn to_pod6(ctx: &TcContext) -> Result<Verdict, u32> {
    far::unpack(to_pod6_far(ctx))
}

#[inline(never)]
fn to_pod6_far(ctx: &TcContext) -> u64 {
    far::pack(to_pod6_near(ctx))
}

#[inline(always)]
fn to_pod6_near(ctx: &TcContext) -> Result<Verdict, u32> {
    try_to_pod::<V6>(ctx)
}

#[inline(always)]
fn from_uplink6(ctx: &TcContext) -> Result<Verdict, u32> {
    far::unpack(from_uplink6_far(ctx))
}

#[inline(never)]
fn from_uplink6_far(ctx: &TcContext) -> u64 {
    far::pack(from_uplink6_near(ctx))
}

#[inline(always)]
fn from_uplink6_near(ctx: &TcContext) -> Result<Verdict, u32> {
    try_from_uplink::<V6>(ctx)
}

#[inline(always)]
fn to_uplink6(ctx: &TcContext) -> Result<Verdict, u32> {
    far::unpack(to_uplink6_far(ctx))
}

#[inline(never)]
fn to_uplink6_far(ctx: &TcContext) -> u64 {
    far::pack(to_uplink6_near(ctx))
}

#[inline(always)]
fn to_uplink6_near(ctx: &TcContext) -> Result<Verdict, u32> {
    try_to_uplink::<V6>(ctx)
}

#[inline(always)]
fn to_tunnel6(ctx: &TcContext) -> Result<Verdict, u32> {
    far::unpack(to_tunnel6_far(ctx))
}

#[inline(never)]
fn to_tunnel6_far(ctx: &TcContext) -> u64 {
    far::pack(to_tunnel6_near(ctx))
}

#[inline(always)]
fn to_tunnel6_near(ctx: &TcContext) -> Result<Verdict, u32> {
    try_to_tunnel::<V6>(ctx)
}

/// Counts the outcome and turns it into what tc wants to hear.
#[inline(always)]
fn finish(ctx: &TcContext, direction: u32, outcome: Result<Verdict, u32>) -> i32 {
    let (code, reason) = match outcome {
        Ok(verdict) => verdict,
        Err(reason) => (DROP, reason),
    };
    count(direction, reason, ctx.len());
    code
}

/// Answers what the load balancer refuses, and drops the rest.
#[inline(always)]
fn refuse<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, why: u32) -> Result<Verdict, u32> {
    match why {
        reason::NO_BACKEND | reason::NO_SERVICE => reject::<F>(ctx, packet, why),
        _ => Err(why),
    }
}

#[inline(always)]
fn try_from_pod<F: Family>(ctx: &TcContext) -> Result<Verdict, u32> {
    match far::unpack(near::serve::<F>(ctx)) {
        Ok((ELSEWHERE, _)) => {}
        delivered => return delivered,
    }
    // Whatever the pod says of it.
    near::mark(ctx, 0);
    let packet = parse_aside::<F, _>(ctx)?;
    // Neighbour discovery and the like: between the pod and its gateway.
    if F::V6 && is_link_local(F::words(packet.tuple.saddr_be)) {
        return PASS;
    }
    let source = match F::endpoint(packet.tuple.saddr_be) {
        Some(source) => source,
        // A test for duplicates, before the pod's interface has an address.
        None if F::V6 && F::words(packet.tuple.saddr_be) == [0; 4] => return PASS,
        None => return Err(reason::INVALID_SOURCE),
    };
    // SAFETY: the context is valid for the whole program.
    if source.ifindex != unsafe { (*ctx.skb.skb).ifindex } {
        return Err(reason::INVALID_SOURCE);
    }
    if F::V6 && is_local_scope(F::words(packet.tuple.daddr_be)) {
        return PASS;
    }
    if packet.ttl <= 1 {
        // The stack knows how to say "time exceeded".
        return PASS;
    }
    let seen = match translate_known::<F, _>(ctx, packet, Origin::Pod) {
        Ok(seen) => seen,
        Err(why) => return refuse::<F>(ctx, packet, why),
    };
    // What follows in a connection between two pods asks for no Service: one under the pod's address had been found when
    // the connection was opened, and would be known.
    if !matches!(seen, Seen::Translated(_)) && near::fits(packet) {
        match far::unpack(to_neighbour::<F>(ctx, packet)) {
            Ok((ELSEWHERE, _)) => {}
            delivered => return delivered,
        }
    }
    let done = match translate_seen::<F, _>(ctx, packet, Origin::Pod, seen) {
        Ok(Translated::No) => reason::FORWARDED,
        Ok(_) => reason::TRANSLATED,
        Err(why) => return refuse::<F>(ctx, packet, why),
    };
    match forward::route::<F>(ctx, packet, done) {
        Err(reason::NO_SERVICE) => reject::<F>(ctx, packet, reason::NO_SERVICE),
        verdict => verdict,
    }
}

/// Delivers a packet of a pod as it is if it is for another one of this node.
#[inline(never)]
fn to_neighbour<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>) -> u64 {
    far::pack(match F::endpoint(packet.tuple.daddr_be) {
        Some(endpoint) => {
            near::keep::<F>(ctx, packet, &endpoint, F::Address::default());
            forward::to_endpoint::<F>(ctx, packet, &endpoint, reason::FORWARDED)
        }
        None => Ok((ELSEWHERE, 0)),
    })
}

/// fe80::/10.
#[inline(always)]
pub fn is_link_local(words: [u32; 4]) -> bool {
    words[0].to_be() >> 22 == 0x3fa
}

/// Link-local, or multicast (ff00::/8).
#[inline(always)]
fn is_local_scope(words: [u32; 4]) -> bool {
    is_link_local(words) || words[0].to_be() >> 24 == 0xff
}

#[inline(always)]
fn try_to_pod<F: Family>(ctx: &TcContext) -> Result<Verdict, u32> {
    let packet = parse_aside::<F, _>(ctx)?;
    match translate_known::<F, _>(ctx, packet, Origin::Stack)? {
        Seen::Translated(_) => Ok((NEXT, reason::TRANSLATED)),
        _ => Ok((NEXT, reason::FORWARDED)),
    }
}

#[inline(always)]
fn try_from_uplink<F: Family>(ctx: &TcContext) -> Result<Verdict, u32> {
    match far::unpack(near::arrive::<F>(ctx)) {
        Ok((ELSEWHERE, _)) => {}
        delivered => return delivered,
    }
    let packet = parse_aside::<F, _>(ctx)?;
    if F::V6
        && (is_link_local(F::words(packet.tuple.saddr_be)) || is_local_scope(F::words(packet.tuple.daddr_be)))
    {
        return PASS;
    }
    if packet.ttl <= 1 {
        return PASS;
    }
    let (frontend_be, dport) = (F::words(packet.tuple.daddr_be)[0], packet.tuple.dport_be);
    let done = match translate::<F, _>(ctx, packet, Origin::Uplink) {
        Ok(Translated::No) => reason::FORWARDED,
        Ok(Translated::Yes { tell: true }) => return tell_and_send(ctx, frontend_be, dport),
        Ok(Translated::Yes { .. }) => reason::TRANSLATED,
        Ok(Translated::Unmasqueraded) => {
            // An answer to a pod; perhaps the pod asked a Service whose endpoint is out there.
            translate_known::<F, _>(ctx, packet, Origin::Pod)?;
            reason::TRANSLATED
        }
        Err(why) => return refuse::<F>(ctx, packet, why),
    };
    deliver::<F>(ctx, packet, done)
}

/// Brings what came in to a pod, to another node, or to the stack.
#[inline(always)]
fn deliver<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, done: u32) -> Result<Verdict, u32> {
    forward::through_tunnel::<F>(ctx, packet, far::unpack(deliver_far::<F>(ctx, packet, done)))
}

#[inline(never)]
fn deliver_far<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, done: u32) -> u64 {
    far::pack(deliver_near::<F>(ctx, packet, done))
}

#[inline(always)]
fn deliver_near<F: Family>(ctx: &TcContext, packet: &Packet<F::Address>, done: u32) -> Result<Verdict, u32> {
    let daddr = packet.tuple.daddr_be;
    let config = config();
    if let Some(endpoint) = F::endpoint(daddr) {
        if done == reason::FORWARDED
            && packet.tuple.protocol == PROTO_UDP
            && packet.trackable
            && config.flags & CONFIG_MASQUERADE != 0
            && F::ipcache(packet.tuple.saddr_be).is_none()
        {
            ct::note_inbound::<F>(packet);
        }
        return forward::to_endpoint::<F>(ctx, packet, &endpoint, done);
    }
    let prefix = F::ipcache(daddr);
    if let Some(prefix) = &prefix
        && prefix.identity == IDENTITY_PODS
        && !prefix.remote
    {
        return Err(reason::NO_ENDPOINT);
    }
    if done == reason::TRANSLATED && daddr != F::node_ip(&config) {
        // Its source may be this node now, and the stack would call it a martian.
        return match &prefix {
            Some(prefix) if prefix.remote => forward::to_node::<F>(ctx, packet, prefix, done),
            _ => forward::to_uplink::<F>(ctx, packet, None, done),
        };
    }
    PASS
}

/// Sends a flow's first packet, which goes to the backend already, with the frontend in it.
#[inline(always)]
fn tell_and_send(ctx: &TcContext, frontend_be: u32, port_be: u16) -> Result<Verdict, u32> {
    far::unpack(tell_and_send_far(ctx, frontend_be, port_be))
}

#[inline(never)]
fn tell_and_send_far(ctx: &TcContext, frontend_be: u32, port_be: u16) -> u64 {
    far::pack(tell_and_send_near(ctx, frontend_be, port_be))
}

#[inline(always)]
fn tell_and_send_near(ctx: &TcContext, frontend_be: u32, port_be: u16) -> Result<Verdict, u32> {
    let packet = parse_aside::<V4, _>(ctx)?;
    let config = config();
    let room = u32::from(config.mtu).saturating_sub(dsr::OPTION_LEN as u32);
    if config.mtu != 0 && packet.total_len > room {
        return too_big::<V4>(ctx, packet, room as u16);
    }
    dsr::tell(ctx, packet, frontend_be, port_be)?;
    forward::to_uplink::<V4>(ctx, packet, None, reason::TRANSLATED)
}

#[inline(always)]
fn try_to_uplink<F: Family>(ctx: &TcContext) -> Result<Verdict, u32> {
    if near::take_mark(ctx) {
        return Ok((NEXT, reason::FORWARDED));
    }
    let packet = parse_aside::<F, _>(ctx)?;
    match translate_known::<F, _>(ctx, packet, Origin::Stack)? {
        Seen::Translated(flags) if flags & CT_MASQUERADE != 0 => {
            return Ok((NEXT, reason::MASQUERADED));
        }
        Seen::Translated(_) => return Ok((NEXT, reason::TRANSLATED)),
        Seen::Tracked => return Ok((NEXT, reason::FORWARDED)),
        Seen::Unknown => {}
    }
    // A pod's later fragment that nobody can name must not leave under the pod's address.
    if packet.part == Part::Later
        && !packet.trackable
        && config().flags & CONFIG_MASQUERADE != 0
        && F::endpoint(packet.tuple.saddr_be).is_some()
        && F::ipcache(packet.tuple.daddr_be).is_none()
    {
        return Err(reason::FRAGMENT);
    }
    match masquerade::<F, _>(ctx, packet)? {
        true => Ok((NEXT, reason::MASQUERADED)),
        false => Ok((NEXT, reason::FORWARDED)),
    }
}

#[inline(always)]
fn try_to_tunnel<F: Family>(ctx: &TcContext) -> Result<Verdict, u32> {
    let packet = parse_aside::<F, _>(ctx)?;
    let prefix = F::ipcache(packet.tuple.daddr_be).ok_or(reason::NO_ROUTE)?;
    if prefix.tunnel_be == [0; 4] {
        return Err(reason::NO_ROUTE);
    }
    forward::set_tunnel(ctx, prefix.tunnel_be)?;
    Frame::store(ctx, TUNNEL_SOURCE_MAC.len(), &TUNNEL_SOURCE_MAC)?;
    Ok((NEXT, reason::FORWARDED))
}
