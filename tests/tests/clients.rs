//! Clients of others against a control plane without nodes: kubectl of any version, and the Python client.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hawser_tests::server::Server;

/// Runs a program of `scenarios/` against a control plane of its own.
async fn scenario(program: &str, script: &str, more: &[(&str, &str)]) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("hawser-test-").tempdir()?;
    let server = Server::start(&hawser_tests::hawser_binary()?, "server", directory.path(), &[]).await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(script);
    let out = Command::new(program)
        .arg(&script)
        .env("KUBECONFIG", server.kubeconfig())
        .envs(more.iter().copied())
        .output()
        .with_context(|| format!("running {}", script.display()))?;
    let transcript =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
    ensure!(!log.contains("panicked"), "{log}");
    ensure!(out.status.success(), "{transcript}");
    println!("{transcript}");
    Ok(())
}

/// `HAWSER_KUBECTL` names other versions than the one of the path, separated by colons.
#[tokio::test(flavor = "multi_thread")]
async fn kubectl() -> Result<()> {
    let versions = std::env::var("HAWSER_KUBECTL").unwrap_or_else(|_| "kubectl".into());
    for version in versions.split(':') {
        if version == "kubectl" && Command::new(version).arg("version").output().is_err() {
            // Debian has no kubectl that is new enough, so only continuous integration insists on it.
            ensure!(std::env::var_os("CI").is_none(), "no kubectl on this machine, and CI needs it");
            eprintln!("skipped: no kubectl on this machine");
            continue;
        }
        scenario("bash", "kubectl-api.sh", &[("KUBECTL", version)]).await?;
    }
    Ok(())
}

/// `HAWSER_PYTHON` names an interpreter that has the package `kubernetes`; Debian's is too old.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs HAWSER_PYTHON, an interpreter with the package kubernetes of version 31 or later"]
async fn python() -> Result<()> {
    let python = std::env::var("HAWSER_PYTHON").context("HAWSER_PYTHON is not set")?;
    scenario(&python, "python_client.py", &[]).await
}
