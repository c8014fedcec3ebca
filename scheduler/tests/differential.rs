//! What kube-scheduler 1.36's plugins said about recorded situations: the nodes that fit, why the others do not, each
//! plugin's weighted score, the message, and whom preemption would send away.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hawser_scheduler::config::Config;
use hawser_scheduler::cycle::{Attempt, Engine, told};
use hawser_scheduler::devices::SHARE;
use hawser_scheduler::devices::extended::plan;
use hawser_scheduler::framework::Framework;
use hawser_scheduler::objects::Object;
use hawser_scheduler::plugins::{Registry, default_profile};
use hawser_scheduler::pod::{Classes, PodInfo};
use hawser_scheduler::preempt::{Outcome, preempt};
use hawser_scheduler::selector::compile;
use hawser_scheduler::snapshot::{Cache, Snapshot};
use hawser_scheduler::watched;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const RECORDED: &str = include_str!("data/situations.jsonl");
/// The same for pods with resource claims, or with resources that may be devices: with the devices that each node would
/// have given them.
const DEVICES: &str = include_str!("data/devices.jsonl");

fn list<T: DeserializeOwned>(situation: &Value, field: &str) -> Vec<T> {
    serde_json::from_value(situation.get(field).cloned().unwrap_or(json!([]))).unwrap()
}

fn name(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Arc<str> {
    let name = meta.name.as_deref().unwrap();
    match &meta.namespace {
        Some(namespace) => format!("{namespace}/{name}").into(),
        None => name.into(),
    }
}

fn cluster(situation: &Value, classes: &mut Classes) -> (Cache, PodInfo) {
    use k8s_openapi::api::{
        core::v1 as core, policy::v1 as policy, resource::v1 as resource, storage::v1 as storage,
    };
    let mut cache = Cache::default();
    list::<core::Node>(situation, "nodes").iter().for_each(|node| {
        cache.set_node(node);
    });
    let mut pods = |field: &str| -> Vec<Arc<PodInfo>> {
        list::<core::Pod>(situation, field).into_iter().map(|p| Arc::new(classes.pod(p).unwrap())).collect()
    };
    for pod in pods("placed") {
        cache.set_pod(pod);
    }
    for pod in pods("nominated") {
        let node = pod.nominated_node.clone().unwrap();
        cache.nominate(pod, &node);
    }
    let objects = cache.objects();
    // Between the times that the situations speak of.
    objects.now = "2026-06-01T00:00:00Z".parse().unwrap();
    for o in list::<core::Namespace>(situation, "namespaces") {
        objects.set(name(&o.metadata), Object::Namespace(o.metadata.labels.unwrap_or_default()));
    }
    for o in list::<core::Service>(situation, "services") {
        let namespace = o.metadata.namespace.as_deref().unwrap().into();
        objects.set(name(&o.metadata), Object::Service(namespace, o.spec.unwrap().selector.unwrap()));
    }
    for o in situation["replicasets"].as_array().into_iter().flatten() {
        let selector: Option<_> = serde_json::from_value(o["spec"]["selector"].clone()).unwrap();
        let meta: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta =
            serde_json::from_value(o["metadata"].clone()).unwrap();
        objects
            .set(format!("ReplicaSet/{}", name(&meta)).into(), Object::Workload(compile(selector.as_ref())));
    }
    for o in list::<core::PersistentVolumeClaim>(situation, "pvcs") {
        objects.set(name(&o.metadata), Object::PersistentVolumeClaim(o.into()));
    }
    for o in list::<core::PersistentVolume>(situation, "pvs") {
        objects.set(name(&o.metadata), Object::PersistentVolume(o.into()));
    }
    for o in list::<storage::StorageClass>(situation, "classes") {
        objects.set(name(&o.metadata), Object::StorageClass(o.into()));
    }
    for o in list::<storage::CSINode>(situation, "csinodes") {
        objects.set(name(&o.metadata), watched::csi_node(&o));
    }
    for o in list::<storage::CSIDriver>(situation, "csidrivers") {
        objects.set(name(&o.metadata), watched::csi_driver(&o));
    }
    for o in list::<storage::CSIStorageCapacity>(situation, "capacities") {
        objects.set(name(&o.metadata), Object::CsiStorageCapacity(o.into()));
    }
    for o in list::<policy::PodDisruptionBudget>(situation, "pdbs") {
        objects.set(name(&o.metadata), watched::budget(&o).unwrap());
    }
    for o in list::<resource::ResourceClaim>(situation, "resourceclaims") {
        objects.set(name(&o.metadata), Object::ResourceClaim(o.into()));
    }
    for o in list::<resource::DeviceClass>(situation, "deviceclasses") {
        objects.set(name(&o.metadata), Object::DeviceClass(o.into()));
    }
    for o in list::<resource::ResourceSlice>(situation, "resourceslices") {
        objects.set(name(&o.metadata), watched::slice(&o));
    }
    let pod = classes.pod(serde_json::from_value(situation["pod"].clone()).unwrap()).unwrap();
    (cache, pod)
}

/// What we say, in the form of the recording.
fn answer(situation: &Value) -> Value {
    let mut classes = Classes::default();
    let (mut cache, pod) = cluster(situation, &mut classes);
    let framework = match situation.get("config") {
        None => default_profile(),
        Some(config) => Config::read(config.clone(), &Registry::new()).unwrap().profiles.remove(0),
    };
    let mut engine = Engine::default();
    let snapshot = cache.snapshot();
    // Twice: what is kept for the second pod of a class must not change the answer.
    let first = engine.attempt(&framework, &pod, snapshot);
    engine.keep(first);
    let mut attempt = engine.attempt(&framework, &pod, snapshot);
    if let Some(failure) = attempt.failure() {
        return json!({"error": failure});
    }
    let node = |slot: usize| snapshot.at(slot).unwrap().name.to_string();
    let feasible: BTreeSet<String> = attempt.feasible().iter().map(|slot| node(*slot)).collect();
    let mut said = json!({"feasible": feasible, "reasons": reasons(&attempt)});
    if feasible.is_empty() {
        let mut error = attempt.error();
        let mut victims = Value::Null;
        let remedies = attempt.remedies();
        if let Some(args) = attempt.preemption() {
            match preempt(&mut attempt, args, &mut StdRng::seed_from_u64(1)) {
                Outcome::Room(room) => {
                    let pods: Vec<&str> = room.victims.iter().map(|p| &*p.key.name).collect();
                    victims = json!({"node": *room.node, "pods": pods});
                }
                Outcome::NotEligible(text) => error.preemption = told(&remedies, text),
                Outcome::NoUse(text) => error.preemption = told(&remedies, &text),
            }
        }
        said["message"] = error.to_string().into();
        said["victims"] = victims;
    } else {
        let slots: Vec<usize> = attempt.feasible().to_vec();
        let mut scores = json!({});
        for (plugin, list) in attempt.plugin_scores() {
            scores[plugin] =
                slots.iter().zip(list).map(|(slot, score)| (node(*slot), json!(score))).collect();
        }
        said["scores"] = scores;
        let allocations: BTreeMap<String, Value> = slots
            .iter()
            .map(|slot| (node(*slot), allocations(&framework, &pod, snapshot, *slot)))
            .filter(|(_, claims)| claims.as_object().is_some_and(|claims| !claims.is_empty()))
            .collect();
        said["allocations"] = json!(allocations);
        let extended: BTreeMap<String, Value> =
            slots.iter().filter_map(|slot| Some((node(*slot), extended(&pod, snapshot, *slot)?))).collect();
        said["extended"] = json!(extended);
    }
    said
}

/// What the pod's claims get on a node, by name.
fn allocations(framework: &Framework, pod: &PodInfo, snapshot: &Snapshot, slot: usize) -> Value {
    let (mut objects, node) = (snapshot.objects.clone(), snapshot.at(slot).unwrap());
    let mut found = json!({});
    for plugin in &framework.reserves {
        plugin.reserve(pod, node, &mut objects).unwrap();
    }
    for (name, pending) in objects.devices.all_pending() {
        let name = name.trim_start_matches("default/").trim_end_matches("/uid-x");
        let mut allocation = (*pending.allocation).clone();
        let results = allocation.devices.iter_mut().flat_map(|d| d.results.iter_mut().flatten());
        for share in results.filter_map(|result| result.share_id.as_mut()) {
            assert_eq!(share, SHARE);
            *share = "share".into();
        }
        found[name] = without_empty(&serde_json::to_value(allocation).unwrap());
    }
    for plugin in &framework.reserves {
        plugin.unreserve(pod, &node.name, &mut objects);
    }
    assert_eq!(objects.devices.all_pending().count(), 0, "everything is given back");
    found
}

/// What the claim for a pod's extended resources asks for on a node, and which container uses what of it.
fn extended(pod: &PodInfo, snapshot: &Snapshot, slot: usize) -> Option<Value> {
    let plan = plan(pod, snapshot.at(slot).unwrap(), &snapshot.objects.devices).unwrap()?;
    let requests = plan.claim.spec.devices.and_then(|devices| devices.requests);
    Some(json!({"requests": requests, "mappings": plan.mappings}))
}

/// Without lists that are empty, which Go leaves out.
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, v)| v.as_array().is_none_or(|list| !list.is_empty()));
            Value::Object(kept.map(|(name, v)| (name.clone(), without_empty(v))).collect())
        }
        Value::Array(items) => items.iter().map(without_empty).collect(),
        other => other.clone(),
    }
}

fn reasons(attempt: &Attempt<'_>) -> BTreeMap<String, Vec<String>> {
    let nodes = attempt.snapshot.nodes().filter_map(|node| Some((node, attempt.rejection(node.slot)?)));
    nodes
        .map(|(node, rejection)| {
            let mut texts: Vec<String> = rejection.reasons.iter().map(|r| r.0.to_string()).collect();
            texts.sort();
            (node.name.to_string(), texts)
        })
        .collect()
}

/// Where two answers differ.
fn differences(recorded: &Value, said: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut differ = |what: &str, recorded: &Value, said: &Value| {
        if recorded != said {
            found.push(format!("{what}: recorded {recorded}, said {said}"));
        }
    };
    differ("error", &recorded["error"], &said["error"]);
    differ("feasible", &recorded["feasible"], &said["feasible"]);
    let none = json!({});
    let or_none = |all: &Value, field: &str| without_empty(all.get(field).unwrap_or(&none));
    differ("reasons", &or_none(recorded, "reasons"), &or_none(said, "reasons"));
    differ("allocations", &or_none(recorded, "allocations"), &or_none(said, "allocations"));
    differ("extended", &or_none(recorded, "extended"), &or_none(said, "extended"));
    if said.get("message").is_some() {
        differ("message", &recorded["message"], &said["message"]);
        // Of nodes that are equally good kube-scheduler takes any.
        let choices = recorded["victims"].as_array().cloned().unwrap_or_default();
        let none = choices.is_empty() && said["victims"].is_null();
        if !none && !choices.contains(&said["victims"]) {
            differ("victims", &recorded["victims"], &said["victims"]);
        }
        return found;
    }
    // A plugin that has nothing to say gives 0 to all, or is not heard: that is the same.
    let of = |all: &Value| -> BTreeMap<String, Value> {
        let scores = all["scores"].as_object().cloned().unwrap_or_default();
        let heard = |list: &Value| list.as_object().is_some_and(|l| l.values().any(|v| v != 0));
        scores.into_iter().filter(|(_, list)| heard(list)).collect()
    };
    let (recorded, said) = (of(recorded), of(said));
    for plugin in recorded.keys().chain(said.keys()).collect::<BTreeSet<_>>() {
        let list = |all: &BTreeMap<String, Value>| all.get(plugin).cloned().unwrap_or(Value::Null);
        differ(plugin, &list(&recorded), &list(&said));
    }
    found
}

#[test]
fn decisions_are_those_of_kube_scheduler() {
    compare(RECORDED);
}

#[test]
fn devices_are_those_of_kube_scheduler() {
    compare(DEVICES);
}

fn compare(recorded: &str) {
    let mut failed = Vec::new();
    let mut count = 0;
    for line in recorded.lines() {
        let situation: Value = serde_json::from_str(line).unwrap();
        count += 1;
        let recorded = match situation.get("answer") {
            Some(answer) => answer.clone(),
            None => json!({"error": situation["error"]}),
        };
        let differences = differences(&recorded, &answer(&situation));
        if !differences.is_empty() {
            failed.push(format!("{}:\n  {}", situation["name"], differences.join("\n  ")));
        }
    }
    assert!(count >= 300, "only {count} situations");
    assert!(failed.is_empty(), "{} of {count} differ:\n{}", failed.len(), failed.join("\n"));
}
