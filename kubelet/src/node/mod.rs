//! The Node object and its Lease: registration, status, heartbeat.

mod lease;
pub(crate) mod machine;
pub(crate) mod status;

use crate::config::Checked;
use crate::cri::Runtime;
use crate::events::{Kind, Recorder};
use crate::retry::Retry;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeSpec, NodeStatus, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use status::{Facts, Health};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How often the runtime's health is asked for.
const CHECK: Duration = Duration::from_secs(10);
/// The same while it is not ready.
const CHECK_UNREADY: Duration = Duration::from_millis(100);
/// How long after the start a runtime may take to come up before a node that was ready is said not to be: both start
/// together, and a restart shall go unnoticed.
const START_UP: Duration = Duration::from_secs(5);
/// A status that did not change is sent again after this time.
const REPORT: Duration = Duration::from_secs(300);
/// Images reported in the status.
const MAX_IMAGES: usize = 50;

/// Keeps the Node object current until cancelled.
pub(crate) struct NodeKeeper {
    pub config: Checked,
    pub client: Client,
    pub runtime: Runtime,
    pub recorder: Recorder,
    /// Told after each renewal of the Lease and each look at a ready node's status.
    pub heartbeat: Arc<Notify>,
    /// What the dataplane has programmed; see [`hawser_api::dataplane::PROGRAMMED_REVISION`].
    pub programmed: watch::Receiver<Option<hawser_api::dataplane::Programmed>>,
}

impl NodeKeeper {
    fn api(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Registers the node, then reports and renews. A Node that somebody deletes meanwhile stays away, as with
    /// Kubernetes' kubelet, until this kubelet starts anew or somebody makes the Node.
    pub async fn run(self, stop: CancellationToken) {
        let mut node = tokio::select! {
            () = stop.cancelled() => return,
            node = self.register() => node,
        };
        let uid = node.metadata.uid.clone().unwrap_or_default();
        self.event("Starting", "Starting kubelet.", &uid);
        loop {
            let uid = node.metadata.uid.clone().unwrap_or_default();
            let (client, config) = (self.client.clone(), self.config.clone());
            let lease = lease::keep(client, config, uid.clone(), self.programmed.clone(), &self.heartbeat);
            tokio::select! {
                () = stop.cancelled() => return,
                () = lease => {}
                () = self.report(node, uid) => {}
            }
            tracing::warn!("the Node was deleted: it comes back when this kubelet starts anew");
            node = tokio::select! {
                () = stop.cancelled() => return,
                node = self.until_made() => node,
            };
        }
    }

    /// Waits until somebody makes the Node.
    async fn until_made(&self) -> Node {
        let nodes = watcher::watch_object(self.api(), &self.config.node_name).backoff(Retry::default());
        let mut made = std::pin::pin!(nodes.filter_map(async |node| node.ok().flatten()));
        match made.next().await {
            Some(node) => node,
            None => std::future::pending().await,
        }
    }

    fn event(&self, reason: &str, message: &str, uid: &str) {
        let object = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.config.node_name.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        self.recorder.record(object, Kind::Normal, reason, message);
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let arch = machine::architecture();
        let mut labels: BTreeMap<String, String> = self.config.labels.iter().cloned().collect();
        for (k, v) in [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", arch),
        ] {
            labels.insert(k.to_owned(), v.to_owned());
        }
        labels
    }

    /// Makes the Node object or brings its labels up to date, for as long as it takes.
    async fn register(&self) -> Node {
        let mut retry = Retry::default();
        loop {
            match self.try_register().await {
                Ok(node) => return node,
                Err(e) => tracing::warn!("registering the node: {e}"),
            }
            tokio::time::sleep(retry.next().unwrap_or(CHECK)).await;
        }
    }

    async fn try_register(&self) -> Result<Node, kube::Error> {
        let api = self.api();
        let name = &self.config.node_name;
        if self.config.register_node {
            let facts = self.facts().await;
            let node = Node {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some(self.labels()),
                    ..ObjectMeta::default()
                },
                spec: Some(NodeSpec {
                    taints: (!self.config.taints.is_empty()).then(|| self.config.taints.clone()),
                    ..NodeSpec::default()
                }),
                status: Some(status::build(&self.config, &facts, None, Timestamp::now())),
            };
            match api.create(&PostParams::default(), &node).await {
                Ok(node) => return Ok(node),
                Err(kube::Error::Api(s)) if s.code == 409 => {}
                Err(e) => return Err(e),
            }
        }
        let patch = serde_json::json!({"metadata": {"labels": self.labels()}});
        api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await
    }

    /// Reports the status when it changes, and every five minutes, until the Node is deleted.
    async fn report(&self, node: Node, uid: String) {
        let started = tokio::time::Instant::now();
        let mut seen = Seen { published: node.status, ..Seen::default() };
        // The registered object has what an earlier kubelet published: all of it is looked at once.
        let mut published_at = None;
        let api = self.api();
        let mut nodes =
            std::pin::pin!(watcher::watch_object(api, &self.config.node_name).backoff(Retry::default()));
        loop {
            self.give_cidr(&mut seen).await;
            let facts = self.facts().await;
            let wanted = status::build(&self.config, &facts, seen.published.as_ref(), Timestamp::now());
            let ready = facts.health.problem.is_none();
            let was_ready = seen.published.as_ref().is_some_and(is_ready);
            let starting = !ready && was_ready && started.elapsed() < START_UP;
            let changed = seen.published.as_ref().is_none_or(|p| !status::same(p, &wanted));
            let due = published_at.is_none_or(|at: tokio::time::Instant| at.elapsed() >= REPORT);
            if (changed || due) && !starting {
                match self.publish(&wanted).await {
                    Ok(node) => {
                        seen.version = version(&node);
                        if ready && !was_ready {
                            let text = format!("Node {} status is now: NodeReady", self.config.node_name);
                            self.event("NodeReady", &text, &uid);
                        }
                        seen.published = Some(wanted);
                        published_at = Some(tokio::time::Instant::now());
                    }
                    Err(e) => tracing::warn!("reporting the node's status: {e}"),
                }
            }
            if ready {
                self.heartbeat.notify_one();
            }
            let settled = ready && seen.cidr == seen.given;
            let pause = tokio::time::sleep(if settled { CHECK } else { CHECK_UNREADY });
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    node = nodes.next() => match node {
                        Some(Ok(Some(node))) => if seen.heed(&node) { break },
                        Some(Ok(None)) => return,
                        Some(Err(e)) => tracing::debug!("watching the node: {e}"),
                        None => break,
                    },
                }
            }
        }
    }

    /// Tells the runtime its pod CIDR.
    async fn give_cidr(&self, seen: &mut Seen) {
        if seen.cidr == seen.given {
            return;
        }
        let network = cri::NetworkConfig { pod_cidr: seen.given.clone().unwrap_or_default() };
        let config = cri::RuntimeConfig { network_config: Some(network) };
        let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(config) };
        match self.runtime.runtime().update_runtime_config(request).await {
            Ok(_) => seen.cidr.clone_from(&seen.given),
            Err(e) => tracing::debug!("giving the runtime its pod CIDR: {}", e.message()),
        }
    }

    async fn publish(&self, status: &NodeStatus) -> Result<Node, kube::Error> {
        let patch = status_patch(status);
        let name = &self.config.node_name;
        self.api().patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await
    }

    async fn facts(&self) -> Facts {
        let version = self.runtime.runtime().version(cri::VersionRequest::default()).await;
        let runtime =
            version.map(|v| v.into_inner()).map(|v| format!("{}://{}", v.runtime_name, v.runtime_version));
        Facts {
            capacity: machine::capacity(&self.config.data_dir, self.config.max_pods),
            info: machine::system_info(&self.config.version, &runtime.unwrap_or_default()),
            images: self.images().await,
            health: self.health().await,
        }
    }

    async fn images(&self) -> Vec<ContainerImage> {
        let answer = self.runtime.images().list_images(cri::ListImagesRequest::default()).await;
        let mut images = answer.map(|a| a.into_inner().images).unwrap_or_default();
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
        images.truncate(MAX_IMAGES);
        let name = |i: cri::Image| ContainerImage {
            size_bytes: i64::try_from(i.size).ok(),
            names: Some(i.repo_digests.into_iter().chain(i.repo_tags).collect()),
        };
        images.into_iter().map(name).collect()
    }

    async fn health(&self) -> Health {
        let problem = match self.runtime.runtime().status(cri::StatusRequest { verbose: false }).await {
            Err(e) => Some(format!("container runtime is down: {}", e.message())),
            Ok(answer) => {
                let conditions = answer.into_inner().status.map(|s| s.conditions).unwrap_or_default();
                let text = |kind: &str, words: &str| match conditions.iter().find(|c| c.r#type == kind) {
                    Some(c) if c.status => None,
                    Some(c) => Some(format!(
                        "{words} not ready: {kind}=false reason:{} message:{}",
                        c.reason, c.message
                    )),
                    None => Some(format!("{words} status check may not have completed yet")),
                };
                text("RuntimeReady", "container runtime")
                    .or_else(|| text("NetworkReady", "container runtime network"))
            }
        };
        Health { problem }
    }
}

/// What the keeper knows of the Node object.
#[derive(Default)]
struct Seen {
    /// The status that the API has.
    published: Option<NodeStatus>,
    /// The resourceVersion at which the API got it.
    version: u64,
    /// The pod CIDR that the control plane gave.
    given: Option<String>,
    /// The one that the runtime was told.
    cidr: Option<String>,
}

impl Seen {
    /// Takes note of the Node object. Says whether there is something to do about it.
    fn heed(&mut self, node: &Node) -> bool {
        let given = node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).filter(|c| !c.is_empty());
        if given.is_some() && given != self.given {
            self.given = given;
            return true;
        }
        // The node lifecycle controller, or a person, may have changed our conditions: say again what is true.
        let overruled =
            self.published.as_ref().is_some_and(is_ready) && !node.status.as_ref().is_some_and(is_ready);
        if overruled {
            self.published.clone_from(&node.status);
        }
        overruled
    }
}

/// A node's resourceVersion; versions of one object are ordered (KEP-5504).
fn version(node: &Node) -> u64 {
    node.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn is_ready(s: &NodeStatus) -> bool {
    s.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A strategic merge patch to a status. Addresses are replaced as a whole: the key that they would be merged by is their
/// type, of which a node of two families has two.
fn status_patch(status: &NodeStatus) -> serde_json::Value {
    let mut patch = serde_json::json!({"status": status});
    if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
        addresses.push(serde_json::json!({"$patch": "replace"}));
    }
    patch
}
