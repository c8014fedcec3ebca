//! `cargo xtask test`: formatting, lints, arrows, and every test.

use anyhow::{Result, ensure};

use crate::{build, deps, images};

/// Runs all checks, the cheapest first.
pub fn run() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the node and network tests make namespaces, mounts and cgroups of their own: run as root"
    );
    step("formatting");
    cargo(&["fmt", "--all", "--check"])?;
    step("arrows between the crates");
    deps::check()?;
    step("lints");
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    step("programs, tests, and the demo's images, which the node tests use");
    build::programs_and_tests()?;
    images::build_demo(&build::demo_images_dir())?;
    step("tests");
    cargo(&["test", "--workspace", "--no-fail-fast"])
}

fn step(name: &str) {
    eprintln!("== {name}");
}

fn cargo(args: &[&str]) -> Result<()> {
    crate::run(build::cargo().args(args))
}
