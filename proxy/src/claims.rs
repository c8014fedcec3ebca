//! Things that several owners may claim: the winner is the smallest owner, whoever came first.
//!
//! Two Services can name one frontend, and two Nodes one prefix, at least for the moment between
//! two watch events. The outcome must not depend on the order of events, or two agents would differ.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// Claims on keys of type `K` by owners of type `O`. Nearly every key has one owner, and an owner few keys,
/// so short vectors hold both.
#[derive(Debug, Clone)]
pub struct Claims<K, O, V> {
    /// Claims of each key, the smallest owner first.
    by_key: HashMap<K, Vec<(O, V)>>,
    by_owner: HashMap<O, Vec<K>>,
}

impl<K, O, V> Default for Claims<K, O, V> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), by_owner: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash, O: Clone + Ord + Hash, V: PartialEq> Claims<K, O, V> {
    /// Replaces all claims of one owner. Returns the keys whose winner may have changed.
    pub fn set(&mut self, owner: &O, claims: Vec<(K, V)>) -> Vec<K> {
        let mut old: HashSet<K> = self.by_owner.remove(owner).into_iter().flatten().collect();
        let mut seen = HashSet::with_capacity(claims.len());
        let mut keys = Vec::with_capacity(claims.len());
        let mut touched = Vec::new();
        for (key, value) in claims {
            if !seen.insert(key) {
                continue;
            }
            keys.push(key);
            old.remove(&key);
            let owners = self.by_key.entry(key).or_default();
            match owners.binary_search_by(|(other, _)| other.cmp(owner)) {
                Ok(at) if owners[at].1 == value => continue,
                Ok(at) => owners[at].1 = value,
                Err(at) => {
                    owners.reserve_exact(1);
                    owners.insert(at, (owner.clone(), value));
                }
            }
            touched.push(key);
        }
        for key in old {
            if let Some(owners) = self.by_key.get_mut(&key) {
                owners.retain(|(other, _)| other != owner);
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
        self.by_key.get(key)?.first().map(|(_, value)| value)
    }

    /// The owner in force for a key.
    pub fn owner(&self, key: &K) -> Option<&O> {
        self.by_key.get(key)?.first().map(|(owner, _)| owner)
    }

    /// The keys that an owner claims.
    pub fn of(&self, owner: &O) -> &[K] {
        self.by_owner.get(owner).map(Vec::as_slice).unwrap_or_default()
    }

    /// All keys with the values in force.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.by_key.iter().filter_map(|(key, owners)| owners.first().map(|(_, value)| (key, value)))
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
