//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: CEL judges and changes requests.
//!
//! A policy is compiled once, when it is written, and held in an index by resource: a request that no policy is for
//! costs one look. `compiled`, `scope`, `validate` and `mutate` are pure. Source: KEP-3488, KEP-3962.

mod compiled;
mod criteria;
mod index;
mod mutate;
mod mutating;
mod params;
pub(super) mod scope;
mod validate;
mod validating;

use std::sync::Arc;

use arc_swap::ArcSwap;
use hawser_api::status::Status;
use parking_lot::Mutex;
use serde_json::Value;

use self::compiled::{Binding, Policy};
pub(super) use self::compiled::{Named, conditions};
use self::index::{Held, Index};
pub use self::mutating::MutatingPolicies;
pub(super) use self::scope::conditions_hold;
pub use self::validating::ValidatingPolicies;
use super::webhooks::hook::Match;
use super::{Lookup, Versions};
use crate::access::{AdmissionRequest, Change, GroupResource, Host, Operation};
use crate::authz::Authorizers;
use crate::authz::follow::{Apply, Ready, follow};
use crate::request_info::RequestInfo;

const GROUP: &str = "admissionregistration.k8s.io";

/// What both plugins are made of.
struct Engine {
    reader: Lookup,
    authorizers: Arc<Authorizers>,
    versions: Versions,
    index: Arc<ArcSwap<Index>>,
    /// Whether the policies that there were at start are in the index.
    ready: Ready,
}

/// A policy that is to run for a binding.
struct Invocation {
    policy: Arc<Policy>,
    binding: Arc<Binding>,
    /// In which version the policy sees the request.
    how: Match,
    /// It runs once with each.
    params: Vec<Option<Value>>,
}

/// A policy or binding that cannot be used for a request.
struct Problem {
    policy: Arc<Policy>,
    /// None when it is the policy's.
    binding: Option<Arc<Binding>>,
    message: String,
}

impl Engine {
    fn new(host: &Host, authorizers: &Arc<Authorizers>, sort: &str) -> Self {
        let (index, held) = (Arc::new(ArcSwap::<Index>::default()), Arc::new(Mutex::<Held>::default()));
        let resource = |what: &str, note: fn(&mut Held, Change)| -> (GroupResource, Apply) {
            let (held, target) = (Arc::clone(&held), Arc::clone(&index));
            let apply = move |change| {
                let mut held = held.lock();
                note(&mut held, change);
                target.store(Arc::new(held.index()));
            };
            (GroupResource::new(GROUP, format!("{sort}admission{what}")), Box::new(apply))
        };
        let resources = vec![resource("policies", Held::policy), resource("policybindings", Held::binding)];
        Self {
            ready: follow(&*host.reader, resources, &host.stop),
            reader: Lookup(Arc::clone(&host.reader)),
            authorizers: Arc::clone(authorizers),
            versions: host.versions.clone(),
            index,
        }
    }

    fn wants(&self, operation: Operation, info: &RequestInfo) -> bool {
        // Configurations of admission cannot lock their own repair.
        info.group != GROUP
            && (!self.ready.is() || !self.index.load().concern(&self.versions, operation, info).is_empty())
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
        Ok(Some(scope::shown_namespace(found)))
    }

    /// What runs for a request, in the order of the policies' and the bindings' names.
    async fn invocations(&self, request: &AdmissionRequest<'_>) -> Vec<Result<Invocation, Problem>> {
        self.ready.wait().await;
        let mut found = Vec::new();
        for active in self.index.load().concern(&self.versions, request.operation, request.info) {
            let policy = &active.policy;
            let failed = |binding: Option<&Arc<Binding>>, why: String| {
                let what = if binding.is_some() { "binding" } else { "policy" };
                let message = format!("failed to configure {what}: {why}");
                Err(Problem { policy: Arc::clone(policy), binding: binding.cloned(), message })
            };
            let row = match policy.criteria.select(&self.reader, &self.versions, request).await {
                Ok(None) => continue,
                Ok(Some(how)) => {
                    params::row(&self.versions, policy.param_kind.as_ref()).map(|row| (how, row))
                }
                Err(why) => Err(why),
            };
            let (how, row) = match row {
                Ok(found) => found,
                Err(why) => {
                    found.push(failed(None, why));
                    continue;
                }
            };
            for binding in &active.bindings {
                let selected = match binding.criteria.select(&self.reader, &self.versions, request).await {
                    Ok(None) => continue,
                    Ok(Some(_)) => {
                        let namespace = &request.info.namespace;
                        params::collect(&self.reader, &self.versions, row.as_deref(), binding, namespace)
                            .await
                    }
                    Err(why) => Err(why),
                };
                found.push(match selected {
                    Ok(params) => Ok(Invocation {
                        policy: Arc::clone(policy),
                        binding: Arc::clone(binding),
                        how: how.clone(),
                        params,
                    }),
                    Err(why) => failed(Some(binding), why),
                });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
