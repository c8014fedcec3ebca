//! Preemption: which pods of lower priority must go so that a pod fits. Pure.
//!
//! The rules are kube-scheduler's (DefaultPreemption): on each node on which it can help, all pods of lower priority are
//! taken away; if the pod fits then, as many as possible are put back, those first whose going would violate a
//! PodDisruptionBudget, and of each kind the most important first; what stays away are the victims. The node is chosen
//! whose victims matter least.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use rand::Rng;

use crate::cycle::{Attempt, DryRun, FitError};
use crate::framework::{Reason, Rejection};
use crate::objects::{Kind, Objects};
use crate::pod::PodInfo;
use crate::selector::selects;
use crate::snapshot::{NodeInfo, Slot};

const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// DefaultPreemptionArgs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Args {
    /// So many candidates are compared, if there are so many.
    pub min_candidates: usize,
    /// Or this share of the nodes, in per cent.
    pub candidates_percent: usize,
}

impl Default for Args {
    fn default() -> Self {
        Args { min_candidates: 100, candidates_percent: 10 }
    }
}

/// Which pods are to leave which node.
#[derive(Clone, Debug)]
pub struct Preemption {
    /// Where there will be room.
    pub node: Arc<str>,
    /// Who must go, the most important first. Never empty.
    pub victims: Vec<Arc<PodInfo>>,
}

/// A node that could be made room on.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub node: Arc<str>,
    /// Who would have to go, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them against a PodDisruptionBudget.
    pub violations: usize,
}

/// What a search for candidates came to.
#[derive(Debug)]
pub struct Search {
    /// The best one, or all that were compared.
    pub candidates: Vec<Candidate>,
    /// Why the other nodes are none, and on how many nodes that rests.
    reasons: BTreeMap<Reason, usize>,
    looked: usize,
    nodes: usize,
}

/// What preemption comes to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// There will be room.
    Room(Preemption),
    /// Room is being made already, or the pod may not have any made.
    NotEligible(&'static str),
    /// It does not help; room that was kept for the pod is not needed any more.
    NoUse(String),
}

/// Who would have to leave a node, and how many of them against a budget; or why that does not help.
type Found = Result<(Vec<Arc<PodInfo>>, usize), Rejection>;

/// What dry runs said, with the change of the node that they saw.
#[derive(Default)]
pub(crate) struct DryRuns {
    by_slot: HashMap<Slot, (u64, Found)>,
    budgets: u64,
}

/// Finds room for a pod that fits nowhere.
pub fn preempt(attempt: &mut Attempt<'_>, args: Args, random: &mut impl Rng) -> Outcome {
    match search(attempt, args, false, random) {
        Ok(found) => found.outcome(),
        Err(text) => Outcome::NotEligible(text),
    }
}

impl Search {
    /// The candidate whose victims matter least, if there is one.
    pub fn outcome(mut self) -> Outcome {
        let dearness = |c: &Candidate| dearness(&c.victims, c.violations);
        if let Some(Candidate { node, victims, .. }) = self.candidates.into_iter().min_by_key(dearness) {
            return Outcome::Room(Preemption { node, victims });
        }
        if self.looked < self.nodes {
            *self.reasons.entry(Reason::new(NOT_HELPFUL)).or_default() += self.nodes - self.looked;
        }
        let (nodes, reasons) = (self.nodes, self.reasons);
        Outcome::NoUse(FitError { nodes, reasons, ..FitError::default() }.to_string())
    }
}

/// Finds the best node to make room on, or `all` that were compared.
///
/// # Errors
/// Why the pod may not have room made.
pub fn search(
    attempt: &mut Attempt<'_>,
    args: Args,
    all: bool,
    random: &mut impl Rng,
) -> Result<Search, &'static str> {
    let (pod, snapshot) = (attempt.pod, attempt.snapshot);
    if pod.preempts_never {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    if still_waiting(attempt) {
        return Err("not eligible due to a terminating pod on the nominated node.");
    }
    let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
    let mut best: Option<Dearness> = None;
    let mut candidates: Vec<Candidate> = Vec::new();
    if snapshot.has_lower_priority(pod.priority) {
        let potential: Vec<Slot> = attempt.resolvable().collect();
        let wanted = (potential.len() * args.candidates_percent / 100).max(args.min_candidates);
        let budgets = snapshot.objects.version(Kind::PodDisruptionBudget);
        if !attempt.is_local() || attempt.kept.dry_runs.budgets != budgets {
            attempt.kept.dry_runs = DryRuns { by_slot: HashMap::new(), budgets };
        }
        let offset = if potential.is_empty() { 0 } else { random.random_range(0..potential.len()) };
        let (mut keeping, mut violating) = (0, 0);
        for slot in potential[offset..].iter().chain(&potential[..offset]) {
            let Some(node) = snapshot.at(*slot) else { continue };
            let known = attempt.kept.dry_runs.by_slot.remove(slot).filter(|(seen, _)| *seen == node.changed);
            let found = known.map_or_else(|| victims(attempt, node), |(_, found)| found);
            match &found {
                Err(rejection) => {
                    for reason in &rejection.reasons {
                        *reasons.entry(reason.clone()).or_default() += 1;
                    }
                }
                Ok((victims, violations)) => {
                    let dearness = dearness(victims, *violations);
                    let better = best.as_ref().is_none_or(|least| dearness < *least);
                    if better || all {
                        if !all {
                            candidates.clear();
                        }
                        let (victims, violations) = (victims.clone(), *violations);
                        candidates.push(Candidate { node: node.name.clone(), victims, violations });
                    }
                    if better {
                        best = Some(dearness);
                    }
                    if *violations == 0 { keeping += 1 } else { violating += 1 }
                }
            }
            attempt.kept.dry_runs.by_slot.insert(*slot, (node.changed, found));
            if keeping > 0 && keeping + violating >= wanted {
                break;
            }
        }
    } else {
        let candidates: usize =
            attempt.rejections().filter(|(r, _)| r.resolvable).map(|(_, count)| count).sum();
        if candidates > 0 {
            reasons.insert(Reason::new(NO_VICTIMS), candidates);
        }
    }
    let looked: usize = if reasons.is_empty() {
        0
    } else if snapshot.has_lower_priority(pod.priority) {
        attempt.resolvable().count()
    } else {
        reasons.values().sum()
    };
    Ok(Search { candidates, reasons, looked, nodes: snapshot.len() })
}

/// Whether room was made for the pod before and the victims are still ending.
fn still_waiting(attempt: &Attempt<'_>) -> bool {
    let Some(name) = attempt.pod.nominated_node.as_deref() else { return false };
    let Some(node) = attempt.snapshot.node(name) else { return false };
    if attempt.rejection(node.slot).is_some_and(|r| !r.resolvable) {
        return false;
    }
    node.residents().iter().any(|p| p.deleting && p.preempted && p.priority < attempt.pod.priority)
}

/// The pods that must leave a node so that the pod fits.
fn victims(attempt: &Attempt<'_>, node: &NodeInfo) -> Found {
    let priority = attempt.pod.priority;
    let mut lower: Vec<Arc<PodInfo>> =
        node.residents().iter().filter(|p| p.priority < priority).cloned().collect();
    if lower.is_empty() {
        return Err(Rejection::lasting(NO_VICTIMS));
    }
    let mut dry = DryRun::new(attempt, node);
    for resident in &lower {
        dry.remove(attempt, resident);
    }
    dry.fits(attempt)?;
    lower.sort_by_key(importance);
    let (against, free) = by_budgets(lower, &attempt.snapshot.objects);
    let mixed = !against.is_empty() && !free.is_empty();
    let mut victims = Vec::new();
    let mut violations = 0;
    for (resident, violates) in
        against.into_iter().map(|p| (p, true)).chain(free.into_iter().map(|p| (p, false)))
    {
        dry.add(attempt, &resident);
        if dry.fits(attempt).is_err() {
            dry.remove(attempt, &resident);
            victims.push(resident);
            violations += usize::from(violates);
        }
    }
    if victims.is_empty() {
        return Err(Rejection::lasting(NOT_HELPFUL));
    }
    if mixed {
        victims.sort_by_key(importance);
    }
    Ok((victims, violations))
}

/// The most important first, and of equally important ones the one that has run for longest.
fn importance(pod: &Arc<PodInfo>) -> (Reverse<i32>, Timestamp) {
    (Reverse(pod.priority), pod.started.unwrap_or(Timestamp::MAX))
}

/// Tells apart the pods whose going, one after the other, would violate a budget.
fn by_budgets(pods: Vec<Arc<PodInfo>>, objects: &Objects) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut used: HashMap<&str, i32> = HashMap::new();
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        if pod.labels.is_empty() {
            return false;
        }
        for (name, budget) in objects.budgets.get(&*pod.key.namespace).into_iter().flatten() {
            let selected = !budget.selector.is_everything() && selects(&budget.selector, &pod.labels);
            if !selected || budget.disrupted.contains(&*pod.key.name) {
                continue;
            }
            let used = used.entry(name).or_default();
            *used += 1;
            violates |= *used > budget.allowed;
        }
        violates
    })
}

/// How much is lost: budgets violated, the highest priority among the victims, the sum of their priorities (each counted
/// from the lowest there is), their number, and how early the first of the most important ones started (the later, the
/// less).
type Dearness = (usize, i32, i64, usize, Reverse<Timestamp>);

fn dearness(victims: &[Arc<PodInfo>], violations: usize) -> Dearness {
    let highest = victims.iter().map(|p| p.priority).max().unwrap_or(i32::MIN);
    let sum = victims.iter().map(|p| i64::from(p.priority) - i64::from(i32::MIN)).sum();
    let most_important = victims.iter().filter(|p| p.priority == highest);
    let earliest =
        most_important.map(|p| p.started.unwrap_or(Timestamp::MAX)).min().unwrap_or(Timestamp::MAX);
    (violations, highest, sum, victims.len(), Reverse(earliest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::json;

    use super::*;
    use crate::cycle::Engine;
    use crate::plugins::default_profile;
    use crate::plugins::tests::{node, pod};
    use crate::snapshot::Cache;

    fn with(name: &str, priority: i32, cpu: i64, on: Option<&str>) -> PodInfo {
        let mut spec = json!({"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu.to_string()}}}]});
        if let Some(on) = on {
            spec["nodeName"] = on.into();
        }
        pod(name, spec)
    }

    fn cluster(nodes: &[&str], placed: &[PodInfo]) -> Cache {
        let mut cache = Cache::default();
        for name in nodes {
            cache.set_node(&node(name, json!({})));
        }
        for pod in placed {
            cache.set_pod(Arc::new(pod.clone()));
        }
        cache
    }

    fn names(choice: Option<Preemption>) -> Option<(String, Vec<String>)> {
        choice.map(|c| (c.node.to_string(), c.victims.iter().map(|p| p.key.name.to_string()).collect()))
    }

    fn ask(cache: &mut Cache, pod: &PodInfo) -> Option<(String, Vec<String>)> {
        let framework = default_profile();
        let mut engine = Engine::default();
        let mut attempt = engine.attempt(&framework, pod, cache.snapshot());
        match preempt(&mut attempt, Args::default(), &mut StdRng::seed_from_u64(1)) {
            Outcome::Room(room) => names(Some(room)),
            _ => None,
        }
    }

    #[test]
    fn the_least_important_pods_go_and_no_more_than_needed() {
        // Each node has 4 CPUs.
        let mut cache = cluster(
            &["a", "b"],
            &[
                with("a-low", 1, 2, Some("a")),
                with("a-high", 50, 2, Some("a")),
                with("b-mid", 10, 2, Some("b")),
                with("b-high", 50, 2, Some("b")),
            ],
        );
        let expect = |node: &str, victims: &[&str]| {
            Some((node.to_owned(), victims.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>()))
        };
        assert_eq!(ask(&mut cache, &with("x", 100, 2, None)), expect("a", &["a-low"]));
        assert_eq!(ask(&mut cache, &with("x", 100, 4, None)), expect("a", &["a-high", "a-low"]));
        assert_eq!(ask(&mut cache, &with("x", 50, 4, None)), None, "equals are not preempted");
        assert_eq!(ask(&mut cache, &with("x", 100, 5, None)), None, "no node is large enough");
        let never = pod(
            "x",
            json!({"priority": 100, "preemptionPolicy": "Never", "containers": [
            {"name": "c", "resources": {"requests": {"cpu": "2"}}}]}),
        );
        assert_eq!(ask(&mut cache, &never), None);
    }

    #[test]
    fn room_that_was_made_is_waited_for_and_kept() {
        let leaving = PodInfo { deleting: true, preempted: true, ..with("low", 1, 4, Some("a")) };
        let mut cache = cluster(&["a"], &[leaving]);
        let waiting = PodInfo { nominated_node: Some("a".into()), ..with("x", 100, 4, None) };
        assert_eq!(ask(&mut cache, &waiting), None);

        // The room is the nominated pod's: one of lower priority does not take it, one of higher does.
        cache.remove_pod("uid-low");
        cache.nominate(Arc::new(waiting), "a");
        let framework = default_profile();
        let mut fits = |pod: &PodInfo| {
            !Engine::default().attempt(&framework, pod, cache.snapshot()).feasible().is_empty()
        };
        assert!(!fits(&with("y", 50, 2, None)));
        assert!(fits(&with("z", 200, 2, None)));
    }

    #[test]
    fn budgets_are_spared_if_possible() {
        let labelled = |name: &str, on: &str| {
            let pod = json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"),
                "labels": {"app": name}}, "spec": {"nodeName": on, "priority": 1, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "4"}}}]}});
            Arc::new(crate::plugins::tests::whole_pod(pod))
        };
        let mut cache = cluster(&["a", "b"], &[]);
        cache.set_pod(labelled("guarded", "a"));
        cache.set_pod(labelled("free", "b"));
        let budget = serde_json::from_value(json!({"metadata": {"name": "g", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "guarded"}}}, "status": {"disruptionsAllowed": 0,
            "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}}))
        .unwrap();
        cache.objects().set("default/g".into(), crate::watch::budget(&budget).unwrap());
        let (node, victims) = ask(&mut cache, &with("x", 100, 4, None)).unwrap();
        assert_eq!((node.as_str(), victims.as_slice()), ("b", &["free".to_owned()][..]));
    }

    proptest! {
        /// Without the victims the pod fits; victims are of lower priority; none of them could stay.
        #[test]
        fn victims_are_enough_and_necessary(
            placed in proptest::collection::vec((0..20i32, 1..4i64, 0..3usize), 0..9),
            priority in 1..25i32,
            cpu in 1..5i64,
        ) {
            let nodes = ["a", "b", "c"];
            let placed: Vec<PodInfo> = placed.iter().enumerate()
                .map(|(i, (priority, cpu, on))| with(&format!("p{i}"), *priority, *cpu, Some(nodes[*on])))
                .collect();
            let mut cache = cluster(&nodes, &placed);
            let wants = with("x", priority, cpu, None);
            if let Some((name, victims)) = ask(&mut cache, &wants) {
                let gone: Vec<&PodInfo> = placed.iter().filter(|p| victims.contains(&p.key.name.to_string())).collect();
                prop_assert!(gone.iter().all(|v| v.priority < priority));
                prop_assert!(gone.iter().all(|v| v.node_name.as_deref() == Some(name.as_str())));
                // 4 CPUs, and what stays.
                let stays = |back: Option<&PodInfo>| -> i64 {
                    let here = placed.iter().filter(|p| p.node_name.as_deref() == Some(name.as_str()));
                    let left = here.filter(|p| {
                        let leaves = gone.iter().any(|g| g.key == p.key);
                        !leaves || back.is_some_and(|b| b.key == p.key)
                    });
                    left.map(|p| p.amounts().requests.milli_cpu).sum()
                };
                prop_assert!(stays(None) + cpu * 1000 <= 4000);
                for victim in &gone {
                    prop_assert!(stays(Some(victim)) + cpu * 1000 > 4000, "{} could have stayed", victim.key.name);
                }
            }
        }
    }
}
