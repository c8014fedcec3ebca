//! The driver: takes in what is seen, runs cycles, binds, and reports.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher::Event as WatchEvent;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bind::{self, Bound};
use crate::config::Config;
use crate::cycle::{Engine, FitError};
use crate::extender::{Answers, Extenders};
use crate::framework::{ClusterEvent, Framework, Permission, Readiness, Rejection};
use crate::objects::{Kind, Name, Object};
use crate::plugins::group_of;
use crate::pod::{Classes, PodInfo};
use crate::preempt::{Outcome, Preemption, preempt};
use crate::queue::Queue;
use crate::report::{self, Report, Reports};
use crate::snapshot::{Cache, NodeChange, Slot};
use crate::watch::{self, LISTS, Seen};

/// How many bindings may be under way; more would only queue up at the API server.
const MAX_BINDINGS: usize = 64;
/// What was seen is taken in at most so often before the next cycle.
const BATCH: usize = 256;

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the scheduler has no profile")]
    NoProfile,
    #[error("two profiles are named {0}")]
    DuplicateProfile(Box<str>),
    #[error("the watches ended")]
    WatchEnded,
}

/// The scheduler.
pub struct Scheduler {
    client: Client,
    profiles: Vec<Framework>,
    extenders: Arc<Extenders>,
    recorder: Recorder,
    classes: Classes,
    cache: Cache,
    queue: Queue,
    engine: Engine,
    bindings: JoinSet<Bound>,
    reports: Reports,
    /// Victims being sent away. One at a time waits for each pod that needs room, so there is no limit here.
    evictions: JoinSet<()>,
    /// Reserved pods that a permit plugin holds back, or whose volumes are being bound.
    held: HashMap<Arc<str>, Held>,
    /// Seen during a list that is under way, to find what is gone when it ends.
    listed_pods: Option<HashSet<Arc<str>>>,
    listed_nodes: Option<HashSet<String>>,
    /// Lists that have been read; with pods and nodes.
    lists: usize,
    pods_listed: bool,
    nodes_listed: bool,
}

struct Held {
    pod: Arc<PodInfo>,
    node: Arc<str>,
    deadline: Instant,
    stage: Stage,
}

#[derive(PartialEq)]
enum Stage {
    Permit,
    /// What volumes need is being written.
    Writing,
    /// It has been written; these objects may tell that it has taken effect.
    Volumes(Vec<Name>),
}

impl Scheduler {
    /// A scheduler that acts through `client`.
    ///
    /// # Errors
    /// If there is no profile, or two have the same name.
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
        let recorder = Recorder::new(client.clone(), reporter);
        Ok(Scheduler {
            reports: Reports::new(client.clone(), recorder.clone()),
            recorder,
            extenders: Arc::new(Extenders::new(config.extenders, client.clone())),
            client,
            profiles: config.profiles,
            classes: Classes::default(),
            cache: Cache::default(),
            queue: Queue::new(config.backoff),
            engine: Engine::default(),
            bindings: JoinSet::new(),
            evictions: JoinSet::new(),
            held: HashMap::new(),
            listed_pods: None,
            listed_nodes: None,
            lists: 0,
            pods_listed: false,
            nodes_listed: false,
        })
    }

    /// Schedules until it is cancelled. Bindings under way are carried out first.
    ///
    /// # Errors
    /// If the watches end.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let (to, mut seen) = channel(4096);
        let _watches = watch::start(&self.client, &to);
        drop(to);
        while !cancel.is_cancelled() {
            for _ in 0..BATCH {
                match seen.try_recv() {
                    Ok(event) => self.on_seen(event),
                    Err(_) => break,
                }
            }
            while let Some(done) = self.bindings.try_join_next() {
                self.on_bound(done);
            }
            while self.evictions.try_join_next().is_some() {}
            let release = self.next_wake();
            if release.is_some_and(|at| at <= Instant::now()) {
                self.on_time();
            }
            let synced = self.lists == LISTS + 2;
            if synced && self.queue.active_len() > 0 && self.bindings.len() < MAX_BINDINGS {
                self.cycle().await;
                // Bindings and watches run beside the cycles also where there is one thread.
                tokio::task::yield_now().await;
                continue;
            }
            self.wait(&mut seen, release, &cancel).await?;
        }
        while self.bindings.join_next().await.is_some() {}
        while self.evictions.join_next().await.is_some() {}
        Ok(())
    }

    /// Waits until there is something to do.
    async fn wait(
        &mut self,
        seen: &mut Receiver<Seen>,
        release: Option<Instant>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        tokio::select! {
            () = cancel.cancelled() => {}
            event = seen.recv() => match event {
                Some(event) => self.on_seen(event),
                None => return Err(Error::WatchEnded),
            },
            Some(done) = self.bindings.join_next() => self.on_bound(done),
            () = self.reports.join_next() => {}
            Some(_) = self.evictions.join_next() => {}
            () = until(release) => {}
        }
        Ok(())
    }

    fn next_wake(&self) -> Option<Instant> {
        let held = self.held.values().map(|h| h.deadline).min();
        [self.queue.next_release(), held].into_iter().flatten().min()
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.queue.release(&self.profiles[0], now);
        let expired: Vec<Arc<str>> =
            self.held.iter().filter(|(_, h)| h.deadline <= now).map(|(uid, _)| uid.clone()).collect();
        for uid in expired {
            if let Some(held) = self.held.remove(&uid) {
                self.give_back(&held.pod, &held.node);
                self.queue.failed(&held.pod.key, now);
            }
        }
    }

    fn profile(&self, pod: &PodInfo) -> Option<usize> {
        self.profiles.iter().position(|p| p.scheduler_name == pod.scheduler_name)
    }

    // --- What is seen ---

    fn on_seen(&mut self, seen: Seen) {
        match seen {
            Seen::Pod(event) => self.on_pod(*event),
            Seen::Node(event) => self.on_node(*event),
            Seen::Object(kind, name, object) => self.on_object(kind, &name, object.map(|o| *o)),
            Seen::Listed => self.lists += 1,
        }
    }

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
                self.first_list(|s| &mut s.pods_listed);
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
        let Some(pod) = self.classes.pod(pod).map(Arc::new) else { return };
        if let Some(node) = pod.node_name.clone() {
            self.set_placed(&pod, &node);
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
        let new = self.queue.get(&pod.key.uid).is_none();
        if let Some(node) = pod.nominated_node.as_deref().filter(|_| new) {
            // Room was being made for it before this process began.
            self.cache.nominate(pod.clone(), node);
        }
        let Some(profile) = self.profile(&pod) else { return };
        if let Some(group) = group_of(&pod) {
            self.cache.objects().set_member(&group, &pod.key.uid, Some(false));
        }
        self.queue.set(&self.profiles[profile], pod.clone(), self.cache.view());
        if new && pod.group.is_some() {
            self.happened(&ClusterEvent::PodWaits(&pod));
        }
    }

    fn set_placed(&mut self, pod: &Arc<PodInfo>, node: &str) {
        let confirmed = self.cache.is_assumed(&pod.key);
        if pod.finished {
            self.pod_gone(&pod.key.uid);
            return;
        }
        self.queue.remove(&pod.key.uid);
        if let Some(group) = group_of(pod) {
            self.cache.objects().set_member(&group, &pod.key.uid, Some(true));
        }
        let before = self.cache.set_pod(pod.clone());
        let Some(node) = self.cache.view().node(node) else { return };
        let event = match &before {
            Some(before) if !confirmed => {
                if before.labels == pod.labels && before.amounts() == pod.amounts() {
                    return;
                }
                ClusterEvent::PodChanged { before, after: pod, node }
            }
            _ => ClusterEvent::PodPlaced { pod, node },
        };
        self.queue.event(&self.profiles[0], &event, self.cache.view(), Instant::now());
    }

    fn pod_gone(&mut self, uid: &str) {
        let group = self.queue.get(uid).or_else(|| self.cache.placed(uid)).and_then(|pod| group_of(pod));
        if let Some(group) = group {
            self.cache.objects().set_member(&group, &uid.into(), None);
        }
        self.queue.remove(uid);
        self.cache.denominate(uid);
        if let Some(held) = self.held.remove(uid) {
            self.give_back(&held.pod, &held.node);
        }
        let Some(pod) = self.cache.remove_pod(uid) else { return };
        self.freed(&pod);
    }

    /// A pod does not count on its node any more.
    fn freed(&mut self, pod: &PodInfo) {
        let Some(node) = pod.node_name.as_deref().and_then(|name| self.cache.view().node(name)) else {
            return;
        };
        let event = ClusterEvent::PodGone { pod, node };
        self.queue.event(&self.profiles[0], &event, self.cache.view(), Instant::now());
    }

    fn happened(&mut self, event: &ClusterEvent<'_>) {
        // Pods of all profiles share one queue; a plugin of the same name gives the same hint in each.
        self.queue.event(&self.profiles[0], event, self.cache.view(), Instant::now());
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
                    self.node_gone(&name);
                }
                self.first_list(|s| &mut s.nodes_listed);
            }
            WatchEvent::Apply(node) => self.set_node(&node),
            WatchEvent::Delete(node) => {
                if let Some(name) = &node.metadata.name {
                    self.node_gone(name);
                }
            }
        }
    }

    fn first_list(&mut self, of: impl Fn(&mut Self) -> &mut bool) {
        if !std::mem::replace(of(self), true) {
            self.lists += 1;
        }
    }

    fn set_node(&mut self, node: &Node) {
        let Some(change) = self.cache.set_node(node) else { return };
        let Some(after) = node.metadata.name.as_deref().and_then(|name| self.cache.view().node(name)) else {
            return;
        };
        let event = match &change {
            NodeChange::Added => ClusterEvent::NodeAdded(after),
            NodeChange::Changed { before } => ClusterEvent::NodeChanged { before, after },
        };
        self.queue.event(&self.profiles[0], &event, self.cache.view(), Instant::now());
    }

    fn node_gone(&mut self, name: &str) {
        if let Some(gone) = self.cache.remove_node(name) {
            self.happened(&ClusterEvent::NodeGone(&gone));
        }
    }

    fn on_object(&mut self, kind: Kind, name: &Name, after: Option<Object>) {
        let before = match after.clone() {
            Some(object) => self.cache.objects().set(name.clone(), object),
            None => self.cache.objects().remove(kind, name),
        };
        if before.is_none() && after.is_none() {
            return;
        }
        let event = ClusterEvent::Object { name, before: before.as_ref(), after: after.as_ref() };
        self.happened(&event);
        let concerned: Vec<Arc<str>> = self
            .held
            .iter()
            .filter(|(_, h)| matches!(&h.stage, Stage::Volumes(names) if names.contains(name)))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in concerned {
            if let Some(held) = self.held.remove(&uid) {
                self.when_ready(held);
            }
        }
    }

    // --- What is done ---

    async fn cycle(&mut self) {
        let now = Instant::now();
        let Some(pod) = self.queue.pop(now) else { return };
        let Some(profile) = self.profile(&pod) else { return };
        if let Some(group) = group_of(&pod)
            && self.cache.view().objects.groups.get(group.as_str()).is_some_and(|g| g.min_count.is_some())
        {
            self.cycle_group(&group, pod, now).await;
            return;
        }
        match self.choose(profile, &pod, true).await {
            Ok(Ok(slot)) => {
                let Some(node) = self.cache.view().at(slot).map(|node| node.name.clone()) else { return };
                match self.reserve(profile, &pod, &node) {
                    Ok(()) => {
                        self.ask_permission(profile, pod, node, None, now);
                        self.ask_held(now);
                    }
                    Err(rejection) => {
                        self.rejected(pod, FitError::of_chosen(&rejection), None, now);
                    }
                }
            }
            Ok(Err((error, room))) => {
                let nominated =
                    room.as_ref().map(|room| room.as_ref().map_or(String::new(), |r| r.node.to_string()));
                if matches!(room, Some(None)) {
                    self.cache.denominate(&pod.key.uid);
                }
                self.rejected(pod.clone(), error, nominated, now);
                if let Some(Some(room)) = room {
                    self.make_room(&pod, room);
                }
            }
            Err(error) => {
                self.queue.failed(&pod.key, now);
                self.reports.add(Report::Failed {
                    pod,
                    reason: "SchedulerError",
                    message: error,
                    nominated: None,
                });
            }
        }
    }

    /// Chooses a node. If none fits: why, and, if preemption was tried, whether there will be room.
    ///
    /// # Errors
    /// If an extender fails.
    async fn choose(&mut self, profile: usize, pod: &PodInfo, may_preempt: bool) -> Result<Choice, String> {
        let framework = &self.profiles[profile];
        let snapshot = self.cache.snapshot();
        let mut attempt = self.engine.attempt(framework, pod, snapshot);
        let mut further: HashMap<Slot, i64> = HashMap::new();
        if !attempt.feasible().is_empty() && self.extenders.concern(pod) {
            let names = attempt.feasible().iter().filter_map(|slot| snapshot.at(*slot));
            let names: Vec<String> = names.map(|node| node.name.to_string()).collect();
            let answered = self.extenders.ask(pod, names).await;
            let Answers { rejected, scores } = match answered {
                Ok(answers) => answers,
                Err(error) => {
                    self.engine.keep(attempt);
                    return Err(error);
                }
            };
            attempt.retain(|slot| {
                let rejection = snapshot.at(slot).and_then(|node| rejected.get(&*node.name));
                rejection.map_or(Ok(()), |r| Err(Rejection { plugin: "Extender", ..r.clone() }))
            });
            let slots = scores.iter().filter_map(|(name, score)| Some((snapshot.node(name)?.slot, *score)));
            further = slots.collect();
        }
        let choice = match attempt.choose(&further, &mut rand::rng()) {
            Some(slot) => Ok(slot),
            None => {
                let mut error = attempt.error();
                let mut room = None;
                if let Some(args) = attempt.preemption().filter(|_| may_preempt) {
                    match preempt(&mut attempt, args, &mut rand::rng()) {
                        Outcome::Room(found) => room = Some(Some(found)),
                        Outcome::NotEligible(text) => error.preemption = framework.after_preemption(text),
                        Outcome::NoUse(text) => {
                            error.preemption = framework.after_preemption(&text);
                            room = Some(None);
                        }
                    }
                }
                Err((error, room))
            }
        };
        self.engine.keep(attempt);
        Ok(choice)
    }

    /// Chooses nodes for all pods of a gang that have none. If there are enough, they are bound; otherwise none is.
    async fn cycle_group(&mut self, group: &str, first: Arc<PodInfo>, now: Instant) {
        let mut pods = vec![first];
        pods.extend(self.queue.take_group(group, now));
        let mut chosen: Vec<(usize, Arc<PodInfo>, Arc<str>)> = Vec::new();
        let mut failed: Vec<(Arc<PodInfo>, FitError)> = Vec::new();
        for pod in pods {
            let Some(profile) = self.profile(&pod) else { continue };
            let error = match self.choose(profile, &pod, false).await {
                Ok(Ok(slot)) => {
                    let Some(node) = self.cache.view().at(slot).map(|node| node.name.clone()) else {
                        continue;
                    };
                    match self.reserve(profile, &pod, &node) {
                        Ok(()) => {
                            chosen.push((profile, pod, node));
                            continue;
                        }
                        Err(rejection) => FitError::of_chosen(&rejection),
                    }
                }
                Ok(Err((error, _))) => error,
                Err(error) => FitError { nodes: 1, at_once: Some(error), ..FitError::default() },
            };
            failed.push((pod, error));
        }
        let objects = &self.cache.view().objects;
        let wanted = objects.groups.get(group).and_then(|g| g.min_count).unwrap_or(0);
        if objects.members(group).1 >= wanted {
            for (profile, pod, node) in chosen {
                self.ask_permission(profile, pod, node, None, now);
            }
            for (pod, error) in failed {
                self.rejected(pod, error, None, now);
            }
            self.ask_held(now);
            return;
        }
        // What helps one of them helps all.
        let mut plugins: Vec<&'static str> = failed.iter().flat_map(|(_, e)| e.plugins.clone()).collect();
        plugins.sort_unstable();
        plugins.dedup();
        for (_, pod, node) in chosen.into_iter().rev() {
            self.give_back(&pod, &node);
            self.queue.unschedulable(&pod.key, &plugins, now);
            let message = "pod group is unschedulable".to_owned();
            self.reports.add(Report::Failed { pod, reason: "Unschedulable", message, nominated: None });
        }
        for (pod, error) in failed {
            self.rejected(pod, FitError { plugins: plugins.clone(), ..error }, None, now);
        }
    }

    /// The pod goes back to the queue and is told why.
    fn rejected(&mut self, pod: Arc<PodInfo>, error: FitError, nominated: Option<String>, now: Instant) {
        self.queue.unschedulable(&pod.key, &error.plugins, now);
        self.reports.add(Report::Failed {
            pod,
            reason: "Unschedulable",
            message: error.to_string(),
            nominated,
        });
    }

    /// Sends the victims away. The pod is tried again when they have left, and the room is its own until then.
    fn make_room(&mut self, pod: &Arc<PodInfo>, room: Preemption) {
        let mut displaced = Vec::new();
        for other in self.cache.nominated_below(&room.node, pod.priority) {
            self.cache.denominate(&other.key.uid);
            displaced.push(other.key.clone());
        }
        self.cache.nominate(pod.clone(), &room.node);
        let now = Instant::now();
        let mut leaving = Vec::new();
        for victim in &room.victims {
            // One that is not bound yet only has to give up its reservation.
            if let Some(held) = self.held.remove(&victim.key.uid) {
                self.give_back(&held.pod, &held.node);
                self.queue.failed(&held.pod.key, now);
            } else if !victim.deleting {
                leaving.push(victim.key.clone());
            }
        }
        let (client, recorder, pod) = (self.client.clone(), self.recorder.clone(), pod.clone());
        self.evictions.spawn(async move {
            for other in displaced {
                if let Err(error) = report::clear_nomination(client.clone(), &other).await {
                    tracing::debug!(%error, namespace = %other.namespace, pod = %other.name, "nomination not cleared");
                }
            }
            for victim in leaving {
                match report::evict(client.clone(), &victim, &pod.scheduler_name, Timestamp::now()).await {
                    Ok(()) => {
                        report::publish(&recorder, &report::preempted(&pod.key, &room.node), &victim).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, namespace = %victim.namespace, pod = %victim.name, "not preempted");
                    }
                }
            }
        });
    }

    /// Counts the pod on its node, with what plugins keep account of.
    fn reserve(&mut self, profile: usize, pod: &Arc<PodInfo>, node: &Arc<str>) -> Result<(), Rejection> {
        self.cache.assume(pod.clone(), node);
        if let Some(group) = group_of(pod) {
            self.cache.objects().set_member(&group, &pod.key.uid, Some(true));
        }
        let refused = self.profiles[profile].reserves.iter().find_map(|plugin| {
            let asked = self.cache.with_node(node, |node, objects| plugin.reserve(pod, node, objects));
            asked.err().map(|rejection| Rejection { plugin: plugin.name(), ..rejection })
        });
        let Some(rejection) = refused else { return Ok(()) };
        self.give_back(pod, node);
        Err(rejection)
    }

    /// Goes on with a reserved pod, holds it back, or rejects it. `deadline`: how long it has been held back already.
    fn ask_permission(
        &mut self,
        profile: usize,
        pod: Arc<PodInfo>,
        node: Arc<str>,
        deadline: Option<Instant>,
        now: Instant,
    ) {
        let mut wait: Option<std::time::Duration> = None;
        for permit in &self.profiles[profile].permits {
            match permit.permit(&pod, &node, &self.cache.view().objects) {
                Permission::Approve => {}
                Permission::Wait(longest) => wait = Some(wait.map_or(longest, |w| w.min(longest))),
                Permission::Reject(reason) => {
                    let plugin = permit.name();
                    self.give_back(&pod, &node);
                    let rejection = Rejection { plugin, resolvable: true, reasons: vec![reason] };
                    self.rejected(pod, FitError::of_chosen(&rejection), None, now);
                    return;
                }
            }
        }
        match wait {
            None => self.prepare_binding(profile, pod, node, now),
            Some(longest) => {
                let deadline = deadline.unwrap_or(now + longest);
                self.held.insert(pod.key.uid.clone(), Held { pod, node, deadline, stage: Stage::Permit });
            }
        }
    }

    /// A new reservation may be what others waited for.
    fn ask_held(&mut self, now: Instant) {
        let waiting = self.held.iter().filter(|(_, h)| h.stage == Stage::Permit);
        let uids: Vec<Arc<str>> = waiting.map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            let Some(held) = self.held.remove(&uid) else { continue };
            if let Some(profile) = self.profile(&held.pod) {
                self.ask_permission(profile, held.pod, held.node, Some(held.deadline), now);
            }
        }
    }

    /// Writes what must be there before the pod is bound, if anything.
    fn prepare_binding(&mut self, profile: usize, pod: Arc<PodInfo>, node: Arc<str>, now: Instant) {
        let objects = &self.cache.view().objects;
        let plugins = &self.profiles[profile].pre_binds;
        let writes: Vec<_> = plugins.iter().flat_map(|p| p.writes(&pod, &node, objects)).collect();
        if writes.is_empty() {
            self.bind(pod, node);
            return;
        }
        // No deadline yet: it begins when all is written.
        let deadline = now + std::time::Duration::from_secs(3600);
        let held = Held { pod: pod.clone(), node: node.clone(), deadline, stage: Stage::Writing };
        self.held.insert(pod.key.uid.clone(), held);
        self.bindings.spawn(bind::write(self.client.clone(), pod, node, writes));
    }

    /// Binds the pod once everything is ready for it.
    fn when_ready(&mut self, held: Held) {
        let now = Instant::now();
        let Some(profile) = self.profile(&held.pod) else { return };
        let Some(node) = self.cache.view().node(&held.node) else {
            self.give_back(&held.pod, &held.node);
            self.queue.failed(&held.pod.key, now);
            return;
        };
        let mut waiting = Vec::new();
        let mut deadline = held.deadline;
        for plugin in &self.profiles[profile].pre_binds {
            match plugin.ready(&held.pod, node, &self.cache.view().objects) {
                Readiness::Ready => {}
                Readiness::Wait(names, longest) => {
                    waiting.extend(names);
                    if held.stage == Stage::Writing {
                        deadline = now + longest;
                    }
                }
                Readiness::Failed(reason) => {
                    let message = format!("running PreBind plugin \"{}\": {}", plugin.name(), reason.0);
                    self.give_back(&held.pod, &held.node);
                    self.queue.failed(&held.pod.key, now);
                    let (pod, reason) = (held.pod, "SchedulerError");
                    self.reports.add(Report::Failed { pod, reason, message, nominated: None });
                    return;
                }
            }
        }
        if waiting.is_empty() {
            self.bind(held.pod, held.node);
        } else {
            let stage = Stage::Volumes(waiting);
            self.held.insert(held.pod.key.uid.clone(), Held { deadline, stage, ..held });
        }
    }

    fn give_back(&mut self, pod: &PodInfo, node: &str) {
        if let Some(profile) = self.profile(pod) {
            for plugin in self.profiles[profile].reserves.iter().rev() {
                plugin.unreserve(pod, node, self.cache.objects());
            }
        }
        if let Some(group) = group_of(pod) {
            self.cache.objects().set_member(&group, &pod.key.uid, Some(false));
        }
        self.cache.forget(&pod.key);
    }

    fn bind(&mut self, pod: Arc<PodInfo>, node: Arc<str>) {
        self.bindings.spawn(bind::bind(self.client.clone(), self.extenders.clone(), pod, node));
    }

    fn on_bound(&mut self, done: Result<Bound, tokio::task::JoinError>) {
        let Ok(Bound { pod, node, written, result, gone }) = done else { return };
        let held = if written { self.held.remove(&pod.key.uid) } else { None };
        match result {
            // Without an entry the pod was given up meanwhile.
            Ok(()) if written => {
                if let Some(held) = held {
                    self.when_ready(held);
                }
            }
            Ok(()) => {
                self.queue.remove(&pod.key.uid);
                self.cache.objects().reserved.remove(&pod.key.uid);
                self.reports.add(Report::Scheduled { key: pod.key.clone(), node });
            }
            Err(error) => {
                self.give_back(&pod, &node);
                // Gone, or somebody else bound it: the watch tells what is next.
                if gone {
                    self.queue.remove(&pod.key.uid);
                    return;
                }
                tracing::warn!(%error, namespace = %pod.key.namespace, pod = %pod.key.name, "binding failed");
                self.queue.failed(&pod.key, Instant::now());
            }
        }
    }
}

/// A node, or why there is none; with what preemption found if it was tried.
type Choice = Result<Slot, (FitError, Option<Option<Preemption>>)>;

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
