//! How full the maps are: connection tracking by its sweeps, which walk it anyway, all others by a walk once a minute.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::MapData;
use hawser_ebpf_common::map_names as names;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::maps::MapError;
use crate::sys;

/// How often the maps are walked.
const WALK: Duration = Duration::from_secs(60);
/// Maps whose elements come and go, but those of connection tracking.
const WALKED: [&str; 24] = [
    names::SERVICES4,
    names::SERVICES6,
    names::BACKENDS4,
    names::BACKENDS6,
    names::REVERSE_NAT4,
    names::REVERSE_NAT6,
    names::REVERSE_SK4,
    names::REVERSE_SK6,
    names::FORWARD_SK4,
    names::FORWARD_SK6,
    names::AFFINITY,
    names::AFFINITY_MATCH,
    names::SOURCE_RANGE,
    names::MAGLEV,
    names::CONNECTIONS,
    names::SOCKETS,
    names::FRAGMENTS,
    names::FRAGMENTS6,
    names::ENDPOINTS,
    names::ENDPOINTS6,
    names::IPCACHE,
    names::IPCACHE6,
    names::ANNOUNCE,
    names::ANNOUNCE6,
];

/// Entries of a map, and how many it has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// When it was last walked.
    pub entries: usize,
    /// `max_entries`.
    pub capacity: usize,
}

/// How full the maps were when they were last walked, by name.
#[derive(Debug, Default)]
pub struct Pressure(Mutex<BTreeMap<&'static str, Fill>>);

impl Pressure {
    /// A map was walked.
    pub fn set(&self, map: &'static str, fill: Fill) {
        self.0.lock().insert(map, fill);
    }

    /// All that is known.
    pub fn all(&self) -> MutexGuard<'_, BTreeMap<&'static str, Fill>> {
        self.0.lock()
    }
}

/// Walks the maps until cancelled, one after the other on a thread that may block.
pub async fn run(maps: PathBuf, pressure: Arc<Pressure>, token: CancellationToken) {
    let mut tick = tokio::time::interval(WALK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            _ = tick.tick() => {}
        }
        for map in WALKED {
            let dir = maps.clone();
            match tokio::task::spawn_blocking(move || count(&dir, map)).await {
                Ok(Ok(fill)) => pressure.set(map, fill),
                Ok(Err(error)) => tracing::warn!(%error, "counting a map's entries"),
                Err(error) => tracing::warn!(%error, "counting a map's entries"),
            }
        }
    }
}

fn count(dir: &Path, name: &'static str) -> Result<Fill, MapError> {
    let failed = |source| MapError::Open { name, source };
    let map = MapData::from_pin(dir.join(name)).map_err(failed)?;
    let info = map.info().map_err(failed)?;
    let sizes = (info.key_size() as usize, info.value_size() as usize);
    let entries = sys::count_elements(map.fd().as_fd(), sizes.0, sizes.1)
        .map_err(|source| MapError::Batch { name, source })?;
    Ok(Fill { entries, capacity: info.max_entries() as usize })
}
