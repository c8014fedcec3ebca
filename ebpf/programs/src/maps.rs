//! The maps. Sizes are the defaults; the agent may set others when it creates the maps.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use hawser_ebpf_common::ct::{CtEntry4, CtKey4};
use hawser_ebpf_common::endpoint::{Endpoint4, IpcacheEntry4, NodeConfig};
use hawser_ebpf_common::lb::{
    Backend4, ForwardSk4, ReverseNat4, ReverseSk4, ServiceKey4, ServiceValue4, SocketKey4,
};
use hawser_ebpf_common::metrics::{self, MetricsValue};

#[map(name = "hawser_lb4_services")]
pub static SERVICES: HashMap<ServiceKey4, ServiceValue4> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb4_backends")]
pub static BACKENDS: HashMap<u32, Backend4> = HashMap::pinned(131_072, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb4_reverse_nat")]
pub static REVERSE_NAT: HashMap<u32, ReverseNat4> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);

#[map(name = "hawser_lb4_revsk")]
pub static REVERSE_SK: LruHashMap<SocketKey4, ReverseSk4> = LruHashMap::pinned(65_536, 0);

#[map(name = "hawser_lb4_fwdsk")]
pub static FORWARD_SK: LruHashMap<SocketKey4, ForwardSk4> = LruHashMap::pinned(16_384, 0);

#[map(name = "hawser_ct4")]
pub static CT: LruHashMap<CtKey4, CtEntry4> = LruHashMap::pinned(65_536, 0);

#[map(name = "hawser_endpoints")]
pub static ENDPOINTS: HashMap<u32, Endpoint4> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);

#[map(name = "hawser_ipcache")]
pub static IPCACHE: LpmTrie<u32, IpcacheEntry4> = LpmTrie::pinned(65_536, BPF_F_NO_PREALLOC);

#[map(name = "hawser_metrics")]
pub static METRICS: PerCpuArray<MetricsValue> = PerCpuArray::pinned(metrics::COUNT, 0);

#[map(name = "hawser_config")]
pub static CONFIG: Array<NodeConfig> = Array::pinned(1, 0);
