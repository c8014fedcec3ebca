//! Debian's etcd as a process on loopback, for tests.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// An etcd process. It is ended when dropped.
pub struct Etcd {
    child: Child,
    /// For clients.
    pub url: String,
}

impl Etcd {
    /// Starts etcd with its data in `data` and waits until its port is open.
    pub fn start(data: &Path) -> Result<Self> {
        let (client, peer) = (free_port()?, free_port()?);
        let (url, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting etcd: run `cargo xtask setup`")?;
        let etcd = Etcd { child, url };
        let started = Instant::now();
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, client)).is_err() {
            ensure!(started.elapsed() < READY_TIMEOUT, "etcd does not listen after {READY_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
