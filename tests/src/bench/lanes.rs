//! Lanes: the same client and server by different ways, driven in turns.
//!
//! Clients and servers of all lanes are children of the bench and only enter a network namespace, a pod's or another
//! one, and in a pod its cgroup v2, where the socket hooks are. So what is compared is the ways, and not the CPU
//! cgroups that a pod is in and a bare namespace is not.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_tests::cgroup2;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::load::Mode;

/// How long one lane is loaded in one round.
pub const SPAN: Duration = Duration::from_millis(250);
/// How long a line of a child may take, the round's own time included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a process is.
#[derive(Debug, Clone)]
pub struct Place {
    netns: PathBuf,
    /// Directory of its cgroup v2, if that matters.
    cgroup: Option<PathBuf>,
}

impl Place {
    /// In a network namespace.
    pub fn bare(netns: &Path) -> Self {
        Self { netns: netns.to_path_buf(), cgroup: None }
    }

    /// Beside a container of a pod that runs on this machine.
    pub fn of_pod(pod: &Pod) -> Result<Self> {
        let uid = pod.metadata.uid.as_deref().context("a pod without uid")?;
        let mount = cgroup2::mount_point()?;
        for process in std::fs::read_dir("/proc")?.flatten() {
            let Some(own) = cgroup2::path_of(&process.path()) else { continue };
            if own.contains(&format!("pod{uid}/")) {
                let cgroup = mount.join(own.trim_start_matches('/'));
                return Ok(Self { netns: process.path().join("ns/net"), cgroup: Some(cgroup) });
            }
        }
        anyhow::bail!("no process of the pod {uid}")
    }

    /// This program there.
    fn spawn(&self, args: &[String]) -> Result<Child> {
        let mut script = String::from("set -e; ");
        if let Some(cgroup) = &self.cgroup {
            script.push_str(&format!("echo $$ >'{}/cgroup.procs'; ", cgroup.display()));
        }
        script.push_str(&format!("exec nsenter --net='{}' \"$@\"", self.netns.display()));
        Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("running sh and nsenter")
    }
}

/// The load generator's server; it ends with this value.
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts it and waits until it listens.
    pub async fn start(place: &Place, port: u16) -> Result<Self> {
        let mut child = place.spawn(&["serve".into(), format!("--port={port}")])?;
        let mut lines = lines(&mut child)?;
        ensure!(line(&mut lines).await?.trim() == "ready", "the load generator's server does not start");
        Ok(Self { child })
    }

    /// Datagrams that came to a socket in the server's network namespace, read or not (proc_pid_net(5), RFC 4113).
    pub fn datagrams(&self) -> Result<u64> {
        let process = self.child.id().context("the server ended")?;
        let table = std::fs::read_to_string(format!("/proc/{process}/net/snmp"))?;
        let mut rows = table.lines().filter_map(|line| line.strip_prefix("Udp:"));
        let (names, values) = (rows.next().context("no names")?, rows.next().context("no values")?);
        let columns = names.split_whitespace().zip(values.split_whitespace());
        let counted = columns.filter(|(name, _)| ["InDatagrams", "RcvbufErrors"].contains(name));
        Ok(counted.filter_map(|(_, value)| value.parse::<u64>().ok()).sum())
    }
}

/// One way from a client to a server.
pub struct Lane {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    rates: Vec<f64>,
}

impl Lane {
    /// A client that waits for its first round. `address`: of the server, at whose `port` the mode is served.
    pub fn new(place: &Place, mode: Mode, address: &str, port: u16) -> Result<Self> {
        let mode = clap::ValueEnum::to_possible_value(&mode).context("a mode without a name")?;
        let mut child = place.spawn(&[
            "load".into(),
            format!("--mode={}", mode.get_name()),
            format!("--target={address}:{port}"),
        ])?;
        let orders = child.stdin.take().context("no input")?;
        let answers = lines(&mut child)?;
        Ok(Self { child, orders, answers, rates: Vec::new() })
    }

    /// One round's rate per second.
    pub async fn round(&mut self) -> Result<f64> {
        self.orders.write_all(b"\n").await?;
        match line(&mut self.answers).await {
            Ok(answer) => answer.trim().parse().with_context(|| format!("the load generator said {answer}")),
            Err(error) => Err(error.context(format!("the load generator: {:?}", self.child.try_wait()?))),
        }
    }

    /// The median of the rounds' rates.
    pub fn rate(&self) -> Result<f64> {
        median(self.rates.clone())
    }

    /// The median, over the rounds, of this lane's rate over another's.
    pub fn over(&self, other: &Lane) -> Result<f64> {
        median(self.rates.iter().zip(&other.rates).map(|(ours, theirs)| ours / theirs).collect())
    }
}

/// Loads all lanes `rounds` times in turns. Every other round goes through them backwards, so that none is always the one
/// that comes after another.
pub async fn in_turns(lanes: &mut [Lane], rounds: usize) -> Result<()> {
    // One round to warm up, which does not count.
    for round in 0..=rounds {
        for turn in 0..lanes.len() {
            let at = if round % 2 == 0 { turn } else { lanes.len() - 1 - turn };
            let rate = lanes[at].round().await?;
            if round > 0 {
                lanes[at].rates.push(rate);
            }
        }
    }
    Ok(())
}

/// The same with the datagrams that arrive at the lanes' servers, not those that are sent.
pub async fn arrivals_in_turns(lanes: &mut [Lane], servers: &[&Server], rounds: usize) -> Result<()> {
    for round in 0..=rounds {
        for turn in 0..lanes.len() {
            let at = if round % 2 == 0 { turn } else { lanes.len() - 1 - turn };
            let before = servers[at].datagrams()?;
            lanes[at].round().await?;
            let arrived = servers[at].datagrams()? - before;
            if round > 0 {
                lanes[at].rates.push(arrived as f64 / SPAN.as_secs_f64());
            }
        }
    }
    Ok(())
}

fn lines(child: &mut Child) -> Result<Lines<BufReader<ChildStdout>>> {
    Ok(BufReader::new(child.stdout.take().context("no output")?).lines())
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    tokio::time::timeout(PATIENCE, lines.next_line()).await.context("no answer in time")??.context("it ended")
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("no rates")
}
