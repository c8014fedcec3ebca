//! What sockets keep, with real ones of both families: their backend by affinity, their place in the counts of
//! open connections, the name of whom they speak to.

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use common::{Cgroup, errno, isolated, run};
use hawser_ebpf_common::lb::{ALGORITHM_MAGLEV, AffinityKey, AffinityValue};
use hawser_ebpf_common::map_names;
use hawser_proxy::dataplane::Dataplane;
use hawser_proxy::desired::{Local, ObjectName, Service, ServicePort, Slice, SliceEndpoint};
use hawser_proxy::maps::{KernelMaps, Maps};
use hawser_proxy::programs::{Pins, Programs};
use hawser_proxy::types::Protocol;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1));
const PORT: u16 = 8080;
/// How long a connection may take to reach its listener.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody listens there.
const CLOSED: u16 = 8081;

/// One Service in a namespace where every address is local, and hooks in a cgroup of its own.
struct Kit {
    dataplane: Dataplane<KernelMaps>,
    maps: std::path::PathBuf,
    _programs: Programs,
    listeners: Vec<TcpListener>,
}

impl Kit {
    fn new(dir: &Path, cgroup: &Cgroup) -> Self {
        let pins = Pins::new(dir.join("bpf"));
        let mut programs = Programs::load(&pins).expect("the programs load");
        programs.attach_cgroup(cgroup.path()).expect("the hooks attach");
        run("ip link set lo up");
        run("ip route add local 10.0.0.0/8 dev lo");
        // Unlike IPv4, IPv6 lets nobody bind to what only a route makes local.
        (1..=4).for_each(|last| run(&format!("ip -6 addr add {}/128 dev lo nodad", v6(last))));
        let maps = KernelMaps::open(&pins.maps()).expect("the maps");
        let mut dataplane = Dataplane::new(Local::default(), maps);
        dataplane.reconcile().expect("empty maps");
        Self { dataplane, maps: pins.maps(), _programs: programs, listeners: Vec::new() }
    }

    /// The Service with its backends.
    fn set(&mut self, change: impl FnOnce(&mut Service), protocol: Protocol, port: u16, backends: &[IpAddr]) {
        let name = ObjectName::from("default/web");
        let at = |port| ServicePort { name: String::new(), port, protocol, node_port: 0 };
        let mut service =
            Service { cluster_ips: Box::new([VIP4, VIP6]), ports: Box::new([at(80)]), ..Service::default() };
        change(&mut service);
        let touched = self.dataplane.desired().set_service(&name, Some(service));
        self.dataplane.apply(&touched).expect("writes");
        let endpoint = |address: &IpAddr| SliceEndpoint {
            address: *address,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hints: None,
        };
        let endpoints = backends.iter().map(endpoint).collect();
        let slice = Slice { service: name.clone(), ports: Box::new([at(port)]), endpoints };
        let touched = self.dataplane.desired().set_slice(&name, Some(slice));
        self.dataplane.apply(&touched).expect("writes");
    }

    fn listen(&mut self, backends: &[IpAddr]) {
        let bind = |address: &IpAddr| TcpListener::bind((*address, PORT)).expect("a listener");
        self.listeners = backends.iter().map(bind).collect();
        self.listeners.iter().for_each(|one| one.set_nonblocking(true).expect("settable"));
    }

    /// Connects to the Service and says which backend it got.
    fn connect(&self, vip: IpAddr) -> (TcpStream, IpAddr) {
        let client = TcpStream::connect((vip, 80)).expect("a connection");
        assert_eq!(client.peer_addr().expect("connected").ip(), vip, "the Service's name");
        let own = client.local_addr().expect("connected");
        let until = Instant::now() + PATIENCE;
        loop {
            for listener in &self.listeners {
                while let Ok((_, from)) = listener.accept() {
                    if from == own {
                        return (client, listener.local_addr().expect("bound").ip());
                    }
                }
            }
            // The handshake's last packet may reach the listener after the client knows that it is connected.
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "connected to nobody");
            let listener = |one| PollFd::new(TcpListener::as_fd(one), PollFlags::POLLIN);
            let mut listeners: Vec<PollFd<'_>> = self.listeners.iter().map(listener).collect();
            poll(&mut listeners, PollTimeout::try_from(left).expect("short")).expect("waits");
        }
    }

    /// Open connections of each backend that was ever counted, and how many sockets are counted.
    fn counts(&self) -> (Vec<u64>, usize) {
        let maps = self.dataplane.maps();
        let counts = maps.connections().expect("reads").into_iter().map(|(_, count)| count);
        (counts.collect(), maps.counted_sockets().expect("reads").len())
    }
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, last).into()
}

fn v6(last: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last).into()
}

/// Runs a test whose sockets the hooks see.
fn with_kit(test: impl FnOnce(Kit) + Send + 'static) {
    isolated(|dir| {
        let cgroup = Cgroup::new();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let kit = Kit::new(dir, &cgroup);
                cgroup.enter();
                test(kit);
            });
            if let Err(panic) = inside.join() {
                std::panic::resume_unwind(panic);
            }
        });
    });
}

#[test]
fn open_connections_are_counted_exactly() {
    with_kit(|mut kit| {
        for (vip, backends) in [(VIP4, [v4(1), v4(2)]), (VIP6, [v6(1), v6(2)])] {
            kit.listen(&backends);
            kit.set(|_| {}, Protocol::Tcp, PORT, &backends);
            // Of two backends both are always compared: the one with fewer connections gets the next.
            let mut open: Vec<_> = (0..10).map(|_| kit.connect(vip)).collect();
            for backend in backends {
                assert_eq!(open.iter().filter(|(_, to)| *to == backend).count(), 5, "{backend}");
            }
            assert_eq!(kit.counts(), (vec![5, 5], 10));
            // The one that is quick to answer gets all that comes.
            open.retain(|(_, to)| *to == backends[0]);
            let more: Vec<_> = (0..5).map(|_| kit.connect(vip).1).collect();
            assert_eq!(more, [backends[1]; 5], "each is closed at once");
            drop(open);
            assert_eq!(kit.counts(), (vec![0, 0], 0));
            // A connection that fails is none.
            kit.set(|_| {}, Protocol::Tcp, CLOSED, &backends);
            let refused = TcpStream::connect((vip, 80));
            assert_eq!(errno(&refused), Some(libc::ECONNREFUSED));
            assert_eq!(kit.counts().1, 0);
            // Backends that are gone leave no counts.
            kit.set(|_| {}, Protocol::Tcp, PORT, &[]);
            assert_eq!(kit.counts(), (vec![], 0));
        }
    });
}

#[test]
fn clients_keep_their_backend() {
    with_kit(|mut kit| {
        let sticky = |service: &mut Service| service.affinity_timeout_s = 10_800;
        for (vip, all) in [(VIP4, [1, 2, 3, 4].map(v4)), (VIP6, [1, 2, 3, 4].map(v6))] {
            kit.listen(&all);
            kit.set(sticky, Protocol::Tcp, PORT, &all[..3]);
            let first = kit.connect(vip).1;
            let same = |kit: &Kit| (0..10).all(|_| kit.connect(vip).1 == first);
            assert!(same(&kit));
            kit.set(sticky, Protocol::Tcp, PORT, &all);
            assert!(same(&kit), "one more");
            let two: Vec<_> = all.iter().copied().filter(|one| *one == first || *one == all[3]).collect();
            kit.set(sticky, Protocol::Tcp, PORT, &two);
            assert!(same(&kit), "others gone, and slots moved");
            let rest: Vec<_> = all.iter().copied().filter(|one| *one != first).collect();
            kit.set(sticky, Protocol::Tcp, PORT, &rest);
            let second = kit.connect(vip).1;
            assert!(second != first && (0..10).all(|_| kit.connect(vip).1 == second), "its backend is gone");
            kit.set(sticky, Protocol::Tcp, PORT, &all);
            assert!((0..10).all(|_| kit.connect(vip).1 == second), "it stays with the new one");
            expires(&kit, vip, second);
        }
    });
}

/// A client that was away for longer than the timeout is anybody's.
fn expires(kit: &Kit, vip: IpAddr, held: IpAddr) {
    let map = MapData::from_pin(kit.maps.join(map_names::AFFINITY)).and_then(Map::from_map_data);
    let mut affinity: HashMap<MapData, AffinityKey, AffinityValue> =
        map.expect("the map").try_into().expect("its type");
    let elsewhere = (0..200).any(|_| {
        let keys: Vec<_> = affinity.keys().collect::<Result<_, _>>().expect("reads");
        for key in keys {
            let value = affinity.get(&key, 0).expect("reads");
            affinity.insert(key, AffinityValue { last_used_ns: 1, ..value }, 0).expect("writes");
        }
        kit.connect(vip).1 != held
    });
    // Where the machine has been up for less than the timeout, nothing can have expired.
    let up = std::fs::read_to_string("/proc/uptime").expect("uptime");
    let up: f64 = up.split(' ').next().and_then(|seconds| seconds.parse().ok()).expect("seconds");
    assert_eq!(elsewhere, up > 10_800.0);
}

#[test]
fn datagrams_of_one_socket_go_one_way() {
    with_kit(|mut kit| {
        let mapped = IpAddr::V6(Ipv4Addr::new(10, 96, 0, 1).to_ipv6_mapped());
        for (vip, backends) in
            [(VIP4, [1, 2, 3].map(v4)), (mapped, [1, 2, 3].map(v4)), (VIP6, [1, 2, 3].map(v6))]
        {
            kit.set(|_| {}, Protocol::Udp, PORT, &backends);
            let servers: Arc<[UdpSocket]> =
                backends.iter().map(|one| UdpSocket::bind((*one, PORT)).expect("a socket")).collect();
            servers.iter().for_each(|one| one.set_nonblocking(true).expect("settable"));
            let any: IpAddr =
                if vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let mut used = BTreeSet::new();
            for _ in 0..20 {
                let client = UdpSocket::bind((any, 0)).expect("a socket");
                client.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
                let mut reached = BTreeSet::new();
                for _ in 0..3 {
                    client.send_to(b"ask", SocketAddr::from((vip, 80))).expect("sent");
                    let mut buffer = [0; 8];
                    for (number, server) in servers.iter().enumerate() {
                        if let Ok((length, from)) = server.recv_from(&mut buffer) {
                            server.send_to(&buffer[..length], from).expect("answered");
                            reached.insert(number);
                        }
                    }
                    let (_, from) = client.recv_from(&mut buffer).expect("an answer");
                    assert_eq!(from, SocketAddr::from((vip, 80)), "from the Service");
                }
                assert_eq!(reached.len(), 1, "one backend for one socket");
                used.extend(reached);
            }
            assert!(used.len() > 1, "sockets are spread");
        }
    });
}

#[test]
fn maglev_spreads_sockets() {
    with_kit(|mut kit| {
        let backends = [1, 2, 3].map(v4);
        kit.listen(&backends);
        kit.set(|service| service.algorithm = ALGORITHM_MAGLEV, Protocol::Tcp, PORT, &backends);
        let used: BTreeSet<IpAddr> = (0..100).map(|_| kit.connect(VIP4).1).collect();
        assert_eq!(used.len(), 3);
        kit.set(|service| service.algorithm = ALGORITHM_MAGLEV, Protocol::Tcp, PORT, &backends[..1]);
        assert!((0..20).all(|_| kit.connect(VIP4).1 == backends[0]), "the table follows");
    });
}

/// A map that is full is a fault like any other: it is told, and over once there is room.
#[test]
fn a_full_map_is_told_and_recovered_from() {
    with_kit(|mut kit| {
        let map = MapData::from_pin(kit.maps.join(map_names::SOURCE_RANGE)).expect("the map");
        let room = map.info().expect("its size").max_entries();
        let ranges = |count: u32| -> Arc<[ipnet::IpNet]> {
            let range = |n: u32| ipnet::IpNet::from(IpAddr::from(Ipv4Addr::from(0x0b00_0000 + n)));
            (0..count).map(range).collect()
        };
        let name = ObjectName::from("default/full");
        let service = |count| Service {
            cluster_ips: Box::new([VIP4]),
            balancer_ips: Box::new([Ipv4Addr::new(10, 98, 0, 1).into()]),
            source_ranges: ranges(count),
            ports: Box::new([ServicePort {
                name: String::new(),
                port: 80,
                protocol: Protocol::Tcp,
                node_port: 0,
            }]),
            ..Service::default()
        };
        let touched = kit.dataplane.desired().set_service(&name, Some(service(room + 1)));
        let error = kit.dataplane.apply(&touched).expect_err("one too many").to_string();
        assert!(error.contains(map_names::SOURCE_RANGE), "{error}");
        assert!(!kit.dataplane.in_sync());
        kit.dataplane.reconcile().expect_err("still one too many");
        kit.dataplane.desired().set_service(&name, Some(service(2)));
        kit.dataplane.reconcile().expect("room enough");
        assert_eq!(kit.dataplane.maps().snapshot().expect("reads").source_ranges.len(), 2);
    });
}
