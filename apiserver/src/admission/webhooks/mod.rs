//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: others judge and change requests over HTTPS.
//!
//! Configurations are kept in an index by resource, so that a request that no webhook is for costs one look.

mod client;
pub(super) mod hook;
pub(super) mod review;
mod trust;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::StreamExt as _;
use hawser_api::decode::{self, Dropped};
use hawser_api::kinds::{self, Kind};
use hawser_api::object::{Labels, ObjectExt as _};
use hawser_api::patch::JsonPatch;
use hawser_api::schema;
use hawser_api::status::Status;
use hawser_api::text::quote;
use serde_json::Value;

use self::client::Client;
use self::hook::{Gvr, Hook, Match, own_labels};
use self::review::{Question, Verdict};
use super::{Lookup, forbidden};
use crate::access::{Admission, AdmissionRequest, Change, GroupResource, Host, Operation};
use crate::request_info::RequestInfo;

const GROUP: &str = "admissionregistration.k8s.io";

/// Decides about the `matchConditions` of a webhook.
#[async_trait]
pub trait Conditions: Send + Sync + 'static {
    /// Whether all conditions (name and CEL expression) hold for a request, `object` and `old` being in the version
    /// that the webhook sees.
    ///
    /// # Errors
    /// Why it cannot be told.
    async fn hold(
        &self,
        conditions: &[(String, String)],
        request: &AdmissionRequest<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<bool, String>;
}

/// Without a CEL engine conditions are an error, which the failure policy decides about.
pub struct NoConditions;

#[async_trait]
impl Conditions for NoConditions {
    async fn hold(
        &self,
        conditions: &[(String, String)],
        _: &AdmissionRequest<'_>,
        _: Option<&Value>,
        _: Option<&Value>,
    ) -> Result<bool, String> {
        let names: Vec<&str> = conditions.iter().map(|(name, _)| name.as_str()).collect();
        Err(format!("match conditions are not evaluated by this server: {}", names.join(", ")))
    }
}

/// The hooks of one kind of configuration.
#[derive(Default)]
struct Index {
    hooks: Vec<Arc<Hook>>,
    by_resource: HashMap<String, Vec<usize>>,
}

impl Index {
    /// Configurations by name; hooks are called in the order of names.
    fn new(configurations: &BTreeMap<String, Vec<Arc<Hook>>>) -> Self {
        let hooks: Vec<Arc<Hook>> = configurations.values().flatten().cloned().collect();
        let mut by_resource: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, hook) in hooks.iter().enumerate() {
            for resource in hook.resources() {
                let list = by_resource.entry(resource.to_owned()).or_default();
                if list.last() != Some(&i) {
                    list.push(i);
                }
            }
        }
        Self { hooks, by_resource }
    }

    /// The hooks whose rules are for a request, in their order.
    fn matching(&self, operation: Operation, info: &RequestInfo) -> Vec<(Arc<Hook>, Match)> {
        let listed = |resource: &str| self.by_resource.get(resource).map_or(&[][..], Vec::as_slice);
        let mut places: Vec<usize> = listed("*").iter().chain(listed(&info.resource)).copied().collect();
        places.sort_unstable();
        places.dedup();
        let hooks = places.into_iter().filter_map(|i| self.hooks.get(i));
        hooks.filter_map(|hook| Some((hook.clone(), hook.matches(operation, info)?))).collect()
    }
}

/// What both plugins are made of.
struct Caller {
    reader: Lookup,
    client: Client,
    conditions: Arc<dyn Conditions>,
    index: Arc<ArcSwap<Index>>,
    mutating: bool,
}

/// How a call ended.
enum Outcome {
    Answered(Verdict),
    /// The webhook could not be called, or did not answer as it should.
    Failed(String),
    /// It must not be called.
    Refused(Status),
}

impl Caller {
    fn new(host: &Host, conditions: Arc<dyn Conditions>, mutating: bool) -> Self {
        let reader = Lookup(Arc::clone(&host.reader));
        let index = Arc::new(ArcSwap::default());
        let resource =
            if mutating { "mutatingwebhookconfigurations" } else { "validatingwebhookconfigurations" };
        match reader.0.changes(&GroupResource::new(GROUP, resource)) {
            Ok(mut changes) => {
                let (index, stop) = (Arc::clone(&index), host.stop.clone());
                tokio::spawn(async move {
                    let mut held = BTreeMap::new();
                    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
                        apply(&mut held, change);
                        index.store(Arc::new(Index::new(&held)));
                    }
                });
            }
            Err(error) => tracing::error!(%error, resource, "cannot follow webhook configurations"),
        }
        Self { client: Client::new(reader.clone()), reader, conditions, index, mutating }
    }

    fn wants(&self, operation: Operation, info: &RequestInfo) -> bool {
        let index = self.index.load();
        // Configurations of admission cannot lock their own repair.
        !index.hooks.is_empty() && info.group != GROUP && !index.matching(operation, info).is_empty()
    }

    /// Whether the selectors and conditions of a hook let it see a request.
    async fn selects(
        &self,
        hook: &Hook,
        request: &AdmissionRequest<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<bool, Status> {
        let selected = hook.selects(request.object.as_deref(), request.old_object);
        if !selected.map_err(Status::internal)? || !self.in_namespace(hook, request).await? {
            return Ok(false);
        }
        if hook.conditions.is_empty() {
            return Ok(true);
        }
        match self.conditions.hold(&hook.conditions, request, object, old).await {
            Ok(hold) => Ok(hold),
            Err(why) if hook.ignores_failure => {
                tracing::warn!(webhook = hook.name, why, "match conditions failed; passing by");
                Ok(false)
            }
            Err(why) => Err(forbidden(request, why)),
        }
    }

    async fn in_namespace(&self, hook: &Hook, request: &AdmissionRequest<'_>) -> Result<bool, Status> {
        let Some(selector) = hook.namespaces().map_err(Status::internal)? else { return Ok(true) };
        let info = request.info;
        if let Some(labels) = own_labels(request.operation, info, request.object.as_deref()) {
            return Ok(selector.matches(labels));
        }
        if info.namespace.is_empty() {
            return Ok(true);
        }
        let namespace = self.reader.get("", "namespaces", "", &info.namespace).await?;
        let namespace = namespace.ok_or_else(|| Status::not_found("", "namespaces", &info.namespace))?;
        Ok(selector.matches(Labels::new(namespace.at("metadata.labels").and_then(Value::as_object))))
    }

    /// Asks a webhook about a request, objects being in the version that it sees.
    async fn ask(
        &self,
        hook: &Hook,
        how: &Match,
        request: &AdmissionRequest<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Outcome {
        if request.dry_run && !hook.allows_dry_run {
            let why = format!("admission webhook {} does not support dry run", quote(&hook.name));
            return Outcome::Refused(Status::bad_request(why));
        }
        let Some(version) = hook.review_version else {
            let why = "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            return Outcome::Failed(why.into());
        };
        let uid = uuid::Uuid::new_v4().to_string();
        let (resource, kind) = match how {
            Match::Exact => (Gvr::of(request.info), request.kind),
            Match::Equivalent(kind) => (
                Gvr { group: &kind.group, version: &kind.version, resource: &kind.plural },
                kind.kind.as_str(),
            ),
        };
        let question = Question { uid: &uid, version, request, resource, kind, object, old }.to_value();
        let answer = self.client.post(&hook.client, hook.timeout, question.to_string().into()).await;
        let verdict = answer.map_err(|why| format!("failed to call webhook: {why}")).and_then(|body| {
            let verdict = review::read(&body, &uid, version, self.mutating);
            verdict.map_err(|why| format!("received invalid webhook response: {why}"))
        });
        match verdict {
            Ok(verdict) => {
                verdict.warnings.iter().for_each(|w| request.warn(w.clone()));
                Outcome::Answered(verdict)
            }
            Err(why) => Outcome::Failed(why),
        }
    }

    /// What a failed call means for the request.
    fn failed(&self, hook: &Hook, why: &str) -> Result<(), Status> {
        if hook.ignores_failure {
            tracing::warn!(webhook = hook.name, why, "webhook failed; passing by");
            return Ok(());
        }
        Err(failure(hook, why))
    }
}

/// 500 for a call that failed.
fn failure(hook: &Hook, why: &str) -> Status {
    Status::internal(format!("failed calling webhook {}: {why}", quote(&hook.name)))
}

fn apply(held: &mut BTreeMap<String, Vec<Arc<Hook>>>, change: Change) {
    let read = |object: &crate::access::ObjectRef| match object.decode::<Value>() {
        Ok(value) => Hook::read(&value).into_iter().map(Arc::new).collect(),
        Err(error) => {
            tracing::error!(name = %object.name, %error, "a webhook configuration does not decode; ignored");
            Vec::new()
        }
    };
    match change {
        Change::Reset(objects) => {
            *held = objects.iter().map(|o| (o.name.to_string(), read(o))).collect();
        }
        Change::Applied(object) => {
            held.insert(object.name.to_string(), read(&object));
        }
        Change::Deleted(object) => {
            held.remove(&*object.name);
        }
    }
}

/// An object in the version that a webhook or policy sees.
pub(super) fn shown(how: &Match, info: &RequestInfo, object: Option<&Value>) -> Option<Value> {
    let object = object?;
    match how {
        Match::Exact => Some(object.clone()),
        Match::Equivalent(to) => {
            Some(converted(kinds::find(&info.group, &info.version, &info.resource)?, to, object))
        }
    }
}

pub(super) fn converted(from: &Kind, to: &Kind, object: &Value) -> Value {
    let mut object = object.clone();
    hawser_api::convert::convert(from, to, &mut object);
    if let Some(ty) = schema::of(to)
        && let Err(error) = decode::normalize(ty, &mut object, &mut Dropped::default())
    {
        tracing::warn!(%error, kind = to.kind, "a converted object is not of its type");
    }
    object
}

/// The mutating plugin.
pub struct MutatingWebhooks(Caller);

/// The validating plugin.
pub struct ValidatingWebhooks(Caller);

impl MutatingWebhooks {
    pub fn new(host: &Host, conditions: Arc<dyn Conditions>) -> Self {
        Self(Caller::new(host, conditions, true))
    }

    /// Calls one hook: whether it has changed the object.
    async fn call(
        &self,
        hook: &Hook,
        how: &Match,
        request: &mut AdmissionRequest<'_>,
    ) -> Result<bool, Status> {
        let object = shown(how, request.info, request.object.as_deref());
        let old = shown(how, request.info, request.old_object);
        let verdict = match self.0.ask(hook, how, request, object.as_ref(), old.as_ref()).await {
            Outcome::Answered(verdict) => verdict,
            Outcome::Refused(status) => return Err(status),
            Outcome::Failed(why) => return self.0.failed(hook, &why).map(|()| false),
        };
        if !verdict.allowed {
            return Err(review::refusal(&hook.name, verdict.status));
        }
        if verdict.patch.is_empty() {
            return Ok(false);
        }
        let patch = match JsonPatch::parse(&verdict.patch, &mut Dropped::default()) {
            Ok(patch) => patch,
            Err(error) => {
                let why = format!("received undecodable patch in webhook response: {error}");
                return self.0.failed(hook, &why).map(|()| false);
            }
        };
        if verdict.patch_type != "JSONPatch" {
            let why = format!("unsupported patch type {}", quote(&verdict.patch_type));
            return self.0.failed(hook, &why).map(|()| false);
        }
        let Some((seen, target)) = object.zip(request.object.as_deref_mut()) else {
            let why = format!(
                "admission webhook {} attempted to modify the object, which is not supported for this operation",
                quote(&hook.name)
            );
            return Err(Status::internal(why));
        };
        let mut patched = patch.apply(&seen).map_err(Status::internal)?;
        settle(&mut patched)?;
        if patched == seen {
            return Ok(false);
        }
        if let Match::Equivalent(kind) = how
            && let Some(own) = kinds::find(&request.info.group, &request.info.version, &request.info.resource)
        {
            patched = converted(kind, own, &patched);
        }
        *target = patched;
        Ok(true)
    }
}

/// Makes a patched object what a decoded one is: of its type, with defaults.
pub(super) fn settle(object: &mut Value) -> Result<(), Status> {
    let (api_version, kind) = (object.api_version().to_owned(), object.kind().to_owned());
    if let Some(ty) = schema::find_kind(&api_version, &kind) {
        decode::normalize(ty, object, &mut Dropped::default()).map_err(Status::internal)?;
    }
    if let Some(kind) = kinds::find_api_version(&api_version, &kind) {
        hawser_api::defaults::apply(kind, object);
    }
    Ok(())
}

#[async_trait]
impl Admission for MutatingWebhooks {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        self.0.wants(operation, info)
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let second = request.reinvocation.second;
        if second && request.reinvocation.webhooks.last.as_ref() != request.object.as_deref() {
            request.reinvocation.webhooks.changed();
        }
        let hooks = self.0.index.load().matching(request.operation, request.info);
        for (hook, how) in hooks {
            if second && !request.reinvocation.webhooks.due.contains(&hook.id) {
                continue;
            }
            let object = shown(&how, request.info, request.object.as_deref());
            let old = shown(&how, request.info, request.old_object);
            if !self.0.selects(&hook, request, object.as_ref(), old.as_ref()).await? {
                continue;
            }
            if self.call(&hook, &how, request).await? {
                request.reinvocation.webhooks.changed();
                request.reinvocation.wanted = true;
            }
            if hook.reinvoked {
                request.reinvocation.webhooks.made.insert(hook.id.clone());
            }
        }
        request.reinvocation.webhooks.last = request.object.as_deref().cloned();
        Ok(())
    }
}

impl ValidatingWebhooks {
    pub fn new(host: &Host, conditions: Arc<dyn Conditions>) -> Self {
        Self(Caller::new(host, conditions, false))
    }

    async fn call(
        &self,
        hook: &Hook,
        how: &Match,
        request: &AdmissionRequest<'_>,
        (object, old): (Option<Value>, Option<Value>),
    ) -> Result<(), Status> {
        match self.0.ask(hook, how, request, object.as_ref(), old.as_ref()).await {
            Outcome::Answered(verdict) if verdict.allowed => Ok(()),
            Outcome::Answered(verdict) => Err(review::refusal(&hook.name, verdict.status)),
            Outcome::Refused(status) => Err(status),
            Outcome::Failed(why) => self.0.failed(hook, &why),
        }
    }
}

#[async_trait]
impl Admission for ValidatingWebhooks {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, operation: Operation, info: &RequestInfo) -> bool {
        self.0.wants(operation, info)
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let hooks = self.0.index.load().matching(request.operation, request.info);
        let mut calls = Vec::new();
        for (hook, how) in &hooks {
            let object = shown(how, request.info, request.object.as_deref());
            let old = shown(how, request.info, request.old_object);
            if self.0.selects(hook, request, object.as_ref(), old.as_ref()).await? {
                calls.push(self.call(hook, how, request, (object, old)));
            }
        }
        // All at once; of several refusals the first one to come is told.
        let mut calls: futures::stream::FuturesUnordered<_> = calls.into_iter().collect();
        let mut answer = Ok(());
        while let Some(one) = calls.next().await {
            if answer.is_ok() {
                answer = one;
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests;
