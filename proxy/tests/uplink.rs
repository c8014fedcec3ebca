//! What comes in on the uplink for a backend on another node, in a cluster: by XDP, native and generic, and by direct
//! server return.

mod common;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;

use aya::programs::XdpMode;
use common::cluster::{CLIENT, Cluster, TestPod, service, slice};
use common::traffic::{TIMEOUT, exchange_much, serve, starts, tcp, udp};
use common::{Netns, eventually, isolated, run};
use hawser_ebpf_common::ct::{CT_DSR, CT_REPLY};
use hawser_ebpf_common::metrics::{direction, reason};
use hawser_proxy::config::Xdp;
use hawser_proxy::programs::{Pins, Programs};
use serde_json::json;

const PORT: u16 = 30_080;
const BALANCER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 201);

/// A cluster whose only endpoint is a pod of the second node, and a client on the link.
struct Scene {
    cluster: Cluster,
    client: Netns,
    pod: TestPod,
    /// Held for what is attached.
    _others: Option<Programs>,
}

impl Scene {
    fn new(dir: &Path, xdp: Xdp) -> Self {
        let cluster = Cluster::start_with(dir, 2, xdp);
        let client = cluster.client();
        let pod = cluster.nodes[1].add_pod("c");
        serve(&pod.netns, 8080, "c");
        if xdp != Xdp::Off {
            // XDP reads and writes packets as they are: nobody may leave a checksum to a network card that is not there.
            for netns in [&client, &pod.netns, &cluster.nodes[0].netns, &cluster.nodes[1].netns] {
                netns.run(|| run("ethtool -K eth0 tx off"));
            }
        }
        // What XDP in the driver of a veth sends back, its other end takes only with a program of its own.
        let others = (xdp == Xdp::Native).then(|| {
            let mut programs = Programs::load(&Pins::new(dir.join("others"))).expect("the programs load");
            let pass = programs.xdp("xdp_pass").expect("a program");
            cluster.fabric.run(|| {
                for end in ["n1", "n2"] {
                    pass.attach(end, XdpMode::Driver).expect("attaches");
                }
            });
            programs
        });
        Self { cluster, client, pod, _others: others }
    }

    /// A Service of each protocol with every kind of frontend.
    fn put(&self, mode: &str) {
        for (name, protocol) in [("tcp", "TCP"), ("udp", "UDP")] {
            let mut object = service(name, "10.96.0.40", 80, protocol);
            object["metadata"]["annotations"] =
                json!({"hawser.io/forwarding-mode": mode, "hawser.io/announced-by": "n1"});
            object["spec"]["type"] = "LoadBalancer".into();
            object["spec"]["externalIPs"] = json!([EXTERNAL.to_string()]);
            object["spec"]["ports"][0]["nodePort"] = PORT.into();
            object["status"] = json!({"loadBalancer": {"ingress": [{"ip": BALANCER.to_string()}]}});
            self.cluster.api.put("services", object);
            let mut endpoints = slice(name, &[self.pod.ip], 8080, protocol);
            endpoints["endpoints"][0]["nodeName"] = "n2".into();
            self.cluster.api.put("endpointslices", endpoints);
        }
        // Somebody must say where the external address is.
        self.client.run(|| run(&format!("ip route replace {EXTERNAL}/32 via 10.0.0.11")));
    }

    fn ask(&self, to: Ipv4Addr, port: u16) -> io::Result<String> {
        self.client.run(|| tcp(to, port))
    }

    fn ask_udp(&self, to: Ipv4Addr, port: u16) -> io::Result<(String, SocketAddr)> {
        self.client.run(|| udp(to, port))
    }

    /// Packets that XDP of the first node translated.
    fn by_xdp(&self) -> u64 {
        let all = self.cluster.nodes[0].maps().metrics().expect("reads");
        all.iter()
            .filter(|record| record.direction == direction::XDP && record.reason == reason::TRANSLATED)
            .map(|record| record.value.packets)
            .sum()
    }

    /// Every frontend answers, over both protocols, from the name that was asked. `sources`: whom the pod sees over TCP
    /// and over UDP.
    fn check(&self, sources: [Ipv4Addr; 2]) {
        let node = self.cluster.nodes[0].ip;
        for (to, port) in [(node, PORT), (BALANCER, 80), (EXTERNAL, 80)] {
            let datagram = || (format!("c {} hello", sources[1]), SocketAddr::from((to, port)));
            // Each protocol's Service is an object of its own, and each frontend of it changes by itself.
            eventually("the frontend as it is to be", || {
                starts(&self.ask(to, port), &["c"], sources[0])
                    && self.ask_udp(to, port).is_ok_and(|answer| answer == datagram())
            });
            for _ in 0..5 {
                let answer = self.ask(to, port);
                assert!(starts(&answer, &["c"], sources[0]), "{to}: {answer:?}");
                assert_eq!(self.ask_udp(to, port).expect("an answer"), datagram());
            }
            // Larger than any segment, there and back.
            let mut stream = self
                .client
                .run(|| TcpStream::connect_timeout(&(to, port).into(), TIMEOUT).expect("a connection"));
            for _ in 0..20 {
                exchange_much(&mut stream, 4000).unwrap_or_else(|error| panic!("{to}: {error}"));
            }
        }
    }
}

#[test]
fn by_xdp_in_the_driver() {
    isolated(|dir| by_xdp(dir, Xdp::Native));
}

#[test]
fn by_generic_xdp() {
    isolated(|dir| by_xdp(dir, Xdp::Generic));
}

fn by_xdp(dir: &Path, xdp: Xdp) {
    let scene = Scene::new(dir, xdp);
    scene.put("snat");
    let node = scene.cluster.nodes[0].ip;
    scene.check([node, node]);
    let translated = scene.by_xdp();
    assert!(translated > 100, "XDP sent nearly all of it on: {translated}");
    scene.put("dsr");
    eventually("the pod sees the client", || starts(&scene.ask(node, PORT), &["c"], CLIENT));
    scene.check([CLIENT, CLIENT]);
    assert!(scene.by_xdp() > translated, "and so with direct server return");
}

#[test]
fn answers_go_straight_to_the_client() {
    isolated(|dir| {
        let scene = Scene::new(dir, Xdp::Off);
        let [first, second] = &scene.cluster.nodes[..] else { panic!("two nodes") };
        scene.put("dsr");
        scene.check([CLIENT, CLIENT]);
        let flows = |node: &common::cluster::TestNode| node.maps().ct().expect("reads");
        let of_client = |be: u32| be == hawser_proxy::types::address_be(CLIENT);
        assert!(
            flows(first).iter().all(|(key, entry)| {
                !of_client(key.saddr_be) || entry.flags & (CT_DSR | CT_REPLY) == CT_DSR
            }),
            "the load balancer's node has nothing for answers"
        );
        assert!(flows(second).iter().any(|(key, entry)| {
            of_client(key.daddr_be) && entry.flags & (CT_DSR | CT_REPLY) == CT_DSR | CT_REPLY
        }));
        scene.put("hybrid");
        eventually("datagrams come from the node", || {
            scene.ask_udp(first.ip, PORT).is_ok_and(|(text, _)| text == format!("c {} hello", first.ip))
        });
        scene.check([CLIENT, first.ip]);
    });
}
