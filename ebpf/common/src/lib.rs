//! Map key and value types shared by the eBPF programs and the agent.
//!
//! Every type is `repr(C)`, made of fixed-width integers with explicit padding. A field that holds
//! network byte order says so in its name (`_be`); all others are in the machine's order. The names
//! are Cilium's: frontend, backend, slot, rev_nat, ipcache, CT entry. Types of IPv6 get siblings
//! with a `6` in their name; no type here is shared between the families unless it holds no address.
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

pub mod ct;
pub mod endpoint;
pub mod lb;
pub mod metrics;

/// `IPPROTO_ICMP`.
pub const PROTO_ICMP: u8 = 1;
/// `IPPROTO_TCP`.
pub const PROTO_TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const PROTO_UDP: u8 = 17;

/// Names of the maps, as in the ELF and in the pin directory. The kernel itself keeps 15 characters.
pub mod map_names {
    /// Frontends: master entries and backend slots.
    pub const SERVICES: &str = "hawser_lb4_services";
    /// Backends by id.
    pub const BACKENDS: &str = "hawser_lb4_backends";
    /// Frontends by `rev_nat` id.
    pub const REVERSE_NAT: &str = "hawser_lb4_reverse_nat";
    /// Backend address of a socket → what it was translated from.
    pub const REVERSE_SK: &str = "hawser_lb4_revsk";
    /// Frontend address of an unconnected UDP socket → the backend it keeps.
    pub const FORWARD_SK: &str = "hawser_lb4_fwdsk";
    /// Connection tracking.
    pub const CT: &str = "hawser_ct4";
    /// Pods of this node by address.
    pub const ENDPOINTS: &str = "hawser_endpoints";
    /// Prefix → node and identity.
    pub const IPCACHE: &str = "hawser_ipcache";
    /// Packets and bytes by direction and reason, per CPU.
    pub const METRICS: &str = "hawser_metrics";
    /// What the programs must know of this node.
    pub const CONFIG: &str = "hawser_config";
}
