//! The annotations by which a Deployment keeps its books on its ReplicaSets.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::numbers;
use crate::object;

/// Which revision of the Deployment a ReplicaSet is; on the Deployment, the current one.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions that the ReplicaSet was, separated by commas.
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's replicas when the ReplicaSet was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The Deployment's replicas plus surge when the ReplicaSet was last scaled.
pub const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of the Deployment that are its own and not its ReplicaSets'.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
];

/// How long the history may grow, in characters.
const HISTORY_LIMIT: usize = 2000;

/// The ReplicaSet's revision, 0 when it has none.
pub fn revision(set: &ReplicaSet) -> i64 {
    object::annotation(&set.metadata, REVISION).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// A count that an annotation of the ReplicaSet holds.
pub fn count(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    object::annotation(&set.metadata, annotation)?.parse().ok()
}

/// Writes the desired and maximal replicas; tells whether that changed anything.
pub fn set_counts(set: &mut ReplicaSet, deployment: &Deployment) -> bool {
    let desired = numbers::replicas(deployment);
    let maximum = desired.saturating_add(numbers::max_surge(deployment));
    let a = object::set_annotation(&mut set.metadata, DESIRED, desired.to_string());
    let b = object::set_annotation(&mut set.metadata, MAXIMUM, maximum.to_string());
    a || b
}

/// Copies the Deployment's annotations to the ReplicaSet of its current template and brings the
/// revision up to `revision`.
pub fn sync_new(set: &mut ReplicaSet, deployment: &Deployment, new_revision: i64) {
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN.contains(&key.as_str()) {
            object::set_annotation(&mut set.metadata, key, value.clone());
        }
    }
    let before = object::annotation(&set.metadata, REVISION).map(str::to_owned);
    let number: i64 = match before.as_deref().unwrap_or("0").parse() {
        Ok(number) => number,
        Err(_) => return,
    };
    if number >= new_revision {
        return;
    }
    object::set_annotation(&mut set.metadata, REVISION, new_revision.to_string());
    if let Some(before) = before {
        let mut history: Vec<String> = object::annotation(&set.metadata, HISTORY)
            .into_iter()
            .flat_map(|h| h.split(','))
            .filter(|h| !h.is_empty())
            .map(str::to_owned)
            .collect();
        history.push(before);
        while history.len() > 1 && history.iter().map(|h| h.len() + 1).sum::<usize>() > HISTORY_LIMIT {
            history.remove(0);
        }
        object::set_annotation(&mut set.metadata, HISTORY, history.join(","));
    }
}
