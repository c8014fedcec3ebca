//! Load balancer: frontends, slots, backends, reverse translation, affinity, open connections.
//!
//! What holds an address is generic over it: `A` is `u32` for IPv4 and [`Address6`] for IPv6, and each
//! family has maps of its own. Ids of frontends (`rev_nat`) and of backends are unique over both families,
//! so that maps keyed by ids serve both.

/// An IPv6 address as words whose bytes are in network order.
pub type Address6 = [u32; 4];

family_types! {
    /// Key of `hawser_lb4_services` and `hawser_lb6_services`.
    ///
    /// Slot 0 of generation 0 is the frontend's master entry. Slots from 1 of the generation that the
    /// master entry names hold the backends: as many as its `count` for scope 0, and its `count_external`
    /// for scope 1.
    pub struct ServiceKey<A> [12, 24] {
        /// Frontend address.
        pub address_be: A,
        /// Frontend port.
        pub port_be: u16,
        /// 0 for the master entry, else from 1.
        pub slot: u16,
        /// Generation of a slot; 0 in the master's key.
        pub generation: u16,
        /// `IPPROTO_*`.
        pub protocol: u8,
        /// `SCOPE_*` of a slot; 0 in the master's key.
        pub scope: u8,
    }

    /// Value of `hawser_lb4_services` and `hawser_lb6_services`.
    pub struct ServiceEntry<A> [32, 44] {
        /// What it says in either family.
        pub value: ServiceValue,
        /// Address of `value`'s backend, as `hawser_lb4_backends` has it: spares its lookup.
        pub address_be: A,
        /// Port of that backend. 0: not known here.
        pub port_be: u16,
        /// Zero.
        pub pad: u16,
    }

    /// Value of `hawser_lb4_backends` and `hawser_lb6_backends`; the key is the backend's id.
    pub struct Backend<A> [8, 20] {
        /// Backend address.
        pub address_be: A,
        /// Backend port.
        pub port_be: u16,
        /// `IPPROTO_*`.
        pub protocol: u8,
        /// `BACKEND_*`.
        pub flags: u8,
    }

    /// Value of `hawser_lb4_reverse_nat` and `hawser_lb6_reverse_nat`; the key is the frontend's
    /// `rev_nat` id.
    pub struct ReverseNat<A> [8, 20] {
        /// Frontend address.
        pub address_be: A,
        /// Frontend port.
        pub port_be: u16,
        /// `IPPROTO_*`.
        pub protocol: u8,
        /// Zero.
        pub pad: u8,
    }

    /// Key of `hawser_lb4_revsk` (address of the backend) and `hawser_lb4_fwdsk` (of the frontend), and of
    /// their twins.
    pub struct SocketKey<A> [16, 28] {
        /// `SO_COOKIE`, the low half first.
        pub cookie: [u32; 2],
        /// Remote address.
        pub address_be: A,
        /// Remote port.
        pub port_be: u16,
        /// Zero.
        pub pad: u16,
    }
}

/// Of IPv4.
pub type ServiceKey4 = ServiceKey<u32>;
/// Of IPv6.
pub type ServiceKey6 = ServiceKey<Address6>;
/// Of IPv4.
pub type ServiceEntry4 = ServiceEntry<u32>;
/// Of IPv6.
pub type ServiceEntry6 = ServiceEntry<Address6>;
/// Of IPv4.
pub type Backend4 = Backend<u32>;
/// Of IPv6.
pub type Backend6 = Backend<Address6>;
/// Of IPv4.
pub type ReverseNat4 = ReverseNat<u32>;
/// Of IPv6.
pub type ReverseNat6 = ReverseNat<Address6>;
/// Of IPv4.
pub type SocketKey4 = SocketKey<u32>;
/// Of IPv6.
pub type SocketKey6 = SocketKey<Address6>;

map_types! {
    /// What is the same in `hawser_lb4_services` and `hawser_lb6_services`. A slot entry has `backend_id` and
    /// `rev_nat_id` and is zero otherwise.
    pub struct ServiceValue [24] {
        /// The slot's backend. In a master entry the only one, when there is one scope and it has one slot; else 0.
        pub backend_id: u32,
        /// Key into the reverse translations.
        pub rev_nat_id: u32,
        /// `SERVICE_*`.
        pub flags: u32,
        /// Seconds that a client keeps its backend after its last connection; with [`SERVICE_AFFINITY`].
        pub affinity_timeout_s: u32,
        /// How many slots scope 0 has.
        pub count: u16,
        /// How many slots scope 1 has; with [`SERVICE_TWO_SCOPES`].
        pub count_external: u16,
        /// The generation of the slots in force.
        pub generation: u16,
        /// `KIND_*`.
        pub kind: u8,
        /// `ALGORITHM_*`.
        pub algorithm: u8,
    }

    /// Value of `hawser_lb4_revsk` and `hawser_lb6_revsk`.
    pub struct ReverseSk [16] {
        /// Key into the reverse translations.
        pub rev_nat_id: u32,
        /// Backend that was chosen.
        pub backend_id: u32,
        /// `SO_NETNS_COOKIE` of the socket's network namespace, where it can be destroyed; 0 when it is not known.
        pub netns_cookie: u64,
    }

    /// Value of `hawser_lb4_fwdsk` and `hawser_lb6_fwdsk`: keeps an unconnected UDP socket on one backend.
    pub struct ForwardSk [8] {
        /// Backend that was chosen.
        pub backend_id: u32,
        /// Its slot. The choice holds while that slot holds that backend.
        pub slot: u16,
        /// Zero.
        pub pad: u16,
    }

    /// Key of `hawser_lb_affinity`.
    pub struct AffinityKey [24] {
        /// The client's address (IPv4 in the first word), or the cookie of its network namespace in the
        /// first two.
        pub client: [u32; 4],
        /// Frontend.
        pub rev_nat_id: u32,
        /// `CLIENT_*`.
        pub kind: u32,
    }

    /// Value of `hawser_lb_affinity`.
    pub struct AffinityValue [16] {
        /// `CLOCK_MONOTONIC` nanoseconds of the client's last new connection.
        pub last_used_ns: u64,
        /// Its backend.
        pub backend_id: u32,
        /// Zero.
        pub pad: u32,
    }

    /// Key of `hawser_lb_affinity_match`: which backends a frontend with affinity has.
    pub struct AffinityMatchKey [8] {
        /// Frontend.
        pub rev_nat_id: u32,
        /// Backend.
        pub backend_id: u32,
    }

    /// Value of `hawser_lb_affinity_match`.
    pub struct AffinityMatch [4] {
        /// The backend's slot in each scope; 0 where it has none.
        pub slots: [u16; 2],
    }

    /// Key of `hawser_lb_source_range` (`BPF_MAP_TYPE_LPM_TRIE`): prefixes that may use a frontend with
    /// [`SERVICE_SOURCE_RANGES`]. The prefix length counts the id's 32 bits too.
    pub struct SourceRangeKey [20] {
        /// Frontend.
        pub rev_nat_id: u32,
        /// The client's address; IPv4 in the first word.
        pub address_be: [u32; 4],
    }

    /// Key of `hawser_lb_maglev`: a part of a frontend's Maglev table.
    pub struct MaglevKey [8] {
        /// Frontend.
        pub rev_nat_id: u32,
        /// The master's generation.
        pub generation: u16,
        /// `SCOPE_*`.
        pub scope: u8,
        /// Which part.
        pub chunk: u8,
    }

    /// Value of `hawser_lb_sockets`, by `SO_COOKIE`: a socket of TCP that was translated and is counted in
    /// `hawser_lb_connections`.
    pub struct CountedSocket [40] {
        /// `SO_NETNS_COOKIE` of its network namespace, where it can be destroyed.
        pub netns_cookie: u64,
        /// Address of the backend that it is connected to, IPv4 in the first word. Zero in elements of an older layout:
        /// such sockets are in the maps for reverse translation.
        pub address_be: [u32; 4],
        /// That backend.
        pub backend_id: u32,
        /// Frontend that it asked for; 0 when that is gone.
        pub rev_nat_id: u32,
        /// Port of the backend.
        pub port_be: u16,
        /// Zero.
        pub pad: u16,
        /// 4 or 6.
        pub family: u32,
    }

    /// The same as layouts before 5 had it.
    pub struct OldCountedSocket [16] {
        /// Backend that it is connected to.
        pub backend_id: u32,
        /// Frontend that it asked for.
        pub rev_nat_id: u32,
        /// 4 or 6.
        pub family: u32,
        /// Zero.
        pub pad: u32,
    }

    /// The only element of `hawser_lb_config`.
    pub struct LbConfig [16] {
        /// `SO_NETNS_COOKIE` of the node's own network namespace.
        pub node_netns_cookie: u64,
        /// Zero.
        pub pad: u64,
    }
}

/// Value of `hawser_lb_maglev`: slot numbers.
pub type MaglevChunk = [u16; MAGLEV_CHUNK as usize];
/// Entries of a Maglev table. A prime, as Maglev wants it.
pub const MAGLEV_SIZE: u32 = 16_381;
/// Entries per map element. The last one of a table is not full.
pub const MAGLEV_CHUNK: u32 = 256;
/// Elements per table.
pub const MAGLEV_CHUNKS: u32 = MAGLEV_SIZE.div_ceil(MAGLEV_CHUNK);

/// Connections from inside: sockets, pods, the node itself.
pub const SCOPE_INTERNAL: u8 = 0;
/// Connections that come in from outside the cluster.
pub const SCOPE_EXTERNAL: u8 = 1;

/// The backend is terminating and only used because no other is ready.
pub const BACKEND_TERMINATING: u8 = 1;

/// A cluster address.
pub const KIND_CLUSTER_IP: u8 = 0;
/// A node port on one of the node's addresses.
pub const KIND_NODE_PORT: u8 = 1;
/// An address of `status.loadBalancer.ingress`.
pub const KIND_LOAD_BALANCER: u8 = 2;
/// One of `spec.externalIPs`.
pub const KIND_EXTERNAL_IP: u8 = 3;
/// A pod's `hostPort`.
pub const KIND_HOST_PORT: u8 = 4;
/// Names in the order of their numbers.
pub const KIND_NAMES: [&str; 5] = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalIP", "HostPort"];

/// Least-loaded for TCP at the socket, else random.
pub const ALGORITHM_DEFAULT: u8 = 0;
/// Any backend.
pub const ALGORITHM_RANDOM: u8 = 1;
/// By the hash of the connection, over a Maglev table.
pub const ALGORITHM_MAGLEV: u8 = 2;
/// Of two random backends the one with fewer open connections from this node.
pub const ALGORITHM_LEAST: u8 = 3;
/// Names in the order of their numbers.
pub const ALGORITHM_NAMES: [&str; 4] = ["default", "random", "maglev", "least-loaded"];

/// Lookups of [`SCOPE_EXTERNAL`] have slots of their own. Without it they use those of scope 0.
pub const SERVICE_TWO_SCOPES: u32 = 1;
/// `internalTrafficPolicy: Local`.
pub const SERVICE_INTERNAL_LOCAL: u32 = 2;
/// `externalTrafficPolicy: Local`: the client's address is kept.
pub const SERVICE_EXTERNAL_LOCAL: u32 = 4;
/// `sessionAffinity: ClientIP`.
pub const SERVICE_AFFINITY: u32 = 8;
/// Only clients within `hawser_lb_source_range` may connect.
pub const SERVICE_SOURCE_RANGES: u32 = 16;
/// A scope without slots drops in place of refusing: its policy is Local, and another node has endpoints. A scope whose
/// policy is Cluster has slots then.
pub const SERVICE_DROP_IF_EMPTY: u32 = 32;
/// Answers go from the backend's node straight to the client.
pub const SERVICE_DSR: u32 = 64;
/// The node's own addresses are outside the source ranges.
pub const SERVICE_DENY_NODE: u32 = 128;
/// A loopback address: only sockets in the node's own network namespace mean it.
pub const SERVICE_LOOPBACK: u32 = 256;
/// Names of the flags, in the order of their bits.
pub const SERVICE_FLAG_NAMES: [&str; 9] = [
    "two-scopes",
    "internal-local",
    "external-local",
    "affinity",
    "source-ranges",
    "drop-if-empty",
    "dsr",
    "deny-node",
    "loopback",
];

/// [`AffinityKey::client`] is an address.
pub const CLIENT_ADDRESS: u32 = 0;
/// [`AffinityKey::client`] is the cookie of a network namespace, of a pod.
pub const CLIENT_NETNS: u32 = 1;
/// [`AffinityKey::client`] is the cookie of the node's own network namespace.
pub const CLIENT_NODE: u32 = 2;

impl<A: Copy> ServiceKey<A> {
    /// Key of the frontend's master entry.
    pub const fn master(address_be: A, port_be: u16, protocol: u8) -> Self {
        Self { address_be, port_be, slot: 0, generation: 0, protocol, scope: 0 }
    }

    /// Key of one slot of this frontend.
    pub const fn slot(self, scope: u8, generation: u16, slot: u16) -> Self {
        Self { slot, generation, scope, ..self }
    }
}

impl<A: Copy> SocketKey<A> {
    /// `cookie` is `SO_COOKIE`.
    pub const fn new(cookie: u64, address_be: A, port_be: u16) -> Self {
        Self { cookie: [cookie as u32, (cookie >> 32) as u32], address_be, port_be, pad: 0 }
    }
}

impl ServiceValue {
    /// The scope that a lookup of `scope` uses, and how many slots it has.
    pub const fn scope(&self, scope: u8) -> (u8, u16) {
        if scope == SCOPE_EXTERNAL && self.flags & SERVICE_TWO_SCOPES != 0 {
            (SCOPE_EXTERNAL, self.count_external)
        } else {
            (SCOPE_INTERNAL, self.count)
        }
    }
}
