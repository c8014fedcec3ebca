//! One scheduling cycle: filter, score, choose. Pure.

use std::collections::BTreeMap;

use rand::Rng;

use crate::framework::{Framework, Reason};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// Up to this many nodes all are looked at.
const MIN_FEASIBLE_NODES: usize = 100;
/// Never fewer than this share of a large cluster, in per cent.
const MIN_FEASIBLE_PERCENT: usize = 5;

/// What a cycle decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The node to bind to.
    Node(Box<str>),
    /// No node fits.
    Unschedulable(FitError),
}

/// Why no node fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FitError {
    /// Nodes in the cluster.
    pub nodes: usize,
    /// How many nodes each reason stands against.
    pub reasons: BTreeMap<Reason, usize>,
    /// The plugins that rejected a node. Only events that they wait for can help.
    pub plugins: Vec<&'static str>,
}

impl std::fmt::Display for FitError {
    /// The text of the condition and of the event, as kube-scheduler writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available", self.nodes)?;
        let mut lines: Vec<String> =
            self.reasons.iter().map(|(reason, count)| format!("{count} {}", reason.0)).collect();
        lines.sort();
        if !lines.is_empty() {
            write!(f, ": {}.", lines.join(", "))?;
        }
        Ok(())
    }
}

/// Chooses a node for a pod. `start` is where to begin among the nodes, and is moved on, so that in large clusters,
/// where not every node is looked at, all get their turn. Equal scores are decided by `random`.
pub fn schedule(
    framework: &Framework,
    pod: &PodInfo,
    snapshot: &Snapshot,
    start: &mut usize,
    random: &mut impl Rng,
) -> Decision {
    let nodes = snapshot.nodes();
    let mut error = FitError { nodes: nodes.len(), ..FitError::default() };
    if nodes.is_empty() {
        return Decision::Unschedulable(error);
    }
    let feasible = feasible(framework, pod, snapshot, start, &mut error);
    match feasible.as_slice() {
        [] => Decision::Unschedulable(error),
        [only] => Decision::Node(only.name.clone()),
        _ => Decision::Node(best(framework, pod, &feasible, random).name.clone()),
    }
}

/// How many feasible nodes are enough: all of a small cluster, a share between 50 and 5 per cent of a large one.
fn enough(nodes: usize) -> usize {
    if nodes <= MIN_FEASIBLE_NODES {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(MIN_FEASIBLE_PERCENT);
    (nodes * percent / 100).max(MIN_FEASIBLE_NODES)
}

fn feasible<'a>(
    framework: &Framework,
    pod: &PodInfo,
    snapshot: &'a Snapshot,
    start: &mut usize,
    error: &mut FitError,
) -> Vec<&'a NodeInfo> {
    let nodes = snapshot.nodes();
    let filters: Vec<_> = framework.filters.iter().filter(|filter| filter.applies(pod)).collect();
    let wanted = enough(nodes.len());
    let first = *start % nodes.len();
    let mut found = Vec::with_capacity(wanted.min(nodes.len()));
    let mut looked = 0;
    let (before, after) = nodes.split_at(first);
    for node in after.iter().chain(before) {
        looked += 1;
        let seen = snapshot.with_nominated(node, pod);
        // The first plugin that says no decides, as in kube-scheduler.
        let rejected =
            filters.iter().find_map(|filter| filter.filter(pod, &seen).err().map(|r| (filter.name(), r)));
        let Some((plugin, reasons)) = rejected else {
            found.push(&**node);
            if found.len() >= wanted {
                break;
            }
            continue;
        };
        for reason in reasons {
            *error.reasons.entry(reason).or_default() += 1;
        }
        if !error.plugins.contains(&plugin) {
            error.plugins.push(plugin);
        }
    }
    *start = (first + looked) % nodes.len();
    found
}

fn best<'a>(
    framework: &Framework,
    pod: &PodInfo,
    nodes: &[&'a NodeInfo],
    random: &mut impl Rng,
) -> &'a NodeInfo {
    let mut totals = vec![0i64; nodes.len()];
    let mut scores = Vec::with_capacity(nodes.len());
    for (plugin, weight) in framework.scores.iter().filter(|(plugin, _)| plugin.applies(pod)) {
        scores.clear();
        scores.extend(nodes.iter().map(|node| plugin.score(pod, node)));
        plugin.normalize(&mut scores);
        for (total, score) in totals.iter_mut().zip(&scores) {
            *total += score * weight;
        }
    }
    // Every one of the best with the same chance, in one pass.
    let mut chosen = 0;
    let mut ties = 1u32;
    for at in 1..nodes.len() {
        if totals[at] > totals[chosen] {
            chosen = at;
            ties = 1;
        } else if totals[at] == totals[chosen] {
            ties += 1;
            if random.random_range(0..ties) == 0 {
                chosen = at;
            }
        }
    }
    nodes[chosen]
}
