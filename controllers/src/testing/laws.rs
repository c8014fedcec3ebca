//! What holds of every controller, whatever it is for: it comes to rest on caches that lag, repeat themselves and end with
//! the process; at rest it wants nothing more; and it deletes nothing but what it may.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::harness::{Harness, lag};
use super::model::Kind;
use crate::cache::Caches;
use crate::object::Key;
use crate::runner::Controller;

/// One object to begin with.
#[derive(Clone)]
pub struct Given {
    /// Group and plural.
    pub kind: Kind,
    /// The object.
    pub object: Value,
}

/// An object of a kind, given as `group/plural`.
pub fn given(kind: &str, object: Value) -> Given {
    let (group, plural) = kind.split_once('/').unwrap_or(("", kind));
    Given { kind: (group.to_owned(), plural.to_owned()), object }
}

/// What one controller is put to.
pub struct Case<'a> {
    /// Whatever is there, in any order.
    pub objects: Vec<Given>,
    /// Plural of the kind whose names are the controller's keys.
    pub keys: &'a str,
    /// Names of what it may delete.
    pub may_delete: Vec<String>,
}

fn name_of(object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    Key::new(text("namespace"), text("name"))
}

/// Checks the laws with one seed.
pub async fn hold<C: Controller>(
    make: impl Fn(&Arc<Caches>, &kube::Client) -> C,
    case: &Case<'_>,
    seed: u64,
) {
    let mut random = lag(seed);
    let mut h = Harness::new(&make);
    let mut left = case.objects.clone();
    while !left.is_empty() {
        let next = left.remove(random(left.len()));
        let namespace = name_of(&next.object).namespace;
        let made = h.model.lock().create(&next.kind, &namespace, next.object);
        made.unwrap_or_else(|refusal| panic!("{refusal:?}"));
        h.work_some(random(3), |n| random(n + 1)).await;
    }
    // The process ends in the midst of it and another begins.
    if random(2) == 0 {
        h.restart(&make);
    }
    h.settle_lagging(400, |n| random(n + 1)).await;
    // Everything once more, as after a list made anew.
    h.again();
    h.settle(400).await;
    let keys: Vec<Key> = h
        .model
        .lock()
        .everything()
        .filter(|(kind, ..)| kind.1 == case.keys)
        .map(|(_, key, _)| key.clone())
        .collect();
    for key in keys {
        let plan = h.plan(&key).await;
        assert_eq!(plan.acts().count(), 0, "seed {seed}: at rest {key} is not left alone: {plan:?}");
    }
    let may: BTreeSet<&str> = case.may_delete.iter().map(String::as_str).collect();
    for event in &h.model.lock().log {
        let gone = event.what == "DELETED" || event.object["metadata"]["deletionTimestamp"] != json!(null);
        let name = name_of(&event.object).name;
        assert!(!gone || may.contains(name.as_str()), "seed {seed}: {} {name} was deleted", event.kind.1);
    }
}

mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
    use proptest::prelude::*;

    use crate::endpointslice::mirror::Mirror;
    use crate::node::ttl::Ttl;
    use crate::protection::Protection;
    use crate::replicaset::ReplicaSets;
    use crate::servicecidr::ServiceCidrs;
    use crate::volume::attach::{Attacher, attachment_name};
    use crate::volume::binder::{Binder, Reclaimer};
    use crate::volume::ephemeral::EphemeralVolumes;
    use crate::volume::expand::Expander;

    fn run(work: impl Future<Output = ()>) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        rt.expect("a runtime").block_on(work);
    }

    fn claim(name: &str) -> Given {
        given(
            "persistentvolumeclaims",
            json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
                "resources": {"requests": {"storage": "1Gi"}}}}),
        )
    }

    fn volume(name: &str) -> Given {
        given(
            "persistentvolumes",
            json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"}, "csi": {"driver": "d", "volumeHandle": name}}}),
        )
    }

    fn node(name: &str) -> Given {
        given("nodes", json!({"metadata": {"name": name}}))
    }

    fn user(name: &str, claim: &str, node: &str) -> Given {
        given(
            "pods",
            json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"nodeName": node, "containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}),
        )
    }

    /// A claim and a volume that are bound to each other.
    fn bound(claim: &str, volume: &str) -> [Given; 2] {
        [
            given(
                "persistentvolumeclaims",
                json!({"metadata": {"name": claim, "namespace": "ns", "uid": claim},
                "spec": {"volumeName": volume, "resources": {"requests": {"storage": "2Gi"}}},
                "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}),
            ),
            given(
                "persistentvolumes",
                json!({"metadata": {"name": volume}, "spec": {
                "csi": {"driver": "d", "volumeHandle": volume},
                "claimRef": {"namespace": "ns", "name": claim, "uid": claim}}, "status": {"phase": "Bound"}}),
            ),
        ]
    }

    fn storage() -> Vec<Given> {
        let mut all = vec![node("n1"), node("n2"), claim("a"), claim("b"), volume("v1"), volume("v2")];
        all.extend(bound("c", "v3"));
        all.extend([user("p", "a", "n1"), user("q", "c", "n2"), user("r", "c", "n1")]);
        all.push(given(
            "storage.k8s.io/volumeattachments",
            json!({"metadata": {"name": attachment_name("v3", "d", "n2")},
            "spec": {"attacher": "d", "nodeName": "n2", "source": {"persistentVolumeName": "v3"}},
            "status": {"attached": true}}),
        ));
        all.push(given(
            "storage.k8s.io/volumeattachments",
            json!({"metadata": {"name": "by-hand"},
            "spec": {"attacher": "d", "nodeName": "n1", "source": {"persistentVolumeName": "v1"}}}),
        ));
        all
    }

    fn networks() -> Vec<Given> {
        let slice = |name: &str, by: &str| {
            given(
                "discovery.k8s.io/endpointslices",
                json!({"metadata": {"name": name, "namespace": "ns", "labels": {
                "kubernetes.io/service-name": "svc", "endpointslice.kubernetes.io/managed-by": by}},
                "addressType": "IPv4", "endpoints": []}),
            )
        };
        vec![
            given(
                "services",
                json!({"metadata": {"name": "svc", "namespace": "ns"}, "spec": {"ports": [{"port": 80}]}}),
            ),
            given(
                "endpoints",
                json!({"metadata": {"name": "svc", "namespace": "ns"}, "subsets": [
                {"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]}),
            ),
            slice("by-hand", "somebody-else"),
            given(
                "networking.k8s.io/servicecidrs",
                json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}}),
            ),
            given("networking.k8s.io/ipaddresses", json!({"metadata": {"name": "10.200.0.7"}, "spec": {}})),
        ]
    }

    macro_rules! laws {
        ($($name:ident: $objects:expr, $keys:literal, $may:expr, $make:expr;)*) => {
            proptest! {
                #![proptest_config(ProptestConfig::with_cases(12))]
                $(#[test]
                fn $name(seed in any::<u64>()) {
                    let case = Case { objects: $objects, keys: $keys, may_delete: $may };
                    run(hold($make, &case, seed));
                })*
            }
        };
    }

    laws! {
        binder: storage(), "persistentvolumeclaims", Vec::new(), |caches, _| Binder::new(caches);
        reclaimer: storage(), "persistentvolumes", Vec::new(), Reclaimer::new;
        attacher: storage(), "nodes", vec![attachment_name("v3", "d", "n1"), attachment_name("v3", "d", "n2")], |caches, _| Attacher::new(caches);
        ephemeral: storage(), "pods", Vec::new(), |caches, _| EphemeralVolumes::new(caches);
        expander: storage(), "persistentvolumeclaims", Vec::new(), |caches, _| Expander::new(caches);
        claims_protection: storage(), "persistentvolumeclaims", Vec::new(),
            |caches, _| Protection::<PersistentVolumeClaim>::new(caches);
        volumes_protection: storage(), "persistentvolumes", Vec::new(),
            |caches, _| Protection::<PersistentVolume>::new(caches);
        ttl: storage(), "nodes", Vec::new(), |caches, _| Ttl::new(caches);
        mirror: networks(), "endpoints", Vec::new(), |caches, _| Mirror::new(caches);
        service_cidrs: networks(), "servicecidrs", Vec::new(), |caches, _| ServiceCidrs::new(caches);
        replica_sets: storage(), "replicasets", Vec::new(), |caches, _| ReplicaSets::new(caches);
    }
}
