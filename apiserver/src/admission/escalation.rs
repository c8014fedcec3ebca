//! Writing roles and bindings: nobody gives more than they hold. No plugin in Kubernetes, which does this in the
//! kinds' own storage.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::forbidden;
use crate::access::{Admission, AdmissionRequest, Attributes, Authorizer, Decision, Operation};
use crate::authz::Authorizers;
use crate::authz::escalation::{confirm_held, everything, exempt};
use crate::authz::index::RoleRef;
use crate::authz::rule::PolicyRule;
use crate::request_info::RequestInfo;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) struct RbacEscalation {
    pub(super) authorizers: Arc<Authorizers>,
}

#[async_trait]
impl Admission for RbacEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && info.group == GROUP
            && info.subresource.is_empty()
            && matches!(
                info.resource.as_str(),
                "roles" | "clusterroles" | "rolebindings" | "clusterrolebindings"
            )
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        if exempt(request.user) {
            return Ok(());
        }
        match request.info.resource.as_str() {
            "roles" | "clusterroles" => self.check_role(request, object).await,
            _ => self.check_binding(request, object).await,
        }
    }
}

fn decode<T: DeserializeOwned + Default>(value: Option<&Value>) -> Result<T, Status> {
    let value = value.filter(|v| !v.is_null()).cloned();
    value.map_or_else(
        || Ok(T::default()),
        |v| serde_json::from_value(v).map_err(|e| Status::bad_request(e.to_string())),
    )
}

/// Whether a field is as it was (a missing one equals null and empty).
fn unchanged(request: &AdmissionRequest<'_>, object: &Value, field: &str) -> bool {
    fn is_empty(value: &Value) -> bool {
        value.is_null() || value.as_array().is_some_and(Vec::is_empty)
    }
    let Some(old) = request.old_object else { return false };
    match (old.get(field), object.get(field)) {
        (Some(a), Some(b)) => a == b || (is_empty(a) && is_empty(b)),
        (one, other) => one.or(other).is_none_or(is_empty),
    }
}

impl RbacEscalation {
    async fn has(&self, request: &AdmissionRequest<'_>, verb: &str, resource: &str, name: &str) -> bool {
        let attributes = Attributes {
            user: request.user,
            verb,
            resource_request: true,
            api_group: GROUP,
            api_version: &request.info.version,
            resource,
            subresource: "",
            namespace: &request.info.namespace,
            name,
            path: "",
            field_selector: "",
        };
        self.authorizers.authorize(&attributes).await.decision == Decision::Allow
    }

    async fn check_role(&self, request: &AdmissionRequest<'_>, object: &Value) -> Result<(), Status> {
        let aggregation = object.get("aggregationRule").is_some_and(|a| !a.is_null());
        let same_aggregation = unchanged(request, object, "aggregationRule");
        if unchanged(request, object, "rules") && same_aggregation {
            return Ok(());
        }
        if self.has(request, "escalate", &request.info.resource, object.name()).await {
            return Ok(());
        }
        let rules: Vec<PolicyRule> = decode(object.get("rules"))?;
        let index = self.authorizers.rbac.index.read();
        let namespace = &request.info.namespace;
        confirm_held(&index, request.user, namespace, &rules).map_err(|why| forbidden(request, why))?;
        // The rules of an aggregate are whatever others label later.
        if aggregation && !same_aggregation && confirm_held(&index, request.user, "", &everything()).is_err()
        {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            return Err(forbidden(request, why));
        }
        Ok(())
    }

    async fn check_binding(&self, request: &AdmissionRequest<'_>, object: &Value) -> Result<(), Status> {
        if unchanged(request, object, "roleRef") && unchanged(request, object, "subjects") {
            return Ok(());
        }
        let role_ref: RoleRef = decode(object.get("roleRef"))?;
        let resource = if role_ref.kind == "Role" { "roles" } else { "clusterroles" };
        if self.has(request, "bind", resource, &role_ref.name).await {
            return Ok(());
        }
        let index = self.authorizers.rbac.index.read();
        let namespace = &request.info.namespace;
        let Some(rules) = index.rules_of(&role_ref, namespace) else {
            // The words speak of the binding's resource and the role's name, as Kubernetes' do.
            return Err(Status::not_found(GROUP, &request.info.resource, &role_ref.name));
        };
        confirm_held(&index, request.user, namespace, &rules).map_err(|why| forbidden(request, why))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::super::testing::World;
    use super::*;
    use crate::access::UserInfo;
    use crate::authz::RbacAuthorizer;
    use crate::authz::follow::{FollowedGraph, Ready};
    use crate::authz::index::RbacIndex;
    use crate::authz::node::NodeAuthorizer;
    use crate::authz::node::graph::NodeGraph;

    fn plugin() -> RbacEscalation {
        let mut index = RbacIndex::default();
        let rule = |group: &str, resource: &str, names: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "resourceNames": names, "verbs": verbs});
        let roles = [
            ("mallory", json!([rule("", "pods", &[], &["get"])])),
            ("binder", json!([rule(GROUP, "clusterroles", &["secrets"], &["bind"])])),
            ("escalator", json!([rule(GROUP, "roles", &[], &["escalate"])])),
            ("root", json!([rule("*", "*", &[], &["*"]), {"nonResourceURLs": ["*"], "verbs": ["*"]}])),
            ("secrets", json!([rule("", "secrets", &[], &["get"])])),
        ];
        for (name, rules) in roles {
            index.set_cluster_role(name, Some(from_value(json!({"rules": rules})).expect("role")));
            let binding = json!({"roleRef": {"kind": "ClusterRole", "name": name}, "subjects": [{"kind": "User", "name": name}]});
            index.set_cluster_binding(name, Some(from_value(binding).expect("binding")));
        }
        let rbac = RbacAuthorizer { index: Arc::new(index.into()), ready: Ready::now() };
        let node =
            NodeAuthorizer { followed: FollowedGraph::fixed(NodeGraph::default()), rules: Arc::from([]) };
        RbacEscalation { authorizers: Arc::new(Authorizers { node, rbac }) }
    }

    fn role(resource: &str, verbs: &[&str]) -> Value {
        json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": verbs}]})
    }

    #[tokio::test]
    async fn roles() {
        let (world, plugin) = (World::new(), plugin());
        let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/ns/roles";
        let missing = |verbs: &str| {
            format!(
                "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"mallory\" (groups=[\"system:authenticated\"]) is attempting \
                 to grant RBAC permissions not currently held:\n{{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[{verbs}]}}"
            )
        };
        for (user, object, expected) in [
            ("mallory", role("pods", &["get"]), "ok".to_owned()),
            ("mallory", role("secrets", &["get", "list"]), missing("\"get\" \"list\"")),
            ("escalator", role("secrets", &["get"]), "ok".to_owned()),
            ("root", role("secrets", &["*"]), "ok".to_owned()),
        ] {
            let by = UserInfo::new(user, Vec::<String>::new());
            assert_eq!(world.post(path, object.clone()).by(by).answer(&plugin).await, expected, "{user}");
        }
        // What is not touched is not asked about.
        let mallory = || UserInfo::new("mallory", Vec::<String>::new());
        let (old, mut new) = (role("secrets", &["get"]), role("secrets", &["get"]));
        new["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(
            world.put_request(&format!("{path}/r"), new, old.clone()).by(mallory()).answer(&plugin).await,
            "ok"
        );
        let wider = role("secrets", &["get", "list"]);
        assert_ne!(
            world.put_request(&format!("{path}/r"), wider, old).by(mallory()).answer(&plugin).await,
            "ok"
        );
        assert_eq!(world.post(path, role("secrets", &["*"])).answer(&plugin).await, "ok", "system:masters");
    }

    #[tokio::test]
    async fn aggregation_is_for_cluster_admins() {
        let (world, plugin) = (World::new(), plugin());
        let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
        let object = json!({"metadata": {"name": "r"}, "aggregationRule": {"clusterRoleSelectors": [{}]}});
        let by = |user: &str| world.post(path, object.clone()).by(UserInfo::new(user, Vec::<String>::new()));
        assert_eq!(
            by("mallory").answer(&plugin).await,
            "clusterroles.rbac.authorization.k8s.io \"r\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
        );
        assert_eq!(by("root").answer(&plugin).await, "ok");
    }

    #[tokio::test]
    async fn bindings() {
        let (world, plugin) = (World::new(), plugin());
        let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        let bind = |user: &str, role: &str| {
            let object = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": []});
            world.post(path, object).by(UserInfo::new(user, Vec::<String>::new()))
        };
        assert_eq!(bind("mallory", "mallory").answer(&plugin).await, "ok");
        assert_eq!(bind("binder", "secrets").answer(&plugin).await, "ok");
        assert!(
            bind("binder", "root")
                .answer(&plugin)
                .await
                .contains("is attempting to grant RBAC permissions not currently held")
        );
        assert!(bind("mallory", "root").answer(&plugin).await.ends_with(
            "{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}\n{NonResourceURLs:[\"*\"], Verbs:[\"*\"]}"
        ));
        let missing = bind("mallory", "missing").admit(&plugin).await.expect_err("refused");
        assert_eq!(missing.code, 404);
        assert_eq!(missing.message, "clusterrolebindings.rbac.authorization.k8s.io \"missing\" not found");
    }
}
