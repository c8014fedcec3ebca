//! Cases and properties of the garbage collector.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::discovery::ApiResource;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::object::{self, Object};
use crate::testing::Harness;

fn resource<K: Object>(namespaced: bool) -> Arc<Resource> {
    let verbs = ["delete", "list", "watch"];
    Arc::new(Resource::for_tests(ApiResource::erase::<K>(&()), namespaced, &verbs))
}

/// A collector whose graph is fed from the model's log by hand.
fn harness() -> Harness<GarbageCollector> {
    let mut h = Harness::new(|caches, client| GarbageCollector::new(caches, client, client));
    h.controller.monitors.declare_synced();
    let known: Vec<Arc<Resource>> =
        vec![resource::<ConfigMap>(true), resource::<Secret>(true), resource::<Node>(false)];
    for resource in &known {
        let kind = (resource.api.group.clone(), resource.api.kind.clone());
        h.controller.kinds.write().insert(kind, resource.clone());
        h.controller.graph.lock().learn(resource);
    }
    let gc = h.controller.clone();
    h.tap = Some(Box::new(move |event| {
        let Some(resource) = known.iter().find(|r| r.api.plural == event.kind.1) else { return };
        let meta: ObjectMeta = serde_json::from_value(event.object["metadata"].clone()).unwrap();
        match event.what {
            "DELETED" => gc.forget(meta.uid.as_deref().unwrap_or_default()),
            _ => gc.observe(resource, &meta),
        }
    }));
    h
}

fn map(name: &str, owners: &[&OwnerReference]) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.into());
    map.metadata.namespace = Some("ns".into());
    map.metadata.owner_references = Some(owners.iter().map(|o| (*o).clone()).collect());
    map
}

fn reference<K: Object>(object: &K) -> OwnerReference {
    OwnerReference { controller: None, ..object::new_controller_ref(object) }
}

fn put(h: &Harness<GarbageCollector>, name: &str, owners: &[&OwnerReference]) -> OwnerReference {
    reference(&h.model.lock().put(&map(name, owners)))
}

fn delete(h: &Harness<GarbageCollector>, name: &str, policy: &str) {
    let options = json!({"propagationPolicy": policy});
    let kind = (String::new(), "configmaps".to_owned());
    h.model.lock().delete(&kind, &Key::new("ns", name), &options).unwrap();
}

fn names(h: &Harness<GarbageCollector>) -> Vec<String> {
    h.model.lock().list::<ConfigMap>().iter().map(|c| c.metadata.name.clone().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn background_deletes_all_below() {
    let mut h = harness();
    let a = put(&h, "a", &[]);
    let b = put(&h, "b", &[&a]);
    put(&h, "c", &[&b]);
    put(&h, "other", &[]);
    h.settle(50).await;
    assert_eq!(names(&h).len(), 4);
    delete(&h, "a", "Background");
    assert_eq!(names(&h).len(), 3);
    h.settle(50).await;
    assert_eq!(names(&h), ["other"]);
}

#[tokio::test(start_paused = true)]
async fn foreground_deletes_from_below() {
    let mut h = harness();
    let a = put(&h, "a", &[]);
    let b = put(&h, "b", &[&a]);
    put(&h, "c", &[&b]);
    let loose = OwnerReference { block_owner_deletion: None, ..a.clone() };
    put(&h, "loose", &[&loose]);
    h.settle(50).await;
    delete(&h, "a", "Foreground");
    h.settle(100).await;
    assert!(names(&h).is_empty());
    let order: Vec<String> = h
        .model
        .lock()
        .log
        .iter()
        .filter(|e| e.what == "DELETED")
        .map(|e| e.object["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    let at = |n: &str| order.iter().position(|o| o == n).unwrap();
    assert!(at("c") < at("b") && at("b") < at("a"), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn orphan_releases_all_below() {
    let mut h = harness();
    let a = put(&h, "a", &[]);
    put(&h, "b", &[&a]);
    put(&h, "c", &[&a]);
    h.settle(50).await;
    delete(&h, "a", "Orphan");
    h.settle(50).await;
    assert_eq!(names(&h), ["b", "c"]);
    assert!(h.model.lock().list::<ConfigMap>().iter().all(|c| c.metadata.owner_references.is_none()));
}

#[tokio::test(start_paused = true)]
async fn another_owner_keeps_the_object() {
    let mut h = harness();
    let (a, b) = (put(&h, "a", &[]), put(&h, "b", &[]));
    put(&h, "c", &[&a, &b]);
    h.settle(50).await;
    delete(&h, "a", "Background");
    h.settle(50).await;
    assert_eq!(names(&h), ["b", "c"]);
    let c: ConfigMap = h.model.lock().get("ns", "c").unwrap();
    assert_eq!(c.metadata.owner_references, Some(vec![b]));
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_never_was_or_is_another_now_is_gone() {
    let mut h = harness();
    let a = put(&h, "a", &[]);
    let never = OwnerReference { name: "never".into(), uid: "never".into(), ..a.clone() };
    let other_uid = OwnerReference { uid: "former".into(), ..a.clone() };
    put(&h, "b", &[&never]);
    put(&h, "c", &[&other_uid]);
    h.settle(50).await;
    assert_eq!(names(&h), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_stale_graph_deletes_nothing() {
    let mut h = harness();
    let a = put(&h, "a", &[]);
    put(&h, "b", &[&a]);
    h.settle(50).await;
    // The watch of owners says that `a` is gone; the server knows better.
    h.controller.forget(&a.uid);
    h.settle(50).await;
    assert_eq!(names(&h), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn namespaces_are_not_crossed() {
    let mut h = harness();
    let a = put(&h, "a", &[]);
    // Of a cluster-scoped object: cannot be resolved, nothing happens but an event.
    let mut node = Node::default();
    node.metadata.name = Some("n".into());
    node.metadata.owner_references = Some(vec![a.clone()]);
    h.model.lock().put(&node);
    // In another namespace: there is no such owner there.
    let mut foreign = map("foreign", &[&a]);
    foreign.metadata.namespace = Some("elsewhere".into());
    h.model.lock().put(&foreign);
    h.settle(50).await;
    delete(&h, "a", "Background");
    h.settle(50).await;
    assert_eq!(h.model.lock().list::<Node>().len(), 1);
    assert!(names(&h).is_empty());
    assert!(h.notes().iter().any(|n| n.starts_with("Warning OwnerRefInvalidNamespace")));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_scoped_owner_is_found_from_a_namespace() {
    let mut h = harness();
    let mut node = Node::default();
    node.metadata.name = Some("n".into());
    let owner = reference(&h.model.lock().put(&node));
    put(&h, "c", &[&owner]);
    h.settle(50).await;
    assert_eq!(names(&h), ["c"]);
    h.model.lock().delete_as_user::<Node>("", "n");
    h.settle(50).await;
    assert!(names(&h).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_circle_ends() {
    let mut h = harness();
    let a = put(&h, "a", &[]);
    let b = put(&h, "b", &[&a]);
    h.model.lock().edit::<ConfigMap>("ns", "a", |c| c.metadata.owner_references = Some(vec![b]));
    h.settle(50).await;
    assert_eq!(names(&h), ["a", "b"]);
    delete(&h, "a", "Foreground");
    h.settle(100).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    h.settle(100).await;
    assert!(names(&h).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_kind_of_owner_waits() {
    let mut h = harness();
    let owner = OwnerReference {
        api_version: "example.com/v1".into(),
        kind: "Thing".into(),
        name: "t".into(),
        uid: "t".into(),
        ..Default::default()
    };
    put(&h, "a", &[&owner]);
    h.settle(30).await;
    assert_eq!(names(&h), ["a"]);
}

#[derive(Clone, Debug)]
enum Op {
    Put(usize, Vec<usize>),
    Delete(usize, u8),
    Recreate(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..10usize, proptest::collection::vec(0..10usize, 0..3)).prop_map(|(n, o)| Op::Put(n, o)),
        3 => (0..10usize, 0..3u8).prop_map(|(n, p)| Op::Delete(n, p)),
        1 => (0..10usize).prop_map(Op::Recreate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is made and deleted in whatever manner: in the end nothing has only absent owners, nothing
    /// waits for ever, and nothing was deleted that had a living owner or none.
    #[test]
    fn what_is_left_is_owned(ops in proptest::collection::vec(op(), 1..25), seed in any::<u64>()) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = harness();
            let mut lagging = crate::testing::lag(seed);
            let kind = (String::new(), "configmaps".to_owned());
            for op in ops {
                match op {
                    Op::Put(n, owners) => {
                        let name = format!("o{n}");
                        let mut model = h.model.lock();
                        if model.get::<ConfigMap>("ns", &name).is_none() {
                            let refs: Vec<OwnerReference> = owners.iter().collect::<BTreeSet<_>>().into_iter()
                                .filter_map(|o| model.get::<ConfigMap>("ns", &format!("o{o}")))
                                .map(|o| reference(&o)).collect();
                            model.put(&map(&name, &refs.iter().collect::<Vec<_>>()));
                        }
                    }
                    Op::Delete(n, policy) => {
                        let policy = ["Background", "Foreground", "Orphan"][usize::from(policy)];
                        let options = json!({"propagationPolicy": policy});
                        let _ = h.model.lock().delete(&kind, &Key::new("ns", format!("o{n}")), &options);
                    }
                    Op::Recreate(n) => {
                        let name = format!("o{n}");
                        let mut model = h.model.lock();
                        let background = json!({"propagationPolicy": "Background"});
                        if model.delete(&kind, &Key::new("ns", &name), &background).is_ok()
                            && model.get::<ConfigMap>("ns", &name).is_none()
                        {
                            model.put(&map(&name, &[]));
                        }
                    }
                }
                h.settle_lagging(800, &mut lagging).await;
            }
            for _ in 0..6 {
                tokio::time::advance(Duration::from_secs(2)).await;
                h.settle(800).await;
            }
            let all = h.model.lock().list::<ConfigMap>();
            let uids: BTreeSet<String> = all.iter().map(|c| c.metadata.uid.clone().unwrap()).collect();
            for c in &all {
                prop_assert!(c.metadata.deletion_timestamp.is_none(), "{:?} waits", c.metadata.name);
                for owner in c.metadata.owner_references.iter().flatten() {
                    prop_assert!(uids.contains(&owner.uid), "{:?} has a lost owner", c.metadata.name);
                }
            }
            // Each deletion by the collector: the object had owners, and none of them stood.
            let mut alive: BTreeMap<String, bool> = BTreeMap::new();
            for event in h.model.lock().log.iter().filter(|e| e.kind.1 == "configmaps") {
                let uid = event.object["metadata"]["uid"].as_str().unwrap().to_owned();
                alive.insert(uid, event.what != "DELETED");
            }
            prop_assert_eq!(alive.values().filter(|a| **a).count(), all.len());
            // The graph holds what the server holds and nothing else.
            prop_assert_eq!(h.controller.graph.lock().len(), all.len());
            Ok(())
        })?;
    }
}
