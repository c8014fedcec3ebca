//! A Deployment's status: counts, availability, progress.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::numbers;
use crate::object;

/// Type of the condition about availability.
pub const AVAILABLE: &str = "Available";
/// Type of the condition about progress.
pub const PROGRESSING: &str = "Progressing";
/// Type of the condition about refused pods.
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Reason: the rollout is complete.
pub const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
/// Reason: no progress within the deadline.
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// A condition with both times set to `now`.
pub fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_update_time: Some(object::time(now)),
        last_transition_time: Some(object::time(now)),
    }
}

/// The condition of this type.
pub fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Sets a condition, unless one of the same status and reason is there.
pub fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(old) = find(status, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    replace(status, new);
}

/// Sets a condition whatever is there.
fn replace(status: &mut DeploymentStatus, new: DeploymentCondition) {
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// The deadline for progress, where there is one.
pub fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| Duration::from_secs(u64::from(seconds.max(0).unsigned_abs())))
}

/// The counts and the condition Available. Other conditions are kept.
pub fn counted(
    deployment: &Deployment,
    all: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let of = |get: fn(&ReplicaSet) -> Option<i32>| numbers::sum(all, |set| get(set).unwrap_or(0));
    let total = numbers::sum(all, numbers::actual);
    let available = numbers::sum(all, numbers::available);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: count(total, old.replicas),
        updated_replicas: count(numbers::sum(new, numbers::actual), old.updated_replicas),
        ready_replicas: count(of(|s| s.status.as_ref()?.ready_replicas), old.ready_replicas),
        available_replicas: count(available, old.available_replicas),
        unavailable_replicas: count((total - available).max(0), old.unavailable_replicas),
        terminating_replicas: count(
            of(|s| s.status.as_ref()?.terminating_replicas),
            old.terminating_replicas,
        ),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let minimum = numbers::replicas(deployment) - numbers::max_unavailable(deployment);
    let condition = if available >= minimum {
        let message = "Deployment has minimum availability.";
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", message, now)
    } else {
        let message = "Deployment does not have minimum availability.";
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message, now)
    };
    set(&mut status, condition);
    status
}

/// Servers omit zeros, so a zero is written only over a number.
fn count(new: i32, old: Option<i32>) -> Option<i32> {
    if new == 0 && old.is_none() { None } else { Some(new) }
}

/// Whether every pod is of the new template and available.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = numbers::replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

/// Whether the rollout is further than it was.
fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(deadline), Some(condition)) = (deadline(deployment), find(status, PROGRESSING)) else {
        return false;
    };
    match condition.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => return false,
        Some(TIMED_OUT) => return true,
        _ => {}
    }
    let since = condition.last_update_time.as_ref().map_or(0, |from| object::seconds_since(from, now));
    u64::try_from(since).is_ok_and(|since| since > deadline.as_secs())
}

/// The status of a rollout that is under way or complete.
pub fn of_rollout(
    deployment: &Deployment,
    all: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counted(deployment, all, new, now);
    let current = find(&old, PROGRESSING).cloned();
    let has_deadline = deadline(deployment).is_some();
    if !has_deadline {
        remove(&mut status, PROGRESSING);
    }
    if has_deadline
        && current.is_none()
        && let Some(new) = new
    {
        let message = format!("Found new replica set \"{}\"", object::name(new.as_ref()));
        set(&mut status, condition(PROGRESSING, "True", "FoundNewReplicaSet", message, now));
    }
    let settled = status.replicas.unwrap_or(0) == status.updated_replicas.unwrap_or(0)
        && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some(NEW_SET_AVAILABLE));
    if has_deadline && !settled {
        let subject = match new {
            Some(set) => format!("ReplicaSet \"{}\"", object::name(set.as_ref())),
            None => format!("Deployment \"{}\"", object::name(deployment)),
        };
        if is_complete(deployment, &status) {
            let message = format!("{subject} has successfully progressed.");
            set(&mut status, condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message, now));
        } else if is_progressing(&old, &status) {
            let message = format!("{subject} is progressing.");
            let mut fresh = condition(PROGRESSING, "True", "ReplicaSetUpdated", message, now);
            if let Some(current) = current.filter(|c| c.status == "True") {
                fresh.last_transition_time = current.last_transition_time;
            }
            // The update time moves with each progress: the deadline counts from it.
            replace(&mut status, fresh);
        } else if has_timed_out(deployment, &status, now) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut status, condition(PROGRESSING, "False", TIMED_OUT, message, now));
        }
    }
    match failure(all, new) {
        Some(failure) => set(&mut status, failure),
        None => remove(&mut status, REPLICA_FAILURE),
    }
    status
}

/// A ReplicaSet's refused pods, as the Deployment's condition; the new set's first.
fn failure(all: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) -> Option<DeploymentCondition> {
    let of = |set: &Arc<ReplicaSet>| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let found = conditions.iter().find(|c| c.type_ == REPLICA_FAILURE)?;
        Some(DeploymentCondition {
            type_: found.type_.clone(),
            status: found.status.clone(),
            reason: found.reason.clone(),
            message: found.message.clone(),
            last_transition_time: found.last_transition_time.clone(),
            last_update_time: found.last_transition_time.clone(),
        })
    };
    new.and_then(of).or_else(|| all.iter().find_map(of))
}

/// When a rollout that makes no progress must be looked at again.
pub fn next_look(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let condition = find(status, PROGRESSING)?;
    let done = is_complete(deployment, status)
        || matches!(condition.reason.as_deref(), Some(TIMED_OUT | NEW_SET_AVAILABLE));
    if done {
        return None;
    }
    let since = object::seconds_since(condition.last_update_time.as_ref()?, now);
    Some(deadline.saturating_sub(Duration::from_secs(since.max(0).unsigned_abs())) + Duration::from_secs(1))
}
