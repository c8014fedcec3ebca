//! PodDisruptionBudgets: how many of the pods they cover may be evicted now. `stale` takes back what was said to a pod
//! whose disruption never came.

pub mod stale;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Client;
use kube::core::Request;

use crate::autoscaler::words;
use crate::cache::{BY_LABEL, BY_SELECTOR, Caches, Pod};
use crate::deployment::resolve;
use crate::discovery::discover;
use crate::object::{self, Key};
use crate::plan::{Note, Plan};
use crate::pods;
use crate::runner::exec::url;
use crate::runner::{Controller, Failure, Queue, ViewError};

/// How long an evicted pod may take to begin its end before the eviction is forgotten, in seconds.
const PATIENCE: i64 = 120;
/// When what could not be found out is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// What a decision about a budget rests on.
pub struct View {
    /// The budget.
    pub budget: Arc<PodDisruptionBudget>,
    /// The pods that it covers.
    pub pods: Vec<Arc<Pod>>,
    /// How many pods their controllers want together, where that matters; or why it is not known.
    pub scale: Result<i32, String>,
    /// Those of the pods that other budgets cover, too, each with the name of one of these. Told where this budget is not
    /// that one.
    pub shared: Vec<(Arc<Pod>, String)>,
}

/// Whether the budget needs to know what controllers want.
fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let Some(spec) = &budget.spec else { return false };
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// Decides about a budget.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let budget = view.budget.as_ref();
    let Some(spec) = &budget.spec else { return plan };
    if object::is_deleting(budget) {
        return plan;
    }
    let old = budget.status.clone().unwrap_or_default();
    let mut status = old.clone();
    status.observed_generation = budget.metadata.generation;
    let about = || object::reference(budget);
    if view.pods.is_empty() {
        plan.events.push(Note::normal(about(), "NoPods", "No matching pods found"));
    }
    if needs_scale(budget) && view.pods.iter().any(|pod| object::controller_ref(&pod.metadata).is_none()) {
        let message = format!(
            "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the \
             status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for \
             these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
            words::selector(spec.selector.as_ref())
        );
        plan.events.push(Note::warning(about(), "UnmanagedPods", message));
    }
    for (pod, chosen) in &view.shared {
        let message = format!(
            "Pod {:?}/{:?} matches multiple PodDisruptionBudgets.  Chose {chosen:?} arbitrarily.",
            object::namespace(pod.as_ref()),
            object::name(pod.as_ref())
        );
        plan.events.push(Note::warning(
            object::reference(pod.as_ref()),
            "MultiplePodDisruptionBudgets",
            message,
        ));
    }
    match &view.scale {
        Err(why) => {
            // What is not known must not be disrupted.
            let message = format!("Failed to calculate the number of expected pods: {why}");
            plan.events.push(Note::warning(about(), "CalculateExpectedPodCountFailed", message));
            status.disruptions_allowed = Some(0);
            plan.requeue(LOOK_AGAIN);
            set_condition(&mut status, budget, false, "SyncFailed", why.clone(), now);
        }
        Ok(scale) => {
            let count = i32::try_from(view.pods.len()).unwrap_or(i32::MAX);
            let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
                (Some(most), _) => (*scale, (scale - resolve(most, *scale, true)).max(0)),
                (None, Some(percent @ IntOrString::String(_))) => (*scale, resolve(percent, *scale, true)),
                (None, Some(IntOrString::Int(least))) => (count, (*least).max(0)),
                (None, None) => (count, 1),
            };
            let disrupted = disrupted(&mut plan, view, &old, now);
            let healthy = view.pods.iter().filter(|pod| {
                let evicted = disrupted.contains_key(object::name(pod.as_ref()));
                !object::is_deleting(pod.as_ref()) && !evicted && pods::is_ready(pod)
            });
            let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
            let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
            status.current_healthy = Some(healthy);
            status.desired_healthy = Some(desired);
            status.expected_pods = Some(expected);
            status.disruptions_allowed = Some(allowed);
            status.disrupted_pods = (!disrupted.is_empty()).then_some(disrupted);
            let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
            set_condition(&mut status, budget, allowed > 0, reason, String::new(), now);
        }
    }
    let mut updated = budget.clone();
    updated.status = Some(status);
    if !plan.update_status(budget, &updated) {
        plan.events.clear();
    }
    plan
}

/// The pods whose eviction was granted and has not shown yet.
fn disrupted(
    plan: &mut Plan,
    view: &View,
    old: &PodDisruptionBudgetStatus,
    now: Timestamp,
) -> BTreeMap<String, Time> {
    let mut kept = BTreeMap::new();
    for (name, since) in old.disrupted_pods.iter().flatten() {
        let Some(pod) = view.pods.iter().find(|p| object::name(p.as_ref()) == name) else { continue };
        if object::is_deleting(pod.as_ref()) {
            continue;
        }
        let left = PATIENCE - object::seconds_since(since, now);
        if left > 0 {
            plan.requeue(Duration::from_secs(left.unsigned_abs()));
            kept.insert(name.clone(), since.clone());
        } else {
            let key = Key::of(view.budget.as_ref());
            let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            plan.events.push(Note::warning(object::reference(pod.as_ref()), "NotDeleted", message));
        }
    }
    kept
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    budget: &PodDisruptionBudget,
    allowed: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let value = if allowed { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let since = conditions
        .iter()
        .find(|c| c.type_ == "DisruptionAllowed" && c.status == value)
        .map(|c| c.last_transition_time.clone());
    conditions.retain(|c| c.type_ != "DisruptionAllowed");
    conditions.push(Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: budget.metadata.generation,
        last_transition_time: since.unwrap_or_else(|| object::time(now)),
    });
}

/// The controller. Keys are budgets.
pub struct Disruption {
    caches: Arc<Caches>,
    client: Client,
}

impl Disruption {
    /// A controller on these caches; `client` asks for the scale of controllers that no cache holds.
    pub fn new(caches: &Arc<Caches>, client: &Client) -> Self {
        Self { caches: caches.clone(), client: client.clone() }
    }

    fn pods_of(&self, budget: &PodDisruptionBudget) -> Vec<Arc<Pod>> {
        let namespace = object::namespace(budget);
        let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        let Some((wanted, selector)) = selector.and_then(|s| Some((s, object::selector(s)?))) else {
            return Vec::new();
        };
        let mut pods = match wanted.match_labels.as_ref().filter(|p| !p.is_empty()) {
            Some(pairs) => self.caches.pods_with(namespace, pairs),
            None => self.caches.pods.by_index(BY_LABEL, &format!("{namespace}/")),
        };
        pods.retain(|pod| object::matches(&selector, &pod.metadata.labels));
        pods
    }

    /// The pods for which another budget comes first, by name.
    fn shared(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Vec<(Arc<Pod>, String)> {
        let namespace = object::namespace(budget);
        let first = |pod: &Arc<Pod>| {
            let buckets = object::label_buckets(namespace, &pod.metadata.labels);
            let others = buckets.iter().flat_map(|bucket| self.caches.budgets.by_index(BY_SELECTOR, bucket));
            let covering = others.filter(|other| {
                let selector = other.spec.as_ref().and_then(|s| object::selector(s.selector.as_ref()?));
                selector.is_some_and(|selector| object::matches(&selector, &pod.metadata.labels))
            });
            let name = covering.map(|other| object::name(other.as_ref()).to_owned()).min();
            name.filter(|name| name.as_str() < object::name(budget))
        };
        pods.iter().filter_map(|pod| Some((pod.clone(), first(pod)?))).collect()
    }

    /// How many pods the controllers of `pods` want together.
    async fn scale(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<Result<i32, String>, ViewError> {
        let mut wanted: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let Some(owner) = object::controller_ref(&pod.metadata) else { continue };
            let lost = || Ok(Err(format!("found no controllers for pod {:?}", object::name(pod.as_ref()))));
            if wanted.contains_key(&owner.uid) {
                continue;
            }
            let key = Key::new(namespace, &owner.name);
            let (uid, size) = match owner.kind.as_str() {
                "ReplicaSet" => {
                    let Some(set) =
                        self.caches.replica_sets.get(&key).filter(|s| object::uid(s.as_ref()) == owner.uid)
                    else {
                        return lost();
                    };
                    let above = object::controller_ref(&set.metadata).filter(|r| r.kind == "Deployment");
                    let above =
                        above.and_then(|r| self.caches.deployments.get(&Key::new(namespace, &r.name)));
                    match above {
                        Some(d) => {
                            (object::uid(d.as_ref()).to_owned(), d.spec.as_ref().and_then(|s| s.replicas))
                        }
                        None => (owner.uid.clone(), set.spec.as_ref().and_then(|s| s.replicas)),
                    }
                }
                "StatefulSet" => {
                    let Some(set) =
                        self.caches.stateful_sets.get(&key).filter(|s| object::uid(s.as_ref()) == owner.uid)
                    else {
                        return lost();
                    };
                    (owner.uid.clone(), set.spec.as_ref().and_then(|s| s.replicas))
                }
                _ => match self.live_scale(namespace, owner).await? {
                    Ok(size) => (owner.uid.clone(), size),
                    Err(why) => return Ok(Err(why)),
                },
            };
            wanted.insert(uid, size.unwrap_or(1));
        }
        Ok(Ok(wanted.into_values().fold(0, i32::saturating_add)))
    }

    async fn live_scale(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Result<Option<i32>, String>, ViewError> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let found = discover(&self.client).await?;
        let resource = found.resources.iter().find(|r| r.api.group == group && r.api.kind == owner.kind);
        let unknown = || format!("{} {} does not implement the scale subresource", owner.kind, owner.name);
        let Some(resource) = resource else { return Ok(Err(unknown())) };
        let request = Request::new(url(&resource.api, namespace)).get_subresource("scale", &owner.name);
        let request = request.map_err(kube::Error::BuildRequest)?;
        match self.client.request::<Scale>(request).await {
            Ok(scale) => Ok(Ok(scale.spec.and_then(|s| s.replicas))),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Err(unknown())),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl Controller for Disruption {
    type View = View;

    fn name(&self) -> &'static str {
        "disruption"
    }

    fn component(&self) -> &'static str {
        "controllermanager"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.budgets.queue_changed(queue);
        let (this, q) = (self.clone(), queue.clone());
        self.caches.pods.on_change(move |change| {
            let facts = |p: &Arc<Pod>| {
                (pods::is_ready(p), object::is_deleting(p.as_ref()), p.metadata.labels.clone())
            };
            if change.old.map(facts) == change.new.map(facts) {
                return;
            }
            for pod in change.states() {
                let buckets = object::label_buckets(object::namespace(pod.as_ref()), &pod.metadata.labels);
                for budget in buckets.iter().flat_map(|b| this.caches.budgets.by_index(BY_SELECTOR, b)) {
                    q.add(Key::of(budget.as_ref()));
                }
            }
        });
        self.caches.replica_sets.want();
        self.caches.deployments.want();
        self.caches.stateful_sets.want();
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(budget) = self.caches.budgets.get(key) else { return Ok(None) };
        let pods = self.pods_of(&budget);
        let scale = if needs_scale(&budget) { self.scale(&key.namespace, &pods).await? } else { Ok(0) };
        let shared = self.shared(&budget, &pods);
        Ok(Some(View { budget, pods, scale, shared }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, held, lag};
    use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
    use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
    use k8s_openapi::api::policy::v1::PodDisruptionBudgetSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
    use proptest::prelude::*;

    fn meta(name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            labels: Some([("app".to_string(), "web".to_string())].into()),
            ..Default::default()
        }
    }

    fn budget(least: Option<IntOrString>, most: Option<IntOrString>) -> PodDisruptionBudget {
        PodDisruptionBudget {
            metadata: meta("budget"),
            spec: Some(PodDisruptionBudgetSpec {
                min_available: least,
                max_unavailable: most,
                selector: Some(LabelSelector { match_labels: meta("").labels, match_expressions: None }),
                ..Default::default()
            }),
            status: None,
        }
    }

    fn ready(yes: bool) -> Option<PodStatus> {
        let condition = PodCondition {
            type_: "Ready".into(),
            status: if yes { "True" } else { "False" }.into(),
            ..Default::default()
        };
        Some(PodStatus { conditions: Some(vec![condition]), ..Default::default() })
    }

    fn setup(least: Option<IntOrString>, most: Option<IntOrString>, replicas: i32) -> Harness<Disruption> {
        let h = Harness::new(Disruption::new);
        let set = ReplicaSet {
            metadata: meta("set"),
            spec: Some(ReplicaSetSpec { replicas: Some(replicas), ..Default::default() }),
            status: None,
        };
        let set = h.model.lock().put(&set);
        for n in 0..replicas {
            let mut pod = Pod { metadata: meta(&format!("p{n}")), spec: None, status: ready(true) };
            pod.metadata.owner_references = Some(vec![object::new_controller_ref(&set)]);
            h.model.lock().put(&pod);
        }
        h.model.lock().put(&budget(least, most));
        h
    }

    fn status(h: &Harness<Disruption>) -> PodDisruptionBudgetStatus {
        h.model.lock().get::<PodDisruptionBudget>("ns", "budget").unwrap().status.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn budgets_add_up() {
        let percent = |t: &str| Some(IntOrString::String(t.into()));
        let cases = [
            // least, most, replicas, unready -> desired, allowed
            (Some(IntOrString::Int(3)), None, 5, 0, 3, 2),
            (Some(IntOrString::Int(3)), None, 5, 3, 3, 0),
            (percent("50%"), None, 5, 0, 3, 2),
            (None, Some(IntOrString::Int(1)), 5, 0, 4, 1),
            (None, Some(IntOrString::Int(1)), 5, 1, 4, 0),
            (None, percent("30%"), 5, 0, 3, 2),
        ];
        for (least, most, replicas, unready, desired, allowed) in cases {
            let what = format!("{least:?} {most:?} {replicas} {unready}");
            let mut h = setup(least, most, replicas);
            for n in 0..unready {
                h.model.lock().edit::<Pod>("ns", &format!("p{n}"), |p| p.status = ready(false));
            }
            h.settle(100).await;
            let s = status(&h);
            assert_eq!((s.desired_healthy, s.disruptions_allowed), (Some(desired), Some(allowed)), "{what}");
            let condition = &s.conditions.unwrap()[0];
            assert_eq!(condition.reason, if allowed > 0 { "SufficientPods" } else { "InsufficientPods" });
            assert!(h.plan(&Key::new("ns", "budget")).await.is_empty(), "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_eviction_counts_until_it_shows_or_is_forgotten() {
        let mut h = setup(Some(IntOrString::Int(3)), None, 5);
        h.settle(100).await;
        let now = (h.clock)();
        h.model.lock().edit::<PodDisruptionBudget>("ns", "budget", |b| {
            let evicted = [("p0".to_string(), object::time(now))];
            b.status.as_mut().unwrap().disrupted_pods = Some(evicted.into());
        });
        h.settle(100).await;
        assert_eq!(status(&h).disruptions_allowed, Some(1));
        tokio::time::advance(Duration::from_secs(125)).await;
        h.settle(100).await;
        assert_eq!(status(&h).disruptions_allowed, Some(2));
        assert!(h.notes().iter().any(|n| n.starts_with("Warning NotDeleted")));
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_are_none_nobodys_or_of_several_budgets_are_told() {
        let mut h = setup(None, Some(IntOrString::Int(1)), 1);
        let mut first = budget(Some(IntOrString::Int(1)), None);
        first.metadata.name = Some("another".into());
        h.model.lock().put(&first);
        let mut empty = budget(Some(IntOrString::Int(1)), None);
        empty.metadata.name = Some("empty".into());
        empty.spec.as_mut().unwrap().selector = Some(LabelSelector::default());
        empty.metadata.namespace = Some("elsewhere".into());
        h.model.lock().put(&empty);
        h.model.lock().put(&Pod { metadata: meta("alone"), spec: None, status: ready(true) });
        h.settle(100).await;
        let notes = h.notes();
        let has = |note: &str| assert!(notes.iter().any(|n| n == note), "{note} is not among {notes:?}");
        has("Normal NoPods No matching pods found");
        has(
            "Warning MultiplePodDisruptionBudgets Pod \"ns\"/\"p0\" matches multiple PodDisruptionBudgets.  Chose \
             \"another\" arbitrarily.",
        );
        has("Warning UnmanagedPods Pods selected by this PodDisruptionBudget (selector: \
             &LabelSelector{MatchLabels:map[string]string{app: web,},MatchExpressions:[]LabelSelectorRequirement{},}) \
             were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may \
             result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB \
             to an integer value.");
    }

    /// A set that the cache does not show is unknown, and not of size nothing.
    #[tokio::test(start_paused = true)]
    async fn a_controller_that_is_not_there_allows_nothing_until_it_is() {
        let mut h = setup(None, Some(IntOrString::Int(1)), 2);
        h.model.lock().delete_as_user::<ReplicaSet>("ns", "set");
        h.settle(100).await;
        let s = status(&h);
        let condition = &s.conditions.unwrap()[0];
        assert_eq!((s.disruptions_allowed, condition.reason.as_str()), (Some(0), "SyncFailed"));
        assert_eq!(condition.message, "found no controllers for pod \"p0\"");
        let owner = h.model.lock().list::<Pod>()[0].metadata.owner_references.clone().unwrap().remove(0);
        let mut again = ReplicaSet { metadata: meta("set"), ..ReplicaSet::default() };
        again.metadata.uid = Some(owner.uid);
        again.spec = Some(ReplicaSetSpec { replicas: Some(2), ..ReplicaSetSpec::default() });
        h.model.lock().put(&again);
        h.settle(100).await;
        tokio::time::advance(LOOK_AGAIN).await;
        h.settle(100).await;
        assert_eq!(status(&h).disruptions_allowed, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_controller_allows_nothing() {
        let mut h = setup(None, Some(IntOrString::Int(1)), 2);
        h.model.lock().edit::<Pod>("ns", "p0", |p| {
            let owner = &mut p.metadata.owner_references.as_mut().unwrap()[0];
            (owner.kind, owner.api_version) = ("Thing".into(), "example.com/v1".into());
            owner.uid = "thing".into();
        });
        h.settle(100).await;
        let s = status(&h);
        assert_eq!(
            (s.disruptions_allowed, s.conditions.unwrap()[0].reason.as_str()),
            (Some(0), "SyncFailed")
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However readiness changes and views lag, what is allowed never eats into what is promised.
        #[test]
        fn promises_hold(least in 0..6i32, flips in proptest::collection::vec((0..5usize, any::<bool>()), 1..20), seed in any::<u64>()) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = setup(Some(IntOrString::Int(least)), None, 5);
                let mut lagging = lag(seed);
                for (n, yes) in flips {
                    h.model.lock().edit::<Pod>("ns", &format!("p{n}"), |p| p.status = ready(yes));
                    h.settle_lagging(100, &mut lagging).await;
                }
                h.settle(100).await;
                let healthy = h.model.lock().list::<Pod>().iter().filter(|p| pods::is_ready(&held(p))).count() as i32;
                prop_assert_eq!(status(&h).disruptions_allowed, Some((healthy - least).max(0)));
                Ok(())
            })?;
        }
    }
}
