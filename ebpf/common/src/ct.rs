//! Connection tracking of translated flows.
//!
//! A flow has two entries, one per direction. Each says what a packet with exactly the key's tuple
//! becomes; applying one entry's rewrite and then, to the answer, the other's gives the original
//! tuple back, reversed. Flows that need no translation have no entry.
//!
//! Two kinds of flows have one entry only: [`CT_INBOUND`] ones, and those of direct server return
//! ([`CT_DSR`]), whose two directions are translated on different nodes.

use crate::lb::Address6;

family_types! {
    /// Key of `hawser_ct4` and `hawser_ct6`: the tuple as the packet carries it before translation.
    ///
    /// For an ICMP echo request the identifier is the source port and 0 the destination port; for an
    /// echo reply it is the other way round.
    pub struct CtKey<A> [16, 40] {
        /// Source address.
        pub saddr_be: A,
        /// Destination address.
        pub daddr_be: A,
        /// Source port.
        pub sport_be: u16,
        /// Destination port.
        pub dport_be: u16,
        /// `IPPROTO_*`.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    }

    /// Value of `hawser_ct4` and `hawser_ct6`.
    pub struct CtEntry<A> [64, 88] {
        /// `CLOCK_MONOTONIC` nanoseconds of the last packet. Packets from XDP's flow cache are noted here, and counted below,
        /// with the flow's first packet a second later.
        pub last_seen_ns: u64,
        /// Packets that matched.
        pub packets: u64,
        /// Bytes of those packets, with their link-layer header.
        pub bytes: u64,
        /// Source address after translation.
        pub new_saddr_be: A,
        /// Destination address after translation.
        pub new_daddr_be: A,
        /// Source port after translation.
        pub new_sport_be: u16,
        /// Destination port after translation.
        pub new_dport_be: u16,
        /// `CT_*`.
        pub flags: u32,
        /// Frontend's `rev_nat` id, or 0 for a flow that is only masqueraded.
        pub rev_nat_id: u32,
        /// Backend, or 0.
        pub backend_id: u32,
        /// Slot of the backend when it was chosen, or 0.
        pub slot: u16,
        /// Link-layer address of the next hop on the uplink, as XDP found it at most a second before `last_seen_ns`;
        /// zeroes when it did not.
        pub next_hop: [u8; 6],
        /// Zero. With it an element of IPv4's map is two cache lines: one with the key, one with the value.
        pub pad: u64,
    }

    /// Value of `hawser_ct4_old` and `hawser_ct6_old`: the last form before [`CtEntry`]'s, of layouts up to 3. Fields are as
    /// there. Whoever changes `CtEntry` puts the form before the change here.
    pub struct OldCtEntry<A> [56, 80] {
        /// As now.
        pub last_seen_ns: u64,
        /// As now.
        pub packets: u64,
        /// As now.
        pub bytes: u64,
        /// As now.
        pub new_saddr_be: A,
        /// As now.
        pub new_daddr_be: A,
        /// As now.
        pub new_sport_be: u16,
        /// As now.
        pub new_dport_be: u16,
        /// As now.
        pub flags: u32,
        /// As now.
        pub rev_nat_id: u32,
        /// As now.
        pub backend_id: u32,
        /// As now.
        pub slot: u16,
        /// As now.
        pub next_hop: [u8; 6],
    }

    /// Key of `hawser_frag4` and `hawser_frag6`: what all fragments of a datagram have in common (RFC 791, RFC 8200).
    pub struct FragmentKey<A> [16, 40] {
        /// Source address.
        pub saddr_be: A,
        /// Destination address.
        pub daddr_be: A,
        /// Identification; of IPv4 in the lower half.
        pub id_be: u32,
        /// `IPPROTO_*` of what was fragmented.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    }
}

/// Of IPv4.
pub type CtKey4 = CtKey<u32>;
/// Of IPv6.
pub type CtKey6 = CtKey<Address6>;
/// Of IPv4.
pub type CtEntry4 = CtEntry<u32>;
/// Of IPv6.
pub type CtEntry6 = CtEntry<Address6>;
/// Of IPv4.
pub type OldCtEntry4 = OldCtEntry<u32>;
/// Of IPv6.
pub type OldCtEntry6 = OldCtEntry<Address6>;
/// Of IPv4.
pub type FragmentKey4 = FragmentKey<u32>;
/// Of IPv6.
pub type FragmentKey6 = FragmentKey<Address6>;

map_types! {
    /// Value of `hawser_frag4` and `hawser_frag6`: what only the first fragment says.
    pub struct FragmentPorts [4] {
        /// Source port.
        pub sport_be: u16,
        /// Destination port.
        pub dport_be: u16,
    }
}

/// This entry translates answers.
pub const CT_REPLY: u32 = 1;
/// Source translation on the way out of the node; applied on the uplink only.
pub const CT_MASQUERADE: u32 = 2;
/// A FIN or RST went by.
pub const CT_CLOSING: u32 = 4;
/// An answer went by (set on the entry of the answering direction). On the only entry of a [`CT_DSR`] flow: a
/// packet that does not open the connection went by.
pub const CT_SEEN: u32 = 8;
/// Nothing is translated: the flow came in from outside and its answers must not be masqueraded.
pub const CT_INBOUND: u32 = 16;
/// Direct server return: the backend's node answers the client. The load balancer's node has no entry for answers,
/// the backend's node no other.
pub const CT_DSR: u32 = 32;

/// What was found for a flow (XDP's next hop, that its port is its own, its line in XDP's flow cache) holds until the clock's
/// nanoseconds change above this bit: 1.07 s.
const EPOCH_SHIFT: u32 = 30;

/// Changes when what was found is to be asked for again. Never 0, which stands for never. The clock is `CLOCK_MONOTONIC_COARSE`.
#[inline(always)]
pub const fn epoch(now_ns: u64) -> u32 {
    (now_ns >> EPOCH_SHIFT) as u32 | 1 << 31
}

/// First port that source translation hands out, just above Linux' default ephemeral range.
pub const SNAT_PORT_MIN: u16 = 61_000;
/// How many ports source translation hands out.
pub const SNAT_PORT_COUNT: u16 = u16::MAX - SNAT_PORT_MIN;

impl<A: Copy> OldCtEntry<A> {
    /// To the form of now.
    pub const fn renewed(&self) -> CtEntry<A> {
        CtEntry {
            last_seen_ns: self.last_seen_ns,
            packets: self.packets,
            bytes: self.bytes,
            new_saddr_be: self.new_saddr_be,
            new_daddr_be: self.new_daddr_be,
            new_sport_be: self.new_sport_be,
            new_dport_be: self.new_dport_be,
            flags: self.flags,
            rev_nat_id: self.rev_nat_id,
            backend_id: self.backend_id,
            slot: self.slot,
            next_hop: self.next_hop,
            pad: 0,
        }
    }

    /// From the form of now.
    pub const fn of(entry: &CtEntry<A>) -> Self {
        Self {
            last_seen_ns: entry.last_seen_ns,
            packets: entry.packets,
            bytes: entry.bytes,
            new_saddr_be: entry.new_saddr_be,
            new_daddr_be: entry.new_daddr_be,
            new_sport_be: entry.new_sport_be,
            new_dport_be: entry.new_dport_be,
            flags: entry.flags,
            rev_nat_id: entry.rev_nat_id,
            backend_id: entry.backend_id,
            slot: entry.slot,
            next_hop: entry.next_hop,
        }
    }
}

impl<A: Copy> CtKey<A> {
    /// The key of the entry for the other direction, given the entry at this key.
    pub const fn partner(&self, entry: &CtEntry<A>) -> Self {
        Self {
            saddr_be: entry.new_daddr_be,
            daddr_be: entry.new_saddr_be,
            sport_be: entry.new_dport_be,
            dport_be: entry.new_sport_be,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }

    /// The tuple of packets in the other direction when nothing is translated.
    pub const fn reversed(&self) -> Self {
        Self {
            saddr_be: self.daddr_be,
            daddr_be: self.saddr_be,
            sport_be: self.dport_be,
            dport_be: self.sport_be,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }
}
