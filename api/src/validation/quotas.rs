//! Validation of ResourceQuotas and LimitRanges.

use std::collections::BTreeSet;

use super::checks::{Errors, NOT_NEGATIVE};
use super::handlers::container_resource;
use crate::names;
use crate::object::ObjectExt as _;
use crate::quantity::Quantity;
use crate::resources::{self, ResourceList};
use crate::status::{BadValue, Path};
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");

/// What quotas bound by a name without a domain.
const QUOTA: [&str; 19] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

fn is_huge(name: &str) -> bool {
    name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
}

fn is_quota(name: &str) -> bool {
    QUOTA.contains(&name) || is_huge(name)
}

/// Whether a name without a domain is that of a resource.
pub fn is_standard(name: &str) -> bool {
    is_quota(name) || name == "storage"
}

/// The name of any resource.
fn resource_name(name: &str, at: Path<'_>, e: &mut Errors) {
    let messages = names::qualified_name(name);
    let qualified = messages.is_empty();
    e.all(at, name, messages);
    if qualified && !name.contains('/') && !is_standard(name) {
        e.invalid(at, name, "must be a standard resource type or fully qualified");
    }
}

fn quota_name(name: &str, at: Path<'_>, e: &mut Errors) {
    resource_name(name, at, e);
    if !name.contains('/') && !is_quota(name) {
        e.invalid(at, name, "must be a standard resource for quota");
    }
}

/// Resources that are counted in whole numbers.
fn is_count(name: &str) -> bool {
    let counted = [
        "pods",
        "services",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    ];
    let extended = name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.");
    counted.contains(&name) || name.starts_with("count/") || extended
}

fn amounts(list: &ResourceList, at: Path<'_>, e: &mut Errors) {
    for (name, q) in list {
        let item = at.key(name);
        quota_name(name, item, e);
        if q.is_negative() {
            e.invalid(item, q.to_string(), NOT_NEGATIVE);
        }
        if is_count(name) && !q.is_integer() {
            e.invalid(item, q.to_string(), "must be an integer");
        }
    }
}

/// The usage that a quota's status tells.
pub fn quota_status(o: &Value, e: &mut Errors) {
    let status = Path::new("status");
    for field in ["hard", "used"] {
        amounts(&resources::list(o.get("status").and_then(|s| s.get(field))), status.child(field), e);
    }
}

pub fn resource_quota(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let hard = resources::list(o.at("spec.hard"));
    amounts(&hard, SPEC.child("hard"), e);
    scopes(o, &hard, e);
    selector(o, &hard, e);
    quota_status(o, e);
    if let Some(old) = old {
        let set = |o: &Value| -> BTreeSet<String> {
            o.items_at("spec.scopes").iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        if set(o) != set(old) {
            let value = o.at("spec.scopes").cloned().unwrap_or(Value::Null);
            e.invalid(SPEC.child("scopes"), value, super::checks::IMMUTABLE);
        }
    }
}

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// Whether a scope says anything about what a quota bounds.
fn fits(scope: &str, resource: &str) -> bool {
    let compute = ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        scope if SCOPES.contains(&scope) => resource == "pods" || compute.contains(&resource),
        _ => true,
    }
}

fn misfits<'a>(scope: &'a str, hard: &'a ResourceList) -> impl Iterator<Item = &'a String> {
    hard.keys().filter(move |name| is_quota(name) && !fits(scope, name))
}

fn conflicts(scopes: &[&str], at: Path<'_>, value: &Value, e: &mut Errors) {
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|s| scopes.contains(s)) {
            e.invalid(at, value.clone(), "conflicting scopes");
        }
    }
}

fn scopes(o: &Value, hard: &ResourceList, e: &mut Errors) {
    let at = SPEC.child("scopes");
    let value = o.at("spec.scopes").cloned().unwrap_or(Value::Null);
    let scopes: Vec<&str> = o.items_at("spec.scopes").iter().filter_map(Value::as_str).collect();
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            e.invalid(at, value.clone(), "unsupported scope");
        }
        for _ in misfits(scope, hard) {
            e.invalid(at, value.clone(), "unsupported scope applied to resource");
        }
    }
    conflicts(&scopes, at, &value, e);
}

fn selector(o: &Value, hard: &ResourceList, e: &mut Errors) {
    let Some(selector) = o.at("spec.scopeSelector").filter(|s| !s.is_null()) else { return };
    let at = SPEC.child("scopeSelector.matchExpressions");
    let expressions = selector.items_at("matchExpressions");
    for x in expressions {
        let (scope, operator, values) = (x.str_at("scopeName"), x.str_at("operator"), x.items_at("values"));
        if !SCOPES.contains(&scope) {
            e.invalid(at.child("scopeName"), scope, "unsupported scope");
        }
        for _ in misfits(scope, hard) {
            e.invalid(
                at,
                BadValue::internal("core.ScopeSelector", Some(selector)),
                "unsupported scope applied to resource",
            );
        }
        let exists = SCOPES.contains(&scope) && !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if exists && operator != "Exists" {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            e.invalid(at.child("operator"), operator, detail);
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail =
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                e.required(at.child("values"), detail);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail =
                    "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                e.invalid(at.child("values"), x["values"].clone(), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => e.invalid(at.child("operator"), other, "not a valid selector operator"),
        }
    }
    let scopes: Vec<&str> = expressions.iter().map(|x| x.str_at("scopeName")).collect();
    conflicts(&scopes, at, &o.at("spec.scopes").cloned().unwrap_or(Value::Null), e);
}

pub fn limit_range(o: &Value, e: &mut Errors) {
    let list = SPEC.child("limits");
    let mut types = Vec::new();
    for (i, limit) in o.items_at("spec.limits").iter().enumerate() {
        let item = list.index(i);
        let kind = limit.str_at("type");
        let messages = names::qualified_name(kind);
        if messages.is_empty()
            && !kind.contains('/')
            && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim")
        {
            e.invalid(item.child("type"), kind, "must be a standard limit type or fully qualified");
        }
        e.all(item.child("type"), kind, messages);
        if types.contains(&kind) {
            e.duplicate(item.child("type"), kind);
        }
        types.push(kind);
        limit_item(limit, kind, item, e);
    }
}

fn limit_item(limit: &Value, kind: &str, item: Path<'_>, e: &mut Errors) {
    let mut keys = BTreeSet::new();
    let mut part = |field: &str, e: &mut Errors| {
        let list = resources::list(limit.get(field));
        let at = item.child(field);
        for name in list.keys() {
            match kind {
                "Pod" | "Container" => container_resource(name, at.key(name), e),
                _ => resource_name(name, at.key(name), e),
            }
            keys.insert(name.clone());
        }
        list
    };
    let (max, min) = (part("max", e), part("min", e));
    let (mut default, mut request) = (ResourceList::new(), ResourceList::new());
    if kind == "Pod" {
        for field in ["default", "defaultRequest"] {
            if limit.get(field).and_then(Value::as_object).is_some_and(|m| !m.is_empty()) {
                e.forbidden(item.child(field), "may not be specified when `type` is 'Pod'");
            }
        }
    } else {
        default = part("default", e);
        request = part("defaultRequest", e);
    }
    if kind == "PersistentVolumeClaim" && !min.contains_key("storage") && !max.contains_key("storage") {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        e.required(item.child("limits"), detail);
    }
    let ratio = part("maxLimitRequestRatio", e);
    for name in &keys {
        let of = |list: &ResourceList| list.get(name).copied();
        let bounds = Bounds { min: of(&min), max: of(&max), default: of(&default), request: of(&request) };
        bounds.check(name, item, e);
        if let Some(ratio) = of(&ratio) {
            let at = item.child("maxLimitRequestRatio");
            if ratio < Quantity::from_int(1) {
                e.invalid(at.key(name), ratio.to_string(), format!("ratio {ratio} is less than 1"));
            }
            if let (Some(min), Some(max)) = (bounds.min, bounds.max) {
                let most = max.as_f64() / min.as_f64();
                if ratio.as_f64() > most {
                    let detail = format!("ratio {ratio} is greater than max/min = {most:.6}");
                    e.invalid(at.key(name), ratio.to_string(), detail);
                }
            }
        }
    }
}

/// The bounds and defaults of one resource.
struct Bounds {
    min: Option<Quantity>,
    max: Option<Quantity>,
    default: Option<Quantity>,
    request: Option<Quantity>,
}

impl Bounds {
    fn check(&self, name: &str, item: Path<'_>, e: &mut Errors) {
        let Self { min, max, default, request } = self;
        let named = |q: &Option<Quantity>, what: &'static str| q.map(|q| (q, what));
        let pairs = [
            ("min", named(min, "min value"), named(max, "max value"), min),
            ("defaultRequest", named(min, "min value"), named(request, "default request value"), request),
            ("defaultRequest", named(request, "default request value"), named(max, "max value"), request),
            (
                "defaultRequest",
                named(request, "default request value"),
                named(default, "default limit value"),
                request,
            ),
            ("default", named(min, "min value"), named(default, "default value"), min),
            ("default", named(default, "default value"), named(max, "max value"), max),
        ];
        for (field, low, high, shown) in pairs {
            if let (Some((low, a)), Some((high, b)), Some(shown)) = (low, high, shown)
                && low > high
            {
                let at = item.child(field);
                e.invalid(at.key(name), shown.to_string(), format!("{a} {low} is greater than {b} {high}"));
            }
        }
        let fixed =
            name.starts_with("hugepages-") || (name.contains('/') && !name.contains("kubernetes.io/"));
        if let (true, Some(default), Some(request)) = (fixed, default, request)
            && default != request
        {
            let at = item.child("defaultRequest");
            let detail =
                format!("default value {default} must equal to defaultRequest value {request} in {name}");
            e.invalid(at.key(name), request.to_string(), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(check: impl Fn(&Value, &mut Errors), spec: Value) -> Vec<String> {
        let mut e = Errors::default();
        check(&json!({"spec": spec}), &mut e);
        e.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn quotas() {
        let of = |spec: Value| errors(|o, e| resource_quota(o, None, e), spec);
        assert!(of(json!({"hard": {"pods": "1", "count/widgets.example.com": "2", "requests.example.com/gpu": "1"}})).is_empty());
        assert_eq!(of(json!({"hard": {"apples": "1"}})).len(), 2);
        assert_eq!(of(json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort"]})).len(), 1);
        assert_eq!(of(json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort"]})).len(), 1);
        let select =
            |x: Value| of(json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [x]}}));
        assert!(select(json!({"scopeName": "PriorityClass", "operator": "In", "values": ["a"]})).is_empty());
        assert_eq!(select(json!({"scopeName": "PriorityClass", "operator": "In"})).len(), 1);
        assert_eq!(select(json!({"scopeName": "Terminating", "operator": "In", "values": ["a"]})).len(), 1);
    }

    #[test]
    fn ranges() {
        let of = |limit: Value| errors(limit_range, json!({"limits": [limit]}));
        assert!(of(json!({"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "2"}})).is_empty());
        assert_eq!(
            of(json!({"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}})),
            ["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"]
        );
        assert_eq!(of(json!({"type": "Pod", "default": {"cpu": "1"}})).len(), 1);
        assert_eq!(of(json!({"type": "PersistentVolumeClaim"})).len(), 1);
        assert_eq!(of(json!({"type": "Odd"})).len(), 1);
        assert_eq!(of(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "500m"}})).len(), 1);
    }
}
