//! The words of the pod state machine: what is observed, what can be done, what is decided.

use super::memory::{Memory, Op};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod, PodStatus};

/// What the runtime shows of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Sandboxes, newest (highest attempt) first.
    pub sandboxes: Vec<Sandbox>,
    /// Containers of all sandboxes, newest (highest attempt) first within a name.
    pub containers: Vec<Instance>,
}

/// One pod sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// How many sandboxes of this pod came before.
    pub attempt: u32,
    /// Whether the sandbox serves (its namespaces are alive).
    pub ready: bool,
    /// Addresses in order of preference; empty with host networking.
    pub ips: Vec<String>,
}

/// One container as the runtime knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod's spec.
    pub name: String,
    /// The sandbox it lives in.
    pub sandbox_id: String,
    /// Restart count at creation.
    pub attempt: u32,
    /// Hash of the spec that it was made from; see [`super::spec_hash`].
    pub hash: String,
    /// Seconds to wait, after this instance ends, before the next one is started.
    pub backoff: i64,
    /// Image name as in the spec.
    pub image: String,
    /// Image reference with digest.
    pub image_ref: String,
    /// The user the first process runs as, if the runtime says: uid, gid, supplemental groups.
    pub user: Option<(i64, i64, Vec<i64>)>,
    /// Where it is in its life.
    pub state: State,
}

/// Where an instance is in its life.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Running since the given time.
    Running(Timestamp),
    /// Ended.
    Exited(Exit),
    /// The runtime lost track of it.
    Unknown,
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// When it started, if it did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, …
    pub reason: String,
    /// Termination message, if any.
    pub message: String,
}

impl Observed {
    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// Instances of the named container, newest first.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Instance> + 'a {
        self.containers.iter().filter(move |c| c.name == name)
    }

    /// Whether anything still runs.
    pub fn any_running(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.state, State::Running(_) | State::Unknown))
    }

    /// Restores the order that the machine relies on.
    pub fn sort(&mut self) {
        self.sandboxes.sort_by(|a, b| b.attempt.cmp(&a.attempt).then_with(|| b.id.cmp(&a.id)));
        self.containers.sort_by(|a, b| {
            a.name.cmp(&b.name).then_with(|| b.attempt.cmp(&a.attempt)).then_with(|| b.id.cmp(&a.id))
        });
    }
}

/// Facts about the node that a pod's life depends on.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// The node's addresses, primary first.
    pub host_ips: Vec<String>,
    /// Whether pods wait for what all dataplanes acknowledge; see [`super::gate`].
    pub acknowledged: bool,
}

/// Everything one decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The pod as last seen in the API.
    pub pod: &'a Pod,
    /// Whether the API object is gone.
    pub gone: bool,
    /// What the runtime shows.
    pub observed: &'a Observed,
    /// What this process remembers.
    pub memory: &'a Memory,
    /// The node.
    pub node: &'a NodeFacts,
    /// The time.
    pub now: Timestamp,
}

/// One thing for the driver to do. Each has an [`Op`], by which it is known while in flight.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the pod's volumes ready.
    SetUpVolumes,
    /// Make and start a sandbox.
    RunSandbox {
        /// Number of sandboxes before this one.
        attempt: u32,
    },
    /// Stop a sandbox; releases its network.
    StopSandbox {
        /// The sandbox.
        id: String,
    },
    /// Remove a sandbox with all of its containers.
    RemoveSandbox {
        /// The sandbox.
        id: String,
    },
    /// Make sure that the image of a container is there, by its pull policy.
    PullImage {
        /// Container name.
        container: String,
        /// The attempt the image is meant for.
        attempt: u32,
    },
    /// Create (unless `adopt` names one already made) and start a container, then run its postStart hook.
    StartContainer {
        /// Container name.
        container: String,
        /// The sandbox to put it in.
        sandbox_id: String,
        /// Restart count.
        attempt: u32,
        /// Back-off in seconds to write on the instance; see [`Instance::backoff`].
        backoff: i64,
        /// An instance that was created but not started.
        adopt: Option<String>,
    },
    /// Run the preStop hook, then signal, then kill at the deadline.
    StopContainer {
        /// The instance.
        id: String,
        /// Container name.
        container: String,
        /// Seconds from now until SIGKILL.
        grace: i64,
        /// The hook to run first.
        pre_stop: Option<Box<LifecycleHandler>>,
        /// Text of the `Killing` event.
        message: String,
    },
    /// Remove an instance that does not run.
    RemoveContainer {
        /// The instance.
        id: String,
    },
    /// Release the pod's volumes.
    TearDownVolumes,
    /// Publish the final status, then delete the API object with a grace period of 0.
    DeletePod,
    /// Record an event, once per `key`.
    Event {
        /// What makes the event one of a kind within this pod.
        key: String,
        /// Container name, if the event is about one.
        container: Option<String>,
        /// Whether it is a warning.
        warning: bool,
        /// CamelCase reason.
        reason: &'static str,
        /// Text.
        message: String,
    },
}

impl Action {
    /// The operation that is in flight while the action is carried out; none for events.
    pub fn op(&self) -> Option<Op> {
        Some(match self {
            Action::SetUpVolumes => Op::Volumes,
            Action::RunSandbox { .. } => Op::Sandbox,
            Action::StopSandbox { id } => Op::StopSandbox(id.clone()),
            Action::RemoveSandbox { id } => Op::RemoveSandbox(id.clone()),
            Action::PullImage { container, .. } => Op::Image(container.clone()),
            Action::StartContainer { container, .. } => Op::Start(container.clone()),
            Action::StopContainer { id, .. } => Op::Stop(id.clone()),
            Action::RemoveContainer { id } => Op::Remove(id.clone()),
            Action::TearDownVolumes => Op::TearDown,
            Action::DeletePod => Op::Delete,
            Action::Event { .. } => return None,
        })
    }
}

/// The answer of one decision.
#[derive(Clone, Debug)]
pub struct Decision {
    /// What to do now.
    pub actions: Vec<Action>,
    /// The status to publish.
    pub status: PodStatus,
    /// When to decide again if nothing happens before.
    pub wake_at: Option<Timestamp>,
    /// Nothing of this pod is left: its worker can end.
    pub finished: bool,
}
