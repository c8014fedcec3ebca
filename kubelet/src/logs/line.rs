//! One line of a log in CRI format: `<RFC 3339 time> <stream> <tags> <text>`.

use jiff::Timestamp;
use std::borrow::Cow;

/// A parsed line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// The time as written.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// The rest of the text is in the next line.
    pub partial: bool,
    /// The text, without newline.
    body: &'a [u8],
}

impl Line<'_> {
    /// The text as the container wrote it.
    pub fn text(&self) -> Cow<'_, [u8]> {
        if self.partial {
            return Cow::Borrowed(self.body);
        }
        let mut text = self.body.to_vec();
        text.push(b'\n');
        Cow::Owned(text)
    }

    /// When it was written.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

/// A line that is not in CRI format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a line of a CRI log")]
pub(super) struct BadLine;

/// Parses a line, with or without its newline.
pub(super) fn parse(raw: &[u8]) -> Result<Line<'_>, BadLine> {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    let mut parts = raw.splitn(4, |b| *b == b' ');
    let mut word = || parts.next().and_then(|w| std::str::from_utf8(w).ok()).ok_or(BadLine);
    let (time, stream, tags) = (word()?, word()?, word()?);
    if !matches!(stream, "stdout" | "stderr") || !time.contains('T') {
        return Err(BadLine);
    }
    let body = parts.next().unwrap_or_default();
    let partial = tags.split(':').next() == Some("P");
    Ok(Line { time, stream, partial, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let l = parse(b"2016-10-06T00:17:09.669794202Z stdout P a b\n").unwrap();
        assert_eq!((l.stream, l.partial, &*l.text()), ("stdout", true, b"a b".as_slice()));
        let l = parse(b"2016-10-06T00:17:09.669794202Z stderr F ").unwrap();
        assert_eq!((l.stream, l.partial, &*l.text()), ("stderr", false, b"\n".as_slice()));
        for bad in ["", "x", "2016-10-06T00:17:09Z stdout", "2016-10-06T00:17:09Z stdin F x", "a stdout F x"]
        {
            assert_eq!(parse(bad.as_bytes()), Err(BadLine), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(raw in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(line) = parse(&raw) {
                let _ = (line.timestamp(), line.text());
            }
        }
    }
}
