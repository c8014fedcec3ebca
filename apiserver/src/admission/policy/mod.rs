//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: CEL judges and changes requests.
//!
//! A policy is compiled once, when it or its definition changes, and held in an index by resource: a request that no
//! policy is for costs one look. Source: KEP-3488, KEP-3962.

mod compiled;
mod conditions;
mod criteria;
mod index;
mod mutate;
mod params;
mod scope;
mod validate;

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::StreamExt as _;
use hawser_api::kinds;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use serde_json::Value;

use self::compiled::{Binding, Policy};
pub use self::conditions::MatchConditions;
use self::index::{Active, Held, Index};
use self::params::CustomKinds;
use self::scope::{Asker, Input, conditions_hold, request_json, request_resource, shown_namespace};
use self::validate::Denial;
use super::webhooks::hook::Match;
use super::webhooks::{converted, settle, shown};
use super::{Lookup, forbidden};
use crate::access::{Admission, AdmissionRequest, GroupResource, Host, Operation};
use crate::authz::Authorizers;
use crate::request_info::RequestInfo;

const GROUP: &str = "admissionregistration.k8s.io";

/// What both plugins are made of.
struct Engine {
    reader: Lookup,
    authorizers: Arc<Authorizers>,
    index: Arc<ArcSwap<Index>>,
    custom: Arc<CustomKinds>,
}

impl Engine {
    fn new(host: &Host, authorizers: &Arc<Authorizers>, sort: &str) -> Self {
        let reader = Lookup(Arc::clone(&host.reader));
        let (index, custom) = (Arc::new(ArcSwap::<Index>::default()), Arc::new(CustomKinds::default()));
        let changes =
            |group: &str, resource: &str| match reader.0.changes(&GroupResource::new(group, resource)) {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::error!(%error, resource, "cannot follow a resource of admission policies");
                    futures::stream::pending().boxed()
                }
            };
        let mut policies = changes(GROUP, &format!("{sort}admissionpolicies"));
        let mut bindings = changes(GROUP, &format!("{sort}admissionpolicybindings"));
        let mut definitions = changes("apiextensions.k8s.io", "customresourcedefinitions");
        let (stop, target, kinds) = (host.stop.clone(), Arc::clone(&index), Arc::clone(&custom));
        tokio::spawn(async move {
            let mut held = Held::default();
            loop {
                let next = async {
                    tokio::select! {
                        change = policies.next() => change.map(|c| held.policy(c)),
                        change = bindings.next() => change.map(|c| held.binding(c)),
                        Some(change) = definitions.next() => {
                            params::note(&kinds, &change);
                            Some(())
                        }
                    }
                };
                if stop.run_until_cancelled(next).await.flatten().is_none() {
                    return;
                }
                target.store(Arc::new(held.index()));
            }
        });
        Self { reader, authorizers: Arc::clone(authorizers), index, custom }
    }

    fn matching(&self, operation: Operation, info: &RequestInfo) -> Vec<Arc<Active>> {
        // Configurations of admission cannot lock their own repair.
        if info.group == GROUP { Vec::new() } else { self.index.load().matching(operation, info) }
    }

    /// The namespace of a request, as expressions see it.
    async fn namespace(&self, request: &AdmissionRequest<'_>) -> Result<Option<Value>, Status> {
        let info = request.info;
        let is_namespace = info.group.is_empty() && info.resource == "namespaces";
        if info.namespace.is_empty() || is_namespace {
            return Ok(None);
        }
        let found = self.reader.get("", "namespaces", "", &info.namespace).await?;
        let found = found.ok_or_else(|| Status::not_found("", "namespaces", &info.namespace))?;
        Ok(Some(shown_namespace(found)))
    }

    /// A policy's bindings for a request, each with its parameters or why there are none.
    async fn bound<'p>(
        &self,
        active: &'p Active,
        request: &AdmissionRequest<'_>,
    ) -> Result<Vec<(&'p Binding, Result<Vec<Option<Value>>, String>)>, Status> {
        let mut found = Vec::new();
        for binding in &active.bindings {
            if binding.criteria.select(&self.reader, request).await?.is_none() {
                continue;
            }
            let kind = active.policy.param_kind.as_ref();
            let params =
                params::collect(&self.reader, &self.custom, kind, binding, &request.info.namespace).await;
            found.push((&**binding, params.map_err(|why| format!("failed to configure binding: {why}"))));
        }
        Ok(found)
    }
}

/// The validating plugin.
pub struct ValidatingPolicies(Engine);

/// The mutating plugin.
pub struct MutatingPolicies(Engine);

impl ValidatingPolicies {
    pub fn new(host: &Host, authorizers: &Arc<Authorizers>) -> Self {
        Self(Engine::new(host, authorizers, "validating"))
    }
}

impl MutatingPolicies {
    pub fn new(host: &Host, authorizers: &Arc<Authorizers>) -> Self {
        Self(Engine::new(host, authorizers, "mutating"))
    }
}

/// The refusal of a request by a validating policy.
fn refusal(request: &AdmissionRequest<'_>, policy: &Policy, binding: &Binding, denial: &Denial) -> Status {
    let message = format!(
        "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
        policy.name, binding.name, denial.message
    );
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

#[async_trait]
impl Admission for ValidatingPolicies {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        !self.0.matching(operation, info).is_empty()
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let mut refused: Option<Status> = None;
        let resource = request_resource(request.info);
        let asker = Asker { authorizers: &self.0.authorizers, user: request.user };
        for active in self.0.matching(request.operation, request.info) {
            let policy = &active.policy;
            let Some(how) = policy.criteria.select(&self.0.reader, request).await? else { continue };
            let bound = self.0.bound(&active, request).await?;
            if bound.is_empty() {
                continue;
            }
            let namespace = self.0.namespace(request).await?;
            let asked = request_json(request, &how);
            let object = shown(&how, request.info, request.object.as_deref());
            let old = shown(&how, request.info, request.old_object);
            for (binding, params) in bound {
                let params = match params {
                    Ok(params) => params,
                    Err(message) if !policy.ignores_failure => {
                        let denial = Denial { message, reason: String::new() };
                        refused.get_or_insert_with(|| refusal(request, policy, binding, &denial));
                        continue;
                    }
                    Err(_) => continue,
                };
                for params in &params {
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
                        act(request, policy, binding, denial, &mut refused);
                    }
                    for denial in &found.errors {
                        refused.get_or_insert_with(|| refusal(request, policy, binding, denial));
                    }
                    for (key, text) in found.annotations {
                        tracing::info!(policy = policy.name, key, text, "audit annotation of a policy");
                    }
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

/// Does what a binding wants done about a broken validation.
fn act(
    request: &AdmissionRequest<'_>,
    policy: &Policy,
    binding: &Binding,
    denial: &Denial,
    refused: &mut Option<Status>,
) {
    for action in &binding.actions {
        match action.as_str() {
            "Deny" => {
                refused.get_or_insert_with(|| refusal(request, policy, binding, denial));
            }
            "Warn" => request.warn(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, denial.message
            )),
            "Audit" => tracing::info!(
                policy = policy.name,
                binding = binding.name,
                message = denial.message,
                "validation.policy.admission.k8s.io/validation_failure"
            ),
            other => tracing::warn!(binding = binding.name, action = other, "unknown validation action"),
        }
    }
}

#[async_trait]
impl Admission for MutatingPolicies {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        !self.0.matching(operation, info).is_empty()
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let second = request.reinvocation.second;
        if second && request.reinvocation.policies.last.as_ref() != request.object.as_deref() {
            request.reinvocation.policies.changed();
        }
        for active in self.0.matching(request.operation, request.info) {
            let Some(how) = active.policy.criteria.select(&self.0.reader, request).await? else { continue };
            for (binding, params) in self.0.bound(&active, request).await? {
                self.bind(request, &active.policy, binding, params, &how).await?;
            }
        }
        request.reinvocation.policies.last = request.object.as_deref().cloned();
        Ok(())
    }
}

impl MutatingPolicies {
    /// Runs a policy for one binding.
    async fn bind(
        &self,
        request: &mut AdmissionRequest<'_>,
        policy: &Policy,
        binding: &Binding,
        params: Result<Vec<Option<Value>>, String>,
        how: &Match,
    ) -> Result<(), Status> {
        let refuse = |request: &AdmissionRequest<'_>, why: String| {
            if policy.ignores_failure {
                tracing::warn!(policy = policy.name, why, "mutating policy failed; passing by");
                return Ok(());
            }
            let message =
                format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name);
            let mut status = forbidden(request, &message).with_cause("", message, "");
            (status.reason, status.code) = ("Invalid".into(), 422);
            Err(status)
        };
        let params = match params {
            Ok(params) => params,
            Err(why) => return refuse(request, why),
        };
        let namespace = self.0.namespace(request).await?;
        for param in &params {
            let key = format!(
                "{}/{}/{}",
                policy.name,
                binding.name,
                param.as_ref().map(|p| format!("{}/{}", p.namespace(), p.name())).unwrap_or_default()
            );
            if request.reinvocation.second && !request.reinvocation.policies.due.contains(&key) {
                continue;
            }
            let Some(before) = shown(how, request.info, request.object.as_deref()) else { return Ok(()) };
            let old = shown(how, request.info, request.old_object);
            let changed = {
                let asker = Asker { authorizers: &self.0.authorizers, user: request.user };
                let resource = request_resource(request.info);
                let asked = request_json(request, how);
                let mut object = before.clone();
                let outcome = run_mutations(policy, &mut object, |object| Input {
                    object: Some(object),
                    old: old.as_ref(),
                    request: &asked,
                    namespace: namespace.as_ref(),
                    params: param.as_ref(),
                    asker: &asker,
                    resource: &resource,
                });
                outcome.map(|()| object)
            };
            let mut object = match changed {
                Ok(object) => object,
                Err(why) => {
                    refuse(request, why)?;
                    continue;
                }
            };
            if object != before {
                if let Match::Equivalent(from) = how
                    && let Some(own) =
                        kinds::find(&request.info.group, &request.info.version, &request.info.resource)
                {
                    object = converted(from, own, &object);
                }
                if let Some(target) = request.object.as_deref_mut() {
                    *target = object;
                }
                request.reinvocation.policies.changed();
                request.reinvocation.wanted = true;
            }
            if policy.reinvoked {
                request.reinvocation.policies.made.insert(key);
            }
        }
        Ok(())
    }
}

/// All mutations of a policy in their order, if its match conditions hold.
fn run_mutations(
    policy: &Policy,
    object: &mut Value,
    input: impl Fn(&Value) -> Input<'_>,
) -> Result<(), String> {
    if !conditions_hold(&policy.conditions, input(object))? {
        return Ok(());
    }
    for mutation in &policy.mutations {
        let mut changed = mutate::mutate(policy, mutation, input(object))?;
        settle(&mut changed).map_err(|status| status.message)?;
        *object = changed;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
