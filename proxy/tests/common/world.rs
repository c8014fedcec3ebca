//! Random Services and EndpointSlices, as the model sees them and as the API sends them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hawser_proxy::convert;
use hawser_proxy::dataplane::Dataplane;
use hawser_proxy::desired::{Local, Touched};
use hawser_proxy::maps::{Client, Lookup, Maps};
use hawser_proxy::types::{L4Addr, Protocol};
use hawser_proxy_model as model;
use proptest::prelude::*;
use serde_json::{Value, json};

/// The node whose view is tested.
pub const NODE: &str = "n1";
/// Its addresses.
pub const NODE_IPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1))];
/// Somebody outside the cluster.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const SERVICES: usize = 5;
const SLICES: usize = 6;
const FRONTEND_PORTS: [u16; 3] = [80, 81, 443];
const NODE_PORTS: [u16; 3] = [30080, 30081, 30443];
/// Ports of backends; none is a frontend's.
pub const BACKEND_PORTS: [u16; 3] = [8080, 8081, 5353];
const PORT_NAMES: [&str; 3] = ["", "http", "dns"];
const ZONES: [&str; 2] = ["z1", "z2"];

/// One event of the API.
#[derive(Debug, Clone)]
pub enum Action {
    /// A Service is created or replaced.
    PutService(Box<model::Service>, Option<&'static str>),
    /// The Service of this number is deleted.
    DeleteService(usize),
    /// A slice is created or replaced.
    PutSlice(model::Slice),
    /// The slice of this number is deleted.
    DeleteSlice(usize),
    /// The node gets a zone, or loses it.
    Zone(Option<&'static str>),
}

fn service_name(number: usize) -> String {
    format!("svc{number}")
}

fn slice_name(number: usize) -> String {
    format!("slice{number}")
}

/// Addresses of a kind; two Services may share one.
fn address(kind: u8, number: usize, v6: bool) -> IpAddr {
    let last = 1 + (number % 4) as u8;
    match v6 {
        false => Ipv4Addr::new(10, kind, 0, last).into(),
        true => Ipv6Addr::new(0xfd00, u16::from(kind), 0, 0, 0, 0, 0, last.into()).into(),
    }
}

const CLUSTER: u8 = 96;
const EXTERNAL: u8 = 97;
const BALANCER: u8 = 98;

fn protocol() -> impl Strategy<Value = model::Protocol> {
    prop_oneof![
        5 => Just(model::Protocol::Tcp),
        4 => Just(model::Protocol::Udp),
        1 => Just(model::Protocol::Sctp),
    ]
}

prop_compose! {
    fn ports()(ports in prop::collection::vec(
        (prop::sample::select(&PORT_NAMES[..]), 0..FRONTEND_PORTS.len(), protocol(), prop::bool::ANY), 1..4,
    )) -> Vec<model::Port> {
        // The API allows neither two ports of one name nor two of one number and protocol.
        let mut kept: Vec<model::Port> = Vec::new();
        for (name, number, protocol, open) in ports {
            let port = FRONTEND_PORTS[number];
            if !kept.iter().any(|p| p.name == name || (p.port, p.protocol) == (port, protocol)) {
                let node_port = open.then_some(NODE_PORTS[number]);
                kept.push(model::Port { name: name.to_string(), port, protocol, node_port });
            }
        }
        kept
    }
}

prop_compose! {
    fn service()(
        (number, ip) in (0..SERVICES, 0..SERVICES),
        ports in ports(),
        kind in prop::sample::select(&[
            model::ServiceType::ClusterIp, model::ServiceType::NodePort, model::ServiceType::LoadBalancer,
        ][..]),
        (internal_local, external_local, affinity) in
            (prop::bool::weighted(0.2), prop::bool::weighted(0.3), prop::bool::weighted(0.2)),
        families in 0..4u8,
        (external, ingress, proxied) in
            (prop::bool::weighted(0.3), prop::bool::weighted(0.7), prop::bool::weighted(0.1)),
        ranges in prop::collection::vec(prop::sample::select(&[
            "10.244.0.0/24", "10.99.0.1/32", "203.0.113.0/24", "203.0.113.9/32", "192.0.2.0/25", "fd00:99::/64",
        ][..]), 0..3),
        odd in 0..20u8,
    ) -> model::Service {
        // Both families, or one of them.
        let of = |kind: u8, number: usize| -> Vec<IpAddr> {
            let families: &[bool] = match families { 0 | 1 => &[false], 2 => &[true], _ => &[false, true] };
            families.iter().map(|v6| address(kind, number, *v6)).collect()
        };
        let range = |text: &str| {
            let net: ipnet::IpNet = text.parse().expect("a prefix");
            (net.addr(), net.prefix_len())
        };
        model::Service {
            namespace: "default".to_string(),
            name: service_name(number),
            kind: if odd == 0 { model::ServiceType::ExternalName } else { kind },
            cluster_ips: if odd == 1 { Vec::new() } else { of(CLUSTER, if odd == 2 { ip } else { number }) },
            external_ips: if external { of(EXTERNAL, number) } else { Vec::new() },
            ingress: match ingress {
                true => of(BALANCER, number).into_iter().map(|address| (address, proxied)).collect(),
                false => Vec::new(),
            },
            ports,
            internal_local,
            external_local,
            source_ranges: if odd < 12 { Vec::new() } else { ranges.into_iter().map(range).collect() },
            affinity,
            other_proxy: odd == 3,
        }
    }
}

prop_compose! {
    fn endpoint(v6: bool)(
        addresses in prop::collection::vec(1..12u8, 1..3),
        ready in prop::option::weighted(0.8, prop::bool::weighted(0.6)),
        serving in prop::option::weighted(0.8, prop::bool::weighted(0.6)),
        terminating in prop::option::weighted(0.8, prop::bool::weighted(0.6)),
        node in prop::option::of(prop::sample::select(&[NODE, "n2"][..])),
        zone in prop::option::weighted(0.8, prop::sample::select(&ZONES[..])),
        for_node in prop::option::weighted(0.5, prop::sample::select(&[NODE, "n2"][..])),
        hinted in prop::bool::weighted(0.6),
    ) -> model::Endpoint {
        let address = |last: u8| match v6 {
            false => IpAddr::V4(Ipv4Addr::new(10, 1, 0, last)),
            true => IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last.into())),
        };
        let names = |name: Option<&str>| -> Vec<String> {
            name.filter(|_| hinted).map(str::to_string).into_iter().collect()
        };
        model::Endpoint {
            addresses: addresses.into_iter().map(address).collect(),
            ready,
            serving,
            terminating,
            node: node.map(str::to_string),
            for_zones: names(zone),
            for_nodes: names(for_node),
        }
    }
}

fn slice() -> impl Strategy<Value = model::Slice> {
    let target = prop::option::weighted(0.9, prop::sample::select(&BACKEND_PORTS[..]));
    let port = (prop::sample::select(&PORT_NAMES[..]).prop_map(str::to_string), target, protocol());
    let ports = prop::collection::vec(port, 1..4);
    let endpoints =
        prop::bool::weighted(0.4).prop_flat_map(|v6| (Just(v6), prop::collection::vec(endpoint(v6), 0..8)));
    (0..SLICES, 0..SERVICES, ports, endpoints, 0..20u8).prop_map(
        |(number, service, ports, (v6, endpoints), odd)| model::Slice {
            namespace: "default".to_string(),
            name: slice_name(number),
            service: (odd != 0).then(|| service_name(service)),
            headless: odd == 1,
            v6,
            ports,
            endpoints,
        },
    )
}

/// A random event.
pub fn action() -> impl Strategy<Value = Action> {
    let algorithm = prop::option::weighted(
        0.3,
        prop::sample::select(&["random", "least-loaded", "least-loaded", "maglev", "nonsense"][..]),
    );
    prop_oneof![
        8 => (service(), algorithm).prop_map(|(service, how)| Action::PutService(Box::new(service), how)),
        2 => (0..SERVICES).prop_map(Action::DeleteService),
        12 => slice().prop_map(Action::PutSlice),
        2 => (0..SLICES).prop_map(Action::DeleteSlice),
        1 => prop::option::of(prop::sample::select(&ZONES[..])).prop_map(Action::Zone),
    ]
}

/// Nothing but the node.
pub fn empty_world() -> model::World {
    let node = model::Node { name: NODE.to_string(), zone: None, addresses: NODE_IPS.to_vec() };
    model::World { node, ..Default::default() }
}

/// Applies an event to the model's world.
pub fn apply_to_world(world: &mut model::World, action: &Action) {
    match action {
        Action::PutService(service, _) => {
            world.services.retain(|old| old.name != service.name);
            world.services.push((**service).clone());
        }
        Action::DeleteService(number) => world.services.retain(|old| old.name != service_name(*number)),
        Action::PutSlice(slice) => {
            world.slices.retain(|old| old.name != slice.name);
            world.slices.push(slice.clone());
        }
        Action::DeleteSlice(number) => world.slices.retain(|old| old.name != slice_name(*number)),
        Action::Zone(zone) => world.node.zone = zone.map(str::to_string),
    }
}

/// Tells a dataplane about an event, as the watch would: what its selector leaves out is "gone".
pub fn tell<M: Maps>(dataplane: &mut Dataplane<M>, action: &Action) -> Touched {
    let desired = dataplane.desired();
    match action {
        Action::PutService(service, algorithm) => {
            let object = serde_json::from_value(service_json(service, *algorithm)).expect("a Service");
            let parsed = if service.other_proxy { None } else { convert::service(&object) };
            desired.set_service(&hawser_watch::object_name(&object), parsed)
        }
        Action::DeleteService(number) => {
            desired.set_service(&Arc::from(format!("default/{}", service_name(*number))), None)
        }
        Action::PutSlice(slice) => {
            let object = serde_json::from_value(slice_json(slice)).expect("an EndpointSlice");
            let parsed = if slice.headless { None } else { convert::slice(&object) };
            desired.set_slice(&hawser_watch::object_name(&object), parsed)
        }
        Action::DeleteSlice(number) => {
            desired.set_slice(&Arc::from(format!("default/{}", slice_name(*number))), None)
        }
        Action::Zone(zone) => {
            let labels = zone.map(|zone| json!({"topology.kubernetes.io/zone": zone}));
            let addresses: Vec<Value> =
                NODE_IPS.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
            let object = json!({
                "metadata": {"name": NODE, "labels": labels},
                "status": {"addresses": addresses},
            });
            let node = convert::node(&serde_json::from_value(object).expect("a Node"));
            desired.set_node(&Arc::from(NODE), Some(&node))
        }
    }
}

fn protocol_name(protocol: model::Protocol) -> &'static str {
    match protocol {
        model::Protocol::Tcp => "TCP",
        model::Protocol::Udp => "UDP",
        model::Protocol::Sctp => "SCTP",
    }
}

fn local_or_cluster(local: bool) -> &'static str {
    if local { "Local" } else { "Cluster" }
}

fn service_json(service: &model::Service, algorithm: Option<&str>) -> Value {
    let cluster_ips = match service.cluster_ips.is_empty() {
        true => vec!["None".to_string()],
        false => service.cluster_ips.iter().map(IpAddr::to_string).collect(),
    };
    let kind = match service.kind {
        model::ServiceType::ClusterIp => "ClusterIP",
        model::ServiceType::NodePort => "NodePort",
        model::ServiceType::LoadBalancer => "LoadBalancer",
        model::ServiceType::ExternalName => "ExternalName",
    };
    let port = |port: &model::Port| {
        json!({
            "name": port.name,
            "port": port.port,
            "protocol": protocol_name(port.protocol),
            "nodePort": port.node_port,
        })
    };
    let ingress =
        |(ip, proxied): &(IpAddr, bool)| json!({"ip": ip, "ipMode": if *proxied { "Proxy" } else { "VIP" }});
    json!({
        "metadata": {
            "namespace": service.namespace,
            "name": service.name,
            "annotations": algorithm.map(|how| json!({convert::ALGORITHM: how})),
        },
        "spec": {
            "type": kind,
            "clusterIP": cluster_ips[0],
            "clusterIPs": cluster_ips,
            "externalIPs": service.external_ips,
            "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
            "internalTrafficPolicy": local_or_cluster(service.internal_local),
            "externalTrafficPolicy": local_or_cluster(service.external_local),
            "sessionAffinity": if service.affinity { "ClientIP" } else { "None" },
            "loadBalancerSourceRanges":
                service.source_ranges.iter().map(|(ip, length)| format!("{ip}/{length}")).collect::<Vec<_>>(),
        },
        "status": {"loadBalancer": {"ingress": service.ingress.iter().map(ingress).collect::<Vec<_>>()}},
    })
}

fn slice_json(slice: &model::Slice) -> Value {
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol_name(*protocol)}))
        .collect();
    let named = |names: &[String]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    let endpoints: Vec<Value> = slice
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "addresses": endpoint.addresses,
                "conditions": {
                    "ready": endpoint.ready,
                    "serving": endpoint.serving,
                    "terminating": endpoint.terminating,
                },
                "nodeName": endpoint.node,
                "hints": {"forZones": named(&endpoint.for_zones), "forNodes": named(&endpoint.for_nodes)},
            })
        })
        .collect();
    let mut labels = serde_json::Map::new();
    if let Some(service) = &slice.service {
        labels.insert("kubernetes.io/service-name".to_string(), json!(service));
    }
    json!({
        "metadata": {"namespace": slice.namespace, "name": slice.name, "labels": labels},
        "addressType": if slice.v6 { "IPv6" } else { "IPv4" },
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// The view of the node under test, with nothing but Services.
pub fn local() -> Local {
    Local { node_name: NODE.to_string(), node_ips: NODE_IPS.to_vec(), ..Local::default() }
}

/// Every frontend that an event can name, and a few that none can.
pub fn frontends() -> Vec<L4Addr> {
    let mut all = Vec::new();
    let mut add = |address: IpAddr, port| {
        all.extend([Protocol::Tcp, Protocol::Udp].map(|protocol| L4Addr::new(address, port, protocol)));
    };
    for v6 in [false, true] {
        for (kind, number) in
            [CLUSTER, EXTERNAL, BALANCER].into_iter().flat_map(|k| (0..4).map(move |n| (k, n)))
        {
            FRONTEND_PORTS.iter().for_each(|port| add(address(kind, number, v6), *port));
        }
    }
    for own in NODE_IPS.into_iter().chain([Ipv4Addr::LOCALHOST.into()]) {
        NODE_PORTS.iter().for_each(|port| add(own, *port));
    }
    add(address(CLUSTER, 0, false), 9999);
    all
}

/// An IPv4 address.
pub fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not of IPv4"),
    }
}

/// Everybody who can ask, in the words of the maps and of the model.
pub fn clients(pod: Ipv4Addr) -> [(Client, model::From); 4] {
    [
        (Client::PodSocket, model::From::PodSocket),
        (Client::NodeSocket, model::From::NodeSocket),
        (Client::Packet(pod.into(), 0), model::From::Inside(pod.into())),
        (Client::Packet(STRANGER.into(), 1), model::From::Outside(STRANGER.into())),
    ]
}

/// What a lookup says, in the model's words.
pub fn as_decision(lookup: &Lookup) -> Result<model::Decision, String> {
    match lookup {
        Lookup::NoService => Ok(model::Decision::NotAService),
        Lookup::Refused => Ok(model::Decision::Refuse),
        Lookup::Dropped => Ok(model::Decision::Drop),
        Lookup::Backends(all) => {
            Ok(model::Decision::OneOf(all.iter().map(|backend| (backend.address, backend.port)).collect()))
        }
        Lookup::Broken(what) => Err(what.clone()),
    }
}

/// The model's protocol.
pub fn model_protocol(protocol: Protocol) -> model::Protocol {
    match protocol {
        Protocol::Tcp => model::Protocol::Tcp,
        Protocol::Udp => model::Protocol::Udp,
        Protocol::Sctp => model::Protocol::Sctp,
    }
}

/// The model's decision about a frontend.
pub fn decide(world: &model::World, frontend: &L4Addr, from: model::From) -> model::Decision {
    world.decide(from, frontend.address, frontend.port, model_protocol(frontend.protocol))
}
