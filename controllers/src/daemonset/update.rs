//! The rolling update of a DaemonSet: node by node, within surge or unavailability.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, RollingUpdateDaemonSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::nodes;
use super::reconcile::{Changes, View};
use crate::cache::Pod;
use crate::deployment::resolve;
use crate::object;
use crate::pods;
use crate::revisions::REVISION_LABEL;

/// Whether a pod is of the present template.
pub fn is_current(pod: &Pod, hash: &str) -> bool {
    object::label(&pod.metadata, REVISION_LABEL) == Some(hash)
}

fn strategy(set: &DaemonSet) -> Option<RollingUpdateDaemonSet> {
    let strategy = set.spec.as_ref()?.update_strategy.clone().unwrap_or_default();
    match strategy.type_.as_deref() {
        Some("OnDelete") => None,
        _ => Some(strategy.rolling_update.unwrap_or_default()),
    }
}

fn total(desired: usize) -> i32 {
    i32::try_from(desired).unwrap_or(i32::MAX)
}

/// How many nodes may have two pods.
pub fn max_surge(set: &DaemonSet, desired: usize) -> usize {
    let surge = strategy(set).and_then(|s| s.max_surge);
    surge.map_or(0, |s| usize::try_from(resolve(&s, total(desired), true)).unwrap_or(0))
}

fn max_unavailable(set: &DaemonSet, desired: usize) -> usize {
    let value = strategy(set).and_then(|s| s.max_unavailable).unwrap_or(IntOrString::Int(1));
    usize::try_from(resolve(&value, total(desired), true)).unwrap_or(0)
}

/// The next step of an update.
pub(super) fn roll(
    changes: &mut Changes,
    view: &View,
    by_node: &BTreeMap<&str, Vec<Arc<Pod>>>,
    hash: &str,
    now: Timestamp,
) {
    let set = view.set.as_ref();
    if strategy(set).is_none() {
        return;
    }
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let available = |p: &Pod| pods::until_available(p, min_ready, now) == Some(Duration::ZERO);
    let targets: Vec<&str> =
        view.nodes.iter().filter(|n| nodes::fits(set, n).0).map(|n| object::name(n.as_ref())).collect();
    let surge = max_surge(set, targets.len());
    let mut unavailable = 0;
    let mut surging = 0;
    let (mut at_once, mut in_turn) = (Vec::new(), Vec::new());
    for node in &targets {
        let pods = by_node.get(node).map(Vec::as_slice).unwrap_or_default();
        let new = pods.iter().find(|p| is_current(p, hash) && !object::is_deleting(p.as_ref()));
        let old = pods.iter().find(|p| !is_current(p, hash) && !object::is_deleting(p.as_ref()));
        match (new, old) {
            (Some(new), Some(old)) => {
                if available(new) {
                    changes.delete.push(old.clone());
                } else {
                    surging += 1;
                    unavailable += usize::from(!available(old));
                }
            }
            (Some(new), None) => unavailable += usize::from(!available(new)),
            (None, Some(old)) if !available(old) => {
                unavailable += 1;
                at_once.push((*node, old.clone()));
            }
            (None, Some(old)) => in_turn.push((*node, old.clone())),
            (None, None) => unavailable += 1,
        }
    }
    if surge > 0 {
        let room = surge.saturating_sub(surging);
        changes.create.extend(at_once.iter().chain(&in_turn).take(room).map(|(n, _)| (*n).to_owned()));
    } else {
        let room = max_unavailable(set, targets.len()).saturating_sub(unavailable);
        // A pod that serves nobody can go at any time.
        changes.delete.extend(at_once.into_iter().map(|(_, p)| p));
        changes.delete.extend(in_turn.into_iter().take(room).map(|(_, p)| p));
    }
}
