//! Event objects about pods and the node: recorded in the background, repeated ones counted.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use std::collections::HashMap;
use tokio::sync::mpsc;

/// Events that may wait to be sent; more are dropped, since they must never hold up a pod.
const QUEUE: usize = 1024;
/// Events remembered for counting.
const REMEMBERED: usize = 2048;

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

#[derive(Clone, Debug)]
struct Record {
    object: ObjectReference,
    kind: Kind,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Where components of the kubelet put their events; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Record>,
}

/// A reference to a pod or to one of its containers.
pub(crate) fn pod_ref(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let spec = pod.spec.as_ref();
    let is_init =
        |name: &str| spec.is_some_and(|s| s.init_containers.iter().flatten().any(|c| c.name == name));
    let is_ephemeral =
        |name: &str| spec.is_some_and(|s| s.ephemeral_containers.iter().flatten().any(|c| c.name == name));
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: container.map(|name| match name {
            n if is_init(n) => format!("spec.initContainers{{{n}}}"),
            n if is_ephemeral(n) => format!("spec.ephemeralContainers{{{n}}}"),
            n => format!("spec.containers{{{n}}}"),
        }),
    }
}

impl Recorder {
    /// Starts the sender; it ends when the last recorder is dropped.
    pub fn start(client: Client, host: &str) -> Recorder {
        let (queue, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(client, host.to_owned(), receiver));
        Recorder { queue }
    }

    pub fn record(&self, object: ObjectReference, kind: Kind, reason: &str, message: impl Into<String>) {
        let message = message.into();
        let record = Record { object, kind, reason: reason.to_owned(), message, at: Timestamp::now() };
        if self.queue.try_send(record).is_err() {
            tracing::debug!(reason, "too many events are waiting; one is dropped");
        }
    }

    pub fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: Kind,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(pod_ref(pod, container), kind, reason, message);
    }
}

type Key = (Option<String>, Option<String>, Option<String>, String, String, Kind);

struct Sent {
    name: String,
    count: i32,
}

async fn send_all(client: Client, host: String, mut queue: mpsc::Receiver<Record>) {
    let mut sent: HashMap<Key, Sent> = HashMap::new();
    while let Some(r) = queue.recv().await {
        if sent.len() >= REMEMBERED {
            sent.clear();
        }
        let o = &r.object;
        let key = (
            o.uid.clone(),
            o.name.clone(),
            o.field_path.clone(),
            r.reason.clone(),
            r.message.clone(),
            r.kind,
        );
        let namespace = o.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        if let Some(before) = sent.get_mut(&key) {
            let count = before.count + 1;
            let patch = serde_json::json!({"count": count, "lastTimestamp": Time(r.at)});
            if api.patch(&before.name, &PatchParams::default(), &Patch::Strategic(patch)).await.is_ok() {
                before.count = count;
                continue;
            }
        }
        let event = make(&r, &namespace, &host);
        match api.create(&PostParams::default(), &event).await {
            Ok(e) => {
                sent.insert(key, Sent { name: e.metadata.name.unwrap_or_default(), count: 1 });
            }
            Err(e) => tracing::debug!(reason = r.reason, "an event was not recorded: {e}"),
        }
    }
}

fn make(r: &Record, namespace: &str, host: &str) -> Event {
    let name = r.object.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", r.at.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: r.object.clone(),
        reason: Some(r.reason.clone()),
        message: Some(r.message.clone()),
        type_: Some(match r.kind {
            Kind::Normal => "Normal".into(),
            Kind::Warning => "Warning".into(),
        }),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(host.to_owned()) }),
        first_timestamp: Some(Time(r.at)),
        last_timestamp: Some(Time(r.at)),
        event_time: None::<MicroTime>,
        count: Some(1),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(host.to_owned()),
        ..Event::default()
    }
}
