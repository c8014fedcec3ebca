//! Publishing a pod's status: one patch under way per pod, always with the newest status.

use crate::pod::after;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Conditions that the kubelet owns; every other one belongs to somebody else.
const OWN_CONDITIONS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];
/// Longest wait between tries.
const MAX_WAIT: Duration = Duration::from_secs(10);

type Sending = BoxFuture<'static, (PodStatus, Result<u64, kube::Error>)>;

pub(super) struct Publisher {
    api: Api<Pod>,
    name: String,
    uid: String,
    /// What the API has, as far as is known.
    published: PodStatus,
    /// The resourceVersion at which the API had that.
    version: u64,
    /// What it is to have, if that is something else.
    wanted: Option<PodStatus>,
    sending: Option<Sending>,
    wait: Duration,
    not_before: Option<Timestamp>,
}

impl Publisher {
    pub fn new(client: Client, pod: &Pod) -> Publisher {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        Publisher {
            api: Api::namespaced(client, namespace),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            published: pod.status.clone().unwrap_or_default(),
            version: version(pod),
            wanted: None,
            sending: None,
            wait: Duration::ZERO,
            not_before: None,
        }
    }

    /// Whether the API has the newest status.
    pub fn is_idle(&self) -> bool {
        self.sending.is_none() && self.wanted.is_none()
    }

    /// Takes note of the pod in the API: where somebody else wrote over the status, it is published again.
    pub fn seen(&mut self, pod: &Pod) {
        if self.sending.is_none() && version(pod) > self.version {
            self.version = version(pod);
            self.published = pod.status.clone().unwrap_or_default();
        }
    }

    /// Publishes a status, at once or after the patch under way.
    pub fn publish(&mut self, status: &PodStatus) {
        let same = *status == self.published;
        if self.sending.is_none() && same {
            self.wanted = None;
            return;
        }
        self.wanted = Some(status.clone());
        self.start();
    }

    fn start(&mut self) {
        if self.sending.is_some() || self.not_before.is_some() {
            return;
        }
        let Some(status) = self.wanted.take() else { return };
        if status == self.published {
            return;
        }
        let patch = patch(&self.uid, &self.published, &status);
        let (api, name) = (self.api.clone(), self.name.clone());
        self.sending = Some(
            async move {
                let params = PatchParams::default();
                let done = api.patch_status(&name, &params, &Patch::Strategic(patch)).await;
                (status, done.map(|pod| version(&pod)))
            }
            .boxed(),
        );
    }

    /// Waits until a patch is through, or until the next try is due.
    pub async fn progress(&mut self) {
        if let Some(at) = self.not_before {
            super::until(Some(at)).await;
            self.not_before = None;
            self.start();
            return;
        }
        let Some(sending) = &mut self.sending else { return std::future::pending().await };
        let (status, done) = sending.await;
        self.sending = None;
        match done {
            Ok(version) => {
                self.published = status;
                self.version = version;
                self.wait = Duration::ZERO;
            }
            // The pod is gone or another one has its name: there is nothing to publish to.
            Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => self.published = status,
            Err(e) => {
                tracing::debug!("publishing a pod's status: {e}");
                self.wait = (self.wait * 2).clamp(Duration::from_millis(100), MAX_WAIT);
                let soon = Timestamp::now()
                    .checked_add(jiff::SignedDuration::try_from(self.wait).unwrap_or_default());
                self.not_before = Some(soon.unwrap_or_else(|_| after(Timestamp::now(), 1)));
                // Only a newer status may have taken its place.
                self.wanted.get_or_insert(status);
            }
        }
        self.start();
    }
}

/// A pod's resourceVersion; versions of one object are ordered (KEP-5504).
fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// A strategic merge patch from one status to another that leaves alone what others own.
fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Value {
    let object = |s: &PodStatus| match serde_json::to_value(s) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, mut new) = (object(old), object(new));
    if let Some(Value::Array(list)) = new.get_mut("conditions") {
        list.retain(|c| is_own(c["type"].as_str().unwrap_or_default()) || c["type"] == "PodScheduled");
        let before = old.get("conditions").and_then(Value::as_array);
        for condition in list {
            let same = before.and_then(|b| b.iter().find(|o| o["type"] == condition["type"]));
            let (Some(same), Some(now)) = (same.and_then(Value::as_object), condition.as_object_mut()) else {
                continue;
            };
            // Conditions merge by type: what one no longer has must be taken away by name.
            for gone in same.keys().filter(|k| !same[*k].is_null()) {
                now.entry(gone.clone()).or_insert(Value::Null);
            }
        }
    }
    for (key, before) in &old {
        match new.get_mut(key) {
            None if key != "conditions" => {
                new.insert(key.clone(), Value::Null);
            }
            // Lists that would be merged by key.
            Some(now @ Value::Array(_)) if matches!(key.as_str(), "podIPs" | "hostIPs") && before != now => {
                if let Value::Array(list) = now {
                    list.insert(0, json!({"$patch": "replace"}));
                }
            }
            _ => {}
        }
    }
    // What did not change need not be sent.
    new.retain(|k, v| old.get(k) != Some(v));
    json!({"metadata": {"uid": uid}, "status": new})
}

fn is_own(type_: &str) -> bool {
    OWN_CONDITIONS.contains(&type_)
}

/// Takes over what others wrote into the status: their conditions, and a terminal phase.
pub(super) fn adopt_foreign(status: &mut PodStatus, api: Option<&PodStatus>) {
    let Some(api) = api else { return };
    let own = status.conditions.take().unwrap_or_default();
    let mut list: Vec<_> = own.into_iter().filter(|c| is_own(&c.type_)).collect();
    list.extend(api.conditions.iter().flatten().filter(|c| !is_own(&c.type_)).cloned());
    status.conditions = Some(list);
    status.nominated_node_name = api.nominated_node_name.clone();
    status.resource_claim_statuses = api.resource_claim_statuses.clone();
    status.extended_resource_claim_status = api.extended_resource_claim_status.clone();
    let terminal = |p: &Option<String>| matches!(p.as_deref(), Some("Failed" | "Succeeded"));
    if terminal(&api.phase) && !terminal(&status.phase) {
        status.phase = api.phase.clone();
        status.reason = api.reason.clone();
        status.message = api.message.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(v: Value) -> PodStatus {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn patches_only_what_changed_and_is_owned() {
        let old = status(json!({"phase": "Pending", "podIPs": [{"ip": "1"}], "podIP": "1", "qosClass": "B",
            "conditions": [{"type": "X", "status": "True"},
                {"type": "Ready", "status": "False", "reason": "R", "message": "m"}]}));
        let new = status(json!({"phase": "Running", "podIPs": [{"ip": "2"}], "qosClass": "B",
            "conditions": [{"type": "X", "status": "True"}, {"type": "Ready", "status": "True"}]}));
        assert_eq!(
            patch("u", &old, &new),
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "podIP": null, "podIPs": [{"$patch": "replace"}, {"ip": "2"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]}})
        );
    }

    #[test]
    fn foreign_conditions_are_adopted() {
        let mut own = status(json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Gone", "status": "True"}]}));
        let api = status(json!({"phase": "Failed", "reason": "R", "conditions": [
            {"type": "Ready", "status": "False"}, {"type": "DisruptionTarget", "status": "True"}]}));
        adopt_foreign(&mut own, Some(&api));
        assert_eq!(
            own,
            status(json!({"phase": "Failed", "reason": "R", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "DisruptionTarget", "status": "True"}]}))
        );
    }
}
