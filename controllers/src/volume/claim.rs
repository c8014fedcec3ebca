//! Decides about a claim. PURE.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONERS, SELECTED_NODE, annotation, class_of_claim,
    is_bound_to, mark, matching, stated_class, storage,
};
use crate::object;
use crate::plan::{Act, Note, Plan};

/// How often a claim that waits is looked at even if nothing changes.
const RESYNC: Duration = Duration::from_secs(15);
/// On a volume whose file system is still to grow: its size before.
const PRE_RESIZE: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";

/// What a decision rests on.
pub struct View {
    /// The claim.
    pub claim: Arc<PersistentVolumeClaim>,
    /// The volume that it names.
    pub named: Option<Arc<PersistentVolume>>,
    /// Volumes that name it.
    pub reserved: Vec<Arc<PersistentVolume>>,
    /// Volumes of its class that are free.
    pub free: Vec<Arc<PersistentVolume>>,
    /// Its class.
    pub class: Option<Arc<StorageClass>>,
    /// The class of claims that name none.
    pub default_class: Option<String>,
    /// Pods that use it and are on no node yet, in the order of their names.
    pub waiting: Vec<String>,
}

/// Decides about a claim.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let claim = view.claim.as_ref();
    if annotation(claim, BIND_COMPLETED).is_some() {
        bound(view, &mut plan);
    } else if volume_name(claim).is_empty() {
        unbound(view, &mut plan);
    } else {
        requested(view, &mut plan);
    }
    plan
}

fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// A claim that was bound before.
fn bound(view: &View, plan: &mut Plan) {
    let claim = view.claim.as_ref();
    if volume_name(claim).is_empty() {
        let why = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lost(claim, "ClaimLost", why, plan);
    }
    let Some(volume) = &view.named else {
        let why = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return lost(claim, "ClaimLost", why, plan);
    };
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    if reference.is_some_and(|r| r.uid.as_deref() != Some(object::uid(claim))) {
        let why = "Two claims are bound to the same volume, this one is bound incorrectly";
        return lost(claim, "ClaimMisbound", why, plan);
    }
    bind(volume, claim, plan);
}

fn lost(claim: &PersistentVolumeClaim, reason: &'static str, message: &str, plan: &mut Plan) {
    if phase(claim) != "Lost" {
        let note = Note::warning(object::reference(claim), reason, message);
        let act = Act::update_sub(&with_status(claim, "Lost", None), "status").ok(note);
        plan.status = Some(Box::new(act));
    }
}

/// A claim that takes any volume that suits it.
fn unbound(view: &View, plan: &mut Plan) {
    let claim = view.claim.as_ref();
    plan.requeue(RESYNC);
    let mode = view.class.as_ref().and_then(|c| c.volume_binding_mode.as_deref());
    let delayed = mode == Some("WaitForFirstConsumer");
    match matching::best(claim, &view.reserved, &view.free, delayed) {
        Ok(Some(volume)) => return bind(volume, claim, plan),
        Ok(None) => {}
        Err(error) => {
            tracing::debug!(claim = %object::Key::of(claim), error, "no volume can be found");
            return;
        }
    }
    if stated_class(claim).is_none()
        && let Some(class) = &view.default_class
    {
        let mut classed = claim.clone();
        classed.spec.get_or_insert_default().storage_class_name = Some(class.clone());
        return plan.push(Act::update(&classed));
    }
    let about = || object::reference(claim);
    if delayed && annotation(claim, SELECTED_NODE).is_none() {
        let (reason, message) = match view.waiting.as_slice() {
            [] => {
                let text = "waiting for first consumer to be created before binding".to_owned();
                ("WaitForFirstConsumer", text)
            }
            [one] => ("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
            many => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", many.join(","))),
        };
        plan.events.push(Note::normal(about(), reason, message));
    } else if !class_of_claim(claim).is_empty() {
        return provision(view, plan);
    } else {
        let why = "no persistent volumes available for this claim and no storage class is set";
        plan.events.push(Note::normal(about(), "FailedBinding", why));
    }
    pending(claim, plan);
}

/// Asks the class' provisioner for a volume.
fn provision(view: &View, plan: &mut Plan) {
    let claim = view.claim.as_ref();
    let about = || object::reference(claim);
    let failed = |text: String| Note::warning(about(), "ProvisioningFailed", text);
    let Some(class) = &view.class else {
        let name = class_of_claim(claim);
        plan.events.push(failed(format!("storageclass.storage.k8s.io {name:?} not found")));
        return;
    };
    let provisioner = class.provisioner.as_str();
    // No plugin of Kubernetes' own is left that makes volumes.
    if provisioner.starts_with("kubernetes.io/") {
        plan.events.push(failed(format!("no volume plugin matched name: {provisioner}")));
        return;
    }
    let mut asked = claim.clone();
    let annotations = asked.metadata.annotations.get_or_insert_default();
    for name in PROVISIONERS {
        annotations.insert(name.to_owned(), provisioner.to_owned());
    }
    if &asked != claim {
        let error = failed("Error saving claim: {error}".to_owned());
        plan.push(Act::update(&asked).err(error));
    }
    let waiting = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
         system administrator. If volume creation is delayed, please verify that the provisioner is running and \
         correctly registered."
    );
    plan.events.push(Note::normal(about(), "ExternalProvisioning", waiting));
}

/// A claim that names its volume.
fn requested(view: &View, plan: &mut Plan) {
    let claim = view.claim.as_ref();
    let Some(volume) = &view.named else { return pending(claim, plan) };
    let name = object::name(volume.as_ref());
    let about = || object::reference(claim);
    if volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_none()) {
        if let Some(why) = matching::mismatch(claim, volume) {
            let message = format!("Cannot bind to requested volume {name:?}: {why}");
            plan.events.push(Note::warning(about(), "VolumeMismatch", message));
            plan.requeue(RESYNC);
            return pending(claim, plan);
        }
        return bind(volume, claim, plan);
    }
    if is_bound_to(volume, claim) {
        return bind(volume, claim, plan);
    }
    let message = format!("volume {name:?} already bound to a different claim.");
    plan.events.push(Note::warning(about(), "FailedBinding", message));
    plan.requeue(RESYNC);
    if annotation(claim, BOUND_BY_CONTROLLER).is_none() {
        pending(claim, plan);
    }
}

fn pending(claim: &PersistentVolumeClaim, plan: &mut Plan) {
    plan.update_status(claim, &with_status(claim, "Pending", None));
}

/// Binds the two: the volume first, so that no other claim takes it; each write only where something changes.
fn bind(volume: &PersistentVolume, claim: &PersistentVolumeClaim, plan: &mut Plan) {
    let mut to = volume.clone();
    let ours = is_bound_to(volume, claim);
    let spec = to.spec.get_or_insert_default();
    let complete = spec.claim_ref.as_ref().is_some_and(|r| ours && r.uid == claim.metadata.uid);
    if !complete {
        spec.claim_ref = Some(object::reference(claim));
    }
    if !ours {
        mark(&mut to, BOUND_BY_CONTROLLER);
    }
    plan.update(volume, &to);
    let mut phased = to.clone();
    set_phase(&mut phased, "Bound");
    if phased != to {
        plan.push(Act::update_sub(&phased, "status"));
    }
    let mut taken = claim.clone();
    let name = object::name(volume);
    if volume_name(claim) != name {
        taken.spec.get_or_insert_default().volume_name = Some(name.to_owned());
        mark(&mut taken, BOUND_BY_CONTROLLER);
    }
    mark(&mut taken, BIND_COMPLETED);
    plan.update(claim, &taken);
    let bound = with_status(&taken, "Bound", Some(volume));
    if bound != taken {
        plan.push(Act::update_sub(&bound, "status"));
    }
    // Bound claims need no looking after.
    plan.requeue_after = None;
}

/// Sets a volume's phase; what was said of the old one goes with it.
pub fn set_phase(volume: &mut PersistentVolume, phase: &str) {
    let status = volume.status.get_or_insert_default();
    if status.phase.as_deref() != Some(phase) {
        status.phase = Some(phase.to_owned());
        status.message = None;
    }
}

/// The claim with its status as it is to be. `volume` is what it has now, if anything.
fn with_status(
    claim: &PersistentVolumeClaim,
    phase_now: &str,
    volume: Option<&PersistentVolume>,
) -> PersistentVolumeClaim {
    let mut updated = claim.clone();
    let was = phase(claim).to_owned();
    let status = updated.status.get_or_insert_default();
    status.phase = Some(phase_now.to_owned());
    let Some(volume) = volume else {
        status.access_modes = None;
        status.capacity = None;
        status.current_volume_attributes_class_name = None;
        return updated;
    };
    let spec = volume.spec.as_ref();
    status.access_modes = spec.and_then(|s| s.access_modes.clone());
    // Only as it becomes bound: later the file system may be smaller than the volume.
    if was != phase_now {
        let capacity = spec.and_then(|s| s.capacity.clone());
        let before =
            annotation(volume, PRE_RESIZE).filter(|q| hawser_api::quantity::Quantity::parse(q).is_ok());
        if let Some(before) = before {
            let amount = k8s_openapi::apimachinery::pkg::api::resource::Quantity(before.to_owned());
            status.capacity.get_or_insert_default().insert("storage".to_owned(), amount);
        } else if storage(capacity.as_ref()) != storage(status.capacity.as_ref()) || status.capacity.is_none()
        {
            status.capacity = capacity;
        }
        if was == "Pending" {
            status.current_volume_attributes_class_name =
                spec.and_then(|s| s.volume_attributes_class_name.clone());
        }
    }
    updated
}
