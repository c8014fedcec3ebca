//! Maps of an older layout: what they hold goes on in maps of this one.
//!
//! A map whose layout changed is put aside under another name, a new one is made in its place, and its elements are
//! copied twice: before the new programs replace the old ones, which go on with the old map until then, and after, for
//! what the old ones wrote meanwhile. A crash in between leaves the old map aside, and the next start goes on from there.
//!
//! Programs are replaced one after the other, and a connection goes by several of them. So between the two copies
//! (`CONFIG_MIGRATING`) the new programs look in the old connection tracking for what the new one misses, and write what is
//! new into both: each program knows every connection, whichever opened it.

use std::io;
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError as AyaError};
use hawser_ebpf_common::endpoint::LAYOUT;
use hawser_ebpf_common::lb::{CountedSocket, OldCountedSocket};
use hawser_ebpf_common::map_names as names;

use crate::maps::{KernelMaps, MapError, deleted, found, try_each};
use crate::programs::{Pins, ProgramsError, remove_if_there};
use crate::sys;

/// The oldest layout whose maps are read.
const OLDEST: u32 = 3;
/// Ending of a map's pin that was put aside. A bpffs allows no dot in names.
const ASIDE: &str = "!old";

/// Copies the elements of the first map that the second one does not have.
type Copy = fn(&'static str, MapData, MapData) -> Result<usize, MapError>;

/// What a layout changed about a map.
struct Change {
    /// The last layout with the old form.
    last: u32,
    map: &'static str,
    copy: How,
}

/// How the elements of a map go on.
enum How {
    /// They do not.
    Anew,
    /// Copied before the new programs replace the old ones, and what is missing then after it.
    Twice(Copy),
    /// Copied when only new programs are there, which removed what they had to from both maps. Until then they find what
    /// they miss in other ways.
    AtLast(Copy),
}

/// In the order of the layouts.
const CHANGES: [Change; 8] = [
    Change { last: 3, map: names::CT, copy: How::Twice(grow::<16, 56, 64>) },
    Change { last: 3, map: names::CT6, copy: How::Twice(grow::<40, 80, 88>) },
    Change { last: 3, map: names::REVERSE_SK4, copy: How::Twice(grow::<16, 8, 16>) },
    Change { last: 3, map: names::REVERSE_SK6, copy: How::Twice(grow::<28, 8, 16>) },
    // More reasons: the counters have other places, and begin anew.
    Change { last: 3, map: names::METRICS, copy: How::Anew },
    // The programs look up the backends' addresses, which these do not have, until the entries are written anew.
    Change { last: 4, map: names::SERVICES4, copy: How::Twice(grow::<12, 24, 32>) },
    Change { last: 4, map: names::SERVICES6, copy: How::Twice(grow::<24, 24, 44>) },
    Change { last: 4, map: names::SOCKETS, copy: How::AtLast(move_sockets) },
];

/// Where a map is put aside; those in which the new programs look too, where they do it.
fn aside(pins: &Pins, map: &str) -> PathBuf {
    match map {
        names::CT => pins.maps().join(names::OLD_CT),
        names::CT6 => pins.maps().join(names::OLD_CT6),
        names::SOCKETS => pins.maps().join(names::OLD_SOCKETS),
        map => pins.maps().join(format!("{map}{ASIDE}")),
    }
}

/// Whether a map was put aside, and it is not the one that a load makes where there is none.
fn is_aside(pins: &Pins, map: &'static str) -> Result<bool, ProgramsError> {
    let path = aside(pins, map);
    if !path.exists() {
        return Ok(false);
    }
    let failed = |source| MapError::Open { name: map, source };
    let info = open(map, &path)?.info().map_err(failed)?;
    Ok(info.max_entries() > 1)
}

/// Whether maps of an older layout are still aside.
pub(crate) fn under_way(pins: &Pins) -> Result<bool, ProgramsError> {
    for change in &CHANGES {
        if is_aside(pins, change.map)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts aside the pinned maps that have another form now. Maps of a layout that is not known are removed, all of them.
pub(crate) fn prepare(pins: &Pins) -> Result<(), ProgramsError> {
    if !pins.maps().join(names::CONFIG).exists() {
        return Ok(());
    }
    let layout = KernelMaps::pinned_config(&pins.maps()).map(|config| config.layout);
    match layout {
        // 0: an agent died between making the maps and marking them.
        Ok(0 | LAYOUT) => Ok(()),
        Ok(layout @ OLDEST..LAYOUT) => {
            tracing::info!(
                layout,
                wanted = LAYOUT,
                "the pinned maps are of an older layout; their elements move"
            );
            CHANGES
                .iter()
                .filter(|change| change.last >= layout)
                .try_for_each(|change| put_aside(pins, change.map))
        }
        layout => {
            tracing::warn!(?layout, wanted = LAYOUT, "the pinned maps have another layout; making new ones");
            discard(pins)
        }
    }
}

fn put_aside(pins: &Pins, map: &'static str) -> Result<(), ProgramsError> {
    let (path, aside) = (pins.maps().join(map), aside(pins, map));
    if is_aside(pins, map)? {
        // An earlier start came this far.
        return Ok(());
    }
    remove_if_there(&aside)?;
    match std::fs::rename(&path, &aside) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ProgramsError::Pin { path, source }),
        _ => Ok(()),
    }
}

fn discard(pins: &Pins) -> Result<(), ProgramsError> {
    let dir = pins.maps();
    let failed = |source| ProgramsError::Pin { path: dir.clone(), source };
    for entry in std::fs::read_dir(&dir).map_err(failed)? {
        remove_if_there(&entry.map_err(failed)?.path())?;
    }
    Ok(())
}

/// Copies what was put aside and is not in the new maps. `replaced`: no old program is attached any more.
pub(crate) fn copy(pins: &Pins, replaced: bool) -> Result<(), ProgramsError> {
    for change in &CHANGES {
        let (old, new) = (aside(pins, change.map), pins.maps().join(change.map));
        let copy = match change.copy {
            How::Twice(copy) => Some(copy),
            How::AtLast(copy) if replaced => Some(copy),
            How::AtLast(_) | How::Anew => None,
        };
        if let (Some(copy), true) = (copy, is_aside(pins, change.map)?) {
            let copied = copy(change.map, open(change.map, &old)?, open(change.map, &new)?)?;
            tracing::info!(map = change.map, copied, "elements moved");
        }
    }
    Ok(())
}

/// Lets the old maps go: no program uses them any more.
pub(crate) fn finish(pins: &Pins) -> Result<(), ProgramsError> {
    CHANGES.iter().try_for_each(|change| remove_if_there(&aside(pins, change.map)))
}

fn open(name: &'static str, path: &Path) -> Result<MapData, MapError> {
    MapData::from_pin(path).map_err(|source| MapError::Open { name, source })
}

/// A map as a hash map, with the sizes of its elements checked.
fn typed<K: Pod, V: Pod>(name: &'static str, map: MapData) -> Result<HashMap<MapData, K, V>, MapError> {
    Map::from_map_data(map).and_then(HashMap::try_from).map_err(|source| MapError::Kernel { name, source })
}

/// `false`: there is such an element already.
fn insert<K: Pod, V: Pod>(
    name: &'static str,
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    value: V,
) -> Result<bool, MapError> {
    match map.insert(key, value, sys::NOEXIST) {
        Ok(()) => Ok(true),
        Err(AyaError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(false)
        }
        Err(source) => Err(MapError::Kernel { name, source }),
    }
}

/// For a map whose values became longer: the new part is zero.
fn grow<const KEY: usize, const OLD: usize, const NEW: usize>(
    name: &'static str,
    old: MapData,
    new: MapData,
) -> Result<usize, MapError> {
    let old = typed::<[u8; KEY], [u8; OLD]>(name, old)?;
    let mut new = typed::<[u8; KEY], [u8; NEW]>(name, new)?;
    let mut copied = 0;
    try_each(name, &old, ([0; KEY], [0; OLD]), |key, value| {
        let mut grown = [0; NEW];
        grown[..OLD].copy_from_slice(value);
        copied += usize::from(insert(name, &mut new, key, grown)?);
        Ok(())
    })?;
    Ok(copied)
}

/// Counted sockets. One that is closed meanwhile is removed from the old map, so whatever is not there any more after it was
/// copied is taken back.
fn move_sockets(name: &'static str, old: MapData, new: MapData) -> Result<usize, MapError> {
    let old = typed::<u64, OldCountedSocket>(name, old)?;
    let mut new = typed::<u64, CountedSocket>(name, new)?;
    let mut copied = Vec::new();
    try_each(name, &old, (0, OldCountedSocket::default()), |cookie, value| {
        let OldCountedSocket { backend_id, rev_nat_id, family, .. } = *value;
        let value = CountedSocket { backend_id, rev_nat_id, family, ..CountedSocket::default() };
        if insert(name, &mut new, cookie, value)? {
            copied.push(*cookie);
        }
        Ok(())
    })?;
    for cookie in &copied {
        if found(name, old.get(cookie, 0))?.is_none() {
            deleted(name, new.remove(cookie))?;
        }
    }
    Ok(copied.len())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use aya::programs::{TestRun, TestRunOptions};
    use hawser_ebpf_common::ct::{CtEntry4, CtKey4};
    use hawser_ebpf_common::endpoint::{CONFIG_MIGRATING, NodeConfig};
    use hawser_ebpf_common::lb::{ServiceKey4, ServiceValue};

    use super::*;
    use crate::maps::{Maps, Op};
    use crate::programs::Programs;
    use crate::testing::{HASH, LRU_HASH, isolated};
    use crate::types::{L4Addr, Protocol, address_be};

    /// A client, a Service, its backend on another node, and this node.
    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
    const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
    /// Two sockets that an older agent counted.
    const OPEN: u64 = 1;
    const CLOSED: u64 = 2;
    fn key(port: u16) -> CtKey4 {
        CtKey4 { saddr_be: 1, daddr_be: 2, sport_be: port, dport_be: 4, protocol: 6, pad: [0; 3] }
    }

    fn bytes(key: &CtKey4) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&key.saddr_be.to_ne_bytes());
        bytes[4..8].copy_from_slice(&key.daddr_be.to_ne_bytes());
        bytes[8..10].copy_from_slice(&key.sport_be.to_ne_bytes());
        bytes[10..12].copy_from_slice(&key.dport_be.to_ne_bytes());
        bytes[12] = key.protocol;
        bytes
    }

    /// An entry of layout 3: 56 bytes, of which the first eight are the time.
    fn entry3(time: u64) -> [u8; 56] {
        let mut bytes = [0; 56];
        bytes[..8].copy_from_slice(&time.to_ne_bytes());
        bytes
    }

    /// Puts a map of layout 3 in the place of the new one, with elements, and says so.
    fn age(pins: &Pins, flows: &[(u16, u64)]) -> HashMap<MapData, [u8; 16], [u8; 56]> {
        let path = pins.maps().join(names::CT);
        std::fs::remove_file(&path).expect("the pin");
        sys::map_create_pinned(LRU_HASH, 16, 56, 1024, &path).expect("a map");
        let mut old: HashMap<MapData, [u8; 16], [u8; 56]> =
            Map::from_map_data(open(names::CT, &path).expect("the map"))
                .and_then(HashMap::try_from)
                .expect("its sizes");
        for (port, time) in flows {
            old.insert(bytes(&key(*port)), entry3(*time), 0).expect("writes");
        }
        for name in [names::CT6, names::REVERSE_SK4, names::REVERSE_SK6, names::METRICS, names::SERVICES6] {
            std::fs::remove_file(pins.maps().join(name)).expect("the pin");
        }
        let path = pins.maps().join(names::SERVICES4);
        std::fs::remove_file(&path).expect("the pin");
        sys::map_create_pinned(HASH, 12, 24, 1024, &path).expect("a map");
        let mut services: HashMap<MapData, ServiceKey4, ServiceValue> =
            Map::from_map_data(open(names::SERVICES4, &path).expect("the map"))
                .and_then(HashMap::try_from)
                .expect("its sizes");
        let master = ServiceKey4::master(address_be(VIP), 80u16.to_be(), 6);
        let of_slot = ServiceValue { backend_id: 7, rev_nat_id: 9, ..ServiceValue::default() };
        let value = ServiceValue { backend_id: 0, count: 1, generation: 1, ..of_slot };
        services.insert(master, value, 0).expect("writes");
        services.insert(master.slot(0, 1, 1), of_slot, 0).expect("writes");
        let path = pins.maps().join(names::SOCKETS);
        std::fs::remove_file(&path).expect("the pin");
        sys::map_create_pinned(HASH, 8, 16, 1024, &path).expect("a map");
        let mut sockets =
            typed::<u64, OldCountedSocket>(names::SOCKETS, open(names::SOCKETS, &path).expect("the map"))
                .expect("its sizes");
        for cookie in [OPEN, CLOSED] {
            let socket = OldCountedSocket { backend_id: 7, rev_nat_id: 9, family: 4, pad: 0 };
            sockets.insert(cookie, socket, 0).expect("writes");
        }
        let mut maps = old_config(pins);
        maps.layout = 3;
        set_config(pins, &maps);
        old
    }

    fn config_map(pins: &Pins) -> aya::maps::Array<MapData, NodeConfig> {
        let data = open(names::CONFIG, &pins.maps().join(names::CONFIG)).expect("the map");
        Map::from_map_data(data).and_then(aya::maps::Array::try_from).expect("its sizes")
    }

    fn old_config(pins: &Pins) -> NodeConfig {
        config_map(pins).get(&0, 0).expect("reads")
    }

    fn set_config(pins: &Pins, config: &NodeConfig) {
        config_map(pins).set(0, config, 0).expect("writes");
    }

    fn times(pins: &Pins) -> Vec<(u16, u64)> {
        let held = KernelMaps::open(&pins.maps()).expect("the maps").ct().expect("reads");
        let mut times: Vec<_> =
            held.iter().map(|(key, entry): &(CtKey4, CtEntry4)| (key.sport_be, entry.last_seen_ns)).collect();
        times.sort();
        times
    }

    /// What `from_uplink` makes of a packet of TCP: its destination.
    fn run(
        programs: &mut Programs,
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        flags: u8,
    ) -> (Ipv4Addr, u16) {
        let mut frame = vec![0; 14 + 20 + 20];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..24].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]);
        frame[26..30].copy_from_slice(&from.0.octets());
        frame[30..34].copy_from_slice(&to.0.octets());
        frame[34..36].copy_from_slice(&from.1.to_be_bytes());
        frame[36..38].copy_from_slice(&to.1.to_be_bytes());
        frame[46..48].copy_from_slice(&[0x50, flags]);
        let mut out = vec![0; 128];
        let options =
            TestRunOptions { data_in: Some(&frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        programs.classifier("from_uplink").expect("a program").test_run(options).expect("runs");
        (Ipv4Addr::new(out[30], out[31], out[32], out[33]), u16::from_be_bytes([out[36], out[37]]))
    }

    /// Until all programs are new, each knows what the others opened.
    #[test]
    fn both_layouts_know_every_flow() {
        isolated(|dir| {
            let pins = Pins::new(dir.join("bpf"));
            drop(Programs::load(&pins).expect("loads"));
            let backend = L4Addr::new(BACKEND, 8080, Protocol::Tcp);
            KernelMaps::open(&pins.maps())
                .expect("the maps")
                .apply(&Op::PutBackend { id: 7, address: backend, flags: 0 })
                .expect("writes");
            let mut old = age(&pins, &[]);
            let mut programs = Programs::load(&pins).expect("loads");
            let config = old_config(&pins);
            assert_ne!(config.flags & CONFIG_MIGRATING, 0);
            set_config(&pins, &NodeConfig { node_ip_be: address_be(NODE), ..config });
            // An old program opens a flow after the first copy; a new one gets its next packet.
            let flow = CtKey4 {
                saddr_be: address_be(CLIENT),
                daddr_be: address_be(VIP),
                sport_be: 5000u16.to_be(),
                dport_be: 80u16.to_be(),
                protocol: 6,
                pad: [0; 3],
            };
            let mut entry = entry3(0);
            for (at, bytes) in [
                (24, &NODE.octets()[..]),
                (28, &BACKEND.octets()[..]),
                (32, &61_500u16.to_be_bytes()[..]),
                (34, &9090u16.to_be_bytes()[..]),
            ] {
                entry[at..at + bytes.len()].copy_from_slice(bytes);
            }
            old.insert(bytes(&flow), entry, 0).expect("writes");
            assert_eq!(run(&mut programs, (CLIENT, 5000), (VIP, 80), 0x10), (BACKEND, 9090));
            // A new program opens one, by a Service of the older layout: the old programs find both directions.
            let before = old.keys().count();
            assert_eq!(run(&mut programs, (CLIENT, 5001), (VIP, 80), 2), (BACKEND, 8080));
            assert_eq!(old.keys().count(), before + 2);
            programs.finish_migration().expect("finishes");
            assert_eq!(old_config(&pins).flags & CONFIG_MIGRATING, 0);
            assert_eq!(run(&mut programs, (CLIENT, 5000), (VIP, 80), 0x10), (BACKEND, 9090));
            assert_eq!(run(&mut programs, (CLIENT, 5001), (VIP, 80), 0x10), (BACKEND, 8080));
            run(&mut programs, (CLIENT, 5002), (VIP, 80), 2);
            assert_eq!(old.keys().count(), before + 2, "the old map is left alone");
        });
    }

    #[test]
    fn flows_survive_a_new_layout_and_a_crash_on_the_way() {
        isolated(|dir| {
            let pins = Pins::new(dir.join("bpf"));
            drop(Programs::load(&pins).expect("loads"));
            let backend =
                Op::PutBackend { id: 7, address: L4Addr::new([10, 0, 0, 1], 80, Protocol::Tcp), flags: 0 };
            KernelMaps::open(&pins.maps()).expect("the maps").apply(&backend).expect("writes");
            let mut old = age(&pins, &[(1, 100), (2, 200)]);
            // A first attempt dies right after it put the maps aside.
            prepare(&pins).expect("put aside");
            let programs = Programs::load(&pins).expect("loads");
            assert_eq!(times(&pins), [(1, 100), (2, 200)]);
            // The old programs are attached still, and write.
            old.insert(bytes(&key(3)), entry3(300), 0).expect("writes");
            old.insert(bytes(&key(1)), entry3(101), 0).expect("writes");
            let counted =
                || KernelMaps::open(&pins.maps()).expect("the maps").counted_sockets().expect("reads");
            assert!(counted().is_empty(), "programs of an older layout would not remove what is closed");
            let path = aside(&pins, names::SOCKETS);
            typed::<u64, OldCountedSocket>(names::SOCKETS, open(names::SOCKETS, &path).expect("the map"))
                .and_then(|mut old| deleted(names::SOCKETS, old.remove(&CLOSED)))
                .expect("closes");
            programs.finish_migration().expect("finishes");
            assert_eq!(times(&pins), [(1, 100), (2, 200), (3, 300)]);
            let moved = CountedSocket { backend_id: 7, rev_nat_id: 9, family: 4, ..CountedSocket::default() };
            assert_eq!(counted(), [(OPEN, moved)]);
            let kept = KernelMaps::open(&pins.maps()).expect("the maps").backends().expect("reads");
            assert_eq!(kept.len(), 1, "what did not change stays");
            let left = std::fs::read_dir(pins.maps()).expect("the pins").flatten();
            assert!(left.into_iter().all(|pin| !pin.file_name().to_string_lossy().ends_with(ASIDE)));
            assert_eq!(old_config(&pins).layout, LAYOUT);
            // A layout that nobody knows: all is made anew.
            set_config(&pins, &NodeConfig { layout: LAYOUT + 1, ..NodeConfig::default() });
            drop(Programs::load(&pins).expect("loads"));
            assert!(times(&pins).is_empty());
        });
    }
}
