//! Configuration, checked before anything starts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// What the binary gives a kubelet. Becomes valid through [`Config::check`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object; a DNS-1123 subdomain.
    pub node_name: String,
    /// Addresses of the node, primary first. Reported as `InternalIP`.
    pub node_ips: Vec<IpAddr>,
    /// Labels to put on the Node besides the well-known ones.
    pub labels: Vec<(String, String)>,
    /// Taints for a new Node.
    pub taints: Vec<k8s_openapi::api::core::v1::Taint>,
    /// The runtime's CRI socket.
    pub cri_socket: PathBuf,
    /// Pod directories and keys live below this one.
    pub data_dir: PathBuf,
    /// Container logs.
    pub log_dir: PathBuf,
    /// cgroup parent of pods as given to the runtime; a pod's cgroup is `<this>/pod<UID>`.
    pub cgroup_parent: String,
    /// Where the streaming server listens, on one port; empty leaves it out.
    pub listen: Vec<SocketAddr>,
    /// The server's TLS identity and the CA that signs its clients' certificates.
    pub tls: Option<TlsPaths>,
    /// Cluster DNS servers; without any, `ClusterFirst` pods get the node's resolv.conf.
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// The node's resolv.conf; empty for a node without resolver.
    pub resolv_conf: PathBuf,
    /// Pods that the node takes.
    pub max_pods: u32,
    /// Whether containers without a seccomp profile get the runtime's default one.
    pub seccomp_default: bool,
    /// Whether secrets and memory volumes go to tmpfs mounts. Off only where nothing may be mounted, as in tests.
    pub tmpfs: bool,
    /// Size at which a container's log is rotated, in bytes.
    pub log_max_size: u64,
    /// Number of log files to keep per container, the current one included; at least 2.
    pub log_max_files: usize,
    /// Version reported in `nodeInfo.kubeletVersion`.
    pub version: String,
    /// Time between renewals of the node's Lease; the lease lasts four times as long.
    pub lease_interval: Duration,
    /// Whether to register the Node object.
    pub register_node: bool,
    /// Whether pods become ready, and are sent their signal, only once all dataplanes have acknowledged that; see
    /// [`hawser_api::dataplane`]. Only with Hawser's own controllers and dataplane.
    pub await_dataplanes: bool,
}

/// Files of the streaming server's TLS identity, PEM.
#[derive(Clone, Debug)]
pub struct TlsPaths {
    /// Serving certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// CA of clients; without one, clients show bearer tokens.
    pub client_ca: Option<PathBuf>,
}

impl Config {
    /// A configuration with Kubernetes' and Hawser's defaults.
    pub fn new(node_name: impl Into<String>, data_dir: impl Into<PathBuf>) -> Config {
        let data_dir = data_dir.into();
        Config {
            node_name: node_name.into(),
            node_ips: Vec::new(),
            labels: Vec::new(),
            taints: Vec::new(),
            cri_socket: "/run/hawser/cri.sock".into(),
            log_dir: "/var/log/pods".into(),
            cgroup_parent: "kubepods".into(),
            listen: Vec::new(),
            tls: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            max_pods: 110,
            seccomp_default: true,
            tmpfs: true,
            log_max_size: 10 << 20,
            log_max_files: 5,
            version: "v1.36.0".into(),
            lease_interval: Duration::from_secs(10),
            register_node: true,
            await_dataplanes: false,
            data_dir,
        }
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// Names the first field that cannot work.
    pub fn check(self) -> Result<Checked, ConfigError> {
        let name_ok = !self.node_name.is_empty()
            && self.node_name.len() <= 253
            && self
                .node_name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        if !name_ok {
            return Err(ConfigError::NodeName(self.node_name));
        }
        for (field, path) in
            [("data_dir", &self.data_dir), ("log_dir", &self.log_dir), ("cri_socket", &self.cri_socket)]
        {
            if !path.is_absolute() {
                return Err(ConfigError::NotAbsolute(field, path.clone()));
            }
        }
        if self.node_ips.is_empty() {
            return Err(ConfigError::NoAddress);
        }
        if !self.listen.is_empty() && self.tls.is_none() {
            return Err(ConfigError::NoTls);
        }
        if self.log_max_files < 2 {
            return Err(ConfigError::LogFiles);
        }
        if self.lease_interval.is_zero() {
            return Err(ConfigError::LeaseInterval);
        }
        Ok(Checked(self))
    }
}

/// A configuration that passed [`Config::check`].
#[derive(Clone, Debug)]
pub struct Checked(Config);

impl std::ops::Deref for Checked {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a DNS-1123 subdomain.
    #[error("node name {0:?} is not a lower-case DNS name")]
    NodeName(String),
    /// A relative path.
    #[error("{0} must be an absolute path, not {1:?}")]
    NotAbsolute(&'static str, PathBuf),
    /// No node address.
    #[error("the node needs an address")]
    NoAddress,
    /// A server without identity.
    #[error("the streaming server needs a certificate, a key and a client CA")]
    NoTls,
    /// Rotation without room.
    #[error("log_max_files must be at least 2")]
    LogFiles,
    /// A zero interval.
    #[error("lease_interval must be positive")]
    LeaseInterval,
}
