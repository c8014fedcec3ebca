//! Connection tracking: translation of known flows, and entries for new ones.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::programs::TcContext;
use hawser_ebpf_common::ct::{
    CT_CLOSING, CT_INBOUND, CT_REPLY, CT_SEEN, CtEntry4, CtKey4, SNAT_PORT_COUNT, SNAT_PORT_MIN,
};
use hawser_ebpf_common::metrics::reason;

use crate::maps::CT;
use crate::packet::{Packet, TCP_FIN, TCP_RST};

/// How many ports are tried for one flow.
const PORT_ATTEMPTS: u32 = 16;

/// What a flow is translated to.
#[derive(Clone, Copy)]
pub struct Translation {
    /// Destination after translation.
    pub daddr_be: u32,
    pub dport_be: u16,
    /// Source after translation; its port is chosen here.
    pub saddr_be: u32,
    /// The source port may stay; else it comes from the range for source translation.
    pub keep_port: bool,
    /// `CT_*` of both entries.
    pub flags: u32,
    pub rev_nat_id: u32,
    pub backend_id: u32,
    pub slot: u16,
}

/// Finds the entry of the packet's tuple and notes the packet in it.
#[inline(always)]
pub fn lookup(ctx: &TcContext, packet: &Packet) -> Option<CtEntry4> {
    let entry = CT.get_ptr_mut(&packet.tuple)?;
    // SAFETY: the helper returned a valid element. Another CPU may write the same fields at
    // once: the counters may then miss a packet, and of the times and flags either is good.
    unsafe {
        (*entry).last_seen_ns = bpf_ktime_get_ns();
        (*entry).packets += 1;
        (*entry).bytes += u64::from(ctx.len());
        let mut flags = (*entry).flags;
        if packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
            flags |= CT_CLOSING;
        }
        if flags & CT_REPLY != 0 {
            flags |= CT_SEEN;
        }
        if flags != (*entry).flags {
            (*entry).flags = flags;
        }
        Some(*entry)
    }
}

/// Finds the entry of a tuple that is not the packet's own, and notes nothing.
#[inline(always)]
pub fn peek(tuple: &CtKey4) -> Option<CtEntry4> {
    // SAFETY: copied at once; an element that the LRU map recycles meanwhile is of another flow, which
    // harms one ICMP error.
    unsafe { CT.get(tuple) }.copied()
}

/// Makes both entries of a new flow and returns the one of the packet's direction.
#[inline(always)]
pub fn create(ctx: &TcContext, packet: &Packet, to: &Translation) -> Result<CtEntry4, u32> {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let tuple = packet.tuple;
    let mut reply_key = CtKey4 {
        saddr_be: to.daddr_be,
        daddr_be: to.saddr_be,
        sport_be: to.dport_be,
        dport_be: tuple.sport_be,
        protocol: tuple.protocol,
        pad: [0; 3],
    };
    let mut entry = CtEntry4 {
        last_seen_ns: now,
        packets: 0,
        bytes: 0,
        new_saddr_be: tuple.daddr_be,
        new_daddr_be: tuple.saddr_be,
        new_sport_be: tuple.dport_be,
        new_dport_be: tuple.sport_be,
        flags: to.flags | CT_REPLY,
        rev_nat_id: to.rev_nat_id,
        backend_id: to.backend_id,
        slot: to.slot,
        pad: [0; 3],
    };
    if !to.keep_port {
        reply_key.dport_be = random_port_be();
    }
    let mut made = false;
    for _ in 0..PORT_ATTEMPTS {
        if CT.insert(&reply_key, &entry, u64::from(BPF_NOEXIST)).is_ok() || is_same(&reply_key, &entry) {
            made = true;
            break;
        }
        reply_key.dport_be = random_port_be();
    }
    if !made {
        return Err(reason::NO_NAT_PORT);
    }
    entry.packets = 1;
    entry.bytes = u64::from(ctx.len());
    entry.new_saddr_be = to.saddr_be;
    entry.new_daddr_be = to.daddr_be;
    entry.new_sport_be = reply_key.dport_be;
    entry.new_dport_be = to.dport_be;
    entry.flags = to.flags;
    CT.insert(&tuple, &entry, 0).map_err(|_| reason::NO_NAT_PORT)?;
    Ok(entry)
}

/// Notes that a flow came in from outside, so that its answers keep the pod's address.
#[inline(always)]
pub fn note_inbound(ctx: &TcContext, packet: &Packet) {
    let tuple = packet.tuple;
    let key = CtKey4 {
        saddr_be: tuple.daddr_be,
        daddr_be: tuple.saddr_be,
        sport_be: tuple.dport_be,
        dport_be: tuple.sport_be,
        protocol: tuple.protocol,
        pad: [0; 3],
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(entry) = CT.get_ptr_mut(&key) {
        // SAFETY: as in `lookup`.
        unsafe { (*entry).last_seen_ns = now };
        return;
    }
    let entry = CtEntry4 {
        last_seen_ns: now,
        packets: 1,
        bytes: u64::from(ctx.len()),
        new_saddr_be: key.saddr_be,
        new_daddr_be: key.daddr_be,
        new_sport_be: key.sport_be,
        new_dport_be: key.dport_be,
        flags: CT_INBOUND,
        rev_nat_id: 0,
        backend_id: 0,
        slot: 0,
        pad: [0; 3],
    };
    // A failure means that another CPU was first.
    let _ = CT.insert(&key, &entry, u64::from(BPF_NOEXIST));
}

/// Whether an entry is there that translates to the same: the flow was opened before. It then
/// counts as new.
#[inline(always)]
fn is_same(key: &CtKey4, wanted: &CtEntry4) -> bool {
    let Some(entry) = CT.get_ptr_mut(key) else { return false };
    // SAFETY: as in `lookup`.
    unsafe {
        let same = (*entry).new_saddr_be == wanted.new_saddr_be
            && (*entry).new_daddr_be == wanted.new_daddr_be
            && (*entry).new_sport_be == wanted.new_sport_be
            && (*entry).new_dport_be == wanted.new_dport_be;
        if same {
            *entry = *wanted;
        }
        same
    }
}

#[inline(always)]
fn random_port_be() -> u16 {
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    (SNAT_PORT_MIN + (random % u32::from(SNAT_PORT_COUNT)) as u16).to_be()
}
