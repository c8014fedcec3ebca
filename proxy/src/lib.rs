//! The dataplane of one node: Services by eBPF, and the pods' network.
//!
//! - [`desired`] (PURE) turns API objects into what the maps should hold; [`diff`] (PURE) turns the
//!   difference into ordered map operations; [`maps`] executes them.
//! - [`programs`] loads, attaches and pins the eBPF programs; [`podnet`] gives pods their interfaces.
//! - [`agent`] watches the API and drives all of it; [`inspect`] shows what the kernel holds.
//!
//! Maps, programs and links are pinned below the run directory, so that the agent can stop, and start
//! again as another version, without a connection noticing.
#![deny(unsafe_code)]

pub mod agent;
mod announcer;
mod claims;
pub mod config;
pub mod connections;
pub mod convert;
pub mod ct;
mod cuts;
pub mod dataplane;
pub mod desired;
pub mod diff;
pub mod healthcheck;
mod host_ports;
pub mod inspect;
mod lock;
pub mod maglev;
pub mod maps;
mod migrate;
pub mod netlink;
pub mod podnet;
mod pressure;
pub mod programs;
mod routes;
mod sockdiag;
mod status;
pub mod sweep;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
mod testing;
pub mod tunnel;
pub mod types;
mod uplink;

pub use agent::{Agent, Error};
pub use config::Config;
pub use host_ports::HostPorts;
pub use podnet::{PodNet, PodNetError, PodNetRequest};
