//! The diff against the model over maps in memory: every event, every prefix of its operations, faults,
//! crashes and restarts.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use common::world::{
    Action, action, apply_to_world, as_decision, clients, decide, empty_world, frontends, local, tell,
};
use hawser_ebpf_common::lb::{SERVICE_AFFINITY, SERVICE_SOURCE_RANGES};
use hawser_proxy::dataplane::Dataplane;
use hawser_proxy::maps::{Client, FakeMaps, Faults, FaultyMaps, Lookup, Maps, Snapshot};
use hawser_proxy::types::L4Addr;
use hawser_proxy_model::{From, World};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::sync::Arc;

/// A pod of this node that sends packets.
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);

fn agrees(maps: &FakeMaps, world: &World) -> Result<(), TestCaseError> {
    for (frontend, (client, from)) in questions() {
        let lookup = maps.lookup(&frontend, client);
        if let Lookup::Backends(all) = &lookup {
            prop_assert_eq!(
                all.iter().collect::<BTreeSet<_>>().len(),
                all.len(),
                "{} has a backend twice",
                frontend
            );
        }
        prop_assert_eq!(as_decision(&lookup), Ok(decide(world, &frontend, from)), "{}, {:?}", frontend, from);
    }
    Ok(())
}

/// Every frontend, asked by everybody.
fn questions() -> impl Iterator<Item = (L4Addr, (Client, From))> {
    frontends().into_iter().flat_map(|frontend| clients(POD).map(|client| (frontend, client)))
}

/// Nothing in the maps that no frontend needs.
fn is_minimal(snapshot: &Snapshot) -> Result<(), TestCaseError> {
    let masters: Vec<_> = snapshot.services.iter().filter(|(key, _)| key.slot == 0).collect();
    let slots: usize =
        masters.iter().map(|(_, value)| usize::from(value.count) + usize::from(value.count_external)).sum();
    prop_assert_eq!(snapshot.services.len(), masters.len() + slots);
    prop_assert_eq!(snapshot.reverse_nat.len(), masters.len());
    let named: BTreeSet<u32> =
        snapshot.services.iter().filter(|(key, _)| key.slot > 0).map(|(_, value)| value.backend_id).collect();
    let held: BTreeSet<u32> = snapshot.backends.iter().map(|(id, ..)| *id).collect();
    prop_assert_eq!(&named, &held);
    let master = |id: u32| masters.iter().find(|(_, value)| value.rev_nat_id == id).map(|(_, value)| *value);
    for (key, member) in &snapshot.members {
        let affinity = master(key.rev_nat_id).is_some_and(|value| value.flags & SERVICE_AFFINITY != 0);
        prop_assert!(affinity && member.slots != [0, 0] && held.contains(&key.backend_id), "{:?}", key);
    }
    for (id, range) in &snapshot.source_ranges {
        let ranged = master(*id).is_some_and(|value| value.flags & SERVICE_SOURCE_RANGES != 0);
        prop_assert!(ranged, "{} for {}", range, id);
    }
    for key in &snapshot.maglev {
        let in_force = master(key.rev_nat_id).is_some_and(|value| value.generation == key.generation);
        prop_assert!(in_force, "{:?}", key);
    }
    Ok(())
}

fn rev_nat_ids(snapshot: &Snapshot) -> BTreeMap<L4Addr, u32> {
    let masters = snapshot.services.iter().filter(|(key, _)| key.slot == 0);
    masters.map(|(key, value)| (key.frontend, value.rev_nat_id)).collect()
}

/// Maps that let a test look at them after every operation.
struct Watched {
    inner: FakeMaps,
    log: Arc<Mutex<Vec<FakeMaps>>>,
}

impl Maps for Watched {
    fn apply(&mut self, op: &hawser_proxy::maps::Op) -> Result<(), hawser_proxy::maps::MapError> {
        self.inner.apply(op)?;
        self.log.lock().push(self.inner.clone());
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, hawser_proxy::maps::MapError> {
        self.inner.snapshot()
    }

    fn forget_sockets(&mut self) -> Result<(), hawser_proxy::maps::MapError> {
        Ok(())
    }
}

fn actions(most: usize) -> impl Strategy<Value = Vec<Action>> {
    prop::collection::vec(action(), 1..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A lookup at any moment finds a frontend's old backends or its new ones, whole.
    #[test]
    fn updates_are_atomic_and_exact(actions in actions(16)) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let maps = Watched { inner: FakeMaps::default(), log: log.clone() };
        let mut dataplane = Dataplane::new(local(), maps);
        dataplane.reconcile().expect("no faults");
        let mut world = empty_world();
        for action in &actions {
            let before = world.clone();
            apply_to_world(&mut world, action);
            log.lock().clear();
            let touched = tell(&mut dataplane, action);
            dataplane.apply(&touched).expect("no faults");
            for (frontend, (client, from)) in questions() {
                let (old, new) = (decide(&before, &frontend, from), decide(&world, &frontend, from));
                for maps in log.lock().iter() {
                    match as_decision(&maps.lookup(&frontend, client)) {
                        Ok(decision) => prop_assert!(
                            decision == old || decision == new,
                            "{frontend}, {from:?}: {decision:?} is neither {old:?} nor {new:?}"
                        ),
                        Err(what) => prop_assert!(false, "{frontend}: {what}"),
                    }
                }
            }
            agrees(&dataplane.maps().inner, &world)?;
            is_minimal(&dataplane.maps().snapshot().expect("no faults"))?;
        }
    }

    /// Whatever fails, the maps end up right, and nothing is left behind.
    #[test]
    fn converges_after_faults(actions in actions(12), faults in prop::collection::vec(0..12u8, 1..200)) {
        let mut faults = faults.into_iter();
        let maps = FaultyMaps::new(FakeMaps::default(), move || match faults.next() {
            Some(0) => Faults::Refuse,
            Some(1) => Faults::DoneButReported,
            _ => Faults::None,
        });
        let mut dataplane = Dataplane::new(local(), maps);
        let mut world = empty_world();
        for action in &actions {
            apply_to_world(&mut world, action);
            let touched = tell(&mut dataplane, action);
            if dataplane.in_sync() && dataplane.apply(&touched).is_ok() {
                agrees(dataplane.maps().inner(), &world)?;
            } else {
                prop_assert!(!dataplane.in_sync());
                // One attempt now; if that fails too, the next event finds it undone.
                let _ = dataplane.reconcile();
            }
        }
        for _ in 0..200 {
            if dataplane.in_sync() {
                break;
            }
            let _ = dataplane.reconcile();
        }
        prop_assert!(dataplane.in_sync(), "faults are bounded, so it must get there");
        agrees(dataplane.maps().inner(), &world)?;
        is_minimal(&dataplane.maps().snapshot().expect("reads"))?;
    }

    /// A crash after any operation, and a new agent on the maps that are left: right again, and the ids of
    /// frontends and backends that were whole are what they were.
    #[test]
    fn adopts_after_a_crash(first in actions(10), second in actions(6), crash_after in 0..30usize) {
        let mut world = empty_world();
        let mut dataplane = Dataplane::new(local(), FakeMaps::default());
        dataplane.reconcile().expect("no faults");
        for action in &first {
            apply_to_world(&mut world, action);
            let touched = tell(&mut dataplane, action);
            dataplane.apply(&touched).expect("no faults");
        }
        let settled = dataplane.maps().snapshot().expect("reads");
        // The rest of the events reach the maps only up to the crash.
        let mut left = crash_after;
        let mut crashing = Dataplane::new(local(), FaultyMaps::new(dataplane.maps().clone(), move || {
            let fault = if left == 0 { Faults::Refuse } else { Faults::None };
            left = left.saturating_sub(1);
            fault
        }));
        for action in first.iter() {
            tell(&mut crashing, action);
        }
        let whole = crashing.reconcile().is_ok();
        for action in &second {
            apply_to_world(&mut world, action);
            let touched = tell(&mut crashing, action);
            if crashing.apply(&touched).is_err() {
                break;
            }
        }
        let survivors = crashing.maps().inner().clone();
        let left_behind = survivors.snapshot().expect("reads");
        // A restart that changes nothing writes nothing.
        if whole && second.is_empty() {
            prop_assert_eq!(&survivors.snapshot().expect("reads"), &settled);
        }
        let mut world = empty_world();
        let mut next = Dataplane::new(local(), survivors);
        for action in first.iter().chain(&second) {
            apply_to_world(&mut world, action);
            tell(&mut next, action);
        }
        next.reconcile().expect("no faults");
        agrees(next.maps(), &world)?;
        let now = next.maps().snapshot().expect("reads");
        is_minimal(&now)?;
        let (before, after) = (rev_nat_ids(&left_behind), rev_nat_ids(&now));
        for (frontend, id) in before {
            let translated_back = left_behind.reverse_nat.iter().any(|(other, _)| *other == id);
            if let Some(now) = after.get(&frontend).filter(|_| translated_back) {
                prop_assert_eq!(now, &id, "a frontend keeps its id");
            }
        }
        // And once more: nothing to do, nothing done.
        let snapshot = next.maps().snapshot().expect("reads");
        next.reconcile().expect("no faults");
        prop_assert_eq!(next.maps().snapshot().expect("reads"), snapshot);
    }
}

/// A frontend whose ranges, backends and policy change at once lets nobody in who was kept out, or is to be, but by its new
/// state: each client goes from its old answer to its new one.
#[test]
fn ranges_change_with_all_else() {
    use hawser_ebpf_common::lb::SERVICE_DSR;
    use hawser_proxy::diff::Table;
    use hawser_proxy::types::{FrontendSpec, Protocol};
    use proptest::test_runner::{Config, TestRunner};

    let frontend = L4Addr::new(Ipv4Addr::new(10, 98, 0, 2), 80, Protocol::Tcp);
    let backend = |n: u8| L4Addr::new(Ipv4Addr::new(10, 1, 0, n), 8080, Protocol::Tcp);
    let all = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "192.0.2.0/25"];
    let clients = ["10.1.2.3", "10.1.3.3", "10.2.0.1", "10.3.0.1", "192.0.2.1", "192.0.2.200"];
    let spec =
        (prop::collection::btree_set(0..all.len(), 0..4), prop::collection::btree_set(1..5u8, 0..4), 0..3u8)
            .prop_map(move |(ranges, backends, odd)| {
                let ranges: Vec<_> =
                    ranges.iter().map(|range| all[*range].parse().expect("a prefix")).collect();
                FrontendSpec {
                    flags: if ranges.is_empty() { 0 } else { SERVICE_SOURCE_RANGES }
                        | if odd == 0 { SERVICE_DSR } else { 0 },
                    backends: backends.into_iter().map(|n| (backend(n), 0)).collect(),
                    source_ranges: ranges.into(),
                    ..FrontendSpec::default()
                }
            });
    let ask = |maps: &FakeMaps, client: &str| {
        let client = Client::Packet(client.parse().expect("an address"), 1);
        as_decision(&maps.lookup(&frontend, client)).expect("whole")
    };
    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let specs = prop::collection::vec(prop::option::weighted(0.9, spec), 2..5);
    let result = TestRunner::new(config).run(&specs, |specs| {
        let (mut table, mut maps) = (Table::default(), FakeMaps::default());
        for spec in &specs {
            let mut steps = vec![maps.clone()];
            for op in table.plan(&frontend, spec.as_ref()) {
                maps.apply(&op).expect("no faults");
                steps.push(maps.clone());
            }
            for client in clients {
                let mut seen: Vec<_> = steps.iter().map(|maps| ask(maps, client)).collect();
                seen.dedup();
                prop_assert!(seen.len() <= 2, "{}: {:?}", client, seen);
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|failed| panic!("{failed}"));
}

/// One endpoint more or less costs a few writes, with one Service of three endpoints or of three thousand.
#[test]
fn work_per_event_does_not_grow() {
    use hawser_proxy::diff::Table;
    use hawser_proxy::types::{FrontendSpec, Protocol};

    let frontend = L4Addr::new(Ipv4Addr::new(10, 96, 0, 1), 80, Protocol::Tcp);
    let backend = |n: u32| L4Addr::new(Ipv4Addr::from(0x0a01_0000 + n), 8080, Protocol::Tcp);
    let spec = |range: std::ops::Range<u32>| FrontendSpec {
        backends: range.map(|n| (backend(n), 0)).collect(),
        ..FrontendSpec::default()
    };
    for count in [3, 3000] {
        let mut table = Table::default();
        assert_eq!(table.plan(&frontend, Some(&spec(0..count))).len(), 2 * count as usize + 2);
        assert_eq!(table.plan(&frontend, Some(&spec(0..count))).len(), 0, "nothing changed");
        assert_eq!(table.plan(&frontend, Some(&spec(0..count + 1))).len(), 3, "backend, slot, master");
        assert_eq!(
            table.plan(&frontend, Some(&spec(1..count + 1))).len(),
            4,
            "slot, master, old slot, backend"
        );
        assert_eq!(table.plan(&frontend, Some(&spec(2..count + 2))).len(), 3, "backend, slot, old backend");
    }
}
