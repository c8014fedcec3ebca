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

/// Whether a program runs. Continuous integration insists on those that it installs.
fn runs(program: &str, arguments: &[&str], in_ci: bool) -> Result<bool> {
    let found = Command::new(program).args(arguments).output().is_ok_and(|out| out.status.success());
    if !found {
        ensure!(!in_ci || std::env::var_os("CI").is_none(), "no {program} on this machine, and CI needs it");
        eprintln!("skipped: {program} {} does not run on this machine", arguments.join(" "));
    }
    Ok(found)
}

/// `HAWSER_KUBECTL` names other versions than the one of the path, separated by colons.
#[tokio::test(flavor = "multi_thread")]
async fn kubectl() -> Result<()> {
    let versions = std::env::var("HAWSER_KUBECTL").unwrap_or_else(|_| "kubectl".into());
    for version in versions.split(':') {
        if runs(version, &["version", "--client"], true)? {
            scenario("bash", "kubectl-api.sh", &[("KUBECTL", version)]).await?;
        }
    }
    Ok(())
}

/// `HAWSER_PYTHON` names an interpreter that has the package `kubernetes`.
#[tokio::test(flavor = "multi_thread")]
async fn python() -> Result<()> {
    let python = std::env::var("HAWSER_PYTHON").unwrap_or_else(|_| "python3".into());
    if runs(&python, &["-c", "import kubernetes"], false)? {
        scenario(&python, "python_client.py", &[]).await?;
    }
    Ok(())
}
