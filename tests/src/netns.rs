//! Commands in network namespaces of a sandbox: of its hosts, and of pods but outside their cgroup, where no socket hook
//! sees them and packets are translated at tc, as those of a network namespace nested in a pod are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;

/// Runs a program of this machine in a network namespace; its output as a pod's `exec` has it.
pub fn run(namespace: &Path, command: &[&str]) -> Result<crate::pods::Output> {
    let out = Command::new("nsenter")
        .arg(format!("--net={}", namespace.display()))
        .args(command)
        .output()
        .context("running nsenter")?;
    Ok(crate::pods::Output {
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        code: out.status.code().unwrap_or(-1),
    })
}

/// Does something on a thread of its own in a network namespace.
pub fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = std::fs::File::open(namespace).with_context(|| format!("{}", namespace.display()))?;
    let enter = || {
        nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join())
        .map_err(|_| anyhow::anyhow!("the thread in the namespace died"))?
}

/// The network namespace of the pod that has an address, on node `number`.
pub fn of_pod(cluster: &Cluster, number: u8, address: &str) -> Result<PathBuf> {
    let run_dir = cluster.sandbox().node_run_dir(number);
    let out = Command::new(crate::hawser_binary()?)
        .args(["bpf", "endpoint", "list", "-o", "json", "--socket"])
        .arg(run_dir.join("proxy.sock"))
        .output()?;
    ensure!(out.status.success(), "bpf endpoint list: {}", String::from_utf8_lossy(&out.stderr));
    let endpoints: Vec<Value> = serde_json::from_slice(&out.stdout)?;
    let found = endpoints.iter().find(|endpoint| endpoint["address"] == address);
    let id = found.and_then(|endpoint| endpoint["sandbox_id"].as_str().or(endpoint["sandboxId"].as_str()));
    Ok(run_dir.join("netns").join(id.with_context(|| format!("no endpoint {address} in {endpoints:?}"))?))
}

/// A network namespace that lives as long as this.
pub struct Unshared {
    path: PathBuf,
    /// Its thread ends when this is dropped, and the namespace with it.
    _keep: std::sync::mpsc::Sender<()>,
}

impl Unshared {
    /// A new one, with nothing in it but loopback.
    pub fn new() -> Result<Self> {
        let (keep, kept) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            let _ = tell.send(made.map(|()| nix::unistd::gettid()));
            let _ = kept.recv();
        });
        let thread = told.recv().context("the namespace's thread died")??;
        let path = format!("/proc/{}/task/{thread}/ns/net", std::process::id());
        Ok(Self { path: path.into(), _keep: keep })
    }

    /// A file that stands for it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Runs commands of `ip` in a network namespace, one per line.
pub fn ip(namespace: &Path, commands: &str) -> Result<()> {
    for command in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = std::iter::once("ip").chain(command.split(' ')).collect();
        let got = run(namespace, &words)?;
        ensure!(got.code == 0, "ip {command}: {got:?}");
    }
    Ok(())
}
