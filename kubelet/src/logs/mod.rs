//! Container logs in CRI format: reading, following, rotation, and termination messages.

mod follow;
mod line;
mod reader;
mod rotate;

pub(crate) use reader::{Options, stream};
pub(crate) use rotate::run as rotate;

use crate::cri::keys;
use k8s_cri::v1 as cri;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Most bytes of a termination message.
const MAX_MESSAGE: u64 = 4096;
/// Most bytes and lines of a message taken from the log.
const MAX_FROM_LOG: u64 = 2048;
const MAX_LINES_FROM_LOG: usize = 80;

/// The message that a container left when it ended: from its termination message file, or for
/// `FallbackToLogsOnError` from the end of its log, or what the runtime says.
pub(crate) async fn termination_message(s: &cri::ContainerStatus) -> String {
    let file = s.annotations.get(keys::MESSAGE_FILE).cloned().unwrap_or_default();
    let fall_back = s.annotations.get(keys::MESSAGE_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    let log = s.log_path.clone();
    let failed = s.exit_code != 0;
    let read = tokio::task::spawn_blocking(move || {
        let text = head(Path::new(&file)).unwrap_or_default();
        if text.is_empty() && fall_back && failed {
            tail_of_log(Path::new(&log)).unwrap_or_default()
        } else {
            text
        }
    });
    match read.await {
        Ok(text) if !text.is_empty() => text,
        _ => s.message.clone(),
    }
}

fn head(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_MESSAGE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a log, without their CRI prefixes.
fn tail_of_log(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    // Prefixes make the raw text longer than the message.
    file.seek(SeekFrom::Start(size.saturating_sub(MAX_FROM_LOG * 8)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let lines: Vec<_> = bytes.split_inclusive(|b| *b == b'\n').filter_map(|l| line::parse(l).ok()).collect();
    let from = lines.len().saturating_sub(MAX_LINES_FROM_LOG);
    let text: Vec<u8> = lines[from..].iter().flat_map(|l| l.text().into_owned()).collect();
    let keep = text.len().saturating_sub(usize::try_from(MAX_FROM_LOG).unwrap_or(usize::MAX));
    Ok(String::from_utf8_lossy(&text[keep..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m");
        let log = dir.path().join("0.log");
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n")
            .unwrap();
        let mut status = cri::ContainerStatus {
            exit_code: 1,
            log_path: log.to_str().unwrap().into(),
            message: "from the runtime".into(),
            annotations: [(keys::MESSAGE_FILE.to_owned(), file.to_str().unwrap().to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(termination_message(&status).await, "from the runtime");
        status.annotations.insert(keys::MESSAGE_POLICY.into(), "FallbackToLogsOnError".into());
        assert_eq!(termination_message(&status).await, "one\ntwo\n");
        std::fs::write(&file, "mine").unwrap();
        assert_eq!(termination_message(&status).await, "mine");
    }
}
