//! The log's files and the one way they are written.
//!
//! A segment is a file of fixed size whose blocks are all allocated and written (with zeros, or with
//! what an earlier use left) before it is used, so that a write to it changes no metadata. It is then
//! written with `O_DIRECT | O_DSYNC`: one system call that returns when the device has the data, without the
//! file system's journal. Where a file system refuses `O_DIRECT`, `O_DSYNC` alone does the same, slower.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::frame::{Place, encode_frame};
use crate::{Error, Event};

/// The unit of `O_DIRECT` writes: the largest logical block size in use.
const BLOCK: usize = 4096;
/// A write buffer larger than this is given back after use.
const KEEP_BUFFER: usize = 256 * 1024;
const SUFFIX: &str = ".wal";

/// A segment ready to be written from its beginning.
pub(crate) struct Segment {
    pub id: u64,
    pub path: PathBuf,
    file: File,
    size: u64,
}

/// `error` as the engine's error for doing `what` with `path`.
pub(crate) fn io_error(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::Unavailable(format!("cannot {what} {}: {error}", path.display()))
}

/// Makes renames, creations and removals in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| io_error("sync", dir, &e))
}

fn path_of(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}{SUFFIX}"))
}

impl Segment {
    /// Makes segment `id` in `dir`, from the file `reuse` if one of the right size is at hand.
    pub fn create(dir: &Path, id: u64, size: u64, reuse: Option<PathBuf>) -> Result<Segment, Error> {
        let path = path_of(dir, id);
        match reuse.filter(|old| fs::metadata(old).is_ok_and(|m| m.len() == size)) {
            Some(old) => fs::rename(&old, &path).map_err(|e| io_error("rename", &old, &e))?,
            None => {
                let fresh = path.with_extension("tmp");
                zero_file(&fresh, size).map_err(|e| io_error("preallocate", &fresh, &e))?;
                fs::rename(&fresh, &path).map_err(|e| io_error("rename", &fresh, &e))?;
            }
        }
        sync_dir(dir)?;
        let file = open_synchronous(&path).map_err(|e| io_error("open", &path, &e))?;
        Ok(Segment { id, path, file, size })
    }
}

fn zero_file(path: &Path, size: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let zeros = vec![0; 256 * 1024];
    let mut left = size as usize;
    while left > 0 {
        let n = left.min(zeros.len());
        file.write_all(&zeros[..n])?;
        left -= n;
    }
    file.sync_all()
}

/// Opens for durable writes and proves on the first block that they work.
fn open_synchronous(path: &Path) -> io::Result<File> {
    let open = |flags| OpenOptions::new().write(true).custom_flags(flags).open(path);
    let block = Aligned::new(BLOCK);
    let direct = open(libc::O_DIRECT | libc::O_DSYNC).and_then(|file| {
        file.write_all_at(block.as_slice(), 0)?;
        Ok(file)
    });
    match direct {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            let file = open(libc::O_DSYNC)?;
            file.write_all_at(block.as_slice(), 0)?;
            Ok(file)
        }
        result => result,
    }
}

/// The segments in `dir` by ascending id; removes what an interrupted creation left.
pub(crate) fn find(dir: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let failed = |e: io::Error| io_error("read", dir, &e);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if let Some(id) = name.strip_suffix(SUFFIX).and_then(|id| u64::from_str_radix(id, 16).ok()) {
            found.push((id, path));
        } else if name.ends_with(".tmp") {
            fs::remove_file(&path).map_err(|e| io_error("remove", &path, &e))?;
        }
    }
    found.sort();
    Ok(found)
}

/// All bytes of a segment.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut f| f.read_to_end(&mut bytes)).map_err(|e| io_error("read", path, &e))?;
    Ok(bytes)
}

/// Bytes in memory whose address is a multiple of [`BLOCK`], as `O_DIRECT` wants.
struct Aligned {
    raw: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let raw = vec![0; len + BLOCK];
        // The vector is never grown, so that its bytes stay where they are.
        let start = raw.as_ptr().align_offset(BLOCK);
        Aligned { raw, start, len }
    }

    fn as_slice(&self) -> &[u8] {
        &self.raw[self.start..self.start + self.len]
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..self.start + self.len]
    }
}

/// The log's writing end.
pub(crate) struct Log {
    salt: u64,
    segment: Segment,
    /// Where the next frame goes.
    position: u64,
    frame: Vec<u8>,
    /// Begins with the block that `position` is in.
    buffer: Aligned,
}

/// What came of [`Log::append`].
pub(crate) enum Append {
    /// The frame is durable.
    Done,
    /// There is no room for it; the log is as before. Go on with [`Log::rotate`].
    Full,
}

impl Log {
    pub fn new(salt: u64, segment: Segment) -> Log {
        Log { salt, segment, position: 0, frame: Vec::new(), buffer: Aligned::new(16 * BLOCK) }
    }

    /// Writes `events` as one frame.
    ///
    /// # Errors
    /// After an error it is unknown what is on disk, and the log must not be written to again.
    pub fn append(&mut self, events: &[Event]) -> io::Result<Append> {
        let place = Place { salt: self.salt, segment: self.segment.id, offset: self.position };
        encode_frame(&mut self.frame, place, events);
        if self.position + self.frame.len() as u64 > self.segment.size {
            return Ok(Append::Full);
        }
        // The block that is partly filled is written again, its old bytes unchanged.
        let used = self.position as usize % BLOCK;
        let end = used + self.frame.len();
        let total = end.next_multiple_of(BLOCK);
        if self.buffer.len < total {
            let mut larger = Aligned::new(total);
            larger.as_mut_slice()[..used].copy_from_slice(&self.buffer.as_slice()[..used]);
            self.buffer = larger;
        }
        let buffer = self.buffer.as_mut_slice();
        buffer[used..end].copy_from_slice(&self.frame);
        buffer[end..total].fill(0);
        self.segment.file.write_all_at(&buffer[..total], self.position - used as u64)?;
        self.position += self.frame.len() as u64;
        let last_block = end - end % BLOCK;
        buffer.copy_within(last_block..total, 0);
        if self.buffer.len > KEEP_BUFFER {
            let mut smaller = Aligned::new(16 * BLOCK);
            smaller.as_mut_slice()[..BLOCK].copy_from_slice(&self.buffer.as_slice()[..BLOCK]);
            self.buffer = smaller;
            self.frame = Vec::new();
        }
        Ok(Append::Done)
    }

    /// Goes on in `next`; answers the path of the segment that is now complete.
    pub fn rotate(&mut self, next: Segment) -> PathBuf {
        self.position = 0;
        std::mem::replace(&mut self.segment, next).path
    }
}

#[cfg(test)]
impl Segment {
    /// A segment whose file refuses every write.
    pub fn unwritable(dir: &Path, size: u64) -> Segment {
        let path = path_of(dir, 0);
        zero_file(&path, size).expect("a file");
        Segment { id: 0, file: File::open(&path).expect("the file"), path, size }
    }
}
