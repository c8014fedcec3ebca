//! A StatefulSet's status.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};

use crate::cache::Pod;
use crate::object;
use crate::pods;
use crate::revisions::REVISION_LABEL;

/// Whether a pod is of the revision with this name.
pub fn is_of(pod: &Pod, revision: &str) -> bool {
    object::label(&pod.metadata, REVISION_LABEL) == Some(revision)
}

/// Counts pods. `current` and `update` are revision names.
pub fn count(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    current: &str,
    update: &str,
    now: Timestamp,
) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let number = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(pods.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX)
    };
    let keep = |new: i32, old: Option<i32>| if new == 0 && old.is_none() { None } else { Some(new) };
    let there = |p: &Pod| !object::is_deleting(p);
    let serving = |p: &Pod| pods::phase(p) == "Running" && pods::is_ready(p);
    let available =
        number(&|p| serving(p) && pods::until_available(p, min_ready, now) == Some(Duration::ZERO));
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: i32::try_from(pods.len()).unwrap_or(i32::MAX),
        ready_replicas: keep(number(&serving), old.ready_replicas),
        available_replicas: Some(available),
        current_replicas: keep(number(&|p| there(p) && is_of(p, current)), old.current_replicas),
        updated_replicas: keep(number(&|p| there(p) && is_of(p, update)), old.updated_replicas),
        current_revision: Some(current.to_owned()),
        update_revision: Some(update.to_owned()),
        collision_count: Some(old.collision_count.unwrap_or(0)),
        conditions: old.conditions,
    }
}

/// Makes the update revision the current one when every pod is of it and serves.
pub fn complete(set: &StatefulSet, status: &mut StatefulSetStatus) {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let strategy =
        set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()).and_then(|s| s.type_.as_deref());
    if strategy != Some("OnDelete")
        && n(status.updated_replicas) == status.replicas
        && n(status.ready_replicas) == status.replicas
    {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
}
