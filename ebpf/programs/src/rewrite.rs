//! Rewriting addresses and ports, with all checksums.

use hawser_ebpf_common::ct::CtKey;
use hawser_ebpf_common::metrics::reason;
use hawser_ebpf_common::{PROTO_SCTP, PROTO_TCP, PROTO_UDP};

use crate::ct::Rewrite;
use crate::family::Family;
use crate::far;
use crate::frame::{Change, Covered, Frame};
use crate::packet::{ETH_LEN, Packet, Part, Quoted, quoted_l3};

const IP_CHECKSUM: usize = 10;

/// Where the transport header lies. At XDP the verifier must see a number there, and so only plain packets come so far.
#[inline(always)]
fn l4<F: Family, P: Frame>(packet: &Packet<F::Address>) -> usize {
    if P::PLAIN { ETH_LEN + F::HEADER_LEN } else { packet.l4 }
}

/// Where the ports lie: for ICMP echo both are the identifier.
#[inline(always)]
fn port_offsets<F: Family>(protocol: u8, l4: usize) -> (usize, usize) {
    if protocol == F::ICMP { (l4 + 4, l4 + 4) } else { (l4, l4 + 2) }
}

/// Applies a CT entry; the packet's tuple is then the new one.
#[inline(always)]
pub fn rewrite<F: Family, P: Frame>(
    frame: &P,
    packet: &mut Packet<F::Address>,
    to: &Rewrite<F::Address>,
) -> Result<(), u32> {
    far::unpack_unit(rewrite_far::<F, P>(frame, packet, to))
}

#[inline(never)]
fn rewrite_far<F: Family, P: Frame>(
    frame: &P,
    packet: &mut Packet<F::Address>,
    to: &Rewrite<F::Address>,
) -> u64 {
    far::pack_unit(rewrite_near::<F, P>(frame, packet, to))
}

#[inline(always)]
fn rewrite_near<F: Family, P: Frame>(
    frame: &P,
    packet: &mut Packet<F::Address>,
    to: &Rewrite<F::Address>,
) -> Result<(), u32> {
    let old = packet.tuple;
    let mut addresses = Change::NONE;
    if old.saddr_be != to.saddr_be {
        addresses = F::change(addresses, old.saddr_be, to.saddr_be);
        packet.tuple.saddr_be = to.saddr_be;
    }
    if old.daddr_be != to.daddr_be {
        addresses = F::change(addresses, old.daddr_be, to.daddr_be);
        packet.tuple.daddr_be = to.daddr_be;
    }
    let mut ports = Change::NONE;
    if old.sport_be != to.sport_be {
        ports = ports.half(old.sport_be, to.sport_be);
        packet.tuple.sport_be = to.sport_be;
    }
    if old.dport_be != to.dport_be {
        ports = ports.half(old.dport_be, to.dport_be);
        packet.tuple.dport_be = to.dport_be;
    }
    if packet.part != Part::Later {
        fix_transport::<F, P>(frame, packet, &old, addresses, ports)?;
        let (sport, dport) = port_offsets::<F>(old.protocol, l4::<F, P>(packet));
        if old.sport_be != to.sport_be {
            frame.store(sport, &to.sport_be)?;
        }
        if old.dport_be != to.dport_be {
            frame.store(dport, &to.dport_be)?;
        }
    }
    if !addresses.is_none() {
        if !F::V6 {
            frame.fix_header(ETH_LEN + IP_CHECKSUM, addresses)?;
        }
        if old.saddr_be != to.saddr_be {
            frame.store(ETH_LEN + F::SADDR, &to.saddr_be)?;
        }
        if old.daddr_be != to.daddr_be {
            frame.store(ETH_LEN + F::DADDR, &to.daddr_be)?;
        }
    }
    Ok(())
}

#[inline(always)]
fn fix_transport<F: Family, P: Frame>(
    frame: &P,
    packet: &Packet<F::Address>,
    old: &CtKey<F::Address>,
    addresses: Change,
    others: Change,
) -> Result<(), u32> {
    if addresses.is_none() && others.is_none() {
        return Ok(());
    }
    let l4 = l4::<F, P>(packet);
    let offset = match old.protocol {
        PROTO_TCP => l4 + 16,
        PROTO_UDP => l4 + 6,
        // SCTP's CRC32c covers the ports and no address.
        PROTO_SCTP if others.is_none() => return Ok(()),
        PROTO_SCTP => return Err(reason::SCTP_PORT),
        _ => l4 + 2,
    };
    // ICMP has no pseudo header, ICMPv6 has one.
    let addresses = if !F::V6 && old.protocol == F::ICMP { Change::NONE } else { addresses };
    let covered = Covered { addresses, others, optional: old.protocol == PROTO_UDP, v6: F::V6 };
    frame.fix_transport(offset, &covered)
}

/// Translates an ICMP error with the entry of the flow's other direction: the quoted packet becomes what
/// its sender sent, and the error goes to that sender.
#[inline(always)]
pub fn rewrite_error<F: Family, P: Frame>(
    frame: &P,
    packet: &mut Packet<F::Address>,
    quoted: &Quoted<F::Address>,
    to: &Rewrite<F::Address>,
) -> Result<(), u32> {
    let old = quoted.tuple;
    let l3 = quoted_l3(packet);
    let inner = F::change(F::change(Change::NONE, old.saddr_be, to.daddr_be), old.daddr_be, to.saddr_be);
    let ports = Change::NONE.half(old.sport_be, to.dport_be).half(old.dport_be, to.sport_be);
    // In IPv4 the quoted header's own checksum makes up for the addresses, so that the outer sum stays right.
    let mut covered = ports;
    if F::V6 {
        covered = covered.and(inner);
    } else {
        frame.fix_header(l3 + IP_CHECKSUM, inner)?;
    }
    frame.store(l3 + F::SADDR, &to.daddr_be)?;
    frame.store(l3 + F::DADDR, &to.saddr_be)?;
    let (sport, dport) = port_offsets::<F>(old.protocol, quoted.l4);
    if old.protocol == F::ICMP {
        let id = if old.dport_be == 0 { to.dport_be } else { to.sport_be };
        frame.store(sport, &id)?;
    } else {
        frame.store(sport, &to.dport_be)?;
        frame.store(dport, &to.sport_be)?;
    }
    let mut outer = Change::NONE;
    // Written by the one who got the packet: it goes by the name that the sender knows.
    if packet.tuple.saddr_be == old.daddr_be {
        outer = F::change(outer, old.daddr_be, to.saddr_be);
        packet.tuple.saddr_be = to.saddr_be;
        frame.store(ETH_LEN + F::SADDR, &to.saddr_be)?;
    }
    outer = F::change(outer, packet.tuple.daddr_be, to.daddr_be);
    packet.tuple.daddr_be = to.daddr_be;
    frame.store(ETH_LEN + F::DADDR, &to.daddr_be)?;
    if !F::V6 {
        frame.fix_header(ETH_LEN + IP_CHECKSUM, outer)?;
        outer = Change::NONE;
    }
    let covered = Covered { addresses: outer, others: covered, optional: false, v6: F::V6 };
    frame.fix_transport(packet.l4 + 2, &covered)
}

/// One hop less. The caller has seen that the limit is above 1.
#[inline(always)]
pub fn decrement_ttl<F: Family, P: Frame>(frame: &P, packet: &Packet<F::Address>) -> Result<(), u32> {
    if F::V6 {
        return frame.store(ETH_LEN + F::TTL, &(packet.ttl - 1));
    }
    let checksum: u16 = frame.load(ETH_LEN + IP_CHECKSUM)?;
    frame.store(ETH_LEN + F::TTL, &one_less(packet, checksum))
}

/// The words of an IPv4 header with the limit and the protocol, and with the checksum, after one hop more.
#[inline(always)]
fn one_less<A>(packet: &Packet<A>, checksum: u16) -> [u16; 2] {
    let word = |ttl| u16::from_ne_bytes([ttl, packet.tuple.protocol]);
    let (old, new) = (word(packet.ttl), word(packet.ttl - 1));
    [new, Change::NONE.half(old, new).apply(checksum)]
}

/// One hop less, and the link-layer addresses of the next. IPv4 in one write, because each is a call at tc.
#[inline(always)]
pub fn hand_on<F: Family, P: Frame>(
    frame: &P,
    packet: &Packet<F::Address>,
    to: [u8; 6],
    from: [u8; 6],
) -> Result<(), u32> {
    const TTL_WORD: usize = (ETH_LEN + 8) / 2;
    let word = |mac: [u8; 6], at: usize| u16::from_ne_bytes([mac[at], mac[at + 1]]);
    let macs = [word(to, 0), word(to, 2), word(to, 4), word(from, 0), word(from, 2), word(from, 4)];
    if F::V6 {
        decrement_ttl::<F, P>(frame, packet)?;
        return frame.store(0, &macs);
    }
    let mut head: [u16; TTL_WORD + 2] = frame.load(0)?;
    head[..6].copy_from_slice(&macs);
    let less = one_less(packet, head[TTL_WORD + 1]);
    head[TTL_WORD..].copy_from_slice(&less);
    frame.store(0, &head)
}
