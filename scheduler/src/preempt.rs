//! Preemption: which pods of lower priority must go so that a pod fits. Pure.
//!
//! The rules are kube-scheduler's: on each node all pods of lower priority are taken away; if the pod fits then, as
//! many as possible are put back, the most important first; what stays away are the victims. The node is chosen
//! whose victims matter least. (PodDisruptionBudgets are not weighed.)

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;

use crate::framework::Framework;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// At least this many candidate nodes are compared, if there are so many.
const MIN_CANDIDATES: usize = 100;
/// Or this share of the nodes, in per cent.
const CANDIDATES_PERCENT: usize = 10;

/// Which pods are to leave which node.
#[derive(Clone, Debug)]
pub struct Preemption {
    /// Where there will be room.
    pub node: Box<str>,
    /// Who must go, the most important first. Never empty.
    pub victims: Vec<Arc<PodInfo>>,
}

/// Finds room for a pod that fits nowhere. `start` is where to begin among the nodes.
pub fn preempt(
    framework: &Framework,
    pod: &PodInfo,
    snapshot: &Snapshot,
    start: usize,
) -> Option<Preemption> {
    if pod.preempts_never || still_waiting(pod, snapshot) {
        return None;
    }
    let nodes = snapshot.nodes();
    let filters: Vec<_> = framework.filters.iter().filter(|filter| filter.applies(pod)).collect();
    let fits = |node: &NodeInfo| filters.iter().all(|filter| filter.filter(pod, node).is_ok());
    let wanted = (nodes.len() * CANDIDATES_PERCENT / 100).max(MIN_CANDIDATES);
    let (before, after) = nodes.split_at(start.checked_rem(nodes.len()).unwrap_or(0));
    let candidates = after.iter().chain(before).filter_map(|node| {
        let victims = victims(pod, &snapshot.with_nominated(node, pod), &fits)?;
        Some(Preemption { node: node.name.clone(), victims })
    });
    // Of equals the first one.
    candidates.take(wanted).reduce(|best, next| if dearness(&next) < dearness(&best) { next } else { best })
}

/// Whether room was made for the pod before and the victims are still ending.
pub fn still_waiting(pod: &PodInfo, snapshot: &Snapshot) -> bool {
    let node = pod.nominated_node.as_deref().and_then(|name| snapshot.node(name));
    node.is_some_and(|node| node.residents().iter().any(|p| p.deleting && p.priority < pod.priority))
}

/// The pods that must leave a node so that `pod` fits; none if that does not help, or is not needed.
fn victims(pod: &PodInfo, node: &NodeInfo, fits: &dyn Fn(&NodeInfo) -> bool) -> Option<Vec<Arc<PodInfo>>> {
    let mut lower: Vec<Arc<PodInfo>> =
        node.residents().iter().filter(|p| p.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    let mut node = node.clone();
    for resident in &lower {
        node.remove_pod(resident);
    }
    if !fits(&node) {
        return None;
    }
    // The most important first, and of equally important ones the one that has run for longest.
    lower.sort_by_key(|p| (Reverse(p.priority), p.started.unwrap_or(Timestamp::MAX)));
    let mut victims = Vec::new();
    for resident in lower {
        node.add_pod(&resident);
        if !fits(&node) {
            node.remove_pod(&resident);
            victims.push(resident);
        }
    }
    (!victims.is_empty()).then_some(victims)
}

/// How much is lost: the highest priority among the victims, the sum of their priorities (each counted from the
/// lowest there is), their number, and how early the first of the most important ones started (the later, the less).
fn dearness(choice: &Preemption) -> (i32, i64, usize, Reverse<Timestamp>) {
    let highest = choice.victims.iter().map(|p| p.priority).max().unwrap_or(i32::MIN);
    let sum = choice.victims.iter().map(|p| i64::from(p.priority) - i64::from(i32::MIN)).sum();
    let most_important = choice.victims.iter().filter(|p| p.priority == highest);
    let earliest = most_important.filter_map(|p| p.started).min().unwrap_or(Timestamp::MAX);
    (highest, sum, choice.victims.len(), Reverse(earliest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
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
        choice.map(|c| (c.node.into(), c.victims.iter().map(|p| p.key.name.to_string()).collect()))
    }

    fn ask(cache: &Cache, pod: &PodInfo) -> Option<(String, Vec<String>)> {
        names(preempt(&default_profile(), pod, cache.snapshot(), 0))
    }

    #[test]
    fn the_least_important_pods_go_and_no_more_than_needed() {
        // Each node has 4 CPUs.
        let cache = cluster(
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
        assert_eq!(ask(&cache, &with("x", 100, 2, None)), expect("a", &["a-low"]));
        assert_eq!(ask(&cache, &with("x", 100, 4, None)), expect("a", &["a-high", "a-low"]));
        assert_eq!(ask(&cache, &with("x", 50, 4, None)), None, "equals are not preempted");
        assert_eq!(ask(&cache, &with("x", 100, 5, None)), None, "no node is large enough");
        let never = PodInfo { preempts_never: true, ..with("x", 100, 2, None) };
        assert_eq!(ask(&cache, &never), None);
    }

    #[test]
    fn room_that_was_made_is_waited_for_and_kept() {
        let leaving = PodInfo { deleting: true, ..with("low", 1, 4, Some("a")) };
        let mut cache = cluster(&["a"], &[leaving]);
        let waiting = PodInfo { nominated_node: Some("a".into()), ..with("x", 100, 4, None) };
        assert_eq!(ask(&cache, &waiting), None);

        // The room is the nominated pod's: one of lower priority does not take it, one of higher does.
        cache.remove_pod("uid-low");
        cache.nominate(Arc::new(waiting), "a");
        let framework = default_profile();
        let fits = |pod: &PodInfo| {
            let node = cache.snapshot().with_nominated(&cache.snapshot().nodes()[0], pod);
            framework.filters.iter().all(|f| f.filter(pod, &node).is_ok())
        };
        assert!(!fits(&with("y", 50, 2, None)));
        assert!(fits(&with("z", 200, 2, None)));
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
            let cache = cluster(&nodes, &placed);
            let wants = with("x", priority, cpu, None);
            let framework = default_profile();
            let fits = |node: &NodeInfo| framework.filters.iter().all(|f| f.filter(&wants, node).is_ok());
            if let Some(choice) = preempt(&framework, &wants, cache.snapshot(), 0) {
                let mut node = NodeInfo::clone(cache.node(&choice.node).unwrap());
                prop_assert!(choice.victims.iter().all(|v| v.priority < priority));
                for victim in &choice.victims { node.remove_pod(victim); }
                prop_assert!(fits(&node));
                for victim in &choice.victims {
                    let mut back = node.clone();
                    back.add_pod(victim);
                    prop_assert!(!fits(&back), "{} could have stayed", victim.key.name);
                }
            }
        }
    }
}
