//! The sandbox's network: one namespace per host, joined by a bridge in a namespace of its own.
//!
//! Namespaces are bound below the sandbox's own directory and links are made inside them, so nothing of the
//! machine's own network, not even the list of its interfaces, changes.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{output, run};

/// Prefix length of the fabric's network.
pub const FABRIC_PREFIX: u8 = 24;

/// Address of the control plane's host.
pub const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);

/// Address of node `number`, counted from 1.
pub fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + number)
}

/// The namespaces of one sandbox.
pub struct Network {
    directory: PathBuf,
}

impl Network {
    /// Namespaces bound below `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Network { directory }
    }

    /// The file that a host's namespace is bound to.
    pub fn namespace(&self, host: &str) -> PathBuf {
        self.directory.join(host)
    }

    /// Makes the fabric's namespace with its bridge, unless it is there.
    pub fn ensure_fabric(&self) -> Result<()> {
        if self.make_namespace("fabric")? {
            self.ip("fabric", "link set lo up\nlink add br0 type bridge\nlink set br0 up\n")?;
        }
        Ok(())
    }

    /// Makes a host's namespace with `eth0` on the fabric, unless it is there.
    pub fn ensure_host(&self, host: &str, address: Ipv4Addr) -> Result<()> {
        if !self.make_namespace(host)? {
            return Ok(());
        }
        let theirs = self.namespace(host);
        self.ip(
            "fabric",
            &format!(
                "link add {host} type veth peer name eth0 netns {}\nlink set {host} master br0\nlink set {host} up\n",
                theirs.display()
            ),
        )?;
        self.ip(
            host,
            &format!("link set lo up\naddr add {address}/{FABRIC_PREFIX} dev eth0\nlink set eth0 up\n"),
        )
    }

    /// Routes a node's pods to the node, on a host that is not a node itself.
    pub fn route(&self, host: &str, destination: &str, via: Ipv4Addr) -> Result<()> {
        self.ip(host, &format!("route replace {destination} via {via}\n"))
    }

    /// Removes a host's namespace. Nothing happens when it is not there.
    pub fn remove_host(&self, host: &str) -> Result<()> {
        let path = self.namespace(host);
        if !path.exists() {
            return Ok(());
        }
        while is_mount_point(&path)? {
            nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH)
                .with_context(|| format!("unmounting {}", path.display()))?;
        }
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// The hosts whose namespaces are there.
    pub fn hosts(&self) -> Result<Vec<String>> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Ok(Vec::new()) };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Whether it had to be made.
    fn make_namespace(&self, host: &str) -> Result<bool> {
        let path = self.namespace(host);
        if path.exists() && is_mount_point(&path)? {
            return Ok(false);
        }
        fs::create_dir_all(&self.directory)?;
        fs::write(&path, "")?;
        run(Command::new("unshare").arg(format!("--net={}", path.display())).arg("true"))?;
        Ok(true)
    }

    /// Runs a batch of `ip` commands inside a host's namespace.
    fn ip(&self, host: &str, batch: &str) -> Result<()> {
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.namespace(host).display()))
            .args(["ip", "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("running nsenter and ip: run `cargo xtask setup`")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(batch.as_bytes())?;
        }
        let out = child.wait_with_output()?;
        ensure!(out.status.success(), "ip on {host}: {}", String::from_utf8_lossy(&out.stderr).trim());
        Ok(())
    }

    /// The output of a command run inside a host's namespace.
    pub fn output(&self, host: &str, program: &str, args: &[&str]) -> Result<String> {
        output(
            Command::new("nsenter")
                .arg(format!("--net={}", self.namespace(host).display()))
                .arg(program)
                .args(args),
        )
    }
}

/// The mount points at or below a path, the deepest last, from `/proc/self/mountinfo`.
pub fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|escaped| {
            PathBuf::from(escaped.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        })
        .filter(|point| point.starts_with(path))
        .collect())
}

fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mounts_below(path)?.iter().any(|point| point == path))
}
