//! `hawser agent`, and a node's components alone: `kubelet`, `proxy`, `runtime`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use hawser_kubelet::Kubelet;
use hawser_kubelet::bootstrap::{self, Bootstrap};
use hawser_proxy::Agent;
use hawser_runtime::Runtime;
use hawser_runtime::cgroup::Cgroups;
use hawser_runtime::network::PodNetwork;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::dns::Keeper;
use crate::flags::{AgentFlags, KubeletFlags, NodeFlags, ProxyFlags, RuntimeFlags};
use crate::node_identity::{NodeIdentity, Part};
use crate::pod_network::{HostOnly, ProxyNetwork};
use crate::server::{private_directory, source_address};
use crate::{clients, signals};

/// Who a node is and where its things are: the flags with their defaults filled in.
struct NodeSettings {
    name: String,
    /// The primary one first.
    addresses: Vec<IpAddr>,
    flags: NodeFlags,
}

impl NodeSettings {
    /// `server` is the URL of the API server, for the address that the node reaches it from.
    fn new(flags: NodeFlags, server: &server_url::Authority) -> Result<Self> {
        let name = match &flags.node_name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
        };
        let addresses = match flags.node_ip.as_slice() {
            [] => vec![server.source_address()?],
            given => given.to_vec(),
        };
        for address in &addresses {
            ensure!(!address.is_unspecified(), "--node-ip {address}: not an address that others can reach");
        }
        if let [first, more @ ..] = addresses.as_slice() {
            let dual = more.is_empty() || more.len() == 1 && more[0].is_ipv4() != first.is_ipv4();
            ensure!(dual, "--node-ip: one address, or two of which one is IPv4 and one IPv6");
        }
        private_directory(&flags.data_dir)?;
        private_directory(&flags.run_dir)?;
        Ok(NodeSettings { name, addresses, flags })
    }

    fn log_dir(&self) -> PathBuf {
        self.flags.log_dir.clone().unwrap_or_else(|| self.flags.data_dir.join("logs"))
    }

    fn cri_socket(&self) -> PathBuf {
        self.flags.run_dir.join("cri.sock")
    }

    fn labels(&self) -> Result<Vec<(String, String)>> {
        let pair = |label: &String| {
            let (name, value) =
                label.split_once('=').with_context(|| format!("--node-label {label}: not NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        };
        self.flags.labels.iter().map(pair).collect()
    }

    fn runtime_config(&self, images: Option<PathBuf>, insecure: &[String]) -> hawser_runtime::Config {
        let flags = &self.flags;
        let mut config = hawser_runtime::Config::new(&flags.data_dir, &flags.run_dir, &flags.cgroup_root);
        config.images_dir = images;
        config.insecure_registries = insecure.to_vec();
        config
    }

    fn kubelet_config(
        &self,
        cri_socket: PathBuf,
        cluster_dns: Vec<IpAddr>,
    ) -> Result<hawser_kubelet::Config> {
        let mut config = hawser_kubelet::Config::new(&self.name, &self.flags.data_dir);
        config.node_ips = self.addresses.clone();
        config.labels = self.labels()?;
        config.cri_socket = cri_socket;
        config.log_dir = self.log_dir();
        config.listen =
            self.addresses.iter().map(|address| SocketAddr::new(*address, self.flags.kubelet_port)).collect();
        config.cluster_dns = cluster_dns;
        config.cluster_domain = self.flags.cluster_domain.clone();
        config.resolv_conf = self.flags.resolv_conf.clone();
        Ok(config)
    }

    fn proxy_config(
        &self,
        uplink: Option<String>,
        services: &[ipnet::IpNet],
        xdp: hawser_proxy::config::Xdp,
    ) -> Result<hawser_proxy::Config> {
        Ok(hawser_proxy::Config {
            node_name: self.name.clone(),
            node_ips: self.addresses.clone(),
            uplink,
            run_dir: self.flags.run_dir.clone(),
            cgroup: self.cgroup()?,
            service_cidrs: services.to_vec(),
            node_port_addresses: Vec::new(),
            mtu: None,
            masquerade: true,
            pod_network: true,
            xdp,
            tunnel: hawser_proxy::config::Tunnel::Off,
        })
    }

    /// The node's directory in the cgroup v2 hierarchy, with this process moved into a leaf of it, so that the
    /// node's own connections are translated too.
    fn cgroup(&self) -> Result<PathBuf> {
        let cgroups = Cgroups::discover(&self.flags.cgroup_root)?;
        let root = cgroups.v2_root().context("no cgroup v2 hierarchy is mounted")?.to_path_buf();
        let own = root.join("agent");
        std::fs::create_dir_all(&own).with_context(|| format!("creating {}", own.display()))?;
        std::fs::write(own.join("cgroup.procs"), std::process::id().to_string())
            .with_context(|| format!("moving into {}", own.display()))?;
        Ok(root)
    }
}

/// Gives back memory after each of the kubelet's heartbeats: first what start-up needed, later what bursts of work
/// left behind. What a node runs next is mapped again as it runs, in a millisecond or less.
async fn give_back_memory(heartbeat: Arc<Notify>, stop: CancellationToken) -> Result<()> {
    let work = async {
        loop {
            heartbeat.notified().await;
            if let Err(error) = hawser_runtime::sys::memory::give_back() {
                tracing::warn!("giving back memory: {error}");
            }
        }
    };
    tokio::select! {
        () = work => Ok(()),
        () = stop.cancelled() => Ok(()),
    }
}

/// A whole node.
pub async fn agent(flags: AgentFlags) -> Result<()> {
    let stop = signals::stop_token()?;
    let node = NodeSettings::new(flags.node.clone(), &flags.server.parse()?)?;
    // In the node's cgroup before anything is started that would inherit another.
    let mut proxy_config =
        node.proxy_config(flags.uplink.clone(), &flags.services.service_cluster_ip_range, flags.xdp)?;
    proxy_config.node_port_addresses = flags.nodeport_addresses.clone();
    proxy_config.tunnel = flags.tunnel;
    let cluster_dns = flags.dns.addresses(&flags.services.service_cluster_ip_range);
    let identity = bootstrap::bootstrap(Bootstrap {
        server: flags.server.clone(),
        token: flags.token.clone(),
        node_name: node.name.clone(),
        node_ips: node.addresses.clone(),
        data_dir: node.flags.data_dir.clone(),
    });
    let identity = tokio::select! {
        identity = identity => identity.context("joining the cluster")?,
        () = stop.cancelled() => return Ok(()),
    };
    let client = identity.client()?;
    let mut kubelet_config = node.kubelet_config(node.cri_socket(), cluster_dns.clone())?;
    kubelet_config.tls = Some(identity.tls);
    kubelet_config.await_dataplanes = true;
    let kubelet = Kubelet::new(kubelet_config, client.clone()).context("kubelet")?;
    let heartbeat = kubelet.heartbeat();
    let programmed = kubelet.programmed();
    // The kubelet goes first, because it registers the Node that everything else is bound to; it waits for the
    // runtime, and reports the node as not ready until then.
    let mut components = Components::new(stop.clone())
        .spawn("kubelet", |token| async move { Ok(kubelet.run(token).await?) })
        .spawn("memory", |token| give_back_memory(heartbeat, token))
        .spawn("certificates", |token| async move { Ok(identity.renewal.run(token).await?) });
    let joining = async {
        let identity = |part| {
            NodeIdentity::obtain(part, client.clone(), &flags.server, &node.name, &node.flags.data_dir)
        };
        let dataplane = identity(Part::Dataplane).await?;
        let dns = if flags.dns.no_dns { None } else { Some(identity(Part::Dns).await?) };
        let cgroup = proxy_config.cgroup.clone();
        let proxy = Agent::start(proxy_config, dataplane.client()?).await.context("dataplane")?;
        let proxy = proxy.tell_programmed(programmed);
        anyhow::Ok((dataplane, dns, cgroup, proxy))
    };
    let (dataplane, dns, cgroup, proxy) = tokio::select! {
        joined = joining => joined?,
        ended = components.ended() => return ended,
        () = stop.cancelled() => return components.run().await,
    };
    if let Some(identity) = dns {
        let keeper = Keeper::new(&flags, &node.addresses, &cluster_dns, &identity.kubeconfig()?, &cgroup)?;
        components = components
            .spawn("DNS server", |token| keeper.run(token))
            .spawn("DNS server's token", |token| identity.run(token));
    }
    let network = proxy.pod_network().context("the dataplane runs without a pod network")?;
    let network: Arc<dyn PodNetwork> = Arc::new(ProxyNetwork::new(network, proxy.synced()));
    let runtime_config = node.runtime_config(flags.images, &flags.insecure_registries);
    let runtime = Runtime::new(runtime_config, network).context("container runtime")?;
    components
        .spawn("dataplane", |token| async move { Ok(proxy.run(token).await?) })
        .spawn("dataplane's token", |token| dataplane.run(token))
        .spawn("container runtime", |token| async move { Ok(runtime.run(token).await?) })
        .run()
        .await
}

/// `hawser kubelet`.
pub async fn kubelet(flags: KubeletFlags) -> Result<()> {
    let stop = signals::stop_token()?;
    let server = server_of(&flags.kubeconfig).await?;
    let node = NodeSettings::new(flags.node, &server)?;
    let client = clients::from_kubeconfig(&flags.kubeconfig).await?;
    let mut config = node.kubelet_config(flags.container_runtime_endpoint, flags.cluster_dns)?;
    config.tls = Some(bootstrap::serving_paths(&node.flags.data_dir));
    let kubelet = Kubelet::new(config, client.clone()).context("kubelet")?;
    // Signed once the kubelet has registered the Node, so the two run side by side.
    let serving = async move {
        let addresses = node.addresses.clone();
        bootstrap::serving_certificate(&client, &node.name, &addresses, &node.flags.data_dir)
            .await
            .context("getting a serving certificate")
    };
    let mut running = tokio::spawn(kubelet.run(stop));
    tokio::select! {
        ended = &mut running => return ended?.context("kubelet"),
        serving = serving => drop(serving?),
    }
    running.await?.context("kubelet")
}

/// `hawser proxy`.
pub async fn proxy(flags: ProxyFlags) -> Result<()> {
    let stop = signals::stop_token()?;
    let server = server_of(&flags.kubeconfig).await?;
    let node = NodeSettings::new(flags.node, &server)?;
    let client = clients::from_kubeconfig(&flags.kubeconfig).await?;
    let xdp = hawser_proxy::config::Xdp::Off;
    let mut config = node.proxy_config(flags.uplink, &flags.services.service_cluster_ip_range, xdp)?;
    config.node_port_addresses = flags.nodeport_addresses;
    // The pods' network is another's; Services are translated at the sockets.
    config.pod_network = false;
    config.masquerade = false;
    Agent::start(config, client).await?.run(stop).await.context("dataplane")
}

/// `hawser runtime`.
pub async fn runtime(flags: RuntimeFlags) -> Result<()> {
    let stop = signals::stop_token()?;
    private_directory(&flags.node.data_dir)?;
    private_directory(&flags.node.run_dir)?;
    let mut config =
        hawser_runtime::Config::new(&flags.node.data_dir, &flags.node.run_dir, &flags.node.cgroup_root);
    config.images_dir = flags.images;
    config.insecure_registries = flags.insecure_registries;
    Runtime::new(config, Arc::new(HostOnly))?.run(stop).await.context("container runtime")
}

async fn server_of(kubeconfig: &std::path::Path) -> Result<server_url::Authority> {
    let config = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let cluster =
        config.clusters.iter().find_map(|c| c.cluster.as_ref()).context("a kubeconfig without cluster")?;
    cluster.server.as_deref().context("a kubeconfig without server")?.parse()
}

/// Components that run side by side; when one ends the others are stopped.
struct Components {
    stop: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Components {
    fn new(stop: CancellationToken) -> Self {
        Components { stop, tasks: JoinSet::new() }
    }

    fn spawn<F>(mut self, name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let running = run(self.stop.clone());
        self.tasks.spawn(async move { running.await.context(name) });
        self
    }

    /// Waits for a component that ends before it was told to.
    async fn ended(&mut self) -> Result<()> {
        match self.tasks.join_next().await {
            Some(ended) => ended?.and_then(|()| bail!("a component ended")),
            None => std::future::pending().await,
        }
    }

    async fn run(mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.map_err(anyhow::Error::from).and_then(|result| result);
            if !self.stop.is_cancelled() {
                outcome = ended.and_then(|()| bail!("a component ended"));
                self.stop.cancel();
            }
        }
        outcome
    }
}

/// The host and port of a URL, for finding the route to it.
mod server_url {
    use std::net::{IpAddr, ToSocketAddrs};
    use std::str::FromStr;

    use anyhow::{Context, Result, ensure};

    /// `host:port`.
    pub struct Authority {
        host: String,
        port: u16,
    }

    impl FromStr for Authority {
        type Err = anyhow::Error;

        fn from_str(url: &str) -> Result<Self> {
            let uri: http::Uri = url.parse().with_context(|| format!("--server {url}: not a URL"))?;
            ensure!(uri.scheme_str() == Some("https"), "--server {url}: must begin with https://");
            let host = uri.host().with_context(|| format!("--server {url}: names no host"))?;
            Ok(Authority {
                host: host.trim_matches(['[', ']']).to_owned(),
                port: uri.port_u16().unwrap_or(443),
            })
        }
    }

    impl Authority {
        /// The address from which this machine reaches it.
        pub fn source_address(&self) -> Result<IpAddr> {
            let mut found = (self.host.as_str(), self.port)
                .to_socket_addrs()
                .with_context(|| format!("{}: no such host", self.host))?;
            super::source_address(found.next().with_context(|| format!("{}: no address", self.host))?)
        }
    }
}
