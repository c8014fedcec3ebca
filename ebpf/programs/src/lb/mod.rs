//! Frontend → backend, for both families and for sockets and packets alike.

mod maps;

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::maps::lpm_trie::Key;
use hawser_ebpf_common::PROTO_TCP;
use hawser_ebpf_common::lb::{
    ALGORITHM_DEFAULT, ALGORITHM_LEAST, ALGORITHM_MAGLEV, AffinityKey, AffinityMatchKey, AffinityValue,
    Backend, CLIENT_ADDRESS, CLIENT_NODE, MAGLEV_CHUNK, MAGLEV_SIZE, MaglevKey, ReverseNat, SCOPE_EXTERNAL,
    SCOPE_INTERNAL, SERVICE_AFFINITY, SERVICE_DENY_NODE, SERVICE_DROP_IF_EMPTY, SERVICE_LOOPBACK,
    SERVICE_SOURCE_RANGES, SERVICE_TWO_SCOPES, ServiceEntry, ServiceKey, ServiceValue, SourceRangeKey,
};
use hawser_ebpf_common::metrics::reason;

pub use maps::{AFFINITY, CONNECTIONS, Family, LB_CONFIG, OLD_SOCKETS, SOCKETS, V4, V6};
use maps::{AFFINITY_MATCH, MAGLEV, SOURCE_RANGE};

/// How often a choice starts again when an update took the slot away meanwhile.
const ATTEMPTS: u32 = 4;
const SECOND_NS: u64 = 1_000_000_000;

/// What is asked.
#[derive(Clone, Copy)]
pub struct Lookup<A> {
    pub address_be: A,
    pub port_be: u16,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Slot and backend that are kept while the slot still holds the backend.
    pub preferred: Option<(u16, u32)>,
}

/// Who asks.
#[derive(Clone, Copy)]
pub struct Client {
    /// IPv4 in the first word; or the cookie of a network namespace in the first two.
    pub id: [u32; 4],
    /// `CLIENT_*`.
    pub kind: u32,
}

impl Client {
    /// The sender of an IPv4 packet.
    #[inline(always)]
    pub fn address4(address_be: u32) -> Self {
        Self { id: [address_be, 0, 0, 0], kind: CLIENT_ADDRESS }
    }

    /// The sender of an IPv6 packet.
    #[inline(always)]
    pub fn address6(address_be: [u32; 4]) -> Self {
        Self { id: address_be, kind: CLIENT_ADDRESS }
    }
}

/// A chosen backend.
#[derive(Clone, Copy)]
pub struct Choice<A> {
    pub address_be: A,
    pub port_be: u16,
    pub slot: u16,
    pub backend_id: u32,
    pub rev_nat_id: u32,
    /// `SERVICE_*` of the frontend.
    pub flags: u32,
}

/// Result of a lookup.
pub enum Selected<A> {
    /// No Service has this frontend; or, for a socket in a pod, one whose source ranges only the packet
    /// path can check.
    NoService,
    /// The Service has no usable endpoint: refuse.
    NoBackend,
    /// Say nothing, and count this reason.
    Drop(u32),
    Backend(Choice<A>),
}

#[inline(always)]
fn service<F: Family>(key: &ServiceKey<F::Address>) -> Option<ServiceEntry<F::Address>> {
    // SAFETY: the map is not preallocated, so an element that is removed stays readable until this
    // program ends.
    unsafe { F::services().get(key) }.copied()
}

#[inline(always)]
pub fn backend<F: Family>(id: u32) -> Option<Backend<F::Address>> {
    // SAFETY: as in `service`.
    unsafe { F::backends().get(&id) }.copied()
}

/// The frontend of a `rev_nat` id.
#[inline(always)]
pub fn reverse_nat<F: Family>(id: u32) -> Option<ReverseNat<F::Address>> {
    // SAFETY: as in `service`.
    unsafe { F::reverse_nats().get(&id) }.copied()
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_prandom_u32() }
}

/// Chooses a backend. `client`, `scope` (`SCOPE_*`: external only for packets that came in on the uplink from outside the
/// cluster) and `hash` (of the connection's addresses and ports, for Maglev) are asked for only when they matter.
#[inline(always)]
pub fn select<F: Family>(
    lookup: &Lookup<F::Address>,
    client: impl Fn() -> Client,
    scope: impl Fn() -> u8,
    hash: impl Fn() -> u32,
) -> Selected<F::Address> {
    let key = ServiceKey::master(lookup.address_be, lookup.port_be, lookup.protocol);
    for _ in 0..ATTEMPTS {
        let Some(entry) = service::<F>(&key) else { return Selected::NoService };
        let master = entry.value;
        let mut at_socket = false;
        let mut affinity = None;
        if master.flags & (SERVICE_AFFINITY | SERVICE_SOURCE_RANGES | SERVICE_LOOPBACK) != 0
            || master.algorithm == ALGORITHM_DEFAULT
        {
            let client = client();
            at_socket = client.kind != CLIENT_ADDRESS;
            if master.flags & SERVICE_LOOPBACK != 0 && client.kind != CLIENT_NODE {
                return Selected::NoService;
            }
            if master.flags & SERVICE_SOURCE_RANGES != 0 {
                match client.kind {
                    CLIENT_ADDRESS if !in_source_ranges(&client, master.rev_nat_id) => {
                        return Selected::Drop(reason::SOURCE_RANGE);
                    }
                    CLIENT_ADDRESS => {}
                    CLIENT_NODE if master.flags & SERVICE_DENY_NODE != 0 => {
                        return Selected::Drop(reason::SOURCE_RANGE);
                    }
                    CLIENT_NODE => {}
                    _ => return Selected::NoService,
                }
            }
            if master.flags & SERVICE_AFFINITY != 0 {
                affinity =
                    Some(AffinityKey { client: client.id, rev_nat_id: master.rev_nat_id, kind: client.kind });
            }
        }
        let (scope, count) = slots_of(&master, &scope);
        if count == 0 {
            if master.flags & SERVICE_DROP_IF_EMPTY != 0 {
                return Selected::Drop(reason::NO_LOCAL_BACKEND);
            }
            return Selected::NoBackend;
        }
        let pick = Pick { key, master, scope, count };
        let mut slot = 0;
        let mut at = At::default();
        if let Some((wanted, id)) = lookup.preferred
            && pick.holds::<F>(wanted, id)
        {
            (slot, at.backend_id) = (wanted, id);
        } else if let Some(affinity) = &affinity
            && let Some((held, id)) = kept(affinity, &master, scope)
        {
            (slot, at.backend_id) = (held, id);
        }
        if at.backend_id == 0 && master.backend_id != 0 {
            (slot, at) = (1, At::of(&entry));
        } else if at.backend_id == 0 {
            let least = match master.algorithm {
                ALGORITHM_DEFAULT => at_socket && lookup.protocol == PROTO_TCP,
                algorithm => algorithm == ALGORITHM_LEAST,
            };
            if master.algorithm == ALGORITHM_MAGLEV {
                slot = pick.maglev(hash());
            }
            if slot == 0 {
                slot = if count == 1 { 1 } else { (random() % u32::from(count)) as u16 + 1 };
            }
            let Some(chosen) = pick.at::<F>(slot) else { continue };
            at = chosen;
            if least && count > 1 {
                let other = pick.another(slot);
                if let Some(chosen) = pick.at::<F>(other)
                    && open_connections(chosen.backend_id) < open_connections(at.backend_id)
                {
                    (slot, at) = (other, chosen);
                }
            }
        }
        let backend_id = at.backend_id;
        if at.port_be == 0 {
            let Some(backend) = backend::<F>(backend_id) else { continue };
            (at.address_be, at.port_be) = (backend.address_be, backend.port_be);
        }
        if let Some(affinity) = &affinity {
            // SAFETY: the helper has no preconditions.
            let value = AffinityValue { last_used_ns: unsafe { bpf_ktime_get_ns() }, backend_id, pad: 0 };
            // A failure costs the client its affinity, not the connection.
            let _ = AFFINITY.insert(affinity, &value, 0);
        }
        return Selected::Backend(Choice {
            address_be: at.address_be,
            port_be: at.port_be,
            slot,
            backend_id,
            rev_nat_id: master.rev_nat_id,
            flags: master.flags,
        });
    }
    Selected::NoBackend
}

/// The scope whose slots are used, and how many it has. Where a packet comes from takes a look at the prefixes, which only
/// frontends with two scopes need.
#[inline(always)]
fn slots_of(master: &ServiceValue, scope: &impl Fn() -> u8) -> (u8, u16) {
    let asked = if master.flags & SERVICE_TWO_SCOPES != 0 { scope() } else { SCOPE_INTERNAL };
    master.scope(asked)
}

/// One frontend's slots as the master entry said a moment ago.
struct Pick<A> {
    key: ServiceKey<A>,
    master: ServiceValue,
    scope: u8,
    count: u16,
}

/// A backend, as an entry names it.
#[derive(Clone, Copy, Default)]
struct At<A> {
    backend_id: u32,
    address_be: A,
    /// 0: the address is to be looked up.
    port_be: u16,
}

impl<A: Copy> At<A> {
    #[inline(always)]
    fn of(entry: &ServiceEntry<A>) -> Self {
        Self { backend_id: entry.value.backend_id, address_be: entry.address_be, port_be: entry.port_be }
    }
}

impl<A: Copy> Pick<A> {
    /// The backend of a slot.
    #[inline(always)]
    fn at<F: Family<Address = A>>(&self, slot: u16) -> Option<At<A>> {
        Some(At::of(&service::<F>(&self.key.slot(self.scope, self.master.generation, slot))?))
    }

    #[inline(always)]
    fn holds<F: Family<Address = A>>(&self, slot: u16, backend_id: u32) -> bool {
        if slot == 0 || slot > self.count {
            return false;
        }
        match self.master.backend_id {
            0 => self.at::<F>(slot).is_some_and(|at| at.backend_id == backend_id),
            only => only == backend_id,
        }
    }

    /// A random slot that is not this one, of at least two.
    #[inline(always)]
    fn another(&self, slot: u16) -> u16 {
        let count = u32::from(self.count);
        let step = 1 + random() % (count - 1).max(1);
        ((u32::from(slot) - 1 + step) % count) as u16 + 1
    }

    /// The slot that the Maglev table names, or 0.
    #[inline(always)]
    fn maglev(&self, hash: u32) -> u16 {
        let index = hash % MAGLEV_SIZE;
        let key = MaglevKey {
            rev_nat_id: self.master.rev_nat_id,
            generation: self.master.generation,
            scope: self.scope,
            chunk: (index / MAGLEV_CHUNK) as u8,
        };
        // SAFETY: the map is not preallocated.
        let Some(chunk) = (unsafe { MAGLEV.get(&key) }) else { return 0 };
        let slot = chunk[(index % MAGLEV_CHUNK) as usize];
        if slot <= self.count { slot } else { 0 }
    }
}

/// Whether a frontend's source ranges name a client.
#[inline(always)]
fn in_source_ranges(client: &Client, rev_nat_id: u32) -> bool {
    SOURCE_RANGE.get(&Key::new(160, SourceRangeKey { rev_nat_id, address_be: client.id })).is_some()
}

/// Slot and backend of a client whose affinity is still in force.
#[inline(always)]
fn kept(key: &AffinityKey, master: &ServiceValue, scope: u8) -> Option<(u16, u32)> {
    // SAFETY: an element that the LRU map recycles meanwhile names a backend of another frontend, which
    // the match below then does not find.
    let value = unsafe { AFFINITY.get(key) }.copied()?;
    // SAFETY: the helper has no preconditions.
    let idle = unsafe { bpf_ktime_get_ns() }.saturating_sub(value.last_used_ns);
    if idle > u64::from(master.affinity_timeout_s) * SECOND_NS {
        return None;
    }
    let key = AffinityMatchKey { rev_nat_id: master.rev_nat_id, backend_id: value.backend_id };
    // SAFETY: the map is not preallocated.
    let found = unsafe { AFFINITY_MATCH.get(&key) }.copied()?;
    let slot = if scope == SCOPE_EXTERNAL { found.slots[1] } else { found.slots[0] };
    if slot == 0 { None } else { Some((slot, value.backend_id)) }
}

#[inline(always)]
fn open_connections(backend_id: u32) -> u64 {
    // SAFETY: the map is not preallocated, and a count that changes meanwhile is as good as another.
    unsafe { CONNECTIONS.get(&backend_id) }.copied().unwrap_or(0)
}

/// The `SERVICE_*` of a frontend, if there is such a one.
#[inline(always)]
pub fn flags_of<F: Family>(address_be: F::Address, port_be: u16, protocol: u8) -> Option<u32> {
    service::<F>(&ServiceKey::master(address_be, port_be, protocol)).map(|master| master.value.flags)
}

/// Whether a frontend still leads to the backend that a flow of it was given.
#[inline(always)]
pub fn slot_holds<F: Family>(
    lookup: &Lookup<F::Address>,
    scope: impl Fn() -> u8,
    slot: u16,
    backend_id: u32,
) -> bool {
    let key = ServiceKey::master(lookup.address_be, lookup.port_be, lookup.protocol);
    let Some(ServiceEntry { value: master, .. }) = service::<F>(&key) else { return false };
    let (scope, count) = slots_of(&master, &scope);
    Pick { key, master, scope, count }.holds::<F>(slot, backend_id)
}
