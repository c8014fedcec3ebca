//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// A Kubernetes in one binary whose network is eBPF.
#[derive(Parser)]
#[command(name = "hawser", version, propagate_version = false)]
pub struct Cli {
    /// What to log: a level, or `component=level` pairs
    #[arg(long, global = true, env = "HAWSER_LOG", default_value = "info")]
    pub log: String,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The filter of `--log`; dependencies only warn.
    pub fn log_filter(&self) -> EnvFilter {
        if self.log.contains('=') || self.log.contains(',') {
            EnvFilter::new(&self.log)
        } else {
            let level = &self.log;
            EnvFilter::new(format!(
                "warn,hawser={level},hawser_apiserver={level},hawser_storage={level},hawser_controllers={level},\
                 hawser_scheduler={level},hawser_kubelet={level},hawser_runtime={level},hawser_proxy={level},hawser_dns={level}"
            ))
        }
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// The control plane: API server, controllers and scheduler
    Server(ServerFlags),
    /// A node: container runtime, kubelet and dataplane
    Agent(AgentFlags),
    /// The API server alone
    Apiserver(ApiserverFlags),
    /// The controllers alone, against any Kubernetes
    ControllerManager(ControllerManagerFlags),
    /// The scheduler alone, against any Kubernetes
    Scheduler(SchedulerFlags),
    /// The kubelet alone, against any Kubernetes and any CRI runtime
    Kubelet(KubeletFlags),
    /// The Service dataplane alone, against any Kubernetes
    Proxy(ProxyFlags),
    /// The container runtime alone: a CRI socket
    Runtime(RuntimeFlags),
    /// A node's DNS server alone, against any Kubernetes
    Dns(DnsFlags),
    /// Looks at the eBPF maps of the node's dataplane
    #[command(subcommand)]
    Bpf(hawser_cli::BpfCommand),
    /// Prints the version
    Version,
}

/// What whoever has to do with Services' addresses is told about them.
#[derive(Args, Clone)]
pub struct ServiceRanges {
    /// Ranges of the Services' addresses, separated by commas: one, or one per family, that of the default family first
    #[arg(
        long,
        alias = "service-cidr",
        default_value = "10.96.0.0/12",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    pub service_cluster_ip_range: Vec<ipnet::IpNet>,
}

#[derive(Args, Clone)]
pub struct ApiserverFlags {
    /// Where keys, certificates and the store are kept
    #[arg(long, default_value = "/var/lib/hawser/server")]
    pub data_dir: PathBuf,
    /// Address and port to serve on
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub bind: SocketAddr,
    /// Address that nodes and pods reach this server at [default: the one of --bind, or of the host's route out]
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// Further names and addresses for the serving certificate
    #[arg(long = "tls-san", value_name = "NAME")]
    pub tls_sans: Vec<String>,
    /// etcd servers to use instead of the embedded store, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    pub etcd_endpoints: Vec<String>,
    #[command(flatten)]
    pub services: ServiceRanges,
    /// Range of the node ports
    #[arg(long, default_value = "30000-32767", value_name = "FIRST-LAST")]
    pub service_node_port_range: hawser_apiserver::alloc::Ports,
    /// APIs to serve that are off by default, separated by commas: group/version, api/alpha, api/beta or api/all, =true or
    /// =false behind it
    #[arg(long, value_delimiter = ',', value_parser = switched_on, value_name = "API")]
    pub runtime_config: Vec<ApiVersions>,
    /// Features to switch on that are off by default, separated by commas: NAME=true
    #[arg(long, value_delimiter = ',', value_parser = feature, value_name = "NAME=BOOL")]
    pub feature_gates: Vec<FeatureGate>,
    /// Whether requests without credentials are system:anonymous, whom RBAC lets read health and version only; else
    /// they are refused as unauthenticated. By default true for the API server alone, and false for a whole cluster
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,
    /// Requests that change nothing and are worked on at the same time; further ones wait
    #[arg(long, default_value_t = 400, value_parser = positive)]
    pub max_requests_inflight: usize,
    /// Requests that change something and are worked on at the same time; further ones wait
    #[arg(long, default_value_t = 200, value_parser = positive)]
    pub max_mutating_requests_inflight: usize,
    /// Seconds that the server goes on for after it has said that it is not ready any more
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub shutdown_delay: u64,
}

/// A path that may be empty, which clap's own parser of paths refuses.
fn path_or_none(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}

/// Group versions that one item of a flag stands for.
#[derive(Clone)]
pub struct ApiVersions(pub Vec<String>);

fn switched_on(item: &str) -> Result<ApiVersions, String> {
    hawser_apiserver::kinds::switched_on(item).map(ApiVersions)
}

/// What one item of a flag switches on.
#[derive(Clone)]
pub struct FeatureGate(pub Option<hawser_apiserver::kinds::Feature>);

fn feature(item: &str) -> Result<FeatureGate, String> {
    hawser_apiserver::kinds::feature_switched_on(item).map(FeatureGate)
}

/// A number that is not zero.
fn positive(text: &str) -> Result<usize, String> {
    let number: u32 = text.parse().map_err(|e| format!("{e}"))?;
    if number == 0 { Err("must be at least 1".into()) } else { Ok(number as usize) }
}

#[derive(Args)]
pub struct ServerFlags {
    #[command(flatten)]
    pub apiserver: ApiserverFlags,
    #[command(flatten)]
    pub controllers: ControllerSettings,
    #[command(flatten)]
    pub dns: ClusterDnsFlags,
}

#[derive(Args, Clone)]
pub struct ControllerSettings {
    /// Controllers to run, separated by commas: * for all, a name for one of them, -name for all but that one
    #[arg(long, default_value = "*", value_delimiter = ',', value_name = "NAME", allow_hyphen_values = true)]
    pub controllers: Vec<String>,
    /// Ranges that the nodes' pod networks are taken from, separated by commas: one, or one per family
    #[arg(long, default_value = "10.244.0.0/16", value_delimiter = ',', value_name = "CIDR")]
    pub cluster_cidr: Vec<ipnet::IpNet>,
    /// Prefix length of one node's IPv4 pod network
    #[arg(long, alias = "node-cidr-mask-size", default_value_t = 24, value_parser = clap::value_parser!(u8).range(8..=30))]
    pub node_cidr_mask_size_ipv4: u8,
    /// Prefix length of one node's IPv6 pod network
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u8).range(16..=126))]
    pub node_cidr_mask_size_ipv6: u8,
    /// How long a node may be silent before it counts as unreachable, in seconds
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub node_monitor_grace_period: u64,
}

#[derive(Args)]
pub struct ControllerManagerFlags {
    /// How to reach the API server
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// Certificate of the cluster's CA, to sign certificates with; without it none are signed
    #[arg(long, requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Key of the cluster's CA
    #[arg(long, requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Key that signs the tokens in Secrets (PKCS#8 of ECDSA P-256); without it none are made
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Seconds for which a token in a Secret must have been unused before it is cleaned up
    #[arg(long, default_value_t = 365 * 24 * 3600)]
    pub legacy_service_account_token_clean_up_period: u64,
    /// Certificate to publish to pods as kube-root-ca.crt [default: the kubeconfig's CA]
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Run without electing a leader
    #[arg(long)]
    pub no_leader_elect: bool,
    #[command(flatten)]
    pub settings: ControllerSettings,
}

#[derive(Args)]
pub struct SchedulerFlags {
    /// How to reach the API server
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// A KubeSchedulerConfiguration file [default: kube-scheduler's default profile]
    #[arg(long)]
    pub config: Option<PathBuf>,
}

/// The cluster's names, which server and nodes must agree on.
#[derive(Args, Clone)]
pub struct ClusterDnsFlags {
    /// Addresses of the Service that leads to the nodes' DNS [default: the tenth of each service range]
    #[arg(long = "cluster-dns", value_name = "ADDRESS", value_delimiter = ',')]
    pub addresses: Vec<IpAddr>,
    /// Port of the nodes' DNS servers
    #[arg(long, default_value_t = 10053, value_parser = clap::value_parser!(u16).range(1..))]
    pub dns_port: u16,
    /// Port of their metrics
    #[arg(long, default_value_t = 10054, value_parser = clap::value_parser!(u16).range(1..))]
    pub dns_metrics_port: u16,
    /// Leaves the cluster's DNS to what its user brings
    #[arg(long)]
    pub no_dns: bool,
}

impl ClusterDnsFlags {
    /// The Service's addresses: as given, else the tenth of each range, as kubeadm has it for the first. Without DNS only
    /// what is given, which is then another's.
    pub fn addresses(&self, service_ranges: &[ipnet::IpNet]) -> Vec<IpAddr> {
        if self.no_dns || !self.addresses.is_empty() {
            return self.addresses.clone();
        }
        // IPv4 has no host at the network's own address.
        let tenth = |range: &ipnet::IpNet| range.hosts().nth(if range.addr().is_ipv4() { 9 } else { 10 });
        service_ranges.iter().filter_map(tenth).collect()
    }
}

#[derive(Args)]
pub struct DnsFlags {
    /// How to reach the API server
    #[arg(long, required_unless_present_any = ["metrics", "stop"])]
    pub kubeconfig: Option<PathBuf>,
    /// Addresses and ports to answer on
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', default_value = "127.0.0.1:10053")]
    pub listen: Vec<SocketAddr>,
    /// Addresses and ports of /metrics, /health and /ready
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',')]
    pub metrics_address: Vec<SocketAddr>,
    /// DNS domain of the cluster
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Addresses of the Service that leads here
    #[arg(long = "cluster-dns", value_name = "ADDRESS", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    /// Ranges of the cluster: an address there that nothing has, has no name
    #[arg(long = "cluster-range", value_name = "CIDR", value_delimiter = ',')]
    pub cluster_ranges: Vec<ipnet::IpNet>,
    /// The host's resolver configuration: who is asked about everything else; empty for nobody
    #[arg(long, default_value = "/etc/resolv.conf", value_parser = path_or_none)]
    pub resolv_conf: PathBuf,
    /// Domains with servers of their own, as domain=address[:port]
    #[arg(long = "stub-domain", value_name = "DOMAIN=ADDRESS")]
    pub stub_domains: Vec<String>,
    /// Clients that are answered [default: private, shared and link-local networks]
    #[arg(long = "allow", value_name = "CIDR", value_delimiter = ',')]
    pub allow: Vec<ipnet::IpNet>,
    /// Where the control socket is
    #[arg(long, default_value = "/run/hawser")]
    pub run_dir: PathBuf,
    /// Prints the metrics of the server that runs, and ends
    #[arg(long, conflicts_with = "stop")]
    pub metrics: bool,
    /// Ends the server that runs, once it has answered what it was asked; an agent starts another one
    #[arg(long)]
    pub stop: bool,
    /// What tells this server from one of another build or with other settings, for an agent that keeps it
    #[arg(long, hide = true, default_value = "")]
    pub fingerprint: String,
}

#[derive(Args, Clone)]
pub struct NodeFlags {
    /// Name of the Node [default: the host's name]
    #[arg(long)]
    pub node_name: Option<String>,
    /// Addresses of the node, at most one per family, the primary one first, separated by commas [default: the one of its
    /// route to the API server]
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Where images, pods and keys are kept
    #[arg(long, default_value = "/var/lib/hawser/agent")]
    pub data_dir: PathBuf,
    /// Where sockets and pins are
    #[arg(long, default_value = "/run/hawser")]
    pub run_dir: PathBuf,
    /// Where container logs are written
    #[arg(long)]
    pub log_dir: Option<PathBuf>,
    /// The node's cgroup, below the process' own one, or absolute below each hierarchy's mount point
    #[arg(long, default_value = "/hawser")]
    pub cgroup_root: PathBuf,
    /// Port of the kubelet's server
    #[arg(long, default_value_t = 10250)]
    pub kubelet_port: u16,
    /// DNS domain of the cluster
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The host's resolver configuration, for pods with dnsPolicy Default and for names outside the cluster; empty for
    /// none
    #[arg(long, default_value = "/etc/resolv.conf", value_parser = path_or_none)]
    pub resolv_conf: PathBuf,
    /// Labels of the Node, as name=value
    #[arg(long = "node-label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
}

#[derive(Args)]
pub struct AgentFlags {
    /// URL of the API server
    #[arg(long)]
    pub server: String,
    /// The token that the server wrote to its data directory (node-token)
    #[arg(long, env = "HAWSER_TOKEN", hide_env_values = true)]
    pub token: String,
    #[command(flatten)]
    pub node: NodeFlags,
    /// Folder of OCI or docker archives to load at the start
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Registries that are spoken to without TLS, as host:port
    #[arg(long = "insecure-registry", value_name = "HOST:PORT")]
    pub insecure_registries: Vec<String>,
    /// Open node ports on this machine's addresses within these ranges [default: its primary address of each family,
    /// and 127.0.0.1 for its own processes]
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub nodeport_addresses: Vec<ipnet::IpNet>,
    /// Interface that leads to the other nodes [default: the one with the node's address]
    #[arg(long)]
    pub uplink: Option<String>,
    /// XDP on that interface: off, auto (hardware only), native or generic
    #[arg(long, default_value = "off")]
    pub xdp: hawser_proxy::config::Xdp,
    /// How other nodes' pods are reached: off (directly, or by the network's routes) or vxlan, the same on every node
    #[arg(long, default_value = "off")]
    pub tunnel: hawser_proxy::config::Tunnel,
    #[command(flatten)]
    pub services: ServiceRanges,
    /// Ranges that the nodes' pod networks are taken from, separated by commas
    #[arg(long, default_value = "10.244.0.0/16", value_delimiter = ',', value_name = "CIDR")]
    pub cluster_cidr: Vec<ipnet::IpNet>,
    #[command(flatten)]
    pub dns: ClusterDnsFlags,
    /// Domains with DNS servers of their own, as domain=address[:port]
    #[arg(long = "stub-domain", value_name = "DOMAIN=ADDRESS")]
    pub stub_domains: Vec<String>,
}

#[derive(Args)]
pub struct KubeletFlags {
    /// How to reach the API server
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// The runtime's CRI socket
    #[arg(long, default_value = "/run/hawser/cri.sock")]
    pub container_runtime_endpoint: PathBuf,
    /// Addresses of the cluster's DNS, for pods with dnsPolicy ClusterFirst [default: they get the host's]
    #[arg(long = "cluster-dns", value_name = "ADDRESS", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    #[command(flatten)]
    pub node: NodeFlags,
}

#[derive(Args)]
pub struct ProxyFlags {
    /// How to reach the API server
    #[arg(long)]
    pub kubeconfig: PathBuf,
    #[command(flatten)]
    pub node: NodeFlags,
    /// Open node ports on this machine's addresses within these ranges [default: its primary address of each family,
    /// and 127.0.0.1 for its own processes]
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub nodeport_addresses: Vec<ipnet::IpNet>,
    /// Interface that leads to the other nodes [default: the one with the node's address]
    #[arg(long)]
    pub uplink: Option<String>,
    #[command(flatten)]
    pub services: ServiceRanges,
}

#[derive(Args)]
pub struct RuntimeFlags {
    #[command(flatten)]
    pub node: NodeFlags,
    /// Folder of OCI or docker archives to load at the start
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Registries that are spoken to without TLS, as host:port
    #[arg(long = "insecure-registry", value_name = "HOST:PORT")]
    pub insecure_registries: Vec<String>,
}
