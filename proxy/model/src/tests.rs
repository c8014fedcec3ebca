//! The rules, one case each.

use super::*;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const EXTERNAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 97, 0, 1));
const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 1));
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 2));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 9, 2));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn endpoint(address: IpAddr, node: &str) -> Endpoint {
    Endpoint {
        addresses: vec![address],
        ready: None,
        serving: None,
        terminating: None,
        node: Some(node.into()),
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
    }
}

/// A load balancer with an endpoint on this node and one on another.
fn world(change: impl FnOnce(&mut Service, &mut Slice)) -> World {
    let port = Port { name: "http".into(), port: 80, protocol: Protocol::Tcp, node_port: Some(30080) };
    let mut service = Service {
        namespace: "default".into(),
        name: "web".into(),
        kind: ServiceType::LoadBalancer,
        cluster_ips: vec![VIP],
        external_ips: vec![EXTERNAL],
        ingress: vec![(BALANCER, false)],
        ports: vec![port],
        internal_local: false,
        external_local: false,
        source_ranges: Vec::new(),
        affinity: false,
        other_proxy: false,
    };
    let mut slice = Slice {
        namespace: "default".into(),
        name: "web-1".into(),
        service: Some("web".into()),
        headless: false,
        v6: false,
        ports: vec![("http".into(), Some(8080), Protocol::Tcp)],
        endpoints: vec![endpoint(POD, "n1"), endpoint(FAR, "n2")],
    };
    change(&mut service, &mut slice);
    let node = Node { name: "n1".into(), zone: Some("z1".into()), addresses: vec![NODE] };
    World { node, services: vec![service], slices: vec![slice] }
}

fn to(addresses: &[IpAddr]) -> Decision {
    Decision::OneOf(addresses.iter().map(|address| (*address, 8080)).collect())
}

fn terminating(endpoint: &mut Endpoint) {
    endpoint.ready = Some(false);
    endpoint.serving = Some(true);
    endpoint.terminating = Some(true);
}

#[test]
fn who_is_asked() {
    type Change = fn(&mut Service, &mut Slice);
    let cases: [(&str, Change, IpAddr, u16, Decision); 12] = [
        ("cluster address", |_, _| {}, VIP, 80, to(&[POD, FAR])),
        ("external address", |_, _| {}, EXTERNAL, 80, to(&[POD, FAR])),
        ("balancer's address", |_, _| {}, BALANCER, 80, to(&[POD, FAR])),
        ("balancer in proxy mode", |s, _| s.ingress[0].1 = true, BALANCER, 80, Decision::NotAService),
        ("node port", |_, _| {}, NODE, 30080, to(&[POD, FAR])),
        ("no node ports", |s, _| s.kind = ServiceType::ClusterIp, NODE, 30080, Decision::NotAService),
        ("another port", |_, _| {}, VIP, 81, Decision::NotAService),
        ("another proxy's", |s, _| s.other_proxy = true, VIP, 80, Decision::NotAService),
        ("headless", |s, _| s.cluster_ips.clear(), VIP, 80, Decision::NotAService),
        ("ExternalName", |s, _| s.kind = ServiceType::ExternalName, VIP, 80, Decision::NotAService),
        ("port name differs", |_, s| s.ports[0].0 = "dns".into(), VIP, 80, Decision::Refuse),
        ("another namespace", |_, s| s.namespace = "other".into(), VIP, 80, Decision::Refuse),
    ];
    for (what, change, address, port, expected) in cases {
        assert_eq!(world(change).decide(From::PodSocket, address, port, Protocol::Tcp), expected, "{what}");
    }
    let plain = world(|_, _| {});
    assert_eq!(plain.decide(From::PodSocket, VIP, 80, Protocol::Udp), Decision::NotAService);
    assert_eq!(plain.decide(From::PodSocket, LOOPBACK, 30080, Protocol::Tcp), Decision::NotAService);
    assert_eq!(plain.decide(From::NodeSocket, LOOPBACK, 30080, Protocol::Tcp), to(&[POD, FAR]));
}

#[test]
fn policies() {
    type Change = fn(&mut Service, &mut Slice);
    let (inside, outside) = (From::Inside(POD), From::Outside(STRANGER));
    let cases: [(&str, Change, From, IpAddr, Decision); 16] = [
        ("internal local", |s, _| s.internal_local = true, inside, VIP, to(&[POD])),
        (
            "internal local is not external",
            |s, _| s.internal_local = true,
            outside,
            BALANCER,
            to(&[POD, FAR]),
        ),
        ("external local from inside", |s, _| s.external_local = true, inside, BALANCER, to(&[POD, FAR])),
        ("external local from outside", |s, _| s.external_local = true, outside, BALANCER, to(&[POD])),
        (
            "external local is not the cluster address",
            |s, _| s.external_local = true,
            outside,
            VIP,
            to(&[POD, FAR]),
        ),
        (
            "external local, nobody here",
            |service, slice| {
                service.external_local = true;
                slice.endpoints.remove(0);
            },
            outside,
            EXTERNAL,
            Decision::Drop,
        ),
        (
            "external local, nobody anywhere",
            |service, slice| {
                service.external_local = true;
                slice.endpoints.clear();
            },
            outside,
            EXTERNAL,
            Decision::Refuse,
        ),
        (
            "internal local, nobody here",
            |service, slice| {
                service.internal_local = true;
                slice.endpoints.remove(0);
            },
            inside,
            VIP,
            Decision::Drop,
        ),
        (
            "internal local, nobody anywhere",
            |service, slice| {
                service.internal_local = true;
                slice.endpoints.clear();
            },
            inside,
            VIP,
            Decision::Refuse,
        ),
        (
            "terminating beside ready",
            |_, slice| terminating(&mut slice.endpoints[0]),
            inside,
            VIP,
            to(&[FAR]),
        ),
        (
            "terminating here for local",
            |service, slice| {
                service.internal_local = true;
                terminating(&mut slice.endpoints[0]);
            },
            inside,
            VIP,
            to(&[POD]),
        ),
        (
            "hints for this zone",
            |_, slice| {
                slice.endpoints[0].for_zones = vec!["z2".into()];
                slice.endpoints[1].for_zones = vec!["z1".into()];
            },
            inside,
            VIP,
            to(&[FAR]),
        ),
        (
            "one without hints",
            |_, slice| slice.endpoints[1].for_zones = vec!["z1".into()],
            inside,
            VIP,
            to(&[POD, FAR]),
        ),
        (
            "hints for another zone",
            |_, slice| slice.endpoints.iter_mut().for_each(|one| one.for_zones = vec!["z2".into()]),
            inside,
            VIP,
            to(&[POD, FAR]),
        ),
        (
            "nodes before zones",
            |_, slice| {
                slice.endpoints.iter_mut().for_each(|one| one.for_zones = vec!["z1".into()]);
                slice.endpoints[0].for_nodes = vec!["n1".into()];
                slice.endpoints[1].for_nodes = vec!["n2".into()];
            },
            inside,
            VIP,
            to(&[POD]),
        ),
        (
            "hints do not matter to local",
            |service, slice| {
                service.internal_local = true;
                slice.endpoints.iter_mut().for_each(|one| one.for_nodes = vec!["n2".into()]);
            },
            inside,
            VIP,
            to(&[POD]),
        ),
    ];
    for (what, change, from, address, expected) in cases {
        assert_eq!(world(change).decide(from, address, 80, Protocol::Tcp), expected, "{what}");
    }
}

#[test]
fn source_ranges() {
    let narrow = world(|service, _| service.source_ranges = vec![(POD, 24)]);
    let decide = |from, address| narrow.decide(from, address, 80, Protocol::Tcp);
    assert_eq!(decide(From::Inside(POD), BALANCER), to(&[POD, FAR]));
    assert_eq!(decide(From::Inside(FAR), BALANCER), Decision::Drop);
    assert_eq!(decide(From::Outside(STRANGER), BALANCER), Decision::Drop);
    assert_eq!(decide(From::PodSocket, BALANCER), Decision::NotAService);
    assert_eq!(decide(From::NodeSocket, BALANCER), Decision::Drop);
    assert_eq!(decide(From::Outside(STRANGER), EXTERNAL), to(&[POD, FAR]));
}
