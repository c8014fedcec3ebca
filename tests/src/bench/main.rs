//! `cargo xtask bench`: what Hawser promises in figures, measured on this machine in one run.
#![forbid(unsafe_code)]

mod api;
mod controllers;
mod crds;
mod dns;
mod failover;
mod load;
mod nodes;
mod report;
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
    /// The maps of many Services, and the choice of backend by load
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
        #[arg(long)]
        seconds: u64,
    },
    /// The load generator's client, inside a pod
    Load {
        #[arg(long = "target")]
        targets: Vec<SocketAddr>,
        #[arg(long)]
        mode: load::Mode,
        #[arg(long)]
        rounds: usize,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run { binary, parts } => run(binary, &parts).await,
        Command::Serve { port } => load::serve(port).await,
        Command::Ask { target } => load::ask(target).await,
        Command::Steady { target, seconds } => steady::run(target, Duration::from_secs(seconds)).await,
        Command::Load { targets, mode, rounds } => load::load(&targets, mode, rounds, nodes::SPAN).await,
    }
}

async fn run(binary: PathBuf, parts: &[Part]) -> Result<()> {
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
    }
    println!("{}", report.table());
    Ok(())
}
