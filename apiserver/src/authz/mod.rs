//! Authorization: may this user do that?
//!
//! In order: members of `system:masters` may do everything; the Node authorizer ([`node`]) speaks for nodes;
//! RBAC ([`index`]) for everyone. Decisions read indexes that follow the watch caches ([`follow`]); no decision
//! scans all bindings or pods.

pub mod escalation;
pub mod follow;
pub mod index;
pub mod node;
pub mod reviews;
pub mod rule;

use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::status::Status;
use hawser_api::text::quote;
use parking_lot::RwLock;

use crate::access::{Attributes, Authorization, Authorizer, Decision, GROUP_MASTERS};
use follow::Ready;
use index::RbacIndex;
use node::NodeAuthorizer;

/// Allows members of `system:masters` everything.
#[derive(Debug, Clone, Copy)]
pub struct SuperuserAuthorizer;

#[async_trait]
impl Authorizer for SuperuserAuthorizer {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Authorization {
        let allowed = attributes.user.in_group(GROUP_MASTERS);
        Authorization::new(if allowed { Decision::Allow } else { Decision::NoOpinion }, "")
    }
}

/// RBAC over the index.
#[derive(Debug, Clone)]
pub struct RbacAuthorizer {
    /// All roles and bindings.
    pub index: Arc<RwLock<RbacIndex>>,
    /// Set once the index holds what the store held at start.
    pub ready: Ready,
}

impl RbacAuthorizer {
    fn decide(&self, attributes: &Attributes<'_>) -> Authorization {
        let index = self.index.read();
        let mut allowed = None;
        let errors = index.visit(attributes.user, attributes.namespace, |rule, source| {
            if rule.allows(attributes) {
                allowed = Some(format!("RBAC: allowed by {}", source.describe()));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        match (allowed, join_errors(&errors)) {
            (Some(reason), _) => Authorization::new(Decision::Allow, reason),
            (None, None) => Authorization::new(Decision::NoOpinion, ""),
            (None, Some(errors)) => Authorization::new(Decision::NoOpinion, format!("RBAC: {errors}")),
        }
    }
}

/// Several errors as Kubernetes joins them: one stands alone, more in brackets.
fn join_errors(errors: &[String]) -> Option<String> {
    match errors {
        [] => None,
        [one] => Some(one.clone()),
        more => Some(format!("[{}]", more.join(", "))),
    }
}

#[async_trait]
impl Authorizer for RbacAuthorizer {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Authorization {
        self.ready.wait().await;
        self.decide(attributes)
    }
}

/// The chain: superusers, nodes, RBAC.
#[derive(Debug, Clone)]
pub struct Authorizers {
    /// Speaks for nodes.
    pub node: NodeAuthorizer,
    /// Speaks for everyone.
    pub rbac: RbacAuthorizer,
}

#[async_trait]
impl Authorizer for Authorizers {
    async fn authorize(&self, attributes: &Attributes<'_>) -> Authorization {
        let mut reasons: Vec<String> = Vec::new();
        let chain: [&dyn Authorizer; 3] = [&SuperuserAuthorizer, &self.node, &self.rbac];
        for authorizer in chain {
            let answer = authorizer.authorize(attributes).await;
            if answer.decision != Decision::NoOpinion {
                return answer;
            }
            if !answer.reason.is_empty() {
                reasons.push(answer.reason);
            }
        }
        Authorization::new(Decision::NoOpinion, reasons.join("\n"))
    }
}

/// The 403 of a request that was not allowed, with Kubernetes' words.
pub fn forbidden(attributes: &Attributes<'_>, reason: &str) -> Status {
    let user = quote(&attributes.user.username);
    let mut why = if attributes.resource_request {
        let resource = match attributes.subresource {
            "" => attributes.resource.to_owned(),
            subresource => format!("{}/{subresource}", attributes.resource),
        };
        let scope = match attributes.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {}", quote(namespace)),
        };
        let (verb, group) = (attributes.verb, quote(attributes.api_group));
        format!("User {user} cannot {verb} resource {} in API group {group} {scope}", quote(&resource))
    } else {
        format!("User {user} cannot {} path {}", attributes.verb, quote(attributes.path))
    };
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    if attributes.resource_request {
        Status::forbidden(attributes.api_group, attributes.resource, attributes.name, why)
    } else {
        Status::forbidden("", "", "", why)
    }
}
