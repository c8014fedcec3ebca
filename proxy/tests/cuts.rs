//! Backends that are gone for good: what still speaks to them is cut, and nothing else.

mod common;

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};

use common::cluster::{Cluster, TestPod, service, slice};
use common::traffic::{TIMEOUT, exchange, hooked, serve, tcp, udp, unhooked};
use common::{errno, eventually, isolated};
use serde_json::json;

const UDP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 53);
const TCP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);

/// A slice of both protocols' Services; `terminating` marks the endpoints that are on their way out.
fn endpoints(cluster: &Cluster, pods: &[&TestPod], terminating: &[&TestPod]) {
    for (name, protocol) in [("udp", "UDP"), ("tcp", "TCP")] {
        let all: Vec<Ipv4Addr> = pods.iter().map(|pod| pod.ip).collect();
        let mut object = slice(name, &all, 8080, protocol);
        for (at, pod) in pods.iter().enumerate() {
            if terminating.iter().any(|other| other.ip == pod.ip) {
                object["endpoints"][at]["conditions"] =
                    json!({"ready": false, "serving": true, "terminating": true});
            }
        }
        cluster.api.put("endpointslices", object);
    }
}

fn connected(address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_read_timeout(Some(TIMEOUT)).expect("settable");
    socket.connect((address, port)).expect("connects");
    socket
}

fn ask(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"hello")?;
    let mut buffer = [0; 100];
    let n = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

#[test]
fn what_speaks_to_a_backend_that_is_gone_is_cut() {
    isolated(|dir| {
        let cluster = Cluster::start(dir, 2);
        let (n1, n2) = (&cluster.nodes[0], &cluster.nodes[1]);
        let (a, b, c) = (n1.add_pod("a"), n1.add_pod("b"), n2.add_pod("c"));
        for (pod, name) in [(&a, "a"), (&b, "b"), (&c, "c")] {
            serve(&pod.netns, 8080, name);
        }
        cluster.api.put("services", service("udp", "10.96.0.53", 53, "UDP"));
        cluster.api.put("services", service("tcp", "10.96.0.80", 80, "TCP"));
        endpoints(&cluster, &[&c], &[]);
        eventually("the Services", || {
            let ready = || tcp(TCP, 80).is_ok() && udp(UDP, 53).is_ok();
            hooked(n1, &a, ready) && hooked(n2, &c, ready)
        });

        // Through the Services in a pod and on the node; and past them, which nobody translated.
        let in_pod = hooked(n1, &a, || connected(UDP, 53));
        let on_node = n1.netns.run_in(Some(&n1.cgroup), || connected(UDP, 53));
        let direct = hooked(n1, &a, || connected(c.ip, 8080));
        let loose = hooked(n1, &a, || UdpSocket::bind("0.0.0.0:0").expect("a socket"));
        let mut stream = hooked(n1, &a, || TcpStream::connect((TCP, 80)).expect("connects"));
        let mut passing = unhooked(&a, || TcpStream::connect((TCP, 80)).expect("connects"));
        let mut direct_stream = hooked(n1, &a, || TcpStream::connect((c.ip, 8080)).expect("connects"));
        for socket in [&in_pod, &on_node, &direct] {
            assert!(ask(socket).is_ok_and(|text| text.starts_with("c ")));
        }
        let (text, _) = unhooked(&a, || udp(UDP, 53)).expect("an answer");
        assert!(text.starts_with("c "));
        let flows =
            || n1.maps().ct().expect("reads").into_iter().filter(|(key, _)| key.protocol == 17).count();
        assert_eq!(flows(), 2, "there and back");

        // It terminates: whoever has it keeps it, as long as it answers.
        endpoints(&cluster, &[&b, &c], &[&c]);
        eventually("new ones go elsewhere", || {
            hooked(n1, &a, || connected(UDP, 53).peer_addr().is_ok() && tcp(TCP, 80).is_ok())
                && (0..5).all(|_| hooked(n1, &a, || tcp(TCP, 80)).is_ok_and(|text| text.starts_with("b ")))
        });
        for socket in [&in_pod, &on_node, &direct] {
            assert!(ask(socket).is_ok_and(|text| text.starts_with("c ")));
        }
        for stream in [&mut stream, &mut passing, &mut direct_stream] {
            assert!(exchange(stream, "x").is_ok_and(|text| text.starts_with("c ")));
        }
        let other = hooked(n1, &a, || connected(UDP, 53));
        assert!(ask(&other).is_ok_and(|text| text.starts_with("b ")));

        // It is gone.
        endpoints(&cluster, &[&b], &[]);
        for socket in [&in_pod, &on_node] {
            // Nothing is sent, so nothing but the cut can end the wait.
            let cut = socket.recv(&mut [0; 10]).map(drop);
            assert_eq!(errno(&cut), Some(libc::ECONNABORTED), "{cut:?}");
        }
        stream.set_read_timeout(Some(TIMEOUT)).expect("settable");
        let cut = stream.read(&mut [0; 10]).map(drop);
        assert_eq!(errno(&cut), Some(libc::ECONNABORTED), "{cut:?}");
        eventually("the datagrams' flows", || flows() == 0);
        assert!(ask(&direct).is_ok_and(|text| text.starts_with("c ")), "not through the Service");
        assert!(ask(&other).is_ok_and(|text| text.starts_with("b ")), "to another backend");
        assert!(exchange(&mut direct_stream, "x").is_ok_and(|text| text.starts_with("c ")));
        loose.set_read_timeout(Some(TIMEOUT)).expect("settable");
        loose.send_to(b"hello", (b.ip, 8080)).expect("sends");
        assert!(loose.recv(&mut [0; 10]).is_ok(), "never connected");

        // An endpoint that lives and is one no more keeps its connections; its datagrams go elsewhere.
        let mut kept = hooked(n1, &a, || TcpStream::connect((TCP, 80)).expect("connects"));
        assert!(exchange(&mut kept, "x").is_ok_and(|text| text.starts_with("b ")));
        endpoints(&cluster, &[&c], &[]);
        let cut = other.recv(&mut [0; 10]).map(drop);
        assert_eq!(errno(&cut), Some(libc::ECONNABORTED), "{cut:?}");
        assert!(exchange(&mut kept, "x").is_ok_and(|text| text.starts_with("b ")));

        // A Service is deleted: datagrams have nobody any more.
        let last = hooked(n1, &a, || connected(UDP, 53));
        assert!(ask(&last).is_ok_and(|text| text.starts_with("c ")));
        // A pod that vanished in the meantime is no obstacle.
        let gone = n1.add_pod("gone");
        drop(gone);
        cluster.api.delete("services", "udp");
        let cut = last.recv(&mut [0; 10]).map(drop);
        assert_eq!(errno(&cut), Some(libc::ECONNABORTED), "{cut:?}");
    });
}
