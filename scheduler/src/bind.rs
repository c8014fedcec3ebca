//! Carrying out a choice: what volumes need is written, then the pod is bound.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::claim;
use crate::extender::Extenders;
use crate::framework::Write;
use crate::pod::{PodInfo, PodKey};

/// The outcome of a binding, or of the writes before it.
pub struct Bound {
    pub pod: Arc<PodInfo>,
    pub node: Arc<str>,
    /// These were the writes; the binding itself is to come.
    pub written: bool,
    pub result: Result<(), String>,
    /// The pod is gone.
    pub gone: bool,
}

/// Binds a pod to a node.
pub async fn bind(client: Client, extenders: Arc<Extenders>, pod: Arc<PodInfo>, node: Arc<str>) -> Bound {
    let binding = Binding {
        metadata: ObjectMeta {
            namespace: Some(pod.key.namespace.to_string()),
            name: Some(pod.key.name.to_string()),
            uid: Some(pod.key.uid.to_string()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_string()),
            ..ObjectReference::default()
        },
    };
    if let Some(result) = extenders.bind(&pod, &node).await {
        return Bound { pod, node, written: false, result, gone: false };
    }
    let pods: Api<Pod> = Api::namespaced(client, &pod.key.namespace);
    let asked: Result<serde_json::Value, _> =
        pods.create_subresource("binding", &pod.key.name, &PostParams::default(), &binding).await;
    let gone = matches!(&asked, Err(kube::Error::Api(status)) if status.code == 404);
    Bound { pod, node, written: false, result: asked.map(|_| ()).map_err(|e| e.to_string()), gone }
}

/// Writes what volumes need before a pod can be bound.
pub async fn write(client: Client, pod: Arc<PodInfo>, node: Arc<str>, writes: Vec<Write>) -> Bound {
    let result = write_all(&client, &pod.key, writes).await;
    Bound { pod, node, written: true, result, gone: false }
}

/// Writes one after the other, up to the first that fails.
pub async fn write_all(client: &Client, pod: &PodKey, writes: Vec<Write>) -> Result<(), String> {
    for write in writes {
        one(client, pod, write).await?;
    }
    Ok(())
}

async fn one(client: &Client, pod: &PodKey, write: Write) -> Result<(), String> {
    let params = PostParams::default();
    let written = match write {
        Write::Volume(volume) => {
            let name = volume.metadata.name.clone().unwrap_or_default();
            Api::<PersistentVolume>::all(client.clone()).replace(&name, &params, &volume).await.map(|_| ())
        }
        Write::Claim(claim) => {
            let name = claim.metadata.name.clone().unwrap_or_default();
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &pod.namespace);
            claims.replace(&name, &params, &claim).await.map(|_| ())
        }
        Write::ResourceClaim { claim, allocation, consumer } => {
            return claim::reserve(client, &claim, allocation.as_deref(), &consumer).await;
        }
        Write::ExtendedClaim { plan, allocation, consumer } => {
            return claim::make(client, pod, &plan, &allocation, &consumer).await;
        }
        Write::DeleteClaim(claim) => claim::delete(client, &claim).await,
        Write::Unreserve(claim, pod) => claim::unreserve(client, &claim, &pod).await,
        Write::Deallocate(claim) => claim::deallocate(client, &claim).await,
    };
    written.map_err(|e| e.to_string())
}
