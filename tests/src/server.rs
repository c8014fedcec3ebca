//! A `hawser server` or `hawser apiserver` process on loopback, for tests without nodes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::wire::Wire;

/// How long a server may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// A server process. It is ended when dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
    data: PathBuf,
    /// From the start of the process to the first answer of `/readyz`.
    pub ready_after: Duration,
}

impl Server {
    /// Starts `binary COMMAND` with its data in `data` on a free port of 127.0.0.1 and waits until it is ready.
    pub async fn start(binary: &Path, command: &str, data: &Path, more: &[String]) -> Result<Self> {
        // The port is free when the probe is dropped; nothing else on loopback asks for it in between.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        Self::start_at(binary, command, data, address, more).await
    }

    /// The same at a given address.
    pub async fn start_at(
        binary: &Path,
        command: &str,
        data: &Path,
        address: SocketAddr,
        more: &[String],
    ) -> Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(data.join("log"))?;
        let started = Instant::now();
        let child = Command::new(binary)
            .arg(command)
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--bind={address}"))
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut server = Server { child, address, data: data.to_path_buf(), ready_after: Duration::ZERO };
        server.wait_ready(started).await?;
        server.ready_after = started.elapsed();
        Ok(server)
    }

    async fn wait_ready(&mut self, started: Instant) -> Result<()> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = std::fs::read_to_string(self.data.join("log")).unwrap_or_default();
                bail!("the server ended ({status}): {}", log.lines().last().unwrap_or_default());
            }
            if self.is_ready().await {
                return Ok(());
            }
            ensure!(started.elapsed() < READY_TIMEOUT, "the server is not ready after {READY_TIMEOUT:?}");
            // Until the kubeconfig is written and the port is open there is nothing to wait on.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn is_ready(&self) -> bool {
        let Ok(mut wire) = Wire::connect(&self.kubeconfig()).await else { return false };
        wire.get("/readyz").await.is_ok()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("admin.kubeconfig")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and waits until the process has ended by itself.
    pub fn stop(&mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Resident memory of a process in bytes (`VmRSS` of proc(5)).
pub fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Processor time that a process has used so far, in user and in kernel mode (`utime`, `stime` of proc(5)).
pub fn cpu(pid: u32) -> Result<(Duration, Duration)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name may hold spaces; what follows its closing parenthesis begins with field 3.
    let fields: Vec<&str> =
        stat.rsplit(')').next().context("no command in stat")?.split_whitespace().collect();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    let time = |field: usize| -> Result<Duration> {
        let ticks: u32 = fields.get(field - 3).context("stat is short")?.parse()?;
        Ok(Duration::from_secs(1) * ticks / u32::try_from(per_second)?)
    };
    Ok((time(14)?, time(15)?))
}
