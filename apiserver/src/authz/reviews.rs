//! The resources that ask about authorization: `*accessreviews`, `selfsubjectrulesreviews`, `selfsubjectreviews`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::object::ObjectExt;
use hawser_api::status::{FieldError, Status};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Authorizers;
use super::index::SERVICE_ACCOUNT_PREFIX;
use super::node::node_of;
use crate::access::{
    Attributes, Authorizer, Decision, GROUP_MASTERS, UserInfo, VirtualRequest, VirtualResource,
};

const GROUP: &str = "authorization.k8s.io";

/// Answers the reviews.
#[derive(Debug, Clone)]
pub struct AccessReviews {
    /// Who decides.
    pub authorizers: Arc<Authorizers>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<NonResourceAttributes>,
    user: String,
    groups: Option<Vec<String>>,
    extra: Option<BTreeMap<String, Vec<String>>>,
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceAttributes {
    namespace: String,
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    name: String,
    field_selector: Option<Selector>,
    label_selector: Option<Selector>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    raw_selector: String,
    requirements: Option<Vec<Requirement>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Requirement {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NonResourceAttributes {
    path: String,
    verb: String,
}

impl Selector {
    /// The selector as a query would carry it. Requirements that no query can express are left out, which only
    /// makes the request wider than it is.
    fn text(&self) -> String {
        let terms = self.requirements.iter().flatten().filter_map(|r| {
            match (r.operator.as_str(), r.values.as_deref()) {
                ("In", Some([value])) => Some(format!("{}={value}", r.key)),
                ("NotIn", Some([value])) => Some(format!("{}!={value}", r.key)),
                _ => None,
            }
        });
        let terms: Vec<_> = terms.collect();
        if terms.is_empty() { self.raw_selector.clone() } else { terms.join(",") }
    }
}

/// The rules of a selector of fields or labels at `at`.
fn validate_selector(selector: Option<&Selector>, at: &str, errors: &mut Vec<FieldError>) {
    let Some(selector) = selector else { return };
    let (raw, stated) = (&selector.raw_selector, selector.requirements.iter().flatten().count());
    if !raw.is_empty() && stated > 0 {
        let detail = "may not specified at the same time as requirements";
        errors.push(FieldError::invalid(format!("{at}.rawSelector"), raw.as_str(), detail));
    }
    if raw.is_empty() && stated == 0 {
        let detail = format!("when {at} is specified, requirements or rawSelector is required");
        errors.push(FieldError::required(format!("{at}.requirements"), detail));
    }
}

fn validate(spec: &Spec, is_self: bool) -> Result<(), Status> {
    let mut errors = Vec::new();
    if let Some(attributes) = &spec.resource_attributes {
        validate_selector(
            attributes.field_selector.as_ref(),
            "spec.resourceAttributes.fieldSelector",
            &mut errors,
        );
        validate_selector(
            attributes.label_selector.as_ref(),
            "spec.resourceAttributes.labelSelector",
            &mut errors,
        );
    }
    match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(_), Some(other)) => errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            json!({"Path": other.path, "Verb": other.verb}),
            "cannot be specified in combination with resourceAttributes",
        )),
        (None, None) => errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    if !is_self && spec.user.is_empty() && spec.groups.as_ref().is_none_or(Vec::is_empty) {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(GROUP, "", "", &errors)) }
}

impl AccessReviews {
    async fn access_review(&self, request: VirtualRequest<'_>) -> Result<Value, Status> {
        let resource = request.info.resource.as_str();
        let mut object = request.object;
        let spec: Spec = serde_json::from_value(object.get("spec").cloned().unwrap_or_default())
            .map_err(|error| Status::bad_request(error.to_string()))?;
        let is_self = resource == "selfsubjectaccessreviews";
        validate(&spec, is_self)?;
        if resource == "localsubjectaccessreviews" {
            validate_local(&spec, &object, &request.info.namespace)?;
        }
        let user = if is_self {
            request.user.clone()
        } else {
            UserInfo {
                username: spec.user.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone().unwrap_or_default(),
                extra: spec.extra.clone().unwrap_or_default(),
            }
        };
        let answer = self.authorizers.authorize_spec(&user, &spec).await;
        let mut status = json!({"allowed": answer.decision == Decision::Allow});
        if answer.decision == Decision::Deny {
            status["denied"] = json!(true);
        }
        if !answer.reason.is_empty() {
            status["reason"] = json!(answer.reason);
        }
        if !answer.error.is_empty() {
            status["evaluationError"] = json!(answer.error);
        }
        object.set_path(&["status"], status);
        Ok(object)
    }

    async fn rules_review(&self, request: VirtualRequest<'_>) -> Result<Value, Status> {
        let namespace = request.object.str_at("spec.namespace");
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let rbac = &self.authorizers.rbac;
        rbac.ready.wait().await;
        let (mut resources, mut paths) = (Vec::new(), Vec::new());
        if request.user.in_group(GROUP_MASTERS) {
            resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
            paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        }
        let mut errors = rbac.index.read().visit(request.user, namespace, |rule, _| {
            if !rule.resources.is_empty() {
                let mut shown =
                    json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
                if !rule.resource_names.is_empty() {
                    shown["resourceNames"] = json!(rule.resource_names);
                }
                resources.push(shown);
            }
            if !rule.non_resource_urls.is_empty() {
                paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
            }
            ControlFlow::Continue(())
        });
        let is_node = node_of(request.user).is_some();
        if is_node {
            errors.insert(0, "node authorizer does not support user rule resolution".to_owned());
        }
        let mut status =
            json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": is_node});
        if !errors.is_empty() {
            status["evaluationError"] = json!(errors.join(", "));
        }
        let mut answer = request.object;
        answer.set_path(&["spec"], json!({}));
        answer.set_path(&["status"], status);
        Ok(answer)
    }
}

fn validate_local(spec: &Spec, object: &Value, namespace: &str) -> Result<(), Status> {
    if object.namespace() != namespace && !object.namespace().is_empty() {
        return Err(Status::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {namespace}"
        )));
    }
    let mut errors = Vec::new();
    if let Some(attributes) = spec.resource_attributes.as_ref().filter(|a| a.namespace != namespace) {
        errors.push(FieldError::invalid(
            "spec.resourceAttributes.namespace",
            attributes.namespace.as_str(),
            "must match metadata.namespace",
        ));
    }
    if let Some(other) = &spec.non_resource_attributes {
        errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            json!({"Path": other.path, "Verb": other.verb}),
            "disallowed on this kind of request",
        ));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(GROUP, "", "", &errors)) }
}

impl Authorizers {
    async fn authorize_spec(&self, user: &UserInfo, spec: &Spec) -> crate::access::Authorization {
        let none = ResourceAttributes::default();
        let resource = spec.resource_attributes.as_ref();
        let path = spec.non_resource_attributes.as_ref();
        let r = resource.unwrap_or(&none);
        let field_selector = r.field_selector.as_ref().map(Selector::text).unwrap_or_default();
        let verb = path.map_or(r.verb.as_str(), |p| p.verb.as_str());
        self.authorize(&Attributes {
            user,
            verb,
            resource_request: resource.is_some(),
            api_group: &r.group,
            api_version: &r.version,
            resource: &r.resource,
            subresource: &r.subresource,
            namespace: &r.namespace,
            name: &r.name,
            path: path.map_or("", |p| p.path.as_str()),
            field_selector: &field_selector,
        })
        .await
    }
}

#[async_trait]
impl VirtualResource for AccessReviews {
    fn handles(&self, group: &str, resource: &str, subresource: &str) -> bool {
        subresource.is_empty()
            && group == GROUP
            && matches!(
                resource,
                "subjectaccessreviews"
                    | "localsubjectaccessreviews"
                    | "selfsubjectaccessreviews"
                    | "selfsubjectrulesreviews"
            )
    }

    async fn create(&self, request: VirtualRequest<'_>) -> Result<Value, Status> {
        match request.info.resource.as_str() {
            "selfsubjectrulesreviews" => self.rules_review(request).await,
            _ => self.access_review(request).await,
        }
    }
}

/// Tells callers who they are (`kubectl auth whoami`).
#[derive(Debug, Clone, Copy)]
pub struct SelfReviews;

#[async_trait]
impl VirtualResource for SelfReviews {
    fn handles(&self, group: &str, resource: &str, subresource: &str) -> bool {
        (group, resource, subresource) == ("authentication.k8s.io", "selfsubjectreviews", "")
    }

    async fn create(&self, request: VirtualRequest<'_>) -> Result<Value, Status> {
        let mut answer = request.object;
        answer.set_meta("creationTimestamp", json!(hawser_api::time::rfc3339(jiff::Timestamp::now())));
        answer.set_path(&["status"], json!({"userInfo": request.user}));
        Ok(answer)
    }
}

/// Namespace and name of the ServiceAccount that a user is.
pub fn service_account_of(username: &str) -> Option<(&str, &str)> {
    username.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')
}

#[cfg(test)]
mod tests;
