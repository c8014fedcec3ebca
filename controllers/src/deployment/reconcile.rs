//! The pure part of the Deployment controller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::status::{self, PROGRESSING, TIMED_OUT};
use super::{annotations, numbers, scale};
use crate::claim::claim;
use crate::hash::content_hash;
use crate::object::{self, Labels};
use crate::plan::{Act, Note, Plan, Step};
use crate::runner::Failure;

/// The label that tells the pods of one template from another's.
pub const HASH_LABEL: &str = "pod-template-hash";

/// What a decision about a Deployment rests on.
pub struct View {
    /// The Deployment.
    pub deployment: Arc<Deployment>,
    /// Its ReplicaSets and the ReplicaSets without owner in its namespace.
    pub candidates: Vec<Arc<ReplicaSet>>,
    /// Pods that have not ended, by their ReplicaSet's uid.
    pub running: BTreeMap<String, usize>,
    /// The ReplicaSet that has the name of the next one, if there is any.
    pub homonym: Option<Arc<ReplicaSet>>,
    /// What failed last time.
    pub prior: Option<Failure>,
}

/// The Deployment's ReplicaSets, sorted out.
struct Sets {
    /// The one of the current template.
    new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).cloned().collect()
    }
}

/// The hash of the Deployment's template.
fn template_hash(deployment: &Deployment) -> String {
    let template = deployment.spec.as_ref().map(|s| &s.template);
    content_hash(&template, deployment.status.as_ref().and_then(|s| s.collision_count))
}

/// The name that a ReplicaSet of the current template gets.
pub fn new_set_name(deployment: &Deployment) -> String {
    format!("{}-{}", object::name(deployment), template_hash(deployment))
}

/// Decides about a Deployment.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let deployment = view.deployment.as_ref();
    let Some(spec) = &deployment.spec else { return plan };
    let Some(selector) = object::selector(&spec.selector) else { return plan };
    if selector.selects_all() {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        let mut updated = deployment.clone();
        updated.status.get_or_insert_default().observed_generation = deployment.metadata.generation;
        if plan.update_status(deployment, &updated) {
            plan.events.push(Note::warning(object::reference(deployment), "SelectingAll", message));
        }
        return plan;
    }

    let claims = claim(deployment, &selector, None, &view.candidates, |_| true);
    if !claims.acts.is_empty() {
        // What was just adopted is looked at again as one's own.
        plan.actions.push(Step::Parallel(claims.acts));
        return plan;
    }
    let sets = sort_out(deployment, claims.claimed);

    if object::is_deleting(deployment) {
        finish(&mut plan, deployment, status::counted(deployment, &sets.all(), sets.new.as_ref(), now));
        return plan;
    }
    if let Some(with_pause) = pause_changed(deployment, now) {
        plan.update_status(deployment, &with_pause);
        return plan;
    }
    let paused = spec.paused.unwrap_or(false);
    if paused || is_scaled(deployment, &sets) {
        let mut plan = plan;
        sync_new_set(&mut plan, deployment, &sets);
        if !plan.is_empty() {
            return plan;
        }
        scale::spread(&mut plan, deployment, sets.new.as_ref(), &sets.old);
        if paused {
            clean_up(&mut plan, deployment, &sets.old);
        }
        finish(&mut plan, deployment, status::counted(deployment, &sets.all(), sets.new.as_ref(), now));
        return plan;
    }
    match numbers::strategy(deployment) {
        numbers::Strategy::Rolling => roll(plan, view, &sets, now),
        numbers::Strategy::Recreate => recreate(plan, view, &sets, now),
    }
}

/// The ReplicaSet of the current template (the oldest, should there be two) and the others.
fn sort_out(deployment: &Deployment, mut sets: Vec<Arc<ReplicaSet>>) -> Sets {
    sets.sort_by(|a, b| {
        let age = |s: &ReplicaSet| (s.metadata.creation_timestamp.clone(), s.metadata.name.clone());
        age(a).cmp(&age(b))
    });
    let wanted = deployment.spec.as_ref().map(|s| bare(&s.template));
    let of = |set: &ReplicaSet| set.spec.as_ref().and_then(|s| s.template.as_ref()).map(bare);
    let found = sets.iter().position(|set| of(set) == wanted);
    let new = found.map(|at| sets.remove(at));
    Sets { new, old: sets }
}

/// A template as far as it tells one revision from another: without the hash label, and with nothing
/// where there is nothing.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut bare = template.clone();
    let mut meta = bare.metadata.take().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.filter(|l| !l.is_empty());
    meta.annotations = meta.annotations.filter(|a| !a.is_empty());
    meta.creation_timestamp = None;
    bare.metadata = Some(meta);
    bare
}

/// The Deployment with its progress marked as paused or resumed, where that changed.
fn pause_changed(deployment: &Deployment, now: Timestamp) -> Option<Deployment> {
    status::deadline(deployment)?;
    let old = deployment.status.clone().unwrap_or_default();
    let current = status::find(&old, PROGRESSING);
    if current.is_some_and(|c| c.reason.as_deref() == Some(TIMED_OUT)) {
        return None;
    }
    let known = current.is_some_and(|c| c.reason.as_deref() == Some("DeploymentPaused"));
    let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
    let (reason, message) = match (paused, known) {
        (true, false) => ("DeploymentPaused", "Deployment is paused"),
        (false, true) => ("DeploymentResumed", "Deployment is resumed"),
        _ => return None,
    };
    let mut updated = deployment.clone();
    let condition = status::condition(PROGRESSING, "Unknown", reason, message, now);
    status::set(updated.status.get_or_insert_default(), condition);
    Some(updated)
}

/// Whether the Deployment's replicas changed since its active sets were last scaled.
fn is_scaled(deployment: &Deployment, sets: &Sets) -> bool {
    sets.all().iter().filter(|s| numbers::size(s) > 0).any(|set| {
        annotations::count(set, annotations::DESIRED).is_some_and(|n| n != numbers::replicas(deployment))
    })
}

/// The revision after those of the old sets.
fn next_revision(sets: &Sets) -> i64 {
    sets.old.iter().map(|s| annotations::revision(s)).max().unwrap_or(0).saturating_add(1)
}

/// Brings the books of the set of the current template, and the Deployment's revision, up to date.
fn sync_new_set(plan: &mut Plan, deployment: &Deployment, sets: &Sets) {
    let Some(new) = &sets.new else { return };
    let mut synced = ReplicaSet::clone(new);
    annotations::sync_new(&mut synced, deployment, next_revision(sets));
    if let (Some(set), Some(spec)) = (synced.spec.as_mut(), deployment.spec.as_ref())
        && set.min_ready_seconds.unwrap_or(0) != spec.min_ready_seconds.unwrap_or(0)
    {
        set.min_ready_seconds = spec.min_ready_seconds;
    }
    if plan.update(new.as_ref(), &synced) {
        return;
    }
    let mut marked = deployment.clone();
    object::set_annotation(
        &mut marked.metadata,
        annotations::REVISION,
        annotations::revision(new).to_string(),
    );
    plan.update(deployment, &marked);
}

/// Makes the set of the current template.
fn make_new_set(plan: &mut Plan, view: &View, sets: &Sets, now: Timestamp) {
    let deployment = view.deployment.as_ref();
    let Some(spec) = &deployment.spec else { return };
    let about = || object::reference(deployment);
    let name = new_set_name(deployment);
    let mut status_of = deployment.clone();
    let status = status_of.status.get_or_insert_default();
    let taken = |set: &Arc<ReplicaSet>| {
        !object::is_controlled_by(&set.metadata, deployment) || !same_template(set, deployment)
    };
    if view.homonym.as_ref().is_some_and(taken) {
        // Another template has the same hash: the next look hashes with a higher count.
        status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
        plan.update_status(deployment, &status_of);
        return;
    }
    let hash = template_hash(deployment);
    let mut template = spec.template.clone();
    let labels: &mut Labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash);
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![object::new_controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    let size = numbers::new_set_size(deployment, 0, numbers::sum(&sets.old, numbers::size));
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(size);
    }
    annotations::sync_new(&mut set, deployment, next_revision(sets));
    annotations::set_counts(&mut set, deployment);

    let failed = format!("Failed to create new replica set \"{name}\": {{error}}");
    // A set of this name that the caches do not show yet is judged once they do.
    let mut act =
        Act::create(&set).may_exist().err(Note::warning(about(), "ReplicaSetCreateError", failed.clone()));
    plan.requeue(Duration::from_secs(1));
    if size > 0 {
        let message = format!("Scaled up replica set {name} from 0 to {size}");
        act = act.ok(Note::normal(about(), "ScalingReplicaSet", message));
    }
    plan.push(act);
    if status::deadline(deployment).is_some() {
        let condition = match view.prior.as_ref().filter(|f| f.verb == "create") {
            Some(failure) => {
                let message = failed.replace("{error}", &failure.message);
                status::condition(PROGRESSING, "False", "ReplicaSetCreateError", message, now)
            }
            None => {
                let message = format!("Created new replica set \"{name}\"");
                status::condition(PROGRESSING, "True", "NewReplicaSetCreated", message, now)
            }
        };
        status::set(status, condition);
    }
    plan.update_status(deployment, &status_of);
}

fn same_template(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let of_set = set.spec.as_ref().and_then(|s| s.template.as_ref()).map(bare);
    of_set == deployment.spec.as_ref().map(|s| bare(&s.template))
}

/// One step of a rolling update.
fn roll(mut plan: Plan, view: &View, sets: &Sets, now: Timestamp) -> Plan {
    let deployment = view.deployment.as_ref();
    let Some(new) = &sets.new else {
        make_new_set(&mut plan, view, sets, now);
        return plan;
    };
    sync_new_set(&mut plan, deployment, sets);
    if !plan.is_empty() {
        return plan;
    }
    let all = sets.all();
    let wanted = numbers::replicas(deployment);
    let size = numbers::size(new);
    let target = if size > wanted {
        wanted
    } else {
        numbers::new_set_size(deployment, size, numbers::sum(&all, numbers::size))
    };
    let scaled = scale::resize(&mut plan, deployment, new, target) || shrink_old(&mut plan, deployment, sets);
    let status = status::of_rollout(deployment, &all, Some(new), now);
    if !scaled && status::is_complete(deployment, &deployment.status.clone().unwrap_or_default()) {
        clean_up(&mut plan, deployment, &sets.old);
    }
    if let Some(after) = status::next_look(deployment, &status, now) {
        plan.requeue(after);
    }
    finish(&mut plan, deployment, status);
    plan
}

/// Takes from old sets what availability allows: unhealthy pods first, then by age.
fn shrink_old(plan: &mut Plan, deployment: &Deployment, sets: &Sets) -> bool {
    let Some(new) = &sets.new else { return false };
    let all = sets.all();
    if numbers::sum(&sets.old, numbers::size) == 0 {
        return false;
    }
    let minimum = numbers::replicas(deployment) - numbers::max_unavailable(deployment);
    let new_unavailable = numbers::size(new) - numbers::available(new);
    let spare = numbers::sum(&all, numbers::size) - minimum - new_unavailable;
    if spare <= 0 {
        return false;
    }
    let mut sizes: Vec<i32> = sets.old.iter().map(|s| numbers::size(s)).collect();
    let mut left = spare;
    for (set, size) in sets.old.iter().zip(&mut sizes) {
        let take = (*size - numbers::available(set)).min(left).max(0);
        *size -= take;
        left -= take;
    }
    let mut left = numbers::sum(&all, numbers::available) - minimum;
    for size in &mut sizes {
        let take = (*size).min(left).max(0);
        *size -= take;
        left -= take;
    }
    let mut scaled = false;
    for (set, size) in sets.old.iter().zip(sizes) {
        scaled |= scale::resize(plan, deployment, set, size);
    }
    scaled
}

/// One step of a replacement of all pods at once.
fn recreate(mut plan: Plan, view: &View, sets: &Sets, now: Timestamp) -> Plan {
    let deployment = view.deployment.as_ref();
    let all = sets.all();
    sync_new_set(&mut plan, deployment, sets);
    if !plan.is_empty() {
        return plan;
    }
    let mut scaled = false;
    for set in sets.old.iter().filter(|s| numbers::size(s) > 0) {
        scaled |= scale::resize(&mut plan, deployment, set, 0);
    }
    let old_run = numbers::sum(&sets.old, numbers::actual) > 0
        || sets.old.iter().any(|s| view.running.get(object::uid(s.as_ref())).is_some_and(|n| *n > 0));
    if !scaled && !old_run {
        match &sets.new {
            None => {
                make_new_set(&mut plan, view, sets, now);
                return plan;
            }
            Some(new) => scaled = scale::resize(&mut plan, deployment, new, numbers::replicas(deployment)),
        }
        if !scaled && status::is_complete(deployment, &deployment.status.clone().unwrap_or_default()) {
            clean_up(&mut plan, deployment, &sets.old);
        }
    }
    let status = status::of_rollout(deployment, &all, sets.new.as_ref(), now);
    if let Some(after) = status::next_look(deployment, &status, now) {
        plan.requeue(after);
    }
    finish(&mut plan, deployment, status);
    plan
}

/// Deletes the oldest revisions beyond the limit, those only that have and want no pods.
fn clean_up(plan: &mut Plan, deployment: &Deployment, old: &[Arc<ReplicaSet>]) {
    let limit = deployment.spec.as_ref().and_then(|s| s.revision_history_limit);
    let Some(limit) = limit.filter(|l| *l != i32::MAX).and_then(|l| usize::try_from(l).ok()) else { return };
    let mut kept: Vec<&Arc<ReplicaSet>> = old.iter().filter(|s| !object::is_deleting(s.as_ref())).collect();
    let excess = kept.len().saturating_sub(limit);
    kept.sort_by_key(|s| (annotations::revision(s), s.metadata.creation_timestamp.clone()));
    for set in kept.into_iter().take(excess) {
        let observed = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
        let stale = set.metadata.generation.unwrap_or(0) > observed;
        if numbers::actual(set) == 0 && numbers::size(set) == 0 && !stale {
            plan.push(Act::delete(set.as_ref()));
        }
    }
}

fn finish(plan: &mut Plan, deployment: &Deployment, status: k8s_openapi::api::apps::v1::DeploymentStatus) {
    let mut updated = deployment.clone();
    updated.status = Some(status);
    plan.update_status(deployment, &updated);
}
