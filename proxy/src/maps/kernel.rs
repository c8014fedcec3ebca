//! The kernel's maps, opened from their pins.

use std::collections::HashSet;
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use hawser_ebpf_common::ct::{CtEntry4, CtKey4};
use hawser_ebpf_common::endpoint::{Endpoint4, IpcacheEntry4, NodeConfig};
use hawser_ebpf_common::lb::{Backend4, ReverseNat4, ReverseSk4, ServiceKey4, ServiceValue4, SocketKey4};
use hawser_ebpf_common::map_names as names;
use hawser_ebpf_common::metrics::{MetricsValue, direction, index, reason};
use ipnet::Ipv4Net;

use super::{MapError, Maps, Op, Snapshot};
use crate::types::{address_be, address_from_be};

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
    services: HashMap<MapData, ServiceKey4, ServiceValue4>,
    backends: HashMap<MapData, u32, Backend4>,
    reverse_nat: HashMap<MapData, u32, ReverseNat4>,
    reverse_sk: HashMap<MapData, SocketKey4, ReverseSk4>,
    ct: HashMap<MapData, CtKey4, CtEntry4>,
    endpoints: HashMap<MapData, u32, Endpoint4>,
    ipcache: LpmTrie<MapData, u32, IpcacheEntry4>,
    metrics: PerCpuArray<MapData, MetricsValue>,
    config: Array<MapData, NodeConfig>,
}

fn open<T>(dir: &Path, name: &'static str) -> Result<T, MapError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    MapData::from_pin(dir.join(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(|source| MapError::Open { name, source })
}

fn kernel(name: &'static str) -> impl Fn(aya::maps::MapError) -> MapError {
    move |source| MapError::Kernel { name, source }
}

/// Deleting what is not there is a success.
fn deleted(name: &'static str, result: Result<(), aya::maps::MapError>) -> Result<(), MapError> {
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

/// Reads a hash map to its end; elements that vanish meanwhile are left out.
fn dump<K: Pod + Eq + std::hash::Hash, V: Pod>(
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
        match map.get(&key, 0) {
            Ok(value) => all.push((key, value)),
            Err(aya::maps::MapError::KeyNotFound) => {}
            Err(error) => return Err(kernel(name)(error)),
        }
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
            services: open(dir, names::SERVICES)?,
            backends: open(dir, names::BACKENDS)?,
            reverse_nat: open(dir, names::REVERSE_NAT)?,
            reverse_sk: open(dir, names::REVERSE_SK)?,
            ct: open(dir, names::CT)?,
            endpoints: open(dir, names::ENDPOINTS)?,
            ipcache: open(dir, names::IPCACHE)?,
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

    /// All connection tracking entries.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn ct(&self) -> Result<Vec<CtRecord>, MapError> {
        dump(names::CT, &self.ct)
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

fn lpm_key(prefix: Ipv4Net) -> Key<u32> {
    Key::new(u32::from(prefix.prefix_len()), address_be(prefix.network()))
}

impl Maps for KernelMaps {
    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match *op {
            Op::PutService { key, value } => {
                self.services.insert(key, value, 0).map_err(kernel(names::SERVICES))
            }
            Op::DeleteService { key } => deleted(names::SERVICES, self.services.remove(&key)),
            Op::PutBackend { id, value } => {
                self.backends.insert(id, value, 0).map_err(kernel(names::BACKENDS))
            }
            Op::DeleteBackend { id } => deleted(names::BACKENDS, self.backends.remove(&id)),
            Op::PutReverseNat { id, value } => {
                self.reverse_nat.insert(id, value, 0).map_err(kernel(names::REVERSE_NAT))
            }
            Op::DeleteReverseNat { id } => deleted(names::REVERSE_NAT, self.reverse_nat.remove(&id)),
            Op::PutPrefix { prefix, value } => {
                self.ipcache.insert(&lpm_key(prefix), value, 0).map_err(kernel(names::IPCACHE))
            }
            Op::DeletePrefix { prefix } => deleted(names::IPCACHE, self.ipcache.remove(&lpm_key(prefix))),
            Op::PutEndpoint { address, value } => {
                self.endpoints.insert(address_be(address), value, 0).map_err(kernel(names::ENDPOINTS))
            }
            Op::DeleteEndpoint { address } => {
                deleted(names::ENDPOINTS, self.endpoints.remove(&address_be(address)))
            }
        }
    }

    fn snapshot(&self) -> Result<Snapshot, MapError> {
        let endpoints = dump(names::ENDPOINTS, &self.endpoints)?;
        let mut prefixes = Vec::new();
        for item in self.ipcache.iter() {
            let (key, value) = item.map_err(kernel(names::IPCACHE))?;
            let (prefix_len, data) = (key.prefix_len(), key.data());
            let prefix_len = u8::try_from(prefix_len).unwrap_or(32).min(32);
            // The length is at most 32, so this is always a prefix.
            if let Ok(prefix) = Ipv4Net::new(address_from_be(data), prefix_len) {
                prefixes.push((prefix, value));
            }
        }
        Ok(Snapshot {
            services: dump(names::SERVICES, &self.services)?,
            backends: dump(names::BACKENDS, &self.backends)?,
            reverse_nat: dump(names::REVERSE_NAT, &self.reverse_nat)?,
            prefixes,
            endpoints: endpoints
                .into_iter()
                .map(|(address, value)| (address_from_be(address), value))
                .collect(),
        })
    }

    fn forget_sockets(&mut self) -> Result<(), MapError> {
        let live: HashSet<u32> =
            dump(names::REVERSE_NAT, &self.reverse_nat)?.into_iter().map(|(id, _)| id).collect();
        for (key, value) in dump(names::REVERSE_SK, &self.reverse_sk)? {
            if !live.contains(&value.rev_nat_id) {
                deleted(names::REVERSE_SK, self.reverse_sk.remove(&key))?;
            }
        }
        Ok(())
    }
}
