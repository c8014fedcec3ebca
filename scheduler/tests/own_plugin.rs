//! A plugin of one's own: how it is written, registered, configured and heard.
//!
//! The plugin keeps racks from filling up: a node whose rack (a label) is closed by the configuration takes no pods, and
//! of the others those of an earlier rack are better. It has no state, so each extension point is one function.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use hawser_scheduler::config::Config;
use hawser_scheduler::cycle::Engine;
use hawser_scheduler::framework::{ClusterEvent, Filter, MAX_SCORE, Plugin, Rejection, Score, State};
use hawser_scheduler::plugins::{Built, Registry};
use hawser_scheduler::pod::{Classes, PodInfo};
use hawser_scheduler::snapshot::{Cache, NodeInfo, Slot, Snapshot};
use rand::SeedableRng;
use serde_json::{Value, json};

struct Racks {
    closed: Vec<String>,
}

fn rack(node: &NodeInfo) -> Option<&str> {
    node.labels.get("example.com/rack").map(String::as_str)
}

impl Plugin for Racks {
    fn name(&self) -> &'static str {
        "Racks"
    }

    /// Only a node of an open rack helps a pod that was rejected.
    fn wakes(&self, _: &PodInfo, event: &ClusterEvent<'_>, _: &Snapshot) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) | ClusterEvent::NodeChanged { after: node, .. } => {
                !rack(node).is_some_and(|rack| self.closed.iter().any(|c| c == rack))
            }
            _ => false,
        }
    }
}

impl Filter for Racks {
    fn filter(&self, _: &dyn State, _: &PodInfo, node: &NodeInfo, _: &Snapshot) -> Result<(), Rejection> {
        match rack(node) {
            Some(rack) if self.closed.iter().any(|c| c == rack) => {
                Err(Rejection::lasting("node(s) were in a closed rack"))
            }
            _ => Ok(()),
        }
    }
}

impl Score for Racks {
    /// The rack's number; nodes without one come last.
    fn score(&self, _: &dyn State, _: &PodInfo, node: &NodeInfo, _: &Snapshot) -> i64 {
        rack(node).and_then(|rack| rack.parse().ok()).unwrap_or(MAX_SCORE)
    }

    fn normalize(&self, _: &dyn State, _: &[Slot], scores: &mut [i64]) {
        for score in scores {
            *score = MAX_SCORE - (*score).clamp(0, MAX_SCORE);
        }
    }
}

/// The registry of a scheduler that knows the plugin, beside Hawser's own.
fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.add("Racks", |args: Option<&Value>| {
        let closed = args.and_then(|a| a["closed"].as_array()).into_iter().flatten();
        let closed = closed.filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Built::new(Racks { closed }).filter().score().done())
    });
    registry
}

/// The configuration that enables it at every point at which it has a say.
fn config(closed: &[&str]) -> Config {
    let document = json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "profiles": [{
            "plugins": {"multiPoint": {"enabled": [{"name": "Racks", "weight": 10}]}},
            "pluginConfig": [{"name": "Racks", "args": {"closed": closed}}],
        }],
    });
    Config::read(document, &registry()).unwrap()
}

fn schedule(closed: &[&str]) -> Result<String, String> {
    let mut cache = Cache::default();
    for (name, rack) in [("a", "3"), ("b", "1"), ("c", "2")] {
        let node = json!({"metadata": {"name": name, "labels": {"example.com/rack": rack}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}});
        cache.set_node(&serde_json::from_value(node).unwrap());
    }
    let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {"containers": [{"name": "c"}]}});
    let pod = Classes::default().pod(serde_json::from_value(pod).unwrap()).unwrap();
    let framework = config(closed).profiles.remove(0);
    let mut engine = Engine::default();
    let snapshot = cache.snapshot();
    let mut attempt = engine.attempt(&framework, &pod, snapshot);
    match attempt.choose(&HashMap::new(), &mut rand::rngs::StdRng::seed_from_u64(1)) {
        Some(slot) => Ok(snapshot.at(slot).unwrap().name.to_string()),
        None => Err(attempt.error().to_string()),
    }
}

#[test]
fn it_scores_and_filters() {
    assert_eq!(schedule(&[]).unwrap(), "b");
    assert_eq!(schedule(&["1"]).unwrap(), "c");
    assert_eq!(
        schedule(&["1", "2", "3"]).unwrap_err(),
        "0/3 nodes are available: 3 node(s) were in a closed rack."
    );
}

#[test]
fn a_configuration_that_cannot_be_understood_is_refused() {
    let refused = |profile: Value| {
        let document = json!({"apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration", "profiles": [profile]});
        Config::read(document, &registry()).err().unwrap().to_string()
    };
    let named = |name: &str| json!({"plugins": {"score": {"enabled": [{"name": name}]}}});
    assert_eq!(refused(named("Nowhere")), "profiles[0].plugins: plugin \"Nowhere\" does not exist");
    let weight =
        json!({"pluginConfig": [{"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 101}}]});
    assert!(refused(weight).contains("not in valid range [0, 100]"));
    let unsorted = json!({"plugins": {"queueSort": {"disabled": [{"name": "*"}]}}});
    assert!(refused(unsorted).contains("one queue sort plugin required"));
}
