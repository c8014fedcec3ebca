//! One scheduling cycle: filter, score, choose. Pure.
//!
//! [`Engine`] keeps what was found out for the pods of a class; [`Attempt`] is one pod's cycle.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::Rng;

use crate::framework::{DEVICES, Framework, Moved, PostFilter, Prepared, Reason, Rejection, Remedy, State};
use crate::pod::PodInfo;
use crate::preempt::DryRuns;
use crate::scores::Scores;
use crate::snapshot::{NodeInfo, Slot, Snapshot};
use crate::verdicts::Verdicts;

/// Up to this many nodes all are looked at.
const MIN_FEASIBLE_NODES: usize = 100;
/// Never fewer than this share of a large cluster, in per cent.
const MIN_FEASIBLE_PERCENT: usize = 5;
/// For so many classes what was found out is kept.
const MAX_CLASSES: usize = 256;

/// Why no node fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FitError {
    /// Nodes in the cluster.
    pub nodes: usize,
    /// Why the pod fits nowhere, found before any node was looked at.
    pub at_once: Option<String>,
    /// How many nodes each reason stands against.
    pub reasons: BTreeMap<Reason, usize>,
    /// The plugins that rejected a node. Only events that they wait for can help.
    pub plugins: Vec<&'static str>,
    /// What preemption has to say.
    pub preemption: String,
}

impl FitError {
    /// A node that was chosen and then rejected by a later plugin.
    pub fn of_chosen(rejection: &Rejection) -> Self {
        let reasons = rejection.reasons.iter().map(|r| (r.clone(), 1)).collect();
        FitError { nodes: 1, reasons, plugins: vec![rejection.plugin], ..FitError::default() }
    }
}

impl std::fmt::Display for FitError {
    /// The text of the condition and of the event, as kube-scheduler writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        if let Some(text) = &self.at_once {
            write!(f, " {text}.")?;
        } else if !self.reasons.is_empty() {
            let mut lines: Vec<String> =
                self.reasons.iter().map(|(reason, count)| format!("{count} {}", reason.0)).collect();
            lines.sort();
            write!(f, " {}.", lines.join(", "))?;
        }
        if !self.preemption.is_empty() {
            write!(f, " {}", self.preemption)?;
        }
        Ok(())
    }
}

/// What was found out for the pods of a class.
#[derive(Default)]
pub(crate) struct Kept {
    filters: HashMap<usize, Box<dyn State>>,
    scores: HashMap<usize, Box<dyn State>>,
    /// Of the scores those that are local.
    scored: HashMap<usize, Scores>,
    /// What the filters said that come before the first one that is not local.
    local: Verdicts,
    pub(crate) dry_runs: DryRuns,
    /// When it was used last.
    used: u64,
    /// Which classes stood for extended resources then: nodes are judged by it.
    names: u64,
}

/// What lasts from one cycle to the next.
#[derive(Default)]
pub struct Engine {
    /// Where the next search begins.
    start: usize,
    kept: HashMap<u64, Kept>,
    cycles: u64,
}

impl Engine {
    /// Finds the nodes that a pod fits on, up to as many as are to be scored.
    pub fn attempt<'a>(
        &mut self,
        framework: &'a Framework,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Attempt<'a> {
        self.cycles += 1;
        let names = snapshot.objects.devices.names_version();
        let kept = self.kept.remove(&pod.class.id).filter(|kept| kept.names == names);
        let kept = kept.unwrap_or_else(|| Kept { names, ..Kept::default() });
        let mut attempt = Attempt {
            framework,
            pod,
            snapshot,
            looking: Vec::new(),
            only: None,
            at_once: None,
            local_filters: 0,
            rest: Verdicts::default(),
            feasible: Vec::new(),
            kept,
        };
        if !snapshot.is_empty() {
            attempt.prepare();
            attempt.search(&mut self.start);
        }
        attempt
    }

    /// Takes back what the next pod of the class can use.
    pub fn keep(&mut self, attempt: Attempt<'_>) {
        let Attempt { pod, looking, mut kept, .. } = attempt;
        kept.filters.extend(looking);
        kept.used = self.cycles;
        if self.kept.len() >= MAX_CLASSES {
            let oldest = self.cycles.saturating_sub(MAX_CLASSES as u64 / 2);
            self.kept.retain(|_, kept| kept.used > oldest);
        }
        self.kept.insert(pod.class.id, kept);
    }
}

/// A node and the total of its scores.
pub type Scored = (Slot, i64);

/// One pod's cycle.
pub struct Attempt<'a> {
    pub framework: &'a Framework,
    pub pod: &'a PodInfo,
    pub snapshot: &'a Snapshot,
    /// The filters that have something to say, by their place, with what they know.
    looking: Vec<(usize, Box<dyn State>)>,
    /// The nodes that come into question at all, and the plugins that say so.
    only: Option<(Vec<Slot>, BTreeSet<&'static str>)>,
    at_once: Option<Rejection>,
    /// So many of `looking`, the first ones, are local.
    local_filters: usize,
    /// What the other filters said, and extenders; holds for this cycle alone.
    rest: Verdicts,
    feasible: Vec<Slot>,
    pub(crate) kept: Kept,
}

impl<'a> Attempt<'a> {
    fn prepare(&mut self) {
        let mut only: Option<BTreeSet<Box<str>>> = None;
        let mut sayers = BTreeSet::new();
        for (at, filter) in self.framework.filters.iter().enumerate() {
            let kept = self.kept.filters.remove(&at);
            match filter.prepare(self.pod, self.snapshot, kept) {
                Prepared::Skip => {}
                Prepared::Look(state) => self.looking.push((at, state)),
                Prepared::Only(state, names) => {
                    self.looking.push((at, state));
                    sayers.insert(filter.name());
                    only = Some(match only {
                        None => names,
                        Some(others) => others.intersection(&names).cloned().collect(),
                    });
                }
                Prepared::Reject(rejection) => {
                    self.at_once = Some(Rejection { plugin: filter.name(), ..rejection });
                    return;
                }
            }
        }
        if let Some(names) = only {
            if names.is_empty() {
                let names: Vec<&str> = sayers.iter().copied().collect();
                let text = match names.as_slice() {
                    [one] => format!("node(s) didn't satisfy plugin {one}"),
                    many => format!("node(s) didn't satisfy plugin(s) [{}] simultaneously", many.join(" ")),
                };
                self.at_once = Some(Rejection { plugin: names[0], ..Rejection::lasting(text) });
                return;
            }
            let slots = names.iter().filter_map(|name| Some(self.snapshot.node(name)?.slot)).collect();
            self.only = Some((slots, sayers));
        }
    }

    /// Whether what is said about a node holds until the node changes.
    pub(crate) fn is_local(&self) -> bool {
        self.local_filters == self.looking.len()
    }

    fn search(&mut self, start: &mut usize) {
        if self.at_once.is_some() {
            return;
        }
        let local = |(at, _): &(usize, _)| self.framework.filters[*at].is_local();
        self.local_filters = self.looking.iter().take_while(|l| local(l)).count();
        self.kept.local.refresh(self.snapshot);
        // A node on which room was made for the pod goes before all others.
        if let Some(node) = self.pod.nominated_node.as_deref().and_then(|name| self.snapshot.node(name))
            && self.look(node)
        {
            self.feasible.push(node.slot);
            return;
        }
        let own = self.only.take();
        let order = own.as_ref().map_or(self.snapshot.order(), |(slots, _)| slots);
        let all_rejected = self.kept.local.rejected() == self.snapshot.len();
        if order.is_empty() || all_rejected && (self.is_local() || !self.snapshot.has_nominated()) {
            self.only = own;
            return;
        }
        let wanted = enough(order.len(), self.framework);
        let first = *start % order.len();
        let mut looked = 0;
        for slot in order[first..].iter().chain(&order[..first]) {
            looked += 1;
            if self.recalls(*slot) || self.snapshot.at(*slot).is_some_and(|node| self.look(node)) {
                self.feasible.push(*slot);
                if self.feasible.len() >= wanted {
                    break;
                }
            }
        }
        *start = (first + looked) % self.snapshot.len();
        self.only = own;
    }

    /// Whether it is known that the pod fits on a node and nothing else has to be asked: what mostly is so.
    fn recalls(&self, slot: Slot) -> bool {
        self.is_local() && !self.snapshot.awaits(slot) && self.kept.local.get(slot) == Some(true)
    }

    /// Whether the pod fits on a node, from memory if possible.
    fn look(&mut self, node: &NodeInfo) -> bool {
        let awaits = self.snapshot.awaits(node.slot);
        let coming = awaits && self.snapshot.nominated(&node.name, self.pod).next().is_some();
        let own = awaits && self.snapshot.is_nominated(&node.name, &self.pod.key.uid);
        if coming && (own || !self.is_local()) {
            self.kept.local.forget(node.slot);
            return self.note(node.slot, self.fits(node));
        }
        let (local, rest) = self.looking.split_at(self.local_filters);
        let fits = match self.kept.local.get(node.slot) {
            Some(fits) => fits,
            None => {
                // A node changes when pods are nominated for it, and these are the same for all pods of the class.
                let result = if coming { self.fits(node) } else { self.filter(local, node) };
                let fits = result.is_ok();
                self.kept.local.note(node.slot, result);
                fits
            }
        };
        if !fits || rest.is_empty() {
            return fits;
        }
        let result = self.filter(rest, node);
        result.is_ok() || self.note(node.slot, result)
    }

    /// Notes what holds for this cycle alone.
    fn note(&mut self, slot: Slot, result: Result<(), Rejection>) -> bool {
        let fits = result.is_ok();
        if !fits {
            self.rest.size(self.snapshot);
            self.rest.note(slot, result);
        }
        fits
    }

    /// Whether the pod fits on a node as it is, and with the pods that are to come there.
    fn fits(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let mut dry = DryRun::new(self, node);
        for other in self.snapshot.nominated(&node.name, self.pod) {
            dry.add(self, other);
        }
        self.filter(&dry.states, &dry.node)?;
        self.filter(&self.looking, node)
    }

    fn filter(&self, states: &[(usize, Box<dyn State>)], node: &NodeInfo) -> Result<(), Rejection> {
        for (at, state) in states {
            let filter = &self.framework.filters[*at];
            if let Err(rejection) = filter.filter(&**state, self.pod, node, self.snapshot) {
                return Err(Rejection { plugin: filter.name(), ..rejection });
            }
        }
        Ok(())
    }

    pub(crate) fn states(&self) -> Vec<(usize, Box<dyn State>)> {
        self.looking.iter().map(|(at, state)| (*at, (**state).copy())).collect()
    }

    /// The nodes that fit, as many as are to be scored.
    pub fn feasible(&self) -> &[Slot] {
        &self.feasible
    }

    /// Leaves of the nodes that fit those that an extender lets pass.
    pub fn retain(&mut self, keep: impl Fn(Slot) -> Result<(), Rejection>) {
        for slot in std::mem::take(&mut self.feasible) {
            if self.note(slot, keep(slot)) {
                self.feasible.push(slot);
            }
        }
    }

    /// Why a node does not fit. Of nodes that were not looked at nothing is known.
    pub fn rejection(&self, slot: Slot) -> Option<&Rejection> {
        self.rest.rejection(slot).or_else(|| self.kept.local.rejection(slot))
    }

    /// The rejections, with the number of nodes each stands against.
    pub(crate) fn rejections(&self) -> impl Iterator<Item = (&Rejection, usize)> {
        self.kept.local.counts().chain(self.rest.counts())
    }

    /// The scores of the nodes that fit: those of each plugin, weighted, in the order of [`Attempt::feasible`].
    pub fn plugin_scores(&mut self) -> Vec<(&'static str, Vec<i64>)> {
        let mut found = Vec::new();
        for (at, (plugin, weight)) in self.framework.scores.iter().enumerate() {
            let kept = self.kept.scores.remove(&at);
            let Some(state) = plugin.prepare_score(self.pod, self.snapshot, &self.feasible, kept) else {
                continue;
            };
            let score = |slot: Slot| {
                let node = self.snapshot.at(slot);
                node.map_or(0, |node| plugin.score(&*state, self.pod, node, self.snapshot))
            };
            let nodes = self.feasible.iter().copied();
            let mut scores: Vec<i64> = if plugin.is_local() {
                let scored = self.kept.scored.entry(at).or_default();
                scored.refresh(self.snapshot);
                nodes.map(|slot| scored.of(slot, || score(slot))).collect()
            } else {
                nodes.map(score).collect()
            };
            plugin.normalize(&*state, &self.feasible, &mut scores);
            for score in &mut scores {
                *score *= weight;
            }
            self.kept.scores.insert(at, state);
            found.push((plugin.name(), scores));
        }
        found
    }

    /// The best of the nodes that fit; of equals any, by `random`. `further` are scores that extenders gave.
    pub fn choose(&mut self, further: &HashMap<Slot, i64>, random: &mut impl Rng) -> Option<Slot> {
        if self.feasible.len() <= 1 {
            return self.feasible.first().copied();
        }
        let mut totals: Vec<i64> =
            self.feasible.iter().map(|slot| further.get(slot).copied().unwrap_or(0)).collect();
        for (_, scores) in self.plugin_scores() {
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += score;
            }
        }
        // Every one of the best with the same chance, in one pass.
        let (mut chosen, mut ties) = (0, 1u32);
        for at in 1..totals.len() {
            if totals[at] > totals[chosen] {
                (chosen, ties) = (at, 1);
            } else if totals[at] == totals[chosen] {
                ties += 1;
                if random.random_range(0..ties) == 0 {
                    chosen = at;
                }
            }
        }
        Some(self.feasible[chosen])
    }

    /// Why no node fits.
    pub fn error(&self) -> FitError {
        let mut error = FitError { nodes: self.snapshot.len(), ..FitError::default() };
        if let Some(rejection) = &self.at_once {
            error.at_once = Some(rejection.message());
            error.plugins.push(rejection.plugin);
            if self.framework.has_devices() && rejection.plugin != DEVICES {
                // The plugin for devices is asked after all, and has not seen the pod: all that it says is this.
                error.preemption = "not found".into();
            }
            return error;
        }
        for (rejection, count) in self.rejections() {
            for reason in &rejection.reasons {
                *error.reasons.entry(reason.clone()).or_default() += count;
            }
            if !error.plugins.contains(&rejection.plugin) {
                error.plugins.push(rejection.plugin);
            }
        }
        if let Some((_, sayers)) = &self.only {
            let names: Vec<&str> = sayers.iter().copied().collect();
            let new: Vec<&'static str> =
                sayers.iter().copied().filter(|name| !error.plugins.contains(name)).collect();
            error.plugins.extend(new);
            let absent = error.nodes - self.kept.local.rejected() - self.rest.rejected();
            if absent > 0 {
                let text = format!("node(s) didn't satisfy plugin(s) [{}]", names.join(" "));
                error.reasons.insert(Reason::new(text), absent);
            }
        }
        // Without any node, only a new one helps, and that every plugin waits for.
        if error.plugins.is_empty() {
            error.plugins = self.framework.filters.iter().map(|plugin| plugin.name()).collect();
        }
        error
    }

    /// Whether anything is done for a pod that fits nowhere.
    fn is_helped(&self) -> bool {
        let seen = self.at_once.as_ref().is_none_or(|r| r.plugin == DEVICES);
        !self.snapshot.is_empty() && (seen || !self.framework.has_devices())
    }

    /// How preemption is to be tried, if it is.
    pub fn preemption(&self) -> Option<crate::preempt::Args> {
        self.framework.preemption.filter(|_| self.is_helped())
    }

    /// What plugins do for a pod that fits nowhere.
    pub fn remedies(&self) -> Vec<Remedy> {
        if !self.is_helped() {
            return Vec::new();
        }
        let remedy = |plugin: &std::sync::Arc<dyn PostFilter>| {
            let by = |rejection: &Rejection| rejection.plugin == plugin.name();
            let mut rejected = Vec::new();
            if self.rejections().any(|(rejection, _)| by(rejection)) {
                let slots = self.snapshot.order().iter().copied();
                let with = |slot| Some((slot, self.rejection(slot).filter(|r| by(r))?));
                rejected.extend(slots.filter_map(with));
            }
            plugin.remedy(self.pod, &rejected, self.snapshot)
        };
        self.framework.post_filters.iter().map(remedy).collect()
    }

    /// A plugin that could not do its work: then nothing is known of the pod.
    pub fn failure(&self) -> Option<String> {
        let found = self.rest.counts().find(|(rejection, _)| rejection.failed);
        found.map(|(r, _)| format!("running \"{}\" filter plugin: {}", r.plugin, r.message()))
    }

    /// The nodes on which the departure of other pods could help.
    pub fn resolvable(&self) -> impl Iterator<Item = Slot> + '_ {
        self.snapshot
            .order()
            .iter()
            .copied()
            .filter(|slot| self.rejection(*slot).is_some_and(|r| r.resolvable))
    }
}

/// A node as it would be.
pub(crate) struct DryRun {
    pub node: NodeInfo,
    pub states: Vec<(usize, Box<dyn State>)>,
}

impl DryRun {
    pub fn new(attempt: &Attempt<'_>, node: &NodeInfo) -> Self {
        DryRun { node: node.clone(), states: attempt.states() }
    }

    pub fn add(&mut self, attempt: &Attempt<'_>, other: &std::sync::Arc<PodInfo>) {
        self.node.add_pod(other);
        self.follow(attempt, other, true);
    }

    pub fn remove(&mut self, attempt: &Attempt<'_>, other: &PodInfo) {
        self.node.remove_pod(other);
        self.follow(attempt, other, false);
    }

    fn follow(&mut self, attempt: &Attempt<'_>, other: &PodInfo, added: bool) {
        for (at, state) in &mut self.states {
            let moved = Moved { pod: other, node: &self.node, added };
            attempt.framework.filters[*at].follow(&mut **state, attempt.pod, &moved, attempt.snapshot);
        }
    }

    /// Whether the pod fits here, also with the pods that are to come.
    pub fn fits(&mut self, attempt: &Attempt<'_>) -> Result<(), Rejection> {
        let name = self.node.name.clone();
        let coming: Vec<_> = attempt.snapshot.nominated(&name, attempt.pod).cloned().collect();
        if !coming.is_empty() {
            let mut with = DryRun {
                node: self.node.clone(),
                states: self.states.iter().map(|(at, state)| (*at, (**state).copy())).collect(),
            };
            for other in &coming {
                with.add(attempt, other);
            }
            attempt.filter(&with.states, &with.node)?;
        }
        attempt.filter(&self.states, &self.node)
    }
}

/// What was done for a pod that fits nowhere, in one line; `preemption` is what preemption had to say.
pub fn told(remedies: &[Remedy], preemption: &str) -> String {
    let texts = remedies.iter().map(|remedy| remedy.text.to_owned());
    texts.chain([format!("preemption: {preemption}")]).collect::<Vec<_>>().join(", ")
}

/// How many feasible nodes are enough: all of a small cluster, a share between 50 and 5 per cent of a large one.
fn enough(nodes: usize, framework: &Framework) -> usize {
    if nodes < MIN_FEASIBLE_NODES {
        return nodes;
    }
    if framework.scores.is_empty() {
        return 1;
    }
    let percent = match framework.percentage_of_nodes_to_score {
        0 => 50usize.saturating_sub(nodes / 125).max(MIN_FEASIBLE_PERCENT),
        percent => percent.min(100),
    };
    (nodes * percent / 100).max(MIN_FEASIBLE_NODES)
}
