//! Carries out plans: turns actions into requests and outcomes into what the next look must know.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Client;
use kube::core::Request;
use kube::core::params::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::discovery::ApiResource;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use crate::cache::{AnyStore, Written};
use crate::object::{self, Key};
use crate::plan::{Act, Action, DeleteOptions, Note, Plan, Propagation, Step, Target};
use crate::runner::events::Recorder;

/// How many writes of one plan are under way at once.
const PARALLEL: usize = 32;

/// A write that the server refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Verb, as RBAC names it.
    pub verb: &'static str,
    /// Plural of the kind.
    pub plural: String,
    /// The object.
    pub key: Key,
    /// HTTP status, 0 when there was no answer.
    pub code: u16,
    /// The `reason` of the server's Status.
    pub reason: String,
    /// The server's message.
    pub message: String,
}

impl Failure {
    /// Whether somebody else wrote the object in between: to be tried again from a new look.
    pub fn is_conflict(&self) -> bool {
        self.code == 409 && self.reason != "AlreadyExists"
    }

    fn new(action: &Action, error: &kube::Error) -> Self {
        let target = action.target();
        let (code, reason, message) = match error {
            kube::Error::Api(status) => (status.code, status.reason.clone(), status.message.clone()),
            other => (0, String::new(), other.to_string()),
        };
        Self {
            verb: action.verb(),
            plural: target.resource.plural.clone(),
            key: Key::new(&target.namespace, &target.name),
            code,
            reason,
            message,
        }
    }
}

/// What came of a plan.
#[derive(Default)]
pub struct Outcome {
    /// The writes that failed.
    pub failures: Vec<Failure>,
    /// What the caches must show before the next look at the same key.
    pending: Vec<Pending>,
}

struct Pending {
    store: Arc<dyn AnyStore>,
    key: Key,
    written: Written,
    mark: u64,
}

impl Outcome {
    /// Waits until the caches show every write of the plan, at most for `limit`. Returns whether they
    /// did: where they did not, the next look may be stale, and compare-and-swap is what is left.
    pub async fn visible(&self, limit: Duration) -> bool {
        let all = async {
            for p in &self.pending {
                p.store.written(&p.key, &p.written, p.mark).await;
            }
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }
}

/// Carries out plans through a client.
pub struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    stores: HashMap<(String, String), Vec<Arc<dyn AnyStore>>>,
    events: Recorder,
}

/// What is read of a server's answer to a write.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    metadata: AnswerMeta,
    details: Option<AnswerDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AnswerMeta {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<String>,
    finalizers: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AnswerDetails {
    uid: Option<String>,
}

/// resourceVersions that this plan's own writes produced, by target.
type Chain = Mutex<HashMap<(String, String, Key), (String, String)>>;

impl Executor {
    /// An executor that writes with `client` and trusts `stores` once they show its writes.
    pub fn new(client: Client, stores: &[Arc<dyn AnyStore>], events: Recorder) -> Self {
        let mut by_kind: HashMap<_, Vec<_>> = HashMap::new();
        for store in stores.iter().filter(|s| s.is_wanted()) {
            by_kind.entry(store.kind()).or_default().push(store.clone());
        }
        Self { inner: Arc::new(Inner { client, stores: by_kind, events }) }
    }

    /// Carries out `plan`.
    pub async fn run(&self, plan: &Plan) -> Outcome {
        let mut outcome = Outcome::default();
        let chain = Arc::new(Chain::default());
        for step in &plan.actions {
            match step {
                Step::One(act) => self.batch(std::slice::from_ref(act), &chain, &mut outcome).await,
                Step::Parallel(acts) => self.batch(acts, &chain, &mut outcome).await,
                Step::SlowStart { acts, first } => {
                    let (mut rest, mut size) = (acts.as_slice(), (*first).max(1));
                    while !rest.is_empty() && outcome.failures.is_empty() {
                        let (now, later) = rest.split_at(size.min(rest.len()));
                        self.batch(now, &chain, &mut outcome).await;
                        (rest, size) = (later, size * 2);
                    }
                }
            }
            if !outcome.failures.is_empty() {
                break;
            }
        }
        if let Some(status) = &plan.status {
            self.batch(std::slice::from_ref(status.as_ref()), &chain, &mut outcome).await;
        }
        if outcome.failures.is_empty() {
            for note in &plan.events {
                self.inner.events.record(note.clone());
            }
        }
        outcome
    }

    async fn batch<A: Borrow<Act> + Clone + Into<Arc<Act>>>(
        &self,
        acts: &[A],
        chain: &Arc<Chain>,
        outcome: &mut Outcome,
    ) {
        let results: Vec<_> = match acts {
            [act] => vec![self.inner.one(act.borrow(), chain).await],
            // A task for each: the server of an in-process client works in the task that asks it.
            acts => {
                let writes: Vec<_> = acts
                    .iter()
                    .map(|act| {
                        let (inner, act, chain) = (self.inner.clone(), act.clone().into(), chain.clone());
                        spawned(async move { inner.one(&act, &chain).await })
                    })
                    .collect();
                futures::stream::iter(writes).buffered(PARALLEL).collect().await
            }
        };
        for result in results {
            match result {
                Ok(pending) => outcome.pending.extend(pending),
                Err(failure) => outcome.failures.push(failure),
            }
        }
    }
}

/// Runs in a task of its own, which ends with the caller. A panic is the caller's.
async fn spawned<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match AbortOnDropHandle::new(tokio::spawn(work)).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only the runtime's own end cancels it.
            Err(_) => std::future::pending().await,
        },
    }
}

impl Inner {
    async fn one(&self, act: &Act, chain: &Chain) -> Result<Vec<Pending>, Failure> {
        let target = act.action.target();
        let kind = (target.resource.group.clone(), target.resource.plural.clone());
        let marks: Vec<(Arc<dyn AnyStore>, u64)> =
            self.stores.get(&kind).into_iter().flatten().map(|s| (s.clone(), s.mark())).collect();
        let answer = match self.send(&act.action, chain).await {
            Ok(answer) => answer,
            Err(error) if tolerated(act, &error) => return Ok(Vec::new()),
            Err(error) => {
                let failure = Failure::new(&act.action, &error);
                if !failure.is_conflict()
                    && let Some(note) = &act.on_failure
                {
                    self.note(note, &target.name, &failure.message);
                }
                return Err(failure);
            }
        };
        let name = answer.metadata.name.clone().filter(|n| !n.is_empty() && target.name.is_empty());
        let key = Key::new(&target.namespace, name.unwrap_or_else(|| target.name.clone()));
        if let Some(note) = &act.on_success {
            self.note(note, &key.name, "");
        }
        let Some(written) = written(&act.action, &answer) else { return Ok(Vec::new()) };
        Ok(marks
            .into_iter()
            .filter(|(store, _)| store.covers(&key))
            .map(|(store, mark)| Pending { store, key: key.clone(), written: written.clone(), mark })
            .collect())
    }

    fn note(&self, note: &Note, name: &str, error: &str) {
        let mut note = note.clone();
        note.message = note.message.replace("{name}", name).replace("{error}", error);
        self.events.record(note);
    }

    async fn send(&self, action: &Action, chain: &Chain) -> Result<Answer, kube::Error> {
        let target = action.target();
        let request = Request::new(url(&target.resource, &target.namespace));
        let post = PostParams::default();
        let built = match action {
            Action::Create { body, .. } => request.create(&post, bytes(body)?),
            Action::Update { subresource, body, .. } => {
                let body = bytes(&chained(target, body, chain))?;
                match subresource {
                    Some(sub) => request.replace_subresource(sub, &target.name, &post, body),
                    None => request.replace(&target.name, &post, body),
                }
            }
            Action::Patch { subresource, patch, .. } => {
                let (params, patch) = (PatchParams::default(), Patch::Merge(chained(target, patch, chain)));
                match subresource {
                    Some(sub) => request.patch_subresource(sub, &target.name, &params, &patch),
                    None => request.patch(&target.name, &params, &patch),
                }
            }
            Action::Delete { options, .. } => request.delete(&target.name, &delete_params(options)),
            Action::DeleteCollection { .. } => {
                request.delete_collection(&DeleteParams::background(), &ListParams::default())
            }
        };
        let text = self.client.request_text(built.map_err(kube::Error::BuildRequest)?).await?;
        // What a successful answer says beyond its success only makes the caches' wait exact.
        let answer: Answer = serde_json::from_str(&text).unwrap_or_default();
        if matches!(action, Action::Update { .. } | Action::Patch { .. })
            && let (Some(uid), Some(version)) =
                (answer.metadata.uid.clone(), answer.metadata.resource_version.clone())
        {
            chain.lock().insert(chain_key(target), (uid, version));
        }
        Ok(answer)
    }
}

/// The body with the resourceVersion that an earlier write of the same plan produced, if there was one
/// and if the body names a version at all.
fn chained(target: &Target, body: &Value, chain: &Chain) -> Value {
    let mut body = body.clone();
    if let Some((uid, version)) = chain.lock().get(&chain_key(target))
        && body["metadata"].get("uid").is_none_or(|own| own == uid.as_str())
        && body["metadata"].get("resourceVersion").is_some()
    {
        body["metadata"]["resourceVersion"] = Value::from(version.as_str());
    }
    body
}

fn chain_key(target: &Target) -> (String, String, Key) {
    let resource = &target.resource;
    (resource.group.clone(), resource.plural.clone(), Key::new(&target.namespace, &target.name))
}

fn bytes(body: &Value) -> Result<Vec<u8>, kube::Error> {
    serde_json::to_vec(body).map_err(kube::Error::SerdeError)
}

fn delete_params(options: &DeleteOptions) -> DeleteParams {
    let preconditions = (options.uid.is_some() || options.resource_version.is_some()).then(|| {
        Preconditions { uid: options.uid.clone(), resource_version: options.resource_version.clone() }
    });
    DeleteParams {
        dry_run: false,
        grace_period_seconds: options.grace_seconds,
        propagation_policy: options.propagation.map(|p| match p {
            Propagation::Background => PropagationPolicy::Background,
            Propagation::Foreground => PropagationPolicy::Foreground,
            Propagation::Orphan => PropagationPolicy::Orphan,
        }),
        preconditions,
    }
}

/// The path of a kind's collection, in a namespace unless that is empty.
pub fn url(resource: &ApiResource, namespace: &str) -> String {
    let root = if resource.group.is_empty() { "/api" } else { "/apis" };
    let plural = &resource.plural;
    if namespace.is_empty() {
        format!("{root}/{}/{plural}", resource.api_version)
    } else {
        format!("{root}/{}/namespaces/{namespace}/{plural}", resource.api_version)
    }
}

fn tolerated(act: &Act, error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    match &act.action {
        Action::Create { .. } => {
            // Nothing can be made in a namespace that goes away, and nothing needs to be.
            let terminating = status
                .details
                .iter()
                .flat_map(|d| d.causes.iter())
                .any(|c| c.reason == "NamespaceTerminating");
            terminating || act.may_exist && status.is_already_exists()
        }
        // A precondition on the uid fails when the object is gone and another has its name.
        Action::Delete { options, .. } => {
            status.is_not_found()
                || options.resource_version.is_none() && options.uid.is_some() && status.is_conflict()
        }
        _ => act.may_be_absent && status.is_not_found() || act.may_have_changed && status.is_conflict(),
    }
}

fn written(action: &Action, answer: &Answer) -> Option<Written> {
    let meta = &answer.metadata;
    let gone = || {
        let uid = meta.uid.clone().or_else(|| answer.details.as_ref()?.uid.clone());
        uid.map(Written::Deleted)
    };
    match action {
        Action::Delete { options, .. } => options.uid.clone().map(Written::Deleted).or_else(gone),
        Action::DeleteCollection { .. } => None,
        // Whoever takes the last finalizer of an object that is being deleted, deletes it.
        _ if meta.deletion_timestamp.is_some() && meta.finalizers.as_ref().is_none_or(Vec::is_empty) => {
            gone()
        }
        _ => meta.resource_version.as_deref().and_then(object::version_number).map(Written::Version),
    }
}
