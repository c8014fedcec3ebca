//! Connection tracking of translated flows.
//!
//! A flow has two entries, one per direction. Each says what a packet with exactly the key's tuple
//! becomes; applying one entry's rewrite and then, to the answer, the other's gives the original
//! tuple back, reversed. Flows that need no translation have no entry.

map_types! {
    /// Key of `hawser_ct4`: the tuple as the packet carries it before translation.
    ///
    /// For an ICMP echo request the identifier is the source port and 0 the destination port; for an
    /// echo reply it is the other way round.
    pub struct CtKey4 [16] {
        /// Source address.
        pub saddr_be: u32,
        /// Destination address.
        pub daddr_be: u32,
        /// Source port.
        pub sport_be: u16,
        /// Destination port.
        pub dport_be: u16,
        /// `IPPROTO_*`.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    }

    /// Value of `hawser_ct4`.
    pub struct CtEntry4 [56] {
        /// `CLOCK_MONOTONIC` nanoseconds of the last packet.
        pub last_seen_ns: u64,
        /// Packets that matched.
        pub packets: u64,
        /// Bytes of those packets, with their link-layer header.
        pub bytes: u64,
        /// Source address after translation.
        pub new_saddr_be: u32,
        /// Destination address after translation.
        pub new_daddr_be: u32,
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
        /// Zero.
        pub pad: [u16; 3],
    }
}

/// This entry translates answers.
pub const CT_REPLY: u32 = 1;
/// Source translation on the way out of the node; applied on the uplink only.
pub const CT_MASQUERADE: u32 = 2;
/// A FIN or RST went by.
pub const CT_CLOSING: u32 = 4;
/// An answer went by (set on the entry of the answering direction).
pub const CT_SEEN: u32 = 8;
/// Nothing is translated: the flow came in from outside and its answers must not be masqueraded.
pub const CT_INBOUND: u32 = 16;

/// First port that source translation hands out, just above Linux' default ephemeral range.
pub const SNAT_PORT_MIN: u16 = 61_000;
/// How many ports source translation hands out.
pub const SNAT_PORT_COUNT: u16 = u16::MAX - SNAT_PORT_MIN;

impl CtKey4 {
    /// The key of the entry for the other direction, given the entry at this key.
    pub const fn partner(&self, entry: &CtEntry4) -> Self {
        Self {
            saddr_be: entry.new_daddr_be,
            daddr_be: entry.new_saddr_be,
            sport_be: entry.new_dport_be,
            dport_be: entry.new_sport_be,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }
}
