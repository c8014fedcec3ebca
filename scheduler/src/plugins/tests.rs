//! The plugins' rules, case by case.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::SeedableRng;
use serde_json::{Value, json};

use super::default_profile;
use crate::cycle::Engine;
use crate::framework::ClusterEvent;
use crate::pod::{Classes, PodInfo};
use crate::snapshot::{Cache, NodeInfo, Snapshot};

pub fn node(name: &str, mut with: Value) -> Node {
    let spec = with["spec"].take();
    let labels = with["labels"].take();
    let allocatable = if with["allocatable"].is_null() {
        json!({"cpu": "4", "memory": "8Gi", "pods": "110"})
    } else {
        with["allocatable"].take()
    };
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": if labels.is_null() { json!({}) } else { labels }},
        "spec": if spec.is_null() { json!({}) } else { spec },
        "status": {"allocatable": allocatable},
    }))
    .unwrap()
}

pub fn pod(name: &str, mut spec: Value) -> PodInfo {
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    whole_pod(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": spec,
    }))
}

pub fn whole_pod(pod: Value) -> PodInfo {
    static CLASSES: LazyLock<Mutex<Classes>> = LazyLock::new(Mutex::default);
    let pod: Pod = serde_json::from_value(pod).unwrap();
    CLASSES.lock().unwrap().pod(pod).unwrap()
}

fn decide(pod: &PodInfo, nodes: &[Node], placed: &[PodInfo]) -> Result<String, String> {
    let mut cache = Cache::default();
    for node in nodes {
        cache.set_node(node);
    }
    for pod in placed {
        cache.set_pod(std::sync::Arc::new(pod.clone()));
    }
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let framework = default_profile();
    let snapshot = cache.snapshot();
    let mut engine = Engine::default();
    let mut attempt = engine.attempt(&framework, pod, snapshot);
    match attempt.choose(&HashMap::new(), &mut random) {
        Some(slot) => Ok(snapshot.at(slot).unwrap().name.to_string()),
        None => Err(attempt.error().to_string()),
    }
}

fn asks(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
}

fn on(node: &str, mut spec: Value) -> Value {
    spec["nodeName"] = node.into();
    spec
}

#[test]
fn no_nodes() {
    assert_eq!(decide(&pod("p", json!({})), &[], &[]).unwrap_err(), "no nodes available to schedule pods");
}

#[test]
fn the_emptier_node_is_chosen() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let placed = [pod("x", on("a", asks("2")))];
    assert_eq!(decide(&pod("p", asks("1")), &nodes, &placed).unwrap(), "b");
}

#[test]
fn too_little_of_everything_is_said_node_by_node() {
    let nodes = [
        node("a", json!({"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "110"}})),
        node("b", json!({"spec": {"unschedulable": true}})),
        node("c", json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}})),
    ];
    let wants = pod(
        "p",
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "2Gi"}}}]}),
    );
    assert_eq!(
        decide(&wants, &nodes, &[]).unwrap_err(),
        "0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, \
         1 node(s) had untolerated taint(s), 1 node(s) were unschedulable."
    );
}

#[test]
fn tolerations_open_tainted_and_cordoned_nodes() {
    let tainted =
        [node("a", json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}}))];
    let cases = [
        (json!([{"key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute"}]), true),
        (json!([{"key": "k", "operator": "Equal", "value": "w", "effect": "NoExecute"}]), false),
        (json!([{"key": "k", "operator": "Exists"}]), true),
        (json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]), false),
        (json!([{"operator": "Exists"}]), true),
        (json!([{"key": "other", "operator": "Exists"}]), false),
    ];
    for (tolerations, fits) in cases {
        let wants = pod("p", json!({"tolerations": tolerations}));
        assert_eq!(decide(&wants, &tainted, &[]).is_ok(), fits, "{tolerations}");
    }
    let cordoned = [node("a", json!({"spec": {"unschedulable": true}}))];
    let daemon =
        pod("p", json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}));
    assert!(decide(&daemon, &cordoned, &[]).is_ok());
}

#[test]
fn prefer_no_schedule_only_lowers_the_score() {
    let nodes = [
        node("a", json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}})),
        node("b", json!({})),
    ];
    assert_eq!(decide(&pod("p", json!({})), &nodes, &[]).unwrap(), "b");
    assert_eq!(decide(&pod("p", json!({})), &nodes[..1], &[]).unwrap(), "a");
}

#[test]
fn node_affinity_operators() {
    let nodes = [node("a", json!({"labels": {"zone": "east", "rank": "5"}}))];
    let cases = [
        (json!({"key": "zone", "operator": "In", "values": ["east", "west"]}), true),
        (json!({"key": "zone", "operator": "NotIn", "values": ["east"]}), false),
        (json!({"key": "none", "operator": "NotIn", "values": ["east"]}), true),
        (json!({"key": "zone", "operator": "Exists"}), true),
        (json!({"key": "zone", "operator": "DoesNotExist"}), false),
        (json!({"key": "rank", "operator": "Gt", "values": ["4"]}), true),
        (json!({"key": "rank", "operator": "Lt", "values": ["4"]}), false),
    ];
    for (requirement, fits) in cases {
        let wants = pod(
            "p",
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}}}}),
        );
        assert_eq!(decide(&wants, &nodes, &[]).is_ok(), fits, "{requirement}");
    }
    let selector = pod("p", json!({"nodeSelector": {"zone": "west"}}));
    assert_eq!(
        decide(&selector, &nodes, &[]).unwrap_err(),
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    );
    let by_name = pod(
        "p",
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]}}}}),
    );
    assert!(decide(&by_name, &nodes, &[]).is_ok());
}

#[test]
fn preferred_affinity_adds_weight() {
    let nodes = [node("a", json!({})), node("b", json!({"labels": {"disk": "ssd"}}))];
    let wants = pod(
        "p",
        json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]}}}),
    );
    assert_eq!(decide(&wants, &nodes, &[]).unwrap(), "b");
}

#[test]
fn host_ports_are_exclusive() {
    let nodes = [node("a", json!({}))];
    let with = |ip: Value, protocol: &str| {
        json!({"containers": [{"name": "c", "ports":
            [{"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol}]}]})
    };
    let taken = [pod("x", on("a", with(json!("10.0.0.1"), "TCP")))];
    let cases = [
        (with(json!("10.0.0.1"), "TCP"), false),
        (with(json!("10.0.0.2"), "TCP"), true),
        (with(Value::Null, "TCP"), false),
        (with(json!("10.0.0.1"), "UDP"), true),
    ];
    for (spec, fits) in cases {
        assert_eq!(decide(&pod("p", spec.clone()), &nodes, &taken).is_ok(), fits, "{spec}");
    }
}

#[test]
fn the_number_of_pods_counts() {
    let nodes = [node("a", json!({"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "1"}}))];
    let taken = [pod("x", on("a", json!({})))];
    assert_eq!(
        decide(&pod("p", json!({})), &nodes, &taken).unwrap_err(),
        "0/1 nodes are available: 1 Too many pods."
    );
}

#[test]
fn hints_wake_only_pods_that_can_profit() {
    let framework = default_profile();
    let small = NodeInfo::new(&node("a", json!({"allocatable": {"cpu": "1", "pods": "10"}})));
    let large = NodeInfo::new(&node("a", json!({"allocatable": {"cpu": "9", "pods": "10"}})));
    let wants = pod("p", asks("5"));
    let wakes = |event| framework.wakes("NodeResourcesFit", &wants, &event, &Snapshot::default());
    assert!(!wakes(ClusterEvent::NodeAdded(&small)));
    assert!(wakes(ClusterEvent::NodeAdded(&large)));
    assert!(wakes(ClusterEvent::NodeChanged { before: &small, after: &large }));
    assert!(!wakes(ClusterEvent::NodeChanged { before: &large, after: &large }));
}

#[test]
fn pods_of_one_template_are_one_class() {
    let (a, b) = (pod("a", asks("1")), pod("b", asks("1")));
    assert!(std::sync::Arc::ptr_eq(&a.class, &b.class));
    assert!(!std::sync::Arc::ptr_eq(&a.class, &pod("c", asks("2")).class));
}
