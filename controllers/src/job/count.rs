//! Counting of pods that have ended, each exactly once (KEP-2307).
//!
//! A pod that has ended is written into the status as *uncounted*; then its finalizer is taken away; once
//! that shows, it moves into the counters. Whatever is interrupted, none is counted twice or lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, UncountedTerminatedPods};

use super::policy::{self, Verdict};
use super::{COMPLETION_INDEX, INDEX_FAILURES, TRACKING, indexes};
use crate::cache::Pod;
use crate::object;
use crate::pods;

/// How many pods are entered as uncounted at a time.
const BATCH: usize = 500;

/// What the pods of a Job amount to.
pub struct Tally {
    /// Pods at work.
    pub active: Vec<Arc<Pod>>,
    /// Pods that are being deleted and have not ended.
    pub terminating: usize,
    /// Succeeded, counted or not.
    pub succeeded: i32,
    /// Failed, counted or not.
    pub failed: i32,
    /// Indexes that succeeded.
    pub done: BTreeSet<i32>,
    /// Indexes that failed for good; `None` without a limit per index.
    pub failed_indexes: Option<BTreeSet<i32>>,
    /// How often each index failed so far.
    pub index_failures: BTreeMap<i32, i32>,
    /// A pod's failure that fails the Job.
    pub fatal: Option<String>,
    /// The status' counters after what can be counted is.
    pub counted_succeeded: i32,
    /// The same of failed pods.
    pub counted_failed: i32,
    /// What is left uncounted.
    pub uncounted: UncountedTerminatedPods,
    /// Pods whose finalizer can go once the status is written.
    pub release: Vec<Arc<Pod>>,
}

/// Whether the Job's pods have indexes.
pub fn is_indexed(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.completion_mode.as_deref()) == Some("Indexed")
}

/// The index of a pod.
pub fn index_of(pod: &Pod) -> Option<i32> {
    object::annotation(&pod.metadata, COMPLETION_INDEX)?.parse().ok()
}

/// Whether pods are replaced only once they have ended.
pub fn replaces_only_failed(job: &Job) -> bool {
    let spec = job.spec.as_ref();
    spec.and_then(|s| s.pod_replacement_policy.as_deref()) == Some("Failed")
        || spec.is_some_and(|s| s.pod_failure_policy.is_some())
}

/// Whether the pod counts as failed.
pub fn is_failed(job: &Job, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => object::is_deleting(pod) && !replaces_only_failed(job),
    }
}

/// Counts the Job's pods. `ending`: all that are left count as failed, whether they have ended or not.
pub fn tally(job: &Job, own: &[Arc<Pod>]) -> Tally {
    let spec = job.spec.clone().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let completions = spec.completions.unwrap_or(0);
    let indexed = is_indexed(job);
    let before = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let (was_succeeded, was_failed) = (
        before.succeeded.unwrap_or_default().into_iter().collect::<BTreeSet<_>>(),
        before.failed.unwrap_or_default().into_iter().collect::<BTreeSet<_>>(),
    );
    let tracked: BTreeSet<&str> = own
        .iter()
        .filter(|p| object::has_finalizer(&p.metadata, TRACKING))
        .map(|p| object::uid(p.as_ref()))
        .collect();
    let mut t = Tally {
        active: own.iter().filter(|p| pods::is_active(p)).cloned().collect(),
        terminating: own.iter().filter(|p| pods::is_terminating(p)).count(),
        succeeded: 0,
        failed: 0,
        done: if indexed {
            indexes::parse(status.completed_indexes.as_deref(), completions)
        } else {
            BTreeSet::new()
        },
        failed_indexes: spec
            .backoff_limit_per_index
            .map(|_| indexes::parse(status.failed_indexes.as_deref(), completions)),
        index_failures: BTreeMap::new(),
        fatal: None,
        counted_succeeded: status.succeeded.unwrap_or(0),
        counted_failed: status.failed.unwrap_or(0),
        uncounted: UncountedTerminatedPods::default(),
        release: Vec::new(),
    };
    let (mut succeeded, mut failed) = (Vec::new(), Vec::new());
    for uid in was_succeeded.iter().filter(|uid| tracked.contains(uid.as_str())) {
        succeeded.push(uid.clone());
    }
    for uid in was_failed.iter().filter(|uid| tracked.contains(uid.as_str())) {
        failed.push(uid.clone());
    }
    // Those whose finalizer is gone are counted for good.
    t.counted_succeeded += count(was_succeeded.len() - succeeded.len());
    t.counted_failed += count(was_failed.len() - failed.len());

    for pod in own {
        let uid = object::uid(pod.as_ref());
        let is_tracked = tracked.contains(uid);
        let known = was_succeeded.contains(uid) || was_failed.contains(uid);
        let index = index_of(pod).filter(|i| indexed && (0..completions).contains(i));
        let full = succeeded.len() + failed.len() >= BATCH;
        if pods::phase(pod) == "Succeeded" {
            if !is_tracked || indexed && index.is_none() {
                t.release.extend(is_tracked.then(|| pod.clone()));
                continue;
            }
            if let Some(index) = index {
                // The index itself keeps it from being counted twice.
                t.done.insert(index);
                t.release.push(pod.clone());
            } else if known || !full {
                if !known {
                    succeeded.push(uid.to_owned());
                }
                t.release.push(pod.clone());
            }
        } else if is_failed(job, pod) {
            let verdict = if pods::phase(pod) == "Failed" { policy::judge(job, pod) } else { Verdict::Count };
            if let Some(index) = index {
                per_index(&mut t, job, pod, index, &verdict);
            }
            if !is_tracked {
                continue;
            }
            match verdict {
                Verdict::Ignore => t.release.push(pod.clone()),
                Verdict::FailJob(why) if t.fatal.is_none() => {
                    t.fatal = Some(why);
                    enter(&mut t, &mut failed, pod, known, full);
                }
                _ => enter(&mut t, &mut failed, pod, known, full),
            }
        }
    }
    t.succeeded = if indexed { count(t.done.len()) } else { t.counted_succeeded + count(succeeded.len()) };
    if indexed {
        t.counted_succeeded = t.succeeded;
    }
    t.failed = t.counted_failed + count(failed.len());
    t.uncounted.succeeded = Some(succeeded).filter(|s| !s.is_empty());
    t.uncounted.failed = Some(failed).filter(|s| !s.is_empty());
    t
}

fn enter(t: &mut Tally, failed: &mut Vec<String>, pod: &Arc<Pod>, known: bool, full: bool) {
    if known || !full {
        if !known {
            failed.push(object::uid(pod.as_ref()).to_owned());
        }
        t.release.push(pod.clone());
    }
}

/// Books a failure under its index.
fn per_index(t: &mut Tally, job: &Job, pod: &Pod, index: i32, verdict: &Verdict) {
    if *verdict == Verdict::Ignore {
        return;
    }
    let before: i32 =
        object::annotation(&pod.metadata, INDEX_FAILURES).and_then(|v| v.parse().ok()).unwrap_or(0);
    let failures = t.index_failures.entry(index).or_default();
    *failures = (*failures).max(before.saturating_add(1));
    let limit = job.spec.as_ref().and_then(|s| s.backoff_limit_per_index);
    if let (Some(limit), Some(set)) = (limit, t.failed_indexes.as_mut())
        && (before >= limit || *verdict == Verdict::FailIndex)
    {
        set.insert(index);
    }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
