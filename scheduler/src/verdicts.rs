//! What the filters said about each node, kept for the next pod of the same class.

use std::collections::HashMap;

use crate::framework::Rejection;
use crate::snapshot::{Slot, Snapshot};

/// What is known of one node. 0: nothing; 1: the pod fits; else the number of a rejection, counted from 2.
type Verdict = u32;
const UNKNOWN: Verdict = 0;
const FITS: Verdict = 1;

/// Verdicts on all nodes.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    by_slot: Vec<Verdict>,
    /// Different rejections, with the number of nodes that each stands against.
    rejections: Vec<(Rejection, usize)>,
    numbers: HashMap<Rejection, Verdict>,
    rejected: usize,
    /// Up to which change of the cluster it holds.
    seen: u64,
}

impl Verdicts {
    /// Forgets what does not hold any more.
    pub fn refresh(&mut self, snapshot: &Snapshot) {
        match snapshot.changed_since(self.seen) {
            Some(changed) => {
                for slot in changed {
                    self.set(slot, UNKNOWN);
                }
            }
            None => *self = Verdicts::default(),
        }
        self.seen = snapshot.changes();
        self.size(snapshot);
    }

    /// Makes room for every node there is.
    pub fn size(&mut self, snapshot: &Snapshot) {
        if self.by_slot.len() < snapshot.slots() {
            self.by_slot.resize(snapshot.slots(), UNKNOWN);
        }
    }

    /// Forgets what is known of one node.
    pub fn forget(&mut self, slot: Slot) {
        self.set(slot, UNKNOWN);
    }

    fn set(&mut self, slot: Slot, verdict: Verdict) {
        let Some(known) = self.by_slot.get_mut(slot) else { return };
        let before = std::mem::replace(known, verdict);
        if before > FITS {
            self.rejected -= 1;
            self.rejections[before as usize - 2].1 -= 1;
        }
        if verdict > FITS {
            self.rejected += 1;
            self.rejections[verdict as usize - 2].1 += 1;
        }
    }

    /// What is known of a node: whether the pod fits.
    pub fn get(&self, slot: Slot) -> Option<bool> {
        match self.by_slot.get(slot).copied().unwrap_or(UNKNOWN) {
            UNKNOWN => None,
            verdict => Some(verdict == FITS),
        }
    }

    /// Notes that the pod fits, or why not.
    pub fn note(&mut self, slot: Slot, result: Result<(), Rejection>) {
        let verdict = match result {
            Ok(()) => FITS,
            Err(rejection) => *self.numbers.entry(rejection).or_insert_with_key(|rejection| {
                self.rejections.push((rejection.clone(), 0));
                self.rejections.len() as Verdict + 1
            }),
        };
        self.set(slot, verdict);
    }

    /// How many nodes reject the pod.
    pub fn rejected(&self) -> usize {
        self.rejected
    }

    /// Why a node rejects the pod, if it is known to.
    pub fn rejection(&self, slot: Slot) -> Option<&Rejection> {
        let verdict = self.by_slot.get(slot).copied().unwrap_or(UNKNOWN);
        (verdict > FITS).then(|| &self.rejections[verdict as usize - 2].0)
    }

    /// The rejections, with the number of nodes each stands against.
    pub fn counts(&self) -> impl Iterator<Item = (&Rejection, usize)> {
        self.rejections.iter().filter(|(_, count)| *count > 0).map(|(rejection, count)| (rejection, *count))
    }
}
