//! The scheduler: chooses a node for every pod that has none.
//!
//! The choice itself is pure: [`cycle::schedule`] looks at one pod and a [`snapshot::Snapshot`] and answers with a
//! [`cycle::Decision`]. The queue ([`queue::Queue`]) and the cache of nodes ([`snapshot::Cache`]) are pure too and
//! take the time as an argument. [`run::Scheduler`] is the thin driver that watches, binds and reports.
//!
//! Rules and texts follow kube-scheduler's documentation
//! (<https://kubernetes.io/docs/concepts/scheduling-eviction/>).
#![forbid(unsafe_code)]

pub mod cycle;
pub mod framework;
pub mod plugins;
pub mod pod;
pub mod preempt;
pub mod queue;
mod report;
pub mod resources;
pub mod run;
pub mod snapshot;

pub use run::{Config, Error, Scheduler};
