//! Claims from templates, and what is given back.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::cleanup::Claims;
use super::pods::PodClaims;
use super::{FINALIZER, consumers};
use crate::object::{self, Key};
use crate::testing::{Harness, held, lag};

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn template() -> ResourceClaimTemplate {
    typed(json!({"metadata": {"name": "gpu", "namespace": "ns"},
        "spec": {"metadata": {"labels": {"a": "b"}}, "spec": {"devices": {}}}}))
}

fn pod(name: &str) -> Pod {
    typed(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"containers": [],
        "resourceClaims": [{"name": "card", "resourceClaimTemplateName": "gpu"}]}}))
}

fn claims(h: &Harness<impl crate::runner::Controller>) -> Vec<ResourceClaim> {
    h.model.lock().list()
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_one_claim_of_its_template() {
    let mut h = Harness::new(|caches, _| PodClaims::new(caches));
    h.model.lock().put(&pod("p"));
    h.settle(50).await;
    let note = "Warning FailedResourceClaimCreation PodResourceClaim card: resource claim template \"gpu\": \
                resourceclaimtemplate.resource.k8s.io \"gpu\" not found";
    assert_eq!(h.notes(), [note]);
    h.model.lock().put(&template());
    h.settle(50).await;
    let made = claims(&h);
    assert_eq!(made.len(), 1);
    assert!(object::name(&made[0]).starts_with("p-card-"));
    assert_eq!(made[0].metadata.labels.as_ref().unwrap()["a"], "b");
    let pod: Pod = h.model.lock().get("ns", "p").unwrap();
    let said = pod.status.unwrap().resource_claim_statuses.unwrap();
    assert_eq!(said[0].resource_claim_name.as_deref(), Some(object::name(&made[0])));
    assert!(h.plan(&Key::new("ns", "p")).await.is_empty());
    // Deleted by accident, it is made again.
    h.model.lock().delete_as_user::<ResourceClaim>("ns", object::name(&made[0]));
    h.settle(50).await;
    assert_eq!(claims(&h).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// However far the caches lag, wherever the process ends: each pod has one claim at last, and its status names it.
    #[test]
    fn one_claim_per_pod(count in 1..4usize, seed in any::<u64>(), crash in any::<bool>()) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = Harness::new(|caches, _| PodClaims::new(caches));
            h.model.lock().put(&template());
            (0..count).for_each(|n| drop(h.model.lock().put(&pod(&format!("p{n}")))));
            let mut random = lag(seed);
            if crash {
                h.work_some(2, |n| random(n + 1)).await;
                h.restart(|caches, _| PodClaims::new(caches));
            }
            h.settle_lagging(300, |n| random(n + 1)).await;
            prop_assert_eq!(claims(&h).len(), count);
            let pods: Vec<Pod> = h.model.lock().list();
            for pod in pods {
                let said = pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_ref());
                let name = said.and_then(|s| s[0].resource_claim_name.as_deref()).unwrap_or_default();
                let claim: Option<ResourceClaim> = h.model.lock().get("ns", name);
                prop_assert!(claim.is_some_and(|c| super::is_for(&held(&pod), &c)), "{:?}", pod);
            }
            Ok(())
        })?;
    }
}

fn used_by(pods: &[&Pod]) -> ResourceClaim {
    let reserved: Vec<Value> = pods
        .iter()
        .map(|p| json!({"resource": "pods", "name": p.metadata.name, "uid": p.metadata.uid}))
        .collect();
    typed(
        json!({"metadata": {"name": "c", "namespace": "ns", "finalizers": [FINALIZER]}, "spec": {"devices": {}},
        "status": {"allocation": {"devices": {}}, "reservedFor": reserved}}),
    )
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_freed_when_its_last_user_is_done() {
    let mut h = Harness::new(Claims::new);
    let a = h.model.lock().put(&pod("a"));
    let b = h.model.lock().put(&pod("b"));
    let claim: ResourceClaim = {
        let mut model = h.model.lock();
        let claim = used_by(&[&a, &b]);
        model.put(&claim)
    };
    assert_eq!(consumers(&claim).len(), 2);
    h.settle(50).await;
    let held = |h: &Harness<Claims>| h.model.lock().get::<ResourceClaim>("ns", "c").unwrap();
    assert_eq!(consumers(&held(&h)).len(), 2);
    h.model.lock().edit::<Pod>("ns", "a", |p| {
        p.status.get_or_insert_default().phase = Some("Succeeded".into());
    });
    h.queue.add(Key::new("ns", "c"));
    h.settle(50).await;
    assert_eq!(consumers(&held(&h)).len(), 1);
    assert!(held(&h).status.unwrap().allocation.is_some());
    h.model.lock().delete_as_user::<Pod>("ns", "b");
    h.queue.add(Key::new("ns", "c"));
    h.settle(50).await;
    let free = held(&h);
    assert!(consumers(&free).is_empty() && free.status.is_none_or(|s| s.allocation.is_none()));
    assert!(!object::has_finalizer(&free.metadata, FINALIZER));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_cache_has_not_seen_keeps_its_claim() {
    let mut h = Harness::new(Claims::new);
    let a = h.model.lock().put(&pod("a"));
    h.model.lock().put(&used_by(&[&a]));
    h.deliver();
    h.caches.pods.begin_list();
    h.caches.pods.end_list();
    let plan = h.plan(&Key::new("ns", "c")).await;
    assert!(plan.is_empty(), "{plan:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_made_for_a_pod_that_is_done_goes_and_other_claims_stay() {
    let mut h = Harness::new(Claims::new);
    let mut done = pod("a");
    done.status.get_or_insert_default().phase = Some("Succeeded".into());
    let done = h.model.lock().put(&done);
    let mut made: ResourceClaim =
        typed(json!({"metadata": {"name": "made", "namespace": "ns"}, "spec": {"devices": {}}}));
    let by_user = ResourceClaim { metadata: Default::default(), ..made.clone() };
    let mut by_user = by_user;
    (by_user.metadata.name, by_user.metadata.namespace) = (Some("own".into()), Some("ns".into()));
    made.metadata.owner_references = Some(vec![object::new_controller_ref(&done)]);
    h.model.lock().put(&made);
    h.model.lock().put(&by_user);
    h.settle(50).await;
    let left: Vec<String> = claims(&h).iter().map(|c| object::name(c).to_owned()).collect();
    assert_eq!(left, ["own"]);
}

#[tokio::test(start_paused = true)]
async fn the_claim_for_extended_resources_goes_with_its_pod() {
    let mut h = Harness::new(Claims::new);
    let mut pod: Pod =
        typed(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": []}}));
    pod.status = typed(json!({"phase": "Running", "extendedResourceClaimStatus": {"resourceClaimName": "c",
        "requestMappings": [{"containerName": "a", "resourceName": "example.com/gpu", "requestName": "r"}]}}));
    let pod = h.model.lock().put(&pod);
    let mut claim = used_by(&[&pod]);
    claim.metadata.owner_references = Some(vec![object::new_controller_ref(&pod)]);
    h.model.lock().put(&claim);
    h.settle(50).await;
    assert_eq!(claims(&h).len(), 1);
    // Nothing names the claim but the pod's status.
    h.model.lock().edit::<Pod>("ns", "p", |p| {
        p.status.get_or_insert_default().phase = Some("Succeeded".into());
    });
    h.settle(50).await;
    assert!(claims(&h).is_empty(), "{:?}", claims(&h));
}
