//! One node's programs and maps, for packets by `BPF_PROG_TEST_RUN`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use aya::programs::{TestRun, TestRunOptions};
use hawser_ebpf_common::ct::{CtEntry4, CtEntry6, CtKey4, CtKey6};
use hawser_ebpf_common::endpoint::{
    CONFIG_MASQUERADE, Endpoint4, IDENTITY_HOST, IDENTITY_PODS, IDENTITY_REMOTE_NODE, IPCACHE_ON_LINK,
    NodeConfig,
};
use hawser_ebpf_common::lb::{KIND_NODE_PORT, SERVICE_TWO_SCOPES, ServiceValue};
use hawser_proxy::maps::{KernelMaps, Maps, Op, SlotKey};
use hawser_proxy::programs::{Pins, Programs, ProgramsError};
use hawser_proxy::types::{L4Addr, PrefixSpec, address_be, address6_be};

use super::packet::Packet;
use super::run;

/// The node.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
/// Its neighbour.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 12);
/// A client on the link.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// A pod of this node, and one of the other.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
pub const THERE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 12];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 11];

/// The programs of a node, and what they know.
pub struct Node {
    pub programs: Programs,
    pub maps: KernelMaps,
    pub pins: Pins,
    pub port: u16,
}

impl Node {
    /// A node with one neighbour and one client on its link, in the calling thread's namespace.
    pub fn new(dir: &Path) -> Self {
        Self::with(dir, Programs::load)
    }

    /// The same with programs that were loaded in a certain way.
    pub fn with(dir: &Path, load: impl FnOnce(&Pins) -> Result<Programs, ProgramsError>) -> Self {
        run("ip link add up0 address 02:00:00:00:00:0b type veth peer name peer0");
        run("ip link set up0 up");
        run("ip link set peer0 up");
        run("ip addr add 10.0.0.11/24 dev up0");
        run("ip neigh add 10.0.0.12 lladdr 02:00:00:00:00:0c dev up0 nud permanent");
        run("ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev up0 nud permanent");
        run("ip route add 10.244.2.0/24 via 10.0.0.12");
        run("ip route add 192.168.0.0/16 via 10.0.0.1");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("settable");
        let pins = Pins::new(dir.join("bpf"));
        let programs = load(&pins).expect("the programs load");
        let mut maps = KernelMaps::open(&pins.maps()).expect("the maps");
        let current = maps.config().expect("reads");
        maps.set_config(&NodeConfig {
            node_ip_be: address_be(NODE),
            uplink_ifindex: nix::net::if_::if_nametoindex("up0").expect("an index"),
            flags: CONFIG_MASQUERADE,
            uplink_mac: UPLINK_MAC,
            mtu: 1500,
            ..current
        })
        .expect("writes");
        let prefix = |text: &str, node: Option<Ipv4Addr>, identity| Op::PutPrefix {
            prefix: text.parse().expect("a prefix"),
            value: PrefixSpec {
                node: node.map(Into::into),
                identity,
                flags: if node.is_some() { IPCACHE_ON_LINK } else { 0 },
            },
        };
        // BPF_PROG_TEST_RUN pretends that packets come from loopback: interface 1.
        let pod = Endpoint4 { ifindex: 1, pod_mac: [6; 6], host_mac: [4; 6], ..Endpoint4::default() };
        for op in [
            prefix("10.244.1.0/24", None, IDENTITY_PODS),
            prefix("10.244.2.0/24", Some(OTHER), IDENTITY_PODS),
            prefix("10.0.0.12/32", Some(OTHER), IDENTITY_REMOTE_NODE),
            prefix("10.0.0.11/32", None, IDENTITY_HOST),
            Op::PutEndpoint { address: HERE.into(), value: pod },
        ] {
            maps.apply(&op).expect("writes");
        }
        Self { programs, maps, pins, port: 20_000 }
    }

    /// The same over IPv6: `fd00::11`, its neighbour `fd00::12` with the pods of `fd00:244:2::/64`, the client `fd00::1`.
    pub fn add_ipv6(&mut self) {
        for line in [
            "ip addr add fd00::11/64 dev up0 nodad",
            "ip neigh add fd00::12 lladdr 02:00:00:00:00:0c dev up0 nud permanent",
            "ip neigh add fd00::1 lladdr 02:00:00:00:00:01 dev up0 nud permanent",
            "ip route add fd00:244:2::/64 via fd00::12",
        ] {
            run(line);
        }
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("settable");
        let address = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
        let config = self.maps.config().expect("reads");
        let node_ip6_be = address6_be(address("fd00::11"));
        self.maps.set_config(&NodeConfig { node_ip6_be, ..config }).expect("writes");
        let value = PrefixSpec {
            node: Some(address("fd00::12").into()),
            identity: IDENTITY_PODS,
            flags: IPCACHE_ON_LINK,
        };
        self.apply(Op::PutPrefix { prefix: "fd00:244:2::/64".parse().expect("a prefix"), value });
    }

    /// A frontend with these backends: for all, or with two scopes for those from inside and those from outside.
    pub fn frontend(&mut self, id: u32, to: L4Addr, flags: u32, scopes: [&[L4Addr]; 2]) {
        let key = SlotKey::master(to);
        let mut first = 0;
        for (scope, backends) in scopes.iter().enumerate() {
            for (at, backend) in backends.iter().enumerate() {
                let number = u32::from(backend.address.is_ipv4()) * id * 100 + (scope * 50 + at) as u32 + 1;
                first = if first == 0 { number } else { first };
                let slot = key.slot(scope as u8, 1, at as u16 + 1);
                let value = ServiceValue { backend_id: number, rev_nat_id: id, ..ServiceValue::default() };
                self.apply(Op::PutBackend { id: number, address: *backend, flags: 0 });
                self.apply(Op::PutService { key: slot, value });
            }
        }
        self.apply(Op::PutReverseNat { id, frontend: to });
        let only = if flags & SERVICE_TWO_SCOPES == 0 && scopes[0].len() == 1 { first } else { 0 };
        let value = ServiceValue {
            backend_id: only,
            rev_nat_id: id,
            flags,
            count: scopes[0].len() as u16,
            count_external: scopes[1].len() as u16,
            generation: 1,
            kind: KIND_NODE_PORT,
            ..ServiceValue::default()
        };
        self.apply(Op::PutService { key, value });
    }

    pub fn apply(&mut self, op: Op) {
        self.maps.apply(&op).expect("writes");
    }

    pub fn run(&mut self, program: &str, packet: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; 4096];
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = if program.starts_with("xdp") {
            self.programs.xdp(program).expect("a program").test_run(options)
        } else {
            self.programs.classifier(program).expect("a program").test_run(options)
        };
        let result = result.expect("BPF_PROG_TEST_RUN");
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    pub fn packet(&mut self, to: L4Addr) -> Packet {
        self.port += 1;
        let std::net::IpAddr::V4(address) = to.address else { panic!("an IPv4 frontend") };
        Packet::new((CLIENT, self.port), (address, to.port), to.protocol)
    }

    pub fn ct(&self) -> HashMap<MapData, CtKey4, CtEntry4> {
        let data = MapData::from_pin(self.pins.maps().join("hawser_ct4")).expect("the map");
        Map::from_map_data(data).and_then(HashMap::try_from).expect("a hash map")
    }

    pub fn ct6(&self) -> HashMap<MapData, CtKey6, CtEntry6> {
        let data = MapData::from_pin(self.pins.maps().join("hawser_ct6")).expect("the map");
        Map::from_map_data(data).and_then(HashMap::try_from).expect("a hash map")
    }

    pub fn counted(&self, wanted: u32) -> u64 {
        let all = self.maps.metrics().expect("reads");
        all.iter().filter(|record| record.reason == wanted).map(|record| record.value.packets).sum()
    }
}
