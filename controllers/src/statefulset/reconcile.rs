//! The pure part of the StatefulSet controller.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::{pod, status};
use crate::cache::Pod;
use crate::claim::claim;
use crate::deployment::resolve;
use crate::object;
use crate::plan::{Act, Note, Plan, Step};
use crate::pods;
use crate::revisions::{self, Present};
use crate::runner::Failure;

/// What a decision about a StatefulSet rests on.
pub struct View {
    /// The set.
    pub set: Arc<StatefulSet>,
    /// Its pods and the orphans of its namespace.
    pub candidates: Vec<Arc<Pod>>,
    /// Its revisions, oldest first.
    pub history: Vec<Arc<ControllerRevision>>,
    /// The revision of its template.
    pub present: Present,
    /// The claims of its pods that there are, with the pod's number.
    pub claims: HashMap<String, (i32, Arc<PersistentVolumeClaim>)>,
    /// What failed last time.
    pub prior: Option<Failure>,
}

/// Numbers and sizes of a set.
struct Shape {
    start: i32,
    end: i32,
    ordered: bool,
    min_ready: i32,
}

fn shape(set: &StatefulSet) -> Shape {
    let spec = set.spec.as_ref();
    let start = spec.and_then(|s| s.ordinals.as_ref()).and_then(|o| o.start).unwrap_or(0).max(0);
    let replicas = spec.and_then(|s| s.replicas).unwrap_or(1).max(0);
    Shape {
        start,
        end: start.saturating_add(replicas),
        ordered: spec.and_then(|s| s.pod_management_policy.as_deref()) != Some("Parallel"),
        min_ready: spec.and_then(|s| s.min_ready_seconds).unwrap_or(0),
    }
}

/// The names of all claims that pods of the set have or will have, with the pods' numbers.
pub fn claim_names(set: &StatefulSet, candidates: &[Arc<Pod>]) -> Vec<(i32, String)> {
    let shape = shape(set);
    let extra = candidates.iter().filter_map(|p| pod::ordinal_of(set, p.as_ref()));
    let ordinals: std::collections::BTreeSet<i32> = (shape.start..shape.end).chain(extra).collect();
    let templates = pod::claim_templates(set);
    ordinals
        .into_iter()
        .flat_map(|o| templates.iter().map(move |t| (o, pod::claim_name(set, t, o))))
        .collect()
}

fn serves(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod) && !object::is_deleting(pod)
}

/// Decides about a StatefulSet.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let set = view.set.as_ref();
    let Some(spec) = &set.spec else { return plan };
    let Some(selector) = object::selector(&spec.selector) else { return plan };
    let update = match &view.present {
        Present::Stored(revision) => revision,
        _ if object::is_deleting(set) => return plan,
        Present::Write(act) => {
            plan.push(Act::clone(act));
            return plan;
        }
        Present::Collision => {
            let mut updated = set.clone();
            let status = updated.status.get_or_insert_default();
            status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
            plan.update_status(set, &updated);
            return plan;
        }
    };
    // Only pods of the right name are adopted.
    let claims = claim(set, &selector, None, &view.candidates, |p| pod::ordinal_of(set, p).is_some());
    if !claims.acts.is_empty() {
        plan.actions.push(Step::Parallel(claims.acts));
    }
    let named = set.status.as_ref().and_then(|s| s.current_revision.as_deref());
    let current = view.history.iter().find(|r| r.metadata.name.as_deref() == named).unwrap_or(update);
    let (current_name, update_name) =
        (object::name(current.as_ref()).to_owned(), object::name(update.as_ref()).to_owned());

    let shape = shape(set);
    let mut replicas: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    let mut condemned: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for p in &claims.claimed {
        if let Some(ordinal) = pod::ordinal_of(set, p.as_ref()) {
            let inside = (shape.start..shape.end).contains(&ordinal);
            (if inside { &mut replicas } else { &mut condemned }).insert(ordinal, p.clone());
        }
    }
    let all: Vec<Arc<Pod>> = replicas.values().chain(condemned.values()).cloned().collect();
    let mut status = status::count(set, &all, &current_name, &update_name, now);
    status::complete(set, &mut status);
    for p in &all {
        if let Some(left) = pods::until_available(p, shape.min_ready, now).filter(|left| !left.is_zero()) {
            plan.requeue(left);
        }
    }
    if !object::is_deleting(set) {
        let step = Turn { view, shape: &shape, current, update, now };
        let done = step.grow(&mut plan, &replicas) && step.shrink(&mut plan, &replicas, &condemned);
        if done {
            step.replace(&mut plan, &replicas);
            let used = |r: &ControllerRevision| {
                let name = object::name(r);
                name == current_name || name == update_name || all.iter().any(|p| status::is_of(p, name))
            };
            for act in revisions::clean_up(&view.history, spec.revision_history_limit, used) {
                plan.push(act);
            }
        }
        retain(&mut plan, view, &shape, &condemned);
    }
    let mut updated = set.clone();
    updated.status = Some(status);
    plan.update_status(set, &updated);
    plan
}

/// One turn of the set's wheel.
struct Turn<'a> {
    view: &'a View,
    shape: &'a Shape,
    current: &'a Arc<ControllerRevision>,
    update: &'a Arc<ControllerRevision>,
    now: Timestamp,
}

impl Turn<'_> {
    fn available(&self, pod: &Pod) -> bool {
        serves(pod) && pods::until_available(pod, self.shape.min_ready, self.now) == Some(Duration::ZERO)
    }

    fn partition(&self) -> Option<i32> {
        let strategy = self.view.set.spec.as_ref()?.update_strategy.as_ref()?;
        strategy.rolling_update.as_ref()?.partition
    }

    fn on_delete(&self) -> bool {
        let strategy = self.view.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete")
    }

    /// The revision that a pod of this number is made of.
    fn revision_for(&self, ordinal: i32) -> &Arc<ControllerRevision> {
        let held = match self.partition() {
            _ if self.on_delete() => 0,
            Some(partition) => partition,
            None => self.view.set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0),
        };
        if ordinal < self.shape.start.saturating_add(held) { self.current } else { self.update }
    }

    /// Makes pods that are missing. Tells whether the turn may go on.
    fn grow(&self, plan: &mut Plan, replicas: &BTreeMap<i32, Arc<Pod>>) -> bool {
        let set = self.view.set.as_ref();
        let mut go_on = true;
        for ordinal in self.shape.start..self.shape.end {
            match replicas.get(&ordinal) {
                None => {
                    self.create(plan, ordinal);
                    go_on = false;
                }
                Some(pod) if pods::is_terminal(pod) => {
                    if !object::is_deleting(pod.as_ref()) {
                        let failed = pods::phase(pod) == "Failed";
                        let reason = if failed { "RecreatingFailedPod" } else { "RecreatingTerminatedPod" };
                        let state = if failed { "Failed" } else { "Terminated" };
                        let key = object::Key::of(pod.as_ref());
                        let message = format!(
                            "StatefulSet {} is recreating {state} Pod {}",
                            object::Key::of(set),
                            key.name
                        );
                        let about = object::reference(set);
                        let note = if failed {
                            Note::warning(about, reason, message)
                        } else {
                            Note::normal(about, reason, message)
                        };
                        plan.push(self.delete(pod).ok(note));
                    }
                    go_on = false;
                }
                Some(pod) if self.shape.ordered && !self.available(pod) => return false,
                Some(_) => {}
            }
            if !go_on && self.shape.ordered {
                return false;
            }
        }
        // Without order, what was just made keeps nobody from shrinking.
        go_on || !self.shape.ordered
    }

    fn create(&self, plan: &mut Plan, ordinal: i32) {
        let set = self.view.set.as_ref();
        let about = || object::reference(set);
        let revision = self.revision_for(ordinal);
        let Some(template) = revisions::template_of(revision) else {
            let message = format!("revision {} cannot be read", object::name(revision.as_ref()));
            plan.events.push(Note::warning(about(), "FailedCreate", message));
            return;
        };
        let name = pod::name_of(set, ordinal);
        let set_name = object::name(set);
        for claim in pod::new_claims(set, ordinal) {
            let claim_name = object::name(&claim).to_owned();
            match self.view.claims.get(&claim_name) {
                Some((_, stored)) if object::is_deleting(stored.as_ref()) => {
                    // A pod on a claim that goes would wait for ever; the claim's end is waited for.
                    plan.requeue(Duration::from_secs(1));
                    return;
                }
                Some(_) => {}
                None => plan.push(
                    Act::create(&claim)
                        .may_exist()
                        .ok(Note::normal(
                            about(),
                            "SuccessfulCreate",
                            format!("create Claim {claim_name} Pod {name} in StatefulSet {set_name} success"),
                        ))
                        .err(Note::warning(
                            about(),
                            "FailedCreate",
                            format!("create Claim {claim_name} for Pod {name} in StatefulSet {set_name} failed error: {{error}}"),
                        )),
                ),
            }
        }
        let pod = pod::new_pod(set, &template, object::name(revision.as_ref()), ordinal);
        plan.push(
            Act::create(&pod)
                .may_exist()
                .ok(Note::normal(
                    about(),
                    "SuccessfulCreate",
                    format!("create Pod {name} in StatefulSet {set_name} successful"),
                ))
                .err(Note::warning(
                    about(),
                    "FailedCreate",
                    format!("create Pod {name} in StatefulSet {set_name} failed error: {{error}}"),
                )),
        );
    }

    fn delete(&self, pod: &Arc<Pod>) -> Act {
        let set = self.view.set.as_ref();
        let (name, set_name) = (object::name(pod.as_ref()), object::name(set));
        let about = || object::reference(set);
        Act::delete(pod.as_ref())
            .ok(Note::normal(
                about(),
                "SuccessfulDelete",
                format!("delete Pod {name} in StatefulSet {set_name} successful"),
            ))
            .err(Note::warning(
                about(),
                "FailedDelete",
                format!("delete Pod {name} in StatefulSet {set_name} failed error: {{error}}"),
            ))
    }

    /// Deletes pods beyond the wanted number, highest first. Tells whether the turn may go on.
    fn shrink(
        &self,
        plan: &mut Plan,
        replicas: &BTreeMap<i32, Arc<Pod>>,
        condemned: &BTreeMap<i32, Arc<Pod>>,
    ) -> bool {
        let unhealthy = replicas.values().chain(condemned.values()).find(|p| !serves(p));
        for pod in condemned.values().rev() {
            if object::is_deleting(pod.as_ref()) {
                if self.shape.ordered {
                    return false;
                }
                continue;
            }
            let first = unhealthy.is_some_and(|u| u.metadata.uid == pod.metadata.uid);
            if self.shape.ordered && !first && !self.available(pod) {
                return false;
            }
            plan.push(self.delete(pod));
            if self.shape.ordered {
                return false;
            }
        }
        condemned.is_empty()
    }

    /// Deletes pods of another revision, highest first, so that they are made anew.
    fn replace(&self, plan: &mut Plan, replicas: &BTreeMap<i32, Arc<Pod>>) {
        if self.on_delete() {
            return;
        }
        let set = self.view.set.as_ref();
        let rolling = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        let limit = rolling.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_unavailable.clone());
        let floor = self.shape.start.saturating_add(self.partition().unwrap_or(0));
        let update = object::name(self.update.as_ref());
        let outdated = |p: &Pod| !status::is_of(p, update) && !object::is_deleting(p);
        let candidates = replicas.range(floor..).rev().map(|(_, pod)| pod);
        let Some(limit) = limit else {
            for pod in candidates {
                if outdated(pod) {
                    plan.push(self.delete(pod));
                    return;
                }
                if !self.available(pod) {
                    return;
                }
            }
            return;
        };
        let total = self.shape.end - self.shape.start;
        let limit = usize::try_from(resolve(&limit, total, false)).unwrap_or(0).max(1);
        let available = replicas.values().filter(|p| self.available(p)).count();
        let unavailable = usize::try_from(total).unwrap_or(0).saturating_sub(available);
        let room = limit.saturating_sub(unavailable);
        for pod in candidates.filter(|p| outdated(p)).take(room) {
            plan.push(self.delete(pod));
        }
    }
}

/// Keeps the claims' owners as the retention policy says (KEP-1847).
fn retain(plan: &mut Plan, view: &View, shape: &Shape, condemned: &BTreeMap<i32, Arc<Pod>>) {
    let set = view.set.as_ref();
    let policy = set.spec.as_ref().and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |p: Option<&str>| p == Some("Delete");
    let with_set = deletes(policy.and_then(|p| p.when_deleted.as_deref()));
    let with_pod = deletes(policy.and_then(|p| p.when_scaled.as_deref()));
    let mut acts = Vec::new();
    let mut names: Vec<&String> = view.claims.keys().collect();
    names.sort();
    for (ordinal, claim) in names.into_iter().filter_map(|n| view.claims.get(n)) {
        let mut owners = claim.metadata.owner_references.clone().unwrap_or_default();
        let before = owners.clone();
        let ours = |r: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
            r.kind == "Pod" && r.name == pod::name_of(set, *ordinal)
                || r.kind == "StatefulSet" && r.uid == object::uid(set)
        };
        let inside = (shape.start..shape.end).contains(ordinal);
        let wanted = if with_pod && !inside {
            condemned.get(ordinal).map(|p| pod::retention_owner(p.as_ref()))
        } else {
            with_set.then(|| pod::retention_owner(set))
        };
        // Whose claim is another controller's is left to that one.
        let foreign = |r: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
            let namesake = r.kind == "StatefulSet" && r.name == object::name(set);
            !ours(r) && (namesake || r.controller == Some(true))
        };
        let is_foreign = (with_set || with_pod) && owners.iter().any(foreign);
        if is_foreign {
            let message = format!(
                "PersistentVolumeClaim {} has a conflicting OwnerReference that acts as a manging controller, the \
                 retention policy is ignored for this claim",
                object::name(claim.as_ref())
            );
            plan.events.push(Note::warning(object::reference(set), "ConflictingController", message));
        }
        let wanted = wanted.filter(|_| !is_foreign);
        // A condemned pod that is gone already has taken its claim with it, or will.
        if with_pod && !inside && wanted.is_none() && !is_foreign {
            continue;
        }
        let held: Vec<_> = owners.iter().filter(|r| ours(r)).cloned().collect();
        if held.iter().map(|r| &r.uid).eq(wanted.iter().map(|r| &r.uid)) {
            continue;
        }
        owners.retain(|r| !ours(r));
        owners.extend(wanted);
        if owners != before {
            let mut updated = PersistentVolumeClaim::clone(claim);
            updated.metadata.owner_references = Some(owners).filter(|o| !o.is_empty());
            acts.push(Act::update(&updated).may_be_absent());
        }
    }
    if !acts.is_empty() {
        // Before any pod is deleted: the claim must know whom it follows.
        plan.actions.insert(0, Step::Parallel(acts));
    }
}
