//! The maps but those of the load balancer. Sizes are the defaults; the agent may set others when it creates the maps.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use hawser_ebpf_common::ct::{CtEntry4, CtKey4};
use hawser_ebpf_common::endpoint::{Endpoint4, IpcacheEntry4, IpcacheEntry6, NodeConfig};
use hawser_ebpf_common::lb::Address6;
use hawser_ebpf_common::metrics::{self, MetricsValue};

#[map(name = "hawser_ct4")]
pub static CT: LruHashMap<CtKey4, CtEntry4> = LruHashMap::pinned(65_536, 0);

#[map(name = "hawser_endpoints")]
pub static ENDPOINTS: HashMap<u32, Endpoint4> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);

#[map(name = "hawser_ipcache")]
pub static IPCACHE: LpmTrie<u32, IpcacheEntry4> = LpmTrie::pinned(65_536, BPF_F_NO_PREALLOC);

#[map(name = "hawser_ipcache6")]
pub static IPCACHE6: LpmTrie<Address6, IpcacheEntry6> = LpmTrie::pinned(65_536, BPF_F_NO_PREALLOC);

#[map(name = "hawser_metrics")]
pub static METRICS: PerCpuArray<MetricsValue> = PerCpuArray::pinned(metrics::COUNT, 0);

#[map(name = "hawser_config")]
pub static CONFIG: Array<NodeConfig> = Array::pinned(1, 0);
