//! The address families of a Service: what `ipFamilyPolicy`, `ipFamilies` and `clusterIPs` leave open is settled before
//! addresses are given out. (KEP-563, dual stack.)

use crate::object::ObjectExt as _;
use crate::status::FieldError;
use serde_json::{Value, json};

const POLICY: &str = "spec.ipFamilyPolicy";

fn policy(o: &Value) -> &str {
    o.str_at(POLICY)
}

fn family_of(ip: &str) -> &'static str {
    match crate::validation::sloppy_ip(ip) {
        Some(ip) if ip.is_ipv6() => "IPv6",
        _ => "IPv4",
    }
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

fn same(a: &Value, b: &Value, path: &str) -> bool {
    a.items_at(path) == b.items_at(path)
}

/// An update that leaves a Service of the policy PreferDualStack as it is settles nothing: it may have one family
/// although the cluster has two by now.
fn stays_preferring(new: &Value, old: &Value) -> bool {
    let kind = new.str_at("spec.type");
    policy(new) == "PreferDualStack"
        && matches!(policy(old), "" | "PreferDualStack")
        && old.str_at("spec.type") == kind
        && matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer")
        && same(new, old, "spec.clusterIPs")
        && same(new, old, "spec.ipFamilies")
}

fn truncate(o: &mut Value, field: &str) {
    let list = o.items_at(&format!("spec.{field}")).to_vec();
    if let [first, _, ..] = list.as_slice() {
        o.set_path(&["spec", field], json!([first]));
    }
}

fn complete(mut list: Vec<Value>) -> Vec<Value> {
    if let [Value::String(first)] = list.as_slice() {
        let second = json!(other(first));
        list.push(second);
    }
    list
}

/// Settles policy and families of a Service. `configured` are the cluster's families, the default one first. `old` is
/// the Service before the update.
///
/// # Errors
/// What is wrong with them; of several steps only the first that refuses.
pub fn settle(new: &mut Value, old: Option<&Value>, configured: &[&str]) -> Result<(), Vec<FieldError>> {
    if new.str_at("spec.type") == "ExternalName" || old.is_some_and(|old| stays_preferring(new, old)) {
        return Ok(());
    }
    let selects = new.at("spec.selector").and_then(Value::as_object).is_some_and(|s| !s.is_empty());
    let headless = new.str_at("spec.clusterIP") == "None";
    // It may lead anywhere, also by a family that the cluster has not.
    let anywhere = headless && !selects;
    if new.at(POLICY).is_none_or(Value::is_null) {
        let fallback = if anywhere { "RequireDualStack" } else { "SingleStack" };
        let kept = old.map(policy).filter(|p| !p.is_empty()).unwrap_or(fallback).to_owned();
        new.set_path(&["spec", "ipFamilyPolicy"], json!(kept));
    }
    refuse(crate::validation::service_addresses(new, old))?;
    refuse(match_lists(new, old, configured))?;
    let mut families = new.items_at("spec.ipFamilies").to_vec();
    let default = || configured.iter().take(1).map(|f| json!(f)).collect::<Vec<_>>();
    let single = policy(new) == "SingleStack";
    if !anywhere {
        let mut wrong = Vec::new();
        if policy(new) == "RequireDualStack" && configured.len() < 2 {
            let why = "this cluster is not configured for dual-stack services";
            wrong.push(FieldError::invalid(POLICY, policy(new), why));
        }
        for (n, family) in families.iter().enumerate() {
            if !family.as_str().is_some_and(|f| configured.contains(&f)) {
                let field = format!("spec.ipFamilies[{n}]");
                wrong.push(FieldError::invalid(field, family.clone(), "not configured on this cluster"));
            }
        }
        refuse(wrong)?;
    }
    if families.is_empty() {
        families = default();
    }
    if !single && (anywhere || configured.len() == 2) {
        families = complete(families);
    }
    new.set_path(&["spec", "ipFamilies"], Value::Array(families));
    Ok(())
}

fn refuse(wrong: Vec<FieldError>) -> Result<(), Vec<FieldError>> {
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Brings policy, families and addresses in agreement with each other.
fn match_lists(new: &mut Value, old: Option<&Value>, configured: &[&str]) -> Vec<FieldError> {
    let mut wrong = Vec::new();
    let chosen = policy(new).to_owned();
    let mut say = |why: &str| wrong.push(FieldError::invalid(POLICY, chosen.as_str(), why));
    if let Some(old) = old {
        if chosen == "SingleStack" {
            // Going back to one family by the policy alone is enough.
            let same_ips = same(new, old, "spec.clusterIPs");
            let same_families = same(new, old, "spec.ipFamilies");
            if same_ips {
                truncate(new, "clusterIPs");
            }
            if same_families {
                truncate(new, "ipFamilies");
            }
        } else {
            let reduced = |path: &str| (1..old.items_at(path).len()).contains(&new.items_at(path).len());
            if reduced("spec.clusterIPs") {
                say("must be 'SingleStack' to release the secondary cluster IP");
            }
            if reduced("spec.ipFamilies") {
                say("must be 'SingleStack' to release the secondary IP family");
            }
        }
    }
    if chosen == "SingleStack" {
        let dual = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";
        if new.items_at("spec.clusterIPs").len() == 2 {
            say(&format!("{dual} cluster IPs are specified"));
        }
        if new.items_at("spec.ipFamilies").len() == 2 {
            say(&format!("{dual} IP families are specified"));
        }
    }
    let ips = new.items_at("spec.clusterIPs").to_vec();
    let mut families = new.items_at("spec.ipFamilies").to_vec();
    let before = families.len();
    for (n, ip) in ips.iter().filter_map(Value::as_str).enumerate() {
        if ip == "None" {
            break;
        }
        let family = family_of(ip);
        if n < families.len() {
            continue;
        }
        if configured.contains(&family) {
            families.push(json!(family));
        } else {
            let field = format!("spec.clusterIPs[{n}]");
            let why = format!("{family} is not configured on this cluster");
            wrong.push(FieldError::invalid(field, Value::Array(ips.clone()), why));
        }
    }
    if families.len() > before {
        new.set_path(&["spec", "ipFamilies"], Value::Array(families));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(spec: Value, old: Option<Value>, configured: &[&str]) -> Result<(String, String), String> {
        let mut new = json!({"spec": spec});
        let old = old.map(|spec| json!({"spec": spec}));
        settle(&mut new, old.as_ref(), configured).map_err(|e| e[0].detail.clone())?;
        Ok((policy(&new).to_owned(), new["spec"]["ipFamilies"].to_string()))
    }

    #[test]
    fn new_services() {
        let s = json!({"a": "b"});
        let both = ["IPv4", "IPv6"];
        for (spec, configured, want) in [
            (json!({"type": "ClusterIP"}), &both[..], Ok(("SingleStack", r#"["IPv4"]"#))),
            (
                json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"}),
                &both[..],
                Ok(("PreferDualStack", r#"["IPv4","IPv6"]"#)),
            ),
            (
                json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"}),
                &both[..1],
                Ok(("PreferDualStack", r#"["IPv4"]"#)),
            ),
            (
                json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
                &both[..],
                Ok(("RequireDualStack", r#"["IPv6","IPv4"]"#)),
            ),
            (
                json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"}),
                &both[..1],
                Err("this cluster is not configured for dual-stack services"),
            ),
            (
                json!({"type": "ClusterIP", "ipFamilies": ["IPv6"]}),
                &both[..1],
                Err("not configured on this cluster"),
            ),
            (
                json!({"type": "ClusterIP", "ipFamilies": both}),
                &both[..],
                Err(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
                ),
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
                &both[..],
                Ok(("SingleStack", r#"["IPv6"]"#)),
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
                &both[..1],
                Err("IPv6 is not configured on this cluster"),
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}),
                &both[..1],
                Ok(("RequireDualStack", r#"["IPv4","IPv6"]"#)),
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "selector": s}),
                &both[..],
                Ok(("SingleStack", r#"["IPv4"]"#)),
            ),
        ] {
            let want = want.map(|(a, b)| (a.to_owned(), b.to_owned())).map_err(str::to_owned);
            assert_eq!(settled(spec.clone(), None, configured), want, "{spec}");
        }
    }

    #[test]
    fn changed_services() {
        let both = ["IPv4", "IPv6"];
        let dual = json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": both,
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]});
        let with = |field: &str, value: Value| {
            let mut spec = dual.clone();
            spec[field] = value;
            spec
        };
        let single = json!({"type": "ClusterIP", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]});
        for (new, old, want) in [
            (with("ipFamilyPolicy", json!("SingleStack")), &dual, Ok(r#"["IPv4"]"#)),
            (
                with("ipFamilies", json!(["IPv4"])),
                &dual,
                Err("must be 'SingleStack' to release the secondary IP family"),
            ),
            (
                with("clusterIPs", json!(["10.0.0.1"])),
                &dual,
                Err("must be 'SingleStack' to release the secondary cluster IP"),
            ),
            (
                {
                    let mut s = single.clone();
                    s["ipFamilyPolicy"] = json!("PreferDualStack");
                    s
                },
                &single,
                Ok(r#"["IPv4","IPv6"]"#),
            ),
            // What has preferred two families and got one keeps one.
            (
                {
                    let mut s = single.clone();
                    s["ipFamilyPolicy"] = json!("PreferDualStack");
                    s
                },
                &{
                    let mut s = single.clone();
                    s["ipFamilyPolicy"] = json!("PreferDualStack");
                    s
                },
                Ok(r#"["IPv4"]"#),
            ),
        ] {
            let got = settled(new.clone(), Some(old.clone()), &both).map(|(_, families)| families);
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{new}");
        }
    }
}
