//! Devices (structured parameters, KEP-4381): what ResourceSlices offer, what ResourceClaims hold, and which devices a
//! claim gets on a node. Pure.
//!
//! `inventory` knows the objects and which devices are in use; `slice` is a ResourceSlice read once; `pool` gathers what a
//! node can use; `request` is what a claim asks for; `search` finds devices for all claims of a pod, with `constraint` and
//! `counters`; `outcome` writes down what was found.
//!
//! `capacity` is what is taken of devices that several claims share; `conditions` what must come true of devices before a
//! pod is bound; `extended` the claim of a pod that asks for devices as for an extended resource.

mod capacity;
pub mod conditions;
mod constraint;
mod counters;
pub mod extended;
mod inventory;
mod outcome;
mod pool;
mod request;
mod search;
mod slice;

use std::sync::Arc;

pub use inventory::{Inventory, Pending};
pub use outcome::SHARE;
pub use search::{Failure, allocate};
pub use slice::Slice;

/// A device: no two have the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    pub driver: Arc<str>,
    pub pool: Arc<str>,
    pub device: Arc<str>,
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.driver, self.pool, self.device)
    }
}

/// A pool of devices: driver and name.
type PoolId = (Arc<str>, Arc<str>);
