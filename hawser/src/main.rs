//! The `hawser` binary: reads flags, wires the components together, and owns signals and the drain order.
#![forbid(unsafe_code)]

mod agent;
mod clients;
mod components;
mod dns;
mod flags;
mod node_identity;
mod pod_network;
mod server;
mod signals;

use std::process::ExitCode;

use clap::Parser;
use flags::{Cli, Command};
use tikv_jemallocator::Jemalloc;

// Half of what a request costs is memory that comes and goes. How many arenas there are and how soon they give memory
// back is in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    // Shims and container inits are this same binary; they must run before any thread exists.
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(code) = hawser_runtime::reexec(&args) {
        return code;
    }
    let cli = Cli::parse();
    match perform(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(cli: Cli) -> anyhow::Result<()> {
    if let Command::Version = cli.command {
        println!("hawser {} (Kubernetes API v1.36)", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    // One provider of cryptography for the whole process. An error only says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    signals::raise_file_limit();
    // Idle processes give memory back too. Not before: a shim must have one thread.
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        eprintln!("warning: the allocator has no thread of its own: {error}");
    }
    if !matches!(cli.command, Command::Bpf(_)) {
        tracing_subscriber::fmt()
            .with_env_filter(cli.log_filter())
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
    }
    let runtime = match cli.command {
        // A small process on every node, which one thread serves faster than several would.
        Command::Dns(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = { runtime }.enable_all().build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Version => Ok(()),
            Command::Server(flags) => server::server(flags).await,
            Command::Agent(flags) => agent::agent(flags).await,
            Command::Apiserver(flags) => server::apiserver(flags).await,
            Command::ControllerManager(flags) => components::controller_manager(flags).await,
            Command::Scheduler(flags) => components::scheduler(flags).await,
            Command::Kubelet(flags) => agent::kubelet(flags).await,
            Command::Proxy(flags) => agent::proxy(flags).await,
            Command::Runtime(flags) => agent::runtime(flags).await,
            Command::Dns(flags) => dns::dns(flags).await,
            Command::Bpf(command) => Ok(command.run(&mut std::io::stdout()).await?),
        }
    });
    // Blocking threads may hang in system calls; what matters has been drained by now.
    runtime.shutdown_background();
    result
}
