//! tc programs.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::ct::{CT_CLOSING, CT_INBOUND, CT_MASQUERADE, CT_REPLY, CtEntry4};
use hawser_ebpf_common::endpoint::{CONFIG_MASQUERADE, HAIRPIN_ADDRESS, IDENTITY_PODS};
use hawser_ebpf_common::metrics::{direction, reason};
use hawser_ebpf_common::{PROTO_ICMP, PROTO_UDP};

use crate::count::count;
use crate::ct::{self, Translation};
use crate::forward::{self, NEXT, Verdict};
use crate::lb::{self, Choice, Selected};
use crate::packet::{Packet, parse, rewrite};
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
    if packet.trackable
        && let Some(entry) = ct::lookup(ctx, &packet)
        && entry.flags & (CT_REPLY | CT_MASQUERADE) == CT_REPLY
    {
        rewrite(ctx, &mut packet, &entry)?;
        return Ok((NEXT, reason::TRANSLATED));
    }
    Ok((NEXT, reason::FORWARDED))
}

#[inline(always)]
fn try_from_uplink(ctx: &TcContext) -> Result<Verdict, u32> {
    let Some(mut packet) = parse(ctx)? else { return Ok((NEXT, reason::STACK)) };
    if packet.ttl <= 1 {
        return Ok((NEXT, reason::STACK));
    }
    let outcome = match translate(ctx, &mut packet, Origin::Uplink) {
        Ok(Translated::Unmasqueraded) => {
            // An answer to a pod whose Service led out of the cluster.
            if let Some(entry) = ct::lookup(ctx, &packet)
                && entry.flags & (CT_REPLY | CT_MASQUERADE) == CT_REPLY
            {
                rewrite(ctx, &mut packet, &entry)?;
            }
            Ok(Translated::Yes)
        }
        other => other,
    };
    let done = match outcome {
        Ok(Translated::No) => reason::FORWARDED,
        Ok(_) => reason::TRANSLATED,
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
        // Its source is this node now, so the stack would call it a martian.
        return forward::to_node(ctx, &packet, None, done);
    }
    Ok((NEXT, reason::STACK))
}

#[inline(always)]
fn try_to_uplink(ctx: &TcContext) -> Result<Verdict, u32> {
    let Some(mut packet) = parse(ctx)? else { return Ok((NEXT, reason::STACK)) };
    if !packet.trackable {
        return Ok((NEXT, reason::FORWARDED));
    }
    if let Some(entry) = ct::lookup(ctx, &packet) {
        let answer = entry.flags & (CT_REPLY | CT_MASQUERADE) == CT_REPLY;
        let masquerade = entry.flags & (CT_REPLY | CT_MASQUERADE) == CT_MASQUERADE;
        if answer || masquerade {
            rewrite(ctx, &mut packet, &entry)?;
            return Ok((NEXT, if answer { reason::TRANSLATED } else { reason::MASQUERADED }));
        }
        return Ok((NEXT, reason::FORWARDED));
    }
    let config = forward::config();
    if config.flags & CONFIG_MASQUERADE == 0
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

/// Translates a packet of a known flow, or one to a frontend.
#[inline(always)]
fn translate(ctx: &TcContext, packet: &mut Packet, origin: Origin) -> Result<Translated, u32> {
    if !packet.trackable {
        return Ok(Translated::No);
    }
    if let Some(entry) = ct::lookup(ctx, packet) {
        if entry.flags & CT_INBOUND != 0 {
            return Ok(Translated::No);
        }
        if entry.flags & CT_MASQUERADE != 0 {
            if entry.flags & CT_REPLY == 0 || origin == Origin::Pod {
                return Ok(Translated::No);
            }
            rewrite(ctx, packet, &entry)?;
            return Ok(Translated::Unmasqueraded);
        }
        if entry.flags & CT_REPLY != 0 || still_holds(packet, &entry) {
            rewrite(ctx, packet, &entry)?;
            return Ok(Translated::Yes);
        }
    }
    if packet.tuple.protocol == PROTO_ICMP {
        return Ok(Translated::No);
    }
    let tuple = packet.tuple;
    let choice = match lb::select(tuple.daddr_be, tuple.dport_be, tuple.protocol, None) {
        Selected::NoService => return Ok(Translated::No),
        Selected::NoBackend => return Err(reason::NO_BACKEND),
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

/// The source address a backend must see for its answers to come back here, and whether the source
/// port may stay.
#[inline(always)]
fn source(packet: &Packet, choice: &Choice, origin: Origin) -> (u32, bool) {
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
fn still_holds(packet: &Packet, entry: &CtEntry4) -> bool {
    if !packet.opens() {
        return true;
    }
    let tuple = packet.tuple;
    entry.flags & CT_CLOSING == 0
        && lb::slot_holds(tuple.daddr_be, tuple.dport_be, tuple.protocol, entry.slot, entry.backend_id)
}
