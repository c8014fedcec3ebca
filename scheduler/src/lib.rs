//! The scheduler: chooses a node for every pod that has none.
//!
//! The choice itself is pure: an [`cycle::Attempt`] looks at one pod and a [`snapshot::Snapshot`]. The queue
//! ([`queue::Queue`]) and the cache of nodes ([`snapshot::Cache`]) are pure too and take the time as an argument.
//! [`run::Scheduler`] is the thin driver that watches, binds and reports.
//!
//! Rules and texts follow kube-scheduler's documentation
//! (<https://kubernetes.io/docs/concepts/scheduling-eviction/>).
#![forbid(unsafe_code)]

mod bind;
mod claim;
pub mod config;
pub mod cycle;
pub mod devices;
mod events;
mod extender;
pub mod framework;
pub mod objects;
pub mod plugins;
pub mod pod;
pub mod preempt;
pub mod queue;
mod report;
pub mod resources;
pub mod run;
mod scores;
pub mod selector;
pub mod snapshot;
mod tally;
mod verdicts;
mod watch;

pub use config::Config;
pub use run::{Error, Scheduler};

/// How objects are kept that are watched.
pub mod watched {
    pub use crate::watch::{attachment, budget, csi_driver, csi_node, slice};
}
