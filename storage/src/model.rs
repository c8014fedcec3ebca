//! The data that crosses the [`Storage`](crate::Storage) trait.

use std::sync::Arc;

use bytes::Bytes;

/// A position in the store's history. Every write gets the next one; none is used twice.
pub type Revision = u64;

/// The largest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4096;

/// The largest key and value together, in bytes: etcd's default limit for a request (1.5 MiB).
pub const MAX_REQUEST_BYTES: usize = 1536 * 1024;

/// A key with its value. Cloning shares both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Arc<str>,
    pub value: Bytes,
    /// The revision that made the key, since it was last absent.
    pub create_revision: Revision,
    /// The revision of the last write.
    pub mod_revision: Revision,
}

/// What has to hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing: the last writer wins.
    None,
    /// The key does not exist.
    Absent,
    /// The key exists and its last write has this revision. 0 never holds.
    ModRevision(Revision),
}

impl Precondition {
    /// Whether it holds for a key whose live version has `mod_revision` (`None`: no such key).
    pub fn holds(self, mod_revision: Option<Revision>) -> bool {
        match self {
            Precondition::None => true,
            Precondition::Absent => mod_revision.is_none(),
            Precondition::ModRevision(want) => mod_revision == Some(want),
        }
    }
}

/// What part of a prefix to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// List only keys greater than this one (a whole key, not what follows the prefix).
    pub start_after: Option<String>,
    /// The most items to answer; 0 is all of them.
    pub limit: usize,
    /// The revision to list at; `None` and `Some(0)` are the current one.
    pub revision: Option<Revision>,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListResult {
    /// In the order of their keys.
    pub items: Vec<KeyValue>,
    /// The revision that was listed: the one asked for, else the current one.
    /// A watch after it misses nothing, and further pages are asked for at it.
    pub revision: Revision,
    /// Whether keys follow the last item.
    pub more: bool,
    /// How many keys follow the last item, at `revision`.
    pub remaining: u64,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Written; created when `kv.mod_revision == kv.create_revision`.
    Put,
    /// Deleted.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// The key after the change. For a deletion: the key, no value, `create_revision` 0, and the
    /// deletion's revision as `mod_revision`.
    pub kv: KeyValue,
    /// The key before the change; `None` for a creation, and where that revision is compacted.
    pub prev: Option<KeyValue>,
}

impl Event {
    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        self.kv.mod_revision
    }

    /// Whether the key did not exist before.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.mod_revision == self.kv.create_revision
    }
}

/// What a watch yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// All events below the prefix of one or more whole revisions, in order; never empty.
    Events(Vec<Event>),
    /// Every event up to this revision has been yielded. Comes on request and after idle seconds.
    Progress(Revision),
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The key to delete does not exist.
    #[error("key not found")]
    NotFound,
    /// The precondition does not hold; `current` is what is there instead.
    #[error("precondition failed: {}", describe(current))]
    Conflict { current: Option<KeyValue> },
    /// The revision asked for is no longer there.
    #[error("revision has been compacted; the oldest available is {compacted}")]
    Compacted { compacted: Revision },
    /// The revision asked for is not there yet.
    #[error("revision is in the future; the current one is {current}")]
    FutureRevision { current: Revision },
    /// Key and value exceed the engine's limit. Both in bytes.
    #[error("key and value take {size} bytes, more than the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    /// No engine stores such a key.
    #[error("invalid key: {reason}")]
    InvalidKey { reason: &'static str },
    /// What is on disk is not what was written. The engine refuses to guess.
    #[error("stored data is corrupt: {what}")]
    Corrupt { what: String },
    /// Another process has the store's directory open.
    #[error("{path} is in use by another process")]
    InUse { path: String },
    /// The engine cannot answer now. Whether a write happened is unknown.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// The engine was closed.
    #[error("storage is closed")]
    Closed,
}

fn describe(current: &Option<KeyValue>) -> String {
    match current {
        Some(kv) => format!("the key is at revision {}", kv.mod_revision),
        None => "the key does not exist".to_owned(),
    }
}

/// Refuses keys that not every engine can store.
pub(crate) fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::InvalidKey { reason: "it is empty" });
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(Error::InvalidKey { reason: "it is longer than 4096 bytes" });
    }
    if key.contains('\0') {
        return Err(Error::InvalidKey { reason: "it contains a NUL" });
    }
    Ok(())
}

/// Refuses writes that not every engine can store.
pub(crate) fn check_write(key: &str, value: &Bytes) -> Result<(), Error> {
    check_key(key)?;
    let size = key.len() + value.len();
    if size > MAX_REQUEST_BYTES {
        return Err(Error::TooLarge { size, limit: MAX_REQUEST_BYTES });
    }
    Ok(())
}
