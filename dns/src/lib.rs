//! The cluster's DNS: Kubernetes' DNS-based service discovery 1.1.0 from the API's watch, and forwarding for all else.
//!
//! `convert` → `records` → `answer` are pure: objects, what matters of them by name, and what a question gets. `watch`,
//! `forward` and `sockets` are the world around them, `control` is how one process gives the sockets to the next.
//!
//! Queries are read by `hickory-proto` and forwarded by `hickory-resolver`. The sockets are our own and not
//! `hickory-server`'s: its server drops the answers under way when it is stopped, and ours is replaced while it serves.
#![forbid(unsafe_code)]

pub mod answer;
pub mod config;
pub mod control;
pub mod convert;
pub mod forward;
pub mod metrics;
pub mod question;
pub mod records;
pub mod respond;
mod run;
mod scrape;
mod sockets;
mod watch;
pub mod zone;

pub use config::{Config, ConfigError};
pub use run::{Error, Server};
