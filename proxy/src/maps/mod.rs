//! Map operations, and the three implementations of what executes them: the kernel, a fake that tests
//! can look into, and a faulty one that fails on purpose.

mod fake;
mod faulty;
mod kernel;

pub use fake::{FakeMaps, Lookup};
pub use faulty::{Faults, FaultyMaps};
pub use kernel::{CtRecord, KernelMaps, MetricsRecord};

use std::net::Ipv4Addr;

use hawser_ebpf_common::endpoint::{Endpoint4, IpcacheEntry4};
use hawser_ebpf_common::lb::{Backend4, ReverseNat4, ServiceKey4, ServiceValue4};
use ipnet::Ipv4Net;

/// One write. Each is idempotent: a put overwrites, and deleting what is not there succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Writes a master entry or a slot.
    PutService {
        /// Key.
        key: ServiceKey4,
        /// Value.
        value: ServiceValue4,
    },
    /// Deletes a master entry or a slot.
    DeleteService {
        /// Key.
        key: ServiceKey4,
    },
    /// Writes a backend.
    PutBackend {
        /// Backend id.
        id: u32,
        /// Value.
        value: Backend4,
    },
    /// Deletes a backend.
    DeleteBackend {
        /// Backend id.
        id: u32,
    },
    /// Writes a frontend's reverse translation.
    PutReverseNat {
        /// `rev_nat` id.
        id: u32,
        /// Value.
        value: ReverseNat4,
    },
    /// Deletes a frontend's reverse translation.
    DeleteReverseNat {
        /// `rev_nat` id.
        id: u32,
    },
    /// Writes a prefix.
    PutPrefix {
        /// Prefix.
        prefix: Ipv4Net,
        /// Value.
        value: IpcacheEntry4,
    },
    /// Deletes a prefix.
    DeletePrefix {
        /// Prefix.
        prefix: Ipv4Net,
    },
    /// Writes a pod of this node.
    PutEndpoint {
        /// The pod's address.
        address: Ipv4Addr,
        /// Value.
        value: Endpoint4,
    },
    /// Deletes a pod of this node.
    DeleteEndpoint {
        /// The pod's address.
        address: Ipv4Addr,
    },
}

/// Everything that the agent owns in the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Master entries and slots.
    pub services: Vec<(ServiceKey4, ServiceValue4)>,
    /// Backends by id.
    pub backends: Vec<(u32, Backend4)>,
    /// Reverse translations by id.
    pub reverse_nat: Vec<(u32, ReverseNat4)>,
    /// Prefixes.
    pub prefixes: Vec<(Ipv4Net, IpcacheEntry4)>,
    /// Pods of this node.
    pub endpoints: Vec<(Ipv4Addr, Endpoint4)>,
}

impl Snapshot {
    /// Whether nothing is left of any Service.
    pub fn has_no_services(&self) -> bool {
        self.services.is_empty() && self.backends.is_empty() && self.reverse_nat.is_empty()
    }
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
