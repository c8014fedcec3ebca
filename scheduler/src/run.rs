//! The driver: watches pods and nodes, runs cycles, binds, and reports.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures::stream::{Stream, StreamExt, select};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher::{self, Event as WatchEvent, watcher};
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cycle::{self, Decision};
use crate::framework::{ClusterEvent, Framework, Permission};
use crate::pod::{PodInfo, PodKey};
use crate::preempt::{self, Preemption, preempt};
use crate::queue::Queue;
use crate::report;
use crate::snapshot::{Cache, NodeChange};

/// How many bindings may be under way; more would only queue up at the API server.
const MAX_BINDINGS: usize = 64;
/// How many reports (conditions and events) may be under way.
const MAX_REPORTS: usize = 64;
/// Finished pods hold nothing, so they are not watched.
const UNFINISHED: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// What the scheduler is started with.
pub struct Config {
    /// Profiles, told apart by their scheduler name.
    pub profiles: Vec<Framework>,
    /// This process' name in events.
    pub instance: String,
}

impl Default for Config {
    fn default() -> Self {
        Config { profiles: vec![crate::plugins::default_profile()], instance: "default-scheduler".into() }
    }
}

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the scheduler has no profile")]
    NoProfile,
    #[error("two profiles are named {0}")]
    DuplicateProfile(Box<str>),
    #[error("the watch of {0} ended")]
    WatchEnded(&'static str),
}

/// The scheduler.
pub struct Scheduler {
    client: Client,
    profiles: Vec<Framework>,
    recorder: Recorder,
    cache: Cache,
    queue: Queue,
    start: usize,
    bindings: JoinSet<Bound>,
    reports: JoinSet<()>,
    /// Victims being sent away. One at a time waits for each pod that needs room, so there is no limit here.
    evictions: JoinSet<()>,
    /// Reserved pods that a permit plugin holds back.
    waiting: HashMap<Arc<str>, Waiting>,
    /// Seen during a list that is under way, to find what is gone when it ends.
    listed_pods: Option<HashSet<Arc<str>>>,
    listed_nodes: Option<HashSet<String>>,
}

struct Waiting {
    pod: Arc<PodInfo>,
    node: Box<str>,
    deadline: Instant,
}

/// The outcome of one binding.
struct Bound {
    pod: Arc<PodInfo>,
    node: Box<str>,
    result: Result<(), kube::Error>,
}

enum Seen {
    Pod(Box<WatchEvent<Pod>>),
    Node(Box<WatchEvent<Node>>),
}

impl Scheduler {
    /// A scheduler that acts through `client`.
    pub fn new(config: Config, client: Client) -> Result<Self, Error> {
        let mut names = HashSet::new();
        for profile in &config.profiles {
            if !names.insert(&profile.scheduler_name) {
                return Err(Error::DuplicateProfile(profile.scheduler_name.clone()));
            }
        }
        if names.is_empty() {
            return Err(Error::NoProfile);
        }
        let reporter =
            Reporter { controller: "default-scheduler".into(), instance: Some(config.instance.clone()) };
        Ok(Scheduler {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            profiles: config.profiles,
            cache: Cache::default(),
            queue: Queue::default(),
            start: 0,
            bindings: JoinSet::new(),
            reports: JoinSet::new(),
            evictions: JoinSet::new(),
            waiting: HashMap::new(),
            listed_pods: None,
            listed_nodes: None,
        })
    }

    /// Schedules until it is cancelled. Bindings under way are carried out first.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let mut events = std::pin::pin!(watches(self.client.clone()));
        let mut synced = (false, false);
        loop {
            let release = self.next_wake();
            let may_cycle =
                synced == (true, true) && self.queue.active_len() > 0 && self.bindings.len() < MAX_BINDINGS;
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                seen = events.next() => match seen {
                    Some(Seen::Pod(event)) => {
                        synced.0 |= matches!(*event, WatchEvent::InitDone);
                        self.on_pod(*event);
                    }
                    Some(Seen::Node(event)) => {
                        synced.1 |= matches!(*event, WatchEvent::InitDone);
                        self.on_node(*event);
                    }
                    None => return Err(Error::WatchEnded("pods and nodes")),
                },
                Some(done) = self.bindings.join_next() => if let Ok(bound) = done { self.on_bound(bound) },
                Some(_) = self.reports.join_next() => {}
                Some(_) = self.evictions.join_next() => {}
                () = until(release) => self.on_time(),
                () = std::future::ready(()), if may_cycle => self.cycle(),
            }
        }
        while self.bindings.join_next().await.is_some() {}
        while self.evictions.join_next().await.is_some() {}
        Ok(())
    }

    fn next_wake(&self) -> Option<Instant> {
        let waiting = self.waiting.values().map(|w| w.deadline).min();
        [self.queue.next_release(), waiting].into_iter().flatten().min()
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.queue.release(&self.profiles[0], now);
        let expired: Vec<Arc<str>> =
            self.waiting.iter().filter(|(_, w)| w.deadline <= now).map(|(uid, _)| uid.clone()).collect();
        for uid in expired {
            if let Some(held) = self.waiting.remove(&uid) {
                self.give_back(&held.pod, &held.node);
                self.queue.failed(&held.pod.key, now);
            }
        }
    }

    fn profile(&self, pod: &PodInfo) -> Option<usize> {
        self.profiles.iter().position(|p| p.scheduler_name == pod.scheduler_name)
    }

    // --- What is seen ---

    fn on_pod(&mut self, event: WatchEvent<Pod>) {
        match event {
            WatchEvent::Init => self.listed_pods = Some(HashSet::new()),
            WatchEvent::InitApply(pod) => {
                if let (Some(listed), Some(uid)) = (&mut self.listed_pods, &pod.metadata.uid) {
                    listed.insert(uid.as_str().into());
                }
                self.set_pod(pod);
            }
            WatchEvent::InitDone => {
                let Some(listed) = self.listed_pods.take() else { return };
                let known: HashSet<Arc<str>> =
                    self.queue.uids().chain(self.cache.bound_pods()).cloned().collect();
                for uid in known.difference(&listed) {
                    self.pod_gone(uid);
                }
            }
            WatchEvent::Apply(pod) => self.set_pod(pod),
            WatchEvent::Delete(pod) => {
                if let Some(uid) = pod.metadata.uid {
                    self.pod_gone(&uid);
                }
            }
        }
    }

    fn set_pod(&mut self, pod: Pod) {
        let Some(pod) = PodInfo::new(pod).map(Arc::new) else { return };
        if let Some(node) = pod.node_name.clone() {
            self.queue.remove(&pod.key.uid);
            if let Some(freed) = self.cache.set_pod(pod) {
                self.freed(&freed, &node);
            }
            return;
        }
        if pod.finished || pod.deleting {
            self.pod_gone(&pod.key.uid);
            return;
        }
        // While a choice is carried out the pod is not in the queue; its outcome decides what is next.
        if self.cache.is_assumed(&pod.key) {
            return;
        }
        if let Some(node) = pod.nominated_node.as_deref()
            && !self.queue.contains(&pod.key.uid)
        {
            // Room was being made for it before this process began.
            self.cache.nominate(pod.clone(), node);
        }
        if let Some(profile) = self.profile(&pod) {
            self.queue.set(&self.profiles[profile], pod);
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.cache.denominate(uid);
        if let Some(held) = self.waiting.remove(uid) {
            self.give_back(&held.pod, &held.node);
        }
        if let Some(pod) = self.cache.remove_pod(uid)
            && let Some(node) = pod.node_name.clone()
        {
            self.freed(&pod, &node);
        }
    }

    fn freed(&mut self, pod: &PodInfo, node: &str) {
        let Some(node) = self.cache.node(node).cloned() else { return };
        self.cluster_event(&ClusterEvent::PodFreed { pod, node: &node });
    }

    fn cluster_event(&mut self, event: &ClusterEvent<'_>) {
        // Pods of all profiles share one queue; a plugin of the same name gives the same hint in each.
        self.queue.event(&self.profiles[0], event, Instant::now());
    }

    fn on_node(&mut self, event: WatchEvent<Node>) {
        match event {
            WatchEvent::Init => self.listed_nodes = Some(HashSet::new()),
            WatchEvent::InitApply(node) => {
                if let (Some(listed), Some(name)) = (&mut self.listed_nodes, &node.metadata.name) {
                    listed.insert(name.clone());
                }
                self.set_node(&node);
            }
            WatchEvent::InitDone => {
                let Some(listed) = self.listed_nodes.take() else { return };
                let gone: Vec<String> =
                    self.cache.node_names().filter(|n| !listed.contains(*n)).map(str::to_owned).collect();
                for name in gone {
                    self.cache.remove_node(&name);
                }
            }
            WatchEvent::Apply(node) => self.set_node(&node),
            WatchEvent::Delete(node) => {
                if let Some(name) = &node.metadata.name {
                    self.cache.remove_node(name);
                }
            }
        }
    }

    fn set_node(&mut self, node: &Node) {
        match self.cache.set_node(node) {
            Some(NodeChange::Added(node)) => self.cluster_event(&ClusterEvent::NodeAdded(&node)),
            Some(NodeChange::Changed { before, after }) => {
                self.cluster_event(&ClusterEvent::NodeChanged { before: &before, after: &after });
            }
            None => {}
        }
    }

    // --- What is done ---

    fn cycle(&mut self) {
        let now = Instant::now();
        let Some(pod) = self.queue.pop(now) else { return };
        let Some(profile) = self.profile(&pod) else { return };
        let framework = &self.profiles[profile];
        let decision =
            cycle::schedule(framework, &pod, self.cache.snapshot(), &mut self.start, &mut rand::rng());
        match decision {
            Decision::Unschedulable(error) => {
                // Without any node, only a new one helps, and that every plugin waits for.
                let plugins: Vec<&'static str> = if error.plugins.is_empty() {
                    framework.filters.iter().map(|plugin| plugin.name()).collect()
                } else {
                    error.plugins.clone()
                };
                let room = preempt(framework, &pod, self.cache.snapshot(), self.start);
                if room.is_none() && !preempt::still_waiting(&pod, self.cache.snapshot()) {
                    self.cache.denominate(&pod.key.uid);
                }
                self.queue.unschedulable(&pod.key, &plugins, now);
                self.report_unschedulable(pod.clone(), error.to_string());
                if let Some(room) = room {
                    self.make_room(&pod, room);
                }
            }
            Decision::Node(node) => self.reserve(profile, pod, node, now),
        }
    }

    /// Sends the victims away. The pod is tried again when they have left, and the room is its own until then.
    fn make_room(&mut self, pod: &Arc<PodInfo>, room: Preemption) {
        self.cache.nominate(pod.clone(), &room.node);
        let (client, recorder, pod) = (self.client.clone(), self.recorder.clone(), pod.key.clone());
        self.evictions.spawn(async move {
            if let Err(error) = report::nominate(client.clone(), &pod, &room.node).await {
                tracing::debug!(%error, namespace = %pod.namespace, pod = %pod.name, "nomination not noted");
            }
            for victim in room.victims.iter().filter(|victim| !victim.deleting) {
                let victim = &victim.key;
                match report::evict(client.clone(), victim, Timestamp::now()).await {
                    Ok(()) => {
                        report::publish(&recorder, &report::preempted(&pod, &room.node), victim).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, namespace = %victim.namespace, pod = %victim.name, "not preempted");
                    }
                }
            }
        });
    }

    fn reserve(&mut self, profile: usize, pod: Arc<PodInfo>, node: Box<str>, now: Instant) {
        self.cache.assume(pod.clone(), &node);
        let framework = &self.profiles[profile];
        let refused = framework.reserves.iter().find_map(|r| {
            r.reserve(&pod, &node, self.cache.snapshot()).err().map(|reason| (r.name(), reason))
        });
        if let Some((plugin, reason)) = refused {
            self.give_back(&pod, &node);
            self.queue.unschedulable(&pod.key, &[plugin], now);
            self.report_unschedulable(pod, reason.0.into());
            return;
        }
        self.ask_permission(profile, Waiting { pod, node, deadline: now }, true, now);
        self.ask_waiting(now);
    }

    /// Binds, holds or rejects a reserved pod. `first`: its time to wait begins now.
    fn ask_permission(&mut self, profile: usize, mut held: Waiting, first: bool, now: Instant) {
        let mut wait = None;
        for permit in &self.profiles[profile].permits {
            match permit.permit(&held.pod, &held.node) {
                Permission::Approve => {}
                Permission::Wait(longest) => {
                    wait = Some(wait.map_or(longest, |w: std::time::Duration| w.min(longest)))
                }
                Permission::Reject(reason) => {
                    let plugin = permit.name();
                    self.give_back(&held.pod, &held.node);
                    self.queue.unschedulable(&held.pod.key, &[plugin], now);
                    self.report_unschedulable(held.pod, reason.0.into());
                    return;
                }
            }
        }
        match wait {
            None => self.bind(held.pod, held.node),
            Some(longest) => {
                if first {
                    held.deadline = now + longest;
                }
                self.waiting.insert(held.pod.key.uid.clone(), held);
            }
        }
    }

    /// A new reservation may be what others waited for.
    fn ask_waiting(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        for (_, held) in std::mem::take(&mut self.waiting) {
            if let Some(profile) = self.profile(&held.pod) {
                self.ask_permission(profile, held, false, now);
            }
        }
    }

    fn give_back(&mut self, pod: &PodInfo, node: &str) {
        if let Some(profile) = self.profile(pod) {
            for plugin in self.profiles[profile].reserves.iter().rev() {
                plugin.unreserve(pod, node);
            }
        }
        self.cache.forget(&pod.key);
    }

    fn bind(&mut self, pod: Arc<PodInfo>, node: Box<str>) {
        let client = self.client.clone();
        self.bindings.spawn(async move {
            let result = bind(client, &pod.key, &node).await;
            Bound { pod, node, result }
        });
    }

    fn on_bound(&mut self, bound: Bound) {
        let Bound { pod, node, result } = bound;
        match result {
            Ok(()) => {
                self.queue.remove(&pod.key.uid);
                let recorder = self.recorder.clone();
                self.report(async move {
                    report::publish(&recorder, &report::scheduled(&pod.key, &node), &pod.key).await;
                });
            }
            Err(error) => {
                self.give_back(&pod, &node);
                match &error {
                    // Gone, or somebody else bound it: the watch tells what is next.
                    kube::Error::Api(status) if status.code == 404 => self.queue.remove(&pod.key.uid),
                    _ => {
                        tracing::warn!(%error, namespace = %pod.key.namespace, pod = %pod.key.name, "binding failed");
                        self.queue.failed(&pod.key, Instant::now());
                    }
                }
            }
        }
    }

    fn report_unschedulable(&mut self, pod: Arc<PodInfo>, message: String) {
        let (client, recorder) = (self.client.clone(), self.recorder.clone());
        self.report(async move {
            let condition =
                report::set_unschedulable(client, &pod, "Unschedulable", &message, Timestamp::now()).await;
            if let Err(error) = condition {
                tracing::debug!(%error, namespace = %pod.key.namespace, pod = %pod.key.name, "condition not set");
            }
            report::publish(&recorder, &report::failed(&message), &pod.key).await;
        });
    }

    /// Reports never hold up scheduling; when too many are under way the newest is left out.
    fn report(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        if self.reports.len() < MAX_REPORTS {
            self.reports.spawn(task);
        }
    }
}

async fn bind(client: Client, key: &PodKey, node: &str) -> Result<(), kube::Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(key.uid.to_string()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let pods: Api<Pod> = Api::namespaced(client, &key.namespace);
    let _: serde_json::Value =
        pods.create_subresource("binding", &key.name, &PostParams::default(), &binding).await?;
    Ok(())
}

fn watches(client: Client) -> impl Stream<Item = Seen> {
    let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default().fields(UNFINISHED))
        .default_backoff()
        .filter_map(|result| async { keep(result, "pods").map(|e| Seen::Pod(Box::new(e))) });
    let nodes = watcher(Api::<Node>::all(client), watcher::Config::default())
        .default_backoff()
        .filter_map(|result| async { keep(result, "nodes").map(|e| Seen::Node(Box::new(e))) });
    select(pods, nodes)
}

/// A failed watch is tried again by the stream itself.
fn keep<T>(result: Result<T, watcher::Error>, what: &str) -> Option<T> {
    result.inspect_err(|error| tracing::warn!(%error, "watch of {what} failed")).ok()
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
