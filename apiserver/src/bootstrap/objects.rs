//! Every object that the server puts in place at its start. Pure.

use serde_json::{Value, json};

use super::policy::{self, NODE_ACCOUNTS, PolicyError};
use crate::access::{BootstrapObject, BootstrapPolicy};

/// Namespaces of a fresh cluster.
pub const NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "default"];

/// Name, value and description of the built-in priority classes.
pub const PRIORITY_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// All objects in the order in which they must be made: namespaces before what lives in them.
///
/// # Errors
/// For a malformed policy table.
pub fn bootstrap_objects(ca_pem: &str, storage_migration: bool) -> Result<Vec<BootstrapObject>, PolicyError> {
    let with = |policy| move |object: Value| BootstrapObject { object, policy };
    let mut objects: Vec<_> = NAMESPACES
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .map(with(BootstrapPolicy::CreateOnly))
        .collect();
    objects.extend(policy::objects(storage_migration)?.into_iter().map(with(BootstrapPolicy::ReconcileRbac)));
    objects.extend(super::flow::objects().into_iter().map(with(BootstrapPolicy::ReconcileSpec)));
    let classes = PRIORITY_CLASSES.iter().map(|(name, value, description)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": description,
        })
    });
    objects.extend(classes.map(with(BootstrapPolicy::CreateOnly)));
    let accounts = NODE_ACCOUNTS.map(|name| {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": "kube-system"},
            "automountServiceAccountToken": false,
        })
    });
    objects.extend(accounts.map(with(BootstrapPolicy::CreateOnly)));
    // What extension API servers read to check the certificates of their callers.
    let authentication = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": ca_pem},
    });
    objects.extend([authentication].map(with(BootstrapPolicy::CreateOnly)));
    Ok(objects)
}
