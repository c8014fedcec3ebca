//! The seams between the request pipeline and access control.
//!
//! The pipeline (`crate::pipeline`) owns the order of steps: authenticate → impersonate → authorize →
//! admission → registry. Who may do what is decided behind the traits of this module; what they may look at
//! is [`ObjectReader`], a read-only window on the watch caches, and [`LocalApi`], the whole pipeline called in
//! process. Nothing behind these traits touches storage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use hawser_api::status::Status;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::body::Body;
use crate::request_info::RequestInfo;

/// Group of every authenticated user.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// Group of requests without credentials.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// Group that may do everything.
pub const GROUP_MASTERS: &str = "system:masters";
/// Name of the user of requests without credentials.
pub const USER_ANONYMOUS: &str = "system:anonymous";

/// Who makes a request (`authentication.k8s.io/v1` UserInfo).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// Unique name of the user.
    pub username: String,
    /// Id of the user over time; empty when unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Groups the user is in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What else the authenticator says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user with a name and groups; `system:authenticated` is added.
    pub fn new<G: Into<String>>(username: impl Into<String>, groups: impl IntoIterator<Item = G>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        if !groups.iter().any(|g| g == GROUP_AUTHENTICATED) {
            groups.push(GROUP_AUTHENTICATED.into());
        }
        Self { username: username.into(), groups, ..Self::default() }
    }

    /// The user of requests without credentials.
    pub fn anonymous() -> Self {
        Self {
            username: USER_ANONYMOUS.into(),
            groups: vec![GROUP_UNAUTHENTICATED.into()],
            ..Self::default()
        }
    }

    /// The API server's own identity (`system:apiserver` in `system:masters`), used for its start-up writes.
    pub fn apiserver() -> Self {
        Self::new("system:apiserver", [GROUP_MASTERS])
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Why a request could not be authenticated.
#[derive(Debug, thiserror::Error)]
pub enum AuthnError {
    /// Credentials were sent and are not valid: 401.
    #[error("invalid credentials: {0}")]
    Invalid(String),
    /// The authenticator could not decide.
    #[error("authentication failed: {0}")]
    Internal(String),
}

/// Who sends a request, as its credentials say.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who it is.
    pub user: Arc<UserInfo>,
    /// What to tell whoever uses such credentials.
    pub warning: Option<&'static str>,
}

/// Finds out who sends a request.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Called once per TLS connection with the client's chain, which rustls has verified against the client CA.
    /// The answer holds for every request of the connection that carries no other credentials.
    fn connection(&self, chain: &[CertificateDer<'static>]) -> Option<Arc<UserInfo>>;

    /// Called for each request from the network. `connection` is what [`Authenticator::connection`] answered.
    /// `Ok(None)` means that no (known) credentials were sent; the pipeline then makes the request anonymous,
    /// or refuses it if anonymous requests are off. Must take credentials out of no header: the pipeline removes
    /// `Authorization` afterwards.
    async fn authenticate(
        &self,
        headers: &http::HeaderMap,
        connection: Option<&Arc<UserInfo>>,
    ) -> Result<Option<Identity>, AuthnError>;
}

/// What an authorizer looks at. For a request on a path that is no resource, `resource_request` is false and
/// only `user`, `verb` (the lower-case HTTP method) and `path` count.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    /// Who asks.
    pub user: &'a UserInfo,
    /// get, list, watch, create, update, patch, delete, deletecollection, proxy, impersonate, bind, escalate, …
    pub verb: &'a str,
    /// Whether the fields from `api_group` on hold.
    pub resource_request: bool,
    /// Empty for the core group.
    pub api_group: &'a str,
    /// Version as in the path.
    pub api_version: &'a str,
    /// Plural resource name.
    pub resource: &'a str,
    /// Empty without one.
    pub subresource: &'a str,
    /// Empty for cluster scope or all namespaces.
    pub namespace: &'a str,
    /// Empty when the request names no object. For list and watch with `fieldSelector=metadata.name=x` it is x.
    pub name: &'a str,
    /// URL path.
    pub path: &'a str,
    /// The query's `fieldSelector` as sent; empty without one and for other verbs than list, watch and
    /// deletecollection.
    pub field_selector: &'a str,
}

/// What one authorizer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Allowed; no other authorizer is asked.
    Allow,
    /// Denied; no other authorizer is asked.
    Deny,
    /// The next authorizer decides; after the last one it is a denial.
    NoOpinion,
}

/// A decision with its reason.
#[derive(Debug, Clone)]
pub struct Authorization {
    /// The decision.
    pub decision: Decision,
    /// A text for people: `RBAC: allowed by …`; empty when there is nothing to say.
    pub reason: String,
    /// An error met on the way (`evaluationError` of access reviews); empty without one.
    pub error: String,
}

impl Authorization {
    /// A decision with a reason and no error.
    pub fn new(decision: Decision, reason: impl Into<String>) -> Self {
        Self { decision, reason: reason.into(), error: String::new() }
    }
}

/// Decides whether a request may be made.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Decides. Runs on every request: must not wait for anything but a cache that is starting.
    async fn authorize(&self, attributes: &Attributes<'_>) -> Authorization;
}

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// POST, or PUT/PATCH that creates.
    Create,
    /// PUT or PATCH of what exists.
    Update,
    /// DELETE, and each object of a deletecollection.
    Delete,
    /// exec, attach, port-forward, proxy.
    Connect,
}

/// What admission looks at and, in [`Admission::admit`], may change. JSON is in the version of the request.
pub struct AdmissionRequest<'a> {
    /// Who asks.
    pub user: &'a UserInfo,
    /// What is done.
    pub operation: Operation,
    /// The request as parsed: group, version, resource, subresource, namespace and name (empty before
    /// `generateName` has made one).
    pub info: &'a RequestInfo,
    /// Kind of `object` (`Scale` for the scale subresource).
    pub kind: &'a str,
    /// The object as it is to be stored, defaults filled in. None on delete; the options of a connect.
    pub object: Option<&'a mut Value>,
    /// The object as stored now. None on create and connect.
    pub old_object: Option<&'a Value>,
    /// Whether nothing will be stored: side effects are forbidden.
    pub dry_run: bool,
    /// CreateOptions, UpdateOptions, PatchOptions or DeleteOptions.
    pub options: &'a Value,
    /// Texts for `Warning:` headers, in both halves of admission.
    pub warnings: Mutex<Vec<String>>,
    /// Whether plugins that have seen the object want to see it again.
    pub reinvocation: Reinvocation,
}

impl AdmissionRequest<'_> {
    /// Adds a text for a `Warning:` header.
    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.lock().push(text.into());
    }
}

/// Memory of the mutating half: it runs a second time when a plugin that changed the object asks for it, so that
/// plugins before it see the change (KEP-492).
#[derive(Debug, Default)]
pub struct Reinvocation {
    /// Set by a plugin: the chain is to run once more.
    pub wanted: bool,
    /// Whether this is the second run.
    pub second: bool,
    /// What the webhooks remember.
    pub webhooks: ReinvokedCalls,
    /// What the mutating policies remember.
    pub policies: ReinvokedCalls,
}

/// Calls of one kind (webhooks) that may be repeated.
#[derive(Debug, Default)]
pub struct ReinvokedCalls {
    /// The object after the last call of the first run.
    pub last: Option<Value>,
    /// Ids of calls that were made and may be repeated.
    pub made: BTreeSet<String>,
    /// Ids of calls that are to be repeated, because the object has changed since.
    pub due: BTreeSet<String>,
}

impl ReinvokedCalls {
    /// The object has changed: all calls made so far are due again.
    pub fn changed(&mut self) {
        self.due.append(&mut self.made);
    }
}

/// Changes and judges writes. The pipeline runs `admit` of all plugins in order, then the registry's validation,
/// then `validate` of all plugins.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Name as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;
    /// Whether the plugin wants to see such requests; asked first, so that it costs nothing otherwise.
    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool;
    /// May change the object. A Status refuses the request.
    async fn admit(&self, _request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
    /// May only refuse.
    async fn validate(&self, _request: &AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}

/// A call on a resource that is computed rather than stored.
pub struct VirtualRequest<'a> {
    /// Who asks.
    pub user: &'a UserInfo,
    /// The request as parsed.
    pub info: &'a RequestInfo,
    /// The decoded body, kind and apiVersion checked, defaults filled in.
    pub object: Value,
    /// Whether the request is a dry run.
    pub dry_run: bool,
}

/// Create-only resources and subresources: access reviews, token reviews, `serviceaccounts/token`.
#[async_trait]
pub trait VirtualResource: Send + Sync + 'static {
    /// Whether this is the one to answer `create` on group/resource/subresource.
    fn handles(&self, group: &str, resource: &str, subresource: &str) -> bool;
    /// The answer's object, sent with 201.
    async fn create(&self, request: VirtualRequest<'_>) -> Result<Value, Status>;
}

/// Connection-like subresources: `pods/exec`, `pods/attach`, `pods/portforward`, `pods/log`, `*/proxy`.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Whether this is the one to answer any method on group/resource/subresource.
    fn handles(&self, group: &str, resource: &str, subresource: &str) -> bool;
    /// The answer. Upgrades are taken with `hyper::upgrade::on(&mut request)`; the answer is then a 101 and the
    /// connector moves bytes in a task of its own.
    async fn connect(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status>;
}

/// Names a resource without version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource {
    /// Empty for the core group.
    pub group: String,
    /// Plural name.
    pub resource: String,
}

impl GroupResource {
    /// Names a resource.
    pub fn new(group: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { group: group.into(), resource: resource.into() }
    }
}

/// An object as the watch cache holds it, in the version it is stored in.
#[derive(Debug, Clone)]
pub struct ObjectRef {
    /// Empty for cluster scope.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// `metadata.resourceVersion`.
    pub resource_version: u64,
    /// JSON, shared with every reader.
    pub json: Bytes,
}

impl ObjectRef {
    /// Decodes the object.
    ///
    /// # Errors
    /// When the stored JSON does not fit `T`.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.json)
    }
}

/// A change of a resource, in the order of revisions.
#[derive(Debug, Clone)]
pub enum Change {
    /// All objects there are: the first item, and again whenever the subscriber fell behind. What was known
    /// before is void.
    Reset(Vec<ObjectRef>),
    /// Created or changed.
    Applied(ObjectRef),
    /// Deleted; the last state.
    Deleted(ObjectRef),
}

/// Why reading from a cache failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// There is no such resource.
    #[error("no resource {0:?}")]
    NoResource(GroupResource),
    /// Storage cannot be read. Never to be taken for "no objects".
    #[error("storage: {0}")]
    Storage(String),
}

/// Read-only window on the watch caches. A resource's cache starts with the first call for it and is then kept.
/// Answers may be older than the last write by the cache's lag; `fresh` asks storage how far it must have come.
#[async_trait]
pub trait ObjectReader: Send + Sync + 'static {
    /// One object; `namespace` is empty for cluster scope.
    async fn get(
        &self,
        resource: &GroupResource,
        namespace: &str,
        name: &str,
        fresh: bool,
    ) -> Result<Option<ObjectRef>, ReadError>;
    /// All objects of a namespace, or of all when None.
    async fn list(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
        fresh: bool,
    ) -> Result<Vec<ObjectRef>, ReadError>;
    /// All objects, then every change, without a gap. Ends only when the server stops.
    fn changes(&self, resource: &GroupResource) -> Result<BoxStream<'static, Change>, ReadError>;
}

/// The whole request pipeline, called in process with an identity of the caller's choice.
#[async_trait]
pub trait LocalApi: Send + Sync + 'static {
    /// Sends a request: `path` with query, JSON in and out. `content_type` defaults to `application/json`.
    ///
    /// # Errors
    /// The Status of an answer from 400 on.
    async fn call(
        &self,
        user: Arc<UserInfo>,
        method: http::Method,
        path: &str,
        body: Option<Value>,
        content_type: Option<&str>,
    ) -> Result<Value, Status>;
}

/// What an [`AccessBuilder`] may use.
#[derive(Clone)]
pub struct Host {
    /// Built-in objects by group, resource, namespace and name.
    pub reader: Arc<dyn ObjectReader>,
    /// Requests in process; works from the moment on when the server has been put together.
    pub local: Arc<dyn LocalApi>,
    /// The served kinds and the conversion between their versions.
    pub versions: crate::admission::Versions,
    /// Calls webhooks.
    pub webhooks: Arc<crate::webhook::Client>,
    /// Cancelled when the server stops: background tasks end with it.
    pub stop: tokio_util::sync::CancellationToken,
}

/// Makes a document: content type and bytes.
pub type Document = Arc<dyn Fn() -> (String, Bytes) + Send + Sync>;

/// All parts of access control.
pub struct Access {
    /// Who it is.
    pub authenticator: Arc<dyn Authenticator>,
    /// Whether requests without credentials are `system:anonymous` (else 401).
    pub anonymous: bool,
    /// Whether it may.
    pub authorizer: Arc<dyn Authorizer>,
    /// Admission plugins in their order.
    pub admission: Vec<Arc<dyn Admission>>,
    /// Access reviews, tokens.
    pub virtuals: Vec<Arc<dyn VirtualResource>>,
    /// exec, attach, logs, proxy.
    pub connectors: Vec<Arc<dyn Connector>>,
    /// What nodes and pods use, on a server that reads it.
    pub usage: Option<Arc<crate::usage::Usage>>,
    /// Documents at paths that are no resources: `/.well-known/openid-configuration`, `/openid/v1/jwks`.
    pub documents: Vec<(String, Document)>,
    /// Objects that must exist before the server is ready.
    pub bootstrap: Vec<BootstrapObject>,
}

/// An object that the server keeps in place from its start on.
#[derive(Debug, Clone)]
pub struct BootstrapObject {
    /// The object with kind and apiVersion.
    pub object: Value,
    /// What to do if it is there already.
    pub policy: BootstrapPolicy,
}

/// What to do with a bootstrap object that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootstrapPolicy {
    /// Leave it.
    CreateOnly,
    /// Add the labels, annotations, rules, aggregation rule and subjects that miss (RBAC's reconciliation), unless
    /// annotated `rbac.authorization.kubernetes.io/autoupdate: "false"`; replace a role binding whose role differs.
    ReconcileRbac,
    /// Put back `spec` unless annotated `apf.kubernetes.io/autoupdate-spec: "false"`.
    ReconcileSpec,
}

/// Puts access control together once the caches can be read.
#[async_trait]
pub trait AccessBuilder: Send + Sync {
    /// Builds. Must not wait for `host.local`.
    ///
    /// # Errors
    /// A text that says what is wrong with the configuration or the keys.
    async fn build(&self, host: Host) -> Result<Access, String>;
}
