//! tc programs.

use aya_ebpf::helpers::bpf_get_hash_recalc;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::ct::{CT_CLOSING, CT_INBOUND, CT_MASQUERADE, CT_REPLY, CtEntry4};
use hawser_ebpf_common::endpoint::{CONFIG_MASQUERADE, HAIRPIN_ADDRESS, IDENTITY_PODS};
use hawser_ebpf_common::lb::{SCOPE_EXTERNAL, SCOPE_INTERNAL};
use hawser_ebpf_common::metrics::{direction, reason};
use hawser_ebpf_common::{PROTO_ICMP, PROTO_UDP};

use crate::count::count;
use crate::ct::{self, Translation};
use crate::forward::{self, NEXT, Verdict};
use crate::lb::{self, Choice, Client, Lookup, Selected, V4};
use crate::packet::{Packet, parse, quoted, rewrite, rewrite_error};
use crate::reject::reject;

/// `TC_ACT_SHOT`.
const DROP: i32 = 2;

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    finish(&ctx, direction::FROM_POD, try_from_pod(&ctx))
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    finish(&ctx, direction::TO_POD, try_to_pod(&ctx))
}

#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    finish(&ctx, direction::FROM_UPLINK, try_from_uplink(&ctx))
}

#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    finish(&ctx, direction::TO_UPLINK, try_to_uplink(&ctx))
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

/// Where a packet was seen, as far as translation cares.
#[derive(Clone, Copy, PartialEq)]
enum Origin {
    Pod,
    Uplink,
    /// On its way out of the node's stack.
    Stack,
}

/// What translation did.
enum Translated {
    /// Nothing: no Service and no known flow.
    No,
    Yes,
    /// Only the masquerade was undone; a Service's translation may lie below it.
    Unmasqueraded,
}

#[inline(always)]
fn try_from_pod(ctx: &TcContext) -> Result<Verdict, u32> {
    let Some(mut packet) = parse(ctx)? else { return Ok((NEXT, reason::STACK)) };
    let source = forward::endpoint(packet.tuple.saddr_be).ok_or(reason::INVALID_SOURCE)?;
    // SAFETY: the context is valid for the whole program.
    if source.ifindex != unsafe { (*ctx.skb.skb).ifindex } {
        return Err(reason::INVALID_SOURCE);
    }
    if packet.ttl <= 1 {
        // The stack knows how to say "time exceeded".
        return Ok((NEXT, reason::STACK));
    }
    let done = match translate(ctx, &mut packet, Origin::Pod) {
        Ok(Translated::No) => reason::FORWARDED,
        Ok(_) => reason::TRANSLATED,
        Err(reason::NO_BACKEND) => return reject(ctx, &packet, reason::NO_BACKEND),
        Err(reason) => return Err(reason),
    };
    match forward::route(ctx, &packet, done) {
        Err(reason::NO_SERVICE) => reject(ctx, &packet, reason::NO_SERVICE),
        verdict => verdict,
    }
}

#[inline(always)]
fn try_to_pod(ctx: &TcContext) -> Result<Verdict, u32> {
    let Some(mut packet) = parse(ctx)? else { return Ok((NEXT, reason::STACK)) };
    match translate_known(ctx, &mut packet, Origin::Stack)? {
        Known::Translated(_) => Ok((NEXT, reason::TRANSLATED)),
        _ => Ok((NEXT, reason::FORWARDED)),
    }
}

#[inline(always)]
fn try_from_uplink(ctx: &TcContext) -> Result<Verdict, u32> {
    let Some(mut packet) = parse(ctx)? else { return Ok((NEXT, reason::STACK)) };
    if packet.ttl <= 1 {
        return Ok((NEXT, reason::STACK));
    }
    let done = match translate(ctx, &mut packet, Origin::Uplink) {
        Ok(Translated::No) => reason::FORWARDED,
        Ok(Translated::Yes) => reason::TRANSLATED,
        Ok(Translated::Unmasqueraded) => {
            // An answer to a pod; perhaps the pod asked a Service whose endpoint is out there.
            translate_known(ctx, &mut packet, Origin::Pod)?;
            reason::TRANSLATED
        }
        Err(reason::NO_BACKEND) => return reject(ctx, &packet, reason::NO_BACKEND),
        Err(reason) => return Err(reason),
    };
    let daddr = packet.tuple.daddr_be;
    if let Some(endpoint) = forward::endpoint(daddr) {
        if done == reason::FORWARDED
            && packet.tuple.protocol == PROTO_UDP
            && packet.trackable
            && forward::config().flags & CONFIG_MASQUERADE != 0
            && forward::ipcache(packet.tuple.saddr_be).is_none()
        {
            ct::note_inbound(ctx, &packet);
        }
        return forward::to_endpoint(ctx, &packet, &endpoint, done);
    }
    let node = forward::ipcache(daddr);
    if let Some(entry) = node
        && entry.identity == IDENTITY_PODS
        && entry.node_ip_be == 0
    {
        return Err(reason::NO_ENDPOINT);
    }
    if done == reason::TRANSLATED && daddr != forward::config().node_ip_be {
        // Its source may be this node now, and the stack would call it a martian.
        return forward::to_node(ctx, &packet, None, done);
    }
    Ok((NEXT, reason::STACK))
}

#[inline(always)]
fn try_to_uplink(ctx: &TcContext) -> Result<Verdict, u32> {
    let Some(mut packet) = parse(ctx)? else { return Ok((NEXT, reason::STACK)) };
    match translate_known(ctx, &mut packet, Origin::Stack)? {
        Known::Translated(entry) if entry.flags & CT_MASQUERADE != 0 => {
            return Ok((NEXT, reason::MASQUERADED));
        }
        Known::Translated(_) => return Ok((NEXT, reason::TRANSLATED)),
        Known::Tracked => return Ok((NEXT, reason::FORWARDED)),
        Known::Stale | Known::No => {}
    }
    let config = forward::config();
    if config.flags & CONFIG_MASQUERADE == 0
        || !packet.trackable
        || !packet.opens()
        || forward::endpoint(packet.tuple.saddr_be).is_none()
        || forward::ipcache(packet.tuple.daddr_be).is_some()
    {
        return Ok((NEXT, reason::FORWARDED));
    }
    let to = Translation {
        daddr_be: packet.tuple.daddr_be,
        dport_be: packet.tuple.dport_be,
        saddr_be: config.node_ip_be,
        keep_port: false,
        flags: CT_MASQUERADE,
        rev_nat_id: 0,
        backend_id: 0,
        slot: 0,
    };
    let entry = ct::create(ctx, &packet, &to)?;
    rewrite(ctx, &mut packet, &entry)?;
    Ok((NEXT, reason::MASQUERADED))
}

/// What a flow's entry meant for a packet.
enum Known {
    /// There is none.
    No,
    /// There is one, and it is not for this place.
    Tracked,
    /// The packet was rewritten.
    Translated(CtEntry4),
    /// The flow opens anew and cannot keep its backend.
    Stale,
}

/// Whether an entry is to be applied where the packet was seen.
#[inline(always)]
fn applies(flags: u32, origin: Origin) -> bool {
    match flags & (CT_INBOUND | CT_MASQUERADE | CT_REPLY) {
        CT_MASQUERADE => origin == Origin::Stack,
        REPLY_OF_MASQUERADE => origin == Origin::Uplink,
        CT_REPLY => true,
        0 => origin != Origin::Stack,
        _ => false,
    }
}

const REPLY_OF_MASQUERADE: u32 = CT_MASQUERADE | CT_REPLY;

/// Translates a packet of a known flow, or an ICMP error about one.
#[inline(always)]
fn translate_known(ctx: &TcContext, packet: &mut Packet, origin: Origin) -> Result<Known, u32> {
    if packet.icmp_error {
        let Some(quoted) = quoted(ctx, packet) else { return Ok(Known::No) };
        let Some(entry) = ct::peek(&quoted.reversed()) else { return Ok(Known::No) };
        if !applies(entry.flags, origin) {
            return Ok(Known::Tracked);
        }
        rewrite_error(ctx, packet, &quoted, &entry)?;
        return Ok(Known::Translated(entry));
    }
    if !packet.trackable {
        return Ok(Known::No);
    }
    let Some(entry) = ct::lookup(ctx, packet) else { return Ok(Known::No) };
    if !applies(entry.flags, origin) {
        return Ok(Known::Tracked);
    }
    if entry.flags & (CT_REPLY | CT_MASQUERADE) == 0 && !still_holds(packet, &entry, origin) {
        return Ok(Known::Stale);
    }
    rewrite(ctx, packet, &entry)?;
    Ok(Known::Translated(entry))
}

/// Translates a packet of a known flow, or one to a frontend.
#[inline(always)]
fn translate(ctx: &TcContext, packet: &mut Packet, origin: Origin) -> Result<Translated, u32> {
    match translate_known(ctx, packet, origin)? {
        Known::Translated(entry) if entry.flags & CT_MASQUERADE != 0 => return Ok(Translated::Unmasqueraded),
        Known::Translated(_) => return Ok(Translated::Yes),
        Known::Tracked => return Ok(Translated::No),
        Known::Stale | Known::No => {}
    }
    if !packet.trackable || packet.tuple.protocol == PROTO_ICMP {
        return Ok(Translated::No);
    }
    let tuple = packet.tuple;
    let client = || Client::address4(tuple.saddr_be);
    let hash = || {
        // SAFETY: the helper takes the program's own packet.
        unsafe { bpf_get_hash_recalc(ctx.skb.skb) }
    };
    let choice = match lb::select::<V4>(&lookup(packet, origin), client, hash) {
        Selected::NoService => return Ok(Translated::No),
        Selected::NoBackend => return Err(reason::NO_BACKEND),
        Selected::Drop(reason) => return Err(reason),
        Selected::Backend(choice) => choice,
    };
    let (saddr_be, keep_port) = source(packet, &choice, origin);
    let to = Translation {
        daddr_be: choice.address_be,
        dport_be: choice.port_be,
        saddr_be,
        keep_port,
        flags: 0,
        rev_nat_id: choice.rev_nat_id,
        backend_id: choice.backend_id,
        slot: choice.slot,
    };
    let entry = ct::create(ctx, packet, &to)?;
    rewrite(ctx, packet, &entry)?;
    Ok(Translated::Yes)
}

/// What a packet asks the load balancer.
#[inline(always)]
fn lookup(packet: &Packet, origin: Origin) -> Lookup<u32> {
    let tuple = packet.tuple;
    let outside = origin == Origin::Uplink && forward::ipcache(tuple.saddr_be).is_none();
    Lookup {
        address_be: tuple.daddr_be,
        port_be: tuple.dport_be,
        protocol: tuple.protocol,
        scope: if outside { SCOPE_EXTERNAL } else { SCOPE_INTERNAL },
        preferred: None,
    }
}

/// The source address a backend must see for its answers to come back here, and whether the source
/// port may stay.
#[inline(always)]
fn source(packet: &Packet, choice: &Choice<u32>, origin: Origin) -> (u32, bool) {
    let saddr = packet.tuple.saddr_be;
    if choice.address_be == saddr {
        return (u32::from_ne_bytes(HAIRPIN_ADDRESS), true);
    }
    if origin == Origin::Uplink {
        let node_ip = forward::config().node_ip_be;
        if choice.address_be != node_ip && forward::endpoint(choice.address_be).is_none() {
            return (node_ip, false);
        }
    }
    (saddr, true)
}

/// Whether a flow keeps its backend. A TCP connection does, whatever becomes of the Service. A
/// datagram, or a packet that opens a connection anew, wants a backend that is still there.
#[inline(always)]
fn still_holds(packet: &Packet, entry: &CtEntry4, origin: Origin) -> bool {
    if !packet.opens() {
        return true;
    }
    entry.flags & CT_CLOSING == 0
        && lb::slot_holds::<V4>(&lookup(packet, origin), entry.slot, entry.backend_id)
}
