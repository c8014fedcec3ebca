//! Validation of flow schemas and priority levels (KEP-1040).

use super::checks::Errors;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{FieldError, Path};
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");
const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
/// Bits of the hash by which flows are dealt to queues.
const HASH_BITS: u32 = 60;
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

fn given<'a>(o: &'a Value, field: &str) -> Option<&'a Value> {
    o.get(field).filter(|v| !v.is_null())
}

pub fn flow_schema(o: &Value, e: &mut Errors) {
    let n = o.int_at("spec.matchingPrecedence").unwrap_or(0);
    let at = SPEC.child("matchingPrecedence");
    if n <= 0 {
        e.invalid(at, n, "must be a positive value");
    } else if n > PRECEDENCE_MAX {
        e.invalid(at, n, format!("must not be greater than {PRECEDENCE_MAX}"));
    } else if n == 1 && o.name() != "exempt" {
        e.invalid(at, n, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    if let Some(method) = o.at("spec.distinguisherMethod").filter(|m| !m.is_null()) {
        let (types, ty) = (["ByNamespace", "ByUser"], method.str_at("type"));
        if !types.contains(&ty) {
            // Kubernetes shows the whole method.
            let at = SPEC.child("distinguisherMethod");
            e.push(FieldError::not_supported(at.child("type"), serde_json::json!({"Type": ty}), &types));
        }
    }
    let level = SPEC.child("priorityLevelConfiguration");
    match o.str_at("spec.priorityLevelConfiguration.name") {
        "" => e.required(level.child("name"), "must reference a priority level"),
        name => e.all(level.child("name"), name, names::dns1123_subdomain(name)),
    }
    let list = SPEC.child("rules");
    for (i, rule) in o.items_at("spec.rules").iter().enumerate() {
        rules_with_subjects(rule, list.index(i), e);
    }
}

fn rules_with_subjects(rule: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("subjects");
    if rule.items_at("subjects").is_empty() {
        e.required(list, "subjects must contain at least one value");
    }
    for (i, s) in rule.items_at("subjects").iter().enumerate() {
        subject(s, list.index(i), e);
    }
    if rule.items_at("resourceRules").is_empty() && rule.items_at("nonResourceRules").is_empty() {
        e.required(at, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let list = at.child("resourceRules");
    for (i, r) in rule.items_at("resourceRules").iter().enumerate() {
        resource_rule(r, list.index(i), e);
    }
    let list = at.child("nonResourceRules");
    for (i, r) in rule.items_at("nonResourceRules").iter().enumerate() {
        url_rule(r, list.index(i), e);
    }
}

/// Kinds of subjects and the fields that hold them, in the order in which superfluous ones are told.
const SUBJECTS: [(&str, &str); 3] =
    [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];

fn subject(s: &Value, at: Path<'_>, e: &mut Errors) {
    let kind = s.str_at("kind");
    let Some((_, field)) = SUBJECTS.iter().find(|(k, _)| *k == kind) else {
        return e.unsupported(at.child("kind"), kind, &["Group", "ServiceAccount", "User"]);
    };
    let own = at.child(field);
    match given(s, field) {
        None => e.required(own, &format!("{field} is required when subject kind is '{kind}'")),
        Some(named) => {
            let name = named.str_at("name");
            if name.is_empty() {
                e.required(own.child("name"), "");
            } else if kind == "ServiceAccount" && name != "*" {
                e.all(own.child("name"), name, names::dns1123_subdomain(name));
            }
            match named.str_at("namespace") {
                _ if kind != "ServiceAccount" => {}
                "" => e.required(own.child("namespace"), "must specify namespace for service account"),
                namespace => e.all(own.child("namespace"), namespace, names::dns1123_label(namespace)),
            }
        }
    }
    for (other, field) in SUBJECTS.iter().filter(|(k, f)| *k != kind && given(s, f).is_some()) {
        e.forbidden(at.child(field), &format!("{field} is forbidden when subject kind is not '{other}'"));
    }
}

fn wild(items: &[Value]) -> bool {
    items.iter().any(|v| v == "*")
}

/// A list that holds at least one value, and nothing beside `*`.
fn some_or_all(r: &Value, field: &str, missing: &str, others: &str, at: Path<'_>, e: &mut Errors) {
    let items = r.items_at(field);
    if items.is_empty() {
        e.required(at.child(field), missing);
    } else if wild(items) && items.len() > 1 {
        let detail = format!("if '*' is present, must not specify other {others}");
        e.invalid(at.child(field), items.to_vec(), detail);
    }
}

fn verbs(r: &Value, at: Path<'_>, e: &mut Errors) {
    some_or_all(r, "verbs", "verbs must contain at least one value", "verbs", at, e);
    let items = r.items_at("verbs");
    if !wild(items) && items.iter().any(|v| !VERBS.iter().any(|known| v == known)) {
        e.push(FieldError::not_supported(at.child("verbs"), items.to_vec(), &VERBS));
    }
}

fn resource_rule(r: &Value, at: Path<'_>, e: &mut Errors) {
    verbs(r, at, e);
    const GROUPS: &str = "resource rules must supply at least one api group";
    const RESOURCES: &str = "resource rules must supply at least one resource";
    some_or_all(r, "apiGroups", GROUPS, "api groups", at, e);
    some_or_all(r, "resources", RESOURCES, "resources", at, e);
    let items = r.items_at("namespaces");
    let list = at.child("namespaces");
    if items.is_empty() && r.bool_at("clusterScope") != Some(true) {
        let detail = "resource rules that are not cluster scoped must supply at least one namespace";
        e.required(list, detail);
    } else if wild(items) {
        if items.len() > 1 {
            let detail = "if '*' is present, must not specify other namespaces";
            e.invalid(list, items.to_vec(), detail);
        }
    } else {
        for (i, name) in items.iter().filter_map(Value::as_str).enumerate() {
            for why in names::dns1123_label(name) {
                let detail = format!("each member of this list must be '*' or a DNS-1123 label; {why}");
                e.invalid(list.index(i), name, detail);
            }
        }
    }
}

fn url_rule(r: &Value, at: Path<'_>, e: &mut Errors) {
    verbs(r, at, e);
    const MISSING: &str = "nonResourceURLs must contain at least one value";
    some_or_all(r, "nonResourceURLs", MISSING, "non-resource URLs", at, e);
    let items = r.items_at("nonResourceURLs");
    let list = at.child("nonResourceURLs");
    for (i, url) in items.iter().filter_map(Value::as_str).enumerate().filter(|_| !wild(items)) {
        if let Some(why) = url_path(url) {
            e.invalid(list.index(i), url, why);
        }
    }
}

/// What is wrong with a path of a non-resource URL.
fn url_path(path: &str) -> Option<&'static str> {
    let stars = path.matches('*').count();
    match path {
        "" => Some("must not be empty"),
        "/" => None,
        p if !p.starts_with('/') => Some("must start with slash"),
        p if p.contains(' ') => Some("must not contain white-space"),
        p if p.contains("//") => Some("must not contain double slash"),
        p if stars > 1 || (stars == 1 && !p.ends_with("/*")) => Some("wildcard can only do suffix matching"),
        _ => None,
    }
}

pub fn priority_level(o: &Value, e: &mut Errors) {
    let empty = Value::Null;
    let spec = o.get("spec").unwrap_or(&empty);
    let ty = spec.str_at("type");
    if (o.name() == "exempt") != (ty == "Exempt") {
        e.invalid(SPEC.child("type"), ty, "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    match ty {
        "Exempt" => {
            if given(spec, "limited").is_some() {
                e.forbidden(SPEC.child("limited"), "must be nil if the type is not Limited");
            }
            if let Some(exempt) = given(spec, "exempt") {
                let at = SPEC.child("exempt");
                shares(exempt, at, e);
                lendable(exempt, at, e);
            }
        }
        "Limited" => {
            if given(spec, "exempt").is_some() {
                e.forbidden(SPEC.child("exempt"), "must be nil if the type is Limited");
            }
            let at = SPEC.child("limited");
            let Some(limited) = given(spec, "limited") else {
                return e.required(at, "must not be empty when type is Limited");
            };
            shares(limited, at, e);
            limit_response(limited.get("limitResponse").unwrap_or(&empty), at.child("limitResponse"), e);
            lendable(limited, at, e);
            if let Some(n) = limited.int_at("borrowingLimitPercent").filter(|n| *n < 0) {
                let detail = "if specified, must be a non-negative integer";
                e.invalid(at.child("borrowingLimitPercent"), n, detail);
            }
        }
        other => e.unsupported(SPEC.child("type"), other, &["Exempt", "Limited"]),
    }
}

fn shares(o: &Value, at: Path<'_>, e: &mut Errors) {
    if let Some(n) = o.int_at("nominalConcurrencyShares").filter(|n| *n < 0) {
        e.invalid(at.child("nominalConcurrencyShares"), n, "must be a non-negative integer");
    }
}

fn lendable(o: &Value, at: Path<'_>, e: &mut Errors) {
    if let Some(n) = o.int_at("lendablePercent").filter(|n| !(0..=100).contains(n)) {
        e.invalid(at.child("lendablePercent"), n, "must be between 0 and 100, inclusive");
    }
}

fn limit_response(response: &Value, at: Path<'_>, e: &mut Errors) {
    let queuing = given(response, "queuing");
    match (response.str_at("type"), queuing) {
        ("Reject", Some(_)) => {
            e.forbidden(at.child("queuing"), "must be nil if limited.limitResponse.type is not Limited");
        }
        ("Queue", None) => {
            e.required(at.child("queuing"), "must not be empty if limited.limitResponse.type is Limited");
        }
        ("Queue", Some(queuing)) => queues(queuing, at.child("queuing"), e),
        ("Reject", None) => {}
        (other, _) => e.unsupported(at.child("type"), other, &["Queue", "Reject"]),
    }
}

fn queues(queuing: &Value, at: Path<'_>, e: &mut Errors) {
    let n = |f: &str| queuing.int_at(f).unwrap_or(0);
    let (queues, hand) = (n("queues"), n("handSize"));
    for field in ["queueLengthLimit", "queues"].into_iter().filter(|f| n(f) <= 0) {
        e.invalid(at.child(field), n(field), "must be positive");
    }
    if queues > QUEUES_MAX {
        e.invalid(at.child("queues"), queues, format!("must not be greater than {QUEUES_MAX}"));
    }
    let at = at.child("handSize");
    if hand <= 0 {
        e.invalid(at, hand, "must be positive");
    } else if hand > queues {
        e.invalid(at, hand, format!("should not be greater than queues ({queues})"));
    } else if entropy_bits(queues, hand) > HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        e.invalid(at, hand, detail);
    }
}

/// Bits that dealing `hand` of `deck` cards takes.
fn entropy_bits(deck: i64, hand: i64) -> u32 {
    ((deck as f64).log2() * hand as f64).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for good in ["/", "/a", "/a/*", "/*"] {
            assert_eq!(url_path(good), None, "{good}");
        }
        for bad in ["", "a", "/a b", "/a//b", "/*a", "/*/*"] {
            assert!(url_path(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn entropy() {
        assert_eq!(entropy_bits(64, 8), 48);
        assert_eq!(entropy_bits(2_147_483_647, 2), 62);
        assert_eq!(entropy_bits(1, 1), 0);
    }
}
