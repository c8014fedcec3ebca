//! What is known of devices, and which are in use.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim};

use super::{DeviceId, PoolId, Slice};
use crate::objects::Name;

/// An allocation that was decided about and is not seen in the claim yet.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The uid of the pod for which it was.
    pub pod: Arc<str>,
    pub allocation: Arc<AllocationResult>,
}

/// Claims, classes, slices.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub classes: HashMap<Name, Arc<DeviceClass>>,
    claims: HashMap<Name, Arc<ResourceClaim>>,
    pending: HashMap<Name, Pending>,
    slices: HashMap<Name, Arc<Slice>>,
    /// Names of slices that one node alone can use, and of the others.
    local: HashMap<Box<str>, BTreeSet<Name>>,
    shared: BTreeSet<Name>,
    by_pool: HashMap<PoolId, BTreeSet<Name>>,
    /// With the number of claims that hold the device; more than one only if somebody else allocates, too.
    in_use: HashMap<DeviceId, usize>,
}

impl Inventory {
    /// A claim by `namespace/name`.
    pub fn claim(&self, name: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(name)
    }

    /// What was decided about a claim.
    pub fn pending(&self, name: &str) -> Option<&Pending> {
        self.pending.get(name)
    }

    /// All that was decided and is not seen yet, by `namespace/name` of the claim.
    pub fn all_pending(&self) -> impl Iterator<Item = (&Name, &Pending)> {
        self.pending.iter()
    }

    /// Whether a claim holds a device, other than for administration.
    pub fn is_in_use(&self, device: &DeviceId) -> bool {
        self.in_use.contains_key(device)
    }

    /// Takes in a claim that was seen. Answers what it was before.
    pub fn set_claim(&mut self, name: Name, claim: Arc<ResourceClaim>) -> Option<Arc<ResourceClaim>> {
        if allocation(&claim).is_some() {
            self.drop_pending(&name);
        }
        self.count(allocation(&claim), true);
        let before = self.claims.insert(name, claim);
        self.count(before.as_deref().and_then(allocation), false);
        before
    }

    /// A claim is gone. Answers what it was.
    pub fn remove_claim(&mut self, name: &str) -> Option<Arc<ResourceClaim>> {
        self.drop_pending(name);
        let gone = self.claims.remove(name)?;
        self.count(allocation(&gone), false);
        Some(gone)
    }

    /// Decides about a claim for a pod.
    pub fn decide(&mut self, name: Name, pending: Pending) {
        self.drop_pending(&name);
        self.count(Some(&pending.allocation), true);
        self.pending.insert(name, pending);
    }

    /// Takes back what was decided for a pod about a claim.
    pub fn give_back(&mut self, name: &str, pod: &str) {
        if self.pending.get(name).is_some_and(|pending| *pending.pod == *pod) {
            self.drop_pending(name);
        }
    }

    fn drop_pending(&mut self, name: &str) {
        if let Some(pending) = self.pending.remove(name) {
            self.count(Some(&pending.allocation), false);
        }
    }

    fn count(&mut self, allocation: Option<&AllocationResult>, held: bool) {
        let results = allocation.and_then(|a| a.devices.as_ref()?.results.as_ref());
        for result in results.into_iter().flatten() {
            // Administration and shares leave a device to others.
            if result.admin_access == Some(true) || result.share_id.is_some() {
                continue;
            }
            let device = DeviceId {
                driver: result.driver.as_str().into(),
                pool: result.pool.as_str().into(),
                device: result.device.as_str().into(),
            };
            if held {
                *self.in_use.entry(device).or_default() += 1;
            } else if let Some(count) = self.in_use.get_mut(&device) {
                *count -= 1;
                if *count == 0 {
                    self.in_use.remove(&device);
                }
            }
        }
    }

    /// Takes in a slice. Answers what it was before.
    pub fn set_slice(&mut self, name: Name, slice: Arc<Slice>) -> Option<Arc<Slice>> {
        let before = self.remove_slice(&name);
        let pool = (slice.driver.clone(), slice.pool.clone());
        self.by_pool.entry(pool).or_default().insert(name.clone());
        match slice.node() {
            Some(node) => self.local.entry(node.into()).or_default().insert(name.clone()),
            None => self.shared.insert(name.clone()),
        };
        self.slices.insert(name, slice);
        before
    }

    /// A slice is gone. Answers what it was.
    pub fn remove_slice(&mut self, name: &str) -> Option<Arc<Slice>> {
        let gone = self.slices.remove(name)?;
        let pool = (gone.driver.clone(), gone.pool.clone());
        if let Some(names) = self.by_pool.get_mut(&pool) {
            names.remove(name);
            if names.is_empty() {
                self.by_pool.remove(&pool);
            }
        }
        self.shared.remove(name);
        if let Some(names) = gone.node().and_then(|node| self.local.get_mut(node)) {
            names.remove(name);
            if names.is_empty() {
                gone.node().and_then(|node| self.local.remove(node));
            }
        }
        Some(gone)
    }

    /// The slices that a node may use: its own, and those that are not one node's alone.
    pub(super) fn slices_for(&self, node: &str) -> impl Iterator<Item = &Arc<Slice>> {
        let own = self.local.get(node).into_iter().flatten();
        own.chain(&self.shared).filter_map(|name| self.slices.get(name))
    }

    /// The slices of a pool.
    pub(super) fn slices_of(&self, pool: &PoolId) -> impl Iterator<Item = &Arc<Slice>> {
        self.by_pool.get(pool).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }
}

/// What a claim holds.
pub fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}
