//! PURE: up to which revision each node's dataplane has programmed the EndpointSlices, and who waits for that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::object::Key;

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ack {
    revision: u64,
    /// When its Lease ends unless it is renewed, by our own clock.
    until: Timestamp,
}

/// A live node that is not there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laggard {
    /// Its name.
    pub node: String,
    /// When it counts as gone unless it renews its Lease.
    pub until: Timestamp,
}

/// All nodes with a dataplane, and the pods that wait for them. A change costs the logarithm of the number of nodes, and
/// a pod that waits is woken once, by the last node that it waits for.
#[derive(Debug, Default)]
pub struct Acks {
    nodes: HashMap<String, Ack>,
    by_revision: BTreeSet<(u64, String)>,
    waiting: BTreeMap<u64, HashSet<Key>>,
}

impl Acks {
    /// A node's Lease was made or renewed. Says whether the node is new here.
    pub fn heard(&mut self, node: &str, revision: u64, lasts: Duration, now: Timestamp) -> bool {
        let lasts = SignedDuration::try_from(lasts).unwrap_or(SignedDuration::MAX);
        let until = now.checked_add(lasts).unwrap_or(Timestamp::MAX);
        let before = self.nodes.insert(node.to_owned(), Ack { revision, until });
        if before.as_ref().is_none_or(|before| before.revision != revision) {
            if let Some(before) = &before {
                self.by_revision.remove(&(before.revision, node.to_owned()));
            }
            self.by_revision.insert((revision, node.to_owned()));
        }
        before.is_none()
    }

    /// A node's Lease is gone.
    pub fn forget(&mut self, node: &str) {
        if let Some(before) = self.nodes.remove(node) {
            self.by_revision.remove(&(before.revision, node.to_owned()));
        }
    }

    /// Whether a node has a dataplane that acknowledges.
    pub fn has(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// The live node that is furthest behind; `None` without live nodes. Steps over those that are gone, which stay here
    /// until their Leases are deleted.
    fn last(&self, now: Timestamp) -> Option<(u64, &str, Timestamp)> {
        self.by_revision.iter().find_map(|(revision, node)| {
            let ack = self.nodes.get(node)?;
            (ack.until > now).then_some((*revision, node.as_str(), ack.until))
        })
    }

    /// A live node that has not programmed `revision` yet. While there is one, `key` waits.
    pub fn await_all(&mut self, revision: u64, key: &Key, now: Timestamp) -> Option<Laggard> {
        let laggard = self.last(now).filter(|(at, ..)| *at < revision);
        let laggard = laggard.map(|(_, node, until)| Laggard { node: node.to_owned(), until });
        if laggard.is_some() {
            self.waiting.entry(revision).or_default().insert(key.clone());
        }
        laggard
    }

    /// Takes those out who wait for nobody any more.
    pub fn due(&mut self, now: Timestamp) -> Vec<Key> {
        let reached = self.last(now).map_or(u64::MAX, |(revision, ..)| revision);
        let rest = reached.checked_add(1).map(|next| self.waiting.split_off(&next)).unwrap_or_default();
        std::mem::replace(&mut self.waiting, rest).into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_secs(40);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn node(laggard: Option<Laggard>) -> Option<String> {
        laggard.map(|laggard| laggard.node)
    }

    #[test]
    fn the_last_live_node_decides() {
        let mut acks = Acks::default();
        let key = Key::new("ns", "p");
        assert_eq!(acks.await_all(10, &key, at(0)), None, "nobody to wait for");
        assert!(acks.heard("a", 10, LASTS, at(0)));
        assert!(acks.heard("b", 7, LASTS, at(10)));
        assert!(!acks.heard("a", 12, LASTS, at(20)));
        assert_eq!(acks.await_all(7, &key, at(20)), None);
        assert_eq!(acks.await_all(10, &key, at(20)), Some(Laggard { node: "b".into(), until: at(50) }));
        assert!(acks.due(at(20)).is_empty());
        acks.heard("b", 9, LASTS, at(21));
        assert!(acks.due(at(21)).is_empty());
        acks.heard("b", 10, LASTS, at(22));
        assert_eq!(acks.due(at(22)), std::slice::from_ref(&key));
        assert!(acks.due(at(22)).is_empty(), "woken once");
        assert_eq!(node(acks.await_all(13, &key, at(23))), Some("b".into()));
        // b falls silent: then a is the last one, and when it is silent too there is nobody.
        assert_eq!(node(acks.await_all(13, &key, at(63))), None, "both are silent");
        acks.heard("a", 12, LASTS, at(63));
        assert_eq!(node(acks.await_all(13, &key, at(64))), Some("a".into()));
        acks.forget("a");
        assert!(!acks.has("a"));
        assert_eq!(acks.due(at(64)), [key]);
    }
}
