//! Kubeconfig files with everything inlined, so that one file is all a client needs.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::Identity;

/// A kubeconfig with one cluster, one user and one context.
///
/// The text is JSON's subset of YAML in block form; every kubeconfig reader takes it.
pub fn kubeconfig(cluster: &str, server_url: &str, ca_pem: &str, user: &str, identity: &Identity) -> String {
    let context = format!("{user}@{cluster}");
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": cluster,
            "cluster": {"server": server_url, "certificate-authority-data": STANDARD.encode(ca_pem)},
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": STANDARD.encode(&identity.cert_pem),
                "client-key-data": STANDARD.encode(&identity.key_pem),
            },
        }],
        "contexts": [{"name": context, "context": {"cluster": cluster, "user": user}}],
        "current-context": context,
    });
    // Plain maps of strings always serialise; JSON is YAML, should the YAML writer ever refuse.
    serde_yaml_ng::to_string(&document).unwrap_or_else(|_| document.to_string())
}
