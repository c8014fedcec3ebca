//! What Hawser is measured beside: hosts and their "pods" in network namespaces, with the kernel's own forwarding and what
//! kube-proxy would write, joined as a sandbox's nodes are; and two namespaces with nothing between them but a veth.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hawser_tests::netns::{self, Unshared, ip};

use crate::lanes::Place;
use crate::rivals::{self, Port};

/// The ways a host treats Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It knows none.
    Routed,
    /// As kube-proxy writes them for iptables.
    Iptables,
    /// As kube-proxy writes them for nftables.
    Nftables,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 3] = [Self::Routed, Self::Iptables, Self::Nftables];

    /// For the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }

    /// The host's number: the last part of its address.
    fn host(self) -> u8 {
        self as u8 + 1
    }
}

/// The number of the host whose pod is the server.
const TARGET: u8 = 4;
/// The number of a host without pods.
const OUTSIDE: u8 = 5;
/// Of all pods.
const CLUSTER: &str = "10.245.0.0/16";

/// The address of a host.
fn host_address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, host)
}

/// The address of a host's pod.
fn pod_address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 245, host, 2)
}

/// Hosts with a pod each; they go with this value.
pub struct Hosts {
    _fabric: Unshared,
    /// By their number, from 1.
    hosts: Vec<Unshared>,
    pods: Vec<Unshared>,
}

impl Hosts {
    /// Makes them.
    pub fn new() -> Result<Self> {
        let fabric = Unshared::new()?;
        ip(fabric.path(), "link set lo up\nlink add br0 type bridge\nlink set br0 up")?;
        let (mut hosts, mut pods) = (Vec::new(), Vec::new());
        for number in 1..=OUTSIDE {
            let (host, pod) = (Unshared::new()?, Unshared::new()?);
            let (at, inside) = (host.path().display(), pod.path().display());
            ip(
                fabric.path(),
                &format!(
                    "link add h{number} type veth peer name eth0 netns {at}\nlink set h{number} master br0\n\
                     link set h{number} up"
                ),
            )?;
            let mut commands = format!(
                "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\n\
                 link add pod type veth peer name eth0 netns {inside}\nlink set pod up\n\
                 addr add 10.245.{number}.1/24 dev pod\n",
                host_address(number)
            );
            for other in (1..=OUTSIDE).filter(|other| *other != number) {
                commands.push_str(&format!("route add 10.245.{other}.0/24 via {}\n", host_address(other)));
            }
            ip(host.path(), &commands)?;
            ip(
                pod.path(),
                &format!(
                    "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\n\
                     route add default via 10.245.{number}.1",
                    pod_address(number)
                ),
            )?;
            let forward = netns::run(host.path(), &["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])?;
            ensure!(forward.code == 0, "forwarding: {forward:?}");
            hosts.push(host);
            pods.push(pod);
        }
        Ok(Self { _fabric: fabric, hosts, pods })
    }

    fn host(&self, number: u8) -> Result<&Unshared> {
        self.hosts.get(usize::from(number) - 1).context("no such host")
    }

    fn pod(&self, number: u8) -> Result<&Unshared> {
        self.pods.get(usize::from(number) - 1).context("no such host")
    }

    /// A pod behind a host of this kind.
    pub fn client(&self, kind: Kind) -> Result<Place> {
        Ok(Place::bare(self.pod(kind.host())?.path()))
    }

    /// A host that is none of the cluster's.
    pub fn outside(&self) -> Result<Place> {
        Ok(Place::bare(self.host(OUTSIDE)?.path()))
    }

    /// The server's pod, and its address.
    pub fn server(&self) -> Result<(Place, Ipv4Addr)> {
        Ok((Place::bare(self.pod(TARGET)?.path()), pod_address(TARGET)))
    }

    /// Where a host of this kind has its node ports.
    pub fn node(&self, kind: Kind) -> Ipv4Addr {
        host_address(kind.host())
    }

    /// Gives a host these Services in place of those that it had. `range`: where their addresses are from.
    pub fn set_services(&self, kind: Kind, ports: &[Port], range: &str, scratch: &Path) -> Result<()> {
        let file = scratch.join(kind.name());
        let shown = file.display().to_string();
        let (text, command) = match kind {
            Kind::Routed => return Ok(()),
            Kind::Iptables => (rivals::iptables(ports, CLUSTER), ["iptables-nft-restore", &shown, ""]),
            Kind::Nftables => {
                let text = rivals::nftables(ports, CLUSTER, self.node(kind), range);
                // Written twice, so that there is one to delete.
                let text = format!("table ip kube-proxy\ndelete table ip kube-proxy\n{text}");
                (text, ["nft", "-f", &shown])
            }
        };
        std::fs::write(&file, text)?;
        let command: Vec<&str> = command.into_iter().filter(|word| !word.is_empty()).collect();
        let got = netns::run(self.host(kind.host())?.path(), &command)?;
        ensure!(got.code == 0, "{command:?}: {}", got.stderr.chars().take(2000).collect::<String>());
        Ok(())
    }
}

/// Two namespaces joined by a veth.
pub struct Pair {
    ends: [Unshared; 2],
}

impl Pair {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let ends = [Unshared::new()?, Unshared::new()?];
        ip(
            ends[0].path(),
            &format!(
                "link set lo up\nlink add eth0 type veth peer name eth0 netns {}\nlink set eth0 up\n\
                 addr add 192.0.2.1/24 dev eth0",
                ends[1].path().display()
            ),
        )?;
        ip(ends[1].path(), "link set lo up\nlink set eth0 up\naddr add 192.0.2.2/24 dev eth0")?;
        Ok(Self { ends })
    }

    /// The client's end.
    pub fn client(&self) -> Place {
        Place::bare(self.ends[0].path())
    }

    /// The server's end, and its address.
    pub fn server(&self) -> (Place, Ipv4Addr) {
        (Place::bare(self.ends[1].path()), Ipv4Addr::new(192, 0, 2, 2))
    }
}
