//! Choices are carried out: reserved, permitted, prepared, bound; or given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Scheduler;
use super::held::{Held, Stage};
use crate::bind::{self, Bound};
use crate::cycle::FitError;
use crate::framework::{Permission, Readiness, Rejection, Wait, Write};
use crate::plugins::group_of;
use crate::pod::{PodInfo, PodKey};
use crate::report::Report;

impl Scheduler {
    /// Counts the pod on its node, with what plugins keep account of.
    pub(super) fn reserve(
        &mut self,
        profile: usize,
        pod: &Arc<PodInfo>,
        node: &Arc<str>,
    ) -> Result<(), Rejection> {
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
    pub(super) fn ask_permission(
        &mut self,
        profile: usize,
        pod: Arc<PodInfo>,
        node: Arc<str>,
        deadline: Option<Instant>,
        now: Instant,
    ) {
        let mut wait: Option<Duration> = None;
        for permit in &self.profiles[profile].permits {
            match permit.permit(&pod, &node, &self.cache.view().objects) {
                Permission::Approve => {}
                Permission::Wait(longest) => wait = Some(wait.map_or(longest, |w| w.min(longest))),
                Permission::Reject(reason) => {
                    let plugin = permit.name();
                    self.give_back(&pod, &node);
                    let rejection = Rejection { plugin, ..Rejection::resolvable(reason.0) };
                    self.rejected(pod, FitError::of_chosen(&rejection), None, now);
                    return;
                }
            }
        }
        match wait {
            None => self.prepare_binding(profile, pod, node, now),
            Some(longest) => {
                let deadline = deadline.unwrap_or(now + longest);
                self.held.insert(Held { pod, node, deadline, stage: Stage::Permit, told: false });
            }
        }
    }

    /// A new reservation may be what others waited for.
    pub(super) fn ask_held(&mut self, now: Instant) {
        for uid in self.held.permits() {
            let Some(held) = self.held.remove(&uid) else { continue };
            if let Some(profile) = self.profile(&held.pod) {
                self.ask_permission(profile, held.pod, held.node, Some(held.deadline), now);
            }
        }
    }

    /// Writes what must be there before the pod is bound, if anything.
    pub(super) fn prepare_binding(
        &mut self,
        profile: usize,
        pod: Arc<PodInfo>,
        node: Arc<str>,
        now: Instant,
    ) {
        let objects = &self.cache.view().objects;
        let plugins = &self.profiles[profile].pre_binds;
        let writes: Vec<_> = plugins.iter().flat_map(|p| p.writes(&pod, &node, objects)).collect();
        // No deadline yet: it begins when all is written.
        let deadline = now + Duration::from_secs(3600);
        let stage = Stage::Writing;
        let held = Held { pod: pod.clone(), node: node.clone(), deadline, stage, told: false };
        if writes.is_empty() {
            self.when_ready(held);
            return;
        }
        self.held.insert(held);
        self.bindings.spawn(bind::write(self.client.clone(), pod, node, writes));
    }

    /// Binds the pod once everything is ready for it.
    pub(super) fn when_ready(&mut self, held: Held) {
        let now = Instant::now();
        let Some(profile) = self.profile(&held.pod) else { return };
        self.cache.objects().now = Timestamp::now();
        let Some(node) = self.cache.view().node(&held.node) else {
            self.give_back(&held.pod, &held.node);
            self.queue.failed(&held.pod.key, now);
            return;
        };
        let (mut waiting, mut for_any_device) = (Vec::new(), false);
        let mut deadline = held.deadline;
        for plugin in &self.profiles[profile].pre_binds {
            match plugin.ready(&held.pod, node, &self.cache.view().objects) {
                Readiness::Ready => {}
                Readiness::Wait(Wait { objects, longest, late, for_devices }) => {
                    if held.stage == Stage::Writing {
                        deadline = now + longest;
                    } else if deadline <= now {
                        let (plugin, pod, node) = (plugin.name(), held.pod, held.node);
                        self.not_prepared(plugin, pod, &node, &late);
                        return;
                    }
                    for_any_device |= for_devices;
                    waiting.extend(objects);
                }
                Readiness::Failed(reason) => {
                    let (plugin, pod, node) = (plugin.name(), held.pod, held.node);
                    self.not_prepared(plugin, pod, &node, &reason.0);
                    return;
                }
            }
        }
        if waiting.is_empty() {
            self.bind(held.pod, held.node);
            return;
        }
        if for_any_device && !held.told {
            self.reports.add(Report::Waits { pod: held.pod.clone(), node: held.node.clone() });
        }
        let stage = Stage::Effect(waiting);
        self.held.insert(Held { deadline, stage, told: held.told || for_any_device, ..held });
    }

    /// What a pod needs before it is bound is not there, and will not be.
    fn not_prepared(&mut self, plugin: &str, pod: Arc<PodInfo>, node: &str, why: &str) {
        let message = format!("running PreBind plugin \"{plugin}\": {why}");
        self.give_back(&pod, node);
        self.queue.failed(&pod.key, Instant::now());
        let reason = "SchedulerError";
        self.reports.add(Report::Failed { pod, reason, message, nominated: None });
    }

    pub(super) fn give_back(&mut self, pod: &PodInfo, node: &str) {
        if let Some(profile) = self.profile(pod) {
            let profile = &self.profiles[profile];
            for plugin in profile.reserves.iter().rev() {
                plugin.unreserve(pod, node, self.cache.objects());
            }
            let objects = &self.cache.view().objects;
            let undone = profile.pre_binds.iter().flat_map(|plugin| plugin.undo(pod, objects)).collect();
            self.write_aside(&pod.key, undone);
        }
        if let Some(group) = group_of(pod) {
            self.cache.objects().set_member(&group, &pod.key.uid, Some(false));
        }
        self.cache.forget(&pod.key);
    }

    /// Writes something that nothing waits for.
    pub(super) fn write_aside(&mut self, pod: &PodKey, writes: Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        let (client, pod) = (self.client.clone(), pod.clone());
        self.evictions.spawn(async move {
            if let Err(error) = bind::write_all(&client, &pod, writes).await {
                tracing::warn!(%error, namespace = %pod.namespace, pod = %pod.name, "not written");
            }
        });
    }

    pub(super) fn bind(&mut self, pod: Arc<PodInfo>, node: Arc<str>) {
        self.bindings.spawn(bind::bind(self.client.clone(), self.extenders.clone(), pod, node));
    }

    pub(super) fn on_bound(&mut self, done: Result<Bound, tokio::task::JoinError>) {
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
                self.reports.add(Report::Scheduled { pod, node });
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
