//! Hawser's container runtime: images, root filesystems, namespaces, cgroups v1 and v2, seccomp, one shim process
//! per pod. It serves CRI v1 (`RuntimeService`, `ImageService`) on a unix socket, and exec and attach streams over
//! WebSocket on loopback.
//!
//! The binary calls [`reexec`] first thing in `main`: shims are this very program started again.
//!
//! Architecture invariants: `unsafe` only in [`sys`]; nothing a container depends on lives in the runtime process
//! (its shim holds it); whatever is found below a container's root is found by descriptor, never by a path checked
//! before.

pub mod cgroup;
pub mod config;
pub mod cri;
pub mod error;
pub mod fsutil;
pub mod image;
pub mod network;
pub mod seccomp;
pub mod service;
pub mod shim;
pub mod spec;
pub mod streaming;
pub mod sys;

pub use config::Config;
pub use error::Error;
pub use service::Runtime;
pub use shim::reexec;
