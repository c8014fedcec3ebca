//! Validation of webhook configurations and admission policies; `expressions` compiles what is CEL.

use super::checks::Errors;
use super::expressions::{Policy, match_conditions};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::{Value, json};

const SPEC: Path<'static> = Path::new("spec");
const ROOT: Path<'static> = Path::ROOT;

pub fn kind(kind: &str, o: &Value, e: &mut Errors) {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => webhooks(o, e),
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => policy(kind, o, e),
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => binding(kind, o, e),
        _ => {}
    }
}

fn policy(kind: &str, o: &Value, e: &mut Errors) {
    let failure = o.str_at("spec.failurePolicy");
    e.one_of(SPEC.child("failurePolicy"), failure, &["Fail", "Ignore"]);
    if let Some(param) = o.at("spec.paramKind").filter(|p| !p.is_null()) {
        let at = SPEC.child("paramKind");
        for field in ["apiVersion", "kind"].into_iter().filter(|f| param.str_at(f).is_empty()) {
            e.required(at.child(field), "");
        }
    }
    let constraints = SPEC.child("matchConstraints");
    match o.at("spec.matchConstraints").filter(|m| !m.is_null()) {
        None => e.required(constraints, ""),
        Some(m) => match_resources(m, constraints, true, e),
    }
    let expressions = Policy::begin(o, e);
    if kind.starts_with("Validating") {
        if o.items_at("spec.validations").is_empty() && o.items_at("spec.auditAnnotations").is_empty() {
            let detail = "validations or auditAnnotations must contain at least one item";
            e.required(SPEC.child("validations"), detail);
            e.required(SPEC.child("auditAnnotations"), detail);
        }
        expressions.validations(e);
    } else {
        if o.items_at("spec.mutations").is_empty() {
            e.required(SPEC.child("mutations"), "mutations must contain at least one item");
        }
        expressions.mutations(e);
        let policy = o.str_at("spec.reinvocationPolicy");
        e.one_of(SPEC.child("reinvocationPolicy"), policy, &["IfNeeded", "Never"]);
    }
}

fn binding(kind: &str, o: &Value, e: &mut Errors) {
    match o.str_at("spec.policyName") {
        "" => e.required(SPEC.child("policyName"), ""),
        name => e.all(SPEC.child("policyName"), name, names::dns1123_subdomain(name)),
    }
    if let Some(m) = o.at("spec.matchResources").filter(|m| !m.is_null()) {
        match_resources(m, SPEC.child("matchResources"), false, e);
    }
    if kind.starts_with("Mutating") {
        return;
    }
    let at = SPEC.child("validationActions");
    let actions: Vec<&str> = o.items_at("spec.validationActions").iter().filter_map(Value::as_str).collect();
    if actions.is_empty() {
        e.required(at, "at least one validation action is required");
    }
    for (i, action) in actions.iter().enumerate() {
        if !matches!(*action, "Audit" | "Deny" | "Warn") {
            e.unsupported(at, action, &["Audit", "Deny", "Warn"]);
        }
        if actions[..i].contains(action) {
            e.duplicate(at, *action);
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        e.invalid(at, json!(actions), detail);
    }
}

/// What a policy or a binding matches.
fn match_resources(m: &Value, at: Path<'_>, rules_required: bool, e: &mut Errors) {
    e.selector(at.child("namespaceSelector"), m.get("namespaceSelector"));
    e.selector(at.child("objectSelector"), m.get("objectSelector"));
    let list = at.child("resourceRules");
    if rules_required && m.items_at("resourceRules").is_empty() {
        e.required(list, "");
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        let list = at.child(field);
        for (i, rule) in m.items_at(field).iter().enumerate() {
            webhook_rule(rule, list.index(i), e);
        }
    }
    e.one_of(at.child("matchPolicy"), m.str_at("matchPolicy"), &["Equivalent", "Exact"]);
}

fn webhooks(o: &Value, e: &mut Errors) {
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
        match_conditions(hook.items_at("matchConditions"), item.child("matchConditions"), false, e);
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
