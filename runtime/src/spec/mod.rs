//! What a shim needs to know to make a pod's namespaces and run its containers, fully resolved: the runtime
//! writes these as JSON into the run directory, the shim reads them. Nothing here does input or output.

pub mod build;
pub mod capabilities;
pub mod user;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::user::{User, UserRequest};

/// A pod sandbox, as its shim sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Sandbox id (64 hex digits).
    pub id: String,
    /// Where the network namespace is bound; `None` with the host's network.
    pub netns: Option<PathBuf>,
    /// The pod uses the host's IPC namespace.
    pub host_ipc: bool,
    /// Host name of the UTS namespace; `None` keeps the host's UTS namespace (host network).
    pub hostname: Option<String>,
    /// Kernel parameters in dotted form, for the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// The directory that holds one directory per container of this runtime.
    pub containers_dir: PathBuf,
}

/// Which process ids a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// A PID namespace of its own.
    Container,
    /// One PID namespace shared by the pod's containers.
    Pod,
    /// The host's.
    Host,
    /// That of another container of the pod (its id).
    Target(String),
}

/// Everything needed to start one container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Container id (64 hex digits).
    pub id: String,
    /// Its program.
    pub process: ProcessSpec,
    /// Where its root file system comes from.
    pub rootfs: RootfsSpec,
    /// Bind mounts, in the order they are made.
    pub mounts: Vec<BindMount>,
    /// Device nodes beside the usual ones.
    pub devices: Vec<DeviceNode>,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// No confinement: writable `/sys`, no masks.
    pub privileged: bool,
    /// Process id namespace.
    pub pid_mode: PidMode,
    /// The pod uses the host's IPC namespace: `/dev/mqueue` is the host's.
    pub host_ipc: bool,
    /// cgroup directories to join, absolute.
    pub cgroups: CgroupMembership,
    /// Log file in CRI format; `None` drops output.
    pub log_path: Option<PathBuf>,
    /// Keep a stdin open for attach.
    pub stdin: bool,
    /// Close stdin when the first attached client closes its own.
    pub stdin_once: bool,
}

/// A program to run in a container: its own, or an exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `KEY=value`, later ones win.
    pub env: Vec<String>,
    /// Working directory inside the container, absolute.
    pub cwd: String,
    /// Run on a pseudo-terminal.
    pub tty: bool,
    /// Who it runs as.
    pub user: UserRequest,
    /// Capability sets.
    pub capabilities: CapabilitySets,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// Seccomp filter, compiled; `None` for none.
    pub seccomp: Option<SeccompProgram>,
    /// Limits as (`RLIMIT_*` number, soft, hard).
    pub rlimits: Vec<(u32, u64, u64)>,
    /// `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
}

/// A compiled filter: instructions as (code, jt, jf, k), and the flags of `seccomp(2)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompProgram {
    /// Instructions.
    pub instructions: Vec<(u16, u8, u8, u32)>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// Capabilities as bit masks, bit n = capability number n (`linux/capability.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// Bounding, permitted and effective.
    pub permitted: u64,
    /// Ambient (and inheritable, which ambient needs).
    pub ambient: u64,
}

/// An overlay root file system.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RootfsSpec {
    /// The directory that the names in `lower` are relative to.
    pub layers_dir: PathBuf,
    /// Layer directories, topmost first.
    pub lower: Vec<String>,
    /// The container's writable layer.
    pub upper: PathBuf,
    /// overlayfs' work directory.
    pub work: PathBuf,
    /// Where the init process mounts it, in its own mount namespace.
    pub mount_point: PathBuf,
    /// Read-only for the container.
    pub readonly: bool,
}

/// One bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// Host path.
    pub source: PathBuf,
    /// Path in the container, absolute.
    pub destination: String,
    /// Read-only.
    pub readonly: bool,
    /// Read-only including the mounts below.
    pub recursive_readonly: bool,
    /// How mounts below pass in and out.
    pub propagation: MountPropagation,
    /// No device nodes, no set-uid programs, no execution.
    pub restricted: bool,
}

/// CRI's `MountPropagation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// Nothing passes.
    Private,
    /// New mounts of the host appear in the container.
    HostToContainer,
    /// Also the other way round.
    Bidirectional,
}

/// A device node to make in the container's `/dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// Block device; else a character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What the cgroup allows: some of `r`, `w`, `m`.
    pub permissions: String,
}

/// The cgroup directories a container's processes join.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMembership {
    /// Directory in the v2 (or `unified`) hierarchy.
    pub v2: Option<PathBuf>,
    /// Directories in v1 hierarchies.
    pub v1: Vec<PathBuf>,
    /// v1 controllers as mounted (`cpu`, `cpu,cpuacct`, …), for the container's own `/sys/fs/cgroup`.
    pub v1_names: Vec<String>,
    /// The file whose `oom_kill` line counts kills.
    pub oom_file: Option<PathBuf>,
}

/// How a container ended; written durably by the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// When, in nanoseconds since the epoch.
    pub finished_at: i64,
    /// The kernel killed something in it for want of memory.
    pub oom_killed: bool,
    /// CRI reason when it is not a plain exit.
    pub reason: Option<String>,
    /// Detail for people.
    pub message: Option<String>,
}

/// How a container began; written by the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// Process id of its init as the host sees it.
    pub pid: i32,
    /// Start time of that process in clock ticks since boot (`/proc/PID/stat` field 22), against reuse of the id.
    pub start_ticks: u64,
    /// When, in nanoseconds since the epoch.
    pub started_at: i64,
    /// Who it runs as, resolved.
    pub user: User,
}
