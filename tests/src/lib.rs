//! The test kit: servers and sandboxes for cross-crate tests and benches, removed when they are dropped.
#![forbid(unsafe_code)]

pub mod cgroup2;
pub mod cluster;
pub mod dual;
pub mod etcd;
pub mod footprint;
pub mod netns;
pub mod pods;
pub mod server;
pub mod wire;

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// The `hawser` binary of this build. `cargo xtask test` builds it before the tests run.
pub fn hawser_binary() -> Result<PathBuf> {
    let binary = xtask::target_dir().join("debug/hawser");
    ensure!(binary.exists(), "{} is missing: run the tests with `cargo xtask test`", binary.display());
    Ok(binary)
}
