//! The agent: watches the API, keeps the maps and routes, serves inspection.
//!
//! One task owns the desired state. An event goes straight through to the maps; nothing is collected or
//! delayed, because a write of the API must be in the kernel within milliseconds.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aya::util::KernelVersion;
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use hawser_api::dataplane::Programmed;
use hawser_ebpf_common::ct::{CtEntry, CtKey};
use hawser_ebpf_common::endpoint::{
    CONFIG_CHECKSUM_IPV6, CONFIG_MASQUERADE, CONFIG_MIGRATING, LAYOUT, NodeConfig,
};
use hawser_ebpf_common::lb::{Address6, LbConfig};
use hawser_ebpf_common::map_names;
use hawser_watch::{Known, Named, changes};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::announcer;
use crate::config::{Config, ConfigError, Settings, Tunnel};
use crate::connections::Drift;
use crate::convert;
use crate::cuts::{self, Flows};
use crate::dataplane::{Dataplane, node_netns_cookie};
use crate::desired::{self, Local, ObjectName, Touched};
use crate::diff::Cut;
use crate::healthcheck::HealthChecks;
use crate::host_ports::{HostPorts, HostPortsOf};
use crate::inspect::{self, InspectService};
use crate::lock::{InstanceLock, LockError};
use crate::maps::{Address, KernelMaps, MapError};
use crate::netlink::{Netlink, NetlinkError};
use crate::podnet::{NodeNet, PodNet, PodNetError};
use crate::pressure::{self, Fill, Pressure};
use crate::programs::{Pins, Programs, ProgramsError, create_private, xdp_modes};
use crate::routes::{Routes, Way};
use crate::status;
use crate::sweep::{Step, Sweep};
use crate::sys::monotonic_ns;
use crate::tunnel::{self, TunnelError};
use crate::types::PrefixSpec;
use crate::uplink::{self, Uplink};

/// Shortest and longest wait before a failed reconcile is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));
/// How often the counts of open connections are compared with the sockets.
const RECOUNT: Duration = Duration::from_secs(30);
/// How often connection tracking is swept, and how soon after one sweep the next may begin.
const CT_SWEEP: Duration = Duration::from_secs(15);
const CT_SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// Why an agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// Another agent runs on this node.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The run directory or the socket could not be made.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// No interface has the node's address.
    #[error("no interface has the address {0}")]
    NoUplink(IpAddr),
    /// The named uplink does not exist.
    #[error("no interface is called {0}")]
    NoInterface(String),
    /// Packets of pods would have to be smaller than their family allows.
    #[error("the MTU of {interface} leaves {mtu} bytes for packets of pods, who need {least}")]
    SmallMtu {
        /// The uplink.
        interface: String,
        /// What is left.
        mtu: u32,
        /// What is needed.
        least: u32,
    },
    /// The tunnels' interface could not be made.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The programs could not be loaded or attached.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// A map could not be opened.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The pod network could not be taken over.
    #[error(transparent)]
    PodNet(#[from] PodNetError),
    /// The inspection service failed.
    #[error("inspection service: {0}")]
    Inspect(#[from] tonic::transport::Error),
}

/// The dataplane agent of one node.
pub struct Agent {
    client: Client,
    settings: Settings,
    dataplane: Dataplane<KernelMaps>,
    routes: Option<Routes>,
    podnet: Option<Arc<PodNet>>,
    cidrs: watch::Sender<Vec<IpNet>>,
    synced: watch::Sender<bool>,
    programmed: watch::Sender<Option<Programmed>>,
    link: Option<announcer::Link>,
    host_ports: (HostPorts, mpsc::UnboundedReceiver<HostPortsOf>),
    listener: UnixListener,
    /// Held for their effect.
    _programs: Arc<Mutex<Programs>>,
    _lock: InstanceLock,
}

/// What a watch delivers.
enum Input {
    HostPorts(HostPortsOf),
    Service(Event<Named<desired::Service>>),
    Slice(Event<Named<desired::Slice>>),
    Node(Event<Named<desired::Node>>),
    Failed(&'static str, watcher::Error),
}

impl Agent {
    /// Checks the configuration, takes the node's lock, loads the programs, puts them in place of those
    /// that an earlier agent left, and takes its pods over. Must be called in the node's network
    /// namespace, on a runtime whose threads all live there. Reads nothing from the API yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(config: Config, client: Client) -> Result<Self, Error> {
        let settings = Settings::check(config)?;
        let config = &settings.config;
        let io_error = |path: PathBuf| move |source| Error::Io { path, source };
        create_private(&config.run_dir).map_err(io_error(config.run_dir.clone()))?;
        let lock = InstanceLock::take(&config.run_dir)?;
        let pins = Pins::new(settings.pins());
        let mut uplink = None;
        if config.pod_network {
            let netlink = Netlink::here().map_err(io_error("rtnetlink".into()))?;
            let found = Uplink::find(&netlink, config).await?;
            uplink = Some((netlink, found));
        }
        let by_xdp = |(_, uplink): &(_, Uplink)| !xdp_modes(config.xdp, uplink.is_virtual).is_empty();
        let mut programs = match uplink.as_ref().is_some_and(by_xdp) {
            true => Programs::load_for_xdp(&pins)?,
            false => Programs::load(&pins)?,
        };
        let mut maps = KernelMaps::open(&pins.maps())?;
        maps.set_lb_config(&LbConfig { node_netns_cookie: node_netns_cookie(), pad: 0 })?;
        let (cidrs, cidrs_receiver) = watch::channel(Vec::new());
        let host_ports = HostPorts::new();

        let mut local = Local {
            node_name: config.node_name.clone(),
            node_ips: if config.pod_network { config.node_ips.clone() } else { Vec::new() },
            service_cidrs: config.service_cidrs.clone(),
            ..Local::default()
        };
        if !config.node_port_addresses.is_empty() {
            let addresses = addresses_within(&config.node_port_addresses);
            local.node_port_addresses = Some(addresses.map_err(io_error("getifaddrs".into()))?);
        }
        let mut network = None;
        if let Some((netlink, uplink)) = uplink {
            let v6 = config.node_ip(true).is_some();
            local.links = uplink.subnets.clone();
            local.tunnel = config.tunnel == Tunnel::Vxlan;
            let tunnel = match config.tunnel {
                Tunnel::Vxlan => Some(tunnel::ensure(&netlink, inner_mtu(config, &uplink)?, v6).await?),
                Tunnel::Off => None,
            };
            maps.set_config(&NodeConfig {
                node_ip_be: config.node_ip(false).map_or(0, Address::of),
                node_ip6_be: config.node_ip(true).map_or([0; 4], Address::of),
                uplink_ifindex: uplink.index,
                flags: config_flags(config) | maps.config()?.flags & CONFIG_MIGRATING,
                layout: LAYOUT,
                uplink_mac: uplink.mac,
                mtu: u16::try_from(uplink.mtu).unwrap_or(0),
                vxlan_ifindex: tunnel.as_ref().map_or(0, |link| link.index),
            })?;
            uplink::forward(&uplink.name, v6).map_err(PodNetError::from)?;
            programs.attach_tunnel(tunnel.as_ref().map(|link| link.name.as_str()))?;
            if tunnel.is_none() {
                tunnel::remove(&netlink).await?;
            }
            programs.attach_uplink(&uplink.name)?;
            programs.attach_xdp(&uplink.name, config.xdp, uplink.is_virtual)?;
            network = Some((netlink, uplink, tunnel));
        }
        programs.attach_cgroup(&config.cgroup)?;
        let programs = Arc::new(Mutex::new(programs));

        let mut routes = None;
        let mut podnet = None;
        let mut link = None;
        if let Some((netlink, uplink, tunnel)) = network {
            link = Some(announcer::Link { index: uplink.index, mac: uplink.mac });
            let sources = config.node_ips.clone();
            let mtu = config.mtu.map_or_else(|| inner_mtu(config, &uplink), Ok)?;
            let node = NodeNet { node_ips: sources.clone(), mtu };
            let state_dir = config.run_dir.join("podnet");
            let pods = KernelMaps::open(&pins.maps())?;
            let started = PodNet::start(
                node,
                state_dir,
                netlink.clone(),
                programs.clone(),
                pods,
                cidrs_receiver,
                host_ports.0.clone(),
            )
            .await?;
            podnet = Some(Arc::new(started));
            let way = match tunnel {
                Some(link) => Way::Tunnel { index: link.index, sources },
                None => Way::Uplink(uplink.index),
            };
            routes = Some(Routes::new(netlink, way));
        }
        programs.lock().finish_migration()?;
        let socket = settings.socket();
        let listener = inspect::bind(&socket).map_err(io_error(socket))?;
        Ok(Self {
            client,
            dataplane: Dataplane::new(local, maps),
            settings,
            routes,
            podnet,
            cidrs,
            synced: watch::Sender::new(false),
            programmed: watch::Sender::new(None),
            link,
            host_ports,
            listener,
            _programs: programs,
            _lock: lock,
        })
    }

    /// The pods' network; `None` when the configuration says without.
    pub fn pod_network(&self) -> Option<Arc<PodNet>> {
        self.podnet.clone()
    }

    /// Has it told, each time, up to which resourceVersions EndpointSlices and Nodes are in the maps and routes. Of Nodes
    /// that changed in nothing that matters there the channel's readers are not woken.
    pub fn tell_programmed(mut self, programmed: watch::Sender<Option<Programmed>>) -> Self {
        self.programmed = programmed;
        self
    }

    /// For whoever makes pods with host ports.
    pub fn host_ports(&self) -> HostPorts {
        self.host_ports.0.clone()
    }

    /// Tells when the maps first hold what the API says.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Runs until cancelled. What is attached and pinned stays.
    ///
    /// # Errors
    /// The inspection service failed; faults of the API, the maps and the routes are retried.
    pub async fn run(self, token: CancellationToken) -> Result<(), Error> {
        let Self {
            client,
            settings,
            dataplane,
            routes,
            podnet,
            cidrs,
            synced,
            programmed,
            link,
            host_ports: (_host_ports, host_ports),
            listener,
            _programs,
            _lock,
        } = self;
        let maps = Pins::new(settings.pins()).maps();
        let stop = token.child_token();
        let _stop_all = stop.clone().drop_guard();
        let (cuts, told) = mpsc::unbounded_channel();
        let flows = Arc::new(Flows::default());
        let cutting = cuts::run(told, maps.clone(), podnet.clone(), flows.clone(), stop.clone());
        let (announced, changes) = mpsc::unbounded_channel();
        let announcing = async {
            match link {
                Some(link) => announcer::run(link, changes, stop.clone()).await,
                None => stop.cancelled().await,
            }
        };
        let service = InspectService::new(maps.clone(), podnet).serve(listener, stop.clone());
        let node_name = settings.config.node_name.clone();
        let known = AllKnown::default();
        let engine = Engine {
            dataplane,
            routes,
            cidrs,
            synced,
            programmed,
            prefixes_untold: false,
            cuts,
            announced,
            host_ports,
            health: HealthChecks::default(),
            node_name,
            node_ips: settings.config.node_ips.clone(),
            known,
            retry: None,
        };
        let recount = recount(maps.clone(), stop.clone());
        let pressure = Arc::new(Pressure::default());
        let status = status::run(maps.clone(), engine.synced.subscribe(), pressure.clone());
        let walk = pressure::run(maps.clone(), pressure.clone(), stop.clone());
        let sweep = sweep_ct(maps, flows, pressure, stop.clone());
        tokio::select! {
            result = service => result?,
            () = engine.run(client, stop.clone()) => {}
            () = sweep => {}
            () = walk => {}
            () = recount => {}
            () = cutting => {}
            () = announcing => {}
            () = status => {}
        }
        Ok(())
    }
}

/// Size of the packets that fit through the uplink with what a tunnel puts before them.
fn inner_mtu(config: &Config, uplink: &Uplink) -> Result<u32, Error> {
    let mtu = uplink.mtu.saturating_sub(config.overhead());
    if mtu < config.least_mtu() {
        return Err(Error::SmallMtu { interface: uplink.name.clone(), mtu, least: config.least_mtu() });
    }
    Ok(mtu)
}

/// `CONFIG_*`.
fn config_flags(config: &Config) -> u32 {
    // As `BPF_F_IPV6` came.
    let checksum_ipv6 = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 16, 0));
    (if config.masquerade { CONFIG_MASQUERADE } else { 0 })
        | if checksum_ipv6 { CONFIG_CHECKSUM_IPV6 } else { 0 }
}

/// Objects by kind.
#[derive(Default)]
struct AllKnown {
    services: Known,
    slices: Known,
    nodes: Known,
}

struct Engine {
    dataplane: Dataplane<KernelMaps>,
    routes: Option<Routes>,
    cidrs: watch::Sender<Vec<IpNet>>,
    synced: watch::Sender<bool>,
    /// Where maps and routes are.
    programmed: watch::Sender<Option<Programmed>>,
    /// Prefixes changed since that was told.
    prefixes_untold: bool,
    cuts: mpsc::UnboundedSender<Vec<Cut>>,
    announced: mpsc::UnboundedSender<(IpAddr, bool)>,
    host_ports: mpsc::UnboundedReceiver<HostPortsOf>,
    health: HealthChecks,
    node_name: String,
    /// This node's addresses, the first family's first.
    node_ips: Vec<IpAddr>,
    known: AllKnown,
    /// When to reconcile, and how long to wait after that should it fail.
    retry: Option<(tokio::time::Instant, Duration)>,
}

impl Engine {
    async fn run(mut self, client: Client, token: CancellationToken) {
        let mut inputs = inputs(client);
        loop {
            let retry_at = self.retry.map(|(at, _)| at);
            let input = tokio::select! {
                biased;
                () = token.cancelled() => return,
                Some(pod) = self.host_ports.recv() => Some(Input::HostPorts(pod)),
                () = sleep_until(retry_at), if retry_at.is_some() => None,
                input = inputs.next() => match input {
                    Some(input) => Some(input),
                    None => return,
                },
            };
            match input {
                None => self.reconcile().await,
                Some(input) => self.on_input(input).await,
            }
            self.tell_programmed();
        }
    }

    async fn on_input(&mut self, input: Input) {
        let was_synced = self.known_all();
        let touched = match input {
            Input::Failed(kind, error) => {
                tracing::warn!(kind, %error, "watch failed; it starts again");
                return;
            }
            Input::HostPorts((pod, ports)) => self.dataplane.desired().set_host_ports(&pod, ports),
            Input::Service(event) => {
                let desired = self.dataplane.desired();
                let changes = self.known.services.on_event(event);
                merge(changes.into_iter().map(|change| desired.set_service(&change.name, change.value)))
            }
            Input::Slice(event) => {
                let desired = self.dataplane.desired();
                let changes = self.known.slices.on_event(event);
                merge(changes.into_iter().map(|change| desired.set_slice(&change.name, change.value)))
            }
            Input::Node(event) => {
                let changes = self.known.nodes.on_event(event);
                merge(changes.into_iter().map(|change| self.on_node(&change.name, change.value.as_ref())))
            }
        };
        self.prefixes_untold |= !touched.prefixes.is_empty();
        if !self.known_all() {
            return;
        }
        if !was_synced {
            self.reconcile().await;
            return;
        }
        if let Err(error) = self.dataplane.apply(&touched) {
            tracing::warn!(%error, "updating the maps; they will be compared in full");
            self.retry_soon();
        }
        self.tell_around(&touched.services);
        let desired = self.dataplane.desired();
        let prefixes: Vec<_> =
            touched.prefixes.iter().map(|prefix| (*prefix, desired.prefix(prefix).copied())).collect();
        if let Some(routes) = &mut self.routes
            && !prefixes.is_empty()
            && let Err(error) = routes.apply(&prefixes).await
        {
            tracing::warn!(%error, "updating the routes; they will be compared in full");
            self.retry_soon();
        }
    }

    fn on_node(&mut self, name: &ObjectName, node: Option<&desired::Node>) -> Touched {
        if **name == *self.node_name {
            let of_family = |node: &desired::Node, ip: &IpAddr| {
                node.pod_cidrs.iter().find(|cidr| cidr.addr().is_ipv4() == ip.is_ipv4()).copied()
            };
            let cidrs: Vec<IpNet> = node
                .iter()
                .flat_map(|node| self.node_ips.iter().filter_map(|ip| of_family(node, ip)))
                .collect();
            // A Node that is deleted and comes back keeps its pods meanwhile.
            self.cidrs.send_if_modified(|held| {
                let changed = !cidrs.is_empty() && *held != cidrs;
                if changed {
                    *held = cidrs;
                }
                changed
            });
        }
        self.dataplane.desired().set_node(name, node)
    }

    /// Says up to where the maps are. Nothing is said while they, or the routes, differ from what the API says.
    fn tell_programmed(&mut self) {
        let whole = self.known_all() && self.retry.is_none();
        let revisions = self.known.slices.revision().zip(self.known.nodes.revision());
        let Some((slices, nodes)) = revisions.filter(|_| whole) else { return };
        let untold = std::mem::take(&mut self.prefixes_untold);
        self.programmed.send_if_modified(|told| {
            let before = told.replace(Programmed { slices, nodes });
            untold || before.is_none_or(|before| before.slices != slices)
        });
    }

    /// What follows from the maps: answers to health checks, addresses that moved here, and what has lost its backend.
    fn tell_around(&mut self, services: &[ObjectName]) {
        self.health.set_in_order(self.dataplane.in_sync());
        for service in services {
            let check = self.dataplane.desired().health_check(service);
            self.health.set(service, check);
        }
        // Whoever listens ends with this agent only.
        for change in self.dataplane.take_announced() {
            let _ = self.announced.send(change);
        }
        let cuts = self.dataplane.take_cuts();
        if !cuts.is_empty() {
            let _ = self.cuts.send(cuts);
        }
    }

    fn known_all(&self) -> bool {
        self.known.services.synced() && self.known.slices.synced() && self.known.nodes.synced()
    }

    fn retry_soon(&mut self) {
        if self.retry.is_none() {
            self.retry = Some((tokio::time::Instant::now() + RETRY.0, RETRY.0));
        }
    }

    /// Compares everything: at the start, and after a fault.
    async fn reconcile(&mut self) {
        let wait = self.retry.take().map_or(RETRY.0, |(_, wait)| (wait * 2).min(RETRY.1));
        let mut whole = true;
        if !self.dataplane.in_sync()
            && let Err(error) = self.dataplane.reconcile()
        {
            tracing::warn!(%error, "comparing the maps; trying again");
            whole = false;
        }
        let services: Vec<ObjectName> = self.dataplane.desired().services().cloned().collect();
        self.tell_around(&services);
        let prefixes: Vec<(IpNet, PrefixSpec)> =
            self.dataplane.desired().prefixes().map(|(prefix, spec)| (*prefix, *spec)).collect();
        if let Some(routes) = &mut self.routes
            && !routes.in_sync()
            && let Err(error) = routes.reconcile(&prefixes).await
        {
            tracing::warn!(%error, "comparing the routes; trying again");
            whole = false;
        }
        if whole {
            self.synced.send_replace(true);
        } else {
            self.retry = Some((tokio::time::Instant::now() + wait, wait));
        }
    }
}

fn merge(all: impl Iterator<Item = Touched>) -> Touched {
    all.fold(Touched::default(), |mut sum, touched| {
        sum.merge(touched);
        sum
    })
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn inputs(client: Client) -> SelectAll<BoxStream<'static, Input>> {
    let all = watcher::Config::default;
    let ours = || all().labels(&convert::selector());
    futures::stream::select_all([
        changes(Api::<Service>::all(client.clone()), ours(), convert::service, |event| {
            event.map_or_else(|error| Input::Failed("services", error), Input::Service)
        }),
        changes(Api::<EndpointSlice>::all(client.clone()), ours(), convert::slice, |event| {
            event.map_or_else(|error| Input::Failed("endpointslices", error), Input::Slice)
        }),
        changes(
            Api::<Node>::all(client),
            all(),
            |node| Some(convert::node(node)),
            |event| event.map_or_else(|error| Input::Failed("nodes", error), Input::Node),
        ),
    ])
}

/// Corrects the counts of open connections where they have drifted from the sockets, now and then.
async fn recount(maps: PathBuf, token: CancellationToken) {
    let mut tick = tokio::time::interval(RECOUNT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let drift = Arc::new(Mutex::new(Drift::default()));
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (dir, drift) = (maps.clone(), drift.clone());
        let recounted = tokio::task::spawn_blocking(move || {
            let mut maps = KernelMaps::open(&dir)?;
            let (counts, sockets) = (maps.connections()?, maps.counted_sockets()?);
            let corrections = drift.lock().corrections(&counts, &sockets);
            for (backend, count) in &corrections {
                tracing::warn!(backend, count, "the count of open connections had drifted");
            }
            corrections.iter().try_for_each(|(backend, count)| maps.set_connections(*backend, *count))
        });
        match recounted.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "counting open connections"),
            Err(error) => tracing::warn!(%error, "counting open connections"),
        }
    }
}

/// Addresses of this network namespace that lie within some prefixes.
fn addresses_within(prefixes: &[IpNet]) -> std::io::Result<Vec<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs()?.filter_map(|one| one.address).filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    // Nothing from outside reaches ::1, and the socket hooks have no need of it.
    let usable = |address: &IpAddr| !(address.is_ipv6() && address.is_loopback());
    let mut within: Vec<IpAddr> =
        all.filter(usable).filter(|address| prefixes.iter().any(|prefix| prefix.contains(address))).collect();
    within.sort();
    within.dedup();
    Ok(within)
}

/// Removes entries of connections that are over: one pass over both maps every [`CT_SWEEP`], or when a backend is gone,
/// in parts between which other work gets its turn.
async fn sweep_ct(maps: PathBuf, flows: Arc<Flows>, pressure: Arc<Pressure>, token: CancellationToken) {
    let mut tick = tokio::time::interval(CT_SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            _ = tick.tick() => {}
            () = flows.changed() => {}
        }
        let cut = flows.to_remove();
        let swept = async {
            sweep_family::<u32>(&maps, map_names::CT, &cut, &pressure).await?;
            sweep_family::<Address6>(&maps, map_names::CT6, &cut, &pressure).await
        };
        match swept.await {
            Ok(()) => flows.removed(&cut),
            Err(error) => tracing::warn!(%error, "sweeping connection tracking"),
        }
        tokio::select! {
            () = token.cancelled() => return,
            () = tokio::time::sleep(CT_SWEEP_PAUSE) => {}
        }
    }
}

async fn sweep_family<A: Address>(
    maps: &std::path::Path,
    name: &'static str,
    cut: &HashSet<Cut>,
    pressure: &Pressure,
) -> Result<(), MapError>
where
    CtKey<A>: aya::Pod,
    CtEntry<A>: aya::Pod,
{
    let mut sweep = Sweep::<A>::open(maps, name)?;
    loop {
        match sweep.step(monotonic_ns(), cut)? {
            Step::More => tokio::task::yield_now().await,
            Step::Done { entries, capacity } => {
                pressure.set(name, Fill { entries, capacity });
                if entries * 10 > capacity * 9 {
                    tracing::warn!(
                        name,
                        entries,
                        capacity,
                        "connection tracking is nearly full: old flows are evicted"
                    );
                }
                return Ok(());
            }
        }
    }
}
