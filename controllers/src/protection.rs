//! Protection of storage objects in use: a claim that a pod uses, a bound volume and a class that claims or volumes
//! refer to stay, held by a finalizer, until nobody needs them.
//!
//! The server adds the finalizers at creation (admission plugin StorageObjectInUseProtection).

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;

use crate::cache::{BY_ATTRIBUTES_CLASS, BY_CLAIM, Caches, Pod, Store};
use crate::object::{self, Key, Object};
use crate::plan::{Act, Plan};
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};

/// A kind whose objects stay while they are in use.
pub trait Protected: Object {
    /// The controller's name in the configuration.
    const NAME: &'static str;
    /// What holds the object.
    const FINALIZER: &'static str;

    /// Where the kind's objects are cached.
    fn store(caches: &Caches) -> &Store<Self>;
    /// Whether somebody uses the object.
    fn in_use(&self, caches: &Caches) -> bool;
    /// Queues objects whose users changed.
    fn wire(caches: &Caches, queue: &Arc<Queue>);
}

impl Protected for PersistentVolumeClaim {
    const NAME: &'static str = "pvc-protection";
    const FINALIZER: &'static str = "kubernetes.io/pvc-protection";

    fn store(caches: &Caches) -> &Store<Self> {
        &caches.claims
    }

    fn in_use(&self, caches: &Caches) -> bool {
        // Only pods that are on a node: no kubelet starts a pod whose claim is being deleted.
        let users = caches.pods.by_index(BY_CLAIM, &Key::of(self).to_string());
        users.iter().any(|pod| !pods::node(pod).is_empty())
    }

    fn wire(caches: &Caches, queue: &Arc<Queue>) {
        let q = queue.clone();
        caches.pods.on_change(move |change| {
            for pod in change.states() {
                for claim in claims_of(pod) {
                    q.add(Key::new(object::namespace(pod.as_ref()), claim));
                }
            }
        });
    }
}

impl Protected for PersistentVolume {
    const NAME: &'static str = "pv-protection";
    const FINALIZER: &'static str = "kubernetes.io/pv-protection";

    fn store(caches: &Caches) -> &Store<Self> {
        &caches.volumes
    }

    fn in_use(&self, _caches: &Caches) -> bool {
        self.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
    }

    fn wire(_caches: &Caches, _queue: &Arc<Queue>) {}
}

impl Protected for VolumeAttributesClass {
    const NAME: &'static str = "volumeattributesclass-protection";
    const FINALIZER: &'static str = "kubernetes.io/vac-protection";

    fn store(caches: &Caches) -> &Store<Self> {
        &caches.attributes_classes
    }

    fn in_use(&self, caches: &Caches) -> bool {
        let name = object::name(self);
        caches.claims.count(BY_ATTRIBUTES_CLASS, name) + caches.volumes.count(BY_ATTRIBUTES_CLASS, name) > 0
    }

    fn wire(caches: &Caches, queue: &Arc<Queue>) {
        let q = queue.clone();
        caches.claims.on_change(move |change| {
            for class in change.states().flat_map(|claim| classes_of_claim(claim)) {
                q.add(Key::cluster(class));
            }
        });
        let q = queue.clone();
        caches.volumes.on_change(move |change| {
            for class in change.states().flat_map(|volume| classes_of_volume(volume)) {
                q.add(Key::cluster(class));
            }
        });
    }
}

/// The claims that a pod uses, those made for its ephemeral volumes included.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    // Once the kubelet is done with the pod, its ephemeral volumes go with it.
    let done = object::is_deleting(pod) && pod.metadata.deletion_grace_period_seconds == Some(0);
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) if !done => Some(format!("{}-{}", object::name(pod), volume.name)),
            _ => None,
        })
        .collect()
}

/// The classes that a claim wants, has, or is being changed to.
pub fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let wanted = claim.spec.iter().filter_map(|s| s.volume_attributes_class_name.clone());
    let status = claim.status.iter();
    let current = status.clone().filter_map(|s| s.current_volume_attributes_class_name.clone());
    let coming = status
        .filter_map(|s| s.modify_volume_status.as_ref())
        .filter_map(|m| m.target_volume_attributes_class_name.clone());
    let mut all: Vec<String> = wanted.chain(current).chain(coming).filter(|name| !name.is_empty()).collect();
    all.sort();
    all.dedup();
    all
}

/// The class of a volume.
pub fn classes_of_volume(volume: &PersistentVolume) -> Vec<String> {
    let class = volume.spec.iter().filter_map(|s| s.volume_attributes_class_name.clone());
    class.filter(|name| !name.is_empty()).collect()
}

/// What a decision about an object rests on.
pub struct View<K> {
    /// The object.
    pub object: Arc<K>,
    /// Whether somebody uses it.
    pub in_use: bool,
}

/// Decides about an object's finalizer.
pub fn reconcile<K: Protected>(view: &View<K>, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let object = view.object.as_ref();
    let held = object::has_finalizer(object.meta(), K::FINALIZER);
    let mut new = object.clone();
    match (object::is_deleting(object), held) {
        (true, true) if !view.in_use => {
            if let Some(finalizers) = &mut new.meta_mut().finalizers {
                finalizers.retain(|f| f != K::FINALIZER);
            }
        }
        // Made before there was the admission plugin, or by somebody who left it out.
        (false, false) => new.meta_mut().finalizers.get_or_insert_default().push(K::FINALIZER.to_owned()),
        _ => return plan,
    }
    plan.push(Act::update(&new).may_be_absent());
    plan
}

/// The controller of one kind. Keys are the kind's objects.
pub struct Protection<K: Protected> {
    caches: Arc<Caches>,
    store: fn(&Caches) -> &Store<K>,
}

impl<K: Protected> Protection<K> {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone(), store: K::store }
    }
}

#[async_trait]
impl<K: Protected> Controller for Protection<K> {
    type View = View<K>;

    fn name(&self) -> &'static str {
        K::NAME
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        (self.store)(&self.caches).on_change(move |change| q.add(change.key.clone()));
        K::wire(&self.caches, queue);
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View<K>>, ViewError> {
        let Some(object) = (self.store)(&self.caches).get(key) else { return Ok(None) };
        let in_use = object.in_use(&self.caches);
        Ok(Some(View { object, in_use }))
    }

    fn reconcile(&self, view: &View<K>, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, PersistentVolumeStatus, Pod, PodSpec,
        Volume,
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::testing::Harness;

    fn meta(namespace: Option<&str>, name: &str) -> ObjectMeta {
        ObjectMeta { name: Some(name.into()), namespace: namespace.map(Into::into), ..Default::default() }
    }

    fn user(node: Option<&str>) -> Pod {
        let source = PersistentVolumeClaimVolumeSource { claim_name: "data".into(), ..Default::default() };
        let volume = Volume { name: "v".into(), persistent_volume_claim: Some(source), ..Default::default() };
        let spec =
            PodSpec { node_name: node.map(Into::into), volumes: Some(vec![volume]), ..Default::default() };
        Pod { metadata: meta(Some("ns"), "user"), spec: Some(spec), status: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_stays_until_no_pod_on_a_node_uses_it() {
        let mut h = Harness::new(|caches, _| Protection::<PersistentVolumeClaim>::new(caches));
        let there = |h: &Harness<_>| h.model.lock().get::<PersistentVolumeClaim>("ns", "data").is_some();
        h.model.lock().put(&PersistentVolumeClaim {
            metadata: meta(Some("ns"), "data"),
            spec: Some(PersistentVolumeClaimSpec::default()),
            status: None,
        });
        h.model.lock().put(&user(Some("n1")));
        h.settle(50).await;
        let claim: PersistentVolumeClaim = h.model.lock().get("ns", "data").unwrap();
        assert!(object::has_finalizer(&claim.metadata, PersistentVolumeClaim::FINALIZER));

        h.model.lock().delete_as_user::<PersistentVolumeClaim>("ns", "data");
        h.settle(50).await;
        assert!(there(&h), "in use");
        h.model.lock().delete_as_user::<Pod>("ns", "user");
        h.settle(50).await;
        assert!(!there(&h));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_on_no_node_does_not_hold_a_claim() {
        let mut h = Harness::new(|caches, _| Protection::<PersistentVolumeClaim>::new(caches));
        h.model.lock().put(&PersistentVolumeClaim {
            metadata: meta(Some("ns"), "data"),
            spec: None,
            status: None,
        });
        h.model.lock().put(&user(None));
        h.settle(50).await;
        h.model.lock().delete_as_user::<PersistentVolumeClaim>("ns", "data");
        h.settle(50).await;
        assert!(h.model.lock().get::<PersistentVolumeClaim>("ns", "data").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_volume_stays() {
        let mut h = Harness::new(|caches, _| Protection::<PersistentVolume>::new(caches));
        let phase =
            |phase: &str| Some(PersistentVolumeStatus { phase: Some(phase.into()), ..Default::default() });
        let metadata = meta(None, "pv");
        h.model.lock().put(&PersistentVolume { metadata, spec: None, status: phase("Bound") });
        h.settle(50).await;
        h.model.lock().delete_as_user::<PersistentVolume>("", "pv");
        h.settle(50).await;
        assert!(h.model.lock().get::<PersistentVolume>("", "pv").is_some());
        h.model.lock().edit::<PersistentVolume>("", "pv", |pv| pv.status = phase("Released"));
        h.settle(50).await;
        assert!(h.model.lock().get::<PersistentVolume>("", "pv").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_class_stays_while_a_claim_names_it() {
        let mut h = Harness::new(|caches, _| Protection::<VolumeAttributesClass>::new(caches));
        let metadata = meta(None, "gold");
        h.model.lock().put(&VolumeAttributesClass { metadata, ..Default::default() });
        h.model.lock().put(&PersistentVolumeClaim {
            metadata: meta(Some("ns"), "data"),
            spec: Some(PersistentVolumeClaimSpec {
                volume_attributes_class_name: Some("gold".into()),
                ..Default::default()
            }),
            status: None,
        });
        h.settle(50).await;
        h.model.lock().delete_as_user::<VolumeAttributesClass>("", "gold");
        h.settle(50).await;
        assert!(h.model.lock().get::<VolumeAttributesClass>("", "gold").is_some());
        h.model.lock().delete_as_user::<PersistentVolumeClaim>("ns", "data");
        h.settle(50).await;
        assert!(h.model.lock().get::<VolumeAttributesClass>("", "gold").is_none());
    }
}
