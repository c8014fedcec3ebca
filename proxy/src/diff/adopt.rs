//! Taking over maps that an earlier agent, or an earlier attempt, left.

use std::collections::{HashMap, HashSet};

use hawser_ebpf_common::lb::{AffinityMatch, AffinityMatchKey, MaglevKey, ServiceValue};
use ipnet::IpNet;

use super::{Installed, InstalledBackend, SlotAt, Table};
use crate::maps::{Op, SlotKey, Snapshot};
use crate::types::L4Addr;

/// What of a snapshot no frontend has claimed yet.
struct Unclaimed {
    rev_nats: HashMap<u32, L4Addr>,
    slots: HashMap<L4Addr, Vec<(SlotAt, u32)>>,
    members: HashMap<AffinityMatchKey, AffinityMatch>,
    ranges: HashMap<u32, Vec<IpNet>>,
    maglev: HashSet<MaglevKey>,
}

impl Table {
    /// Adopts what the maps hold, so that ids stay what they are. The operations remove what nothing
    /// refers to and must be applied before any that this table plans later.
    pub fn adopt(snapshot: &Snapshot) -> (Self, Vec<Op>) {
        let mut table = Self::default();
        let mut ops = Vec::new();
        for (id, address, flags) in &snapshot.backends {
            table.last_backend_id = table.last_backend_id.max(*id);
            if table.backends.contains_key(address) {
                table.stale.push(Op::DeleteBackend { id: *id, family: address.family() });
                continue;
            }
            table.backends.insert(*address, InstalledBackend { id: *id, flags: *flags, references: 0 });
            table.by_id.insert(*id, *address);
        }
        let mut unclaimed = Unclaimed {
            rev_nats: snapshot.reverse_nat.iter().copied().collect(),
            slots: HashMap::new(),
            members: snapshot.members.iter().copied().collect(),
            ranges: HashMap::new(),
            maglev: snapshot.maglev.iter().copied().collect(),
        };
        table.last_rev_nat_id = unclaimed.rev_nats.keys().copied().max().unwrap_or(0);
        for (id, range) in &snapshot.source_ranges {
            unclaimed.ranges.entry(*id).or_default().push(*range);
        }
        for (key, value) in snapshot.services.iter().filter(|(key, _)| key.slot != 0) {
            let at = (key.scope, key.generation, key.slot);
            unclaimed.slots.entry(key.frontend).or_default().push((at, value.backend_id));
        }
        for (key, master) in snapshot.services.iter().filter(|(key, _)| key.slot == 0) {
            let installed = table.adopt_frontend(key.frontend, master, &mut unclaimed, &mut ops);
            table.frontends.insert(key.frontend, installed);
        }
        unclaimed.delete(&mut ops);
        (table, ops)
    }

    fn adopt_frontend(
        &mut self,
        frontend: L4Addr,
        master: &ServiceValue,
        unclaimed: &mut Unclaimed,
        ops: &mut Vec<Op>,
    ) -> Installed {
        let found = unclaimed.slots.remove(&frontend).unwrap_or_default();
        let mut installed = Installed {
            master: ServiceValue { count: 0, count_external: 0, ..*master },
            slots: [vec![0; usize::from(master.count)], vec![0; usize::from(master.count_external)]],
            ..Installed::default()
        };
        let is_slot = |installed: &Installed, (scope, generation, slot): SlotAt| {
            generation == master.generation
                && installed.slots.get(usize::from(scope)).is_some_and(|s| usize::from(slot) <= s.len())
        };
        for (at, backend_id) in &found {
            if is_slot(&installed, *at) {
                installed.slots[usize::from(at.0)][usize::from(at.2) - 1] = *backend_id;
            }
        }
        let has_rev_nat = unclaimed.rev_nats.get(&master.rev_nat_id) == Some(&frontend);
        let has_maglev = installed.maglev().iter().all(|key| unclaimed.maglev.contains(key));
        let has_slots = installed.slots.iter().flatten().all(|id| self.by_id.contains_key(id));
        if !has_rev_nat {
            installed.master.rev_nat_id = 0;
        } else {
            unclaimed.rev_nats.remove(&master.rev_nat_id);
            installed.ranges = unclaimed.ranges.remove(&master.rev_nat_id).unwrap_or_default().into();
        }
        if !(has_rev_nat && has_maglev && has_slots) {
            installed.slots = Default::default();
            installed.broken = Some(found.iter().map(|(at, _)| *at).collect());
            return installed;
        }
        for key in installed.maglev() {
            unclaimed.maglev.remove(&key);
        }
        for (key, value) in installed.members() {
            if unclaimed.members.remove(&key) != Some(value) {
                ops.push(Op::PutMember { key, value });
            }
        }
        for id in installed.slots.iter().flatten() {
            if let Some(backend) = self.by_id.get(id).and_then(|address| self.backends.get_mut(address)) {
                backend.references += 1;
            }
        }
        let key = SlotKey::master(frontend);
        let stray = found.iter().filter(|(at, _)| !is_slot(&installed, *at));
        ops.extend(stray.map(|((scope, generation, slot), _)| Op::DeleteService {
            key: key.slot(*scope, *generation, *slot),
        }));
        // An earlier agent ended between the writes of the slot and of the master, or did not know of this.
        if master.backend_id != installed.only_backend() {
            ops.push(Op::PutService { key, value: installed.master_value() });
        }
        installed
    }
}

impl Unclaimed {
    /// Nothing refers to any of it.
    fn delete(self, ops: &mut Vec<Op>) {
        for (frontend, found) in self.slots {
            let key = SlotKey::master(frontend);
            ops.extend(found.into_iter().map(|((scope, generation, slot), _)| Op::DeleteService {
                key: key.slot(scope, generation, slot),
            }));
        }
        ops.extend(self.members.into_keys().map(|key| Op::DeleteMember { key }));
        ops.extend(self.maglev.into_iter().map(|key| Op::DeleteMaglev { key }));
        for (id, ranges) in self.ranges {
            ops.extend(ranges.into_iter().map(|range| Op::DeleteSourceRange { id, range }));
        }
        ops.extend(
            self.rev_nats
                .into_iter()
                .map(|(id, frontend)| Op::DeleteReverseNat { id, family: frontend.family() }),
        );
    }
}
