//! What objects use, by the names that quotas give it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;

use super::Item;
use crate::object::ObjectExt as _;
use crate::quantity::Quantity;
use crate::resources::{self, Half, ResourceList};

/// What pods are counted in, besides huge pages and extended resources.
const POD: [&str; 11] = [
    "count/pods",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "pods",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// What every container has to say as soon as a quota bounds it.
const DEMANDED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
const PER_CLASS: &str = ".storageclass.storage.k8s.io/";
const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// Devices that a claim for all of a class may get at most (`AllocationResultsMaxSize`).
const ALL_DEVICES: i64 = 32;
/// What is never counted: reviews and other things that are not stored, and events.
const IGNORED: [(&str, &str); 10] = [
    ("", "bindings"),
    ("", "componentstatuses"),
    ("", "events"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("events.k8s.io", "events"),
];

/// Whether quotas count such objects at all.
pub fn is_counted(group: &str, resource: &str) -> bool {
    !IGNORED.contains(&(group, resource))
}

/// The names under which objects of a resource are counted one by one.
pub fn count_names(group: &str, resource: &str) -> Vec<String> {
    let count =
        if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") };
    match (group, resource) {
        ("", "configmaps" | "resourcequotas" | "replicationcontrollers" | "secrets") => {
            vec![count, resource.to_owned()]
        }
        _ => vec![count],
    }
}

/// An extended resource or the request of one: with a domain that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

/// Of the names in a quota those that objects of a resource count towards.
pub fn matching<'a>(group: &str, resource: &str, names: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let counts = count_names(group, resource);
    let fits = |name: &str| match (group, resource) {
        ("", "pods") => {
            POD.contains(&name)
                || name.starts_with("hugepages-")
                || name.starts_with("requests.hugepages-")
                || (name.starts_with("requests.")
                    && (is_extended(name)
                        || name.starts_with("requests.deviceclass.resource.kubernetes.io/")))
        }
        ("", "services") => {
            matches!(name, "count/services" | "services" | "services.nodeports" | "services.loadbalancers")
        }
        ("", "persistentvolumeclaims") => {
            let name = name.split_once(PER_CLASS).map_or(name, |(_, what)| what);
            matches!(name, "count/persistentvolumeclaims" | "persistentvolumeclaims" | "requests.storage")
        }
        ("resource.k8s.io", "resourceclaims") => name == counts[0] || name.ends_with(DEVICES),
        _ => counts.iter().any(|c| c == name),
    };
    names.map(String::as_str).filter(|name| fits(name)).collect()
}

/// What an object uses.
pub fn usage(item: Item<'_>) -> ResourceList {
    let one = Quantity::from_int(1);
    let mut used: ResourceList =
        count_names(item.group, item.resource).into_iter().map(|name| (name, one)).collect();
    match (item.group, item.resource) {
        ("", "pods") if runs(item) => used.extend(of_requests(
            &resources::cost_of_pod(item.object, Half::Requests),
            &resources::cost_of_pod(item.object, Half::Limits),
        )),
        ("", "services") => service(item, &mut used),
        ("", "persistentvolumeclaims") => claim(item, &mut used),
        ("resource.k8s.io", "resourceclaims") => devices(item, &mut used),
        _ => {}
    }
    used
}

/// Whether a pod still has its resources: neither ended nor overdue.
fn runs(item: Item<'_>) -> bool {
    let pod = item.object;
    if matches!(pod.str_at("status.phase"), "Failed" | "Succeeded") {
        return false;
    }
    let deleted = pod.deletion_timestamp().and_then(crate::time::parse);
    match deleted.zip(pod.deletion_grace_period_seconds()) {
        Some((at, grace)) => {
            at.checked_add(SignedDuration::from_secs(grace)).is_ok_and(|end| item.now <= end)
        }
        None => true,
    }
}

/// The names that quotas give to requests and limits.
fn of_requests(requests: &ResourceList, limits: &ResourceList) -> ResourceList {
    let mut used = ResourceList::from([("pods".to_owned(), Quantity::from_int(1))]);
    for (name, amount) in requests {
        let plain =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if plain {
            used.insert(name.clone(), *amount);
        }
        if plain || is_extended(name) {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

fn service(item: Item<'_>, used: &mut ResourceList) {
    let ports = item.object.items_at("spec.ports");
    let allocates = item.object.bool_at("spec.allocateLoadBalancerNodePorts") != Some(false);
    let (balancers, node_ports) = match item.object.str_at("spec.type") {
        "NodePort" => (0, ports.len()),
        "LoadBalancer" if allocates => (1, ports.len()),
        "LoadBalancer" => (1, ports.iter().filter(|p| p.int_at("nodePort").unwrap_or(0) != 0).count()),
        _ => (0, 0),
    };
    used.insert("services".into(), Quantity::from_int(1));
    used.insert("services.loadbalancers".into(), Quantity::from_int(balancers));
    used.insert(
        "services.nodeports".into(),
        Quantity::from_int(i64::try_from(node_ports).unwrap_or(i64::MAX)),
    );
}

fn claim(item: Item<'_>, used: &mut ResourceList) {
    let o = item.object;
    let annotated = o.annotation("volume.beta.kubernetes.io/storage-class");
    let class = annotated.unwrap_or_else(|| o.str_at("spec.storageClassName"));
    let mut count = |name: &str, amount: Quantity| {
        used.insert(name.to_owned(), amount);
        if !class.is_empty() {
            used.insert(format!("{class}{PER_CLASS}{name}"), amount);
        }
    };
    count("persistentvolumeclaims", Quantity::from_int(1));
    let amount = |at: &str| resources::list(o.at(at)).get("storage").copied();
    if let Some(asked) = amount("spec.resources.requests") {
        // A volume that could not be made smaller again holds what it was given (KEP-1790).
        let held = amount("status.allocatedResources").filter(|held| *held > asked).unwrap_or(asked);
        let whole = if held.is_integer() { held } else { Quantity::from_int(held.value()) };
        count("requests.storage", whole);
    }
}

fn devices(item: Item<'_>, used: &mut ResourceList) {
    let count = |request: &serde_json::Value| match request.str_at("allocationMode") {
        "ExactCount" => request.int_at("count").unwrap_or(0),
        "All" => ALL_DEVICES,
        _ => 0,
    };
    for request in item.object.items_at("spec.devices.requests") {
        // Of alternatives the one that costs most is counted, class by class.
        let mut most: BTreeMap<&str, i64> = BTreeMap::new();
        for choice in request.items_at("firstAvailable").iter().chain(request.get("exactly")) {
            let held = most.entry(choice.str_at("deviceClassName")).or_default();
            *held = count(choice).max(*held);
        }
        for (class, n) in most.into_iter().filter(|(class, _)| !class.is_empty()) {
            resources::add(used, &ResourceList::from([(format!("{class}{DEVICES}"), Quantity::from_int(n))]));
        }
    }
}

/// What the containers of a pod have to say when a quota bounds it.
///
/// # Errors
/// `must specify requests.cpu for: a,b`.
pub fn constraints(item: Item<'_>, names: &[&str]) -> Result<(), String> {
    let pod = item.object;
    let whole = ["requests", "limits"]
        .iter()
        .any(|half| !resources::list(pod.get_path(&["spec", "resources", half])).is_empty());
    if (item.group, item.resource) != ("", "pods") || whole {
        return Ok(());
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in ["spec.containers", "spec.initContainers"].iter().flat_map(|at| pod.items_at(at)) {
        let half = |f: &str| resources::list(container.get("resources").and_then(|r| r.get(f)));
        let said = of_requests(&half("requests"), &half("limits"));
        for name in names.iter().filter(|n| DEMANDED.contains(n) && !said.contains_key(**n)) {
            missing.entry(name).or_default().insert(container.str_at("name"));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let parts: Vec<String> = missing
        .into_iter()
        .map(|(name, of)| format!("{name} for: {}", of.into_iter().collect::<Vec<_>>().join(",")))
        .collect();
    Err(format!("must specify {}", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    fn used(group: &str, resource: &str, object: &Value) -> Value {
        resources::to_value(&usage(Item { group, resource, object, now: Timestamp::UNIX_EPOCH }))
    }

    #[test]
    fn what_objects_use() {
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{"nodePort": 1}, {}]}});
        let expected = json!({"count/services": "1", "services": "1", "services.loadbalancers": "1", "services.nodeports": "2"});
        assert_eq!(used("", "services", &service), expected);
        let claim =
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            used("", "persistentvolumeclaims", &claim),
            json!({"count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "1Gi",
                "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
                "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"})
        );
        assert_eq!(used("", "secrets", &json!({})), json!({"count/secrets": "1", "secrets": "1"}));
        assert_eq!(used("apps", "deployments", &json!({})), json!({"count/deployments.apps": "1"}));
        let pod = json!({"status": {"phase": "Failed"}, "spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        assert_eq!(used("", "pods", &pod), json!({"count/pods": "1"}));
        let claim = json!({"spec": {"devices": {"requests": [
            {"exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
            {"firstAvailable": [{"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 3}, {"deviceClassName": "tpu", "allocationMode": "All"}]}]}}});
        assert_eq!(
            used("resource.k8s.io", "resourceclaims", &claim),
            json!({"count/resourceclaims.resource.k8s.io": "1", "gpu.deviceclass.resource.k8s.io/devices": "5", "tpu.deviceclass.resource.k8s.io/devices": "32"})
        );
    }
}
