//! The maps but those of the load balancer. Sizes are the defaults; the agent may set others when it creates the maps.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use hawser_ebpf_common::ct::{
    CtEntry4, CtEntry6, CtKey4, CtKey6, FragmentKey4, FragmentKey6, FragmentPorts, OldCtEntry4, OldCtEntry6,
};
use hawser_ebpf_common::endpoint::{Announce, Endpoint4, IpcacheEntry4, IpcacheEntry6, NodeConfig};
use hawser_ebpf_common::lb::Address6;
use hawser_ebpf_common::metrics::{self, MetricsValue};

use crate::flow::{self, Chunk4, Chunk6};
use crate::hop::{HOPS_COUNT, Hop};
use crate::packet::Aside;

#[map(name = "hawser_ct4")]
pub static CT: LruHashMap<CtKey4, CtEntry4> = LruHashMap::pinned(262_144, 0);
#[map(name = "hawser_ct6")]
pub static CT6: LruHashMap<CtKey6, CtEntry6> = LruHashMap::pinned(65_536, 0);

/// Of an agent with an older layout, which the next agent puts into this place; else a map of no use, and with room for
/// nothing.
#[map(name = "hawser_ct4_old")]
pub static OLD_CT: LruHashMap<CtKey4, OldCtEntry4> = LruHashMap::pinned(1, 0);
#[map(name = "hawser_ct6_old")]
pub static OLD_CT6: LruHashMap<CtKey6, OldCtEntry6> = LruHashMap::pinned(1, 0);

#[map(name = "hawser_frag4")]
pub static FRAGMENTS: LruHashMap<FragmentKey4, FragmentPorts> = LruHashMap::pinned(8_192, 0);
#[map(name = "hawser_frag6")]
pub static FRAGMENTS6: LruHashMap<FragmentKey6, FragmentPorts> = LruHashMap::pinned(8_192, 0);

#[map(name = "hawser_endpoints")]
pub static ENDPOINTS: HashMap<u32, Endpoint4> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map(name = "hawser_endpoints6")]
pub static ENDPOINTS6: HashMap<Address6, Endpoint4> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);

#[map(name = "hawser_ipcache")]
pub static IPCACHE: LpmTrie<u32, IpcacheEntry4> = LpmTrie::pinned(65_536, BPF_F_NO_PREALLOC);
#[map(name = "hawser_ipcache6")]
pub static IPCACHE6: LpmTrie<Address6, IpcacheEntry6> = LpmTrie::pinned(65_536, BPF_F_NO_PREALLOC);

#[map(name = "hawser_l2_announce")]
pub static ANNOUNCE: HashMap<u32, Announce> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map(name = "hawser_l2_announce6")]
pub static ANNOUNCE6: HashMap<Address6, Announce> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);

#[map(name = "hawser_metrics")]
pub static METRICS: PerCpuArray<MetricsValue> = PerCpuArray::pinned(metrics::COUNT, 0);

#[map(name = "hawser_config")]
pub static CONFIG: Array<NodeConfig> = Array::pinned(1, 0);

/// Not pinned: each CPU's next hops on the uplink.
#[map(name = "hawser_hops4")]
pub static HOPS: PerCpuArray<Hop<u32>> = PerCpuArray::with_max_entries(HOPS_COUNT, 0);
#[map(name = "hawser_hops6")]
pub static HOPS6: PerCpuArray<Hop<Address6>> = PerCpuArray::with_max_entries(HOPS_COUNT, 0);

/// Not pinned: each CPU's flow cache. The loader says how many elements there are, and the programs by [`crate::flow`]'s
/// numbers; here is the least.
#[map(name = "hawser_flows4")]
pub static FLOWS: PerCpuArray<Chunk4> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "hawser_flows6")]
pub static FLOWS6: PerCpuArray<Chunk6> = PerCpuArray::with_max_entries(1, 0);
/// Link-layer addresses that lines of both have.
#[map(name = "hawser_flow_hops")]
pub static FLOW_HOPS: PerCpuArray<flow::Hops> = PerCpuArray::with_max_entries(1, 0);

/// Not pinned: memory of one run of a program.
/// Where the packet that is worked on goes through a tunnel to. One program of a packet writes and reads it.
#[map(name = "hawser_tun_end")]
pub static TUNNEL_END: PerCpuArray<Address6> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "hawser_aside4")]
pub static ASIDE: PerCpuArray<Aside<u32>> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "hawser_aside6")]
pub static ASIDE6: PerCpuArray<Aside<Address6>> = PerCpuArray::with_max_entries(1, 0);
