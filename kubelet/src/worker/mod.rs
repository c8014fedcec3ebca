//! The driver of one pod: feeds the state machine and carries out what it decides.
//!
//! One task per pod. It never waits for an operation: actions run as tasks of their own, and their ends, like
//! events of the runtime, the API, the probes and the clock, lead to one more decision.

mod act;
mod containers;
mod publish;
mod storage;

use crate::cri::{CriError, Observer};
use crate::events::Kind;
use crate::pod::admit::Refusal;
use crate::pod::gate;
use crate::pod::{Action, Decision, Input, Memory, Observed, Op, Outcome, State, containers, decide};
use crate::probes::{self, Probes};
use crate::shared::{PodObjects, Shared};
use act::Hands;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use publish::Publisher;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use storage::Storage;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// The pod changed in the API.
    Pod(Arc<Pod>),
    /// The pod is gone from the API.
    Gone,
    /// Something changed in the runtime.
    Look,
}

/// What the rest of the kubelet sees of a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodView {
    pub pod: Arc<Pod>,
    pub observed: Arc<Observed>,
    pub status: Arc<PodStatus>,
}

/// A finished look at the runtime, with the observer to look again.
type Look = BoxFuture<'static, (Observer, Result<Observed, CriError>)>;

/// Wait before the next look after one that failed.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

pub(crate) struct Worker {
    shared: Arc<Shared>,
    hands: Arc<Hands>,
    pod: Arc<Pod>,
    gone: bool,
    memory: Memory,
    observed: Arc<Observed>,
    /// Whether the runtime was looked at since this worker started.
    looked: bool,
    observer: Option<Observer>,
    look: Option<Look>,
    look_again: bool,
    /// Operations that ended, to be noted once a look that began after their end is through.
    ended: Vec<(Action, Outcome)>,
    /// Those whose look is under way.
    ended_in_look: Vec<(Action, Outcome)>,
    ops: JoinSet<(Action, Outcome)>,
    probes: Probes,
    storage: Storage,
    publisher: Publisher,
    view: watch::Sender<PodView>,
    commands: mpsc::UnboundedReceiver<Command>,
    results: mpsc::UnboundedReceiver<probes::Result>,
    objects_changed: mpsc::UnboundedReceiver<()>,
    wake_at: Option<Timestamp>,
    /// Cancelled when the pod is to end: hooks of containers that start are not waited for any more.
    ending: CancellationToken,
    /// Cancelled when a container that is to end need not wait for other nodes any more.
    drained: CancellationToken,
}

/// The ends of a worker that its manager holds.
pub(crate) struct Handle {
    pub commands: mpsc::UnboundedSender<Command>,
    pub view: watch::Receiver<PodView>,
}

impl Worker {
    /// A worker for a pod, which the node takes or refuses, and the manager's ends of it.
    pub fn new(shared: Arc<Shared>, pod: Arc<Pod>, refusal: Option<Refusal>) -> (Worker, Handle) {
        let mut memory = Memory::new(&pod);
        if let Some(Refusal { reason, message }) = refusal {
            memory.rejected = Some((reason.to_owned(), format!("Pod was rejected: {message}")));
            shared.recorder.pod(&pod, None, Kind::Warning, reason, message);
        }
        let (commands_tx, commands) = mpsc::unbounded_channel();
        let (results_tx, results) = mpsc::unbounded_channel();
        let (changed_tx, objects_changed) = mpsc::unbounded_channel();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let observed = Arc::new(Observed::default());
        let status = Arc::new(pod.status.clone().unwrap_or_default());
        let view = PodView { pod: pod.clone(), observed: observed.clone(), status };
        let (view_tx, view_rx) = watch::channel(view);
        let objects = Arc::new(PodObjects::new(shared.clone(), &pod, changed_tx));
        let storage = Storage::new(shared.clone(), objects.clone());
        let hands = Arc::new(Hands { shared: shared.clone(), objects, storage: storage.files() });
        let worker = Worker {
            probes: Probes::new(shared.runtime.clone(), shared.recorder.clone(), results_tx),
            observer: Some(Observer::new(shared.runtime.clone(), &uid)),
            publisher: Publisher::new(shared.client.clone(), &pod),
            memory,
            hands,
            storage,
            shared,
            pod,
            gone: false,
            observed,
            looked: false,
            look: None,
            look_again: true,
            ended: Vec::new(),
            ended_in_look: Vec::new(),
            ops: JoinSet::new(),
            view: view_tx,
            commands,
            results,
            objects_changed,
            wake_at: None,
            ending: CancellationToken::new(),
            drained: CancellationToken::new(),
        };
        (worker, Handle { commands: commands_tx, view: view_rx })
    }

    /// Runs until nothing of the pod is left, or until cancelled, which leaves the pod running.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.start_look();
            let woken = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                command = self.commands.recv() => match command {
                    Some(c) => { self.heed(c); true }
                    None => return,
                },
                Some(done) = self.ops.join_next() => { self.op_ended(done); true }
                (observer, seen) = async { match &mut self.look { Some(l) => l.await, None => std::future::pending().await } } => {
                    self.look = None;
                    self.observer = Some(observer);
                    self.looked_at(seen);
                    true
                }
                Some(result) = self.results.recv() => { self.probed(result); true }
                Some(()) = self.objects_changed.recv() => {
                    while self.objects_changed.try_recv().is_ok() {}
                    self.memory.objects_changed();
                    self.storage.refresh(&self.pod, &self.ips());
                    true
                }
                () = self.publisher.progress() => true,
                () = self.storage.progress(&self.pod) => false,
                () = until(self.wake_at) => true,
            };
            // What else happened meanwhile goes into the same decision.
            while let Ok(c) = self.commands.try_recv() {
                self.heed(c);
            }
            while let Ok(r) = self.results.try_recv() {
                self.probed(r);
            }
            if woken && self.looked && self.step() {
                self.clean_up().await;
                return;
            }
        }
    }

    fn heed(&mut self, command: Command) {
        match command {
            Command::Look => self.look_again = true,
            Command::Gone => {
                self.gone = true;
                self.drained.cancel();
            }
            Command::Pod(pod) => {
                let old = std::mem::replace(&mut self.pod, pod);
                publish::adopt_foreign(&mut self.memory.status, self.pod.status.as_ref());
                self.publisher.seen(&self.pod);
                if gate::is_drained(&self.pod) {
                    self.drained.cancel();
                }
                let meta = |p: &Pod| (p.metadata.labels.clone(), p.metadata.annotations.clone());
                if meta(&old) != meta(&self.pod) {
                    self.storage.refresh(&self.pod, &self.ips());
                }
            }
        }
    }

    fn ips(&self) -> Vec<String> {
        let host = self.pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        if host {
            return self.shared.facts.host_ips.clone();
        }
        self.observed.sandbox().map(|s| s.ips.clone()).unwrap_or_default()
    }

    fn probed(&mut self, r: probes::Result) {
        let entry = self.memory.probes.entry(r.id).or_default();
        match r.kind {
            probes::Kind::Startup => entry.startup = Some(r.ok),
            probes::Kind::Readiness => entry.readiness = Some(r.ok),
            probes::Kind::Liveness => entry.liveness = Some(r.ok),
        }
    }

    fn op_ended(&mut self, done: Result<(Action, Outcome), tokio::task::JoinError>) {
        let (action, outcome) = match done {
            Ok(done) => done,
            Err(e) => {
                // The operation's name is lost with its task. A panic is a defect; the pod must not hang on it.
                tracing::error!(pod = self.pod.metadata.name, "an operation panicked: {e}");
                self.memory.in_flight.clear();
                self.look_again = true;
                return;
            }
        };
        match action.op() {
            // These change nothing that a look would show.
            Some(Op::Volumes | Op::Image(_) | Op::TearDown | Op::Delete) => {
                self.memory.finish(&action, &outcome, Timestamp::now());
            }
            _ => {
                self.ended.push((action, outcome));
                self.look_again = true;
            }
        }
    }

    fn start_look(&mut self) {
        if !self.look_again || self.look.is_some() {
            return;
        }
        let Some(mut observer) = self.observer.take() else { return };
        self.look_again = false;
        self.ended_in_look.append(&mut self.ended);
        self.look = Some(
            async move {
                let seen = observer.look().await;
                (observer, seen)
            }
            .boxed(),
        );
    }

    fn looked_at(&mut self, seen: Result<Observed, CriError>) {
        match seen {
            Ok(observed) => {
                self.looked = true;
                self.observed = Arc::new(observed);
                let now = Timestamp::now();
                for (action, outcome) in self.ended_in_look.drain(..) {
                    self.memory.finish(&action, &outcome, now);
                }
                let live: BTreeSet<&str> = self.observed.containers.iter().map(|c| c.id.as_str()).collect();
                self.memory.prune(&live);
            }
            Err(e) => {
                tracing::debug!(pod = self.pod.metadata.name, "looking at the runtime: {e}");
                self.ended.append(&mut self.ended_in_look);
                self.look_again = true;
                let Some(mut observer) = self.observer.take() else { return };
                self.look_again = false;
                self.ended_in_look.append(&mut self.ended);
                self.look = Some(
                    async move {
                        tokio::time::sleep(LOOK_AGAIN).await;
                        let seen = observer.look().await;
                        (observer, seen)
                    }
                    .boxed(),
                );
            }
        }
    }

    /// Decides and acts. Says whether the pod is over and done with.
    fn step(&mut self) -> bool {
        let now = Timestamp::now();
        let ends = self.gone || self.pod.metadata.deletion_timestamp.is_some();
        let Decision { actions, status, wake_at, finished } = decide(Input {
            pod: &self.pod,
            gone: self.gone,
            observed: &self.observed,
            memory: &self.memory,
            node: &self.shared.facts,
            now,
        });
        let over = ends || matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        if over && self.memory.ending_since.is_none() {
            self.memory.ending_since = Some(now);
            self.ending.cancel();
        }
        self.wake_at = wake_at;
        self.memory.status = status;
        if !self.gone {
            self.publisher.publish(&self.memory.status);
        }
        for action in actions {
            if matches!(action, Action::DeletePod) && !self.publisher.is_idle() {
                // The end of the patch leads to a new decision.
                continue;
            }
            self.memory.begin(&action, now);
            self.carry_out(action);
        }
        self.sync_probes(over);
        let view = PodView {
            pod: self.pod.clone(),
            observed: self.observed.clone(),
            status: Arc::new(self.memory.status.clone()),
        };
        self.view.send_replace(view);
        finished
    }

    fn carry_out(&mut self, action: Action) {
        if let Action::Event { container, warning, reason, message, .. } = action {
            let kind = if warning { Kind::Warning } else { Kind::Normal };
            self.shared.recorder.pod(&self.pod, container.as_deref(), kind, reason, message);
            return;
        }
        let hands = self.hands.clone();
        let job = act::Job {
            pod: self.pod.clone(),
            ips: self.ips(),
            observed: self.observed.clone(),
            images: self.memory.images.clone(),
            ending: self.ending.clone(),
            drained: self.drained.clone(),
        };
        self.ops.spawn(async move {
            let outcome = hands.carry_out(&action, &job).await;
            (action, outcome)
        });
    }

    fn sync_probes(&mut self, over: bool) {
        let specs = containers(&self.pod);
        let statuses =
            self.memory.status.init_container_statuses.iter().chain(&self.memory.status.container_statuses);
        let started: BTreeSet<&str> =
            statuses.flatten().filter(|s| s.started == Some(true)).map(|s| s.name.as_str()).collect();
        let running: Vec<probes::Running<'_>> = self
            .observed
            .containers
            .iter()
            .filter_map(|c| {
                let State::Running(started_at) = c.state else { return None };
                let spec = specs.iter().find(|s| s.name() == c.name)?;
                // A hook that still runs comes before the probes.
                let starting = self.memory.in_flight.contains(&Op::Start(c.name.clone()));
                if starting || !crate::spec_cri::is_long_running(spec.role) {
                    return None;
                }
                Some(probes::Running {
                    id: &c.id,
                    container: &spec.container,
                    started_at,
                    started: started.contains(c.name.as_str()),
                    ending: over || self.memory.stopping.contains_key(&c.id),
                })
            })
            .collect();
        let ips = self.ips();
        self.probes.sync(&self.pod, ips.first().map(String::as_str), &running);
    }

    /// Removes what is left of the pod on the node.
    async fn clean_up(mut self) {
        self.probes.clear();
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let logs = crate::spec_cri::log_dir(&self.shared.config.log_dir, &self.pod);
        let roots = self.shared.roots.clone();
        let done = tokio::task::spawn_blocking(move || {
            roots.remove_pod(&uid)?;
            match std::fs::remove_dir_all(&logs) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            }
        });
        match done.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!(pod = self.pod.metadata.name, "removing the pod's directories: {e}"),
            Err(e) => tracing::error!("removing a pod's directories panicked: {e}"),
        }
    }
}

/// Waits until a moment of the wall clock.
async fn until(at: Option<Timestamp>) {
    let Some(at) = at else { return std::future::pending().await };
    let left = at.duration_since(Timestamp::now());
    tokio::time::sleep(Duration::try_from(left).unwrap_or(Duration::ZERO)).await;
}
