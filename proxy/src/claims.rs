//! Things that several owners may claim: the winner is the smallest owner, whoever came first.
//!
//! Two Services can name one frontend, and two Nodes one prefix, at least for the moment between
//! two watch events. The outcome must not depend on the order of events, or two agents would differ.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

/// Claims on keys of type `K` by owners of type `O`.
#[derive(Debug, Clone)]
pub struct Claims<K, O, V> {
    by_key: HashMap<K, BTreeMap<O, V>>,
    by_owner: HashMap<O, HashSet<K>>,
}

impl<K, O, V> Default for Claims<K, O, V> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), by_owner: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash, O: Clone + Ord + Hash, V: PartialEq> Claims<K, O, V> {
    /// Replaces all claims of one owner. Returns the keys whose winner may have changed.
    pub fn set(&mut self, owner: &O, claims: Vec<(K, V)>) -> Vec<K> {
        let mut old = self.by_owner.remove(owner).unwrap_or_default();
        let mut keys = HashSet::with_capacity(claims.len());
        let mut touched = Vec::new();
        for (key, value) in claims {
            if !keys.insert(key) {
                continue;
            }
            old.remove(&key);
            let owners = self.by_key.entry(key).or_default();
            if owners.get(owner) != Some(&value) {
                owners.insert(owner.clone(), value);
                touched.push(key);
            }
        }
        for key in old {
            if let Some(owners) = self.by_key.get_mut(&key) {
                owners.remove(owner);
                if owners.is_empty() {
                    self.by_key.remove(&key);
                }
            }
            touched.push(key);
        }
        if !keys.is_empty() {
            self.by_owner.insert(owner.clone(), keys);
        }
        touched
    }

    /// The value in force for a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.by_key.get(key)?.values().next()
    }

    /// The owner in force for a key.
    pub fn owner(&self, key: &K) -> Option<&O> {
        self.by_key.get(key)?.keys().next()
    }

    /// All keys with the values in force.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.by_key.iter().filter_map(|(key, owners)| Some((key, owners.values().next()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_owner_wins_in_any_order() {
        let mut claims = Claims::<u8, &str, u32>::default();
        assert_eq!(claims.set(&"b", vec![(1, 20)]), vec![1]);
        assert_eq!(claims.get(&1), Some(&20));
        claims.set(&"a", vec![(1, 10)]);
        assert_eq!(claims.get(&1), Some(&10));
        assert_eq!(claims.owner(&1), Some(&"a"));
        assert_eq!(claims.set(&"a", vec![]), vec![1]);
        assert_eq!(claims.get(&1), Some(&20));
        assert!(claims.set(&"b", vec![(1, 20)]).is_empty(), "nothing changed");
        claims.set(&"b", vec![]);
        assert_eq!(claims.iter().count(), 0);
        assert!(claims.by_key.is_empty() && claims.by_owner.is_empty());
    }
}
