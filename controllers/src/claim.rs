//! Which objects a controller takes as its own: adoption of orphans that its selector matches, release
//! of owned objects that it no longer matches.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::Selector;
use serde_json::json;

use crate::cache::{BY_CONTROLLER, BY_SELECTOR, ORPHANS, Store};
use crate::object::{self, Held, Key, Metadata, Object};
use crate::plan::Act;

/// What became of the candidates.
pub struct Claims<K> {
    /// Owned, or to be owned once [`Claims::acts`] are done.
    pub claimed: Vec<Arc<K>>,
    /// Adoptions and releases.
    pub acts: Vec<Act>,
}

/// The owners of one kind that a dependent concerns: its controller, or for an orphan all that select it. The kind's store
/// has the index [`BY_SELECTOR`].
pub fn owners<O: Object, K: Held>(
    store: &Store<O>,
    selector: impl Fn(&O) -> Option<Selector>,
    dependent: &K,
) -> Vec<Key> {
    let namespace = object::namespace(dependent);
    if let Some(owner) = object::controller_ref(dependent.held_meta()) {
        let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let ours = owner.kind == O::kind(&()) && group == O::group(&());
        return ours.then(|| Key::new(namespace, &owner.name)).into_iter().collect();
    }
    let labels = dependent.held_meta().labels();
    object::label_buckets(namespace, labels)
        .iter()
        .flat_map(|bucket| store.by_index(BY_SELECTOR, bucket))
        .filter(|owner| selector(owner).is_some_and(|s| object::matches(&s, labels)))
        .map(|owner| Key::of(owner.as_ref()))
        .collect()
}

/// What an owner may claim: its own, and the orphans that its selector could match. The owners' store has the index
/// [`BY_SELECTOR`], the dependents' one [`BY_CONTROLLER`] and [`ORPHANS`].
pub fn candidates<O: Object, K: Held>(owners: &Store<O>, dependents: &Store<K>, owner: &O) -> Vec<Arc<K>> {
    let mut candidates = dependents.by_index(BY_CONTROLLER, object::uid(owner));
    for bucket in owners.values_of(BY_SELECTOR, owner) {
        candidates.extend(dependents.by_index(ORPHANS, &bucket));
    }
    candidates
}

/// Sorts `candidates` (owned ones and orphans of the owner's namespace) for `owner`.
///
/// An owner that is being deleted claims nothing new and releases nothing; an object that is being
/// deleted is neither adopted nor released. `adoptable` is a further demand on what is adopted. `finalizer` is put
/// on what is adopted and taken from what is released.
pub fn claim<O: Object, K: Held>(
    owner: &O,
    selector: &Selector,
    finalizer: Option<&str>,
    candidates: &[Arc<K>],
    adoptable: impl Fn(&K) -> bool,
) -> Claims<K> {
    let mut claims = Claims { claimed: Vec::new(), acts: Vec::new() };
    let leaving = object::is_deleting(owner);
    for candidate in candidates {
        let fits = object::matches(selector, candidate.held_meta().labels());
        match object::controller_ref(candidate.held_meta()) {
            Some(by) if by.uid == object::uid(owner) => {
                if fits {
                    claims.claimed.push(candidate.clone());
                } else if !leaving && !object::is_deleting(candidate.as_ref()) {
                    claims.acts.push(release(owner, candidate.as_ref(), finalizer));
                }
            }
            Some(_) => {}
            None => {
                let dying = leaving || object::is_deleting(candidate.as_ref());
                if fits && !dying && adoptable(candidate) {
                    claims.acts.push(adopt(owner, candidate.as_ref(), finalizer));
                    claims.claimed.push(candidate.clone());
                }
            }
        }
    }
    claims
}

/// Adds the owner to the candidate's references. The resourceVersion is a precondition: a merge patch
/// replaces the whole list, and another may adopt at the same moment.
fn adopt<O: Object, K: Held>(owner: &O, candidate: &K, finalizer: Option<&str>) -> Act {
    let mut owners = others(owner, candidate);
    owners.push(object::new_controller_ref(owner));
    let mut finalizers = candidate.held_meta().finalizers().to_vec();
    finalizers
        .extend(finalizer.filter(|f| !object::has_finalizer(candidate.held_meta(), f)).map(str::to_owned));
    patch(candidate, &owners, &finalizers)
}

fn release<O: Object, K: Held>(owner: &O, candidate: &K, finalizer: Option<&str>) -> Act {
    let mut finalizers = candidate.held_meta().finalizers().to_vec();
    finalizers.retain(|f| Some(f.as_str()) != finalizer);
    patch(candidate, &others(owner, candidate), &finalizers)
}

/// The candidate's other owners.
fn others<O: Object, K: Held>(owner: &O, candidate: &K) -> Vec<OwnerReference> {
    let mut owners = candidate.held_meta().owner_references().to_vec();
    owners.retain(|r| r.uid != object::uid(owner));
    owners
}

fn patch<K: Held>(candidate: &K, owners: &[OwnerReference], finalizers: &[String]) -> Act {
    let mut meta = json!({
        "resourceVersion": candidate.held_meta().resource_version(),
        "ownerReferences": owners,
    });
    if finalizers != candidate.held_meta().finalizers() {
        meta["finalizers"] = json!(finalizers);
    }
    Act::patch(candidate, None, json!({ "metadata": meta })).may_be_absent()
}
