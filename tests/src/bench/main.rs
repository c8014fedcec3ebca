//! `cargo xtask bench`: what Hawser promises in figures, measured on this machine in one run.
#![forbid(unsafe_code)]

mod api;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use report::Report;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Api,
}

#[derive(Parser)]
struct Cli {
    /// The binary to measure
    #[arg(long)]
    binary: PathBuf,
    /// Only these parts
    #[arg(value_enum)]
    parts: Vec<Part>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut report = Report::default();
    let wanted = |part| cli.parts.is_empty() || cli.parts.contains(&part);
    if wanted(Part::Api) {
        api::run(&cli.binary, &mut report).await?;
    }
    println!("{}", report.table());
    Ok(())
}
