//! What kinds the server has: one entry per resource, in the version its group prefers.

use std::collections::BTreeSet;

use kube::Client;
use kube::discovery::ApiResource;

/// A resource that the server serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Group, version, kind, plural.
    pub api: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    verbs: BTreeSet<String>,
}

impl Resource {
    /// A resource that serves `verbs`.
    #[cfg(test)]
    pub fn for_tests(api: ApiResource, namespaced: bool, verbs: &[&str]) -> Self {
        Self { api, namespaced, verbs: verbs.iter().map(|v| (*v).to_owned()).collect() }
    }

    /// Whether every one of `verbs` is served.
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.contains(*verb))
    }
}

/// Everything that discovery tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Discovered {
    /// All resources.
    pub resources: Vec<Resource>,
    /// Group versions whose server does not answer: what they hold is not known.
    pub failed: Vec<String>,
}

/// Asks the server what it has (aggregated discovery, two requests).
pub async fn discover(client: &Client) -> Result<Discovered, kube::Error> {
    let core = client.list_core_api_versions_aggregated().await?;
    let groups = client.list_api_groups_aggregated().await?;
    let mut found = Discovered::default();
    for group in core.items.into_iter().chain(groups.items) {
        let name = group.metadata.and_then(|m| m.name).unwrap_or_default();
        // Versions come in the group's order of preference; a resource counts once.
        let mut seen = BTreeSet::new();
        for version in group.versions {
            let number = version.version.unwrap_or_default();
            let api_version = if name.is_empty() { number.clone() } else { format!("{name}/{number}") };
            if version.freshness.as_deref() == Some("Stale") {
                found.failed.push(api_version.clone());
            }
            for resource in version.resources {
                let plural = resource.resource.unwrap_or_default();
                if plural.is_empty() || !seen.insert(plural.clone()) {
                    continue;
                }
                let kind = resource.response_kind.and_then(|k| k.kind).unwrap_or_default();
                found.resources.push(Resource {
                    api: ApiResource {
                        group: name.clone(),
                        version: number.clone(),
                        api_version: api_version.clone(),
                        kind,
                        plural,
                    },
                    namespaced: resource.scope.as_deref() == Some("Namespaced"),
                    verbs: resource.verbs.into_iter().collect(),
                });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, client};

    #[tokio::test(start_paused = true)]
    async fn every_resource_is_found_once() {
        let h = Harness::new(|caches, _| crate::replicaset::ReplicaSets::new(caches));
        let found = discover(&client(h.model.clone())).await.unwrap();
        let pods: Vec<_> = found.resources.iter().filter(|r| r.api.plural == "pods").collect();
        assert_eq!(pods.len(), 1);
        assert!(pods[0].namespaced && pods[0].can(&["list", "watch"]) && !pods[0].can(&["fly"]));
        assert!(found.resources.iter().any(|r| r.api.api_version == "apps/v1" && r.api.kind == "Deployment"));
        assert!(found.failed.is_empty());
    }
}
