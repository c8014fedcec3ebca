//! What single kinds do on top of the common steps.

use super::{CreateContext, object_at};
use crate::defaults::{TEMPLATE_GENERATION, set};
use crate::kinds::Kind;
use crate::object::{Object, ObjectExt as _};
use crate::quantity::Quantity;
use crate::time::rfc3339;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// On create, after the common steps.
pub fn create(kind: &Kind, o: &mut Value, ctx: &CreateContext<'_>) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod_created(o, ctx.now),
        ("", "Namespace") => {
            o.set_path(&["status"], json!({"phase": "Active"}));
            let name = o.name().to_owned();
            o.set_path(&["metadata", "labels", "kubernetes.io/metadata.name"], json!(name));
            let finalizers = o.at("spec.finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
            if !finalizers.iter().any(|f| f == "kubernetes") {
                let all: Vec<Value> = finalizers.into_iter().chain([json!("kubernetes")]).collect();
                o.set_path(&["spec", "finalizers"], Value::Array(all));
            }
        }
        ("", "PersistentVolume") => {
            o.set_path(&["status"], json!({"phase": "Pending", "lastPhaseTransitionTime": rfc3339(ctx.now)}));
        }
        ("", "PersistentVolumeClaim") => {
            data_sources(o, None);
            o.set_path(&["status"], json!({"phase": "Pending"}));
        }
        ("discovery.k8s.io", "EndpointSlice") => null_ports(o),
        ("", "ServiceAccount") => only_names(o),
        ("", "Service") => {
            super::service::align_cluster_ips(o, None);
            super::service::drop_internal_policy(o);
            o.set_path(&["status"], json!({"loadBalancer": {}}));
        }
        ("apps", "DaemonSet") => o.set_path(&["metadata", "annotations", TEMPLATE_GENERATION], json!("1")),
        ("", "Node") => pod_ranges(o),
        ("batch", "Job") => job_created(o, ctx.uid),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => crd_created(o),
        _ => {}
    }
}

/// Secrets of an account are known by their names.
fn only_names(account: &mut Value) {
    let Some(Value::Array(secrets)) = account.get_mut("secrets") else { return };
    for secret in secrets.iter_mut().filter_map(Value::as_object_mut) {
        secret.retain(|field, _| field == "name");
    }
}

/// A new pod is Pending, knows its QoS class, and says when gates hold it back.
fn pod_created(o: &mut Value, now: Timestamp) {
    if let Some(pod) = o.as_object_mut() {
        super::apparmor::from_annotations(pod);
    }
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(o)});
    if !o.items_at("spec.schedulingGates").is_empty() {
        status["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": rfc3339(now)}]);
    }
    o.set_path(&["status"], status);
    if o.int_at("spec.terminationGracePeriodSeconds").is_some_and(|n| n < 0) {
        o.set_path(&["spec", "terminationGracePeriodSeconds"], json!(1));
    }
}

/// A slice without ports has `null` for them, however the request put it.
fn null_ports(slice: &mut Value) {
    if slice.items_at("ports").is_empty() {
        slice.set_path(&["ports"], Value::Null);
    }
}

/// What a claim's volume is filled with (KEP-1495): a reference to another namespace is dropped (KEP-3294 is off), so is
/// a `dataSource` that is neither a claim nor a snapshot, and a new claim says the same in both fields.
fn data_sources(claim: &mut Value, old: Option<&Value>) {
    let in_use = |field: &str| old.and_then(|o| o.get_path(&["spec", field])).is_some_and(|v| !v.is_null());
    let Some(Value::Object(spec)) = claim.get_mut("spec") else { return };
    let text = |v: &Value, field: &str| v.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    let given = |spec: &Object, field: &str| spec.get(field).filter(|v| !v.is_null()).cloned();
    if !in_use("dataSourceRef")
        && given(spec, "dataSourceRef").is_some_and(|r| !text(&r, "namespace").is_empty())
    {
        spec.remove("dataSourceRef");
    }
    if !in_use("dataSource") && !in_use("dataSourceRef") && given(spec, "dataSourceRef").is_none() {
        let known = given(spec, "dataSource").is_some_and(|s| {
            matches!(
                (text(&s, "kind").as_str(), text(&s, "apiGroup").as_str()),
                ("PersistentVolumeClaim", "") | ("VolumeSnapshot", "snapshot.storage.k8s.io")
            )
        });
        if !known {
            spec.remove("dataSource");
        }
    }
    if old.is_some() {
        return;
    }
    match (given(spec, "dataSource"), given(spec, "dataSourceRef")) {
        (Some(source), None) => set(spec, "dataSourceRef", source),
        (None, Some(mut reference)) => {
            if let Some(r) = reference.as_object_mut() {
                r.remove("namespace");
            }
            set(spec, "dataSource", reference);
        }
        _ => {}
    }
}

/// The QoS class of a pod: `Guaranteed`, `Burstable` or `BestEffort`, from its cpu and memory.
pub fn qos_class(pod: &Value) -> &'static str {
    let positive = |list: Option<&Value>, name: &str| -> Option<Quantity> {
        let q = Quantity::parse(list?.get(name)?.as_str()?).ok()?;
        (!q.is_zero()).then_some(q)
    };
    let computed = ["cpu", "memory"];
    // Resources of the pod as a whole decide when there are any.
    if let Some(resources) = pod.at("spec.resources").filter(|r| {
        computed
            .iter()
            .any(|n| positive(r.get("requests"), n).is_some() || positive(r.get("limits"), n).is_some())
    }) {
        return class_of(std::slice::from_ref(&Some(resources)), &positive);
    }
    let all: Vec<Option<&Value>> = pod
        .items_at("spec.containers")
        .iter()
        .chain(pod.items_at("spec.initContainers"))
        .map(|c| c.get("resources"))
        .collect();
    class_of(&all, &positive)
}

fn class_of(
    all: &[Option<&Value>],
    positive: &dyn Fn(Option<&Value>, &str) -> Option<Quantity>,
) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
        let requests = resources.and_then(|r| r.get("requests"));
        let limits = resources.and_then(|r| r.get("limits"));
        for name in ["cpu", "memory"] {
            let (request, limit) = (positive(requests, name), positive(limits, name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A job selects its pods by its own UID unless told otherwise; the labels go to its template, and to itself.
fn job_created(o: &mut Value, uid: &str) {
    if o.bool_at("spec.manualSelector") == Some(true) {
        return;
    }
    let name = o.name().to_owned();
    let labels = [
        ("controller-uid", uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", uid),
        ("batch.kubernetes.io/job-name", &name),
    ];
    for (key, value) in labels {
        let path = ["spec", "template", "metadata", "labels", key];
        if o.get_path(&path).is_none() {
            o.set_path(&path, json!(value));
        }
    }
    if o.at("spec.selector").is_none_or(Value::is_null) {
        o.set_path(&["spec", "selector"], json!({}));
    }
    let key = "batch.kubernetes.io/controller-uid";
    if o.get_path(&["spec", "selector", "matchLabels", key]).is_none() {
        o.set_path(&["spec", "selector", "matchLabels", key], json!(uid));
    }
    if o.labels().is_empty() {
        let labels = o.at("spec.template.metadata.labels").cloned().unwrap_or_default();
        o.set_path(&["metadata", "labels"], labels);
    }
}

/// A definition starts with its stored version in its status.
fn crd_created(o: &mut Value) {
    let stored: Vec<Value> = o
        .items_at("spec.versions")
        .iter()
        .filter(|v| v.bool_at("storage") == Some(true))
        .map(|v| json!(v.str_at("name")))
        .collect();
    o.set_path(
        &["status"],
        json!({"acceptedNames": {"kind": "", "plural": ""}, "conditions": null, "storedVersions": stored}),
    );
}

/// On update, after the common steps and before the generation is counted.
pub fn update(kind: &Kind, new: &mut Value, old: &Value, _now: Timestamp) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Node") => pod_ranges(new),
        ("", "ServiceAccount") => only_names(new),
        // A driver has no generation until it is changed.
        ("storage.k8s.io", "CSIDriver") if new.get("spec") != old.get("spec") => {
            let generation = old.generation().unwrap_or(0) + 1;
            new.metadata_mut().insert("generation".into(), json!(generation));
        }
        ("", "Namespace") => restore(new, old, &["spec", "finalizers"]),
        ("", "Secret") if new.str_at("type").is_empty() => restore(new, old, &["type"]),
        ("", "PersistentVolumeClaim") => data_sources(new, Some(old)),
        ("discovery.k8s.io", "EndpointSlice") => null_ports(new),
        ("", "Service") => {
            super::service::keep_allocated(new, old);
            super::service::align_cluster_ips(new, Some(old));
            super::service::drop_unused(new, old);
            super::service::drop_internal_policy(new);
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => restore(new, old, &["spec"]),
        ("apps", "DaemonSet") => {
            let generation =
                old.annotation(TEMPLATE_GENERATION).and_then(|g| g.parse::<i64>().ok()).unwrap_or(0);
            let changed = new.at("spec.template") != old.at("spec.template");
            let generation = (generation + i64::from(changed)).to_string();
            new.set_path(&["metadata", "annotations", TEMPLATE_GENERATION], json!(generation));
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            let mut stored: Vec<Value> = new.items_at("status.storedVersions").to_vec();
            let storage = new.items_at("spec.versions").iter().find(|v| v.bool_at("storage") == Some(true));
            if let Some(name) = storage.map(|v| json!(v.str_at("name")))
                && !stored.contains(&name)
            {
                stored.push(name);
            }
            new.set_path(&["status", "storedVersions"], Value::Array(stored));
        }
        _ => {}
    }
}

fn restore(new: &mut Value, old: &Value, path: &[&str]) {
    match old.get_path(path) {
        Some(v) => new.set_path(path, v.clone()),
        None => {
            new.remove_path(path);
        }
    }
}

/// On status update, after the common steps.
pub fn status(kind: &Kind, new: &mut Value, old: &Value, now: Timestamp) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            restore(new, old, &["metadata", "ownerReferences"]);
            if new.str_at("status.qosClass").is_empty() {
                restore(new, old, &["status", "qosClass"]);
            }
            // The feature is off by default.
            restore(new, old, &["status", "nodeAllocatableResourceClaimStatuses"]);
        }
        ("apps", "Deployment") => restore(new, old, &["metadata", "labels"]),
        ("", "PersistentVolume") => {
            if new.str_at("status.phase") != old.str_at("status.phase") {
                new.set_path(&["status", "lastPhaseTransitionTime"], json!(rfc3339(now)));
            } else if new.at("status.lastPhaseTransitionTime").is_none() {
                restore(new, old, &["status", "lastPhaseTransitionTime"]);
            }
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            let decided = |c: &&Value| matches!(c.str_at("type"), "Approved" | "Denied");
            let kept = old.items_at("status.conditions").iter().filter(decided);
            let others = new.items_at("status.conditions").iter().filter(|c| !decided(c));
            let mut all: Vec<Value> = kept.chain(others).cloned().collect();
            stamp(&mut all, old.items_at("status.conditions"), now);
            set_list(new, all);
        }
        _ => {}
    }
}

/// A node's one range of pod addresses and the list of all say the same; the former has the last word.
pub fn pod_ranges(node: &mut Value) {
    let one = node.str_at("spec.podCIDR").to_owned();
    let first = node.items_at("spec.podCIDRs").first().and_then(Value::as_str).map(str::to_owned);
    match first {
        Some(first) if one.is_empty() => node.set_path(&["spec", "podCIDR"], json!(first)),
        first if !one.is_empty() && first.as_deref() != Some(&one) => {
            node.set_path(&["spec", "podCIDRs"], json!([one]));
        }
        _ => {}
    }
}

/// A pod's one address and the list of all say the same; writers that know of one only have the last word.
pub fn pod_addresses(pod: &mut Value) {
    let one = pod.str_at("status.podIP").to_owned();
    let first = pod.items_at("status.podIPs").first().map(|a| a.str_at("ip").to_owned());
    match first {
        Some(first) if one.is_empty() => pod.set_path(&["status", "podIP"], json!(first)),
        first if !one.is_empty() && first.as_deref() != Some(&one) => {
            pod.set_path(&["status", "podIPs"], json!([{"ip": one}]));
        }
        _ => {}
    }
}

/// `approval` changes only the conditions.
pub fn approval(new: &mut Value, old: &Value, now: Timestamp) {
    let mut all: Vec<Value> = new.items_at("status.conditions").to_vec();
    stamp(&mut all, old.items_at("status.conditions"), now);
    super::keep_but(new, old, &["metadata"]);
    set_list(new, all);
}

fn set_list(o: &mut Value, conditions: Vec<Value>) {
    if conditions.is_empty() {
        o.remove_path(&["status", "conditions"]);
    } else {
        o.set_path(&["status", "conditions"], Value::Array(conditions));
    }
}

/// Gives conditions the times that clients may leave out.
fn stamp(conditions: &mut [Value], old: &[Value], now: Timestamp) {
    let now = json!(rfc3339(now));
    for c in conditions {
        let before = old.iter().find(|o| o.str_at("type") == c.str_at("type"));
        if c.at("lastUpdateTime").is_none_or(Value::is_null) {
            c.set_path(&["lastUpdateTime"], now.clone());
        }
        if c.at("lastTransitionTime").is_none_or(Value::is_null) {
            let same = before.filter(|b| b.str_at("status") == c.str_at("status"));
            let at = same.and_then(|b| b.at("lastTransitionTime").cloned()).unwrap_or_else(|| now.clone());
            c.set_path(&["lastTransitionTime"], at);
        }
    }
}

/// `resize` changes only the resources and resize policies of containers.
pub fn resize(new: &mut Value, old: &Value) {
    let mut out = old.clone();
    if let Some(rv) = new.at("metadata.resourceVersion") {
        out.set_meta("resourceVersion", rv.clone());
    }
    for list in ["containers", "initContainers"] {
        let wanted: Map<String, Value> = new
            .items_at(&format!("spec.{list}"))
            .iter()
            .map(|c| (c.str_at("name").to_owned(), c.clone()))
            .collect();
        let Some(Value::Array(items)) = crate::object::get_path_mut(&mut out, &["spec", list]) else {
            continue;
        };
        for item in items {
            let Some(want) = wanted.get(item.str_at("name")) else { continue };
            for field in ["resources", "resizePolicy"] {
                match want.get(field) {
                    Some(v) => item.set_path(&[field], v.clone()),
                    None => {
                        item.remove_path(&[field]);
                    }
                }
            }
        }
    }
    if let Some(resources) = object_at(new, "spec.resources") {
        out.set_path(&["spec", "resources"], Value::Object(resources.clone()));
    }
    *new = out;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qos() {
        let r =
            |requests: Value, limits: Value| json!({"resources": {"requests": requests, "limits": limits}});
        for (containers, want) in [
            (json!([{}]), "BestEffort"),
            (json!([r(json!({"cpu": "1"}), json!({}))]), "Burstable"),
            (
                json!([r(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "1000m", "memory": "1Gi"}))]),
                "Guaranteed",
            ),
            (
                json!([r(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "1", "memory": "1Gi"})), {}]),
                "Burstable",
            ),
            (json!([r(json!({"cpu": "0"}), json!({"example.com/x": "1"}))]), "BestEffort"),
        ] {
            assert_eq!(qos_class(&json!({"spec": {"containers": containers}})), want, "{containers}");
        }
    }
}
