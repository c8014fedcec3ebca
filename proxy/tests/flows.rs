//! XDP's flow cache, with the real programs by `BPF_PROG_TEST_RUN`. Whether a packet came from the cache is seen in connection
//! tracking, which counts it only a second later.

mod common;

use std::net::Ipv6Addr;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, MapData};
use common::node::{CLIENT_MAC, NODE, Node, OTHER_MAC, THERE, UPLINK_MAC};
use common::packet::{End6, Packet, Transport, read6, tcp6};
use common::{eventually, isolated as isolated_anywhere};
use hawser_ebpf_common::PROTO_TCP;
use hawser_ebpf_common::ct::{CT_CLOSING, CtEntry, CtEntry4, CtKey, CtKey4, CtKey6, epoch};
use hawser_ebpf_common::flow::{LINES4, Place, hash4};
use hawser_ebpf_common::lb::SERVICE_DSR;
use hawser_proxy::programs::Programs;
use hawser_proxy::types::{L4Addr, Protocol, address_be, address6_be};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};

const XDP_TX: u32 = 3;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// As the test kit's, on the first CPU: each has lines of its own.
fn isolated(test: impl FnOnce(&Path) + Send + 'static) {
    isolated_anywhere(|dir| {
        let mut cpus = CpuSet::new();
        cpus.set(0).expect("a number");
        sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).expect("a CPU");
        test(dir);
    });
}

/// The programs' clock.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

fn next_epoch() {
    let now = epoch(now_ns());
    eventually("another epoch", || epoch(now_ns()) != now);
}

/// Does something within one epoch: again, in another one, if the clock did not allow it.
fn within_an_epoch<T>(mut what: impl FnMut() -> T) -> T {
    for _ in 0..10 {
        next_epoch();
        let began = epoch(now_ns());
        let done = what();
        if epoch(now_ns()) == began {
            return done;
        }
    }
    panic!("a few packets took more than a second, ten times");
}

fn frontend() -> L4Addr {
    L4Addr::new(NODE, 30_080, Protocol::Tcp)
}

fn with_flags(packet: &Packet, flags: u8) -> Packet {
    Packet { transport: Transport::Tcp { seq: 7, ack: 9, flags }, ..packet.clone() }
}

fn tuple(packet: &Packet) -> CtKey4 {
    CtKey {
        saddr_be: address_be(packet.source.0),
        daddr_be: address_be(packet.destination.0),
        sport_be: packet.source.1.to_be(),
        dport_be: packet.destination.1.to_be(),
        protocol: PROTO_TCP,
        pad: [0; 3],
    }
}

fn tuple6(source: End6, destination: End6) -> CtKey6 {
    CtKey {
        saddr_be: address6_be(source.0),
        daddr_be: address6_be(destination.0),
        sport_be: source.1.to_be(),
        dport_be: destination.1.to_be(),
        protocol: PROTO_TCP,
        pad: [0; 3],
    }
}

fn entry(node: &Node, packet: &Packet) -> CtEntry4 {
    node.ct().get(&tuple(packet), 0).expect("an entry")
}

fn send(node: &mut Node, packet: &Packet) -> Packet {
    let (code, bytes) = node.run("xdp_uplink", &packet.bytes());
    assert_eq!(code, XDP_TX, "{packet:?}");
    Packet::parse(&bytes).expect("a good packet")
}

/// Opens a connection and sends until its packets come from the cache. Returns what the first one became.
fn cached(node: &mut Node, first: &Packet) -> Packet {
    let got = send(node, first);
    let next = send(node, &with_flags(first, ACK));
    assert_eq!((got.source, got.destination), (next.source, next.destination));
    got
}

/// Sends a frame three times: the last time it comes from the cache, and is the same.
fn same_from_the_cache<A: Copy>(
    node: &mut Node,
    ct: &HashMap<MapData, CtKey<A>, CtEntry<A>>,
    key: &CtKey<A>,
    frame: &[u8],
) -> Vec<u8>
where
    CtKey<A>: Pod,
    CtEntry<A>: Pod,
{
    within_an_epoch(|| {
        let counts = |node: &mut Node| {
            let (code, bytes) = node.run("xdp_uplink", frame);
            assert_eq!(code, XDP_TX);
            (ct.get(key, 0).expect("an entry").packets, bytes)
        };
        let first = counts(node);
        let second = counts(node);
        let third = counts(node);
        assert_eq!((second.0, &second.1), (third.0, &first.1), "the third is from the cache");
        assert_eq!(third.1, first.1);
        third.1
    })
}

#[test]
fn packets_from_the_cache_are_as_without_it() {
    isolated(|dir| {
        let mut node = Node::with(dir, Programs::load_for_xdp);
        let ct = node.ct();
        let direct = L4Addr::new(NODE, 30_090, Protocol::Tcp);
        node.frontend(1, frontend(), 0, [&[L4Addr::new(THERE, 8080, Protocol::Tcp)], &[]]);
        node.frontend(2, direct, SERVICE_DSR, [&[L4Addr::new(THERE, 8080, Protocol::Tcp)], &[]]);
        for to in [frontend(), direct] {
            let opening = node.packet(to);
            let (_, opened) = node.run("xdp_uplink", &opening.bytes());
            let next = with_flags(&opening, ACK);
            let got = same_from_the_cache(&mut node, &ct, &tuple(&next), &next.bytes());
            let got = Packet::parse(&got).expect("a good packet");
            assert_eq!((got.destination, got.macs), ((THERE, 8080), (OTHER_MAC, UPLINK_MAC)));
            assert_eq!((got.ttl, &got.transport), (63, &next.transport));
            if to == direct {
                assert_eq!(
                    (got.source, opened[14]),
                    (next.source, 0x47),
                    "only the first tells the frontend"
                );
                continue;
            }
            // What differs in a later packet goes through as it is; its bytes are judged by `parse`.
            let other = Packet { ttl: 9, ..with_flags(&opening, ACK | 8) };
            let other = send(&mut node, &other);
            assert_eq!((other.ttl, other.source, other.destination), (8, got.source, got.destination));
            let answer = with_flags(&Packet::answer(&got), ACK);
            let back = same_from_the_cache(&mut node, &ct, &tuple(&answer), &answer.bytes());
            let back = Packet::parse(&back).expect("a good packet");
            assert_eq!((back.source, back.destination), ((NODE, to.port), opening.source));
            assert_eq!((back.macs, back.ttl), ((CLIENT_MAC, UPLINK_MAC), 62));
        }
    });
}

#[test]
fn packets_of_ipv6_from_the_cache_are_as_without_it() {
    isolated(|dir| {
        let mut node = Node::with(dir, Programs::load_for_xdp);
        node.add_ipv6();
        let ct = node.ct6();
        let address = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
        let (client, vip) = ((address("fd00::1"), 4000), (address("fd00::200"), 80));
        let there = (address("fd00:244:2::9"), 8080);
        let to = L4Addr::new(vip.0, vip.1, Protocol::Tcp);
        node.frontend(1, to, 0, [&[L4Addr::new(there.0, there.1, Protocol::Tcp)], &[]]);
        assert_eq!(node.run("xdp_uplink", &tcp6(client, vip, SYN, b"")).0, XDP_TX);
        let next = tcp6(client, vip, ACK, b"some bytes");
        let got = same_from_the_cache(&mut node, &ct, &tuple6(client, vip), &next);
        let (from, at, hops) = read6(&got).expect("a good packet");
        assert_eq!((from.0, at, hops), (address("fd00::11"), there, 63));
        assert_eq!(
            (&got[..6], &got[58..70], &got[74..]),
            (&OTHER_MAC[..], &next[58..70], &b"some bytes"[..])
        );
        let answer = tcp6(there, from, ACK, b"an answer");
        let back = same_from_the_cache(&mut node, &ct, &tuple6(there, from), &answer);
        assert_eq!(read6(&back), Ok((vip, client, 63)));
    });
}

#[test]
fn connection_tracking_counts_a_second_later() {
    isolated(|dir| {
        let mut node = Node::with(dir, Programs::load_for_xdp);
        node.frontend(1, frontend(), 0, [&[L4Addr::new(THERE, 8080, Protocol::Tcp)], &[]]);
        let (opening, sent) = within_an_epoch(|| {
            let opening = node.packet(frontend());
            let mut sent = [2, 108];
            cached(&mut node, &opening);
            let before = entry(&node, &opening);
            assert_eq!([before.packets, before.bytes], sent);
            for more in 0..5 {
                // Behind the packet is what fills the frame up.
                let mut frame = with_flags(&opening, ACK).bytes();
                frame.extend(vec![0; more]);
                sent = [sent[0] + 1, sent[1] + frame.len() as u64];
                assert_eq!(node.run("xdp_uplink", &frame).0, XDP_TX);
            }
            assert_eq!(entry(&node, &opening), before, "all of these came from the cache");
            (opening, sent)
        });
        next_epoch();
        let now = now_ns();
        send(&mut node, &with_flags(&opening, ACK));
        let after = entry(&node, &opening);
        assert_eq!([after.packets, after.bytes], [sent[0] + 1, sent[1] + 54]);
        assert!(after.last_seen_ns >= now && after.last_seen_ns <= now_ns());
    });
}

/// Three flows for two lines: each keeps its own translation, and no packet of any is forgotten.
#[test]
fn flows_that_share_a_line_are_told_apart() {
    isolated(|dir| {
        // One element of the map for each CPU.
        let mut node = Node::new(dir);
        node.frontend(1, frontend(), 0, [&[L4Addr::new(THERE, 8080, Protocol::Tcp)], &[]]);
        let counted = |node: &Node, flows: &[Flow]| -> Vec<u64> {
            flows.iter().map(|flow| entry(node, &flow.opening).packets).collect()
        };
        let mut flows = within_an_epoch(|| {
            let mut flows = sharing::<3>(&mut node).map(|opening| Flow::open(&mut node, opening));
            for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
                for at in order {
                    flows[at].send(&mut node);
                }
            }
            assert_eq!(counted(&node, &flows), [2, 2, 5], "two have lines, the third has none");
            flows
        });
        next_epoch();
        // The third takes the line of one, whose packets are then told.
        for order in [[2, 2, 2], [2, 1, 0], [0, 1, 2], [2, 0, 1]] {
            for at in order {
                flows[at].send(&mut node);
            }
        }
        next_epoch();
        let sent = [1, 0, 2].map(|at| flows[at].send(&mut node));
        assert_eq!(counted(&node, &flows), [sent[1], sent[0], sent[2]]);
        let ports: std::collections::HashSet<u16> = flows.iter().map(|flow| flow.became.source.1).collect();
        assert_eq!(ports.len(), 3, "three translations, which each packet was held against");
    });
}

/// A connection and what its first packet became.
struct Flow {
    opening: Packet,
    became: Packet,
    sent: u64,
}

impl Flow {
    fn open(node: &mut Node, opening: Packet) -> Self {
        let became = cached(node, &opening);
        Self { opening, became, sent: 2 }
    }

    /// Sends another packet; returns how many it were.
    fn send(&mut self, node: &mut Node) -> u64 {
        let got = send(node, &with_flags(&self.opening, ACK));
        assert_eq!((got.source, got.destination), (self.became.source, self.became.destination));
        self.sent += 1;
        self.sent
    }
}

/// First packets of connections that have the same two lines when the map has one element.
fn sharing<const N: usize>(node: &mut Node) -> [Packet; N] {
    let set = |packet: &Packet| {
        let place = Place::of(hash4(&tuple(packet)), 1, LINES4);
        (place.chunk, place.line / 2)
    };
    let first = node.packet(frontend());
    let others = std::iter::repeat_with(|| node.packet(frontend())).filter(|other| set(other) == set(&first));
    let mut all: Vec<Packet> = others.take(N - 1).collect();
    all.push(first.clone());
    all.try_into().expect("as many as were asked for")
}

/// Connection tracking sees the end of a connection, and every packet from then on.
#[test]
fn what_ends_a_connection_ends_its_line() {
    isolated(|dir| {
        let mut node = Node::with(dir, Programs::load_for_xdp);
        node.frontend(1, frontend(), 0, [&[L4Addr::new(THERE, 8080, Protocol::Tcp)], &[]]);
        for end in [FIN | ACK, RST] {
            within_an_epoch(|| {
                let opening = node.packet(frontend());
                let mut flow = Flow::open(&mut node, opening);
                for _ in 0..3 {
                    flow.send(&mut node);
                }
                assert_eq!(entry(&node, &flow.opening).packets, 2, "the others came from the cache");
                send(&mut node, &with_flags(&flow.opening, end));
                let ended = entry(&node, &flow.opening);
                assert_eq!((ended.packets, ended.flags & CT_CLOSING), (6, CT_CLOSING));
                for packets in 7..10 {
                    flow.send(&mut node);
                    assert_eq!(entry(&node, &flow.opening).packets, packets);
                }
            });
        }
    });
}

/// A flow that connection tracking has forgotten is chosen anew: at the latest a second later, and at once when it is opened
/// again.
#[test]
fn a_forgotten_flow_is_chosen_anew() {
    isolated(|dir| {
        let mut node = Node::with(dir, Programs::load_for_xdp);
        let to = |node: &mut Node, port: u16| {
            node.frontend(1, frontend(), 0, [&[L4Addr::new(THERE, port, Protocol::Tcp)], &[]]);
        };
        let forget = |node: &Node, packet: &Packet| node.ct().remove(&tuple(packet)).expect("was there");
        let flow = within_an_epoch(|| {
            to(&mut node, 8080);
            let opening = node.packet(frontend());
            let flow = Flow::open(&mut node, opening);
            to(&mut node, 9090);
            forget(&node, &flow.opening);
            let got = send(&mut node, &with_flags(&flow.opening, ACK));
            assert_eq!(got.destination.1, 8080, "from the cache");
            flow
        });
        next_epoch();
        for _ in 0..3 {
            let got = send(&mut node, &with_flags(&flow.opening, ACK));
            assert_eq!((got.source.0, got.destination), (NODE, (THERE, 9090)));
        }
        within_an_epoch(|| {
            to(&mut node, 8080);
            let opening = node.packet(frontend());
            let flow = Flow::open(&mut node, opening);
            to(&mut node, 9090);
            forget(&node, &flow.opening);
            let got = Flow::open(&mut node, flow.opening).became;
            assert_eq!(got.destination.1, 9090);
        });
    });
}
