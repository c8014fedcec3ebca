//! The pure part of the CronJob controller.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::schedule::{self, Schedule};
use crate::job::ended;
use crate::object;
use crate::plan::{Act, DeleteOptions, Note, Plan, Propagation, Target};
use crate::runner::Failure;

/// Annotation of a Job with the time it was meant for.
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// So many missed times are worth a warning.
const MANY: usize = 100;

/// What a decision about a CronJob rests on.
pub struct View {
    /// The CronJob.
    pub cron: Arc<CronJob>,
    /// Its Jobs.
    pub jobs: Vec<Arc<Job>>,
    /// What failed last time.
    pub prior: Option<Failure>,
}

/// Decides about a CronJob.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let cron = view.cron.as_ref();
    let spec = &cron.spec;
    let mut updated = cron.clone();
    follow(&mut plan, &mut updated, view);
    clean_up(&mut plan, cron, spec, &view.jobs);
    let unknown_zone = spec.time_zone.as_deref().and_then(|zone| Some((zone, schedule::zone(zone).err()?)));
    let due = match Schedule::parse(&spec.schedule, spec.time_zone.as_deref()) {
        // One that goes is followed, and starts nothing any more.
        _ if object::is_deleting(cron) => None,
        _ if let Some((zone, why)) = unknown_zone => {
            let message = format!("invalid timeZone: {zone:?}: {why}");
            plan.events.push(Note::warning(object::reference(cron), "UnknownTimeZone", message));
            None
        }
        _ if spec.suspend.unwrap_or(false) => None,
        Err(why) => {
            let message = format!("unparseable schedule: {:?} : {why}", spec.schedule);
            plan.events.push(Note::warning(object::reference(cron), "UnparseableSchedule", message));
            None
        }
        Ok(schedule) => match schedule.next(now) {
            Some(next) => {
                plan.requeue(next.duration_since(now).unsigned_abs() + Duration::from_millis(50));
                due(&mut plan, cron, spec, &schedule, now).map(|at| (schedule, at))
            }
            // A day that no month has. The words are those of what Kubernetes notices of it.
            None => {
                let why = "time difference between two schedules is less than 1 second";
                let message = format!("invalid schedule: {} : {why}", spec.schedule);
                plan.events.push(Note::warning(object::reference(cron), "InvalidSchedule", message));
                None
            }
        },
    };
    if let Some((schedule, at)) = due {
        start(&mut plan, &mut updated, view, spec, &schedule, at);
    }
    if updated != *cron {
        // After what it tells of: a Job that could not be made must not count as made.
        plan.push(Act::update_sub(&updated, "status").may_be_absent());
    }
    // Events alone, without a change to tell of, would repeat with every look.
    if plan.actions.is_empty() {
        plan.events.retain(|note| note.warning);
    }
    plan
}

/// Follows the Jobs that are at work.
fn follow(plan: &mut Plan, updated: &mut CronJob, view: &View) {
    let cron = view.cron.as_ref();
    let status = updated.status.get_or_insert_default();
    let before = status.active.clone().unwrap_or_default();
    for reference in &before {
        let job = view.jobs.iter().find(|j| j.metadata.uid == reference.uid);
        let name = reference.name.as_deref().unwrap_or_default();
        match job.map(|job| (job, ended(job))) {
            None => {
                let message = format!("Active job went missing: {name}");
                plan.events.push(Note::normal(object::reference(cron), "MissingJob", message));
            }
            Some((_, Some(how))) => {
                let message = format!("Saw completed job: {name}, condition: {}", how.type_);
                plan.events.push(Note::normal(object::reference(cron), "SawCompletedJob", message));
            }
            Some((_, None)) => {}
        }
    }
    let mut at_work: Vec<&Arc<Job>> = view.jobs.iter().filter(|j| ended(j).is_none()).collect();
    // Ours is told of in the status only once it is seen.
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref()).map(|t| job_name(cron, t.0));
    for job in &at_work {
        let name = object::name(job.as_ref());
        if !before.iter().any(|r| r.uid == job.metadata.uid) && last.as_deref() != Some(name) {
            let message = format!("Saw a job that the controller did not create or forgot: {name}");
            plan.events.push(Note::warning(object::reference(cron), "UnexpectedJob", message));
        }
    }
    at_work.sort_by_key(|j| (j.metadata.creation_timestamp.clone(), j.metadata.name.clone()));
    let active: Vec<ObjectReference> = at_work
        .into_iter()
        .map(|job| ObjectReference { resource_version: None, ..object::reference(job.as_ref()) })
        .collect();
    let same =
        |a: &[ObjectReference], b: &[ObjectReference]| a.iter().map(|r| &r.uid).eq(b.iter().map(|r| &r.uid));
    if !same(&before, &active) {
        status.active = (!active.is_empty()).then_some(active);
    }
    let succeeded = view.jobs.iter().filter(|j| ended(j).is_some_and(|c| c.type_ == "Complete"));
    let latest: Option<Time> =
        succeeded.filter_map(|j| j.status.as_ref().and_then(|s| s.completion_time.clone())).max();
    if latest > status.last_successful_time {
        status.last_successful_time = latest;
    }
    if updated.status.as_ref() == Some(&Default::default()) && cron.status.is_none() {
        updated.status = None;
    }
}

/// Deletes ended Jobs beyond the limits, oldest first.
fn clean_up(plan: &mut Plan, cron: &CronJob, spec: &CronJobSpec, jobs: &[Arc<Job>]) {
    for (kind, limit, default) in
        [("Complete", spec.successful_jobs_history_limit, 3), ("Failed", spec.failed_jobs_history_limit, 1)]
    {
        let keep = usize::try_from(limit.unwrap_or(default)).unwrap_or(0);
        let mut done: Vec<&Arc<Job>> = jobs
            .iter()
            .filter(|j| ended(j).is_some_and(|c| c.type_ == kind) && !object::is_deleting(j.as_ref()))
            .collect();
        done.sort_by_key(|j| (j.status.as_ref().and_then(|s| s.start_time.clone()), j.metadata.name.clone()));
        let excess = done.len().saturating_sub(keep);
        for job in done.into_iter().take(excess) {
            delete(plan, cron, job);
        }
    }
}

fn delete(plan: &mut Plan, cron: &CronJob, job: &Job) {
    let name = object::name(job);
    let options = DeleteOptions {
        uid: job.metadata.uid.clone(),
        propagation: Some(Propagation::Background),
        ..DeleteOptions::default()
    };
    plan.push(
        Act::delete_with(Target::of(job), options)
            .ok(Note::normal(object::reference(cron), "SuccessfulDelete", format!("Deleted job {name}")))
            .err(Note::warning(
                object::reference(cron),
                "FailedDelete",
                format!("Deleted job: {name}: {{error}}"),
            )),
    );
}

/// The time for which a Job must be started now, if there is one.
fn due(
    plan: &mut Plan,
    cron: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    now: Timestamp,
) -> Option<Timestamp> {
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
    let mut earliest = last.or(cron.metadata.creation_timestamp.as_ref()).map_or(now, |t| t.0);
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    let missed = schedule.last(earliest, now)?;
    if let Some(deadline) = deadline {
        let floor = now.checked_sub(deadline).unwrap_or(earliest);
        if missed < floor {
            // The time is written down nowhere, so this is told once per look that has another cause.
            let message = format!(
                "Missed scheduled time to start a job: {}",
                missed.strftime("%a, %d %b %Y %H:%M:%S +0000")
            );
            plan.events.push(Note::warning(object::reference(cron), "MissSchedule", message));
            return None;
        }
        earliest = earliest.max(floor);
    }
    let mut count = 0;
    let mut at = earliest;
    while count <= MANY
        && let Some(next) = schedule.next(at).filter(|t| *t <= now)
    {
        count += 1;
        at = next;
    }
    if count > MANY {
        let message =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push(Note::warning(object::reference(cron), "TooManyMissedTimes", message));
    }
    Some(missed)
}

/// The name of the Job for a time.
fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", object::name(cron), at.as_second().div_euclid(60))
}

/// Starts the Job for a time, as far as others that still run allow.
fn start(
    plan: &mut Plan,
    updated: &mut CronJob,
    view: &View,
    spec: &CronJobSpec,
    schedule: &Schedule,
    at: Timestamp,
) {
    let cron = view.cron.as_ref();
    let about = || object::reference(cron);
    let name = job_name(cron, at);
    let mark = |updated: &mut CronJob| {
        updated.status.get_or_insert_default().last_schedule_time = Some(object::time(at));
    };
    if view.jobs.iter().any(|j| object::name(j.as_ref()) == name) {
        mark(updated);
        return;
    }
    let at_work: Vec<&Arc<Job>> = view.jobs.iter().filter(|j| ended(j).is_none()).collect();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !at_work.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push(Note::normal(about(), "JobAlreadyActive", message));
            return;
        }
        Some("Replace") => at_work.into_iter().for_each(|job| delete(plan, cron, job)),
        _ => {}
    }
    let template = spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut job = Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![object::new_controller_ref(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    };
    let local = at.to_zoned(schedule.zone().clone());
    let utc = local.offset().is_zero();
    let stamp = local.strftime(if utc { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" });
    object::set_annotation(&mut job.metadata, SCHEDULED_AT, stamp.to_string());
    plan.push(
        Act::create(&job)
            .may_exist()
            .ok(Note::normal(about(), "SuccessfulCreate", "Created job {name}"))
            .err(Note::warning(about(), "FailedCreate", "Error creating job: {error}")),
    );
    mark(updated);
}
