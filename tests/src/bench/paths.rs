//! What a Service costs on its way from socket to socket: through the ClusterIP against the pod's own address with more
//! and more Services, pod to pod against a bare veth, and node ports in packets, beside the same in iptables and nftables.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use hawser_tests::pods::run_busybox;
use hawser_tests::wire::Endpoint;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use xtask::sandbox::Sandbox;

use crate::api::{JSON, spread};
use crate::bare::{Hosts, Kind, Pair};
use crate::lanes::{Lane, Place, Server, arrivals_in_turns, in_turns};
use crate::load::Mode;
use crate::nodes::{self, NODES, PORT, until_in_map};
use crate::report::{Report, Target};
use crate::rivals;

/// Rounds of a comparison. Many short ones: what else the machine does then meets all lanes alike.
const ROUNDS: usize = 24;
/// Where the bench's Services have their addresses, and the range that these are of.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 0);
const RANGE: &str = "10.96.0.0/12";
/// The node port that takes datagrams.
const NODE_PORT: u16 = 30_777;
/// A host of the sandbox that is no node.
const OUTSIDE: (&str, Ipv4Addr) = ("outside", Ipv4Addr::new(172, 30, 0, 200));

/// Measures with a sandbox of two nodes, at these numbers of Services.
pub async fn run(binary: &Path, sizes: &[u32], report: &mut Report) -> Result<()> {
    nodes::with_sandbox("services", binary, async |sandbox| {
        Scene::new(sandbox).await?.measure(sizes, report).await
    })
    .await
}

/// Clients and servers of all lanes.
struct Scene<'a> {
    sandbox: &'a Sandbox,
    hosts: Hosts,
    scratch: tempfile::TempDir,
    client: Place,
    /// Pods' addresses: on the client's node, and on the other one.
    near: String,
    far: String,
    pair: Pair,
    /// On the pods `far` and `near`, in the bare pod, at the veth's other end.
    servers: [Server; 4],
}

/// A pod that does nothing, on a node.
async fn place(client: &kube::Client, name: &str, node: u8) -> Result<(Place, String)> {
    let spec = json!({"nodeName": xtask::sandbox::node_name(node)});
    let pod: Pod = run_busybox(client, name, spec, "sleep 100000").await?;
    let address =
        pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("a pod without address")?;
    Ok((Place::of_pod(&pod)?, address))
}

impl<'a> Scene<'a> {
    async fn new(sandbox: &'a Sandbox) -> Result<Self> {
        let api = hawser_tests::cluster::client(&sandbox.kubeconfig()).await?;
        let (client, _) = place(&api, "client", 1).await?;
        let (near_place, near) = place(&api, "near", 1).await?;
        let (far_place, far) = place(&api, "far", 2).await?;
        let (hosts, pair) = (Hosts::new()?, Pair::new()?);
        let servers = [
            Server::start(&far_place, PORT).await?,
            Server::start(&near_place, PORT).await?,
            Server::start(&hosts.server()?.0, PORT).await?,
            Server::start(&pair.server().0, PORT).await?,
        ];
        sandbox.network().ensure_host(OUTSIDE.0, &[OUTSIDE.1.into()])?;
        Ok(Self { sandbox, hosts, scratch: tempfile::tempdir()?, client, near, far, pair, servers })
    }

    async fn measure(&self, sizes: &[u32], report: &mut Report) -> Result<()> {
        let mut have = 0;
        for size in sizes.iter().copied() {
            self.grow(have, size).await?;
            have = size;
            if size == sizes[0] {
                self.pods(report).await?;
            }
            self.cluster_ip(size, report).await?;
            self.node_port(size, report).await?;
        }
        Ok(())
    }

    /// Makes Services until there are `wanted`, and waits until the nodes know them. The first is the one that is asked.
    async fn grow(&self, have: u32, wanted: u32) -> Result<()> {
        let endpoint = Endpoint::from_kubeconfig(&self.sandbox.kubeconfig())?;
        let far: Ipv4Addr = self.far.parse()?;
        spread(&endpoint, (wanted - have) as usize, move |mut wire, at| async move {
            let number = have + u32::try_from(at)?;
            let [service, slice] = objects(number, far).map(|object| object.to_string());
            let services = "/api/v1/namespaces/default/services";
            wire.expect(http::Method::POST, services, JSON, service.into()).await?;
            let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
            wire.expect(http::Method::POST, slices, JSON, slice.into()).await?;
            Ok(wire)
        })
        .await?;
        for node in 1..=NODES {
            let socket = self.sandbox.node_run_dir(node).join("proxy.sock");
            // The clients of `spread` are not in step: any of the last could be the last one.
            for number in wanted.saturating_sub(100).max(have)..wanted {
                until_in_map(&socket, &address(number).to_string(), PORT, &self.far).await?;
            }
        }
        let endpoint = self.hosts.server()?.1;
        let mut all: Vec<_> = (1..wanted).flat_map(|number| ports(number, endpoint)).collect();
        // iptables go through the rules one by one, so the one that is asked is in the middle.
        let middle = all.len() / 2;
        all.splice(middle..middle, ports(0, endpoint));
        for kind in Kind::ALL {
            let begun = std::time::Instant::now();
            self.hosts.set_services(kind, &all, RANGE, self.scratch.path())?;
            let what = format!("{wanted} Services written for {}", kind.name());
            report_load(&what, begun.elapsed());
        }
        Ok(())
    }

    /// Pod to pod against a bare veth.
    async fn pods(&self, report: &mut Report) -> Result<()> {
        for mode in [Mode::Requests, Mode::Connections, Mode::Throughput] {
            let port = PORT + mode.offset();
            let mut lanes = [
                Lane::new(&self.pair.client(), mode, &self.pair.server().1.to_string(), port)?,
                Lane::new(&self.client, mode, &self.near, port)?,
                Lane::new(&self.client, mode, &self.far, port)?,
                Lane::new(
                    &self.hosts.client(Kind::Routed)?,
                    mode,
                    &self.hosts.server()?.1.to_string(),
                    port,
                )?,
            ];
            in_turns(&mut lanes, ROUNDS).await?;
            let [veth, near, far, routed] = &lanes;
            report.note(&format!("{} over a bare veth", what(mode)), veth.rate()?, "/s");
            let target = if mode == Mode::Connections { Target::None } else { Target::AtLeast(0.95) };
            for (lane, name, target) in [
                (near, "pod to pod on one node", target),
                (far, "pod to pod across nodes", target),
                (routed, "the kernel's routing across hosts", Target::None),
            ] {
                report.add(&format!("{}, {name} over a bare veth", what(mode)), lane.over(veth)?, "", target);
            }
        }
        Ok(())
    }

    /// Through the ClusterIP against the pod's own address.
    async fn cluster_ip(&self, size: u32, report: &mut Report) -> Result<()> {
        let vip = address(0).to_string();
        for mode in [Mode::Requests, Mode::Connections, Mode::Throughput] {
            let port = PORT + mode.offset();
            let mut lanes = vec![
                Lane::new(&self.client, mode, &self.far, port)?,
                Lane::new(&self.client, mode, &vip, port)?,
            ];
            for kind in Kind::ALL {
                let target =
                    if kind == Kind::Routed { self.hosts.server()?.1.to_string() } else { vip.clone() };
                lanes.push(Lane::new(&self.hosts.client(kind)?, mode, &target, port)?);
            }
            in_turns(&mut lanes, ROUNDS).await?;
            let [direct, service, routed, rivals @ ..] = lanes.as_slice() else { continue };
            report.note(&format!("{}, {size} Services, to the pod", what(mode)), direct.rate()?, "/s");
            report.note(
                &format!("{}, {size} Services, through the ClusterIP", what(mode)),
                service.rate()?,
                "/s",
            );
            report.add(
                &format!("{} through the ClusterIP over the pod's address, {size} Services", what(mode)),
                service.over(direct)?,
                "",
                Target::AtLeast(0.99),
            );
            for (lane, kind) in rivals.iter().zip([Kind::Iptables, Kind::Nftables]) {
                report.add(&format!("the same in {}", kind.name()), lane.over(routed)?, "", Target::None);
            }
        }
        Ok(())
    }

    /// Datagrams from outside to a node port whose endpoint is on another node.
    async fn node_port(&self, size: u32, report: &mut Report) -> Result<()> {
        let outside = Place::bare(&self.sandbox.network().namespace(OUTSIDE.0));
        let node = xtask::sandbox::node_address(1).to_string();
        let rivals = [Kind::Iptables, Kind::Nftables];
        let mut lanes = vec![Lane::new(&outside, Mode::Packets, &node, NODE_PORT)?];
        for kind in rivals {
            let node = self.hosts.node(kind).to_string();
            lanes.push(Lane::new(&self.hosts.outside()?, Mode::Packets, &node, NODE_PORT)?);
        }
        let [far, _, bare, _] = &self.servers;
        arrivals_in_turns(&mut lanes, &[far, bare, bare], ROUNDS).await?;
        let [ours, rest @ ..] = lanes.as_slice() else { return Ok(()) };
        report.add(&format!("packets to a node port, {size} Services"), ours.rate()?, "/s", Target::None);
        for (lane, kind) in rest.iter().zip(rivals) {
            report.note(&format!("the same in {}", kind.name()), lane.rate()?, "/s");
            report.add(
                &format!("the same over those in {}", kind.name()),
                ours.over(lane)?,
                "",
                Target::AtLeast(1.0),
            );
        }
        Ok(())
    }
}

fn what(mode: Mode) -> &'static str {
    match mode {
        Mode::Connections => "connections per second",
        Mode::Requests => "requests per second",
        Mode::Throughput => "throughput",
        Mode::Packets => "packets per second",
    }
}

fn report_load(what: &str, took: std::time::Duration) {
    eprintln!("  {what} in {:.2} s", took.as_secs_f64());
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST) + number)
}

/// Ports of a Service: name, protocol, number, node port. The one that is asked has all, the others the first.
fn service_ports(number: u32) -> impl Iterator<Item = (&'static str, &'static str, u16, u16)> {
    let all = [
        ("echo", "TCP", PORT, 0),
        ("bytes", "TCP", PORT + Mode::Throughput.offset(), 0),
        ("packets", "UDP", PORT + Mode::Packets.offset(), NODE_PORT),
    ];
    all.into_iter().take(if number == 0 { all.len() } else { 1 })
}

/// The ports for iptables and nftables.
fn ports(number: u32, endpoint: Ipv4Addr) -> impl Iterator<Item = rivals::Port> {
    service_ports(number).map(move |(_, protocol, port, node_port)| rivals::Port {
        number,
        protocol: if protocol == "TCP" { "tcp" } else { "udp" },
        address: address(number),
        port,
        node_port,
        endpoint,
    })
}

/// The Service and its EndpointSlice.
fn objects(number: u32, endpoint: Ipv4Addr) -> [Value; 2] {
    let name = format!("s{number}");
    let of_service: Vec<Value> = service_ports(number)
        .map(|(name, protocol, port, node_port)| {
            json!({"name": name, "protocol": protocol, "port": port, "nodePort": node_port})
        })
        .collect();
    let of_slice: Vec<Value> = service_ports(number)
        .map(|(name, protocol, port, _)| json!({"name": name, "protocol": protocol, "port": port}))
        .collect();
    let kind = if number == 0 { "NodePort" } else { "ClusterIP" };
    [
        json!({
            "metadata": {"name": name},
            "spec": {"type": kind, "clusterIP": address(number), "ports": of_service},
        }),
        json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}, "nodeName": "node-2"}],
            "ports": of_slice,
        }),
    ]
}
