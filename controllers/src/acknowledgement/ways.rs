//! PURE: since which revision each Node has the addresses and prefixes by which others reach its pods. Most changes of a
//! Node are heartbeats, for which nobody waits.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Node;

/// What dataplanes make routes of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Way {
    addresses: Vec<String>,
    prefixes: Vec<String>,
}

impl Way {
    fn of(node: &Node) -> Self {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = addresses.filter(|address| address.type_ == "InternalIP");
        let spec = node.spec.as_ref();
        Self {
            addresses: internal.map(|address| address.address.clone()).collect(),
            prefixes: spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default(),
        }
    }
}

/// The ways to all Nodes.
#[derive(Debug, Default)]
pub struct Ways {
    nodes: HashMap<String, (Way, u64)>,
}

impl Ways {
    /// A Node was written, or is gone (`None`). Says whether the way to it is another now.
    pub fn heard(&mut self, name: &str, node: Option<&Node>) -> bool {
        let Some(node) = node else { return self.nodes.remove(name).is_some() };
        let way = Way::of(node);
        if self.nodes.get(name).is_some_and(|(held, _)| *held == way) {
            return false;
        }
        let revision = node.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
        self.nodes.insert(name.to_owned(), (way, revision.unwrap_or(0)));
        true
    }

    /// The revision at which the way to a Node became what it is; `None` when the Node is not known.
    pub fn to(&self, name: &str) -> Option<u64> {
        self.nodes.get(name).map(|(_, revision)| *revision)
    }
}
