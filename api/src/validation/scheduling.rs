//! Validation of what steers scheduling: affinity, tolerations, spreading.

use super::checks::Errors;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::{Value, json};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NO_OPERATOR: &str = "not a valid selector operator";

pub fn affinity(s: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(affinity) = s.get("affinity").filter(|a| !a.is_null()) else { return };
    if let Some(node) = affinity.get("nodeAffinity").filter(|n| !n.is_null()) {
        let at = at.child("nodeAffinity");
        if let Some(required) = node.get(REQUIRED).filter(|r| !r.is_null()) {
            node_selector(required, at.child(REQUIRED), e);
        }
        let list = at.child(PREFERRED);
        for (i, term) in node.items_at(PREFERRED).iter().enumerate() {
            let item = list.index(i);
            weight(item, term, e);
            if let Some(preference) = term.get("preference") {
                node_term(preference, item.child("preference"), false, e);
            }
        }
    }
    for name in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get(name).filter(|p| !p.is_null()) else { continue };
        let at = at.child(name);
        let list = at.child(REQUIRED);
        for (i, term) in pods.items_at(REQUIRED).iter().enumerate() {
            pod_term(term, list.index(i), e);
        }
        let list = at.child(PREFERRED);
        for (i, term) in pods.items_at(PREFERRED).iter().enumerate() {
            let item = list.index(i);
            weight(item, term, e);
            if let Some(inner) = term.get("podAffinityTerm") {
                pod_term(inner, item.child("podAffinityTerm"), e);
            }
        }
    }
}

fn weight(at: Path<'_>, term: &Value, e: &mut Errors) {
    let n = term.int_at("weight").unwrap_or(0);
    if !(1..=100).contains(&n) {
        e.invalid(at.child("weight"), n, "must be in the range 1-100");
    }
}

fn pod_term(term: &Value, at: Path<'_>, e: &mut Errors) {
    e.selector(at.child("labelSelector"), term.get("labelSelector"));
    e.selector(at.child("namespaceSelector"), term.get("namespaceSelector"));
    label_keys(term, at, &["matchLabelKeys", "mismatchLabelKeys"], e);
    // Kubernetes does not say which of the namespaces it means.
    for name in term.items_at("namespaces").iter().filter_map(Value::as_str) {
        e.all(at.child("namespace"), name, names::dns1123_label(name));
    }
    let key = term.str_at("topologyKey");
    if key.is_empty() {
        e.required(at.child("topologyKey"), "can not be empty");
    }
    e.all(at.child("topologyKey"), key, names::qualified_name(key));
}

/// Keys of labels whose values are added to a selector (KEP-3633, KEP-3243).
fn label_keys(o: &Value, at: Path<'_>, fields: &[&str], e: &mut Errors) {
    for field in fields {
        let keys = o.items_at(field);
        if keys.is_empty() {
            continue;
        }
        let list = at.child(field);
        if o.get("labelSelector").is_none_or(Value::is_null) {
            e.forbidden(list, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in keys.iter().filter_map(Value::as_str).enumerate() {
            e.all(list.index(i), key, names::qualified_name(key));
        }
    }
    let strings = |field: &str| {
        o.items_at(field).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let (keys, others) = (strings("matchLabelKeys"), strings("mismatchLabelKeys"));
    let mut met: Vec<&str> = o
        .at("labelSelector.matchLabels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, _)| k.as_str())
        .collect();
    for expression in o.items_at("labelSelector.matchExpressions") {
        let key = expression.str_at("key");
        if let Some(i) = keys.iter().rposition(|k| k == key)
            && met.contains(&key)
        {
            e.invalid(at.index(i), key, "exists in both matchLabelKeys and labelSelector");
        }
        met.push(key);
    }
    let list = at.child("matchLabelKeys");
    for (i, key) in keys.iter().enumerate().filter(|(_, k)| others.contains(k)) {
        e.invalid(list.index(i), key.as_str(), "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

/// A node selector: at least one term.
pub fn node_selector(selector: &Value, at: Path<'_>, e: &mut Errors) {
    let terms = selector.items_at("nodeSelectorTerms");
    let list = at.child("nodeSelectorTerms");
    if terms.is_empty() {
        e.required(list, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_term(term, list.index(i), true, e);
    }
}

/// The terms of a node selector as Kubernetes has them in memory.
pub fn terms_in_memory(selector: &Value) -> Vec<Value> {
    let list = |term: &Value, field: &str| {
        match term.items_at(field) {
        [] => Value::Null,
        items => items
            .iter()
            .map(|x| json!({"Key": x.str_at("key"), "Operator": x.str_at("operator"), "Values": x.get("values")}))
            .collect(),
    }
    };
    selector
        .items_at("nodeSelectorTerms")
        .iter()
        .map(|t| json!({"MatchExpressions": list(t, "matchExpressions"), "MatchFields": list(t, "matchFields")}))
        .collect()
}

fn node_term(term: &Value, at: Path<'_>, judge_values: bool, e: &mut Errors) {
    let list = at.child("matchExpressions");
    for (i, requirement) in term.items_at("matchExpressions").iter().enumerate() {
        node_requirement(requirement, list.index(i), judge_values, e);
    }
    let list = at.child("matchFields");
    for (i, requirement) in term.items_at("matchFields").iter().enumerate() {
        field_requirement(requirement, list.index(i), e);
    }
}

fn node_requirement(requirement: &Value, item: Path<'_>, judge_values: bool, e: &mut Errors) {
    let values = requirement.items_at("values");
    match requirement.str_at("operator") {
        "In" | "NotIn" if values.is_empty() => {
            e.required(item.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            e.forbidden(item.child("values"), detail);
        }
        "Gt" | "Lt" if values.len() != 1 => {
            e.required(
                item.child("values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => e.invalid(item.child("operator"), other, NO_OPERATOR),
    }
    let key = requirement.str_at("key");
    e.all(item.child("key"), key, names::qualified_name(key));
    let list = item.child("values");
    for (i, value) in values.iter().filter_map(Value::as_str).enumerate().filter(|_| judge_values) {
        e.all(list.index(i), value, names::label_value(value));
    }
}

/// A requirement on a field of the node: there is only the name.
fn field_requirement(requirement: &Value, item: Path<'_>, e: &mut Errors) {
    let values = requirement.items_at("values");
    match requirement.str_at("operator") {
        "In" | "NotIn" if values.len() != 1 => {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            e.required(item.child("values"), detail);
        }
        "In" | "NotIn" => {}
        other => e.invalid(item.child("operator"), other, NO_OPERATOR),
    }
    let key = requirement.str_at("key");
    if key != "metadata.name" {
        return e.invalid(item.child("key"), key, "not a valid field selector key");
    }
    let list = item.child("values");
    for (i, value) in values.iter().filter_map(Value::as_str).enumerate() {
        e.all(list.index(i), value, names::dns1123_subdomain(value));
    }
}

pub fn tolerations(s: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("tolerations");
    for (i, t) in s.items_at("tolerations").iter().enumerate() {
        let item = list.index(i);
        let (key, operator, effect, value) =
            (t.str_at("key"), t.str_at("operator"), t.str_at("effect"), t.str_at("value"));
        if !key.is_empty() {
            e.all(item.child("key"), key, names::qualified_name(key));
        }
        if key.is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            e.invalid(item.child("operator"), operator, detail);
        }
        if t.int_at("tolerationSeconds").is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            e.invalid(item.child("effect"), effect, detail);
        }
        match operator {
            "" | "Equal" => {
                let messages = names::label_value(value);
                if !messages.is_empty() {
                    e.invalid(item.child("operator"), value, messages.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                e.invalid(item.child("operator"), value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            "Gt" | "Lt" => {
                if value.parse::<i64>().is_err() {
                    e.invalid(
                        item.child("value"),
                        value,
                        "must be a valid decimal integer in canonical form",
                    );
                }
            }
            other => e.unsupported(item.child("operator"), other, &["Equal", "Exists"]),
        }
        e.optional_one_of(item.child("effect"), effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    }
}

pub fn spread(s: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("topologySpreadConstraints");
    let constraints = s.items_at("topologySpreadConstraints");
    for (i, c) in constraints.iter().enumerate() {
        let item = list.index(i);
        let skew = c.int_at("maxSkew").unwrap_or(0);
        if skew <= 0 {
            e.invalid(item.child("maxSkew"), skew, "must be greater than zero");
        }
        let key = c.str_at("topologyKey");
        if key.is_empty() {
            e.required(item.child("topologyKey"), "can not be empty");
        }
        let when = c.str_at("whenUnsatisfiable");
        let all = ["DoNotSchedule", "ScheduleAnyway"];
        if !all.contains(&when) {
            e.unsupported(item.child("whenUnsatisfiable"), when, &all);
        }
        let same = |o: &Value| o.str_at("topologyKey") == key && o.str_at("whenUnsatisfiable") == when;
        if constraints.iter().skip(i + 1).any(same) {
            let pair = json!(format!("{{{key}, {when}}}"));
            e.duplicate(item.child("{topologyKey, whenUnsatisfiable}"), pair);
        }
        if let Some(n) = c.int_at("minDomains") {
            if n <= 0 {
                e.invalid(item.child("minDomains"), n, "must be greater than 0");
            }
            if when != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
                e.invalid(item.child("minDomains"), n, detail);
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            e.known(item.child(field), c.get(field), &["Honor", "Ignore"]);
        }
        label_keys(c, item, &["matchLabelKeys"], e);
        e.selector(item.child("labelSelector"), c.get("labelSelector"));
    }
}
