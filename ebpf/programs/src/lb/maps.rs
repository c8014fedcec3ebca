//! The load balancer's maps, and how a family finds its own.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap};
use hawser_ebpf_common::lb::{
    Address6, AffinityKey, AffinityMatch, AffinityMatchKey, AffinityValue, Backend, Backend4, Backend6,
    CountedSocket, ForwardSk, LbConfig, MaglevChunk, MaglevKey, OldCountedSocket, ReverseNat, ReverseNat4,
    ReverseNat6, ReverseSk, ServiceEntry, ServiceEntry4, ServiceEntry6, ServiceKey, ServiceKey4, ServiceKey6,
    SocketKey, SocketKey4, SocketKey6, SourceRangeKey,
};

#[map(name = "hawser_lb4_services")]
static SERVICES4: HashMap<ServiceKey4, ServiceEntry4> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);
#[map(name = "hawser_lb6_services")]
static SERVICES6: HashMap<ServiceKey6, ServiceEntry6> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb4_backends")]
static BACKENDS4: HashMap<u32, Backend4> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map(name = "hawser_lb6_backends")]
static BACKENDS6: HashMap<u32, Backend6> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb4_reverse_nat")]
static REVERSE_NAT4: HashMap<u32, ReverseNat4> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map(name = "hawser_lb6_reverse_nat")]
static REVERSE_NAT6: HashMap<u32, ReverseNat6> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb4_revsk")]
static REVERSE_SK4: LruHashMap<SocketKey4, ReverseSk> = LruHashMap::pinned(65_536, 0);
#[map(name = "hawser_lb6_revsk")]
static REVERSE_SK6: LruHashMap<SocketKey6, ReverseSk> = LruHashMap::pinned(65_536, 0);

#[map(name = "hawser_lb4_fwdsk")]
static FORWARD_SK4: LruHashMap<SocketKey4, ForwardSk> = LruHashMap::pinned(16_384, 0);
#[map(name = "hawser_lb6_fwdsk")]
static FORWARD_SK6: LruHashMap<SocketKey6, ForwardSk> = LruHashMap::pinned(16_384, 0);

#[map(name = "hawser_lb_affinity")]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue> = LruHashMap::pinned(65_536, 0);

#[map(name = "hawser_lb_affinity_match")]
pub static AFFINITY_MATCH: HashMap<AffinityMatchKey, AffinityMatch> =
    HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb_source_range")]
pub static SOURCE_RANGE: LpmTrie<SourceRangeKey, u32> = LpmTrie::pinned(131_072, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb_maglev")]
pub static MAGLEV: HashMap<MaglevKey, MaglevChunk> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb_connections")]
pub static CONNECTIONS: HashMap<u32, u64> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb_sockets")]
pub static SOCKETS: HashMap<u64, CountedSocket> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
/// As [`crate::maps::OLD_CT`].
#[map(name = "hawser_lb_sockets_old")]
pub static OLD_SOCKETS: HashMap<u64, OldCountedSocket> = HashMap::pinned(1, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb_config")]
pub static LB_CONFIG: Array<LbConfig> = Array::pinned(1, 0);

/// IPv4 or IPv6: the maps that hold addresses of it.
pub trait Family {
    type Address: Copy + Default + 'static;
    /// 4 or 6.
    const NUMBER: u32;
    /// The address' words; IPv4 in the first.
    fn words(address_be: Self::Address) -> [u32; 4];
    fn services() -> &'static HashMap<ServiceKey<Self::Address>, ServiceEntry<Self::Address>>;
    fn backends() -> &'static HashMap<u32, Backend<Self::Address>>;
    fn reverse_nats() -> &'static HashMap<u32, ReverseNat<Self::Address>>;
    fn reverse_sk() -> &'static LruHashMap<SocketKey<Self::Address>, ReverseSk>;
    fn forward_sk() -> &'static LruHashMap<SocketKey<Self::Address>, ForwardSk>;
}

macro_rules! family {
    ($name:ident, $address:ty, $number:literal, $words:expr, $services:ident, $backends:ident, $reverse_nat:ident, $reverse_sk:ident,
        $forward_sk:ident) => {
        impl Family for $name {
            type Address = $address;
            const NUMBER: u32 = $number;
            #[inline(always)]
            fn words(address_be: $address) -> [u32; 4] {
                let words: fn($address) -> [u32; 4] = $words;
                words(address_be)
            }
            #[inline(always)]
            fn services() -> &'static HashMap<ServiceKey<$address>, ServiceEntry<$address>> {
                &$services
            }
            #[inline(always)]
            fn backends() -> &'static HashMap<u32, Backend<$address>> {
                &$backends
            }
            #[inline(always)]
            fn reverse_nats() -> &'static HashMap<u32, ReverseNat<$address>> {
                &$reverse_nat
            }
            #[inline(always)]
            fn reverse_sk() -> &'static LruHashMap<SocketKey<$address>, ReverseSk> {
                &$reverse_sk
            }
            #[inline(always)]
            fn forward_sk() -> &'static LruHashMap<SocketKey<$address>, ForwardSk> {
                &$forward_sk
            }
        }
    };
}

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

family!(
    V4,
    u32,
    4,
    |address| [address, 0, 0, 0],
    SERVICES4,
    BACKENDS4,
    REVERSE_NAT4,
    REVERSE_SK4,
    FORWARD_SK4
);
family!(V6, Address6, 6, |address| address, SERVICES6, BACKENDS6, REVERSE_NAT6, REVERSE_SK6, FORWARD_SK6);
