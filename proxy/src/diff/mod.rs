//! PURE: the difference between the maps and what they should hold, as an ordered list of operations.
//!
//! The order is the point. A backend is there before a slot names it and goes after the last slot that
//! did. A frontend's choice changes in one write: either of its master entry, or of the one slot that
//! changes (of a frontend's only slot the master entry has a copy, which is what lookups see). So a
//! lookup between any two operations finds the old set of backends or the new one, whole.
//!
//! One endpoint that comes, goes or is replaced costs a constant number of writes, however many there
//! are; only when several change at once, or when a Maglev table changes, are all slots of that frontend
//! written under a new generation.

mod adopt;
mod slots;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use hawser_ebpf_common::lb::{
    ALGORITHM_MAGLEV, AffinityMatch, AffinityMatchKey, MaglevKey, SERVICE_AFFINITY, SERVICE_SOURCE_RANGES,
    SERVICE_TWO_SCOPES, ServiceValue,
};
use ipnet::IpNet;

use crate::maglev;
use crate::maps::{Op, SlotKey};
use crate::types::{FrontendSpec, L4Addr, Protocol};
use slots::{Change, next_generation, place, slot_number};

/// Most backends that one frontend can have: a slot's number has 16 bits.
const MAX_SLOTS: usize = u16::MAX as usize;
/// Internal and external.
const SCOPES: usize = 2;

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
    cuts: Vec<Cut>,
}

/// A frontend that leads to a backend no more, for good: what still speaks to it through that frontend is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cut {
    /// The frontend's `rev_nat` id.
    pub rev_nat_id: u32,
    /// The backend.
    pub backend: L4Addr,
}

/// Scope, generation and number of a slot.
type SlotAt = (u8, u16, u16);

#[derive(Debug, Clone, Default)]
struct Installed {
    /// As in the master entry; `count*` and `backend_id` are those of `slots`.
    master: ServiceValue,
    /// Backend ids of slots 1, 2, … of each scope.
    slots: [Vec<u32>; SCOPES],
    /// Prefixes in the maps.
    ranges: Arc<[IpNet]>,
    /// Set when the maps contradict themselves: all slots found there. Everything is then written anew.
    broken: Option<Vec<SlotAt>>,
}

#[derive(Debug)]
struct InstalledBackend {
    id: u32,
    flags: u8,
    /// Slots that name it.
    references: u32,
}

impl Installed {
    fn master_value(&self) -> ServiceValue {
        let count = |scope: usize| u16::try_from(self.slots[scope].len()).unwrap_or(u16::MAX);
        let backend_id = self.only_backend();
        ServiceValue { backend_id, count: count(0), count_external: count(1), ..self.master }
    }

    /// The backend that the master entry names itself, or 0.
    fn only_backend(&self) -> u32 {
        match &self.slots[0][..] {
            [only] if self.master.flags & SERVICE_TWO_SCOPES == 0 => *only,
            _ => 0,
        }
    }

    /// Sets what the specification says about the frontend itself. Whether that changed anything.
    fn set_attributes(&mut self, spec: &FrontendSpec) -> bool {
        let before = self.master;
        self.master.flags = spec.flags;
        self.master.kind = spec.kind;
        self.master.algorithm = spec.algorithm;
        self.master.affinity_timeout_s = spec.affinity_timeout_s;
        before != self.master
    }

    fn put_slot(&self, key: SlotKey, scope: usize, index: usize) -> Op {
        let value = ServiceValue {
            backend_id: self.slots[scope][index],
            rev_nat_id: self.master.rev_nat_id,
            ..ServiceValue::default()
        };
        Op::PutService { key: key.slot(scope as u8, self.master.generation, slot_number(index)), value }
    }

    fn delete_slots(&self, key: SlotKey, ops: &mut Vec<Op>) {
        let delete = |(scope, generation, slot)| Op::DeleteService { key: key.slot(scope, generation, slot) };
        match &self.broken {
            Some(found) => ops.extend(found.iter().copied().map(delete)),
            None => ops.extend(self.slot_numbers().map(delete)),
        }
    }

    fn slot_numbers(&self) -> impl Iterator<Item = SlotAt> {
        let generation = self.master.generation;
        (0..SCOPES).flat_map(move |scope| {
            (0..self.slots[scope].len()).map(move |index| (scope as u8, generation, slot_number(index)))
        })
    }

    /// The slots of each backend, for clients with affinity.
    fn members(&self) -> HashMap<AffinityMatchKey, AffinityMatch> {
        let mut members = HashMap::new();
        if self.master.flags & SERVICE_AFFINITY == 0 {
            return members;
        }
        for (scope, slots) in self.slots.iter().enumerate() {
            for (index, id) in slots.iter().enumerate() {
                let key = AffinityMatchKey { rev_nat_id: self.master.rev_nat_id, backend_id: *id };
                let member: &mut AffinityMatch = members.entry(key).or_default();
                member.slots[scope] = slot_number(index);
            }
        }
        members
    }

    /// Whether all of a range may connect. `ranges` are its own.
    fn lets_in(&self, ranges: &HashSet<&IpNet>, range: &IpNet) -> bool {
        let wider = (0..=range.prefix_len()).filter_map(|len| IpNet::new(range.addr(), len).ok());
        self.master.flags & SERVICE_SOURCE_RANGES == 0
            || wider.map(|wider| wider.trunc()).any(|wider| ranges.contains(&wider))
    }

    /// The keys of its Maglev tables.
    fn maglev(&self) -> Vec<MaglevKey> {
        if self.master.algorithm != ALGORITHM_MAGLEV {
            return Vec::new();
        }
        let scopes = (0..SCOPES).filter(|scope| !self.slots[*scope].is_empty());
        scopes
            .flat_map(|scope| maglev::keys(self.master.rev_nat_id, self.master.generation, scope as u8))
            .collect()
    }
}

impl Table {
    /// Frontends the maps hold.
    pub fn frontends(&self) -> impl Iterator<Item = &L4Addr> {
        self.frontends.keys()
    }

    /// Whether the maps hold a frontend.
    pub fn holds(&self, frontend: &L4Addr) -> bool {
        self.frontends.contains_key(frontend)
    }

    /// How many backends the maps hold.
    pub fn backends(&self) -> usize {
        self.backends.len()
    }

    /// The `rev_nat` id of a frontend.
    pub fn rev_nat_id(&self, frontend: &L4Addr) -> Option<u32> {
        self.frontends.get(frontend).map(|installed| installed.master.rev_nat_id)
    }

    /// What frontends that were removed since the last call led to, as far as it must be cut: a connection goes on when
    /// its Service is deleted, datagrams have nobody to answer under the frontend's name.
    pub fn take_cuts(&mut self) -> Vec<Cut> {
        std::mem::take(&mut self.cuts)
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
        let key = SlotKey::master(*frontend);
        ops.push(Op::DeleteService { key });
        installed.delete_slots(key, ops);
        ops.extend(installed.members().into_keys().map(|key| Op::DeleteMember { key }));
        ops.extend(installed.maglev().into_iter().map(|key| Op::DeleteMaglev { key }));
        let id = installed.master.rev_nat_id;
        if id != 0 {
            ops.extend(installed.ranges.iter().map(|range| Op::DeleteSourceRange { id, range: *range }));
            ops.push(Op::DeleteReverseNat { id, family: frontend.family() });
        }
        if frontend.protocol == Protocol::Udp {
            let backends: BTreeSet<u32> = installed.slots.iter().flatten().copied().collect();
            let backends = backends.iter().filter_map(|backend| self.by_id.get(backend));
            self.cuts.extend(backends.map(|backend| Cut { rev_nat_id: id, backend: *backend }));
        }
        installed.slots.into_iter().flatten().for_each(|id| self.release(id, ops));
    }

    fn upsert(&mut self, frontend: &L4Addr, spec: &FrontendSpec, ops: &mut Vec<Op>) {
        let key = SlotKey::master(*frontend);
        let old = self.frontends.get(frontend).cloned();
        let is_new = old.is_none();
        let old = old.unwrap_or_default();
        let mut installed = old.clone();
        let mut wanted: [BTreeSet<u32>; SCOPES] = Default::default();
        for (set, backends) in wanted.iter_mut().zip([&spec.backends, &spec.external]) {
            for (address, flags) in backends.iter().take(MAX_SLOTS) {
                set.insert(self.ensure_backend(address, *flags, ops));
            }
        }
        let attributes_change = installed.set_attributes(spec);
        let mut master_changes = is_new || attributes_change;
        if installed.master.rev_nat_id == 0 {
            self.last_rev_nat_id = self.last_rev_nat_id.wrapping_add(1).max(1);
            installed.master.rev_nat_id = self.last_rev_nat_id;
            ops.push(Op::PutReverseNat { id: self.last_rev_nat_id, frontend: *frontend });
            master_changes = true;
        }
        let changes = [0, 1].map(|scope| Change::between(&old.slots[scope], &wanted[scope]));
        let mut after = Vec::new();
        let before_slots = ops.len();

        let slots_change = changes.iter().any(|change| !change.is_empty());
        let maglev = [&old, &installed].iter().any(|one| one.master.algorithm == ALGORITHM_MAGLEV);
        if installed.broken.is_some()
            || changes.iter().any(Change::needs_generation)
            // What is seen with the old master must not change under it.
            || attributes_change && changes.iter().any(Change::shows_at_once)
            || maglev && (slots_change || attributes_change)
        {
            old.delete_slots(key, &mut after);
            installed.master.generation = next_generation(old.master.generation, &after);
            installed.broken = None;
            for scope in 0..SCOPES {
                installed.slots[scope] = place(&old.slots[scope], &wanted[scope], &changes[scope].added);
                ops.extend((0..installed.slots[scope].len()).map(|i| installed.put_slot(key, scope, i)));
            }
            self.put_maglev(&installed, ops);
            after.extend(old.maglev().into_iter().map(|key| Op::DeleteMaglev { key }));
            master_changes = true;
        } else {
            for (scope, change) in changes.iter().enumerate() {
                master_changes |= change.apply(&mut installed, key, scope, ops, &mut after);
            }
        }
        let mut first = plan_members(&old, &installed, ops, &mut after);
        first.extend(plan_ranges(&old, &mut installed, &spec.source_ranges, &mut after));
        ops.splice(before_slots..before_slots, first);
        if master_changes {
            ops.push(Op::PutService { key, value: installed.master_value() });
        }
        ops.append(&mut after);
        installed.slots.iter().flatten().for_each(|id| self.retain(*id));
        old.slots.iter().flatten().for_each(|id| self.release(*id, ops));
        self.frontends.insert(*frontend, installed);
    }

    fn put_maglev(&self, installed: &Installed, ops: &mut Vec<Op>) {
        if installed.master.algorithm != ALGORITHM_MAGLEV {
            return;
        }
        for (scope, slots) in installed.slots.iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
            // Every node computes from the addresses, and so comes to the same table.
            let backends: Vec<L4Addr> = slots.iter().filter_map(|id| self.by_id.get(id)).copied().collect();
            let table = maglev::table(&backends);
            let keys = maglev::keys(installed.master.rev_nat_id, installed.master.generation, scope as u8);
            ops.extend(keys.zip(maglev::chunks(&table)).map(|(key, chunk)| Op::PutMaglev { key, chunk }));
        }
    }

    fn ensure_backend(&mut self, address: &L4Addr, flags: u8, ops: &mut Vec<Op>) -> u32 {
        if let Some(backend) = self.backends.get_mut(address) {
            if backend.flags != flags {
                backend.flags = flags;
                ops.push(Op::PutBackend { id: backend.id, address: *address, flags });
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
        ops.push(Op::PutBackend { id, address: *address, flags });
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
            ops.push(Op::DeleteBackend { id: backend.id, family: address.family() });
        }
    }
}

/// Where backends have moved to is known before the master leads there; what is gone is forgotten after. Returns what must
/// be written even before the slots, because one slot that is written in its place is seen at once: backends that join.
fn plan_members(old: &Installed, new: &Installed, ops: &mut Vec<Op>, after: &mut Vec<Op>) -> Vec<Op> {
    let (mut old, new) = (old.members(), new.members());
    let mut joining = Vec::new();
    for (key, value) in new {
        match old.remove(&key) {
            None => joining.push(Op::PutMember { key, value }),
            Some(held) if held != value => ops.push(Op::PutMember { key, value }),
            Some(_) => {}
        }
    }
    after.extend(old.into_keys().map(|key| Op::DeleteMember { key }));
    joining
}

/// Ranges are seen at once, and the rest of the frontend with one write somewhere between. So a client that may come no
/// more is kept out before that write, and one that may come anew is let in after it: each goes from what it had to what it
/// is to have. What changes nothing for anybody, because another range names the same clients, is written before a range
/// goes that it replaces, and goes after one comes that replaces it. Two prefixes are apart or one lies in the other, so a
/// range belongs to one of these cases whole. Returns what is to be done first.
fn plan_ranges(
    old: &Installed,
    installed: &mut Installed,
    wanted: &Arc<[IpNet]>,
    after: &mut Vec<Op>,
) -> Vec<Op> {
    let id = installed.master.rev_nat_id;
    installed.ranges = wanted.clone();
    let mut first = Vec::new();
    if old.ranges == *wanted {
        return first;
    }
    let (held, kept): (HashSet<&IpNet>, HashSet<&IpNet>) =
        (old.ranges.iter().collect(), wanted.iter().collect());
    let missing = wanted.iter().filter(|range| !held.contains(range));
    let (stay, join): (Vec<_>, Vec<_>) = missing.partition(|range| old.lets_in(&held, range));
    let superfluous = old.ranges.iter().filter(|range| !kept.contains(range));
    let (replaced, leave): (Vec<_>, Vec<_>) = superfluous.partition(|range| installed.lets_in(&kept, range));
    let put = |range: &IpNet| Op::PutSourceRange { id, range: *range };
    let delete = |range: &IpNet| Op::DeleteSourceRange { id, range: *range };
    first.extend(stay.into_iter().map(put));
    first.extend(leave.into_iter().map(delete));
    after.extend(join.into_iter().map(put));
    after.extend(replaced.into_iter().map(delete));
    first
}
