//! Drives one controller: real wiring, real executor, caches that may lag behind the model.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::time::Instant;

use super::model::{Kind, Logged, Model, Shared};
use crate::cache::{Caches, Store};
use crate::object::Held;
use crate::plan::Plan;
use crate::runner::events::Recorder;
use crate::runner::{Clock, Controller, Executor, Queue, Runner};

/// A deterministic source of small numbers, for lags.
pub fn lag(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    }
}

/// Sees events.
pub type Tap = Box<dyn Fn(&Logged)>;

/// A controller on a model.
pub struct Harness<C: Controller> {
    /// The model.
    pub model: Shared,
    /// The caches as the controller sees them.
    pub caches: Arc<Caches>,
    /// The controller.
    pub controller: Arc<C>,
    /// Its queue.
    pub queue: Arc<Queue>,
    /// Its clock.
    pub clock: Clock,
    /// Sees every event as it is delivered.
    pub tap: Option<Tap>,
    runner: Runner<C>,
    seen: HashMap<Kind, usize>,
    events: tokio::sync::mpsc::Receiver<(&'static str, crate::plan::Note)>,
}

/// Virtual time: a fixed start plus what tokio's (paused) clock says has passed.
pub fn clock() -> Clock {
    let start = Instant::now();
    let base = Timestamp::from_second(1_700_000_000).expect("a time");
    Arc::new(move || {
        let passed = SignedDuration::try_from(start.elapsed()).expect("a short test");
        base.checked_add(passed).expect("a short test")
    })
}

impl<C: Controller> Harness<C> {
    /// A controller made by `make` on an empty model.
    pub fn new(make: impl FnOnce(&Arc<Caches>, &kube::Client) -> C) -> Self {
        let clock = clock();
        Self::at(clock.clone(), Model::shared(clock), make)
    }

    /// A controller made by `make` on a model that others use too.
    pub fn on(model: Shared, make: impl FnOnce(&Arc<Caches>, &kube::Client) -> C) -> Self {
        let now = model.lock().now.clone();
        Self::at(now, model, make)
    }

    fn at(clock: Clock, model: Shared, make: impl FnOnce(&Arc<Caches>, &kube::Client) -> C) -> Self {
        let client = super::client(model.clone());
        let caches = Caches::new();
        let controller = Arc::new(make(&caches, &client));
        let queue = Arc::new(Queue::new());
        controller.clone().wire(&queue);
        let (recorder, events) = Recorder::channel();
        let executor =
            Executor::new(client, &caches.stores(), recorder.for_component(controller.component()));
        let runner = Runner::new(controller.clone(), executor, queue.clone(), clock.clone());
        Self { model, caches, controller, queue, clock, tap: None, runner, seen: HashMap::new(), events }
    }

    /// As if the process had ended and another one begun: nothing is left but the model, and caches that have just
    /// listed it.
    pub fn restart(&mut self, make: impl FnOnce(&Arc<Caches>, &kube::Client) -> C) {
        let client = super::client(self.model.clone());
        self.caches = Caches::new();
        self.controller = Arc::new(make(&self.caches, &client));
        self.queue = Arc::new(Queue::new());
        self.controller.clone().wire(&self.queue);
        let (recorder, events) = Recorder::channel();
        self.events = events;
        let executor =
            Executor::new(client, &self.caches.stores(), recorder.for_component(self.controller.component()));
        self.runner = Runner::new(self.controller.clone(), executor, self.queue.clone(), self.clock.clone());
        self.seen = HashMap::new();
        self.deliver();
    }

    /// Works on at most `times` keys that are due, while the caches lag.
    pub async fn work_some(&mut self, times: usize, mut how_many: impl FnMut(usize) -> usize) {
        for _ in 0..times {
            self.deliver_some(&mut how_many);
            let Some(key) = self.queue.try_next() else { return };
            self.runner.work(&key).await;
            self.queue.done(&key);
        }
    }

    /// Delivers everything that the caches have not seen.
    pub fn deliver(&mut self) {
        self.deliver_some(|_| usize::MAX);
    }

    /// Delivers, per kind, at most `how_many(left)` events, in order.
    pub fn deliver_some(&mut self, mut how_many: impl FnMut(usize) -> usize) {
        let log: Vec<Logged> = self.model.lock().log.clone();
        let mut kinds: Vec<Kind> = log.iter().map(|e| e.kind.clone()).collect();
        kinds.sort();
        kinds.dedup();
        for kind in kinds {
            let seen = self.seen.get(&kind).copied().unwrap_or(0);
            let events: Vec<&Logged> = log.iter().filter(|e| e.kind == kind).collect();
            let left = events.len().saturating_sub(seen);
            let take = how_many(left).min(left);
            for event in &events[seen..seen + take] {
                give(&self.caches, event);
                if let Some(tap) = &self.tap {
                    tap(event);
                }
            }
            self.seen.insert(kind, seen + take);
        }
    }

    /// Shows every event once more, as a watch that begins anew may.
    pub fn again(&mut self) {
        let log: Vec<Logged> = self.model.lock().log.clone();
        // Of each object the last state: what is gone does not come back.
        let there = |event: &&Logged| {
            let held = self.model.lock().read(&event.kind, &key_of(event)).ok();
            held.is_some_and(|held| held == event.object)
        };
        log.iter().filter(there).for_each(|event| give(&self.caches, event));
    }

    /// Works on every key that is due until none is, delivering everything before each; at most
    /// `bound` times. Returns how often it worked.
    pub async fn settle(&mut self, bound: usize) -> usize {
        self.settle_lagging(bound, |_| usize::MAX).await
    }

    /// As [`Harness::settle`], but other events than those of the key's own writes lag.
    pub async fn settle_lagging(&mut self, bound: usize, mut how_many: impl FnMut(usize) -> usize) -> usize {
        for round in 0..bound {
            self.deliver_some(&mut how_many);
            let Some(key) = self.queue.try_next() else {
                // Nothing due: whatever lags arrives, and retries come due.
                let before: usize = self.seen.values().sum();
                self.deliver();
                tokio::time::advance(std::time::Duration::from_millis(20)).await;
                let idle = self.queue.is_empty() && before == self.seen.values().sum::<usize>();
                if idle && self.queue.try_next().inspect(|k| self.requeue(k)).is_none() {
                    return round;
                }
                continue;
            };
            let outcome = self.runner.work(&key).await;
            // As the runner: the key is held until the caches show its writes.
            if let Some(outcome) = outcome {
                while !outcome.visible(std::time::Duration::ZERO).await {
                    self.deliver();
                }
            }
            self.queue.done(&key);
        }
        panic!("did not settle within {bound} rounds");
    }

    fn requeue(&self, key: &crate::object::Key) {
        self.queue.done(key);
        self.queue.add(key.clone());
    }

    /// What the controller would do about `key` now.
    pub async fn plan(&self, key: &crate::object::Key) -> Plan {
        match self.controller.view(key, None).await.expect("a view") {
            Some(view) => self.controller.reconcile(&view, (self.clock)()),
            None => Plan::new(),
        }
    }

    /// The events recorded since the last call, as `Type Reason Message`.
    pub fn notes(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        while let Ok((_, note)) = self.events.try_recv() {
            let kind = if note.warning { "Warning" } else { "Normal" };
            notes.push(format!("{kind} {} {}", note.reason, note.message));
        }
        notes
    }
}

fn key_of(event: &Logged) -> crate::object::Key {
    let text = |field: &str| event.object["metadata"][field].as_str().unwrap_or_default();
    crate::object::Key::new(text("namespace"), text("name"))
}

fn feed<K: Held>(store: &Store<K>, event: &Logged) {
    let object: K::Wire = serde_json::from_value(event.object.clone()).expect("typed");
    match event.what {
        "DELETED" => store.remove(&object),
        _ => store.apply(object),
    }
}

fn give(caches: &Caches, event: &Logged) {
    // Samples of pods are no pods, whatever they are called.
    if event.kind.0 == "metrics.k8s.io" {
        return;
    }
    let of = |field: &str| -> &Value { &event.object["metadata"][field] };
    match event.kind.1.as_str() {
        "pods" => feed(&caches.pods, event),
        "nodes" => feed(&caches.nodes, event),
        "leases" if of("namespace") == "kube-node-lease" => feed(&caches.node_leases, event),
        "namespaces" => feed(&caches.namespaces, event),
        "serviceaccounts" => feed(&caches.accounts, event),
        "configmaps" if of("name") == "kube-root-ca.crt" => feed(&caches.root_cas, event),
        "services" => feed(&caches.services, event),
        "endpoints" => feed(&caches.endpoints, event),
        "endpointslices" => feed(&caches.slices, event),
        "replicasets" => feed(&caches.replica_sets, event),
        "replicationcontrollers" => feed(&caches.replication_controllers, event),
        "deployments" => feed(&caches.deployments, event),
        "statefulsets" => feed(&caches.stateful_sets, event),
        "daemonsets" => feed(&caches.daemon_sets, event),
        "controllerrevisions" => feed(&caches.revisions, event),
        "jobs" => feed(&caches.jobs, event),
        "horizontalpodautoscalers" => feed(&caches.autoscalers, event),
        "cronjobs" => feed(&caches.cron_jobs, event),
        "persistentvolumeclaims" => feed(&caches.claims, event),
        "persistentvolumes" => feed(&caches.volumes, event),
        "resourceslices" => feed(&caches.resource_slices, event),
        "resourceclaims" => feed(&caches.resource_claims, event),
        "resourceclaimtemplates" => feed(&caches.claim_templates, event),
        "storageclasses" => feed(&caches.storage_classes, event),
        "csidrivers" => feed(&caches.csi_drivers, event),
        "volumeattachments" => feed(&caches.attachments, event),
        "volumeattributesclasses" => feed(&caches.attributes_classes, event),
        "resourcequotas" => feed(&caches.quotas, event),
        "poddisruptionbudgets" => feed(&caches.budgets, event),
        "certificatesigningrequests" => feed(&caches.csrs, event),
        "secrets" if event.object["type"] == "bootstrap.kubernetes.io/token" => feed(&caches.tokens, event),
        "secrets" if event.object["type"] == crate::accounts::TOKEN_TYPE => {
            feed(&caches.account_secrets, event)
        }
        "loadbalancerippools" => feed(&caches.pools, event),
        "servicecidrs" => feed(&caches.service_cidrs, event),
        "ipaddresses" => feed(&caches.addresses, event),
        "validatingadmissionpolicies" => feed(&caches.validating_policies, event),
        "clusterroles" => feed(&caches.cluster_roles, event),
        "storageversionmigrations" => feed(&caches.migrations, event),
        _ => {}
    }
}
