//! PURE: the difference between the maps and what they should hold, as an ordered list of operations.
//!
//! The order is the point. A backend is there before a slot names it and goes after the last slot that
//! did. A frontend's choice changes in one write: either of its master entry, or of the one slot that
//! changes. So a lookup between any two operations finds the old set of backends or the new one, whole.
//!
//! One endpoint that comes, goes or is replaced costs a constant number of writes, however many there
//! are; only when several change at once are all slots of that Service written under a new generation.

use std::collections::{BTreeSet, HashMap, HashSet};

use hawser_ebpf_common::lb::{Backend4, ReverseNat4, ServiceKey4, ServiceValue4};

use crate::maps::{Op, Snapshot};
use crate::types::{FrontendSpec, L4Addr, Protocol, address_be, address_from_be};

/// Most backends that one frontend can have: a slot's number has 16 bits.
const MAX_SLOTS: usize = u16::MAX as usize;

/// What the maps hold, as far as the agent knows.
#[derive(Debug, Default)]
pub struct Table {
    frontends: HashMap<L4Addr, Installed>,
    backends: HashMap<L4Addr, InstalledBackend>,
    by_id: HashMap<u32, L4Addr>,
    last_backend_id: u32,
    last_rev_nat_id: u32,
    /// Found in the maps, of no use, but perhaps still named by a slot until all is written anew.
    stale: Vec<Op>,
}

#[derive(Debug, Clone, Default)]
struct Installed {
    rev_nat_id: u32,
    generation: u16,
    flags: u16,
    /// Backend ids of slots 1, 2, ….
    slots: Vec<u32>,
    /// Set when the maps contradict themselves: all slots found there. Everything is then written anew.
    broken: Option<Vec<(u16, u16)>>,
}

#[derive(Debug)]
struct InstalledBackend {
    id: u32,
    flags: u8,
    /// Slots that name it.
    references: u32,
}

impl Table {
    /// Adopts what the maps hold, so that ids stay what they are. The operations remove what nothing
    /// refers to and must be applied before any that this table plans later.
    pub fn adopt(snapshot: &Snapshot) -> (Self, Vec<Op>) {
        let mut table = Self::default();
        let mut ops = Vec::new();
        for (id, backend) in &snapshot.backends {
            table.last_backend_id = table.last_backend_id.max(*id);
            match backend_address(backend) {
                Some(address) if !table.backends.contains_key(&address) => {
                    let installed = InstalledBackend { id: *id, flags: backend.flags, references: 0 };
                    table.backends.insert(address, installed);
                    table.by_id.insert(*id, address);
                }
                _ => table.stale.push(Op::DeleteBackend { id: *id }),
            }
        }
        let mut slots: HashMap<ServiceKey4, Vec<(u16, u16, u32)>> = HashMap::new();
        let mut masters = Vec::new();
        for (key, value) in &snapshot.services {
            if key.slot == 0 {
                masters.push((*key, *value));
            } else {
                let master = ServiceKey4 { slot: 0, generation: 0, ..*key };
                slots.entry(master).or_default().push((key.generation, key.slot, value.backend_id));
            }
        }
        let mut rev_nats: HashMap<u32, ReverseNat4> = snapshot.reverse_nat.iter().copied().collect();
        table.last_rev_nat_id = rev_nats.keys().copied().max().unwrap_or(0);
        for (key, master) in masters {
            let found = slots.remove(&key).unwrap_or_default();
            let Some(frontend) = frontend_address(&key) else {
                ops.push(Op::DeleteService { key });
                ops.extend(
                    found
                        .iter()
                        .map(|(generation, slot, _)| Op::DeleteService { key: key.slot(*generation, *slot) }),
                );
                continue;
            };
            let rev_nat = rev_nats.remove(&master.rev_nat_id);
            let in_force = rev_nat == Some(reverse_nat(&frontend));
            if !in_force && let Some(other) = rev_nat {
                rev_nats.insert(master.rev_nat_id, other);
            }
            let installed = table.adopt_frontend(&key, &master, &found, in_force, &mut ops);
            table.frontends.insert(frontend, installed);
        }
        for (key, found) in slots {
            ops.extend(
                found
                    .iter()
                    .map(|(generation, slot, _)| Op::DeleteService { key: key.slot(*generation, *slot) }),
            );
        }
        ops.extend(rev_nats.into_keys().map(|id| Op::DeleteReverseNat { id }));
        (table, ops)
    }

    fn adopt_frontend(
        &mut self,
        key: &ServiceKey4,
        master: &ServiceValue4,
        found: &[(u16, u16, u32)],
        rev_nat_is_there: bool,
        ops: &mut Vec<Op>,
    ) -> Installed {
        let mut installed = Installed {
            rev_nat_id: if rev_nat_is_there { master.rev_nat_id } else { 0 },
            generation: master.generation,
            flags: master.flags,
            slots: vec![0; usize::from(master.count)],
            broken: None,
        };
        for (generation, slot, backend_id) in found {
            let index = usize::from(*slot) - 1;
            if *generation == master.generation && index < installed.slots.len() {
                installed.slots[index] = *backend_id;
            }
        }
        let whole = rev_nat_is_there && installed.slots.iter().all(|id| self.by_id.contains_key(id));
        if !whole {
            installed.slots.clear();
            installed.broken = Some(found.iter().map(|(generation, slot, _)| (*generation, *slot)).collect());
            return installed;
        }
        for id in &installed.slots {
            if let Some(backend) = self.by_id.get(id).and_then(|address| self.backends.get_mut(address)) {
                backend.references += 1;
            }
        }
        let stray = found.iter().filter(|(generation, slot, _)| {
            *generation != master.generation || usize::from(*slot) > installed.slots.len()
        });
        ops.extend(
            stray.map(|(generation, slot, _)| Op::DeleteService { key: key.slot(*generation, *slot) }),
        );
        installed
    }

    /// Frontends the maps hold.
    pub fn frontends(&self) -> impl Iterator<Item = &L4Addr> {
        self.frontends.keys()
    }

    /// Brings one frontend to its specification, or removes it (`None`).
    pub fn plan(&mut self, frontend: &L4Addr, spec: Option<&FrontendSpec>) -> Vec<Op> {
        let mut ops = Vec::new();
        match spec {
            Some(spec) => self.upsert(frontend, spec, &mut ops),
            None => self.remove(frontend, &mut ops),
        }
        ops
    }

    /// Removes backends that no slot names: after a full reconcile, those of an earlier life.
    pub fn sweep(&mut self) -> Vec<Op> {
        let unused: Vec<L4Addr> = self
            .backends
            .iter()
            .filter(|(_, backend)| backend.references == 0)
            .map(|(address, _)| *address)
            .collect();
        let mut ops = std::mem::take(&mut self.stale);
        for address in unused {
            self.forget_backend(&address, &mut ops);
        }
        ops
    }

    fn remove(&mut self, frontend: &L4Addr, ops: &mut Vec<Op>) {
        let Some(installed) = self.frontends.remove(frontend) else { return };
        let key = service_key(frontend);
        ops.push(Op::DeleteService { key });
        delete_slots(&key, &installed, ops);
        if installed.rev_nat_id != 0 {
            ops.push(Op::DeleteReverseNat { id: installed.rev_nat_id });
        }
        for id in installed.slots {
            self.release(id, ops);
        }
    }

    fn upsert(&mut self, frontend: &L4Addr, spec: &FrontendSpec, ops: &mut Vec<Op>) {
        let key = service_key(frontend);
        let old = self.frontends.get(frontend).cloned();
        let is_new = old.is_none();
        let mut installed = old.unwrap_or_default();
        let mut wanted = BTreeSet::new();
        for (address, flags) in spec.backends.iter().take(MAX_SLOTS) {
            wanted.insert(self.ensure_backend(address, *flags, ops));
        }
        let mut master_changes = is_new || installed.flags != spec.flags;
        installed.flags = spec.flags;
        if installed.rev_nat_id == 0 {
            self.last_rev_nat_id = self.last_rev_nat_id.wrapping_add(1).max(1);
            installed.rev_nat_id = self.last_rev_nat_id;
            ops.push(Op::PutReverseNat { id: installed.rev_nat_id, value: reverse_nat(frontend) });
            master_changes = true;
        }
        let old_slots = installed.slots.clone();
        let held: HashSet<u32> = old_slots.iter().copied().collect();
        let added: Vec<u32> = wanted.iter().copied().filter(|id| !held.contains(id)).collect();
        let gone: Vec<usize> =
            (0..old_slots.len()).filter(|index| !wanted.contains(&old_slots[*index])).collect();
        let mut after = Vec::new();
        // After a crash halfway through a removal, a backend can hold two slots.
        let twice = old_slots.len() + added.len() != wanted.len() + gone.len();
        let rewrite =
            installed.broken.is_some() || twice || needs_generation(wanted.len(), gone.len(), added.len());

        if rewrite {
            delete_slots(&key, &installed, &mut after);
            installed.broken = None;
            installed.generation = next_generation(installed.generation, &after);
            installed.slots = place(&old_slots, &wanted, &added);
            for (index, id) in installed.slots.iter().enumerate() {
                ops.push(put_slot(&key, &installed, index, *id));
            }
            master_changes = true;
        } else if wanted.is_empty() {
            delete_slots(&key, &installed, &mut after);
            master_changes |= !old_slots.is_empty();
            installed.slots.clear();
        } else if let ([index], [id]) = (gone.as_slice(), added.as_slice()) {
            installed.slots[*index] = *id;
            ops.push(put_slot(&key, &installed, *index, *id));
        } else if let [index] = gone.as_slice() {
            // The last slot's backend moves to the hole; twice the weight until the master is written.
            let last = installed.slots.len() - 1;
            installed.slots.swap_remove(*index);
            if *index != last {
                ops.push(put_slot(&key, &installed, *index, installed.slots[*index]));
            }
            after.push(Op::DeleteService { key: key.slot(installed.generation, slot_number(last)) });
            master_changes = true;
        } else if !added.is_empty() {
            for id in &added {
                installed.slots.push(*id);
                ops.push(put_slot(&key, &installed, installed.slots.len() - 1, *id));
            }
            master_changes = true;
        }

        if master_changes {
            ops.push(Op::PutService { key, value: master_value(&installed) });
        }
        ops.append(&mut after);
        if rewrite {
            installed.slots.iter().for_each(|id| self.retain(*id));
            old_slots.iter().for_each(|id| self.release(*id, ops));
        } else {
            added.iter().for_each(|id| self.retain(*id));
            gone.iter().for_each(|index| self.release(old_slots[*index], ops));
        }
        self.frontends.insert(*frontend, installed);
    }

    fn ensure_backend(&mut self, address: &L4Addr, flags: u8, ops: &mut Vec<Op>) -> u32 {
        if let Some(backend) = self.backends.get_mut(address) {
            if backend.flags != flags {
                backend.flags = flags;
                ops.push(Op::PutBackend { id: backend.id, value: backend_value(address, flags) });
            }
            return backend.id;
        }
        loop {
            self.last_backend_id = self.last_backend_id.wrapping_add(1).max(1);
            if !self.by_id.contains_key(&self.last_backend_id) {
                break;
            }
        }
        let id = self.last_backend_id;
        self.backends.insert(*address, InstalledBackend { id, flags, references: 0 });
        self.by_id.insert(id, *address);
        ops.push(Op::PutBackend { id, value: backend_value(address, flags) });
        id
    }

    fn retain(&mut self, id: u32) {
        if let Some(backend) = self.by_id.get(&id).and_then(|address| self.backends.get_mut(address)) {
            backend.references += 1;
        }
    }

    fn release(&mut self, id: u32, ops: &mut Vec<Op>) {
        let Some(address) = self.by_id.get(&id).copied() else { return };
        if let Some(backend) = self.backends.get_mut(&address) {
            backend.references = backend.references.saturating_sub(1);
            if backend.references == 0 {
                self.forget_backend(&address, ops);
            }
        }
    }

    fn forget_backend(&mut self, address: &L4Addr, ops: &mut Vec<Op>) {
        if let Some(backend) = self.backends.remove(address) {
            self.by_id.remove(&backend.id);
            ops.push(Op::DeleteBackend { id: backend.id });
        }
    }
}

/// Whether a change cannot be made visible by one write of one slot or of the master alone.
fn needs_generation(wanted: usize, gone: usize, added: usize) -> bool {
    wanted > 0 && gone > 0 && (gone > 1 || added > 1)
}

/// Places the wanted backends: those that stay keep their slot where the new count allows.
fn place(old: &[u32], wanted: &BTreeSet<u32>, added: &[u32]) -> Vec<u32> {
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
fn next_generation(current: u16, stale: &[Op]) -> u16 {
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

fn slot_number(index: usize) -> u16 {
    u16::try_from(index + 1).unwrap_or(u16::MAX)
}

fn put_slot(key: &ServiceKey4, installed: &Installed, index: usize, backend_id: u32) -> Op {
    let value = ServiceValue4 { backend_id, rev_nat_id: installed.rev_nat_id, ..Default::default() };
    Op::PutService { key: key.slot(installed.generation, slot_number(index)), value }
}

fn delete_slots(key: &ServiceKey4, installed: &Installed, ops: &mut Vec<Op>) {
    match &installed.broken {
        Some(found) => {
            ops.extend(
                found
                    .iter()
                    .map(|(generation, slot)| Op::DeleteService { key: key.slot(*generation, *slot) }),
            );
        }
        None => ops.extend(
            (0..installed.slots.len())
                .map(|index| Op::DeleteService { key: key.slot(installed.generation, slot_number(index)) }),
        ),
    }
}

fn master_value(installed: &Installed) -> ServiceValue4 {
    ServiceValue4 {
        backend_id: 0,
        rev_nat_id: installed.rev_nat_id,
        count: u16::try_from(installed.slots.len()).unwrap_or(u16::MAX),
        generation: installed.generation,
        flags: installed.flags,
        pad: 0,
    }
}

/// Key of a frontend's master entry.
pub fn service_key(frontend: &L4Addr) -> ServiceKey4 {
    ServiceKey4::master(address_be(frontend.address), frontend.port.to_be(), frontend.protocol.number())
}

/// Frontend of a key; `None` for a protocol that is not translated.
pub fn frontend_address(key: &ServiceKey4) -> Option<L4Addr> {
    let protocol = Protocol::from_number(key.protocol)?;
    Some(L4Addr::new(address_from_be(key.address_be), u16::from_be(key.port_be), protocol))
}

/// Address of a backend; `None` for a protocol that is not translated.
pub fn backend_address(value: &Backend4) -> Option<L4Addr> {
    let protocol = Protocol::from_number(value.protocol)?;
    Some(L4Addr::new(address_from_be(value.address_be), u16::from_be(value.port_be), protocol))
}

fn backend_value(address: &L4Addr, flags: u8) -> Backend4 {
    Backend4 {
        address_be: address_be(address.address),
        port_be: address.port.to_be(),
        protocol: address.protocol.number(),
        flags,
    }
}

fn reverse_nat(frontend: &L4Addr) -> ReverseNat4 {
    ReverseNat4 {
        address_be: address_be(frontend.address),
        port_be: frontend.port.to_be(),
        protocol: frontend.protocol.number(),
        pad: 0,
    }
}
