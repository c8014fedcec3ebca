//! Pods of this node, prefixes of the cluster, and the node itself.

map_types! {
    /// Value of `hawser_endpoints` and `hawser_endpoints6`; the key is the pod's address in network byte order.
    pub struct Endpoint4 [24] {
        /// Interface of the node's end of the veth pair.
        pub ifindex: u32,
        /// Reserved; 0.
        pub flags: u32,
        /// Address of `eth0` in the pod.
        pub pod_mac: [u8; 6],
        /// Address of the node's end.
        pub host_mac: [u8; 6],
        /// Zero.
        pub pad: [u8; 4],
    }

    /// Value of `hawser_ipcache`; the key is a prefix (`BPF_MAP_TYPE_LPM_TRIE`).
    pub struct IpcacheEntry4 [12] {
        /// Node behind which the prefix lies; 0 when it is this node or none.
        pub node_ip_be: u32,
        /// `IDENTITY_*`.
        pub identity: u32,
        /// `IPCACHE_*`.
        pub flags: u32,
    }

    /// Value of `hawser_ipcache6`; the key is a prefix (`BPF_MAP_TYPE_LPM_TRIE`).
    pub struct IpcacheEntry6 [24] {
        /// Node behind which the prefix lies; 0 when it is this node or none. IPv4-mapped (RFC 4291, 2.5.5.2) when it is
        /// reached by a tunnel over IPv4.
        pub node_ip_be: [u32; 4],
        /// `IDENTITY_*`.
        pub identity: u32,
        /// `IPCACHE_*`.
        pub flags: u32,
    }

    /// The only element of `hawser_config`.
    pub struct NodeConfig [44] {
        /// This node's address.
        pub node_ip_be: u32,
        /// Interface that carries `node_ip`; 0 when the node is not attached.
        pub uplink_ifindex: u32,
        /// `CONFIG_*`.
        pub flags: u32,
        /// Layout version of all maps.
        pub layout: u32,
        /// Address of the uplink.
        pub uplink_mac: [u8; 6],
        /// MTU of the uplink in bytes; 0 when it is not known.
        pub mtu: u16,
        /// The tunnels' interface; 0 when nodes are reached by direct routes.
        pub vxlan_ifindex: u32,
        /// This node's IPv6 address, or zeroes.
        pub node_ip6_be: [u32; 4],
    }

    /// Value of `hawser_l2_announce` and `hawser_l2_announce6`; the key is the address in network byte order.
    pub struct Announce [8] {
        /// Interface on which the address is announced.
        pub ifindex: u32,
        /// Its link-layer address is the uplink's. Zero.
        pub pad: u32,
    }
}

/// Version of the map layouts. Maps pinned by another version are not adopted.
pub const LAYOUT: u32 = 5;

/// This node (Cilium's `reserved:host`).
pub const IDENTITY_HOST: u32 = 1;
/// Another node (Cilium's `reserved:remote-node`).
pub const IDENTITY_REMOTE_NODE: u32 = 6;
/// Pods of a node, not told apart.
pub const IDENTITY_PODS: u32 = 16;
/// Service addresses: nothing lives there, so what no service translates is refused.
pub const IDENTITY_SERVICES: u32 = 17;

/// The node can be reached without a router.
pub const IPCACHE_ON_LINK: u32 = 1;

/// Pods that talk to something outside the cluster get the node's address.
pub const CONFIG_MASQUERADE: u32 = 1;
/// The kernel knows `BPF_F_IPV6` in `bpf_l4_csum_replace` (since 6.16), without which it keeps a wrong sum of IPv6
/// packets whose checksum the interface verified.
pub const CONFIG_CHECKSUM_IPV6: u32 = 2;
/// Some hooks may still have programs of an older layout: flows are looked for in their connection tracking too, and new
/// ones are written there as well.
pub const CONFIG_MIGRATING: u32 = 4;

/// Source address a pod sees when a Service sends it back to itself. Never leaves the node.
pub const HAIRPIN_ADDRESS: [u8; 4] = [169, 254, 42, 1];
/// The pods' default gateway; a name for the node's end of the veth pair.
pub const GATEWAY_ADDRESS: [u8; 4] = [169, 254, 1, 1];
/// [`HAIRPIN_ADDRESS`] of IPv6.
pub const HAIRPIN_ADDRESS6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa9, 0xfe, 42, 1];
/// [`GATEWAY_ADDRESS`] of IPv6: fe80::1.
pub const GATEWAY_ADDRESS6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Port of VXLAN between nodes: Linux' number, which Cilium uses as well.
pub const VXLAN_PORT: u16 = 8472;
/// Bytes that VXLAN puts before a packet: outer IP (of which version?), UDP, VXLAN and the inner Ethernet header.
#[inline(always)]
pub const fn tunnel_overhead(over_ipv6: bool) -> u32 {
    if over_ipv6 { 70 } else { 50 }
}
/// Link-layer address of every node's tunnel interface.
pub const TUNNEL_MAC: [u8; 6] = [0x0e, 0x58, b'h', b'a', b'w', b's'];
/// Source of what a node's stack sends into a tunnel, in place of [`TUNNEL_MAC`]: an interface takes what comes from its own
/// address for its own echo.
pub const TUNNEL_SOURCE_MAC: [u8; 6] = [0x0a, 0x58, b'h', b'a', b'w', b's'];
/// Network identifier of the tunnels between nodes.
pub const VXLAN_VNI: u32 = 2;
