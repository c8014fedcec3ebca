//! What one kubelet process remembers about a pod between decisions: work in flight, failures and their
//! back-off, probe results. All of it may be lost; a new process starts from an empty memory.

use super::after;
use super::model::Action;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::{BTreeMap, BTreeSet};

/// Events remembered as recorded.
const MAX_SAID: usize = 512;

/// The name of an operation while it is in flight.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Volume set-up.
    Volumes,
    /// Running a sandbox.
    Sandbox,
    /// Stopping a sandbox, by id.
    StopSandbox(String),
    /// Removing a sandbox, by id.
    RemoveSandbox(String),
    /// Pulling the image of a container, by container name.
    Image(String),
    /// Starting a container, by name.
    Start(String),
    /// Stopping an instance, by id.
    Stop(String),
    /// Removing an instance, by id.
    Remove(String),
    /// Volume tear-down.
    TearDown,
    /// Deleting the API object.
    Delete,
}

/// Why an operation failed, and when it may be tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// CamelCase reason for a container's waiting state.
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// When it failed.
    pub at: Timestamp,
    /// Seconds until the next try.
    pub delay: i64,
}

impl Failure {
    /// When the operation may be tried again.
    pub fn retry_at(&self) -> Timestamp {
        after(self.at, self.delay)
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Well.
    Done,
    /// The image is there, under this reference.
    Pulled(String),
    /// Badly: reason and message.
    Failed(String, String),
}

/// Results of a container's probes, by instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults {
    /// Startup probe: passed or failed for good.
    pub startup: Option<bool>,
    /// Readiness probe.
    pub readiness: Option<bool>,
    /// Liveness probe.
    pub liveness: Option<bool>,
}

/// What one process remembers about a pod.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The last computed status; the API's when the process is new.
    pub status: PodStatus,
    /// Operations under way.
    pub in_flight: BTreeSet<Op>,
    /// Operations that failed last time.
    pub failures: BTreeMap<Op, Failure>,
    /// Whether volumes are set up.
    pub volumes_ready: bool,
    /// Whether volumes were released.
    pub torn_down: bool,
    /// Images made ready: container name to attempt and reference.
    pub images: BTreeMap<String, (u32, String)>,
    /// Deadline of each stop under way, by instance.
    pub stopping: BTreeMap<String, Timestamp>,
    /// Sandboxes that were stopped.
    pub stopped_sandboxes: BTreeSet<String>,
    /// Results of probes, by instance.
    pub probes: BTreeMap<String, ProbeResults>,
    /// When this process first saw that the pod must end.
    pub ending_since: Option<Timestamp>,
    /// Whether the API object was deleted by this process.
    pub delete_sent: bool,
    /// Events already recorded.
    pub said: BTreeSet<String>,
    /// The pod cannot run here: reason and message.
    pub rejected: Option<(String, String)>,
}

impl Memory {
    /// A memory that knows only what the API knows.
    pub fn new(pod: &Pod) -> Memory {
        Memory { status: pod.status.clone().unwrap_or_default(), ..Memory::default() }
    }

    /// Whether `op` may not be issued now: in flight, or waiting for its next try.
    pub fn blocked(&self, op: &Op, now: Timestamp) -> bool {
        self.in_flight.contains(op) || self.failures.get(op).is_some_and(|f| now < f.retry_at())
    }

    /// Notes that an action is being carried out.
    pub fn begin(&mut self, action: &Action, now: Timestamp) {
        if let Action::Event { key, .. } = action {
            self.said.insert(key.clone());
        }
        if let Action::StopContainer { id, grace, .. } = action {
            self.stopping.insert(id.clone(), after(now, *grace));
        }
        if let Some(op) = action.op() {
            self.in_flight.insert(op);
        }
    }

    /// Notes how an operation ended. The observation that the next decision sees must be newer than this end.
    pub fn finish(&mut self, action: &Action, outcome: &Outcome, now: Timestamp) {
        let Some(op) = action.op() else { return };
        self.in_flight.remove(&op);
        if let Op::Stop(id) = &op {
            self.stopping.remove(id);
        }
        if let Outcome::Failed(reason, message) = outcome {
            let last = self.failures.get(&op).map(|f| f.delay);
            let delay = retry_delay(&op, reason, last);
            let failure = Failure { reason: reason.clone(), message: message.clone(), at: now, delay };
            self.failures.insert(op, failure);
            return;
        }
        self.failures.remove(&op);
        match (action, outcome) {
            (Action::SetUpVolumes, _) => self.volumes_ready = true,
            (Action::TearDownVolumes, _) => self.torn_down = true,
            (Action::DeletePod, _) => self.delete_sent = true,
            (Action::StopSandbox { id }, _) => {
                self.stopped_sandboxes.insert(id.clone());
            }
            (Action::RemoveSandbox { id }, _) => {
                self.stopped_sandboxes.remove(id);
            }
            (Action::PullImage { container, attempt }, Outcome::Pulled(reference)) => {
                self.images.insert(container.clone(), (*attempt, reference.clone()));
            }
            _ => {}
        }
    }

    /// Lets what failed for want of an API object be tried at once: one of the pod's objects changed.
    pub fn objects_changed(&mut self) {
        self.failures.retain(|op, f| {
            !(matches!(op, Op::Volumes)
                || matches!(op, Op::Start(_)) && f.reason == "CreateContainerConfigError")
        });
    }

    /// Forgets what was about instances that are gone; `live` are the ids of those that are there.
    pub fn prune(&mut self, live: &BTreeSet<&str>) {
        self.probes.retain(|id, _| live.contains(id.as_str()));
        self.failures.retain(|op, _| match op {
            Op::Stop(id) | Op::Remove(id) => live.contains(id.as_str()),
            _ => true,
        });
        // Keys name instances and times; a pod that fails for years must not grow for years.
        if self.said.len() > MAX_SAID {
            self.said.clear();
        }
    }
}

/// Seconds to wait after a failure, given the wait before it.
///
/// Pulls and starts double from 10 s to 300 s as the kubelet's image and crash-loop back-offs do; what depends on
/// objects or the runtime alone is tried sooner.
fn retry_delay(op: &Op, reason: &str, last: Option<i64>) -> i64 {
    let (first, max) = match op {
        Op::Start(_) if reason == "CreateContainerConfigError" => (2, 30),
        Op::Image(_) | Op::Start(_) => (10, 300),
        Op::Volumes => (1, 122),
        Op::Sandbox => (1, 30),
        _ => (1, 10),
    };
    last.map_or(first, |d| d.saturating_mul(2).clamp(first, max))
}
