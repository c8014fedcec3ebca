//! Development tasks: `cargo xtask <task>`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{build, build_ebpf, deps, images, sandbox, setup, test, vm};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests Hawser")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what the build and the tests need: Debian packages and bpf-linker
    Setup,
    /// Builds the eBPF programs with the first of the two toolchains that is there
    BuildEbpf,
    /// Starts a whole cluster in network namespaces of this machine, with a demo
    Up {
        /// Number of nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=100))]
        nodes: u8,
        /// Leave the demo out
        #[arg(long)]
        no_demo: bool,
        /// Load every OCI or docker archive of this folder on each node
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
        /// Give nodes, pods and Services IPv6 addresses as well
        #[arg(long, conflicts_with = "ipv6")]
        dual_stack: bool,
        /// Give nodes, pods and Services IPv6 addresses only
        #[arg(long)]
        ipv6: bool,
        /// Build without optimisation, which is faster to build and slower to run
        #[arg(long)]
        dev: bool,
    },
    /// Stops the cluster of `up` and removes every namespace, mount, cgroup, pin and process it made
    Down,
    /// Makes the demo's images from Debian packages, as OCI archives in target/images
    Images,
    /// Checks the arrows between the crates (DESIGN: who may import whom)
    Deps,
    /// Formatting, lints, arrows, and all tests
    Test,
    /// Measures what Hawser promises in figures, and prints a table
    Bench {
        /// Only these parts: api, nodes, xdp
        parts: Vec<String>,
    },
    /// Loads, attaches and runs the eBPF programs on an old kernel, Debian 12's 6.1, in a virtual machine
    VmTest,
    /// What continuous integration runs: setup, then test
    Ci,
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::run(),
        Task::BuildEbpf => {
            setup::run()?;
            let output = build::ebpf_object();
            let toolchain =
                build_ebpf::build(&xtask::root(), &xtask::target_dir().join("ebpf/build"), &output)
                    .map_err(anyhow::Error::msg)?;
            println!("{} ({toolchain:?})", output.display());
            Ok(())
        }
        Task::Up { nodes, no_demo, images, dual_stack, ipv6, dev } => {
            let profile = if dev { build::Profile::Dev } else { build::Profile::Release };
            let families = match (dual_stack, ipv6) {
                (true, _) => sandbox::Families::Dual,
                (false, true) => sandbox::Families::V6,
                (false, false) => sandbox::Families::V4,
            };
            sandbox::up(&sandbox::Options { nodes, demo: !no_demo, images, families, profile })
        }
        Task::Down => sandbox::down(),
        Task::Images => {
            setup::run()?;
            for image in images::build_demo(&build::demo_images_dir())? {
                println!("{}", image.display());
            }
            Ok(())
        }
        Task::Deps => deps::check(),
        Task::Test => test::run(),
        Task::Bench { parts } => bench(&parts),
        Task::VmTest => vm::test(),
        Task::Ci => {
            setup::run()?;
            test::run()
        }
    }
}

/// What is measured by a bench of its crate, and not over the whole binary.
const XDP_BENCH: [&str; 6] = ["bench", "-q", "-p", "hawser-proxy", "--bench", "xdp"];

fn bench(parts: &[String]) -> Result<()> {
    setup::run()?;
    let (xdp, parts): (Vec<&String>, Vec<&String>) = parts.iter().partition(|part| *part == "xdp");
    let all = xdp.is_empty() && parts.is_empty();
    if all || !xdp.is_empty() {
        xtask::run(build::cargo().args(XDP_BENCH))?;
    }
    if !all && parts.is_empty() {
        return Ok(());
    }
    let binary = build::hawser(build::Profile::Release)?;
    images::build_demo(&build::demo_images_dir())?;
    let bench = build::package("hawser-tests", "hawser-bench", build::Profile::Release)?;
    xtask::run(std::process::Command::new(bench).arg("run").arg("--binary").arg(binary).args(parts))
}
