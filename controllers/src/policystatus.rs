//! Type checks of ValidatingAdmissionPolicies: `status.typeChecking` and `status.observedGeneration` (KEP-3488).

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::cel::typecheck::{self, Known, Resource};
use hawser_api::kinds;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    ExpressionWarning, TypeChecking, ValidatingAdmissionPolicy,
};
use kube::Client;
use serde_json::Value;

use crate::cache::Caches;
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::runner::{Controller, Failure, Queue, ViewError};

/// What a decision about a policy rests on.
pub struct View {
    /// The policy.
    pub policy: Arc<ValidatingAdmissionPolicy>,
    /// Types of the objects that it is for, as far as they are known.
    pub types: Vec<Known>,
    /// Type of its parameters.
    pub params: Option<Known>,
}

/// Whether the policy was checked as it is now.
fn is_checked(policy: &ValidatingAdmissionPolicy) -> bool {
    let observed = policy.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
    policy.metadata.generation.unwrap_or(0) <= observed
}

/// Decides about a policy.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let policy = view.policy.as_ref();
    if is_checked(policy) || object::is_deleting(policy) {
        return plan;
    }
    let Ok(value) = serde_json::to_value(policy) else { return plan };
    let warnings: Vec<ExpressionWarning> = typecheck::check(&value, &view.types, view.params.as_ref())
        .into_iter()
        .filter_map(|w| serde_json::from_value(w).ok())
        .collect();
    let mut updated = policy.clone();
    let status = updated.status.get_or_insert_default();
    status.observed_generation = policy.metadata.generation;
    status.type_checking =
        Some(TypeChecking { expression_warnings: (!warnings.is_empty()).then_some(warnings) });
    plan.update_status(policy, &updated);
    plan
}

/// The controller. Keys are policies.
pub struct PolicyStatus {
    caches: Arc<Caches>,
    client: Client,
}

impl PolicyStatus {
    /// A controller on these caches; the client asks for the types of kinds that are defined at run time.
    pub fn new(caches: &Arc<Caches>, client: &Client) -> Self {
        Self { caches: caches.clone(), client: client.clone() }
    }

    async fn document(&self, path: String) -> Result<Option<Value>, ViewError> {
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        match self.client.request::<Value>(request).await {
            Ok(document) => Ok(Some(document)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The type of a resource; None for one that is not there.
    async fn of_resource(&self, (group, version, plural): &Resource) -> Result<Option<Known>, ViewError> {
        if let Some(kind) = kinds::find(group, version, plural) {
            return Ok(Known::built_in(&kind.api_version(), &kind.kind));
        }
        let Some(list) = self.document(format!("/apis/{group}/{version}")).await? else { return Ok(None) };
        let named = |r: &&Value| r["name"] == plural.as_str();
        let found = list["resources"].as_array().into_iter().flatten().find(named);
        let Some(kind) = found.and_then(|r| r["kind"].as_str()) else { return Ok(None) };
        self.of_kind(&format!("{group}/{version}"), kind).await
    }

    /// The type of a kind; None for one that is not there.
    async fn of_kind(&self, api_version: &str, kind: &str) -> Result<Option<Known>, ViewError> {
        if let Some(known) = Known::built_in(api_version, kind) {
            return Ok(Some(known));
        }
        let Some((group, version)) = api_version.split_once('/') else { return Ok(None) };
        let Some(document) = self.document(format!("/openapi/v3/apis/{group}/{version}")).await? else {
            return Ok(None);
        };
        let is_it = |schema: &&Value| {
            schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten().any(|gvk| {
                (&gvk["group"], &gvk["version"], &gvk["kind"])
                    == (&Value::from(group), &Value::from(version), &Value::from(kind))
            })
        };
        let schemas = document["components"]["schemas"].as_object();
        let schema = schemas.into_iter().flat_map(|s| s.values()).find(is_it);
        Ok(schema.and_then(|s| Known::published(api_version, kind, s)))
    }
}

#[async_trait]
impl Controller for PolicyStatus {
    type View = View;

    fn name(&self) -> &'static str {
        "validatingadmissionpolicy-status"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.validating_policies.on_change(move |change| {
            if change.new.is_some_and(|policy| !is_checked(policy)) {
                q.add(change.key.clone());
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(policy) = self.caches.validating_policies.get(key) else { return Ok(None) };
        let mut view = View { policy: policy.clone(), types: Vec::new(), params: None };
        if is_checked(&policy) {
            return Ok(Some(view));
        }
        let value = serde_json::to_value(policy.as_ref()).map_err(kube::Error::SerdeError)?;
        for resource in typecheck::resources(&value) {
            view.types.extend(self.of_resource(&resource).await?);
        }
        if let Some(kind) = policy.spec.as_ref().and_then(|s| s.param_kind.as_ref()) {
            let (api_version, kind) = (kind.api_version.as_deref(), kind.kind.as_deref());
            view.params = self.of_kind(api_version.unwrap_or_default(), kind.unwrap_or_default()).await?;
        }
        Ok(Some(view))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Harness;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn a_policy_is_checked_once_for_each_generation() {
        let mut h = Harness::new(PolicyStatus::new);
        let policy = |expression: &str, generation: i64| -> ValidatingAdmissionPolicy {
            serde_json::from_value(json!({"metadata": {"name": "p", "generation": generation}, "spec": {
                "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"],
                    "resources": ["deployments"]}]}, "validations": [{"expression": expression}]}}))
            .unwrap()
        };
        h.model.lock().put(&policy("object.spec.replicas > '1'", 1));
        h.settle(20).await;
        let status = || {
            h.model
                .lock()
                .get::<ValidatingAdmissionPolicy>("", "p")
                .and_then(|p| p.status)
                .unwrap_or_default()
        };
        let found = status();
        assert_eq!(found.observed_generation, Some(1));
        let warnings = found.type_checking.and_then(|t| t.expression_warnings).unwrap_or_default();
        assert_eq!(warnings.len(), 1);
        assert_eq!(warnings[0].field_ref, "spec.validations[0].expression");
        h.model.lock().edit::<ValidatingAdmissionPolicy>("", "p", |p| {
            p.spec = policy("object.spec.replicas > 1", 2).spec;
        });
        h.settle(20).await;
        let status = h
            .model
            .lock()
            .get::<ValidatingAdmissionPolicy>("", "p")
            .and_then(|p| p.status)
            .unwrap_or_default();
        assert_eq!(status.observed_generation, Some(2));
        assert_eq!(status.type_checking.and_then(|t| t.expression_warnings), None);
    }
}
