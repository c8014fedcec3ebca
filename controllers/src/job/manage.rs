//! How many pods a Job wants now, which ones it makes, which ones it deletes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod as NewPod};

use super::count::{self, Tally};
use super::{COMPLETION_INDEX, INDEX_FAILURES, TRACKING};
use crate::cache::Pod;
use crate::object;
use crate::plan::{Act, Note, Plan, Step};
use crate::pods;

/// How many pods one plan creates or deletes at most.
const BURST: usize = 500;
/// The wait after a first failure; each further one doubles it.
const BACKOFF: Duration = Duration::from_secs(10);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(600);

/// Deletes pods, with the Job's events.
pub fn delete(plan: &mut Plan, job: &Job, pods: &[Arc<Pod>]) {
    let acts: Vec<Act> = pods
        .iter()
        .take(BURST)
        .map(|pod| {
            let about = || object::reference(job);
            let message = format!("Deleted pod: {}", object::name(pod.as_ref()));
            Act::delete(pod.as_ref())
                .ok(Note::normal(about(), "SuccessfulDelete", message))
                .err(Note::warning(about(), "FailedDelete", "Error deleting: {error}"))
        })
        .collect();
    if !acts.is_empty() {
        plan.actions.push(Step::Parallel(acts));
    }
}

/// Brings the number of pods at work to what is wanted.
pub fn manage(plan: &mut Plan, job: &Job, tally: &Tally, own: &[Arc<Pod>], now: Timestamp) {
    let Some(spec) = &job.spec else { return };
    let active = tally.active.len();
    let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
    let wanted = match spec.completions {
        // Without a number of completions the first success ends the making of pods.
        None if tally.succeeded > 0 => active.min(parallelism),
        None => parallelism,
        Some(completions) => {
            let over = tally.failed_indexes.as_ref().map_or(0, BTreeSet::len);
            let left = completions.saturating_sub(tally.succeeded).max(0);
            parallelism.min(usize::try_from(left).unwrap_or(0).saturating_sub(over))
        }
    };
    let superfluous = superfluous(job, tally);
    if !superfluous.is_empty() {
        delete(plan, job, &superfluous);
        return;
    }
    if active > wanted {
        let mut order = tally.active.clone();
        pods::deletion_order(&mut order, &[], now);
        order.truncate(active - wanted);
        delete(plan, job, &order);
        return;
    }
    let held = if count::replaces_only_failed(job) { tally.terminating } else { 0 };
    let missing = wanted.saturating_sub(active + held).min(BURST);
    if missing == 0 {
        return;
    }
    let about = || object::reference(job);
    let make = |pod: &NewPod| {
        let act = Act::create(pod)
            .ok(Note::normal(about(), "SuccessfulCreate", "Created pod: {name}"))
            .err(Note::warning(about(), "FailedCreate", "Error creating: {error}"));
        Arc::new(act)
    };
    let mut acts = Vec::new();
    if count::is_indexed(job) {
        for index in pending(job, tally, own, missing, plan, now) {
            let failures = tally.index_failures.get(&index).copied().unwrap_or(0);
            acts.push(make(&indexed_pod(job, index, failures)));
        }
    } else {
        let wait = backoff(job, own.iter(), now);
        if !wait.is_zero() {
            plan.requeue(wait);
            return;
        }
        acts = vec![make(&new_pod(job)); missing];
    }
    if !acts.is_empty() {
        plan.actions.push(Step::slow_start(acts));
    }
}

/// Pods of an indexed Job that nobody needs: without a valid index, of a finished one, or second ones.
fn superfluous(job: &Job, tally: &Tally) -> Vec<Arc<Pod>> {
    if !count::is_indexed(job) {
        return Vec::new();
    }
    let completions = job.spec.as_ref().and_then(|s| s.completions).unwrap_or(0);
    let mut seen = BTreeSet::new();
    let mut order = tally.active.clone();
    order.sort_by_key(|p| {
        (!pods::is_ready(p), p.metadata.creation_timestamp.clone(), p.metadata.name.clone())
    });
    order.retain(|pod| match count::index_of(pod) {
        Some(index) if (0..completions).contains(&index) => {
            let over = tally.failed_indexes.as_ref().is_some_and(|f| f.contains(&index));
            tally.done.contains(&index) || over || !seen.insert(index)
        }
        _ => true,
    });
    order
}

/// The first indexes that have no pod and whose wait is over.
fn pending(
    job: &Job,
    tally: &Tally,
    own: &[Arc<Pod>],
    missing: usize,
    plan: &mut Plan,
    now: Timestamp,
) -> Vec<i32> {
    let spec = job.spec.as_ref();
    let completions = spec.and_then(|s| s.completions).unwrap_or(0);
    let per_index = spec.is_some_and(|s| s.backoff_limit_per_index.is_some());
    if !per_index {
        let wait = backoff(job, own.iter(), now);
        if !wait.is_zero() {
            plan.requeue(wait);
            return Vec::new();
        }
    }
    let mut busy: BTreeSet<i32> = tally.active.iter().filter_map(|p| count::index_of(p)).collect();
    if count::replaces_only_failed(job) {
        busy.extend(own.iter().filter(|p| pods::is_terminating(p)).filter_map(|p| count::index_of(p)));
    }
    let over = tally.failed_indexes.clone().unwrap_or_default();
    let free = (0..completions).filter(|i| !busy.contains(i) && !tally.done.contains(i) && !over.contains(i));
    let mut chosen = Vec::new();
    for index in free {
        if chosen.len() == missing {
            break;
        }
        if per_index {
            let of_index = own.iter().filter(|p| count::index_of(p) == Some(index));
            let wait = backoff(job, of_index, now);
            if !wait.is_zero() {
                plan.requeue(wait);
                continue;
            }
        }
        chosen.push(index);
    }
    chosen
}

/// How long to wait after the failures since the last success among `pods`.
fn backoff<'a>(job: &Job, pods: impl Iterator<Item = &'a Arc<Pod>>, now: Timestamp) -> Duration {
    let mut ended: Vec<(Timestamp, bool)> = pods
        .filter_map(|pod| match pods::phase(pod) {
            "Succeeded" => Some((finished_at(pod, now), true)),
            _ if count::is_failed(job, pod) => Some((finished_at(pod, now), false)),
            _ => None,
        })
        .collect();
    ended.sort();
    let failures = ended.iter().rev().take_while(|(_, success)| !success).count();
    let Some((last, false)) = ended.last().copied() else { return Duration::ZERO };
    let power = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let wait = BACKOFF.saturating_mul(1 << power).min(LONGEST);
    let passed = u64::try_from(now.as_second().saturating_sub(last.as_second())).unwrap_or(0);
    wait.saturating_sub(Duration::from_secs(passed))
}

/// When a pod ended: when its last container did, or as well as can be told.
fn finished_at(pod: &Pod, now: Timestamp) -> Timestamp {
    let containers = pod.status.containers.iter().filter(|c| !c.is_init);
    let ends = containers.filter_map(|c| c.ended.as_ref()?.1.as_ref().map(|t| t.0));
    ends.max()
        .or_else(|| pods::condition(pod, "Ready")?.last_transition_time.as_ref().map(|t| t.0))
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|t| t.0))
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
        .unwrap_or(now)
}

fn new_pod(job: &Job) -> NewPod {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(&template, job);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == TRACKING) {
        finalizers.push(TRACKING.to_owned());
    }
    pod
}

fn indexed_pod(job: &Job, index: i32, failures: i32) -> NewPod {
    let mut pod = new_pod(job);
    let name = object::name(job);
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    object::set_annotation(&mut pod.metadata, COMPLETION_INDEX, index.to_string());
    pod.metadata.labels.get_or_insert_default().insert(COMPLETION_INDEX.to_owned(), index.to_string());
    if job.spec.as_ref().is_some_and(|s| s.backoff_limit_per_index.is_some()) {
        object::set_annotation(&mut pod.metadata, INDEX_FAILURES, failures.to_string());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    let variable = EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: format!("metadata.labels['{COMPLETION_INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
    };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|e| e.name == variable.name) {
            env.push(variable.clone());
        }
    }
    pod
}
