//! The load balancer tested three ways against each other: the model, the lookup over maps in memory,
//! and the real programs over the kernel's maps, by `BPF_PROG_TEST_RUN` (tc) and by real sockets (hooks).

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use aya::programs::{TestRun, TestRunOptions};
use common::packet::{Packet, Transport};
use common::world::{
    BACKEND_PORTS, NODE_IPS, STRANGER, action, apply_to_world, as_decision, clients, decide, empty_world,
    frontends, local, model_protocol, tell, v4,
};
use common::{Cgroup, isolated, run};
use hawser_ebpf_common::endpoint::{Endpoint4, NodeConfig};
use hawser_ebpf_common::lb::LbConfig;
use hawser_ebpf_common::map_names as names;
use hawser_proxy::dataplane::{Dataplane, node_netns_cookie};
use hawser_proxy::maps::{FakeMaps, KernelMaps, Maps, Op};
use hawser_proxy::programs::{Pins, Programs};
use hawser_proxy::types::{L4Addr, Protocol, address_be};
use hawser_proxy_model::{Decision, From, World};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// The client pod that sends the packets.
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 5);
/// `TC_ACT_UNSPEC`, `TC_ACT_REDIRECT`.
const NEXT: u32 = u32::MAX;
const REDIRECT: u32 = 7;
/// `TC_ACT_SHOT`.
const SHOT: u32 = 2;
/// How many random worlds, each with a few random questions.
const CASES: u32 = 10_000;
const QUESTIONS: usize = 3;
/// Sizes of the maps that are looked through for every world: small ones, since that takes time by the size.
const SIZES: [(&str, u32); 10] = [
    (names::SERVICES4, 4_096),
    (names::SERVICES6, 4_096),
    (names::BACKENDS4, 4_096),
    (names::BACKENDS6, 4_096),
    (names::REVERSE_NAT4, 4_096),
    (names::REVERSE_NAT6, 4_096),
    (names::AFFINITY_MATCH, 4_096),
    (names::CONNECTIONS, 4_096),
    (names::SOCKETS, 4_096),
    (names::MAGLEV, 16_384),
];

/// The programs, and what counts the packets so that no two have one source port.
struct Kernel {
    programs: Programs,
    port: u16,
}

impl Kernel {
    fn run(&mut self, program: &str, packet: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; 2048];
        let classifier = self.programs.classifier(program).expect("a program");
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = classifier.test_run(options).expect("BPF_PROG_TEST_RUN");
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// A new connection's first packet through `from_pod`, and the backend's answer back.
    fn decide(&mut self, frontend: &L4Addr) -> Result<Decision, TestCaseError> {
        self.port = if self.port < 20_000 { 20_000 } else { self.port.wrapping_add(1).max(20_000) };
        let sent = Packet::new((POD, self.port), (v4(frontend.address), frontend.port), frontend.protocol);
        let (code, bytes) = self.run("from_pod", &sent.bytes());
        if code == SHOT {
            return Ok(Decision::Drop);
        }
        let got = Packet::parse(&bytes).map_err(TestCaseError::fail)?;
        if code == REDIRECT {
            self.is_refusal(&sent, &got)?;
            return Ok(Decision::Refuse);
        }
        prop_assert_eq!(code, NEXT);
        prop_assert_eq!((got.source, &got.transport), (sent.source, &sent.transport));
        if got.destination == sent.destination {
            prop_assert_eq!(bytes, sent.bytes(), "a packet to no Service is left alone");
            return Ok(Decision::NotAService);
        }
        let answer = Packet::answer(&got);
        let (code, bytes) = self.run("from_uplink", &answer.bytes());
        prop_assert_eq!(code, REDIRECT, "delivered to the pod");
        let back = Packet::parse(&bytes).map_err(TestCaseError::fail)?;
        prop_assert_eq!(back.source, sent.destination, "the answer comes from the frontend");
        prop_assert_eq!(back.destination, sent.source);
        prop_assert_eq!(back.ttl, answer.ttl - 1);
        for by in [got.destination.0, Ipv4Addr::new(192, 0, 2, 7)] {
            self.error_comes_back(&sent, &got, by)?;
        }
        // The connection stays with its backend.
        let (_, bytes) = self.run("from_pod", &Packet { transport: sent.transport.next(), ..sent }.bytes());
        let again = Packet::parse(&bytes).map_err(TestCaseError::fail)?;
        prop_assert_eq!(again.destination, got.destination);
        Ok(one_of(got.destination))
    }

    /// The first packet of somebody outside the cluster.
    fn decide_outside(&mut self, frontend: &L4Addr) -> Result<Decision, TestCaseError> {
        self.port = self.port.wrapping_add(1).max(20_000);
        let sent =
            Packet::new((STRANGER, self.port), (v4(frontend.address), frontend.port), frontend.protocol);
        let (code, bytes) = self.run("from_uplink", &sent.bytes());
        if code == SHOT {
            return Ok(Decision::Drop);
        }
        let got = Packet::parse(&bytes).map_err(TestCaseError::fail)?;
        if got.destination.0 == STRANGER {
            self.is_refusal(&sent, &got)?;
            return Ok(Decision::Refuse);
        }
        match got.destination == sent.destination {
            true => Ok(Decision::NotAService),
            false => Ok(one_of(got.destination)),
        }
    }

    /// An ICMP error about the translated packet reaches the pod as one about the packet it sent.
    fn error_comes_back(&mut self, sent: &Packet, got: &Packet, by: Ipv4Addr) -> Result<(), TestCaseError> {
        let (code, bytes) = self.run("from_uplink", &Packet::error(got, by).bytes());
        prop_assert_eq!(code, REDIRECT, "delivered to the pod");
        let error = Packet::parse(&bytes).map_err(TestCaseError::fail)?;
        let said_by = if by == got.destination.0 { sent.destination.0 } else { by };
        prop_assert_eq!((error.source.0, error.destination.0), (said_by, sent.source.0));
        let Transport::Icmp { quoted, .. } = &error.transport else {
            return Err(TestCaseError::fail(format!("{error:?}")));
        };
        let original = &sent.bytes()[14..14 + 28];
        let without_l4_checksum = if matches!(sent.transport, Transport::Udp { .. }) { 26 } else { 28 };
        prop_assert_eq!(&quoted[..without_l4_checksum], &original[..without_l4_checksum]);
        Ok(())
    }

    /// A RST or an ICMP port unreachable that the sender will believe.
    fn is_refusal(&self, sent: &Packet, got: &Packet) -> Result<(), TestCaseError> {
        prop_assert_eq!(got.macs, (sent.macs.1, sent.macs.0));
        prop_assert_eq!(got.destination.0, sent.source.0);
        prop_assert_eq!(got.source.0, sent.destination.0);
        match (&sent.transport, &got.transport) {
            (Transport::Tcp { seq, .. }, Transport::Tcp { flags, ack, .. }) => {
                prop_assert_eq!((got.source, got.destination), (sent.destination, sent.source));
                prop_assert_eq!(*flags, 0x14, "RST and ACK");
                prop_assert_eq!(*ack, seq.wrapping_add(1));
            }
            (Transport::Udp { .. }, Transport::Icmp { kind, code, quoted }) => {
                prop_assert_eq!((*kind, *code), (3, 3));
                let sent = sent.bytes();
                prop_assert_eq!(&quoted[..], &sent[14..14 + 28], "quotes the packet");
            }
            other => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    }
}

fn one_of((address, port): (Ipv4Addr, u16)) -> Decision {
    Decision::OneOf([(address.into(), port)].into())
}

/// Listeners on every port that may be asked for, in a namespace where every address is local: where a
/// connection arrives says what the hook made of it.
struct Listeners {
    tcp: Vec<TcpListener>,
}

impl Listeners {
    fn new() -> Self {
        run("ip link set lo up");
        run("ip route add local 10.0.0.0/8 dev lo");
        run("ip -6 route add local fd00::/8 dev lo");
        let ports: BTreeSet<u16> = frontends().iter().map(|f| f.port).chain(BACKEND_PORTS).collect();
        let listen = |port| {
            // Of both families.
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a listener");
            listener.set_nonblocking(true).expect("settable");
            listener
        };
        Self { tcp: ports.into_iter().map(listen).collect() }
    }

    /// Where a connection from this thread to a frontend arrives. `mapped`: IPv4 by a socket of IPv6.
    fn decide(&self, frontend: &L4Addr, mapped: bool) -> Result<Decision, TestCaseError> {
        let to = SocketAddr::from((frontend.address, frontend.port));
        let asked = match frontend.address {
            IpAddr::V4(address) if mapped => SocketAddr::from((address.to_ipv6_mapped(), frontend.port)),
            _ => to,
        };
        let reached = match frontend.protocol {
            Protocol::Tcp => self.tcp_target(asked),
            Protocol::Udp => udp_target(asked),
            Protocol::Sctp => unreachable!("no frontend of SCTP is asked for"),
        };
        match reached {
            Ok((_, peer)) if peer != asked => {
                prop_assert!(false, "getpeername says {peer}, not {asked}");
                unreachable!()
            }
            Ok((reached, _)) if reached == to => Ok(Decision::NotAService),
            Ok((reached, _)) => Ok(Decision::OneOf([(reached.ip(), reached.port())].into())),
            Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => Ok(Decision::Refuse),
            Err(error) if error.raw_os_error() == Some(libc::EHOSTUNREACH) => Ok(Decision::Drop),
            other => Err(TestCaseError::fail(format!("{to}: {other:?}"))),
        }
    }

    fn tcp_target(&self, to: SocketAddr) -> io::Result<(SocketAddr, SocketAddr)> {
        let client = TcpStream::connect(to)?;
        let own = canonical(client.local_addr()?);
        // The connection is in one of the backlogs: which, its listener knows.
        for listener in &self.tcp {
            while let Ok((stream, from)) = listener.accept() {
                if canonical(from) == own {
                    return Ok((canonical(stream.local_addr()?), client.peer_addr()?));
                }
            }
        }
        Err(io::Error::other("connected to nobody"))
    }
}

/// Without the mapping of IPv4 into IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What the kernel thinks a connected UDP socket's peer is, and what the socket is told.
fn udp_target(to: SocketAddr) -> io::Result<(SocketAddr, SocketAddr)> {
    let (any, table): (SocketAddr, _) = match to {
        SocketAddr::V4(_) => ((Ipv4Addr::UNSPECIFIED, 0).into(), "/proc/thread-self/net/udp"),
        SocketAddr::V6(_) => ((Ipv6Addr::UNSPECIFIED, 0).into(), "/proc/thread-self/net/udp6"),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    let port = socket.local_addr()?.port();
    let table = std::fs::read_to_string(table)?;
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let address = |text: &str| -> Option<IpAddr> {
        let mut bytes = Vec::with_capacity(16);
        for at in (0..text.len()).step_by(8) {
            bytes.extend(hex(text.get(at..at + 8)?)?.to_ne_bytes());
        }
        match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    };
    let remote = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.split_once(':')?;
        if hex(local_port)? != u32::from(port) {
            return None;
        }
        let (remote, remote_port) = fields.get(2)?.split_once(':')?;
        Some(SocketAddr::from((address(remote)?, u16::try_from(hex(remote_port)?).ok()?)))
    });
    let remote = remote.ok_or_else(|| io::Error::other("the socket is not in the table"))?;
    Ok((canonical(remote), socket.peer_addr()?))
}

/// The program's one choice must be among the model's.
fn is_allowed(what: &str, frontend: &L4Addr, model: &Decision, got: &Decision) -> Result<(), TestCaseError> {
    let allowed = match (model, got) {
        (Decision::OneOf(all), Decision::OneOf(one)) => one.is_subset(all),
        (model, got) => model == got,
    };
    prop_assert!(allowed, "{what}, {frontend}: {got:?} where the model says {model:?}");
    Ok(())
}

/// Every frontend in memory, and some of them by packets and by sockets.
fn check(
    world: &World,
    fake: &FakeMaps,
    kernel: &mut Kernel,
    sockets: &Listeners,
    questions: &Questions,
) -> Result<(), TestCaseError> {
    let all = frontends();
    let mut claimed = Vec::new();
    for frontend in &all {
        for (client, from) in clients(POD) {
            let model = decide(world, frontend, from);
            let interpreted = as_decision(&fake.lookup(frontend, client)).map_err(TestCaseError::fail)?;
            prop_assert_eq!(&interpreted, &model, "fake maps, {}, {:?}", frontend, from);
        }
        if decide(world, frontend, From::NodeSocket) != Decision::NotAService {
            claimed.push(*frontend);
        }
    }
    // A frontend that is nobody's now and then, and else one that is somebody's.
    for (number, pick) in questions.picks.iter().enumerate() {
        let from = if claimed.is_empty() || number == 0 { &all } else { &claimed };
        let frontend = pick.select(from);
        let from = if questions.node { From::NodeSocket } else { From::PodSocket };
        let model = decide(world, frontend, from);
        let first = sockets.decide(frontend, questions.mapped)?;
        is_allowed("sockets", frontend, &model, &first)?;
        if world.has_affinity(frontend.address, frontend.port, model_protocol(frontend.protocol)) {
            let second = sockets.decide(frontend, !questions.mapped)?;
            prop_assert_eq!(first, second, "{} has affinity", frontend);
        }
        if frontend.address.is_ipv4() && !frontend.address.is_loopback() {
            let (inside, outside) = (From::Inside(POD.into()), From::Outside(STRANGER.into()));
            is_allowed("tc", frontend, &decide(world, frontend, inside), &kernel.decide(frontend)?)?;
            let got = kernel.decide_outside(frontend)?;
            is_allowed("tc from outside", frontend, &decide(world, frontend, outside), &got)?;
        }
    }
    Ok(())
}

/// What is asked of the real programs.
#[derive(Debug)]
struct Questions {
    picks: Vec<prop::sample::Selector>,
    /// The sockets are the node's own.
    node: bool,
    /// They are of IPv6.
    mapped: bool,
}

fn questions() -> impl Strategy<Value = Questions> {
    let picks = prop::collection::vec(any::<prop::sample::Selector>(), QUESTIONS);
    (picks, any::<bool>(), any::<bool>()).prop_map(|(picks, node, mapped)| Questions { picks, node, mapped })
}

#[test]
fn model_fake_and_kernel_agree() {
    isolated(|dir| {
        let cgroup = Cgroup::new();
        let pins = Pins::new(dir.join("bpf"));
        let mut programs = Programs::load_sized(&pins, &SIZES).expect("the programs load");
        programs.attach_cgroup(cgroup.path()).expect("the hooks attach");
        let mut maps = KernelMaps::open(&pins.maps()).expect("the maps");
        // BPF_PROG_TEST_RUN pretends that packets come from loopback: interface 1.
        let pod = Endpoint4 { ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], ..Endpoint4::default() };
        maps.apply(&Op::PutEndpoint { address: POD.into(), value: pod }).expect("an endpoint");
        // A backend elsewhere must see an address of this node.
        let current = maps.config().expect("reads");
        maps.set_config(&NodeConfig { node_ip_be: address_be(v4(NODE_IPS[0])), ..current }).expect("writes");
        let kernel = RefCell::new(Kernel { programs, port: 0 });
        let sockets = Listeners::new();
        // Only this thread's sockets are the hooks' business.
        std::thread::scope(|scope| {
            let compare = scope.spawn(|| {
                cgroup.enter();
                compare(&pins, kernel, &sockets);
            });
            if let Err(panic) = compare.join() {
                std::panic::resume_unwind(panic);
            }
        });
    });
}

fn compare(pins: &Pins, kernel: RefCell<Kernel>, sockets: &Listeners) {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let strategy = (prop::collection::vec(action(), 1..8), questions());
    let node_netns_cookie = node_netns_cookie();
    let result = TestRunner::new(config).run(&strategy, |(actions, questions)| {
        let open = || KernelMaps::open(&pins.maps()).map_err(|error| TestCaseError::fail(error.to_string()));
        let config = if questions.node { node_netns_cookie } else { 0 };
        let config = LbConfig { node_netns_cookie: config, ..LbConfig::default() };
        open()?.set_lb_config(&config).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut world = empty_world();
        let mut fake = Dataplane::new(local(), FakeMaps::default());
        let mut real = Dataplane::new(local(), open()?);
        fake.reconcile().map_err(|error| TestCaseError::fail(error.to_string()))?;
        real.reconcile().map_err(|error| TestCaseError::fail(error.to_string()))?;
        for action in &actions {
            apply_to_world(&mut world, action);
            let touched = tell(&mut fake, action);
            fake.apply(&touched).map_err(|error| TestCaseError::fail(error.to_string()))?;
            let touched = tell(&mut real, action);
            real.apply(&touched).map_err(|error| TestCaseError::fail(error.to_string()))?;
        }
        check(&world, fake.maps(), &mut kernel.borrow_mut(), sockets, &questions)?;
        // A new agent with nothing to do removes everything.
        let mut empty = Dataplane::new(local(), open()?);
        empty.reconcile().map_err(|error| TestCaseError::fail(error.to_string()))?;
        let left = open()?.snapshot().map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(left.has_no_services(), "left behind: {left:?}");
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// Maps are kept from one agent to the next, unless they are of another version.
#[test]
fn maps_of_another_layout_are_not_adopted() {
    isolated(|dir| {
        let pins = Pins::new(dir.join("bpf"));
        let load = || drop(Programs::load(&pins).expect("the programs load"));
        let endpoints =
            || KernelMaps::open(&pins.maps()).expect("the maps").snapshot().expect("reads").endpoints.len();
        load();
        let mut maps = KernelMaps::open(&pins.maps()).expect("the maps");
        maps.apply(&Op::PutEndpoint { address: POD.into(), value: Endpoint4::default() })
            .expect("an endpoint");
        load();
        assert_eq!(endpoints(), 1, "adopted");
        let config = maps.config().expect("reads");
        maps.set_config(&NodeConfig { layout: config.layout + 1, ..config }).expect("writes");
        load();
        assert_eq!(endpoints(), 0, "made anew");
        assert_eq!(KernelMaps::pinned_config(&pins.maps()).expect("reads").layout, config.layout);
    });
}

/// A restart keeps the links of the same cgroup, and lets go of another.
#[test]
fn links_follow_the_cgroup() {
    isolated(|dir| {
        let pins = Pins::new(dir.join("bpf"));
        let links = || {
            let entries = std::fs::read_dir(dir.join("bpf/links")).expect("pins");
            let mut names: Vec<_> = entries.map(|entry| entry.expect("a pin").file_name()).collect();
            names.sort();
            names
        };
        let attach = |cgroup: &Cgroup| {
            let mut programs = Programs::load(&pins).expect("the programs load");
            programs.attach_cgroup(cgroup.path()).expect("the hooks attach");
        };
        let first = Cgroup::new();
        attach(&first);
        let before = links();
        assert_eq!(before.len(), 9);
        attach(&first);
        assert_eq!(links(), before);
        let second = Cgroup::new();
        attach(&second);
        assert_eq!(links().len(), 9);
        assert!(links().iter().all(|name| !before.contains(name)));
        attach(&first);
        assert_eq!(links(), before, "the first cgroup was free again");
    });
}

/// What the programs do with packets that no Service is about.
#[test]
fn odd_packets() {
    isolated(|dir| {
        let pins = Pins::new(dir.join("bpf"));
        let programs = Programs::load(&pins).expect("the programs load");
        let mut maps = KernelMaps::open(&pins.maps()).expect("the maps");
        let pod = Endpoint4 { ifindex: 1, pod_mac: [2; 6], host_mac: [4; 6], ..Endpoint4::default() };
        maps.apply(&Op::PutEndpoint { address: POD.into(), value: pod }).expect("an endpoint");
        let other = Ipv4Addr::new(10, 244, 0, 6);
        let elsewhere = Endpoint4 { ifindex: 2, ..pod };
        maps.apply(&Op::PutEndpoint { address: other.into(), value: elsewhere }).expect("an endpoint");
        let mut kernel = Kernel { programs, port: 0 };
        let drop = 2;
        let good = Packet::new((POD, 1000), (other, 80), Protocol::Tcp);
        let cases: [(&str, Vec<u8>, u32); 7] = [
            ("to a pod of this node", good.bytes(), REDIRECT),
            ("from another pod's address", Packet { source: (other, 1), ..good.clone() }.bytes(), drop),
            ("from nowhere", Packet { source: (Ipv4Addr::new(1, 2, 3, 4), 1), ..good.clone() }.bytes(), drop),
            ("last hop", Packet { ttl: 1, ..good.clone() }.bytes(), NEXT),
            ("a header shorter than it can be", with(good.bytes(), 14, 0x44), drop),
            ("not IPv4", with(good.bytes(), 12, 0x86), NEXT),
            ("another version", with(good.bytes(), 14, 0x65), drop),
        ];
        for (what, bytes, expected) in cases {
            assert_eq!(kernel.run("from_pod", &bytes).0, expected, "{what}");
        }
        // Truncated anywhere: never a fault. (The kernel itself refuses frames without a whole IP header.)
        let whole = good.bytes();
        for len in 34..whole.len() {
            let (code, _) = kernel.run("from_pod", &whole[..len]);
            assert!([REDIRECT, drop, NEXT].contains(&code), "{len}: {code}");
            let (code, _) = kernel.run("from_uplink", &whole[..len]);
            assert!([REDIRECT, drop, NEXT].contains(&code), "{len}: {code}");
        }
    });
}

fn with(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes[at] = value;
    bytes
}
