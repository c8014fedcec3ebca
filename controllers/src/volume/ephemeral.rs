//! Ephemeral volumes: claims that live as long as their pod.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::cache::{BY_CLAIM, Caches, Pod};
use crate::object::{self, Key};
use crate::plan::{Act, Note, Plan, Step};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// What a decision about a pod's claims rests on.
pub struct View {
    /// The pod.
    pub pod: Arc<Pod>,
    /// For each of its ephemeral volumes the claim of its name.
    pub claims: Vec<Option<Arc<PersistentVolumeClaim>>>,
}

/// The ephemeral volumes of a pod.
fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| v.ephemeral.is_some())
}

fn claim_name(pod: &Pod, volume: &Volume) -> String {
    format!("{}-{}", object::name(pod), volume.name)
}

fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(claim_name(pod, volume)),
            namespace: Some(object::namespace(pod).to_owned()),
            annotations: meta.annotations,
            labels: meta.labels,
            owner_references: Some(vec![object::new_controller_ref(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

/// Decides about a pod's claims: makes those that are missing, in order; one that is another's is told of.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let pod = view.pod.as_ref();
    if object::is_deleting(pod) {
        return plan;
    }
    for (volume, held) in volumes(pod).zip(&view.claims) {
        let failed = |why: &str| {
            let message = format!("ephemeral volume {}: {why}", volume.name);
            Note::warning(object::reference(pod), "FailedBinding", message)
        };
        let name = claim_name(pod, volume);
        match held {
            None => {
                let Some(claim) = claim(pod, volume) else { continue };
                let note = failed(&format!("create PVC {name}: {{error}}"));
                plan.actions.push(Step::One(Box::new(Act::create(&claim).err(note))));
            }
            Some(held)
                if object::controller_ref(&held.metadata).is_some_and(|r| r.uid == object::uid(pod)) => {}
            Some(_) => {
                let why = format!(
                    "PVC {}/{name} was not created for pod {}/{} (pod is not owner)",
                    object::namespace(pod),
                    object::namespace(pod),
                    object::name(pod)
                );
                plan.events.push(failed(&why));
                break;
            }
        }
    }
    plan
}

/// The controller. Keys are pods with ephemeral volumes.
pub struct EphemeralVolumes {
    caches: Arc<Caches>,
}

impl EphemeralVolumes {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for EphemeralVolumes {
    type View = View;

    fn name(&self) -> &'static str {
        "ephemeral-volume"
    }

    fn component(&self) -> &'static str {
        "ephemeral_volume"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.pods.on_change(move |change| {
            // A pod's volumes never change: once is enough, and again whenever a claim goes.
            if change.old.is_none() && change.new.is_some_and(|pod| volumes(pod).next().is_some()) {
                q.add(change.key.clone());
            }
        });
        let (this, q) = (self.clone(), queue.clone());
        self.caches.claims.on_change(move |change| {
            if change.new.is_none() {
                let users = this.caches.pods.by_index(BY_CLAIM, &change.key.to_string());
                for pod in users.iter().filter(|pod| volumes(pod).next().is_some()) {
                    q.add(Key::of(pod.as_ref()));
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(pod) = self.caches.pods.get(key) else { return Ok(None) };
        let claims = volumes(&pod)
            .map(|volume| self.caches.claims.get(&Key::new(&key.namespace, claim_name(&pod, volume))))
            .collect();
        Ok(Some(View { pod, claims }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
