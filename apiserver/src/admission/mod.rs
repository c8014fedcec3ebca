//! Admission: the plugins that kube-apiserver 1.36 has on by default, in its order.
//!
//! Of those absent here, ClusterTrustBundleAttest, PodGroupProtection, PodGroupWorkloadExists and JobValidation judge
//! what is served only with feature gates that are off by default.

mod certificates;
mod defaults;
mod escalation;
mod limit_ranger;
mod namespace;
mod node_csr;
mod node_restriction;
mod pod_security;
mod policy;
mod priority;
mod quota;
mod resize;
mod runtime_class;
mod service_account;
mod topology;
mod versions;
mod webhooks;

use std::sync::Arc;

use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use hawser_api::text::quote;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::access::{Admission, AdmissionRequest, GroupResource, Host, ObjectReader};
use crate::authz::Authorizers;
use crate::request_info::RequestInfo;

/// All plugins, in the order in which they run.
pub fn plugins(host: &Host, authorizers: &Arc<Authorizers>) -> Vec<Arc<dyn Admission>> {
    let reader = Lookup(Arc::clone(&host.reader));
    vec![
        Arc::new(namespace::NamespaceLifecycle { reader: reader.clone() }),
        Arc::new(limit_ranger::LimitRanger { reader: reader.clone() }),
        Arc::new(service_account::ServiceAccount::new(reader.clone(), &host.stop)),
        Arc::new(node_restriction::NodeRestriction { reader: reader.clone() }),
        Arc::new(defaults::TaintNodesByCondition),
        Arc::new(pod_security::PodSecurity { reader: reader.clone() }),
        Arc::new(priority::Priority { reader: reader.clone() }),
        Arc::new(defaults::DefaultTolerationSeconds),
        Arc::new(defaults::DefaultStorageClass { reader: reader.clone() }),
        Arc::new(defaults::StorageObjectInUseProtection),
        Arc::new(resize::ClaimResize { reader: reader.clone() }),
        Arc::new(runtime_class::RuntimeClass { reader: reader.clone() }),
        Arc::new(certificates::CertificateRequester),
        Arc::new(certificates::CertificateApproval { authorizers: Arc::clone(authorizers) }),
        Arc::new(certificates::CertificateSigning { authorizers: Arc::clone(authorizers) }),
        Arc::new(certificates::CertificateSubjectRestriction),
        Arc::new(defaults::DefaultIngressClass { reader: reader.clone() }),
        Arc::new(topology::PodTopologyLabels { reader: reader.clone() }),
        Arc::new(resize::PodResize { reader: reader.clone() }),
        Arc::new(escalation::RbacEscalation { authorizers: Arc::clone(authorizers) }),
        Arc::new(policy::MutatingPolicies::new(host, authorizers)),
        Arc::new(webhooks::MutatingWebhooks::new(host, authorizers)),
        Arc::new(policy::ValidatingPolicies::new(host, authorizers)),
        Arc::new(webhooks::ValidatingWebhooks::new(host, authorizers)),
        // Last: what another plugin refuses is not charged.
        Arc::new(quota::ResourceQuota { reader, local: host.local.clone(), desks: Arc::default() }),
    ]
}

pub use self::versions::Versions;

/// Reads objects for plugins and their webhooks.
#[derive(Clone)]
pub struct Lookup(pub Arc<dyn ObjectReader>);

impl Lookup {
    /// One object: from the cache, or when it is not there (yet) from as far as the store has come.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn get(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Status> {
        self.get_as(group, resource, namespace, name).await
    }

    /// The same, with only the fields of `T` read.
    async fn get_as<T: DeserializeOwned>(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>, Status> {
        let key = GroupResource::new(group, resource);
        for fresh in [false, true] {
            let found = self.0.get(&key, namespace, name, fresh).await.map_err(Status::internal)?;
            if let Some(found) = found {
                return found.decode().map(Some).map_err(Status::internal);
            }
        }
        Ok(None)
    }

    /// One object as the store has it.
    async fn get_fresh(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Status> {
        let found = self.0.get(&GroupResource::new(group, resource), namespace, name, true).await;
        found.map_err(Status::internal)?.map(|o| o.decode()).transpose().map_err(Status::internal)
    }

    /// All objects of a namespace.
    async fn list_in(&self, group: &str, resource: &str, namespace: &str) -> Result<Vec<Value>, Status> {
        self.list_in_as(group, resource, namespace, false).await
    }

    /// The same, as new as the store has them if `fresh`, with only the fields of `T` read.
    async fn list_in_as<T: DeserializeOwned>(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        fresh: bool,
    ) -> Result<Vec<T>, Status> {
        let found = self.0.list(&GroupResource::new(group, resource), Some(namespace), fresh).await;
        let found = found.map_err(Status::internal)?;
        found.iter().map(|o| o.decode().map_err(Status::internal)).collect()
    }

    /// Whether a namespace has no object of a resource.
    async fn is_empty_in(&self, group: &str, resource: &str, namespace: &str) -> Result<bool, Status> {
        let found = self.0.list(&GroupResource::new(group, resource), Some(namespace), false).await;
        Ok(found.map_err(Status::internal)?.is_empty())
    }

    /// All objects of a cluster-scoped resource, of which there are few (classes).
    async fn list(&self, group: &str, resource: &str) -> Result<Vec<Value>, Status> {
        self.list_as(group, resource).await
    }

    /// The same, with only the fields of `T` read.
    async fn list_as<T: DeserializeOwned>(&self, group: &str, resource: &str) -> Result<Vec<T>, Status> {
        let found =
            self.0.list(&GroupResource::new(group, resource), None, false).await.map_err(Status::internal)?;
        found.iter().map(|o| o.decode().map_err(Status::internal)).collect()
    }
}

/// Of an object, its labels.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Labelled {
    metadata: LabelledMeta,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LabelledMeta {
    labels: Map<String, Value>,
}

/// Whether a request is on this resource itself.
fn is(info: &RequestInfo, group: &str, resource: &str) -> bool {
    info.group == group && info.resource == resource && info.subresource.is_empty()
}

/// The name that messages give to the object of a request.
fn name_of(request: &AdmissionRequest<'_>) -> String {
    if !request.info.name.is_empty() {
        return request.info.name.clone();
    }
    let object = request.object.as_deref();
    let name = object.map_or("", |o| o.name());
    if name.is_empty() { object.map_or("", |o| o.generate_name()).to_owned() } else { name.to_owned() }
}

/// The name of the object of a request; empty before one is made up.
fn name_in(request: &AdmissionRequest<'_>) -> String {
    if !request.info.name.is_empty() {
        return request.info.name.clone();
    }
    request.object.as_deref().map_or("", |o| o.name()).to_owned()
}

/// 403 of a plugin.
fn forbidden(request: &AdmissionRequest<'_>, why: impl std::fmt::Display) -> Status {
    Status::forbidden(&request.info.group, &request.info.resource, &name_of(request), why)
}

/// Why no client could ask for an object of that name, in client-go's words.
fn unaskable(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("resource name may not be empty".to_owned());
    }
    let why = hawser_api::names::path_segment(name);
    (!why.is_empty()).then(|| format!("invalid resource name {}: [{}]", quote(name), why.join(" ")))
}

/// The array at `path` below `object`, made when it is missing.
fn array_mut<'a>(object: &'a mut Value, path: &[&str]) -> Option<&'a mut Vec<Value>> {
    if !object.get_path(path).is_some_and(Value::is_array) {
        object.set_path(path, Value::Array(Vec::new()));
    }
    hawser_api::object::get_path_mut(object, path)?.as_array_mut()
}

#[cfg(test)]
mod testing;
