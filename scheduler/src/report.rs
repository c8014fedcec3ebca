//! What the scheduler tells about its decisions: events and the PodScheduled condition, worded as kube-scheduler's.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client};
use serde_json::json;

use crate::pod::{PodInfo, PodKey};

/// A reference to a pod, as events hold it.
pub fn reference(key: &PodKey) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        uid: Some(key.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// The event of a pod that was bound.
pub fn scheduled(key: &PodKey, node: &str) -> Event {
    Event {
        type_: EventType::Normal,
        reason: "Scheduled".into(),
        note: Some(format!("Successfully assigned {}/{} to {node}", key.namespace, key.name)),
        action: "Binding".into(),
        secondary: None,
    }
}

/// The event of a pod that could not be placed.
pub fn failed(message: &str) -> Event {
    Event {
        type_: EventType::Warning,
        reason: "FailedScheduling".into(),
        note: Some(message.into()),
        action: "Scheduling".into(),
        secondary: None,
    }
}

/// The event of a pod that has to go for another one.
pub fn preempted(by: &PodKey, node: &str) -> Event {
    Event {
        type_: EventType::Normal,
        reason: "Preempted".into(),
        note: Some(format!("Preempted by pod {} on node {node}", by.uid)),
        action: "Preempting".into(),
        secondary: Some(reference(by)),
    }
}

/// Tells the victim why it has to go and deletes it. A victim that is gone already is as good.
pub async fn evict(client: Client, victim: &PodKey, now: Timestamp) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client, &victim.namespace);
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    });
    let patch = json!({"metadata": {"uid": *victim.uid}, "status": {"conditions": [condition]}});
    let told = pods.patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    let options = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(victim.uid.to_string()), resource_version: None }),
        ..DeleteParams::default()
    };
    let gone = |error: &kube::Error| matches!(error, kube::Error::Api(s) if s.code == 404 || s.code == 409);
    let deleted = match told {
        Ok(_) => pods.delete(&victim.name, &options).await.map(|_| ()),
        Err(error) => Err(error),
    };
    deleted.or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })
}

/// Notes on the pod where room is being made for it.
pub async fn nominate(client: Client, pod: &PodKey, node: &str) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"uid": *pod.uid}, "status": {"nominatedNodeName": node}});
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
}

/// Publishes an event; one that is lost is only told to the log, as events are best effort.
pub async fn publish(recorder: &Recorder, event: &Event, key: &PodKey) {
    if let Err(error) = recorder.publish(event, &reference(key)).await {
        tracing::debug!(%error, namespace = %key.namespace, pod = %key.name, "event not recorded");
    }
}

/// Sets the condition PodScheduled=False unless it says the same already.
pub async fn set_unschedulable(
    client: Client,
    pod: &PodInfo,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Result<(), kube::Error> {
    if pod.unschedulable_message.as_deref() == Some(message) {
        return Ok(());
    }
    let mut condition = json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": reason,
        "message": message,
        "observedGeneration": pod.generation,
    });
    if pod.unschedulable_message.is_none() {
        let second = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        condition["lastTransitionTime"] = second.into();
        condition["lastProbeTime"] = serde_json::Value::Null;
    }
    let patch = json!({"metadata": {"uid": *pod.key.uid}, "status": {"conditions": [condition]}});
    let pods: Api<Pod> = Api::namespaced(client, &pod.key.namespace);
    pods.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ())
}
