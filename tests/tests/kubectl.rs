//! The daily work of a kubectl user, and rollouts under load, by the real kubectl: scripts in `scenarios` against a sandbox
//! of two nodes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hawser_tests::cluster::{Cluster, PROGRAM};

#[test]
fn kubectl_scenarios() -> Result<()> {
    let found = Command::new("kubectl").args(["version", "--client"]).output();
    if !found.is_ok_and(|out| out.status.success()) {
        // Debian has no kubectl that is new enough, so only continuous integration insists on it.
        ensure!(std::env::var_os("CI").is_none(), "no kubectl on this machine, and CI needs it");
        eprintln!("skipped: no kubectl on this machine");
        return Ok(());
    }
    // The bench's server and steady clients are what the rollouts run and count by.
    let load = Path::new(env!("CARGO_BIN_EXE_hawser-bench"));
    let cluster = Cluster::start("kubectl", &hawser_tests::hawser_binary()?, 2, &[], Some(load))?;
    for script in ["kubectl.sh", "rollout.sh"] {
        run(&cluster, script)?;
    }
    Ok(())
}

fn run(cluster: &Cluster, script: &str) -> Result<()> {
    let out = Command::new("bash")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(script))
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("LOAD_IMAGE", PROGRAM)
        .output()
        .with_context(|| format!("running {script}"))?;
    let transcript =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{transcript}\n{}", cluster.logs_tail());
    println!("{transcript}");
    Ok(())
}
