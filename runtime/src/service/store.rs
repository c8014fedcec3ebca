//! What the runtime knows: sandboxes and containers in memory, each with a record on disk.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_cri::v1::{ContainerConfig, PodSandboxConfig};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::spec::{ExitRecord, StartRecord};

/// The record's file name in a sandbox's or container's directory.
pub const STATE: &str = "state.json";

/// A sandbox as recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// 64 hex digits.
    pub id: String,
    /// As given.
    pub config: PodSandboxConfig,
    /// As given.
    pub runtime_handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Host name in the pod.
    pub hostname: String,
    /// Addresses.
    pub ips: Vec<String>,
    /// Bound network namespace; `None` with the host's network.
    pub netns: Option<PathBuf>,
    /// The pod's cgroup, below the runtime's root.
    pub group: PathBuf,
    /// False once stopped (or lost).
    pub ready: bool,
    /// The network has been asked to connect it and not to disconnect it since.
    pub networked: bool,
    /// The shim's process id.
    pub shim_pid: i32,
}

/// A sandbox.
pub struct Sandbox {
    /// Its record.
    pub record: Mutex<SandboxRecord>,
    /// Held while it is stopped or removed.
    pub lock: tokio::sync::Mutex<()>,
}

/// A container as recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// 64 hex digits.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// As given; resources are those of the last update.
    pub config: ContainerConfig,
    /// Image id.
    pub image_id: String,
    /// Image by digest when known, else by id.
    pub image_ref: String,
    /// Hex diff ids, lowest first.
    pub layers: Vec<String>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Its cgroup, below the runtime's root.
    pub group: PathBuf,
    /// Where its log goes.
    pub log_path: Option<PathBuf>,
    /// Signal that asks it to stop.
    pub stop_signal: i32,
}

/// How far a container has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Phase {
    /// How it began.
    pub start: Option<StartRecord>,
    /// How it ended.
    pub exit: Option<ExitRecord>,
}

impl Phase {
    /// True between beginning and end.
    pub fn running(&self) -> bool {
        self.start.is_some() && self.exit.is_none()
    }
}

/// A container.
pub struct Container {
    /// Its record.
    pub record: Mutex<ContainerRecord>,
    /// How far it has come.
    pub phase: watch::Sender<Phase>,
    /// Held while it is started, stopped or removed.
    pub lock: tokio::sync::Mutex<()>,
    /// Time and CPU use at the last look, for the rate.
    pub cpu_sample: Mutex<Option<CpuSample>>,
    /// Size of its writable layer, measured now and then.
    pub disk: Mutex<Option<DiskSample>>,
}

/// CPU use at a moment.
#[derive(Debug, Clone, Copy)]
pub struct CpuSample {
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// Nanoseconds of CPU time.
    pub used: u64,
    /// Nanoseconds of CPU time per second before that moment.
    pub rate: u64,
}

/// Disk use at a moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskSample {
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Container {
    /// A container in a phase.
    pub fn new(record: ContainerRecord, phase: Phase) -> Self {
        Self {
            record: Mutex::new(record),
            phase: watch::Sender::new(phase),
            lock: tokio::sync::Mutex::default(),
            cpu_sample: Mutex::default(),
            disk: Mutex::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> String {
        self.record.lock().id.clone()
    }
}

impl Sandbox {
    /// A sandbox.
    pub fn new(record: SandboxRecord) -> Self {
        Self { record: Mutex::new(record), lock: tokio::sync::Mutex::default() }
    }
}

#[derive(Default)]
struct Maps {
    sandboxes: HashMap<String, Arc<Sandbox>>,
    containers: HashMap<String, Arc<Container>>,
    /// Names taken, by what they name (CRI: one sandbox per pod and attempt, one container per sandbox, name and
    /// attempt).
    names: HashMap<String, String>,
}

/// All sandboxes and containers.
#[derive(Default)]
pub struct Store {
    maps: Mutex<Maps>,
}

/// The name of a sandbox.
pub fn sandbox_name(config: &PodSandboxConfig) -> String {
    let m = config.metadata.clone().unwrap_or_default();
    format!("{}_{}_{}_{}", m.name, m.namespace, m.uid, m.attempt)
}

/// The name of a container.
pub fn container_name(config: &ContainerConfig, sandbox_id: &str) -> String {
    let m = config.metadata.clone().unwrap_or_default();
    format!("{}_{}_{sandbox_id}", m.name, m.attempt)
}

/// Finds by id or by a prefix that fits one only.
fn by_prefix<T>(map: &HashMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(found) = map.get(id) {
        return Some(Arc::clone(found));
    }
    if id.len() < 5 {
        return None;
    }
    let mut fitting = map.iter().filter(|(k, _)| k.starts_with(id));
    match (fitting.next(), fitting.next()) {
        (Some((_, found)), None) => Some(Arc::clone(found)),
        _ => None,
    }
}

impl Store {
    /// A sandbox by id.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        by_prefix(&self.maps.lock().sandboxes, id).ok_or_else(|| Error::no_sandbox(id))
    }

    /// A container by id.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        by_prefix(&self.maps.lock().containers, id).ok_or_else(|| Error::no_container(id))
    }

    /// All sandboxes.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.maps.lock().sandboxes.values().cloned().collect()
    }

    /// All containers.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.maps.lock().containers.values().cloned().collect()
    }

    /// The containers of a sandbox.
    pub fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let all = self.containers();
        all.into_iter().filter(|c| c.record.lock().sandbox_id == sandbox_id).collect()
    }

    /// Takes a name for an id.
    ///
    /// # Errors
    /// `AlreadyExists` when another has it.
    pub fn reserve(&self, name: &str, id: &str) -> Result<()> {
        let mut maps = self.maps.lock();
        if let Some(owner) = maps.names.get(name) {
            return Err(Error::AlreadyExists(format!("name {name:?} is taken by {owner}")));
        }
        maps.names.insert(name.to_owned(), id.to_owned());
        Ok(())
    }

    /// Gives a name back.
    pub fn release(&self, name: &str) {
        self.maps.lock().names.remove(name);
    }

    /// Adds a sandbox.
    pub fn add_sandbox(&self, sandbox: Arc<Sandbox>) {
        let id = sandbox.record.lock().id.clone();
        self.maps.lock().sandboxes.insert(id, sandbox);
    }

    /// Adds a container.
    pub fn add_container(&self, container: Arc<Container>) {
        let id = container.id();
        self.maps.lock().containers.insert(id, container);
    }

    /// Forgets a sandbox and its name.
    pub fn drop_sandbox(&self, record: &SandboxRecord) {
        let mut maps = self.maps.lock();
        maps.sandboxes.remove(&record.id);
        maps.names.remove(&sandbox_name(&record.config));
    }

    /// Forgets a container and its name.
    pub fn drop_container(&self, record: &ContainerRecord) {
        let mut maps = self.maps.lock();
        maps.containers.remove(&record.id);
        maps.names.remove(&container_name(&record.config, &record.sandbox_id));
    }

    /// Hex diff ids of the layers that containers use.
    pub fn layers_in_use(&self) -> BTreeSet<String> {
        self.containers().iter().flat_map(|c| c.record.lock().layers.clone()).collect()
    }

    /// True when a container other than `except` uses the image.
    pub fn sandbox_shares_group(&self, record: &SandboxRecord) -> bool {
        self.sandboxes().iter().any(|s| {
            let s = s.record.lock();
            s.id != record.id && s.group == record.group
        })
    }
}
