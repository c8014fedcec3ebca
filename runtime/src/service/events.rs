//! News: from shims to the runtime, and from the runtime to those who read GetContainerEvents.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1::{ContainerEventResponse, ContainerEventType};

use super::Inner;
use super::shim_client::ShimClient;
use super::store::{Container, Sandbox};
use crate::cri::status;
use crate::fsutil;
use crate::shim::proto::{Event, Request, Response};
use crate::spec::ExitRecord;

/// Pause before a shim that broke its connection is tried again, and how often.
const RETRY: Duration = Duration::from_millis(50);
const RETRIES: u32 = 20;

/// Exit code of a container of which nobody can tell how it ended.
const UNKNOWN_EXIT: i32 = 255;

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

    async fn note(self: &Arc<Self>, shim: &ShimClient, event: Event) {
        match event {
            Event::Running { container, start } => match self.store.container(&container) {
                Ok(c) => {
                    c.phase.send_if_modified(|p| {
                        let news = p.start.is_none();
                        p.start.get_or_insert(start);
                        news
                    });
                }
                // Removed while it was being started, at the request of a runtime that is gone.
                Err(_) => {
                    tracing::warn!(container, "killing a container that nobody knows");
                    if let Err(e) = shim.call(&Request::KillAll { container }).await {
                        tracing::warn!(error = %e, "cannot kill it");
                    }
                }
            },
            Event::Exited { container, exit } => {
                if let Ok(c) = self.store.container(&container) {
                    self.note_exit(&c, exit);
                }
            }
            Event::Synced { .. } => {}
        }
    }

    /// Marks a sandbox whose shim is gone: its namespaces and its containers' parent went with it. Containers that
    /// nobody saw end have ended in an unknown way.
    pub(super) fn lose_sandbox(self: &Arc<Self>, sandbox: &Sandbox) {
        let (record, was_ready) = {
            let mut r = sandbox.record.lock();
            let was_ready = std::mem::replace(&mut r.ready, false);
            (r.clone(), was_ready)
        };
        if was_ready {
            tracing::error!(sandbox = record.id, "the shim of a pod is gone");
            if let Err(e) = self.save_sandbox(&record) {
                tracing::error!(sandbox = record.id, error = %e, "cannot record it");
            }
        }
        for container in self.running_of(&record.id) {
            let group = container.record.lock().group.clone();
            if let Err(e) = self.cgroups.kill(&group) {
                tracing::error!(container = container.id(), error = %e, "cannot kill a container without a shim");
            }
            let exit = ExitRecord {
                code: UNKNOWN_EXIT,
                finished_at: fsutil::now_nanos(),
                oom_killed: false,
                reason: Some("Unknown".into()),
                message: Some("the pod's shim is gone".into()),
            };
            self.record_exit(&container, exit);
        }
        if was_ready {
            self.tell(&record.id, &record.id, ContainerEventType::ContainerStoppedEvent);
        }
    }

    fn running_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let mut containers = self.store.containers_of(sandbox_id);
        containers.retain(|c| c.phase.borrow().running());
        containers
    }
}

/// Follows a shim's events until it has been told to end; one that is gone without having been told takes its
/// sandbox with it.
pub(crate) async fn watch_shim(inner: Arc<Inner>, sandbox: Arc<Sandbox>) {
    let id = sandbox.record.lock().id.clone();
    let shim = inner.shim(&id);
    let mut failures = 0;
    loop {
        match shim.converse(&Request::Watch).await {
            Ok(conversation) => {
                while let Ok(Some((Response::Event(event), _))) = conversation.next().await {
                    failures = 0;
                    inner.note(&shim, event).await;
                }
            }
            // Nobody listens on the socket: the shim has ended. It never comes back.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => failures = RETRIES,
            Err(e) => tracing::debug!(sandbox = id, error = %e, "cannot reach a shim"),
        }
        // While a sandbox is being stopped its containers' ends are still waited for.
        if !sandbox.record.lock().ready && inner.running_of(&id).is_empty() {
            return;
        }
        failures += 1;
        if failures > RETRIES {
            return inner.lose_sandbox(&sandbox);
        }
        tokio::time::sleep(RETRY).await;
    }
}
