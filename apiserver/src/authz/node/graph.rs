//! Which node needs which object: kept from pods, PersistentVolumes and VolumeAttachments, one at a time. Pure.

use std::collections::{HashMap, HashSet};

use hawser_api::object::ObjectExt;
use hawser_api::references::{Reference, SECRET_REF_VOLUMES, references};
use serde_json::Value;

/// An object that a pod may need on its node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Vertex {
    /// A Secret by namespace and name.
    Secret(String, String),
    /// A ConfigMap by namespace and name.
    ConfigMap(String, String),
    /// A PersistentVolumeClaim by namespace and name.
    Claim(String, String),
    /// A ServiceAccount by namespace and name.
    ServiceAccount(String, String),
    /// A ResourceClaim by namespace and name.
    ResourceClaim(String, String),
    /// The pod itself by namespace and name.
    Pod(String, String),
}

#[derive(Debug)]
struct PodEdges {
    node: String,
    vertices: Vec<Vertex>,
}

#[derive(Debug)]
struct Volume {
    /// Namespace and name of the claim.
    claim: (String, String),
    /// Secrets that mounting the volume needs.
    secrets: Vec<Vertex>,
}

/// The graph.
#[derive(Debug, Default)]
pub struct NodeGraph {
    /// By namespace and name.
    pods: HashMap<(String, String), PodEdges>,
    /// How many pods of a node need an object.
    needs: HashMap<String, HashMap<Vertex, u32>>,
    volumes: HashMap<String, Volume>,
    /// Volumes that need a secret.
    volumes_of_secret: HashMap<Vertex, HashSet<String>>,
    /// Node of a VolumeAttachment.
    attachments: HashMap<String, String>,
}

impl NodeGraph {
    /// Puts a pod in place, or removes it.
    pub fn set_pod(&mut self, namespace: &str, name: &str, pod: Option<&Value>) {
        let key = (namespace.to_owned(), name.to_owned());
        let new = pod.filter(|pod| !pod.str_at("spec.nodeName").is_empty()).map(|pod| PodEdges {
            node: pod.str_at("spec.nodeName").to_owned(),
            vertices: pod_vertices(namespace, name, pod),
        });
        // The new edges come first, so that what both need is never without a count.
        if let Some(PodEdges { node, vertices }) = &new {
            let needs = self.needs.entry(node.clone()).or_default();
            for vertex in vertices {
                *needs.entry(vertex.clone()).or_default() += 1;
            }
        }
        let old = match new {
            Some(new) => self.pods.insert(key, new),
            None => self.pods.remove(&key),
        };
        let Some(PodEdges { node, vertices }) = old else { return };
        let Some(needs) = self.needs.get_mut(&node) else { return };
        for vertex in vertices {
            if let Some(count) = needs.get_mut(&vertex) {
                *count -= 1;
                if *count == 0 {
                    needs.remove(&vertex);
                }
            }
        }
        if needs.is_empty() {
            self.needs.remove(&node);
        }
    }

    /// Puts a PersistentVolume in place, or removes it.
    pub fn set_volume(&mut self, name: &str, volume: Option<&Value>) {
        if let Some(old) = self.volumes.remove(name) {
            for secret in old.secrets {
                if let Some(volumes) = self.volumes_of_secret.get_mut(&secret) {
                    volumes.remove(name);
                    if volumes.is_empty() {
                        self.volumes_of_secret.remove(&secret);
                    }
                }
            }
        }
        let Some(volume) = volume else { return };
        let claim = (volume.str_at("spec.claimRef.namespace"), volume.str_at("spec.claimRef.name"));
        if claim.1.is_empty() {
            return;
        }
        let secrets = volume_secrets(volume, claim.0);
        for secret in &secrets {
            self.volumes_of_secret.entry(secret.clone()).or_default().insert(name.to_owned());
        }
        self.volumes
            .insert(name.to_owned(), Volume { claim: (claim.0.to_owned(), claim.1.to_owned()), secrets });
    }

    /// Puts a VolumeAttachment in place, or removes it.
    pub fn set_attachment(&mut self, name: &str, attachment: Option<&Value>) {
        match attachment.map(|a| a.str_at("spec.nodeName")).filter(|node| !node.is_empty()) {
            Some(node) => self.attachments.insert(name.to_owned(), node.to_owned()),
            None => self.attachments.remove(name),
        };
    }

    /// Forgets all objects of a resource, before a fresh list of it.
    pub fn clear(&mut self, resource: &str) {
        match resource {
            "pods" => {
                self.pods.clear();
                self.needs.clear();
            }
            "persistentvolumes" => {
                self.volumes.clear();
                self.volumes_of_secret.clear();
            }
            _ => self.attachments.clear(),
        }
    }

    /// Whether a pod of the node needs the object, directly or through a bound volume.
    pub fn needs(&self, node: &str, vertex: &Vertex) -> bool {
        let Some(needs) = self.needs.get(node) else { return false };
        if needs.contains_key(vertex) {
            return true;
        }
        let mut volumes = self.volumes_of_secret.get(vertex).into_iter().flatten();
        volumes.any(|volume| self.needs_volume(node, volume))
    }

    /// Whether a pod of the node uses the claim that the volume is bound to.
    pub fn needs_volume(&self, node: &str, volume: &str) -> bool {
        let Some(Volume { claim: (namespace, name), .. }) = self.volumes.get(volume) else { return false };
        let claim = Vertex::Claim(namespace.clone(), name.clone());
        self.needs.get(node).is_some_and(|needs| needs.contains_key(&claim))
    }

    /// Whether the VolumeAttachment is for the node.
    pub fn attached(&self, node: &str, attachment: &str) -> bool {
        self.attachments.get(attachment).is_some_and(|n| n == node)
    }
}

/// Annotation of pods that mirror a node's own static pods.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

fn pod_vertices(namespace: &str, name: &str, pod: &Value) -> Vec<Vertex> {
    let mut vertices = HashSet::from([Vertex::Pod(namespace.to_owned(), name.to_owned())]);
    // A node makes its mirror pods itself: what they name opens nothing.
    if pod.annotation(MIRROR_ANNOTATION).is_none() {
        let mut see = |reference: Reference<'_>| {
            let namespace = namespace.to_owned();
            vertices.insert(match reference {
                Reference::Secret(name) => Vertex::Secret(namespace, name.to_owned()),
                Reference::ConfigMap(name) => Vertex::ConfigMap(namespace, name.to_owned()),
                Reference::Claim(name) => Vertex::Claim(namespace, name.to_owned()),
                Reference::ServiceAccount(name) => Vertex::ServiceAccount(namespace, name.to_owned()),
                Reference::ResourceClaim(name) => Vertex::ResourceClaim(namespace, name.to_owned()),
            });
        };
        references(pod, &mut see);
        // A generic ephemeral volume's claim has a name made of the pod's and the volume's.
        for volume in
            pod.items_at("spec.volumes").iter().filter(|v| v.get("ephemeral").is_some_and(Value::is_object))
        {
            see(Reference::Claim(&format!("{name}-{}", volume.str_at("name"))));
        }
    }
    vertices.into_iter().collect()
}

fn volume_secrets(volume: &Value, claim_namespace: &str) -> Vec<Vertex> {
    let mut secrets = Vec::new();
    let mut give = |namespace: &str, name: &str| {
        let namespace = if namespace.is_empty() { claim_namespace } else { namespace };
        if !name.is_empty() {
            secrets.push(Vertex::Secret(namespace.to_owned(), name.to_owned()));
        }
    };
    let Some(spec) = volume.get("spec") else { return secrets };
    give(spec.str_at("azureFile.secretNamespace"), spec.str_at("azureFile.secretName"));
    for kind in SECRET_REF_VOLUMES.into_iter().chain(["iscsi"]) {
        if let Some(source) = spec.get(kind) {
            give(source.str_at("secretRef.namespace"), source.str_at("secretRef.name"));
        }
    }
    // What the node itself uses; the controller's secrets are none of its business.
    for field in ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"] {
        if let Some(source) = spec.get("csi").and_then(|csi| csi.get(field)) {
            give(source.str_at("namespace"), source.str_at("name"));
        }
    }
    secrets
}
