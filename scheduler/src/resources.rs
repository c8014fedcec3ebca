//! Amounts of resources: what a pod asks for and what a node has.

use std::collections::BTreeMap;

use hawser_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

/// What a container that asks for no CPU counts as when nodes are scored: 100 millicores.
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container that asks for no memory counts as when nodes are scored: 200 MiB.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

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

/// What a pod asks for, and what it counts as when nodes are scored.
///
/// The sum over containers and sidecars, or the largest init container with the sidecars started before it,
/// whichever is more, plus the overhead; a request for the whole pod takes the place of the sum
/// (KEP-753, KEP-2837).
pub fn pod_requests(spec: &PodSpec) -> (Resources, Resources) {
    (requests(spec, false), requests(spec, true))
}

fn requests(spec: &PodSpec, for_scoring: bool) -> Resources {
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&container_requests(container, for_scoring));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = container_requests(container, for_scoring);
        if container.restart_policy.as_deref() == Some("Always") {
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
    if let Some(list) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let whole = Resources::from_list(list);
        if list.contains_key("cpu") {
            total.milli_cpu = whole.milli_cpu;
        }
        if list.contains_key("memory") {
            total.memory = whole.memory;
        }
        total.scalar.extend(whole.scalar);
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Resources::from_list(overhead));
    }
    total
}

fn container_requests(container: &Container, for_scoring: bool) -> Resources {
    let list = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let mut own = list.map(Resources::from_list).unwrap_or_default();
    if for_scoring {
        if !list.is_some_and(|l| l.contains_key("cpu")) {
            own.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !list.is_some_and(|l| l.contains_key("memory")) {
            own.memory = DEFAULT_MEMORY;
        }
    }
    own
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
        let (asked, scored) = pod_requests(&spec);
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
        assert_eq!(pod_requests(&spec).0.milli_cpu, 510);
    }

    #[test]
    fn a_request_for_the_whole_pod_replaces_the_sum() {
        let spec = spec(json!({
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}}],
            "resources": {"requests": {"cpu": "2"}},
        }));
        let (asked, _) = pod_requests(&spec);
        assert_eq!((asked.milli_cpu, asked.memory), (2000, 1 << 20));
    }
}
