//! Packets through the real programs by `BPF_PROG_TEST_RUN`: Services entered at the uplink, by tc and by XDP.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};

use aya::maps::{HashMap, MapData};
use common::node::{CLIENT, CLIENT_MAC, HERE, NODE, Node, OTHER, OTHER_MAC, THERE, UPLINK_MAC};
use common::packet::{Packet, Transport, read6, udp6};
use common::{Cgroup, isolated, run};
use hawser_ebpf_common::ct::{CtEntry4, CtKey4};
use hawser_ebpf_common::endpoint::Endpoint4;
use hawser_ebpf_common::lb::{
    SERVICE_DROP_IF_EMPTY, SERVICE_DSR, SERVICE_EXTERNAL_LOCAL, SERVICE_INTERNAL_LOCAL, SERVICE_TWO_SCOPES,
};
use hawser_ebpf_common::metrics::reason;
use hawser_proxy::config::Xdp;
use hawser_proxy::maps::Op;
use hawser_proxy::programs::Programs;
use hawser_proxy::types::{L4Addr, Protocol, address_be};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What programs return.
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

fn node_port(protocol: Protocol) -> L4Addr {
    L4Addr::new(NODE, 30_080, protocol)
}

fn parsed(bytes: &[u8]) -> Packet {
    Packet::parse(bytes).expect("a good packet")
}

/// Both hooks of the uplink and what each says when it sends a packet away itself.
const HOOKS: [(&str, u32); 2] = [("xdp_uplink", XDP_TX), ("from_uplink", REDIRECT)];

#[test]
fn a_backend_on_another_node_sees_this_node() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            node.frontend(
                protocol.number().into(),
                node_port(protocol),
                0,
                [&[L4Addr::new(THERE, 8080, protocol)], &[]],
            );
            for (hook, away) in HOOKS {
                let sent = node.packet(node_port(protocol));
                let (code, bytes) = node.run(hook, &sent.bytes());
                let got = parsed(&bytes);
                assert_eq!(code, away, "{hook} {protocol}");
                assert_eq!((got.source.0, got.destination), (NODE, (THERE, 8080)), "{hook} {protocol}");
                assert!(got.source.1 >= 61_000, "a port of the node's range: {}", got.source.1);
                assert_eq!((got.ttl, &got.transport), (sent.ttl - 1, &sent.transport));
                // The next packet, of the known flow, by either hook.
                for (hook, away) in HOOKS {
                    let next = Packet { transport: sent.transport.next(), ..sent.clone() };
                    let (code, bytes) = node.run(hook, &next.bytes());
                    let again = parsed(&bytes);
                    assert_eq!((code, again.source, again.destination), (away, got.source, got.destination));
                    if hook == "xdp_uplink" {
                        assert_eq!(again.macs, (OTHER_MAC, UPLINK_MAC), "the next hop's link-layer address");
                    }
                    let (code, bytes) = node.run(hook, &Packet::answer(&got).bytes());
                    let back = parsed(&bytes);
                    assert_eq!((code, back.source, back.destination), (away, (NODE, 30_080), sent.source));
                    if hook == "xdp_uplink" {
                        assert_eq!(back.macs, (CLIENT_MAC, UPLINK_MAC));
                    }
                }
                // Somebody on the way to the client says that an answer was too big: the backend must hear of it.
                let answer =
                    Packet { source: sent.destination, destination: sent.source, ..Packet::answer(&got) };
                let error = Packet { destination: (NODE, 0), ..Packet::error(&answer, CLIENT) };
                assert_eq!(node.run("xdp_uplink", &error.bytes()).0, XDP_PASS, "tc's");
                let (code, bytes) = node.run("from_uplink", &error.bytes());
                let told = parsed(&bytes);
                assert_eq!((code, told.destination.0), (REDIRECT, THERE));
                let Transport::Icmp { quoted, .. } = &told.transport else { panic!("{told:?}") };
                assert_eq!(quoted[12..16], THERE.octets(), "quotes what the backend sent");
                assert_eq!(quoted[16..20], NODE.octets());
                assert_eq!(quoted[22..24], got.source.1.to_be_bytes());
            }
        }
    });
}

/// The address for pods that ask themselves is of no use beyond the node.
#[test]
fn a_backend_that_asks_itself_through_another_node_sees_that_node() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        for (id, port, flags) in [(1, 30_080, 0), (2, 30_090, SERVICE_DSR)] {
            let to = L4Addr::new(NODE, port, Protocol::Tcp);
            node.frontend(id, to, flags, [&[L4Addr::new(THERE, 8080, Protocol::Tcp)], &[]]);
            for (hook, away) in HOOKS {
                let sent = Packet { source: (THERE, 40_000 + node.port), ..node.packet(to) };
                let (code, bytes) = node.run(hook, &sent.bytes());
                let got = parsed(&bytes);
                assert_eq!(
                    (code, got.source.0, got.destination),
                    (away, NODE, (THERE, 8080)),
                    "{hook} {port}"
                );
                let (code, bytes) = node.run(hook, &Packet::answer(&got).bytes());
                let back = parsed(&bytes);
                assert_eq!((code, back.source, back.destination), (away, (NODE, port), sent.source));
            }
        }
    });
}

/// The same of IPv6, by either hook.
#[test]
fn both_hooks_forward_ipv6() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        node.add_ipv6();
        let address = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
        let (own, there, client) = (address("fd00::11"), address("fd00:244:2::9"), address("fd00::1"));
        let to = L4Addr::new(address("fd00::200"), 53, Protocol::Udp);
        node.frontend(1, to, 0, [&[L4Addr::new(there, 5353, Protocol::Udp)], &[]]);
        for (hook, away) in HOOKS {
            let source = (client, if hook == "xdp_uplink" { 4000 } else { 4001 });
            let (code, bytes) = node.run(hook, &udp6(source, (address("fd00::200"), 53)));
            let (from, at, hops) = read6(&bytes).expect("a good datagram");
            assert_eq!((code, from.0, at, hops), (away, own, (there, 5353), 63), "{hook}");
            for (hook, away) in HOOKS {
                let (code, bytes) = node.run(hook, &udp6(at, from));
                let back = read6(&bytes).expect("a good datagram");
                assert_eq!((code, back), (away, ((address("fd00::200"), 53), source, 63)), "{hook}");
            }
        }
        // What is for this node, and what is no datagram or stream, is the stack's.
        let other = udp6((client, 1), (own, 1));
        assert_eq!(node.run("xdp_uplink", &other), (XDP_PASS, other));
    });
}

#[test]
fn a_backend_on_this_node_sees_the_client() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        let to = node_port(Protocol::Tcp);
        node.frontend(1, to, 0, [&[L4Addr::new(HERE, 8080, Protocol::Tcp)], &[]]);
        let sent = node.packet(to);
        let (code, bytes) = node.run("xdp_uplink", &sent.bytes());
        assert_eq!((code, &bytes), (XDP_PASS, &sent.bytes()), "up to tc, untouched");
        let (code, bytes) = node.run("from_uplink", &sent.bytes());
        let got = parsed(&bytes);
        assert_eq!((code, got.source, got.destination), (REDIRECT, sent.source, (HERE, 8080)));
        let (code, bytes) = node.run("from_pod", &Packet::answer(&got).bytes());
        let back = parsed(&bytes);
        assert_eq!((code, back.source, back.destination), (REDIRECT, (NODE, 30_080), sent.source));
    });
}

/// `externalTrafficPolicy: Local` decides for those outside; those inside get the whole cluster's endpoints. Where a policy
/// of Local finds nobody, packets are dropped while another node has endpoints.
#[test]
fn policies_of_local() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        let to = node_port(Protocol::Tcp);
        let there = [L4Addr::new(THERE, 8080, Protocol::Tcp)];
        let flags = SERVICE_TWO_SCOPES | SERVICE_EXTERNAL_LOCAL | SERVICE_DROP_IF_EMPTY;
        node.frontend(1, to, flags, [&there, &[]]);
        for hook in ["xdp_uplink", "from_uplink"] {
            let sent = node.packet(to);
            let code = node.run(hook, &sent.bytes()).0;
            assert_eq!(code, if hook == "xdp_uplink" { 1 } else { SHOT }, "{hook} drops without a word");
        }
        assert_eq!(node.counted(reason::NO_LOCAL_BACKEND), 2);
        let from_pod = Packet { source: (HERE, 1234), ..node.packet(to) };
        let (code, bytes) = node.run("from_pod", &from_pod.bytes());
        assert_eq!((code, parsed(&bytes).destination.0), (REDIRECT, THERE));
        // The same of the inside policy, for whoever asks.
        let cluster = L4Addr::new(Ipv4Addr::new(10, 96, 0, 9), 80, Protocol::Tcp);
        node.frontend(3, cluster, SERVICE_INTERNAL_LOCAL | SERVICE_DROP_IF_EMPTY, [&[], &[]]);
        let sent = Packet { source: (HERE, 1235), ..node.packet(cluster) };
        assert_eq!(node.run("from_pod", &sent.bytes()).0, SHOT);
        let sent = node.packet(cluster);
        assert_eq!(node.run("from_uplink", &sent.bytes()).0, SHOT);
        assert_eq!(node.counted(reason::NO_LOCAL_BACKEND), 4);
        // Nobody anywhere: refused, by tc.
        node.frontend(2, L4Addr::new(NODE, 30_081, Protocol::Tcp), 0, [&[], &[]]);
        let sent = node.packet(L4Addr::new(NODE, 30_081, Protocol::Tcp));
        assert_eq!(node.run("xdp_uplink", &sent.bytes()).0, XDP_PASS);
        let (code, bytes) = node.run("from_uplink", &sent.bytes());
        assert_eq!(code, REDIRECT);
        let Transport::Tcp { flags, .. } = parsed(&bytes).transport else { panic!("not TCP") };
        assert_eq!(flags, 0x14, "RST and ACK");
    });
}

/// The option that names a frontend may name the cluster's own only.
#[test]
fn a_made_up_frontend_is_not_accepted() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        let frontend = L4Addr::new(Ipv4Addr::new(172, 16, 0, 1), 80, Protocol::Tcp);
        let arriving = |name: Ipv4Addr| {
            let mut frame = Packet::new((CLIENT, 4000), (HERE, 8080), Protocol::Tcp).bytes();
            let option = [&[0x9a, 8, 0, 80][..], &name.octets()].concat();
            frame.splice(34..34, option);
            frame[14] = 0x47;
            let length = (frame.len() - 14) as u16;
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            common::packet::fix_header_of(&mut frame, 28);
            frame
        };
        // Nobody's, a Service's that is not for direct return, and then for it; another node's address.
        let foreign = arriving(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(node.run("from_uplink", &foreign).0, SHOT);
        node.frontend(1, frontend, 0, [&[L4Addr::new(HERE, 8080, Protocol::Tcp)], &[]]);
        let named = arriving(Ipv4Addr::new(172, 16, 0, 1));
        assert_eq!(node.run("from_uplink", &named).0, SHOT);
        assert_eq!(node.counted(reason::FOREIGN_FRONTEND), 2);
        node.frontend(1, frontend, SERVICE_DSR, [&[L4Addr::new(HERE, 8080, Protocol::Tcp)], &[]]);
        for frame in [named, arriving(OTHER)] {
            let (code, bytes) = node.run("from_uplink", &frame);
            let got = parsed(&bytes);
            assert_eq!((code, got.source, got.destination), (REDIRECT, (CLIENT, 4000), (HERE, 8080)));
        }
    });
}

/// Direct server return: one program plays the load balancer's node, then the backend's.
#[test]
fn direct_server_return() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = L4Addr::new(NODE, 30_090, protocol);
            node.frontend(
                protocol.number().into(),
                to,
                SERVICE_DSR,
                [&[L4Addr::new(THERE, 8080, protocol)], &[]],
            );
            for (hook, away) in HOOKS {
                let sent = node.packet(to);
                let (code, bytes) = node.run(hook, &sent.bytes());
                assert_eq!((code, bytes[14]), (away, 0x47), "{hook} {protocol}: with an option");
                assert_eq!(bytes[34..42], [0x9a, 8, 0x75, 0x8a, 10, 0, 0, 11]);
                assert_eq!(bytes[26..34], [10, 0, 0, 1, 10, 244, 2, 9], "client to backend");
                assert_eq!(usize::from(u16::from_be_bytes([bytes[16], bytes[17]])), bytes.len() - 14);
                // On the backend's node the backend is local. The same map serves for both nodes here.
                let pod = Endpoint4 { ifindex: 1, pod_mac: [6; 6], host_mac: [4; 6], ..Endpoint4::default() };
                node.apply(Op::PutEndpoint { address: THERE.into(), value: pod });
                let (code, arrived) = node.run("from_uplink", &bytes);
                let got = parsed(&arrived);
                assert_eq!((code, got.source, got.destination), (REDIRECT, sent.source, (THERE, 8080)));
                assert_eq!(got.transport, sent.transport);
                let (code, back) = node.run("from_pod", &Packet::answer(&got).bytes());
                let back = parsed(&back);
                assert_eq!((code, back.source, back.destination), (REDIRECT, (NODE, 30_090), sent.source));
                node.apply(Op::DeleteEndpoint { address: THERE.into() });
                if protocol == Protocol::Tcp {
                    let next = Packet { transport: sent.transport.next(), ..sent.clone() };
                    let (code, bytes) = node.run(hook, &next.bytes());
                    let next = parsed(&bytes);
                    assert_eq!((code, next.source, next.destination), (away, sent.source, (THERE, 8080)));
                }
            }
        }
    });
}

/// Later fragments have no ports: they follow the first one.
#[test]
fn fragments_follow_the_first() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        let to = node_port(Protocol::Udp);
        node.frontend(1, to, 0, [&[L4Addr::new(THERE, 8080, Protocol::Udp)], &[]]);
        let mut sent = node.packet(to);
        sent.transport = Transport::Udp { payload: vec![7; 3000] };
        let whole = sent.bytes();
        let parts = fragments(&whole, 1480);
        let (code, _) = node.run("from_uplink", &parts[1]);
        assert_ne!(code, REDIRECT, "a later fragment alone names no flow");
        let out: Vec<Vec<u8>> = parts
            .iter()
            .map(|part| {
                assert_eq!(node.run("xdp_uplink", part).0, XDP_PASS);
                let (code, bytes) = node.run("from_uplink", part);
                assert_eq!(code, REDIRECT);
                bytes
            })
            .collect();
        let got = parsed(&reassembled(&out));
        assert_eq!((got.source.0, got.destination), (NODE, (THERE, 8080)));
        assert_eq!(got.transport, sent.transport);
    });
}

/// Cuts a frame's IPv4 payload into fragments.
fn fragments(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let payload = &frame[34..];
    let count = payload.len().div_ceil(size);
    let cut = |(number, part): (usize, &[u8])| {
        let mut bytes = frame[..34].to_vec();
        bytes[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
        let more = if number + 1 < count { 0x2000 } else { 0 };
        bytes[20..22].copy_from_slice(&(more | (number * size / 8) as u16).to_be_bytes());
        common::packet::fix_header(&mut bytes);
        bytes.extend(part);
        bytes
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// The reverse, for fragments in order.
fn reassembled(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = parts[0][..34].to_vec();
    for part in parts {
        whole.extend(&part[34..]);
    }
    let len = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&len.to_be_bytes());
    whole[20..22].copy_from_slice(&[0x40, 0]);
    common::packet::fix_header(&mut whole);
    whole
}

/// A map that evicts what is old must never send one flow's packets into another's connection.
#[test]
fn an_evicted_answer_is_made_again_and_a_taken_one_ends_the_flow() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        let to = node_port(Protocol::Tcp);
        node.frontend(1, to, 0, [&[L4Addr::new(THERE, 8080, Protocol::Tcp)], &[]]);
        let sent = node.packet(to);
        let next = Packet { transport: sent.transport.next(), ..sent.clone() };
        let got = parsed(&node.run("xdp_uplink", &sent.bytes()).1);
        let key = CtKey4 {
            saddr_be: address_be(THERE),
            daddr_be: address_be(NODE),
            sport_be: 8080u16.to_be(),
            dport_be: got.source.1.to_be(),
            protocol: 6,
            pad: [0; 3],
        };
        let mut ct = node.ct();
        let reply = ct.get(&key, 0).expect("an entry for answers");
        // What was found in the same second still holds.
        let forward = CtKey4 {
            saddr_be: address_be(CLIENT),
            daddr_be: address_be(NODE),
            sport_be: sent.source.1.to_be(),
            dport_be: to.port.to_be(),
            ..key
        };
        let flow = ct.get(&forward, 0).expect("the flow");
        let age = |ct: &mut HashMap<MapData, CtKey4, CtEntry4>| {
            let entry = ct.get(&forward, 0).expect("the flow");
            ct.insert(forward, CtEntry4 { last_seen_ns: 0, ..entry }, 0).expect("writes");
        };
        ct.remove(&key).expect("evicted");
        age(&mut ct);
        assert_eq!(node.run("xdp_uplink", &next.bytes()).0, XDP_TX);
        assert_eq!(ct.get(&key, 0).expect("made again").new_daddr_be, reply.new_daddr_be);
        ct.insert(key, CtEntry4 { new_dport_be: 1u16.to_be(), ..reply }, 0).expect("another's");
        age(&mut ct);
        assert_eq!(node.run("from_uplink", &next.bytes()).0, SHOT);
        assert_eq!(node.counted(reason::NAT_CONFLICT), 1);
        // The client may use its port again, and what it opens then is no part of that flow.
        ct.insert(forward, CtEntry4 { last_seen_ns: 0, ..flow }, 0).expect("writes");
        let (code, bytes) = node.run("from_uplink", &sent.bytes());
        assert_ne!(code, SHOT);
        assert_ne!(parsed(&bytes).source.1, got.source.1, "a port of its own");
        assert_eq!(node.counted(reason::NAT_CONFLICT), 1);
    });
}

/// Ports run out, and it is counted.
#[test]
fn source_ports_run_out() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        let to = node_port(Protocol::Udp);
        node.frontend(1, to, 0, [&[L4Addr::new(THERE, 8080, Protocol::Udp)], &[]]);
        let mut ct = node.ct();
        let entry = CtEntry4 { new_daddr_be: 1, flags: 1, last_seen_ns: u64::MAX / 2, ..CtEntry4::default() };
        for port in 61_000..=u16::MAX {
            let key = CtKey4 {
                saddr_be: address_be(THERE),
                daddr_be: address_be(NODE),
                sport_be: 8080u16.to_be(),
                dport_be: port.to_be(),
                protocol: 17,
                pad: [0; 3],
            };
            ct.insert(key, entry, 0).expect("writes");
        }
        let sent = node.packet(to);
        assert_eq!(node.run("from_uplink", &sent.bytes()).0, SHOT);
        assert_eq!(node.counted(reason::NO_NAT_PORT), 1);
    });
}

#[test]
fn announced_addresses_are_answered_for() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        let vip = Ipv4Addr::new(10, 0, 0, 100);
        let ask = |target: Ipv4Addr| {
            let mut frame = [[0xff; 6], CLIENT_MAC].concat();
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(CLIENT_MAC);
            frame.extend(CLIENT.octets());
            frame.extend([0; 6]);
            frame.extend(target.octets());
            frame
        };
        let (code, bytes) = node.run("from_uplink", &ask(vip));
        assert_eq!((code, bytes), (u32::MAX, ask(vip)), "not announced: the stack's");
        node.apply(Op::PutAnnounced { address: vip.into() });
        let (code, bytes) = node.run("from_uplink", &ask(vip));
        assert_eq!(code, REDIRECT);
        assert_eq!(bytes[..12], [CLIENT_MAC, UPLINK_MAC].concat());
        assert_eq!(bytes[20..22], [0, 2], "a reply");
        assert_eq!(bytes[22..28], UPLINK_MAC);
        assert_eq!(bytes[28..32], vip.octets());
        assert_eq!(bytes[32..42], [&CLIENT_MAC[..], &CLIENT.octets()].concat());
    });
}

/// SCTP's checksum covers the ports, which the programs therefore leave alone, and not the addresses.
#[test]
fn sctp_keeps_its_ports() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        let to = node_port(Protocol::Sctp);
        let other = L4Addr::new(NODE, 30_081, Protocol::Sctp);
        node.frontend(1, to, 0, [&[L4Addr::new(HERE, 30_080, Protocol::Sctp)], &[]]);
        node.frontend(2, other, 0, [&[L4Addr::new(HERE, 9899, Protocol::Sctp)], &[]]);
        let frame = |port: u16| {
            let mut sctp = vec![7; 40];
            sctp[2..4].copy_from_slice(&port.to_be_bytes());
            common::packet::ipv4(132, CLIENT, NODE, &sctp)
        };
        let (code, bytes) = node.run("from_uplink", &frame(to.port));
        assert_eq!((code, &bytes[30..34]), (REDIRECT, &HERE.octets()[..]));
        assert_eq!(bytes[34..], frame(to.port)[34..], "the message is as it was");
        assert_eq!(node.run("from_uplink", &frame(other.port)).0, SHOT);
        assert_eq!(node.counted(reason::SCTP_PORT), 1);
    });
}

/// Those too that an agent loads only when it is told to; each is attached as an agent does it, and again as the next agent
/// does. Before Linux 6.6 that is by netlink.
#[test]
fn every_program_loads_and_attaches() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        for name in ["from_tunnel", "to_tunnel", "from_pod", "to_pod", "from_uplink", "to_uplink"] {
            node.programs.classifier(name).expect("passes the verifier");
        }
        for name in ["xdp_uplink", "xdp_pass"] {
            node.programs.xdp(name).expect("passes the verifier");
        }
        run("ip link add tunnel0 type veth peer name pod0");
        let cgroup = Cgroup::new();
        let next = Programs::load(&node.pins).expect("the next agent's load");
        for programs in [&mut node.programs, &mut { next }] {
            programs.attach_cgroup(cgroup.path()).expect("the hooks");
            programs.attach_pod("pod0").expect("a pod");
            programs.attach_uplink("up0").expect("the uplink");
            programs.attach_tunnel(Some("tunnel0")).expect("the tunnel");
            programs.attach_xdp("up0", Xdp::Generic, true).expect("XDP");
        }
    });
}

/// Whatever comes in: each program ends, and what it sends on has right checksums if what came in had.
#[test]
fn random_packets_come_to_no_harm() {
    isolated(|dir| {
        let mut node = Node::new(dir);
        for (id, protocol) in [(1, Protocol::Tcp), (2, Protocol::Udp), (3, Protocol::Sctp)] {
            let backends = [L4Addr::new(THERE, 8080, protocol), L4Addr::new(HERE, 8080, protocol)];
            node.frontend(id, node_port(protocol), 0, [&backends, &[]]);
            let dsr = L4Addr::new(NODE, 30_090, protocol);
            node.frontend(id + 10, dsr, SERVICE_DSR, [&backends, &[]]);
        }
        let node = std::cell::RefCell::new(node);
        const PROGRAMS: [&str; 7] =
            ["xdp_uplink", "from_uplink", "to_uplink", "from_pod", "to_pod", "from_tunnel", "to_tunnel"];
        let mutation = (0usize..90, any::<u8>());
        let strategy = (
            prop::sample::select(&PROGRAMS[..]),
            prop::sample::select(&[NODE, HERE, THERE, CLIENT][..]),
            prop::sample::select(&[NODE, HERE, THERE, CLIENT][..]),
            prop::sample::select(&[30_080u16, 30_090, 8080, 61_005][..]),
            1u16..5,
            any::<bool>(),
            prop::collection::vec(mutation, 0..6),
            34usize..120,
        );
        let config = Config { cases: 4000, failure_persistence: None, ..Config::default() };
        let result = TestRunner::new(config).run(
            &strategy,
            |(program, from, to, port, source_port, tcp, mutations, len)| {
                let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
                let mut bytes = Packet::new((from, source_port), (to, port), protocol).bytes();
                for (at, value) in &mutations {
                    if let Some(byte) = bytes.get_mut(*at) {
                        *byte = *value;
                    }
                }
                bytes.truncate(len.max(34));
                let was_good = Packet::parse(&bytes).is_ok();
                let (code, out) = node.borrow_mut().run(program, &bytes);
                let known = [0, 1, 2, 3, 4, REDIRECT, u32::MAX];
                prop_assert!(known.contains(&code), "{program} returned {code}");
                // A frame with an option of ours is longer; its inner part is checked where it arrives.
                if was_good && out[14] == 0x45 {
                    prop_assert!(Packet::parse(&out).is_ok(), "{program}: {:?}", Packet::parse(&out));
                }
                Ok(())
            },
        );
        if let Err(failure) = result {
            panic!("{failure}");
        }
    });
}
