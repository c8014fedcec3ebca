//! Configuration, as given and as checked.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};

/// Longest path of a unix socket (`sun_path` less its final NUL).
const MAX_SOCKET_PATH: usize = 107;
/// Smallest MTU of IPv4 (RFC 791).
const MIN_MTU: u32 = 68;

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

/// What an agent is told. [`crate::Agent::start`] checks it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this machine's Node.
    pub node_name: String,
    /// Address of this machine, as the other nodes reach it. Pods' traffic comes from it when it is
    /// masqueraded. Not used without the pod network.
    pub node_ip: Ipv4Addr,
    /// Interface that carries `node_ip`; found by that address when absent.
    pub uplink: Option<String>,
    /// `proxy.sock`, `bpf/` and the pod network's state live here.
    pub run_dir: PathBuf,
    /// Directory of a cgroup v2 below which the socket hooks work.
    pub cgroup: PathBuf,
    /// Addresses of Services: what no Service translates there is refused.
    pub service_cidr: Option<Ipv4Net>,
    /// Node ports are open on this machine's addresses within these; when empty, on the primary address of
    /// each family, and on 127.0.0.1 for the machine's own sockets.
    pub node_port_addresses: Vec<IpNet>,
    /// MTU of the pods' interfaces; the uplink's when absent.
    pub mtu: Option<u32>,
    /// Pods that talk to something outside the cluster get the node's address.
    pub masquerade: bool,
    /// Makes the pods' network too. Without it only the socket hooks translate.
    pub pod_network: bool,
    /// XDP on the uplink. Not used without the pod network.
    pub xdp: Xdp,
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
        if config.pod_network && (config.node_ip.is_unspecified() || config.node_ip.is_multicast()) {
            return wrong("node_ip", "is not the address of a machine");
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
        if config.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return wrong("mtu", "is below 68");
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
            node_ip: Ipv4Addr::new(10, 0, 0, 1),
            uplink: None,
            run_dir: "/run/hawser".into(),
            cgroup: "/sys/fs/cgroup".into(),
            service_cidr: None,
            node_port_addresses: Vec::new(),
            mtu: None,
            masquerade: true,
            pod_network: true,
            xdp: Xdp::Off,
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        assert!(Settings::check(good()).is_ok());
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 6] = [
            ("node_name", |c| c.node_name.clear()),
            ("node_ip", |c| c.node_ip = Ipv4Addr::UNSPECIFIED),
            ("run_dir", |c| c.run_dir = "run".into()),
            ("run_dir", |c| c.run_dir = format!("/{}", "x".repeat(120)).into()),
            ("cgroup", |c| c.cgroup = "x".into()),
            ("mtu", |c| c.mtu = Some(10)),
        ];
        for (field, change) in cases {
            let mut config = good();
            change(&mut config);
            assert_eq!(Settings::check(config).err().map(|error| error.field), Some(field));
        }
    }
}
