//! `cargo xtask bench`: what Hawser promises in figures, measured on this machine in one run.
#![forbid(unsafe_code)]

mod api;
mod bare;
mod controllers;
mod crds;
mod dns;
mod failover;
mod lanes;
mod load;
mod nodes;
mod paths;
mod report;
mod rivals;
mod rollout;
mod scheduler;
mod services;
mod steady;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use report::Report;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The control plane alone: all of the following but the nodes
    Api,
    /// Start and idle memory
    Start,
    /// Creates, patches, gets, deletes
    Requests,
    /// Lists
    Lists,
    /// Watches
    Watches,
    /// 100,000 pods
    Memory,
    /// Custom resource definitions in number
    Crds,
    /// A Deployment of 10,000 pods; a node that fails; all controllers with 100,000 pods
    Controllers,
    /// The etcd engine
    Etcd,
    /// A node's DNS server
    Dns,
    /// Pods and Services on two nodes of a sandbox
    Nodes,
    /// Rolling updates under load
    Rollout,
    /// The scheduler on 5,000 nodes that are objects only
    Scheduler,
    /// What Services cost, beside iptables and nftables; their maps; the choice of backend by load
    Services,
}

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures and prints a table
    Run {
        /// The binary to measure
        #[arg(long)]
        binary: PathBuf,
        /// Numbers of Services to measure with, in part `services`
        #[arg(long = "services", value_delimiter = ',', default_values_t = [1, 1_000, 10_000, 50_000])]
        sizes: Vec<u32>,
        /// Only these parts
        #[arg(value_enum)]
        parts: Vec<Part>,
    },
    /// The load generator's server, inside a pod
    Serve {
        #[arg(long)]
        port: u16,
    },
    /// Asks the server over UDP, inside a pod
    Ask {
        #[arg(long)]
        target: SocketAddr,
    },
    /// Makes requests without a pause and counts those that fail, inside a pod
    Steady {
        #[arg(long)]
        target: SocketAddr,
        /// For so long; else until its input ends
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// The load generator's client: a round for each line of its input
    Load {
        #[arg(long)]
        target: SocketAddr,
        #[arg(long)]
        mode: load::Mode,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run { binary, sizes, parts } => run(binary, &sizes, &parts).await,
        Command::Serve { port } => load::serve(port).await,
        Command::Ask { target } => load::ask(target).await,
        Command::Steady { target, seconds } => steady::run(target, seconds.map(Duration::from_secs)).await,
        Command::Load { target, mode } => load::load(target, mode, lanes::SPAN).await,
    }
}

async fn run(binary: PathBuf, sizes: &[u32], parts: &[Part]) -> Result<()> {
    let mut report = Report::default();
    let wanted = |part| {
        let of_api =
            !matches!(part, Part::Nodes | Part::Rollout | Part::Scheduler | Part::Services | Part::Dns)
                && parts.contains(&Part::Api);
        parts.is_empty() || parts.contains(&part) || of_api
    };
    if wanted(Part::Start) {
        api::start(&binary, &mut report).await?;
    }
    if wanted(Part::Requests) {
        api::requests(&binary, &mut report).await?;
    }
    if wanted(Part::Lists) {
        api::lists(&binary, &mut report).await?;
    }
    if wanted(Part::Watches) {
        api::watches(&binary, &mut report).await?;
    }
    if wanted(Part::Memory) {
        api::memory(&binary, &mut report).await?;
    }
    if wanted(Part::Crds) {
        crds::run(&binary, &mut report).await?;
    }
    if wanted(Part::Controllers) {
        controllers::run(&binary, &mut report).await?;
    }
    if wanted(Part::Etcd) {
        api::etcd(&mut report).await?;
    }
    if wanted(Part::Dns) {
        dns::run(&binary, &mut report).await?;
    }
    if wanted(Part::Nodes) {
        nodes::run(&binary, &mut report).await?;
    }
    if wanted(Part::Rollout) {
        rollout::run(&binary, &mut report).await?;
    }
    if wanted(Part::Scheduler) {
        scheduler::run(&binary, &mut report).await?;
    }
    if wanted(Part::Services) {
        services::run(&mut report)?;
        paths::run(&binary, sizes, &mut report).await?;
    }
    println!("{}", report.table());
    Ok(())
}
