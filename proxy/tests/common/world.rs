//! Random Services and EndpointSlices, as the model sees them and as the API sends them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hawser_proxy::convert;
use hawser_proxy::dataplane::Dataplane;
use hawser_proxy::desired::{Local, Touched};
use hawser_proxy::maps::Maps;
use hawser_proxy::types::{L4Addr, Protocol};
use hawser_proxy_model as model;
use proptest::prelude::*;
use serde_json::{Value, json};

/// The node whose view is tested.
pub const NODE: &str = "n1";
const SERVICES: usize = 5;
const SLICES: usize = 6;
const FRONTEND_PORTS: [u16; 3] = [80, 81, 443];
/// Ports of backends; none is a frontend's.
pub const BACKEND_PORTS: [u16; 3] = [8080, 8081, 5353];
const PORT_NAMES: [&str; 3] = ["", "http", "dns"];

/// One event of the API.
#[derive(Debug, Clone)]
pub enum Action {
    /// A Service is created or replaced.
    PutService(model::Service),
    /// The Service of this number is deleted.
    DeleteService(usize),
    /// A slice is created or replaced.
    PutSlice(model::Slice),
    /// The slice of this number is deleted.
    DeleteSlice(usize),
}

fn service_name(number: usize) -> String {
    format!("svc{number}")
}

fn slice_name(number: usize) -> String {
    format!("slice{number}")
}

/// Cluster addresses; two Services may share one.
fn vip(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, 1 + (number % 4) as u8)
}

fn protocol() -> impl Strategy<Value = model::Protocol> {
    prop_oneof![
        5 => Just(model::Protocol::Tcp),
        4 => Just(model::Protocol::Udp),
        1 => Just(model::Protocol::Sctp),
    ]
}

fn service() -> impl Strategy<Value = model::Service> {
    let port = (prop::sample::select(&PORT_NAMES[..]), prop::sample::select(&FRONTEND_PORTS[..]), protocol());
    let ports = prop::collection::vec(port, 1..4);
    (0..SERVICES, 0..SERVICES, ports, prop::bool::weighted(0.2), 0..20u8).prop_map(
        |(number, ip, ports, local, odd)| {
            // The API allows neither two ports of one name nor two of one number and protocol.
            let mut kept: Vec<(String, u16, model::Protocol)> = Vec::new();
            for (name, port, protocol) in ports {
                if !kept.iter().any(|(n, p, q)| n == name || (*p, *q) == (port, protocol)) {
                    kept.push((name.to_string(), port, protocol));
                }
            }
            model::Service {
                namespace: "default".to_string(),
                name: service_name(number),
                kind: if odd == 0 { model::ServiceType::ExternalName } else { model::ServiceType::ClusterIp },
                cluster_ip: (odd != 1).then(|| vip(if odd == 2 { ip } else { number })),
                ports: kept,
                internal_local: local,
                other_proxy: odd == 3,
            }
        },
    )
}

fn endpoint() -> impl Strategy<Value = model::Endpoint> {
    let condition = || prop::option::weighted(0.8, prop::bool::weighted(0.6));
    let address = (1..12u8).prop_map(|last| Ipv4Addr::new(10, 1, 0, last));
    let node = prop::option::of(prop::sample::select(&[NODE, "n2"][..]));
    (prop::collection::vec(address, 1..3), condition(), condition(), condition(), node).prop_map(
        |(addresses, ready, serving, terminating, node)| model::Endpoint {
            addresses,
            ready,
            serving,
            terminating,
            node: node.map(str::to_string),
        },
    )
}

fn slice() -> impl Strategy<Value = model::Slice> {
    let target = prop::option::weighted(0.9, prop::sample::select(&BACKEND_PORTS[..]));
    let port = (prop::sample::select(&PORT_NAMES[..]).prop_map(str::to_string), target, protocol());
    let ports = prop::collection::vec(port, 1..4);
    let endpoints = prop::collection::vec(endpoint(), 0..8);
    (0..SLICES, 0..SERVICES, ports, endpoints, 0..20u8).prop_map(
        |(number, service, ports, endpoints, odd)| model::Slice {
            namespace: "default".to_string(),
            name: slice_name(number),
            service: (odd != 0).then(|| service_name(service)),
            headless: odd == 1,
            ports,
            endpoints,
        },
    )
}

/// A random event.
pub fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => service().prop_map(Action::PutService),
        1 => (0..SERVICES).prop_map(Action::DeleteService),
        6 => slice().prop_map(Action::PutSlice),
        1 => (0..SLICES).prop_map(Action::DeleteSlice),
    ]
}

/// Applies an event to the model's world.
pub fn apply_to_world(world: &mut model::World, action: &Action) {
    match action {
        Action::PutService(service) => {
            world.services.retain(|old| old.name != service.name);
            world.services.push(service.clone());
        }
        Action::DeleteService(number) => world.services.retain(|old| old.name != service_name(*number)),
        Action::PutSlice(slice) => {
            world.slices.retain(|old| old.name != slice.name);
            world.slices.push(slice.clone());
        }
        Action::DeleteSlice(number) => world.slices.retain(|old| old.name != slice_name(*number)),
    }
}

/// Tells a dataplane about an event, as the watch would: what its selector leaves out is "gone".
pub fn tell<M: Maps>(dataplane: &mut Dataplane<M>, action: &Action) -> Touched {
    let desired = dataplane.desired();
    match action {
        Action::PutService(service) => {
            let object = serde_json::from_value(service_json(service)).expect("a Service");
            let parsed = if service.other_proxy { None } else { convert::service(&object) };
            desired.set_service(&convert::object_name(&object), parsed)
        }
        Action::DeleteService(number) => {
            desired.set_service(&Arc::from(format!("default/{}", service_name(*number))), None)
        }
        Action::PutSlice(slice) => {
            let object = serde_json::from_value(slice_json(slice)).expect("an EndpointSlice");
            let parsed = if slice.headless { None } else { convert::slice(&object) };
            desired.set_slice(&convert::object_name(&object), parsed)
        }
        Action::DeleteSlice(number) => {
            desired.set_slice(&Arc::from(format!("default/{}", slice_name(*number))), None)
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

fn service_json(service: &model::Service) -> Value {
    let ip = service.cluster_ip.map_or("None".to_string(), |ip| ip.to_string());
    let kind = match service.kind {
        model::ServiceType::ClusterIp => "ClusterIP",
        model::ServiceType::ExternalName => "ExternalName",
    };
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol_name(*protocol)}))
        .collect();
    json!({
        "metadata": {"namespace": service.namespace, "name": service.name},
        "spec": {
            "type": kind,
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": ports,
            "internalTrafficPolicy": if service.internal_local { "Local" } else { "Cluster" },
        },
    })
}

fn slice_json(slice: &model::Slice) -> Value {
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol_name(*protocol)}))
        .collect();
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
            })
        })
        .collect();
    let mut labels = serde_json::Map::new();
    if let Some(service) = &slice.service {
        labels.insert("kubernetes.io/service-name".to_string(), json!(service));
    }
    json!({
        "metadata": {"namespace": slice.namespace, "name": slice.name, "labels": labels},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// The view of the node under test, with nothing but Services.
pub fn local() -> Local {
    Local { node_name: NODE.to_string(), ..Local::default() }
}

/// Every frontend that an event can name, and a few that none can.
pub fn frontends() -> Vec<L4Addr> {
    let mut all = Vec::new();
    for number in 0..4 {
        for port in FRONTEND_PORTS {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                all.push(L4Addr::new(vip(number), port, protocol));
            }
        }
    }
    all.push(L4Addr::new(vip(0), 9999, Protocol::Tcp));
    all
}

/// An IPv4 address.
pub fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not of IPv4"),
    }
}

/// The model's decision about a frontend.
pub fn decide(world: &model::World, frontend: &L4Addr) -> model::Decision {
    let protocol = match frontend.protocol {
        Protocol::Tcp => model::Protocol::Tcp,
        Protocol::Udp => model::Protocol::Udp,
        Protocol::Sctp => model::Protocol::Sctp,
    };
    let IpAddr::V4(address) = frontend.address else { return model::Decision::NotAService };
    world.decide(NODE, address, frontend.port, protocol)
}
