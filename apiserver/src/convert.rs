//! Conversions between the served versions of one resource.
//!
//! Only two resources differ in more than the name of the version: HorizontalPodAutoscaler (v1 keeps what it has no
//! field for in annotations) and Event (the core group's names and those of `events.k8s.io`).

use hawser_api::object::{ObjectExt as _, remove_path, set_path};
use serde_json::{Map, Value, json};

use crate::kinds::Row;

/// What it takes to turn the stored version into the served one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    /// Nothing but kind and apiVersion.
    Head,
    /// autoscaling/v2 ↔ autoscaling/v1.
    Autoscaler,
    /// v1 ↔ events.k8s.io/v1.
    Event,
}

/// The conversion of a row.
pub fn of(row: &Row) -> Conversion {
    if row.is_stored_version() {
        return Conversion::Head;
    }
    match (row.kind.group.as_str(), row.kind.plural.as_str(), row.kind.version.as_str()) {
        ("autoscaling", "horizontalpodautoscalers", "v1") => Conversion::Autoscaler,
        ("events.k8s.io" | "", "events", _) => Conversion::Event,
        _ => Conversion::Head,
    }
}

/// Turns a stored object into the row's version.
pub fn from_stored(row: &Row, mut object: Value) -> Value {
    if row.is_stored_version() {
        return object;
    }
    match of(row) {
        Conversion::Head => {}
        Conversion::Autoscaler => hpa_to_v1(&mut object),
        Conversion::Event if row.kind.group.is_empty() => rename(&mut object, EVENT_NAMES, true),
        Conversion::Event => rename(&mut object, EVENT_NAMES, false),
    }
    object.set_api_version_kind(&row.kind.api_version(), &row.kind.kind);
    object
}

/// Turns an object of the row's version into the stored one.
pub fn to_stored(row: &Row, mut object: Value) -> Value {
    if row.is_stored_version() {
        return object;
    }
    match of(row) {
        Conversion::Head => {}
        Conversion::Autoscaler => hpa_to_v2(&mut object),
        Conversion::Event if row.kind.group.is_empty() => rename(&mut object, EVENT_NAMES, false),
        Conversion::Event => rename(&mut object, EVENT_NAMES, true),
    }
    let stored = row.stored_kind();
    object.set_api_version_kind(&stored.api_version(), &stored.kind);
    object
}

/// Names of an Event's fields: in the core group, in `events.k8s.io`.
const EVENT_NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(object: &mut Value, names: &[(&str, &str)], back: bool) {
    let Some(map) = object.as_object_mut() else { return };
    for (core, new) in names {
        let (from, to) = if back { (new, core) } else { (core, new) };
        if let Some(value) = map.remove(*from) {
            map.insert((*to).to_owned(), value);
        }
    }
}

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn is_cpu(metric: &Value, value: &str) -> bool {
    metric.str_at("type") == "Resource"
        && metric.str_at("resource.name") == "cpu"
        && metric.at(value).is_some_and(|v| !v.is_null())
}

fn hpa_to_v1(object: &mut Value) {
    let mut notes: Vec<(&str, Value)> = Vec::new();
    let take = |object: &mut Value, path: &[&str]| match remove_path(object, path) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let metrics = take(object, &["spec", "metrics"]);
    let (cpu, other): (Vec<_>, Vec<_>) =
        metrics.into_iter().partition(|m| is_cpu(m, "resource.target.averageUtilization"));
    if let Some(v) = cpu.last().and_then(|m| m.at("resource.target.averageUtilization")) {
        set_path(object, &["spec", "targetCPUUtilizationPercentage"], v.clone());
    }
    if !other.is_empty() {
        notes.push((METRICS, other.iter().map(|m| flatten(m, "target")).collect()));
    }
    let current = take(object, &["status", "currentMetrics"]);
    if let Some(v) = current
        .iter()
        .find(|m| is_cpu(m, "resource.current.averageUtilization"))
        .and_then(|m| m.at("resource.current.averageUtilization"))
    {
        set_path(object, &["status", "currentCPUUtilizationPercentage"], v.clone());
    }
    if !current.is_empty() {
        notes.push((CURRENT_METRICS, current.iter().map(|m| flatten(m, "current")).collect()));
    }
    let conditions = take(object, &["status", "conditions"]);
    if !conditions.is_empty() {
        notes.push((CONDITIONS, Value::Array(conditions)));
    }
    if let Some(behavior) = remove_path(object, &["spec", "behavior"]).filter(|b| !b.is_null()) {
        notes.push((BEHAVIOR, behavior));
    }
    if object.at("status").is_some_and(Value::is_object) && object.at("status.currentReplicas").is_none() {
        set_path(object, &["status", "currentReplicas"], json!(0));
    }
    for (key, value) in notes {
        set_path(object, &["metadata", "annotations", key], Value::String(value.to_string()));
    }
}

fn hpa_to_v2(object: &mut Value) {
    let mut note = |key: &str| {
        let text = remove_path(object, &["metadata", "annotations", key])?;
        serde_json::from_str::<Value>(text.as_str()?).ok()
    };
    let (metrics, current, conditions, behavior) =
        (note(METRICS), note(CURRENT_METRICS), note(CONDITIONS), note(BEHAVIOR));
    if object.annotations().is_empty() {
        remove_path(object, &["metadata", "annotations"]);
    }
    let items = |v: Option<Value>, word: &str| -> Vec<Value> {
        v.iter().flat_map(|v| v.as_array()).flatten().map(|m| unflatten(m, word)).collect()
    };
    let mut metrics = items(metrics, "target");
    if let Some(percent) = remove_path(object, &["spec", "targetCPUUtilizationPercentage"]).filter(|p| !p.is_null()) {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": percent}}}));
    }
    if !metrics.is_empty() {
        set_path(object, &["spec", "metrics"], Value::Array(metrics));
    }
    let mut current = items(current, "current");
    if let Some(percent) = remove_path(object, &["status", "currentCPUUtilizationPercentage"]).filter(|p| !p.is_null())
        && !current.iter().any(|m| is_cpu(m, "resource.current.averageUtilization"))
    {
        current.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "current": {"averageUtilization": percent}}}));
    }
    if !current.is_empty() {
        set_path(object, &["status", "currentMetrics"], Value::Array(current));
    }
    if let Some(conditions) = conditions {
        set_path(object, &["status", "conditions"], conditions);
    }
    if let Some(behavior) = behavior {
        set_path(object, &["spec", "behavior"], behavior);
    }
}

/// Where the values of a metric are in v2 (below `target` or `current`) and in v1 (prefixed by the word).
const VALUES: &[(&str, &str)] =
    &[("averageUtilization", "AverageUtilization"), ("averageValue", "AverageValue"), ("value", "Value")];

fn body_key(kind: &str) -> String {
    let mut chars = kind.chars();
    chars.next().map(|c| c.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

/// A v2 metric as v1's annotations have it.
fn flatten(metric: &Value, word: &str) -> Value {
    let kind = metric.str_at("type");
    let key = body_key(kind);
    let mut out = Map::new();
    let Some(body) = metric.get(&key).and_then(Value::as_object) else { return metric.clone() };
    for (name, value) in body {
        match name.as_str() {
            "metric" => {
                if let Some(n) = value.get("name") {
                    out.insert("metricName".into(), n.clone());
                }
                if let Some(s) = value.get("selector") {
                    let selector = if kind == "External" { "metricSelector" } else { "selector" };
                    out.insert(selector.into(), s.clone());
                }
            }
            "describedObject" => {
                out.insert("target".into(), value.clone());
            }
            name if name == word => {
                for (new, old) in VALUES {
                    if let Some(v) = value.get(new) {
                        let name = if kind == "Object" && *old == "AverageValue" {
                            "averageValue".to_owned()
                        } else {
                            format!("{word}{old}")
                        };
                        out.insert(name, v.clone());
                    }
                }
            }
            name => {
                out.insert(name.to_owned(), value.clone());
            }
        }
    }
    let mut metric = Map::new();
    metric.insert("type".into(), kind.into());
    metric.insert(key, Value::Object(out));
    Value::Object(metric)
}

/// A metric of v1's annotations as v2 has it.
fn unflatten(metric: &Value, word: &str) -> Value {
    let kind = metric.str_at("type");
    let key = body_key(kind);
    let Some(body) = metric.get(&key).and_then(Value::as_object) else { return metric.clone() };
    let (mut out, mut named, mut values) = (Map::new(), Map::new(), Map::new());
    for (name, value) in body {
        let short = name.strip_prefix(word).unwrap_or(name);
        match name.as_str() {
            "metricName" => {
                named.insert("name".into(), value.clone());
            }
            "selector" | "metricSelector" => {
                named.insert("selector".into(), value.clone());
            }
            "target" if kind == "Object" => {
                out.insert("describedObject".into(), value.clone());
            }
            "averageValue" if kind == "Object" => {
                values.insert("averageValue".into(), value.clone());
            }
            _ => match VALUES.iter().find(|(_, old)| *old == short) {
                Some((new, _)) => {
                    values.insert((*new).into(), value.clone());
                }
                None => {
                    out.insert(name.clone(), value.clone());
                }
            },
        }
    }
    if !named.is_empty() {
        out.insert("metric".into(), Value::Object(named));
    }
    if word == "target" {
        let kind = if values.contains_key("averageUtilization") {
            "Utilization"
        } else if values.contains_key("averageValue") {
            "AverageValue"
        } else {
            "Value"
        };
        values.insert("type".into(), kind.into());
    }
    out.insert(word.to_owned(), Value::Object(values));
    let mut metric = Map::new();
    metric.insert("type".into(), kind.into());
    metric.insert(key, Value::Object(out));
    Value::Object(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoscalers_keep_everything_in_v1() {
        let v2 = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 5, "behavior": {"scaleDown": {"tolerance": "1"}},
            "metrics": [
                {"type": "Object", "object": {"describedObject": {"kind": "Ingress", "name": "i"},
                    "metric": {"name": "rps"}, "target": {"type": "Value", "value": "2k"}}},
                {"type": "Pods", "pods": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}},
                    "target": {"type": "AverageValue", "averageValue": "3"}}},
                {"type": "External", "external": {"metric": {"name": "q", "selector": {}},
                    "target": {"type": "Value", "value": "3"}}},
                {"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 80}}}]},
            "status": {"currentReplicas": 1, "desiredReplicas": 2,
                "conditions": [{"type": "AbleToScale", "status": "True"}]}});
        let mut v1 = v2.clone();
        hpa_to_v1(&mut v1);
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 80);
        assert!(v1["spec"].get("metrics").is_none());
        let note = v1["metadata"]["annotations"][METRICS].as_str().expect("annotation");
        assert!(note.contains("\"targetValue\":\"2k\""), "{note}");
        hpa_to_v2(&mut v1);
        assert_eq!(v1, v2);
    }

    #[test]
    fn events_round_trip() {
        let core = json!({"involvedObject": {"kind": "Pod"}, "message": "m", "reportingComponent": "c", "count": 3,
            "source": {}, "firstTimestamp": null, "lastTimestamp": null, "eventTime": null});
        let mut new = core.clone();
        rename(&mut new, EVENT_NAMES, false);
        assert_eq!((&new["note"], &new["deprecatedCount"]), (&json!("m"), &json!(3)));
        rename(&mut new, EVENT_NAMES, true);
        assert_eq!(new, core);
    }
}
