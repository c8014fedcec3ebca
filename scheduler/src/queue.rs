//! The scheduling queue: pods to try now, pods that back off, and pods that wait for something to change. Pure.
//!
//! Waiting pods are kept by the plugins that rejected them and by class: an event is put to a plugin once for all pods of
//! a class, and wakes the first of them. Where that one fits the next one may, and is woken then; where it does not, no
//! other one would. So an event costs the number of classes that wait, not that of pods.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PodResourceClaim;

use crate::framework::{ClusterEvent, Framework, Reason};
use crate::pod::{PodInfo, PodKey};
use crate::snapshot::Snapshot;

/// A pod that no event has woken is tried again after this time, lest a missed event strands it.
pub const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(5 * 60);

/// How long a pod is left alone after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first; it doubles with each further one.
    pub initial: Duration,
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { initial: Duration::from_secs(1), longest: Duration::from_secs(10) }
    }
}

/// The place of a pod in the active queue: rank, then age (a number that counts up).
type Place = (i64, u64);

/// Pods that an event concerns alike: those of a class, but a pod whose claims are made for it stands alone.
type Alike = (u64, Option<Arc<str>>);

/// All pods without a node.
#[derive(Default)]
pub struct Queue {
    times: Backoff,
    entries: HashMap<Arc<str>, Entry>,
    active: BTreeMap<Place, Arc<str>>,
    /// Pods that did not fit. They need not wait for the end of their back-off when there is nothing else to do.
    backoff: BTreeSet<(Instant, Arc<str>)>,
    /// Pods whose attempt failed. They must.
    errors: BTreeSet<(Instant, Arc<str>)>,
    /// Waiting pods by the plugin that rejected them, so that an event looks only at those that it can help.
    rejected_by: HashMap<&'static str, HashMap<Alike, BTreeMap<Place, Arc<str>>>>,
    /// Pods that are held back before the queue, by the plugin that does it.
    gated_by: HashMap<&'static str, HashMap<Alike, HashSet<Arc<str>>>>,
    /// Waiting pods by the time at which they are tried again whatever happens.
    flush: BTreeSet<(Instant, Arc<str>)>,
    /// Pods by their PodGroup.
    groups: HashMap<String, BTreeSet<Arc<str>>>,
    next_age: u64,
    /// Counts cluster events, to notice those that came while a pod was being tried.
    event_count: u64,
}

struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    /// When the last attempt began: the back-off counts from there.
    last_attempt: Option<Instant>,
    state: State,
}

enum State {
    /// In no structure.
    Loose,
    Active,
    /// Taken out by [`Queue::pop`]; the event count at that time.
    InFlight(u64),
    Backoff(Instant),
    Error(Instant),
    Waiting {
        plugins: Vec<&'static str>,
        flush: Instant,
    },
    /// Held back before the queue by a plugin.
    Gated(&'static str),
}

fn alike(pod: &PodInfo) -> Alike {
    let generated = |claim: &PodResourceClaim| claim.resource_claim_name.is_none();
    let own = pod.volumes.iter().any(|v| v.ephemeral.is_some()) || pod.resource_claims.iter().any(generated);
    (pod.class.id, own.then(|| pod.key.uid.clone()))
}

impl Queue {
    /// An empty queue with these back-offs.
    pub fn new(times: Backoff) -> Self {
        Queue { times, ..Queue::default() }
    }

    /// A pod without a node was seen, for the first time or changed. Answers why it is held back, if it is.
    pub fn set(&mut self, framework: &Framework, pod: Arc<PodInfo>, snapshot: &Snapshot) -> Option<Reason> {
        let uid = pod.key.uid.clone();
        if let Some(entry) = self.entries.get_mut(&uid) {
            let claims = entry.pod.generated_claims != pod.generated_claims;
            if Arc::ptr_eq(&entry.pod.class, &pod.class) && !claims {
                // Another status update, for example our own condition, is no reason to try again.
                entry.pod = pod;
                return None;
            }
            if let State::InFlight(seen) = &mut entry.state {
                // It has changed since: to be tried again.
                *seen = u64::MAX;
                entry.pod = pod;
                return None;
            }
            self.detach(&uid);
            self.ungroup(&uid);
        } else {
            self.next_age += 1;
        }
        let age = self.entries.get(&uid).map_or(self.next_age, |entry| entry.place.1);
        let place = (framework.queue_sort.rank(&pod), age);
        if let Some(group) = crate::plugins::group_of(&pod) {
            self.groups.entry(group).or_default().insert(uid.clone());
        }
        let entry = Entry { pod, place, attempts: 0, last_attempt: None, state: State::Loose };
        let before = self.entries.insert(uid.clone(), entry);
        if let (Some(before), Some(entry)) = (before, self.entries.get_mut(&uid)) {
            (entry.attempts, entry.last_attempt) = (before.attempts, before.last_attempt);
        }
        self.admit(framework, &uid, snapshot)
    }

    /// Puts a pod in the active queue unless a plugin holds it back.
    fn admit(&mut self, framework: &Framework, uid: &Arc<str>, snapshot: &Snapshot) -> Option<Reason> {
        let entry = self.entries.get_mut(uid)?;
        let held = framework
            .pre_enqueue
            .iter()
            .find_map(|plugin| plugin.admit(&entry.pod, &snapshot.objects).err().map(|r| (plugin.name(), r)));
        let Some((plugin, reason)) = held else {
            self.activate(uid);
            return None;
        };
        entry.state = State::Gated(plugin);
        let alike = alike(&entry.pod);
        self.gated_by.entry(plugin).or_default().entry(alike).or_default().insert(uid.clone());
        Some(reason)
    }

    /// A pod is gone, or has a node now.
    pub fn remove(&mut self, uid: &str) {
        self.detach(uid);
        self.ungroup(uid);
        self.entries.remove(uid);
    }

    fn ungroup(&mut self, uid: &str) {
        if let Some(group) = self.entries.get(uid).and_then(|entry| crate::plugins::group_of(&entry.pod))
            && let Some(pods) = self.groups.get_mut(&group)
        {
            pods.remove(uid);
            if pods.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    /// The next pod to try. When there is none, one that backs off need not wait any longer.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        let uid = match self.active.pop_first() {
            Some((_, uid)) => uid,
            None => self.backoff.pop_first()?.1,
        };
        self.take(&uid, now)
    }

    fn take(&mut self, uid: &Arc<str>, now: Instant) -> Option<Arc<PodInfo>> {
        let events = self.event_count;
        let entry = self.entries.get_mut(uid)?;
        entry.attempts += 1;
        entry.last_attempt = Some(now);
        entry.state = State::InFlight(events);
        Some(entry.pod.clone())
    }

    /// Takes out the other pods of a group that could be tried, too, the oldest first; those that back off as well.
    pub fn take_group(&mut self, group: &str, now: Instant) -> Vec<Arc<PodInfo>> {
        let members = self.groups.get(group).cloned().unwrap_or_default();
        let mut ready: Vec<(Place, Arc<str>)> = Vec::new();
        for uid in members {
            let Some(entry) = self.entries.get(&uid) else { continue };
            if !matches!(entry.state, State::InFlight(_) | State::Gated(_)) {
                ready.push((entry.place, uid));
            }
        }
        ready.sort();
        let mut taken = Vec::new();
        for (_, uid) in ready {
            self.detach(&uid);
            taken.extend(self.take(&uid, now));
        }
        taken
    }

    /// The pod did not fit; these plugins rejected it.
    pub fn unschedulable(&mut self, key: &PodKey, plugins: &[&'static str], now: Instant) {
        let events = self.event_count;
        let Some(entry) = self.entries.get_mut(&key.uid) else { return };
        let State::InFlight(seen) = entry.state else { return };
        if plugins.is_empty() {
            self.failed(key, now);
            return;
        }
        if seen != events {
            // Something happened meanwhile that might have helped: try again after the back-off.
            self.back_off(&key.uid, now, false);
            return;
        }
        let flush = now + MAX_UNSCHEDULABLE;
        entry.state = State::Waiting { plugins: plugins.to_vec(), flush };
        let (alike, place) = (alike(&entry.pod), entry.place);
        self.flush.insert((flush, key.uid.clone()));
        for plugin in plugins {
            let by_class = self.rejected_by.entry(plugin).or_default();
            by_class.entry(alike.clone()).or_default().insert(place, key.uid.clone());
        }
    }

    /// The attempt failed for a reason outside the pod, for example an error of the API server.
    pub fn failed(&mut self, key: &PodKey, now: Instant) {
        self.back_off(&key.uid, now, true);
    }

    /// Something happened in the cluster: pods that it may help are tried again, after their back-off.
    pub fn event(
        &mut self,
        framework: &Framework,
        event: &ClusterEvent<'_>,
        snapshot: &Snapshot,
        now: Instant,
    ) {
        self.event_count += 1;
        let awaited = event.node().filter(|node| snapshot.awaits(node.slot));
        let on = |uid: &str| awaited.is_some_and(|node| snapshot.is_nominated(&node.name, uid));
        let mut woken: Vec<Arc<str>> = Vec::new();
        for (plugin, classes) in &self.rejected_by {
            for pods in classes.values() {
                // A pod for which room is being made there differs from the others of its class.
                let Some(first) = pods.values().find(|uid| !on(uid)) else { continue };
                let Some(entry) = self.entries.get(first) else { continue };
                if framework.wakes(plugin, &entry.pod, event, snapshot) {
                    match framework.has_hint(plugin) {
                        true => woken.push(first.clone()),
                        // Whoever rejected them may tell pods of a class apart.
                        false => woken.extend(pods.values().cloned()),
                    }
                }
            }
        }
        for pod in awaited.into_iter().flat_map(|node| snapshot.all_nominated(&node.name)) {
            if let Some(Entry { state: State::Waiting { plugins, .. }, pod, .. }) =
                self.entries.get(&pod.key.uid)
                && plugins.iter().any(|plugin| framework.wakes(plugin, pod, event, snapshot))
            {
                woken.push(pod.key.uid.clone());
            }
        }
        for uid in woken {
            if self.entries.get(&uid).is_some_and(|entry| matches!(entry.state, State::Waiting { .. })) {
                self.back_off(&uid, now, false);
            }
        }
        let mut admitted: Vec<Arc<str>> = Vec::new();
        for (plugin, classes) in &self.gated_by {
            for pods in classes.values() {
                let entry = pods.iter().next().and_then(|uid| self.entries.get(uid));
                if entry.is_some_and(|entry| framework.wakes(plugin, &entry.pod, event, snapshot)) {
                    admitted.extend(pods.iter().cloned());
                }
            }
        }
        for uid in admitted {
            self.detach(&uid);
            self.admit(framework, &uid, snapshot);
        }
        self.release(now);
    }

    /// A pod was placed, or room is made for it: if others like it wait, the next one may get a place, too. `served` are
    /// pods that wait for room that is being made.
    pub fn placed(&mut self, pod: &PodInfo, served: impl Fn(&str) -> bool, now: Instant) {
        let alike = alike(pod);
        let of_class = self.rejected_by.values().filter_map(|classes| classes.get(&alike));
        let next = of_class.filter_map(|pods| pods.iter().find(|(_, uid)| !served(uid))).min();
        if let Some(uid) = next.map(|(_, uid)| uid.clone()) {
            self.back_off(&uid, now, false);
        }
    }

    /// Moves pods whose time has come to the active queue.
    pub fn release(&mut self, now: Instant) {
        for waiting in [&mut self.backoff, &mut self.errors] {
            let mut due = Vec::new();
            while waiting.first().is_some_and(|(at, _)| *at <= now) {
                due.extend(waiting.pop_first());
            }
            for (_, uid) in due {
                activate(&mut self.entries, &mut self.active, &uid);
            }
        }
        while let Some((at, uid)) = self.flush.first().cloned()
            && at <= now
        {
            self.detach(&uid);
            self.activate(&uid);
        }
    }

    /// When [`Queue::release`] has something to do next.
    pub fn next_release(&self) -> Option<Instant> {
        let times = [self.backoff.first(), self.errors.first(), self.flush.first()];
        times.into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// A pod in the queue, in any state.
    pub fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.entries.get(uid).map(|entry| &entry.pod)
    }

    /// The uids of all pods in the queue.
    pub fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.keys()
    }

    /// Whether there is a pod to try now.
    pub fn has_next(&self) -> bool {
        !self.active.is_empty() || !self.backoff.is_empty()
    }

    fn activate(&mut self, uid: &Arc<str>) {
        activate(&mut self.entries, &mut self.active, uid);
    }

    fn back_off(&mut self, uid: &Arc<str>, now: Instant, error: bool) {
        self.detach(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let doublings = entry.attempts.saturating_sub(1).min(16);
        let since = entry.last_attempt.unwrap_or(now);
        let until = since + self.times.initial.saturating_mul(1 << doublings).min(self.times.longest);
        if error {
            entry.state = State::Error(until);
            self.errors.insert((until, uid.clone()));
        } else {
            entry.state = State::Backoff(until);
            self.backoff.insert((until, uid.clone()));
        }
    }

    /// Takes a pod out of the structure that its state names.
    fn detach(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let alike = alike(&entry.pod);
        let uid = &entry.pod.key.uid;
        match std::mem::replace(&mut entry.state, State::Loose) {
            State::Active => {
                self.active.remove(&entry.place);
            }
            State::Backoff(until) => {
                self.backoff.remove(&(until, uid.clone()));
            }
            State::Error(until) => {
                self.errors.remove(&(until, uid.clone()));
            }
            State::Waiting { plugins, flush } => {
                self.flush.remove(&(flush, uid.clone()));
                for plugin in plugins {
                    let Some(classes) = self.rejected_by.get_mut(plugin) else { continue };
                    let Some(pods) = classes.get_mut(&alike) else { continue };
                    pods.remove(&entry.place);
                    if pods.is_empty() {
                        classes.remove(&alike);
                    }
                }
            }
            State::Gated(plugin) => {
                let classes = self.gated_by.entry(plugin).or_default();
                if let Some(pods) = classes.get_mut(&alike) {
                    pods.remove(uid);
                    if pods.is_empty() {
                        classes.remove(&alike);
                    }
                }
            }
            State::InFlight(_) | State::Loose => {}
        }
    }
}

fn activate(entries: &mut HashMap<Arc<str>, Entry>, active: &mut BTreeMap<Place, Arc<str>>, uid: &Arc<str>) {
    let Some(entry) = entries.get_mut(uid) else { return };
    entry.state = State::Active;
    active.insert(entry.place, uid.clone());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::default_profile;
    use crate::plugins::tests::{node, pod};
    use crate::snapshot::NodeInfo;
    use proptest::prelude::*;
    use serde_json::json;

    const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
    const MAX_BACKOFF: Duration = Duration::from_secs(10);

    fn add(queue: &mut Queue, name: &str, spec: serde_json::Value) -> PodKey {
        let pod = Arc::new(pod(name, spec));
        let key = pod.key.clone();
        queue.set(&default_profile(), pod, &Snapshot::default());
        key
    }

    #[test]
    fn higher_priority_goes_first_then_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
            add(&mut queue, name, json!({"priority": priority}));
        }
        let order: Vec<String> =
            std::iter::from_fn(|| queue.pop(now)).map(|pod| pod.key.name.to_string()).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn gated_pods_wait_for_their_update() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        add(&mut queue, "a", json!({"schedulingGates": [{"name": "g"}]}));
        assert!(queue.pop(now).is_none());
        add(&mut queue, "a", json!({}));
        assert!(queue.pop(now).is_some());
    }

    #[test]
    fn a_waiting_pod_is_woken_by_the_right_event_after_its_back_off() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let framework = default_profile();
        let key = add(&mut queue, "a", json!({"nodeSelector": {"disk": "ssd"}}));
        queue.pop(now).unwrap();
        queue.unschedulable(&key, &["NodeAffinity"], now);
        let plain = NodeInfo::new(&node("n", json!({})));
        queue.event(&framework, &ClusterEvent::NodeAdded(&plain), &Snapshot::default(), now);
        assert_eq!(queue.next_release(), Some(now + MAX_UNSCHEDULABLE));
        let right = NodeInfo::new(&node("m", json!({"labels": {"disk": "ssd"}})));
        queue.event(&framework, &ClusterEvent::NodeAdded(&right), &Snapshot::default(), now);
        assert_eq!(queue.next_release(), Some(now + INITIAL_BACKOFF));
        queue.release(now + INITIAL_BACKOFF);
        assert!(queue.pop(now + INITIAL_BACKOFF).is_some());
    }

    #[test]
    fn an_event_during_the_attempt_is_not_lost() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let framework = default_profile();
        let key = add(&mut queue, "a", json!({}));
        queue.pop(now).unwrap();
        let node = NodeInfo::new(&node("n", json!({})));
        queue.event(&framework, &ClusterEvent::NodeAdded(&node), &Snapshot::default(), now);
        queue.unschedulable(&key, &["NodeAffinity"], now);
        assert_eq!(queue.next_release(), Some(now + INITIAL_BACKOFF));
    }

    #[test]
    fn an_event_wakes_the_first_of_a_class_and_its_success_the_next() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let framework = default_profile();
        for n in 0..100 {
            let key = add(&mut queue, &format!("p{n}"), json!({"nodeSelector": {"disk": "nvme"}}));
            queue.pop(now).unwrap();
            queue.unschedulable(&key, &["NodeAffinity"], now);
        }
        let right = NodeInfo::new(&node("m", json!({"labels": {"disk": "nvme"}})));
        queue.event(&framework, &ClusterEvent::NodeAdded(&right), &Snapshot::default(), now);
        let first = queue.pop(now).unwrap();
        assert_eq!(&*first.key.name, "p0");
        assert!(queue.pop(now).is_none(), "nobody else is woken");
        queue.remove(&first.key.uid);
        queue.placed(&first, |_| false, now);
        let second = queue.pop(now).unwrap();
        assert_eq!(&*second.key.name, "p1");
        queue.unschedulable(&second.key, &["NodeAffinity"], now);
        assert!(queue.pop(now).is_none(), "where it does not fit, no other does");
    }

    #[test]
    fn back_off_doubles_up_to_the_longest() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        let key = add(&mut queue, "a", json!({}));
        let mut waits = Vec::new();
        for _ in 0..6 {
            queue.pop(now).unwrap();
            queue.failed(&key, now);
            let next = queue.next_release().unwrap();
            waits.push((next - now).as_secs());
            now = next;
            queue.release(now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8),
        Remove(u8),
        Pop(bool),
        Event,
        Pass(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6u8).prop_map(Step::Add),
            (0..6u8).prop_map(Step::Remove),
            any::<bool>().prop_map(Step::Pop),
            Just(Step::Event),
            (0..4000u16).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// However events interleave, a pod that stays in the queue is offered again, and a removed one never is.
        #[test]
        fn no_pod_is_lost_or_invented(steps in proptest::collection::vec(step(), 1..80)) {
            let (mut queue, mut now) = (Queue::default(), Instant::now());
            let framework = default_profile();
            let mut alive: HashSet<String> = HashSet::new();
            for step in steps {
                match step {
                    Step::Add(n) => {
                        add(&mut queue, &format!("p{n}"), json!({}));
                        alive.insert(format!("p{n}"));
                    }
                    Step::Remove(n) => {
                        queue.remove(&format!("uid-p{n}"));
                        alive.remove(&format!("p{n}"));
                    }
                    Step::Pop(rejected) => {
                        if let Some(pod) = queue.pop(now) {
                            prop_assert!(alive.contains(&*pod.key.name));
                            if rejected {
                                queue.unschedulable(&pod.key, &["NodeResourcesFit"], now);
                            } else {
                                queue.failed(&pod.key, now);
                            }
                        }
                    }
                    Step::Event => {
                        let node = NodeInfo::new(&node("n", json!({})));
                        queue.event(&framework, &ClusterEvent::NodeAdded(&node), &Snapshot::default(), now);
                    }
                    Step::Pass(ms) => {
                        now += Duration::from_millis(ms.into());
                        queue.release(now);
                    }
                }
            }
            queue.release(now + MAX_UNSCHEDULABLE + MAX_BACKOFF);
            let offered: HashSet<String> =
                std::iter::from_fn(|| queue.pop(now)).map(|pod| pod.key.name.to_string()).collect();
            prop_assert_eq!(offered, alive);
        }
    }
}
