//! Map operations, and the three implementations of what executes them: the kernel, a fake that tests
//! can look into, and a faulty one that fails on purpose.

mod fake;
mod family;
mod faulty;
mod kernel;

pub use fake::{Client, FakeMaps, Lookup};
pub(crate) use family::Address;
pub use faulty::{Faults, FaultyMaps};
pub use kernel::{CtRecord, KernelMaps, MetricsRecord};
pub(crate) use kernel::{deleted, found, try_each};

use std::net::IpAddr;
use std::sync::Arc;

use hawser_ebpf_common::endpoint::Endpoint4;
use hawser_ebpf_common::lb::{AffinityMatch, AffinityMatchKey, MaglevChunk, MaglevKey, ServiceValue};
use ipnet::IpNet;

use crate::types::{Family, L4Addr, PrefixSpec, Protocol};

/// Key of a master entry or of a slot, of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotKey {
    /// The frontend.
    pub frontend: L4Addr,
    /// `SCOPE_*`; 0 in the master's key.
    pub scope: u8,
    /// Generation; 0 in the master's key.
    pub generation: u16,
    /// 0 for the master entry.
    pub slot: u16,
}

impl SlotKey {
    /// Key of a frontend's master entry.
    pub fn master(frontend: L4Addr) -> Self {
        Self { frontend, scope: 0, generation: 0, slot: 0 }
    }

    /// Key of one slot of this frontend.
    pub fn slot(self, scope: u8, generation: u16, slot: u16) -> Self {
        Self { scope, generation, slot, ..self }
    }
}

/// One write. Each is idempotent: a put overwrites, and deleting what is not there succeeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a master entry or a slot.
    PutService {
        /// Key.
        key: SlotKey,
        /// Value.
        value: ServiceValue,
    },
    /// Deletes a master entry or a slot.
    DeleteService {
        /// Key.
        key: SlotKey,
    },
    /// Writes a backend.
    PutBackend {
        /// Backend id.
        id: u32,
        /// Its address.
        address: L4Addr,
        /// `BACKEND_*`.
        flags: u8,
    },
    /// Deletes a backend.
    DeleteBackend {
        /// Backend id.
        id: u32,
        /// Of its address.
        family: Family,
    },
    /// Writes a frontend's reverse translation.
    PutReverseNat {
        /// `rev_nat` id.
        id: u32,
        /// The frontend.
        frontend: L4Addr,
    },
    /// Deletes a frontend's reverse translation.
    DeleteReverseNat {
        /// `rev_nat` id.
        id: u32,
        /// Of the frontend.
        family: Family,
    },
    /// Writes which slots of a frontend with affinity a backend has.
    PutMember {
        /// Key.
        key: AffinityMatchKey,
        /// Value.
        value: AffinityMatch,
    },
    /// Deletes a backend of a frontend with affinity.
    DeleteMember {
        /// Key.
        key: AffinityMatchKey,
    },
    /// Lets clients of a prefix use a frontend.
    PutSourceRange {
        /// The frontend's `rev_nat` id.
        id: u32,
        /// Prefix.
        range: IpNet,
    },
    /// Does so no more.
    DeleteSourceRange {
        /// The frontend's `rev_nat` id.
        id: u32,
        /// Prefix.
        range: IpNet,
    },
    /// Writes a part of a Maglev table.
    PutMaglev {
        /// Key.
        key: MaglevKey,
        /// Slot numbers.
        chunk: Arc<MaglevChunk>,
    },
    /// Deletes a part of a Maglev table.
    DeleteMaglev {
        /// Key.
        key: MaglevKey,
    },
    /// Writes a prefix.
    PutPrefix {
        /// Prefix.
        prefix: IpNet,
        /// Value.
        value: PrefixSpec,
    },
    /// Deletes a prefix.
    DeletePrefix {
        /// Prefix.
        prefix: IpNet,
    },
    /// Has the node answer for an address on its link.
    PutAnnounced {
        /// The address.
        address: IpAddr,
    },
    /// Does so no more.
    DeleteAnnounced {
        /// The address.
        address: IpAddr,
    },
    /// Writes a pod of this node.
    PutEndpoint {
        /// The pod's address.
        address: IpAddr,
        /// Value.
        value: Endpoint4,
    },
    /// Deletes a pod of this node.
    DeleteEndpoint {
        /// The pod's address.
        address: IpAddr,
    },
}

/// Everything that the agent owns in the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Master entries and slots.
    pub services: Vec<(SlotKey, ServiceValue)>,
    /// Backends by id, with their `BACKEND_*` flags.
    pub backends: Vec<(u32, L4Addr, u8)>,
    /// Frontends by `rev_nat` id.
    pub reverse_nat: Vec<(u32, L4Addr)>,
    /// Backends of frontends with affinity.
    pub members: Vec<(AffinityMatchKey, AffinityMatch)>,
    /// Source ranges by `rev_nat` id.
    pub source_ranges: Vec<(u32, IpNet)>,
    /// Parts of Maglev tables.
    pub maglev: Vec<MaglevKey>,
    /// Prefixes.
    pub prefixes: Vec<(IpNet, PrefixSpec)>,
    /// Addresses that the node answers for on its link.
    pub announced: Vec<IpAddr>,
    /// Pods of this node.
    pub endpoints: Vec<(IpAddr, Endpoint4)>,
}

impl Snapshot {
    /// Whether nothing is left of any Service.
    pub fn has_no_services(&self) -> bool {
        self.services.is_empty()
            && self.backends.is_empty()
            && self.reverse_nat.is_empty()
            && self.members.is_empty()
            && self.source_ranges.is_empty()
            && self.maglev.is_empty()
            && self.announced.is_empty()
    }
}

/// A socket of this node that was translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// `SO_COOKIE`.
    pub cookie: u64,
    /// `SO_NETNS_COOKIE`; 0 when it is not known.
    pub netns_cookie: u64,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// Why a map operation failed.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A map could not be opened from its pin.
    #[error("opening map {name}: {source}")]
    Open {
        /// Name of the map.
        name: &'static str,
        /// The kernel's answer.
        source: aya::maps::MapError,
    },
    /// The kernel refused an operation, for instance because the map is full.
    #[error("map {name}: {source}")]
    Kernel {
        /// Name of the map.
        name: &'static str,
        /// The kernel's answer.
        source: aya::maps::MapError,
    },
    /// The kernel refused one of many elements, for instance because the map is full.
    #[error("map {name}, many elements at once: {source}")]
    Batch {
        /// Name of the map.
        name: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A fault that a test injected.
    #[error("injected fault")]
    Injected,
}

/// Executes map operations.
pub trait Maps: Send {
    /// Executes one operation.
    ///
    /// # Errors
    /// The operation may or may not have happened; a full reconcile finds out.
    fn apply(&mut self, op: &Op) -> Result<(), MapError>;

    /// Executes operations that only add: of frontends that the maps do not hold yet. Master entries come
    /// last; the order of all else does not matter, because nothing is seen before.
    ///
    /// # Errors
    /// As [`Self::apply`].
    fn fill(&mut self, ops: &[Op]) -> Result<(), MapError> {
        let is_master = |op: &&Op| matches!(op, Op::PutService { key, .. } if key.slot == 0);
        ops.iter().filter(|op| !is_master(op)).try_for_each(|op| self.apply(op))?;
        ops.iter().filter(is_master).try_for_each(|op| self.apply(op))
    }

    /// Reads back everything that the agent owns.
    ///
    /// # Errors
    /// A map could not be read to its end.
    fn snapshot(&self) -> Result<Snapshot, MapError>;

    /// Forgets sockets that were translated by a frontend which is no more, so that its `rev_nat` id can
    /// be given away again.
    ///
    /// # Errors
    /// A map could not be read or written.
    fn forget_sockets(&mut self) -> Result<(), MapError>;
}
