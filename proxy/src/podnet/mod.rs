//! The pods' network: an address from the node's prefix, a veth pair, routes, and the programs on it.
//!
//! The pod sees one interface `eth0` with a /32, a /128 or both, and a default route of each family through
//! 169.254.1.1 and fe80::1, names for the node's end of the pair: permanent neighbour entries answer for them,
//! so neither ARP nor neighbour discovery is spoken. The node's end has no address. What the pod sends is routed
//! by `from_pod`, past the node's stack where it can.

mod inside;
mod pool;
mod store;
mod sysctl;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_ebpf_common::endpoint::Endpoint4;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::watch;

pub use pool::{Lease, Pool, REUSE_DELAY};
pub use store::{PortMapping, Record, Store};
pub use sysctl::SysctlError;
pub(crate) use sysctl::write_sysctl;

use crate::desired::HostPort;
use crate::host_ports::HostPorts;
use crate::maps::{KernelMaps, MapError, Maps, Op};
use crate::netlink::{Netlink, NetlinkError, RouteTarget, VethEnd};
use crate::programs::{Programs, ProgramsError};

/// How long a pod waits for the node to get a prefix.
const CIDR_TIMEOUT: Duration = Duration::from_secs(30);
/// Name of the pod's interface.
const POD_INTERFACE: &str = "eth0";
/// Beginning of the names of the node's interfaces.
const PREFIX: &str = "hws";

/// A pod that needs a network.
#[derive(Debug, Clone)]
pub struct PodNetRequest {
    /// The pod's sandbox: the key of everything.
    pub sandbox_id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// The pod's network namespace (`/proc/PID/ns/net`, or a bind mount of it).
    pub netns: PathBuf,
    /// Ports of the node that lead to the pod.
    pub host_ports: Vec<PortMapping>,
}

/// The ports of the node that lead to the pod of a record.
fn host_ports_of(record: &Record) -> Vec<HostPort> {
    let ports = record.host_ports.iter().map(|mapping| HostPort {
        host_ip: mapping.host_ip,
        host_port: mapping.host_port,
        protocol: mapping.protocol,
        pod_ips: record.addresses().collect(),
        container_port: mapping.container_port,
    });
    ports.collect()
}

/// Why a pod's network could not be set up or torn down. Both can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum PodNetError {
    /// The Node has no `spec.podCIDR`.
    #[error("the node has no podCIDR yet")]
    NoPodCidr,
    /// All addresses are in use, or were until a moment ago.
    #[error("no free address in {0}")]
    Exhausted(IpNet),
    /// The state on disk could not be read or written.
    #[error("address store: {0}")]
    Store(#[source] io::Error),
    /// The pod's network namespace could not be entered.
    #[error("network namespace {path}: {source}")]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A network setting below /proc/sys could not be written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The programs could not be attached.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// The thread that attaches programs died.
    #[error("attaching programs: {0}")]
    Thread(#[from] tokio::task::JoinError),
    /// The endpoint map could not be written.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// What the pods' network must know of the node.
#[derive(Debug, Clone)]
pub struct NodeNet {
    /// This node's addresses, at most one of a family.
    pub node_ips: Vec<IpAddr>,
    /// MTU of the pods' interfaces.
    pub mtu: u32,
}

#[derive(Debug, Default)]
struct State {
    /// By family.
    pools: [Pool; 2],
    by_sandbox: HashMap<String, Record>,
}

impl State {
    fn pool(&mut self, v6: bool) -> &mut Pool {
        &mut self.pools[usize::from(v6)]
    }

    /// One address of each prefix, or of none.
    fn allocate(&mut self, cidrs: &[IpNet], now: Duration) -> Result<Vec<IpAddr>, PodNetError> {
        let mut taken: Vec<IpAddr> = Vec::with_capacity(cidrs.len());
        for cidr in cidrs {
            match self.pool(cidr.addr().is_ipv6()).allocate(*cidr, now) {
                Some(address) => taken.push(address),
                None => {
                    taken.iter().for_each(|address| self.pool(address.is_ipv6()).forget(*address));
                    return Err(PodNetError::Exhausted(*cidr));
                }
            }
        }
        Ok(taken)
    }
}

/// The pods' network of one node.
pub struct PodNet {
    node: NodeNet,
    netlink: Netlink,
    programs: Arc<Mutex<Programs>>,
    maps: Mutex<KernelMaps>,
    store: Store,
    state: Mutex<State>,
    /// One setup or teardown of a sandbox at a time.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// The node's prefixes, at most one of a family, the first family's first; empty until they are known.
    cidrs: watch::Receiver<Vec<IpNet>>,
    /// Tells the dataplane of host ports.
    host_ports: HostPorts,
}

impl PodNet {
    /// Takes over what is on disk and in the kernel: pods that an earlier agent set up get this one's
    /// programs, and endpoints that no pod has are removed.
    ///
    /// # Errors
    /// See [`PodNetError`].
    pub async fn start(
        node: NodeNet,
        state_dir: PathBuf,
        netlink: Netlink,
        programs: Arc<Mutex<Programs>>,
        maps: KernelMaps,
        cidrs: watch::Receiver<Vec<IpNet>>,
        host_ports: HostPorts,
    ) -> Result<Self, PodNetError> {
        let (store, records) = Store::open(state_dir).map_err(PodNetError::Store)?;
        let mut state = State::default();
        for record in records {
            let lease = match record.released_at {
                Some(at) => Lease::Released(Duration::from_secs(at)),
                None => Lease::Held,
            };
            for address in record.addresses() {
                state.pool(address.is_ipv6()).restore(address, lease);
            }
            if lease == Lease::Held {
                state.by_sandbox.insert(record.sandbox_id.clone(), record);
            }
        }
        let podnet = Self {
            node,
            netlink,
            programs,
            maps: Mutex::new(maps),
            store,
            state: Mutex::new(state),
            busy: Mutex::default(),
            cidrs,
            host_ports,
        };
        podnet.adopt().await?;
        Ok(podnet)
    }

    /// Sets up a pod's network, or completes what an earlier call began. Answers the pod's addresses.
    ///
    /// # Errors
    /// See [`PodNetError`]; what was done stays, and the next call goes on from there.
    pub async fn setup(&self, request: &PodNetRequest) -> Result<Vec<IpAddr>, PodNetError> {
        let lock = self.lock_of(&request.sandbox_id);
        let _guard = lock.lock().await;
        let known = self.state.lock().by_sandbox.get(&request.sandbox_id).cloned();
        let record = match known {
            Some(record) => self.keep_namespace(record, request)?,
            None => self.allocate(request).await?,
        };
        self.connect(&record, request).await?;
        self.tell_host_ports(&record, false);
        Ok(record.addresses().collect())
    }

    /// A sandbox may have got its namespace anew.
    fn keep_namespace(&self, mut record: Record, request: &PodNetRequest) -> Result<Record, PodNetError> {
        if record.netns.as_ref() != Some(&request.netns) {
            record.netns = Some(request.netns.clone());
            self.store.put(&record).map_err(PodNetError::Store)?;
            self.state.lock().by_sandbox.insert(record.sandbox_id.clone(), record.clone());
        }
        Ok(record)
    }

    /// The network namespaces of all pods.
    pub fn namespaces(&self) -> Vec<PathBuf> {
        self.state.lock().by_sandbox.values().filter_map(|record| record.netns.clone()).collect()
    }

    /// Removes a pod's network; it may be gone already, with its namespace.
    ///
    /// # Errors
    /// See [`PodNetError`]; call again.
    pub async fn teardown(&self, sandbox_id: &str) -> Result<(), PodNetError> {
        let lock = self.lock_of(sandbox_id);
        let guard = lock.lock().await;
        let record = self.state.lock().by_sandbox.get(sandbox_id).cloned();
        if let Some(mut record) = record {
            self.tell_host_ports(&record, true);
            for address in record.addresses() {
                self.maps.lock().apply(&Op::DeleteEndpoint { address })?;
            }
            self.netlink.delete_link(&record.interface).await?;
            let now = since_epoch();
            record.released_at = Some(now.as_secs());
            self.store.put(&record).map_err(PodNetError::Store)?;
            let mut state = self.state.lock();
            state.by_sandbox.remove(sandbox_id);
            for address in record.addresses() {
                state.pool(address.is_ipv6()).release(address, now);
            }
        }
        drop(guard);
        self.busy.lock().remove(sandbox_id);
        Ok(())
    }

    /// Whether pods can get addresses: the node has its prefix.
    ///
    /// # Errors
    /// `NoPodCidr` until then.
    pub fn ready(&self) -> Result<(), PodNetError> {
        if self.cidrs.borrow().is_empty() { Err(PodNetError::NoPodCidr) } else { Ok(()) }
    }

    /// The addresses of a pod that was set up.
    pub fn addresses(&self, sandbox_id: &str) -> Vec<IpAddr> {
        let state = self.state.lock();
        state.by_sandbox.get(sandbox_id).into_iter().flat_map(Record::addresses).collect()
    }

    /// All pods that have an address.
    pub fn records(&self) -> Vec<Record> {
        self.state.lock().by_sandbox.values().cloned().collect()
    }

    fn lock_of(&self, sandbox_id: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.busy.lock().entry(sandbox_id.to_string()).or_default().clone()
    }

    async fn adopt(&self) -> Result<(), PodNetError> {
        let records = self.records();
        let mut endpoints = Vec::new();
        for record in &records {
            // A pod whose interface is gone waits for its teardown.
            let Some(link) = self.netlink.link(&record.interface).await? else { continue };
            self.put_endpoints(record, link.index)?;
            self.attach(&record.interface).await?;
            endpoints.extend(record.addresses());
            self.tell_host_ports(record, false);
        }
        let held = self.maps.lock().snapshot()?.endpoints;
        for (address, _) in held.into_iter().filter(|(address, _)| !endpoints.contains(address)) {
            self.maps.lock().apply(&Op::DeleteEndpoint { address })?;
        }
        for link in self.netlink.links().await?.iter().filter(|link| link.name.starts_with(PREFIX)) {
            if !records.iter().any(|record| record.interface == link.name) {
                self.netlink.delete_link(&link.name).await?;
            }
        }
        Ok(())
    }

    fn tell_host_ports(&self, record: &Record, gone: bool) {
        if record.host_ports.is_empty() {
            return;
        }
        // Of one pod there may be an old and a new sandbox.
        let owner = format!("{}/{}/{}", record.namespace, record.name, record.sandbox_id);
        let ports = if gone { Vec::new() } else { host_ports_of(record) };
        self.host_ports.set(owner.into(), ports);
    }

    /// Attaches the programs, on a thread that may block.
    async fn attach(&self, interface: &str) -> Result<(), PodNetError> {
        let (programs, interface) = (self.programs.clone(), interface.to_string());
        tokio::task::spawn_blocking(move || programs.lock().attach_pod(&interface)).await??;
        Ok(())
    }

    async fn allocate(&self, request: &PodNetRequest) -> Result<Record, PodNetError> {
        let mut cidrs = self.cidrs.clone();
        let known = tokio::time::timeout(CIDR_TIMEOUT, cidrs.wait_for(|cidrs| !cidrs.is_empty())).await;
        let cidrs = match known {
            Ok(Ok(cidrs)) => cidrs.clone(),
            _ => return Err(PodNetError::NoPodCidr),
        };
        let mut state = self.state.lock();
        let addresses = state.allocate(&cidrs, since_epoch())?;
        let record = Record {
            sandbox_id: request.sandbox_id.clone(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            uid: request.uid.clone(),
            address: addresses[0],
            second: addresses.get(1).copied(),
            interface: free_name(&request.sandbox_id, &state.by_sandbox),
            netns: Some(request.netns.clone()),
            host_ports: request.host_ports.clone(),
            released_at: None,
        };
        if let Err(error) = self.store.put(&record) {
            // Whether it is on disk is unknown, so nobody else may have it either.
            return Err(PodNetError::Store(error));
        }
        state.by_sandbox.insert(request.sandbox_id.clone(), record.clone());
        Ok(record)
    }

    async fn connect(&self, record: &Record, request: &PodNetRequest) -> Result<(), PodNetError> {
        let namespace_error = |source| PodNetError::Namespace { path: request.netns.clone(), source };
        let inside = Netlink::inside(&request.netns).await.map_err(namespace_error)?;
        let mut host = self.netlink.link(&record.interface).await?;
        let mut pod = inside.link(POD_INTERFACE).await?;
        if host.is_some() && pod.as_ref().and_then(|link| link.mac) != Some(pod_mac(record.address)) {
            // The pair belongs to a namespace that this sandbox no longer has.
            self.netlink.delete_link(&record.interface).await?;
            host = None;
        }
        if host.is_none() {
            let namespace = std::fs::File::open(&request.netns).map_err(namespace_error)?;
            let host_end =
                VethEnd { name: &record.interface, mac: host_mac(record.address), mtu: self.node.mtu };
            let pod_end = VethEnd { name: POD_INTERFACE, mac: pod_mac(record.address), mtu: self.node.mtu };
            self.netlink.add_veth(&host_end, &pod_end, namespace.as_fd()).await?;
            host = self.netlink.link(&record.interface).await?;
            pod = inside.link(POD_INTERFACE).await?;
        }
        let gone = |what: &str| NetlinkError {
            what: format!("reading interface {what}"),
            source: io::Error::from_raw_os_error(libc::ENODEV),
        };
        let host = host.ok_or_else(|| gone(&record.interface))?;
        let pod = pod.ok_or_else(|| gone(POD_INTERFACE))?;

        for sysctl in sysctl::of_host_end(&record.interface, record.addresses().any(|a| a.is_ipv6())) {
            sysctl.write()?;
        }
        self.attach(&record.interface).await?;
        self.netlink.set_up(host.index).await?;
        inside::configure(&request.netns, &inside, pod.index, record).await?;

        for address in record.addresses() {
            self.netlink.set_neighbour(host.index, address, pod_mac(record.address)).await?;
            let source = self.node.node_ips.iter().copied().find(|ip| ip.is_ipv6() == address.is_ipv6());
            let target = RouteTarget::Link { index: host.index, source };
            self.netlink.set_route(IpNet::from(address), target).await?;
        }
        self.put_endpoints(record, host.index)
    }

    fn put_endpoints(&self, record: &Record, ifindex: u32) -> Result<(), PodNetError> {
        let value = endpoint(record.address, ifindex);
        let mut maps = self.maps.lock();
        record.addresses().try_for_each(|address| Ok(maps.apply(&Op::PutEndpoint { address, value })?))
    }
}

fn since_epoch() -> Duration {
    // A clock before 1970 makes released addresses wait for longer.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Address of the pod's end: locally administered, and different for every pod of the node.
fn pod_mac(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = low_bytes(address);
    [0x0a, 0x58, a, b, c, d]
}

/// Address of the node's end.
fn host_mac(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = low_bytes(address);
    [0x0e, 0x58, a, b, c, d]
}

fn low_bytes(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => (u128::from(address) as u32).to_be_bytes(),
    }
}

fn endpoint(address: IpAddr, ifindex: u32) -> Endpoint4 {
    Endpoint4 { ifindex, flags: 0, pod_mac: pod_mac(address), host_mac: host_mac(address), pad: [0; 4] }
}

/// A name that no other pod's interface has: the sandbox's hash, or one close to it.
fn free_name(sandbox_id: &str, taken: &HashMap<String, Record>) -> String {
    // FNV-1a: stable between versions, and nobody gains anything from a collision.
    let hash = sandbox_id
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut candidates = (0u32..).map(|offset| format!("{PREFIX}{:08x}", hash.wrapping_add(offset)));
    let is_free = |name: &String| !taken.values().any(|record| &record.interface == name);
    candidates.find(is_free).unwrap_or_default()
}
