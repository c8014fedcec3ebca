//! The driver: takes in what is seen (`seen`), runs cycles (`cycles`), carries out their choices (`carry`), and reports.

mod carry;
mod cycles;
mod held;
mod seen;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use kube::Client;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::held::{HeldPods, Stage};
use crate::bind::Bound;
use crate::config::Config;
use crate::cycle::Engine;
use crate::events::Recorder;
use crate::extender::Extenders;
use crate::framework::Framework;
use crate::pod::{Classes, PodInfo};
use crate::queue::Queue;
use crate::report::Reports;
use crate::snapshot::Cache;
use crate::watch::{self, LISTS, Seen};

/// How many bindings may be under way; more would only queue up at the API server.
const MAX_BINDINGS: usize = 64;
/// What was seen is taken in at most so often before the next cycle.
const BATCH: usize = 256;

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the scheduler has no profile")]
    NoProfile,
    #[error("two profiles are named {0}")]
    DuplicateProfile(Box<str>),
    #[error("{0}")]
    Extender(String),
    #[error("the watches ended")]
    WatchEnded,
}

/// The scheduler.
pub struct Scheduler {
    client: Client,
    profiles: Vec<Framework>,
    extenders: Arc<Extenders>,
    recorder: Recorder,
    classes: Classes,
    cache: Cache,
    queue: Queue,
    engine: Engine,
    bindings: JoinSet<Bound>,
    reports: Reports,
    /// Victims being sent away, and what else is written aside. At most one waits for each pod, so there is no limit.
    evictions: JoinSet<()>,
    /// Reserved pods that a permit plugin holds back, or whose volumes are being bound.
    held: HeldPods,
    /// Seen during a list that is under way, to find what is gone when it ends.
    listed_pods: Option<HashSet<Arc<str>>>,
    listed_nodes: Option<HashSet<String>>,
    /// Lists that have been read; with pods and nodes.
    lists: usize,
    pods_listed: bool,
    nodes_listed: bool,
}

impl Scheduler {
    /// A scheduler that acts through `client`. Made inside a runtime.
    ///
    /// # Errors
    /// If there is no profile, or two have the same name, or an extender cannot be reached as it is configured.
    pub fn new(config: Config, client: Client) -> Result<Self, Error> {
        let mut names = HashSet::new();
        for profile in &config.profiles {
            if !names.insert(&profile.scheduler_name) {
                return Err(Error::DuplicateProfile(profile.scheduler_name.clone()));
            }
        }
        if names.is_empty() {
            return Err(Error::NoProfile);
        }
        let recorder = Recorder::new(client.clone(), &config.instance);
        Ok(Scheduler {
            reports: Reports::new(client.clone(), recorder.clone()),
            recorder,
            extenders: Arc::new(Extenders::new(config.extenders, client.clone()).map_err(Error::Extender)?),
            client,
            profiles: config.profiles,
            classes: Classes::default(),
            cache: Cache::default(),
            queue: Queue::new(config.backoff),
            engine: Engine::default(),
            bindings: JoinSet::new(),
            evictions: JoinSet::new(),
            held: HeldPods::default(),
            listed_pods: None,
            listed_nodes: None,
            lists: 0,
            pods_listed: false,
            nodes_listed: false,
        })
    }

    /// Schedules until it is cancelled. Bindings under way are carried out first.
    ///
    /// Cycles follow each other without a pause while pods wait, on a thread of their own: what carries their choices out,
    /// and the API server if it is in this process, goes on beside them.
    ///
    /// # Errors
    /// If the watches end.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        // Whoever gives up this future means the thread, too.
        let cancel = cancel.child_token();
        let _ends = cancel.clone().drop_guard();
        let runtime = Handle::current();
        match tokio::task::spawn_blocking(move || runtime.block_on(self.drive(cancel))).await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and this future with it.
                Err(_) => Ok(()),
            },
        }
    }

    async fn drive(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let (to, mut seen) = channel(4096);
        let _watches = watch::start(&self.client, &to);
        drop(to);
        while !cancel.is_cancelled() {
            for _ in 0..BATCH {
                match seen.try_recv() {
                    Ok(event) => self.on_seen(event),
                    Err(_) => break,
                }
            }
            while let Some(done) = self.bindings.try_join_next() {
                self.on_bound(done);
            }
            while self.evictions.try_join_next().is_some() {}
            let release = self.next_wake();
            if release.is_some_and(|at| at <= Instant::now()) {
                self.on_time();
            }
            let synced = self.lists == LISTS + 2;
            if synced && self.queue.has_next() && self.bindings.len() < MAX_BINDINGS {
                self.cycle().await;
                continue;
            }
            self.wait(&mut seen, release, &cancel).await?;
        }
        while self.bindings.join_next().await.is_some() {}
        while self.evictions.join_next().await.is_some() {}
        Ok(())
    }

    /// Waits until there is something to do.
    async fn wait(
        &mut self,
        seen: &mut Receiver<Seen>,
        release: Option<Instant>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        tokio::select! {
            () = cancel.cancelled() => {}
            event = seen.recv() => match event {
                Some(event) => self.on_seen(event),
                None => return Err(Error::WatchEnded),
            },
            Some(done) = self.bindings.join_next() => self.on_bound(done),
            () = self.reports.join_next() => {}
            Some(_) = self.evictions.join_next() => {}
            () = until(release) => {}
        }
        Ok(())
    }

    fn next_wake(&self) -> Option<Instant> {
        [self.queue.next_release(), self.held.next_deadline()].into_iter().flatten().min()
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.queue.release(now);
        while let Some(held) = self.held.expired(now) {
            if matches!(held.stage, Stage::Effect(_)) {
                self.when_ready(held);
                continue;
            }
            self.give_back(&held.pod, &held.node);
            self.queue.failed(&held.pod.key, now);
        }
    }

    fn profile(&self, pod: &PodInfo) -> Option<usize> {
        self.profiles.iter().position(|p| p.scheduler_name == pod.scheduler_name)
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
