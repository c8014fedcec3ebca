//! The generic registry: one file per verb, no handler per kind.
//!
//! What is common to verbs is here: the call's context, decoding of bodies, and the order of admission. What differs
//! between kinds is data in the kinds table and the hooks of the api crate (`strategy`, `defaults`, `validation`).

pub mod apply;
pub mod body;
pub mod connect;
pub mod create;
pub mod delete;
pub mod delete_collection;
pub mod get;
pub mod list;
pub mod modify;
pub mod patch;
pub mod subresource;
pub mod token;
pub mod update;
pub mod usage;
pub mod virtual_read;
pub mod watch;

use std::sync::Arc;

use bytes::Bytes;
use hawser_api::status::Status;
use hawser_storage::Error as StorageError;
use http::HeaderMap;
use parking_lot::Mutex;
use serde_json::Value;

use crate::access::{Access, AdmissionRequest, Operation, Reinvocation, UserInfo};
use crate::alloc::Allocators;
use crate::body::Body;
use crate::cache::entry::Entry;
use crate::cache::feed::{Feed, FeedError};
use crate::cache::{Reloading, ResourceCache};
use crate::crd::convert::Converter;
use crate::kinds::{KindsRegistry, Row};
use crate::metrics::Series;
use crate::negotiate::Accepted;
use crate::options::{DeleteOptions, WriteOptions};
use crate::request_info::RequestInfo;

/// Largest request body, in bytes (as kube-apiserver).
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// The registry with all that verbs need.
pub struct Registry {
    /// Caches and storage.
    pub feed: Arc<Feed>,
    /// The rows served.
    pub kinds: Arc<KindsRegistry>,
    /// Who may, and admission.
    pub access: Access,
    /// Addresses and ports of Services.
    pub allocators: Allocators,
    /// Where writers of the same object wait for each other.
    pub queues: modify::Queues,
    /// Conversion of custom resources by webhooks.
    pub converter: Converter,
}

/// One request on one row.
pub struct Call<'a> {
    /// The parsed request line.
    pub info: &'a RequestInfo,
    /// Who asks.
    pub user: &'a Arc<UserInfo>,
    /// The row of the path.
    pub row: Arc<Row>,
    /// Headers as sent.
    pub headers: &'a HeaderMap,
    /// In which form the answer is wanted.
    pub accepted: Accepted,
    /// Texts for `Warning:` headers.
    pub warnings: Mutex<Vec<String>>,
    /// Counters of the request; None for requests that are parts of others.
    pub series: Option<Arc<Series>>,
}

/// What a verb answers; [`crate::respond`] makes bytes of it.
pub enum Answer {
    /// An object of the cache.
    Entry(Arc<Entry>),
    /// An object as stored: HTTP status, value, revision.
    Stored(u16, Bytes, u64),
    /// An object in the row's version, or of another kind (`Scale`, reviews).
    Object(u16, Value),
    /// A page of objects.
    List(list::Page),
    /// Objects that are not stored, in the row's version.
    Objects(Vec<Value>),
    /// A success without an object.
    Done(Box<Status>),
    /// Events from now on.
    Watch(Box<watch::Watch>),
}

/// What admission is told of a write, the object excepted.
#[derive(Clone, Copy)]
pub(crate) struct AdmissionStep<'a> {
    /// What is done.
    pub operation: Operation,
    /// Kind of the object.
    pub kind: &'a str,
    /// What is there.
    pub old: Option<&'a Value>,
    /// Whether nothing is stored.
    pub dry_run: bool,
    /// The request's options as an object.
    pub options: &'a Value,
}

impl<'a> AdmissionStep<'a> {
    fn request(self, call: &'a Call<'_>, object: Option<&'a mut Value>) -> AdmissionRequest<'a> {
        AdmissionRequest {
            user: call.user,
            operation: self.operation,
            info: call.info,
            kind: self.kind,
            object,
            old_object: self.old,
            dry_run: self.dry_run,
            options: self.options,
            warnings: Mutex::default(),
            reinvocation: Reinvocation::default(),
        }
    }
}

impl Call<'_> {
    /// Adds a warning.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// A header's text.
    pub fn header(&self, name: http::header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// The cache of the row.
    ///
    /// # Errors
    /// 405 for kinds that are not stored.
    pub fn cache(&self) -> Result<&Arc<ResourceCache>, Status> {
        self.row.cache.as_ref().ok_or_else(Status::method_not_allowed)
    }

    /// The namespace of the request; empty in cluster scope, even for requests on a Namespace itself.
    pub fn namespace(&self) -> &str {
        if self.row.kind.namespaced { &self.info.namespace } else { "" }
    }

    /// 404 for the named object.
    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(&self.row.kind.group, &self.row.kind.plural, name)
    }

    /// 409 for a stale resourceVersion.
    pub fn stale(&self, name: &str) -> Status {
        Status::stale(&self.row.kind.group, &self.row.kind.plural, name)
    }

    /// The name under which writes are noted in managedFields: what the client says, else its user agent's first
    /// word.
    pub fn manager(&self, options: &WriteOptions) -> String {
        if let Some(m) = &options.field_manager {
            return m.clone();
        }
        let agent = self.header(http::header::USER_AGENT).unwrap_or_default();
        let name = agent.split('/').next().unwrap_or_default();
        let name: String = name.chars().filter(|c| !c.is_control()).collect();
        let mut end = name.len().min(128);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name[..end].to_owned()
    }
}

impl Registry {
    /// The cache of a call, complete up to now.
    pub(crate) async fn consistent<'c>(&self, call: &'c Call<'_>) -> Result<&'c Arc<ResourceCache>, Status> {
        let cache = call.cache()?;
        self.feed.consistent(cache).await.map_err(|e| feed_status(&e))?;
        Ok(cache)
    }

    /// An object, read consistently.
    pub(crate) async fn current(&self, call: &Call<'_>, name: &str) -> Result<Arc<Entry>, Status> {
        let cache = self.consistent(call).await?;
        cache.get(call.namespace(), name).map_err(reloading)?.ok_or_else(|| call.not_found(name))
    }

    /// Runs the mutating half of admission on an object in the request's version.
    pub(crate) async fn admit(
        &self,
        call: &Call<'_>,
        step: AdmissionStep<'_>,
        object: Option<&mut Value>,
    ) -> Result<(), Status> {
        if !self.admission_wanted(call, step.operation) {
            return Ok(());
        }
        let mut request = step.request(call, object);
        let mut answer = self.run_admit(call, &mut request).await;
        if answer.is_ok() && request.reinvocation.wanted {
            request.reinvocation.second = true;
            answer = self.run_admit(call, &mut request).await;
        }
        request.warnings.into_inner().into_iter().for_each(|w| call.warn(w));
        answer
    }

    async fn run_admit(&self, call: &Call<'_>, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        for plugin in &self.access.admission {
            if plugin.handles(request.operation, call.info) {
                plugin.admit(request).await?;
            }
        }
        Ok(())
    }

    /// Runs the validating half of admission.
    pub(crate) async fn validate_admission(
        &self,
        call: &Call<'_>,
        step: AdmissionStep<'_>,
        object: Option<&mut Value>,
    ) -> Result<(), Status> {
        let request = step.request(call, object);
        let mut answer = Ok(());
        for plugin in &self.access.admission {
            if answer.is_ok() && plugin.handles(step.operation, call.info) {
                answer = plugin.validate(&request).await;
            }
        }
        request.warnings.into_inner().into_iter().for_each(|w| call.warn(w));
        answer
    }

    /// Admission of a deletion, both halves.
    pub(crate) async fn admit_delete(
        &self,
        call: &Call<'_>,
        old: &Value,
        options: &DeleteOptions,
    ) -> Result<(), Status> {
        let step = AdmissionStep {
            operation: Operation::Delete,
            kind: &call.row.kind.kind,
            old: Some(old),
            dry_run: options.dry_run,
            options: &options.to_value(),
        };
        self.admit(call, step, None).await?;
        self.validate_admission(call, step, None).await
    }

    /// Whether any admission plugin wants to see such requests.
    pub(crate) fn admission_wanted(&self, call: &Call<'_>, operation: Operation) -> bool {
        self.access.admission.iter().any(|p| p.handles(operation, call.info))
    }

    /// A request's body, read to its end.
    pub(crate) async fn read_body(&self, body: Body) -> Result<Bytes, Status> {
        body.collect(MAX_BODY).await.map_err(|e| {
            if e.is::<crate::body::TooLarge>() {
                Status::too_large(format!("limit is {MAX_BODY}"))
            } else {
                Status::bad_request(format!("the body of the request cannot be read: {e}"))
            }
        })
    }
}

/// The Status of a failed read.
pub fn feed_status(error: &FeedError) -> Status {
    match error {
        FeedError::TooLarge { wanted, current } => Status::too_large_resource_version(*wanted, *current),
        FeedError::Storage(e) => storage_status(e),
        FeedError::Unreadable { .. } => Status::internal(error),
        FeedError::Reloading(e) => reloading(*e),
    }
}

/// The Status of a cache that is being read anew: the client comes back.
pub fn reloading(error: Reloading) -> Status {
    Status::too_many_requests(error.to_string(), 1)
}

/// The Status of a storage error that no verb has an answer of its own for.
pub fn storage_status(error: &StorageError) -> Status {
    match error {
        StorageError::Compacted { compacted } => Status::expired(format!(
            "The resourceVersion for the provided list is too old ({compacted} is the oldest there is)."
        )),
        StorageError::TooLarge { .. } => Status::too_large(error),
        StorageError::InvalidKey { .. } => Status::bad_request(error.to_string()),
        StorageError::Closed | StorageError::Unavailable(_) | StorageError::InUse { .. } => {
            Status::service_unavailable(error.to_string())
        }
        StorageError::NotFound
        | StorageError::Conflict { .. }
        | StorageError::FutureRevision { .. }
        | StorageError::Corrupt { .. } => Status::internal(error),
    }
}
