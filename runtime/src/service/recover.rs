//! Finding again what runs, after this runtime or the machine was restarted.

use std::path::Path;
use std::sync::Arc;

use super::Inner;
use super::events::watch_shim;
use super::store::{
    Container, ContainerRecord, Phase, STATE, Sandbox, SandboxRecord, container_name, sandbox_name,
};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::shim::process::files;
use crate::shim::proto::{Event, Request, Response};

/// Names of the directories in `dir`.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(Error::path("list", dir))?;
    Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
}

/// Reads every record, asks every shim, and removes what belongs to nothing.
///
/// # Errors
/// What the file system answered.
pub(crate) async fn recover(inner: &Arc<Inner>) -> Result<()> {
    for name in names(&inner.settings.sandboxes())? {
        let dir = inner.sandbox_dir(&name);
        match fsutil::read_json::<SandboxRecord>(&dir.join(STATE)) {
            Ok(Some(record)) => {
                // A second sandbox of the same name cannot be: the name was taken when it was made.
                let _ = inner.store.reserve(&sandbox_name(&record.config), &record.id);
                inner.store.add_sandbox(Arc::new(Sandbox::new(record)));
            }
            other => {
                tracing::warn!(sandbox = name, ?other, "removing a sandbox without a record");
                let _ = nix::mount::umount2(&dir.join("shm"), nix::mount::MntFlags::MNT_DETACH);
                let _ = fsutil::remove_tree(&dir);
            }
        }
    }
    for name in names(&inner.settings.containers())? {
        let dir = inner.container_dir(&name);
        let record = fsutil::read_json::<ContainerRecord>(&dir.join(STATE)).ok().flatten();
        let record = record.filter(|r| inner.store.sandbox(&r.sandbox_id).is_ok());
        let Some(record) = record else {
            tracing::warn!(container = name, "removing a container without a record or a sandbox");
            let _ = fsutil::remove_tree(&dir);
            continue;
        };
        let phase = Phase {
            start: fsutil::read_json(&dir.join(files::START)).unwrap_or_default(),
            exit: fsutil::read_json(&dir.join(files::EXIT)).unwrap_or_default(),
        };
        let _ = inner.store.reserve(&container_name(&record.config, &record.sandbox_id), &record.id);
        inner.store.add_container(Arc::new(Container::new(record, phase)));
    }
    for name in names(&inner.settings.layers())? {
        if inner.store.container(&name).is_err() {
            let _ = fsutil::remove_tree(&inner.settings.layers().join(&name));
        }
    }
    let sandboxes = inner.store.sandboxes();
    futures::future::join_all(sandboxes.iter().map(|s| recover_sandbox(inner, s))).await;
    inner.collect_layers();
    Ok(())
}

/// Asks a sandbox's shim what became of its containers. Without a shim the sandbox is not ready, and containers
/// that nobody saw end have ended in an unknown way.
async fn recover_sandbox(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>) {
    let id = sandbox.record.lock().id.clone();
    let mut alive = false;
    if let Ok(conversation) = inner.shim(&id).converse(&Request::Watch).await {
        while let Ok(Some((Response::Event(event), _))) = conversation.next().await {
            match event {
                Event::Synced { .. } => {
                    alive = true;
                    break;
                }
                Event::Running { container, start } => {
                    if let Ok(c) = inner.store.container(&container) {
                        c.phase.send_modify(|p| p.start = Some(start));
                    }
                }
                Event::Exited { container, exit } => {
                    if let Ok(c) = inner.store.container(&container) {
                        inner.note_exit(&c, exit);
                    }
                }
            }
        }
    }
    if alive {
        // Also for one that was being made or stopped when the runtime died: it is not ready, and may be stopped
        // (again).
        tokio::spawn(watch_shim(Arc::clone(inner), Arc::clone(sandbox)));
    } else {
        inner.lose_sandbox(sandbox);
    }
}
