//! Reserved pods that wait before they are bound.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use crate::objects::Name;
use crate::pod::PodInfo;

/// A reserved pod that a permit plugin holds back, or for which something is being written.
pub struct Held {
    pub pod: Arc<PodInfo>,
    pub node: Arc<str>,
    pub deadline: Instant,
    pub stage: Stage,
    /// It was told that it waits.
    pub told: bool,
}

/// What a held pod waits for.
#[derive(PartialEq)]
pub enum Stage {
    Permit,
    /// What it needs is being written.
    Writing,
    /// It has been written; these objects may tell that it has taken effect.
    Effect(Vec<Name>),
}

/// All of them by uid, and by what they wait for.
#[derive(Default)]
pub struct HeldPods {
    pods: HashMap<Arc<str>, Held>,
    deadlines: BTreeSet<(Instant, Arc<str>)>,
    permits: HashSet<Arc<str>>,
    by_object: HashMap<Name, HashSet<Arc<str>>>,
}

impl HeldPods {
    /// Holds a pod; what held it before does not count any more.
    pub fn insert(&mut self, held: Held) {
        let uid = held.pod.key.uid.clone();
        self.remove(&uid);
        self.deadlines.insert((held.deadline, uid.clone()));
        match &held.stage {
            Stage::Permit => {
                self.permits.insert(uid.clone());
            }
            Stage::Writing => {}
            Stage::Effect(names) => {
                for name in names {
                    self.by_object.entry(name.clone()).or_default().insert(uid.clone());
                }
            }
        }
        self.pods.insert(uid, held);
    }

    /// Holds it no longer.
    pub fn remove(&mut self, uid: &str) -> Option<Held> {
        let (uid, held) = self.pods.remove_entry(uid)?;
        self.deadlines.remove(&(held.deadline, uid.clone()));
        match &held.stage {
            Stage::Permit => {
                self.permits.remove(&uid);
            }
            Stage::Writing => {}
            Stage::Effect(names) => {
                for name in names {
                    if let Some(pods) = self.by_object.get_mut(name) {
                        pods.remove(&uid);
                        if pods.is_empty() {
                            self.by_object.remove(name);
                        }
                    }
                }
            }
        }
        Some(held)
    }

    /// When the first one has waited long enough.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes out one that has waited long enough.
    pub fn expired(&mut self, now: Instant) -> Option<Held> {
        let uid = self.deadlines.first().filter(|(at, _)| *at <= now)?.1.clone();
        self.remove(&uid)
    }

    /// The uids of those that wait for a permission.
    pub fn permits(&self) -> Vec<Arc<str>> {
        self.permits.iter().cloned().collect()
    }

    /// The uids of those that wait for this object.
    pub fn waiting_for(&self, name: &str) -> Vec<Arc<str>> {
        self.by_object.get(name).into_iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plugins::tests::pod;
    use serde_json::json;

    #[test]
    fn a_pod_is_found_by_what_it_waits_for_now() {
        let (mut held, now) = (HeldPods::default(), Instant::now());
        let pod = Arc::new(pod("a", json!({})));
        let hold =
            |deadline, stage| Held { pod: pod.clone(), node: "n".into(), deadline, stage, told: false };
        held.insert(hold(now + Duration::from_secs(1), Stage::Permit));
        assert_eq!(held.permits(), std::slice::from_ref(&pod.key.uid));
        held.insert(hold(now + Duration::from_secs(2), Stage::Effect(vec!["default/claim".into()])));
        assert!(held.permits().is_empty());
        assert_eq!(held.waiting_for("default/claim"), std::slice::from_ref(&pod.key.uid));
        assert_eq!(held.next_deadline(), Some(now + Duration::from_secs(2)));
        assert!(held.expired(now + Duration::from_secs(1)).is_none());
        assert!(held.expired(now + Duration::from_secs(2)).is_some());
        assert!(held.waiting_for("default/claim").is_empty() && held.next_deadline().is_none());
    }
}
