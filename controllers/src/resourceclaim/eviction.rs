//! Device taint eviction: pods leave devices whose NoExecute taints their claims do not tolerate (any longer) (KEP-5055).
//!
//! Taints are those of ResourceSlices. DeviceTaintRules are an API that Kubernetes 1.36 has off by default.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};

use super::{Meant, consumers, is_for, meant};
use crate::cache::{BY_POOL, BY_RESOURCE_CLAIM, Caches, Pod};
use crate::eviction::{self, Noted, Notes, Words};
use crate::node::taints::NO_EXECUTE;
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};

/// What a decision about a pod rests on.
pub struct View {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The claims that it names.
    pub claims: Vec<Arc<ResourceClaim>>,
    /// Every slice of the pools that the claims' devices are in.
    pub slices: Vec<Arc<ResourceSlice>>,
    /// Whether it was to be evicted when last looked at.
    pub was_due: bool,
}

/// The devices that were allocated for a claim.
fn allocated(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref());
    let results = allocation.and_then(|a| a.devices.as_ref()).and_then(|d| d.results.as_deref());
    results.unwrap_or_default()
}

fn pool(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

/// Index: claims by `driver/pool` of the devices that were allocated for them.
pub fn pools_of_claim(claim: &ResourceClaim) -> Vec<String> {
    let mut pools: Vec<_> = allocated(claim).iter().map(|r| pool(&r.driver, &r.pool)).collect();
    pools.sort();
    pools.dedup();
    pools
}

/// Index: slices by `driver/pool`.
pub fn pool_of_slice(slice: &ResourceSlice) -> Vec<String> {
    vec![pool(&slice.spec.driver, &slice.spec.pool.name)]
}

/// Keeps of a slice which devices are tainted.
pub fn trim(slice: &mut ResourceSlice) {
    slice.metadata.managed_fields = None;
    slice.spec.shared_counters = None;
    for devices in slice.spec.devices.iter_mut() {
        devices.retain(|device| device.taints.as_ref().is_some_and(|taints| !taints.is_empty()));
        for device in devices {
            (device.attributes, device.capacity, device.consumes_counters) = (None, None, None);
        }
    }
}

fn is_tainted(slice: &ResourceSlice) -> bool {
    let devices = slice.spec.devices.iter().flatten();
    devices.flat_map(|d| d.taints.iter().flatten()).any(|taint| taint.effect == NO_EXECUTE)
}

/// Whether a toleration is for a taint.
fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let said = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    let key = said(&toleration.key);
    // One without an effect keeps nothing from being evicted.
    said(&toleration.effect) == taint.effect
        && (key.is_empty() || key == taint.key)
        && match said(&toleration.operator).as_str() {
            "" | "Equal" => said(&toleration.value) == said(&taint.value),
            "Exists" => true,
            _ => false,
        }
}

/// When a device's user must leave because of a taint; None when never.
fn end(
    device: &DeviceRequestAllocationResult,
    taint: &DeviceTaint,
    slice: &ResourceSlice,
) -> Option<Timestamp> {
    let made = || slice.metadata.creation_timestamp.as_ref();
    let since = taint.time_added.as_ref().or_else(made).map_or(Timestamp::MIN, |t| t.0);
    let covering = device.tolerations.iter().flatten().filter(|t| tolerates(t, taint));
    let mut wait: Option<i64> = None;
    for toleration in covering {
        let seconds = toleration.toleration_seconds?.max(0);
        wait = Some(wait.map_or(seconds, |before| before.min(seconds)));
    }
    let wait = SignedDuration::from_secs(wait.unwrap_or(0));
    Some(since.checked_add(wait).unwrap_or(Timestamp::MAX))
}

/// Whether the pod may use a claim that it names.
fn is_reserved(pod: &Pod, claim: &ResourceClaim) -> bool {
    let generated = pod
        .spec
        .iter()
        .flat_map(|s| s.resource_claims.iter().flatten())
        .any(|entry| meant(pod, entry) == Meant::Claim { name: object::name(claim), generated: true });
    (!generated || is_for(pod, claim)) && consumers(claim).iter().any(|c| c.uid == object::uid(pod))
}

/// When the pod must leave; None when never.
fn due(view: &View) -> Option<Timestamp> {
    if pods::node(&view.pod).is_empty() {
        return None;
    }
    // Slices of an older generation say what the pool was.
    let newest = |of: &str| {
        let own = view.slices.iter().filter(|s| pool_of_slice(s)[0] == of);
        own.map(|s| s.spec.pool.generation).max()
    };
    let claims = view.claims.iter().filter(|claim| is_reserved(&view.pod, claim));
    let ends = claims.flat_map(|claim| allocated(claim)).flat_map(|result| {
        let of = pool(&result.driver, &result.pool);
        let newest = newest(&of);
        let slices = view
            .slices
            .iter()
            .filter(move |s| pool_of_slice(s)[0] == of && Some(s.spec.pool.generation) == newest);
        slices.flat_map(move |slice| {
            let devices = slice.spec.devices.iter().flatten().filter(|d| d.name == result.device);
            let taints = devices.flat_map(|d| d.taints.iter().flatten()).filter(|t| t.effect == NO_EXECUTE);
            taints.filter_map(move |taint| end(result, taint, slice))
        })
    });
    ends.min()
}

/// Decides about a pod.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let pod = view.pod.as_ref();
    if object::is_deleting(pod) {
        return Plan::new();
    }
    let words = Words {
        condition: "DeletionByDeviceTaintManager",
        message: "Device Taint manager: deleting due to NoExecute taint",
        event: "DeviceTaintManagerEviction",
        deleting: "Marking for deletion".to_owned(),
        cancelled: "Cancelling deletion".to_owned(),
        about: ObjectReference { resource_version: None, ..object::reference(pod) },
    };
    eviction::decide(pod, due(view), view.was_due, words, now)
}

/// The controller. Keys are pods.
pub struct DeviceTaintEviction {
    caches: Arc<Caches>,
    notes: Arc<Notes>,
}

impl DeviceTaintEviction {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone(), notes: Notes::of(&caches.pods) }
    }
}

/// Looks again at the pods that use a claim.
fn look_at_users(caches: &Caches, queue: &Queue, claim: &Key) {
    for pod in caches.pods.by_index(BY_RESOURCE_CLAIM, &claim.to_string()) {
        queue.add(Key::of(pod.as_ref()));
    }
}

#[async_trait]
impl Controller for DeviceTaintEviction {
    type View = View;

    fn name(&self) -> &'static str {
        "device-taint-eviction"
    }

    fn component(&self) -> &'static str {
        "device-taint-eviction-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let (caches, q) = (self.caches.clone(), queue.clone());
        self.caches.resource_slices.on_change(move |change| {
            for of in change.states().flat_map(|slice| pool_of_slice(slice)) {
                // A pool without taints before and after is nobody's business.
                let now = caches.resource_slices.by_index(BY_POOL, &of);
                if !change.old.is_some_and(|old| is_tainted(old))
                    && !now.iter().any(|slice| is_tainted(slice))
                {
                    continue;
                }
                for claim in caches.resource_claims.by_index(BY_POOL, &of) {
                    look_at_users(&caches, &q, &Key::of(claim.as_ref()));
                }
            }
        });
        let (caches, q) = (self.caches.clone(), queue.clone());
        self.caches.resource_claims.on_change(move |change| {
            let facts = |claim: &Arc<ResourceClaim>| (pools_of_claim(claim), consumers(claim).to_vec());
            if change.old.map(facts) != change.new.map(facts) {
                look_at_users(&caches, &q, change.key);
            }
        });
        let q = queue.clone();
        self.caches.pods.on_change(move |change| {
            let Some(pod) = change.new else { return };
            let facts = |pod: &Arc<Pod>| {
                let statuses = pod.status.resource_claim_statuses.clone();
                (pods::node(pod).to_owned(), statuses)
            };
            let claims = pod.spec.as_ref().and_then(|s| s.resource_claims.as_ref());
            if claims.is_some_and(|c| !c.is_empty()) && change.old.map(facts) != Some(facts(pod)) {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(pod) = self.caches.pods.get(key) else { return Ok(None) };
        let entries = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten());
        let claims: Vec<_> = entries
            .filter_map(|entry| match meant(&pod, entry) {
                Meant::Claim { name, .. } => self.caches.resource_claims.get(&Key::new(&key.namespace, name)),
                Meant::None | Meant::Unknown => None,
            })
            .collect();
        let mut pools: Vec<_> = claims.iter().flat_map(|claim| pools_of_claim(claim)).collect();
        pools.sort();
        pools.dedup();
        let slices = pools.iter().flat_map(|of| self.caches.resource_slices.by_index(BY_POOL, of)).collect();
        // Since when the taint is there, it says itself.
        let Noted { since, was_due } = self.notes.get(key, Timestamp::MIN);
        let view = View { pod, claims, slices, was_due };
        match due(&view) {
            Some(_) => self.notes.keep(key, since, true),
            None => self.notes.forget(key),
        }
        Ok(Some(view))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, lag};
    use k8s_openapi::api::core::v1::Pod;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn harness() -> Harness<DeviceTaintEviction> {
        Harness::new(|caches, _| DeviceTaintEviction::new(caches))
    }

    fn slice(name: &str, generation: i64, taint: Option<Value>) -> ResourceSlice {
        let taints: Vec<Value> = taint.into_iter().collect();
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"driver": "d", "nodeName": "n",
            "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
            "devices": [{"name": "gpu", "taints": taints}, {"name": "spare"}]}}))
        .unwrap()
    }

    fn claim(name: &str, device: &str, tolerations: Value, user: &str) -> ResourceClaim {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {},
            "status": {"allocation": {"devices": {"results": [{"driver": "d", "pool": "p", "device": device,
                "request": "r", "tolerations": tolerations}]}},
                "reservedFor": [{"resource": "pods", "name": user, "uid": user}]}}))
        .unwrap()
    }

    fn pod(name: &str, claim: &str, node: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"nodeName": node, "containers": [],
                "resourceClaims": [{"name": "c", "resourceClaimName": claim}]}}))
        .unwrap()
    }

    fn taint(at: Timestamp) -> Value {
        json!({"key": "broken", "value": "yes", "effect": "NoExecute", "timeAdded": object::time(at)})
    }

    fn names(h: &Harness<DeviceTaintEviction>) -> Vec<String> {
        h.model.lock().list::<Pod>().into_iter().filter_map(|p| p.metadata.name).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn tolerations_decide_how_long() {
        let now = crate::testing::clock()();
        // How long the pod stays under the taint; None for ever.
        for (what, tolerations, stays) in [
            ("none", json!([]), Some(0)),
            ("of another key", json!([{"key": "x", "operator": "Exists", "effect": "NoExecute"}]), Some(0)),
            ("of another value", json!([{"key": "broken", "value": "no", "effect": "NoExecute"}]), Some(0)),
            ("without effect", json!([{"key": "broken", "operator": "Exists"}]), Some(0)),
            ("of an operator nobody knows", json!([{"operator": "Lt", "effect": "NoExecute"}]), Some(0)),
            ("for ever", json!([{"operator": "Exists", "effect": "NoExecute"}]), None),
            (
                "of its value",
                json!([{"key": "broken", "operator": "Equal", "value": "yes", "effect": "NoExecute"}]),
                None,
            ),
            (
                "for a while",
                json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}]),
                Some(30),
            ),
            (
                "the shortest",
                json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
                {"key": "broken", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": -5}]),
                Some(0),
            ),
        ] {
            let view = View {
                pod: Arc::new(crate::testing::held(&pod("p", "c", "n"))),
                claims: vec![Arc::new(claim("c", "gpu", tolerations, "p"))],
                slices: vec![Arc::new(slice("s", 1, Some(taint(now))))],
                was_due: false,
            };
            let at = stays.map(|seconds| now + SignedDuration::from_secs(seconds));
            let second = |at: Option<Timestamp>| at.map(|at| at.as_second());
            assert_eq!(second(due(&view)), second(at), "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_uses_the_device_leaves() {
        let mut h = harness();
        let now = (h.clock)();
        for (name, node) in [("uses", "n"), ("waits", ""), ("not-reserved", "n"), ("spare", "n")] {
            h.model.lock().put(&pod(name, name, node));
        }
        h.model.lock().put(&claim("uses", "gpu", json!([]), "uses"));
        h.model.lock().put(&claim("waits", "gpu", json!([]), "waits"));
        h.model.lock().put(&claim("not-reserved", "gpu", json!([]), "somebody"));
        h.model.lock().put(&claim("spare", "spare", json!([]), "spare"));
        h.model.lock().put(&slice("s", 1, None));
        h.settle(50).await;
        assert_eq!(names(&h).len(), 4);
        h.model.lock().edit::<ResourceSlice>("", "s", |s| {
            *s = ResourceSlice { metadata: s.metadata.clone(), ..slice("s", 1, Some(taint(now))) }
        });
        h.settle(50).await;
        assert_eq!(names(&h), ["not-reserved", "spare", "waits"]);
        assert_eq!(h.notes(), ["Normal DeviceTaintManagerEviction Marking for deletion"]);
        let condition = h.model.lock().log.iter().any(|e| {
            let c = &e.object["status"]["conditions"][0];
            c["reason"] == "DeletionByDeviceTaintManager"
                && c["message"] == "Device Taint manager: deleting due to NoExecute taint"
        });
        assert!(condition);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_made_anew_cancels() {
        let mut h = harness();
        let now = (h.clock)();
        let wait = json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]);
        h.model.lock().put(&pod("p", "c", "n"));
        h.model.lock().put(&claim("c", "gpu", wait, "p"));
        h.model.lock().put(&slice("old", 1, Some(taint(now))));
        h.settle(50).await;
        tokio::time::advance(Duration::from_secs(30)).await;
        h.model.lock().put(&slice("new", 2, None));
        h.settle(50).await;
        assert_eq!(h.notes(), ["Normal DeviceTaintManagerEviction Cancelling deletion"]);
        tokio::time::advance(Duration::from_secs(60)).await;
        h.settle(50).await;
        assert_eq!(names(&h), ["p"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// However a device's taint comes and goes, while caches lag and the process ends: a pod is gone exactly when its
        /// device was tainted for longer than its claim tolerates; nothing else is touched.
        #[test]
        fn time_decides(
            tolerance in proptest::option::of(1..50i64),
            waits in proptest::collection::vec((any::<bool>(), 1..40u64, any::<bool>()), 1..8),
            seed in any::<u64>(),
        ) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = harness();
                let mut random = lag(seed);
                let tolerations = match tolerance {
                    None => json!([]),
                    Some(s) => json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": s}]),
                };
                h.model.lock().put(&pod("p", "c", "n"));
                h.model.lock().put(&pod("other", "none", "n"));
                h.model.lock().put(&claim("c", "gpu", tolerations, "p"));
                h.model.lock().put(&slice("s", 1, None));
                let (mut gone, mut since) = (false, None);
                for (on, seconds, crash) in waits {
                    let now = (h.clock)();
                    if on != since.is_some() {
                        since = on.then_some(now);
                        let taints = slice("s", 1, since.map(taint));
                        h.model.lock().edit::<ResourceSlice>("", "s", |s| s.spec = taints.spec);
                    }
                    if crash {
                        h.restart(|caches, _| DeviceTaintEviction::new(caches));
                    }
                    h.settle_lagging(200, |n| random(n + 1)).await;
                    tokio::time::advance(Duration::from_secs(seconds)).await;
                    h.settle(100).await;
                    if let Some(since) = since {
                        let for_seconds = (h.clock)().as_second() - since.as_second();
                        gone |= for_seconds >= tolerance.unwrap_or(0);
                    }
                    prop_assert_eq!(names(&h).len(), if gone { 1 } else { 2 });
                }
                prop_assert!(h.plan(&Key::new("ns", "p")).await.is_empty() || !gone);
                Ok(())
            })?;
        }
    }
}
