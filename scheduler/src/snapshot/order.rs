//! The order in which nodes are looked at.

use std::collections::BTreeMap;

use super::Slot;
use crate::selector::Labels;

/// The turns are made anew when one in so many of them is not where its zone would have it.
const TIDY: usize = 8;

/// Nodes zone by zone in turn, so that any part of them is spread over all zones.
///
/// A node that comes is put at the end, and the last one takes the place of one that goes. Making the turns anew costs
/// as much as there are nodes, and is done once in a share of as many changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    zones: BTreeMap<String, Vec<Slot>>,
    turns: Vec<Slot>,
    /// By slot: the node's place in its zone and in the turns.
    places: Vec<(usize, usize)>,
    /// Changes since the turns were made.
    untidy: usize,
}

impl Order {
    /// The zone that a node is in, from the labels of region and zone.
    pub fn zone(labels: &Labels) -> String {
        let first =
            |new: &str, old: &str| labels.get(old).or_else(|| labels.get(new)).cloned().unwrap_or_default();
        let region = first("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region");
        let zone = first("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
        format!("{region}:\0:{zone}")
    }

    /// The nodes in turn.
    pub fn turns(&self) -> &[Slot] {
        &self.turns
    }

    /// A node that is in none yet.
    pub fn add(&mut self, zone: String, slot: Slot) {
        if self.places.len() <= slot {
            self.places.resize(slot + 1, (0, 0));
        }
        let slots = self.zones.entry(zone).or_default();
        self.places[slot] = (slots.len(), self.turns.len());
        slots.push(slot);
        self.turns.push(slot);
        self.untidy += 1;
    }

    /// A node that was added with this zone.
    pub fn remove(&mut self, zone: &str, slot: Slot) {
        let Some(slots) = self.zones.get_mut(zone) else { return };
        let (in_zone, in_turn) = self.places[slot];
        slots.swap_remove(in_zone);
        if let Some(moved) = slots.get(in_zone) {
            self.places[*moved].0 = in_zone;
        }
        if slots.is_empty() {
            self.zones.remove(zone);
        }
        self.turns.swap_remove(in_turn);
        if let Some(moved) = self.turns.get(in_turn) {
            self.places[*moved].1 = in_turn;
        }
        self.untidy += 1;
    }

    /// Makes the turns anew if that is due.
    pub fn tidy(&mut self) {
        if self.untidy * TIDY <= self.turns.len() {
            return;
        }
        self.untidy = 0;
        let longest = self.zones.values().map(Vec::len).max().unwrap_or(0);
        self.turns.clear();
        for row in 0..longest {
            for slot in self.zones.values().filter_map(|slots| slots.get(row)) {
                self.places[*slot].1 = self.turns.len();
                self.turns.push(*slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zones_take_turns() {
        let mut order = Order::default();
        for (slot, zone) in ["a", "a", "a", "b", "c", "c"].into_iter().enumerate() {
            order.add(zone.into(), slot);
        }
        order.tidy();
        assert_eq!(order.turns(), [0, 3, 4, 1, 5, 2]);
    }

    proptest! {
        /// Whatever comes and goes, each node that is there has exactly one turn.
        #[test]
        fn every_node_has_one_turn(steps in proptest::collection::vec((0..40usize, 0..4u8, any::<bool>()), 1..200)) {
            let mut order = Order::default();
            let mut there: BTreeMap<usize, String> = BTreeMap::new();
            for (slot, zone, tidy) in steps {
                match there.remove(&slot) {
                    Some(zone) => order.remove(&zone, slot),
                    None => {
                        order.add(format!("z{zone}"), slot);
                        there.insert(slot, format!("z{zone}"));
                    }
                }
                if tidy {
                    order.tidy();
                }
                let mut turns = order.turns().to_vec();
                turns.sort_unstable();
                prop_assert_eq!(turns, there.keys().copied().collect::<Vec<_>>());
            }
        }
    }
}
