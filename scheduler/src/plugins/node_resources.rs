//! NodeResourcesFit: the node must have what the pod asks for; which node is better a strategy tells.
//! NodeResourcesBalancedAllocation: a node whose resources are used in like shares is better.

use std::collections::BTreeSet;

use crate::devices::Inventory;
use crate::devices::extended::{self, is_left_to_devices};
use crate::framework::{ClusterEvent, Filter, MAX_SCORE, Plugin, Reason, Rejection, Score, State, state};
use crate::objects::Object;
use crate::pod::PodInfo;
use crate::resources::Resources;
use crate::snapshot::{NodeInfo, Slot, Snapshot};

/// A resource and how much it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighted {
    pub name: Box<str>,
    pub weight: i64,
}

/// CPU and memory alike.
pub fn default_resources() -> Vec<Weighted> {
    ["cpu", "memory"].map(|name| Weighted { name: name.into(), weight: 1 }).into()
}

/// Which node is better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The emptier one.
    LeastAllocated,
    /// The fuller one.
    MostAllocated,
    /// By a function of how full it is: points of utilization, 0 to 100, and score, 0 to [`MAX_SCORE`].
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// CPU, memory, ephemeral storage, extended resources, and the number of pods.
pub struct NodeResourcesFit {
    pub strategy: Strategy,
    pub resources: Vec<Weighted>,
    /// Extended resources that are not looked at.
    pub ignored: BTreeSet<String>,
    /// Likewise, by what is before the slash of their names.
    pub ignored_groups: BTreeSet<String>,
}

impl Default for NodeResourcesFit {
    fn default() -> Self {
        NodeResourcesFit {
            strategy: Strategy::LeastAllocated,
            resources: default_resources(),
            ignored: BTreeSet::new(),
            ignored_groups: BTreeSet::new(),
        }
    }
}

impl NodeResourcesFit {
    fn fits(&self, pod: &PodInfo, node: &NodeInfo, devices: &Inventory) -> Result<(), Rejection> {
        let mut short: Vec<Reason> = Vec::new();
        let mut resolvable = true;
        if node.residents().len() as i64 + 1 > node.allowed_pods {
            short.push(Reason::new("Too many pods"));
        }
        let wanted = &pod.class.amounts.requests;
        let mut check = |reason: &dyn Fn() -> Reason, wanted: i64, has: i64, used: i64| {
            if wanted > 0 && wanted > has - used {
                short.push(reason());
                resolvable &= wanted <= has;
            }
        };
        let (has, used) = (&node.allocatable, &node.requested);
        check(&|| Reason::new("Insufficient cpu"), wanted.milli_cpu, has.milli_cpu, used.milli_cpu);
        check(&|| Reason::new("Insufficient memory"), wanted.memory, has.memory, used.memory);
        check(
            &|| Reason::new("Insufficient ephemeral-storage"),
            wanted.ephemeral_storage,
            has.ephemeral_storage,
            used.ephemeral_storage,
        );
        for (name, amount) in wanted.scalar.iter().filter(|(name, _)| !self.is_ignored(name)) {
            // DynamicResources looks after it.
            if is_left_to_devices(name, node, devices) {
                continue;
            }
            let of = |list: &Resources| list.scalar.get(name).copied().unwrap_or(0);
            check(&|| Reason::new(format!("Insufficient {name}")), *amount, of(has), of(used));
        }
        if short.is_empty() {
            return Ok(());
        }
        Err(Rejection { plugin: "", resolvable, failed: false, reasons: short })
    }

    fn is_ignored(&self, name: &str) -> bool {
        let extended = name.contains('/') && !name.contains("kubernetes.io/");
        let group = name.split('/').next().unwrap_or_default();
        extended && (self.ignored.contains(name) || self.ignored_groups.contains(group))
    }
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    /// Kubernetes wakes for any pod that leaves; here the pod must fit on the node then.
    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, snapshot: &Snapshot) -> bool {
        let devices = &snapshot.objects.devices;
        match event {
            // Another class may stand for a resource that no node has, also when the one that did is gone.
            ClusterEvent::Object { after: Some(Object::DeviceClass(_)), .. }
            | ClusterEvent::Object { before: Some(Object::DeviceClass(_)), .. } => {
                extended::concerns(pod, devices)
            }
            ClusterEvent::PodGone { node, .. } if snapshot.awaits(node.slot) => {
                // The room may be another pod's.
                let mut node = NodeInfo::clone(node);
                for other in snapshot.nominated(&node.name.clone(), pod) {
                    node.add_pod(other);
                }
                self.fits(pod, &node, devices).is_ok()
            }
            ClusterEvent::NodeAdded(node) | ClusterEvent::PodGone { node, .. } => {
                self.fits(pod, node, devices).is_ok()
            }
            ClusterEvent::NodeChanged { before, after } => {
                (before.allocatable != after.allocatable || before.allowed_pods != after.allowed_pods)
                    && self.fits(pod, after, devices).is_ok()
            }
            ClusterEvent::PodChanged { before, after, node } => {
                before.amounts() != after.amounts() && self.fits(pod, node, devices).is_ok()
            }
            _ => false,
        }
    }
}

impl Filter for NodeResourcesFit {
    fn filter(
        &self,
        _: &dyn State,
        pod: &PodInfo,
        node: &NodeInfo,
        snapshot: &Snapshot,
    ) -> Result<(), Rejection> {
        self.fits(pod, node, &snapshot.objects.devices)
    }
}

/// What a pod asks for of a list of resources.
fn asked(amounts: &Resources, resources: &[Weighted]) -> Vec<i64> {
    resources.iter().map(|r| of(amounts, &r.name)).collect()
}

fn of(amounts: &Resources, name: &str) -> i64 {
    match name {
        "cpu" => amounts.milli_cpu,
        "memory" => amounts.memory,
        "ephemeral-storage" => amounts.ephemeral_storage,
        other => amounts.scalar.get(other).copied().unwrap_or(0),
    }
}

fn is_scalar(name: &str) -> bool {
    !matches!(name, "cpu" | "memory" | "ephemeral-storage" | "pods")
}

/// Of each resource that the node has: what is used, what will be, and how much there is.
fn shares<'a>(
    node: &'a NodeInfo,
    resources: &'a [Weighted],
    asked: &'a [i64],
    counted: bool,
    devices: &'a Inventory,
) -> impl Iterator<Item = (&'a Weighted, i64, i64, i64)> {
    resources.iter().zip(asked).filter_map(move |(resource, asked)| {
        if *asked == 0 && is_scalar(&resource.name) {
            return None;
        }
        let capacity = of(&node.allocatable, &resource.name);
        if capacity == 0 {
            let (all, used) = of_devices(&resource.name, node, devices)?;
            return Some((resource, used, used + asked, all));
        }
        let used = match &*resource.name {
            "cpu" if counted => node.counted.0,
            "memory" if counted => node.counted.1,
            name => of(&node.requested, name),
        };
        Some((resource, used, used + asked, capacity))
    })
}

/// How many devices a node has for a resource that it leaves to them, and how many of them are in use.
fn of_devices(resource: &str, node: &NodeInfo, devices: &Inventory) -> Option<(i64, i64)> {
    let class = devices.class_for(resource).filter(|_| extended::is_extended(resource))?;
    devices.devices_of(class, node).ok().filter(|(all, _)| *all > 0)
}

/// Whether all that is counted is the node's own, and not devices of ResourceSlices.
fn is_of_nodes(resources: &[Weighted]) -> bool {
    !resources.iter().any(|resource| extended::is_extended(&resource.name))
}

impl Score for NodeResourcesFit {
    fn prepare_score(
        &self,
        pod: &PodInfo,
        _: &Snapshot,
        _: &[Slot],
        _: Option<Box<dyn State>>,
    ) -> Option<Box<dyn State>> {
        Some(Box::new(asked(&pod.class.amounts.scoring, &self.resources)))
    }

    fn is_local(&self) -> bool {
        is_of_nodes(&self.resources)
    }

    fn score(&self, known: &dyn State, _: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
        let devices = &snapshot.objects.devices;
        let (mut sum, mut weights) = (0i64, 0i64);
        let asked = state::<Vec<i64>>(known);
        for (resource, _, wanted, capacity) in shares(node, &self.resources, asked, true, devices) {
            let score = match &self.strategy {
                Strategy::LeastAllocated if wanted > capacity => 0,
                Strategy::LeastAllocated => share(capacity - wanted, capacity),
                Strategy::MostAllocated => share(wanted.min(capacity), capacity),
                Strategy::RequestedToCapacityRatio(shape) => {
                    let full = if wanted > capacity { 100 } else { share(wanted, capacity) };
                    let score = broken_line(shape, full);
                    if score <= 0 {
                        continue;
                    }
                    score
                }
            };
            sum += score * resource.weight;
            weights += resource.weight;
        }
        match (weights, &self.strategy) {
            (0, _) => 0,
            (_, Strategy::RequestedToCapacityRatio(_)) => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }
}

/// A part in hundredths of the whole.
fn share(part: i64, whole: i64) -> i64 {
    (i128::from(part) * i128::from(MAX_SCORE) / i128::from(whole)) as i64
}

/// The value at `x` of a line through points, constant before the first and after the last.
fn broken_line(points: &[(i64, i64)], x: i64) -> i64 {
    let Some(next) = points.iter().position(|(at, _)| x <= *at) else {
        return points.last().map_or(0, |(_, value)| *value);
    };
    let (at, value) = points[next];
    let Some((before, from)) = next.checked_sub(1).map(|i| points[i]) else { return value };
    from + (value - from) * (x - before) / (at - before)
}

/// How much the shares in use differ with the pod, and how much they do without it.
pub struct BalancedAllocation {
    pub resources: Vec<Weighted>,
}

impl Default for BalancedAllocation {
    fn default() -> Self {
        BalancedAllocation { resources: default_resources() }
    }
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    /// It rejects nothing.
    fn wakes(&self, _: &PodInfo, _: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        false
    }
}

impl Score for BalancedAllocation {
    fn prepare_score(
        &self,
        pod: &PodInfo,
        _: &Snapshot,
        _: &[Slot],
        _: Option<Box<dyn State>>,
    ) -> Option<Box<dyn State>> {
        let asked = asked(&pod.class.amounts.requests, &self.resources);
        asked.iter().any(|amount| *amount != 0).then(|| Box::new(asked) as Box<dyn State>)
    }

    fn is_local(&self) -> bool {
        is_of_nodes(&self.resources)
    }

    fn score(&self, known: &dyn State, _: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
        let devices = &snapshot.objects.devices;
        let shares = || shares(node, &self.resources, state::<Vec<i64>>(known), false, devices);
        let with = balance(|| shares().map(|(_, _, wanted, capacity)| (wanted, capacity)));
        let without = balance(|| shares().map(|(_, used, _, capacity)| (used, capacity)));
        MAX_SCORE / 2 + (MAX_SCORE / 2 + with - without) / 2
    }
}

/// 100 less the standard deviation of the shares, in hundredths.
fn balance<I: Iterator<Item = (i64, i64)>>(shares: impl Fn() -> I) -> i64 {
    let fractions = || shares().map(|(part, whole)| (part as f64 / whole as f64).min(1.0));
    let count = fractions().count();
    let deviation = match count {
        0 | 1 => 0.0,
        2 => {
            let mut both = fractions();
            let (a, b) = (both.next().unwrap_or(0.0), both.next().unwrap_or(0.0));
            ((a - b) / 2.0).abs()
        }
        _ => {
            let mean = fractions().sum::<f64>() / count as f64;
            (fractions().map(|f| (f - mean) * (f - mean)).sum::<f64>() / count as f64).sqrt()
        }
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}
