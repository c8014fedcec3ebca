//! What the scheduler watches: pods and nodes as they are, other kinds cut down to what plugins ask.

use futures::{Stream, StreamExt};
use hawser_watch::{Known, LeanPod, Named, changes};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event as WatchEvent, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

use crate::devices::Slice;
use crate::objects::{Attachment, Budget, Group, Kind, Name, Object};
use crate::selector::{compile, from_labels};

/// Finished pods hold nothing, so they are not watched.
const UNFINISHED: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Something that was seen.
pub enum Seen {
    Pod(Box<WatchEvent<LeanPod>>),
    Node(Box<WatchEvent<Node>>),
    /// Another object; `None`: it is gone.
    Object(Kind, Name, Option<Box<Object>>),
    /// All objects that one of the watches begins with have been seen, or it may not be read.
    Listed,
}

/// How many [`Seen::Listed`] are to come, besides pods and nodes.
pub const LISTS: usize = 17;

/// Starts all watches. They end with the set, or when nobody receives any more.
pub fn start(client: &Client, to: &Sender<Seen>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let unfinished = watcher::Config::default().fields(UNFINISHED);
    let pods = watcher(Api::<LeanPod>::all(client.clone()), unfinished).default_backoff();
    tasks.spawn(forward(pods, "pods", to.clone(), |event| Seen::Pod(Box::new(event))));
    let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default()).default_backoff();
    tasks.spawn(forward(nodes, "nodes", to.clone(), |event| Seen::Node(Box::new(event))));

    let mut other = Others { client, to, tasks: &mut tasks };
    other.watch::<Namespace>(Kind::Namespace, "", |o| {
        Some(Object::Namespace(o.metadata.labels.clone().unwrap_or_default()))
    });
    other.watch::<Service>(Kind::Service, "", |o| {
        let selector = o.spec.as_ref()?.selector.clone().filter(|s| !s.is_empty())?;
        Some(Object::Service(o.metadata.namespace.as_deref()?.into(), selector))
    });
    other.watch::<ReplicationController>(Kind::Workload, "ReplicationController/", |o| {
        Some(Object::Workload(from_labels(o.spec.as_ref()?.selector.as_ref()?)))
    });
    other.watch::<ReplicaSet>(Kind::Workload, "ReplicaSet/", |o| {
        Some(Object::Workload(compile(Some(&o.spec.as_ref()?.selector))))
    });
    other.watch::<StatefulSet>(Kind::Workload, "StatefulSet/", |o| {
        Some(Object::Workload(compile(Some(&o.spec.as_ref()?.selector))))
    });
    other.watch::<PersistentVolumeClaim>(Kind::PersistentVolumeClaim, "", |o| {
        Some(Object::PersistentVolumeClaim(o.clone().into()))
    });
    other.watch::<PersistentVolume>(Kind::PersistentVolume, "", |o| {
        Some(Object::PersistentVolume(o.clone().into()))
    });
    other.watch::<StorageClass>(Kind::StorageClass, "", |o| Some(Object::StorageClass(o.clone().into())));
    other.watch::<CSINode>(Kind::CsiNode, "", |o| Some(csi_node(o)));
    other.watch::<CSIDriver>(Kind::CsiDriver, "", |o| Some(csi_driver(o)));
    other.watch::<CSIStorageCapacity>(Kind::CsiStorageCapacity, "", |o| {
        Some(Object::CsiStorageCapacity(o.clone().into()))
    });
    other.watch::<VolumeAttachment>(Kind::VolumeAttachment, "", |o| Some(attachment(o)));
    other.watch::<PodDisruptionBudget>(Kind::PodDisruptionBudget, "", budget);
    other.watch::<ResourceClaim>(Kind::ResourceClaim, "", |o| Some(Object::ResourceClaim(o.clone().into())));
    other.watch::<DeviceClass>(Kind::DeviceClass, "", |o| Some(Object::DeviceClass(o.clone().into())));
    other.watch::<ResourceSlice>(Kind::ResourceSlice, "", |o| Some(slice(o)));
    other.watch_if_served::<PodGroup>(Kind::PodGroup, |o| Some(group(o)));
    tasks
}

/// A CSINode, as it is kept.
pub fn csi_node(node: &CSINode) -> Object {
    let limit = |d: &k8s_openapi::api::storage::v1::CSINodeDriver| {
        (d.name.as_str().into(), d.allocatable.as_ref().and_then(|a| a.count).map(i64::from))
    };
    Object::CsiNode(node.spec.drivers.iter().map(limit).collect())
}

/// A CSIDriver, as it is kept.
pub fn csi_driver(driver: &CSIDriver) -> Object {
    Object::CsiDriver(driver.spec.storage_capacity == Some(true))
}

/// A VolumeAttachment, as it is kept.
pub fn attachment(attachment: &VolumeAttachment) -> Object {
    let spec = &attachment.spec;
    Object::VolumeAttachment(Attachment {
        attacher: spec.attacher.as_str().into(),
        node: spec.node_name.as_str().into(),
        volume: spec.source.persistent_volume_name.as_deref().map(Into::into),
    })
}

/// A PodDisruptionBudget, as it is kept.
pub fn budget(budget: &PodDisruptionBudget) -> Option<Object> {
    let status = budget.status.as_ref();
    Some(Object::PodDisruptionBudget(Budget {
        namespace: budget.metadata.namespace.as_deref()?.into(),
        selector: compile(budget.spec.as_ref()?.selector.as_ref()),
        allowed: status.and_then(|s| s.disruptions_allowed).unwrap_or(0),
        disrupted: status
            .and_then(|s| s.disrupted_pods.as_ref())
            .into_iter()
            .flat_map(|pods| pods.keys())
            .map(|name| name.as_str().into())
            .collect(),
    }))
}

/// A ResourceSlice, as it is kept.
pub fn slice(slice: &ResourceSlice) -> Object {
    Object::ResourceSlice(Slice::new(slice).into())
}

fn group(group: &PodGroup) -> Object {
    let gang = group.spec.scheduling_policy.gang.as_ref();
    Object::PodGroup(Group { min_count: gang.and_then(|g| usize::try_from(g.min_count).ok()) })
}

async fn forward<K>(
    stream: impl Stream<Item = Result<WatchEvent<K>, watcher::Error>>,
    what: &'static str,
    to: Sender<Seen>,
    seen: fn(WatchEvent<K>) -> Seen,
) {
    let mut stream = std::pin::pin!(stream);
    while let Some(result) = stream.next().await {
        match result {
            Ok(event) => {
                if to.send(seen(event)).await.is_err() {
                    return;
                }
            }
            // The stream itself tries again.
            Err(error) => tracing::warn!(%error, "watch of {what} failed"),
        }
    }
}

struct Others<'a> {
    client: &'a Client,
    to: &'a Sender<Seen>,
    tasks: &'a mut JoinSet<()>,
}

impl Others<'_> {
    /// Watches a kind; `prefix` goes before the names of its objects.
    fn watch<K>(&mut self, kind: Kind, prefix: &'static str, convert: fn(&K) -> Option<Object>)
    where
        K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        self.tasks.spawn(watch(self.client.clone(), self.to.clone(), kind, prefix, convert));
    }

    /// Watches a kind of an alpha version, if the API server has that. Where it has not, watching would be forbidden
    /// again and again: the scheduler's role says nothing of what is off.
    fn watch_if_served<K>(&mut self, kind: Kind, convert: fn(&K) -> Option<Object>)
    where
        K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let (client, to) = (self.client.clone(), self.to.clone());
        self.tasks.spawn(async move {
            let found = client.list_api_group_resources(&K::api_version(&())).await;
            let served = match &found {
                Ok(list) => list.resources.iter().any(|resource| resource.name == K::plural(&())),
                Err(kube::Error::Api(status)) => !matches!(status.code, 403 | 404),
                // Whether it is served, the watch finds out.
                Err(_) => true,
            };
            if served {
                watch(client, to, kind, "", convert).await;
            } else {
                tracing::debug!("{kind:?} is not served");
                // Without a receiver there is nobody to tell.
                let _ = to.send(Seen::Listed).await;
            }
        });
    }
}

async fn watch<K>(
    client: Client,
    to: Sender<Seen>,
    kind: Kind,
    prefix: &'static str,
    convert: fn(&K) -> Option<Object>,
) where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut events = changes(Api::<K>::all(client), watcher::Config::default(), convert, |event| event);
    let mut known = Known::default();
    let (mut told, mut refused) = (false, false);
    while let Some(result) = events.next().await {
        match result {
            Ok(event) => {
                for Named { name, value, .. } in known.on_event(event) {
                    let name = if prefix.is_empty() { name } else { format!("{prefix}{name}").into() };
                    if to.send(Seen::Object(kind, name, value.map(Box::new))).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                refused = refusal(&error).is_some();
                // A version that is not served will not be until this process starts anew.
                if refusal(&error) == Some(404) {
                    tracing::debug!(%error, "{kind:?} is not served");
                    if !told {
                        // Without a receiver there is nobody to tell.
                        let _ = to.send(Seen::Listed).await;
                    }
                    return;
                }
                tracing::warn!(%error, "watch of {kind:?} failed");
            }
        }
        // A kind that may not be read, or is not there, has no objects.
        if !told && (known.synced() || refused) {
            told = true;
            if to.send(Seen::Listed).await.is_err() {
                return;
            }
        }
    }
}

/// The code with which the API server says that a kind may not be read, or is not there.
fn refusal(error: &watcher::Error) -> Option<u16> {
    let of = |error: &kube::Error| match error {
        kube::Error::Api(status) => Some(status.code).filter(|code| matches!(code, 403 | 404)),
        _ => None,
    };
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => of(error),
        _ => None,
    }
}
