//! The validating plugin.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::status::Status;
use serde_json::json;

use super::super::forbidden;
use super::compiled::{Binding, Policy};
use super::scope::{Asker, Input, request_json, request_resource};
use super::validate::{self, Denial};
use super::{Engine, Invocation};
use crate::access::{Admission, AdmissionRequest, Host, Operation};
use crate::authz::Authorizers;
use crate::request_info::RequestInfo;

/// Longest audit annotation, in bytes.
const MAX_ANNOTATION: usize = 10 * 1024;

/// Lets validating policies judge requests.
pub struct ValidatingPolicies(Engine);

impl ValidatingPolicies {
    pub fn new(host: &Host, authorizers: &Arc<Authorizers>) -> Self {
        Self(Engine::new(host, authorizers, "validating"))
    }

    /// Judges a request by one policy for one binding: the refusals, and the audit annotations.
    async fn judge(
        &self,
        request: &AdmissionRequest<'_>,
        one: &Invocation,
        refusals: &mut Vec<Status>,
        annotations: &mut BTreeMap<(String, String), Vec<String>>,
    ) -> Result<(), Status> {
        let Invocation { policy, binding, how, params } = one;
        if params.is_empty() {
            return Ok(());
        }
        let shown = async {
            let versions = &self.0.versions;
            let object = versions.shown(how, request.info, request.object.as_deref()).await?;
            Ok::<_, Status>((object, versions.shown(how, request.info, request.old_object).await?))
        };
        let (object, old) = match shown.await {
            Ok(shown) => shown,
            Err(status) => {
                let why = format!(
                    "failed to configure binding: failed to convert object version: {}",
                    status.message
                );
                refuse_unless_ignored(request, policy, Some(binding), why, refusals);
                return Ok(());
            }
        };
        let namespace = self.0.namespace(request).await?;
        let asked = request_json(request, how);
        let resource = request_resource(request.info);
        let asker = Asker { authorizers: &self.0.authorizers, user: request.user };
        for params in params {
            let input = Input {
                object: object.as_ref(),
                old: old.as_ref(),
                request: &asked,
                namespace: namespace.as_ref(),
                params: params.as_ref(),
                asker: &asker,
                resource: &resource,
            };
            let found = validate::judge(policy, input);
            for denial in &found.denials {
                act(request, policy, binding, denial, refusals);
            }
            for denial in &found.errors {
                refusals.push(refusal(request, policy, Some(binding), denial));
            }
            for (key, text) in found.annotations {
                let texts = annotations.entry((policy.name.clone(), key)).or_default();
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Admission for ValidatingPolicies {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        self.0.wants(operation, info)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let (mut refusals, mut annotations) = (Vec::new(), BTreeMap::new());
        for one in self.0.invocations(request).await {
            match one {
                Ok(one) => self.judge(request, &one, &mut refusals, &mut annotations).await?,
                Err(p) => {
                    refuse_unless_ignored(request, &p.policy, p.binding.as_deref(), p.message, &mut refusals);
                }
            }
        }
        for ((policy, key), texts) in annotations {
            let mut text = texts.join(", ");
            text.truncate(text.floor_char_boundary(MAX_ANNOTATION));
            tracing::info!(policy, key, text, "audit annotation of a policy");
        }
        // Of several the first one is told.
        refusals.into_iter().next().map_or(Ok(()), Err)
    }
}

/// The refusal of a request by a policy.
fn refusal(
    request: &AdmissionRequest<'_>,
    policy: &Policy,
    binding: Option<&Binding>,
    denial: &Denial,
) -> Status {
    let bound = binding.map_or_else(String::new, |b| format!(" with binding '{}'", b.name));
    let message =
        format!("ValidatingAdmissionPolicy '{}'{bound} denied request: {}", policy.name, denial.message);
    let mut status = forbidden(request, &message).with_cause("", message, "");
    (status.reason, status.code) = match denial.reason.as_str() {
        "Forbidden" => ("Forbidden".into(), 403),
        "Unauthorized" => ("Unauthorized".into(), 401),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge".into(), 413),
        "" => ("Invalid".into(), 422),
        other => (other.into(), 422),
    };
    status
}

/// Something is wrong with a policy or binding itself.
fn refuse_unless_ignored(
    request: &AdmissionRequest<'_>,
    policy: &Policy,
    binding: Option<&Binding>,
    message: String,
    refusals: &mut Vec<Status>,
) {
    if !policy.ignores_failure {
        let denial = Denial { message, ..Denial::default() };
        refusals.push(refusal(request, policy, binding, &denial));
    }
}

/// Does what a binding wants done about a broken validation.
fn act(
    request: &AdmissionRequest<'_>,
    policy: &Policy,
    binding: &Binding,
    denial: &Denial,
    refusals: &mut Vec<Status>,
) {
    for action in &binding.actions {
        match action.as_str() {
            "Deny" => refusals.push(refusal(request, policy, Some(binding), denial)),
            "Warn" => request.warn(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, denial.message
            )),
            "Audit" => {
                let failure = json!([{"message": denial.message, "policy": policy.name, "binding": binding.name,
                    "expressionIndex": denial.at, "validationActions": binding.actions}]);
                tracing::info!(%failure, "validation.policy.admission.k8s.io/validation_failure");
            }
            other => tracing::warn!(binding = binding.name, action = other, "unknown validation action"),
        }
    }
}
