//! The mutating plugin.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use serde_json::Value;

use super::super::forbidden;
use super::mutate::{self, Fault};
use super::scope::{Asker, Input, conditions_hold, request_json, request_resource};
use super::{Engine, Invocation};
use crate::access::{Admission, AdmissionRequest, Host, Operation};
use crate::authz::Authorizers;
use crate::managed::node;
use crate::request_info::RequestInfo;

/// Lets mutating policies change requests.
pub struct MutatingPolicies(Engine);

/// What went wrong, as the answer tells it, and the answer's reason.
type Failure = (String, &'static str);

impl MutatingPolicies {
    pub fn new(host: &Host, authorizers: &Arc<Authorizers>) -> Self {
        Self(Engine::new(host, authorizers, "mutating"))
    }

    /// Runs a policy for one binding with one parameter. The failures that are not ignored are added.
    async fn run(
        &self,
        request: &mut AdmissionRequest<'_>,
        one: &Invocation,
        params: Option<&Value>,
        namespace: Option<&Value>,
        failures: &mut Vec<Failure>,
    ) -> Result<(), Status> {
        let Invocation { policy, binding, how, .. } = one;
        let versions = &self.0.versions;
        let before = versions.shown(how, request.info, request.object.as_deref()).await?;
        let old = versions.shown(how, request.info, request.old_object).await?;
        let asked = request_json(request, how);
        let resource = request_resource(request.info);
        let asker = Asker { authorizers: &self.0.authorizers, user: request.user };
        let input = |object: Option<&Value>, then: &mut dyn FnMut(Input<'_>)| {
            then(Input {
                object,
                old: old.as_ref(),
                request: &asked,
                namespace,
                params,
                asker: &asker,
                resource: &resource,
            });
        };
        let mut fail = |why: String| {
            if policy.ignores_failure {
                tracing::warn!(policy = policy.name, why, "a mutating policy failed; passing by");
                return;
            }
            let (policy, binding) = (&policy.name, &binding.name);
            let text = format!("policy '{policy}' with binding '{binding}' denied request: {why}");
            failures.push((text, "Invalid"));
        };
        let mut hold = Ok(false);
        input(before.as_ref(), &mut |input| hold = conditions_hold(&policy.conditions, input));
        match hold {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(why) => {
                fail(why);
                return Ok(());
            }
        }
        let param = params.map(|p| format!("{}/{}", p.namespace(), p.name())).unwrap_or_default();
        let key = format!("{}/{}/{param}", policy.name, binding.name);
        if request.reinvocation.second && !request.reinvocation.policies.due.contains(&key) {
            return Ok(());
        }
        let mut object = before.clone();
        for mutation in &policy.mutations {
            let Some(current) = object.as_mut() else { break };
            let row = versions.row_of(current);
            let node = match &row {
                Some(row) => node(row),
                None => mutate::node_of(current),
            };
            let mut outcome = Err(Fault::Policy(String::new()));
            input(Some(&*current), &mut |input| outcome = mutate::mutate(policy, mutation, node, input));
            let outcome = outcome.and_then(|mut changed| {
                versions.settle(&mut changed, mutation.json_patch).map_err(Fault::Request)?;
                Ok(changed)
            });
            match outcome {
                Ok(changed) => *current = changed,
                Err(Fault::Policy(why)) => fail(why),
                Err(Fault::Request(status)) => return Err(status),
            }
        }
        if object != before
            && let Some(object) = object
        {
            let object = versions.back(how, request.info, object).await?;
            if let Some(target) = request.object.as_deref_mut() {
                *target = object;
            }
            request.reinvocation.policies.changed();
            request.reinvocation.wanted = true;
        }
        if policy.reinvoked {
            request.reinvocation.policies.made.insert(key);
        }
        Ok(())
    }
}

#[async_trait]
impl Admission for MutatingPolicies {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        self.0.wants(operation, info)
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let mut failures: Vec<Failure> = Vec::new();
        let mut wanted = Vec::new();
        for one in self.0.invocations(request).await {
            match one {
                Ok(one) => wanted.push(one),
                Err(p) if p.policy.ignores_failure => {
                    tracing::warn!(
                        policy = p.policy.name,
                        why = p.message,
                        "a mutating policy failed; passing by"
                    );
                }
                Err(p) => failures.push((
                    match &p.binding {
                        Some(binding) => format!(
                            "policy '{}' with binding '{}' denied request: {}",
                            p.policy.name, binding.name, p.message
                        ),
                        None => format!("policy {:?} denied request: {}", p.policy.name, p.message),
                    },
                    "",
                )),
            }
        }
        if wanted.iter().any(|one| !one.params.is_empty()) {
            let second = request.reinvocation.second;
            if second && request.reinvocation.policies.last.as_ref() != request.object.as_deref() {
                request.reinvocation.policies.changed();
            }
            let namespace = self.0.namespace(request).await?;
            for one in &wanted {
                for params in &one.params {
                    self.run(request, one, params.as_ref(), namespace.as_ref(), &mut failures).await?;
                }
            }
            request.reinvocation.policies.last = request.object.as_deref().cloned();
        }
        refusal(request, failures)
    }
}

/// The answer to a request for which policies failed.
fn refusal(request: &AdmissionRequest<'_>, failures: Vec<Failure>) -> Result<(), Status> {
    let Some((first, reason)) = failures.first() else { return Ok(()) };
    let mut status = forbidden(request, first);
    status.message = first.clone();
    if !reason.is_empty() {
        // The code stays that of a refusal.
        status.reason = (*reason).into();
    }
    Err(failures.into_iter().fold(status, |status, (text, _)| status.with_cause("", text, "")))
}
