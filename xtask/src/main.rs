//! Development tasks: `cargo xtask <task>`.
#![forbid(unsafe_code)]
mod build_ebpf;
mod setup;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests Hawser")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what the build and the tests need: Debian packages and bpf-linker.
    Setup,
    /// Compiles the eBPF programs to target/ebpf/hawser.bpf.o.
    BuildEbpf,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Setup => setup::run(),
        Task::BuildEbpf => build_ebpf(),
    }
}

fn build_ebpf() -> anyhow::Result<()> {
    let root =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), std::path::PathBuf::from);
    let output = target.join("ebpf/hawser.bpf.o");
    let toolchain = build_ebpf::build(root, &target.join("ebpf/build"), &output)
        .map_err(|error| anyhow::anyhow!(error))?;
    println!("{} ({toolchain:?} toolchain)", output.display());
    Ok(())
}
