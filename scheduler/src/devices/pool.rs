//! Pools of devices as a node sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::slice::{Counters, Device};
use super::{Inventory, PoolId, Slice};
use crate::snapshot::NodeInfo;

/// A pool.
pub struct Pool<'a> {
    pub id: PoolId,
    /// Its driver is about to publish more slices of it.
    pub incomplete: bool,
    /// What its slices say cannot be.
    pub invalid: bool,
    /// Those that the node can use, by name.
    pub slices: Vec<&'a Arc<Slice>>,
    /// All of this generation.
    pub all: Vec<&'a Arc<Slice>>,
    pub counters: Counters,
}

/// The pools that have something for a node, by driver and name, those with binding conditions last: that is the order in
/// which devices are tried.
pub fn gather<'a>(inventory: &'a Inventory, node: &NodeInfo) -> Vec<Pool<'a>> {
    let mut found: BTreeMap<PoolId, Vec<&'a Arc<Slice>>> = BTreeMap::new();
    for slice in inventory.slices_for(&node.name).filter(|slice| slice.concerns(node)) {
        let of_pool = found.entry((slice.driver.clone(), slice.pool.clone())).or_default();
        let newest = of_pool.first().map_or(slice.generation, |first| first.generation);
        if slice.generation > newest {
            of_pool.clear();
        }
        if slice.generation >= newest {
            of_pool.push(slice);
        }
    }
    let pools = found.into_iter().filter_map(|(id, slices)| pool(inventory, id, slices));
    let (mut pools, waiting): (Vec<_>, Vec<_>) = pools.partition(|pool| !pool.has_conditions());
    pools.extend(waiting);
    pools
}

impl Pool<'_> {
    /// Whether a pod that gets one of its devices may have to wait for it.
    fn has_conditions(&self) -> bool {
        let mut devices = self.slices.iter().flat_map(|slice| &slice.devices);
        !self.incomplete && !self.invalid && devices.any(|device| device.binding_conditions.is_some())
    }
}

/// `None`: all that the node could use is out of date.
fn pool<'a>(inventory: &'a Inventory, id: PoolId, mut slices: Vec<&'a Arc<Slice>>) -> Option<Pool<'a>> {
    let first = slices.first()?;
    let (generation, wanted) = (first.generation, first.slices_of_pool);
    if inventory.slices_of(&id).any(|slice| slice.generation > generation) && slices.len() as i64 != wanted {
        return None;
    }
    let mut all: Vec<_> = inventory.slices_of(&id).filter(|slice| slice.generation == generation).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    slices.sort_by(|a, b| a.name.cmp(&b.name));
    let incomplete = slices.len() as i64 != wanted && all.len() as i64 != wanted;
    let mut counters = Counters::new();
    let mut twice = false;
    for slice in slices.iter().filter(|slice| !slice.counters.is_empty()) {
        twice |= slice.twice.is_some();
        for (name, amounts) in &slice.counters {
            twice |= counters.insert(name.clone(), amounts.clone()).is_some();
        }
    }
    slices.retain(|slice| slice.counters.is_empty());
    let mut names = BTreeSet::new();
    let repeated =
        slices.iter().flat_map(|slice| &slice.devices).any(|device| !names.insert(&device.id.device));
    let known = |device: &Device| {
        device.consumes.iter().all(|(set, amounts)| {
            counters.get(set).is_some_and(|of_set| amounts.keys().all(|name| of_set.contains_key(name)))
        })
    };
    let consistent = all.iter().flat_map(|slice| &slice.devices).all(known);
    let invalid = !incomplete && (twice || repeated || !consistent);
    Some(Pool { id, incomplete, invalid, slices, all, counters })
}
