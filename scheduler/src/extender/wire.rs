//! What extenders are asked and answer (`k8s.io/kube-scheduler/extender/v1`). Go reads names of fields in any case; those
//! that are in use are read here.

use std::collections::HashMap;

use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Filtered {
    #[serde(alias = "NodeNames", alias = "nodenames", rename = "nodeNames")]
    pub names: Option<Vec<String>>,
    #[serde(alias = "Nodes", rename = "nodes")]
    pub nodes: Option<Nodes>,
    #[serde(alias = "FailedNodes", alias = "failednodes", rename = "failedNodes", default)]
    pub failed: Option<HashMap<String, String>>,
    #[serde(alias = "FailedAndUnresolvableNodes", rename = "failedAndUnresolvableNodes", default)]
    pub unresolvable: Option<HashMap<String, String>>,
    #[serde(alias = "Error", default)]
    pub error: String,
}

/// Whole nodes, of which the names are enough.
#[derive(Deserialize)]
pub(super) struct Nodes {
    #[serde(default)]
    pub items: Option<Vec<Named>>,
}

#[derive(Deserialize)]
pub(super) struct Named {
    pub metadata: Name,
}

#[derive(Deserialize)]
pub(super) struct Name {
    pub name: String,
}

#[derive(Deserialize)]
pub(super) struct HostPriority {
    #[serde(alias = "Host")]
    pub host: String,
    #[serde(alias = "Score")]
    pub score: i64,
}

#[derive(Deserialize)]
pub(super) struct Judged {
    #[serde(alias = "NodeNameToMetaVictims", rename = "nodeNameToMetaVictims")]
    pub victims: Option<HashMap<String, MetaVictims>>,
}

#[derive(Deserialize)]
pub(super) struct MetaVictims {
    #[serde(alias = "Pods")]
    pub pods: Option<Vec<MetaPod>>,
    #[serde(alias = "NumPDBViolations", rename = "numPDBViolations", default)]
    pub violations: i64,
}

#[derive(Deserialize)]
pub(super) struct MetaPod {
    #[serde(alias = "UID")]
    pub uid: String,
}

#[derive(Deserialize)]
pub(super) struct BindingResult {
    #[serde(alias = "Error", default)]
    pub error: String,
}
