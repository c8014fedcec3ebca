//! The pure part of the Job controller.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use serde_json::json;

use super::count::{self, Tally, tally};
use super::{TRACKING, condition, ended, indexes, manage, policy};
use crate::cache::Pod;
use crate::claim::claim;
use crate::object;
use crate::plan::{Act, Note, Plan, Step};
use crate::pods;
use crate::runner::Failure;

/// What a decision about a Job rests on.
pub struct View {
    /// The Job.
    pub job: Arc<Job>,
    /// Its pods and the orphans of its namespace.
    pub candidates: Vec<Arc<Pod>>,
    /// What failed last time.
    pub prior: Option<Failure>,
}

/// How a Job ends.
struct End {
    success: bool,
    reason: String,
    message: String,
}

impl End {
    fn failure(reason: &str, message: impl Into<String>) -> Option<Self> {
        Some(Self { success: false, reason: reason.to_owned(), message: message.into() })
    }

    fn success(reason: &str, message: impl Into<String>) -> Option<Self> {
        Some(Self { success: true, reason: reason.to_owned(), message: message.into() })
    }

    fn condition(&self, kind: &str, now: Timestamp) -> JobCondition {
        new_condition(kind, true, &self.reason, &self.message, now)
    }
}

fn new_condition(kind: &str, status: bool, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(object::time(now)),
        last_transition_time: Some(object::time(now)),
    }
}

/// Decides about a Job.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let job = view.job.as_ref();
    let Some(spec) = &job.spec else { return plan };
    if spec.managed_by.as_deref().is_some_and(|m| m != "kubernetes.io/job-controller") {
        return plan;
    }
    let Some(selector) = spec.selector.as_ref().and_then(object::selector) else { return plan };
    let claims = claim(job, &selector, Some(TRACKING), &view.candidates, |pod| !pods::is_terminal(pod));
    if !claims.acts.is_empty() {
        plan.actions.push(Step::Parallel(claims.acts));
    }
    let own: Vec<Arc<Pod>> =
        claims.claimed.into_iter().filter(|p| object::is_controlled_by(&p.metadata, job)).collect();
    if ended(job).is_some() {
        // Nothing is left to count: pods are free to go.
        release(&mut plan, own.iter());
        return plan;
    }
    let tally = tally(job, &own);
    let suspended = spec.suspend.unwrap_or(false);
    let end = end_of(job, spec, &tally, &own, now);

    let mut updated = job.clone();
    let status = updated.status.get_or_insert_default();
    count_into(status, job, &tally);
    if !suspended && status.start_time.is_none() {
        status.start_time = Some(object::time(now));
    }
    let mut notes = Vec::new();
    match &end {
        Some(end) => finish(status, job, &tally, end, &mut notes, now),
        None => suspend(status, job, suspended, &mut notes, now),
    }
    // First what has ended is written down, then its finalizers go, then pods come and go.
    if updated != *job {
        plan.push(Act::update_sub(&updated, "status").may_be_absent());
        plan.events.append(&mut notes);
    }
    release(&mut plan, tally.release.iter());
    if object::is_deleting(job) {
        return plan;
    }
    if end.is_some() || suspended {
        manage::delete(&mut plan, job, &tally.active);
        return plan;
    }
    manage::manage(&mut plan, job, &tally, &own, now);
    if let Some(left) = until_deadline(job, spec, now) {
        plan.requeue(left.max(Duration::from_millis(100)));
    }
    plan
}

/// How long the Job may still be active; `None` without a deadline.
fn until_deadline(job: &Job, spec: &JobSpec, now: Timestamp) -> Option<Duration> {
    let limit = u64::try_from(spec.active_deadline_seconds?).unwrap_or(0);
    let started = job.status.as_ref().and_then(|s| s.start_time.as_ref());
    let passed = started.map_or(0, |t| object::seconds_since(t, now));
    Some(Duration::from_secs(limit).saturating_sub(Duration::from_secs(u64::try_from(passed).unwrap_or(0))))
}

/// Whether and how the Job ends.
fn end_of(job: &Job, spec: &JobSpec, tally: &Tally, own: &[Arc<Pod>], now: Timestamp) -> Option<End> {
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    // What was decided stays decided.
    if let Some(c) = condition(job, "FailureTarget") {
        return End::failure(&text(&c.reason), text(&c.message));
    }
    if let Some(c) = condition(job, "SuccessCriteriaMet") {
        return End::success(&text(&c.reason), text(&c.message));
    }
    if let Some(why) = &tally.fatal {
        return End::failure("PodFailurePolicy", why.clone());
    }
    let limit =
        spec.backoff_limit.unwrap_or(if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 });
    if tally.failed > limit || restarts_exceed(spec, tally, limit) {
        return End::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    let suspended = spec.suspend.unwrap_or(false);
    let started = job.status.as_ref().is_some_and(|s| s.start_time.is_some());
    if !suspended && started && until_deadline(job, spec, now) == Some(Duration::ZERO) {
        return End::failure("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let completions = spec.completions;
    if let (Some(failed), Some(most)) = (&tally.failed_indexes, spec.max_failed_indexes)
        && failed.len() > usize::try_from(most).unwrap_or(0)
    {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return End::failure("MaxFailedIndexesExceeded", message);
    }
    // Failures are judged before successes.
    let failed = i32::try_from(tally.failed_indexes.as_ref().map_or(0, BTreeSet::len)).unwrap_or(i32::MAX);
    if failed > 0 && completions.is_some_and(|wanted| tally.succeeded.saturating_add(failed) >= wanted) {
        return End::failure("FailedIndexes", "Job has failed indexes");
    }
    if let Some(met) = policy::success(job, &tally.done, completions.unwrap_or(0)) {
        return End::success("SuccessPolicy", met);
    }
    let reached = "Reached expected number of succeeded pods";
    match completions {
        None => {
            let at_work = own.iter().any(|p| pods::is_active(p));
            (tally.succeeded > 0 && !at_work).then(|| End::success("CompletionsReached", reached)).flatten()
        }
        Some(completions) => {
            (tally.succeeded >= completions).then(|| End::success("CompletionsReached", reached)).flatten()
        }
    }
}

/// Whether containers that restart in place have used up the limit.
fn restarts_exceed(spec: &JobSpec, tally: &Tally, limit: i32) -> bool {
    let policy = spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let containers = tally.active.iter().flat_map(|p| &p.status.containers);
    let restarts: i32 = containers.map(|c| c.restart_count).fold(0, i32::saturating_add);
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn count_into(status: &mut JobStatus, job: &Job, tally: &Tally) {
    let old = job.status.clone().unwrap_or_default();
    let keep = |new: i32, old: Option<i32>| if new == 0 && old.is_none() { None } else { Some(new) };
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    status.active = keep(number(tally.active.len()), old.active);
    status.ready = Some(number(tally.active.iter().filter(|p| pods::is_ready(p)).count()));
    status.terminating = Some(number(tally.terminating));
    status.succeeded = keep(tally.counted_succeeded, old.succeeded);
    status.failed = keep(tally.counted_failed, old.failed);
    status.uncounted_terminated_pods = Some(tally.uncounted.clone());
    if count::is_indexed(job) {
        let text = indexes::format(&tally.done);
        status.completed_indexes =
            if text.is_empty() && old.completed_indexes.is_none() { None } else { Some(text) };
    }
    if let Some(failed) = &tally.failed_indexes {
        status.failed_indexes = Some(indexes::format(failed));
    }
}

/// Enters the end: first as decided, and as done once no pod is at work and all are counted.
fn finish(
    status: &mut JobStatus,
    job: &Job,
    tally: &Tally,
    end: &End,
    notes: &mut Vec<Note>,
    now: Timestamp,
) {
    let (interim, last) =
        if end.success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
    let conditions = status.conditions.get_or_insert_default();
    if condition(job, interim).is_none() {
        conditions.push(end.condition(interim, now));
    }
    let counted = tally.uncounted.succeeded.is_none() && tally.uncounted.failed.is_none();
    let at_rest = tally.active.is_empty() && tally.terminating == 0 && tally.release.is_empty();
    if !counted || !at_rest {
        return;
    }
    conditions.push(end.condition(last, now));
    status.active = status.active.map(|_| 0);
    let about = object::reference(job);
    if end.success {
        status.completion_time = Some(object::time(now));
        let wanted = job.spec.as_ref().and_then(|spec| spec.completions);
        if wanted.is_some_and(|wanted| status.succeeded > Some(wanted)) {
            let message = "Too many succeeded pods running after completion count reached";
            notes.push(Note::warning(about.clone(), "TooManySucceededPods", message));
        }
        notes.push(Note::normal(about, "Completed", "Job completed"));
    } else {
        let reason = match end.reason.as_str() {
            "BackoffLimitExceeded" => "BackoffLimitExceeded",
            "DeadlineExceeded" => "DeadlineExceeded",
            "PodFailurePolicy" => "PodFailurePolicy",
            "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
            _ => "FailedIndexes",
        };
        notes.push(Note::warning(about, reason, end.message.clone()));
    }
}

/// Keeps the condition Suspended.
fn suspend(status: &mut JobStatus, job: &Job, suspended: bool, notes: &mut Vec<Note>, now: Timestamp) {
    let was = status.conditions.iter().flatten().find(|c| c.type_ == "Suspended").map(|c| c.status == "True");
    let (reason, message, event) = match (was, suspended) {
        (None | Some(false), true) => ("JobSuspended", "Job suspended", "Suspended"),
        (Some(true), false) => ("JobResumed", "Job resumed", "Resumed"),
        _ => return,
    };
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != "Suspended");
    conditions.push(new_condition("Suspended", suspended, reason, message, now));
    // The deadline counts anew from when the Job goes on.
    status.start_time = (!suspended).then(|| object::time(now));
    notes.push(Note::normal(object::reference(job), event, message));
}

/// Takes the finalizer of pods that are counted, or that nobody will count.
pub(super) fn release<'a>(plan: &mut Plan, pods: impl Iterator<Item = &'a Arc<Pod>>) {
    let acts: Vec<Act> = pods
        .filter(|pod| object::has_finalizer(&pod.metadata, TRACKING))
        .map(|pod| {
            let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
            finalizers.retain(|f| f != TRACKING);
            let version = &pod.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
            Act::patch(pod.as_ref(), None, patch).may_be_absent()
        })
        .collect();
    if !acts.is_empty() {
        plan.actions.push(Step::Parallel(acts));
    }
}
