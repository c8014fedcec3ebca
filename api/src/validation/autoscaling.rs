//! Validation of HorizontalPodAutoscalers.

use super::checks::{Errors, quantity};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");

pub fn autoscaler(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let (min, max) = (o.int_at("spec.minReplicas"), o.int_at("spec.maxReplicas").unwrap_or(0));
    if let Some(n) = min.filter(|n| *n < 1) {
        e.invalid(SPEC.child("minReplicas"), n, "must be greater than or equal to 1");
    }
    if max == 0 {
        e.required(SPEC.child("maxReplicas"), "must be set and greater than 0");
    } else if max < 0 {
        e.invalid(SPEC.child("maxReplicas"), max, "must be greater than or equal to 1");
    }
    if min.is_some_and(|n| max < n) {
        e.invalid(SPEC.child("maxReplicas"), max, "must be greater than or equal to `minReplicas`");
    }
    let target = SPEC.child("scaleTargetRef");
    for field in ["kind", "name"] {
        match o.at("spec.scaleTargetRef").map_or("", |t| t.str_at(field)) {
            "" => e.required(target.child(field), ""),
            value => e.all(target.child(field), value, names::path_segment(value)),
        }
    }
    let version = o.str_at("spec.scaleTargetRef.apiVersion");
    let grouped = |version: &str| version.split_once('/').is_some_and(|(group, _)| !group.is_empty());
    if version.matches('/').count() > 1 {
        e.invalid(target.child("apiVersion"), version, format!("unexpected GroupVersion string: {version}"));
    } else if !grouped(version)
        && old.is_none_or(|o| grouped(o.str_at("spec.scaleTargetRef.apiVersion")))
        && !(version == "v1" && o.str_at("spec.scaleTargetRef.kind") == "ReplicationController")
    {
        // What is stored without a group may stay so.
        e.invalid(target.child("apiVersion"), version, "apiVersion must specify API group");
    }
    let list = SPEC.child("metrics");
    let metrics = o.items_at("spec.metrics");
    for (i, metric) in metrics.iter().enumerate() {
        metric_spec(metric, list.index(i), e);
    }
    let scalable = metrics.iter().any(|m| matches!(m.str_at("type"), "Object" | "External"));
    if min == Some(0) && !scalable {
        let detail =
            "must specify at least one Object or External metric to support scaling to zero replicas";
        e.forbidden(list, detail);
    }
    let behavior = SPEC.child("behavior");
    for direction in ["scaleUp", "scaleDown"] {
        let Some(rules) = o.at(&format!("spec.behavior.{direction}")).filter(|r| !r.is_null()) else {
            continue;
        };
        scaling_rules(rules, behavior.child(direction), e);
    }
}

fn scaling_rules(rules: &Value, at: Path<'_>, e: &mut Errors) {
    if let Some(n) = rules.int_at("stabilizationWindowSeconds") {
        let field = at.child("stabilizationWindowSeconds");
        if n < 0 {
            e.invalid(field, n, "must be greater than or equal to zero");
        } else if n > 3600 {
            e.invalid(field, n, "must be less than or equal to 3600");
        }
    }
    e.known(at.child("selectPolicy"), rules.get("selectPolicy"), &["Disabled", "Max", "Min"]);
    let list = at.child("policies");
    if rules.items_at("policies").is_empty() {
        e.required(list, "must specify at least one Policy");
    }
    for (i, policy) in rules.items_at("policies").iter().enumerate() {
        let item = list.index(i);
        let ty = policy.str_at("type");
        if !matches!(ty, "Percent" | "Pods") {
            e.unsupported(item.child("type"), ty, &["Percent", "Pods"]);
        }
        for field in ["value", "periodSeconds"] {
            let n = policy.int_at(field).unwrap_or(0);
            if n <= 0 {
                e.invalid(item.child(field), n, "must be greater than zero");
            } else if field == "periodSeconds" && n > 1800 {
                e.invalid(item.child(field), n, "must be less than or equal to 1800");
            }
        }
    }
    if let Some(q) = quantity(rules.get("tolerance")).filter(|q| q.is_negative()) {
        e.invalid(at.child("tolerance"), q.to_string(), super::checks::NOT_NEGATIVE);
    }
}

/// The field that each type of metric has its source in.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn metric_spec(metric: &Value, at: Path<'_>, e: &mut Errors) {
    let ty = metric.str_at("type");
    let types = SOURCES.map(|(t, _)| t);
    if ty.is_empty() {
        e.required(at.child("type"), "must specify a metric source type");
    }
    let expected = SOURCES.iter().find(|(t, _)| *t == ty).map(|(_, field)| *field);
    if expected.is_none() {
        e.unsupported(at.child("type"), ty, &types);
    }
    // The first source that is there is judged, be it the one of the type or not.
    let order = ["object", "external", "pods", "resource", "containerResource"];
    let present: Vec<&str> =
        order.into_iter().filter(|f| metric.get(*f).is_some_and(|s| !s.is_null())).collect();
    if let Some(first) = present.first() {
        metric_source(first, &metric[*first], at.child(first), e);
    }
    match expected {
        None => e.unsupported(at.child("type"), ty, &types),
        Some(field) if !present.contains(&field) => {
            e.required(at.child(field), "must populate information for the given metric source");
        }
        Some(_) => {}
    }
    if present.len() != 1 {
        for other in present.iter().filter(|f| Some(**f) != expected) {
            e.forbidden(at.child(other), "must populate the given metric source only");
        }
    }
}

/// What a metric is read from, and what it should be.
fn metric_source(field: &str, source: &Value, at: Path<'_>, e: &mut Errors) {
    let empty = Value::Null;
    let target = source.get("target").unwrap_or(&empty);
    if source.str_at("name").is_empty() && field.ends_with("esource") {
        e.required(at.child("name"), "must specify a resource name");
    } else if field == "containerResource" {
        super::handlers::container_resource(source.str_at("name"), at.child("name"), e);
    }
    if field == "object" {
        let described = at.child("describedObject");
        for part in ["kind", "name"] {
            match source.at("describedObject").map_or("", |d| d.str_at(part)) {
                "" => e.required(described.child(part), ""),
                text => e.all(described.child(part), text, names::path_segment(text)),
            }
        }
    }
    if field == "containerResource" {
        match source.str_at("container") {
            "" => e.required(at.child("container"), "must specify a container"),
            name => e.all(at.child("container"), name, names::dns1123_label(name)),
        }
    }
    if matches!(field, "external" | "object" | "pods") {
        let metric = at.child("metric");
        match source.str_at("metric.name") {
            "" => e.required(metric.child("name"), "must specify a metric name"),
            name => e.all(metric.child("name"), name, names::path_segment(name)),
        }
    }
    metric_target(target, at.child("target"), e);
    let has = |f: &str| target.get(f).is_some_and(|v| !v.is_null());
    let target_at = at.child("target");
    match field {
        "resource" | "containerResource" => {
            if !has("averageUtilization") && !has("averageValue") {
                let detail = "must set either a target raw value or a target utilization";
                e.required(target_at.child("averageUtilization"), detail);
            } else if has("averageUtilization") && has("averageValue") {
                let detail = "may not set both a target raw value and a target utilization";
                e.forbidden(target_at.child("averageValue"), detail);
            }
        }
        "external" => {
            if has("value") && has("averageValue") {
                let detail = "may not set both a target value for metric and a per-pod target";
                e.forbidden(target_at.child("value"), detail);
            } else if !has("value") && !has("averageValue") {
                let detail = "must set either a target value for metric or a per-pod target";
                e.required(target_at.child("averageValue"), detail);
            }
        }
        "pods" if !has("averageValue") => {
            e.required(target_at.child("averageValue"), "must specify a positive target averageValue");
        }
        "object" if !has("value") && !has("averageValue") => {
            e.required(target_at.child("averageValue"), "must set either a target value or averageValue");
        }
        _ => {}
    }
}

fn metric_target(target: &Value, at: Path<'_>, e: &mut Errors) {
    if target.str_at("type").is_empty() {
        e.required(at.child("type"), "must specify a metric target type");
    }
    match target.str_at("type") {
        "Utilization" | "Value" | "AverageValue" => {}
        other => e.invalid(at.child("type"), other, "must be either Utilization, Value, or AverageValue"),
    }
    for field in ["value", "averageValue"] {
        if let Some(q) = quantity(target.get(field)).filter(|q| q.is_zero() || q.is_negative()) {
            e.invalid(at.child(field), q.to_string(), "must be positive");
        }
    }
    if let Some(n) = target.int_at("averageUtilization").filter(|n| *n < 1) {
        e.invalid(at.child("averageUtilization"), n, "must be greater than 0");
    }
}
