//! Fuzzing with stable Rust: mutates the corpora for a time and reports inputs that were answered wrongly.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hawser_fuzz::mutate::mutate;
use hawser_fuzz::{Harness, Target};
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// Growth of resident memory, from a tenth of the run to its end, that counts as a leak.
const MAX_GROWTH: u64 = 64 << 20;
/// Inputs whose answer was new are mutated further, this many at most.
const KEPT: usize = 4096;

#[derive(Parser)]
#[command(about = "Fuzzes the API server's request path")]
struct Cli {
    /// What to fuzz
    target: Target,
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of the corpora
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus"))]
    corpus: PathBuf,
    /// Where inputs with wrong answers are written
    #[arg(long, default_value = "fuzz-findings")]
    findings: PathBuf,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut corpus = read(&cli.corpus.join(cli.target.name()))?;
    ensure!(!corpus.is_empty(), "no corpus for {}", cli.target.name());
    let seeds = corpus.len();
    let harness = Harness::new()?;
    let mut rng = rand::rngs::StdRng::seed_from_u64(cli.seed);
    let (begun, span) = (Instant::now(), Duration::from_secs(cli.seconds));
    let (mut runs, mut found, mut base) = (0u64, 0u64, None);
    let mut codes: BTreeMap<Option<u16>, u64> = BTreeMap::new();
    let mut next = 0;
    while begun.elapsed() < span {
        // The corpus itself first.
        let input = match corpus.get(next).filter(|_| next < seeds) {
            Some(input) => input.clone(),
            None => {
                let empty = Vec::new();
                let (one, other) =
                    (corpus.choose(&mut rng).unwrap_or(&empty), corpus.choose(&mut rng).unwrap_or(&empty));
                mutate(one, other, &mut rng)
            }
        };
        next += 1;
        runs += 1;
        match catch_unwind(AssertUnwindSafe(|| harness.run(cli.target, &input))) {
            Ok(code) => {
                let count = codes.entry(code).or_default();
                *count += 1;
                // Rare answers and a share of the accepted ones are worth going on from.
                let accepted = code.is_some_and(|c| c < 300) && rng.random_ratio(1, 20);
                if next > seeds && corpus.len() < KEPT && (*count < 8 || accepted) {
                    corpus.push(input);
                }
            }
            Err(_) => {
                found += 1;
                std::fs::create_dir_all(&cli.findings)?;
                let name = format!("{}-{}-{found}", cli.target.name(), cli.seed);
                std::fs::write(cli.findings.join(&name), &input)?;
                eprintln!("finding: {name}");
                ensure!(found < 50, "too many findings");
            }
        }
        if base.is_none() && begun.elapsed() > span / 10 {
            base = Some(resident()?);
        }
    }
    let growth = resident()?.saturating_sub(base.unwrap_or(u64::MAX));
    println!(
        "{}: {} s, {runs} runs, {found} findings, {} KiB growth, answers {codes:?}",
        cli.target.name(),
        begun.elapsed().as_secs(),
        growth / 1024
    );
    ensure!(found == 0, "{found} findings in {}", cli.findings.display());
    ensure!(growth < MAX_GROWTH, "memory has grown by {} KiB", growth / 1024);
    Ok(())
}

fn read(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    paths.sort();
    paths.iter().map(|p| std::fs::read(p).with_context(|| format!("reading {}", p.display()))).collect()
}

/// Resident memory of this process in bytes (`VmRSS` of proc(5)).
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
