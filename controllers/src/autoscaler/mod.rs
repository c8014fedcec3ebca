//! HorizontalPodAutoscaler: as many replicas as metrics ask for.

pub mod limits;
pub mod metrics;
pub mod propose;
mod reconcile;
pub mod replicas;
pub mod target;
#[cfg(test)]
mod tests;
pub(crate) mod words;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hawser_api::selector::{LabelSelector, Operator};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::Client;
use kube::core::{Expression, Selector};
use parking_lot::Mutex;

use crate::cache::{BY_LABEL, Caches, Pod};
use crate::object::{self, Key};
use crate::plan::Plan;
use crate::runner::{Clock, Controller, Failure, Queue, ViewError};
use limits::History;
use propose::{Inputs, Proposal};
use target::{Kinds, Scaled};

pub use reconcile::{View, reconcile};

/// Settings; the defaults are Kubernetes'.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often each autoscaler is looked at.
    pub sync_period: Duration,
    /// For how long the highest recommendation counts before there are fewer replicas.
    pub downscale_stabilization: Duration,
    /// How far a ratio may be off 1 before anything is done.
    pub tolerance: f64,
    /// How new pods' CPU samples are taken.
    pub startup: replicas::Startup,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sync_period: Duration::from_secs(15),
            downscale_stabilization: Duration::from_secs(300),
            tolerance: 0.1,
            startup: replicas::Startup {
                cpu_initialization: Duration::from_secs(300),
                initial_readiness: Duration::from_secs(30),
            },
        }
    }
}

/// The controller. Keys are autoscalers.
pub struct Autoscalers {
    caches: Arc<Caches>,
    client: Client,
    clock: Clock,
    settings: Settings,
    kinds: Kinds,
    /// What is remembered of each autoscaler.
    histories: Mutex<HashMap<Key, History>>,
    /// By namespace: what each autoscaler's target selects, as of the last look.
    selectors: Mutex<HashMap<String, HashMap<String, Selector>>>,
}

impl Autoscalers {
    /// A controller on these caches. `client` reads scales and metrics.
    pub fn new(caches: &Arc<Caches>, client: &Client, clock: Clock, settings: Settings) -> Self {
        Self {
            caches: caches.clone(),
            client: client.clone(),
            clock,
            settings,
            kinds: Kinds::default(),
            histories: Mutex::default(),
            selectors: Mutex::default(),
        }
    }

    fn memory(&self, hpa: &HorizontalPodAutoscaler) -> Duration {
        let behavior = hpa.spec.behavior.as_ref();
        limits::memory(behavior, self.settings.downscale_stabilization)
    }

    /// Takes in what the status of an autoscaler says of its last change.
    fn note_change(&self, key: &Key, hpa: &HorizontalPodAutoscaler) {
        let Some(status) = &hpa.status else { return };
        let Some(at) = &status.last_scale_time else { return };
        let by = status.desired_replicas.saturating_sub(status.current_replicas.unwrap_or(0));
        self.histories.lock().entry(key.clone()).or_default().changed(by, at.0, self.memory(hpa));
    }

    fn forget(&self, key: &Key) {
        self.histories.lock().remove(key);
        let mut selectors = self.selectors.lock();
        if let Some(of) = selectors.get_mut(&key.namespace) {
            of.remove(&key.name);
            if of.is_empty() {
                selectors.remove(&key.namespace);
            }
        }
    }

    /// The pods that the target selects, or why it selects none that this autoscaler may count.
    fn pods(&self, key: &Key, target: &Scaled) -> Result<Vec<Arc<Pod>>, Proposal> {
        let text = target.selector();
        if text.is_empty() {
            let condition = "the HPA target's scale is missing a selector".to_owned();
            return Err(propose::unselected(
                "SelectorRequired",
                "selector is required".to_owned(),
                condition,
            ));
        }
        let selector = match LabelSelector::parse(text) {
            Ok(parsed) => typed(&parsed),
            Err(error) => {
                let why = format!(
                    "couldn't convert selector into a corresponding internal selector object: {error}"
                );
                return Err(propose::unselected("InvalidSelector", why.clone(), why));
            }
        };
        let pods = self.selected(&key.namespace, text, &selector);
        let mut selectors = self.selectors.lock();
        let of = selectors.entry(key.namespace.clone()).or_default();
        of.insert(key.name.clone(), selector);
        let selecting: BTreeSet<&String> = of
            .iter()
            .filter(|(_, s)| pods.iter().any(|pod| object::matches(s, &pod.metadata.labels)))
            .map(|(name, _)| name)
            .collect();
        if selecting.len() > 1 {
            let keys: Vec<String> =
                selecting.iter().map(|name| format!("{{{name} {}}}", key.namespace)).collect();
            let why =
                format!("pods by selector {text} are controlled by multiple HPAs: [{}]", keys.join(" "));
            return Err(propose::unselected("AmbiguousSelector", why.clone(), why));
        }
        Ok(pods)
    }

    /// The pods of a namespace that a selector matches: looks only at those with one of its labels, if it names one.
    fn selected(&self, namespace: &str, text: &str, selector: &Selector) -> Vec<Arc<Pod>> {
        let pair = text.split(',').find(|part| {
            part.split_once('=')
                .is_some_and(|(k, v)| !k.ends_with('!') && !v.contains('=') && !k.contains(' '))
        });
        let bucket = match pair {
            Some(pair) => format!("{namespace}/{pair}"),
            None => format!("{namespace}/"),
        };
        let mut pods = self.caches.pods.by_index(BY_LABEL, &bucket);
        pods.retain(|pod| object::matches(selector, &pod.metadata.labels));
        pods
    }

    async fn propose(&self, hpa: &HorizontalPodAutoscaler, target: &Scaled, pods: &[Arc<Pod>]) -> Proposal {
        let namespace = object::namespace(hpa);
        let from = (&self.client, &self.kinds);
        let reads =
            propose::specs(hpa).iter().map(|spec| metrics::read(from, spec, namespace, target.selector()));
        let readings = futures::future::join_all(reads).await;
        propose::propose(&Inputs {
            hpa,
            replicas: (target.replicas(), target.actual()),
            pods,
            readings: &readings,
            settings: &self.settings,
            now: (self.clock)(),
        })
    }
}

/// A parsed selector as one that matches typed labels.
fn typed(parsed: &LabelSelector) -> Selector {
    let expression = |r: &hawser_api::selector::Requirement| {
        let (key, values) = (r.key.clone(), r.values.iter().cloned().collect());
        let first = r.values.first().cloned().unwrap_or_default();
        match r.operator {
            Operator::In => Expression::In(key, values),
            Operator::NotIn => Expression::NotIn(key, values),
            Operator::Equals => Expression::Equal(key, first),
            Operator::NotEquals => Expression::NotEqual(key, first),
            Operator::DoesNotExist => Expression::DoesNotExist(key),
            // Label selectors of scales hold no comparisons of numbers.
            Operator::Exists | Operator::GreaterThan | Operator::LessThan => Expression::Exists(key),
        }
    };
    parsed.requirements.iter().map(expression).collect()
}

#[async_trait]
impl Controller for Autoscalers {
    type View = View;

    fn name(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.pods.want();
        let (this, q) = (self.clone(), queue.clone());
        self.caches.autoscalers.on_change(move |change| match (change.old, change.new) {
            (_, None) => this.forget(change.key),
            (old, Some(new)) => {
                this.note_change(change.key, new);
                // Otherwise it comes by itself, at its own pace.
                if old.is_none_or(|old| old.spec != new.spec) {
                    q.add(change.key.clone());
                }
            }
        });
    }

    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let Some(hpa) = self.caches.autoscalers.get(key) else { return Ok(None) };
        let reference = &hpa.spec.scale_target_ref;
        let target = target::read(&self.client, &self.kinds, &key.namespace, reference).await;
        let mut proposal = None;
        let mut history = History::default();
        if let Ok(target) = &target {
            let (current, now) = (target.replicas(), (self.clock)());
            if reconcile::needs_metrics(current, reconcile::bounds(&hpa)) {
                proposal = Some(match self.pods(key, target) {
                    Ok(pods) => self.propose(&hpa, target, &pods).await,
                    Err(unselected) => unselected,
                });
            }
            let wanted = proposal.as_ref().and_then(|p| p.replicas.as_ref()).map(|(n, _)| *n);
            let mut histories = self.histories.lock();
            let held = histories.entry(key.clone()).or_default();
            held.begin(current, now);
            history = held.clone();
            if let Some(wanted) = wanted {
                held.recommend(wanted, now, self.memory(&hpa));
            }
        }
        let settings = self.settings.clone();
        Ok(Some(View { hpa, target, proposal, history, settings, prior: prior.cloned() }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}
