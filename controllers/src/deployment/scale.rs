//! Changes of a Deployment's ReplicaSets' sizes.

use std::cmp::Ordering;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::{annotations, numbers};
use crate::object;
use crate::plan::{Act, Note, Plan};

/// Writes size and books of a set where they differ; tells whether there was something to write.
pub fn scale_to(plan: &mut Plan, deployment: &Deployment, set: &ReplicaSet, to: i32) -> bool {
    let from = numbers::size(set);
    let mut new = set.clone();
    annotations::set_counts(&mut new, deployment);
    if let Some(spec) = &mut new.spec {
        spec.replicas = Some(to);
    }
    if new == *set {
        return false;
    }
    let mut act = Act::update(&new);
    if from != to {
        let (direction, name) = (if from < to { "up" } else { "down" }, object::name(set));
        act = act.ok(Note::normal(
            object::reference(deployment),
            "ScalingReplicaSet",
            format!("Scaled {direction} replica set {name} from {from} to {to}"),
        ));
    }
    plan.push(act);
    true
}

/// As [`scale_to`], for sets whose size is wrong only.
pub fn resize(plan: &mut Plan, deployment: &Deployment, set: &ReplicaSet, to: i32) -> bool {
    numbers::size(set) != to && scale_to(plan, deployment, set, to)
}

/// Answers a change of the Deployment's replicas: the sets that exist share it in proportion.
pub fn spread(
    plan: &mut Plan,
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) {
    let wanted = numbers::replicas(deployment);
    let mut active: Vec<&Arc<ReplicaSet>> = old.iter().chain(new).filter(|s| numbers::size(s) > 0).collect();
    if active.len() <= 1 {
        let newest_old = old.iter().max_by_key(|s| s.metadata.creation_timestamp.clone());
        if let Some(set) = active.first().copied().or(new).or(newest_old) {
            resize(plan, deployment, set, wanted);
        }
        return;
    }
    if new.is_some_and(|set| is_saturated(deployment, set)) {
        for set in old.iter().filter(|s| numbers::size(s) > 0) {
            resize(plan, deployment, set, 0);
        }
        return;
    }
    if numbers::strategy(deployment) != numbers::Strategy::Rolling {
        return;
    }
    let allowed = if wanted > 0 { wanted.saturating_add(numbers::max_surge(deployment)) } else { 0 };
    let total = numbers::sum(active.iter().copied(), numbers::size);
    let to_add = allowed.saturating_sub(total);
    // Growth goes to the larger and newer sets first, shrinking to the larger and older ones.
    let newer = |a: &ReplicaSet, b: &ReplicaSet| -> Ordering {
        b.metadata.creation_timestamp.cmp(&a.metadata.creation_timestamp)
    };
    active.sort_by(|a, b| {
        let by_age = if to_add > 0 { newer(a, b) } else { newer(b, a) };
        numbers::size(b)
            .cmp(&numbers::size(a))
            .then(by_age)
            .then_with(|| object::name(a.as_ref()).cmp(object::name(b.as_ref())))
    });
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
    for set in &active {
        let share = if to_add == 0 { 0 } else { share(deployment, set, to_add, added) };
        sizes.push(numbers::size(set).saturating_add(share));
        added += share;
    }
    if to_add != 0
        && let Some(first) = sizes.first_mut()
    {
        *first = first.saturating_add(to_add - added).max(0);
    }
    for (set, size) in active.into_iter().zip(sizes) {
        scale_to(plan, deployment, set, size);
    }
}

/// Whether the set alone satisfies the Deployment at its present size.
fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = numbers::replicas(deployment);
    numbers::size(set) == wanted
        && annotations::count(set, annotations::DESIRED) == Some(wanted)
        && numbers::available(set) == wanted
}

/// The part of `to_add` (negative to shrink) that falls to a set by its share of the whole.
fn share(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let size = numbers::size(set);
    if size == 0 || to_add == added {
        return 0;
    }
    let wanted = numbers::replicas(deployment);
    let fraction = if wanted == 0 {
        -size
    } else {
        let maximum = f64::from(wanted.saturating_add(numbers::max_surge(deployment)));
        let before = annotations::count(set, annotations::MAXIMUM)
            .filter(|n| *n > 0)
            .or_else(|| deployment.status.as_ref().and_then(|s| s.replicas).filter(|n| *n > 0))
            .unwrap_or(wanted);
        // Sizes are far below 2^53, so this is exact enough to be rounded.
        (f64::from(size) * maximum / f64::from(before)).round() as i32 - size
    };
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}
