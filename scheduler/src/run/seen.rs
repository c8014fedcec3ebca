//! What is seen: pods, nodes and other objects come and go, and wake pods that wait for it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use hawser_watch::LeanPod;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher::Event as WatchEvent;

use super::Scheduler;
use crate::devices::extended::{in_memory, made_for};
use crate::framework::ClusterEvent;
use crate::objects::{Kind, Name, Object};
use crate::plugins::group_of;
use crate::pod::PodInfo;
use crate::snapshot::NodeChange;
use crate::watch::Seen;

impl Scheduler {
    pub(super) fn on_seen(&mut self, seen: Seen) {
        match seen {
            Seen::Pod(event) => self.on_pod(*event),
            Seen::Node(event) => self.on_node(*event),
            Seen::Object(kind, name, object) => self.on_object(kind, &name, object.map(|o| *o)),
            Seen::Listed => self.lists += 1,
        }
    }

    pub(super) fn on_pod(&mut self, event: WatchEvent<LeanPod>) {
        match event {
            WatchEvent::Init => self.listed_pods = Some(HashSet::new()),
            WatchEvent::InitApply(LeanPod(pod)) => {
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
            WatchEvent::Apply(LeanPod(pod)) => self.set_pod(pod),
            WatchEvent::Delete(LeanPod(pod)) => {
                if let Some(uid) = pod.metadata.uid {
                    self.pod_gone(&uid);
                }
            }
        }
    }

    pub(super) fn set_pod(&mut self, pod: Pod) {
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

    pub(super) fn set_placed(&mut self, pod: &Arc<PodInfo>, node: &str) {
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

    pub(super) fn pod_gone(&mut self, uid: &str) {
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
    pub(super) fn freed(&mut self, pod: &PodInfo) {
        let Some(node) = pod.node_name.as_deref().and_then(|name| self.cache.view().node(name)) else {
            return;
        };
        let event = ClusterEvent::PodGone { pod, node };
        self.queue.event(&self.profiles[0], &event, self.cache.view(), Instant::now());
    }

    pub(super) fn happened(&mut self, event: &ClusterEvent<'_>) {
        // Pods of all profiles share one queue; a plugin of the same name gives the same hint in each.
        self.queue.event(&self.profiles[0], event, self.cache.view(), Instant::now());
    }

    pub(super) fn on_node(&mut self, event: WatchEvent<Node>) {
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

    pub(super) fn first_list(&mut self, of: impl Fn(&mut Self) -> &mut bool) {
        if !std::mem::replace(of(self), true) {
            self.lists += 1;
        }
    }

    pub(super) fn set_node(&mut self, node: &Node) {
        self.extenders.note_node(node);
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

    pub(super) fn node_gone(&mut self, name: &str) {
        self.extenders.forget_node(name);
        if let Some(gone) = self.cache.remove_node(name) {
            self.happened(&ClusterEvent::NodeGone(&gone));
        }
    }

    pub(super) fn on_object(&mut self, kind: Kind, name: &Name, after: Option<Object>) {
        // Who waits for a claim that it has made does not know its name.
        let made = match &after {
            Some(Object::ResourceClaim(claim)) => {
                let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
                made_for(claim).map(|pod| in_memory(namespace, pod))
            }
            _ => None,
        };
        let before = match after.clone() {
            Some(object) => self.cache.objects().set(name.clone(), object),
            None => self.cache.objects().remove(kind, name),
        };
        if before.is_none() && after.is_none() {
            return;
        }
        let event = ClusterEvent::Object { name, before: before.as_ref(), after: after.as_ref() };
        self.happened(&event);
        let held = made.iter().chain([name]).flat_map(|name| self.held.waiting_for(name));
        for uid in held.collect::<Vec<_>>() {
            if let Some(held) = self.held.remove(&uid) {
                self.when_ready(held);
            }
        }
    }
}
