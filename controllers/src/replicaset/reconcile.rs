//! The pure part of the controller.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};

use crate::cache::Pod;
use crate::claim::{Claims, claim};
use crate::object;
use crate::plan::{Act, Note, Plan, Step};
use crate::pods;
use crate::runner::Failure;

use super::Replicates;

/// How many pods one plan creates or deletes at most.
const BURST: usize = 500;
/// How long ago a moment ago is.
pub(super) const LATELY: Duration = Duration::from_secs(5);

/// What a decision about a set of pods rests on.
pub struct View<K> {
    /// The set.
    pub set: Arc<K>,
    /// Its pods and the orphans of its namespace.
    pub candidates: Vec<Arc<Pod>>,
    /// The active pods of all sets with the same owner; none where no pod is too many.
    pub related: Vec<Arc<Pod>>,
    /// What failed last time.
    pub prior: Option<Failure>,
}

/// Decides about a set of pods.
pub fn reconcile<K: Replicates>(view: &View<K>, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let set = view.set.as_ref();
    let Some(selector) = set.selector() else { return plan };
    let wanted = usize::try_from(set.replicas()).unwrap_or(0);
    let min_ready = set.min_ready_seconds();

    let (ended, living): (Vec<_>, Vec<_>) =
        view.candidates.iter().cloned().partition(|pod| !pods::is_active(pod));
    let Claims { claimed: mut pods, acts } = claim(set, &selector, None, &living, |_| true);
    if !acts.is_empty() {
        plan.actions.push(Step::Parallel(acts));
    }
    let terminating = ended
        .iter()
        .filter(|pod| object::is_controlled_by(&pod.metadata, set) && pods::is_terminating(pod))
        .count();

    if !object::is_deleting(set) {
        manage(&mut plan, view, &mut pods, wanted, now);
    }

    let status = status(view, &pods, terminating, wanted, min_ready, now);
    if min_ready > 0 {
        let waiting = pods.iter().filter_map(|pod| pods::until_available(pod, min_ready, now));
        if let Some(next) = waiting.filter(|left| !left.is_zero()).min() {
            plan.requeue(next.max(Duration::from_millis(100)));
        }
    }
    plan.update_status(set, &set.with_status(status));
    plan
}

/// Creates what is missing or deletes what is too much.
fn manage<K: Replicates>(
    plan: &mut Plan,
    view: &View<K>,
    pods: &mut [Arc<Pod>],
    wanted: usize,
    now: Timestamp,
) {
    let set = view.set.as_ref();
    let about = || object::reference(set);
    if pods.len() < wanted {
        let Some(template) = set.template() else { return };
        let act = Act::create(&pods::from_template(template, set))
            .ok(Note::normal(about(), "SuccessfulCreate", "Created pod: {name}"))
            .err(Note::warning(about(), "FailedCreate", "Error creating: {error}"));
        let act = Arc::new(act);
        let acts = vec![act; (wanted - pods.len()).min(BURST)];
        plan.actions
            .push(Step::warm_start(acts, if view.prior.is_none() { made_lately(pods, now) } else { 0 }));
    } else if pods.len() > wanted {
        let excess = (pods.len() - wanted).min(BURST);
        if excess < pods.len() {
            pods::deletion_order(pods, &view.related, now);
        }
        let acts = pods.iter().take(excess).map(|pod| {
            let name = object::name(pod.as_ref());
            Act::delete(pod.as_ref())
                .ok(Note::normal(about(), "SuccessfulDelete", format!("Deleted pod: {name}")))
                .err(Note::warning(about(), "FailedDelete", "Error deleting: {error}"))
        });
        plan.actions.push(Step::Parallel(acts.collect()));
    }
}

/// How many of the pods were made a moment ago: nothing stood in their way, so that nothing will in that of more.
fn made_lately(pods: &[Arc<Pod>], now: Timestamp) -> usize {
    let lately = now - LATELY;
    pods.iter()
        .filter(|pod| pod.metadata.creation_timestamp.as_ref().is_some_and(|at| at.0 >= lately))
        .count()
}

fn status<K: Replicates>(
    view: &View<K>,
    pods: &[Arc<Pod>],
    terminating: usize,
    wanted: usize,
    min_ready: i32,
    now: Timestamp,
) -> ReplicaSetStatus {
    let set = view.set.as_ref();
    let old = set.status();
    let template_labels = set.template().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
    let template_labels = template_labels.unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| number(pods.iter().filter(|p| test(p)).count());

    let mut conditions = old.conditions.clone().unwrap_or_default();
    let failing = view.prior.as_ref().filter(|f| f.plural == "pods" && f.verb != "patch");
    let known = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failing {
        Some(failure) if !known => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(if pods.len() < wanted { "FailedCreate" } else { "FailedDelete" }.to_owned()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(object::time(now)),
        }),
        // The failure stands until the numbers are right: then nothing is left that could fail.
        None if known && pods.len() == wanted => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        _ => {}
    }
    ReplicaSetStatus {
        replicas: number(pods.len()),
        fully_labeled_replicas: Some(count(&|p| object::matches_pairs(&template_labels, &p.metadata.labels))),
        ready_replicas: Some(count(&pods::is_ready)),
        available_replicas: Some(count(&|p| pods::is_available(p, min_ready, now))),
        terminating_replicas: Some(number(terminating)),
        observed_generation: set.meta().generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
    .normalized(&old)
}

/// Zero and absent are the same to a server that omits zeros.
trait Normalize {
    fn normalized(self, old: &Self) -> Self;
}

impl Normalize for ReplicaSetStatus {
    fn normalized(mut self, old: &Self) -> Self {
        let keep = |new: &mut Option<i32>, old: &Option<i32>| {
            if *new == Some(0) && old.is_none() {
                *new = None;
            }
        };
        keep(&mut self.fully_labeled_replicas, &old.fully_labeled_replicas);
        keep(&mut self.ready_replicas, &old.ready_replicas);
        keep(&mut self.available_replicas, &old.available_replicas);
        keep(&mut self.terminating_replicas, &old.terminating_replicas);
        self
    }
}

fn number(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
