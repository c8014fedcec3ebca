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
        // What the controller itself makes may be there before.
        if let Err(refusal) = made.map(drop)
            && refusal.1 != "AlreadyExists"
        {
            panic!("{refusal:?}");
        }
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
    use k8s_openapi::api::storage::v1::VolumeAttributesClass;
    use proptest::prelude::*;

    use crate::accounts::tokens::AccountTokens;
    use crate::clusterdns::{ClusterDns, Controlled};
    use crate::endpointslice::mirror::Mirror;
    use crate::loadbalancer::status::PoolStatuses;
    use crate::node::ttl::Ttl;
    use crate::nsdefaults::RootCa;
    use crate::policystatus::PolicyStatus;
    use crate::protection::Protection;
    use crate::quota::Quotas;
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

    fn quotas() -> Vec<Given> {
        let quota = |name: &str, spec: Value| {
            given("resourcequotas", json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}))
        };
        // The model has no admission that charges what is made: nothing is made of what these bound.
        let mut all = storage();
        let hard = json!({"services": "1", "services.nodeports": "1", "count/configmaps": "1", "count/nowhere": "1"});
        all.push(quota("all", json!({ "hard": hard })));
        all.push(quota(
            "scoped",
            json!({"hard": {"pods": "1", "requests.cpu": "1"}, "scopes": ["NotBestEffort"]}),
        ));
        all
    }

    fn policies() -> Vec<Given> {
        let policy = |name: &str, group: &str, resource: &str, expression: &str| {
            given(
                "admissionregistration.k8s.io/validatingadmissionpolicies",
                json!({"metadata": {"name": name},
                "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [group], "apiVersions": ["v1"],
                    "operations": ["*"], "resources": [resource]}]}, "validations": [{"expression": expression}]}}),
            )
        };
        vec![
            policy("right", "apps", "deployments", "object.spec.replicas > 1"),
            policy("wrong", "apps", "deployments", "object.spec.replicas > '1'"),
            policy("unknown", "example.com", "widgets", "object.spec.size > 1"),
            policy("garbage", "", "pods", "object.("),
        ]
    }

    fn dns() -> Vec<Given> {
        let mut all = networks();
        all.push(given("namespaces", json!({"metadata": {"name": "kube-system"}})));
        for (name, address) in [("n1", "192.0.2.1"), ("n2", "192.0.2.2"), ("n3", "fd00::3")] {
            all.push(given(
                "nodes",
                json!({"metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]}}),
            ));
        }
        all
    }

    fn accounts() -> Vec<Given> {
        let secret = |name: &str, account: &str| {
            given(
                "secrets",
                json!({"metadata": {"name": name, "namespace": "ns",
                "annotations": {"kubernetes.io/service-account.name": account}},
                "type": "kubernetes.io/service-account-token"}),
            )
        };
        let account = json!({"metadata": {"name": "sa", "namespace": "ns"}, "secrets": [{"name": "own"}]});
        vec![
            given("serviceaccounts", account),
            given("secrets", json!({"metadata": {"name": "opaque", "namespace": "ns"}, "type": "Opaque"})),
            secret("own", "sa"),
            secret("lost", "nobody"),
            given("namespaces", json!({"metadata": {"name": "ns"}})),
            given("configmaps", json!({"metadata": {"name": "mine", "namespace": "ns"}})),
        ]
    }

    fn tokens(caches: &Arc<Caches>, client: &kube::Client) -> AccountTokens {
        AccountTokens::new(caches, client, Arc::new(|claims| Ok(claims.to_string())), "PEM")
    }

    fn pools() -> Vec<Given> {
        let mut all = networks();
        all.push(given(
            "hawser.io/loadbalancerippools",
            json!({"metadata": {"name": "pool"},
            "spec": {"blocks": [{"cidr": "192.0.2.0/28"}]}}),
        ));
        for (name, address) in [("one", "192.0.2.1"), ("two", "198.51.100.1")] {
            all.push(given(
                "services",
                json!({"metadata": {"name": name, "namespace": "ns"},
                "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
                "status": {"loadBalancer": {"ingress": [{"ip": address}]}}}),
            ));
        }
        all
    }

    fn classes() -> Vec<Given> {
        let mut all = storage();
        for name in ["fast", "slow"] {
            all.push(given(
                "storage.k8s.io/volumeattributesclasses",
                json!({"metadata": {"name": name}, "driverName": "d"}),
            ));
        }
        all.push(given(
            "persistentvolumeclaims",
            json!({"metadata": {"name": "of-fast", "namespace": "ns"},
            "spec": {"volumeAttributesClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}}),
        ));
        all
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
        resource_quotas: quotas(), "resourcequotas", Vec::new(), Quotas::new;
        policy_status: policies(), "validatingadmissionpolicies", Vec::new(), PolicyStatus::new;
        cluster_dns: dns(), "nodes", Vec::new(), |caches, _| Controlled::new(caches, ClusterDns {
            addresses: vec!["10.96.0.10".parse().expect("an address")], port: 10053, metrics_port: 10054,
        });
        account_tokens: accounts(), "secrets", vec!["own".into(), "lost".into()], tokens;
        root_ca: accounts(), "namespaces", Vec::new(), |caches, _| RootCa::new(caches, "PEM");
        pool_status: pools(), "loadbalancerippools", Vec::new(), |caches, _| PoolStatuses::new(caches);
        classes_protection: classes(), "volumeattributesclasses", Vec::new(),
            |caches, _| Protection::<VolumeAttributesClass>::new(caches);
        replica_sets: storage(), "replicasets", Vec::new(), |caches, _| ReplicaSets::new(caches);
    }
}
