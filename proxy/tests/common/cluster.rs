//! Two nodes in namespaces of their own, joined by a bridge, each with an agent; pods on both.

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawser_proxy::config::Xdp;
use hawser_proxy::maps::{KernelMaps, Maps, Snapshot};
use hawser_proxy::{Agent, Config, PodNet, PodNetRequest};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::api::FakeApi;
use super::{Cgroup, Netns, run};

/// A node with everything it owns.
pub struct TestNode {
    pub name: String,
    pub ip: Ipv4Addr,
    pub netns: Netns,
    pub cgroup: Cgroup,
    pub run_dir: PathBuf,
    api: FakeApi,
    xdp: Xdp,
    running: Option<Running>,
}

/// An agent that runs on a thread in its node's network namespace.
struct Running {
    token: CancellationToken,
    thread: std::thread::JoinHandle<()>,
    runtime: tokio::runtime::Handle,
    podnet: Arc<PodNet>,
}

/// A pod: its namespace, and its node's cgroup by way of [`TestNode`].
pub struct TestPod {
    pub netns: Netns,
    pub ip: Ipv4Addr,
    pub sandbox: String,
}

/// Two nodes, and the bridge between them.
pub struct Cluster {
    pub api: FakeApi,
    pub fabric: Netns,
    pub nodes: Vec<TestNode>,
}

impl Cluster {
    /// Nodes at 10.0.0.11, 10.0.0.12 …, pods in 10.244.N.0/24; agents are started. The bridge itself has
    /// 10.0.0.1: something outside the cluster.
    pub fn start(dir: &Path, count: u8) -> Self {
        Self::start_with(dir, count, Xdp::Off)
    }

    /// The same with XDP on the uplinks.
    pub fn start_with(dir: &Path, count: u8, xdp: Xdp) -> Self {
        let api = FakeApi::new();
        let fabric = Netns::new();
        fabric.run(|| {
            run("ip link add br0 type bridge");
            run("ip addr add 10.0.0.1/24 dev br0");
            run("ip link set br0 up");
        });
        let nodes = (1..=count).map(|number| TestNode::new(dir, &api, &fabric, number, xdp)).collect();
        let mut cluster = Self { api, fabric, nodes };
        for node in &mut cluster.nodes {
            let start = std::time::Instant::now();
            node.start_agent();
            eprintln!("agent of {}: {:?}", node.name, start.elapsed());
        }
        cluster
    }

    /// A machine on the nodes' link, [`CLIENT`], which is no node.
    pub fn client(&self) -> Netns {
        let client = Netns::new();
        self.fabric.run(|| {
            let path = client.path();
            run(&format!("ip link add client type veth peer name eth0 netns {}", path.display()));
            run("ip link set client master br0 up");
        });
        client.run(|| {
            run(&format!("ip addr add {CLIENT}/24 dev eth0"));
            run("ip addr add fd00::50/64 dev eth0 nodad");
            run("ip link set eth0 up");
        });
        client
    }
}

/// Address of [`Cluster::client`].
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);

impl TestNode {
    fn new(dir: &Path, api: &FakeApi, fabric: &Netns, number: u8, xdp: Xdp) -> Self {
        let name = format!("n{number}");
        let ip = Ipv4Addr::new(10, 0, 0, 10 + number);
        let netns = Netns::new();
        fabric.run(|| {
            let path = netns.path();
            run(&format!("ip link add {name} type veth peer name eth0 netns {}", path.display()));
            run(&format!("ip link set {name} master br0 up"));
        });
        netns.run(|| {
            run(&format!("ip addr add {ip}/24 dev eth0"));
            run("ip link set eth0 up");
            run("ip route add default via 10.0.0.1");
        });
        api.put(
            "nodes",
            json!({
                "metadata": {"name": name},
                "spec": {"podCIDR": format!("10.244.{number}.0/24")},
                "status": {"addresses": [{"type": "InternalIP", "address": ip.to_string()}]},
            }),
        );
        Self {
            name: name.clone(),
            ip,
            netns,
            cgroup: Cgroup::new(),
            run_dir: dir.join(name),
            api: api.clone(),
            xdp,
            running: None,
        }
    }

    /// The configuration of this node's agent.
    pub fn config(&self) -> Config {
        agent_config(&self.name, self.ip, &self.run_dir, self.cgroup.path(), self.xdp)
    }

    /// Starts the agent and waits until the maps hold what the API says.
    pub fn start_agent(&mut self) {
        let (sender, receiver) = std::sync::mpsc::channel();
        let config = self.config();
        let api = self.api.clone();
        let token = CancellationToken::new();
        let stop = token.clone();
        let path = self.netns.path();
        let thread = std::thread::spawn(move || {
            let netns = std::fs::File::open(path).expect("the node's namespace");
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).expect("entering it");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let handle = runtime.handle().clone();
            runtime.block_on(async move {
                let agent = match Agent::start(config, api.client()).await {
                    Ok(agent) => agent,
                    Err(error) => {
                        sender.send(Err(error.to_string())).expect("the test waits");
                        return;
                    }
                };
                let podnet = agent.pod_network().expect("a pod network");
                let mut synced = agent.synced();
                let ready = async {
                    synced.wait_for(|synced| *synced).await.expect("the agent runs");
                    sender.send(Ok((handle, podnet))).expect("the test waits");
                };
                let (result, ()) = tokio::join!(agent.run(stop), ready);
                result.expect("the agent ends well");
            });
        });
        let (runtime, podnet) = receiver.recv().expect("the agent starts").expect("the agent starts");
        self.running = Some(Running { token, thread, runtime, podnet });
    }

    /// Stops the agent; what is pinned stays.
    pub fn stop_agent(&mut self) {
        if let Some(running) = self.running.take() {
            running.token.cancel();
            drop(running.podnet);
            running.thread.join().expect("the agent's thread");
        }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the agent runs")
    }

    /// Runs something on the agent's runtime.
    pub fn on_agent<F>(&self, work: impl FnOnce(Arc<PodNet>) -> F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let running = self.running();
        let future = work(running.podnet.clone());
        let (sender, receiver) = std::sync::mpsc::channel();
        running.runtime.spawn(async move {
            let _ = sender.send(future.await);
        });
        receiver.recv().expect("an answer")
    }

    /// Sets a pod up in a new namespace.
    pub fn add_pod(&self, name: &str) -> TestPod {
        let netns = Netns::new();
        let request = self.request(name, &netns);
        let addresses =
            self.on_agent(|podnet| async move { podnet.setup(&request).await }).expect("a pod's network");
        let [std::net::IpAddr::V4(ip)] = addresses.as_slice() else { panic!("addresses: {addresses:?}") };
        TestPod { netns, ip: *ip, sandbox: name.to_string() }
    }

    /// The request for a pod.
    pub fn request(&self, name: &str, netns: &Netns) -> PodNetRequest {
        PodNetRequest {
            sandbox_id: name.to_string(),
            namespace: "default".to_string(),
            name: name.to_string(),
            uid: format!("uid-{name}"),
            netns: netns.path(),
            host_ports: Vec::new(),
        }
    }

    /// Tears a pod down.
    pub fn remove_pod(&self, pod: &TestPod) {
        let sandbox = pod.sandbox.clone();
        self.on_agent(|podnet| async move { podnet.teardown(&sandbox).await }).expect("teardown");
    }

    /// What this node's kernel maps hold.
    pub fn maps(&self) -> KernelMaps {
        KernelMaps::open(&self.run_dir.join("bpf/maps")).expect("the maps")
    }

    /// All of it.
    pub fn snapshot(&self) -> Snapshot {
        self.maps().snapshot().expect("the maps")
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.token.cancel();
            drop(running.podnet);
            let _ = running.thread.join();
        }
    }
}

/// The configuration of a node's agent.
pub fn agent_config(name: &str, ip: Ipv4Addr, run_dir: &Path, cgroup: &Path, xdp: Xdp) -> Config {
    Config {
        node_name: name.to_string(),
        node_ips: vec![ip.into()],
        uplink: None,
        run_dir: run_dir.to_path_buf(),
        cgroup: cgroup.to_path_buf(),
        service_cidrs: vec!["10.96.0.0/12".parse().expect("a prefix")],
        node_port_addresses: Vec::new(),
        mtu: None,
        masquerade: true,
        pod_network: true,
        tunnel: hawser_proxy::config::Tunnel::Off,
        xdp,
    }
}

/// A Service with one port.
pub fn service(name: &str, ip: &str, port: u16, protocol: &str) -> serde_json::Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": port, "protocol": protocol}]},
    })
}

/// A slice of ready endpoints.
pub fn slice(service: &str, endpoints: &[Ipv4Addr], port: u16, protocol: &str) -> serde_json::Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}))
        .collect();
    json!({
        "metadata": {"name": service, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "", "port": port, "protocol": protocol}],
    })
}
