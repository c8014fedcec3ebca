//! Attaching volumes of CSI drivers to nodes, by VolumeAttachments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{AttachedVolume, Node, PersistentVolume};
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::cache::{BY_CLAIM, BY_NODE, BY_REFERENCE, Caches, Pod};
use crate::object::{self, Key};
use crate::plan::{Act, Note, Plan, Step};
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};

/// After which time a volume that the node says is in use is detached all the same, from a node that is not ready.
const UNMOUNT_WAIT: Duration = Duration::from_secs(6 * 60);
/// On a node: it is out of service, and nothing on it runs.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// On a pod that waits: how often it is looked at.
const RETRY: Duration = Duration::from_secs(15);

/// A volume that a node needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Needed {
    /// The volume.
    pub volume: Arc<PersistentVolume>,
    /// The pods that need it.
    pub pods: Vec<Arc<Pod>>,
    /// Other nodes that it is attached to, and that keep it from this one.
    pub elsewhere: Vec<String>,
    /// The pods there that use it.
    pub users: Vec<Arc<Pod>>,
}

/// What a decision about a node rests on.
pub struct View {
    /// The node; none if it is gone.
    pub node: Option<Arc<Node>>,
    /// Its name.
    pub name: String,
    /// What it needs, by the name of the attachment.
    pub needed: BTreeMap<String, Needed>,
    /// What is attached to it, or is to be.
    pub attachments: Vec<Arc<VolumeAttachment>>,
    /// Since when it has not been ready, if it is not.
    pub unready_since: Option<Timestamp>,
    /// By volume: the unique name under which nodes report it.
    pub names: BTreeMap<String, String>,
}

/// The name of an attachment: as Kubernetes' CSI plugin makes it.
pub fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}").as_bytes());
    digest.iter().fold("csi-".to_owned(), |mut name, byte| {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// Driver and handle of a CSI volume.
fn csi(volume: &PersistentVolume) -> Option<(&str, &str)> {
    let source = volume.spec.as_ref()?.csi.as_ref()?;
    Some((&source.driver, &source.volume_handle))
}

/// The name under which kubelets report a volume.
fn unique_name(volume: &PersistentVolume) -> Option<String> {
    let (driver, handle) = csi(volume)?;
    Some(format!("kubernetes.io/csi/{driver}^{handle}"))
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|s| s.attached)
}

fn attach(node: &str, name: &str, volume: &PersistentVolume) -> Option<VolumeAttachment> {
    let (driver, _) = csi(volume)?;
    Some(VolumeAttachment {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: VolumeAttachmentSpec {
            attacher: driver.to_owned(),
            node_name: node.to_owned(),
            source: VolumeAttachmentSource {
                persistent_volume_name: volume.metadata.name.clone(),
                inline_volume_spec: None,
            },
        },
        status: None,
    })
}

/// Whether a volume that nobody needs may go: the node does not mount it any more, or cannot say so and runs nothing.
fn may_detach(view: &View, attachment: &VolumeAttachment, now: Timestamp) -> Result<(), Duration> {
    let Some(node) = &view.node else { return Ok(()) };
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    if taints.into_iter().any(|t| t.key == OUT_OF_SERVICE) {
        return Ok(());
    }
    let volume = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
    let mounted = node.status.iter().flat_map(|s| s.volumes_in_use.iter().flatten());
    // A volume whose name is not known any more cannot be looked for.
    let in_use = view.names.get(volume).is_some_and(|name| mounted.into_iter().any(|m| m == name));
    if !in_use {
        return Ok(());
    }
    let waited = view.unready_since.map(|since| now.duration_since(since).unsigned_abs());
    match waited {
        Some(waited) if waited >= UNMOUNT_WAIT => Ok(()),
        Some(waited) => Err(UNMOUNT_WAIT - waited),
        None => Err(RETRY),
    }
}

/// What keeps a pod's volume on another node. Pods of other namespaces are none of its users' business, so they are counted
/// and not named.
fn in_the_way(pod: &Pod, users: &[Arc<Pod>]) -> String {
    let (near, far): (Vec<_>, Vec<_>) =
        users.iter().partition(|user| object::namespace(user.as_ref()) == object::namespace(pod));
    let names: Vec<&str> = near.iter().map(|user| object::name(user.as_ref())).collect();
    match (names.is_empty(), far.len()) {
        (true, 0) => {
            "Volume is already exclusively attached to one node and can't be attached to another".to_owned()
        }
        (true, others) => format!("Volume is already used by {others} pod(s) in different namespaces"),
        (false, 0) => format!("Volume is already used by pod(s) {}", names.join(", ")),
        (false, others) => format!(
            "Volume is already used by pod(s) {} and {others} pod(s) in different namespaces",
            names.join(", ")
        ),
    }
}

/// Decides about a node's volumes.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let held: BTreeMap<&str, &Arc<VolumeAttachment>> =
        view.attachments.iter().map(|a| (object::name(a.as_ref()), a)).collect();
    let (mut made, mut removed) = (Vec::new(), Vec::new());
    for (name, needed) in &view.needed {
        if held.contains_key(name.as_str()) || view.node.is_none() {
            continue;
        }
        let volume = object::name(needed.volume.as_ref());
        if !needed.elsewhere.is_empty() {
            for pod in &needed.pods {
                let why =
                    format!("Multi-Attach error for volume {volume:?} {}", in_the_way(pod, &needed.users));
                plan.events.push(Note::warning(object::reference(pod.as_ref()), "FailedAttachVolume", why));
            }
            plan.requeue(RETRY);
            continue;
        }
        let Some(attachment) = attach(&view.name, name, &needed.volume) else { continue };
        let mut act = Act::create(&attachment).may_exist();
        if let Some(pod) = needed.pods.first() {
            let failed = format!("AttachVolume.Attach failed for volume {volume:?} : {{error}}");
            act = act.err(Note::warning(object::reference(pod.as_ref()), "FailedAttachVolume", failed));
        }
        made.push(act);
    }
    for attachment in &view.attachments {
        let name = object::name(attachment.as_ref());
        // Attachments of other makers have names of other forms.
        let ours = name.len() == 68 && name.starts_with("csi-");
        if !ours || view.needed.contains_key(name) || object::is_deleting(attachment.as_ref()) {
            continue;
        }
        match may_detach(view, attachment, now) {
            Ok(()) => removed.push(Act::delete(attachment.as_ref())),
            Err(wait) => plan.requeue(wait),
        }
    }
    for acts in [removed, made] {
        if !acts.is_empty() {
            plan.actions.push(Step::Parallel(acts));
        }
    }
    report(view, &mut plan);
    plan
}

/// Tells the kubelet what is attached, and the pods' users when something has become so.
fn report(view: &View, plan: &mut Plan) {
    let Some(node) = &view.node else { return };
    let mut attached: Vec<AttachedVolume> = Vec::new();
    for attachment in view.attachments.iter().filter(|a| is_attached(a) && !object::is_deleting(a.as_ref())) {
        let volume = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        let Some(name) = view.names.get(volume) else { continue };
        let device_path = object::name(attachment.as_ref()).to_owned();
        attached.push(AttachedVolume { device_path, name: name.clone() });
    }
    attached.sort_by(|a, b| a.name.cmp(&b.name));
    let said = node.status.as_ref().and_then(|s| s.volumes_attached.clone()).unwrap_or_default();
    if said == attached {
        return;
    }
    for needed in view.needed.values() {
        let (volume, name) = (object::name(needed.volume.as_ref()), unique_name(&needed.volume));
        let is_in = |list: &[AttachedVolume]| list.iter().any(|a| Some(&a.name) == name.as_ref());
        if is_in(&attached) && !is_in(&said) {
            let message = format!("AttachVolume.Attach succeeded for volume {volume:?} ");
            for pod in &needed.pods {
                let about = object::reference(pod.as_ref());
                plan.events.push(Note::normal(about, "SuccessfulAttachVolume", message.clone()));
            }
        }
    }
    // The kubelet writes the rest of the status: only this field is ours.
    let value = if attached.is_empty() { json!(null) } else { json!(attached) };
    let patch = json!({"status": {"volumesAttached": value}});
    plan.status = Some(Box::new(Act::patch(node.as_ref(), Some("status"), patch).may_be_absent()));
}

/// The controller. Keys are nodes.
pub struct Attacher {
    caches: Arc<Caches>,
}

impl Attacher {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }

    /// The volumes that a pod's claims are bound to.
    fn volumes_of(&self, pod: &Pod) -> Vec<Arc<PersistentVolume>> {
        let namespace = object::namespace(pod);
        let bound = crate::protection::claims_of(pod).into_iter().filter_map(|claim| {
            let claim = self.caches.claims.get(&Key::new(namespace, claim))?;
            let name = claim.spec.as_ref()?.volume_name.clone().filter(|n| !n.is_empty())?;
            let volume = self.caches.volumes.get(&Key::cluster(name))?;
            super::is_bound_to(&volume, &claim).then_some(volume)
        });
        bound.collect()
    }

    fn needs_attachment(&self, driver: &str) -> bool {
        let driver = self.caches.csi_drivers.get(&Key::cluster(driver));
        driver.is_none_or(|d| d.spec.attach_required.unwrap_or(true))
    }

    fn needed(&self, node: &str) -> BTreeMap<String, Needed> {
        let mut needed: BTreeMap<String, Needed> = BTreeMap::new();
        for pod in self.caches.pods.by_index(BY_NODE, node).into_iter().filter(|p| !pods::is_terminal(p)) {
            for volume in self.volumes_of(&pod) {
                let Some((driver, handle)) = csi(&volume) else { continue };
                if !self.needs_attachment(driver) {
                    continue;
                }
                let name = attachment_name(handle, driver, node);
                let held = needed.entry(name).or_insert_with(|| {
                    let elsewhere = self.elsewhere(&volume, node);
                    let users = self.users(&volume, &elsewhere);
                    Needed { volume: volume.clone(), pods: Vec::new(), elsewhere, users }
                });
                held.pods.push(pod.clone());
            }
        }
        needed
    }

    /// Nodes that have a volume which only one may have.
    fn elsewhere(&self, volume: &PersistentVolume, node: &str) -> Vec<String> {
        let modes = volume.spec.as_ref().and_then(|s| s.access_modes.as_ref());
        if modes.is_some_and(|m| m.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany")) {
            return Vec::new();
        }
        let of = self.caches.attachments.by_index(BY_REFERENCE, object::name(volume));
        of.iter().map(|a| a.spec.node_name.clone()).filter(|n| n != node).collect()
    }

    /// Pods on some nodes that use a volume.
    fn users(&self, volume: &PersistentVolume, nodes: &[String]) -> Vec<Arc<Pod>> {
        if nodes.is_empty() {
            return Vec::new();
        }
        let pods = claim_of(volume).map(|claim| self.caches.pods.by_index(BY_CLAIM, &claim.to_string()));
        let there = |pod: &Arc<Pod>| nodes.iter().any(|n| n == pods::node(pod)) && !pods::is_terminal(pod);
        pods.into_iter().flatten().filter(there).collect()
    }
}

/// The claim that a volume is bound to.
fn claim_of(volume: &PersistentVolume) -> Option<Key> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::new(claim.namespace.clone().unwrap_or_default(), claim.name.clone().unwrap_or_default()))
}

/// Index: attachments by node.
pub fn node_of(attachment: &VolumeAttachment) -> Vec<String> {
    vec![attachment.spec.node_name.clone()]
}

/// Index: attachments by volume.
pub fn volume_of(attachment: &VolumeAttachment) -> Vec<String> {
    attachment.spec.source.persistent_volume_name.clone().into_iter().collect()
}

#[async_trait]
impl Controller for Attacher {
    type View = View;

    fn name(&self) -> &'static str {
        "persistentvolume-attach-detach"
    }

    fn component(&self) -> &'static str {
        "attachdetach-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.pods.on_change(move |change| {
            for pod in change.states().filter(|pod| !crate::protection::claims_of(pod).is_empty()) {
                let node = pods::node(pod);
                if !node.is_empty() {
                    q.add(Key::cluster(node));
                }
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.attachments.on_change(move |change| {
            for attachment in change.states() {
                q.add(Key::cluster(&attachment.spec.node_name));
            }
            // What is not attached here any more may be attached elsewhere.
            let Some(gone) = change.old.filter(|_| change.new.is_none()) else { return };
            let volume = gone.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
            let volume = this.caches.volumes.get(&Key::cluster(volume));
            let Some(claim) = volume.as_deref().and_then(claim_of) else { return };
            for pod in this.caches.pods.by_index(BY_CLAIM, &claim.to_string()) {
                q.add(Key::cluster(pods::node(&pod)));
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.nodes.on_change(move |change| {
            let in_use = |n: &Arc<Node>| n.status.as_ref().and_then(|s| s.volumes_in_use.clone());
            let taints = |n: &Arc<Node>| n.spec.as_ref().and_then(|s| s.taints.clone());
            let facts = |n: &Arc<Node>| (in_use(n), taints(n));
            let some = this.caches.attachments.count(BY_NODE, &change.key.name) > 0;
            if some && change.old.map(facts) != change.new.map(facts) {
                q.add(change.key.clone());
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.claims.on_change(move |change| {
            // A claim that has just been bound: its pods were scheduled before.
            let volume = |c: &Arc<k8s_openapi::api::core::v1::PersistentVolumeClaim>| {
                c.spec.as_ref().and_then(|s| s.volume_name.clone())
            };
            if change.old.map(volume) != change.new.map(volume) {
                let users = this.caches.pods.by_index(BY_CLAIM, &change.key.to_string());
                let nodes: BTreeSet<String> = users.iter().map(|p| pods::node(p).to_owned()).collect();
                nodes.into_iter().filter(|n| !n.is_empty()).for_each(|n| q.add(Key::cluster(n)));
            }
        });
        self.caches.volumes.want();
        self.caches.csi_drivers.want();
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        if key.name.is_empty() {
            return Ok(None);
        }
        let node = self.caches.nodes.get(key);
        let attachments = self.caches.attachments.by_index(BY_NODE, &key.name);
        let ready = node.iter().flat_map(|n| n.status.iter()).flat_map(|s| s.conditions.iter().flatten());
        let ready = ready.into_iter().find(|c| c.type_ == "Ready" && c.status != "True");
        let unready_since = ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
        let names = attachments.iter().filter_map(|a| {
            let volume = a.spec.source.persistent_volume_name.clone()?;
            let name = unique_name(self.caches.volumes.get(&Key::cluster(&volume))?.as_ref())?;
            Some((volume, name))
        });
        Ok(Some(View {
            names: names.collect(),
            needed: self.needed(&key.name),
            name: key.name.clone(),
            node,
            attachments,
            unready_since,
        }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
