//! Pod to pod on one node and across two, beside two namespaces with nothing between them but a veth, and beside the least
//! that any program can do with the same interfaces: to hand every packet on unseen. Client and server share one core, so
//! that a rate says what a packet costs from socket to socket.
//!
//! Without netkit (Linux 6.7, CONFIG_NETKIT) a packet that leaves a pod goes through the node's backlog, and once more
//! when it leaves the node by a veth; between bare namespaces it does so once.

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use common::cluster::Cluster;
use common::{Netns, isolated, run};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

static RELAY: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hawser-replay.bpf.o"));

const PORT: u16 = 9000;
/// Kept connections, each with one request under way.
const CONNECTIONS: usize = 16;
/// Short rounds, all lanes in turns: what else the machine does meets them alike.
const ROUNDS: usize = 40;
const ROUND: Duration = Duration::from_millis(100);
/// Bytes of one write.
const CHUNK: usize = 1 << 18;

fn main() {
    assert!(!RELAY.is_empty(), "built with HAWSER_EBPF_OBJECT: there is nothing to measure with");
    isolated(measure);
}

fn measure(dir: &Path) {
    let cluster = Cluster::start(dir, 2);
    let (a, b, c) =
        (cluster.nodes[0].add_pod("a"), cluster.nodes[0].add_pod("b"), cluster.nodes[1].add_pod("c"));
    let [bare, near, cable, bridge] = [bare(), relayed_near(), relayed_by_cable(), relayed_by_bridge()];
    let lanes = [
        ("a bare veth", Lane::new(&bare.client, &bare.server, Scene::SERVER)),
        ("one node", Lane::new(&a.netns, &b.netns, b.ip)),
        ("one node, the least a program can do", Lane::new(&near.client, &near.server, Scene::SERVER)),
        ("two nodes and a bridge", Lane::new(&a.netns, &c.netns, c.ip)),
        ("the same, the least", Lane::new(&bridge.client, &bridge.server, Scene::SERVER)),
        ("two nodes and a cable, the least", Lane::new(&cable.client, &cable.server, Scene::SERVER)),
    ];
    for mode in [Mode::Requests, Mode::Throughput] {
        let rounds: Vec<Vec<f64>> =
            (0..ROUNDS).map(|_| lanes.iter().map(|(_, lane)| lane.rate(mode)).collect()).collect();
        println!("{:<40} {:>14} {:>10}", mode.name(), "per second", "over bare");
        for (at, (name, _)) in lanes.iter().enumerate() {
            let rate = median(rounds.iter().map(|round| round[at]).collect());
            let over = median(rounds.iter().map(|round| round[at] / round[0]).collect());
            println!("{name:<40} {rate:>14.0} {over:>10.3}");
        }
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Requests,
    Throughput,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Throughput => "bytes",
        }
    }
}

/// A client and a server in two namespaces.
struct Lane<'a> {
    client: &'a Netns,
    server: &'a Netns,
    to: Ipv4Addr,
}

impl<'a> Lane<'a> {
    fn new(client: &'a Netns, server: &'a Netns, to: Ipv4Addr) -> Self {
        Self { client, server, to }
    }

    /// Of one round.
    fn rate(&self, mode: Mode) -> f64 {
        let count = if mode == Mode::Requests { CONNECTIONS } else { 1 };
        let listener =
            self.server.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("a listener"));
        fix_congestion(&listener);
        let connect = || TcpStream::connect((self.to, PORT)).expect("connects");
        let mut clients: Vec<TcpStream> = self.client.run(|| (0..count).map(|_| connect()).collect());
        let mut servers: Vec<TcpStream> =
            (0..count).map(|_| listener.accept().expect("a connection").0).collect();
        for stream in clients.iter().chain(&servers) {
            stream.set_nodelay(true).expect("settable");
            fix_congestion(stream);
        }
        std::thread::scope(|scope| {
            scope.spawn(move || {
                on_one_core();
                serve(&mut servers, mode).expect("serves");
            });
            let client = scope.spawn(move || {
                on_one_core();
                match mode {
                    Mode::Requests => requests(&mut clients),
                    Mode::Throughput => bytes(&mut clients[0]),
                }
                .expect("goes on")
            });
            client.join().expect("a rate")
        })
    }
}

/// The same one everywhere, and one that does not pace.
fn fix_congestion(socket: &impl AsFd) {
    setsockopt(socket, sockopt::TcpCongestion, &"reno".into()).expect("settable");
}

fn on_one_core() {
    let mut set = CpuSet::new();
    set.set(0).expect("a core");
    sched_setaffinity(Pid::from_raw(0), &set).expect("settable");
}

fn requests(streams: &mut [TcpStream]) -> io::Result<f64> {
    let (begun, mut done) = (Instant::now(), 0);
    while begun.elapsed() < ROUND {
        streams.iter_mut().try_for_each(|stream| stream.write_all(b"x"))?;
        streams.iter_mut().try_for_each(|stream| stream.read_exact(&mut [0]))?;
        done += streams.len();
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

fn bytes(stream: &mut TcpStream) -> io::Result<f64> {
    let chunk = vec![0; CHUNK];
    let (begun, mut done) = (Instant::now(), 0);
    while begun.elapsed() < ROUND {
        done += stream.write(&chunk)?;
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// Until the client is gone.
fn serve(streams: &mut [TcpStream], mode: Mode) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut ready: Vec<PollFd<'_>> =
            streams.iter().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut ready, PollTimeout::NONE)?;
        let ready: Vec<bool> = ready.iter().map(|fd| fd.any() == Some(true)).collect();
        for (stream, _) in streams.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) if mode == Mode::Throughput => {}
                Ok(n) => stream.write_all(&buffer[..n])?,
            }
        }
    }
}

/// Two namespaces, and what is between them.
struct Scene {
    client: Netns,
    server: Netns,
    _between: Vec<Netns>,
    _programs: Vec<Ebpf>,
}

impl Scene {
    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    /// The ends have their interfaces.
    fn new(client: Netns, server: Netns, between: Vec<Netns>, programs: Vec<Ebpf>) -> Self {
        for (end, address) in [(&client, Self::CLIENT), (&server, Self::SERVER)] {
            end.run(|| run(&format!("ip addr add {address}/24 dev eth0")));
        }
        Self { client, server, _between: between, _programs: programs }
    }
}

/// A veth between two namespaces.
fn cable(a: (&Netns, &str), b: (&Netns, &str)) {
    a.0.run(|| {
        let path = b.0.path();
        run(&format!("ip link add {} type veth peer name {} netns {}", a.1, b.1, path.display()));
        run(&format!("ip link set {} up", a.1));
    });
    b.0.run(|| run(&format!("ip link set {} up", b.1)));
}

/// Hands on what comes by one interface of a namespace to another one, or at once to that one's other end.
fn relay(netns: &Netns, from: &str, to: &str, peer: bool) -> Ebpf {
    netns.run(|| {
        let index = nix::net::if_::if_nametoindex(to).expect("an interface");
        let mut ebpf = EbpfLoader::new()
            .override_global("RELAY_TO", &index, true)
            .override_global("RELAY_TO_PEER", &u32::from(peer), true)
            .load(RELAY)
            .expect("the object");
        let program: &mut SchedClassifier =
            ebpf.program_mut("relay").and_then(|p| p.try_into().ok()).expect("a program");
        program.load().expect("passes the verifier");
        program.attach(from, TcAttachType::Ingress).expect("attaches");
        ebpf
    })
}

fn bare() -> Scene {
    let (client, server) = (Netns::new(), Netns::new());
    cable((&client, "eth0"), (&server, "eth0"));
    Scene::new(client, server, Vec::new(), Vec::new())
}

fn relayed_near() -> Scene {
    let (client, server, node) = (Netns::new(), Netns::new(), Netns::new());
    cable((&client, "eth0"), (&node, "pod1"));
    cable((&server, "eth0"), (&node, "pod2"));
    let programs = [("pod1", "pod2"), ("pod2", "pod1")].map(|(from, to)| relay(&node, from, to, true));
    Scene::new(client, server, vec![node], programs.into())
}

fn relayed_by_cable() -> Scene {
    let (client, server, nodes) = (Netns::new(), Netns::new(), [Netns::new(), Netns::new()]);
    cable((&nodes[0], "uplink"), (&nodes[1], "uplink"));
    behind(client, server, nodes, Vec::new())
}

fn relayed_by_bridge() -> Scene {
    let (client, server, nodes) = (Netns::new(), Netns::new(), [Netns::new(), Netns::new()]);
    let fabric = Netns::new();
    fabric.run(|| run("ip link add br0 type bridge"));
    fabric.run(|| run("ip link set br0 up"));
    for (node, port) in nodes.iter().zip(["port1", "port2"]) {
        cable((&fabric, port), (node, "uplink"));
        fabric.run(|| run(&format!("ip link set {port} master br0")));
    }
    behind(client, server, nodes, vec![fabric])
}

/// A namespace behind each of two nodes that have an uplink.
fn behind(client: Netns, server: Netns, nodes: [Netns; 2], mut between: Vec<Netns>) -> Scene {
    let mut programs = Vec::new();
    for (end, node) in [&client, &server].into_iter().zip(&nodes) {
        cable((end, "eth0"), (node, "pod"));
        programs.push(relay(node, "pod", "uplink", false));
        programs.push(relay(node, "uplink", "pod", true));
    }
    between.extend(nodes);
    Scene::new(client, server, between, programs)
}
