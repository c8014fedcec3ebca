//! The Node authorizer: a node's certificate reaches its own Node and Lease, the pods bound to it, and the
//! objects that those pods name. Everything else of `system:node` that is not bound to one node (services,
//! events, certificate requests) comes from the static rules of that role.

pub mod graph;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hawser_api::text::quote;

use super::follow::FollowedGraph;
use super::rule::PolicyRule;
use crate::access::{Attributes, Authorization, Authorizer, Decision, UserInfo};
use graph::{NodeGraph, Vertex};

/// Group of all nodes.
pub const GROUP_NODES: &str = "system:nodes";
/// What a node's user name begins with.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// Namespace of the nodes' leases.
pub const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";

/// What the refusal of an unrelated object begins with.
const UNRELATED: &str = "no relationship found between node";
/// How long a refusal waits for the graph to catch up with what the node has seen.
const PATIENCE: Duration = Duration::from_millis(100);

/// The node that a user is: Some("") for a node without a name of its own.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    let name = user.username.strip_prefix(NODE_USER_PREFIX)?;
    user.in_group(GROUP_NODES).then_some(name)
}

/// The authorizer.
#[derive(Debug, Clone)]
pub struct NodeAuthorizer {
    /// Who needs what.
    pub followed: FollowedGraph,
    /// The rules of the role `system:node`, as at bootstrap.
    pub rules: Arc<[PolicyRule]>,
}

type Answer = Result<(), String>;

fn refuse(why: impl Into<String>) -> Answer {
    Err(why.into())
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Authorization {
        let Some(node) = node_of(attributes.user) else { return Authorization::new(Decision::NoOpinion, "") };
        if node.is_empty() {
            let why = format!("unknown node for user {}", quote(&attributes.user.username));
            return Authorization::new(Decision::NoOpinion, why);
        }
        self.followed.ready.wait().await;
        let mut changes = self.followed.changes.clone();
        changes.borrow_and_update();
        let mut answer = self.decide(node, attributes);
        if answer.as_ref().is_err_and(|why| why.starts_with(UNRELATED)) {
            // A node learns of its new pod by the same watch as the graph, and may be the quicker one.
            let catch_up = async {
                while answer.is_err() && changes.changed().await.is_ok() {
                    answer = self.decide(node, attributes);
                }
            };
            // Past the deadline the last answer stands.
            let _ = tokio::time::timeout(PATIENCE, catch_up).await;
        }
        match answer {
            Ok(()) => Authorization::new(Decision::Allow, ""),
            Err(why) => Authorization::new(Decision::NoOpinion, why),
        }
    }
}

impl NodeAuthorizer {
    /// Whether a node may; the text of a refusal is empty when there is nothing to say.
    pub fn decide(&self, node: &str, request: &Attributes<'_>) -> Result<(), String> {
        if !request.resource_request {
            return self.by_rules(request);
        }
        let object = || (request.namespace.to_owned(), request.name.to_owned());
        match (request.api_group, request.resource) {
            ("", "secrets") => self.read(node, request, |(ns, name)| Vertex::Secret(ns, name)),
            ("", "configmaps") => self.read(node, request, |(ns, name)| Vertex::ConfigMap(ns, name)),
            ("", "persistentvolumeclaims") if request.subresource == "status" => {
                if !matches!(request.verb, "get" | "update" | "patch") {
                    return refuse("can only get/update/patch this type");
                }
                self.related(node, request, |g| g.needs(node, &Vertex::Claim(object().0, object().1)))
            }
            ("", "persistentvolumeclaims") => {
                self.get_one(node, request, |g| g.needs(node, &Vertex::Claim(object().0, object().1)))
            }
            ("", "persistentvolumes") => self.get_one(node, request, |g| g.needs_volume(node, request.name)),
            ("storage.k8s.io", "volumeattachments") => {
                self.get_one(node, request, |g| g.attached(node, request.name))
            }
            ("resource.k8s.io", "resourceclaims") => {
                self.get_one(node, request, |g| g.needs(node, &Vertex::ResourceClaim(object().0, object().1)))
            }
            ("", "serviceaccounts") => self.service_account(node, request),
            ("coordination.k8s.io", "leases") => lease(node, request),
            ("storage.k8s.io", "csinodes") => csi_node(node, request),
            ("resource.k8s.io", "resourceslices") => resource_slice(node, request),
            ("", "nodes") => node_object(node, request),
            ("", "pods") => self.pod(node, request),
            _ => self.by_rules(request),
        }
    }

    fn by_rules(&self, request: &Attributes<'_>) -> Answer {
        if self.rules.iter().any(|rule| rule.allows(request)) { Ok(()) } else { refuse("") }
    }

    /// Get, list or watch of one object by name.
    fn read(&self, node: &str, request: &Attributes<'_>, vertex: fn((String, String)) -> Vertex) -> Answer {
        if !matches!(request.verb, "get" | "list" | "watch") {
            return refuse("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return refuse("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return refuse("can only read namespaced object of this type");
        }
        let vertex = vertex((request.namespace.to_owned(), request.name.to_owned()));
        self.related(node, request, |graph| graph.needs(node, &vertex))
    }

    fn get_one(&self, node: &str, request: &Attributes<'_>, found: impl Fn(&NodeGraph) -> bool) -> Answer {
        if request.verb != "get" {
            return refuse("can only get individual resources of this type");
        }
        if !request.subresource.is_empty() {
            return refuse("cannot get subresource");
        }
        self.related(node, request, found)
    }

    fn related(&self, node: &str, request: &Attributes<'_>, found: impl Fn(&NodeGraph) -> bool) -> Answer {
        if request.name.is_empty() {
            return refuse("No Object name found");
        }
        if found(&self.followed.graph.read()) {
            return Ok(());
        }
        refuse(format!("{UNRELATED} '{node}' and this object"))
    }

    fn service_account(&self, node: &str, request: &Attributes<'_>) -> Answer {
        let account = Vertex::ServiceAccount(request.namespace.to_owned(), request.name.to_owned());
        match (request.verb, request.subresource) {
            ("create", "token") | ("get", "") => {
                self.related(node, request, |graph| graph.needs(node, &account))
            }
            (_, "token") => refuse("can only create tokens for individual service accounts"),
            _ => refuse("can only get individual resources of this type"),
        }
    }

    fn pod(&self, node: &str, request: &Attributes<'_>) -> Answer {
        match (request.subresource, request.verb) {
            ("", "get") => {
                let pod = Vertex::Pod(request.namespace.to_owned(), request.name.to_owned());
                self.related(node, request, |graph| graph.needs(node, &pod))
            }
            ("", "list" | "watch") => {
                let own = request.field_selector.split(',').any(|term| {
                    let value = term.trim().strip_prefix("spec.nodeName=").map(|v| v.trim_start_matches('='));
                    value == Some(node)
                });
                if own {
                    Ok(())
                } else {
                    refuse("can only list/watch pods with spec.nodeName field selector")
                }
            }
            // NodeRestriction looks at the object of these.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => refuse(""),
        }
    }
}

fn lease(node: &str, request: &Attributes<'_>) -> Answer {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != NODE_LEASE_NAMESPACE {
        return refuse(format!(
            "can only access leases in the {} system namespace",
            quote(NODE_LEASE_NAMESPACE)
        ));
    }
    // A create names its object only in the body: NodeRestriction looks there.
    if request.verb != "create" && request.name != node {
        return refuse("can only access node lease with the same name as the requesting node");
    }
    Ok(())
}

fn csi_node(node: &str, request: &Attributes<'_>) -> Answer {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return refuse("cannot authorize CSINode subresources");
    }
    if request.verb != "create" && request.name != node {
        return refuse("can only access CSINode with the same name as the requesting node");
    }
    Ok(())
}

fn resource_slice(node: &str, request: &Attributes<'_>) -> Answer {
    if !request.subresource.is_empty() {
        return refuse("cannot authorize ResourceSlice subresources");
    }
    match request.verb {
        // NodeRestriction looks at the node name of these.
        "get" | "create" | "update" | "patch" | "delete" => Ok(()),
        "list" | "watch" | "deletecollection" => {
            if request.field_selector.split(',').any(|term| term.strip_prefix("spec.nodeName=") == Some(node))
            {
                return Ok(());
            }
            refuse("can only list/watch/deletecollection resourceslices with nodeName field selector")
        }
        _ => refuse(
            "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
        ),
    }
}

fn node_object(node: &str, request: &Attributes<'_>) -> Answer {
    match (request.subresource, request.verb) {
        // NodeRestriction keeps a node to its own object.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if request.name == node => Ok(()),
        ("", "get" | "list" | "watch") => {
            let what =
                if request.name.is_empty() { "all nodes".into() } else { format!("'{}'", request.name) };
            refuse(format!("node '{node}' cannot read {what}, only its own Node object"))
        }
        _ => refuse(""),
    }
}

#[cfg(test)]
mod tests;
