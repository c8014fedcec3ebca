//! The pure part of the garbage collector: what to do about one object.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;

use super::{FOREGROUND, ORPHAN};
use crate::object::has_finalizer;
use crate::plan::{Act, Action, DeleteOptions, Note, Plan, Propagation, Step, Target};

/// An object as the server showed it just now.
#[derive(Clone, Debug)]
pub struct Live {
    /// Where it is.
    pub target: Target,
    /// Its metadata.
    pub meta: ObjectMeta,
}

impl Live {
    /// Whether its deletion waits for its dependents'.
    pub fn is_deleting_dependents(&self) -> bool {
        self.meta.deletion_timestamp.is_some() && has_finalizer(&self.meta, FOREGROUND)
    }

    /// A patch of the metadata, on the condition that the object is as it was seen.
    fn patch(&self, fields: serde_json::Value) -> Act {
        let mut meta = fields;
        meta["uid"] = json!(self.meta.uid);
        meta["resourceVersion"] = json!(self.meta.resource_version);
        let patch = json!({"metadata": meta});
        Act::new(Action::Patch { target: self.target.clone(), subresource: None, patch }).may_be_absent()
    }

    fn without_finalizer(&self, finalizer: &str) -> Option<Act> {
        let mut finalizers = self.meta.finalizers.clone().unwrap_or_default();
        let before = finalizers.len();
        finalizers.retain(|f| f != finalizer);
        (finalizers.len() != before).then(|| self.patch(json!({"finalizers": finalizers})))
    }

    fn with_owners(&self, owners: &[OwnerReference]) -> Act {
        self.patch(json!({"ownerReferences": owners}))
    }

    fn delete(&self, propagation: Propagation) -> Act {
        let options = DeleteOptions {
            uid: self.meta.uid.clone(),
            // The references that the decision rests on must not have changed.
            resource_version: self.meta.resource_version.clone(),
            propagation: Some(propagation),
            grace_seconds: None,
        };
        Act::delete_with(self.target.clone(), options)
    }
}

/// What has become of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// It is there.
    Solid,
    /// It is not, or another has its name.
    Absent,
    /// Its deletion waits for its dependents'.
    WaitsForDependents,
    /// It cannot be: a cluster-scoped object cannot have an owner in a namespace.
    Unresolvable,
}

/// What a decision rests on.
pub enum View {
    /// An object some owner of which may be gone.
    Delete {
        /// The object.
        item: Live,
        /// Its owners.
        owners: Vec<(OwnerReference, OwnerState)>,
        /// How many objects name it as owner.
        dependents: usize,
        /// Whether one of those waits for its dependents in turn.
        circle: bool,
    },
    /// An object whose deletion waits for its dependents'.
    Foreground {
        /// The object.
        item: Live,
        /// How many dependents keep it.
        blocking: usize,
    },
    /// An object whose dependents are to stay.
    Orphan {
        /// The object.
        owner: Live,
        /// The objects that name it as owner.
        dependents: Vec<Live>,
    },
}

/// Decides about an object.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    match view {
        View::Foreground { item, blocking } => {
            if *blocking == 0 && item.is_deleting_dependents() {
                item.without_finalizer(FOREGROUND).into_iter().for_each(|act| plan.push(act));
            }
        }
        View::Orphan { owner, dependents } => {
            if owner.meta.deletion_timestamp.is_none() || !has_finalizer(&owner.meta, ORPHAN) {
                return plan;
            }
            let uid = owner.meta.uid.as_deref().unwrap_or_default();
            let releases: Vec<Act> = dependents
                .iter()
                .filter_map(|dependent| {
                    let mut owners = dependent.meta.owner_references.clone()?;
                    let before = owners.len();
                    owners.retain(|o| o.uid != uid);
                    (owners.len() != before).then(|| dependent.with_owners(&owners))
                })
                .collect();
            if !releases.is_empty() {
                plan.actions.push(Step::Parallel(releases));
            }
            // Only once every dependent is free may the owner go: a failure above ends the plan.
            owner.without_finalizer(ORPHAN).into_iter().for_each(|act| plan.push(act));
        }
        View::Delete { item, owners, dependents, circle } => {
            delete(&mut plan, item, owners, *dependents, *circle);
        }
    }
    plan
}

fn delete(
    plan: &mut Plan,
    item: &Live,
    owners: &[(OwnerReference, OwnerState)],
    dependents: usize,
    circle: bool,
) {
    if item.meta.deletion_timestamp.is_some() || owners.is_empty() {
        return;
    }
    let has = |wanted: OwnerState| owners.iter().any(|(_, state)| *state == wanted);
    if has(OwnerState::Unresolvable) {
        for (owner, _) in owners.iter().filter(|(_, s)| *s == OwnerState::Unresolvable) {
            let message = format!(
                "ownerRef [{}/{}, namespace: , name: {}, uid: {}] does not exist in namespace \"\"",
                owner.api_version, owner.kind, owner.name, owner.uid
            );
            plan.events.push(Note::warning(reference(item), "OwnerRefInvalidNamespace", message));
        }
        return;
    }
    if has(OwnerState::Solid) {
        let solid: Vec<OwnerReference> =
            owners.iter().filter(|(_, s)| *s == OwnerState::Solid).map(|(o, _)| o.clone()).collect();
        if solid.len() != owners.len() {
            plan.push(item.with_owners(&solid));
        }
        return;
    }
    if has(OwnerState::WaitsForDependents) && dependents > 0 {
        if circle {
            // The item's dependents may wait for the item's owner, directly or not: it must not block.
            let unblocked: Vec<OwnerReference> = owners
                .iter()
                .map(|(o, _)| OwnerReference { block_owner_deletion: Some(false), ..o.clone() })
                .collect();
            if owners.iter().any(|(o, _)| o.block_owner_deletion == Some(true)) {
                plan.push(item.with_owners(&unblocked));
                return;
            }
        }
        plan.push(item.delete(Propagation::Foreground));
        return;
    }
    plan.push(item.delete(if has_finalizer(&item.meta, ORPHAN) {
        Propagation::Orphan
    } else if has_finalizer(&item.meta, FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    }));
}

fn reference(item: &Live) -> k8s_openapi::api::core::v1::ObjectReference {
    k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some(item.target.resource.api_version.clone()),
        kind: Some(item.target.resource.kind.clone()),
        namespace: item.meta.namespace.clone(),
        name: item.meta.name.clone(),
        uid: item.meta.uid.clone(),
        ..Default::default()
    }
}
