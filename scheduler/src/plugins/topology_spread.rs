//! PodTopologySpread: pods of one kind are spread evenly over zones, nodes or whatever a label of nodes tells (KEP-895).

use std::collections::HashMap;
use std::sync::Arc;

use hawser_api::selector::LabelSelector;

use super::node_affinity;
use super::taint_toleration::has_untolerated;
use crate::framework::{
    ClusterEvent, Filter, MAX_SCORE, Moved, Plugin, Prepared, Rejection, Score, State, kept, state, state_mut,
};
use crate::objects::{Kind, Object, Objects};
use crate::pod::{PodInfo, SpreadConstraint};
use crate::selector::{Labels, from_labels, selects};
use crate::snapshot::{NodeInfo, Slot, Snapshot};
use crate::tally::Tally;

const NO_MATCH: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The plugin, with the constraints of pods that have none of their own.
pub struct PodTopologySpread {
    defaults: Vec<SpreadConstraint>,
    /// The defaults are the system's: a node without one of the labels is still scored.
    system: bool,
}

impl PodTopologySpread {
    /// With the system's defaults: nodes with a skew of 3, zones with a skew of 5, preferred only.
    pub fn system_defaults() -> Self {
        let soft = |key: &str, max_skew| SpreadConstraint {
            max_skew,
            topology_key: key.into(),
            hard: false,
            selector: LabelSelector::none(),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        };
        PodTopologySpread { defaults: vec![soft(HOSTNAME, 3), soft(ZONE, 5)], system: true }
    }

    /// With these defaults, whose selectors do not matter.
    pub fn with_defaults(defaults: Vec<SpreadConstraint>) -> Self {
        PodTopologySpread { defaults, system: false }
    }

    /// The pod's constraints, hard or soft.
    fn constraints(&self, pod: &PodInfo, hard: bool, objects: &Objects) -> Vec<SpreadConstraint> {
        let of = |list: &[SpreadConstraint]| list.iter().filter(|c| c.hard == hard).cloned().collect();
        if !pod.spread.is_empty() {
            return of(&pod.spread);
        }
        let mut defaults: Vec<SpreadConstraint> = of(&self.defaults);
        if defaults.is_empty() {
            return defaults;
        }
        let selector = default_selector(pod, objects);
        if selector.is_everything() || selector.nothing {
            return Vec::new();
        }
        for constraint in &mut defaults {
            constraint.selector = selector.clone();
        }
        defaults
    }

    /// Counts for the pod's constraints, from those of the last pod of its class.
    fn counted(
        &self,
        pod: &PodInfo,
        hard: bool,
        snapshot: &Snapshot,
        before: Option<Box<dyn State>>,
    ) -> Spread {
        let basis = if pod.spread.is_empty() {
            (snapshot.objects.version(Kind::Service), snapshot.objects.version(Kind::Workload))
        } else {
            (0, 0)
        };
        let mut spread = match kept::<Spread>(before) {
            Some(spread) if spread.basis == basis => spread,
            _ => Spread {
                basis,
                constraints: self.constraints(pod, hard, &snapshot.objects).into(),
                all_labels: hard || !pod.spread.is_empty() || !self.system,
                ..Spread::default()
            },
        };
        if !spread.constraints.is_empty() {
            spread.follow(pod, snapshot);
        }
        spread
    }
}

/// What a node adds to one constraint.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Number of the domain; `NONE` for a node without the label.
    domain: u32,
    /// Pods there that the constraint selects.
    pods: i64,
    /// Whether the domain's sum has them.
    counted: bool,
}

const NONE: u32 = u32::MAX;

/// The domains of one constraint.
#[derive(Clone, Debug, Default)]
struct Domains {
    numbers: HashMap<Box<str>, u32>,
    /// Nodes and pods that count, by number.
    sums: Vec<(i64, i64)>,
}

impl Domains {
    fn number(&mut self, value: &str) -> u32 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        let number = self.sums.len() as u32;
        self.numbers.insert(value.into(), number);
        self.sums.push((0, 0));
        number
    }
}

/// The counts of a pod's constraints.
#[derive(Clone, Debug, Default)]
struct Spread {
    /// Versions of what the default constraints' selector was made of.
    basis: (u64, u64),
    constraints: Arc<[SpreadConstraint]>,
    /// Nodes without one of the labels do not count.
    all_labels: bool,
    domains: Vec<Domains>,
    tally: Tally<Box<[Part]>>,
    /// For scores: a domain's weight, by constraint; and the nodes that are not scored.
    weights: Vec<f64>,
    ignored: std::collections::HashSet<Slot>,
}

impl Spread {
    fn follow(&mut self, pod: &PodInfo, snapshot: &Snapshot) {
        let Spread { constraints, all_labels, domains, tally, .. } = self;
        let part = |domains: &mut Vec<Domains>, node: &NodeInfo| {
            domains.resize_with(constraints.len(), Domains::default);
            let labelled = |c: &SpreadConstraint| node.labels.contains_key(&*c.topology_key);
            let counts = !*all_labels || constraints.iter().all(labelled);
            let affine = node_affinity::matches(pod, node);
            let tolerated = !has_untolerated(pod, node);
            let parts = constraints.iter().zip(domains).map(|(c, domains)| {
                let value = node.labels.get(&*c.topology_key).map(String::as_str);
                let value = if *all_labels { value } else { value.or(Some("")) };
                Part {
                    domain: value.map_or(NONE, |value| domains.number(value)),
                    pods: pods_selected(pod, c, node),
                    counted: counts && (!c.honor_affinity || affine) && (!c.honor_taints || tolerated),
                }
            });
            Some(parts.collect())
        };
        tally.follow(snapshot, domains, part, |domains, parts, sign| {
            for (part, domains) in parts.iter().zip(domains) {
                if part.counted && part.domain != NONE {
                    let sum = &mut domains.sums[part.domain as usize];
                    *sum = (sum.0 + sign, sum.1 + sign * part.pods);
                }
            }
        });
    }

    /// The number of a node's domain.
    fn domain(&self, at: usize, node: &NodeInfo) -> Option<u32> {
        if let Some(parts) = self.tally.part(node.slot) {
            return Some(parts[at].domain).filter(|d| *d != NONE);
        }
        let value = node.labels.get(&*self.constraints[at].topology_key)?;
        self.domains.get(at)?.numbers.get(value.as_str()).copied()
    }
}

/// How many pods of a node a constraint selects. Those that are about to go do not count.
fn pods_selected(pod: &PodInfo, constraint: &SpreadConstraint, node: &NodeInfo) -> i64 {
    if constraint.selector.is_everything() || constraint.selector.nothing {
        return 0;
    }
    let counts = |other: &&Arc<PodInfo>| {
        !other.deleting
            && other.class.namespace == pod.class.namespace
            && selects(&constraint.selector, &other.labels)
    };
    node.residents().iter().filter(counts).count() as i64
}

/// What selects the pods of the same Services and of the same owner.
fn default_selector(pod: &PodInfo, objects: &Objects) -> LabelSelector {
    let mut labels = Labels::new();
    for selector in objects.services.get(&*pod.key.namespace).into_iter().flat_map(|s| s.values()) {
        if selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)) {
            labels.extend(selector.clone());
        }
    }
    let mut selector = from_labels(&labels);
    if let Some(owner) = &pod.owner {
        let key = format!("{}/{}/{}", owner.kind, pod.key.namespace, owner.name);
        if let Some(own) = objects.workloads.get(key.as_str()).filter(|own| !own.nothing) {
            selector.requirements.extend(own.requirements.iter().cloned());
        }
    }
    selector
}

/// The hard constraints' counts, with each constraint's smallest sum.
#[derive(Clone, Debug)]
struct Hard {
    spread: Spread,
    smallest: Vec<i64>,
    selects_itself: Vec<bool>,
}

impl Hard {
    fn measure(&mut self) {
        let of = |(constraint, domains): (&SpreadConstraint, &Domains)| {
            let there = domains.sums.iter().filter(|(nodes, _)| *nodes > 0);
            let (count, smallest) =
                there.fold((0, i64::from(i32::MAX)), |(n, low), (_, pods)| (n + 1, low.min(*pods)));
            if count < i64::from(constraint.min_domains) { 0 } else { smallest }
        };
        self.smallest = self.spread.constraints.iter().zip(&self.spread.domains).map(of).collect();
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, snapshot: &Snapshot) -> bool {
        let constraints = self.constraints(pod, true, &snapshot.objects);
        let selected = |other: &PodInfo| {
            other.class.namespace == pod.class.namespace
                && constraints.iter().any(|c| selects(&c.selector, &other.labels))
        };
        let labelled =
            |node: &NodeInfo| constraints.iter().all(|c| node.labels.contains_key(&*c.topology_key));
        match event {
            ClusterEvent::PodPlaced { pod: other, .. } | ClusterEvent::PodGone { pod: other, .. } => {
                selected(other)
            }
            ClusterEvent::PodChanged { before, after, .. } => {
                before.class.namespace == pod.class.namespace
                    && constraints
                        .iter()
                        .any(|c| selects(&c.selector, &before.labels) != selects(&c.selector, &after.labels))
            }
            ClusterEvent::NodeAdded(node) | ClusterEvent::NodeGone(node) => labelled(node),
            ClusterEvent::NodeChanged { before, after } => {
                let moved = |c: &SpreadConstraint| {
                    before.labels.get(&*c.topology_key) != after.labels.get(&*c.topology_key)
                };
                labelled(before) != labelled(after)
                    || labelled(after) && (constraints.iter().any(moved) || before.taints != after.taints)
            }
            ClusterEvent::Object { before, after, .. } => {
                // A default selector may have changed.
                let kind = before.or(*after).map(Object::kind);
                pod.spread.is_empty() && matches!(kind, Some(Kind::Service | Kind::Workload))
            }
            ClusterEvent::PodWaits(_) => false,
        }
    }
}

impl Filter for PodTopologySpread {
    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot, before: Option<Box<dyn State>>) -> Prepared {
        if pod.spread.iter().all(|c| !c.hard)
            && (!pod.spread.is_empty() || self.defaults.iter().all(|c| !c.hard))
        {
            return Prepared::Skip;
        }
        let before = kept::<Hard>(before).map(|hard| Box::new(hard.spread) as Box<dyn State>);
        let spread = self.counted(pod, true, snapshot, before);
        if spread.constraints.is_empty() {
            return Prepared::Skip;
        }
        let selects_itself = spread.constraints.iter().map(|c| selects(&c.selector, &pod.labels)).collect();
        let mut hard = Hard { spread, smallest: Vec::new(), selects_itself };
        hard.measure();
        Prepared::Look(Box::new(hard))
    }

    fn filter(&self, known: &dyn State, _: &PodInfo, node: &NodeInfo, _: &Snapshot) -> Result<(), Rejection> {
        let hard: &Hard = state(known);
        for (at, constraint) in hard.spread.constraints.iter().enumerate() {
            let domain = hard.spread.domain(at, node);
            if domain.is_none() && !node.labels.contains_key(&*constraint.topology_key) {
                return Err(Rejection::lasting(NO_LABEL));
            }
            let pods = domain.map_or(0, |d| hard.spread.domains[at].sums[d as usize].1);
            let skew = pods + i64::from(hard.selects_itself[at]) - hard.smallest[at];
            if skew > i64::from(constraint.max_skew) {
                return Err(Rejection::resolvable(NO_MATCH));
            }
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        false
    }

    fn follow(&self, known: &mut dyn State, pod: &PodInfo, moved: &Moved<'_>, _: &Snapshot) {
        let hard: &mut Hard = state_mut(known);
        let Moved { pod: other, node, added } = *moved;
        if other.class.namespace != pod.class.namespace {
            return;
        }
        let labelled = |c: &SpreadConstraint| node.labels.contains_key(&*c.topology_key);
        if !hard.spread.constraints.iter().all(labelled) {
            return;
        }
        for at in 0..hard.spread.constraints.len() {
            let c = &hard.spread.constraints[at];
            let counts = selects(&c.selector, &other.labels)
                && (!c.honor_affinity || node_affinity::matches(pod, node))
                && (!c.honor_taints || !has_untolerated(pod, node));
            if counts && let Some(domain) = hard.spread.domain(at, node) {
                hard.spread.domains[at].sums[domain as usize].1 += if added { 1 } else { -1 };
            }
        }
        hard.measure();
    }
}

impl Score for PodTopologySpread {
    fn prepare_score(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        feasible: &[Slot],
        before: Option<Box<dyn State>>,
    ) -> Option<Box<dyn State>> {
        let mut spread = self.counted(pod, false, snapshot, before);
        if spread.constraints.is_empty() {
            return None;
        }
        spread.ignored.clear();
        let nodes = || feasible.iter().filter_map(|slot| snapshot.at(*slot));
        if spread.all_labels {
            let constraints = spread.constraints.clone();
            let unlabelled =
                |n: &&NodeInfo| constraints.iter().any(|c| !n.labels.contains_key(&*c.topology_key));
            spread.ignored.extend(nodes().filter(unlabelled).map(|node| node.slot));
        }
        let scored = feasible.len() - spread.ignored.len();
        let size = |(at, constraint): (usize, &SpreadConstraint)| {
            if &*constraint.topology_key == HOSTNAME {
                return scored;
            }
            let mut there = vec![false; spread.domains[at].sums.len()];
            let seen = nodes().filter(|node| !spread.ignored.contains(&node.slot));
            for domain in seen.filter_map(|node| spread.domain(at, node)) {
                there[domain as usize] = true;
            }
            there.into_iter().filter(|there| *there).count()
        };
        let sizes: Vec<usize> = spread.constraints.iter().enumerate().map(size).collect();
        spread.weights = sizes.into_iter().map(|size| ((size + 2) as f64).ln()).collect();
        Some(Box::new(spread))
    }

    /// How many pods there are already, each domain with the logarithm of their number; the fewer the better.
    fn score(&self, known: &dyn State, _: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        let spread: &Spread = state(known);
        if spread.ignored.contains(&node.slot) {
            return 0;
        }
        let Some(parts) = spread.tally.part(node.slot) else { return 0 };
        let mut score = 0.0;
        for (at, constraint) in spread.constraints.iter().enumerate() {
            if !node.labels.contains_key(&*constraint.topology_key) {
                continue;
            }
            let pods = if &*constraint.topology_key == HOSTNAME {
                parts[at].pods
            } else {
                spread.domains[at].sums[parts[at].domain as usize].1
            };
            score += pods as f64 * spread.weights[at] + f64::from(constraint.max_skew - 1);
        }
        score.round() as i64
    }

    fn normalize(&self, known: &dyn State, nodes: &[Slot], scores: &mut [i64]) {
        let spread: &Spread = state(known);
        let counts = |slot: &Slot| !spread.ignored.contains(slot);
        let scored =
            || nodes.iter().zip(scores.iter()).filter(|(slot, _)| counts(slot)).map(|(_, score)| *score);
        let (lowest, highest) = (scored().min().unwrap_or(i64::MAX), scored().max().unwrap_or(0));
        for (slot, score) in nodes.iter().zip(scores) {
            *score = match (counts(slot), highest) {
                (false, _) => 0,
                (true, 0) => MAX_SCORE,
                (true, highest) => MAX_SCORE * (highest + lowest - *score) / highest,
            };
        }
    }
}
