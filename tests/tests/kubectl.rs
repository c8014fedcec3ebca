//! The daily work of a kubectl user, by the real kubectl: `scenarios/kubectl.sh` against a sandbox of two nodes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hawser_tests::cluster::Cluster;

#[test]
fn kubectl_scenario() -> Result<()> {
    let found = Command::new("kubectl").args(["version", "--client"]).output();
    if !found.is_ok_and(|out| out.status.success()) {
        // Debian has no kubectl that is new enough, so only continuous integration insists on it.
        ensure!(std::env::var_os("CI").is_none(), "no kubectl on this machine, and CI needs it");
        eprintln!("skipped: no kubectl on this machine");
        return Ok(());
    }
    let cluster = Cluster::start("kubectl", &hawser_tests::hawser_binary()?, 2, &[], None)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/kubectl.sh");
    let out = Command::new("bash")
        .arg(script)
        .env("KUBECONFIG", cluster.kubeconfig())
        .output()
        .context("running the scenario")?;
    let transcript =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{transcript}\n{}", cluster.logs_tail());
    println!("{transcript}");
    Ok(())
}
