//! Sums over all nodes that follow the cluster: what each node adds is kept, so that only nodes that changed are looked
//! at again.

use crate::snapshot::{NodeInfo, Snapshot};

/// What each node adds to a sum, as of a change of the cluster.
#[derive(Debug)]
pub struct Tally<P> {
    seen: u64,
    /// By slot.
    parts: Vec<Option<P>>,
}

impl<P> Default for Tally<P> {
    fn default() -> Self {
        Tally { seen: 0, parts: Vec::new() }
    }
}

/// A copy is for a dry run, which changes the sums themselves: it needs no parts.
impl<P> Clone for Tally<P> {
    fn clone(&self) -> Self {
        Tally::default()
    }
}

impl<P> Tally<P> {
    /// Brings sums up to date. `part` is what a node adds, if anything; `add` adds it, or takes it away.
    pub fn follow<S: Default>(
        &mut self,
        snapshot: &Snapshot,
        sums: &mut S,
        mut part: impl FnMut(&mut S, &NodeInfo) -> Option<P>,
        add: impl Fn(&mut S, &P, i64),
    ) {
        let mut look = |parts: &mut Vec<Option<P>>, sums: &mut S, slot: usize| {
            if let Some(before) = parts[slot].take() {
                add(sums, &before, -1);
            }
            let new = snapshot.at(slot).and_then(|node| part(sums, node));
            if let Some(new) = &new {
                add(sums, new, 1);
            }
            parts[slot] = new;
        };
        // What is dearer than to begin anew is not worth following.
        let changed = snapshot.changed_since(self.seen).filter(|_| {
            !self.parts.is_empty() && snapshot.changes() - self.seen <= snapshot.slots().max(64) as u64
        });
        match changed {
            Some(changed) => {
                self.parts.resize_with(snapshot.slots(), || None);
                let mut slots: Vec<usize> = changed.collect();
                slots.sort_unstable();
                slots.dedup();
                for slot in slots {
                    look(&mut self.parts, sums, slot);
                }
            }
            None => {
                *sums = S::default();
                self.parts.clear();
                self.parts.resize_with(snapshot.slots(), || None);
                for slot in 0..snapshot.slots() {
                    look(&mut self.parts, sums, slot);
                }
            }
        }
        self.seen = snapshot.changes();
    }

    /// What a node adds.
    pub fn part(&self, slot: usize) -> Option<&P> {
        self.parts.get(slot).and_then(Option::as_ref)
    }
}
