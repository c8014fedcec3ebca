//! The sandbox's daemons: started inside a host's namespace, remembered by pid and start time.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How long a daemon may take to stop after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A process, told from later ones with the same pid by its start time.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Daemon {
    pub pid: i32,
    /// Clock ticks after boot (field 22 of `/proc/PID/stat`, proc(5)).
    pub start_time: u64,
}

impl Daemon {
    /// Starts a program in the network namespace bound to `namespace`, under a host name of its own, its output in `log`,
    /// and, if given, a listening socket handed over as systemd does (`LISTEN_FDS`).
    pub fn start(
        host: &str,
        namespace: &Path,
        listener: Option<TcpListener>,
        argv: &[String],
        log: &Path,
    ) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut command = Command::new("sh");
        // `$$` stays the same through all exec calls, which is what LISTEN_PID must be.
        let script = if let Some(listener) = listener {
            command.stdin(Stdio::from(OwnedFd::from(listener)));
            "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec unshare --uts \"$@\""
        } else {
            command.stdin(Stdio::null());
            "exec unshare --uts \"$@\""
        };
        let child = command
            .args(["-c", script, "sh"])
            .args(["sh", "-c", "echo \"$0\" >/proc/sys/kernel/hostname && exec nsenter \"$@\"", host])
            .arg(format!("--net={}", namespace.display()))
            .arg("--")
            .args(argv)
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", argv.first().map_or("", String::as_str)))?;
        let pid = i32::try_from(child.id())?;
        let start_time = start_time(pid).with_context(|| format!("process {pid} ended at once"))?;
        Ok(Daemon { pid, start_time })
    }

    /// Whether it still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// SIGTERM, and SIGKILL if that is not enough.
    pub fn stop(&self) -> Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if !self.is_alive() {
                return Ok(());
            }
            let _ = kill(Pid::from_raw(self.pid), signal);
            let deadline = Instant::now() + STOP_TIMEOUT;
            while self.is_alive() && Instant::now() < deadline {
                // Not our child after the first command ended, so it cannot be waited for.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if self.is_alive() {
            bail!("process {} does not end", self.pid);
        }
        Ok(())
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command's name, may hold blanks and parentheses.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
