//! End to end: two nodes in namespaces, pods on both, real sockets, real kernel maps.

mod common;

use std::io;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use common::cluster::{Cluster, TestNode, TestPod, service, slice};
use common::traffic::{
    TIMEOUT, exchange, exchange_much, hooked, serve, starts, tcp, udp, udp_connected, unhooked,
};
use common::{errno, eventually, isolated};
use hawser_proxy::maps::Maps;

const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 53);

#[test]
fn two_nodes() {
    isolated(|dir| {
        let mut cluster = Cluster::start(dir, 2);
        let start = Instant::now();
        let a = cluster.nodes[0].add_pod("a");
        let b = cluster.nodes[0].add_pod("b");
        let c = cluster.nodes[1].add_pod("c");
        eprintln!("three pods' networks: {:?}", start.elapsed());
        for (pod, name) in [(&a, "a"), (&b, "b"), (&c, "c")] {
            serve(&pod.netns, 8080, name);
        }
        serve(&cluster.nodes[0].netns, 9000, "n1");
        serve(&cluster.nodes[1].netns, 9000, "n2");

        plain_routing(&cluster, &a, &b, &c);

        cluster.api.put("services", service("web", "10.96.0.80", 80, "TCP"));
        cluster.api.put("services", service("dns", "10.96.0.53", 53, "UDP"));
        cluster.api.put("services", service("empty", "10.96.0.99", 80, "TCP"));
        cluster.api.put("services", service("emptyudp", "10.96.0.98", 53, "UDP"));
        let all = [a.ip, b.ip, c.ip];
        cluster.api.put("endpointslices", slice("web", &all, 8080, "TCP"));
        cluster.api.put("endpointslices", slice("dns", &all, 8080, "UDP"));
        for node in &cluster.nodes {
            eventually("four services with three backends twice", || {
                node.snapshot().services.len() == 4 + 6 && node.snapshot().backends.len() == 6
            });
        }
        inspection(&cluster, &a);
        by_hooks(&cluster, &a, &c);
        by_tc(&cluster, &a, &c);
        refusals(&cluster, &a);
        from_outside(&cluster, &a, &c);
        node_ports(&cluster, &a, &c);
        nested_namespace(&cluster);
        nodes_as_backends(&cluster, &a);
        flows_and_their_backends(&cluster, &a, &c);
        setup_is_idempotent(&mut cluster, &c);
        restart_under_connection(&mut cluster, &a, &c);
        second_agent_is_refused(&cluster);
        endpoints_leave(&cluster, &a, &c);
        everything_goes(&mut cluster, &[&a, &b], &c);
    });
}

fn plain_routing(cluster: &Cluster, a: &TestPod, b: &TestPod, c: &TestPod) {
    let (n1, n2) = (&cluster.nodes[0], &cluster.nodes[1]);
    let same = unhooked(a, || tcp(b.ip, 8080));
    assert!(starts(&same, &["b"], a.ip), "pod to pod on one node: {same:?}");
    let across = unhooked(a, || tcp(c.ip, 8080));
    assert!(starts(&across, &["c"], a.ip), "pod to pod across nodes keeps its address: {across:?}");
    let back = unhooked(c, || tcp(a.ip, 8080));
    assert!(starts(&back, &["a"], c.ip), "and back: {back:?}");
    let local = n1.netns.run(|| tcp(a.ip, 8080));
    assert!(starts(&local, &["a"], n1.ip), "node to its pod: {local:?}");
    let remote = n1.netns.run(|| tcp(c.ip, 8080));
    assert!(starts(&remote, &["c"], n1.ip), "node to another's pod: {remote:?}");
    let up = unhooked(a, || tcp(n1.ip, 9000));
    assert!(starts(&up, &["n1"], a.ip), "pod to its node: {up:?}");
    let other = unhooked(a, || tcp(n2.ip, 9000));
    assert!(starts(&other, &["n2"], a.ip), "pod to another node: {other:?}");
    let ping =
        unhooked(a, || std::process::Command::new("ping").args(["-c1", "-W2", &c.ip.to_string()]).output());
    if let Ok(ping) = ping {
        assert!(ping.status.success(), "ping: {ping:?}");
    }
    let missing = unhooked(a, || {
        TcpStream::connect_timeout(&(Ipv4Addr::new(10, 244, 2, 200), 1).into(), Duration::from_millis(300))
    });
    assert!(missing.is_err());
    // Much data in both directions, larger than any segment.
    let megabyte = unhooked(a, || -> io::Result<usize> {
        let mut stream = TcpStream::connect_timeout(&(c.ip, 8080).into(), TIMEOUT)?;
        let mut total = 0;
        for _ in 0..256 {
            total += exchange(&mut stream, &"x".repeat(2000))?.len();
        }
        Ok(total)
    });
    assert!(megabyte.as_ref().is_ok_and(|n| *n > 256 * 2000), "{megabyte:?}");
}

fn by_hooks(cluster: &Cluster, a: &TestPod, c: &TestPod) {
    let (n1, n2) = (&cluster.nodes[0], &cluster.nodes[1]);
    for (node, pod) in [(n1, a), (n2, c)] {
        for _ in 0..20 {
            let answer = hooked(node, pod, || tcp(WEB, 80));
            assert!(answer.as_ref().is_ok_and(|text| text.ends_with("hello")), "{answer:?}");
        }
        let peer = hooked(node, pod, || TcpStream::connect((WEB, 80)).and_then(|stream| stream.peer_addr()));
        assert_eq!(peer.ok(), Some((WEB, 80).into()), "getpeername tells the frontend");
        let (text, from) = hooked(node, pod, || udp(DNS, 53)).expect("an answer");
        assert!(text.ends_with("hello"), "{text}");
        assert_eq!(from, (DNS, 53).into(), "recvfrom tells the frontend");
        let (_, peer) = hooked(node, pod, || udp_connected(DNS, 53)).expect("an answer");
        assert_eq!(peer, (DNS, 53).into());
    }
    // The hooks choose the backend before the packet is made: nothing is tracked.
    assert!(n1.maps().ct().expect("reads").is_empty());
    // One unconnected socket stays with one backend.
    let names = hooked(n1, a, || -> io::Result<Vec<String>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let mut names = Vec::new();
        for _ in 0..20 {
            socket.send_to(b"hello", (DNS, 53))?;
            let mut buffer = [0; 100];
            let n = socket.recv(&mut buffer)?;
            names.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
        }
        Ok(names)
    });
    let mut names = names.expect("answers");
    names.dedup();
    assert_eq!(names.len(), 1, "{names:?}");
    // From the node itself.
    let answer = n1.netns.run_in(Some(&n1.cgroup), || tcp(WEB, 80));
    assert!(answer.is_ok(), "{answer:?}");
}

/// What the agent's socket tells is what the kernel holds.
fn inspection(cluster: &Cluster, a: &TestPod) {
    use hawser_proxy::inspect::proto::inspect_client::InspectClient;
    use hawser_proxy::inspect::proto::*;
    use std::os::unix::fs::PermissionsExt;

    let socket = cluster.nodes[0].run_dir.join("proxy.sock");
    let mode = std::fs::metadata(&socket).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (lb, endpoints, ipcache) = runtime.block_on(async {
        let uri = format!("unix:{}", socket.display());
        let mut client = InspectClient::connect(uri).await.expect("connects");
        let lb = client.list_lb(ListLbRequest {}).await.expect("answers").into_inner().frontends;
        for frontend in &lb {
            let request = GetLbRequest { address: frontend.address.clone() };
            let one = client.get_lb(request).await.expect("answers").into_inner();
            assert_eq!(&one, frontend, "looked up as listed");
        }
        let absent = L4Addr { address: "10.96.9.9".into(), port: 1, protocol: "TCP".into() };
        let absent = client.get_lb(GetLbRequest { address: Some(absent) }).await.expect_err("nothing there");
        assert_eq!(absent.code(), tonic::Code::NotFound, "{absent}");
        let endpoints =
            client.list_endpoints(ListEndpointsRequest {}).await.expect("answers").into_inner().endpoints;
        let ipcache = client.list_ipcache(ListIpcacheRequest {}).await.expect("answers").into_inner().entries;
        (lb, endpoints, ipcache)
    });
    let backends: Vec<usize> = lb.iter().map(|frontend| frontend.backends.len()).collect();
    assert_eq!(backends, [3, 3, 0, 0], "dns, web, and two that refuse: {lb:?}");
    let pod = endpoints.iter().find(|endpoint| endpoint.address == a.ip.to_string()).expect("the pod");
    assert_eq!((pod.pod_namespace.as_str(), pod.pod_name.as_str()), ("default", "a"));
    let node_of = |prefix: &str| {
        ipcache.iter().find(|e| e.prefix == prefix).map(|e| (e.identity.as_str(), e.node.as_str()))
    };
    assert_eq!(node_of("10.244.1.0/24"), Some(("pods", "")));
    assert_eq!(node_of("10.244.2.0/24"), Some(("pods", "10.0.0.12")));
    assert_eq!(node_of("10.0.0.11/32"), Some(("host", "")));
    assert_eq!(node_of("10.0.0.12/32"), Some(("remote-node", "10.0.0.12")));
    assert_eq!(node_of("10.96.0.0/12"), Some(("services", "")));
}

fn by_tc(cluster: &Cluster, a: &TestPod, c: &TestPod) {
    let mut seen = std::collections::BTreeSet::new();
    for pod in [a, c] {
        for _ in 0..30 {
            let answer = unhooked(pod, || tcp(WEB, 80)).expect("an answer");
            let mut words = answer.split(' ');
            let (name, source) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let own = (name == "a" && pod.ip == a.ip) || (name == "c" && pod.ip == c.ip);
            let expected = if own { "169.254.42.1".to_string() } else { pod.ip.to_string() };
            assert_eq!(
                source, expected,
                "{name} sees the pod, or the hairpin address when it is the pod itself"
            );
            seen.insert(name.to_string());
        }
        let (text, from) = unhooked(pod, || udp(DNS, 53)).expect("an answer");
        assert!(text.ends_with("hello"));
        assert_eq!(from, (DNS, 53).into(), "answers come from the frontend");
    }
    assert_eq!(seen.len(), 3, "all backends are used: {seen:?}");
    assert!(!cluster.nodes[0].maps().ct().expect("reads").is_empty(), "tc tracks what it translates");
}

fn refusals(cluster: &Cluster, a: &TestPod) {
    let n1 = &cluster.nodes[0];
    let empty = Ipv4Addr::new(10, 96, 0, 99);
    let empty_udp = Ipv4Addr::new(10, 96, 0, 98);
    let nobody = Ipv4Addr::new(10, 96, 0, 97);
    for (what, result) in [
        ("no endpoints, hooks", hooked(n1, a, || tcp(empty, 80).map(drop))),
        ("no endpoints, tc", unhooked(a, || tcp(empty, 80).map(drop))),
        ("no endpoints, hooks, UDP", hooked(n1, a, || udp_connected(empty_udp, 53).map(drop))),
        ("no endpoints, tc, UDP", unhooked(a, || udp_connected(empty_udp, 53).map(drop))),
        ("no endpoints, sendto", hooked(n1, a, || udp(empty_udp, 53).map(drop))),
        ("no such service", hooked(n1, a, || tcp(nobody, 80).map(drop))),
        ("no such port", unhooked(a, || tcp(WEB, 81).map(drop))),
        ("no such service, UDP", unhooked(a, || udp_connected(nobody, 53).map(drop))),
    ] {
        assert_eq!(errno(&result), Some(libc::ECONNREFUSED), "{what}: {result:?}");
    }
}

fn from_outside(cluster: &Cluster, a: &TestPod, c: &TestPod) {
    // A machine beside the nodes that routes Services and pods through node 1.
    cluster.fabric.run(|| {
        common::run("ip route add 10.96.0.0/12 via 10.0.0.11");
        common::run("ip route add 10.244.1.0/24 via 10.0.0.11");
    });
    let outside = Ipv4Addr::new(10, 0, 0, 1);
    for _ in 0..20 {
        let answer = cluster.fabric.run(|| tcp(WEB, 80)).expect("an answer");
        let words: Vec<&str> = answer.split(' ').collect();
        let source = if words[0] == "c" { cluster.nodes[0].ip } else { outside };
        assert_eq!(
            words[1],
            source.to_string(),
            "{answer}: the other node's pod must answer through this node"
        );
    }
    let (_, from) = cluster.fabric.run(|| udp(DNS, 53)).expect("an answer");
    assert_eq!(from, (DNS, 53).into());
    let refused = cluster.fabric.run(|| tcp(Ipv4Addr::new(10, 96, 0, 99), 80));
    assert_eq!(errno(&refused), Some(libc::ECONNREFUSED));
    // Straight to a pod, and the pod out: masqueraded only when the pod opens the connection.
    let direct = cluster.fabric.run(|| tcp(a.ip, 8080));
    assert!(starts(&direct, &["a"], outside), "{direct:?}");
    let (_, from) = cluster.fabric.run(|| udp(a.ip, 8080)).expect("an answer");
    assert_eq!(from, (a.ip, 8080).into());
    serve(&cluster.fabric, 7000, "outside");
    let out = unhooked(a, || tcp(outside, 7000));
    assert!(starts(&out, &["outside"], cluster.nodes[0].ip), "masqueraded: {out:?}");
    let out = unhooked(c, || udp(outside, 7000)).expect("an answer");
    assert!(out.0.starts_with(&format!("outside {}", cluster.nodes[1].ip)), "{out:?}");
    // A Service whose endpoint is outside the cluster: translated and masqueraded.
    cluster.api.put("services", service("api", "10.96.0.1", 443, "TCP"));
    cluster.api.put("endpointslices", slice("api", &[outside], 7000, "TCP"));
    eventually("the service", || unhooked(a, || tcp(Ipv4Addr::new(10, 96, 0, 1), 443)).is_ok());
    let through = unhooked(a, || tcp(Ipv4Addr::new(10, 96, 0, 1), 443));
    assert!(starts(&through, &["outside"], cluster.nodes[0].ip), "{through:?}");
    let through = hooked(&cluster.nodes[0], a, || tcp(Ipv4Addr::new(10, 96, 0, 1), 443));
    assert!(starts(&through, &["outside"], cluster.nodes[0].ip), "{through:?}");
    cluster.api.delete("services", "api");
    cluster.api.delete("endpointslices", "api");
}

/// Node ports from a machine beside the nodes, and from pods without hooks, with either policy.
fn node_ports(cluster: &Cluster, a: &TestPod, c: &TestPod) {
    const PORT: u16 = 30_080;
    let outside = Ipv4Addr::new(10, 0, 0, 1);
    let put = |protocol: &str, policy: &str| {
        let name = format!("np-{}", protocol.to_lowercase());
        let mut object = service(&name, "10.96.0.20", 80, protocol);
        object["spec"]["type"] = "NodePort".into();
        object["spec"]["externalTrafficPolicy"] = policy.into();
        object["spec"]["ports"][0]["nodePort"] = PORT.into();
        cluster.api.put("services", object);
        let mut endpoints = slice(&name, &[a.ip, c.ip], 8080, protocol);
        endpoints["endpoints"][0]["nodeName"] = "n1".into();
        endpoints["endpoints"][1]["nodeName"] = "n2".into();
        cluster.api.put("endpointslices", endpoints);
    };
    let ask = |to: Ipv4Addr| cluster.fabric.run(|| tcp(to, PORT)).expect("an answer");
    put("TCP", "Cluster");
    put("UDP", "Cluster");
    for (node, local) in cluster.nodes.iter().zip(["a", "c"]) {
        eventually("the node port", || cluster.fabric.run(|| tcp(node.ip, PORT)).is_ok());
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..30 {
            let answer = ask(node.ip);
            let words: Vec<&str> = answer.split(' ').collect();
            let source = if words[0] == local { outside } else { node.ip };
            assert_eq!(words[1], source.to_string(), "{answer} from the port of {}", node.name);
            seen.insert(words[0].to_string());
        }
        assert_eq!(seen.len(), 2, "both pods are used: {seen:?}");
        let (_, from) = cluster.fabric.run(|| udp(node.ip, PORT)).expect("an answer");
        assert_eq!(from, (node.ip, PORT).into());
        // Larger than any segment, there and back.
        let mut stream = cluster.fabric.run(|| TcpStream::connect((node.ip, PORT)).expect("a connection"));
        for _ in 0..20 {
            assert!(exchange_much(&mut stream, 2000).is_ok());
        }
        for pod in [a, c] {
            let answer = unhooked(pod, || tcp(node.ip, PORT));
            assert!(answer.as_ref().is_ok_and(|text| text.ends_with("hello")), "from a pod: {answer:?}");
        }
    }
    put("TCP", "Local");
    for (node, local) in cluster.nodes.iter().zip(["a", "c"]) {
        let only_local = || (0..10).all(|_| ask(node.ip).starts_with(&format!("{local} {outside} hello")));
        eventually("only the pod of this node, which sees the client", only_local);
    }
    // A pod that asks for another node's port comes from outside there, too (KEP-1669).
    for _ in 0..10 {
        for pod in [a, c] {
            let (node, local) =
                if pod.ip == a.ip { (&cluster.nodes[1], "c") } else { (&cluster.nodes[0], "a") };
            let answer = unhooked(pod, || tcp(node.ip, PORT));
            assert!(
                answer.as_ref().is_ok_and(|text| text.starts_with(local)),
                "to {}: {answer:?}",
                node.name
            );
        }
    }
    for protocol in ["tcp", "udp"] {
        cluster.api.delete("services", &format!("np-{protocol}"));
        cluster.api.delete("endpointslices", &format!("np-{protocol}"));
    }
    eventually("the port is closed", || cluster.fabric.run(|| tcp(cluster.nodes[0].ip, PORT)).is_err());
}

/// A pod that makes a namespace of its own and lends it its address: what comes out of there never met a socket hook.
fn nested_namespace(cluster: &Cluster) {
    let node = &cluster.nodes[0];
    let pod = node.add_pod("nest");
    let (inner, ip) = (common::Netns::new(), pod.ip);
    pod.netns.run(|| {
        let path = inner.path();
        common::run(&format!("ip link add in0 type veth peer name eth0 netns {}", path.display()));
        common::run("ip addr add 172.30.0.1/32 dev in0");
        common::run("ip link set in0 up");
        // An interface that loses its last address loses its routes as well.
        common::run("ip addr add 172.30.0.2/32 dev eth0");
        common::run(&format!("ip addr del {ip}/32 dev eth0"));
        common::run(&format!("ip route add {ip}/32 dev in0"));
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("settable");
    });
    inner.run(|| {
        common::run(&format!("ip addr add {ip}/32 dev eth0"));
        common::run("ip link set eth0 up");
        common::run("ip route add 172.30.0.1 dev eth0");
        common::run("ip route add default via 172.30.0.1");
    });
    for _ in 0..10 {
        let answer = inner.run(|| tcp(WEB, 80));
        assert!(answer.as_ref().is_ok_and(|text| text.ends_with("hello")), "{answer:?}");
    }
    let (_, from) = inner.run(|| udp(DNS, 53)).expect("an answer");
    assert_eq!(from, (DNS, 53).into());
    let refused = inner.run(|| tcp(Ipv4Addr::new(10, 96, 0, 99), 80).map(drop));
    assert_eq!(errno(&refused), Some(libc::ECONNREFUSED), "{refused:?}");
    node.remove_pod(&pod);
}

/// Endpoints that are nodes themselves, as `kubernetes.default` has.
fn nodes_as_backends(cluster: &Cluster, a: &TestPod) {
    let vip = Ipv4Addr::new(10, 96, 0, 9);
    let outside = Ipv4Addr::new(10, 0, 0, 1);
    for node in &cluster.nodes {
        cluster.api.put("services", service("node", "10.96.0.9", 443, "TCP"));
        cluster.api.put("endpointslices", slice("node", &[node.ip], 9000, "TCP"));
        eventually("the node's service", || {
            unhooked(a, || tcp(vip, 443)).is_ok_and(|text| text.starts_with(&node.name))
        });
        let by_tc = unhooked(a, || tcp(vip, 443));
        assert!(starts(&by_tc, &[&node.name], a.ip), "{by_tc:?}");
        let by_hook = hooked(&cluster.nodes[0], a, || tcp(vip, 443));
        assert!(starts(&by_hook, &[&node.name], a.ip), "{by_hook:?}");
        let from_outside = cluster.fabric.run(|| tcp(vip, 443));
        let source = if node.name == "n1" { outside } else { cluster.nodes[0].ip };
        assert!(starts(&from_outside, &[&node.name], source), "{from_outside:?}");
    }
    cluster.api.delete("services", "node");
    cluster.api.delete("endpointslices", "node");
}

/// A TCP connection stays with a backend that is no more an endpoint; datagrams move on.
fn flows_and_their_backends(cluster: &Cluster, a: &TestPod, c: &TestPod) {
    let n1 = &cluster.nodes[0];
    let vip = Ipv4Addr::new(10, 96, 0, 10);
    let wait_for = |frontends: usize, backends: usize| {
        eventually("the maps", || {
            let snapshot = n1.snapshot();
            let ours = snapshot.services.iter().filter(|(key, _)| key.frontend.address == vip);
            ours.count() == frontends + backends
        });
    };
    for protocol in ["TCP", "UDP"] {
        cluster.api.put(
            "services",
            service(&format!("flow-{}", protocol.to_lowercase()), "10.96.0.10", 80, protocol),
        );
        let mut endpoints = slice(&format!("flow-{}", protocol.to_lowercase()), &[c.ip], 8080, protocol);
        endpoints["metadata"]["name"] = serde_json::json!(format!("flow-{}", protocol.to_lowercase()));
        cluster.api.put("endpointslices", endpoints);
    }
    wait_for(2, 2);
    let mut stream = unhooked(a, || TcpStream::connect((vip, 80)).expect("a connection"));
    let socket = unhooked(a, || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(TIMEOUT)).expect("settable");
        socket.connect((vip, 80)).expect("connects");
        socket
    });
    let ask = |socket: &UdpSocket| -> io::Result<String> {
        socket.send(b"hello")?;
        let mut buffer = [0; 100];
        let n = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
    };
    assert!(exchange(&mut stream, "x").is_ok_and(|text| text.starts_with("c ")));
    assert!(ask(&socket).is_ok_and(|text| text.starts_with("c ")));
    for protocol in ["tcp", "udp"] {
        cluster.api.put(
            "endpointslices",
            slice(&format!("flow-{protocol}"), &[a.ip], 8080, &protocol.to_uppercase()),
        );
    }
    eventually("the datagrams move", || ask(&socket).is_ok_and(|text| text.starts_with("a 169.254.42.1 ")));
    assert!(exchange(&mut stream, "x").is_ok_and(|text| text.starts_with("c ")), "the connection stays");
    for protocol in ["tcp", "udp"] {
        cluster.api.delete("endpointslices", &format!("flow-{protocol}"));
    }
    wait_for(2, 0);
    let refused = ask(&socket).map(drop);
    assert_eq!(errno(&refused), Some(libc::ECONNREFUSED), "nobody is left: {refused:?}");
    assert!(
        exchange(&mut stream, "x").is_ok_and(|text| text.starts_with("c ")),
        "the connection still stays"
    );
    for protocol in ["tcp", "udp"] {
        cluster.api.delete("services", &format!("flow-{protocol}"));
    }
    wait_for(0, 0);
}

/// Setup again, after a restart, and after the pod's namespace was made anew.
fn setup_is_idempotent(cluster: &mut Cluster, c: &TestPod) {
    let node = &mut cluster.nodes[0];
    let pod = node.add_pod("again");
    let set_up = |node: &TestNode, netns: &common::Netns| {
        let request = node.request("again", netns);
        node.on_agent(|podnet| async move { podnet.setup(&request).await }).expect("setup")
    };
    assert_eq!(set_up(node, &pod.netns), [std::net::IpAddr::V4(pod.ip)]);
    assert!(unhooked(&pod, || tcp(c.ip, 8080)).is_ok());
    node.stop_agent();
    node.start_agent();
    assert_eq!(set_up(node, &pod.netns), [std::net::IpAddr::V4(pod.ip)]);
    assert!(unhooked(&pod, || tcp(c.ip, 8080)).is_ok());
    let anew = TestPod { netns: common::Netns::new(), ip: pod.ip, sandbox: pod.sandbox.clone() };
    assert_eq!(set_up(node, &anew.netns), [std::net::IpAddr::V4(pod.ip)]);
    assert!(unhooked(&anew, || tcp(c.ip, 8080)).is_ok());
    // Teardown after the namespace, and the interface with it, is gone.
    drop(pod);
    drop(anew.netns);
    let sandbox = anew.sandbox;
    node.on_agent(|podnet| async move { podnet.teardown(&sandbox).await }).expect("teardown");
    let missing = TestPod { netns: common::Netns::new(), ip: anew.ip, sandbox: "bad".into() };
    let mut request = node.request("bad", &missing.netns);
    request.netns = "/nonexistent".into();
    let failed = node.on_agent(|podnet| async move { podnet.setup(&request).await });
    assert!(failed.is_err());
    node.remove_pod(&missing);
    assert_eq!(node.snapshot().endpoints.len(), 2);
}

fn restart_under_connection(cluster: &mut Cluster, a: &TestPod, c: &TestPod) {
    let connect = || TcpStream::connect_timeout(&(WEB, 80).into(), TIMEOUT).expect("a connection");
    let mut by_tc = unhooked(a, connect);
    let mut by_hook = hooked(&cluster.nodes[0], a, connect);
    let mut direct = unhooked(a, || TcpStream::connect((c.ip, 8080)).expect("a connection"));
    for stream in [&mut by_tc, &mut by_hook, &mut direct] {
        exchange(stream, "before").expect("works before");
    }
    let before = cluster.nodes[0].snapshot();
    let filters_before = filters(&cluster.nodes[0]);
    cluster.nodes[0].stop_agent();
    for stream in [&mut by_tc, &mut by_hook, &mut direct] {
        exchange(stream, "without").expect("works without an agent");
    }
    let new = hooked(&cluster.nodes[0], a, || tcp(WEB, 80));
    assert!(new.is_ok(), "new connections too: {new:?}");
    // What happens meanwhile is found on the next start.
    cluster.api.put("services", service("late", "10.96.0.77", 80, "TCP"));
    cluster.nodes[0].start_agent();
    for stream in [&mut by_tc, &mut by_hook, &mut direct] {
        exchange(stream, "after").expect("works after");
    }
    let filters_after = filters(&cluster.nodes[0]);
    assert_eq!(filters_after.len(), filters_before.len(), "none was added: {filters_after:?}");
    assert!(filters_before.iter().all(|filter| !filters_after.contains(filter)), "all were replaced");
    let after = cluster.nodes[0].snapshot();
    assert_eq!(sorted(&before.backends), sorted(&after.backends), "ids are stable");
    assert_eq!(sorted(&before.endpoints), sorted(&after.endpoints));
    assert_eq!(after.services.len(), before.services.len() + 1);
    cluster.api.delete("services", "late");
    assert!(unhooked(a, || tcp(WEB, 80)).is_ok());
    assert!(unhooked(c, || tcp(a.ip, 8080)).is_ok());
}

/// Interface, direction and program id of every filter on the pods' interfaces.
fn filters(node: &TestNode) -> Vec<String> {
    let mut found = Vec::new();
    let names = node.netns.run(|| {
        let output = std::process::Command::new("ip").args(["-o", "link"]).output().expect("ip runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    let interfaces = names.split([' ', '@']).filter(|word| word.starts_with("hws"));
    for interface in interfaces {
        for direction in ["ingress", "egress"] {
            let output = node.netns.run(|| {
                std::process::Command::new("tc")
                    .args(["filter", "show", "dev", interface, direction])
                    .output()
            });
            let text = String::from_utf8_lossy(&output.expect("tc runs").stdout).into_owned();
            let ids = text.lines().filter_map(|line| line.split(" id ").nth(1)?.split(' ').next());
            found.extend(ids.map(|id| format!("{interface} {direction} {id}")));
        }
    }
    assert!(!found.is_empty(), "no filters: {names}");
    found
}

fn sorted<T: Clone + Ord>(items: &[T]) -> Vec<T> {
    let mut items = items.to_vec();
    items.sort();
    items
}

fn second_agent_is_refused(cluster: &Cluster) {
    let node = &cluster.nodes[0];
    let mut elsewhere = node.config();
    elsewhere.run_dir = node.run_dir.with_extension("other");
    for config in [node.config(), elsewhere] {
        let client = cluster.api.clone();
        let error = node.netns.run(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let started =
                runtime.block_on(async { hawser_proxy::Agent::start(config, client.client()).await });
            started.err().map(|error| error.to_string())
        });
        assert!(error.as_ref().is_some_and(|text| text.contains("another dataplane agent")), "{error:?}");
    }
}

fn endpoints_leave(cluster: &Cluster, a: &TestPod, c: &TestPod) {
    // From the API's write to the kernel's map, on both nodes.
    let mut worst = Duration::ZERO;
    for round in 0..50 {
        let backends = if round % 2 == 0 { vec![c.ip] } else { vec![a.ip, c.ip] };
        cluster.api.put("endpointslices", slice("web", &backends, 8080, "TCP"));
        let start = Instant::now();
        for node in &cluster.nodes {
            let maps = node.maps();
            let holds = || {
                let snapshot = maps.snapshot().expect("the maps");
                let master =
                    snapshot.services.iter().find(|(key, _)| key.frontend.address == WEB && key.slot == 0);
                master.is_some_and(|(_, value)| usize::from(value.count) == backends.len())
            };
            while !holds() {
                assert!(start.elapsed() < TIMEOUT, "never reached {}", node.name);
                std::thread::yield_now();
            }
        }
        worst = worst.max(start.elapsed());
    }
    eprintln!("API write to kernel map on both nodes, worst of 50: {worst:?}");
    cluster.api.put("endpointslices", slice("web", &[c.ip], 8080, "TCP"));
    eventually("one backend", || cluster.nodes.iter().all(|node| node.snapshot().backends.len() == 4));
    for _ in 0..10 {
        let answer = unhooked(a, || tcp(WEB, 80)).expect("an answer");
        assert!(answer.starts_with("c "), "{answer}");
        let answer = hooked(&cluster.nodes[0], a, || tcp(WEB, 80)).expect("an answer");
        assert!(answer.starts_with("c "), "{answer}");
    }
}

fn everything_goes(cluster: &mut Cluster, on_first: &[&TestPod], on_second: &TestPod) {
    for name in ["web", "dns", "empty", "emptyudp"] {
        cluster.api.delete("services", name);
    }
    for name in ["web", "dns"] {
        cluster.api.delete("endpointslices", name);
    }
    for pod in on_first {
        cluster.nodes[0].remove_pod(pod);
        cluster.nodes[0].remove_pod(pod);
    }
    cluster.nodes[1].remove_pod(on_second);
    for node in &mut cluster.nodes {
        eventually("empty maps", || {
            let snapshot = node.snapshot();
            snapshot.has_no_services() && snapshot.endpoints.is_empty()
        });
        let links = std::fs::read_dir(node.run_dir.join("bpf/links")).expect("pins").count();
        assert_eq!(links, 11, "the cgroup's and the uplink's two");
        node.stop_agent();
    }
}
