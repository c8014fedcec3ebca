//! Hawser's controllers: each a pure `reconcile(&View, now) -> Plan`, all run by one generic runner.
//!
//! - [`plan`]: what a reconciler returns.
//! - [`cache`]: one shared, indexed store per kind.
//! - [`runner`]: work queue, execution of plans, events, leader election.
//! - One module per controller.
#![forbid(unsafe_code)]

pub mod accounts;
pub mod acknowledgement;
pub mod aggregation;
pub mod autoscaler;
pub mod cache;
pub mod certificates;
pub mod claim;
pub mod clusterdns;
pub mod config;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod discovery;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod eviction;
pub mod gc;
pub mod hash;
pub mod job;
pub mod loadbalancer;
pub mod manager;
pub mod migration;
pub mod namespace;
pub mod node;
pub mod nsdefaults;
pub mod object;
pub mod plan;
pub mod pods;
pub mod policystatus;
pub mod protection;
pub mod quota;
pub mod replicaset;
pub mod resourceclaim;
pub mod revisions;
pub mod runner;
pub mod servicecidr;
pub mod services;
pub mod statefulset;
pub mod tokens;
pub mod ttl;
pub mod volume;

pub use config::{ClientFor, Config, SigningCa};
pub use manager::{ControllerManager, Error};

#[cfg(test)]
mod testing;
