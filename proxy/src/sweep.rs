//! Removes what is over from connection tracking, a part of the map at a time.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use hawser_ebpf_common::ct::{CtEntry, CtKey};

use crate::ct;
use crate::diff::Cut;
use crate::maps::{Address, MapError};
use crate::sys;

/// Entries per step: one system call, and well under a millisecond.
const PART: usize = 4096;

/// One family's map and how far it was swept.
pub struct Sweep<A: Address>
where
    CtKey<A>: Pod,
    CtEntry<A>: Pod,
{
    name: &'static str,
    map: HashMap<MapData, CtKey<A>, CtEntry<A>>,
    /// The same map, for what aya does not offer. Its types are those of `map`.
    raw: MapData,
    from: Option<u32>,
    keys: Vec<CtKey<A>>,
    entries: Vec<CtEntry<A>>,
    seen: usize,
    capacity: usize,
}

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// There is more of this pass.
    More,
    /// The pass is over.
    Done {
        /// Entries that the map had.
        entries: usize,
        /// Entries that it has room for.
        capacity: usize,
    },
}

impl<A: Address> Sweep<A>
where
    CtKey<A>: Pod,
    CtEntry<A>: Pod,
{
    /// Opens a map from its pin.
    ///
    /// # Errors
    /// The pin is missing or is of another type.
    pub fn open(dir: &Path, name: &'static str) -> Result<Self, MapError> {
        let failed = |source| MapError::Open { name, source };
        let open = || MapData::from_pin(dir.join(name));
        let (data, raw) = (open().map_err(failed)?, open().map_err(failed)?);
        let capacity = raw.info().map_err(failed)?.max_entries() as usize;
        let map = Map::from_map_data(data).and_then(HashMap::try_from).map_err(failed)?;
        let (keys, entries) = (vec![CtKey::default(); PART], vec![CtEntry::default(); PART]);
        Ok(Self { name, map, raw, from: None, keys, entries, seen: 0, capacity })
    }

    /// Looks at the next part. `cut`: flows to remove although they are not over.
    ///
    /// # Errors
    /// The kernel refused; the next step begins a new pass.
    pub fn step(&mut self, now_ns: u64, cut: &HashSet<Cut>) -> Result<Step, MapError> {
        let from = self.from.take();
        if from.is_none() {
            self.seen = 0;
        }
        let fd = self.raw.fd().as_fd();
        let batch = sys::lookup_batch(fd, from, &mut self.keys, &mut self.entries)
            .map_err(|source| MapError::Batch { name: self.name, source })?;
        self.seen += batch.count;
        self.from = batch.next;
        for at in 0..batch.count {
            let (key, entry) = (self.keys[at], self.entries[at]);
            if ct::is_cut(&key, &entry, cut) {
                self.remove(&key.partner(&entry))?;
                self.remove(&key)?;
            } else if ct::is_over(&key, &entry, now_ns, || self.map.get(&key.partner(&entry), 0).ok()) {
                self.remove_over(&key, &entry)?;
            }
        }
        Ok(match self.from {
            Some(_) => Step::More,
            None => Step::Done { entries: self.seen, capacity: self.capacity },
        })
    }

    /// It may be gone already.
    fn remove(&self, key: &CtKey<A>) -> Result<(), MapError> {
        match sys::map_delete(self.raw.fd().as_fd(), key) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(MapError::Batch { name: self.name, source })
            }
            _ => Ok(()),
        }
    }

    /// Removes what was found to be over, unless a new flow took its port since: the programs give the ports of closed
    /// connections to new ones, and a flow without its entry for answers is reset by this node's stack.
    fn remove_over(&mut self, key: &CtKey<A>, judged: &CtEntry<A>) -> Result<(), MapError> {
        let failed = |source| MapError::Batch { name: self.name, source };
        let taken: CtEntry<A> = match sys::map_take(self.raw.fd().as_fd(), key) {
            Ok(taken) => taken,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed(source)),
        };
        if taken.last_seen_ns == judged.last_seen_ns {
            return Ok(());
        }
        match self.map.insert(key, taken, sys::NOEXIST) {
            // It was opened once more in between.
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            other => other.map_err(|source| MapError::Kernel { name: self.name, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use hawser_ebpf_common::ct::{CT_CLOSING, CtEntry4, CtKey4};
    use hawser_ebpf_common::map_names;
    use nix::mount::{MsFlags, mount};

    use super::*;
    use crate::testing::{LRU_HASH, isolated};

    const LATER: u64 = 100_000_000_000;

    fn key(port: u16) -> CtKey4 {
        CtKey4 { saddr_be: 1, daddr_be: 2, sport_be: port, dport_be: 4, protocol: 6, pad: [0; 3] }
    }

    fn closed(last_seen_ns: u64) -> CtEntry4 {
        CtEntry4 { last_seen_ns, new_saddr_be: 9, flags: CT_CLOSING, ..Default::default() }
    }

    fn swept(test: impl FnOnce(Sweep<u32>) + Send + 'static) {
        isolated(|dir| {
            mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a bpffs");
            let (key, value) = (size_of::<CtKey4>() as u32, size_of::<CtEntry4>() as u32);
            sys::map_create_pinned(LRU_HASH, key, value, 1024, &dir.join(map_names::CT)).expect("a map");
            test(Sweep::open(dir, map_names::CT).expect("the map"));
        });
    }

    #[test]
    fn what_is_over_goes() {
        swept(|mut sweep| {
            sweep.map.insert(key(1), closed(1), 0).expect("written");
            sweep.map.insert(key(2), closed(LATER), 0).expect("written");
            let done = sweep.step(LATER, &HashSet::new()).expect("swept");
            assert_eq!(done, Step::Done { entries: 2, capacity: 1024 });
            let left: Vec<CtKey4> = sweep.map.keys().map(|key| key.expect("a key")).collect();
            assert_eq!(left, [key(2)]);
        });
    }

    #[test]
    fn a_port_that_is_used_anew_meanwhile_stays() {
        swept(|mut sweep| {
            let (judged, anew) = (closed(1), CtEntry4 { flags: 0, ..closed(LATER) });
            sweep.map.insert(key(1), anew, 0).expect("written");
            sweep.remove_over(&key(1), &judged).expect("taken and put back");
            let now = sweep.map.get(&key(1), 0).expect("still there");
            assert_eq!((now.last_seen_ns, now.new_saddr_be, now.flags), (LATER, 9, 0));
            sweep.remove_over(&key(1), &anew).expect("removed");
            assert!(sweep.map.get(&key(1), 0).is_err());
            sweep.remove_over(&key(1), &anew).expect("gone already");
        });
    }
}
