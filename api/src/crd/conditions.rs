//! The status of a definition: which names it gets, and what is said about it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::definition::{Approval, approval_of, is_protected, is_true};
use super::schema::Schema;
use super::structural;
use crate::object::ObjectExt as _;
use crate::text::quote;

/// Which definition of a group has which name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Owners of plural, singular and short names, by group and name.
    resources: BTreeMap<(String, String), BTreeSet<String>>,
    /// Owners of kinds and kinds of lists.
    kinds: BTreeMap<(String, String), BTreeSet<String>>,
    /// What each definition has.
    held: BTreeMap<String, Held>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Held {
    group: String,
    resources: Vec<String>,
    kinds: Vec<String>,
}

impl Claims {
    /// Notes the names that a definition has got; answers whether it gave any up.
    pub fn note(&mut self, crd: &Value) -> bool {
        let empty = json!({});
        let names = crd.at("status.acceptedNames").unwrap_or(&empty);
        let texts = |fields: &[&str]| -> Vec<String> {
            fields.iter().map(|f| names.str_at(f).to_owned()).filter(|n| !n.is_empty()).collect()
        };
        let mut resources = texts(&["plural", "singular"]);
        resources.extend(names.items_at("shortNames").iter().filter_map(Value::as_str).map(str::to_owned));
        let kinds = texts(&["kind", "listKind"]);
        let new = Held { group: crd.str_at("spec.group").to_owned(), resources, kinds };
        if self.held.get(crd.name()) == Some(&new) {
            return false;
        }
        let gave = self.release(crd.name());
        for (map, names) in [(&mut self.resources, &new.resources), (&mut self.kinds, &new.kinds)] {
            for name in names {
                map.entry((new.group.clone(), name.clone())).or_default().insert(crd.name().to_owned());
            }
        }
        self.held.insert(crd.name().to_owned(), new);
        gave
    }

    /// Forgets a definition; answers whether it had any name.
    pub fn release(&mut self, definition: &str) -> bool {
        let Some(held) = self.held.remove(definition) else { return false };
        for (map, names) in [(&mut self.resources, &held.resources), (&mut self.kinds, &held.kinds)] {
            for name in names {
                let key = (held.group.clone(), name.clone());
                if let Some(owners) = map.get_mut(&key) {
                    owners.remove(definition);
                    if owners.is_empty() {
                        map.remove(&key);
                    }
                }
            }
        }
        !held.resources.is_empty() || !held.kinds.is_empty()
    }

    fn is_taken(map: &BTreeMap<(String, String), BTreeSet<String>>, crd: &Value, name: &str) -> bool {
        let owners = map.get(&(crd.str_at("spec.group").to_owned(), name.to_owned()));
        owners.is_some_and(|o| o.iter().any(|owner| owner != crd.name()))
    }

    /// Whether another definition of the group has a plural, singular or short name.
    fn resource(&self, crd: &Value, name: &str) -> bool {
        Self::is_taken(&self.resources, crd, name)
    }

    /// Whether another definition of the group has a kind.
    fn kind(&self, crd: &Value, name: &str) -> bool {
        Self::is_taken(&self.kinds, crd, name)
    }
}

/// A condition without its time.
fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": message})
}

/// Puts a condition into a status. The time tells when its status changed.
pub fn set(status: &mut Value, mut condition: Value, now: &str) {
    if !status.get("conditions").is_some_and(Value::is_array) {
        status["conditions"] = json!([]);
    }
    let Some(all) = status["conditions"].as_array_mut() else { return };
    match all.iter_mut().find(|c| c.get("type") == condition.get("type")) {
        Some(held) => {
            let since = held
                .get("lastTransitionTime")
                .filter(|t| held.get("status") == condition.get("status") && !t.is_null());
            condition["lastTransitionTime"] = since.cloned().unwrap_or_else(|| json!(now));
            *held = condition;
        }
        None => {
            condition["lastTransitionTime"] = json!(now);
            all.push(condition);
        }
    }
}

fn remove(status: &mut Value, kind: &str) {
    if let Some(all) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        all.retain(|c| c.str_at("type") != kind);
    }
}

/// The status that a definition should have; None when it has it.
pub fn wanted(crd: &Value, claims: &Claims, now: &str) -> Option<Value> {
    let held = crd.get("status").cloned().unwrap_or_else(|| json!({}));
    let mut status = held.clone();
    let (accepted, names) = names(crd, claims);
    let good = names.str_at("status") == "True";
    status["acceptedNames"] = accepted;
    set(&mut status, names, now);
    if !is_true(crd, "Established") {
        let established = if good {
            condition("Established", "True", "InitialNamesAccepted", "the initial names have been accepted")
        } else {
            condition("Established", "False", "NotAccepted", "not all names are accepted")
        };
        set(&mut status, established, now);
    }
    match non_structural(crd) {
        Some(c) => set(&mut status, c, now),
        None => remove(&mut status, "NonStructuralSchema"),
    }
    if is_protected(crd.str_at("spec.group")) {
        let (state, why) = approval_of(crd);
        let (value, reason) = match state {
            Approval::Invalid => ("False", "InvalidAnnotation"),
            Approval::Missing => ("False", "MissingAnnotation"),
            Approval::Approved => ("True", "ApprovedAnnotation"),
            Approval::Bypassed => ("False", "UnapprovedAnnotation"),
        };
        set(&mut status, condition("KubernetesAPIApprovalPolicyConformant", value, reason, &why), now);
    }
    (status != held).then_some(status)
}

/// A condition about the deletion of instances.
pub fn terminating(status: bool, reason: &str, message: &str) -> Value {
    condition("Terminating", if status { "True" } else { "False" }, reason, message)
}

/// The names that a definition gets, and the condition that says so.
fn names(crd: &Value, claims: &Claims) -> (Value, Value) {
    let empty = json!({});
    let wanted = crd.at("spec.names").unwrap_or(&empty);
    let held = crd.at("status.acceptedNames").unwrap_or(&empty);
    let mut out: Map<String, Value> = held.as_object().cloned().unwrap_or_default();
    let mut conflict: Option<(&str, String)> = None;
    let in_use = |name: &str| format!("{} is already in use", quote(name));
    for (field, reason) in [("plural", "PluralConflict"), ("singular", "SingularConflict")] {
        let name = wanted.str_at(field);
        if name == held.str_at(field) || !claims.resource(crd, name) {
            out.insert(field.into(), json!(name));
        } else {
            conflict = Some((reason, in_use(name)));
        }
    }
    let texts = |v: &Value| -> Vec<String> {
        v.items_at("shortNames").iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (short, own_short) = (texts(wanted), texts(held));
    let bad: Vec<String> = short
        .iter()
        .filter(|n| !own_short.contains(n) && claims.resource(crd, n))
        .map(|n| in_use(n))
        .collect();
    match bad.as_slice() {
        [] if short.is_empty() => drop(out.remove("shortNames")),
        [] => drop(out.insert("shortNames".into(), json!(short))),
        [one] => conflict = Some(("ShortNamesConflict", one.clone())),
        many => conflict = Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))),
    }
    for (field, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
        let name = wanted.str_at(field);
        if name == held.str_at(field) || !claims.kind(crd, name) {
            out.insert(field.into(), json!(name));
        } else {
            conflict = Some((reason, in_use(name)));
        }
    }
    match wanted.get("categories").filter(|c| c.as_array().is_some_and(|a| !a.is_empty())) {
        Some(categories) => drop(out.insert("categories".into(), categories.clone())),
        None => drop(out.remove("categories")),
    }
    let said = match &conflict {
        Some((reason, message)) => condition("NamesAccepted", "False", reason, message),
        None => condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
    };
    (Value::Object(out), said)
}

fn non_structural(crd: &Value) -> Option<Value> {
    for version in crd.items_at("spec.versions") {
        if let Some(schema) = version.at("schema.openAPIV3Schema")
            && let Err(e) = Schema::parse(schema)
        {
            let name = version.str_at("name");
            let message = format!("failed to check validation schema for version {name}: {e}");
            return Some(condition("NonStructuralSchema", "Unknown", "StructuralError", &message));
        }
    }
    let found: Vec<String> = structural::of_definition(crd).iter().map(ToString::to_string).collect();
    let message = match found.as_slice() {
        [] => return None,
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    Some(condition("NonStructuralSchema", "True", "Violations", &message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(kind: &str, short: &[&str]) -> Value {
        json!({"metadata": {"name": "ws.e.com"}, "spec": {"group": "e.com", "versions": [], "names": {"plural": "ws", "singular": "w", "kind": kind,
            "listKind": format!("{kind}List"), "shortNames": short}}})
    }

    fn reasons(status: &Value) -> Vec<(&str, &str, &str)> {
        status
            .items_at("conditions")
            .iter()
            .map(|c| (c.str_at("type"), c.str_at("status"), c.str_at("reason")))
            .collect()
    }

    #[test]
    fn names_are_accepted_and_kept() {
        let mut crd = definition("W", &["x"]);
        let status = wanted(&crd, &Claims::default(), "t1").expect("a status");
        assert_eq!(status["acceptedNames"], crd["spec"]["names"]);
        assert_eq!(
            reasons(&status),
            [("NamesAccepted", "True", "NoConflicts"), ("Established", "True", "InitialNamesAccepted")]
        );
        crd["status"] = status;
        assert_eq!(wanted(&crd, &Claims::default(), "t2"), None, "nothing more to say");
        let mut taken = Claims::default();
        taken.note(&json!({"metadata": {"name": "o"}, "spec": {"group": "e.com"}, "status": {"acceptedNames": {"plural": "y"}}}));
        crd["spec"]["names"]["shortNames"] = json!(["y"]);
        let status = wanted(&crd, &taken, "t2").expect("a status");
        assert_eq!(status["acceptedNames"]["shortNames"], json!(["x"]));
        assert_eq!(
            reasons(&status),
            [
                ("NamesAccepted", "False", "ShortNamesConflict"),
                ("Established", "True", "InitialNamesAccepted")
            ]
        );
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "t2");
        assert_eq!(status["conditions"][0]["message"], "\"y\" is already in use");
        assert_eq!(status["conditions"][1]["lastTransitionTime"], "t1");
    }

    #[test]
    fn taken_names_are_not_given_twice() {
        let mut taken = Claims::default();
        let mut other = definition("W", &["x"]);
        other["metadata"]["name"] = json!("others.e.com");
        other["status"] = wanted(&other, &taken, "t").expect("a status");
        assert!(!taken.note(&other), "nothing was given up");
        let mut elsewhere = definition("W", &[]);
        elsewhere["spec"]["group"] = json!("f.com");
        assert!(wanted(&elsewhere, &taken, "t").is_some_and(|s| s["conditions"][0]["status"] == "True"));
        let status = wanted(&definition("W", &[]), &taken, "t").expect("a status");
        assert_eq!(
            reasons(&status),
            [("NamesAccepted", "False", "ListKindConflict"), ("Established", "False", "NotAccepted")]
        );
        assert_eq!(status["acceptedNames"].get("kind"), None);
        assert!(taken.release("others.e.com") && !taken.release("others.e.com"));
        assert_eq!(taken, Claims::default());
    }

    #[test]
    fn community_groups_need_approval() {
        let mut crd = definition("W", &[]);
        crd["spec"]["group"] = json!("x.k8s.io");
        let status = wanted(&crd, &Claims::default(), "t").expect("a status");
        assert_eq!(
            reasons(&status).last(),
            Some(&("KubernetesAPIApprovalPolicyConformant", "False", "MissingAnnotation"))
        );
    }
}
