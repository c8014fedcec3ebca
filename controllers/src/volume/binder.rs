//! The two controllers that bind: one looks at claims, the other at volumes.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Api, Client};

use super::{
    BIND_COMPLETED, annotation, claim, class_of_claim, class_of_volume, default_class, matching, phase,
};
use crate::cache::{BY_CLAIM, BY_CLASS, BY_REFERENCE, Caches};
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};

/// How many claims a volume that becomes free wakes. The others look by themselves after a while, so that many volumes
/// for many claims do not cost their product.
const WAKE: usize = 4;

/// Index: free volumes by their class.
pub fn free_volumes(volume: &PersistentVolume) -> Vec<String> {
    if matching::is_free(volume) { vec![class_of_volume(volume).to_owned()] } else { Vec::new() }
}

/// Index: claims that wait for a volume, by their class.
pub fn waiting_claims(claim: &PersistentVolumeClaim) -> Vec<String> {
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    if annotation(claim, BIND_COMPLETED).is_some() || !named.is_empty() {
        return Vec::new();
    }
    vec![class_of_claim(claim).to_owned()]
}

/// Index: claims by the volume that they name.
pub fn volume_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.clone());
    named.into_iter().filter(|n| !n.is_empty()).collect()
}

/// Index: volumes by the claim that they name.
pub fn claim_of_volume(volume: &PersistentVolume) -> Vec<String> {
    referred(volume).map(|key| key.to_string()).into_iter().collect()
}

fn referred(volume: &PersistentVolume) -> Option<Key> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::new(
        reference.namespace.clone().unwrap_or_default(),
        reference.name.clone().unwrap_or_default(),
    ))
}

/// Finds volumes for claims. Keys are claims.
pub struct Binder {
    caches: Arc<Caches>,
}

impl Binder {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for Binder {
    type View = claim::View;

    fn name(&self) -> &'static str {
        "persistentvolume-binder"
    }

    fn component(&self) -> &'static str {
        "persistentvolume-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.claims.queue_changed(queue);
        let (this, q) = (self.clone(), queue.clone());
        self.caches.volumes.on_change(move |change| {
            let caches = &this.caches;
            for volume in change.states() {
                referred(volume).into_iter().for_each(|claim| q.add(claim));
            }
            for claim in caches.claims.by_index(BY_REFERENCE, &change.key.name) {
                q.add(Key::of(claim.as_ref()));
            }
            if let Some(volume) = change.new.filter(|v| matching::is_free(v)) {
                let waiting = caches.claims.by_index(BY_CLASS, class_of_volume(volume));
                let free = [volume.clone()];
                let suited =
                    waiting.iter().filter(|c| matches!(matching::best(c, &[], &free, false), Ok(Some(_))));
                suited.take(WAKE).for_each(|c| q.add(Key::of(c.as_ref())));
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.storage_classes.on_change(move |change| {
            // A class that comes or becomes the default one: an administrator's doing, and rare.
            for class in ["", &change.key.name] {
                for claim in this.caches.claims.by_index(BY_CLASS, class) {
                    q.add(Key::of(claim.as_ref()));
                }
            }
        });
        self.caches.pods.want();
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<claim::View>, ViewError> {
        let Some(claim) = self.caches.claims.get(key) else { return Ok(None) };
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let class = class_of_claim(&claim).to_owned();
        let users = self.caches.pods.by_index(BY_CLAIM, &key.to_string());
        let waiting = users.iter().filter(|p| !pods::is_terminal(p) && pods::node(p).is_empty());
        Ok(Some(claim::View {
            named: self.caches.volumes.get(&Key::cluster(named)),
            reserved: self.caches.volumes.by_index(BY_REFERENCE, &key.to_string()),
            free: self.caches.volumes.by_index(BY_CLASS, &class),
            class: self.caches.storage_classes.get(&Key::cluster(class)),
            default_class: default_class(&self.caches.storage_classes.all())
                .map(|c| object::name(c).to_owned()),
            waiting: waiting.map(|p| object::name(p.as_ref()).to_owned()).collect(),
            claim,
        }))
    }

    fn reconcile(&self, view: &claim::View, now: Timestamp) -> Plan {
        claim::reconcile(view, now)
    }
}

/// Keeps volumes' phases and reclaims them. Keys are volumes.
pub struct Reclaimer {
    caches: Arc<Caches>,
    client: Client,
}

impl Reclaimer {
    /// A controller on these caches. `client` looks once more for a claim that seems to be gone.
    pub fn new(caches: &Arc<Caches>, client: &Client) -> Self {
        Self { caches: caches.clone(), client: client.clone() }
    }

    /// The claim as it is: a volume must not be given up because a cache lags.
    async fn claim(
        &self,
        volume: &PersistentVolume,
        key: &Key,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, ViewError> {
        let uid = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.as_deref());
        let is_ours = |c: &PersistentVolumeClaim| Some(object::uid(c)) == uid;
        if let Some(held) = self.caches.claims.get(key)
            && is_ours(&held)
        {
            return Ok(Some(held));
        }
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        if matches!(phase, Some("Released" | "Failed")) {
            return Ok(None);
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
        Ok(api.get_opt(&key.name).await?.filter(is_ours).map(Arc::new))
    }
}

#[async_trait]
impl Controller for Reclaimer {
    type View = phase::View;

    fn name(&self) -> &'static str {
        "persistentvolume-reclaimer"
    }

    fn component(&self) -> &'static str {
        "persistentvolume-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.volumes.queue_changed(queue);
        let (this, q) = (self.clone(), queue.clone());
        self.caches.claims.on_change(move |change| {
            for volume in this.caches.volumes.by_index(BY_REFERENCE, &change.key.to_string()) {
                q.add(Key::of(volume.as_ref()));
            }
        });
        self.caches.pods.want();
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<phase::View>, ViewError> {
        let Some(volume) = self.caches.volumes.get(key) else { return Ok(None) };
        let Some(of) = referred(&volume) else {
            return Ok(Some(phase::View { volume, claim: None, name_taken: false, users: Vec::new() }));
        };
        let claim = self.claim(&volume, &of).await?;
        let users = self.caches.pods.by_index(BY_CLAIM, &of.to_string());
        let mut users: Vec<String> =
            users.iter().filter(|p| !pods::is_terminal(p)).map(|p| Key::of(p.as_ref()).to_string()).collect();
        users.sort();
        Ok(Some(phase::View { volume, claim, name_taken: self.caches.claims.get(&of).is_some(), users }))
    }

    fn reconcile(&self, view: &phase::View, now: Timestamp) -> Plan {
        phase::reconcile(view, now)
    }
}
