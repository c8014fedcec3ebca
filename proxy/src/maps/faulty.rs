//! Maps that fail on purpose: operations that are refused, and operations that happen although the
//! caller is told that they did not.

use super::{MapError, Maps, Op, Snapshot};

/// Decides what fails. Called once per operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    /// Does what it should.
    None,
    /// Refused; the maps are unchanged.
    Refuse,
    /// Done, but reported as failed.
    DoneButReported,
}

/// Wraps other maps.
pub struct FaultyMaps<M> {
    inner: M,
    next: Box<dyn FnMut() -> Faults + Send>,
}

impl<M> FaultyMaps<M> {
    /// `next` says for each operation whether and how it fails.
    pub fn new(inner: M, next: impl FnMut() -> Faults + Send + 'static) -> Self {
        Self { inner, next: Box::new(next) }
    }

    /// The maps below.
    pub fn inner(&self) -> &M {
        &self.inner
    }
}

impl<M: Maps> Maps for FaultyMaps<M> {
    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match (self.next)() {
            Faults::None => self.inner.apply(op),
            Faults::Refuse => Err(MapError::Injected),
            Faults::DoneButReported => {
                self.inner.apply(op)?;
                Err(MapError::Injected)
            }
        }
    }

    fn snapshot(&self) -> Result<Snapshot, MapError> {
        self.inner.snapshot()
    }

    fn forget_sockets(&mut self) -> Result<(), MapError> {
        self.inner.forget_sockets()
    }
}
