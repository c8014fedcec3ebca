//! XDP on the uplink with 50,000 Services, by `BPF_PROG_TEST_RUN` on one core: nanoseconds per packet, what a program that
//! does nothing costs included. The packets are independent of each other, as on a wire: `replay` (ebpf/programs) makes the
//! next one before each run. Each figure is the minimum and the median of many parts of one run.

#[path = "../tests/common/mod.rs"]
mod common;

use std::net::Ipv4Addr;
use std::path::Path;

use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use common::isolated;
use common::node::{CLIENT, NODE, Node};
use common::packet::Packet;
use hawser_ebpf_common::lb::SERVICE_DSR;
use hawser_ebpf_common::metrics::reason;
use hawser_proxy::programs::Programs;
use hawser_proxy::types::{L4Addr, Protocol, address_be};

static REPLAY: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hawser-replay.bpf.o"));

const LEAST_SERVICES: &str = "least_services";
const SERVICES: u32 = 50_000;
/// Addresses that they share.
const VIPS: u32 = 250;
const FLOWS: usize = 100_000;
/// Flows opened per part.
const OPENED: usize = 2_500;
/// Parts of what is established.
const REPEATS: usize = 20;

type Tuple = ((Ipv4Addr, u16), (Ipv4Addr, u16));

fn main() {
    assert!(!REPLAY.is_empty(), "built with HAWSER_EBPF_OBJECT: there is nothing to measure with");
    isolated(measure);
    isolated(measure_direct);
    for name in ["least_two", "least_one"] {
        isolated(|_| measure_least(name));
    }
}

/// What makes the packets.
struct Replay {
    ebpf: Ebpf,
}

impl Replay {
    fn new() -> Self {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(LEAST_SERVICES, 524_288)
            .map_max_entries("least_flows", 262_144)
            .load(REPLAY)
            .expect("the object");
        let program: &mut Xdp =
            ebpf.program_mut("replay").and_then(|p| p.try_into().ok()).expect("a program");
        program.load().expect("passes the verifier");
        Self { ebpf }
    }

    fn target(&mut self, node: &mut Node, program: &str) {
        self.aim(node.programs.xdp(program).expect("a program").fd().expect("loaded"));
    }

    /// At a program of its own.
    fn target_own(&mut self, program: &str) {
        let program: &mut Xdp =
            self.ebpf.program_mut(program).and_then(|p| p.try_into().ok()).expect("a program");
        program.load().expect("passes the verifier");
        let target = program.fd().and_then(|fd| Ok(fd.try_clone()?)).expect("loaded");
        self.aim(&target);
    }

    fn aim(&mut self, target: &ProgramFd) {
        let map = self.ebpf.map_mut("target").expect("a map");
        ProgramArray::try_from(map).expect("its type").set(0, target, 0).expect("settable");
    }

    fn tuples(&mut self, tuples: &[Tuple]) {
        let map = self.ebpf.map_mut("tuples").expect("a map");
        let mut map: Array<&mut MapData, [u32; 3]> = Array::try_from(map).expect("its type");
        for (at, ((saddr, sport), (daddr, dport))) in (0..).zip(tuples) {
            let ports = u32::from(sport.to_be()) | u32::from(dport.to_be()) << 16;
            map.set(at, [address_be(*saddr), address_be(*daddr), ports], 0).expect("writes");
        }
        let map = self.ebpf.map_mut("cursor").expect("a map");
        let mut map: Array<&mut MapData, [u32; 2]> = Array::try_from(map).expect("its type");
        map.set(0, [0, u32::try_from(tuples.len()).expect("a number")], 0).expect("writes");
    }

    /// Nanoseconds per packet.
    fn run(&mut self, frame: &[u8], repeat: usize) -> f64 {
        let program: &mut Xdp =
            self.ebpf.program_mut("replay").and_then(|p| p.try_into().ok()).expect("a program");
        let repeat = u32::try_from(repeat).expect("a number");
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
        program.test_run(options).expect("BPF_PROG_TEST_RUN").duration.as_nanos() as f64
    }
}

/// Minimum and median.
fn say(what: &str, mut figures: Vec<f64>) {
    figures.sort_by(f64::total_cmp);
    println!("{what:<44} {:>6.0} {:>6.0}", figures[0], figures[figures.len() / 2]);
}

/// Address and port of a Service.
fn vip(number: u32) -> (Ipv4Addr, u16) {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + number % VIPS);
    (address, 1000 + (number / VIPS) as u16)
}

/// A node with all Services.
fn node_with_services(dir: &Path, flags: u32) -> Node {
    let mut node = Node::with(dir, Programs::load_for_xdp);
    for number in 0..SERVICES {
        let backend = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 2, 0)) + number % 250 + 1);
        let (address, port) = vip(number);
        let backend = L4Addr::new(backend, 8080, Protocol::Tcp);
        node.frontend(number + 1, L4Addr::new(address, port, Protocol::Tcp), flags, [&[backend], &[]]);
    }
    node
}

fn frame(opens: bool) -> Vec<u8> {
    let mut packet = Packet::new((CLIENT, 1), (NODE, 1), Protocol::Tcp);
    if !opens {
        packet.transport = packet.transport.next();
    }
    packet.bytes()
}

/// Clients from one address on, each with four connections.
fn flows(first: Ipv4Addr) -> Vec<Tuple> {
    shuffled((0..FLOWS as u32).map(|i| {
        let from = Ipv4Addr::from(u32::from(first) + i / 4);
        ((from, 2000 + (i % 4) as u16), vip(i.wrapping_mul(7919) % SERVICES))
    }))
}

/// Opens the flows that the replay has, part by part.
fn open(replay: &mut Replay) -> Vec<f64> {
    (0..FLOWS / OPENED).map(|_| replay.run(&frame(true), OPENED)).collect()
}

fn measure(dir: &Path) {
    let mut node = node_with_services(dir, 0);
    let mut replay = Replay::new();
    println!("{:<44} {:>6} {:>6}", "ns per packet", "min", "median");
    let known = flows(Ipv4Addr::new(192, 168, 0, 0));
    replay.tuples(&known);
    replay.target(&mut node, "xdp_pass");
    say("no-op", (0..REPEATS).map(|_| replay.run(&frame(false), FLOWS)).collect());
    replay.target(&mut node, "xdp_uplink");
    say("new flows", open(&mut replay));
    assert_eq!(node.ct().keys().count(), 2 * FLOWS, "each flow has two entries");
    for count in [1, 1_000, 10_000, FLOWS] {
        replay.tuples(&known[..count]);
        let parts = (0..REPEATS).map(|_| replay.run(&frame(false), FLOWS)).collect();
        say(&format!("established, {count} flows"), parts);
    }
    assert_eq!(node.ct().keys().count(), 2 * FLOWS, "and each packet found them");
    // The second half finds the table full.
    replay.tuples(&flows(Ipv4Addr::new(192, 168, 128, 0)));
    let parts = open(&mut replay);
    say("new flows, connection tracking full", parts[parts.len() / 2..].to_vec());
    check(&node);
}

/// With direct server return a flow has one entry.
fn measure_direct(dir: &Path) {
    let mut node = node_with_services(dir, SERVICE_DSR);
    let mut replay = Replay::new();
    replay.tuples(&flows(Ipv4Addr::new(192, 168, 0, 0)));
    replay.target(&mut node, "xdp_uplink");
    say("new flows, direct server return", open(&mut replay));
    assert_eq!(node.ct().keys().count(), FLOWS, "each flow has an entry");
    check(&node);
}

/// What the two measure that balance nothing: as many Services, and flows in maps of the same sizes.
fn measure_least(name: &str) {
    let mut replay = Replay::new();
    let map = replay.ebpf.map_mut(LEAST_SERVICES).expect("a map");
    let mut services: HashMap<_, [u32; 3], [u64; 5]> = HashMap::try_from(map).expect("its type");
    for number in 0..SERVICES {
        let (address, port) = vip(number);
        let key = [address_be(address), u32::from(port.to_be()), u32::from(Protocol::Tcp.number())];
        services.insert(key, [u64::from(number) + 1; 5], 0).expect("writes");
    }
    replay.tuples(&flows(Ipv4Addr::new(192, 168, 0, 0)));
    replay.target_own(name);
    let entries = if name == "least_two" { 2 } else { 1 };
    say(&format!("new flows, the least with {entries} in an LRU map"), open(&mut replay));
    let map = replay.ebpf.map_mut("least_flows").expect("a map");
    let made: HashMap<_, [u32; 4], [u64; 8]> = HashMap::try_from(map).expect("its type");
    assert_eq!(made.keys().count(), entries * FLOWS, "each flow has its entries");
}

fn check(node: &Node) {
    for dropped in [reason::NO_ROUTE, reason::NAT_CONFLICT, reason::CT_FULL, reason::NO_NAT_PORT] {
        assert_eq!(node.counted(dropped), 0);
    }
}

/// In an order that no prefetcher knows.
fn shuffled(tuples: impl Iterator<Item = Tuple>) -> Vec<Tuple> {
    let mut all: Vec<Tuple> = tuples.collect();
    let mut state = 1u64;
    for at in (1..all.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        all.swap(at, (state >> 33) as usize % (at + 1));
    }
    all
}
