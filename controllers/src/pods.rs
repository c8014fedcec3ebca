//! Rules about pods: active, ready, available, and which of them go first.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod as NewPod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::cache::{Condition, Pod};
use crate::object::{self, Object};

/// Annotation that makes a pod cheaper (lower) or dearer to delete.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The pod's phase, empty when unset.
pub fn phase(pod: &Pod) -> &str {
    &pod.status.phase
}

/// Whether the pod has run to its end.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as one of its controller's: not ended and not being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !object::is_deleting(pod)
}

/// Whether the pod is being deleted but has not ended.
pub fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && object::is_deleting(pod)
}

/// A condition of the pod.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a Condition> {
    pod.status.conditions.iter().find(|c| c.type_ == kind)
}

/// Whether the pod's Ready condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Whether the pod has been ready for `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    until_available(pod, min_ready_seconds, now) == Some(Duration::ZERO)
}

/// How long until a ready pod is available; `None` for a pod that is not ready.
pub fn until_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    if min_ready_seconds <= 0 {
        return Some(Duration::ZERO);
    }
    let since = ready.last_transition_time.as_ref()?;
    let left = i64::from(min_ready_seconds) - object::seconds_since(since, now);
    Some(Duration::from_secs(left.max(0).unsigned_abs()))
}

/// The node the pod is on, empty when it is on none.
pub fn node(pod: &Pod) -> &str {
    &pod.node_name
}

/// A pod of `template`, owned and managed by `owner`. The server completes the name.
pub fn from_template<K: Object>(template: &PodTemplateSpec, owner: &K) -> NewPod {
    let meta = template.metadata.clone().unwrap_or_default();
    NewPod {
        metadata: ObjectMeta {
            generate_name: Some(generated_prefix(object::name(owner))),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![object::new_controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// `name-`, or `name` where the dash would make the prefix too long for a pod's name.
fn generated_prefix(name: &str) -> String {
    if name.len() < 253 { format!("{name}-") } else { name.to_owned() }
}

/// Orders `pods` so that those to be deleted first come first. `related` are the pods of all sets with
/// the same owner: of two otherwise equal pods the one on the more crowded node goes.
pub fn deletion_order(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|p| is_active(p)) {
        *crowd.entry(node(pod)).or_default() += 1;
    }
    pods.sort_by(|a, b| rank(a, b, &crowd, now));
}

fn rank(a: &Pod, b: &Pod, crowd: &HashMap<&str, usize>, now: Timestamp) -> Ordering {
    let on_node = |p: &Pod| !node(p).is_empty();
    let phase_rank = |p: &Pod| match phase(p) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |p: &Pod| {
        object::annotation(&p.metadata, DELETION_COST).and_then(|v| v.parse::<i32>().ok()).unwrap_or(0)
    };
    let crowded = |p: &Pod| crowd.get(node(p)).copied().unwrap_or(0);
    let by_uid = || object::uid(a).cmp(object::uid(b));

    let order = on_node(a)
        .cmp(&on_node(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowded(b).cmp(&crowded(a)));
    if order != Ordering::Equal {
        return order;
    }
    if is_ready(a) {
        let (since_a, since_b) = (ready_since(a), ready_since(b));
        if since_a != since_b {
            return by_age(since_a, since_b, now).then_with(by_uid);
        }
    }
    restarts(b)
        .cmp(&restarts(a))
        .then_with(|| {
            by_age(a.metadata.creation_timestamp.as_ref(), b.metadata.creation_timestamp.as_ref(), now)
        })
        .then_with(by_uid)
}

/// Younger first, where ages count as equal when their logarithms are (so that a fleet's oldest pods
/// are not always spared). Without a time means youngest.
fn by_age(a: Option<&Time>, b: Option<&Time>, now: Timestamp) -> Ordering {
    let magnitude = |t: Option<&Time>| match t {
        Some(t) => {
            let nanos = now.duration_since(t.0).as_nanos();
            if nanos > 0 { i64::from(nanos.ilog2()) } else { -1 }
        }
        None => -2,
    };
    magnitude(a).cmp(&magnitude(b))
}

fn ready_since(pod: &Pod) -> Option<&Time> {
    condition(pod, "Ready")?.last_transition_time.as_ref()
}

/// Restarts of the container that restarted most often.
fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.containers.iter().filter(|c| !c.is_init);
    containers.map(|c| c.restart_count).max().unwrap_or(0)
}
