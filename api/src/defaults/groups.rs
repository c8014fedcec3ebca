//! Defaults of the smaller groups.

use super::{absent, child, each, ensure, set, text};
use crate::object::Object;
use serde_json::{Value, json};

/// The policy's types follow from what it has rules for.
pub fn network_policy(o: &mut Object) {
    let Some(spec) = ensure(o, "spec") else { return };
    set(spec, "podSelector", Object::new());
    for list in ["ingress", "egress"] {
        each(spec, list, |rule| each(rule, "ports", |p| set(p, "protocol", "TCP")));
    }
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|e| !e.is_empty());
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".into(), types);
    }
}

pub fn ingress_class(o: &mut Object) {
    if let Some(parameters) = child(o, "spec").and_then(|s| child(s, "parameters")) {
        set(parameters, "scope", "Cluster");
    }
}

/// An ingress has no defaults of its own; its status always shows.
pub fn ingress(o: &mut Object) {
    if let Some(status) = ensure(o, "status") {
        set(status, "loadBalancer", Object::new());
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

pub fn role_binding(o: &mut Object) {
    if let Some(role) = child(o, "roleRef") {
        set_empty(role, "apiGroup", RBAC);
    }
    each(o, "subjects", |s| {
        if matches!(text(s, "kind"), "User" | "Group") {
            set_empty(s, "apiGroup", RBAC);
        }
    });
}

fn set_empty(o: &mut Object, key: &str, value: &str) {
    if text(o, key).is_empty() {
        o.insert(key.to_owned(), Value::String(value.to_owned()));
    }
}

pub fn storage_class(o: &mut Object) {
    set(o, "reclaimPolicy", "Delete");
    set(o, "volumeBindingMode", "Immediate");
}

pub fn csi_driver(o: &mut Object) {
    let Some(spec) = ensure(o, "spec") else { return };
    set(spec, "attachRequired", true);
    set(spec, "podInfoOnMount", false);
    set(spec, "storageCapacity", false);
    set(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("volumeLifecycleModes".into(), json!(["Persistent"]));
    }
    set(spec, "requiresRepublish", false);
    set(spec, "seLinuxMount", false);
}

pub fn priority_class(o: &mut Object) {
    set(o, "preemptionPolicy", "PreemptLowerPriority");
}

pub fn api_service(o: &mut Object) {
    if let Some(service) = child(o, "spec").and_then(|s| child(s, "service")) {
        set(service, "port", 443);
    }
}

/// Names that follow from others, and the conversion that needs nothing.
pub fn custom_resource_definition(o: &mut Object) {
    crate::crd::definition::canonical(o);
    let Some(spec) = ensure(o, "spec") else { return };
    if let Some(names) = ensure(spec, "names") {
        let kind = text(names, "kind").to_owned();
        if !kind.is_empty() {
            set_empty(names, "singular", &kind.to_lowercase());
            set_empty(names, "listKind", &format!("{kind}List"));
        }
    }
    if let Some(conversion) = ensure(spec, "conversion") {
        set_empty(conversion, "strategy", "None");
        if let Some(service) = child(conversion, "webhook")
            .and_then(|w| child(w, "clientConfig"))
            .and_then(|c| child(c, "service"))
        {
            set(service, "port", 443);
        }
    }
}

pub fn flow_schema(o: &mut Object) {
    if let Some(spec) = ensure(o, "spec") {
        set(spec, "matchingPrecedence", 1000);
        if spec.get("matchingPrecedence") == Some(&json!(0)) {
            spec.insert("matchingPrecedence".into(), json!(1000));
        }
    }
}

pub fn priority_level(o: &mut Object) {
    let Some(spec) = ensure(o, "spec") else { return };
    if let Some(exempt) = child(spec, "exempt") {
        set(exempt, "nominalConcurrencyShares", 0);
        set(exempt, "lendablePercent", 0);
    } else if text(spec, "type") == "Exempt"
        && let Some(exempt) = ensure(spec, "exempt")
    {
        set(exempt, "nominalConcurrencyShares", 0);
        set(exempt, "lendablePercent", 0);
    }
    if let Some(limited) = child(spec, "limited") {
        set(limited, "nominalConcurrencyShares", 30);
        set(limited, "lendablePercent", 0);
        if let Some(response) = child(limited, "limitResponse")
            && let Some(queuing) = child(response, "queuing")
        {
            for (field, value) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
                if queuing.get(field).and_then(Value::as_i64).unwrap_or(0) == 0 {
                    queuing.insert(field.into(), json!(value));
                }
            }
        }
    }
}

/// Webhook configurations and admission policies.
pub fn admission(kind: &str, o: &mut Object) {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => each(o, "webhooks", |w| {
            set(w, "failurePolicy", "Fail");
            match_resources(w);
            set(w, "timeoutSeconds", 10);
            if kind.starts_with("Mutating") {
                set(w, "reinvocationPolicy", "Never");
            }
            each(w, "rules", |r| set(r, "scope", "*"));
            if let Some(service) = child(w, "clientConfig").and_then(|c| child(c, "service")) {
                set(service, "port", 443);
            }
        }),
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            if let Some(spec) = ensure(o, "spec") {
                set(spec, "failurePolicy", "Fail");
                if let Some(constraints) = child(spec, "matchConstraints") {
                    policy_match(constraints);
                }
            }
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            if let Some(spec) = ensure(o, "spec")
                && let Some(resources) = child(spec, "matchResources")
            {
                policy_match(resources);
            }
        }
        _ => {}
    }
}

fn match_resources(o: &mut Object) {
    set(o, "matchPolicy", "Equivalent");
    set(o, "namespaceSelector", Object::new());
    set(o, "objectSelector", Object::new());
}

fn policy_match(o: &mut Object) {
    match_resources(o);
    for list in ["resourceRules", "excludeResourceRules"] {
        each(o, list, |r| set(r, "scope", "*"));
    }
}

/// Dynamic resource allocation.
pub fn resource(kind: &str, o: &mut Object) {
    match kind {
        "ResourceClaim" => {
            if let Some(spec) = child(o, "spec") {
                claim(spec);
            }
        }
        "ResourceClaimTemplate" => {
            if let Some(spec) = child(o, "spec").and_then(|s| child(s, "spec")) {
                claim(spec);
            }
        }
        _ => {}
    }
}

/// A request without a mode asks for one device.
fn claim(spec: &mut Object) {
    let Some(devices) = child(spec, "devices") else { return };
    each(devices, "requests", |request| {
        if let Some(exactly) = child(request, "exactly") {
            device_request(exactly);
        }
        each(request, "firstAvailable", device_request);
        // v1beta1 has the request's fields in the request itself.
        if !absent(request, "deviceClassName") {
            device_request(request);
        }
    });
}

fn device_request(request: &mut Object) {
    set(request, "allocationMode", "ExactCount");
    if text(request, "allocationMode") == "ExactCount" {
        set(request, "count", 1);
    }
    each(request, "tolerations", |t| set(t, "operator", "Equal"));
}
