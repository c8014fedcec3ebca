//! The table: every revision's row in redb, up to the revision that was last checkpointed.

use std::{
    fs::{self, OpenOptions},
    ops::RangeInclusive,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use redb::{Builder, Database, ReadOnlyTable, ReadableDatabase, ReadableTableMetadata, TableDefinition};

use super::{
    frame::{Record, decode_row, encode_row},
    segment::{io_error, sync_dir},
};
use crate::{Error, FIRST_REVISION, Revision};

const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;

/// What the table knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The store's own random number, mixed into the log's checksums.
    pub salt: u64,
    /// The size of the log's segments.
    pub segment_bytes: u64,
    /// All revisions up to this one are in the table.
    pub applied: Revision,
    pub compacted: Revision,
    /// How many rows there are.
    pub rows: u64,
}

/// The table. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Rows(Arc<Database>);

fn failed(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Corrupted(what) => Error::Corrupt { what },
        error => Error::Unavailable(format!("table: {error}")),
    }
}

fn open_file(path: &Path, cache_bytes: usize) -> Result<Database, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| io_error("open", path, &e))?;
    match Builder::new().set_cache_size(cache_bytes).create_file(file) {
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            Err(Error::InUse { path: path.display().to_string() })
        }
        Err(redb::DatabaseError::Storage(redb::StorageError::Io(e)))
            if e.kind() == std::io::ErrorKind::InvalidData =>
        {
            Err(Error::Corrupt { what: format!("{}: {e}", path.display()) })
        }
        result => result.map_err(failed),
    }
}

impl Rows {
    /// Opens the table at `path`.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Rows, Error> {
        Ok(Rows(Arc::new(open_file(path, cache_bytes)?)))
    }

    /// Makes an empty table at `path`: there is a whole one afterwards, or none.
    pub fn create(path: &Path, salt: u64, segment_bytes: u64) -> Result<(), Error> {
        let fresh = path.with_extension("tmp");
        match fs::remove_file(&fresh) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_error("remove", &fresh, &e)),
            _ => {}
        }
        let db = open_file(&fresh, 1 << 20)?;
        let txn = db.begin_write().map_err(failed)?;
        {
            let mut meta = txn.open_table(META).map_err(failed)?;
            let values = [
                ("format", FORMAT),
                ("salt", salt),
                ("segment_bytes", segment_bytes),
                ("applied", FIRST_REVISION),
                ("compacted", 0),
                ("rows", 0),
            ];
            for (name, value) in values {
                meta.insert(name, value).map_err(failed)?;
            }
            txn.open_table(ROWS).map_err(failed)?;
        }
        txn.commit().map_err(failed)?;
        drop(db);
        fs::rename(&fresh, path).map_err(|e| io_error("rename", &fresh, &e))?;
        path.parent().map_or(Ok(()), sync_dir)
    }

    pub fn meta(&self) -> Result<Meta, Error> {
        let txn = self.0.begin_read().map_err(failed)?;
        let meta = txn.open_table(META).map_err(failed)?;
        let value = |name: &str| match meta.get(name) {
            Ok(Some(value)) => Ok(value.value()),
            Ok(None) => Err(Error::Corrupt { what: format!("the table has no {name}") }),
            Err(e) => Err(failed(e)),
        };
        let format = value("format")?;
        if format != FORMAT {
            return Err(Error::Corrupt {
                what: format!("the table has format {format}; this is format {FORMAT}"),
            });
        }
        Ok(Meta {
            salt: value("salt")?,
            segment_bytes: value("segment_bytes")?,
            applied: value("applied")?,
            compacted: value("compacted")?,
            rows: value("rows")?,
        })
    }

    /// Adds records, in order; the last one's revision becomes `applied`. Durable when it returns.
    pub fn append<'a>(&self, records: impl Iterator<Item = Record<'a>>) -> Result<(), Error> {
        self.change(|rows, meta| {
            let mut row = Vec::new();
            let mut applied = None;
            for record in records {
                encode_row(&mut row, &record);
                rows.insert(record.revision, row.as_slice())?;
                applied = Some(record.revision);
            }
            if let Some(applied) = applied {
                meta.insert("applied", applied)?;
            }
            Ok(())
        })
    }

    /// Removes rows and notes the compacted revision. Durable when it returns.
    pub fn remove(&self, revisions: &[Revision], compacted: Revision) -> Result<(), Error> {
        self.change(|rows, meta| {
            for revision in revisions {
                rows.remove(revision)?;
            }
            meta.insert("compacted", compacted)?;
            Ok(())
        })
    }

    fn change(
        &self,
        edit: impl FnOnce(
            &mut redb::Table<'_, u64, &'static [u8]>,
            &mut redb::Table<'_, &'static str, u64>,
        ) -> Result<(), redb::StorageError>,
    ) -> Result<(), Error> {
        let mut txn = self.0.begin_write().map_err(failed)?;
        // So that opening after a crash does not walk the whole file.
        txn.set_quick_repair(true);
        {
            let mut rows = txn.open_table(ROWS).map_err(failed)?;
            let mut meta = txn.open_table(META).map_err(failed)?;
            edit(&mut rows, &mut meta).map_err(failed)?;
            let count = rows.len().map_err(failed)?;
            meta.insert("rows", count).map_err(failed)?;
        }
        txn.commit().map_err(failed)
    }

    /// A snapshot of the rows as they are now.
    pub fn reader(&self) -> Result<Reader, Error> {
        let txn = self.0.begin_read().map_err(failed)?;
        Ok(Reader(txn.open_table(ROWS).map_err(failed)?))
    }
}

/// A snapshot of the table.
pub(crate) struct Reader(ReadOnlyTable<u64, &'static [u8]>);

impl Reader {
    /// What `read` makes of the row of `revision`, if there is one.
    pub fn get<T>(&self, revision: Revision, read: impl FnOnce(Record<'_>) -> T) -> Result<Option<T>, Error> {
        match self.0.get(revision).map_err(failed)? {
            Some(row) => Ok(Some(read(decode_row(row.value(), revision)?))),
            None => Ok(None),
        }
    }

    /// Calls `each` with every row of `revisions`, in order, until it answers `false`.
    pub fn scan(
        &self,
        revisions: RangeInclusive<Revision>,
        mut each: impl FnMut(Record<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        for row in self.0.range(revisions).map_err(failed)? {
            let (revision, row) = row.map_err(failed)?;
            if !each(decode_row(row.value(), revision.value())?)? {
                break;
            }
        }
        Ok(())
    }
}
