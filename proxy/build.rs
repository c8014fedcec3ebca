//! Compiles the eBPF programs and the inspection service's protocol.
//!
//! `HAWSER_EBPF_OBJECT` names an ELF that is ready (for a build without an eBPF toolchain); otherwise
//! the programs are built here with the recipe of `cargo xtask build-ebpf`.

use std::path::{Path, PathBuf};

#[path = "../xtask/src/build_ebpf.rs"]
mod build_ebpf;

fn main() {
    if let Err(error) = run() {
        // One line that says what is wrong; cargo shows it.
        eprintln!("hawser-proxy: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set"));
    let manifest = env("CARGO_MANIFEST_DIR")?;
    let out = env("OUT_DIR")?;
    let root = manifest.parent().ok_or("the crate does not lie in the workspace")?;
    for path in
        ["ebpf/common/src", "ebpf/programs/src", "ebpf/programs/Cargo.toml", "ebpf/programs/Cargo.lock"]
    {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo::rerun-if-changed={}", root.join("xtask/src/build_ebpf.rs").display());
    println!("cargo::rerun-if-env-changed=HAWSER_EBPF_OBJECT");
    let object = out.join("hawser.bpf.o");
    match std::env::var_os("HAWSER_EBPF_OBJECT").filter(|path| !path.is_empty()) {
        Some(ready) => {
            let ready = Path::new(&ready);
            println!("cargo::rerun-if-changed={}", ready.display());
            std::fs::copy(ready, &object).map_err(|error| format!("{}: {error}", ready.display()))?;
            // Nothing to measure with: the bench says so.
            std::fs::write(out.join(build_ebpf::REPLAY), []).map_err(|error| error.to_string())?;
        }
        None => drop(build_ebpf::build(root, &build_dir(&out), &object)?),
    }
    println!("cargo::rerun-if-changed=proto/inspect.proto");
    tonic_prost_build::configure()
        .build_client(true)
        .compile_protos(&["proto/inspect.proto"], &["proto"])
        .map_err(|error| format!("proto/inspect.proto: {error}"))
}

/// Shared by all profiles, and not the target directory of the cargo that runs this script: that one
/// is locked. `OUT_DIR` is `<target>/<profile>/build/<package>/out`.
fn build_dir(out: &Path) -> PathBuf {
    let target = out.ancestors().nth(4).unwrap_or(out);
    target.join("ebpf/build")
}
