//! Translation: of packets of known flows, of ICMP errors about them, and of what opens a flow to a Service.

use hawser_ebpf_common::ct::{CT_CLOSING, CT_DSR, CT_INBOUND, CT_MASQUERADE, CT_REPLY, CtKey};
use hawser_ebpf_common::endpoint::{CONFIG_MASQUERADE, IDENTITY_PODS};
use hawser_ebpf_common::lb::{SCOPE_EXTERNAL, SCOPE_INTERNAL, SERVICE_DSR};
use hawser_ebpf_common::metrics::reason;

use crate::ct::{self, Rewrite, Translation, Untold};
use crate::dsr;
use crate::family::Family;
use crate::far;
use crate::forward::config;
use crate::frame::Frame;
use crate::lb::{self, Choice, Lookup, Selected};
use crate::packet::{Packet, Part, quoted};
use crate::rewrite::{rewrite, rewrite_error};

/// Where a packet was seen, as far as translation cares.
#[derive(Clone, Copy, PartialEq)]
pub enum Origin {
    Pod,
    /// The uplink, or a tunnel.
    Uplink,
    /// On its way out of the node's stack.
    Stack,
}

/// What translation did.
pub enum Translated {
    /// Nothing: no Service and no known flow.
    No,
    /// `tell`: the backend's node must learn the frontend (direct server return).
    Yes { tell: bool },
    /// Only the masquerade was undone; a Service's translation may lie below it.
    Unmasqueraded,
}

/// What a flow's entry means for a packet.
enum Known<A> {
    /// There is none.
    No,
    /// There is one, and it is not for this place.
    Tracked,
    /// The packet is to be rewritten, or was.
    Translated(Rewrite<A>),
    /// The flow opens anew and cannot keep its backend.
    Stale,
}

const REPLY_OF_MASQUERADE: u32 = CT_MASQUERADE | CT_REPLY;

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

/// Looks a packet's flow up, and rewrites nothing.
#[inline(always)]
fn known<F: Family, P: Frame>(
    frame: &P,
    packet: &Packet<F::Address>,
    origin: Origin,
) -> Result<Known<F::Address>, u32> {
    if !packet.trackable {
        return Ok(Known::No);
    }
    let Some(found) = ct::lookup::<F>(packet, Untold::one(frame))? else { return Ok(Known::No) };
    Ok(match standing::<F>(packet, &found, origin) {
        Standing::Elsewhere => Known::Tracked,
        Standing::Stale => Known::Stale,
        Standing::Good => Known::Translated(found),
    })
}

/// What a flow's entry is worth for a packet.
pub enum Standing {
    Good,
    /// It is not for this place.
    Elsewhere,
    /// The flow opens anew and cannot keep its backend.
    Stale,
}

/// Judges the entry that was found for a packet.
#[inline(always)]
pub fn standing<F: Family>(
    packet: &Packet<F::Address>,
    found: &Rewrite<F::Address>,
    origin: Origin,
) -> Standing {
    if !applies(found.flags, origin) {
        Standing::Elsewhere
    } else if found.flags & (CT_REPLY | CT_MASQUERADE) == 0 && !still_holds::<F>(packet, found, origin) {
        Standing::Stale
    } else {
        Standing::Good
    }
}

/// What became of a packet of a known flow.
pub enum Seen {
    /// There is no entry, or none that still holds.
    Unknown,
    /// There is one, and it is not for this place.
    Tracked,
    /// It was rewritten by an entry with these flags.
    Translated(u32),
}

impl Seen {
    #[inline(always)]
    fn pack(seen: Result<Self, u32>) -> u64 {
        match seen {
            Ok(Self::Unknown) => 0,
            Ok(Self::Tracked) => 1 << 32,
            Ok(Self::Translated(flags)) => 2 << 32 | u64::from(flags),
            Err(reason) => 3 << 32 | u64::from(reason),
        }
    }

    #[inline(always)]
    fn unpack(packed: u64) -> Result<Self, u32> {
        match packed >> 32 {
            0 => Ok(Self::Unknown),
            1 => Ok(Self::Tracked),
            2 => Ok(Self::Translated(packed as u32)),
            _ => Err(packed as u32),
        }
    }
}

/// Translates a packet of a known flow, or an ICMP error about one.
#[inline(always)]
pub fn translate_known<F: Family, P: Frame>(
    frame: &P,
    packet: &mut Packet<F::Address>,
    origin: Origin,
) -> Result<Seen, u32> {
    if packet.icmp_error {
        Seen::unpack(translate_error::<F, P>(frame, packet, origin))
    } else {
        Seen::unpack(translate_flow::<F, P>(frame, packet, origin))
    }
}

#[inline(never)]
fn translate_flow<F: Family, P: Frame>(frame: &P, packet: &mut Packet<F::Address>, origin: Origin) -> u64 {
    Seen::pack(translate_flow_near::<F, P>(frame, packet, origin))
}

#[inline(always)]
fn translate_flow_near<F: Family, P: Frame>(
    frame: &P,
    packet: &mut Packet<F::Address>,
    origin: Origin,
) -> Result<Seen, u32> {
    Ok(match known::<F, P>(frame, packet, origin)? {
        Known::No | Known::Stale => Seen::Unknown,
        Known::Tracked => Seen::Tracked,
        Known::Translated(to) => {
            rewrite::<F, P>(frame, packet, &to)?;
            Seen::Translated(to.flags)
        }
    })
}

#[inline(never)]
fn translate_error<F: Family, P: Frame>(frame: &P, packet: &mut Packet<F::Address>, origin: Origin) -> u64 {
    Seen::pack(translate_error_near::<F, P>(frame, packet, origin))
}

#[inline(always)]
fn translate_error_near<F: Family, P: Frame>(
    frame: &P,
    packet: &mut Packet<F::Address>,
    origin: Origin,
) -> Result<Seen, u32> {
    let Some(quoted) = quoted::<F, P>(frame, packet) else { return Ok(Seen::Unknown) };
    let Some(to) = ct::peek::<F>(&quoted.tuple.reversed()) else { return Ok(Seen::Unknown) };
    if !applies(to.flags, origin) {
        return Ok(Seen::Tracked);
    }
    rewrite_error::<F, P>(frame, packet, &quoted, &to)?;
    Ok(Seen::Translated(to.flags))
}

/// Translates a packet of a known flow, or one to a frontend.
#[inline(always)]
pub fn translate<F: Family, P: Frame>(
    frame: &P,
    packet: &mut Packet<F::Address>,
    origin: Origin,
) -> Result<Translated, u32> {
    let seen = translate_known::<F, P>(frame, packet, origin)?;
    translate_seen::<F, P>(frame, packet, origin, seen)
}

/// The second half of [`translate`]: of a packet whose flow is not known, to a frontend.
#[inline(always)]
pub fn translate_seen<F: Family, P: Frame>(
    frame: &P,
    packet: &mut Packet<F::Address>,
    origin: Origin,
    seen: Seen,
) -> Result<Translated, u32> {
    match seen {
        Seen::Translated(flags) if flags & CT_MASQUERADE != 0 => Ok(Translated::Unmasqueraded),
        Seen::Translated(flags) => Ok(yes::<F>(packet, flags)),
        Seen::Tracked => Ok(Translated::No),
        Seen::Unknown => match far::unpack_bool(translate_new::<F, P>(frame, packet, origin))? {
            false => Ok(Translated::No),
            true => Ok(yes::<F>(packet, new_flags::<F>()?)),
        },
    }
}

#[inline(never)]
fn translate_new<F: Family, P: Frame>(frame: &P, packet: &mut Packet<F::Address>, origin: Origin) -> u64 {
    far::pack_bool(match open::<F, P>(frame, packet, origin) {
        Ok(Some(to)) => rewrite::<F, P>(frame, packet, &to).map(|()| true),
        Ok(None) => Ok(false),
        Err(reason) => Err(reason),
    })
}

/// The flags of the entry that was made last.
#[inline(always)]
fn new_flags<F: Family>() -> Result<u32, u32> {
    let aside = F::aside().ok_or(reason::CT_FULL)?;
    // SAFETY: as in `set_translation`.
    Ok(unsafe { (*aside).entry.flags })
}

#[inline(always)]
fn yes<F: Family>(packet: &Packet<F::Address>, flags: u32) -> Translated {
    Translated::Yes { tell: !F::V6 && dsr::must_tell(packet, flags) }
}

/// Chooses a backend for a packet to a frontend, and makes the flow's entries.
#[inline(always)]
pub fn open<F: Family, P: Frame>(
    frame: &P,
    packet: &Packet<F::Address>,
    origin: Origin,
) -> Result<Option<Rewrite<F::Address>>, u32> {
    match choose::<F>(packet, origin)? {
        true => ct::create::<F>(&packet.tuple, frame.len()).map(Some),
        false => Ok(None),
    }
}

/// Decides what a packet to a frontend is to become, in memory aside; `false` for a packet to no Service.
#[inline(always)]
fn choose<F: Family>(packet: &Packet<F::Address>, origin: Origin) -> Result<bool, u32> {
    far::unpack_bool(choose_far::<F>(packet, origin))
}

#[inline(never)]
fn choose_far<F: Family>(packet: &Packet<F::Address>, origin: Origin) -> u64 {
    far::pack_bool(choose_near::<F>(packet, origin))
}

#[inline(always)]
fn choose_near<F: Family>(packet: &Packet<F::Address>, origin: Origin) -> Result<bool, u32> {
    let tuple = &packet.tuple;
    if !packet.trackable || tuple.protocol == F::ICMP {
        return Ok(false);
    }
    let choice = match lb::select::<F>(
        &lookup::<F>(packet),
        || F::client(tuple.saddr_be),
        || scope(origin),
        || hash::<F>(tuple),
    ) {
        Selected::NoService => return Ok(false),
        Selected::NoBackend => return Err(reason::NO_BACKEND),
        Selected::Drop(reason) => return Err(reason),
        Selected::Backend(choice) => choice,
    };
    if packet.part == Part::Later {
        return Err(reason::FRAGMENT);
    }
    let source = source::<F>(packet, &choice, origin)?;
    set_translation::<F>(Translation {
        daddr_be: choice.address_be,
        dport_be: choice.port_be,
        saddr_be: source.address_be,
        keep_port: source.keep_port,
        flags: source.flags,
        rev_nat_id: choice.rev_nat_id,
        backend_id: choice.backend_id,
        slot: choice.slot,
    })?;
    Ok(true)
}

#[inline(always)]
fn set_translation<F: Family>(to: Translation<F::Address>) -> Result<(), u32> {
    let aside = F::aside().ok_or(reason::CT_FULL)?;
    // SAFETY: an element of a per-CPU array, always there, and used by one program at a time.
    unsafe { (*aside).translation = to };
    Ok(())
}

/// What a packet asks the load balancer.
#[inline(always)]
fn lookup<F: Family>(packet: &Packet<F::Address>) -> Lookup<F::Address> {
    let tuple = &packet.tuple;
    Lookup { address_be: tuple.daddr_be, port_be: tuple.dport_be, protocol: tuple.protocol, preferred: None }
}

/// Pods and processes of other nodes are outside as well here: what they asked for is a port of a node that is not theirs,
/// else their own node had answered (KEP-1669).
#[inline(always)]
fn scope(origin: Origin) -> u8 {
    if origin == Origin::Uplink { SCOPE_EXTERNAL } else { SCOPE_INTERNAL }
}

/// A hash of a connection that is the same on every node: whichever gets a connection's packets, Maglev chooses the
/// same backend. The mixing is MurmurHash3's.
#[inline(always)]
fn hash<F: Family>(tuple: &CtKey<F::Address>) -> u32 {
    let [s0, s1, s2, s3] = F::words(tuple.saddr_be);
    let [d0, d1, d2, d3] = F::words(tuple.daddr_be);
    let ports = u32::from(tuple.sport_be) | u32::from(tuple.dport_be) << 16;
    let mut hash = u32::from(tuple.protocol);
    for word in [s0, s1, s2, s3, d0, d1, d2, d3, ports] {
        let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
        hash = (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// The source that a backend sees.
struct Source<A> {
    address_be: A,
    keep_port: bool,
    flags: u32,
}

/// The source address a backend must see for its answers to come back here, and whether the source
/// port may stay.
#[inline(always)]
fn source<F: Family>(
    packet: &Packet<F::Address>,
    choice: &Choice<F::Address>,
    origin: Origin,
) -> Result<Source<F::Address>, u32> {
    let saddr = packet.tuple.saddr_be;
    let keep = |flags| Source { address_be: saddr, keep_port: true, flags };
    // A backend that asks itself. The hairpin address never leaves the node: behind another node it sees this one.
    let to_itself = choice.address_be == saddr;
    if origin != Origin::Uplink {
        return Ok(match to_itself {
            true => Source { address_be: F::hairpin(), keep_port: true, flags: 0 },
            false => keep(0),
        });
    }
    let config = config();
    let node_ip = F::node_ip(&config);
    if choice.address_be == node_ip || F::endpoint(choice.address_be).is_some() {
        return Ok(keep(0));
    }
    // Only our own programs on the backend's node understand what comes with such a flow's first packet, and only on
    // a network that carries it.
    if !F::V6
        && !to_itself
        && choice.flags & SERVICE_DSR != 0
        && config.vxlan_ifindex == 0
        && F::ipcache(choice.address_be).is_some_and(|prefix| prefix.identity == IDENTITY_PODS)
    {
        return Ok(keep(CT_DSR));
    }
    if F::words(node_ip) == [0; 4] {
        return Err(reason::NO_ROUTE);
    }
    Ok(Source { address_be: node_ip, keep_port: false, flags: 0 })
}

/// Whether a flow keeps its backend. A TCP connection does, whatever becomes of the Service. A
/// datagram, or a packet that opens a connection anew, wants a backend that is still there.
#[inline(always)]
fn still_holds<F: Family>(packet: &Packet<F::Address>, entry: &Rewrite<F::Address>, origin: Origin) -> bool {
    if !packet.opens() {
        return true;
    }
    entry.flags & CT_CLOSING == 0
        && lb::slot_holds::<F>(&lookup::<F>(packet), || scope(origin), entry.slot, entry.backend_id)
}

/// Masquerades what a pod sends out of the cluster. `false` when this is nothing of the kind.
#[inline(always)]
pub fn masquerade<F: Family, P: Frame>(frame: &P, packet: &mut Packet<F::Address>) -> Result<bool, u32> {
    far::unpack_bool(masquerade_far::<F, P>(frame, packet))
}

#[inline(never)]
fn masquerade_far<F: Family, P: Frame>(frame: &P, packet: &mut Packet<F::Address>) -> u64 {
    far::pack_bool(masquerade_near::<F, P>(frame, packet))
}

#[inline(always)]
fn masquerade_near<F: Family, P: Frame>(frame: &P, packet: &mut Packet<F::Address>) -> Result<bool, u32> {
    let config = config();
    let node_ip = F::node_ip(&config);
    if config.flags & CONFIG_MASQUERADE == 0
        || F::words(node_ip) == [0; 4]
        || !packet.trackable
        || !packet.opens()
        || F::endpoint(packet.tuple.saddr_be).is_none()
        || F::ipcache(packet.tuple.daddr_be).is_some()
    {
        return Ok(false);
    }
    set_translation::<F>(Translation {
        daddr_be: packet.tuple.daddr_be,
        dport_be: packet.tuple.dport_be,
        saddr_be: node_ip,
        keep_port: false,
        flags: CT_MASQUERADE,
        rev_nat_id: 0,
        backend_id: 0,
        slot: 0,
    })?;
    let entry = ct::create::<F>(&packet.tuple, frame.len())?;
    rewrite::<F, P>(frame, packet, &entry)?;
    Ok(true)
}
