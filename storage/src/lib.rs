//! Storage for the API server: etcd's semantics behind one trait.
//!
//! One revision counter for the whole store, compare-and-swap on a key's mod revision, lists at a
//! revision, watches from a revision, and an explicit [`Error::Compacted`] where history is gone.
//! An error is never an empty list, and an acknowledged write is durable.
//!
//! | engine | for |
//! |---|---|
//! | [`embedded`] | one machine: a directory, a checksummed log and a redb table |
//! | [`etcd`] | replicated control planes: an etcd cluster |
//! | [`memory`] | tests and throw-away clusters: nothing survives the process |
#![forbid(unsafe_code)]

pub mod bench;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod embedded;
pub mod etcd;
pub mod memory;

mod hub;
mod index;
mod model;
mod stream;

pub use model::{
    Error, Event, EventKind, KeyValue, ListOptions, ListResult, MAX_KEY_BYTES, MAX_REQUEST_BYTES,
    Precondition, Revision, WatchItem,
};
pub use stream::{ProgressHandle, WatchStream};

use async_trait::async_trait;
use bytes::Bytes;

/// The revision of a store that nothing was written to. The first write gets the next one.
/// (As in etcd, so that 0 stays free: as a resourceVersion it means "any".)
pub const FIRST_REVISION: Revision = 1;

/// A store of keys and values with etcd's semantics.
///
/// Every write is one revision. Keys are ordered by their bytes. A prefix is a plain string
/// prefix: callers end it with `/` where they mean a directory.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// The current value of `key`, and the store's revision at which it was read (linearizable).
    ///
    /// A missing key is `None`, not an error.
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error>;

    /// The keys that start with `prefix`, in order, at the current or an older revision.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::FutureRevision`] when `options.revision` is out of reach.
    async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult, Error>;

    /// Writes `key` if `precondition` holds. Durable when it returns; the answer is the write's revision.
    ///
    /// # Errors
    /// [`Error::Conflict`] with the value that is there when the precondition does not hold (`None`
    /// when the key does not exist); [`Error::TooLarge`], [`Error::InvalidKey`].
    /// After [`Error::Unavailable`] it is unknown whether the write happened.
    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<Revision, Error>;

    /// Deletes `key` if `precondition` holds. Answers what was deleted and the deletion's revision.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such key, whatever the precondition; else as [`Storage::put`].
    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(KeyValue, Revision), Error>;

    /// Every event below `prefix` with a revision greater than `after`: no gap, no duplicate, in order.
    ///
    /// A stream that cannot go on yields one error and ends. A reader that is too slow costs bounded
    /// memory and is cut off with [`Error::Compacted`] once what it has not read is compacted.
    ///
    /// # Errors
    /// [`Error::Compacted`] (here or as the stream's first item) when `after` is older than the
    /// compacted revision, [`Error::FutureRevision`] when it is newer than the store.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error>;

    /// The store's revision: no smaller than that of any write acknowledged before the call.
    async fn current_revision(&self) -> Result<Revision, Error>;

    /// Gives up all history before `revision`: lists at an older one and watches after an older one
    /// answer [`Error::Compacted`] from now on. Compacting what is compacted already is no error.
    ///
    /// # Errors
    /// [`Error::FutureRevision`].
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// Stops the engine: later calls answer [`Error::Closed`], watches end with it, and files are
    /// let go of. Acknowledged writes are safe without this; it only makes the next start quicker.
    async fn close(&self) -> Result<(), Error>;
}
