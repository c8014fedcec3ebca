//! Container logs in the format the kubelet reads (CRI logging: `<RFC 3339 with nanoseconds> <stream> <F|P>
//! <line>`; P marks a part of a line too long for one record).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// The longest piece of a line in one record, bytes.
pub const MAX_LINE: usize = 16 * 1024;

/// Cuts a byte stream into records. Pure.
#[derive(Debug, Default)]
pub struct LineSplitter {
    pending: Vec<u8>,
}

impl LineSplitter {
    /// Takes bytes and hands out records: the text without its newline, and whether it ends a line.
    pub fn push(&mut self, mut bytes: &[u8], mut record: impl FnMut(&[u8], bool)) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let newline = bytes.iter().take(room + 1).position(|b| *b == b'\n');
            let (take, skip) = match newline {
                Some(at) => (at, 1),
                None => (bytes.len().min(room), 0),
            };
            let ends = skip == 1;
            if ends && self.pending.is_empty() {
                record(&bytes[..take], true);
            } else {
                self.pending.extend_from_slice(&bytes[..take]);
                if ends || (self.pending.len() == MAX_LINE && bytes.len() > take) {
                    record(&self.pending, ends);
                    self.pending.clear();
                }
            }
            bytes = &bytes[take + skip..];
        }
    }

    /// Hands out what is left when the stream ends: a part, since no newline ended it, so that readers add none.
    pub fn finish(&mut self, mut record: impl FnMut(&[u8], bool)) {
        if !self.pending.is_empty() {
            record(&self.pending, false);
            self.pending = Vec::new();
        }
    }
}

/// A container's log file.
#[derive(Debug)]
pub struct LogFile {
    path: Option<PathBuf>,
    file: Option<File>,
}

impl LogFile {
    /// Opens the file for appending; without a path records are dropped.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let mut log = Self { path, file: None };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file at the same path anew. The old one is kept when that fails.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            self.file = Some(OpenOptions::new().create(true).append(true).mode(0o640).open(path)?);
        }
        Ok(())
    }

    /// Appends records of `stream`, all with the time `now`, in one write.
    pub fn write(&mut self, stream: &str, now: &str, records: &[(Vec<u8>, bool)]) {
        let Some(file) = &mut self.file else { return };
        let size = records.iter().map(|(t, _)| t.len() + now.len() + stream.len() + 5).sum();
        let mut out = Vec::with_capacity(size);
        for (text, ends) in records {
            out.extend_from_slice(now.as_bytes());
            out.push(b' ');
            out.extend_from_slice(stream.as_bytes());
            out.extend_from_slice(if *ends { b" F " } else { b" P " });
            out.extend_from_slice(text);
            out.push(b'\n');
        }
        if let Err(e) = file.write_all(&out) {
            // The container must not stall because its log cannot be written.
            eprintln!("log {}: {e}", self.path.as_deref().unwrap_or("-".as_ref()).display());
        }
    }
}

/// The time now as logs have it: RFC 3339, UTC, nine digits.
pub fn timestamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = LineSplitter::default();
        let mut out = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |t, e| out.push((t.to_vec(), e)));
        }
        splitter.finish(|t, e| out.push((t.to_vec(), e)));
        out
    }

    #[test]
    fn lines_and_parts() {
        assert_eq!(
            records(&[b"a\nb", b"c\n\nd"]),
            [(b"a".to_vec(), true), (b"bc".to_vec(), true), (b"".to_vec(), true), (b"d".to_vec(), false)]
        );
        let full = vec![b'x'; MAX_LINE];
        let exact = [&full[..], b"\n"].concat();
        assert_eq!(records(&[&exact]), [(full.clone(), true)], "a line of the greatest length is whole");
        let longer = [&full[..], b"yz\n"].concat();
        assert_eq!(records(&[&longer]), [(full, false), (b"yz".to_vec(), true)]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_whatever_the_chunks(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a')], 0..200),
            pad in 0..3usize,
            cuts in proptest::collection::vec(0..1000usize, 0..6),
        ) {
            let mut text = text;
            text.extend(std::iter::repeat_n(b'q', pad * MAX_LINE));
            text.push(b'\n');
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c * 37 % (text.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.insert(0, 0);
            cuts.push(text.len());
            let chunks: Vec<_> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let out = records(&chunks);
            let mut back = Vec::new();
            for (t, ends) in &out {
                prop_assert!(t.len() <= MAX_LINE);
                back.extend_from_slice(t);
                if *ends { back.push(b'\n'); }
            }
            prop_assert_eq!(back, text);
        }
    }

    #[test]
    fn timestamps_have_nine_digits() {
        let t = timestamp();
        assert_eq!(t.len(), "2026-01-02T03:04:05.123456789Z".len(), "{t}");
    }
}
