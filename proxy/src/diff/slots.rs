//! How the slots of one scope change.

use std::collections::{BTreeSet, HashSet};

use super::Installed;
use crate::maps::{Op, SlotKey};

/// The difference between the slots of a scope and what they should lead to.
#[derive(Debug)]
pub(super) struct Change {
    /// How many backends there will be.
    wanted: usize,
    /// Backends that have no slot yet.
    pub added: Vec<u32>,
    /// Indexes of slots whose backend is wanted no more.
    gone: Vec<usize>,
}

impl Change {
    pub fn between(old: &[u32], wanted: &BTreeSet<u32>) -> Self {
        let held: HashSet<u32> = old.iter().copied().collect();
        Self {
            wanted: wanted.len(),
            added: wanted.iter().copied().filter(|id| !held.contains(id)).collect(),
            gone: (0..old.len()).filter(|index| !wanted.contains(&old[*index])).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.gone.is_empty()
    }

    /// Whether it cannot be made visible by one write of one slot or of the master alone.
    pub fn needs_generation(&self) -> bool {
        self.wanted > 0 && !self.gone.is_empty() && (self.gone.len() > 1 || self.added.len() > 1)
    }

    /// Whether a slot is written that lookups already see.
    pub fn shows_at_once(&self) -> bool {
        self.wanted > 0 && !self.gone.is_empty()
    }

    /// Makes a change that needs no new generation. Returns whether the master must be written; `after` is
    /// to be done after that.
    pub fn apply(
        &self,
        installed: &mut Installed,
        key: SlotKey,
        scope: usize,
        ops: &mut Vec<Op>,
        after: &mut Vec<Op>,
    ) -> bool {
        let generation = installed.master.generation;
        let delete = |index| Op::DeleteService { key: key.slot(scope as u8, generation, slot_number(index)) };
        if self.wanted == 0 {
            let count = installed.slots[scope].len();
            after.extend((0..count).map(delete));
            installed.slots[scope].clear();
            return count > 0;
        }
        match (self.gone.as_slice(), self.added.as_slice()) {
            ([], []) => false,
            ([index], [id]) => {
                installed.slots[scope][*index] = *id;
                ops.push(installed.put_slot(key, scope, *index));
                installed.only_backend() != 0
            }
            ([index, ..], _) => {
                // The last slot's backend moves to the hole; twice the weight until the master is written.
                let last = installed.slots[scope].len() - 1;
                installed.slots[scope].swap_remove(*index);
                if *index != last {
                    ops.push(installed.put_slot(key, scope, *index));
                }
                after.push(delete(last));
                true
            }
            ([], added) => {
                for id in added {
                    installed.slots[scope].push(*id);
                    ops.push(installed.put_slot(key, scope, installed.slots[scope].len() - 1));
                }
                true
            }
        }
    }
}

/// Places the wanted backends: those that stay keep their slot where the new count allows.
pub(super) fn place(old: &[u32], wanted: &BTreeSet<u32>, added: &[u32]) -> Vec<u32> {
    let count = wanted.len();
    let mut slots = vec![0; count];
    let mut homeless: Vec<u32> = added.to_vec();
    let mut placed = HashSet::new();
    for (index, id) in old.iter().enumerate() {
        if !wanted.contains(id) || !placed.insert(*id) {
            continue;
        }
        match slots.get_mut(index) {
            Some(slot) => *slot = *id,
            None => homeless.push(*id),
        }
    }
    let mut homeless = homeless.into_iter();
    for slot in slots.iter_mut().filter(|slot| **slot == 0) {
        *slot = homeless.next().unwrap_or(0);
    }
    slots
}

/// The generation after one, past those of the slots that are still to be deleted.
pub(super) fn next_generation(current: u16, stale: &[Op]) -> u16 {
    let used: HashSet<u16> = stale
        .iter()
        .filter_map(|op| match op {
            Op::DeleteService { key } => Some(key.generation),
            _ => None,
        })
        .collect();
    let mut next = current;
    for _ in 0..=used.len() + 1 {
        next = next.wrapping_add(1).max(1);
        if !used.contains(&next) && next != current {
            break;
        }
    }
    next
}

pub(super) fn slot_number(index: usize) -> u16 {
    u16::try_from(index + 1).unwrap_or(u16::MAX)
}
