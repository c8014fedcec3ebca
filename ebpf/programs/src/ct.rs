//! Connection tracking: entries of known flows, and entries for new ones.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use hawser_ebpf_common::PROTO_TCP;
pub use hawser_ebpf_common::ct::epoch;
use hawser_ebpf_common::ct::{
    CT_CLOSING, CT_DSR, CT_INBOUND, CT_REPLY, CT_SEEN, CtEntry, CtKey, OldCtEntry, SNAT_PORT_COUNT,
    SNAT_PORT_MIN,
};
use hawser_ebpf_common::endpoint::CONFIG_MIGRATING;
use hawser_ebpf_common::metrics::reason;

use crate::family::Family;
use crate::far;
use crate::forward::config;
use crate::frame::Frame;
use crate::hop;
use crate::packet::{Packet, TCP_FIN, TCP_RST};

/// How many ports are tried for one flow.
const PORT_ATTEMPTS: u32 = 32;
/// A connection that both sides closed gives its port away after this time.
const CLOSED_REUSE_NS: u64 = 2_000_000_000;
const EEXIST: i32 = 17;

/// What a flow is translated to.
#[derive(Clone, Copy)]
pub struct Translation<A> {
    /// Destination after translation.
    pub daddr_be: A,
    pub dport_be: u16,
    /// Source after translation; its port is chosen here.
    pub saddr_be: A,
    /// The source port may stay; else it comes from the range for source translation.
    pub keep_port: bool,
    /// `CT_*` of both entries.
    pub flags: u32,
    pub rev_nat_id: u32,
    pub backend_id: u32,
    pub slot: u16,
}

/// The time, a few milliseconds coarse: reading it costs next to nothing.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// What an entry makes of a packet.
#[derive(Clone, Copy)]
pub struct Rewrite<A> {
    pub saddr_be: A,
    pub daddr_be: A,
    pub sport_be: u16,
    pub dport_be: u16,
    /// `CT_*`.
    pub flags: u32,
    pub backend_id: u32,
    pub slot: u16,
    /// As XDP found it for an earlier packet; zeroes when it is to be asked for.
    pub next_hop: [u8; 6],
    /// The entry had a packet in this second before.
    pub again: bool,
}

impl<A: Copy> Rewrite<A> {
    #[inline(always)]
    fn of(entry: &CtEntry<A>) -> Self {
        Self {
            saddr_be: entry.new_saddr_be,
            daddr_be: entry.new_daddr_be,
            sport_be: entry.new_sport_be,
            dport_be: entry.new_dport_be,
            flags: entry.flags,
            backend_id: entry.backend_id,
            slot: entry.slot,
            next_hop: entry.next_hop,
            again: false,
        }
    }
}

/// The key of the answers to packets of a tuple.
#[inline(always)]
fn answers<A: Copy>(tuple: &CtKey<A>, to: &Rewrite<A>) -> CtKey<A> {
    CtKey {
        saddr_be: to.daddr_be,
        daddr_be: to.saddr_be,
        sport_be: to.dport_be,
        dport_be: to.sport_be,
        protocol: tuple.protocol,
        pad: [0; 3],
    }
}

/// Packets that an entry does not count yet.
#[derive(Clone, Copy)]
pub struct Untold {
    pub packets: u64,
    pub bytes: u64,
}

impl Untold {
    /// The one that is worked on.
    #[inline(always)]
    pub fn one<P: Frame>(frame: &P) -> Self {
        Self { packets: 1, bytes: u64::from(frame.len()) }
    }

    /// Counts them.
    #[inline(always)]
    pub fn tell<F: Family>(self, tuple: &CtKey<F::Address>) {
        if let Some(entry) = F::ct().get_ptr_mut(tuple) {
            // SAFETY: as in `lookup`.
            unsafe {
                (*entry).packets += self.packets;
                (*entry).bytes += self.bytes;
            }
        }
    }
}

/// Finds the entry of the packet's tuple and notes the packet in it, and with it others before it.
#[inline(always)]
pub fn lookup<F: Family>(
    packet: &Packet<F::Address>,
    untold: Untold,
) -> Result<Option<Rewrite<F::Address>>, u32> {
    let mut entry = F::ct().get_ptr_mut(&packet.tuple);
    if entry.is_none() && migrating() {
        moved::<F>(&packet.tuple);
        entry = F::ct().get_ptr_mut(&packet.tuple);
    }
    let Some(entry) = entry else { return Ok(None) };
    let now = now_ns();
    // SAFETY: the helper returned a valid element. Another CPU may write the same fields at
    // once: the counters may then miss a packet, and of the times and flags either is good.
    let (found, anew) = unsafe {
        let anew = epoch((*entry).last_seen_ns) != epoch(now);
        if anew {
            (*entry).next_hop = hop::known::<F>((*entry).new_daddr_be, now);
        }
        (*entry).last_seen_ns = now;
        (*entry).packets += untold.packets;
        (*entry).bytes += untold.bytes;
        let mut flags = (*entry).flags;
        if packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
            flags |= CT_CLOSING;
        }
        if flags & CT_REPLY != 0 || (flags & CT_DSR != 0 && !packet.opens()) {
            flags |= CT_SEEN;
        }
        if flags != (*entry).flags {
            (*entry).flags = flags;
        }
        (Rewrite { again: !anew, ..Rewrite::of(&*entry) }, anew)
    };
    if anew && found.flags & (CT_REPLY | CT_DSR | CT_INBOUND) == 0 {
        match owns_port::<F>(&packet.tuple, &found) {
            // What opens a connection is of no flow yet: it gets a port of its own.
            Err(_) if packet.opens() => return Ok(None),
            owned => owned?,
        }
    }
    Ok(Some(found))
}

/// Sees to it that answers of a flow come back to it. The map evicts what was not used for long, so the entry for
/// answers can be gone while this one is there, and another flow may have taken its place since: then this flow is
/// over, and its entry gone, because what it would send went into the other's connection. Once a second is enough: each look counts as a
/// use, so the entry of a flow that sends that often is not what is evicted.
#[inline(always)]
fn owns_port<F: Family>(tuple: &CtKey<F::Address>, found: &Rewrite<F::Address>) -> Result<(), u32> {
    let key = answers(tuple, found);
    if let Some(reply) = F::ct().get_ptr_mut(&key) {
        // SAFETY: as in `lookup`.
        let ours = unsafe {
            (*reply).new_daddr_be == tuple.saddr_be
                && (*reply).new_dport_be == tuple.sport_be
                && (*reply).new_saddr_be == tuple.daddr_be
                && (*reply).new_sport_be == tuple.dport_be
        };
        if ours {
            return Ok(());
        }
        let _ = F::ct().remove(tuple);
        return Err(reason::NAT_CONFLICT);
    }
    if restore::<F>(&key, tuple, found) == 1 { Ok(()) } else { Err(reason::NAT_CONFLICT) }
}

/// Makes the entry for answers again.
#[inline(never)]
fn restore<F: Family>(
    key: &CtKey<F::Address>,
    tuple: &CtKey<F::Address>,
    found: &Rewrite<F::Address>,
) -> u64 {
    let reply = reply_entry::<F>(tuple, found.flags, 0, found.backend_id, found.slot);
    u64::from(insert::<F>(key, &reply, BPF_NOEXIST).is_ok())
}

/// Whether programs of an older layout may still be attached somewhere.
#[inline(always)]
pub fn migrating() -> bool {
    config().flags & CONFIG_MIGRATING != 0
}

/// Takes over the entry of a tuple, if programs of an older layout made one.
#[inline(never)]
fn moved<F: Family>(tuple: &CtKey<F::Address>) -> u64 {
    // SAFETY: copied at once; an element that the LRU map recycles meanwhile is of a flow that this one then shares its
    // entry with, as it would have in the old map.
    let Some(old) = (unsafe { F::old_ct().get(tuple) }) else { return 0 };
    let Some(aside) = F::aside() else { return 0 };
    // SAFETY: an element of a per-CPU array, always there, and used by one program at a time. Nobody has an entry aside
    // when a flow is looked for.
    unsafe {
        (*aside).renewed = old.renewed();
        u64::from(F::ct().insert(tuple, &(*aside).renewed, u64::from(BPF_NOEXIST)).is_ok())
    }
}

/// Writes an entry, for programs of an older layout as well.
#[inline(always)]
fn insert<F: Family>(key: &CtKey<F::Address>, entry: &CtEntry<F::Address>, flags: u32) -> Result<(), i32> {
    F::ct().insert(key, entry, u64::from(flags))?;
    if migrating() {
        mirror::<F>(key, entry);
    }
    Ok(())
}

#[inline(never)]
fn mirror<F: Family>(key: &CtKey<F::Address>, entry: &CtEntry<F::Address>) -> u64 {
    let Some(aside) = F::aside() else { return 0 };
    // SAFETY: as in `moved`. A failure costs what an older program does with this flow's packets.
    unsafe {
        (*aside).old = OldCtEntry::of(entry);
        u64::from(F::old_ct().insert(key, &(*aside).old, 0).is_ok())
    }
}

/// Finds the entry of a tuple that is not the packet's own, and notes nothing.
#[inline(always)]
pub fn peek<F: Family>(tuple: &CtKey<F::Address>) -> Option<Rewrite<F::Address>> {
    // SAFETY: copied at once; an element that the LRU map recycles meanwhile is of another flow, which
    // harms one ICMP error.
    unsafe { F::ct().get(tuple) }.map(Rewrite::of)
}

/// The entry for answers to packets of a tuple.
#[inline(always)]
fn reply_entry<F: Family>(
    tuple: &CtKey<F::Address>,
    flags: u32,
    rev_nat_id: u32,
    backend_id: u32,
    slot: u16,
) -> CtEntry<F::Address> {
    CtEntry {
        last_seen_ns: now_ns(),
        packets: 0,
        bytes: 0,
        new_saddr_be: tuple.daddr_be,
        new_daddr_be: tuple.saddr_be,
        new_sport_be: tuple.dport_be,
        new_dport_be: tuple.sport_be,
        flags: flags | CT_REPLY,
        rev_nat_id,
        backend_id,
        slot,
        next_hop: [0; 6],
        pad: 0,
    }
}

/// Makes both entries of a new flow, as the translation aside says, and returns what the packet becomes.
#[inline(always)]
pub fn create<F: Family>(tuple: &CtKey<F::Address>, len: u32) -> Result<Rewrite<F::Address>, u32> {
    far::unpack_unit(create_far::<F>(tuple, len))?;
    let aside = F::aside().ok_or(reason::CT_FULL)?;
    // SAFETY: an element of a per-CPU array, always there, and used by one program at a time.
    Ok(Rewrite::of(unsafe { &(*aside).entry }))
}

#[inline(never)]
fn create_far<F: Family>(tuple: &CtKey<F::Address>, len: u32) -> u64 {
    far::pack_unit(create_near::<F>(tuple, len))
}

#[inline(always)]
fn create_near<F: Family>(tuple: &CtKey<F::Address>, len: u32) -> Result<(), u32> {
    let aside = F::aside().ok_or(reason::CT_FULL)?;
    // SAFETY: an element of a per-CPU array, always there, and used by one program at a time.
    let (to, entry) = unsafe { (&(*aside).translation, &mut (*aside).entry) };
    *entry = reply_entry::<F>(tuple, to.flags, to.rev_nat_id, to.backend_id, to.slot);
    let mut key = CtKey {
        saddr_be: to.daddr_be,
        daddr_be: to.saddr_be,
        sport_be: to.dport_be,
        dport_be: tuple.sport_be,
        protocol: tuple.protocol,
        pad: [0; 3],
    };
    if to.flags & CT_DSR == 0 {
        if !to.keep_port {
            key.dport_be = random_port_be();
        }
        allocate::<F>(&mut key, entry)?;
    }
    entry.packets = 1;
    entry.bytes = u64::from(len);
    entry.new_saddr_be = to.saddr_be;
    entry.new_daddr_be = to.daddr_be;
    entry.new_sport_be = key.dport_be;
    entry.new_dport_be = to.dport_be;
    entry.flags = to.flags;
    entry.next_hop = hop::known::<F>(to.daddr_be, entry.last_seen_ns);
    insert::<F>(tuple, entry, 0).map_err(|_| reason::CT_FULL)
}

/// Claims the tuple of the answers; with another port when somebody else has it.
#[inline(always)]
fn allocate<F: Family>(key: &mut CtKey<F::Address>, entry: &CtEntry<F::Address>) -> Result<(), u32> {
    for _ in 0..PORT_ATTEMPTS {
        if migrating() {
            // A port that a flow of an older program has.
            moved::<F>(key);
        }
        match insert::<F>(key, entry, BPF_NOEXIST) {
            Ok(()) => return Ok(()),
            Err(error) if error != -EEXIST => return Err(reason::CT_FULL),
            Err(_) => {}
        }
        if take_over::<F>(key, entry) {
            return Ok(());
        }
        key.dport_be = random_port_be();
    }
    Err(reason::NO_NAT_PORT)
}

/// Takes an entry that translates to the same, because the flow was opened before and now counts as new, or one of a
/// connection that both sides closed.
#[inline(always)]
fn take_over<F: Family>(key: &CtKey<F::Address>, wanted: &CtEntry<F::Address>) -> bool {
    let Some(entry) = F::ct().get_ptr_mut(key) else { return false };
    // SAFETY: as in `lookup`.
    unsafe {
        let same = (*entry).new_saddr_be == wanted.new_saddr_be
            && (*entry).new_daddr_be == wanted.new_daddr_be
            && (*entry).new_sport_be == wanted.new_sport_be
            && (*entry).new_dport_be == wanted.new_dport_be;
        let closed = key.protocol == PROTO_TCP
            && (*entry).flags & CT_CLOSING != 0
            && wanted.last_seen_ns.saturating_sub((*entry).last_seen_ns) > CLOSED_REUSE_NS
            && is_closed::<F>(&key.partner(&*entry));
        if same || closed {
            *entry = *wanted;
        }
        same || closed
    }
}

/// Whether the other direction's entry says so, or is gone.
#[inline(always)]
fn is_closed<F: Family>(key: &CtKey<F::Address>) -> bool {
    // SAFETY: as in `lookup`.
    F::ct().get_ptr_mut(key).is_none_or(|entry| unsafe { (*entry).flags } & CT_CLOSING != 0)
}

/// Writes an entry of its own kind: of a flow that has only this one.
#[inline(never)]
pub fn note<F: Family>(
    key: &CtKey<F::Address>,
    new_saddr_be: &F::Address,
    new_sport_be: u16,
    flags: u32,
) -> u64 {
    let new_saddr_be = *new_saddr_be;
    let now = now_ns();
    if let Some(entry) = F::ct().get_ptr_mut(key) {
        // SAFETY: as in `lookup`.
        unsafe {
            let same = (*entry).new_saddr_be == new_saddr_be && (*entry).new_sport_be == new_sport_be;
            // That a flow came from outside says nothing against what else is known of it.
            if same || flags & CT_INBOUND != 0 {
                (*entry).last_seen_ns = now;
                return 0;
            }
        }
    }
    let entry = CtEntry {
        last_seen_ns: now,
        packets: 1,
        bytes: 0,
        new_saddr_be,
        new_daddr_be: key.daddr_be,
        new_sport_be,
        new_dport_be: key.dport_be,
        flags,
        rev_nat_id: 0,
        backend_id: 0,
        slot: 0,
        next_hop: [0; 6],
        pad: 0,
    };
    // A failure means that another CPU was first, or that nothing is free: the next packet tries again.
    let _ = insert::<F>(key, &entry, 0);
    0
}

/// Notes that a flow came in from outside, so that its answers keep the pod's address.
#[inline(always)]
pub fn note_inbound<F: Family>(packet: &Packet<F::Address>) {
    let key = packet.tuple.reversed();
    note::<F>(&key, &key.saddr_be, key.sport_be, CT_INBOUND);
}

/// Keeps the next hop that XDP found.
#[inline(always)]
pub fn set_next_hop<F: Family>(tuple: &CtKey<F::Address>, next_hop: [u8; 6]) {
    if let Some(entry) = F::ct().get_ptr_mut(tuple) {
        // SAFETY: as in `lookup`; a torn address would live for a second at most, and both halves come from the
        // same table.
        unsafe { (*entry).next_hop = next_hop };
    }
}

#[inline(always)]
fn random_port_be() -> u16 {
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    (SNAT_PORT_MIN + (random % u32::from(SNAT_PORT_COUNT)) as u16).to_be()
}
