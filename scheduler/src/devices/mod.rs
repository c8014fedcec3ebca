//! Devices (structured parameters, KEP-4381): what ResourceSlices offer, what ResourceClaims hold, and which devices a
//! claim gets on a node. Pure.
//!
//! `inventory` knows the objects and which devices are in use; `slice` is a ResourceSlice read once; `pool` gathers what a
//! node can use; `request` is what a claim asks for; `search` finds devices for all claims of a pod, with `constraint` and
//! `counters`; `outcome` writes down what was found.
//!
//! Not allocated: devices that several claims share by capacity (KEP-5075) and devices with binding conditions (KEP-5007).
//! A claim that asks for capacity is told so.

mod constraint;
mod counters;
mod inventory;
mod outcome;
mod pool;
mod request;
mod search;
mod slice;

use std::sync::Arc;

pub use inventory::{Inventory, Pending};
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
