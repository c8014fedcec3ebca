//! The one runner: wires caches to a queue, hands keys to a controller, carries out its plans.

pub mod events;
pub mod exec;
pub mod leader;
pub mod queue;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use exec::{Executor, Failure, Outcome};
pub use queue::Queue;

use crate::object::Key;
use crate::plan::Plan;

/// How long a key waits for the caches to show its writes.
const VISIBLE_WITHIN: Duration = Duration::from_secs(10);

/// How many times as long as a look took that led to nothing but a status a key rests before the next one: so that an
/// object with very many dependents, of which something always changes, takes no more than its share of the processor.
/// Changes meanwhile are looked at together.
const REST: u32 = 4;
/// A key never rests for longer.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// After a shorter look than this a key does not rest.
const QUICK: Duration = Duration::from_millis(1);

/// A look could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The server could not be asked.
    #[error("reading from the API server: {0}")]
    Read(#[from] kube::Error),
    /// What is needed is not there yet.
    #[error("{0}")]
    NotReady(String),
}

/// One controller: where its keys come from, what it looks at, and what it makes of that.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// All that a decision rests on.
    type View: Send + Sync;

    /// The name under which it is configured and logged.
    fn name(&self) -> &'static str;

    /// The name under which it records events.
    fn component(&self) -> &'static str {
        self.name()
    }

    /// Registers with the caches what makes it look at which key.
    fn wire(self: Arc<Self>, queue: &Arc<Queue>);

    /// Looks at `key`. `prior` is what failed of the plan before. `None`: there is nothing to decide.
    async fn view(&self, key: &Key, prior: Option<&Failure>) -> Result<Option<Self::View>, ViewError>;

    /// Decides. PURE: the same view and time give the same plan.
    fn reconcile(&self, view: &Self::View, now: Timestamp) -> Plan;

    /// What it does besides, until cancelled.
    async fn background(self: Arc<Self>, _stop: CancellationToken) {}

    /// How many keys are worked on at once.
    fn workers(&self) -> usize {
        8
    }
}

/// Ends the work on a key also when the worker panics.
struct Busy<'a> {
    queue: &'a Queue,
    key: &'a Key,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.queue.done(self.key);
    }
}

/// What tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A controller with its queue and executor.
pub struct Runner<C> {
    controller: Arc<C>,
    queue: Arc<Queue>,
    executor: Executor,
    clock: Clock,
    /// What failed last, per key that is being retried.
    failures: Mutex<HashMap<Key, Failure>>,
}

impl<C: Controller> Runner<C> {
    /// Nothing is worked on before [`Runner::run`]. The controller is wired to `queue` already.
    pub fn new(controller: Arc<C>, executor: Executor, queue: Arc<Queue>, clock: Clock) -> Self {
        Self { controller, queue, executor, clock, failures: Mutex::default() }
    }

    /// Works until cancelled; ends the work under way first.
    pub async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let slots = Arc::new(Semaphore::new(this.controller.workers().max(1)));
        let mut tasks = JoinSet::new();
        let background = tokio::spawn(this.controller.clone().background(stop.clone()));
        loop {
            let key = tokio::select! {
                () = stop.cancelled() => break,
                key = this.queue.next() => key,
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(controller = this.controller.name(), %error, "worker failed");
                    }
                    continue;
                }
            };
            // The semaphore is never closed.
            let Ok(slot) = slots.clone().acquire_owned().await else { break };
            let (this, stop) = (this.clone(), stop.clone());
            tasks.spawn(async move {
                let busy = Busy { queue: &this.queue, key: &key };
                let (outcome, took) = this.timed(&key).await;
                // Waiting for the caches is no work: the slot is free, only the key is still held.
                drop(slot);
                if let Some(outcome) = outcome
                    && !outcome.visible(VISIBLE_WITHIN).await
                {
                    tracing::warn!(controller = this.controller.name(), %key, "cache lags behind own writes");
                }
                if took > QUICK {
                    let rest = took.saturating_mul(REST).min(LONGEST_REST);
                    let _ = stop.run_until_cancelled(tokio::time::sleep(rest)).await;
                }
                drop(busy);
            });
        }
        while tasks.join_next().await.is_some() {}
        if let Err(error) = background.await {
            tracing::error!(controller = this.controller.name(), %error, "background task failed");
        }
    }

    /// One look, one decision, one execution.
    pub async fn work(&self, key: &Key) -> Option<Outcome> {
        self.timed(key).await.0
    }

    /// As [`Runner::work`], with how long it took to see that there is nothing to do but perhaps to tell the status, without
    /// what was waited for.
    async fn timed(&self, key: &Key) -> (Option<Outcome>, Duration) {
        let prior = self.failures.lock().remove(key);
        let (view, looked) = spent(self.controller.view(key, prior.as_ref())).await;
        let view = match view {
            Ok(Some(view)) => view,
            Ok(None) => {
                self.queue.forget(key);
                return (None, looked);
            }
            Err(error) => {
                let delay = self.queue.retry(key.clone());
                tracing::debug!(controller = self.controller.name(), %key, %error, ?delay, "no view");
                return (None, looked);
            }
        };
        let begun = Instant::now();
        let plan = self.controller.reconcile(&view, (self.clock)());
        drop(view);
        // Who has something to do goes on with it at once.
        let idle = plan.actions.is_empty();
        let took = if idle { looked + begun.elapsed() } else { Duration::ZERO };
        let outcome = self.executor.run(&plan).await;
        match outcome.failures.iter().find(|f| !f.is_conflict()).or_else(|| outcome.failures.first()) {
            Some(failure) => {
                let delay = self.queue.retry(key.clone());
                if failure.is_conflict() {
                    tracing::debug!(controller = self.controller.name(), %key, ?failure, "conflict");
                } else {
                    let name = self.controller.name();
                    tracing::warn!(
                        controller = name, %key, verb = failure.verb, kind = failure.plural,
                        code = failure.code, error = failure.message, ?delay, "write failed"
                    );
                    self.failures.lock().insert(key.clone(), failure.clone());
                }
            }
            None => self.queue.forget(key),
        }
        if let Some(after) = plan.requeue_after {
            self.queue.add_after(key.clone(), after);
        }
        (Some(outcome), took)
    }
}

/// How long a future works, without the times when it waits.
async fn spent<F: Future>(work: F) -> (F::Output, Duration) {
    let mut work = std::pin::pin!(work);
    let mut sum = Duration::ZERO;
    let done = std::future::poll_fn(|context| {
        let begun = Instant::now();
        let polled = work.as_mut().poll(context);
        sum += begun.elapsed();
        polled
    });
    let output = done.await;
    (output, sum)
}
