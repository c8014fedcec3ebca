//! Cases and properties of the Job controller.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy,
    SuccessPolicyRule,
};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodSpec, PodStatus,
    PodTemplateSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use proptest::prelude::*;

use super::*;
use crate::object::Labels;
use crate::pods;
use crate::testing::{Harness, held, lag};

fn labels() -> Option<Labels> {
    Some([("batch.kubernetes.io/controller-uid".to_string(), "u".to_string())].into())
}

fn job(change: impl FnOnce(&mut JobSpec)) -> Job {
    let mut spec = JobSpec {
        parallelism: Some(2),
        completions: Some(3),
        backoff_limit: Some(6),
        selector: Some(LabelSelector { match_labels: labels(), match_expressions: None }),
        template: PodTemplateSpec {
            metadata: Some(ObjectMeta { labels: labels(), ..Default::default() }),
            spec: Some(PodSpec {
                containers: vec![Container { name: "c".into(), ..Default::default() }],
                restart_policy: Some("Never".into()),
                ..Default::default()
            }),
        },
        ..Default::default()
    };
    change(&mut spec);
    Job {
        metadata: ObjectMeta { name: Some("job".into()), namespace: Some("ns".into()), ..Default::default() },
        spec: Some(spec),
        status: None,
    }
}

fn harness() -> Harness<Jobs> {
    Harness::new(|caches, _| Jobs::new(caches))
}

fn active(h: &Harness<Jobs>) -> Vec<Pod> {
    h.model.lock().list::<Pod>().into_iter().filter(|p| pods::is_active(&held(p))).collect()
}

fn current(h: &Harness<Jobs>) -> Job {
    h.model.lock().get("ns", "job").unwrap()
}

/// A pod's container ends with this code.
fn end(h: &Harness<Jobs>, name: &str, code: i32) {
    let now = (h.clock)();
    h.model.lock().edit::<Pod>("ns", name, |p| {
        let terminated = ContainerStateTerminated {
            exit_code: code,
            finished_at: Some(object::time(now)),
            ..Default::default()
        };
        p.status = Some(PodStatus {
            phase: Some(if code == 0 { "Succeeded" } else { "Failed" }.into()),
            container_statuses: Some(vec![ContainerStatus {
                name: "c".into(),
                state: Some(ContainerState { terminated: Some(terminated), ..Default::default() }),
                ..Default::default()
            }]),
            ..Default::default()
        });
    });
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap()
}

async fn wait(h: &mut Harness<Jobs>, seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
    h.settle(300).await;
}

fn reason(job: &Job) -> String {
    ended(job).and_then(|c| c.reason.clone()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_to_completion_and_counts_each_pod_once() {
    let mut h = harness();
    h.model.lock().put(&job(|_| {}));
    h.settle(100).await;
    assert_eq!(active(&h).len(), 2);
    for _ in 0..3 {
        let pod = active(&h).remove(0);
        end(&h, name(&pod), 0);
        h.settle(100).await;
    }
    let done = current(&h);
    assert_eq!(reason(&done), "CompletionsReached");
    let status = done.status.unwrap();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(3), None, Some(0)));
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    let kinds: Vec<String> = status.conditions.unwrap().into_iter().map(|c| c.type_).collect();
    assert_eq!(kinds, ["SuccessCriteriaMet", "Complete"]);
    let pods = h.model.lock().list::<Pod>();
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|p| p.metadata.finalizers.is_none()));
    assert!(h.notes().contains(&"Normal Completed Job completed".into()));
    assert!(h.plan(&Key::new("ns", "job")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_and_end_the_job() {
    let mut h = harness();
    h.model.lock().put(&job(|s| {
        s.backoff_limit = Some(2);
        s.parallelism = Some(1);
    }));
    h.settle(100).await;
    end(&h, name(&active(&h)[0]), 1);
    h.settle(100).await;
    assert!(active(&h).is_empty(), "it waits");
    wait(&mut h, 11).await;
    assert_eq!(active(&h).len(), 1);
    end(&h, name(&active(&h)[0]), 1);
    h.settle(100).await;
    wait(&mut h, 11).await;
    assert!(active(&h).is_empty(), "it waits longer");
    wait(&mut h, 11).await;
    end(&h, name(&active(&h)[0]), 1);
    h.settle(100).await;
    let failed = current(&h);
    assert_eq!(reason(&failed), "BackoffLimitExceeded");
    assert_eq!(failed.status.unwrap().failed, Some(3));
    assert!(h.notes().iter().any(|n| n.starts_with("Warning BackoffLimitExceeded Job has reached")));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_and_suspension() {
    let mut h = harness();
    h.model.lock().put(&job(|s| s.active_deadline_seconds = Some(60)));
    h.settle(100).await;
    h.model.lock().edit::<Job>("ns", "job", |j| j.spec.as_mut().unwrap().suspend = Some(true));
    h.settle(100).await;
    assert!(active(&h).is_empty());
    assert!(condition(&current(&h), "Suspended").is_some());
    wait(&mut h, 100).await;
    assert!(ended(&current(&h)).is_none(), "time does not pass while it is suspended");
    h.model.lock().edit::<Job>("ns", "job", |j| j.spec.as_mut().unwrap().suspend = Some(false));
    h.settle(100).await;
    wait(&mut h, 20).await;
    assert_eq!(active(&h).len(), 2);
    wait(&mut h, 61).await;
    assert_eq!(reason(&current(&h)), "DeadlineExceeded");
    assert!(active(&h).is_empty());
}

#[tokio::test(start_paused = true)]
async fn indexes_each_get_a_pod_and_a_limit() {
    let mut h = harness();
    h.model.lock().put(&job(|s| {
        s.completion_mode = Some("Indexed".into());
        s.completions = Some(4);
        s.parallelism = Some(4);
        s.backoff_limit = None;
        s.backoff_limit_per_index = Some(1);
    }));
    h.settle(100).await;
    let of = |h: &Harness<Jobs>, i: i32| active(h).into_iter().find(|p| count::index_of(&held(p)) == Some(i));
    let pod = of(&h, 2).unwrap();
    assert_eq!(pod.spec.as_ref().unwrap().hostname.as_deref(), Some("job-2"));
    let env = pod.spec.as_ref().unwrap().containers[0].env.clone().unwrap();
    assert_eq!(env[0].name, "JOB_COMPLETION_INDEX");
    for i in [0, 1, 3] {
        end(&h, name(&of(&h, i).unwrap()), 0);
    }
    end(&h, name(&pod), 1);
    h.settle(100).await;
    assert_eq!(current(&h).status.unwrap().completed_indexes.as_deref(), Some("0,1,3"));
    wait(&mut h, 11).await;
    end(&h, name(&of(&h, 2).expect("a second try")), 1);
    h.settle(100).await;
    let failed = current(&h);
    assert_eq!(reason(&failed), "FailedIndexes");
    assert_eq!(failed.status.unwrap().failed_indexes.as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn policies_decide_about_failures_and_success() {
    let rule = |action: &str, code: i32| PodFailurePolicyRule {
        action: action.into(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            operator: "In".into(),
            values: vec![code],
            container_name: None,
        }),
        on_pod_conditions: None,
    };
    let mut h = harness();
    h.model.lock().put(&job(|s| {
        s.pod_failure_policy = Some(PodFailurePolicy { rules: vec![rule("Ignore", 7), rule("FailJob", 42)] });
        s.backoff_limit = Some(0);
        s.parallelism = Some(1);
    }));
    h.settle(100).await;
    end(&h, name(&active(&h)[0]), 7);
    h.settle(100).await;
    wait(&mut h, 11).await;
    assert_eq!(current(&h).status.unwrap().failed, None, "ignored");
    end(&h, name(&active(&h)[0]), 42);
    h.settle(100).await;
    let failed = current(&h);
    assert_eq!(reason(&failed), "PodFailurePolicy");
    assert!(ended(&failed).unwrap().message.as_ref().unwrap().ends_with("matching FailJob rule at index 1"));

    let mut h = harness();
    h.model.lock().put(&job(|s| {
        s.completion_mode = Some("Indexed".into());
        s.completions = Some(4);
        s.parallelism = Some(4);
        s.success_policy = Some(SuccessPolicy {
            rules: vec![SuccessPolicyRule {
                succeeded_indexes: Some("0-2".into()),
                succeeded_count: Some(1),
            }],
        });
    }));
    h.settle(100).await;
    let pod = active(&h).into_iter().find(|p| count::index_of(&held(p)) == Some(1)).unwrap();
    end(&h, name(&pod), 0);
    h.settle(100).await;
    assert_eq!(reason(&current(&h)), "SuccessPolicy");
    assert!(active(&h).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Pods end, vanish and are deleted in any order, views lag: every pod is counted once, and the Job
    /// ends exactly when it has what it wants or may try no more.
    #[test]
    fn every_pod_counts_once(
        completions in 1..5i32, parallelism in 1..4i32, indexed in any::<bool>(),
        codes in proptest::collection::vec((0..3u8, any::<usize>()), 1..20), seed in any::<u64>(),
    ) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = harness();
            let mut lagging = lag(seed);
            h.model.lock().put(&job(|s| {
                s.completions = Some(completions);
                s.parallelism = Some(parallelism);
                s.backoff_limit = Some(3);
                s.completion_mode = Some(if indexed { "Indexed" } else { "NonIndexed" }.into());
            }));
            h.settle_lagging(500, &mut lagging).await;
            let mut failed = BTreeSet::new();
            let mut succeeded = BTreeSet::new();
            for (op, pick) in codes {
                let pods = active(&h);
                if let Some(pod) = pods.get(pick % pods.len().max(1)) {
                    prop_assert!(pods.len() <= parallelism as usize);
                    let uid = pod.metadata.uid.clone().unwrap();
                    match op {
                        0 => { end(&h, name(pod), 1); failed.insert(uid); }
                        1 => { h.model.lock().delete_as_user::<Pod>("ns", name(pod)); failed.insert(uid); }
                        _ => { end(&h, name(pod), 0); succeeded.insert(uid); }
                    }
                }
                h.settle_lagging(500, &mut lagging).await;
                wait(&mut h, 700).await;
            }
            wait(&mut h, 700).await;
            let job = current(&h);
            let status = job.status.clone().unwrap();
            let all: BTreeSet<String> = succeeded.union(&failed).cloned().collect();
            let (good, bad) = (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0));
            prop_assert_eq!(good, succeeded.len() as i32);
            if ended(&job).is_none() || good >= completions {
                // An early end fails pods at work as well; else only those that failed count.
                prop_assert!(bad >= failed.len() as i32);
                if ended(&job).is_none() { prop_assert_eq!(bad, failed.len() as i32); }
            }
            prop_assert_eq!(ended(&job).is_some(), good >= completions || failed.len() > 3);
            let held: Vec<Pod> = h.model.lock().list::<Pod>().into_iter().filter(|p| {
                all.contains(p.metadata.uid.as_ref().unwrap()) && p.metadata.finalizers.is_some()
            }).collect();
            prop_assert!(held.is_empty(), "finalizers are left");
            prop_assert!(h.plan(&Key::new("ns", "job")).await.is_empty());
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_job_that_is_gone_are_let_go() {
    let mut h = harness();
    h.model.lock().graceful = true;
    h.model.lock().put(&job(|_| {}));
    h.settle(100).await;
    let names: Vec<String> = active(&h).into_iter().filter_map(|p| p.metadata.name).collect();
    assert_eq!(names.len(), 2);
    // The Job goes first, then the garbage collector takes its pods, which nobody counts any more.
    h.model.lock().delete_as_user::<Job>("ns", "job");
    for name in &names {
        h.model.lock().delete_as_user::<Pod>("ns", name);
    }
    h.settle(100).await;
    let left = h.model.lock().list::<Pod>();
    assert!(left.iter().all(|p| p.metadata.finalizers.as_ref().is_none_or(Vec::is_empty)), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn released_pods_are_not_held_and_adopted_ones_are() {
    let mut h = harness();
    h.model.lock().put(&job(|_| {}));
    h.settle(100).await;
    let first = name(&active(&h)[0]).to_owned();
    let of_job = |h: &Harness<Jobs>| {
        let pod = h.model.lock().get::<Pod>("ns", &first).unwrap();
        (object::controller_ref(&pod.metadata).is_some(), object::has_finalizer(&pod.metadata, TRACKING))
    };
    assert_eq!(of_job(&h), (true, true));
    h.model.lock().edit::<Pod>("ns", &first, |p| p.metadata.labels = None);
    h.settle(100).await;
    assert_eq!(of_job(&h), (false, false), "released");
    // The Job has made another pod instead, and takes this one back first.
    h.model.lock().edit::<Pod>("ns", &first, |p| p.metadata.labels = labels());
    h.deliver();
    let taken = h.plan(&Key::new("ns", "job")).await;
    assert!(format!("{taken:?}").contains(TRACKING), "{taken:?}");
    h.model.lock().edit::<Pod>("ns", &first, |p| {
        p.metadata.labels = None;
        p.metadata.finalizers = Some(vec![TRACKING.into()]);
    });
    h.settle(100).await;
    assert_eq!(of_job(&h), (false, false), "a stray");
}
