//! All pods of the node: one worker each, fed by the API's watch and the runtime's events.

use crate::cri::keys;
use crate::pod::admit;
use crate::retry::Retry;
use crate::shared::Shared;
use crate::worker::{Command, Handle, PodView, Worker};
use futures::StreamExt;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use parking_lot::RwLock;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often everything in the runtime is compared, in case an event was lost.
const RELIST: Duration = Duration::from_secs(60);
/// The same while the runtime gives no events.
const RELIST_WITHOUT_EVENTS: Duration = Duration::from_secs(1);
/// Grace period of containers whose pod is unknown and which name none.
const ORPHAN_GRACE: u64 = 30;

/// The pods of this node as the streaming server sees them.
#[derive(Clone, Default)]
pub(crate) struct Pods {
    handles: Arc<RwLock<HashMap<String, Handle>>>,
}

impl Pods {
    /// All pods.
    pub fn all(&self) -> Vec<PodView> {
        self.handles.read().values().map(|h| h.view.borrow().clone()).collect()
    }

    /// A pod by name, and by UID if one is given; with a receiver of its changes.
    pub fn find(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Option<tokio::sync::watch::Receiver<PodView>> {
        let handles = self.handles.read();
        let fits = |h: &&Handle| {
            let view = h.view.borrow();
            let m = &view.pod.metadata;
            m.namespace.as_deref() == Some(namespace)
                && m.name.as_deref() == Some(name)
                && uid.is_none_or(|u| m.uid.as_deref() == Some(u))
        };
        // Of two pods with one name, the one that is not being deleted.
        let mut found: Vec<&Handle> = handles.values().filter(fits).collect();
        found.sort_by_key(|h| h.view.borrow().pod.metadata.deletion_timestamp.is_some());
        found.first().map(|h| h.view.clone())
    }

    fn tell(&self, uid: &str, command: Command) -> bool {
        self.handles.read().get(uid).is_some_and(|h| h.commands.send(command).is_ok())
    }

    fn look_at_all(&self) {
        for h in self.handles.read().values() {
            // A worker that is gone needs not look.
            let _ = h.commands.send(Command::Look);
        }
    }
}

/// Runs all workers until cancelled. Cancelling leaves every container running.
pub(crate) async fn run(shared: Arc<Shared>, pods: Pods, stop: CancellationToken) {
    let mut manager =
        Manager { shared: shared.clone(), pods: pods.clone(), workers: JoinSet::new(), listed: false };
    let (lost_tx, mut orphans) = mpsc::unbounded_channel();
    let watching_runtime = tokio::spawn(watch_runtime(shared.clone(), pods.clone(), lost_tx, stop.clone()));
    let api: Api<Pod> = Api::all(shared.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", shared.config.node_name));
    let mut events = std::pin::pin!(watcher(api, config).backoff(Retry::default()));
    let mut init = BTreeSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            event = events.next() => match event {
                Some(Ok(event)) => manager.heed(event, &mut init, &stop).await,
                Some(Err(e)) => tracing::warn!("watching pods: {e}"),
                None => break,
            },
            Some(done) = manager.workers.join_next() => manager.worker_ended(done),
            Some(uids) = orphans.recv() => if manager.listed { manager.remove_orphans(uids) },
        }
    }
    while manager.workers.join_next().await.is_some() {}
    if let Err(e) = watching_runtime.await {
        tracing::error!("watching the runtime panicked: {e}");
    }
}

struct Manager {
    shared: Arc<Shared>,
    pods: Pods,
    workers: JoinSet<String>,
    /// The API listed all pods once, so that an unknown one is gone and not merely unseen.
    listed: bool,
}

impl Manager {
    async fn heed(&mut self, event: Event<Pod>, init: &mut BTreeSet<String>, stop: &CancellationToken) {
        match event {
            Event::Init => init.clear(),
            Event::InitApply(pod) => {
                init.extend(pod.metadata.uid.clone());
                self.apply(pod, stop);
            }
            Event::Apply(pod) => self.apply(pod, stop),
            Event::Delete(pod) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                // Its last state carries the grace period.
                self.pods.tell(&uid, Command::Pod(Arc::new(pod)));
                self.pods.tell(&uid, Command::Gone);
            }
            Event::InitDone => {
                let gone: Vec<String> =
                    self.pods.handles.read().keys().filter(|u| !init.contains(*u)).cloned().collect();
                for uid in gone {
                    self.pods.tell(&uid, Command::Gone);
                }
                self.listed = true;
                match uids_in_runtime(&self.shared).await {
                    Ok(uids) => self.remove_orphans(uids),
                    // The next comparison with the runtime comes to the same.
                    Err(e) => tracing::debug!("listing sandboxes: {e}"),
                }
            }
        }
    }

    fn apply(&mut self, pod: Pod, stop: &CancellationToken) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let pod = Arc::new(pod);
        if self.pods.tell(&uid, Command::Pod(pod.clone())) {
            return;
        }
        let running = |view: &PodView| !matches!(view.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let others = || self.pods.all().into_iter().filter(running).map(|view| view.pod).collect();
        let refusal = admit::refusal(&pod, others);
        let (worker, handle) = Worker::new(self.shared.clone(), pod, refusal);
        self.pods.handles.write().insert(uid.clone(), handle);
        let stop = stop.clone();
        self.workers.spawn(async move {
            worker.run(stop).await;
            uid
        });
    }

    fn worker_ended(&mut self, done: Result<String, tokio::task::JoinError>) {
        match done {
            Ok(uid) => {
                self.pods.handles.write().remove(&uid);
            }
            Err(e) => tracing::error!("a pod's worker panicked: {e}"),
        }
    }

    /// Ends and removes what runs for pods that the API does not have.
    fn remove_orphans(&self, uids: BTreeSet<String>) {
        let handles = self.pods.handles.read();
        for uid in uids.into_iter().filter(|u| !handles.contains_key(u)) {
            let shared = self.shared.clone();
            tokio::spawn(async move {
                tracing::info!(uid, "removing a pod that is gone from the API");
                if let Err(e) = remove_orphan(&shared, &uid).await {
                    tracing::warn!(uid, "removing a pod that is gone from the API: {e}");
                }
            });
        }
    }
}

/// UIDs of all pods that the runtime or the pod directories know.
async fn uids_in_runtime(shared: &Shared) -> Result<BTreeSet<String>, crate::cri::CriError> {
    let sandboxes = shared.runtime.sandboxes(HashMap::new()).await?;
    let mut uids: BTreeSet<String> =
        sandboxes.into_iter().filter_map(|mut s| s.labels.remove(keys::POD_UID)).collect();
    for root in [&shared.roots.disk, &shared.roots.memory] {
        let entries = std::fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
        uids.extend(entries.filter_map(|e| e.file_name().into_string().ok()));
    }
    Ok(uids)
}

async fn remove_orphan(shared: &Shared, uid: &str) -> Result<(), String> {
    let runtime = &shared.runtime;
    let selector = HashMap::from([(keys::POD_UID.to_owned(), uid.to_owned())]);
    let text = |e: crate::cri::CriError| e.to_string();
    let containers = runtime.containers(selector.clone()).await.map_err(text)?;
    let stops = containers.iter().map(|c| {
        let grace =
            c.annotations.get(keys::GRACE_PERIOD).and_then(|g| g.parse().ok()).unwrap_or(ORPHAN_GRACE);
        runtime.stop_container(&c.id, Duration::from_secs(grace))
    });
    futures::future::try_join_all(stops).await.map_err(text)?;
    for s in runtime.sandboxes(selector).await.map_err(text)? {
        runtime.stop_sandbox(&s.id).await.map_err(text)?;
        runtime.remove_sandbox(&s.id).await.map_err(text)?;
        let m = s.metadata.unwrap_or_default();
        let logs = shared.config.log_dir.join(format!("{}_{}_{}", m.namespace, m.name, m.uid));
        match tokio::fs::remove_dir_all(&logs).await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.to_string()),
            _ => {}
        }
    }
    let (roots, uid) = (shared.roots.clone(), uid.to_owned());
    let work = tokio::task::spawn_blocking(move || roots.remove_pod(&uid));
    work.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// Wakes workers on events of the runtime, and compares everything now and then.
async fn watch_runtime(
    shared: Arc<Shared>,
    pods: Pods,
    orphans: mpsc::UnboundedSender<BTreeSet<String>>,
    stop: CancellationToken,
) {
    let mut retry = Retry::default();
    let mut relist = Relist::default();
    loop {
        let stream = shared.runtime.runtime().get_container_events(cri::GetEventsRequest {}).await;
        let mut interval = RELIST_WITHOUT_EVENTS;
        let wait = retry.next().unwrap_or(RELIST_WITHOUT_EVENTS);
        let mut until = tokio::time::Instant::now() + wait;
        let mut stream = match stream {
            Ok(s) => {
                retry = Retry::default();
                interval = RELIST;
                // What happened before the stream began is seen by looking.
                pods.look_at_all();
                Some(s.into_inner())
            }
            Err(e) => {
                tracing::debug!("the runtime gives no events: {}", e.message());
                None
            }
        };
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = async {
                match &mut stream {
                    Some(s) => s.message().await,
                    None => {
                        tokio::time::sleep_until(until).await;
                        Ok(None)
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                event = next => match event {
                    Ok(Some(event)) => dispatch(&pods, &event),
                    Ok(None) => break,
                    Err(e) => {
                        tracing::debug!("the runtime's events ended: {}", e.message());
                        break;
                    }
                },
                _ = tick.tick() => {
                    until = until.max(tokio::time::Instant::now());
                    relist.run(&shared, &pods).await;
                    if let Ok(uids) = uids_in_runtime(&shared).await
                        && orphans.send(uids).is_err()
                    {
                        return;
                    }
                }
            }
        }
    }
}

fn dispatch(pods: &Pods, event: &cri::ContainerEventResponse) {
    let metadata = event.pod_sandbox_status.as_ref().and_then(|s| s.metadata.as_ref());
    match metadata {
        Some(m) => {
            pods.tell(&m.uid, Command::Look);
        }
        None => pods.look_at_all(),
    }
}

/// The states seen last time, by pod.
#[derive(Default)]
struct Relist {
    seen: HashMap<String, BTreeSet<(String, i32)>>,
}

impl Relist {
    /// Wakes the workers of those pods whose containers or sandboxes changed.
    async fn run(&mut self, shared: &Shared, pods: &Pods) {
        let all = tokio::try_join!(
            shared.runtime.sandboxes(HashMap::new()),
            shared.runtime.containers(HashMap::new())
        );
        let (sandboxes, containers) = match all {
            Ok(all) => all,
            Err(e) => {
                tracing::debug!("comparing with the runtime: {e}");
                return;
            }
        };
        let mut now: HashMap<String, BTreeSet<(String, i32)>> = HashMap::new();
        let states = sandboxes
            .into_iter()
            .map(|s| (s.labels, s.id, s.state))
            .chain(containers.into_iter().map(|c| (c.labels, c.id, c.state)));
        for (mut labels, id, state) in states {
            if let Some(uid) = labels.remove(keys::POD_UID) {
                now.entry(uid).or_default().insert((id, state));
            }
        }
        let before = std::mem::take(&mut self.seen);
        for uid in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
            if before.get(uid) != now.get(uid) {
                pods.tell(uid, Command::Look);
            }
        }
        self.seen = now;
    }
}
