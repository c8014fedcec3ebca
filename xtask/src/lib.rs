//! Development tasks and the sandbox, as a library so that the cross-crate tests can start sandboxes too.
#![forbid(unsafe_code)]

pub mod build;
pub mod build_ebpf;
pub mod deps;
pub mod images;
pub mod sandbox;
pub mod setup;
pub mod test;
pub mod vm;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Runs a command with the terminal's output, and fails with its name when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = describe(command);
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(())
}

/// Runs a command quietly, and fails with its error output when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = describe(command);
    let out = command.output().with_context(|| format!("cannot run `{shown}`"))?;
    ensure!(out.status.success(), "`{shown}` failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}
