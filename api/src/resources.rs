//! Resource lists, and what a pod asks for in all (KEP-753 for sidecars, KEP-2837 for pod-level resources).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::object::ObjectExt as _;
use crate::quantity::Quantity;

/// Amounts by resource name.
pub type ResourceList = BTreeMap<String, Quantity>;

/// Resources that can be set for a pod as a whole.
fn pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// The amounts of a JSON map; what is no quantity is left out.
pub fn list(value: Option<&Value>) -> ResourceList {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(k, v)| Some((k.clone(), Quantity::parse(v.as_str()?).ok()?))).collect()
}

/// The amounts as JSON.
pub fn to_value(list: &ResourceList) -> Value {
    list.iter()
        .map(|(k, v)| (k.clone(), Value::from(v.to_string())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Adds every amount of `more`.
pub fn add(list: &mut ResourceList, more: &ResourceList) {
    for (name, amount) in more {
        let sum = list.get(name).map_or(*amount, |have| *have + *amount);
        list.insert(name.clone(), sum);
    }
}

/// Raises every amount to that of `other`.
fn raise(list: &mut ResourceList, other: &ResourceList) {
    for (name, amount) in other {
        if list.get(name).is_none_or(|have| have < amount) {
            list.insert(name.clone(), *amount);
        }
    }
}

/// `requests` or `limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Requests,
    Limits,
}

impl Half {
    fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// What a pod's containers ask for together: the running ones summed up, or the largest moment of the start if that is
/// more; pod-level amounts come in the place of sums.
pub fn of_pod(pod: &Value, half: Half) -> ResourceList {
    of_pod_with(pod, half, &|container| list(container.get("resources").and_then(|r| r.get(half.field()))))
}

fn of_pod_with(pod: &Value, half: Half, amounts: &dyn Fn(&Value) -> ResourceList) -> ResourceList {
    let mut running = ResourceList::new();
    for container in pod.items_at("spec.containers") {
        add(&mut running, &amounts(container));
    }
    let (mut sidecars, mut starting) = (ResourceList::new(), ResourceList::new());
    for container in pod.items_at("spec.initContainers") {
        let own = amounts(container);
        if container.str_at("restartPolicy") == "Always" {
            add(&mut running, &own);
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut moment = own;
            add(&mut moment, &sidecars);
            raise(&mut starting, &moment);
        }
    }
    raise(&mut running, &starting);
    let whole = list(pod.at("spec.resources").and_then(|r| r.get(half.field())));
    running.extend(whole.into_iter().filter(|(name, _)| pod_level(name)));
    running
}

/// What a pod costs its node: as [`of_pod`], with the overhead of its RuntimeClass, and with what a resized container
/// still holds (KEP-1287).
pub fn cost_of_pod(pod: &Value, half: Half) -> ResourceList {
    let mut cost = of_pod_with(pod, half, &|container| {
        let mut own = list(container.get("resources").and_then(|r| r.get(half.field())));
        let name = container.str_at("name");
        let states = ["status.containerStatuses", "status.initContainerStatuses"];
        let state = states.iter().flat_map(|at| pod.items_at(at)).find(|s| s.str_at("name") == name);
        if let Some(state) = state {
            raise(&mut own, &list(state.get("resources").and_then(|r| r.get(half.field()))));
            if half == Half::Requests {
                raise(&mut own, &list(state.get("allocatedResources")));
            }
        }
        own
    });
    let overhead = list(pod.at("spec.overhead"));
    match half {
        Half::Requests => add(&mut cost, &overhead),
        Half::Limits => {
            for (name, amount) in overhead {
                if let Some(limit) = cost.get_mut(&name).filter(|l| !l.is_zero()) {
                    *limit = *limit + amount;
                }
            }
        }
    }
    cost
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn starting_and_running_containers() {
        let c =
            |cpu: &str| json!({"name": cpu, "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        let mut sidecar = c("300m");
        sidecar["restartPolicy"] = json!("Always");
        let mut pod =
            json!({"spec": {"containers": [c("100m"), c("200m")], "initContainers": [sidecar, c("500m")]}});
        assert_eq!(to_value(&of_pod(&pod, Half::Requests)), json!({"cpu": "800m"}));
        pod["spec"]["overhead"] = json!({"cpu": "50m", "memory": "1Mi"});
        assert_eq!(to_value(&cost_of_pod(&pod, Half::Requests)), json!({"cpu": "850m", "memory": "1Mi"}));
        assert_eq!(to_value(&cost_of_pod(&pod, Half::Limits)), json!({"cpu": "850m"}));
        pod["spec"]["resources"] = json!({"requests": {"cpu": "2"}});
        assert_eq!(to_value(&of_pod(&pod, Half::Requests)), json!({"cpu": "2"}));
    }
}
