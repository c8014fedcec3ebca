//! What all pod workers share, and a pod's holds on API objects.

use crate::config::Checked;
use crate::cri::Runtime;
use crate::env::Sources;
use crate::events::Recorder;
use crate::images::Images;
use crate::objects::{Cache, Handle};
use crate::pod::NodeFacts;
use crate::services::Services;
use crate::volumes::Roots;
use k8s_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// What all pod workers share.
pub(crate) struct Shared {
    pub config: Checked,
    pub client: Client,
    pub runtime: Runtime,
    pub images: Images,
    pub recorder: Recorder,
    pub roots: Roots,
    pub config_maps: Cache<ConfigMap>,
    pub secrets: Cache<Secret>,
    pub services: Services,
    pub host_dns: DnsConfig,
    pub facts: NodeFacts,
    /// The node's capacity of memory, in bytes.
    pub node_memory: i64,
    pub allocatable: BTreeMap<String, Quantity>,
}

/// One pod's holds on the ConfigMaps and Secrets that it refers to. They are taken when first needed and given up
/// with the pod.
pub(crate) struct PodObjects {
    shared: Arc<Shared>,
    namespace: String,
    changed: mpsc::UnboundedSender<()>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    config_maps: HashMap<String, Handle<ConfigMap>>,
    secrets: HashMap<String, Handle<Secret>>,
    forwarders: Vec<AbortOnDropHandle<()>>,
}

/// Names of the objects that something refers to.
#[derive(Default)]
struct Names<'a> {
    config_maps: BTreeSet<&'a str>,
    secrets: BTreeSet<&'a str>,
}

impl PodObjects {
    /// `changed` is told of every change of a held object.
    pub fn new(shared: Arc<Shared>, pod: &Pod, changed: mpsc::UnboundedSender<()>) -> PodObjects {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        PodObjects { shared, namespace, changed, held: Mutex::default() }
    }

    /// What a container's environment refers to.
    pub async fn for_container(&self, pod: &Pod, c: &Container) -> Result<Sources, String> {
        let mut names = Names::default();
        for from in c.env_from.iter().flatten() {
            names.config_maps.extend(from.config_map_ref.iter().map(|r| r.name.as_str()));
            names.secrets.extend(from.secret_ref.iter().map(|r| r.name.as_str()));
        }
        let mut files = HashMap::new();
        for from in c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            names.config_maps.extend(from.config_map_key_ref.iter().map(|r| r.name.as_str()));
            names.secrets.extend(from.secret_key_ref.iter().map(|r| r.name.as_str()));
            if let Some(r) = &from.file_key_ref {
                let text = self.read_file(pod, &r.volume_name, &r.path);
                files.insert((r.volume_name.clone(), r.path.clone()), text);
            }
        }
        let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let services = self.shared.services.visible(&self.namespace, links);
        let (mut sources, services) = futures::try_join!(self.fetch(names), services)?;
        sources.services = services;
        sources.files = files;
        Ok(sources)
    }

    /// A file of a volume, read without leaving the volume.
    fn read_file(&self, pod: &Pod, volume: &str, path: &str) -> Option<String> {
        let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
        let volume = volumes.iter().find(|v| v.name == volume)?;
        let dir = self.shared.roots.host_path(pod.metadata.uid.as_deref()?, volume)?;
        if !dir.join(path).exists() {
            return None;
        }
        let file = crate::volumes::open_subpath(&dir, path).ok()?;
        std::fs::read_to_string(file.host_path()).ok()
    }

    /// What volumes refer to.
    pub async fn for_volumes(&self, volumes: &[Volume]) -> Result<Sources, String> {
        let mut names = Names::default();
        for v in volumes {
            names.config_maps.extend(v.config_map.iter().map(|c| c.name.as_str()));
            names.secrets.extend(v.secret.iter().filter_map(|s| s.secret_name.as_deref()));
            for s in v.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
                names.config_maps.extend(s.config_map.iter().map(|c| c.name.as_str()));
                names.secrets.extend(s.secret.iter().map(|s| s.name.as_str()));
            }
        }
        self.fetch(names).await
    }

    /// The pod's pull secrets that exist.
    pub async fn pull_secrets(&self, pod: &Pod) -> Result<Vec<Arc<Secret>>, String> {
        let refs = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
        let names = Names { secrets: refs.map(|r| r.name.as_str()).collect(), ..Names::default() };
        let sources = self.fetch(names).await?;
        Ok(sources.secrets.into_values().flatten().collect())
    }

    async fn fetch(&self, names: Names<'_>) -> Result<Sources, String> {
        let mut sources = Sources::default();
        let config_maps: Vec<_> = names.config_maps.iter().map(|n| (*n, self.config_map(n))).collect();
        let secrets: Vec<_> = names.secrets.iter().map(|n| (*n, self.secret(n))).collect();
        for (name, handle) in config_maps {
            let object =
                handle.get().await.map_err(|e| format!("failed to get configmap \"{name}\": {e}"))?;
            sources.config_maps.insert(name.to_owned(), object);
        }
        for (name, handle) in secrets {
            let object = handle.get().await.map_err(|e| format!("failed to get secret \"{name}\": {e}"))?;
            sources.secrets.insert(name.to_owned(), object);
        }
        Ok(sources)
    }

    fn config_map(&self, name: &str) -> Handle<ConfigMap> {
        let mut held = self.held.lock();
        if let Some(h) = held.config_maps.get(name) {
            return h.clone();
        }
        let handle = self.shared.config_maps.hold(&self.namespace, name);
        held.forwarders.push(self.forward(handle.changes()));
        held.config_maps.insert(name.to_owned(), handle.clone());
        handle
    }

    fn secret(&self, name: &str) -> Handle<Secret> {
        let mut held = self.held.lock();
        if let Some(h) = held.secrets.get(name) {
            return h.clone();
        }
        let handle = self.shared.secrets.hold(&self.namespace, name);
        held.forwarders.push(self.forward(handle.changes()));
        held.secrets.insert(name.to_owned(), handle.clone());
        handle
    }

    fn forward<T: Send + Sync + 'static>(
        &self,
        mut changes: tokio::sync::watch::Receiver<Option<T>>,
    ) -> AbortOnDropHandle<()> {
        let changed = self.changed.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            // The first answer is no change: whoever took hold waits for it.
            if changes.wait_for(Option::is_some).await.is_err() {
                return;
            }
            changes.mark_unchanged();
            while changes.changed().await.is_ok() {
                if changed.send(()).is_err() {
                    return;
                }
            }
        }))
    }
}
