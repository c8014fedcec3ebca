//! The kernel's maps, opened from their pins.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, IterableMap, Map, MapData, PerCpuArray};
use hawser_ebpf_common::ct::{CtEntry4, CtEntry6, CtKey4, CtKey6};
use hawser_ebpf_common::endpoint::{Endpoint4, NodeConfig};
use hawser_ebpf_common::lb::{
    Address6, AffinityMatch, AffinityMatchKey, CountedSocket, LbConfig, MaglevChunk, MaglevKey, ServiceValue,
    SourceRangeKey,
};
use hawser_ebpf_common::map_names as names;
use hawser_ebpf_common::metrics::{MetricsValue, direction, index, reason};
use ipnet::IpNet;

use super::family::{Address, FamilyMaps, Filling};
use super::{MapError, Maps, Op, SlotKey, Snapshot, Socket};
use crate::sys;
use crate::types::{Family, L4Addr, PrefixSpec, Protocol, address_from_be, address6_from_be, words_be};

/// `E2BIG`-free upper bound of a dump: an LRU map that others write to may never end.
const MAX_DUMP: usize = 1 << 20;

/// A connection tracking entry with its key.
pub type CtRecord = (CtKey4, CtEntry4);

/// One counter, summed over the CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsRecord {
    /// Index into [`direction::NAMES`].
    pub direction: u32,
    /// Index into [`reason::NAMES`].
    pub reason: u32,
    /// Packets and bytes.
    pub value: MetricsValue,
}

/// The kernel's maps. Several may be open at once: the kernel serialises writes of one element.
pub struct KernelMaps {
    v4: FamilyMaps<u32>,
    v6: FamilyMaps<Address6>,
    members: HashMap<MapData, AffinityMatchKey, AffinityMatch>,
    source_ranges: LpmTrie<MapData, SourceRangeKey, u32>,
    maglev: HashMap<MapData, MaglevKey, MaglevChunk>,
    connections: HashMap<MapData, u32, u64>,
    sockets: HashMap<MapData, u64, CountedSocket>,
    lb_config: Array<MapData, LbConfig>,
    ct: HashMap<MapData, CtKey4, CtEntry4>,
    ct6: HashMap<MapData, CtKey6, CtEntry6>,
    metrics: PerCpuArray<MapData, MetricsValue>,
    config: Array<MapData, NodeConfig>,
}

pub(super) fn open<T>(dir: &Path, name: &'static str) -> Result<T, MapError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    MapData::from_pin(dir.join(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(|source| MapError::Open { name, source })
}

pub(super) fn kernel(name: &'static str) -> impl Fn(aya::maps::MapError) -> MapError {
    move |source| MapError::Kernel { name, source }
}

/// Deleting what is not there is a success.
pub(crate) fn deleted(name: &'static str, result: Result<(), aya::maps::MapError>) -> Result<(), MapError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other.map_err(kernel(name)),
    }
}

/// Reading what is not there is no failure.
pub(crate) fn found<V>(
    name: &'static str,
    result: Result<V, aya::maps::MapError>,
) -> Result<Option<V>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(aya::maps::MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(kernel(name)(error)),
    }
}

/// Writes many elements in one system call.
pub(super) fn put_batch<K: Pod, V: Pod>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
    elements: impl Iterator<Item = (K, V)>,
) -> Result<(), MapError> {
    let (keys, values): (Vec<K>, Vec<V>) = elements.unzip();
    if keys.is_empty() {
        return Ok(());
    }
    let failed = |source| MapError::Batch { name, source };
    let fd = IterableMap::map(map).fd();
    sys::map_update_batch(fd.as_fd(), &keys, &values).map_err(failed)
}

/// `BPF_EXIST` (include/uapi/linux/bpf.h).
const EXIST: u64 = 2;
/// How many elements are read in one system call.
const PART: usize = 4096;

/// Shows every element of a hash map, many with one system call.
pub(super) fn each<K: Pod + Default, V: Pod + Default>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
    mut seen: impl FnMut(&K, &V),
) -> Result<(), MapError> {
    try_each(name, map, (K::default(), V::default()), |key, value| {
        seen(key, value);
        Ok(())
    })
}

/// The same for elements that may not be shown to their end. `blank` is what they are read over.
pub(crate) fn try_each<K: Pod, V: Pod>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
    blank: (K, V),
    mut seen: impl FnMut(&K, &V) -> Result<(), MapError>,
) -> Result<(), MapError> {
    let (mut keys, mut values) = (vec![blank.0; PART], vec![blank.1; PART]);
    let mut from = None;
    loop {
        let fd = IterableMap::map(map).fd().as_fd();
        let batch = sys::lookup_batch(fd, from, &mut keys, &mut values)
            .map_err(|source| MapError::Batch { name, source })?;
        keys.iter().zip(&values).take(batch.count).try_for_each(|(key, value)| seen(key, value))?;
        from = batch.next;
        if from.is_none() {
            return Ok(());
        }
    }
}

/// Reads a hash map to its end; elements that vanish meanwhile are left out.
pub(super) fn dump<K: Pod + Eq + std::hash::Hash, V: Pod>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
) -> Result<Vec<(K, V)>, MapError> {
    // An element that is written while the map is read can turn up twice.
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    for key in map.keys().take(MAX_DUMP) {
        let key = key.map_err(kernel(name))?;
        if !seen.insert(key) {
            continue;
        }
        all.extend(found(name, map.get(&key, 0))?.map(|value| (key, value)));
    }
    Ok(all)
}

impl KernelMaps {
    /// Opens the maps pinned in a directory.
    ///
    /// # Errors
    /// A pin is missing or is of another type.
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        Ok(Self {
            v4: FamilyMaps::open(dir)?,
            v6: FamilyMaps::open(dir)?,
            members: open(dir, names::AFFINITY_MATCH)?,
            source_ranges: open(dir, names::SOURCE_RANGE)?,
            maglev: open(dir, names::MAGLEV)?,
            connections: open(dir, names::CONNECTIONS)?,
            sockets: open(dir, names::SOCKETS)?,
            lb_config: open(dir, names::LB_CONFIG)?,
            ct: open(dir, names::CT)?,
            ct6: open(dir, names::CT6)?,
            metrics: open(dir, names::METRICS)?,
            config: open(dir, names::CONFIG)?,
        })
    }

    /// Tells the programs about this node.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_config(&mut self, config: &NodeConfig) -> Result<(), MapError> {
        self.config.set(0, config, 0).map_err(kernel(names::CONFIG))
    }

    /// The configuration alone, which says whether the other maps can be opened at all.
    ///
    /// # Errors
    /// The pin is missing or is of another type.
    pub fn pinned_config(dir: &Path) -> Result<NodeConfig, MapError> {
        let config: Array<MapData, NodeConfig> = open(dir, names::CONFIG)?;
        config.get(&0, 0).map_err(kernel(names::CONFIG))
    }

    /// What the programs were told about this node.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn config(&self) -> Result<NodeConfig, MapError> {
        self.config.get(&0, 0).map_err(kernel(names::CONFIG))
    }

    /// The sockets that one of these frontends, by `rev_nat` id, translated to this backend of it.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn sockets_of(&self, wanted: &HashSet<(u32, L4Addr)>) -> Result<Vec<Socket>, MapError> {
        let mut sockets = Vec::new();
        self.v4.sockets_of(wanted, &mut sockets)?;
        self.v6.sockets_of(wanted, &mut sockets)?;
        each(names::SOCKETS, &self.sockets, |cookie, value| {
            // Those of an older layout have no address here, and are in the maps above.
            let address = match value.family {
                6 => value.address_be.ip(),
                _ => value.address_be[0].ip(),
            };
            let backend = L4Addr::new(address, u16::from_be(value.port_be), Protocol::Tcp);
            if wanted.contains(&(value.rev_nat_id, backend)) {
                let netns_cookie = value.netns_cookie;
                sockets.push(Socket { cookie: *cookie, netns_cookie, protocol: Protocol::Tcp });
            }
        })?;
        Ok(sockets)
    }

    /// All connection tracking entries.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn ct(&self) -> Result<Vec<CtRecord>, MapError> {
        dump(names::CT, &self.ct)
    }

    /// All connection tracking entries of IPv6.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn ct6(&self) -> Result<Vec<(CtKey6, CtEntry6)>, MapError> {
        dump(names::CT6, &self.ct6)
    }

    /// Deletes a connection tracking entry.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn delete_ct(&mut self, key: &CtKey4) -> Result<(), MapError> {
        deleted(names::CT, self.ct.remove(key))
    }

    /// All counters that are not zero.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn metrics(&self) -> Result<Vec<MetricsRecord>, MapError> {
        let mut records = Vec::new();
        for direction in 0..direction::COUNT {
            for reason in 0..reason::COUNT {
                let values =
                    self.metrics.get(&index(direction, reason), 0).map_err(kernel(names::METRICS))?;
                let sum = values.iter().fold(MetricsValue::default(), |sum, value| MetricsValue {
                    packets: sum.packets + value.packets,
                    bytes: sum.bytes + value.bytes,
                });
                if sum.packets > 0 {
                    records.push(MetricsRecord { direction, reason, value: sum });
                }
            }
        }
        Ok(records)
    }
}

/// The key of a source range; IPv4 addresses are in the first word.
fn range_key(rev_nat_id: u32, range: IpNet) -> Key<SourceRangeKey> {
    let key = SourceRangeKey { rev_nat_id, address_be: words_be(range.network()) };
    Key::new(32 + u32::from(range.prefix_len()), key)
}

/// Does the same with the maps of the family that is asked for.
macro_rules! of_family {
    ($self:ident, $family:expr, $maps:ident => $do:expr) => {
        match $family {
            Family::V4 => {
                let $maps = &mut $self.v4;
                $do
            }
            Family::V6 => {
                let $maps = &mut $self.v6;
                $do
            }
        }
    };
}

impl KernelMaps {
    fn delete_backend(&mut self, id: u32, family: Family) -> Result<(), MapError> {
        of_family!(self, family, maps => maps.delete_backend(id))?;
        deleted(names::CONNECTIONS, self.connections.remove(&id))
    }

    /// The source ranges by `rev_nat` id; which family they are of, their frontends say.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn source_ranges(&self, frontends: &[(u32, L4Addr)]) -> Result<Vec<(u32, IpNet)>, MapError> {
        let families: std::collections::HashMap<u32, Family> =
            frontends.iter().map(|(id, frontend)| (*id, frontend.family())).collect();
        let mut ranges = Vec::new();
        for item in self.source_ranges.iter() {
            let (key, _) = item.map_err(kernel(names::SOURCE_RANGE))?;
            let (length, data) = (key.prefix_len().saturating_sub(32), key.data());
            // A frontend that is gone leaves ranges of which only the length tells the family.
            let is_v4 = length <= 32 && data.address_be[1..] == [0; 3];
            let family = families.get(&data.rev_nat_id).copied();
            let range = match family.unwrap_or(if is_v4 { Family::V4 } else { Family::V6 }) {
                Family::V4 => IpNet::new(address_from_be(data.address_be[0]).into(), length.min(32) as u8),
                Family::V6 => IpNet::new(address6_from_be(data.address_be).into(), length.min(128) as u8),
            };
            ranges.extend(range.ok().map(|range| (data.rev_nat_id, range)));
        }
        Ok(ranges)
    }

    /// Master entries and slots.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn services(&self) -> Result<Vec<(SlotKey, ServiceValue)>, MapError> {
        let mut all = Vec::new();
        self.v4.services(&mut all)?;
        self.v6.services(&mut all)?;
        Ok(all)
    }

    /// One master entry or slot.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn service(&self, key: &SlotKey) -> Result<Option<ServiceValue>, MapError> {
        match key.frontend.family() {
            Family::V4 => self.v4.service(key),
            Family::V6 => self.v6.service(key),
        }
    }

    /// Backends by id, with their `BACKEND_*` flags.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn backends(&self) -> Result<Vec<(u32, L4Addr, u8)>, MapError> {
        let mut all = Vec::new();
        self.v4.backends(&mut all)?;
        self.v6.backends(&mut all)?;
        Ok(all)
    }

    /// One backend of a family, with its `BACKEND_*` flags.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn backend(&self, id: u32, family: Family) -> Result<Option<(L4Addr, u8)>, MapError> {
        match family {
            Family::V4 => self.v4.backend(id),
            Family::V6 => self.v6.backend(id),
        }
    }

    /// Prefixes.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn prefixes(&self) -> Result<Vec<(IpNet, PrefixSpec)>, MapError> {
        let mut all = Vec::new();
        self.v4.prefixes(&mut all)?;
        self.v6.prefixes(&mut all)?;
        Ok(all)
    }

    /// Pods of this node.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn endpoints(&self) -> Result<Vec<(IpAddr, Endpoint4)>, MapError> {
        let mut all = Vec::new();
        self.v4.endpoints(&mut all)?;
        self.v6.endpoints(&mut all)?;
        Ok(all)
    }

    /// Open connections to one backend; 0 where none were counted.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn connections_to(&self, backend_id: u32) -> Result<u64, MapError> {
        Ok(found(names::CONNECTIONS, self.connections.get(&backend_id, 0))?.unwrap_or(0))
    }

    /// Tells the load balancer's programs about this node.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_lb_config(&mut self, config: &LbConfig) -> Result<(), MapError> {
        self.lb_config.set(0, config, 0).map_err(kernel(names::LB_CONFIG))
    }

    /// Open connections by backend id.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn connections(&self) -> Result<Vec<(u32, u64)>, MapError> {
        dump(names::CONNECTIONS, &self.connections)
    }

    /// Sets the count of a backend's open connections.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_connections(&mut self, backend_id: u32, count: u64) -> Result<(), MapError> {
        self.connections.insert(backend_id, count, 0).map_err(kernel(names::CONNECTIONS))
    }

    /// Sockets that are counted there, by their cookie.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn counted_sockets(&self) -> Result<Vec<(u64, CountedSocket)>, MapError> {
        dump(names::SOCKETS, &self.sockets)
    }
}

impl Maps for KernelMaps {
    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match op {
            Op::PutService { key, value } => {
                of_family!(self, key.frontend.family(), maps => maps.put_service(key, value))
            }
            Op::DeleteService { key } => {
                of_family!(self, key.frontend.family(), maps => maps.delete_service(key))
            }
            Op::PutBackend { id, address, flags } => {
                of_family!(self, address.family(), maps => maps.put_backend(*id, address, *flags))
            }
            Op::DeleteBackend { id, family } => self.delete_backend(*id, *family),
            Op::PutReverseNat { id, frontend } => {
                of_family!(self, frontend.family(), maps => maps.put_reverse_nat(*id, frontend))
            }
            Op::DeleteReverseNat { id, family } => {
                of_family!(self, *family, maps => maps.delete_reverse_nat(*id))
            }
            Op::PutMember { key, value } => {
                self.members.insert(key, value, 0).map_err(kernel(names::AFFINITY_MATCH))
            }
            Op::DeleteMember { key } => deleted(names::AFFINITY_MATCH, self.members.remove(key)),
            Op::PutSourceRange { id, range } => {
                self.source_ranges.insert(&range_key(*id, *range), 1, 0).map_err(kernel(names::SOURCE_RANGE))
            }
            Op::DeleteSourceRange { id, range } => {
                deleted(names::SOURCE_RANGE, self.source_ranges.remove(&range_key(*id, *range)))
            }
            Op::PutMaglev { key, chunk } => {
                self.maglev.insert(key, **chunk, 0).map_err(kernel(names::MAGLEV))
            }
            Op::DeleteMaglev { key } => deleted(names::MAGLEV, self.maglev.remove(key)),
            Op::PutPrefix { prefix, value } => {
                of_family!(self, Family::of(prefix.addr()), maps => maps.put_prefix(*prefix, value))
            }
            Op::DeletePrefix { prefix } => {
                of_family!(self, Family::of(prefix.addr()), maps => maps.delete_prefix(*prefix))
            }
            Op::PutAnnounced { address } => {
                of_family!(self, Family::of(*address), maps => maps.put_announced(*address))
            }
            Op::DeleteAnnounced { address } => {
                of_family!(self, Family::of(*address), maps => maps.delete_announced(*address))
            }
            Op::PutEndpoint { address, value } => {
                of_family!(self, Family::of(*address), maps => maps.put_endpoint(*address, value))
            }
            Op::DeleteEndpoint { address } => {
                of_family!(self, Family::of(*address), maps => maps.delete_endpoint(*address))
            }
        }
    }

    fn fill(&mut self, ops: &[Op]) -> Result<(), MapError> {
        let mut left = Vec::new();
        let mut families = [Filling::default(), Filling::default()];
        for op in ops {
            match op {
                Op::PutBackend { id, address, flags } => {
                    families[address.family() as usize].backends.push((*id, *address, *flags));
                }
                Op::PutReverseNat { id, frontend } => {
                    families[frontend.family() as usize].reverse_nat.push((*id, *frontend));
                }
                Op::PutService { key, value } if key.slot != 0 => {
                    families[key.frontend.family() as usize].slots.push((*key, *value));
                }
                Op::PutService { key, value } => {
                    families[key.frontend.family() as usize].masters.push((*key, *value));
                }
                other => left.push(other),
            }
        }
        let [v4, v6] = families;
        self.v4.fill(&v4)?;
        self.v6.fill(&v6)?;
        left.into_iter().try_for_each(|op| self.apply(op))?;
        // What makes all the rest visible comes last.
        self.v4.fill_masters(&v4)?;
        self.v6.fill_masters(&v6)
    }

    fn snapshot(&self) -> Result<Snapshot, MapError> {
        let mut reverse_nat = Vec::new();
        self.v4.reverse_nat(&mut reverse_nat)?;
        self.v6.reverse_nat(&mut reverse_nat)?;
        let mut announced = Vec::new();
        self.v4.announced(&mut announced)?;
        self.v6.announced(&mut announced)?;
        Ok(Snapshot {
            announced,
            services: self.services()?,
            backends: self.backends()?,
            members: dump(names::AFFINITY_MATCH, &self.members)?,
            source_ranges: self.source_ranges(&reverse_nat)?,
            maglev: self.maglev.keys().collect::<Result<_, _>>().map_err(kernel(names::MAGLEV))?,
            prefixes: self.prefixes()?,
            endpoints: self.endpoints()?,
            reverse_nat,
        })
    }

    fn forget_sockets(&mut self) -> Result<(), MapError> {
        let live = [self.v4.forget_sockets()?, self.v6.forget_sockets()?];
        for (cookie, socket) in dump(names::SOCKETS, &self.sockets)? {
            if socket.rev_nat_id != 0 && !live[usize::from(socket.family == 6)].contains(&socket.rev_nat_id) {
                // One that is closed meanwhile stays away.
                let anew = self.sockets.insert(cookie, CountedSocket { rev_nat_id: 0, ..socket }, EXIST);
                deleted(names::SOCKETS, anew)?;
            }
        }
        Ok(())
    }
}
