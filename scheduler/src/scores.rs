//! What a plugin scored each node with, kept for the next pod of the same class.

use crate::snapshot::{Slot, Snapshot};

/// Of a node that is to be scored again. No plugin gives this.
const UNKNOWN: i64 = i64::MIN;

/// Scores of nodes, before they are normalized.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    by_slot: Vec<i64>,
    /// Up to which change of the cluster they hold.
    seen: u64,
}

impl Scores {
    /// Forgets what does not hold any more.
    pub fn refresh(&mut self, snapshot: &Snapshot) {
        match snapshot.changed_since(self.seen) {
            Some(changed) => {
                for slot in changed {
                    if let Some(score) = self.by_slot.get_mut(slot) {
                        *score = UNKNOWN;
                    }
                }
            }
            None => self.by_slot.clear(),
        }
        self.seen = snapshot.changes();
        self.by_slot.resize(snapshot.slots(), UNKNOWN);
    }

    /// The score of a node, which is asked for if it is not known.
    pub fn of(&mut self, slot: Slot, score: impl FnOnce() -> i64) -> i64 {
        let Some(known) = self.by_slot.get_mut(slot) else { return score() };
        if *known == UNKNOWN {
            *known = score();
        }
        *known
    }
}
