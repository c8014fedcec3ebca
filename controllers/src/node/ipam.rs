//! Node IPAM: gives every node a range of pod addresses that no other node has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use crate::cache::Caches;
use crate::object::{self, Key};
use crate::plan::{Act, Note, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// Which parts of one cluster range are whose. PURE.
#[derive(Debug)]
pub struct Pool {
    cluster: IpNet,
    mask: u8,
    /// Who holds each part. More than one holder is somebody's mistake; the part is free when all left.
    holders: BTreeMap<u64, BTreeSet<String>>,
    /// What each node holds.
    held: HashMap<String, BTreeSet<u64>>,
    /// Where the search for a free part begins: none below is free.
    floor: u64,
}

impl Pool {
    /// A pool of ranges of prefix length `mask` out of `cluster`, which must be shorter.
    pub fn new(cluster: IpNet, mask: u8) -> Self {
        Self { cluster: cluster.trunc(), mask, holders: BTreeMap::new(), held: HashMap::new(), floor: 0 }
    }

    fn size(&self) -> u64 {
        1u64.checked_shl(u32::from(self.mask.saturating_sub(self.cluster.prefix_len()))).unwrap_or(u64::MAX)
    }

    /// The range with this index.
    fn range(&self, index: u64) -> Option<IpNet> {
        let net = match self.cluster.network() {
            IpAddr::V4(base) => {
                let shift = 32u32.checked_sub(u32::from(self.mask))?;
                let offset = u32::try_from(index).ok()?.checked_shl(shift).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(base).checked_add(offset)?))
            }
            IpAddr::V6(base) => {
                let shift = 128u32.checked_sub(u32::from(self.mask))?;
                let offset = u128::from(index).checked_shl(shift).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(base).checked_add(offset)?))
            }
        };
        IpNet::new(net, self.mask).ok()
    }

    /// The indexes that a range covers (it may be larger or smaller than ours), if it is in the pool.
    fn indexes(&self, range: &IpNet) -> Option<std::ops::RangeInclusive<u64>> {
        let index = |ip: IpAddr| -> Option<u64> {
            match (ip, self.cluster.network()) {
                (IpAddr::V4(ip), IpAddr::V4(base)) => {
                    let shift = 32u32.checked_sub(u32::from(self.mask))?;
                    Some(u64::from(
                        u32::from(ip).checked_sub(u32::from(base))?.checked_shr(shift).unwrap_or(0),
                    ))
                }
                (IpAddr::V6(ip), IpAddr::V6(base)) => {
                    let shift = 128u32.checked_sub(u32::from(self.mask))?;
                    u64::try_from(
                        u128::from(ip).checked_sub(u128::from(base))?.checked_shr(shift).unwrap_or(0),
                    )
                    .ok()
                }
                _ => None,
            }
        };
        let last_of_pool = self.size().saturating_sub(1);
        let (first, last) = if self.cluster.contains(range) {
            (index(range.network())?, index(range.broadcast())?)
        } else if range.contains(&self.cluster) {
            (0, last_of_pool)
        } else {
            return None;
        };
        Some(first..=last.min(last_of_pool))
    }

    /// Notes that a node holds a range. A range outside the pool is none of its business.
    pub fn occupy(&mut self, range: &IpNet, node: &str) {
        let Some(indexes) = self.indexes(range) else { return };
        for index in indexes {
            self.holders.entry(index).or_default().insert(node.to_owned());
            self.held.entry(node.to_owned()).or_default().insert(index);
        }
    }

    /// Gives back all that a node holds.
    pub fn release(&mut self, node: &str) {
        for index in self.held.remove(node).into_iter().flatten() {
            if let Some(holders) = self.holders.get_mut(&index) {
                holders.remove(node);
                if holders.is_empty() {
                    self.holders.remove(&index);
                    self.floor = self.floor.min(index);
                }
            }
        }
    }

    /// The range that a node holds, or else the lowest free one, which it holds from now on.
    pub fn reserve(&mut self, node: &str) -> Option<IpNet> {
        if let Some(index) = self.held.get(node).and_then(|held| held.first()) {
            return self.range(*index);
        }
        let mut index = self.floor;
        for (held, _) in self.holders.range(self.floor..) {
            if *held > index {
                break;
            }
            index = held + 1;
        }
        self.floor = index;
        if index >= self.size() {
            return None;
        }
        let range = self.range(index)?;
        self.occupy(&range, node);
        Some(range)
    }
}

/// What a decision about a node rests on.
pub struct View {
    /// The node.
    pub node: Arc<Node>,
    /// A range per pool that is reserved for it; `None` when a pool is used up.
    pub reserved: Option<Vec<IpNet>>,
}

/// The ranges that a node has.
fn ranges(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).filter_map(|c| c.parse().ok()).collect()
}

fn has_range(node: &Node) -> bool {
    node.spec.as_ref().is_some_and(|s| {
        s.pod_cidr.as_ref().is_some_and(|c| !c.is_empty())
            || s.pod_cidrs.as_ref().is_some_and(|c| !c.is_empty())
    })
}

/// Decides about a node.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let node = view.node.as_ref();
    if object::is_deleting(node) || has_range(node) {
        return plan;
    }
    let Some(ranges) = view.reserved.as_ref().filter(|r| !r.is_empty()) else {
        let name = object::name(node);
        let message = format!("Node {name} status is now: CIDRNotAvailable");
        plan.events.push(Note::normal(object::reference(node), "CIDRNotAvailable", message));
        plan.requeue(std::time::Duration::from_secs(30));
        return plan;
    };
    let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    let patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
    });
    plan.push(Act::patch(node, None, patch).may_be_absent());
    plan
}

/// The controller. Keys are nodes.
pub struct NodeIpam {
    caches: Arc<Caches>,
    pools: Mutex<Vec<Pool>>,
}

impl NodeIpam {
    /// A controller on these caches that gives ranges out of `pools`.
    pub fn new(caches: &Arc<Caches>, pools: Vec<Pool>) -> Self {
        Self { caches: caches.clone(), pools: Mutex::new(pools) }
    }
}

#[async_trait]
impl Controller for NodeIpam {
    type View = View;

    fn name(&self) -> &'static str {
        "node-ipam"
    }

    fn component(&self) -> &'static str {
        "cidrAllocator"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        // The store is complete before the first key is worked on: every range in use is known by then.
        let (this, q) = (self.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            let name = &change.key.name;
            let Some(node) = change.new else {
                for pool in this.pools.lock().iter_mut() {
                    pool.release(name);
                }
                return;
            };
            if has_range(node) {
                if change.old.is_none_or(|old| ranges(old) != ranges(node)) {
                    for pool in this.pools.lock().iter_mut() {
                        pool.release(name);
                        for range in ranges(node) {
                            pool.occupy(&range, name);
                        }
                    }
                }
            } else if change.old.is_none_or(|old| has_range(old)) {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(node) = self.caches.nodes.get(key) else { return Ok(None) };
        if has_range(&node) {
            return Ok(None);
        }
        let mut pools = self.pools.lock();
        // The node may have gone between the two lines above; its reservation must not outlive it.
        let reserved = pools.iter_mut().map(|pool| pool.reserve(&key.name)).collect();
        if self.caches.nodes.get(key).is_none() {
            for pool in pools.iter_mut() {
                pool.release(&key.name);
            }
            return Ok(None);
        }
        Ok(Some(View { node, reserved }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, lag};
    use proptest::prelude::*;

    fn pool(cluster: &str, mask: u8) -> Pool {
        Pool::new(cluster.parse().unwrap(), mask)
    }

    fn node(name: &str, range: Option<&str>) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.spec.get_or_insert_default().pod_cidr = range.map(str::to_owned);
        node.spec.get_or_insert_default().pod_cidrs = range.map(|r| vec![r.to_owned()]);
        node
    }

    #[test]
    fn ranges_are_given_lowest_first_and_given_back() {
        let mut p = pool("10.244.0.0/16", 24);
        assert_eq!(p.reserve("a").unwrap().to_string(), "10.244.0.0/24");
        assert_eq!(p.reserve("a").unwrap().to_string(), "10.244.0.0/24");
        p.occupy(&"10.244.1.0/24".parse().unwrap(), "b");
        assert_eq!(p.reserve("c").unwrap().to_string(), "10.244.2.0/24");
        p.release("a");
        assert_eq!(p.reserve("d").unwrap().to_string(), "10.244.0.0/24");
        // Ranges of another size, from another configuration, block what they cover.
        let mut p = pool("10.244.0.0/16", 24);
        p.occupy(&"10.244.0.0/23".parse().unwrap(), "big");
        p.occupy(&"10.244.2.128/25".parse().unwrap(), "small");
        assert_eq!(p.reserve("e").unwrap().to_string(), "10.244.3.0/24");
        let mut p = pool("fd00:10::/60", 64);
        let all: BTreeSet<String> = (0..16).map(|n| p.reserve(&n.to_string()).unwrap().to_string()).collect();
        assert_eq!(all.len(), 16);
        assert_eq!(p.reserve("full"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_pool_is_told() {
        let mut h = Harness::new(|caches, _| NodeIpam::new(caches, vec![pool("10.0.0.0/24", 24)]));
        h.model.lock().put(&node("a", None));
        h.model.lock().put(&node("b", None));
        h.settle(50).await;
        assert!(h.notes().contains(&"Normal CIDRNotAvailable Node b status is now: CIDRNotAvailable".into()));
        h.model.lock().delete_as_user::<Node>("", "a");
        tokio::time::advance(std::time::Duration::from_secs(31)).await;
        h.settle(50).await;
        let b: Node = h.model.lock().get("", "b").unwrap();
        assert_eq!(b.spec.unwrap().pod_cidr.as_deref(), Some("10.0.0.0/24"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Nodes come with and without ranges and go, views lag: no range is ever given twice.
        #[test]
        fn no_range_twice(ops in proptest::collection::vec((0..10usize, 0..3u8), 1..40), seed in any::<u64>()) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let pools = vec![pool("10.244.0.0/20", 24), pool("fd00::/60", 64)];
                let mut h = Harness::new(|caches, _| NodeIpam::new(caches, pools));
                let mut lagging = lag(seed);
                for (n, op) in ops {
                    let name = format!("n{n}");
                    let there = h.model.lock().get::<Node>("", &name).is_some();
                    match (there, op) {
                        (true, 0) => h.model.lock().delete_as_user::<Node>("", &name),
                        (true, _) => {}
                        (false, _) => { h.model.lock().put(&node(&name, None)); }
                    }
                    h.settle_lagging(100, &mut lagging).await;
                    let mut seen = BTreeSet::new();
                    for node in h.model.lock().list::<Node>() {
                        for range in node.spec.unwrap().pod_cidrs.unwrap_or_default() {
                            prop_assert!(seen.insert(range.clone()), "{} twice", range);
                        }
                    }
                }
                h.settle(100).await;
                for node in h.model.lock().list::<Node>() {
                    prop_assert_eq!(node.spec.unwrap().pod_cidrs.unwrap_or_default().len(), 2);
                }
                Ok(())
            })?;
        }
    }
}
