//! ResourceQuota: what an object uses, which quotas count it, and whether there is room.
//!
//! Admission charges with [`check`]; the controller recalculates with [`usage`] and [`Quota::counts`]. Shares of
//! DeviceClasses that stand for extended resources (KEP-5004) are not counted.

mod usage;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

pub use usage::{count_names, is_counted, matching, usage};

use crate::object::ObjectExt as _;
use crate::resources::{self, ResourceList};

/// A quota as far as charging goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Quota {
    /// Name of the ResourceQuota.
    pub name: String,
    /// Bounds.
    pub hard: ResourceList,
    /// What is used so far.
    pub used: ResourceList,
    scopes: Vec<Scope>,
}

/// What objects have to be for a quota to count them.
#[derive(Debug, Clone, PartialEq)]
struct Scope {
    name: String,
    operator: String,
    values: Vec<String>,
}

/// A resource, an object of it, and when that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Group of the resource.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// The object.
    pub object: &'a Value,
    /// Pods whose end is overdue are not counted any more.
    pub now: Timestamp,
}

impl Quota {
    /// Reads a ResourceQuota; its bounds are those of the status, which usage has been counted for.
    pub fn charged(o: &Value) -> Self {
        Self::read(o, "status.hard")
    }

    /// Reads a ResourceQuota with the bounds of its spec, for recalculation.
    pub fn wanted(o: &Value) -> Self {
        Self::read(o, "spec.hard")
    }

    fn read(o: &Value, hard: &str) -> Self {
        let named = o.items_at("spec.scopes").iter().filter_map(Value::as_str).map(|name| Scope {
            name: name.to_owned(),
            operator: "Exists".to_owned(),
            values: Vec::new(),
        });
        let selected = o.items_at("spec.scopeSelector.matchExpressions").iter().map(|x| Scope {
            name: x.str_at("scopeName").to_owned(),
            operator: x.str_at("operator").to_owned(),
            values: x.items_at("values").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        });
        Self {
            name: o.name().to_owned(),
            hard: resources::list(o.at(hard)),
            used: resources::list(o.at("status.used")),
            scopes: named.chain(selected).collect(),
        }
    }

    /// Whether the quota counts an object.
    pub fn counts(&self, item: Item<'_>) -> bool {
        !matching(item.group, item.resource, self.hard.keys()).is_empty()
            && self.scopes.iter().all(|scope| scope.matches(item))
    }
}

impl Scope {
    fn matches(&self, item: Item<'_>) -> bool {
        match (item.group, item.resource) {
            ("", "pods") => self.matches_pod(item.object),
            ("", "persistentvolumeclaims") if self.name == "VolumeAttributesClass" => {
                let names = attributes_classes(item.object);
                if names.is_empty() {
                    return self.value_matches(None);
                }
                names.into_iter().any(|name| self.value_matches(Some(name)))
            }
            _ => false,
        }
    }

    fn matches_pod(&self, pod: &Value) -> bool {
        let terminating = pod.int_at("spec.activeDeadlineSeconds").is_some_and(|s| s >= 0);
        match self.name.as_str() {
            "Terminating" => terminating,
            "NotTerminating" => !terminating,
            "BestEffort" => best_effort(pod),
            "NotBestEffort" => !best_effort(pod),
            "PriorityClass" => {
                let class = pod.str_at("spec.priorityClassName");
                self.value_matches((!class.is_empty()).then_some(class))
            }
            "CrossNamespacePodAffinity" => crosses_namespaces(pod),
            _ => false,
        }
    }

    fn value_matches(&self, value: Option<&str>) -> bool {
        let among = |v: &str| self.values.iter().any(|x| x == v);
        match self.operator.as_str() {
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "In" => value.is_some_and(among),
            "NotIn" => !value.is_some_and(among),
            _ => false,
        }
    }
}

fn attributes_classes(claim: &Value) -> BTreeSet<&str> {
    let fields = [
        "spec.volumeAttributesClassName",
        "status.currentVolumeAttributesClassName",
        "status.modifyVolumeStatus.targetVolumeAttributesClassName",
    ];
    fields.iter().map(|f| claim.str_at(f)).filter(|name| !name.is_empty()).collect()
}

/// Whether no container asks for CPU or memory (the QoS class BestEffort).
fn best_effort(pod: &Value) -> bool {
    let asks = |holder: &Value| {
        ["requests", "limits"].iter().any(|half| {
            let list = resources::list(holder.get("resources").and_then(|r| r.get(*half)));
            list.iter().any(|(name, q)| matches!(name.as_str(), "cpu" | "memory") && !q.is_zero())
        })
    };
    let containers = ["spec.containers", "spec.initContainers"];
    !containers.iter().flat_map(|at| pod.items_at(at)).any(asks) && !pod.get("spec").is_some_and(asks)
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| {
        !term.items_at("namespaces").is_empty() || term.get("namespaceSelector").is_some_and(|s| !s.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().filter_map(|f| pod.get_path(&["spec", "affinity", f])).any(
        |a| {
            a.items_at("requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
                || a.items_at("preferredDuringSchedulingIgnoredDuringExecution")
                    .iter()
                    .any(|w| w.get("podAffinityTerm").is_some_and(crosses))
        },
    )
}

/// `a=1,b=2`.
fn pretty(list: &ResourceList) -> String {
    list.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

fn masked(list: &ResourceList, names: impl Fn(&str) -> bool) -> ResourceList {
    list.iter().filter(|(k, _)| names(k)).map(|(k, v)| (k.clone(), *v)).collect()
}

/// Charges an object to the quotas that count it: for each quota what is used afterwards, `None` where nothing
/// changes. `old` is the stored object of an update, whose own use is taken off.
///
/// # Errors
/// The text of the 403.
pub fn check(
    quotas: &[Quota],
    item: Item<'_>,
    old: Option<&Value>,
    subresource: &str,
) -> Result<Vec<Option<ResourceList>>, String> {
    let mut interesting = Vec::new();
    for (i, quota) in quotas.iter().enumerate().filter(|(_, q)| q.counts(item)) {
        let names = matching(item.group, item.resource, quota.hard.keys());
        usage::constraints(item, &names).map_err(|why| format!("failed quota: {}: {why}", quota.name))?;
        if names.iter().any(|name| !quota.used.contains_key(*name)) {
            let names = names.join(",");
            return Err(format!("status unknown for quota: {}, resources: {names}", quota.name));
        }
        interesting.push(i);
    }
    let asked = usage(item);
    let negative: Vec<&str> =
        asked.iter().filter(|(_, q)| q.is_negative()).map(|(k, _)| k.as_str()).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    let before = old.map(|object| Item { object, ..item });
    let mut answer = vec![None; quotas.len()];
    for i in interesting {
        let quota = &quotas[i];
        let mut delta = match before.filter(|b| quota.counts(*b)) {
            Some(before) => less(&asked, &usage(before)),
            None => asked.clone(),
        };
        delta.retain(|name, amount| !amount.is_zero() && quota.hard.contains_key(name));
        if delta.is_empty() {
            continue;
        }
        let mut used = quota.used.clone();
        resources::add(&mut used, &delta);
        let exceeds = |name: &str| {
            delta.contains_key(name) && used.get(name).zip(quota.hard.get(name)).is_some_and(|(u, h)| u > h)
        };
        if subresource != "status" && delta.keys().any(|name| exceeds(name)) {
            return Err(format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                quota.name,
                pretty(&masked(&delta, exceeds)),
                pretty(&masked(&quota.used, exceeds)),
                pretty(&masked(&quota.hard, exceeds)),
            ));
        }
        answer[i] = Some(used);
    }
    Ok(answer)
}

/// `a` without `b`, never below zero.
fn less(a: &ResourceList, b: &ResourceList) -> ResourceList {
    let mut rest = a.clone();
    for (name, amount) in b {
        if let Some(have) = rest.get_mut(name) {
            *have = if *have > *amount { *have - *amount } else { crate::quantity::Quantity::ZERO };
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn quota(hard: Value, used: Value, spec: Value) -> Quota {
        Quota::charged(
            &json!({"metadata": {"name": "rq"}, "spec": spec, "status": {"hard": hard, "used": used}}),
        )
    }

    fn item(object: &Value) -> Item<'_> {
        Item { group: "", resource: "pods", object, now: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn texts() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        let q = quota(
            json!({"pods": "1", "requests.cpu": "1"}),
            json!({"pods": "0", "requests.cpu": "0"}),
            json!({}),
        );
        let charge = |q: &Quota, pod: &Value| check(std::slice::from_ref(q), item(pod), None, "");
        assert_eq!(
            charge(&q, &pod(json!({}))).unwrap_err(),
            "failed quota: rq: must specify requests.cpu for: c"
        );
        assert_eq!(
            charge(&q, &pod(json!({"requests": {"cpu": "2"}}))).unwrap_err(),
            "exceeded quota: rq, requested: requests.cpu=2, used: requests.cpu=0, limited: requests.cpu=1"
        );
        let used = charge(&q, &pod(json!({"requests": {"cpu": "100m"}}))).unwrap().remove(0).unwrap();
        assert_eq!(resources::to_value(&used), json!({"pods": "1", "requests.cpu": "100m"}));
        let unknown = quota(json!({"pods": "1"}), json!({}), json!({}));
        assert_eq!(
            charge(&unknown, &pod(json!({}))).unwrap_err(),
            "status unknown for quota: rq, resources: pods"
        );
    }

    #[test]
    fn scopes() {
        let spec = |scope: &str| json!({"scopes": [scope]});
        let selector = json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}});
        let pods = json!({"pods": "5"});
        let plain = json!({"spec": {"containers": [{"name": "c"}]}});
        let ending = json!({"spec": {"activeDeadlineSeconds": 5, "containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}], "priorityClassName": "high"}});
        for (spec, on_plain, on_ending) in [
            (spec("Terminating"), false, true),
            (spec("NotTerminating"), true, false),
            (spec("BestEffort"), true, false),
            (spec("NotBestEffort"), false, true),
            (selector, false, true),
        ] {
            let q = quota(pods.clone(), json!({"pods": "0"}), spec);
            assert_eq!(
                (q.counts(item(&plain)), q.counts(item(&ending))),
                (on_plain, on_ending),
                "{:?}",
                q.scopes
            );
        }
    }

    proptest! {
        /// Whatever is charged one after the other, what is used never exceeds what is allowed.
        #[test]
        fn never_more_than_allowed(asks in proptest::collection::vec(0i64..400, 0..30), hard in 0i64..3000) {
            let mut q = quota(json!({"requests.cpu": format!("{hard}m")}), json!({"requests.cpu": "0"}), json!({}));
            let mut granted = 0;
            for ask in asks {
                let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": format!("{ask}m")}}}]}});
                if let Ok(mut used) = check(std::slice::from_ref(&q), item(&pod), None, "") {
                    granted += ask;
                    if let Some(used) = used.remove(0) {
                        q.used = used;
                    }
                } else {
                    prop_assert!(granted + ask > hard);
                }
                prop_assert_eq!(q.used["requests.cpu"].milli_value(), granted);
                prop_assert!(granted <= hard);
            }
        }
    }
}
