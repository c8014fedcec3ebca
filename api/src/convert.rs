//! Conversion between the versions of one resource. Most versions have the same fields; those that differ are
//! here: HorizontalPodAutoscalers, Events of the two groups, dynamic resource allocation.

use crate::kinds::Kind;
use crate::object::{Object, ObjectExt as _};
use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Rewrites an object of the row `from` as the row `to`, another version of the same resource. Fields that
/// the target always writes have to be filled in afterwards (see [`crate::decode::normalize`]).
pub fn convert(from: &Kind, to: &Kind, object: &mut Value) {
    if from.group == to.group && from.version == to.version {
        return;
    }
    match (
        from.kind.as_str(),
        from.group.as_str(),
        from.version.as_str(),
        to.group.as_str(),
        to.version.as_str(),
    ) {
        ("HorizontalPodAutoscaler", _, "v1", _, "v2") => autoscaler_to_v2(object),
        ("HorizontalPodAutoscaler", _, "v2", _, "v1") => autoscaler_to_v1(object),
        ("Event", "", _, "events.k8s.io", _) => rename_event(object, false),
        ("Event", "events.k8s.io", _, "", _) => rename_event(object, true),
        (_, "resource.k8s.io", old, _, new) if (old == "v1beta1") != (new == "v1beta1") => {
            resource(object, old == "v1beta1");
        }
        _ => {}
    }
    object.set_api_version_kind(&to.api_version(), &to.kind);
}

/// The names of an event's fields in the core group and in `events.k8s.io`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename_event(event: &mut Value, to_core: bool) {
    let Some(o) = event.as_object_mut() else { return };
    for (core, new) in EVENT_FIELDS {
        let (from, to) = if to_core { (new, core) } else { (core, new) };
        if let Some(v) = o.remove(from) {
            o.insert(to.to_owned(), v);
        }
    }
    if to_core {
        // The core version always writes its reporter.
        for field in ["reportingComponent", "reportingInstance"] {
            crate::defaults::set(o, field, "");
        }
    }
}

/// JSON text whose fields keep the order in which they are given; absent values are left out.
fn ordered(fields: &[(&str, Option<String>)]) -> String {
    let parts: Vec<String> =
        fields.iter().filter_map(|(k, v)| v.as_ref().map(|v| format!("\"{k}\":{v}"))).collect();
    format!("{{{}}}", parts.join(","))
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

fn text(v: Option<&Value>) -> Option<String> {
    v.filter(|v| !v.is_null()).map(Value::to_string)
}

/// A v2 metric as v1 wrote it into its annotation.
fn metric_v1(m: &Value) -> String {
    let ty = m.str_at("type");
    let (field, body) = match ty {
        "Resource" | "ContainerResource" => {
            let field = if ty == "Resource" { "resource" } else { "containerResource" };
            let s = m.get(field).unwrap_or(&Value::Null);
            let target = s.get("target").unwrap_or(&Value::Null);
            let body = ordered(&[
                ("name", text(s.get("name"))),
                ("targetAverageUtilization", text(target.get("averageUtilization"))),
                ("targetAverageValue", text(target.get("averageValue"))),
                ("container", text(s.get("container"))),
            ]);
            (field, body)
        }
        "Pods" => {
            let s = m.get("pods").unwrap_or(&Value::Null);
            let body = ordered(&[
                ("metricName", text(s.at("metric.name"))),
                ("targetAverageValue", text(s.at("target.averageValue"))),
                ("selector", text(s.at("metric.selector"))),
            ]);
            ("pods", body)
        }
        "External" => {
            let s = m.get("external").unwrap_or(&Value::Null);
            let body = ordered(&[
                ("metricName", text(s.at("metric.name"))),
                ("metricSelector", text(s.at("metric.selector"))),
                ("targetValue", text(s.at("target.value"))),
                ("targetAverageValue", text(s.at("target.averageValue"))),
            ]);
            ("external", body)
        }
        _ => {
            let s = m.get("object").unwrap_or(&Value::Null);
            let about = s.get("describedObject").unwrap_or(&Value::Null);
            let target = ordered(&[
                ("kind", text(about.get("kind"))),
                ("name", text(about.get("name"))),
                ("apiVersion", text(about.get("apiVersion"))),
            ]);
            let body = ordered(&[
                ("target", Some(target)),
                ("metricName", text(s.at("metric.name"))),
                ("targetValue", text(s.at("target.value")).or(Some("\"0\"".into()))),
                ("selector", text(s.at("metric.selector"))),
                ("averageValue", text(s.at("target.averageValue"))),
            ]);
            ("object", body)
        }
    };
    ordered(&[("type", Some(json!(ty).to_string())), (field, Some(body))])
}

/// A metric of v1's annotation as v2 has it.
fn metric_v2(m: &Value) -> Value {
    let metric = |s: &Value, selector: &str| {
        let mut metric = json!({"name": s.str_at("metricName")});
        if let Some(selector) = s.get(selector) {
            metric["selector"] = selector.clone();
        }
        metric
    };
    let target = |s: &Value, value: &str, average: &str| {
        let (value, average) = (s.get(value), s.get(average));
        match (average, value) {
            (Some(a), _) => json!({"type": "AverageValue", "averageValue": a}),
            (None, v) => json!({"type": "Value", "value": v}),
        }
    };
    let ty = m.str_at("type");
    let mut out = json!({"type": ty});
    match ty {
        "Resource" | "ContainerResource" => {
            let field = if ty == "Resource" { "resource" } else { "containerResource" };
            let s = m.get(field).unwrap_or(&Value::Null);
            let mut body = json!({"name": s.str_at("name")});
            body["target"] = match s.get("targetAverageUtilization") {
                Some(u) => json!({"type": "Utilization", "averageUtilization": u}),
                None => json!({"type": "AverageValue", "averageValue": s.get("targetAverageValue")}),
            };
            if let Some(container) = s.get("container") {
                body["container"] = container.clone();
            }
            out[field] = body;
        }
        "Pods" => {
            let s = m.get("pods").unwrap_or(&Value::Null);
            out["pods"] =
                json!({"metric": metric(s, "selector"), "target": target(s, "", "targetAverageValue")});
        }
        "External" => {
            let s = m.get("external").unwrap_or(&Value::Null);
            out["external"] = json!({"metric": metric(s, "metricSelector"),
                "target": target(s, "targetValue", "targetAverageValue")});
        }
        _ => {
            let s = m.get("object").unwrap_or(&Value::Null);
            out["object"] = json!({"metric": metric(s, "selector"), "describedObject": s.get("target"),
                "target": target(s, "targetValue", "averageValue")});
        }
    }
    out
}

fn is_cpu_utilization(m: &Value) -> bool {
    m.str_at("type") == "Resource"
        && m.str_at("resource.name") == "cpu"
        && m.at("resource.target.averageUtilization").is_some()
}

fn autoscaler_to_v1(o: &mut Value) {
    let metrics = o.remove_path(&["spec", "metrics"]).unwrap_or_default();
    let metrics = metrics.as_array().map_or(&[][..], Vec::as_slice);
    let cpu = metrics.iter().find(|m| is_cpu_utilization(m)).cloned();
    if let Some(n) = cpu.as_ref().and_then(|m| m.at("resource.target.averageUtilization")) {
        o.set_path(&["spec", "targetCPUUtilizationPercentage"], n.clone());
    }
    let others: Vec<&Value> = metrics.iter().filter(|m| Some(*m) != cpu.as_ref()).collect();
    if !others.is_empty() {
        annotate(o, METRICS, list(others.into_iter().map(metric_v1)));
    }
    if let Some(behavior) = o.remove_path(&["spec", "behavior"]) {
        annotate(o, BEHAVIOR, behavior_text(&behavior));
    }
    let current = o.remove_path(&["status", "currentMetrics"]).unwrap_or_default();
    if let Value::Array(current) = &current {
        let cpu = current.iter().find(|m| m.str_at("resource.name") == "cpu");
        if let Some(n) = cpu.and_then(|m| m.at("resource.current.averageUtilization")) {
            o.set_path(&["status", "currentCPUUtilizationPercentage"], n.clone());
        }
        if !current.is_empty() {
            annotate(o, CURRENT_METRICS, json!(current).to_string());
        }
    }
    if let Some(conditions) = o.remove_path(&["status", "conditions"])
        && conditions.as_array().is_some_and(|c| !c.is_empty())
    {
        annotate(o, CONDITIONS, conditions.to_string());
    }
    for field in ["currentReplicas", "desiredReplicas"] {
        if o.get_path(&["status", field]).is_none() {
            o.set_path(&["status", field], json!(0));
        }
    }
}

fn annotate(o: &mut Value, key: &str, value: String) {
    o.set_path(&["metadata", "annotations", key], Value::String(value));
}

/// Behaviour with the names that v1's annotation has for it: those of the internal type.
fn behavior_text(b: &Value) -> String {
    let rules = |r: Option<&Value>| -> Option<String> {
        let r = r.filter(|r| !r.is_null())?;
        let policies = list(r.items_at("policies").iter().map(|p| {
            ordered(&[
                ("Type", text(p.get("type"))),
                ("Value", text(p.get("value"))),
                ("PeriodSeconds", text(p.get("periodSeconds"))),
            ])
        }));
        let or_null = |v: Option<&Value>| text(v).or(Some("null".into()));
        Some(ordered(&[
            ("StabilizationWindowSeconds", or_null(r.get("stabilizationWindowSeconds"))),
            ("SelectPolicy", or_null(r.get("selectPolicy"))),
            ("Policies", Some(policies)),
            ("Tolerance", or_null(r.get("tolerance"))),
        ]))
    };
    let or_null = |r: Option<String>| r.or(Some("null".into()));
    ordered(&[
        ("ScaleUp", or_null(rules(b.get("scaleUp")))),
        ("ScaleDown", or_null(rules(b.get("scaleDown")))),
    ])
}

/// Gives field names their lower-case first letter back, and drops nulls.
fn lower_first(v: Value) -> Value {
    match v {
        Value::Object(map) => {
            let fields = map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| {
                let mut chars = k.chars();
                let name = chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or(k.clone());
                (name, lower_first(v))
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(lower_first).collect()),
        other => other,
    }
}

fn autoscaler_to_v2(o: &mut Value) {
    let mut take = |key: &str| -> Option<Value> {
        let v = o.remove_path(&["metadata", "annotations", key])?;
        serde_json::from_str(v.as_str()?).ok()
    };
    let (metrics, behavior) = (take(METRICS), take(BEHAVIOR));
    let (current, conditions) = (take(CURRENT_METRICS), take(CONDITIONS));
    if o.annotations().is_empty() {
        o.remove_path(&["metadata", "annotations"]);
    }
    let cpu = o.remove_path(&["spec", "targetCPUUtilizationPercentage"]).filter(|n| !n.is_null());
    let mut all = Vec::new();
    if let Some(Value::Array(metrics)) = metrics {
        all.extend(metrics.iter().map(metric_v2));
    }
    // What has a field of its own comes after what the annotation kept.
    if let Some(n) = cpu {
        all.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": n}}}));
    }
    if !all.is_empty() {
        o.set_path(&["spec", "metrics"], Value::Array(all));
    }
    if let Some(behavior) = behavior {
        o.set_path(&["spec", "behavior"], lower_first(behavior));
    }
    let cpu = o.remove_path(&["status", "currentCPUUtilizationPercentage"]).filter(|n| !n.is_null());
    let current = current.or_else(|| {
        cpu.map(|n| json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": n}}}]))
    });
    for (field, value) in [("currentMetrics", current), ("conditions", conditions)] {
        if let Some(value) = value {
            o.set_path(&["status", field], value);
        }
    }
    // v2 leaves out what v1 always writes.
    if o.int_at("status.currentReplicas") == Some(0) {
        o.remove_path(&["status", "currentReplicas"]);
    }
}

/// `v1beta1` has a request's fields in the request, and a device's in `basic`.
fn resource(o: &mut Value, from_beta: bool) {
    let spec: &[&str] = if o.kind() == "ResourceClaimTemplate" { &["spec", "spec"] } else { &["spec"] };
    let requests: Vec<&str> = spec.iter().copied().chain(["devices", "requests"]).collect();
    each(o, &requests, |request| {
        if from_beta {
            if request.contains_key("deviceClassName") {
                let name = request.remove("name");
                let exactly = std::mem::take(request);
                request.extend(name.map(|n| ("name".to_owned(), n)));
                request.insert("exactly".into(), Value::Object(exactly));
            }
        } else if let Some(Value::Object(exactly)) = request.remove("exactly") {
            request.extend(exactly);
        }
    });
    each(o, &["spec", "devices"], |device| {
        if from_beta {
            if let Some(Value::Object(basic)) = device.remove("basic") {
                device.extend(basic);
            }
        } else {
            let name = device.remove("name");
            let basic: Map<String, Value> = std::mem::take(device);
            device.extend(name.map(|n| ("name".to_owned(), n)));
            device.insert("basic".into(), Value::Object(basic));
        }
    });
}

fn each(o: &mut Value, path: &[&str], f: impl FnMut(&mut Object)) {
    if let Some(Value::Array(items)) = crate::object::get_path_mut(o, path) {
        items.iter_mut().filter_map(Value::as_object_mut).for_each(f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn kind(group: &str, version: &str, plural: &str) -> std::sync::Arc<Kind> {
        kinds::find(group, version, plural).expect("row").clone()
    }

    /// There and back again leaves an object as it was.
    fn round_trip(a: &Kind, b: &Kind, object: &Value) -> Value {
        let mut there = object.clone();
        convert(a, b, &mut there);
        assert_eq!(there.api_version(), b.api_version());
        let mut back = there.clone();
        convert(b, a, &mut back);
        assert_eq!(&back, object);
        there
    }

    #[test]
    fn autoscalers() {
        let (v1, v2) = (
            kind("autoscaling", "v1", "horizontalpodautoscalers"),
            kind("autoscaling", "v2", "horizontalpodautoscalers"),
        );
        let o = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {"maxReplicas": 5,
            "behavior": {"scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}},
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "10"}}},
                {"type": "Object", "object": {"metric": {"name": "o"}, "describedObject": {"kind": "K", "name": "n"}, "target": {"type": "Value", "value": "1"}}},
                {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "Value", "value": "1k"}}},
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]},
            "status": {"desiredReplicas": 0}});
        let there = round_trip(&v2, &v1, &o);
        assert_eq!(there["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(
            there.annotation(METRICS),
            Some(
                r#"[{"type":"Pods","pods":{"metricName":"m","targetAverageValue":"10"}},{"type":"Object","object":{"target":{"kind":"K","name":"n"},"metricName":"o","targetValue":"1"}},{"type":"External","external":{"metricName":"q","metricSelector":{"matchLabels":{"a":"b"}},"targetValue":"1k"}}]"#
            )
        );
    }

    #[test]
    fn events_and_resources() {
        let o = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"}, "message": "m", "count": 2,
            "source": {"component": "c"}, "reportingComponent": "r", "reportingInstance": "i", "firstTimestamp": null, "lastTimestamp": null, "eventTime": null});
        let there = round_trip(&kind("", "v1", "events"), &kind("events.k8s.io", "v1", "events"), &o);
        assert_eq!((there["note"].as_str(), there["deprecatedCount"].as_i64()), (Some("m"), Some(2)));
        let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu", "count": 1}}]}}});
        let there = round_trip(
            &kind("resource.k8s.io", "v1", "resourceclaims"),
            &kind("resource.k8s.io", "v1beta1", "resourceclaims"),
            &claim,
        );
        assert_eq!(
            there["spec"]["devices"]["requests"][0],
            json!({"name": "r", "deviceClassName": "gpu", "count": 1})
        );
        let slice = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {}, "spec": {"devices": [{"name": "d", "attributes": {}}]}});
        round_trip(
            &kind("resource.k8s.io", "v1", "resourceslices"),
            &kind("resource.k8s.io", "v1beta1", "resourceslices"),
            &slice,
        );
        let same = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.0.0.1"}});
        round_trip(
            &kind("networking.k8s.io", "v1", "ipaddresses"),
            &kind("networking.k8s.io", "v1beta1", "ipaddresses"),
            &same,
        );
    }
}
