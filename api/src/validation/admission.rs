//! Validation of webhook configurations and admission policies; `expressions` compiles what is CEL.

use super::checks::Errors;
use super::expressions::{Policy, match_conditions};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};
use serde_json::{Value, json};

const SPEC: Path<'static> = Path::new("spec");
const ROOT: Path<'static> = Path::ROOT;

pub fn kind(kind: &str, o: &Value, e: &mut Errors) {
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            webhooks(kind.starts_with("Mutating"), o, e);
        }
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => policy(kind, o, e),
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => binding(kind, o, e),
        _ => {}
    }
}

fn policy(kind: &str, o: &Value, e: &mut Errors) {
    let at = SPEC.child("failurePolicy");
    match o.at("spec.failurePolicy").filter(|p| !p.is_null()) {
        None => e.required(at, ""),
        policy => e.known(at, policy, &["Fail", "Ignore"]),
    }
    if let Some(param) = o.at("spec.paramKind").filter(|p| !p.is_null()) {
        param_kind(param, SPEC.child("paramKind"), e);
    }
    let constraints = SPEC.child("matchConstraints");
    match o.at("spec.matchConstraints").filter(|m| !m.is_null()) {
        None => e.required(constraints, ""),
        Some(m) => {
            match_resources(m, constraints, e);
            if m.items_at("resourceRules").is_empty() {
                e.required(constraints.child("resourceRules"), "");
            }
            if kind.starts_with("Mutating") {
                mutable_operations(m, constraints, e);
            }
        }
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
    let resources = o.at("spec.matchResources").filter(|m| !m.is_null());
    if let Some(reference) = o.at("spec.paramRef").filter(|p| !p.is_null()) {
        param_ref(reference, SPEC.child("paramRef"), e);
    }
    if let Some(m) = resources {
        let at = SPEC.child("matchResources");
        match_resources(m, at, e);
        if kind.starts_with("Mutating") {
            mutable_operations(m, at, e);
        }
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
            e.unsupported(at.index(i), action, &["Audit", "Deny", "Warn"]);
        }
        if actions[..i].contains(action) {
            e.duplicate(at.index(i), *action);
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        e.invalid(at, json!(actions), detail);
    }
}

/// The parameters of a binding: one object by name, or all that a selector selects.
fn param_ref(reference: &Value, at: Path<'_>, e: &mut Errors) {
    let (name, selector) = (reference.str_at("name"), reference.get("selector").filter(|s| !s.is_null()));
    const BOTH: &str = "name and selector are mutually exclusive";
    if !name.is_empty() {
        e.all(at.child("name"), name, names::path_segment(name));
        if selector.is_some() {
            e.forbidden(at.child("name"), BOTH);
        }
    }
    if let Some(selector) = selector {
        e.selector(at.child("selector"), Some(selector));
        if !name.is_empty() {
            e.forbidden(at.child("selector"), BOTH);
        }
    }
    if name.is_empty() && selector.is_none() {
        e.required(at, "one of name or selector must be specified");
    }
    let action = at.child("parameterNotFoundAction");
    match reference.get("parameterNotFoundAction").and_then(Value::as_str) {
        None | Some("") => e.required(action, ""),
        Some("Deny" | "Allow") => {}
        Some(other) => e.unsupported(action, other, &["Deny", "Allow"]),
    }
}

/// The kind of a policy's parameters.
fn param_kind(param: &Value, at: Path<'_>, e: &mut Errors) {
    let (version, kind) = (param.str_at("apiVersion"), param.str_at("kind"));
    let version_at = at.child("apiVersion");
    match version.split('/').collect::<Vec<&str>>().as_slice() {
        [""] => e.required(version_at, ""),
        [version] => joined(version_at, version, "", names::dns1035_label(version), e),
        [group, version] => {
            if !group.is_empty() {
                joined(version_at, group, "", names::dns1123_subdomain(group), e);
            }
            if version.is_empty() {
                e.invalid(version_at, param.str_at("apiVersion"), "version must be specified");
            } else {
                joined(version_at, version, "", names::dns1035_label(version), e);
            }
        }
        _ => {
            let detail = format!("unexpected GroupVersion string: {version}");
            e.invalid(version_at, version, detail);
        }
    }
    let at = at.child("kind");
    if kind.is_empty() {
        return e.required(at, "");
    }
    let lower = kind.to_lowercase();
    let why = "may have mixed case, but should otherwise match: ";
    joined(at, kind, why, names::dns1035_label(&lower), e);
}

/// One error for all messages about a name.
fn joined(at: Path<'_>, shown: &str, why: &str, messages: Vec<String>, e: &mut Errors) {
    if !messages.is_empty() {
        e.invalid(at, shown, format!("{why}{}", messages.join(",")));
    }
}

/// Only what is written can be changed on its way.
fn mutable_operations(m: &Value, at: Path<'_>, e: &mut Errors) {
    let known = ["*", "CONNECT", "CREATE", "UPDATE"];
    let at = at.child("resourceRules.operations");
    for rule in m.items_at("resourceRules") {
        for operation in rule.items_at("operations").iter().filter_map(Value::as_str) {
            if !known.contains(&operation) {
                e.unsupported(at, operation, &known);
            }
        }
    }
}

/// What a policy or a binding matches.
fn match_resources(m: &Value, at: Path<'_>, e: &mut Errors) {
    match m.get("matchPolicy").filter(|p| !p.is_null()) {
        None => e.required(at.child("matchPolicy"), ""),
        policy => e.known(at.child("matchPolicy"), policy, &["Equivalent", "Exact"]),
    }
    e.selector(at.child("namespaceSelector"), m.get("namespaceSelector"));
    e.selector(at.child("objectSelector"), m.get("objectSelector"));
    for field in ["resourceRules", "excludeResourceRules"] {
        let list = at.child(field);
        for (i, rule) in m.items_at(field).iter().enumerate() {
            let item = list.index(i);
            let names_at = item.child("resourceNames");
            let all = rule.items_at("resourceNames");
            for (j, name) in all.iter().filter_map(Value::as_str).enumerate() {
                e.all(names_at.index(j), name, names::path_segment(name));
                if all[..j].iter().any(|n| n == name) {
                    e.duplicate(names_at.index(j), name);
                }
            }
            webhook_rule(rule, item, e);
        }
    }
}

fn webhooks(mutating: bool, o: &Value, e: &mut Errors) {
    let list = ROOT.child("webhooks");
    let mut seen = Vec::new();
    for (i, hook) in o.items_at("webhooks").iter().enumerate() {
        let item = list.index(i);
        let name = hook.str_at("name");
        let messages = names::dns1123_subdomain(name);
        if name.is_empty() {
            e.required(item.child("name"), "");
        } else if !messages.is_empty() {
            e.all(item.child("name"), name, messages);
        } else if name.split('.').count() < 3 {
            let detail = "should be a domain with at least three segments separated by dots";
            e.invalid(item.child("name"), name, detail);
        }
        let rules = item.child("rules");
        for (j, rule) in hook.items_at("rules").iter().enumerate() {
            webhook_rule(rule, rules.index(j), e);
        }
        e.known(item.child("failurePolicy"), hook.get("failurePolicy"), &["Fail", "Ignore"]);
        e.known(item.child("matchPolicy"), hook.get("matchPolicy"), &["Equivalent", "Exact"]);
        match hook.get("sideEffects").and_then(Value::as_str) {
            None => e.required(item.child("sideEffects"), "must specify one of None, NoneOnDryRun"),
            Some("None" | "NoneOnDryRun") => {}
            Some(other) => e.unsupported(item.child("sideEffects"), other, &["None", "NoneOnDryRun"]),
        }
        if let Some(n) = hook.int_at("timeoutSeconds").filter(|n| !(1..=30).contains(n)) {
            e.invalid(item.child("timeoutSeconds"), n, "the timeout value must be between 1 and 30 seconds");
        }
        e.selector(item.child("namespaceSelector"), hook.get("namespaceSelector"));
        e.selector(item.child("objectSelector"), hook.get("objectSelector"));
        if mutating && let Some(policy) = hook.get("reinvocationPolicy").and_then(Value::as_str) {
            let policies = ["IfNeeded", "Never"];
            if !policies.contains(&policy) {
                e.unsupported(item.child("reinvocationPolicy"), policy, &policies);
            }
        }
        let url = hook.at("clientConfig.url").filter(|u| !u.is_null());
        let service = hook.at("clientConfig.service").filter(|s| !s.is_null());
        let client = item.child("clientConfig");
        match (url, service) {
            (Some(url), None) => e.extend(webhook_url(url.as_str().unwrap_or(""), client.child("url"))),
            (None, Some(service)) => webhook_service(service, client.child("service"), e),
            _ => e.required(client, "exactly one of url or service is required"),
        }
        match_conditions(hook.items_at("matchConditions"), item.child("matchConditions"), false, e);
        review_versions(hook, item.child("admissionReviewVersions"), e);
        if !name.is_empty() {
            if seen.contains(&name) {
                e.duplicate(item.child("name"), name);
            }
            seen.push(name);
        }
    }
}

fn review_versions(hook: &Value, at: Path<'_>, e: &mut Errors) {
    let versions: Vec<&str> =
        hook.items_at("admissionReviewVersions").iter().filter_map(Value::as_str).collect();
    if versions.is_empty() {
        e.required(at, "must specify one of v1, v1beta1");
        return;
    }
    for (i, version) in versions.iter().enumerate() {
        if versions[..i].contains(version) {
            e.invalid(at.index(i), *version, "duplicate version");
            continue;
        }
        e.all(at.index(i), version, names::dns1035_label(version));
    }
    if !versions.iter().any(|v| matches!(*v, "v1" | "v1beta1")) {
        e.invalid(at, json!(versions), "must include at least one of v1, v1beta1");
    }
}

/// Where a webhook is: only a host and a path.
pub fn webhook_url(text: &str, at: Path<'_>) -> Vec<FieldError> {
    let mut e = Errors::default();
    const FORM: &str = "; desired format: https://host[/path]";
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", rest));
    if scheme != "https" {
        e.invalid(at, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or("") };
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(u, h)| (u, h));
    if host.is_empty() {
        e.invalid(at, host, format!("host must be specified{FORM}"));
    }
    for (part, detail) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            e.invalid(at, part, detail);
        }
    }
    e.into_vec()
}

fn webhook_service(service: &Value, at: Path<'_>, e: &mut Errors) {
    // Kubernetes passes name and namespace in the wrong order, so that each is told as the other.
    for (field, shown) in [("namespace", "name"), ("name", "namespace")] {
        if service.str_at(field).is_empty() {
            e.required(at.child(shown), "");
        }
    }
    let port = service.int_at("port").unwrap_or(443);
    let messages = names::port_number(port);
    if !messages.is_empty() {
        e.invalid(at.child("port"), port, format!("port is not valid: {}", messages.join(", ")));
    }
    let path = service.str_at("path");
    let at = at.child("path");
    match path {
        "" | "/" => return,
        "//" => {
            e.invalid(at, path, "segment[0] may not be empty");
            return;
        }
        _ => {}
    }
    if !path.starts_with('/') {
        e.invalid(at, path, "must start with a '/'");
    }
    let inner: String = path.chars().skip(1).collect();
    let inner = inner.strip_suffix('/').unwrap_or(&inner);
    for (i, step) in inner.split('/').enumerate() {
        if step.is_empty() {
            e.invalid(at, path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for message in names::dns1123_subdomain(step) {
            e.invalid(at, path, format!("segment[{i}]: {message}"));
        }
    }
}

fn webhook_rule(rule: &Value, at: Path<'_>, e: &mut Errors) {
    let operations = at.child("operations");
    let all = rule.items_at("operations");
    if all.is_empty() {
        e.required(operations, "");
    }
    if all.len() > 1 && all.iter().any(|o| o == "*") {
        let detail = "if '*' is present, must not specify other operations";
        e.invalid(operations, rule["operations"].clone(), detail);
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
    let versions = at.child("apiVersions");
    for (i, _) in rule.items_at("apiVersions").iter().enumerate().filter(|(_, v)| *v == "") {
        e.required(versions.index(i), "");
    }
    rule_resources(rule, at.child("resources"), e);
    e.known(at.child("scope"), rule.get("scope"), &["*", "Cluster", "Namespaced"]);
}

/// Resources and subresources, of which wildcards must not cover others.
fn rule_resources(rule: &Value, at: Path<'_>, e: &mut Errors) {
    let all: Vec<&str> = rule.items_at("resources").iter().filter_map(Value::as_str).collect();
    if all.is_empty() {
        e.required(at, "");
    }
    let (mut whole, mut every) = (Vec::new(), Vec::new());
    let mut plain = false;
    for (i, text) in all.iter().enumerate() {
        if text.is_empty() {
            e.required(at.index(i), "");
            continue;
        }
        let Some((resource, sub)) = text.split_once('/') else {
            plain = *text != "*";
            continue;
        };
        if whole.contains(&resource) {
            e.invalid(at.index(i), *text, format!("if '{resource}/*' is present, must not specify {text}"));
        }
        if every.contains(&sub) {
            e.invalid(at.index(i), *text, format!("if '*/{sub}' is present, must not specify {text}"));
        }
        if sub == "*" {
            whole.push(resource);
        }
        if resource == "*" {
            every.push(sub);
        }
    }
    if all.len() > 1 && all.contains(&"*/*") {
        e.invalid(at, json!(all), "if '*/*' is present, must not specify other resources");
    }
    if all.contains(&"*") && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        e.invalid(at, json!(all), detail);
    }
}
