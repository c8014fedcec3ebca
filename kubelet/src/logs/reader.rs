//! Streams a container's log.

use super::follow::Changes;
use super::line;
use bytes::Bytes;
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, watch};

/// Bytes to gather before they are sent on.
const CHUNK: usize = 32 << 10;

/// What to show of a log.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub follow: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// `stdout` or `stderr`; both if `None`.
    pub stream: Option<String>,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("failed to open the log: {0}")]
    Open(#[source] io::Error),
    #[error("failed to read the log: {0}")]
    Read(#[from] io::Error),
    /// The reader of the stream went away.
    #[error("the client is gone")]
    Closed,
}

/// Sends a log to `out`. Following ends when `running` turns false and everything is sent, or its sender is gone.
pub(crate) async fn stream(
    path: PathBuf,
    options: Options,
    mut running: watch::Receiver<bool>,
    out: mpsc::Sender<Bytes>,
) -> Result<(), ReadError> {
    let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
    // The watch comes before the first read, so that nothing between the two is missed.
    let mut changes = if options.follow { Some(Changes::of(&dir).map_err(ReadError::Open)?) } else { None };
    let mut tail = Tail::open(path, options).map_err(ReadError::Open)?;
    loop {
        let live = *running.borrow_and_update();
        tail = drain(tail, &out).await?;
        let Some(changes) = changes.as_mut() else { return Ok(()) };
        if tail.exhausted() {
            return Ok(());
        }
        if tail.rotated()? {
            // The new file is there, so nothing more comes to the old one: its last lines first.
            tail = drain(tail, &out).await?;
            tail.switch()?;
            continue;
        }
        if !live {
            return Ok(());
        }
        tokio::select! {
            changed = changes.wait() => changed?,
            ended = running.changed() => if ended.is_err() { return Ok(()) },
            () = out.closed() => return Err(ReadError::Closed),
        }
    }
}

/// Reads to the end of the file, in a thread that may block.
async fn drain(mut tail: Tail, out: &mpsc::Sender<Bytes>) -> Result<Tail, ReadError> {
    let out = out.clone();
    let work = tokio::task::spawn_blocking(move || {
        loop {
            let chunk = tail.next_chunk()?;
            if chunk.is_empty() {
                return Ok(tail);
            }
            out.blocking_send(chunk).map_err(|_| ReadError::Closed)?;
        }
    });
    match work.await {
        Ok(done) => done,
        Err(e) => Err(ReadError::Read(io::Error::other(e))),
    }
}

/// A position in a log.
struct Tail {
    path: PathBuf,
    file: BufReader<File>,
    inode: u64,
    options: Options,
    /// Bytes still allowed.
    left: u64,
    /// The beginning of a line whose end is not written yet.
    pending: Vec<u8>,
    /// The last line shown had no end: the next one continues it and gets no timestamp.
    continued: bool,
}

impl Tail {
    fn open(path: PathBuf, options: Options) -> io::Result<Tail> {
        let mut raw = File::open(&path)?;
        let start = match options.tail_lines {
            Some(n) => tail_start(&mut raw, n)?,
            None => 0,
        };
        raw.seek(SeekFrom::Start(start))?;
        let inode = raw.metadata()?.ino();
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        let file = BufReader::new(raw);
        Ok(Tail { path, file, inode, options, left, pending: Vec::new(), continued: false })
    }

    fn exhausted(&self) -> bool {
        self.left == 0
    }

    /// Whether the name belongs to another file by now.
    fn rotated(&self) -> io::Result<bool> {
        match std::fs::metadata(&self.path) {
            Ok(m) => Ok(m.ino() != self.inode),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Goes on with the file that has the name now.
    fn switch(&mut self) -> io::Result<()> {
        let raw = File::open(&self.path)?;
        self.inode = raw.metadata()?.ino();
        self.file = BufReader::new(raw);
        self.pending.clear();
        Ok(())
    }

    /// The next piece of output; empty at the end of the file.
    fn next_chunk(&mut self) -> Result<Bytes, ReadError> {
        let mut out = Vec::new();
        while out.len() < CHUNK && self.left > 0 {
            if self.file.read_until(b'\n', &mut self.pending)? == 0 || self.pending.last() != Some(&b'\n') {
                break;
            }
            let raw = std::mem::take(&mut self.pending);
            self.show(&raw, &mut out);
        }
        Ok(out.into())
    }

    fn show(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        // A line that the runtime did not write is none of the container's.
        let Ok(line) = line::parse(raw) else { return };
        if self.options.stream.as_deref().is_some_and(|s| s != line.stream) {
            return;
        }
        if let Some(since) = self.options.since
            && line.timestamp().is_some_and(|t| t < since)
        {
            return;
        }
        let mut text = Vec::new();
        if self.options.timestamps && !self.continued {
            text.extend_from_slice(line.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&line.text());
        self.continued = line.partial;
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(text.len());
        self.left -= take as u64;
        out.extend_from_slice(&text[..take]);
    }
}

/// Where the last `n` lines of a file begin.
fn tail_start(file: &mut File, n: u64) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let size = file.seek(SeekFrom::End(0))?;
    if n == 0 {
        return Ok(size);
    }
    let mut found = 0;
    let mut end = size;
    let mut block = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(begin))?;
        block.clear();
        file.by_ref().take(end - begin).read_to_end(&mut block)?;
        for (i, b) in block.iter().enumerate().rev() {
            let at = begin + i as u64;
            // The newline that ends the file ends its last line, it does not begin another one.
            if *b == b'\n' && at + 1 != size {
                found += 1;
                if found == n {
                    return Ok(at + 1);
                }
            }
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn log(n: usize) -> String {
        (0..n).map(|i| format!("2026-01-01T00:00:{:02}.5Z stdout F line {i}\n", i % 60)).collect()
    }

    async fn read(text: &str, options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, text).unwrap();
        let (tx, mut rx) = mpsc::channel(16);
        let (_live, running) = watch::channel(false);
        let task = tokio::spawn(stream(path, options, running, tx));
        let mut out = Vec::new();
        while let Some(b) = rx.recv().await {
            out.extend_from_slice(&b);
        }
        task.await.unwrap().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn options() {
        let o = Options::default;
        assert_eq!(read(&log(3), o()).await, "line 0\nline 1\nline 2\n");
        assert_eq!(read(&log(3), Options { tail_lines: Some(1), ..o() }).await, "line 2\n");
        assert_eq!(read(&log(3), Options { tail_lines: Some(9), ..o() }).await, "line 0\nline 1\nline 2\n");
        assert_eq!(read(&log(3), Options { tail_lines: Some(0), ..o() }).await, "");
        let since = "2026-01-01T00:00:01Z".parse().ok();
        assert_eq!(read(&log(3), Options { since, ..o() }).await, "line 1\nline 2\n");
        assert_eq!(read(&log(3), Options { limit_bytes: Some(9), ..o() }).await, "line 0\nli");
        let stamped = read(&log(1), Options { timestamps: true, ..o() }).await;
        assert_eq!(stamped, "2026-01-01T00:00:00.5Z line 0\n");
        let partial = "2026-01-01T00:00:00Z stdout P a\n2026-01-01T00:00:00Z stdout F b\ntorn";
        assert_eq!(read(partial, Options { timestamps: true, ..o() }).await, "2026-01-01T00:00:00Z ab\n");
        let mixed = "2026-01-01T00:00:00Z stdout F a\n2026-01-01T00:00:00Z stderr F b\n";
        assert_eq!(read(mixed, Options { stream: Some("stderr".into()), ..o() }).await, "b\n");
        assert_eq!(read(&log(5000), o()).await.lines().count(), 5000);
        assert_eq!(read(&log(5000), Options { tail_lines: Some(4000), ..o() }).await.lines().count(), 4000);
    }

    #[tokio::test]
    async fn follows_appends_and_rotation_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "2026-01-01T00:00:00Z stdout F one\n").unwrap();
        let (tx, mut rx) = mpsc::channel(16);
        let (live, running) = watch::channel(true);
        let options = Options { follow: true, ..Options::default() };
        let task = tokio::spawn(stream(path.clone(), options, running, tx));
        assert_eq!(rx.recv().await.unwrap(), "one\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        write!(file, "2026-01-01T00:00:00Z stdout F tw").unwrap();
        file.flush().unwrap();
        writeln!(file, "o").unwrap();
        assert_eq!(rx.recv().await.unwrap(), "two\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        writeln!(file, "2026-01-01T00:00:00Z stdout F late").unwrap();
        std::fs::write(dir.path().join("new"), "2026-01-01T00:00:00Z stdout F three\n").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(rx.recv().await.unwrap(), "late\n");
        assert_eq!(rx.recv().await.unwrap(), "three\n");
        live.send(false).unwrap();
        assert!(rx.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
