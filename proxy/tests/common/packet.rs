//! Packets, written and read without the code under test.

use std::net::{Ipv4Addr, Ipv6Addr};

use hawser_proxy::types::Protocol;

/// What follows the IPv4 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    Tcp { seq: u32, ack: u32, flags: u8 },
    Udp { payload: Vec<u8> },
    Icmp { kind: u8, code: u8, quoted: Vec<u8> },
}

impl Transport {
    /// The next packet of the same flow.
    pub fn next(&self) -> Self {
        match self {
            Self::Tcp { seq, .. } => Self::Tcp { seq: seq.wrapping_add(1), ack: 1, flags: 0x10 },
            other => other.clone(),
        }
    }
}

/// An Ethernet frame with IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Destination and source.
    pub macs: ([u8; 6], [u8; 6]),
    pub source: (Ipv4Addr, u16),
    pub destination: (Ipv4Addr, u16),
    pub ttl: u8,
    pub transport: Transport,
}

impl Packet {
    /// The first packet of a flow: a SYN, or a datagram.
    pub fn new(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), protocol: Protocol) -> Self {
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp { seq: 0xfeed_beef, ack: 0, flags: 2 },
            Protocol::Udp => Transport::Udp { payload: b"hello, backend".to_vec() },
            Protocol::Sctp => panic!("no packets of SCTP are made"),
        };
        Self { macs: ([0x0e; 6], [0x0a; 6]), source, destination, ttl: 64, transport }
    }

    /// What the one who got this packet sends back.
    pub fn answer(to: &Self) -> Self {
        let transport = match &to.transport {
            Transport::Tcp { seq, .. } => Transport::Tcp { seq: 1, ack: seq.wrapping_add(1), flags: 0x12 },
            other => other.clone(),
        };
        Self { source: to.destination, destination: to.source, transport, ..to.clone() }
    }

    /// An ICMP error about this packet, by someone on its way or at its end.
    pub fn error(about: &Self, by: Ipv4Addr) -> Self {
        let quoted = about.bytes()[14..14 + 28].to_vec();
        let transport = Transport::Icmp { kind: 3, code: 3, quoted };
        Self { source: (by, 0), destination: (about.source.0, 0), transport, ..about.clone() }
    }

    /// The frame, with right checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let (protocol, mut l4, checksum_at) = match &self.transport {
            Transport::Tcp { seq, ack, flags } => {
                let mut l4 = Vec::new();
                l4.extend(self.source.1.to_be_bytes());
                l4.extend(self.destination.1.to_be_bytes());
                l4.extend(seq.to_be_bytes());
                l4.extend(ack.to_be_bytes());
                l4.extend([5 << 4, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                (6, l4, 16)
            }
            Transport::Udp { payload } => {
                let mut l4 = Vec::new();
                l4.extend(self.source.1.to_be_bytes());
                l4.extend(self.destination.1.to_be_bytes());
                l4.extend((8 + payload.len() as u16).to_be_bytes());
                l4.extend([0, 0]);
                l4.extend(payload);
                (17, l4, 6)
            }
            Transport::Icmp { kind, code, quoted } => {
                let mut l4 = vec![*kind, *code, 0, 0, 0, 0, 0, 0];
                l4.extend(quoted);
                (1, l4, 2)
            }
        };
        let sum = match protocol {
            1 => checksum(&[&l4]),
            _ => checksum(&[&pseudo(self.source.0, self.destination.0, protocol, l4.len()), &l4]),
        };
        l4[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![0x45, 0];
        ip.extend((20 + l4.len() as u16).to_be_bytes());
        ip.extend([0x12, 0x34, 0x40, 0, self.ttl, protocol, 0, 0]);
        ip.extend(self.source.0.octets());
        ip.extend(self.destination.0.octets());
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = Vec::new();
        frame.extend(self.macs.0);
        frame.extend(self.macs.1);
        frame.extend([8, 0]);
        frame.extend(ip);
        frame.extend(l4);
        frame
    }

    /// Reads a frame and judges its lengths and checksums.
    pub fn parse(frame: &[u8]) -> Result<Self, String> {
        if frame.len() < 34 || frame[12..14] != [8, 0] || frame[14] != 0x45 {
            return Err(format!("not a plain IPv4 frame: {frame:02x?}"));
        }
        let (ip, l4) = frame[14..].split_at(20);
        if checksum(&[ip]) != 0 {
            return Err("IP checksum".to_string());
        }
        if usize::from(u16::from_be_bytes([ip[2], ip[3]])) != ip.len() + l4.len() {
            return Err(format!("total length: {frame:02x?}"));
        }
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let (from, to, protocol) = (address(12), address(16), ip[9]);
        let word = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        let long = |at: usize| u32::from_be_bytes([l4[at], l4[at + 1], l4[at + 2], l4[at + 3]]);
        let sum = match protocol {
            1 => checksum(&[l4]),
            _ => checksum(&[&pseudo(from, to, protocol, l4.len()), l4]),
        };
        if sum != 0 {
            return Err(format!("transport checksum, off by {sum:#x}: {frame:02x?}"));
        }
        let (ports, transport) = match protocol {
            6 if l4.len() >= 20 => {
                ((word(0), word(2)), Transport::Tcp { seq: long(4), ack: long(8), flags: l4[13] })
            }
            17 if l4.len() >= 8 && usize::from(word(4)) == l4.len() => {
                ((word(0), word(2)), Transport::Udp { payload: l4[8..].to_vec() })
            }
            1 if l4.len() >= 8 => {
                ((0, 0), Transport::Icmp { kind: l4[0], code: l4[1], quoted: l4[8..].to_vec() })
            }
            other => return Err(format!("protocol {other}: {frame:02x?}")),
        };
        let mac = |at: usize| <[u8; 6]>::try_from(&frame[at..at + 6]).map_err(|error| error.to_string());
        Ok(Self {
            macs: (mac(0)?, mac(6)?),
            source: (from, ports.0),
            destination: (to, ports.1),
            ttl: ip[8],
            transport,
        })
    }
}

/// Makes an IPv4 header's checksum right.
pub fn fix_header(frame: &mut [u8]) {
    fix_header_of(frame, 20);
}

/// The same of a header of another length.
pub fn fix_header_of(frame: &mut [u8], len: usize) {
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..14 + len]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// A frame around any payload.
pub fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut frame = [[0x0e; 6], [0x0a; 6]].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((20 + payload.len() as u16).to_be_bytes());
    frame.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    fix_header(&mut frame);
    frame.extend(payload);
    frame
}

/// Address and port of IPv6.
pub type End6 = (Ipv6Addr, u16);

/// A datagram of IPv6.
pub fn udp6(source: End6, destination: End6) -> Vec<u8> {
    let mut udp = [source.1.to_be_bytes(), destination.1.to_be_bytes(), [0, 12], [0, 0]].concat();
    udp.extend(b"data");
    ipv6(17, source.0, destination.0, udp, 6)
}

/// A segment of TCP over IPv6.
pub fn tcp6(source: End6, destination: End6, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut tcp = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    tcp.extend([0xfe, 0xed, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    ipv6(6, source.0, destination.0, tcp, 16)
}

fn ipv6(protocol: u8, from: Ipv6Addr, to: Ipv6Addr, mut l4: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let sum = checksum(&[&pseudo6(from, to, protocol, l4.len()), &l4]);
    l4[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [[0x0e; 6], [0x0a; 6]].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((l4.len() as u16).to_be_bytes());
    frame.extend([protocol, 64]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(l4);
    frame
}

/// Reads a frame with TCP or UDP over IPv6 and judges its checksum: source, destination, hop limit.
pub fn read6(frame: &[u8]) -> Result<(End6, End6, u8), String> {
    let address = |at: usize| -> Result<Ipv6Addr, String> {
        let octets: [u8; 16] = frame[at..at + 16].try_into().map_err(|_| "too short")?;
        Ok(octets.into())
    };
    if frame.len() < 62 || frame[12..14] != [0x86, 0xdd] || ![6, 17].contains(&frame[20]) {
        return Err(format!("neither TCP nor UDP of IPv6: {frame:02x?}"));
    }
    let (from, to) = (address(22)?, address(38)?);
    if checksum(&[&pseudo6(from, to, frame[20], frame.len() - 54), &frame[54..]]) != 0 {
        return Err("checksum".to_string());
    }
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    Ok(((from, port(54)), (to, port(56)), frame[21]))
}

fn pseudo6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, len: usize) -> Vec<u8> {
    let [high, low] = (len as u16).to_be_bytes();
    [&from.octets()[..], &to.octets(), &[0, 0, high, low, 0, 0, 0, protocol]].concat()
}

fn pseudo(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend([0, protocol]);
    bytes.extend((len as u16).to_be_bytes());
    bytes
}

/// RFC 1071, over parts of even length but for the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
