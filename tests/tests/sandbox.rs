//! A sandbox leaves nothing behind, whether it is removed as it runs or after its daemons were killed.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use hawser_tests::footprint::Footprint;
use hawser_tests::pods::{run_busybox, run_nginx};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use xtask::sandbox::Sandbox;
use xtask::{build, images};

#[tokio::test(flavor = "multi_thread")]
async fn removal_leaves_nothing() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("hawser-test-").tempdir()?;
    for crashed in [false, true] {
        let name = format!("removal-{}", std::process::id());
        let data = directory.path().join("sandbox");
        let sandbox = Sandbox::new(&name, &data, &hawser_tests::hawser_binary()?);
        let run = Path::new("/run/hawser-sandbox").join(&name);
        let folders = [data.as_path(), run.as_path()];
        let look = |known: &BTreeSet<u64>| Footprint::of(&name, &folders, known);
        let before = look(&BTreeSet::new())?;
        let used = use_it(&sandbox, crashed, &look).await;
        let removed = sandbox.remove();
        let during = used?;
        removed?;
        let after = look(&during.namespaces)?;
        println!("daemons killed: {crashed}\n  before: {before}\n  during: {during}\n  after:  {after}");
        ensure!(before == Footprint::default(), "before: {before:?}");
        let lists = [during.mounts.len(), during.cgroups.len(), during.pins.len(), during.processes.len()];
        ensure!(lists.iter().all(|length| *length > 0), "the test does not see what there is: {during:?}");
        // The fabric, three hosts, and four pods.
        ensure!(during.namespaces.len() >= 8, "the test does not see all namespaces: {during:?}");
        ensure!(after == Footprint::default(), "left behind: {after:?}");
        sandbox.remove()?;
    }
    Ok(())
}

/// Runs pods on both nodes and looks; then, if asked to, kills the daemons, whose pods go on.
async fn use_it(
    sandbox: &Sandbox,
    crash: bool,
    look: &impl Fn(&BTreeSet<u64>) -> Result<Footprint>,
) -> Result<Footprint> {
    sandbox.start(2, &images::build_demo(&build::demo_images_dir())?, &|_| {})?;
    let client = hawser_tests::cluster::client(&sandbox.kubeconfig()).await?;
    run_nginx(&client, "web", 2).await?;
    for node in ["node-1", "node-2"] {
        run_busybox(&client, node, json!({"nodeName": node}), "sleep 100000").await?;
    }
    let found = look(&BTreeSet::new())?;
    if crash {
        for host in ["server", "node-1", "node-2"] {
            if let Some(daemon) = sandbox.daemon(host)? {
                kill(Pid::from_raw(daemon.pid), Signal::SIGKILL)?;
            }
        }
    }
    Ok(found)
}
