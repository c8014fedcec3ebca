//! News: from shims to the runtime, and from the runtime to those who read GetContainerEvents.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{ContainerEventResponse, ContainerEventType};

use super::Inner;
use super::store::Sandbox;
use crate::cri::status;
use crate::fsutil;
use crate::shim::proto::{Event, Request, Response};
use crate::spec::ExitRecord;

/// Pause before a shim that broke its connection is tried again, and how often.
const RETRY: Duration = Duration::from_millis(50);
const RETRIES: u32 = 20;

/// Exit code of a container of which nobody can tell how it ended.
pub const UNKNOWN_EXIT: i32 = 255;

impl Inner {
    /// Tells those who listen of a change of `id` (a container, or the sandbox itself).
    pub fn tell(&self, sandbox_id: &str, id: &str, kind: ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let sandbox = self.store.sandbox(sandbox_id).ok();
        let containers = self.store.containers_of(sandbox_id);
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: fsutil::now_nanos(),
            pod_sandbox_status: sandbox.map(|s| status::sandbox(&s.record.lock())),
            containers_statuses: containers.iter().map(|c| status::container(c)).collect(),
        };
        // Fails only when nobody listens (any more).
        let _ = self.events.send(event);
    }

    fn note(self: &Arc<Self>, event: Event) {
        match event {
            Event::Running { container, start } => {
                if let Ok(c) = self.store.container(&container) {
                    c.phase.send_if_modified(|p| {
                        let news = p.start.is_none();
                        p.start.get_or_insert(start);
                        news
                    });
                }
            }
            Event::Exited { container, exit } => {
                if let Ok(c) = self.store.container(&container) {
                    self.note_exit(&c, exit);
                }
            }
            Event::Synced { .. } => {}
        }
    }

    /// Marks a sandbox whose shim is gone: its namespaces and its containers' parent went with it.
    fn lose_sandbox(self: &Arc<Self>, sandbox: &Sandbox) {
        let record = {
            let mut r = sandbox.record.lock();
            if !std::mem::replace(&mut r.ready, false) {
                return;
            }
            r.clone()
        };
        tracing::error!(sandbox = record.id, "the shim of a pod is gone");
        if let Err(e) = self.save_sandbox(&record) {
            tracing::error!(sandbox = record.id, error = %e, "cannot record it");
        }
        for container in self.store.containers_of(&record.id) {
            if !container.phase.borrow().running() {
                continue;
            }
            let (id, group) = {
                let c = container.record.lock();
                (c.id.clone(), c.group.clone())
            };
            if let Err(e) = self.cgroups.kill(&group) {
                tracing::error!(container = id, error = %e, "cannot kill a container without a shim");
            }
            let exit = ExitRecord {
                code: UNKNOWN_EXIT,
                finished_at: fsutil::now_nanos(),
                oom_killed: false,
                reason: Some("Unknown".into()),
                message: Some("the pod's shim died".into()),
            };
            self.record_exit(&container, exit);
        }
        self.tell(&record.id, &record.id, ContainerEventType::ContainerStoppedEvent);
    }
}

/// Follows a shim's events until its sandbox is stopped; a shim that is gone without having been told takes its
/// sandbox with it.
pub(crate) async fn watch_shim(inner: Arc<Inner>, sandbox: Arc<Sandbox>) {
    let id = sandbox.record.lock().id.clone();
    let shim = inner.shim(&id);
    let mut failures = 0;
    while sandbox.record.lock().ready {
        match shim.converse(&Request::Watch).await {
            Ok(conversation) => {
                while let Ok(Some((Response::Event(event), _))) = conversation.next().await {
                    failures = 0;
                    inner.note(event);
                }
            }
            // Nobody listens on the socket: the shim has ended. It never comes back.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => failures = RETRIES,
            Err(e) => tracing::debug!(sandbox = id, error = %e, "cannot reach a shim"),
        }
        if !sandbox.record.lock().ready {
            return;
        }
        failures += 1;
        if failures > RETRIES {
            return inner.lose_sandbox(&sandbox);
        }
        tokio::time::sleep(RETRY).await;
    }
}
