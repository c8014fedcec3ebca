//! Objects and requests for the plugins' tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Lookup;
use crate::access::{
    Admission, AdmissionRequest, Change, GroupResource, ObjectReader, ObjectRef, Operation, ReadError,
    Reinvocation, UserInfo,
};
use crate::authz::follow::{FollowedGraph, Ready};
use crate::authz::node::NodeAuthorizer;
use crate::authz::node::graph::NodeGraph;
use crate::authz::{Authorizers, RbacAuthorizer};
use crate::request_info::RequestInfo;

/// Authorizers that allow members of `system:masters` everything, and others nothing.
pub(super) fn authorizers() -> Arc<Authorizers> {
    let rbac = RbacAuthorizer { index: Arc::default(), ready: Ready::now() };
    let node = NodeAuthorizer { followed: FollowedGraph::fixed(NodeGraph::default()), rules: Arc::from([]) };
    Arc::new(Authorizers { node, rbac })
}

#[derive(Default)]
pub(super) struct Objects(Mutex<BTreeMap<(GroupResource, String, String), Value>>);

fn reference(object: &Value) -> ObjectRef {
    ObjectRef {
        namespace: object.namespace().into(),
        name: object.name().into(),
        resource_version: 1,
        json: object.to_string().into(),
    }
}

#[async_trait::async_trait]
impl ObjectReader for Objects {
    async fn get(
        &self,
        r: &GroupResource,
        ns: &str,
        name: &str,
        _: bool,
    ) -> Result<Option<ObjectRef>, ReadError> {
        Ok(self.0.lock().get(&(r.clone(), ns.to_owned(), name.to_owned())).map(reference))
    }

    async fn list(&self, r: &GroupResource, ns: Option<&str>, _: bool) -> Result<Vec<ObjectRef>, ReadError> {
        let objects = self.0.lock();
        let here = objects.iter().filter(|((of, in_ns, _), _)| of == r && ns.is_none_or(|ns| ns == in_ns));
        Ok(here.map(|(_, object)| reference(object)).collect())
    }

    fn changes(&self, _: &GroupResource) -> Result<BoxStream<'static, Change>, ReadError> {
        Ok(futures::stream::iter([Change::Reset(Vec::new())]).chain(futures::stream::pending()).boxed())
    }
}

impl Objects {
    pub(super) fn find(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (GroupResource::new(group, resource), namespace.to_owned(), name.to_owned());
        self.0.lock().get(&key).cloned()
    }

    pub(super) fn put(&self, group: &str, resource: &str, object: Value) {
        let key =
            (GroupResource::new(group, resource), object.namespace().to_owned(), object.name().to_owned());
        self.0.lock().insert(key, object);
    }
}

/// A store's worth of objects.
pub(super) struct World {
    pub(super) objects: Arc<Objects>,
    pub(super) user: UserInfo,
}

impl World {
    pub(super) fn new() -> Self {
        Self { objects: Arc::default(), user: UserInfo::apiserver() }
    }

    pub(super) fn node(name: &str) -> Self {
        Self { user: UserInfo::new(format!("system:node:{name}"), ["system:nodes"]), ..Self::new() }
    }

    pub(super) fn lookup(&self) -> Lookup {
        Lookup(self.objects.clone())
    }

    pub(super) fn put(&self, group: &str, resource: &str, object: Value) {
        self.objects.put(group, resource, object);
    }

    fn request(&self, method: &Method, path: &str, object: Option<Value>, old: Option<Value>) -> TestRequest {
        let info = RequestInfo::parse(method, &path.parse().expect("path"));
        assert!(info.is_resource, "{path}");
        let operation = match (method, &object) {
            (_, None) => Operation::Delete,
            (m, _) if m == Method::POST => Operation::Create,
            _ => Operation::Update,
        };
        TestRequest { user: self.user.clone(), info, operation, object, old }
    }

    pub(super) fn post(&self, path: &str, object: Value) -> TestRequest {
        self.request(&Method::POST, path, Some(object), None)
    }

    pub(super) fn put_request(&self, path: &str, object: Value, old: Value) -> TestRequest {
        self.request(&Method::PUT, path, Some(object), Some(old))
    }

    pub(super) fn delete(&self, path: &str, old: Value) -> TestRequest {
        self.request(&Method::DELETE, path, None, Some(old))
    }
}

/// A request that a plugin can be asked about.
pub(super) struct TestRequest {
    user: UserInfo,
    info: RequestInfo,
    operation: Operation,
    object: Option<Value>,
    old: Option<Value>,
}

impl TestRequest {
    pub(super) fn by(mut self, user: UserInfo) -> Self {
        self.user = user;
        self
    }

    /// As the plugins get it.
    fn as_admission<'r>(&'r mut self, options: &'r Value) -> AdmissionRequest<'r> {
        AdmissionRequest {
            user: &self.user,
            operation: self.operation,
            info: &self.info,
            kind: "",
            object: self.object.as_mut(),
            old_object: self.old.as_ref(),
            dry_run: false,
            options,
            warnings: Mutex::default(),
            reinvocation: Reinvocation::default(),
        }
    }

    /// What a plugin that does not handle the request, or admits and validates it, leaves of the object.
    pub(super) async fn admit(mut self, plugin: &dyn Admission) -> Result<Value, Status> {
        if plugin.handles(self.operation, &self.info) {
            let options = json!({});
            let mut request = self.as_admission(&options);
            plugin.admit(&mut request).await?;
            plugin.validate(&request).await?;
        }
        Ok(self.object.unwrap_or_default())
    }

    /// What a plugin does while others may still change the object.
    pub(super) async fn admitted(&mut self, plugin: &dyn Admission) -> Result<(), Status> {
        plugin.admit(&mut self.as_admission(&json!({}))).await
    }

    /// The warnings that come with an accepted request.
    pub(super) async fn warnings(mut self, plugin: &dyn Admission) -> Vec<String> {
        let options = json!({});
        let mut request = self.as_admission(&options);
        plugin.admit(&mut request).await.expect("admitted");
        plugin.validate(&request).await.expect("valid");
        request.warnings.into_inner()
    }

    /// The text of a refusal, or `ok`.
    pub(super) async fn answer(self, plugin: &dyn Admission) -> String {
        self.admit(plugin).await.map_or_else(|status| status.message, |_| "ok".to_owned())
    }
}
