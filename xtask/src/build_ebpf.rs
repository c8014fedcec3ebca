//! Builds the eBPF programs: the recipe behind `cargo xtask build-ebpf` and behind `proxy/build.rs`.
//!
//! Needs nothing but the standard library, because both include this file. Takes the first toolchain
//! that is there: (a) rustup's nightly with rust-src, which builds `core` itself; (b) Debian's
//! `rustc-web` with `libstd-rust-web-dev-bpf`, a ready-made `core` for the target.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of the programs: eBPF bytecode of the byte order of this machine.
const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
/// Debian's compiler with a `core` for [`TARGET`].
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Name of the object that benches load, beside the programs' own.
pub const REPLAY: &str = "hawser-replay.bpf.o";
/// What to say when neither toolchain is there.
const HINT: &str = "no toolchain for eBPF: run `cargo xtask setup`";

/// A toolchain that can compile the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toolchain {
    /// rustup's nightly with rust-src.
    Nightly,
    /// Debian's `rustc-web` with `libstd-rust-web-dev-bpf`.
    Debian,
}

/// Builds `<root>/ebpf/programs` and copies the ELF to `output`, that of the benches beside it. Intermediate files go below
/// `build_dir`, which must not be the target directory of a cargo that waits for this one.
///
/// # Errors
/// One line that says what is missing or which step failed; the compiler's own output is on stderr.
pub fn build(root: &Path, build_dir: &Path, output: &Path) -> Result<Toolchain, String> {
    let toolchain = find_toolchain()?;
    let manifest = root.join("ebpf/programs/Cargo.toml");
    let status = command(toolchain)
        .args(["build", "--release", "--locked", "--target", TARGET])
        .arg("--manifest-path")
        .arg(&manifest)
        .env("CARGO_TARGET_DIR", build_dir)
        // What the cargo around us set for its own crates must not reach this build.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .env("RUSTFLAGS", rustflags(root))
        .status()
        .map_err(|error| format!("running cargo for the eBPF programs: {error}"))?;
    if !status.success() {
        return Err("the eBPF programs did not build: see above".to_string());
    }
    let built = build_dir.join(TARGET).join("release");
    copy(&built.join("hawser-bpf"), output)?;
    copy(&built.join("hawser-bpf-replay"), &output.with_file_name(REPLAY))?;
    Ok(toolchain)
}

/// Copies an object, unless it is there already.
fn copy(elf: &Path, output: &Path) -> Result<(), String> {
    let bytes = std::fs::read(elf).map_err(|error| format!("reading {}: {error}", elf.display()))?;
    if std::fs::read(output).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(parent) = output.parent() {
        std::fs::create_dir_all(parent).map_err(|error| format!("creating {}: {error}", parent.display()))?;
    }
    std::fs::write(output, bytes).map_err(|error| format!("writing {}: {error}", output.display()))
}

/// The first toolchain that is there.
fn find_toolchain() -> Result<Toolchain, String> {
    let linker = Command::new("bpf-linker").arg("--version").output();
    if !linker.is_ok_and(|out| out.status.success()) {
        return Err(format!("bpf-linker is missing; {HINT}"));
    }
    if nightly_has_rust_src() {
        return Ok(Toolchain::Nightly);
    }
    if debian_has_core() {
        return Ok(Toolchain::Debian);
    }
    Err(HINT.to_string())
}

/// Whether rustup's nightly can build `core` itself (`-Z build-std`).
fn nightly_has_rust_src() -> bool {
    let output = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    output.is_ok_and(|out| {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
        out.status.success() && sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    })
}

/// Whether Debian's compiler has a `core` for the target.
fn debian_has_core() -> bool {
    let output = Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]).output();
    output.is_ok_and(|out| {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
        let lib = sysroot.join("lib/rustlib").join(TARGET).join("lib");
        out.status.success() && lib.is_dir()
    })
}

/// cargo with the environment of the toolchain.
fn command(toolchain: Toolchain) -> Command {
    match toolchain {
        Toolchain::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo", "-Z", "build-std=core"]);
            command.env_remove("RUSTC").env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
            command
        }
        Toolchain::Debian => {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
            let mut command = Command::new(cargo);
            // aya-ebpf and our atomic addition use features that only a nightly compiler, or this
            // variable, unlocks.
            command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "aya_ebpf,hawser_bpf");
            command
        }
    }
}

/// Flags for the programs. Paths are mapped so that the ELF does not depend on where the tree lies.
fn rustflags(root: &Path) -> String {
    format!(
        "-Clink-arg=--btf --cfg=bpf_target_arch=\"{}\" --remap-path-prefix={}=.",
        std::env::consts::ARCH,
        root.display()
    )
}
