//! What must hold after any number of decisions, one on top of the other.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use hawser_scheduler::cycle::{Attempt, Engine};
use hawser_scheduler::framework::{ClusterEvent, Framework};
use hawser_scheduler::plugins::default_profile;
use hawser_scheduler::pod::{Classes, PodInfo};
use hawser_scheduler::snapshot::{Cache, NodeChange, Slot};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

fn pod(name: &str, (cpu, port, kind): (u32, Option<u16>, u8)) -> Value {
    let mut container = json!({"name": "c", "resources": {"requests": {"cpu": format!("{cpu}m")}}});
    if let Some(port) = port {
        container["ports"] = json!([{"containerPort": 80, "hostPort": port, "protocol": "TCP"}]);
    }
    let mut spec = json!({"containers": [container]});
    let selector = json!({"matchLabels": {"app": "x"}});
    if kind == 1 {
        spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]);
    } else if kind == 2 {
        spec["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "host", "labelSelector": {"matchLabels": {"alone": "yes"}}}]}});
    }
    let labels = match kind {
        1 => json!({"app": "x"}),
        2 => json!({"alone": "yes"}),
        _ => json!({}),
    };
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("u-{name}"), "labels": labels},
        "spec": spec})
}

/// The nodes that fit, each with the scores of all plugins.
fn by_node(attempt: &mut Attempt<'_>) -> BTreeMap<Slot, Vec<(&'static str, i64)>> {
    let scores = attempt.plugin_scores();
    let of = |at: usize| scores.iter().map(|(plugin, scores)| (*plugin, scores[at])).collect();
    attempt.feasible().iter().enumerate().map(|(at, slot)| (*slot, of(at))).collect()
}

/// CPU asked for, a host port, and 0: plain, 1: spread over zones, 2: alone on its host.
fn wants() -> impl Strategy<Value = (u32, Option<u16>, u8)> {
    (
        (0..4u32).prop_map(|n| n * 400),
        prop_oneof![3 => Just(None), 1 => (8000..8003u16).prop_map(Some)],
        0..3u8,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_node_is_overcommitted_and_no_rule_broken(
        nodes in proptest::collection::vec((1000..4000u32, 0..3u8), 1..7),
        pods in proptest::collection::vec((wants(), any::<bool>()), 1..40),
        seed in any::<u64>(),
    ) {
        let (mut cache, mut classes, mut engine) = (Cache::default(), Classes::default(), Engine::default());
        let framework = default_profile();
        let mut random = StdRng::seed_from_u64(seed);
        for (n, (cpu, zone)) in nodes.iter().enumerate() {
            let node = json!({"metadata": {"name": format!("n{n}"), "labels": {"zone": format!("z{zone}"), "host": format!("n{n}")}},
                "status": {"allocatable": {"cpu": format!("{cpu}m"), "memory": "8Gi", "pods": "8"}}});
            cache.set_node(&serde_json::from_value(node).unwrap());
        }
        let mut placed: Vec<Arc<str>> = Vec::new();
        for (n, (wants, leaves)) in pods.iter().enumerate() {
            let pod = Arc::new(classes.pod(serde_json::from_value(pod(&format!("p{n}"), *wants)).unwrap()).unwrap());
            let chosen = {
                let snapshot = cache.snapshot();
                let mut attempt = engine.attempt(&framework, &pod, snapshot);
                // What is kept from one pod to the next says what looking anew would.
                let mut anew = Engine::default();
                let mut fresh = anew.attempt(&framework, &pod, snapshot);
                prop_assert_eq!(by_node(&mut attempt), by_node(&mut fresh));
                let chosen = attempt.choose(&HashMap::new(), &mut random).and_then(|s| snapshot.at(s)).map(|n| n.name.clone());
                engine.keep(attempt);
                chosen
            };
            let Some(node) = chosen else { continue };
            // A spread pod may not go where it makes the skew larger than 1.
            if wants.2 == 1 {
                let mut counts: BTreeMap<&str, i64> = cache.view().nodes().map(|n| (n.labels["zone"].as_str(), 0)).collect();
                for n in cache.view().nodes() {
                    let here = n.residents().iter().filter(|p| p.labels.get("app").is_some_and(|a| a == "x")).count();
                    *counts.entry(n.labels["zone"].as_str()).or_default() += here as i64;
                }
                let there = counts[cache.view().node(&node).unwrap().labels["zone"].as_str()] + 1;
                prop_assert!(there - counts.values().min().unwrap() <= 1);
            }
            cache.assume(pod.clone(), &node);
            placed.push(pod.key.uid.clone());
            if *leaves {
                cache.remove_pod(&placed.remove(0));
            }
            for node in cache.view().nodes() {
                prop_assert!(node.requested.milli_cpu <= node.allocatable.milli_cpu);
                prop_assert!(node.residents().len() as i64 <= node.allowed_pods);
                let ports: Vec<_> = node.residents().iter().flat_map(|p| p.host_ports.clone()).collect();
                prop_assert_eq!(ports.iter().collect::<HashSet<_>>().len(), ports.len());
                let alone = node.residents().iter().filter(|p| p.labels.contains_key("alone")).count();
                prop_assert!(alone <= 1);
            }
        }
    }
}

/// A node: CPU, zone, and whether it has the fast disk, the taint, and is cordoned.
fn varied(n: usize, (cpu, zone, traits): (u32, u8, u8)) -> k8s_openapi::api::core::v1::Node {
    let has = |bit: u8| traits & (1 << bit) != 0;
    let mut labels = json!({"zone": format!("z{zone}"), "host": format!("n{n}")});
    if has(0) {
        labels["disk"] = json!("fast");
    }
    let taints = if has(1) { json!([{"key": "t", "effect": "NoSchedule"}]) } else { json!([]) };
    let node = json!({"metadata": {"name": format!("n{n}"), "labels": labels},
        "spec": {"taints": taints, "unschedulable": has(2)},
        "status": {"allocatable": {"cpu": format!("{cpu}m"), "memory": "8Gi", "pods": "4"}}});
    serde_json::from_value(node).unwrap()
}

/// A pod that is hard to please, in one of several ways.
fn picky(cpu: u32, kind: u8) -> Value {
    let mut pod = pod("picky", (cpu, (kind == 0).then_some(8000), u8::from(kind == 1)));
    let near = json!({"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": if kind == 2 { "zone" } else { "host" }, "labelSelector": {"matchLabels": {"app": "x"}}}]});
    match kind {
        2 => pod["spec"]["affinity"] = json!({"podAffinity": near}),
        3 => pod["spec"]["affinity"] = json!({"podAntiAffinity": near}),
        4 => pod["spec"]["nodeSelector"] = json!({"disk": "fast"}),
        5 => pod["spec"]["tolerations"] = json!([{"key": "t", "operator": "Exists"}]),
        _ => {}
    }
    pod
}

/// A pod on a node.
fn placed(n: usize, on: usize, (cpu, port, x): (u32, bool, bool)) -> Value {
    let mut pod = pod(&format!("p{n}"), (cpu, port.then_some(8000), 0));
    pod["metadata"]["labels"] = if x { json!({"app": "x"}) } else { json!({}) };
    pod["spec"]["nodeName"] = json!(format!("n{on}"));
    pod
}

fn fits(framework: &Framework, pod: &PodInfo, cache: &mut Cache) -> Result<(), Vec<&'static str>> {
    let mut engine = Engine::default();
    let attempt = engine.attempt(framework, pod, cache.snapshot());
    if attempt.feasible().is_empty() { Err(attempt.error().plugins) } else { Ok(()) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Queueing hints: as long as no event wakes a pod that fitted nowhere, it fits nowhere.
    #[test]
    fn an_event_that_wakes_nobody_helps_nobody(
        nodes in proptest::collection::vec((500..2500u32, 0..3u8, 0..8u8), 0..5),
        (cpu, kind) in (0..4u32, 0..6u8),
        events in proptest::collection::vec(
            (0..6u8, 0..5usize, 0..8usize, (500..2500u32, 0..3u8, 0..8u8), (0..3u32, any::<bool>(), any::<bool>())), 1..25),
    ) {
        let (mut cache, mut classes) = (Cache::default(), Classes::default());
        let framework = default_profile();
        let mut class = |pod: Value| Arc::new(classes.pod(serde_json::from_value(pod).unwrap()).unwrap());
        for (n, node) in nodes.iter().enumerate() {
            cache.set_node(&varied(n, *node));
        }
        let pod = class(picky(cpu * 700, kind));
        let mut asleep = fits(&framework, &pod, &mut cache);
        let mut there: BTreeMap<usize, (usize, (u32, bool, bool))> = BTreeMap::new();
        for (event, n, p, traits, wants) in events {
            let Err(plugins) = &asleep else { break };
            let woken = |event: ClusterEvent<'_>, cache: &Cache| {
                plugins.iter().any(|plugin| framework.wakes(plugin, &pod, &event, cache.view()))
            };
            let (name, wants) = (format!("n{n}"), (wants.0 * 600, wants.1, wants.2));
            let known = cache.view().node(&name).is_some();
            let woke = match (event, there.get(&p).copied()) {
                (0 | 1, _) => match cache.set_node(&varied(n, traits)) {
                    None => continue,
                    Some(change) => {
                        let after = cache.view().node(&name).unwrap();
                        match &change {
                            NodeChange::Added => woken(ClusterEvent::NodeAdded(after), &cache),
                            NodeChange::Changed { before } => {
                                woken(ClusterEvent::NodeChanged { before, after }, &cache)
                            }
                        }
                    }
                },
                // A node goes when nothing is on it any more.
                (2, _) if known && there.values().all(|(on, _)| *on != n) => {
                    let gone = cache.remove_node(&name).unwrap();
                    woken(ClusterEvent::NodeGone(&gone), &cache)
                }
                (3, None) if known => {
                    there.insert(p, (n, wants));
                    let new = class(placed(p, n, wants));
                    cache.set_pod(new.clone());
                    let node = cache.view().node(&name).unwrap();
                    woken(ClusterEvent::PodPlaced { pod: &new, node }, &cache)
                }
                (4, Some((on, _))) => {
                    there.remove(&p);
                    let gone = cache.remove_pod(&format!("u-p{p}")).unwrap();
                    let node = cache.view().node(&format!("n{on}")).unwrap();
                    woken(ClusterEvent::PodGone { pod: &gone, node }, &cache)
                }
                // Labels change, and amounts in place; ports do not.
                (5, Some((on, old))) => {
                    let new = (wants.0, old.1, wants.2);
                    there.insert(p, (on, new));
                    let after = class(placed(p, on, new));
                    let before = cache.set_pod(after.clone()).unwrap();
                    let node = cache.view().node(&format!("n{on}")).unwrap();
                    woken(ClusterEvent::PodChanged { before: &before, after: &after, node }, &cache)
                }
                _ => continue,
            };
            let now = fits(&framework, &pod, &mut cache);
            if woke {
                asleep = now;
            } else {
                prop_assert!(now.is_err(), "{:?} did not wake it", plugins);
            }
        }
    }
}
