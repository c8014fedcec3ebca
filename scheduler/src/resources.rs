//! Amounts of resources: what a pod asks for and what a node has.

use std::collections::BTreeMap;

use hawser_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

/// What a container that asks for no CPU counts as when nodes are scored: 100 millicores.
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container that asks for no memory counts as when nodes are scored: 200 MiB.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// What a pod takes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// What it asks for.
    pub requests: Resources,
    /// The same with stand-ins where a container asks for nothing, for scoring the pod itself.
    pub scoring: Resources,
    /// CPU and memory that a node counts for it when others are scored. Differs from `scoring` only for a pod with
    /// requests of its own, which need no stand-ins.
    pub counted: (i64, i64),
}

impl Amounts {
    /// What a pod asks for by its spec and, when a resize is under way, by its status (KEP-1287).
    pub fn new(spec: &PodSpec, status: Option<&PodStatus>) -> Self {
        let requests = requests(spec, status, (false, false), true);
        // kube-scheduler's strategies do not look at requests of the whole pod when they score it.
        let scoring = self::requests(spec, status, (true, true), false);
        let own = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).filter(|r| !r.is_empty());
        let counted = match own {
            None => (scoring.milli_cpu, scoring.memory),
            Some(_) => {
                let missing = |name| !asks_for(spec, name);
                let with = self::requests(spec, status, (missing("cpu"), missing("memory")), true);
                (with.milli_cpu, with.memory)
            }
        };
        Amounts { requests, scoring, counted }
    }
}

/// Whether any container, or the pod as a whole, or its overhead, names a resource.
fn asks_for(spec: &PodSpec, name: &str) -> bool {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let lists = containers.filter_map(|c| c.resources.as_ref()?.requests.as_ref());
    let own = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    lists.chain(own).chain(spec.overhead.as_ref()).any(|list| list.contains_key(name))
}

/// Amounts by resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages, in whole units or bytes.
    pub scalar: BTreeMap<Box<str>, i64>,
}

impl Resources {
    /// Reads a resource list of the API. Amounts that cannot be read count as zero: the API server refuses them.
    pub fn from_list(list: &BTreeMap<String, ApiQuantity>) -> Self {
        let mut found = Resources::default();
        for (name, amount) in list {
            let Ok(amount) = amount.0.parse::<Quantity>() else { continue };
            match name.as_str() {
                "cpu" => found.milli_cpu = amount.milli_value(),
                "memory" => found.memory = amount.value(),
                "ephemeral-storage" => found.ephemeral_storage = amount.value(),
                "pods" => {}
                other => {
                    found.scalar.insert(other.into(), amount.value());
                }
            }
        }
        found
    }

    /// Adds every amount of `other`.
    pub fn add(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.saturating_add(other.milli_cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.saturating_add(other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            let entry = self.scalar.entry(name.clone()).or_default();
            *entry = entry.saturating_add(*amount);
        }
    }

    /// Takes every amount of `other` away.
    pub fn subtract(&mut self, other: &Resources) {
        self.milli_cpu -= other.milli_cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, amount) in &other.scalar {
            if let Some(entry) = self.scalar.get_mut(name) {
                *entry -= amount;
                if *entry == 0 {
                    self.scalar.remove(name);
                }
            }
        }
    }

    /// Raises every amount to at least that of `other`.
    fn raise_to(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            let entry = self.scalar.entry(name.clone()).or_default();
            *entry = (*entry).max(*amount);
        }
    }
}

/// A request by a container's or pod's resource list that is to be combined with what is actuated and allocated.
type List = BTreeMap<String, ApiQuantity>;

/// The sum over containers and sidecars, or the largest init container with the sidecars started before it, whichever is
/// more; a request for the whole pod takes the place of the sum; plus the overhead (KEP-753, KEP-2837).
fn requests(spec: &PodSpec, status: Option<&PodStatus>, stand_ins: (bool, bool), whole: bool) -> Resources {
    let infeasible = status.is_some_and(|s| {
        let pending = s.conditions.iter().flatten().find(|c| c.type_ == "PodResizePending");
        pending.is_some_and(|c| c.reason.as_deref() == Some("Infeasible"))
    });
    let statuses = |init: bool| -> &[ContainerStatus] {
        let list = status.and_then(|s| {
            if init { s.init_container_statuses.as_ref() } else { s.container_statuses.as_ref() }
        });
        list.map(Vec::as_slice).unwrap_or_default()
    };
    let of = |container: &Container, resizes: bool| {
        let asked = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let status = statuses(false).iter().chain(statuses(true)).find(|s| s.name == container.name);
        let list = match status.filter(|s| resizes && s.resources.is_some()) {
            None => asked.cloned().unwrap_or_default(),
            Some(status) => {
                let actuated = status.resources.as_ref().and_then(|r| r.requests.as_ref());
                effective(asked.filter(|_| !infeasible), actuated, status.allocated_resources.as_ref())
            }
        };
        let mut own = Resources::from_list(&list);
        if stand_ins.0 && !list.contains_key("cpu") {
            own.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if stand_ins.1 && !list.contains_key("memory") {
            own.memory = DEFAULT_MEMORY;
        }
        own
    };
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&of(container, true));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let own = of(container, sidecar);
        if sidecar {
            total.add(&own);
            sidecars.add(&own);
            peak.raise_to(&sidecars);
        } else {
            let mut during = sidecars.clone();
            during.add(&own);
            peak.raise_to(&during);
        }
    }
    total.raise_to(&peak);
    if let Some(list) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).filter(|_| whole) {
        whole_pod(&mut total, list, status, infeasible);
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::from_list(overhead));
    }
    total
}

/// Requests of the whole pod: of CPU, memory and huge pages only.
fn whole_pod(total: &mut Resources, list: &List, status: Option<&PodStatus>, infeasible: bool) {
    let status = status.filter(|s| s.resources.is_some());
    let list = match status {
        None => list.clone(),
        Some(status) => {
            let actuated = status.resources.as_ref().and_then(|r| r.requests.as_ref());
            let mut all =
                effective(Some(list).filter(|_| !infeasible), actuated, status.allocated_resources.as_ref());
            all.retain(|name, _| list.contains_key(name));
            all
        }
    };
    let whole = Resources::from_list(&list);
    if list.contains_key("cpu") {
        total.milli_cpu = whole.milli_cpu;
    }
    if list.contains_key("memory") {
        total.memory = whole.memory;
    }
    total.scalar.extend(whole.scalar.into_iter().filter(|(name, _)| name.starts_with("hugepages-")));
}

/// The larger of what is asked for, actuated and allocated, name by name.
fn effective(asked: Option<&List>, actuated: Option<&List>, allocated: Option<&List>) -> List {
    let mut found = List::new();
    for (name, amount) in [asked, actuated, allocated].into_iter().flatten().flatten() {
        let value = |q: &ApiQuantity| q.0.parse::<Quantity>().map_or(0, |q| q.milli_value());
        let known = found.get(name).map(value);
        if known.is_none_or(|known| value(amount) > known) {
            found.insert(name.clone(), amount.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn containers_add_up_and_init_containers_peak() {
        let spec = spec(json!({
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "200m"}}},
            ],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}}}],
        }));
        let Amounts { requests: asked, scoring: scored, .. } = Amounts::new(&spec, None);
        assert_eq!((asked.milli_cpu, asked.memory), (1000, 1 << 30));
        assert_eq!(scored.memory, (1 << 30) + DEFAULT_MEMORY);
    }

    #[test]
    fn sidecars_count_with_containers_and_with_later_init_containers() {
        let spec = spec(json!({
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m"}}}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "300m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "200m"}}},
            ],
            "overhead": {"cpu": "10m"},
        }));
        assert_eq!(Amounts::new(&spec, None).requests.milli_cpu, 510);
    }

    #[test]
    fn a_request_for_the_whole_pod_replaces_the_sum() {
        let spec = spec(json!({
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}}],
            "resources": {"requests": {"cpu": "2"}},
        }));
        let Amounts { requests: asked, .. } = Amounts::new(&spec, None);
        assert_eq!((asked.milli_cpu, asked.memory), (2000, 1 << 20));
    }

    #[test]
    fn a_resize_counts_as_the_larger_of_what_is_wanted_and_what_is_there() {
        let spec = spec(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}));
        let status = |pending: serde_json::Value| -> PodStatus {
            serde_json::from_value(json!({"conditions": pending, "containerStatuses": [{
                "name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "resources": {"requests": {"cpu": "500m"}}, "allocatedResources": {"cpu": "700m"}}]}))
            .unwrap()
        };
        assert_eq!(Amounts::new(&spec, Some(&status(json!([])))).requests.milli_cpu, 1000);
        let infeasible = json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
        assert_eq!(Amounts::new(&spec, Some(&status(infeasible))).requests.milli_cpu, 700);
    }
}
