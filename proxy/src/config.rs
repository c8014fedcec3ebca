//! Configuration, as given and as checked.

use std::net::IpAddr;
use std::path::PathBuf;

use hawser_ebpf_common::endpoint::tunnel_overhead;
use ipnet::IpNet;

/// Longest path of a unix socket (`sun_path` less its final NUL).
const MAX_SOCKET_PATH: usize = 107;
/// Smallest MTU of IPv4 (RFC 791) and of IPv6 (RFC 8200).
const MIN_MTU: [u32; 2] = [68, 1280];

/// Where Services' packets are first looked at on the uplink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Xdp {
    /// Native in a driver of hardware that can, else generic. Not on a virtual interface: whoever sends into its other
    /// end may leave checksums for later, and what XDP sends back would carry them as they are.
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's generic hook.
    Generic,
    /// Not at all: tc does everything.
    #[default]
    Off,
}

impl std::str::FromStr for Xdp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            "off" => Ok(Self::Off),
            other => Err(format!("{other:?} is none of auto, native, generic, off")),
        }
    }
}

/// How packets for other nodes' pods get there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tunnel {
    /// As they are: nodes share a link, or the network between them has routes to the pods' prefixes.
    #[default]
    Off,
    /// In UDP between the nodes' addresses of IPv4, or of IPv6 when they have no others (RFC 7348). Every node of a cluster
    /// must do the same.
    Vxlan,
}

impl std::str::FromStr for Tunnel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "vxlan" => Ok(Self::Vxlan),
            other => Err(format!("{other:?} is none of off, vxlan")),
        }
    }
}

/// What an agent is told. [`crate::Agent::start`] checks it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this machine's Node.
    pub node_name: String,
    /// Addresses of this machine, as the other nodes reach it: at most one per family, the primary one first. Pods get
    /// an address of each of these families that the node has a prefix of, and their traffic comes from these when it
    /// is masqueraded. Not used without the pod network.
    pub node_ips: Vec<IpAddr>,
    /// Interface that carries the first of `node_ips`; found by that address when absent.
    pub uplink: Option<String>,
    /// `proxy.sock`, `bpf/` and the pod network's state live here.
    pub run_dir: PathBuf,
    /// Directory of a cgroup v2 below which the socket hooks work.
    pub cgroup: PathBuf,
    /// Addresses of Services: what no Service translates there is refused.
    pub service_cidrs: Vec<IpNet>,
    /// Node ports are open on this machine's addresses within these; when empty, on the primary address of
    /// each family, and on 127.0.0.1 for the machine's own sockets.
    pub node_port_addresses: Vec<IpNet>,
    /// MTU of the pods' interfaces; the uplink's when absent, less what a tunnel puts before a packet.
    pub mtu: Option<u32>,
    /// Pods that talk to something outside the cluster get the node's address.
    pub masquerade: bool,
    /// Makes the pods' network too. Without it only the socket hooks translate.
    pub pod_network: bool,
    /// XDP on the uplink. Not used without the pod network.
    pub xdp: Xdp,
    /// The way to other nodes' pods. Not used without the pod network.
    pub tunnel: Tunnel,
}

impl Config {
    /// This machine's address of a family.
    pub fn node_ip(&self, v6: bool) -> Option<IpAddr> {
        self.node_ips.iter().copied().find(|address| address.is_ipv6() == v6)
    }

    /// Smallest MTU that pods can have: of the more demanding of the node's families.
    pub fn least_mtu(&self) -> u32 {
        MIN_MTU[usize::from(self.node_ip(true).is_some())]
    }

    /// Bytes that a tunnel puts before a packet; 0 without one.
    pub fn overhead(&self) -> u32 {
        match self.tunnel {
            Tunnel::Off => 0,
            Tunnel::Vxlan => tunnel_overhead(self.node_ip(false).is_none()),
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// A configuration that was checked.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) config: Config,
}

impl Settings {
    /// Checks what can be checked without touching the system.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(config: Config) -> Result<Self, ConfigError> {
        let wrong = |field, problem: &str| Err(ConfigError { field, problem: problem.to_string() });
        if config.node_name.is_empty() {
            return wrong("node_name", "is empty");
        }
        if config.pod_network {
            let no_machine = |address: &IpAddr| address.is_unspecified() || address.is_multicast();
            if config.node_ips.is_empty() || config.node_ips.iter().any(no_machine) {
                return wrong("node_ips", "is not the address of a machine");
            }
            if let [first, more @ ..] = config.node_ips.as_slice()
                && (more.len() > 1 || more.iter().any(|address| address.is_ipv4() == first.is_ipv4()))
            {
                return wrong("node_ips", "has more than one address of a family");
            }
        }
        if !config.run_dir.is_absolute() {
            return wrong("run_dir", "is not an absolute path");
        }
        if config.run_dir.join("proxy.sock").as_os_str().len() > MAX_SOCKET_PATH {
            return wrong("run_dir", "is too long for the path of a unix socket");
        }
        if !config.cgroup.is_absolute() {
            return wrong("cgroup", "is not an absolute path");
        }
        let least = config.least_mtu();
        if config.mtu.is_some_and(|mtu| mtu < least) {
            return wrong("mtu", &format!("is below {least}"));
        }
        Ok(Self { config })
    }

    /// Where everything is pinned.
    pub fn pins(&self) -> PathBuf {
        self.config.run_dir.join("bpf")
    }

    /// The inspection socket.
    pub fn socket(&self) -> PathBuf {
        self.config.run_dir.join("proxy.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Config {
        Config {
            node_name: "n1".into(),
            node_ips: vec![[10, 0, 0, 1].into()],
            uplink: None,
            run_dir: "/run/hawser".into(),
            cgroup: "/sys/fs/cgroup".into(),
            service_cidrs: Vec::new(),
            node_port_addresses: Vec::new(),
            mtu: None,
            masquerade: true,
            pod_network: true,
            xdp: Xdp::Off,
            tunnel: Tunnel::Off,
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        assert!(Settings::check(good()).is_ok());
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 9] = [
            ("node_name", |c| c.node_name.clear()),
            ("node_ips", |c| c.node_ips.clear()),
            ("node_ips", |c| c.node_ips = vec![[0; 4].into()]),
            ("node_ips", |c| c.node_ips.push([10, 0, 0, 2].into())),
            ("run_dir", |c| c.run_dir = "run".into()),
            ("run_dir", |c| c.run_dir = format!("/{}", "x".repeat(120)).into()),
            ("cgroup", |c| c.cgroup = "x".into()),
            ("mtu", |c| c.mtu = Some(10)),
            ("mtu", |c| {
                c.node_ips.push([0xfd00, 0, 0, 0, 0, 0, 0, 1].into());
                c.mtu = Some(1279);
            }),
        ];
        for (field, change) in cases {
            let mut config = good();
            change(&mut config);
            assert_eq!(Settings::check(config).err().map(|error| error.field), Some(field));
        }
    }
}
