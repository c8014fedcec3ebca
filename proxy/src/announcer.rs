//! Tells the link where an address is now: when this node begins to answer for one, hosts that know it elsewhere must
//! forget that at once. By an ARP announcement (RFC 5227, 2.3) or an unsolicited neighbour advertisement (RFC 4861,
//! 7.2.6), repeated because nobody acknowledges it. Requests are answered by the program on the uplink.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hawser_ebpf_common::PROTO_ICMP6;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::sys::PacketSocket;

/// How often an address is told of: RFC 4861's MAX_NEIGHBOR_ADVERTISEMENT; RFC 5227 wants two.
const TIMES: u8 = 3;
/// RFC 4861's RETRANS_TIMER.
const INTERVAL: Duration = Duration::from_secs(1);
const BROADCAST: [u8; 6] = [0xff; 6];
/// 33:33 and the last four bytes of ff02::1 (RFC 2464, 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Where announcements are sent.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Number of the interface.
    pub index: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
}

/// The frame that tells a link where an address is.
pub fn frame(address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(address, mac),
        IpAddr::V6(address) => advertisement(address, mac),
    }
}

/// A request whose sender and target are the address itself.
fn arp(address: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let ip = address.octets();
    let ethernet = [&BROADCAST[..], &mac, &[8, 6]].concat();
    [&ethernet[..], &[0, 1, 8, 0, 6, 4, 0, 1], &mac, &ip, &[0; 6], &ip].concat()
}

fn advertisement(address: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    // Type 136, "override", the target, and its link-layer address as an option.
    let mut message = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &address.octets(), &[2, 1], &mac].concat();
    let length = message.len() as u8;
    let pseudo =
        [&address.octets()[..], &ALL_NODES.octets(), &[0, 0, 0, length, 0, 0, 0, PROTO_ICMP6]].concat();
    let sum = !folded_sum(&[pseudo, message.clone()].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let ethernet = [&ALL_NODES_MAC[..], &mac, &[0x86, 0xdd]].concat();
    // Hop limit 255: it came through no router.
    let ip =
        [&[0x60, 0, 0, 0, 0, length, PROTO_ICMP6, 255][..], &address.octets(), &ALL_NODES.octets()].concat();
    [ethernet, ip, message].concat()
}

/// The internet checksum's sum (RFC 1071) of an even number of bytes.
fn folded_sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sends what is due until cancelled. `changes`: an address, and whether this node answers for it now.
pub async fn run(link: Link, mut changes: mpsc::UnboundedReceiver<(IpAddr, bool)>, token: CancellationToken) {
    let mut due: BTreeMap<IpAddr, u8> = BTreeMap::new();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = token.cancelled() => return,
            change = changes.recv() => match change {
                Some((address, true)) => {
                    due.insert(address, TIMES);
                    next = Instant::now();
                }
                Some((address, false)) => drop(due.remove(&address)),
                None => return,
            },
            () = sleep_until(next), if !due.is_empty() => {
                if let Err(error) = send(link, due.keys()) {
                    tracing::warn!(%error, "announcing addresses on the link; trying again");
                }
                due.retain(|_, left| {
                    *left -= 1;
                    *left > 0
                });
                next = Instant::now() + INTERVAL;
            }
        }
    }
}

fn send<'a>(link: Link, addresses: impl Iterator<Item = &'a IpAddr>) -> io::Result<()> {
    let socket = PacketSocket::open()?;
    let mut result = Ok(());
    for address in addresses {
        result = result.and(socket.send(link.index, &frame(*address, link.mac)));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn an_announcement_of_each_family() {
        let v4 = frame(Ipv4Addr::new(192, 0, 2, 7).into(), MAC);
        assert_eq!(v4[..14], [&BROADCAST[..], &MAC, &[8, 6]].concat());
        assert_eq!(v4[20..22], [0, 1], "a request");
        assert_eq!((&v4[28..32], &v4[38..42]), (&[192, 0, 2, 7][..], &[192, 0, 2, 7][..]));
        let address: Ipv6Addr = "2001:db8::7".parse().expect("an address");
        let v6 = frame(address.into(), MAC);
        assert_eq!(v6.len(), 14 + 40 + 32);
        assert_eq!((v6[20], v6[21], v6[54]), (PROTO_ICMP6, 255, 136));
        assert_eq!(v6[62..78], address.octets());
        assert_eq!(v6[78..86], [&[2, 1][..], &MAC].concat());
        let pseudo = [&v6[22..54], &[0, 0, 0, 32, 0, 0, 0, PROTO_ICMP6][..], &v6[54..]].concat();
        assert_eq!(folded_sum(&pseudo), 0xffff, "a right checksum");
    }
}
