//! Log rotation: a log that grew too large is renamed, and the runtime opens a new one.

use crate::cri::{CriError, Runtime};
use k8s_cri::v1 as cri;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often sizes are looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// Why a log was not rotated.
#[derive(Debug, thiserror::Error)]
enum RotateError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the runtime did not reopen the log: {0}")]
    Reopen(CriError),
}

/// Rotates the logs of all running containers until cancelled.
pub(crate) async fn run(runtime: Runtime, max_size: u64, max_files: usize, stop: CancellationToken) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let containers = match runtime.containers(Default::default()).await {
            Ok(c) => c,
            Err(e) => {
                tracing::debug!("log rotation: {e}");
                continue;
            }
        };
        let running = cri::ContainerState::ContainerRunning as i32;
        for c in containers.into_iter().filter(|c| c.state == running) {
            let path = match runtime.container_status(&c.id).await {
                Ok(Some(s)) if !s.log_path.is_empty() => PathBuf::from(s.log_path),
                _ => continue,
            };
            let large = std::fs::metadata(&path).is_ok_and(|m| m.len() >= max_size);
            if large && let Err(e) = rotate_one(&runtime, &c.id, &path, max_files).await {
                tracing::warn!(path = %path.display(), "log rotation: {e}");
            }
        }
    }
}

async fn rotate_one(runtime: &Runtime, id: &str, path: &Path, max_files: usize) -> Result<(), RotateError> {
    prune(path, max_files)?;
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S%.6f").to_string();
    let rotated = PathBuf::from(format!("{}.{stamp}", path.display()));
    std::fs::rename(path, &rotated)?;
    let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
    if let Err(e) = runtime.runtime().reopen_container_log(request).await {
        // The runtime still writes to the old file: give it its name back.
        std::fs::rename(&rotated, path)?;
        return Err(RotateError::Reopen(e.into()));
    }
    Ok(())
}

/// Removes the oldest rotated files so that `max_files` remain, counting the current one and the one to come.
fn prune(path: &Path, max_files: usize) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut old: Vec<PathBuf> = std::fs::read_dir(dir)?
        .filter_map(Result::ok)
        .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
        .map(|e| e.path())
        .collect();
    old.sort();
    let surplus = (old.len() + 2).saturating_sub(max_files);
    old.iter().take(surplus).try_for_each(std::fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for n in ["0.log", "0.log.1", "0.log.2", "0.log.3", "1.log"] {
            std::fs::write(dir.path().join(n), "").unwrap();
        }
        prune(&path, 3).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["0.log", "0.log.3", "1.log"]);
    }
}
