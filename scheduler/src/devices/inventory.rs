//! What is known of devices, and which are in use.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use hawser_api::cel::device::Selector;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim};

use super::capacity::{Amounts, Taken, amounts};
use super::extended::{Names, Plan, in_memory, made_for};
use super::{DeviceId, PoolId, Slice};
use crate::objects::Name;
use crate::snapshot::NodeInfo;

/// An allocation that was decided about and is not seen in the claim yet.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The uid of the pod for which it was.
    pub pod: Arc<str>,
    pub allocation: Arc<AllocationResult>,
    /// The claim itself, if it is one for extended resources, which is still to be made.
    pub plan: Option<Arc<Plan>>,
}

/// Claims, classes, slices.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    classes: HashMap<Name, Arc<DeviceClass>>,
    /// Which of them stand for extended resources.
    names: Names,
    claims: HashMap<Name, Arc<ResourceClaim>>,
    pending: HashMap<Name, Pending>,
    /// The claims about which something was decided for a pod, by its uid.
    pending_of: HashMap<Arc<str>, Vec<Name>>,
    /// Claims for extended resources, by the uid of the pod that they were made for.
    made_for: HashMap<Box<str>, Name>,
    slices: HashMap<Name, Arc<Slice>>,
    /// Names of slices that one node alone can use, and of the others.
    local: HashMap<Box<str>, BTreeSet<Name>>,
    shared: BTreeSet<Name>,
    by_pool: HashMap<PoolId, BTreeSet<Name>>,
    /// With the number of claims that hold the device; more than one only if somebody else allocates, too.
    in_use: HashMap<DeviceId, usize>,
    /// With the number of shares of the device that claims hold.
    shares: HashMap<DeviceId, usize>,
    /// What these take of it.
    taken: Taken,
}

impl Inventory {
    /// A class.
    pub fn class(&self, name: &str) -> Option<&Arc<DeviceClass>> {
        self.classes.get(name)
    }

    /// The class that stands for an extended resource.
    pub fn class_for(&self, resource: &str) -> Option<&Arc<DeviceClass>> {
        self.names.class(resource).and_then(|name| self.classes.get(name))
    }

    /// Changes when another class stands for any extended resource.
    pub fn names_version(&self) -> u64 {
        self.names.version()
    }

    /// Takes in a class that was seen. Answers what it was before.
    pub fn set_class(&mut self, name: Name, class: Arc<DeviceClass>) -> Option<Arc<DeviceClass>> {
        let before = self.classes.insert(name, class.clone());
        self.names.replace(before.as_deref(), Some(&class));
        before
    }

    /// A class is gone. Answers what it was.
    pub fn remove_class(&mut self, name: &str) -> Option<Arc<DeviceClass>> {
        let gone = self.classes.remove(name)?;
        self.names.replace(Some(&gone), None);
        Some(gone)
    }

    /// A claim by `namespace/name`.
    pub fn claim(&self, name: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(name)
    }

    /// The claim that was made for the extended resources of the pod with this uid.
    pub fn made_for(&self, pod: &str) -> Option<(&Name, &Arc<ResourceClaim>)> {
        self.claims.get_key_value(self.made_for.get(pod)?)
    }

    /// What was decided about a claim.
    pub fn pending(&self, name: &str) -> Option<&Pending> {
        self.pending.get(name)
    }

    /// All that was decided and is not seen yet, by `namespace/name` of the claim.
    pub fn all_pending(&self) -> impl Iterator<Item = (&Name, &Pending)> {
        self.pending.iter()
    }

    /// Whether a claim holds a device for itself, other than for administration.
    pub fn is_in_use(&self, device: &DeviceId) -> bool {
        self.in_use.contains_key(device)
    }

    /// Whether a claim holds a device, or a share of it.
    pub fn is_held(&self, device: &DeviceId) -> bool {
        self.is_in_use(device) || self.shares.contains_key(device)
    }

    /// What is taken of a shared device.
    pub(super) fn taken(&self, device: &DeviceId) -> Option<&Amounts> {
        self.taken.of(device)
    }

    /// Takes in a claim that was seen. Answers what it was before.
    pub fn set_claim(&mut self, name: Name, claim: Arc<ResourceClaim>) -> Option<Arc<ResourceClaim>> {
        let pod = made_for(&claim);
        if allocation(&claim).is_some() {
            self.drop_pending(&name);
            // What was decided about a claim still to be made is in this one now.
            if let (Some(pod), Some(namespace)) = (pod, &claim.metadata.namespace) {
                self.drop_pending(&in_memory(namespace, pod));
            }
        }
        if let Some(pod) = pod {
            self.made_for.insert(pod.into(), name.clone());
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
        if let Some(pod) = made_for(&gone)
            && self.made_for.get(pod).is_some_and(|known| **known == *name)
        {
            self.made_for.remove(pod);
        }
        self.count(allocation(&gone), false);
        Some(gone)
    }

    /// Decides about a claim for a pod.
    pub fn decide(&mut self, name: Name, pending: Pending) {
        self.drop_pending(&name);
        self.count(Some(&pending.allocation), true);
        self.pending_of.entry(pending.pod.clone()).or_default().push(name.clone());
        self.pending.insert(name, pending);
    }

    /// Takes back all that was decided for a pod.
    pub fn give_back(&mut self, pod: &str) {
        for name in self.pending_of.get(pod).cloned().unwrap_or_default() {
            self.drop_pending(&name);
        }
    }

    fn drop_pending(&mut self, name: &str) {
        let Some(pending) = self.pending.remove(name) else { return };
        self.count(Some(&pending.allocation), false);
        if let Some(names) = self.pending_of.get_mut(&pending.pod) {
            names.retain(|other| **other != *name);
            if names.is_empty() {
                self.pending_of.remove(&pending.pod);
            }
        }
    }

    fn count(&mut self, allocation: Option<&AllocationResult>, held: bool) {
        let results = allocation.and_then(|a| a.devices.as_ref()?.results.as_ref());
        for result in results.into_iter().flatten() {
            // Administration leaves a device to others.
            if result.admin_access == Some(true) {
                continue;
            }
            let device = DeviceId {
                driver: result.driver.as_str().into(),
                pool: result.pool.as_str().into(),
                device: result.device.as_str().into(),
            };
            if result.share_id.is_none() {
                step(&mut self.in_use, device, held);
                continue;
            }
            if let Some(consumed) = result.consumed_capacity.as_ref().map(amounts) {
                if held {
                    self.taken.add(device.clone(), &consumed);
                } else {
                    self.taken.remove(&device, &consumed);
                }
            }
            step(&mut self.shares, device, held);
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

    /// How many devices that a node can use are of a class, and how many of these are held.
    ///
    /// # Errors
    /// A selector of the class that is none, or that cannot be evaluated.
    pub fn devices_of(&self, class: &DeviceClass, node: &NodeInfo) -> Result<(i64, i64), String> {
        let selectors = class.spec.selectors.iter().flatten().filter_map(|s| s.cel.as_ref());
        let selectors: Vec<Selector> =
            selectors.map(|cel| Selector::compile(&cel.expression)).collect::<Result<_, _>>()?;
        let (mut all, mut held) = (0, 0);
        for slice in self.slices_for(&node.name) {
            for device in slice.devices.iter().filter(|device| slice.offers(device, node)) {
                if !selectors.is_empty() {
                    if let Some(unreadable) = &device.unreadable {
                        return Err(unreadable.clone());
                    }
                    let seen = device.as_seen();
                    let mut matches = true;
                    for selector in &selectors {
                        matches = matches && selector.matches(&seen)?;
                    }
                    if !matches {
                        continue;
                    }
                }
                all += 1;
                held += i64::from(self.is_held(&device.id));
            }
        }
        Ok((all, held))
    }

    /// The slices of a pool.
    pub(super) fn slices_of(&self, pool: &PoolId) -> impl Iterator<Item = &Arc<Slice>> {
        self.by_pool.get(pool).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }
}

/// Counts one more, or one less.
fn step(counts: &mut HashMap<DeviceId, usize>, device: DeviceId, more: bool) {
    if more {
        *counts.entry(device).or_default() += 1;
    } else if let Some(count) = counts.get_mut(&device) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&device);
        }
    }
}

/// What a claim holds.
pub fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}
