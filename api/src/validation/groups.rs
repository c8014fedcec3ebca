//! Validation of the smaller groups.

use super::checks::{Errors, NOT_NEGATIVE, percent};
use super::scheduling;
use crate::names;
use crate::object::{Labels, ObjectExt as _};
use crate::status::{BadValue, Path};
use crate::text::quote;
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");
const ROOT: Path<'static> = Path::ROOT;
const RBAC: &str = "rbac.authorization.k8s.io";

pub fn disruption_budget(o: &Value, e: &mut Errors) {
    let empty = Value::Null;
    let s = o.get("spec").unwrap_or(&empty);
    let (min, max) = (s.get("minAvailable"), s.get("maxUnavailable"));
    if min.is_some() && max.is_some() {
        let shown = BadValue::internal("policy.PodDisruptionBudgetSpec", Some(s));
        e.invalid(SPEC, shown, "minAvailable and maxUnavailable cannot be both set");
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
    let at = SPEC.child("unhealthyPodEvictionPolicy");
    e.known(at, s.get("unhealthyPodEvictionPolicy"), &["AlwaysAllow", "IfHealthyBudget"]);
}

pub fn lease(o: &Value, e: &mut Errors) {
    if let Some(n) = o.int_at("spec.leaseDurationSeconds").filter(|n| *n <= 0) {
        e.invalid(SPEC.child("leaseDurationSeconds"), n, "must be greater than 0");
    }
    if let Some(n) = o.int_at("spec.leaseTransitions").filter(|n| *n < 0) {
        e.invalid(SPEC.child("leaseTransitions"), n, NOT_NEGATIVE);
    }
    let strategy = o.str_at("spec.strategy");
    if !strategy.is_empty() {
        match strategy.split_once('/') {
            Some(_) => super::networking::domain_path(strategy, SPEC.child("strategy"), e),
            None if strategy == "OldestEmulationVersion" => {}
            None => e.invalid(SPEC.child("strategy"), strategy, "must be a fully qualified name"),
        }
    } else if !o.str_at("spec.preferredHolder").is_empty() {
        let detail = "may only be specified if `strategy` is defined";
        e.forbidden(SPEC.child("preferredHolder"), detail);
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
                    if !super::checks::selector_parses(s) {
                        e.invalid(list.index(i), Value::Null, "invalid label selector.");
                    }
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
        e.invalid(at, BadValue::internal("rbac.RoleRef", Some(role)), "cannot change roleRef");
    }
}

pub fn priority_class(o: &Value, old: Option<&Value>, e: &mut Errors) {
    if let Some(old) = old {
        if old.int_at("value") != o.int_at("value") {
            e.forbidden(ROOT.child("value"), "may not be changed in an update.");
        }
        return e.immutable(ROOT, "*string", o, old, "preemptionPolicy");
    }
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
    e.one_of(ROOT.child("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
}

pub fn runtime_class(o: &Value, old: Option<&Value>, e: &mut Errors) {
    match o.str_at("handler") {
        "" => e.required(ROOT.child("handler"), ""),
        handler => e.all(ROOT.child("handler"), handler, names::dns1123_label(handler)),
    }
    if let Some(overhead) = o.get("overhead").filter(|v| !v.is_null()) {
        let limits = serde_json::json!({"limits": overhead.get("podFixed")});
        super::handlers::requirements(&limits, ROOT.child("overhead"), None, e);
    }
    if let Some(s) = o.get("scheduling").filter(|s| !s.is_null()) {
        let at = ROOT.child("scheduling");
        e.label_map(at.child("nodeSelector"), Labels::new(s.get("nodeSelector").and_then(Value::as_object)));
        scheduling::tolerations(s, at, e);
        let list = at.child("tolerations");
        let all = s.items_at("tolerations");
        for (i, t) in all.iter().enumerate().filter(|(i, t)| all[..*i].contains(t)) {
            e.duplicate(list.index(i), BadValue::internal("core.Toleration", Some(t)));
        }
    }
    if let Some(old) = old {
        e.immutable(ROOT, "string", o, old, "handler");
    }
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

/// What keys of certificates may be used for.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// `example.com/name` of a signer: a domain of at least two labels, and a path that could be a name.
fn signer_name(signer: &str, at: Path<'_>, e: &mut Errors) {
    if signer.is_empty() {
        e.required(at, "");
        return;
    }
    let parts: Vec<&str> = signer.split('/').collect();
    let [domain, path] = parts.as_slice() else {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        e.invalid(at, signer, detail);
        return;
    };
    if domain.len() > 253 {
        e.push(crate::status::FieldError::too_long(at, 253));
    }
    // Of the parts that are wrong only the first is told.
    let first = |text: &str, rule: fn(&str) -> Vec<String>| {
        let told = |label: &str| {
            rule(label)
                .into_iter()
                .map(|m| format!("validating label {}: {m}", quote(label)))
                .collect::<Vec<_>>()
        };
        text.split('.').map(told).find(|wrong| !wrong.is_empty()).unwrap_or_default()
    };
    e.all(at, domain, first(domain, names::dns1123_label));
    if domain.split('.').count() < 2 {
        e.invalid(at, *domain, "should be a domain with at least two segments separated by dots");
    }
    e.all(at, path, first(path, names::dns1123_subdomain));
    // A domain, and a path made of a label and a subdomain.
    const LONGEST: usize = 253 + 1 + 63 + 1 + 253;
    if signer.len() > LONGEST {
        e.push(crate::status::FieldError::too_long(at, LONGEST));
    }
}

/// Whether base64 text is the PEM of a request (PKCS#10) that is signed with its own key.
fn signed_request(text: &str) -> Result<(), String> {
    use base64::Engine as _;
    use x509_parser::prelude::{FromDer as _, X509CertificationRequest};
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let pem = x509_parser::pem::Pem::iter_from_buffer(&bytes).find_map(Result::ok);
    let Some(pem) = pem.filter(|pem| pem.label == "CERTIFICATE REQUEST") else {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    let (rest, request) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|e| format!("asn1: structure error: {e}"))?;
    if !rest.is_empty() {
        return Err("asn1: syntax error: trailing data".to_owned());
    }
    match request.verify_signature() {
        // A kind of key that is not known here may be known to the signer.
        Ok(()) | Err(x509_parser::error::X509Error::SignatureUnsupportedAlgorithm) => Ok(()),
        Err(_) => Err("x509: certificate request is not signed with its own key".to_owned()),
    }
}

pub fn signing_request(o: &Value, e: &mut Errors) {
    let request = o.str_at("spec.request");
    if let Err(why) = signed_request(request) {
        e.invalid(SPEC.child("request"), request, why);
    }
    let usages: Vec<&str> = o.items_at("spec.usages").iter().filter_map(Value::as_str).collect();
    let list = SPEC.child("usages");
    if usages.is_empty() {
        e.required(list, "");
    }
    for (i, usage) in usages.iter().enumerate().filter(|(_, u)| !USAGES.contains(u)) {
        e.unsupported(list.index(i), usage, &USAGES);
    }
    for (i, usage) in usages.iter().enumerate().filter(|(i, u)| usages[..*i].contains(u)) {
        e.duplicate(list.index(i), *usage);
    }
    let signer = o.str_at("spec.signerName");
    if signer == "kubernetes.io/legacy-unknown" {
        let detail = "the legacy signerName is not allowed via this API version";
        e.invalid(SPEC.child("signerName"), signer, detail);
    } else {
        signer_name(signer, SPEC.child("signerName"), e);
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

/// What a status or approval may not do to the conditions and the certificate of a signing request.
pub fn request_update(new: &Value, old: &Value, subresource: &str, e: &mut Errors) {
    let at = Path::new("status.conditions");
    let of = |o: &Value, ty: &str| -> Vec<Value> {
        o.items_at("status.conditions").iter().filter(|c| c.str_at("type") == ty).cloned().collect()
    };
    for ty in ["Approved", "Denied", "Failed"] {
        if of(new, ty).len() < of(old, ty).len() {
            e.forbidden(at, &format!("updates may not remove a condition of type \"{ty}\""));
        }
    }
    for ty in ["Approved", "Denied"].into_iter().filter(|_| subresource != "approval") {
        let (now, before) = (of(new, ty), of(old, ty));
        if now.len() > before.len() {
            e.forbidden(at, &format!("updates may not add a condition of type \"{ty}\""));
        } else if now.len() == before.len() && now != before {
            e.forbidden(at, &format!("updates may not modify a condition of type \"{ty}\""));
        }
    }
    let certificate = |o: &Value| o.str_at("status.certificate").to_owned();
    if certificate(new) != certificate(old) {
        let at = Path::new("status.certificate");
        if subresource != "status" {
            e.forbidden(at, "updates may not set certificate content");
        } else if !certificate(old).is_empty() {
            e.forbidden(at, "updates may not modify existing certificate content");
        }
    }
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
            "True" | "False" | "Unknown" => {}
            s => e.unsupported(item.child("status"), s, &["False", "True", "Unknown"]),
        }
        if matches!(ty, "Approved" | "Denied") {
            if decided.iter().any(|d| *d != ty) {
                let detail = "Approved and Denied conditions are mutually exclusive";
                e.invalid(list, ty, detail);
            }
            decided.push(ty);
        }
        if o.items_at("status.conditions")[..i].iter().any(|c| c.str_at("type") == ty) {
            e.duplicate(item.child("type"), ty);
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
