//! Cases and properties of the CronJob controller.

use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job, JobCondition, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;
use std::time::Duration;

use super::*;
use crate::job::ended;
use crate::testing::Harness;

fn cron(policy: &str) -> CronJob {
    CronJob {
        metadata: ObjectMeta {
            name: Some("tick".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        },
        spec: CronJobSpec {
            schedule: "*/10 * * * *".into(),
            concurrency_policy: Some(policy.into()),
            successful_jobs_history_limit: Some(2),
            failed_jobs_history_limit: Some(1),
            ..Default::default()
        },
        status: None,
    }
}

fn harness() -> Harness<CronJobs> {
    Harness::new(|caches, _| CronJobs::new(caches))
}

fn jobs(h: &Harness<CronJobs>) -> Vec<Job> {
    h.model.lock().list()
}

async fn pass(h: &mut Harness<CronJobs>, minutes: u64) {
    for _ in 0..minutes {
        tokio::time::advance(Duration::from_secs(60)).await;
        h.settle(100).await;
    }
}

fn finish(h: &Harness<CronJobs>, kind: &str) {
    let now = object::time((h.clock)());
    for job in jobs(h).into_iter().filter(|j| ended(j).is_none()) {
        h.model.lock().edit::<Job>("ns", job.metadata.name.as_deref().unwrap(), |j| {
            j.status = Some(JobStatus {
                start_time: Some(now.clone()),
                completion_time: Some(now.clone()),
                conditions: Some(vec![JobCondition {
                    type_: kind.into(),
                    status: "True".into(),
                    ..Default::default()
                }]),
                ..Default::default()
            });
        });
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_come_in_time_and_history_is_kept_short() {
    let mut h = harness();
    h.model.lock().put(&cron("Allow"));
    h.settle(50).await;
    assert!(jobs(&h).is_empty());
    for _ in 0..5 {
        pass(&mut h, 10).await;
        finish(&h, "Complete");
        h.settle(50).await;
    }
    assert_eq!(jobs(&h).len(), 2, "of five the last two");
    let status = h.model.lock().get::<CronJob>("ns", "tick").unwrap().status.unwrap();
    assert!(status.active.is_none() && status.last_schedule_time.is_some());
    assert!(status.last_successful_time.is_some());
    let job = jobs(&h).remove(0);
    assert!(object::annotation(&job.metadata, "batch.kubernetes.io/cronjob-scheduled-timestamp").is_some());
    let notes = h.notes();
    assert!(notes.iter().any(|n| n.starts_with("Normal SuccessfulCreate Created job tick-")));
    assert!(notes.iter().any(|n| n.contains("SawCompletedJob")));
    assert!(h.plan(&Key::new("ns", "tick")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn zones_strangers_and_what_was_missed_are_told_in_kubernetes_words() {
    let now = "2026-01-01T00:05:00Z".parse().unwrap();
    let told = |cron: &CronJob, jobs: Vec<Arc<Job>>| -> Vec<(&'static str, String)> {
        let view = View { cron: Arc::new(cron.clone()), jobs, prior: None };
        reconcile::reconcile(&view, now).events.into_iter().map(|n| (n.reason, n.message)).collect()
    };
    let mut lost = cron("Allow");
    lost.spec.time_zone = Some("Nowhere/At".into());
    let message = "invalid timeZone: \"Nowhere/At\": unknown time zone Nowhere/At";
    assert_eq!(told(&lost, Vec::new()), [("UnknownTimeZone", message.to_owned())]);
    let mut stranger = Job::default();
    stranger.metadata.name = Some("by-hand".into());
    stranger.metadata.uid = Some("u".into());
    let message = "Saw a job that the controller did not create or forgot: by-hand";
    let suspended =
        CronJob { spec: CronJobSpec { suspend: Some(true), ..cron("Allow").spec }, ..cron("Allow") };
    assert_eq!(told(&suspended, vec![Arc::new(stranger)]), [("UnexpectedJob", message.to_owned())]);
    let mut late = cron("Allow");
    late.metadata.creation_timestamp = Some(object::time("2025-12-31T23:55:00Z".parse().unwrap()));
    late.spec.starting_deadline_seconds = Some(60);
    let message = "Missed scheduled time to start a job: Thu, 01 Jan 2026 00:00:00 +0000";
    assert_eq!(told(&late, Vec::new()), [("MissSchedule", message.to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn policies_for_jobs_that_still_run() {
    for (policy, want) in [("Allow", 3), ("Forbid", 1), ("Replace", 1)] {
        let mut h = harness();
        h.model.lock().put(&cron(policy));
        h.settle(50).await;
        pass(&mut h, 30).await;
        assert_eq!(jobs(&h).len(), want, "{policy}");
        let status = h.model.lock().get::<CronJob>("ns", "tick").unwrap().status.unwrap();
        assert_eq!(status.active.unwrap().len(), want, "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_is_made_up_for_once_or_never() {
    for (deadline, want) in [(None, 1), (Some(30), 0)] {
        let mut h = harness();
        let mut c = cron("Allow");
        c.spec.suspend = Some(true);
        c.spec.starting_deadline_seconds = deadline;
        h.model.lock().put(&c);
        h.settle(50).await;
        pass(&mut h, 55).await;
        assert!(jobs(&h).is_empty());
        h.model.lock().edit::<CronJob>("ns", "tick", |c| c.spec.suspend = None);
        h.settle(50).await;
        assert_eq!(jobs(&h).len(), want);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_schedule_is_told() {
    let mut h = harness();
    let mut c = cron("Allow");
    c.spec.schedule = "every day".into();
    h.model.lock().put(&c);
    h.settle(50).await;
    assert!(h.notes()[0].starts_with("Warning UnparseableSchedule unparseable schedule: \"every day\""));
}

#[tokio::test(start_paused = true)]
async fn a_day_that_never_comes_is_told() {
    let mut h = harness();
    let mut c = cron("Allow");
    c.spec.schedule = "59 23 31 2 *".into();
    h.model.lock().put(&c);
    h.settle(50).await;
    assert_eq!(
        h.notes(),
        [
            "Warning InvalidSchedule invalid schedule: 59 23 31 2 * : time difference between two schedules is less than \
          1 second"
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever ends when: one Job per time, never two.
    #[test]
    fn one_job_per_time(steps in proptest::collection::vec((1..25u64, any::<bool>(), any::<bool>()), 1..8)) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = harness();
            let mut c = cron("Allow");
            c.spec.successful_jobs_history_limit = Some(100);
            c.spec.failed_jobs_history_limit = Some(100);
            h.model.lock().put(&c);
            h.settle(50).await;
            let start = (h.clock)().as_second();
            for (minutes, ends, well) in steps {
                pass(&mut h, minutes).await;
                if ends {
                    finish(&h, if well { "Complete" } else { "Failed" });
                    h.settle(50).await;
                }
            }
            let now = (h.clock)().as_second();
            let want = now.div_euclid(600) - start.div_euclid(600);
            prop_assert_eq!(jobs(&h).len() as i64, want);
            Ok(())
        })?;
    }
}
