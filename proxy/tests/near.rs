//! What follows in a connection between two pods goes where its socket knows: see `near` in the programs.

mod common;

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use common::cluster::{Cluster, TestPod};
use common::traffic::{TIMEOUT, exchange, serve, unhooked};
use common::{eventually, isolated};
use hawser_ebpf_common::ct::epoch;
use hawser_proxy::maps::{Maps, Op};
use hawser_proxy::types::PrefixSpec;
use nix::time::{ClockId, clock_gettime};

/// More than a connection must have sent before anything is kept for it.
const EXCHANGES: usize = 20;
/// A second of the programs may end at the wrong time.
const ATTEMPTS: usize = 20;

fn now() -> u32 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("the clock");
    epoch(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

#[test]
fn a_socket_knows_where_for_a_second() {
    isolated(|dir| {
        let cluster = Cluster::start(dir, 2);
        let [node, other] = &cluster.nodes[..] else { panic!("two nodes") };
        let (a, b, c) = (node.add_pod("a"), node.add_pod("b"), other.add_pod("c"));
        for (pod, name) in [(&a, "a"), (&c, "c")] {
            serve(&pod.netns, 8080, name);
        }
        let apply = |op: &Op| node.maps().apply(op).expect("written");
        let all = node.maps().endpoints().expect("the endpoints");
        let value = all.into_iter().find(|(address, _)| *address == a.ip).expect("the pod's").1;
        let address = a.ip.into();
        knows(&b, &a, &|| apply(&Op::DeleteEndpoint { address }), &|| {
            apply(&Op::PutEndpoint { address, value })
        });
        let all = node.maps().prefixes().expect("the prefixes");
        let (prefix, value) = all
            .into_iter()
            .find(|(prefix, _)| prefix.contains(&IpAddr::from(c.ip)))
            .expect("the other node's");
        let nobody = PrefixSpec { node: Some(Ipv4Addr::new(10, 0, 0, 99).into()), ..value };
        let wrong = Op::PutPrefix { prefix, value: nobody };
        knows(&b, &c, &|| apply(&wrong), &|| apply(&Op::PutPrefix { prefix, value }));
    });
}

/// A connection goes on for the rest of a second in which the maps know the way no more, and no longer.
fn knows(client: &TestPod, server: &TestPod, lose: &(dyn Fn() + Sync), find: &(dyn Fn() + Sync)) {
    unhooked(client, || {
        let mut stream = TcpStream::connect_timeout(&(server.ip, 8080).into(), TIMEOUT).expect("connects");
        for _ in 0..EXCHANGES {
            exchange(&mut stream, "x").expect("an answer");
        }
        let served = (0..ATTEMPTS).any(|_| {
            exchange(&mut stream, "x").expect("an answer");
            let before = now();
            lose();
            let answer = one_in_time(&mut stream);
            let in_time = now() == before;
            find();
            match answer {
                Ok(()) => in_time,
                // Sent once more now.
                Err(_) if !in_time => {
                    read(&mut stream, TIMEOUT).expect("the answer");
                    false
                }
                Err(error) => panic!("not served in the same second: {error}"),
            }
        });
        assert!(served, "no packet was served by what its socket knows");
        lose();
        eventually("what a socket knows is forgotten", || one_in_time(&mut stream).is_err());
        find();
        read(&mut stream, TIMEOUT).expect("sent once more");
    });
}

/// An exchange that is given less time than a segment that is sent once more needs.
fn one_in_time(stream: &mut TcpStream) -> io::Result<()> {
    io::Write::write_all(stream, b"x")?;
    read(stream, Duration::from_millis(150))
}

fn read(stream: &mut TcpStream, within: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(within))?;
    match io::Read::read(stream, &mut [0; 256])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
