//! The scheduling queue: pods to try now, pods that back off, and pods that wait for something to change. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::framework::{ClusterEvent, Framework, Reason};
use crate::pod::{PodInfo, PodKey};

/// Back-off after the first failed attempt; it doubles with each further one.
pub const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
/// The longest back-off.
pub const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A pod that no event has woken is tried again after this time, lest a missed event strands it.
pub const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(5 * 60);

/// The place of a pod in the active queue: rank, then age (a number that counts up).
type Place = (i64, u64);

/// All pods without a node.
#[derive(Default)]
pub struct Queue {
    entries: HashMap<Arc<str>, Entry>,
    active: BTreeMap<Place, Arc<str>>,
    backoff: BTreeSet<(Instant, Arc<str>)>,
    /// Waiting pods by the plugin that rejected them, so that an event looks only at those that it can help.
    rejected_by: HashMap<&'static str, HashSet<Arc<str>>>,
    /// Waiting pods by the time at which they are tried again whatever happens.
    flush: BTreeSet<(Instant, Arc<str>)>,
    next_age: u64,
    /// Counts cluster events, to notice those that came while a pod was being tried.
    event_count: u64,
}

struct Entry {
    pod: Arc<PodInfo>,
    age: u64,
    attempts: u32,
    /// When the last attempt began: the back-off counts from there.
    last_attempt: Option<Instant>,
    state: State,
}

enum State {
    Active(Place),
    /// Taken out by [`Queue::pop`]; the event count at that time.
    InFlight(u64),
    Backoff(Instant),
    Waiting {
        plugins: Vec<&'static str>,
        flush: Instant,
    },
    /// Held back before the queue (scheduling gates).
    Gated,
}

impl Queue {
    /// A pod without a node was seen, for the first time or changed. Answers why it is held back, if it is.
    pub fn set(&mut self, framework: &Framework, pod: Arc<PodInfo>) -> Option<Reason> {
        let uid = pod.key.uid.clone();
        let held = framework.pre_enqueue.iter().find_map(|plugin| plugin.admit(&pod).err());
        if let Some(entry) = self.entries.get_mut(&uid) {
            let same = placement_equal(&entry.pod, &pod);
            entry.pod = pod;
            match (&entry.state, &held) {
                // A status update, for example our own condition, is no reason to try again.
                (State::InFlight(_) | State::Active(_), None) => return None,
                (_, None) if same => return None,
                _ => {}
            }
        } else {
            let age = self.next_age;
            self.next_age += 1;
            self.entries.insert(
                uid.clone(),
                Entry { pod, age, attempts: 0, last_attempt: None, state: State::Gated },
            );
        }
        self.detach(&uid);
        if held.is_none() {
            self.activate(framework, &uid);
        } else if let Some(entry) = self.entries.get_mut(&uid) {
            entry.state = State::Gated;
        }
        held
    }

    /// A pod is gone, or has a node now.
    pub fn remove(&mut self, uid: &str) {
        self.detach(uid);
        self.entries.remove(uid);
    }

    /// The next pod to try.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        let (_, uid) = self.active.pop_first()?;
        let events = self.event_count;
        let entry = self.entries.get_mut(&uid)?;
        entry.attempts += 1;
        entry.last_attempt = Some(now);
        entry.state = State::InFlight(events);
        Some(entry.pod.clone())
    }

    /// The pod did not fit; these plugins rejected it.
    pub fn unschedulable(&mut self, key: &PodKey, plugins: &[&'static str], now: Instant) {
        let events = self.event_count;
        let Some(entry) = self.entries.get_mut(&key.uid) else { return };
        let State::InFlight(seen) = entry.state else { return };
        if seen != events || plugins.is_empty() {
            // Something happened meanwhile that might have helped: try again after the back-off.
            self.back_off(&key.uid, now);
            return;
        }
        let flush = now + MAX_UNSCHEDULABLE;
        entry.state = State::Waiting { plugins: plugins.to_vec(), flush };
        self.flush.insert((flush, key.uid.clone()));
        for plugin in plugins {
            self.rejected_by.entry(plugin).or_default().insert(key.uid.clone());
        }
    }

    /// The attempt failed for a reason outside the pod, for example an error of the API server.
    pub fn failed(&mut self, key: &PodKey, now: Instant) {
        self.back_off(&key.uid, now);
    }

    /// Something happened in the cluster: pods that it may help are tried again, after their back-off.
    pub fn event(&mut self, framework: &Framework, event: &ClusterEvent<'_>, now: Instant) {
        self.event_count += 1;
        let mut woken: HashSet<Arc<str>> = HashSet::new();
        for (plugin, pods) in &self.rejected_by {
            for uid in pods {
                if !woken.contains(uid)
                    && let Some(entry) = self.entries.get(uid)
                    && framework.wakes(plugin, &entry.pod, event)
                {
                    woken.insert(uid.clone());
                }
            }
        }
        if woken.is_empty() {
            return;
        }
        for uid in woken {
            self.back_off(&uid, now);
        }
        self.release(framework, now);
    }

    /// Moves pods whose time has come to the active queue.
    pub fn release(&mut self, framework: &Framework, now: Instant) {
        while let Some((at, uid)) = self.backoff.first().cloned()
            && at <= now
        {
            self.backoff.pop_first();
            self.activate(framework, &uid);
        }
        while let Some((at, uid)) = self.flush.first().cloned()
            && at <= now
        {
            self.detach(&uid);
            self.activate(framework, &uid);
        }
    }

    /// When [`Queue::release`] has something to do next.
    pub fn next_release(&self) -> Option<Instant> {
        let times = [self.backoff.first(), self.flush.first()];
        times.into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Whether the pod is in the queue, in any state.
    pub fn contains(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    /// The uids of all pods in the queue.
    pub fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.keys()
    }

    /// Pods that wait to be tried now.
    pub fn active_len(&self) -> usize {
        self.active.len()
    }

    fn activate(&mut self, framework: &Framework, uid: &Arc<str>) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let place = (framework.queue_sort.rank(&entry.pod), entry.age);
        entry.state = State::Active(place);
        self.active.insert(place, uid.clone());
    }

    fn back_off(&mut self, uid: &Arc<str>, now: Instant) {
        self.detach(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let doublings = entry.attempts.saturating_sub(1).min(16);
        let since = entry.last_attempt.unwrap_or(now);
        let until = since + INITIAL_BACKOFF.saturating_mul(1 << doublings).min(MAX_BACKOFF);
        entry.state = State::Backoff(until);
        self.backoff.insert((until, uid.clone()));
    }

    /// Takes a pod out of the structure that its state names.
    fn detach(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        match &entry.state {
            State::Active(place) => {
                self.active.remove(place);
            }
            State::Backoff(until) => {
                self.backoff.remove(&(*until, entry.pod.key.uid.clone()));
            }
            State::Waiting { plugins, flush } => {
                self.flush.remove(&(*flush, entry.pod.key.uid.clone()));
                for plugin in plugins {
                    if let Some(pods) = self.rejected_by.get_mut(plugin) {
                        pods.remove(uid);
                    }
                }
            }
            State::InFlight(_) | State::Gated => {}
        }
    }
}

/// Whether two versions of a pod are the same to the scheduler.
fn placement_equal(a: &PodInfo, b: &PodInfo) -> bool {
    a.requests == b.requests
        && a.gated == b.gated
        && a.tolerations == b.tolerations
        && a.node_selector == b.node_selector
        && a.required_affinity == b.required_affinity
        && a.preferred_affinity == b.preferred_affinity
        && a.host_ports == b.host_ports
        && a.priority == b.priority
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::default_profile;
    use crate::plugins::tests::{node, pod};
    use crate::snapshot::NodeInfo;
    use proptest::prelude::*;
    use serde_json::json;

    fn add(queue: &mut Queue, name: &str, spec: serde_json::Value) -> PodKey {
        let pod = Arc::new(pod(name, spec));
        let key = pod.key.clone();
        queue.set(&default_profile(), pod);
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
        queue.event(&framework, &ClusterEvent::NodeAdded(&plain), now);
        assert_eq!(queue.next_release(), Some(now + MAX_UNSCHEDULABLE));
        let right = NodeInfo::new(&node("m", json!({"labels": {"disk": "ssd"}})));
        queue.event(&framework, &ClusterEvent::NodeAdded(&right), now);
        assert_eq!(queue.next_release(), Some(now + INITIAL_BACKOFF));
        queue.release(&framework, now + INITIAL_BACKOFF);
        assert!(queue.pop(now + INITIAL_BACKOFF).is_some());
    }

    #[test]
    fn an_event_during_the_attempt_is_not_lost() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let framework = default_profile();
        let key = add(&mut queue, "a", json!({}));
        queue.pop(now).unwrap();
        let node = NodeInfo::new(&node("n", json!({})));
        queue.event(&framework, &ClusterEvent::NodeAdded(&node), now);
        queue.unschedulable(&key, &["NodeAffinity"], now);
        assert_eq!(queue.next_release(), Some(now + INITIAL_BACKOFF));
    }

    #[test]
    fn back_off_doubles_up_to_the_longest() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        let framework = default_profile();
        let key = add(&mut queue, "a", json!({}));
        let mut waits = Vec::new();
        for _ in 0..6 {
            queue.pop(now).unwrap();
            queue.failed(&key, now);
            let next = queue.next_release().unwrap();
            waits.push((next - now).as_secs());
            now = next;
            queue.release(&framework, now);
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
                        queue.event(&framework, &ClusterEvent::NodeAdded(&node), now);
                    }
                    Step::Pass(ms) => {
                        now += Duration::from_millis(ms.into());
                        queue.release(&framework, now);
                    }
                }
            }
            queue.release(&framework, now + MAX_UNSCHEDULABLE + MAX_BACKOFF);
            let offered: HashSet<String> =
                std::iter::from_fn(|| queue.pop(now)).map(|pod| pod.key.name.to_string()).collect();
            prop_assert_eq!(offered, alive);
        }
    }
}
