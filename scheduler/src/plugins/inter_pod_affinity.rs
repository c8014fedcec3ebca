//! InterPodAffinity: pods that want to be near other pods, or away from them.

use crate::framework::{
    ClusterEvent, Filter, MAX_SCORE, Moved, Plugin, Prepared, Rejection, Score, State, kept, state, state_mut,
};
use crate::objects::{Kind, Objects};
use crate::pod::{AffinityTerm, PodInfo, WeightedTerm};
use crate::selector::{Labels, selects};
use crate::snapshot::{NodeInfo, Slot, Snapshot};
use crate::tally::Tally;

const NO_AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// InterPodAffinityArgs.
pub struct InterPodAffinity {
    /// What a required affinity term of a pod that is there counts for.
    pub hard_pod_affinity_weight: i32,
    pub ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodAffinity {
    fn default() -> Self {
        InterPodAffinity { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

static NO_LABELS: Labels = Labels::new();

/// Whether a term selects a pod. `namespace` are the labels of the pod's namespace.
fn holds(term: &AffinityTerm, pod: &PodInfo, namespace: &Labels) -> bool {
    let there =
        term.namespaces.contains(&pod.class.namespace) || selects(&term.namespace_selector, namespace);
    there && selects(&term.selector, &pod.labels)
}

/// Whether all terms select a pod; no terms select none.
fn all_hold(terms: &[AffinityTerm], pod: &PodInfo, namespace: &Labels) -> bool {
    !terms.is_empty() && terms.iter().all(|term| holds(term, pod, namespace))
}

fn namespace_labels<'a>(pod: &PodInfo, objects: &'a Objects) -> &'a Labels {
    objects.namespaces.get(&*pod.key.namespace).unwrap_or(&NO_LABELS)
}

/// Sums by a label of nodes and its value. Terms name one or two labels, so these are looked through; values are asked
/// for of every node that is filtered, so their hash is a fast one.
#[derive(Clone, Debug, Default)]
struct Sums(Vec<(Box<str>, ByValue)>);

type ByValue = ahash::HashMap<Box<str>, i64>;

impl Sums {
    fn add(&mut self, key: &str, value: &str, amount: i64) {
        let Some(place) = self.0.iter().position(|(known, _)| **known == *key) else {
            self.0.push((key.into(), [(value.into(), amount)].into_iter().collect()));
            return;
        };
        let values = &mut self.0[place].1;
        match values.get_mut(value) {
            Some(sum) => {
                *sum += amount;
                if *sum == 0 {
                    values.remove(value);
                    if values.is_empty() {
                        self.0.swap_remove(place);
                    }
                }
            }
            None => {
                values.insert(value.into(), amount);
            }
        }
    }

    /// The sum under a label of a node.
    fn at(&self, key: &str, node: &NodeInfo) -> i64 {
        self.0.iter().find(|(known, _)| **known == *key).map_or(0, |sums| Self::of(sums, node))
    }

    /// The sums under all labels that a node has.
    fn all(&self, node: &NodeInfo) -> impl Iterator<Item = i64> {
        self.0.iter().map(move |sums| Self::of(sums, node))
    }

    fn of((key, values): &(Box<str>, ByValue), node: &NodeInfo) -> i64 {
        node.labels.get(&**key).and_then(|value| values.get(value.as_str())).copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Which sum something adds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Pods that are there and want the pod away.
    Existing,
    /// Pods that the pod wants to be near to.
    Near,
    /// Pods that the pod wants to be away from.
    Away,
}

/// What pods on nodes mean for the pod.
#[derive(Clone, Debug, Default)]
struct Counts {
    existing: Sums,
    near: Sums,
    away: Sums,
}

impl Counts {
    fn add(&mut self, (side, key, value, amount): &Entry, sign: i64) {
        let sums = match side {
            Side::Existing => &mut self.existing,
            Side::Near => &mut self.near,
            Side::Away => &mut self.away,
        };
        sums.add(key, value, sign * amount);
    }
}

type Entry = (Side, Box<str>, Box<str>, i64);

/// What one pod on a node means for `pod`.
fn entries(
    pod: &PodInfo,
    other: &PodInfo,
    node: &NodeInfo,
    objects: &Objects,
    mut add: impl FnMut(Side, &str, &str),
) {
    let mut note = |side, term: &AffinityTerm| {
        if let Some(value) = node.labels.get(&*term.topology_key) {
            add(side, &term.topology_key, value);
        }
    };
    if !other.anti_affinity.required.is_empty() {
        let own = namespace_labels(pod, objects);
        other
            .anti_affinity
            .required
            .iter()
            .filter(|t| holds(t, pod, own))
            .for_each(|t| note(Side::Existing, t));
    }
    let theirs = namespace_labels(other, objects);
    if all_hold(&pod.affinity.required, other, theirs) {
        pod.affinity.required.iter().for_each(|t| note(Side::Near, t));
    }
    pod.anti_affinity.required.iter().filter(|t| holds(t, other, theirs)).for_each(|t| note(Side::Away, t));
}

/// The counts of required terms.
#[derive(Clone, Debug, Default)]
struct Required {
    namespaces: u64,
    counts: Counts,
    tally: Tally<Vec<Entry>>,
    /// The pod is among those that it wants to be near to: it may be the first of them.
    near_itself: bool,
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn wakes(&self, pod: &PodInfo, event: &ClusterEvent<'_>, snapshot: &Snapshot) -> bool {
        let objects = &snapshot.objects;
        let (near, away) = (&pod.affinity.required, &pod.anti_affinity.required);
        let all = |terms: &[AffinityTerm], other: &PodInfo| {
            all_hold(terms, other, namespace_labels(other, objects))
        };
        let any = |terms: &[AffinityTerm], other: &PodInfo| {
            terms.iter().any(|t| holds(t, other, namespace_labels(other, objects)))
        };
        match event {
            ClusterEvent::PodPlaced { pod: other, .. } => all(near, other),
            ClusterEvent::PodGone { pod: other, .. } => {
                any(away, other) || any(&other.anti_affinity.required, pod)
            }
            ClusterEvent::PodChanged { before, after, .. } => {
                !all(near, before) && all(near, after) || any(away, before) && !any(away, after)
            }
            ClusterEvent::NodeAdded(node) => {
                near.iter().any(|t| node.labels.contains_key(&*t.topology_key)) || !away.is_empty()
            }
            ClusterEvent::NodeChanged { before, after } => {
                let of = |node: &NodeInfo, t: &AffinityTerm| node.labels.get(&*t.topology_key).cloned();
                let came = |t: &AffinityTerm| of(after, t).is_some() && of(before, t) != of(after, t);
                let went = |t: &AffinityTerm| of(before, t).is_some() && of(before, t) != of(after, t);
                near.iter().any(came) || away.iter().any(went)
            }
            ClusterEvent::Object { before, after, .. } => {
                before.or(*after).is_some_and(|o| o.kind() == Kind::Namespace)
                    && near.iter().chain(away).any(|t| !t.namespace_selector.nothing)
            }
            ClusterEvent::NodeGone(_) | ClusterEvent::PodWaits(_) => false,
        }
    }
}

impl Filter for InterPodAffinity {
    fn prepare(&self, pod: &PodInfo, snapshot: &Snapshot, before: Option<Box<dyn State>>) -> Prepared {
        let own = !pod.affinity.required.is_empty() || !pod.anti_affinity.required.is_empty();
        if !own && snapshot.nodes_with_anti_affinity().next().is_none() {
            return Prepared::Skip;
        }
        let namespaces = snapshot.objects.version(Kind::Namespace);
        let mut required =
            kept::<Required>(before).filter(|r| r.namespaces == namespaces).unwrap_or_default();
        required.namespaces = namespaces;
        let objects = &snapshot.objects;
        required.near_itself = all_hold(&pod.affinity.required, pod, namespace_labels(pod, objects));
        let part = |_: &mut Counts, node: &NodeInfo| {
            let mut found: Vec<Entry> = Vec::new();
            let mut look = |other: &PodInfo| {
                entries(pod, other, node, objects, |side, key, value| {
                    match found.iter_mut().find(|(s, k, ..)| *s == side && **k == *key) {
                        Some((.., count)) => *count += 1,
                        None => found.push((side, key.into(), value.into(), 1)),
                    }
                });
            };
            if own {
                node.residents().iter().for_each(|other| look(other));
            } else {
                node.with_affinity().for_each(|other| look(other));
            }
            (!found.is_empty()).then_some(found)
        };
        required.tally.follow(snapshot, &mut required.counts, part, |counts, entries, sign| {
            entries.iter().for_each(|entry| counts.add(entry, sign));
        });
        if !own && required.counts.existing.is_empty() {
            return Prepared::Skip;
        }
        Prepared::Look(Box::new(required))
    }

    fn filter(
        &self,
        known: &dyn State,
        pod: &PodInfo,
        node: &NodeInfo,
        _: &Snapshot,
    ) -> Result<(), Rejection> {
        let required: &Required = state(known);
        let counts = &required.counts;
        let terms = &pod.affinity.required;
        if terms.iter().any(|t| !node.labels.contains_key(&*t.topology_key)) {
            return Err(Rejection::lasting(NO_AFFINITY));
        }
        let near = terms.iter().all(|t| counts.near.at(&t.topology_key, node) > 0);
        if !(near || counts.near.is_empty() && required.near_itself) {
            return Err(Rejection::lasting(NO_AFFINITY));
        }
        if pod.anti_affinity.required.iter().any(|t| counts.away.at(&t.topology_key, node) > 0) {
            return Err(Rejection::resolvable(ANTI_AFFINITY));
        }
        if counts.existing.all(node).any(|sum| sum > 0) {
            return Err(Rejection::resolvable(EXISTING));
        }
        Ok(())
    }

    fn is_local(&self) -> bool {
        false
    }

    fn follow(&self, known: &mut dyn State, pod: &PodInfo, moved: &Moved<'_>, snapshot: &Snapshot) {
        let counts = &mut state_mut::<Required>(known).counts;
        let sign = if moved.added { 1 } else { -1 };
        entries(pod, moved.pod, moved.node, &snapshot.objects, |side, key, value| {
            counts.add(&(side, key.into(), value.into(), 1), sign);
        });
    }
}

/// A topology key and value, and what a term adds to the score of nodes there.
type Weight = (Box<str>, Box<str>, i64);

/// The sums of preferred terms.
#[derive(Clone, Debug, Default)]
struct Preferred {
    namespaces: u64,
    sums: Sums,
    tally: Tally<Vec<Weight>>,
}

impl InterPodAffinity {
    /// What one pod on a node adds to the scores of nodes like it.
    fn weigh(
        &self,
        pod: &PodInfo,
        other: &PodInfo,
        objects: &Objects,
        mut add: impl FnMut(&AffinityTerm, i64),
    ) {
        let mut all = |terms: &[WeightedTerm], of: &PodInfo, sign: i64| {
            if terms.is_empty() {
                return;
            }
            let labels = namespace_labels(of, objects);
            for weighted in terms.iter().filter(|w| holds(&w.term, of, labels)) {
                add(&weighted.term, sign * i64::from(weighted.weight));
            }
        };
        all(&pod.affinity.preferred, other, 1);
        all(&pod.anti_affinity.preferred, other, -1);
        all(&other.affinity.preferred, pod, 1);
        all(&other.anti_affinity.preferred, pod, -1);
        if self.hard_pod_affinity_weight > 0 && !other.affinity.required.is_empty() {
            let labels = namespace_labels(pod, objects);
            for term in other.affinity.required.iter().filter(|t| holds(t, pod, labels)) {
                add(term, i64::from(self.hard_pod_affinity_weight));
            }
        }
    }
}

impl Score for InterPodAffinity {
    fn prepare_score(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        _: &[Slot],
        before: Option<Box<dyn State>>,
    ) -> Option<Box<dyn State>> {
        let own = !pod.affinity.preferred.is_empty() || !pod.anti_affinity.preferred.is_empty();
        if !own
            && (self.ignore_preferred_terms_of_existing_pods
                || snapshot.nodes_with_affinity().next().is_none())
        {
            return None;
        }
        let objects = &snapshot.objects;
        let namespaces = objects.version(Kind::Namespace);
        let mut preferred =
            kept::<Preferred>(before).filter(|p| p.namespaces == namespaces).unwrap_or_default();
        preferred.namespaces = namespaces;
        let part = |_: &mut Sums, node: &NodeInfo| {
            let mut found: Vec<(Box<str>, Box<str>, i64)> = Vec::new();
            let mut look = |other: &PodInfo| {
                self.weigh(pod, other, objects, |term, weight| {
                    let Some(value) = node.labels.get(&*term.topology_key) else { return };
                    match found.iter_mut().find(|(key, ..)| *key == term.topology_key) {
                        Some((.., sum)) => *sum += weight,
                        None => found.push((term.topology_key.clone(), value.as_str().into(), weight)),
                    }
                });
            };
            if own {
                node.residents().iter().for_each(|other| look(other));
            } else {
                node.with_affinity().for_each(|other| look(other));
            }
            (!found.is_empty()).then_some(found)
        };
        preferred.tally.follow(snapshot, &mut preferred.sums, part, |sums, entries, sign| {
            entries.iter().for_each(|(key, value, weight)| sums.add(key, value, sign * weight));
        });
        Some(Box::new(preferred))
    }

    fn score(&self, known: &dyn State, _: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        let preferred: &Preferred = state(known);
        preferred.sums.all(node).sum()
    }

    fn normalize(&self, known: &dyn State, _: &[Slot], scores: &mut [i64]) {
        if state::<Preferred>(known).sums.is_empty() {
            return;
        }
        let (Some(lowest), Some(highest)) = (scores.iter().min().copied(), scores.iter().max().copied())
        else {
            return;
        };
        let span = (highest - lowest) as f64;
        for score in scores {
            *score =
                if span > 0.0 { (MAX_SCORE as f64 * ((*score - lowest) as f64 / span)) as i64 } else { 0 };
        }
    }
}
