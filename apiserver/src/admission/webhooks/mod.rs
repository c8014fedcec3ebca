//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: others judge and change requests over HTTPS.
//!
//! Configurations are kept in an index by resource, so that a request that no webhook is for costs one look.

pub(super) mod hook;
pub(super) mod review;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::StreamExt as _;
use hawser_api::decode::Dropped;
use hawser_api::object::{Labels, ObjectExt as _};
use hawser_api::patch::JsonPatch;
use hawser_api::status::Status;
use hawser_api::text::quote;
use serde_json::Value;

use self::hook::{Gvr, Hook, Match, own_labels};
use self::review::{Question, Verdict};
use super::policy::conditions_hold;
use super::policy::scope::{Asker, Input, request_json, request_resource};
use super::versions::Versions;
use super::{Lookup, forbidden};
use crate::access::{Admission, AdmissionRequest, Change, GroupResource, Host, Operation};
use crate::authz::Authorizers;
use crate::authz::follow::{Ready, follow};
use crate::request_info::RequestInfo;
use crate::webhook::Client;

const GROUP: &str = "admissionregistration.k8s.io";

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
    fn matching(
        &self,
        versions: &Versions,
        operation: Operation,
        info: &RequestInfo,
    ) -> Vec<(Arc<Hook>, Match)> {
        let listed = |resource: &str| self.by_resource.get(resource).map_or(&[][..], Vec::as_slice);
        let mut places: Vec<usize> = listed("*").iter().chain(listed(&info.resource)).copied().collect();
        places.sort_unstable();
        places.dedup();
        let hooks = places.into_iter().filter_map(|i| self.hooks.get(i));
        hooks.filter_map(|hook| Some((hook.clone(), hook.matches(versions, operation, info)?))).collect()
    }
}

/// What both plugins are made of.
struct Caller {
    reader: Lookup,
    client: Arc<Client>,
    authorizers: Arc<Authorizers>,
    versions: Versions,
    index: Arc<ArcSwap<Index>>,
    /// Whether the configurations that there were at start are in the index.
    ready: Ready,
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
    fn new(host: &Host, authorizers: &Arc<Authorizers>, mutating: bool) -> Self {
        let index = Arc::new(ArcSwap::default());
        let resource =
            if mutating { "mutatingwebhookconfigurations" } else { "validatingwebhookconfigurations" };
        let mut held = BTreeMap::new();
        let target = Arc::clone(&index);
        let note = move |change| {
            apply(&mut held, change);
            target.store(Arc::new(Index::new(&held)));
        };
        let ready =
            follow(&*host.reader, vec![(GroupResource::new(GROUP, resource), Box::new(note))], &host.stop);
        Self {
            reader: Lookup(Arc::clone(&host.reader)),
            client: Arc::clone(&host.webhooks),
            authorizers: Arc::clone(authorizers),
            versions: host.versions.clone(),
            index,
            ready,
            mutating,
        }
    }

    fn wants(&self, operation: Operation, info: &RequestInfo) -> bool {
        let index = self.index.load();
        // Configurations of admission cannot lock their own repair.
        let judged = info.group != GROUP;
        judged && (!self.ready.is() || !index.matching(&self.versions, operation, info).is_empty())
    }

    /// The hooks for a request, once all are known.
    async fn hooks(&self, request: &AdmissionRequest<'_>) -> Vec<(Arc<Hook>, Match)> {
        self.ready.wait().await;
        self.index.load().matching(&self.versions, request.operation, request.info)
    }

    /// Whether the selectors and conditions of a hook let it see a request.
    async fn selects(
        &self,
        hook: &Hook,
        how: &Match,
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
        let asker = Asker { authorizers: &self.authorizers, user: request.user };
        let input = Input {
            object,
            old,
            request: &request_json(request, how),
            namespace: None,
            params: None,
            asker: &asker,
            resource: &request_resource(request.info),
        };
        match conditions_hold(&hook.conditions, input) {
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

    /// The objects of a request as a hook sees them.
    async fn shown(
        &self,
        how: &Match,
        request: &AdmissionRequest<'_>,
    ) -> Result<(Option<Value>, Option<Value>), Status> {
        let object = self.versions.shown(how, request.info, request.object.as_deref()).await?;
        let old = self.versions.shown(how, request.info, request.old_object).await?;
        Ok((object, old))
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
        let answer = self.client.post(&hook.client, hook.timeout, true, question.to_string().into()).await;
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

/// The mutating plugin.
pub struct MutatingWebhooks(Caller);

/// The validating plugin.
pub struct ValidatingWebhooks(Caller);

impl MutatingWebhooks {
    pub fn new(host: &Host, authorizers: &Arc<Authorizers>) -> Self {
        Self(Caller::new(host, authorizers, true))
    }

    /// Calls one hook: whether it has changed the object.
    async fn call(
        &self,
        hook: &Hook,
        how: &Match,
        request: &mut AdmissionRequest<'_>,
        (object, old): (Option<Value>, Option<Value>),
    ) -> Result<bool, Status> {
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
        self.0.versions.settle(&mut patched, false)?;
        if patched == seen {
            return Ok(false);
        }
        *target = self.0.versions.back(how, request.info, patched).await?;
        Ok(true)
    }
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
        for (hook, how) in self.0.hooks(request).await {
            if second && !request.reinvocation.webhooks.due.contains(&hook.id) {
                continue;
            }
            let (object, old) = self.0.shown(&how, request).await?;
            if !self.0.selects(&hook, &how, request, object.as_ref(), old.as_ref()).await? {
                continue;
            }
            if self.call(&hook, &how, request, (object, old)).await? {
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
    pub fn new(host: &Host, authorizers: &Arc<Authorizers>) -> Self {
        Self(Caller::new(host, authorizers, false))
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
        let hooks = self.0.hooks(request).await;
        let mut calls = Vec::new();
        for (hook, how) in &hooks {
            let (object, old) = self.0.shown(how, request).await?;
            if self.0.selects(hook, how, request, object.as_ref(), old.as_ref()).await? {
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
