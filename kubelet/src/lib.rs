//! The kubelet: runs the pods that the API assigns to this node.
//!
//! It talks to a container runtime over CRI v1 only and to the API through a [`kube::Client`] only.
//!
//! - [`pod`]: the state machine of a pod, PURE;
//! - `worker`: its driver, one per pod; `manager`: all of them;
//! - `env`, `downward`, `dns`, `resources`, `spec_cri`: from spec to CRI, PURE;
//! - `volumes`, `probes`, `logs`, `images`, `hooks`: what their names say;
//! - `node`: the Node object and its Lease;
//! - [`bootstrap`]: how a machine becomes a node;
//! - `server`: logs, exec, attach and port-forward for the API server.
//!
//! Architecture invariant: nothing ends with this process. Its containers run on, and the next kubelet finds them
//! by their labels.
#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod config;
mod cri;
mod dns;
mod downward;
mod env;
mod events;
mod hooks;
mod http_client;
mod images;
mod kubelet;
mod logs;
mod manager;
mod node;
mod objects;
pub mod pod;
mod probes;
mod resources;
mod retry;
mod server;
mod services;
mod shared;
mod spec_cri;
mod tls;
mod tokens;
mod volumes;
mod worker;

pub use config::{Checked, Config, ConfigError, TlsPaths};
pub use kubelet::{Kubelet, KubeletError};
pub use server::ServerError;
