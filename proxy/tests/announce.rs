//! Load balancers' addresses on the link: a machine that is no node reaches them, and goes on doing so when another node
//! answers for them.

mod common;

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;

use common::cluster::{CLIENT, Cluster, TestNode, service, slice};
use common::traffic::{serve, starts, tcp};
use common::{Netns, eventually, isolated, run};
use serde_json::{Value, json};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
const ADDRESS6: &str = "fd00::200";

/// The link-layer address that a machine knows for another's address.
fn neighbour(client: &Netns, address: &str) -> Option<String> {
    let output =
        client.run(|| Command::new("ip").args(["neigh", "show", address]).output().expect("ip runs"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(" lladdr ").nth(1)?.split(' ').next().map(str::to_string)
}

fn mac(node: &TestNode) -> String {
    let path = "/sys/class/net/eth0/address";
    let output = node.netns.run(|| Command::new("ip").args(["-o", "link", "show", "eth0"]).output());
    let text = String::from_utf8_lossy(&output.expect("ip runs").stdout).into_owned();
    text.split(" link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or(path).to_string()
}

/// The Service, announced by a node, with something changed.
fn put(cluster: &Cluster, by: Option<&str>, change: impl FnOnce(&mut Value)) {
    let mut object = service("balanced", "10.96.0.30", 80, "TCP");
    object["spec"]["type"] = "LoadBalancer".into();
    object["status"] = json!({"loadBalancer": {"ingress": [{"ip": ADDRESS.to_string()}, {"ip": ADDRESS6}]}});
    if let Some(node) = by {
        object["metadata"]["annotations"] = json!({"hawser.io/announced-by": node});
    }
    change(&mut object["spec"]);
    cluster.api.put("services", object);
}

#[test]
fn an_address_moves_with_its_node() {
    isolated(|dir| {
        let mut cluster = Cluster::start(dir, 2);
        let (a, c) = (cluster.nodes[0].add_pod("a"), cluster.nodes[1].add_pod("c"));
        for (pod, name) in [(&a, "a"), (&c, "c")] {
            serve(&pod.netns, 8080, name);
        }
        let client = cluster.client();
        let ask = || client.run(|| tcp(ADDRESS, 80));
        let macs = [mac(&cluster.nodes[0]), mac(&cluster.nodes[1])];
        let mut endpoints = slice("balanced", &[a.ip, c.ip], 8080, "TCP");
        endpoints["endpoints"][0]["nodeName"] = "n1".into();
        endpoints["endpoints"][1]["nodeName"] = "n2".into();
        cluster.api.put("endpointslices", endpoints);

        put(&cluster, Some("n1"), |_| ());
        eventually("the address is announced", || cluster.nodes[0].snapshot().announced.len() == 2);
        assert!(cluster.nodes[1].snapshot().announced.is_empty(), "by one node only");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..30 {
            let answer = ask();
            let from_a = starts(&answer, &["a"], CLIENT);
            assert!(from_a || starts(&answer, &["c"], cluster.nodes[0].ip), "{answer:?}");
            seen.insert(from_a);
        }
        assert_eq!(seen.len(), 2, "both pods are used");
        assert_eq!(neighbour(&client, &ADDRESS.to_string()).as_ref(), Some(&macs[0]));
        // Neighbour discovery, for which any datagram will do.
        eventually("a neighbour advertisement", || {
            let socket = client.run(|| UdpSocket::bind("[::]:0").expect("a socket"));
            socket.send_to(b"x", (ADDRESS6, 9)).expect("sends");
            neighbour(&client, ADDRESS6).as_ref() == Some(&macs[0])
        });

        put(&cluster, Some("n1"), |spec| spec["loadBalancerSourceRanges"] = json!(["10.0.0.51/32"]));
        eventually("the client is outside the source ranges", || ask().is_err());
        put(&cluster, Some("n1"), |spec| spec["loadBalancerSourceRanges"] = json!(["10.0.0.48/28"]));
        eventually("the client is within the source ranges", || ask().is_ok());

        let local = |spec: &mut Value| spec["externalTrafficPolicy"] = "Local".into();
        put(&cluster, Some("n1"), local);
        eventually("only this node's pod, which sees the client", || {
            (0..10).all(|_| starts(&ask(), &["a"], CLIENT))
        });

        // The node goes away, link and all; the other one answers in its place.
        assert_eq!(neighbour(&client, &ADDRESS.to_string()).as_ref(), Some(&macs[0]));
        cluster.nodes[0].stop_agent();
        cluster.nodes[0].netns.run(|| run("ip link set eth0 down"));
        put(&cluster, Some("n2"), local);
        eventually("the client hears of it", || {
            neighbour(&client, &ADDRESS.to_string()).as_ref() == Some(&macs[1])
                && neighbour(&client, ADDRESS6).as_ref() == Some(&macs[1])
        });
        let answer = ask();
        assert!(starts(&answer, &["c"], CLIENT), "{answer:?}");

        // The first node comes back: what happened meanwhile is found, and its answers cease.
        cluster.nodes[0].netns.run(|| run("ip link set eth0 up"));
        cluster.nodes[0].start_agent();
        assert!(cluster.nodes[0].snapshot().announced.is_empty());
        assert!(starts(&ask(), &["c"], CLIENT));
        put(&cluster, None, local);
        eventually("nobody answers", || cluster.nodes[1].snapshot().announced.is_empty());
    });
}
