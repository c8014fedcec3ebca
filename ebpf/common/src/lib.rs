//! Map key and value types shared by the eBPF programs and the agent.
//!
//! Every type is `repr(C)`, made of fixed-width integers with explicit padding. A field that holds
//! network byte order says so in its name (`_be`); all others are in the machine's order. The names
//! are Cilium's: frontend, backend, slot, rev_nat, ipcache, CT entry. Types of IPv6 have a `6` in their
//! name; no type here is shared between the families unless it holds no address.
#![no_std]

/// Declares map types: layout, derives, and proofs of size and of absent padding.
macro_rules! map_types {
    ($($(#[$meta:meta])* pub struct $name:ident [$size:literal] {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
    })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        const _: () = assert!(0 $(+ core::mem::size_of::<$type>())* == $size, "implicit padding");

        // SAFETY: `repr(C)`, every field is an integer or an array of integers, for which every bit
        // pattern is a value; the assertions above prove that there is no padding between or after
        // the fields, so that no uninitialised byte reaches the kernel.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )*};
}

/// As [`map_types`], for types that are generic over the address; both sizes, of IPv4 and of IPv6.
macro_rules! family_types {
    ($($(#[$meta:meta])* pub struct $name:ident<$A:ident> [$size4:literal, $size6:literal] {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
    })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name<$A> {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        const _: () = {
            type $A = u32;
            assert!(core::mem::size_of::<$name<$A>>() == $size4);
            assert!(0 $(+ core::mem::size_of::<$type>())* == $size4, "implicit padding");
        };
        const _: () = {
            type $A = $crate::lb::Address6;
            assert!(core::mem::size_of::<$name<$A>>() == $size6);
            assert!(0 $(+ core::mem::size_of::<$type>())* == $size6, "implicit padding");
        };

        // SAFETY: as in `map_types`; these are the only two types of address, and both were checked.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name<u32> {}
        // SAFETY: as above.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name<$crate::lb::Address6> {}
    )*};
}

pub mod ct;
pub mod endpoint;
pub mod flow;
pub mod lb;
pub mod metrics;

/// `IPPROTO_ICMP`.
pub const PROTO_ICMP: u8 = 1;
/// `IPPROTO_TCP`.
pub const PROTO_TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const PROTO_UDP: u8 = 17;
/// `IPPROTO_ICMPV6`.
pub const PROTO_ICMP6: u8 = 58;
/// `IPPROTO_SCTP`.
pub const PROTO_SCTP: u8 = 132;

/// Names of the maps, as in the ELF and in the pin directory. The kernel itself keeps 15 characters.
pub mod map_names {
    /// Frontends: master entries and backend slots.
    pub const SERVICES4: &str = "hawser_lb4_services";
    /// The same of IPv6.
    pub const SERVICES6: &str = "hawser_lb6_services";
    /// Backends by id.
    pub const BACKENDS4: &str = "hawser_lb4_backends";
    /// The same of IPv6.
    pub const BACKENDS6: &str = "hawser_lb6_backends";
    /// Frontends by `rev_nat` id.
    pub const REVERSE_NAT4: &str = "hawser_lb4_reverse_nat";
    /// The same of IPv6.
    pub const REVERSE_NAT6: &str = "hawser_lb6_reverse_nat";
    /// Backend address of a socket → what it was translated from.
    pub const REVERSE_SK4: &str = "hawser_lb4_revsk";
    /// The same of IPv6.
    pub const REVERSE_SK6: &str = "hawser_lb6_revsk";
    /// Frontend address of an unconnected UDP socket → the backend it keeps.
    pub const FORWARD_SK4: &str = "hawser_lb4_fwdsk";
    /// The same of IPv6.
    pub const FORWARD_SK6: &str = "hawser_lb6_fwdsk";
    /// Client and frontend → backend, for session affinity.
    pub const AFFINITY: &str = "hawser_lb_affinity";
    /// Frontend and backend → slots, for frontends with affinity.
    pub const AFFINITY_MATCH: &str = "hawser_lb_affinity_match";
    /// Who may use a frontend.
    pub const SOURCE_RANGE: &str = "hawser_lb_source_range";
    /// Maglev tables.
    pub const MAGLEV: &str = "hawser_lb_maglev";
    /// Open connections of this node's sockets by backend id.
    pub const CONNECTIONS: &str = "hawser_lb_connections";
    /// Sockets that are counted there.
    pub const SOCKETS: &str = "hawser_lb_sockets";
    /// What the load balancer must know of this node.
    pub const LB_CONFIG: &str = "hawser_lb_config";
    /// Connection tracking.
    pub const CT: &str = "hawser_ct4";
    /// Connection tracking, IPv6.
    pub const CT6: &str = "hawser_ct6";
    /// Connection tracking of an older layout, while agents change.
    pub const OLD_CT: &str = "hawser_ct4_old";
    /// The same of IPv6.
    pub const OLD_CT6: &str = "hawser_ct6_old";
    /// Counted sockets of an older layout, while agents change.
    pub const OLD_SOCKETS: &str = "hawser_lb_sockets_old";
    /// Ports of datagrams whose first fragment went by.
    pub const FRAGMENTS: &str = "hawser_frag4";
    /// Ports of datagrams whose first fragment went by, IPv6.
    pub const FRAGMENTS6: &str = "hawser_frag6";
    /// Pods of this node by address.
    pub const ENDPOINTS: &str = "hawser_endpoints";
    /// Pods of this node by address, IPv6.
    pub const ENDPOINTS6: &str = "hawser_endpoints6";
    /// Prefix → node and identity.
    pub const IPCACHE: &str = "hawser_ipcache";
    /// Prefix → node and identity, IPv6.
    pub const IPCACHE6: &str = "hawser_ipcache6";
    /// Addresses that this node announces on its link.
    pub const ANNOUNCE: &str = "hawser_l2_announce";
    /// Addresses that this node announces on its link, IPv6.
    pub const ANNOUNCE6: &str = "hawser_l2_announce6";
    /// Packets and bytes by direction and reason, per CPU.
    pub const METRICS: &str = "hawser_metrics";
    /// XDP's flow cache, per CPU. Not pinned.
    pub const FLOWS: &str = "hawser_flows4";
    /// The same of IPv6.
    pub const FLOWS6: &str = "hawser_flows6";
    /// What the programs must know of this node.
    pub const CONFIG: &str = "hawser_config";
}
