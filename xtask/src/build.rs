//! Builds the binary that the sandbox and the tests run.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{root, run, target_dir};

/// Which of cargo's profiles to build with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Fast to build: for tests.
    Dev,
    /// Fast to run: for `up` and the benches.
    Release,
}

/// Builds `hawser` with the eBPF programs in it and answers its path.
pub fn hawser(profile: Profile) -> Result<PathBuf> {
    package("hawser", "hawser", profile)
}

/// Builds a program of a package and answers its path.
pub fn package(package: &str, program: &str, profile: Profile) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--package", package, "--bin", program]);
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    run(&mut cargo)?;
    Ok(target_dir().join(folder).join(program))
}

/// Builds all programs and tests in one go, so that what they have in common is built once: the binary alone asks for
/// fewer features of it than the tests do.
pub fn programs_and_tests() -> Result<()> {
    run(cargo().args(["build", "--workspace", "--bins", "--tests"]))
}

/// cargo at the project's root, as a shell would call it. What cargo told this program of its own package
/// (`CARGO_PKG_NAME` and so on) is taken away: build scripts that watch these variables, ring's for one, would run
/// again, and everything that depends on them with them, each time that cargo is called by the other way.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root());
    let own = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(own)) {
        cargo.env_remove(name);
    }
    cargo
}

/// Where the demo's images are kept.
pub fn demo_images_dir() -> PathBuf {
    target_dir().join("images")
}

/// Where `build-ebpf` leaves the programs.
pub fn ebpf_object() -> PathBuf {
    target_dir().join("ebpf/hawser.bpf.o")
}
