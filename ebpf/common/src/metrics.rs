//! Counters: `hawser_metrics` is a per-CPU array indexed by [`index`].

map_types! {
    /// Value of `hawser_metrics`.
    pub struct MetricsValue [16] {
        /// Packets.
        pub packets: u64,
        /// Bytes with the link-layer header.
        pub bytes: u64,
    }
}

/// Where a packet was seen.
pub mod direction {
    /// Sent by a pod.
    pub const FROM_POD: u32 = 0;
    /// On its way to a pod out of the node's stack.
    pub const TO_POD: u32 = 1;
    /// Received on the uplink.
    pub const FROM_UPLINK: u32 = 2;
    /// Sent on the uplink.
    pub const TO_UPLINK: u32 = 3;
    /// A socket call.
    pub const SOCKET: u32 = 4;
    /// Received on the uplink, before the stack: by XDP.
    pub const XDP: u32 = 5;
    /// Received out of a tunnel.
    pub const FROM_TUNNEL: u32 = 6;
    /// How many there are.
    pub const COUNT: u32 = 7;
    /// Names in the order of their numbers.
    pub const NAMES: [&str; COUNT as usize] =
        ["from-pod", "to-pod", "from-uplink", "to-uplink", "socket", "xdp", "from-tunnel"];
}

/// What became of a packet. From [`reason::FIRST_DROP`] on, it was dropped.
pub mod reason {
    /// Sent on without translation.
    pub const FORWARDED: u32 = 0;
    /// Translated from a frontend to a backend or back.
    pub const TRANSLATED: u32 = 1;
    /// Source address replaced by the node's.
    pub const MASQUERADED: u32 = 2;
    /// Left to the kernel's stack.
    pub const STACK: u32 = 3;
    /// First reason of a drop.
    pub const FIRST_DROP: u32 = 4;
    /// Answered with RST, ICMP or ECONNREFUSED: the Service has no endpoints.
    pub const NO_BACKEND: u32 = 4;
    /// Answered with RST or ICMP: no Service has this address and port.
    pub const NO_SERVICE: u32 = 5;
    /// A pod sent with an address that is not its own.
    pub const INVALID_SOURCE: u32 = 6;
    /// An address of this node's podCIDR that no pod has.
    pub const NO_ENDPOINT: u32 = 7;
    /// No free port for source translation.
    pub const NO_NAT_PORT: u32 = 8;
    /// A later fragment whose first one did not come by.
    pub const FRAGMENT: u32 = 9;
    /// Header shorter than it claims.
    pub const MALFORMED: u32 = 10;
    /// A helper failed while the packet was rewritten.
    pub const WRITE_FAILED: u32 = 11;
    /// Traffic policy Local, inside or outside, and no endpoint of the Service is on this node.
    pub const NO_LOCAL_BACKEND: u32 = 12;
    /// The client is outside the Service's `loadBalancerSourceRanges`.
    pub const SOURCE_RANGE: u32 = 13;
    /// No room for another flow in connection tracking.
    pub const CT_FULL: u32 = 14;
    /// An answer lost its flow's port to another flow.
    pub const NAT_CONFLICT: u32 = 15;
    /// Nobody answers for the next hop, or there is no route.
    pub const NO_ROUTE: u32 = 16;
    /// SCTP whose ports would have to change: its checksum (CRC32c) covers them.
    pub const SCTP_PORT: u32 = 17;
    /// Answered with ICMP: larger than the way to the backend, and not to be fragmented.
    pub const TOO_BIG: u32 = 18;
    /// Not dropped: asked for a Service's link-layer address, and answered.
    pub const ANNOUNCED: u32 = 19;
    /// An option for direct server return that names no frontend of the cluster.
    pub const FOREIGN_FRONTEND: u32 = 20;
    /// How many there are.
    pub const COUNT: u32 = 21;
    /// Names in the order of their numbers.
    pub const NAMES: [&str; COUNT as usize] = [
        "Forwarded",
        "Translated",
        "Masqueraded",
        "Passed to stack",
        "No backend",
        "No service",
        "Invalid source address",
        "No endpoint",
        "No NAT port",
        "Fragment without its first",
        "Malformed packet",
        "Write failed",
        "No local backend",
        "Outside source ranges",
        "Connection tracking full",
        "NAT port taken",
        "No route",
        "SCTP port translation",
        "Too big",
        "Announced",
        "Foreign frontend",
    ];
}

/// Index of a counter.
pub const fn index(direction: u32, reason: u32) -> u32 {
    direction * reason::COUNT + reason
}

/// How many counters there are.
pub const COUNT: u32 = direction::COUNT * reason::COUNT;
