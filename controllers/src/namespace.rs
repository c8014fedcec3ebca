//! Namespace: empties a namespace that is being deleted, then lets it go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, Client};

use crate::cache::Caches;
use crate::discovery::{Discovered, discover};
use crate::object::{self, Key};
use crate::plan::{Act, Action, Plan, Step, Target};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// The finalizer in `spec.finalizers` that this controller takes away.
const FINALIZER: &str = "kubernetes";

/// What is left of one resource in a namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Remaining {
    /// The resource.
    pub resource: ApiResource,
    /// How many objects there are.
    pub objects: usize,
    /// How many of them nobody has deleted yet.
    pub undeleted: usize,
    /// How many wait for each finalizer.
    pub finalizers: BTreeMap<String, usize>,
    /// The longest time that one of them still takes to end by itself, in seconds.
    pub grace_seconds: i64,
}

/// What a decision about a namespace rests on.
pub struct View {
    /// The namespace.
    pub namespace: Arc<Namespace>,
    /// What discovery said; `None` when the namespace need not be emptied.
    pub discovered: Option<Result<Vec<String>, String>>,
    /// What is left in it.
    pub remaining: Vec<Remaining>,
    /// What failed last time.
    pub prior: Option<Failure>,
}

/// Decides about a namespace.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let namespace = view.namespace.as_ref();
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !object::is_deleting(namespace) || finalizers.is_empty() {
        return plan;
    }
    let Some(discovered) = &view.discovered else { return plan };

    // Pods go before all else, so that nothing they run on is taken from under them (KEP-5080).
    let pods = |r: &&Remaining| r.resource.plural == "pods" && r.resource.group.is_empty();
    let now_due: Vec<&Remaining> = match view.remaining.iter().find(pods) {
        Some(pods) => vec![pods],
        None => view.remaining.iter().collect(),
    };
    let deletions: Vec<Act> = now_due
        .iter()
        .filter(|r| r.undeleted > 0)
        .map(|r| {
            let target = Target {
                resource: r.resource.clone(),
                namespace: object::name(namespace).to_owned(),
                name: String::new(),
            };
            Act::new(Action::DeleteCollection { target })
        })
        .collect();
    if !deletions.is_empty() {
        plan.actions.push(Step::Parallel(deletions));
    }

    let mut updated = namespace.clone();
    let status = updated.status.get_or_insert_default();
    status.phase = Some("Terminating".to_owned());
    let conditions = status.conditions.get_or_insert_default();
    for wanted in conditions_of(view, discovered) {
        merge(conditions, wanted, now);
    }
    plan.update_status(namespace, &updated);

    // A group whose server does not answer may hold content: the namespace waits for it.
    let known = matches!(discovered, Ok(failed) if failed.is_empty());
    if known && view.remaining.is_empty() {
        let mut done = updated;
        if let Some(spec) = &mut done.spec {
            spec.finalizers = Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect());
        }
        plan.status = None;
        plan.push(Act::update_sub(&done, "finalize").may_be_absent());
        return plan;
    }
    let age = namespace.metadata.deletion_timestamp.as_ref().map_or(0, |t| object::seconds_since(t, now));
    plan.requeue(next_look(age, &now_due));
    plan
}

/// Soon at first, rarer with time, and not before pods can have ended. Pods that end wake us anyway.
fn next_look(age: i64, remaining: &[&Remaining]) -> Duration {
    let by_age =
        Duration::from_millis(u64::try_from(age).unwrap_or(0).saturating_mul(250).clamp(100, 15_000));
    let grace = remaining.iter().map(|r| r.grace_seconds).max().unwrap_or(0);
    let half = Duration::from_secs(u64::try_from(grace).unwrap_or(0) / 2);
    by_age.max(half.min(Duration::from_secs(15)))
}

/// The five conditions as they should be now: type, status, reason, message.
fn conditions_of(view: &View, discovered: &Result<Vec<String>, String>) -> Vec<NamespaceCondition> {
    let condition = |kind: &str, status: bool, reason: &str, message: String| NamespaceCondition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: None,
    };
    let failed = match discovered {
        Err(error) => Some(format!("Discovery failed for some groups: {error}")),
        Ok(failed) if !failed.is_empty() => Some(format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
            failed.len(),
            failed.join(", ")
        )),
        Ok(_) => None,
    };
    let ok = |text: &str| text.to_owned();
    let mut list = vec![
        match failed {
            Some(message) => condition("NamespaceDeletionDiscoveryFailure", true, "DiscoveryFailed", message),
            None => {
                let message = ok("All resources successfully discovered");
                condition("NamespaceDeletionDiscoveryFailure", false, "ResourcesDiscovered", message)
            }
        },
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            ok("All legacy kube types successfully parsed"),
        ),
        match view.prior.as_ref().filter(|f| f.verb == "deletecollection") {
            Some(failure) => condition(
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                format!("Failed to delete all resource types, 1 remaining: {}", failure.message),
            ),
            None => condition(
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                ok("All content successfully deleted, may be waiting on finalization"),
            ),
        },
    ];
    let mut parts: Vec<String> = view
        .remaining
        .iter()
        .map(|r| {
            let resource = &r.resource;
            let group = if resource.group.is_empty() { String::new() } else { resource.group.clone() };
            format!("{}.{group} has {} resource instances", resource.plural, r.objects)
        })
        .collect();
    parts.sort();
    list.push(if parts.is_empty() {
        condition(
            "NamespaceContentRemaining",
            false,
            "ContentRemoved",
            ok("All content successfully removed"),
        )
    } else {
        let message = format!("Some resources are remaining: {}", parts.join(", "));
        condition("NamespaceContentRemaining", true, "SomeResourcesRemain", message)
    });
    let mut waiting: BTreeMap<&str, usize> = BTreeMap::new();
    for (finalizer, count) in view.remaining.iter().flat_map(|r| &r.finalizers) {
        *waiting.entry(finalizer).or_default() += count;
    }
    list.push(if waiting.is_empty() {
        let message = ok("All content-preserving finalizers finished");
        condition("NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", message)
    } else {
        let parts: Vec<String> =
            waiting.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
        let message = format!("Some content in the namespace has finalizers remaining: {}", parts.join(", "));
        condition("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", message)
    });
    list
}

fn merge(conditions: &mut Vec<NamespaceCondition>, mut wanted: NamespaceCondition, now: Timestamp) {
    wanted.last_transition_time = Some(object::time(now));
    match conditions.iter_mut().find(|c| c.type_ == wanted.type_) {
        Some(old) => {
            if old.status == wanted.status {
                wanted.last_transition_time = old.last_transition_time.clone();
            }
            *old = wanted;
        }
        None => conditions.push(wanted),
    }
}

/// The controller. Keys are namespaces.
pub struct Namespaces {
    caches: Arc<Caches>,
    client: Client,
}

impl Namespaces {
    /// A controller on these caches; `client` lists what is left in a namespace.
    pub fn new(caches: &Arc<Caches>, client: &Client) -> Self {
        Self { caches: caches.clone(), client: client.clone() }
    }

    async fn remaining(&self, namespace: &str, found: &Discovered) -> Result<Vec<Remaining>, kube::Error> {
        let mut all = Vec::new();
        for resource in &found.resources {
            if !resource.namespaced || !resource.can(&["list", "delete"]) {
                continue;
            }
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource.api);
            let mut left = Remaining {
                resource: resource.api.clone(),
                objects: 0,
                undeleted: 0,
                finalizers: BTreeMap::new(),
                grace_seconds: 0,
            };
            let mut page = ListParams::default().limit(500);
            loop {
                let list = match api.list_metadata(&page).await {
                    Ok(list) => list,
                    // A kind that went away since discovery has no objects.
                    Err(kube::Error::Api(status)) if status.is_not_found() || status.code == 405 => break,
                    Err(error) => return Err(error),
                };
                for item in &list.items {
                    let meta = &item.metadata;
                    left.objects += 1;
                    left.undeleted += usize::from(meta.deletion_timestamp.is_none());
                    let grace = meta.deletion_grace_period_seconds.unwrap_or(0);
                    left.grace_seconds = left.grace_seconds.max(grace);
                    for finalizer in meta.finalizers.iter().flatten() {
                        *left.finalizers.entry(finalizer.clone()).or_default() += 1;
                    }
                }
                match list.metadata.continue_.filter(|c| !c.is_empty()) {
                    Some(token) => page.continue_token = Some(token),
                    None => break,
                }
            }
            if left.objects > 0 {
                all.push(left);
            }
        }
        Ok(all)
    }
}

#[async_trait]
impl Controller for Namespaces {
    type View = View;

    fn name(&self) -> &'static str {
        "namespace"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.namespaces.on_change(move |change| {
            if change.new.is_some_and(|n| object::is_deleting(n.as_ref())) {
                q.add(change.key.clone());
            }
        });
        // Pods are what takes long: the end of one in a namespace that goes is worth a look.
        let (this, q) = (self.clone(), queue.clone());
        self.caches.pods.on_change(move |change| {
            let key = Key::cluster(&change.key.namespace);
            if change.new.is_none()
                && this.caches.namespaces.get(&key).is_some_and(|n| object::is_deleting(n.as_ref()))
            {
                q.add(key);
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(namespace) = self.caches.namespaces.get(key) else { return Ok(None) };
        let held = namespace.spec.as_ref().and_then(|s| s.finalizers.as_ref()).is_some_and(|f| !f.is_empty());
        if !object::is_deleting(namespace.as_ref()) || !held {
            return Ok(None);
        }
        let (discovered, remaining) = match discover(&self.client).await {
            Ok(found) => {
                let remaining = self.remaining(&key.name, &found).await?;
                (Ok(found.failed), remaining)
            }
            Err(error) => (Err(error.to_string()), Vec::new()),
        };
        Ok(Some(View { namespace, discovered: Some(discovered), remaining, prior: prior.cloned() }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fault, Harness};
    use k8s_openapi::api::core::v1::{ConfigMap, NamespaceSpec, Pod, PodSpec, Secret};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use proptest::prelude::*;

    fn namespace(name: &str) -> Namespace {
        Namespace {
            metadata: ObjectMeta { name: Some(name.into()), ..Default::default() },
            spec: Some(NamespaceSpec { finalizers: Some(vec![FINALIZER.into()]) }),
            status: None,
        }
    }

    fn meta(namespace: &str, name: &str) -> ObjectMeta {
        ObjectMeta { name: Some(name.into()), namespace: Some(namespace.into()), ..Default::default() }
    }

    fn harness() -> Harness<Namespaces> {
        Harness::new(Namespaces::new)
    }

    async fn later(h: &mut Harness<Namespaces>) {
        tokio::time::advance(Duration::from_secs(16)).await;
        h.settle(100).await;
    }

    #[tokio::test(start_paused = true)]
    async fn contents_go_then_the_namespace() {
        let mut h = harness();
        for ns in ["doomed", "other"] {
            h.model.lock().put(&namespace(ns));
            h.model.lock().put(&ConfigMap { metadata: meta(ns, "c"), ..Default::default() });
            h.model.lock().put(&Secret { metadata: meta(ns, "s"), ..Default::default() });
        }
        h.settle(50).await;
        h.model.lock().delete_as_user::<Namespace>("", "doomed");
        h.settle(100).await;
        later(&mut h).await;
        assert!(h.model.lock().get::<Namespace>("", "doomed").is_none());
        assert_eq!(h.model.lock().list::<ConfigMap>().len(), 1);
        assert!(h.model.lock().get::<ConfigMap>("other", "c").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn pods_go_first_and_finalizers_are_told() {
        let mut h = harness();
        h.model.lock().graceful = true;
        h.model.lock().put(&namespace("doomed"));
        let spec = Some(PodSpec { node_name: Some("n".into()), ..Default::default() });
        h.model.lock().put(&Pod { metadata: meta("doomed", "p"), spec, status: None });
        let mut held = ConfigMap { metadata: meta("doomed", "c"), ..Default::default() };
        held.metadata.finalizers = Some(vec!["example.com/hold".into()]);
        h.model.lock().put(&held);
        h.model.lock().delete_as_user::<Namespace>("", "doomed");
        h.settle(100).await;
        let undeleted = h.model.lock().get::<ConfigMap>("doomed", "c").unwrap();
        assert!(undeleted.metadata.deletion_timestamp.is_none(), "pods are still there");
        h.model.lock().purge();
        later(&mut h).await;
        later(&mut h).await;
        let stuck: Namespace = h.model.lock().get("", "doomed").unwrap();
        let conditions = stuck.status.unwrap().conditions.unwrap();
        let message =
            |kind: &str| conditions.iter().find(|c| c.type_ == kind).unwrap().message.clone().unwrap();
        assert_eq!(
            message("NamespaceContentRemaining"),
            "Some resources are remaining: configmaps. has 1 resource instances"
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        // Whoever holds it lets it go.
        let kind = (String::new(), "configmaps".to_owned());
        let patch = serde_json::json!({"metadata": {"finalizers": null}});
        h.model.lock().patch(&kind, &Key::new("doomed", "c"), "", &patch).unwrap();
        later(&mut h).await;
        assert!(h.model.lock().get::<Namespace>("", "doomed").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_list_is_not_an_empty_one() {
        let mut h = harness();
        h.model.lock().put(&namespace("doomed"));
        h.model.lock().put(&ConfigMap { metadata: meta("doomed", "c"), ..Default::default() });
        h.model.lock().faults.push(Fault {
            verb: "list",
            plural: "configmaps",
            times: 3,
            code: 500,
            reason: "InternalError",
        });
        h.model.lock().delete_as_user::<Namespace>("", "doomed");
        h.deliver();
        let key = h.queue.try_next().unwrap();
        assert!(h.controller.view(&key, None).await.is_err());
        h.queue.done(&key);
        h.queue.add(key);
        h.settle(100).await;
        later(&mut h).await;
        assert!(h.model.lock().list::<ConfigMap>().is_empty());
        assert!(h.model.lock().get::<Namespace>("", "doomed").is_none());
    }

    #[test]
    fn an_unknown_group_keeps_the_namespace() {
        let mut ns = namespace("doomed");
        ns.metadata.deletion_timestamp = Some(object::time(Timestamp::UNIX_EPOCH));
        let view = |discovered| View {
            namespace: Arc::new(ns.clone()),
            discovered: Some(discovered),
            remaining: Vec::new(),
            prior: None,
        };
        let finalizes = |plan: &Plan| {
            plan.acts().any(|a| matches!(a.action, Action::Update { subresource: Some("finalize"), .. }))
        };
        let now = Timestamp::UNIX_EPOCH;
        assert!(!finalizes(&reconcile(&view(Ok(vec!["metrics.k8s.io/v1".into()])), now)));
        assert!(!finalizes(&reconcile(&view(Err("down".into())), now)));
        assert!(finalizes(&reconcile(&view(Ok(Vec::new())), now)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Of any set of namespaces with contents, those deleted end with all they hold and the rest keep
        /// everything.
        #[test]
        fn only_the_deleted_are_emptied(
            doomed in proptest::collection::vec(any::<bool>(), 1..5),
            contents in proptest::collection::vec((0..5usize, 0..3u8), 0..20),
        ) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = harness();
                for (n, _) in doomed.iter().enumerate() {
                    h.model.lock().put(&namespace(&format!("ns{n}")));
                }
                let mut kept = 0;
                for (i, (n, kind)) in contents.into_iter().enumerate() {
                    let n = n % doomed.len();
                    kept += usize::from(!doomed[n]);
                    let metadata = meta(&format!("ns{n}"), &format!("o{i}"));
                    let mut model = h.model.lock();
                    match kind {
                        0 => drop(model.put(&ConfigMap { metadata, ..Default::default() })),
                        1 => drop(model.put(&Secret { metadata, ..Default::default() })),
                        _ => drop(model.put(&Pod { metadata, ..Default::default() })),
                    }
                }
                for (n, gone) in doomed.iter().enumerate() {
                    if *gone {
                        h.model.lock().delete_as_user::<Namespace>("", &format!("ns{n}"));
                    }
                }
                h.settle(200).await;
                for _ in 0..3 {
                    later(&mut h).await;
                }
                let left = h.model.lock().everything().filter(|(k, _, _)| k.1 != "namespaces").count();
                prop_assert_eq!(left, kept);
                let survivors = h.model.lock().list::<Namespace>().len();
                prop_assert_eq!(survivors, doomed.iter().filter(|d| !**d).count());
                Ok(())
            })?;
        }
    }
}
