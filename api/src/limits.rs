//! What a LimitRange does to pods and claims: defaults for containers, and bounds.

use serde_json::{Map, Value, json};

use crate::object::{ObjectExt as _, get_path_mut};
use crate::quantity::Quantity;
use crate::resources::{self, Half, ResourceList};

/// Where a pod says what was filled in.
const NOTE: &str = "kubernetes.io/limit-ranger";
/// The largest amount of which there are thousandths in 64 bits.
const MAX_MILLI_VALUE: i64 = i64::MAX / 1000;

/// Fills in what a range's container defaults say, and notes it in an annotation.
pub fn fill_in(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (ResourceList::new(), ResourceList::new());
    for limit in range.items_at("spec.limits").iter().filter(|l| l.str_at("type") == "Container") {
        requests.extend(resources::list(limit.get("defaultRequest")));
        limits.extend(resources::list(limit.get("default")));
    }
    let mut notes = Vec::new();
    for (field, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = get_path_mut(pod, &["spec", field]).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            for (half, defaults) in [("requests", &requests), ("limits", &limits)] {
                let set = fill_in_container(container, half, defaults);
                if !set.is_empty() {
                    let half = half.trim_end_matches('s');
                    notes.push(format!("{} {half} for {what} {}", set.join(", "), container.str_at("name")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod.set_path(&["metadata", "annotations", NOTE], json!(text));
    }
}

fn fill_in_container(container: &mut Value, half: &str, defaults: &ResourceList) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in defaults {
        if container.get_path(&["resources", half, name]).is_none() {
            container.set_path(&["resources", half, name], json!(amount.to_string()));
            set.push(name.clone());
        }
    }
    set
}

/// What is wrong with a pod according to a range.
pub fn check_pod(range: &Value, pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for limit in range.items_at("spec.limits") {
        let mut check = |requests: &ResourceList, limits: &ResourceList| {
            let bounds = Bounds { kind: limit.str_at("type"), requests, limits };
            bounds.each(limit, "min", &mut found, Bounds::min);
            bounds.each(limit, "max", &mut found, Bounds::max);
            bounds.each(limit, "maxLimitRequestRatio", &mut found, Bounds::ratio);
        };
        match limit.str_at("type") {
            "Container" => {
                for container in
                    ["spec.containers", "spec.initContainers"].iter().flat_map(|f| pod.items_at(f))
                {
                    let half = |f: &str| resources::list(container.get("resources").and_then(|r| r.get(f)));
                    check(&half("requests"), &half("limits"));
                }
            }
            "Pod" => {
                check(&resources::of_pod(pod, Half::Requests), &resources::of_pod(pod, Half::Limits));
            }
            _ => {}
        }
    }
    found
}

/// What is wrong with a claim according to a range.
pub fn check_claim(range: &Value, claim: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let requests = resources::list(claim.at("spec.resources.requests"));
    for limit in range.items_at("spec.limits").iter().filter(|l| l.str_at("type") == "PersistentVolumeClaim")
    {
        let bounds =
            Bounds { kind: "PersistentVolumeClaim", requests: &requests, limits: &ResourceList::new() };
        bounds.each(limit, "min", &mut found, Bounds::min);
        bounds.each(limit, "max", &mut found, Bounds::max_request);
    }
    found
}

/// Several complaints in one text, each once, as Go's aggregate of errors prints them.
pub fn aggregate(mut texts: Vec<String>) -> String {
    let mut seen = std::collections::BTreeSet::new();
    texts.retain(|t| seen.insert(t.clone()));
    match texts.len() {
        1 => texts.remove(0),
        _ => format!("[{}]", texts.join(", ")),
    }
}

/// Amounts that are compared in thousandths if all of them are small enough, else in whole units.
fn comparable<const N: usize>(amounts: [Option<&Quantity>; N]) -> [i64; N] {
    let whole = amounts.map(|a| a.map_or(0, Quantity::value));
    if whole.iter().all(|n| *n <= MAX_MILLI_VALUE) {
        amounts.map(|a| a.map_or(0, Quantity::milli_value))
    } else {
        whole
    }
}

struct Bounds<'a> {
    kind: &'a str,
    requests: &'a ResourceList,
    limits: &'a ResourceList,
}

impl Bounds<'_> {
    fn each(
        &self,
        limit: &Value,
        field: &str,
        found: &mut Vec<String>,
        rule: impl Fn(&Self, &str, &Quantity) -> Option<String>,
    ) {
        let empty = Map::new();
        let bounds = limit.get(field).and_then(Value::as_object).unwrap_or(&empty);
        for (name, amount) in resources::list(Some(&Value::Object(bounds.clone()))) {
            found.extend(rule(self, &name, &amount));
        }
    }

    fn min(&self, name: &str, bound: &Quantity) -> Option<String> {
        let (request, limit) = (self.requests.get(name), self.limits.get(name));
        let [r, l, b] = comparable([request, limit, Some(bound)]);
        let head = format!("minimum {name} usage per {} is {bound}", self.kind);
        match (request, limit) {
            (None, _) => Some(format!("{head}.  No request is specified")),
            (Some(request), _) if r < b => Some(format!("{head}, but request is {request}")),
            (_, Some(limit)) if l < b => Some(format!("{head}, but limit is {limit}")),
            _ => None,
        }
    }

    fn max(&self, name: &str, bound: &Quantity) -> Option<String> {
        let (request, limit) = (self.requests.get(name), self.limits.get(name));
        let [r, l, b] = comparable([request, limit, Some(bound)]);
        let head = format!("maximum {name} usage per {} is {bound}", self.kind);
        match (request, limit) {
            (_, None) => Some(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if l > b => Some(format!("{head}, but limit is {limit}")),
            (Some(request), _) if r > b => Some(format!("{head}, but request is {request}")),
            _ => None,
        }
    }

    fn max_request(&self, name: &str, bound: &Quantity) -> Option<String> {
        let request = self.requests.get(name);
        let [r, b] = comparable([request, Some(bound)]);
        let head = format!("maximum {name} usage per {} is {bound}", self.kind);
        match request {
            None => Some(format!("{head}.  No request is specified")),
            Some(request) if r > b => Some(format!("{head}, but request is {request}")),
            Some(_) => None,
        }
    }

    fn ratio(&self, name: &str, bound: &Quantity) -> Option<String> {
        let [r, l, _] = comparable([self.requests.get(name), self.limits.get(name), Some(bound)]);
        let head = format!("{name} max limit to request ratio per {} is {bound}", self.kind);
        if r == 0 {
            return Some(format!("{head}, but no request is specified or request is 0"));
        }
        if l == 0 {
            return Some(format!("{head}, but no limit is specified or limit is 0"));
        }
        let ratio = l as f64 / r as f64;
        (ratio > bound.as_f64()).then(|| format!("{head}, but provided ratio is {ratio:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_noted() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"},
            "defaultRequest": {"cpu": "100m"}}]}});
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "1"},
            "requests": {"cpu": "1"}}}]}});
        fill_in(&range, &mut pod);
        assert_eq!(
            pod["metadata"]["annotations"][NOTE],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; memory limit for container b"
        );
        assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "100m"}));
        assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"], json!({"cpu": "1", "memory": "1Gi"}));
    }

    #[test]
    fn bounds() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        let range = |limit: Value| json!({"spec": {"limits": [limit]}});
        for (limit, resources, expected) in [
            (
                json!({"type": "Container", "max": {"cpu": "2"}}),
                json!({"limits": {"cpu": "3"}}),
                "maximum cpu usage per Container is 2, but limit is 3",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "2"}}),
                json!({}),
                "maximum cpu usage per Container is 2.  No limit is specified",
            ),
            (
                json!({"type": "Pod", "min": {"memory": "1Gi"}}),
                json!({"requests": {"memory": "1Mi"}}),
                "minimum memory usage per Pod is 1Gi, but request is 1Mi",
            ),
            (
                json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "1500m"}}),
                json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}),
                "cpu max limit to request ratio per Pod is 1500m, but provided ratio is 2.000000",
            ),
            (
                json!({"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}}),
                json!({}),
                "[minimum cpu usage per Container is 1.  No request is specified, maximum cpu usage per Container is 2.  No limit is specified]",
            ),
        ] {
            assert_eq!(aggregate(check_pod(&range(limit), &pod(resources))), expected);
        }
        let claim = json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}});
        let limit =
            json!({"type": "PersistentVolumeClaim", "min": {"storage": "2Gi"}, "max": {"storage": "5Gi"}});
        assert_eq!(
            check_claim(&range(limit), &claim),
            ["minimum storage usage per PersistentVolumeClaim is 2Gi, but request is 1Gi"]
        );
    }
}
