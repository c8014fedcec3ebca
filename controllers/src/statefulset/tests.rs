//! Cases and properties of the StatefulSet controller.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{
    RollingUpdateStatefulSetStrategy, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
    StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, PodCondition, PodSpec, PodStatus, PodTemplateSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

use super::*;
use crate::object::Labels;
use crate::pods;
use crate::testing::{Harness, held, lag};

fn labels() -> Option<Labels> {
    Some([("app".to_string(), "db".to_string())].into())
}

fn template(image: &str) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: labels(), ..Default::default() }),
        spec: Some(PodSpec {
            containers: vec![Container { name: "c".into(), image: Some(image.into()), ..Default::default() }],
            ..Default::default()
        }),
    }
}

fn set(replicas: i32) -> StatefulSet {
    let mut data = PersistentVolumeClaim::default();
    data.metadata.name = Some("data".into());
    StatefulSet {
        metadata: ObjectMeta { name: Some("db".into()), namespace: Some("ns".into()), ..Default::default() },
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas),
            service_name: Some("db".into()),
            selector: LabelSelector { match_labels: labels(), match_expressions: None },
            template: template("v1"),
            volume_claim_templates: Some(vec![data]),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateStatefulSetStrategy {
                    partition: Some(0),
                    max_unavailable: None,
                }),
            }),
            ..Default::default()
        }),
        status: None,
    }
}

fn harness() -> Harness<StatefulSets> {
    Harness::new(|caches, _| StatefulSets::new(caches))
}

fn pods_of(h: &Harness<StatefulSets>) -> Vec<Pod> {
    h.model.lock().list()
}

fn names(h: &Harness<StatefulSets>) -> Vec<String> {
    pods_of(h).iter().map(|p| p.metadata.name.clone().unwrap()).collect()
}

fn image(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap()
}

/// Makes one unready pod ready; tells whether there was one.
fn ready_one(h: &Harness<StatefulSets>) -> bool {
    let Some(pod) =
        pods_of(h).into_iter().find(|p| !pods::is_ready(&held(p)) && !pods::is_terminal(&held(p)))
    else {
        return false;
    };
    h.model.lock().edit::<Pod>("ns", pod.metadata.name.as_deref().unwrap(), |p| {
        p.status = Some(PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                ..Default::default()
            }]),
            ..Default::default()
        });
    });
    true
}

async fn settle(h: &mut Harness<StatefulSets>) {
    for _ in 0..100 {
        h.settle(300).await;
        if !ready_one(h) {
            return;
        }
    }
    panic!("does not end");
}

#[tokio::test(start_paused = true)]
async fn pods_come_in_order_with_name_host_and_storage() {
    let mut h = harness();
    h.model.lock().put(&set(3));
    h.settle(100).await;
    assert_eq!(names(&h), ["db-0"], "the next waits for the first");
    ready_one(&h);
    h.settle(100).await;
    assert_eq!(names(&h), ["db-0", "db-1"]);
    settle(&mut h).await;
    assert_eq!(names(&h), ["db-0", "db-1", "db-2"]);
    let pod = pods_of(&h).remove(1);
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-1"), Some("db")));
    let volume = &spec.volumes.as_ref().unwrap()[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-1");
    assert_eq!(object::label(&pod.metadata, "statefulset.kubernetes.io/pod-name"), Some("db-1"));
    assert_eq!(object::label(&pod.metadata, "apps.kubernetes.io/pod-index"), Some("1"));
    assert_eq!(h.model.lock().list::<PersistentVolumeClaim>().len(), 3);
    let status = h.model.lock().get::<StatefulSet>("ns", "db").unwrap().status.unwrap();
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (3, Some(3), Some(3)));
    assert_eq!(status.current_revision, status.update_revision);
    assert!(
        h.notes().contains(&"Normal SuccessfulCreate create Pod db-2 in StatefulSet db successful".into())
    );
    // Down again: the highest first, storage stays.
    h.model.lock().edit::<StatefulSet>("ns", "db", |s| s.spec.as_mut().unwrap().replicas = Some(1));
    settle(&mut h).await;
    assert_eq!(names(&h), ["db-0"]);
    assert_eq!(h.model.lock().list::<PersistentVolumeClaim>().len(), 3);
    assert!(h.plan(&Key::new("ns", "db")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn parallel_pods_wait_for_nobody() {
    let mut h = harness();
    let mut s = set(3);
    s.spec.as_mut().unwrap().pod_management_policy = Some("Parallel".into());
    h.model.lock().put(&s);
    h.settle(100).await;
    assert_eq!(names(&h).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn partitions_hold_lower_pods_back() {
    let mut h = harness();
    let mut s = set(4);
    s.spec.as_mut().unwrap().update_strategy.as_mut().unwrap().rolling_update.as_mut().unwrap().partition =
        Some(2);
    h.model.lock().put(&s);
    settle(&mut h).await;
    h.model.lock().edit::<StatefulSet>("ns", "db", |s| s.spec.as_mut().unwrap().template = template("v2"));
    settle(&mut h).await;
    assert_eq!(pods_of(&h).iter().map(image).collect::<Vec<_>>(), ["v1", "v1", "v2", "v2"]);
    // A pod below the partition that is lost comes back as it was.
    h.model.lock().delete_as_user::<Pod>("ns", "db-0");
    settle(&mut h).await;
    assert_eq!(pods_of(&h).iter().map(image).collect::<Vec<_>>(), ["v1", "v1", "v2", "v2"]);
}

#[tokio::test(start_paused = true)]
async fn as_many_pods_are_replaced_at_once_as_may_be_unavailable() {
    // A half of five, rounded down.
    for (limit, at_once) in [(IntOrString::Int(3), 3), (IntOrString::String("50%".into()), 2)] {
        let mut h = harness();
        let mut s = set(5);
        let spec = s.spec.as_mut().unwrap();
        spec.pod_management_policy = Some("Parallel".into());
        let rolling = spec.update_strategy.as_mut().unwrap().rolling_update.as_mut().unwrap();
        rolling.max_unavailable = Some(limit);
        h.model.lock().put(&s);
        settle(&mut h).await;
        h.model
            .lock()
            .edit::<StatefulSet>("ns", "db", |s| s.spec.as_mut().unwrap().template = template("v2"));
        let updated = |h: &Harness<StatefulSets>| pods_of(h).iter().filter(|p| image(p) == "v2").count();
        h.settle(300).await;
        assert_eq!(updated(&h), at_once, "the others wait until these are available");
        let highest: Vec<String> =
            pods_of(&h).iter().rev().take(at_once).map(|p| p.metadata.name.clone().unwrap()).collect();
        assert!(
            pods_of(&h)
                .iter()
                .filter(|p| highest.contains(p.metadata.name.as_ref().unwrap()))
                .all(|p| image(p) == "v2")
        );
        assert!(ready_one(&h));
        h.settle(300).await;
        assert_eq!(updated(&h), at_once + 1, "one more may go");
        settle(&mut h).await;
        assert_eq!(updated(&h), 5);
        assert!(h.plan(&Key::new("ns", "db")).await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn only_pods_of_the_right_name_are_adopted() {
    let mut h = harness();
    for name in ["db-0", "db-x", "db-01"] {
        let mut pod = Pod { spec: Some(PodSpec::default()), ..Default::default() };
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.labels = labels();
        h.model.lock().put(&pod);
    }
    h.model.lock().put(&set(1));
    h.settle(100).await;
    let owned: Vec<String> = pods_of(&h)
        .into_iter()
        .filter(|p| object::controller_ref(&p.metadata).is_some())
        .map(|p| p.metadata.name.unwrap())
        .collect();
    assert_eq!(owned, ["db-0"]);
}

#[tokio::test(start_paused = true)]
async fn claims_follow_the_retention_policy() {
    let mut h = harness();
    let mut s = set(2);
    s.spec.as_mut().unwrap().persistent_volume_claim_retention_policy =
        Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some("Delete".into()),
            when_scaled: Some("Delete".into()),
        });
    h.model.lock().put(&s);
    settle(&mut h).await;
    h.model.lock().edit::<StatefulSet>("ns", "db", |s| s.metadata.labels = labels());
    settle(&mut h).await;
    let owner = |h: &Harness<StatefulSets>, name: &str| {
        let claim: PersistentVolumeClaim = h.model.lock().get("ns", name).unwrap();
        claim.metadata.owner_references.unwrap_or_default().iter().map(|r| r.kind.clone()).collect::<Vec<_>>()
    };
    assert_eq!(owner(&h, "data-db-0"), ["StatefulSet"]);
    // Whose claim is another controller's is left to that one.
    let foreign = object::new_controller_ref(&h.model.lock().get::<Pod>("ns", "db-1").unwrap());
    let foreign = OwnerReference { kind: "Thing".into(), uid: "thing".into(), ..foreign };
    h.model.lock().edit::<PersistentVolumeClaim>("ns", "data-db-0", |claim| {
        claim.metadata.owner_references = Some(vec![foreign]);
    });
    h.model.lock().edit::<StatefulSet>("ns", "db", |s| s.metadata.labels = None);
    settle(&mut h).await;
    assert_eq!(owner(&h, "data-db-0"), ["Thing"]);
    let told = "Warning ConflictingController PersistentVolumeClaim data-db-0 has a conflicting OwnerReference that acts \
                as a manging controller, the retention policy is ignored for this claim";
    assert!(h.notes().iter().any(|n| n == told));
    h.model.lock().edit::<PersistentVolumeClaim>("ns", "data-db-0", |claim| {
        claim.metadata.owner_references = None;
    });
    h.model.lock().edit::<StatefulSet>("ns", "db", |s| s.spec.as_mut().unwrap().replicas = Some(1));
    settle(&mut h).await;
    assert_eq!(owner(&h, "data-db-1"), ["Pod"], "it goes with its pod");
    assert_eq!(owner(&h, "data-db-0"), ["StatefulSet"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Through rescales, updates, losses and lag: ordered sets never have a pod before a lower one serves
    /// (losses aside), never more than one pod down for an update, and end whole.
    #[test]
    fn sets_converge(ops in proptest::collection::vec((0..4u8, 0..5i32), 1..8), parallel in any::<bool>(), seed in any::<u64>()) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = harness();
            let mut lagging = lag(seed);
            let mut s = set(2);
            if parallel {
                s.spec.as_mut().unwrap().pod_management_policy = Some("Parallel".into());
            }
            h.model.lock().put(&s);
            let (mut wanted, mut version) = (2, "v1".to_owned());
            for (op, n) in ops {
                match op {
                    0 => {
                        wanted = n;
                        h.model.lock().edit::<StatefulSet>("ns", "db", |s| s.spec.as_mut().unwrap().replicas = Some(n));
                    }
                    1 => {
                        version = format!("v{n}");
                        h.model.lock().edit::<StatefulSet>("ns", "db", |s| {
                            s.spec.as_mut().unwrap().template = template(&version);
                        });
                    }
                    2 => if h.model.lock().get::<Pod>("ns", &format!("db-{n}")).is_some() {
                        h.model.lock().delete_as_user::<Pod>("ns", &format!("db-{n}"));
                    },
                    _ => if h.model.lock().get::<Pod>("ns", &format!("db-{n}")).is_some() {
                        h.model.lock().edit::<Pod>("ns", &format!("db-{n}"), |p| {
                            p.status = Some(PodStatus { phase: Some("Failed".into()), ..Default::default() });
                        });
                    },
                }
                h.settle_lagging(500, &mut lagging).await;
                ready_one(&h);
            }
            for _ in 0..60 {
                h.settle(500).await;
                tokio::time::advance(Duration::from_secs(1)).await;
                if !ready_one(&h) && h.queue.is_empty() { h.settle(500).await; }
            }
            let want: Vec<String> = (0..wanted).map(|n| format!("db-{n}")).collect();
            prop_assert_eq!(names(&h), want);
            let images: BTreeSet<String> = pods_of(&h).iter().map(image).collect();
            prop_assert!(images.iter().all(|i| *i == version), "{:?} for {}", images, version);
            prop_assert!(h.plan(&Key::new("ns", "db")).await.is_empty());
            Ok(())
        })?;
    }
}
