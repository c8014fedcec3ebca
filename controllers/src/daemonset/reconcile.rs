//! The pure part of the DaemonSet controller.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Node;

use super::{nodes, update};
use crate::cache::Pod;
use crate::claim::claim;
use crate::object;
use crate::plan::{Act, Note, Plan, Step};
use crate::pods;
use crate::revisions::{self, Present, REVISION_LABEL};
use crate::runner::Failure;

/// How many pods one plan creates or deletes at most.
const BURST: usize = 250;
/// Label with the generation of the template; kept for clients that still read it.
const GENERATION_LABEL: &str = "pod-template-generation";
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";

/// What a decision about a DaemonSet rests on.
pub struct View {
    /// The set.
    pub set: Arc<DaemonSet>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// Its pods and the orphans of its namespace.
    pub candidates: Vec<Arc<Pod>>,
    /// Its revisions, oldest first.
    pub history: Vec<Arc<ControllerRevision>>,
    /// The revision of its template.
    pub present: Present,
    /// For nodes whose pod has failed: how long its replacement has to wait.
    pub waits: HashMap<String, Duration>,
    /// What failed last time.
    pub prior: Option<Failure>,
}

/// What a plan is to create and delete.
#[derive(Default)]
pub(super) struct Changes {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    /// Pods that go.
    pub delete: Vec<Arc<Pod>>,
}

/// Decides about a DaemonSet.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let set = view.set.as_ref();
    let Some(spec) = &set.spec else { return plan };
    let Some(selector) = object::selector(&spec.selector) else { return plan };
    if selector.selects_all() {
        let message = "This daemon set is selecting all pods. A non-empty selector is required.";
        plan.events.push(Note::warning(object::reference(set), "SelectingAll", message));
        return plan;
    }
    if object::is_deleting(set) {
        return plan;
    }
    let revision = match &view.present {
        Present::Stored(revision) => revision,
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
    let claims = claim(set, &selector, None, &view.candidates, |_| true);
    if !claims.acts.is_empty() {
        plan.actions.push(Step::Parallel(claims.acts));
    }
    let mut by_node: BTreeMap<&str, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in &claims.claimed {
        if let Some(node) = nodes::of_pod(pod) {
            by_node.entry(node).or_default().push(pod.clone());
        }
    }
    let hash = revisions::hash_of(revision);
    let mut changes = Changes::default();
    for node in &view.nodes {
        let name = object::name(node.as_ref());
        let pods = by_node.get(name).cloned().unwrap_or_default();
        place(&mut plan, &mut changes, view, node, pods, hash);
    }
    // Pods of nodes that are gone are the pod garbage collector's, once they are placed there.
    for (node, pods) in &by_node {
        if !view.nodes.iter().any(|n| object::name(n.as_ref()) == *node) {
            changes.delete.extend(pods.iter().filter(|p| pods::node(p).is_empty()).cloned());
        }
    }
    if changes.create.is_empty() && changes.delete.is_empty() {
        update::roll(&mut changes, view, &by_node, hash, now);
    }
    carry_out(&mut plan, set, &changes, hash);
    if changes.create.is_empty() && changes.delete.is_empty() {
        let used = |r: &ControllerRevision| {
            r.metadata.name == revision.metadata.name
                || claims
                    .claimed
                    .iter()
                    .any(|p| object::label(&p.metadata, REVISION_LABEL) == Some(revisions::hash_of(r)))
        };
        for act in revisions::clean_up(&view.history, spec.revision_history_limit, used) {
            plan.push(act);
        }
    }
    let mut updated = set.clone();
    updated.status = Some(status(&mut plan, view, &by_node, hash, now));
    plan.update_status(set, &updated);
    plan
}

/// What one node needs, updates aside.
fn place(plan: &mut Plan, changes: &mut Changes, view: &View, node: &Node, pods: Vec<Arc<Pod>>, hash: &str) {
    let set = view.set.as_ref();
    let name = object::name(node);
    let about = || object::reference(set);
    let (run, stay) = nodes::fits(set, node);
    if !stay {
        changes.delete.extend(pods.into_iter().filter(|p| !object::is_deleting(p.as_ref())));
        return;
    }
    if pods.is_empty() {
        if run {
            changes.create.push(name.to_owned());
        }
        return;
    }
    let mut running = Vec::new();
    for pod in pods.into_iter().filter(|p| !object::is_deleting(p.as_ref())) {
        let key = object::Key::of(pod.as_ref());
        match pods::phase(&pod) {
            "Failed" => {
                let wait = view.waits.get(name).copied().unwrap_or_default();
                if !wait.is_zero() {
                    plan.requeue(wait);
                    continue;
                }
                let message = format!("Found failed daemon pod {key} on node {name}, will try to kill it");
                plan.events.push(Note::warning(about(), "FailedDaemonPod", message));
                changes.delete.push(pod);
            }
            "Succeeded" => {
                let message =
                    format!("Found succeeded daemon pod {key} on node {name}, will try to delete it");
                plan.events.push(Note::normal(about(), "SucceededDaemonPod", message));
                changes.delete.push(pod);
            }
            _ => running.push(pod),
        }
    }
    // Two of one template are one too many; an old one beside a new one is an update's affair.
    for of_current in [true, false] {
        let mut alike: Vec<Arc<Pod>> =
            running.iter().filter(|p| update::is_current(p, hash) == of_current).cloned().collect();
        alike.sort_by_key(|p| {
            (!pods::is_ready(p), p.metadata.creation_timestamp.clone(), p.metadata.name.clone())
        });
        changes.delete.extend(alike.into_iter().skip(1));
    }
    let fresh = |p: &&Arc<Pod>| update::is_current(p, hash);
    let both = running.iter().any(|p| fresh(&p)) && running.iter().any(|p| !fresh(&p));
    if both && update::max_surge(set, view.nodes.len()) == 0 {
        let keep_current = running.iter().any(|p| fresh(&p) && pods::is_ready(p));
        changes.delete.extend(running.iter().filter(|p| fresh(p) != keep_current).cloned());
        changes.delete.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        changes.delete.dedup_by(|a, b| a.metadata.uid == b.metadata.uid);
    }
}

fn carry_out(plan: &mut Plan, set: &DaemonSet, changes: &Changes, hash: &str) {
    let Some(spec) = &set.spec else { return };
    let about = || object::reference(set);
    let creates: Vec<Act> = changes
        .create
        .iter()
        .take(BURST)
        .map(|node| {
            let mut pod = pods::from_template(&spec.template, set);
            let labels = pod.metadata.labels.get_or_insert_default();
            labels.insert(REVISION_LABEL.to_owned(), hash.to_owned());
            if let Some(generation) = object::annotation(&set.metadata, GENERATION_ANNOTATION) {
                labels.insert(GENERATION_LABEL.to_owned(), generation.to_owned());
            }
            let pod_spec = pod.spec.get_or_insert_default();
            nodes::add_tolerations(pod_spec);
            nodes::bind(pod_spec, node);
            Act::create(&pod)
                .ok(Note::normal(about(), "SuccessfulCreate", "Created pod: {name}"))
                .err(Note::warning(about(), "FailedCreate", "Error creating: {error}"))
        })
        .collect();
    let deletes: Vec<Act> = changes
        .delete
        .iter()
        .take(BURST)
        .map(|pod| {
            let message = format!("Deleted pod: {}", object::name(pod.as_ref()));
            Act::delete(pod.as_ref())
                .ok(Note::normal(about(), "SuccessfulDelete", message))
                .err(Note::warning(about(), "FailedDelete", "Error deleting: {error}"))
        })
        .collect();
    if !creates.is_empty() {
        plan.actions.push(Step::slow_start(creates.into_iter().map(Arc::new).collect()));
    }
    if !deletes.is_empty() {
        plan.actions.push(Step::Parallel(deletes));
    }
}

fn status(
    plan: &mut Plan,
    view: &View,
    by_node: &BTreeMap<&str, Vec<Arc<Pod>>>,
    hash: &str,
    now: Timestamp,
) -> DaemonSetStatus {
    let set = view.set.as_ref();
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let old = set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated) = (0, 0);
    for node in &view.nodes {
        let pods = by_node.get(object::name(node.as_ref())).map(Vec::as_slice).unwrap_or_default();
        let (run, _) = nodes::fits(set, node);
        if !run {
            status.number_misscheduled += i32::from(!pods.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        status.current_number_scheduled += i32::from(!pods.is_empty());
        let best = pods.iter().max_by_key(|p| (pods::is_ready(p), update::is_current(p, hash)));
        if let Some(pod) = best {
            status.number_ready += i32::from(pods::is_ready(pod));
            match pods::until_available(pod, min_ready, now) {
                Some(Duration::ZERO) => available += 1,
                Some(left) => plan.requeue(left),
                None => {}
            }
        }
        updated += i32::from(pods.iter().any(|p| update::is_current(p, hash)));
    }
    let count = |new: i32, old: Option<i32>| if new == 0 && old.is_none() { None } else { Some(new) };
    status.number_available = count(available, old.number_available);
    status.number_unavailable = count(status.desired_number_scheduled - available, old.number_unavailable);
    status.updated_number_scheduled = count(updated, old.updated_number_scheduled);
    status
}
