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
        for (key, entry) in self.keys.iter().zip(&self.entries).take(batch.count) {
            if ct::is_cut(key, entry, cut) {
                self.remove(&key.partner(entry))?;
                self.remove(key)?;
            } else if ct::is_over(key, entry, now_ns, || self.map.get(&key.partner(entry), 0).ok()) {
                self.remove(key)?;
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
}
