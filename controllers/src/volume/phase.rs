//! Decides about a volume: its phase, and what becomes of it without its claim. PURE.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::claim::set_phase;
use super::{BOUND_BY_CONTROLLER, MIGRATED_TO, PROVISIONED_BY, annotation, modes_differ};
use crate::object;
use crate::plan::{Act, Note, Plan};

/// How often a volume whose reclaiming failed is looked at again.
const RESYNC: Duration = Duration::from_secs(15);

/// What a decision rests on.
pub struct View {
    /// The volume.
    pub volume: Arc<PersistentVolume>,
    /// The claim that it refers to, the very one (by uid).
    pub claim: Option<Arc<PersistentVolumeClaim>>,
    /// Whether a claim of that name is there, another one perhaps.
    pub name_taken: bool,
    /// `namespace/name` of pods that use a claim of that name and have not ended.
    pub users: Vec<String>,
}

/// Decides about a volume.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let volume = view.volume.as_ref();
    let Some(spec) = &volume.spec else { return plan };
    let Some(reference) = &spec.claim_ref else {
        enter(volume, "Available", &mut plan);
        return plan;
    };
    if reference.uid.as_deref().unwrap_or_default().is_empty() {
        enter(volume, "Available", &mut plan);
        return plan;
    }
    let Some(claim) = view.claim.as_deref() else {
        reclaim(view, &mut plan);
        return plan;
    };
    let has = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    let name = object::name(volume);
    if has.is_empty() {
        if modes_differ(claim, volume) {
            let of_volume = format!(
                "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
                object::name(claim)
            );
            let of_claim = format!(
                "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible \
                 volumeMode."
            );
            plan.events.push(Note::warning(object::reference(volume), "VolumeMismatch", of_volume));
            plan.events.push(Note::warning(object::reference(claim), "VolumeMismatch", of_claim));
        }
        // The claim's turn; it is queued when the volume changes.
        return plan;
    }
    if has == name {
        enter(volume, "Bound", &mut plan);
        return plan;
    }
    // The claim has another volume. One that was made for it is of no use to anybody.
    let made = annotation(volume, PROVISIONED_BY).is_some();
    if made && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") {
        reclaim(view, &mut plan);
    } else {
        unbind(volume, &mut plan);
    }
    plan
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

fn enter(volume: &PersistentVolume, phase: &str, plan: &mut Plan) {
    let mut updated = volume.clone();
    set_phase(&mut updated, phase);
    plan.update_status(volume, &updated);
}

/// Gives the volume back: we bound it, or a user reserved it, which stays.
fn unbind(volume: &PersistentVolume, plan: &mut Plan) {
    let mut freed = volume.clone();
    if annotation(volume, BOUND_BY_CONTROLLER).is_some() {
        if let Some(spec) = &mut freed.spec {
            spec.claim_ref = None;
        }
        let annotations = freed.metadata.annotations.take();
        freed.metadata.annotations = annotations
            .map(|mut a| {
                a.remove(BOUND_BY_CONTROLLER);
                a
            })
            .filter(|a| !a.is_empty());
    } else if let Some(reference) = freed.spec.as_mut().and_then(|s| s.claim_ref.as_mut()) {
        reference.uid = None;
    }
    plan.update(volume, &freed);
    let mut phased = freed.clone();
    set_phase(&mut phased, "Available");
    if phased != freed {
        plan.push(Act::update_sub(&phased, "status"));
    }
}

/// Does what the volume's policy says.
fn reclaim(view: &View, plan: &mut Plan) {
    let volume = view.volume.as_ref();
    if !matches!(phase(volume), "Released" | "Failed") {
        return enter(volume, "Released", plan);
    }
    if annotation(volume, MIGRATED_TO).is_some_and(|driver| !driver.is_empty()) {
        return;
    }
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    match policy.unwrap_or("Retain") {
        "Retain" => {}
        "Delete" => delete(volume, plan),
        "Recycle" if !view.users.is_empty() && !view.name_taken => {
            let message = format!("Volume is used by pods: {}", view.users.join(","));
            plan.events.push(Note::normal(object::reference(volume), "VolumeFailedRecycle", message));
            plan.requeue(RESYNC);
        }
        "Recycle" => fail(volume, "VolumeFailedRecycle", "No recycler plugin found for the volume!", plan),
        _ => {
            let why = "Volume has unrecognized PersistentVolumeReclaimPolicy";
            fail(volume, "VolumeUnknownReclaimPolicy", why, plan);
        }
    }
}

/// What an external provisioner made, it deletes. There is no plugin left of Kubernetes' own that could.
fn delete(volume: &PersistentVolume, plan: &mut Plan) {
    let name = object::name(volume);
    match annotation(volume, PROVISIONED_BY).filter(|by| !by.is_empty()) {
        Some(by) if !by.starts_with("kubernetes.io/") => {}
        Some(by) => {
            let why = format!("no volume plugin matched name: {by}");
            fail(volume, "VolumeFailedDelete", &why, plan);
        }
        None => {
            let why = format!(
                "error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"
            );
            fail(volume, "VolumeFailedDelete", &why, plan);
        }
    }
}

fn fail(volume: &PersistentVolume, reason: &'static str, message: &str, plan: &mut Plan) {
    if phase(volume) == "Failed" {
        return;
    }
    let mut failed = volume.clone();
    set_phase(&mut failed, "Failed");
    failed.status.get_or_insert_default().message = Some(message.to_owned());
    let note = Note::warning(object::reference(volume), reason, message);
    plan.status = Some(Box::new(Act::update_sub(&failed, "status").ok(note)));
}
