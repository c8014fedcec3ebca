//! The sandbox's network: one namespace per host, joined by a bridge in a namespace of its own.
//!
//! Namespaces are bound below the sandbox's own directory and links are made inside them, so nothing of the
//! machine's own network, not even the list of its interfaces, changes.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{output, run};

/// The last part of the control plane's addresses.
const SERVER: u8 = 2;

const fn fabric4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, host)
}

const fn fabric6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, host as u16)
}

/// Address of node `number`, counted from 1.
pub fn node_address(number: u8) -> Ipv4Addr {
    fabric4(10 + number)
}

/// Address of IPv6 of node `number`, counted from 1.
pub fn node_address6(number: u8) -> Ipv6Addr {
    fabric6(10 + number)
}

/// The address families that hosts have, and the ranges of pods and Services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Families {
    /// IPv4.
    #[default]
    V4,
    /// Both, IPv4 first.
    Dual,
    /// IPv6.
    V6,
}

impl Families {
    /// A host's addresses, by the number in their last part.
    fn addresses(self, host: u8) -> Vec<IpAddr> {
        match self {
            Self::V4 => vec![fabric4(host).into()],
            Self::Dual => vec![fabric4(host).into(), fabric6(host).into()],
            Self::V6 => vec![fabric6(host).into()],
        }
    }

    /// Of the control plane's host.
    pub fn of_server(self) -> Vec<IpAddr> {
        self.addresses(SERVER)
    }

    /// Where the API server is: of the first family.
    pub fn api_server(self, port: u16) -> SocketAddr {
        let address = match self {
            Self::V4 | Self::Dual => fabric4(SERVER).into(),
            Self::V6 => fabric6(SERVER).into(),
        };
        SocketAddr::new(address, port)
    }

    /// Of node `number`, counted from 1.
    pub fn of_node(self, number: u8) -> Vec<IpAddr> {
        self.addresses(10 + number)
    }

    /// What server and agents are told about the ranges of pods and Services.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &[],
            Self::Dual => &[
                "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
                "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112",
            ],
            Self::V6 => &["--cluster-cidr=fd00:10:244::/56", "--service-cluster-ip-range=fd00:10:96::/112"],
        }
    }
}

/// How hosts are joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fabric {
    /// One link for all.
    #[default]
    Bridge,
    /// A link for each, and a router that knows the hosts' addresses and no pods'.
    Router,
}

/// The router's own addresses.
const ROUTER: (Ipv4Addr, Ipv6Addr) = (fabric4(1), fabric6(1));

/// The namespaces of one sandbox.
pub struct Network {
    directory: PathBuf,
    fabric: Fabric,
}

impl Network {
    /// Namespaces bound below `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Network { directory, fabric: Fabric::default() }
    }

    /// Joins hosts in another way.
    pub fn join_by(&mut self, fabric: Fabric) {
        self.fabric = fabric;
    }

    /// The file that a host's namespace is bound to.
    pub fn namespace(&self, host: &str) -> PathBuf {
        self.directory.join(host)
    }

    /// Makes the fabric's namespace, unless it is there.
    pub fn ensure_fabric(&self) -> Result<()> {
        if !self.make_namespace("fabric")? {
            return Ok(());
        }
        match self.fabric {
            Fabric::Bridge => {
                self.ip("fabric", "link set lo up\nlink add br0 type bridge\nlink set br0 up\n")
            }
            Fabric::Router => {
                self.ip("fabric", "link set lo up\n")?;
                let forward =
                    "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
                self.output("fabric", "sh", &["-c", forward]).map(drop)
            }
        }
    }

    /// Makes a host's namespace with `eth0` on the fabric, unless it is there.
    pub fn ensure_host(&self, host: &str, addresses: &[IpAddr]) -> Result<()> {
        if !self.make_namespace(host)? {
            return Ok(());
        }
        let pair =
            format!("link add {host} type veth peer name eth0 netns {}\n", self.namespace(host).display());
        let (mut theirs, mut ours) = (pair, "link set lo up\nlink set eth0 up\n".to_owned());
        for address in addresses {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            match self.fabric {
                Fabric::Bridge => {
                    let length = if address.is_ipv4() { 24 } else { 64 };
                    ours.push_str(&format!("addr add {address}/{length} dev eth0{nodad}\n"));
                }
                Fabric::Router => {
                    let router: IpAddr = if address.is_ipv4() { ROUTER.0.into() } else { ROUTER.1.into() };

                    theirs.push_str(&format!(
                        "addr add {router} dev {host}{nodad}\nroute add {address} dev {host}\n"
                    ));
                    ours.push_str(&format!(
                        "addr add {address} dev eth0{nodad}\nroute add {router} dev eth0\n\
                         route add default via {router} src {address}\n"
                    ));
                }
            }
        }
        // A link must be up before it has routes, and its other end must be there before that.
        let up = match self.fabric {
            Fabric::Bridge => format!("link set {host} master br0\nlink set {host} up\n"),
            Fabric::Router => format!("link set {host} up\n"),
        };
        let (made, routed) = theirs.split_once('\n').unwrap_or((&theirs, ""));
        self.ip("fabric", &format!("{made}\n{up}{routed}"))?;
        self.ip(host, &ours)
    }

    /// Routes a node's pods to the node, on a host that is not a node itself.
    pub fn route(&self, host: &str, destination: &str, via: IpAddr) -> Result<()> {
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
