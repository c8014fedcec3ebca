//! The default RBAC policy: `policy.txt` as objects, and the few roles that are Hawser's own. Pure.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::authz::node::GROUP_NODES;
use crate::authz::rule::PolicyRule;
use crate::pki::KUBELET_CLIENT_GROUP;
use crate::tokens::node_token::GROUP_NODE_TOKENS;

const TABLE: &str = include_str!("policy.txt");
const OWN_TABLE: &str = include_str!("policy_hawser.txt");
/// As Kubernetes has them where `StorageVersionMigrator` is on.
const MIGRATION_TABLE: &str = "\
clusterrole system:controller:storage-version-migrator-controller
  *  *  create,list,patch
  apiextensions.k8s.io  customresourcedefinitions  get
  apiextensions.k8s.io  customresourcedefinitions/status  patch
  storagemigration.k8s.io  storageversionmigrations/status  update
clusterbinding system:controller:storage-version-migrator-controller -> \
system:controller:storage-version-migrator-controller : sa:kube-system/storage-version-migrator-controller
";
const RBAC: &str = "rbac.authorization.k8s.io";

/// ServiceAccount (in `kube-system`) that a node's dataplane acts as. Nodes may ask for its tokens, bound to
/// their own Node object; the account may read what a service proxy needs.
pub const DATAPLANE_ACCOUNT: &str = "hawser-dataplane";
/// The same for a node's DNS server.
pub const DNS_ACCOUNT: &str = "hawser-dns";
/// Every account of a node's own parts.
pub const NODE_ACCOUNTS: [&str; 2] = [DATAPLANE_ACCOUNT, DNS_ACCOUNT];

/// A line of a policy table that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy table, line {line}: {text:?}")]
pub struct PolicyError {
    /// Line number from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

/// Every default role and binding as objects, those of Kubernetes first. `storage_migration`: with the role of the
/// controller that migrates what is stored.
///
/// # Errors
/// For a malformed table; the tests read them whole.
pub fn objects(storage_migration: bool) -> Result<Vec<Value>, PolicyError> {
    let mark = Some(("kubernetes.io/bootstrapping", "rbac-defaults"));
    let mut objects = parse(TABLE, mark)?;
    if storage_migration {
        objects.extend(parse(MIGRATION_TABLE, mark)?);
    }
    let substituted = OWN_TABLE
        .replace("$NODE_TOKENS", GROUP_NODE_TOKENS)
        .replace("$KUBELET_CLIENTS", KUBELET_CLIENT_GROUP)
        .replace("$NODES", GROUP_NODES)
        .replace("$DATAPLANE", DATAPLANE_ACCOUNT)
        .replace("$DNS", DNS_ACCOUNT);
    let own = parse(&substituted, None)?;
    objects.push(controller_manager_role(&objects));
    objects.extend(own);
    Ok(objects)
}

/// The static rules of nodes.
///
/// # Errors
/// For a malformed table.
pub fn node_rules() -> Result<Vec<PolicyRule>, PolicyError> {
    let objects = parse(TABLE, None)?;
    Ok(objects.iter().filter(|o| o["metadata"]["name"] == "system:node").flat_map(rules_of).collect())
}

fn rules_of(role: &Value) -> Vec<PolicyRule> {
    role.get("rules").and_then(|rules| serde_json::from_value(rules.clone()).ok()).unwrap_or_default()
}

/// All controllers run in one process under one name: that name holds what the single controllers hold. Who may
/// update may patch here: Hawser's controllers send the difference where Kubernetes' send the whole object.
fn controller_manager_role(objects: &[Value]) -> Value {
    let of_controllers = objects.iter().filter(|o| {
        let name = o["metadata"]["name"].as_str().unwrap_or("");
        o["kind"] == "ClusterRole" && name.starts_with("system:controller:")
    });
    let with_patch = |mut rule: PolicyRule| {
        if rule.verbs.iter().any(|v| v == "update") && !rule.verbs.iter().any(|v| v == "patch") {
            rule.verbs.push("patch".to_owned());
        }
        rule
    };
    let rules: BTreeSet<PolicyRule> = of_controllers.flat_map(rules_of).map(with_patch).collect();
    let mut role = object("ClusterRole", "hawser:controllers", None, &[], None);
    role["rules"] = json!(rules);
    role
}

fn object(
    kind: &str,
    name: &str,
    namespace: Option<&str>,
    labels: &[&str],
    mark: Option<(&str, &str)>,
) -> Value {
    let mut object = json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": kind,
        "metadata": {"name": name, "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}},
    });
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = json!(namespace);
    }
    for (key, value) in mark.into_iter().chain(labels.iter().map(|&label| (label, "true"))) {
        object["metadata"]["labels"][key] = json!(value);
    }
    object
}

fn parse(table: &str, mark: Option<(&str, &str)>) -> Result<Vec<Value>, PolicyError> {
    let mut objects: Vec<Value> = Vec::new();
    for (index, line) in table.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let error = || PolicyError { line: index + 1, text: line.to_owned() };
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            let rule = parse_rule(&words).ok_or_else(error)?;
            let role = objects.last_mut().ok_or_else(error)?;
            if role.get("rules").is_none() {
                role["rules"] = json!([]);
            }
            role["rules"].as_array_mut().ok_or_else(error)?.push(json!(rule));
            continue;
        }
        objects.push(match words.as_slice() {
            ["clusterrole", name, options @ ..] => {
                let labels: Vec<_> = options.iter().filter_map(|o| o.strip_prefix("label=")).collect();
                let mut role = object("ClusterRole", name, None, &labels, mark);
                if let Some(key) = options.iter().find_map(|o| o.strip_prefix("aggregate=")) {
                    role["aggregationRule"] =
                        json!({"clusterRoleSelectors": [{"matchLabels": {key: "true"}}]});
                }
                role
            }
            ["role", namespace, name] => object("Role", name, Some(namespace), &[], mark),
            ["clusterbinding", name, "->", role, rest @ ..] => {
                let binding = object("ClusterRoleBinding", name, None, &[], mark);
                bind(binding, "ClusterRole", role, rest).ok_or_else(error)?
            }
            ["binding", namespace, name, "->", role, rest @ ..] => {
                let binding = object("RoleBinding", name, Some(namespace), &[], mark);
                bind(binding, "Role", role, rest).ok_or_else(error)?
            }
            _ => return Err(error()),
        });
    }
    Ok(objects)
}

fn bind(mut binding: Value, kind: &str, role: &str, rest: &[&str]) -> Option<Value> {
    binding["roleRef"] = json!({"apiGroup": RBAC, "kind": kind, "name": role});
    let subjects = match rest {
        [] | [":"] => return Some(binding),
        [":", subjects @ ..] => subjects,
        _ => return None,
    };
    let subjects = subjects.iter().map(|subject| {
        let (kind, name) = subject.split_once(':')?;
        Some(match kind {
            "user" => json!({"apiGroup": RBAC, "kind": "User", "name": name}),
            "group" => json!({"apiGroup": RBAC, "kind": "Group", "name": name}),
            "sa" => {
                let (namespace, name) = name.split_once('/')?;
                json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
            }
            _ => return None,
        })
    });
    binding["subjects"] = Value::Array(subjects.collect::<Option<_>>()?);
    Some(binding)
}

fn parse_rule(words: &[&str]) -> Option<PolicyRule> {
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let verbs = |text: &str| match text {
        "rw" => list("create,delete,deletecollection,patch,update"),
        "ro" => list("get,list,watch"),
        "all" => list("create,delete,deletecollection,get,list,patch,update,watch"),
        other => list(other),
    };
    match words {
        ["url", paths, v] => {
            Some(PolicyRule { non_resource_urls: list(paths), verbs: verbs(v), ..PolicyRule::default() })
        }
        [groups, resources, v] => {
            let (resources, names) = resources.split_once('=').unwrap_or((resources, ""));
            let groups = groups.split(',').map(|g| if g == "core" { "" } else { g }.to_owned()).collect();
            Some(PolicyRule {
                api_groups: groups,
                resources: list(resources),
                resource_names: if names.is_empty() { Vec::new() } else { list(names) },
                verbs: verbs(v),
                ..PolicyRule::default()
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    #[test]
    fn the_tables_are_whole() {
        let objects = objects(false).expect("tables");
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for object in
            objects.iter().filter(|o| !o["metadata"]["labels"]["kubernetes.io/bootstrapping"].is_null())
        {
            *kinds.entry(object["kind"].as_str().expect("kind")).or_default() += 1;
        }
        // The counts of a fresh Kubernetes 1.36.
        let counts = [("ClusterRole", 69), ("ClusterRoleBinding", 50), ("Role", 7), ("RoleBinding", 7)];
        assert_eq!(kinds, BTreeMap::from(counts));
        let key = |o: &Value| {
            (o["kind"].to_string(), o["metadata"]["namespace"].to_string(), o["metadata"]["name"].to_string())
        };
        assert_eq!(objects.iter().map(key).collect::<HashSet<_>>().len(), objects.len(), "names are unique");
        let roles: HashSet<_> =
            objects.iter().map(|o| (o["kind"].clone(), o["metadata"]["name"].clone())).collect();
        for binding in objects.iter().filter(|o| o.get("roleRef").is_some()) {
            let role = &binding["roleRef"];
            assert!(roles.contains(&(role["kind"].clone(), role["name"].clone())), "{binding}");
        }
        let more = super::objects(true).expect("tables").len();
        assert_eq!(more, objects.len() + 2, "a role and its binding");
    }

    #[test]
    fn single_roles_are_as_kubernetes_has_them() {
        let objects = objects(true).expect("tables");
        let find = |name: &str| objects.iter().find(|o| o["metadata"]["name"] == name).expect("role").clone();
        assert_eq!(
            find("system:basic-user")["rules"],
            json!([
                {"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"], "verbs": ["create"]},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]},
            ])
        );
        assert_eq!(
            find("edit"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {
                    "name": "edit",
                    "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
                    "labels": {"kubernetes.io/bootstrapping": "rbac-defaults", "rbac.authorization.k8s.io/aggregate-to-admin": "true"},
                },
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"rbac.authorization.k8s.io/aggregate-to-edit": "true"}}]},
            })
        );
        assert!(node_rules().expect("rules").len() > 20);
        assert!(find("hawser:controllers")["rules"].as_array().expect("rules").len() > 50);
    }

    #[test]
    fn malformed_lines_are_found() {
        for table in [
            "nonsense x",
            "  core pods get",
            "clusterrole a\n  core pods",
            "clusterbinding b -> c : robot:x",
            "clusterbinding b -> c x",
        ] {
            assert!(parse(table, None).is_err(), "{table}");
        }
    }
}
