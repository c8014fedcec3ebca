//! PURE: up to which revisions each node's dataplane has programmed EndpointSlices and Nodes, and who waits for that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::object::Key;

/// Revisions of what dataplanes acknowledge: of the EndpointSlices, and of the Nodes.
pub type Revisions = [u64; 2];

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ack {
    revisions: Revisions,
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
    /// In the order of [`Revisions`].
    lines: [Line; 2],
}

/// The nodes in the order of one of their revisions, and who waits for which.
#[derive(Debug, Default)]
struct Line {
    by_revision: BTreeSet<(u64, String)>,
    waiting: BTreeMap<u64, HashSet<Key>>,
}

impl Line {
    /// The live node that is furthest behind; `None` without live nodes. Steps over those that are gone, which stay here
    /// until their Leases are deleted.
    fn last<'a>(&'a self, nodes: &HashMap<String, Ack>, now: Timestamp) -> Option<(u64, &'a str, Timestamp)> {
        self.by_revision.iter().find_map(|(revision, node)| {
            let ack = nodes.get(node)?;
            (ack.until > now).then_some((*revision, node.as_str(), ack.until))
        })
    }
}

impl Acks {
    /// A node's Lease was made or renewed. Says whether the node is new here.
    pub fn heard(&mut self, node: &str, revisions: Revisions, lasts: Duration, now: Timestamp) -> bool {
        let lasts = SignedDuration::try_from(lasts).unwrap_or(SignedDuration::MAX);
        let until = now.checked_add(lasts).unwrap_or(Timestamp::MAX);
        let before = self.nodes.insert(node.to_owned(), Ack { revisions, until });
        for (at, line) in self.lines.iter_mut().enumerate() {
            let held = before.as_ref().map(|before| before.revisions[at]);
            if held == Some(revisions[at]) {
                continue;
            }
            if let Some(held) = held {
                line.by_revision.remove(&(held, node.to_owned()));
            }
            line.by_revision.insert((revisions[at], node.to_owned()));
        }
        before.is_none()
    }

    /// A node's Lease is gone.
    pub fn forget(&mut self, node: &str) {
        if let Some(before) = self.nodes.remove(node) {
            for (line, revision) in self.lines.iter_mut().zip(before.revisions) {
                line.by_revision.remove(&(revision, node.to_owned()));
            }
        }
    }

    /// Whether a node has a dataplane that acknowledges.
    pub fn has(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// A live node that has not programmed all of `revisions` yet. While there is one, `key` waits.
    pub fn await_all(&mut self, revisions: Revisions, key: &Key, now: Timestamp) -> Option<Laggard> {
        for (line, revision) in self.lines.iter_mut().zip(revisions) {
            let laggard = line.last(&self.nodes, now).filter(|(at, ..)| *at < revision);
            if let Some((_, node, until)) = laggard {
                let laggard = Laggard { node: node.to_owned(), until };
                line.waiting.entry(revision).or_default().insert(key.clone());
                return Some(laggard);
            }
        }
        None
    }

    /// Takes those out who wait for nobody any more, as far as they have said.
    pub fn due(&mut self, now: Timestamp) -> Vec<Key> {
        let mut due = Vec::new();
        for line in &mut self.lines {
            let reached = line.last(&self.nodes, now).map_or(u64::MAX, |(revision, ..)| revision);
            let rest = reached.checked_add(1).map(|next| line.waiting.split_off(&next)).unwrap_or_default();
            due.extend(std::mem::replace(&mut line.waiting, rest).into_values().flatten());
        }
        due
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
        assert_eq!(acks.await_all([10, 0], &key, at(0)), None, "nobody to wait for");
        assert!(acks.heard("a", [10, 9], LASTS, at(0)));
        assert!(acks.heard("b", [7, 9], LASTS, at(10)));
        assert!(!acks.heard("a", [12, 9], LASTS, at(20)));
        assert_eq!(acks.await_all([7, 0], &key, at(20)), None);
        assert_eq!(acks.await_all([10, 0], &key, at(20)), Some(Laggard { node: "b".into(), until: at(50) }));
        assert!(acks.due(at(20)).is_empty());
        acks.heard("b", [9, 9], LASTS, at(21));
        assert!(acks.due(at(21)).is_empty());
        acks.heard("b", [10, 9], LASTS, at(22));
        assert_eq!(acks.due(at(22)), std::slice::from_ref(&key));
        assert!(acks.due(at(22)).is_empty(), "woken once");
        assert_eq!(node(acks.await_all([13, 0], &key, at(23))), Some("b".into()));
        // b falls silent: then a is the last one, and when it is silent too there is nobody.
        assert_eq!(node(acks.await_all([13, 0], &key, at(63))), None, "both are silent");
        acks.heard("a", [12, 9], LASTS, at(63));
        assert_eq!(node(acks.await_all([13, 0], &key, at(64))), Some("a".into()));
        acks.forget("a");
        assert!(!acks.has("a"));
        assert_eq!(acks.due(at(64)), [key]);
    }

    #[test]
    fn slices_and_nodes_are_waited_for_one_after_the_other() {
        let mut acks = Acks::default();
        let key = Key::new("ns", "p");
        acks.heard("a", [5, 5], LASTS, at(0));
        acks.heard("b", [9, 3], LASTS, at(0));
        assert_eq!(node(acks.await_all([7, 4], &key, at(1))), Some("a".into()));
        acks.heard("a", [7, 5], LASTS, at(1));
        assert_eq!(acks.due(at(1)), std::slice::from_ref(&key));
        assert_eq!(node(acks.await_all([7, 4], &key, at(1))), Some("b".into()));
        acks.heard("b", [10, 3], LASTS, at(2));
        assert!(acks.due(at(2)).is_empty());
        acks.heard("b", [10, 4], LASTS, at(3));
        assert_eq!(acks.due(at(3)), std::slice::from_ref(&key));
        assert_eq!(acks.await_all([7, 4], &key, at(3)), None);
    }
}
