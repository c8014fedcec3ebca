//! ControllerRevisions: the history of templates of DaemonSets and StatefulSets.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::core::Selector;
use serde_json::{Value, json};

use crate::cache::{Caches, Store};
use crate::claim;
use crate::hash::content_hash;
use crate::object::{self, Key, Labels, Object};
use crate::plan::Act;
use crate::runner::Queue;

/// Label with the hash of what a StatefulSet's revision holds.
pub const HASH: &str = "controller.kubernetes.io/hash";
/// Label of pods with the name (or the hash) of their revision, and of a DaemonSet's revisions with their hash.
pub const REVISION_LABEL: &str = "controller-revision-hash";

/// Queues the sets of a kind that a change of theirs, of their pods or of their revisions concerns.
pub fn wire<O: Object>(
    caches: &Arc<Caches>,
    store: fn(&Caches) -> &Store<O>,
    selector: fn(&O) -> Option<Selector>,
    queue: &Arc<Queue>,
) {
    let q = queue.clone();
    store(caches).on_change(move |change| q.add(change.key.clone()));
    let (all, q) = (caches.clone(), queue.clone());
    caches.pods.on_change(move |change| {
        for pod in change.states() {
            claim::owners(store(&all), selector, pod.as_ref()).into_iter().for_each(|key| q.add(key));
        }
    });
    let q = queue.clone();
    caches.revisions.on_change(move |change| {
        for revision in change.states() {
            let owner = object::controller_ref(&revision.metadata).filter(|r| r.kind == O::kind(&()));
            if let Some(owner) = owner {
                q.add(Key::new(object::namespace(revision.as_ref()), &owner.name));
            }
        }
    });
}

/// What stands between an owner and the revision of its present template.
pub enum Present {
    /// It is there.
    Stored(Arc<ControllerRevision>),
    /// It must be made or renumbered first.
    Write(Box<Act>),
    /// Its name is taken by another content: the owner's collision count must grow.
    Collision,
}

/// The template as a revision holds it: a strategic merge patch that replaces it.
fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or(Value::Null);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision holds.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Whether the revision holds this template.
pub fn holds(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).as_ref() == Some(template)
}

/// The hash by which the revision is called.
pub fn hash_of(revision: &ControllerRevision) -> &str {
    let labels = [REVISION_LABEL, HASH];
    labels.iter().find_map(|label| object::label(&revision.metadata, label)).unwrap_or_default()
}

/// Orders revisions, oldest first.
pub fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let key = |r: &ControllerRevision| {
            (r.revision, r.metadata.creation_timestamp.clone(), r.metadata.name.clone())
        };
        key(a).cmp(&key(b))
    });
}

/// Finds the revision of `template` among the owner's (sorted), or says what to write. `hash_label` is the label
/// that a new revision has its hash in, `homonym` looks a revision up by its name among all of the namespace.
pub fn present<O: Object>(
    owner: &O,
    hash_label: &str,
    template: &PodTemplateSpec,
    owned: &[Arc<ControllerRevision>],
    collisions: Option<i32>,
    homonym: impl FnOnce(&str) -> Option<Arc<ControllerRevision>>,
) -> Present {
    let next = owned.last().map_or(0, |r| r.revision).saturating_add(1);
    if let Some(found) = owned.iter().rev().find(|r| holds(r, template)) {
        if found.revision + 1 == next {
            return Present::Stored(found.clone());
        }
        // An undo: the old content is the newest revision again.
        let mut renumbered = ControllerRevision::clone(found);
        renumbered.revision = next;
        return Present::Write(Box::new(Act::update(&renumbered)));
    }
    let data = data_of(template);
    let hash = content_hash(&data, collisions);
    let name = format!("{}-{hash}", object::name(owner));
    if homonym(&name).is_some() {
        return Present::Collision;
    }
    let mut labels: Labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(hash_label.to_owned(), hash);
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![object::new_controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: next,
    };
    Present::Write(Box::new(Act::create(&revision).may_exist()))
}

/// Deletes the oldest revisions that nothing uses, beyond `limit`.
pub fn clean_up(
    owned: &[Arc<ControllerRevision>],
    limit: Option<i32>,
    used: impl Fn(&ControllerRevision) -> bool,
) -> Vec<Act> {
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let unused: Vec<&Arc<ControllerRevision>> =
        owned.iter().filter(|r| !used(r) && !object::is_deleting(r.as_ref())).collect();
    let excess = unused.len().saturating_sub(limit);
    unused.into_iter().take(excess).map(|r| Act::delete(r.as_ref())).collect()
}
