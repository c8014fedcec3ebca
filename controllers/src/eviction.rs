//! Pods that must leave because of a taint, of their node or of a device that they use: at once, after a while, or not any
//! more. What the two controllers of it have in common.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PodCondition};
use parking_lot::Mutex;
use serde_json::json;

use crate::cache::{Pod, Store};
use crate::object::{self, Key};
use crate::plan::{Act, Note, Plan};

/// How an eviction is told.
pub struct Words {
    /// Reason of the condition DisruptionTarget.
    pub condition: &'static str,
    /// Its message.
    pub message: &'static str,
    /// Reason of events.
    pub event: &'static str,
    /// Message of the event when the pod is deleted.
    pub deleting: String,
    /// Message of the event when it need not leave any more.
    pub cancelled: String,
    /// Whom events are about.
    pub about: ObjectReference,
}

/// Decides about a pod that is neither deleted nor ended and must leave `at` a time, or never.
pub fn decide(pod: &Pod, at: Option<Timestamp>, was_due: bool, words: Words, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let Some(at) = at else {
        if was_due {
            plan.events.push(Note::normal(words.about, words.event, words.cancelled));
        }
        return plan;
    };
    if at > now {
        plan.requeue(at.duration_since(now).unsigned_abs().max(Duration::from_millis(10)));
        return plan;
    }
    plan.push(disruption_target(pod, words.condition, words.message, None, now));
    plan.push(Act::delete(pod).ok(Note::normal(words.about, words.event, words.deleting)));
    plan
}

/// Marks a pod as about to be disrupted, and as failed where `phase` says so. (KEP-3329.)
pub fn disruption_target(pod: &Pod, reason: &str, message: &str, phase: Option<&str>, now: Timestamp) -> Act {
    let mut conditions = pod.conditions();
    conditions.retain(|c| c.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(object::time(now)),
        ..PodCondition::default()
    });
    let mut status = json!({"conditions": conditions});
    if let Some(phase) = phase {
        status["phase"] = json!(phase);
    }
    let meta = json!({"resourceVersion": pod.metadata.resource_version, "uid": pod.metadata.uid});
    Act::patch(pod, Some("status"), json!({"metadata": meta, "status": status})).may_be_absent()
}

/// What is remembered of a pod under taints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noted {
    /// Since when it is seen under them.
    pub since: Timestamp,
    /// Whether it was to leave when last looked at.
    pub was_due: bool,
}

/// Pods under taints. Nothing is remembered of others, nor of pods that are gone.
#[derive(Default)]
pub struct Notes {
    noted: Mutex<HashMap<Key, Noted>>,
}

impl Notes {
    /// Notes that forget pods as they go.
    pub fn of(pods: &Store<Pod>) -> Arc<Self> {
        let notes = Arc::new(Self::default());
        let these = notes.clone();
        pods.on_change(move |change| {
            if change.new.is_none() {
                these.noted.lock().remove(change.key);
            }
        });
        notes
    }

    /// What is remembered of a pod that is looked at now.
    pub fn get(&self, key: &Key, now: Timestamp) -> Noted {
        self.noted.lock().get(key).copied().unwrap_or(Noted { since: now, was_due: false })
    }

    /// Remembers a pod that is under taints, and whether it is to leave because of them.
    pub fn keep(&self, key: &Key, since: Timestamp, due: bool) {
        self.noted.lock().insert(key.clone(), Noted { since, was_due: due });
    }

    /// Forgets a pod that is under no taints.
    pub fn forget(&self, key: &Key) {
        self.noted.lock().remove(key);
    }
}
