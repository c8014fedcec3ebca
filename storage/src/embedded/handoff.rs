//! What the writer and the keeper tell each other.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::segment::Segment;
use crate::{Error, Revision};

/// A segment that is complete.
pub(crate) struct Retired {
    pub path: PathBuf,
    /// The last revision in it.
    pub last: Revision,
}

/// A compaction somebody waits for.
pub(crate) struct Compaction {
    pub revision: Revision,
    pub reply: oneshot::Sender<Result<(), Error>>,
}

#[derive(Default)]
pub(crate) struct Desk {
    /// Bytes of events that are not in the table yet.
    pub backlog: usize,
    /// The next segment.
    pub prepared: Option<Segment>,
    /// Oldest first.
    pub retired: Vec<Retired>,
    pub compactions: Vec<Compaction>,
    /// Why the keeper cannot do its work at present.
    pub trouble: Option<Error>,
    /// The writer has ended.
    pub closing: bool,
}

#[derive(Default)]
pub(crate) struct Handoff {
    desk: Mutex<Desk>,
    changed: Condvar,
}

impl Handoff {
    /// Changes what is on the desk and wakes the other side.
    pub fn change<T>(&self, edit: impl FnOnce(&mut Desk) -> T) -> T {
        let result = edit(&mut self.desk.lock());
        self.changed.notify_all();
        result
    }

    /// Notes events that are in the log only; wakes the keeper once they are worth a checkpoint.
    pub fn add_backlog(&self, bytes: usize, worth: usize) {
        let mut desk = self.desk.lock();
        desk.backlog += bytes;
        if desk.backlog >= worth {
            drop(desk);
            self.changed.notify_all();
        }
    }

    /// Waits until `ready` answers something, at most for `timeout`.
    pub fn wait<T>(&self, timeout: Duration, mut ready: impl FnMut(&mut Desk) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut desk = self.desk.lock();
        loop {
            if let Some(result) = ready(&mut desk) {
                return Some(result);
            }
            if self.changed.wait_until(&mut desk, deadline).timed_out() {
                return ready(&mut desk);
            }
        }
    }
}
