//! Validation of the smaller groups.

use super::checks::{Errors, IMMUTABLE, NOT_NEGATIVE, percent, quantity};
use super::scheduling;
use crate::names;
use crate::object::{Labels, ObjectExt as _};
use crate::status::Path;
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");
const ROOT: Path<'static> = Path::ROOT;
const RBAC: &str = "rbac.authorization.k8s.io";

pub fn autoscaler(o: &Value, e: &mut Errors) {
    let (min, max) = (o.int_at("spec.minReplicas"), o.int_at("spec.maxReplicas").unwrap_or(0));
    if let Some(n) = min.filter(|n| *n < 1) {
        e.invalid(SPEC.child("minReplicas"), n, "must be greater than or equal to 1");
    }
    if max < 1 {
        e.invalid(SPEC.child("maxReplicas"), max, "must be greater than 0");
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
    let list = SPEC.child("metrics");
    let metrics = o.items_at("spec.metrics");
    for (i, metric) in metrics.iter().enumerate() {
        let item = list.index(i);
        let types = ["ContainerResource", "External", "Object", "Pods", "Resource"];
        match metric.str_at("type") {
            "" => e.required(item.child("type"), "must specify a metric source type"),
            ty => e.one_of(item.child("type"), ty, &types),
        }
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
    e.optional_one_of(at.child("selectPolicy"), rules.str_at("selectPolicy"), &["Disabled", "Max", "Min"]);
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
}

pub fn disruption_budget(o: &Value, e: &mut Errors) {
    let empty = Value::Null;
    let s = o.get("spec").unwrap_or(&empty);
    let (min, max) = (s.get("minAvailable"), s.get("maxUnavailable"));
    if min.is_some() && max.is_some() {
        e.invalid(SPEC, s.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for (field, value) in [("minAvailable", min), ("maxUnavailable", max)] {
        e.int_or_percent(SPEC.child(field), value);
        if let Some(Value::String(text)) = value
            && percent(text).is_some_and(|n| n > 100)
        {
            e.invalid(SPEC.child(field), text.as_str(), "must not be greater than 100%");
        }
    }
    e.selector(SPEC.child("selector"), s.get("selector"));
    let policy = s.str_at("unhealthyPodEvictionPolicy");
    e.optional_one_of(SPEC.child("unhealthyPodEvictionPolicy"), policy, &["AlwaysAllow", "IfHealthyBudget"]);
}

pub fn lease(o: &Value, e: &mut Errors) {
    if let Some(n) = o.int_at("spec.leaseDurationSeconds").filter(|n| *n <= 0) {
        e.invalid(SPEC.child("leaseDurationSeconds"), n, "must be greater than 0");
    }
    if let Some(n) = o.int_at("spec.leaseTransitions").filter(|n| *n < 0) {
        e.invalid(SPEC.child("leaseTransitions"), n, NOT_NEGATIVE);
    }
}

pub fn rbac(kind: &str, o: &Value, old: Option<&Value>, e: &mut Errors) {
    match kind {
        "Role" | "ClusterRole" => {
            let list = ROOT.child("rules");
            for (i, rule) in o.items_at("rules").iter().enumerate() {
                policy_rule(kind, rule, list.index(i), e);
            }
            if let Some(selectors) = o.at("aggregationRule").filter(|a| !a.is_null()) {
                let list = ROOT.child("aggregationRule.clusterRoleSelectors");
                if selectors.items_at("clusterRoleSelectors").is_empty() {
                    e.required(
                        list,
                        "at least one clusterRoleSelector required if aggregationRule is non-nil",
                    );
                }
                for (i, s) in selectors.items_at("clusterRoleSelectors").iter().enumerate() {
                    e.selector(list.index(i), Some(s));
                }
            }
        }
        _ => role_binding(kind, o, old, e),
    }
}

fn policy_rule(kind: &str, rule: &Value, at: Path<'_>, e: &mut Errors) {
    if rule.items_at("verbs").is_empty() {
        e.required(at.child("verbs"), "verbs must contain at least one value");
    }
    let urls = rule.items_at("nonResourceURLs");
    if !urls.is_empty() {
        if kind == "Role" {
            let value = rule["nonResourceURLs"].clone();
            e.invalid(
                at.child("nonResourceURLs"),
                value,
                "namespaced rules cannot apply to non-resource URLs",
            );
        }
        let resourceful =
            ["apiGroups", "resources", "resourceNames"].iter().any(|f| !rule.items_at(f).is_empty());
        if resourceful {
            let value = rule["nonResourceURLs"].clone();
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            e.invalid(at.child("nonResourceURLs"), value, detail);
        }
        return;
    }
    if rule.items_at("apiGroups").is_empty() {
        e.required(at.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if rule.items_at("resources").is_empty() {
        e.required(at.child("resources"), "resource rules must supply at least one resource");
    }
}

fn role_binding(kind: &str, o: &Value, old: Option<&Value>, e: &mut Errors) {
    let at = ROOT.child("roleRef");
    let empty = Value::Null;
    let role = o.get("roleRef").unwrap_or(&empty);
    let group = role.str_at("apiGroup");
    if group != RBAC {
        e.unsupported(at.child("apiGroup"), group, &[RBAC]);
    }
    let kinds: &[&str] = if kind == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&role.str_at("kind")) {
        e.unsupported(at.child("kind"), role.str_at("kind"), kinds);
    }
    match role.str_at("name") {
        "" => e.required(at.child("name"), ""),
        name => e.all(at.child("name"), name, names::path_segment(name)),
    }
    let list = ROOT.child("subjects");
    for (i, subject) in o.items_at("subjects").iter().enumerate() {
        let item = list.index(i);
        let name = subject.str_at("name");
        if name.is_empty() {
            e.required(item.child("name"), "");
        }
        let group = subject.str_at("apiGroup");
        match subject.str_at("kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    e.all(item.child("name"), name, names::dns1123_subdomain(name));
                }
                if !group.is_empty() {
                    e.unsupported(item.child("apiGroup"), group, &[""]);
                }
                if kind == "ClusterRoleBinding" && subject.str_at("namespace").is_empty() {
                    e.required(item.child("namespace"), "");
                }
            }
            "User" | "Group" => {
                if group != RBAC {
                    e.unsupported(item.child("apiGroup"), group, &[RBAC]);
                }
            }
            other => e.unsupported(item.child("kind"), other, &["ServiceAccount", "User", "Group"]),
        }
    }
    if let Some(old) = old
        && old.get("roleRef") != o.get("roleRef")
    {
        e.invalid(at, role.clone(), "cannot change roleRef");
    }
}

pub fn priority_class(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let value = o.int_at("value").unwrap_or(0);
    let known = matches!(o.name(), "system-cluster-critical" | "system-node-critical");
    if o.name().starts_with("system-") && !known {
        let detail = format!(
            "priority class names with 'system-' prefix are reserved for system use only. error: {} is not a known system priority class",
            o.name()
        );
        e.forbidden(Path::new("metadata.name"), &detail);
    } else if !known && value > 1_000_000_000 {
        let detail = "maximum allowed value of a user defined priority is 1000000000";
        e.forbidden(ROOT.child("value"), detail);
    }
    let policy = o.str_at("preemptionPolicy");
    e.one_of(ROOT.child("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
    if let Some(old) = old {
        if old.int_at("value") != o.int_at("value") {
            e.forbidden(ROOT.child("value"), "may not be changed in an update.");
        }
        e.immutable(ROOT, o, old, "preemptionPolicy");
    }
}

pub fn runtime_class(o: &Value, old: Option<&Value>, e: &mut Errors) {
    match o.str_at("handler") {
        "" => e.required(ROOT.child("handler"), ""),
        handler => e.all(ROOT.child("handler"), handler, names::dns1123_label(handler)),
    }
    if let Some(s) = o.get("scheduling").filter(|s| !s.is_null()) {
        let at = ROOT.child("scheduling");
        e.label_map(at.child("nodeSelector"), Labels::new(s.get("nodeSelector").and_then(Value::as_object)));
        scheduling::tolerations(s, at, e);
    }
    if let Some(old) = old {
        e.immutable(ROOT, o, old, "handler");
    }
}

pub fn storage(kind: &str, o: &Value, old: Option<&Value>, e: &mut Errors) {
    match kind {
        "StorageClass" => {
            if let Some(old) = old {
                for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
                    e.immutable(ROOT, o, old, field);
                }
                return;
            }
            match o.str_at("provisioner") {
                "" => e.required(ROOT.child("provisioner"), ""),
                name => e.all(ROOT.child("provisioner"), name, names::qualified_name(&name.to_lowercase())),
            }
            let policy = o.str_at("reclaimPolicy");
            e.optional_one_of(ROOT.child("reclaimPolicy"), policy, &["Delete", "Retain"]);
            let mode = o.str_at("volumeBindingMode");
            if mode.is_empty() {
                e.required(ROOT.child("volumeBindingMode"), "");
            } else {
                e.one_of(ROOT.child("volumeBindingMode"), mode, &["Immediate", "WaitForFirstConsumer"]);
            }
        }
        "CSIStorageCapacity" => {
            let class = o.str_at("storageClassName");
            e.all(ROOT.child("storageClassName"), class, names::dns1123_subdomain(class));
            for field in ["capacity", "maximumVolumeSize"] {
                if let Some(q) = quantity(o.get(field)).filter(|q| q.is_negative()) {
                    e.invalid(ROOT.child(field), q.to_string(), NOT_NEGATIVE);
                }
            }
        }
        "VolumeAttachment" => {
            for field in ["attacher", "nodeName"] {
                if o.at("spec").map_or("", |s| s.str_at(field)).is_empty() {
                    e.required(SPEC.child(field), "");
                }
            }
            if let Some(old) = old
                && old.get("spec") != o.get("spec")
            {
                e.invalid(SPEC, o.get("spec").cloned().unwrap_or(Value::Null), IMMUTABLE);
            }
        }
        "VolumeAttributesClass" => {
            if o.str_at("driverName").is_empty() {
                e.required(ROOT.child("driverName"), "");
            }
            if let Some(old) = old {
                for field in ["driverName", "parameters"] {
                    e.immutable(ROOT, o, old, field);
                }
            }
        }
        _ => {}
    }
}

pub fn admission(kind: &str, o: &Value, e: &mut Errors) {
    if !kind.ends_with("WebhookConfiguration") {
        return;
    }
    let list = ROOT.child("webhooks");
    let mut seen = Vec::new();
    for (i, hook) in o.items_at("webhooks").iter().enumerate() {
        let item = list.index(i);
        let name = hook.str_at("name");
        if seen.contains(&name) {
            e.duplicate(item.child("name"), name);
        }
        seen.push(name);
        if name.split('.').count() < 3 {
            e.invalid(
                item.child("name"),
                name,
                "should be a domain with at least three segments separated by dots",
            );
        }
        let rules = item.child("rules");
        for (j, rule) in hook.items_at("rules").iter().enumerate() {
            webhook_rule(rule, rules.index(j), e);
        }
        e.optional_one_of(item.child("failurePolicy"), hook.str_at("failurePolicy"), &["Fail", "Ignore"]);
        e.optional_one_of(item.child("matchPolicy"), hook.str_at("matchPolicy"), &["Equivalent", "Exact"]);
        e.one_of(item.child("sideEffects"), hook.str_at("sideEffects"), &["None", "NoneOnDryRun"]);
        if let Some(n) = hook.int_at("timeoutSeconds").filter(|n| !(1..=30).contains(n)) {
            e.invalid(item.child("timeoutSeconds"), n, "the timeout value must be between 1 and 30 seconds");
        }
        e.selector(item.child("namespaceSelector"), hook.get("namespaceSelector"));
        e.selector(item.child("objectSelector"), hook.get("objectSelector"));
        let url = hook.at("clientConfig.url").filter(|u| !u.is_null());
        let service = hook.at("clientConfig.service").filter(|s| !s.is_null());
        if url.is_some() == service.is_some() {
            e.required(item.child("clientConfig"), "exactly one of url or service is required");
        }
        if hook.items_at("admissionReviewVersions").is_empty() {
            let detail = "must specify one of v1, v1beta1";
            e.required(item.child("admissionReviewVersions"), detail);
        }
    }
}

fn webhook_rule(rule: &Value, at: Path<'_>, e: &mut Errors) {
    let operations = at.child("operations");
    let all = rule.items_at("operations");
    if all.is_empty() {
        e.required(operations, "");
    }
    for (i, operation) in all.iter().filter_map(Value::as_str).enumerate() {
        let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
        if !known.contains(&operation) {
            e.unsupported(operations.index(i), operation, &known);
        }
    }
    let has = |field: &str, item: &str| rule.items_at(field).iter().any(|v| v == item);
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        if rule.items_at(field).is_empty() {
            e.required(at.child(field), "");
        } else if rule.items_at(field).len() > 1 && has(field, "*") {
            let detail = format!("if '*' is present, must not specify other {what}");
            e.invalid(at.child(field), rule[field].clone(), detail);
        }
    }
    let resources = rule.items_at("resources");
    if resources.is_empty() {
        e.required(at.child("resources"), "");
    } else if resources.len() > 1 && has("resources", "*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        e.invalid(at.child("resources"), rule["resources"].clone(), detail);
    }
    e.optional_one_of(at.child("scope"), rule.str_at("scope"), &["*", "Cluster", "Namespaced"]);
}

pub fn api_service(o: &Value, e: &mut Errors) {
    let (version, group) = (o.str_at("spec.version"), o.str_at("spec.group"));
    let wanted = format!("{version}.{group}");
    if o.name() != wanted {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {}", crate::text::quote(&wanted));
        e.invalid(Path::new("metadata.name"), o.name(), detail);
    }
    if version.is_empty() {
        e.required(SPEC.child("version"), "");
    }
    for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let n = o.at("spec").and_then(|s| s.int_at(field)).unwrap_or(0);
        if n <= 0 || n > max {
            e.invalid(SPEC.child(field), n, format!("must be positive and less than {max}"));
        }
    }
}

pub fn signing_request(o: &Value, e: &mut Errors) {
    if o.str_at("spec.request").is_empty() {
        e.invalid(SPEC.child("request"), "", "PEM block type must be CERTIFICATE REQUEST");
    }
    if o.items_at("spec.usages").is_empty() {
        e.required(SPEC.child("usages"), "usages must be provided");
    }
    let signer = o.str_at("spec.signerName");
    if signer.is_empty() {
        e.required(SPEC.child("signerName"), "");
    } else if !signer.contains('/') {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        e.invalid(SPEC.child("signerName"), signer, detail);
    }
    if let Some(n) = o.int_at("spec.expirationSeconds").filter(|n| *n < 600) {
        e.invalid(
            SPEC.child("expirationSeconds"),
            n,
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
    request_conditions(o, e);
}

/// The conditions and the certificate of a signing request.
pub fn request_conditions(o: &Value, e: &mut Errors) {
    let status = Path::new("status");
    let list = status.child("conditions");
    let mut decided = Vec::new();
    for (i, condition) in o.items_at("status.conditions").iter().enumerate() {
        let item = list.index(i);
        let ty = condition.str_at("type");
        if ty.is_empty() {
            e.required(item.child("type"), "");
        }
        match condition.str_at("status") {
            "" => e.required(item.child("status"), ""),
            s if matches!(ty, "Approved" | "Denied" | "Failed") && s != "True" => {
                e.unsupported(item.child("status"), s, &["True"]);
            }
            _ => {}
        }
        if matches!(ty, "Approved" | "Denied") {
            if decided.iter().any(|d| *d != ty) {
                let detail = "Approved and Denied conditions are mutually exclusive";
                e.invalid(item.child("type"), ty, detail);
            }
            decided.push(ty);
        }
    }
    let certificate = o.str_at("status.certificate");
    if !certificate.is_empty() {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD.decode(certificate).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        if !text.contains("-----BEGIN CERTIFICATE-----") {
            let detail = "must contain at least one CERTIFICATE PEM block";
            e.invalid(status.child("certificate"), "<certificate data>", detail);
        }
    }
}

pub fn resource(kind: &str, o: &Value, e: &mut Errors) {
    let (spec, at) = match kind {
        "ResourceClaim" => (o.get("spec"), SPEC),
        "ResourceClaimTemplate" => (o.at("spec.spec"), Path::new("spec.spec")),
        _ => return,
    };
    let list = at.child("devices.requests");
    let mut seen = Vec::new();
    for (i, request) in spec.map_or(&[][..], |s| s.items_at("devices.requests")).iter().enumerate() {
        let item = list.index(i);
        let name = request.str_at("name");
        e.all(item.child("name"), name, names::dns1123_label(name));
        let present = |f: &str| request.get(f).filter(|v| !v.is_null());
        let flat = present("deviceClassName").map(|_| request);
        match (present("exactly").or(flat), present("firstAvailable")) {
            (Some(exactly), None) => {
                let at = if flat.is_some() { item } else { item.child("exactly") };
                match exactly.str_at("deviceClassName") {
                    "" => e.required(at.child("deviceClassName"), ""),
                    class => e.all(at.child("deviceClassName"), class, names::dns1123_subdomain(class)),
                }
                let mode = exactly.str_at("allocationMode");
                e.optional_one_of(at.child("allocationMode"), mode, &["All", "ExactCount"]);
            }
            (None, Some(_)) => {}
            (Some(_), Some(_)) => e.invalid(
                item,
                request.clone(),
                "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
            ),
            (None, None) => e.required(item, "exactly one of `exactly` or `firstAvailable` is required"),
        }
        if seen.contains(&name) {
            e.duplicate(item, name);
        }
        seen.push(name);
    }
}
