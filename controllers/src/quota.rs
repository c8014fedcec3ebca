//! ResourceQuota: counts what namespaces use, whenever something that a quota counts goes or gets smaller.
//!
//! Admission charges what is made; this controller takes off what goes. Of kinds that are only counted the server is
//! asked for the number; pods, services, claims and device claims are looked at one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use hawser_api::quantity::Quantity;
use hawser_api::quota::{self, Item, Quota};
use hawser_api::resources::{self, ResourceList};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, Service};
use kube::core::{DynamicObject, PartialObjectMeta, Request};
use kube::discovery::ApiResource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cache::{BY_NAMESPACE, Caches, Pod};
use crate::discovery::discover;
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::pods;
use crate::runner::exec::url;
use crate::runner::{Controller, Failure, Queue, ViewError};

/// Everything is counted anew so often, whatever was missed (as kube-controller-manager).
const RESYNC: Duration = Duration::from_secs(300);
/// Objects of one page.
const PAGE: u32 = 500;

/// Group and plural.
type Id = (String, String);

/// Kinds that are looked at one by one, with where they are.
const WHOLE: [(&str, &str, &str); 4] = [
    ("", "v1", "pods"),
    ("", "v1", "services"),
    ("", "v1", "persistentvolumeclaims"),
    ("resource.k8s.io", "v1", "resourceclaims"),
];

/// What a decision about a quota rests on.
pub struct View {
    /// The quota.
    pub quota: Arc<ResourceQuota>,
    /// What is used of what it bounds; names that nobody knows are absent.
    pub used: ResourceList,
}

/// The kinds that a quota counts, by the names in it.
pub fn counted(quota: &Quota) -> BTreeSet<Id> {
    let mut ids = BTreeSet::new();
    for (group, _, plural) in WHOLE {
        if !quota::matching(group, plural, quota.hard.keys()).is_empty() {
            ids.insert((group.to_owned(), plural.to_owned()));
        }
    }
    for name in quota.hard.keys() {
        let id = match name.strip_prefix("count/") {
            Some(resource) => {
                resource.split_once('.').map_or(("", resource), |(plural, group)| (group, plural))
            }
            None if quota::count_names("", name).len() > 1 => ("", name.as_str()),
            None => continue,
        };
        if quota::is_counted(id.0, id.1) {
            ids.insert((id.0.to_owned(), id.1.to_owned()));
        }
    }
    ids
}

/// Adds what an object uses of what a quota bounds.
fn add_usage(quota: &Quota, item: Item<'_>, used: &mut ResourceList) {
    if quota.counts(item) {
        let mut own = quota::usage(item);
        own.retain(|name, _| quota.hard.contains_key(name));
        resources::add(used, &own);
    }
}

/// Decides about a quota.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let old = view.quota.as_ref();
    if object::is_deleting(old) {
        return plan;
    }
    let hard = old.spec.as_ref().and_then(|s| s.hard.clone());
    let mut updated = old.clone();
    let status = updated.status.get_or_insert_default();
    let text = |q: &Quantity| k8s_openapi::apimachinery::pkg::api::resource::Quantity(q.to_string());
    let mut used: BTreeMap<_, _> = view.used.iter().map(|(name, q)| (name.clone(), text(q))).collect();
    // Amounts that are equal stay as they are written.
    for (name, before) in status.used.iter().flatten() {
        let same = |now: &Quantity| Quantity::parse(&before.0).is_ok_and(|before| before == *now);
        if view.used.get(name).is_some_and(same) {
            used.insert(name.clone(), before.clone());
        }
    }
    status.used = Some(used).filter(|used| !used.is_empty());
    status.hard = hard;
    plan.update_status(old, &updated);
    plan.requeue(RESYNC);
    plan
}

/// The controller. Keys are quotas.
pub struct Quotas {
    caches: Arc<Caches>,
    client: Client,
    /// Versions of kinds that are counted, as far as they were asked for.
    versions: Mutex<BTreeMap<Id, ApiResource>>,
    queue: Mutex<Option<Arc<Queue>>>,
    /// A quota came or changed: other kinds may have to be watched.
    changed: Notify,
}

/// A page of a list.
#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    #[serde(default)]
    items: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    remaining_item_count: Option<i64>,
    r#continue: Option<String>,
}

impl Quotas {
    /// A controller on these caches; `client` counts.
    pub fn new(caches: &Arc<Caches>, client: &Client) -> Self {
        Self {
            caches: caches.clone(),
            client: client.clone(),
            versions: Mutex::default(),
            queue: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Looks again at all quotas of a namespace.
    fn look_in(&self, namespace: &str) {
        let Some(queue) = self.queue.lock().clone() else { return };
        for quota in self.caches.quotas.by_index(BY_NAMESPACE, namespace) {
            queue.add(Key::of(quota.as_ref()));
        }
    }

    /// Where a kind is served; `None` when it is not.
    async fn resource(&self, id: &Id) -> Result<Option<ApiResource>, kube::Error> {
        if let Some((group, version, plural)) =
            WHOLE.iter().find(|(g, _, p)| (*g, *p) == (id.0.as_str(), id.1.as_str()))
        {
            return Ok(Some(api_resource(group, version, plural)));
        }
        if let Some(known) = self.versions.lock().get(id) {
            return Ok(Some(known.clone()));
        }
        let found = discover(&self.client).await?;
        let found =
            found.resources.into_iter().find(|r| r.namespaced && r.api.group == id.0 && r.api.plural == id.1);
        let Some(found) = found.filter(|r| r.can(&["list", "watch"])) else { return Ok(None) };
        self.versions.lock().insert(id.clone(), found.api.clone());
        Ok(Some(found.api))
    }

    async fn page(
        &self,
        at: &ApiResource,
        namespace: &str,
        limit: u32,
        from: Option<&str>,
    ) -> Result<Page, kube::Error> {
        let mut params = kube::api::ListParams::default().limit(limit);
        if let Some(token) = from {
            params = params.continue_token(token);
        }
        let request = Request::new(url(at, namespace)).list(&params).map_err(kube::Error::BuildRequest)?;
        self.client.request::<Page>(request).await
    }

    /// What a quota's namespace uses.
    async fn used(&self, quota: &Quota, namespace: &str) -> Result<ResourceList, ViewError> {
        let mut used = ResourceList::new();
        for id in counted(quota) {
            let Some(at) = self.resource(&id).await? else { continue };
            let (group, plural) = (id.0.as_str(), id.1.as_str());
            for name in quota::matching(group, plural, quota.hard.keys()) {
                used.insert(name.to_owned(), Quantity::ZERO);
            }
            if WHOLE.iter().any(|(g, _, p)| (*g, *p) == (group, plural)) {
                let mut token = None;
                loop {
                    let page = self.page(&at, namespace, PAGE, token.as_deref()).await?;
                    for object in &page.items {
                        add_usage(
                            quota,
                            Item { group, resource: plural, object, now: Timestamp::now() },
                            &mut used,
                        );
                    }
                    token = page.metadata.r#continue.filter(|t| !t.is_empty());
                    if token.is_none() {
                        break;
                    }
                }
            } else {
                let page = self.page(&at, namespace, 1, None).await?;
                let count = i64::try_from(page.items.len()).unwrap_or(i64::MAX);
                let count = count.saturating_add(page.metadata.remaining_item_count.unwrap_or(0));
                let item = Item { group, resource: plural, object: &Value::Null, now: Timestamp::now() };
                // Scopes are about pods and claims; with one, nothing else is counted.
                if quota.counts(item) {
                    for name in quota::matching(group, plural, quota.hard.keys()) {
                        used.insert(name.to_owned(), Quantity::from_int(count));
                    }
                }
            }
        }
        Ok(used)
    }

    /// Tells the quotas of a namespace when an object of a kind goes.
    async fn watch(&self, at: ApiResource, stop: CancellationToken) {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(self.client.clone(), &at);
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
            match event {
                Ok(watcher::Event::Delete(object)) => {
                    self.look_in(object.metadata.namespace.as_deref().unwrap_or_default());
                }
                // What went while nobody watched.
                Ok(watcher::Event::InitDone) => {
                    for namespace in self.caches.quotas.index_values(BY_NAMESPACE) {
                        self.look_in(&namespace);
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(kind = at.plural, %error, "watch failed, trying again"),
            }
        }
    }
}

fn api_resource(group: &str, version: &str, plural: &str) -> ApiResource {
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: String::new(),
        plural: plural.to_owned(),
    }
}

fn parse(quota: &ResourceQuota) -> Option<Quota> {
    serde_json::to_value(quota).ok().map(|value| Quota::wanted(&value))
}

/// What of a pod makes it count less than before.
fn pod_facts(pod: &Arc<Pod>) -> (bool, bool, Option<i64>) {
    let ended = matches!(pods::phase(pod), "Succeeded" | "Failed");
    let deadline = pod.spec.as_ref().and_then(|s| s.active_deadline_seconds);
    (ended, object::is_deleting(pod.as_ref()), deadline)
}

#[async_trait]
impl Controller for Quotas {
    type View = View;

    fn name(&self) -> &'static str {
        "resourcequota"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        *self.queue.lock() = Some(queue.clone());
        let (this, q) = (self.clone(), queue.clone());
        self.caches.quotas.on_change(move |change| {
            let spec = |quota: &Arc<ResourceQuota>| quota.spec.clone();
            let hard = |quota: &Arc<ResourceQuota>| quota.status.as_ref().and_then(|s| s.hard.clone());
            if change.old.map(spec) != change.new.map(spec) || change.old.map(hard) != change.new.map(hard) {
                q.add(change.key.clone());
                this.changed.notify_one();
            }
            if change.new.is_none() {
                // Quotas are counted themselves.
                this.look_in(&change.key.namespace);
            }
        });
        let this = self.clone();
        self.caches.pods.on_change(move |change| {
            if change.old.is_some() && change.old.map(pod_facts) != change.new.map(pod_facts) {
                this.look_in(&change.key.namespace);
            }
        });
        let this = self.clone();
        self.caches.services.on_change(move |change| {
            let spec = |s: &Arc<Service>| s.spec.as_ref().map(|s| (s.type_.clone(), s.ports.clone()));
            if change.old.is_some() && change.old.map(spec) != change.new.map(spec) {
                this.look_in(&change.key.namespace);
            }
        });
        let this = self.clone();
        self.caches.claims.on_change(move |change| {
            let asks = |c: &Arc<PersistentVolumeClaim>| {
                let class = c.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone());
                let status = c.status.as_ref();
                let held = status.and_then(|s| s.allocated_resources.clone());
                let current = status.and_then(|s| s.current_volume_attributes_class_name.clone());
                (c.spec.as_ref().and_then(|s| s.resources.clone()), class, held, current)
            };
            if change.old.is_some() && change.old.map(asks) != change.new.map(asks) {
                this.look_in(&change.key.namespace);
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(quota) = self.caches.quotas.get(key) else { return Ok(None) };
        let Some(wanted) = parse(&quota) else { return Ok(None) };
        let used = self.used(&wanted, &key.namespace).await?;
        Ok(Some(View { quota, used }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }

    async fn background(self: Arc<Self>, stop: CancellationToken) {
        let shared = ["pods", "services", "persistentvolumeclaims", "resourcequotas"];
        let mut watches: BTreeMap<Id, CancellationToken> = BTreeMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let quotas = self.caches.quotas.all();
            let mut wanted: BTreeSet<Id> =
                quotas.iter().filter_map(|q| parse(q)).flat_map(|q| counted(&q)).collect();
            wanted.retain(|(group, plural)| !(group.is_empty() && shared.contains(&plural.as_str())));
            watches.retain(|id, token| {
                let keep = wanted.contains(id);
                if !keep {
                    token.cancel();
                }
                keep
            });
            let mut missing = false;
            for id in wanted {
                if watches.contains_key(&id) {
                    continue;
                }
                match self.resource(&id).await {
                    Ok(Some(at)) => {
                        let token = stop.child_token();
                        let (this, stop) = (self.clone(), token.clone());
                        tasks.spawn(async move { this.watch(at, stop).await });
                        watches.insert(id, token);
                    }
                    // A kind that is not served yet may come.
                    Ok(None) => missing = true,
                    Err(error) => {
                        tracing::debug!(%error, "discovery failed, trying again");
                        missing = true;
                    }
                }
            }
            let again = async {
                if missing { tokio::time::sleep(RESYNC / 10).await } else { std::future::pending().await }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.changed.notified() => {}
                () = again => {}
            }
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, lag};
    use k8s_openapi::api::core::v1::Pod;
    use proptest::prelude::*;
    use serde_json::json;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However pods and Services come and go, while caches lag and the process ends: after something went, and after a
        /// new start, the status tells what is there.
        #[test]
        fn what_goes_is_taken_off(
            ops in proptest::collection::vec((0..8u8, any::<bool>(), any::<bool>()), 1..30),
            seed in any::<u64>(),
        ) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = Harness::new(Quotas::new);
                let mut random = lag(seed);
                let hard = json!({"pods": "9", "requests.cpu": "9", "services": "9", "services.nodeports": "9"});
                h.model.lock().put(&quota(json!({"hard": hard}), json!({})));
                h.settle(50).await;
                for (n, is_pod, crash) in ops {
                    let gone = {
                        let mut model = h.model.lock();
                        let name = format!("o{n}");
                        let pod = model.get::<Pod>("ns", &name);
                        let service = model.get::<Service>("ns", &name);
                        match (is_pod, &pod, &service) {
                            (true, None, _) => drop(model.put(&pod_of(&name))),
                            (true, Some(_), _) => model.delete_as_user::<Pod>("ns", &name),
                            (false, _, None) => drop(model.put(&service_of(&name))),
                            (false, _, Some(_)) => model.delete_as_user::<Service>("ns", &name),
                        }
                        if is_pod { pod.is_some() } else { service.is_some() }
                    };
                    if crash {
                        h.restart(Quotas::new);
                    }
                    h.settle_lagging(300, |n| random(n + 1)).await;
                    if !gone && !crash {
                        continue;
                    }
                    h.settle(100).await;
                    let model = h.model.lock();
                    let used = model.get::<ResourceQuota>("ns", "q").unwrap().status.unwrap().used.unwrap();
                    let used = |name: &str| Quantity::parse(&used[name].0).unwrap();
                    let (pods, services) = (model.list::<Pod>().len(), model.list::<Service>().len());
                    prop_assert_eq!(used("pods"), Quantity::from_int(pods as i64));
                    prop_assert_eq!(used("requests.cpu"), Quantity::parse(&format!("{}m", 100 * pods)).unwrap());
                    prop_assert_eq!(used("services"), Quantity::from_int(services as i64));
                    prop_assert_eq!(used("services.nodeports"), Quantity::from_int(services as i64));
                }
                Ok(())
            })?;
        }
    }

    fn pod_of(name: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": "100m"}}}]}}))
        .unwrap()
    }

    fn service_of(name: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000}]}}))
        .unwrap()
    }

    fn quota(spec: Value, status: Value) -> ResourceQuota {
        serde_json::from_value(
            json!({"metadata": {"name": "q", "namespace": "ns"}, "spec": spec, "status": status}),
        )
        .unwrap()
    }

    #[test]
    fn the_kinds_that_a_quota_counts() {
        let hard = json!({"pods": "1", "count/deployments.apps": "2", "secrets": "3", "count/widgets.example.com": "1",
            "requests.storage": "1Gi", "count/events": "1", "gpu.deviceclass.resource.k8s.io/devices": "4"});
        let ids = counted(&parse(&quota(json!({"hard": hard}), json!({}))).unwrap());
        let names: Vec<String> = ids.iter().map(|(g, p)| format!("{p}.{g}")).collect();
        assert_eq!(
            names,
            [
                "persistentvolumeclaims.",
                "pods.",
                "secrets.",
                "deployments.apps",
                "widgets.example.com",
                "resourceclaims.resource.k8s.io"
            ]
        );
    }

    #[test]
    fn the_status_tells_what_is_used() {
        let used = ResourceList::from([
            ("pods".into(), Quantity::from_int(2)),
            ("requests.cpu".into(), Quantity::from_int(1)),
        ]);
        let spec = json!({"hard": {"pods": "3", "requests.cpu": "2"}});
        let view = View { quota: Arc::new(quota(spec.clone(), json!({}))), used: used.clone() };
        let plan = reconcile(&view, Timestamp::UNIX_EPOCH);
        let body = match plan.acts().next().map(|act| &act.action) {
            Some(crate::plan::Action::Update { subresource: Some("status"), body, .. }) => body.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            body["status"],
            json!({"hard": {"pods": "3", "requests.cpu": "2"}, "used": {"pods": "2", "requests.cpu": "1"}})
        );
        // What is written in other words is the same.
        let status = json!({"hard": spec["hard"], "used": {"pods": "2", "requests.cpu": "1000m"}});
        let view = View { quota: Arc::new(quota(spec, status)), used };
        assert_eq!(reconcile(&view, Timestamp::UNIX_EPOCH).acts().count(), 0);
    }
}
