//! Larger volumes: what CSI drivers' resizers do, the controller only announces. No plugin of Kubernetes' own is left that
//! makes volumes larger.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{is_bound_to, requested, storage};
use crate::cache::Caches;
use crate::object::{self, Key};
use crate::plan::{Note, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// What a decision rests on.
pub struct View {
    /// The claim.
    pub claim: Arc<PersistentVolumeClaim>,
    /// Its volume.
    pub volume: Option<Arc<PersistentVolume>>,
}

/// Whether more is asked for than there is.
fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let has = storage(claim.status.as_ref().and_then(|s| s.capacity.as_ref()));
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    phase == Some("Bound")
        && claim.spec.as_ref().and_then(requested).is_some_and(|w| w > has.unwrap_or(Quantity::ZERO))
}

/// Decides about a claim.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let claim = view.claim.as_ref();
    if wants_more(claim) && view.volume.as_ref().is_some_and(|v| is_bound_to(v, claim)) {
        let message = "waiting for an external controller to expand this PVC";
        plan.events.push(Note::warning(object::reference(claim), "ExternalExpanding", message));
    }
    plan
}

/// The controller. Keys are claims.
pub struct Expander {
    caches: Arc<Caches>,
}

impl Expander {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for Expander {
    type View = View;

    fn name(&self) -> &'static str {
        "persistentvolume-expander"
    }

    fn component(&self) -> &'static str {
        "volume_expand"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.volumes.want();
        let q = queue.clone();
        self.caches.claims.on_change(move |change| {
            let Some(new) = change.new else { return };
            // When more is asked for, and not with every word that a resizer says.
            let asked = |c: &PersistentVolumeClaim| c.spec.as_ref().and_then(requested);
            if wants_more(new) && change.old.is_some_and(|old| asked(old) != asked(new)) {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(claim) = self.caches.claims.get(key) else { return Ok(None) };
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let volume = self.caches.volumes.get(&Key::cluster(name));
        Ok(Some(View { claim, volume }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
