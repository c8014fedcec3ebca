//! `/stats/summary` (`stats/v1alpha1` of the kubelet's API).

use jiff::Timestamp;
use k8s_cri::v1 as cri;
use serde_json::{Map, Value, json};

use super::node::{self, NodeUsage};
use super::pods::{ContainerStats, PodStats};
use crate::cri::from_nanos;
use crate::server::State;

fn number(value: Option<cri::UInt64Value>) -> Value {
    value.map_or(Value::Null, |v| v.value.into())
}

/// An object without the fields that are not known.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let known = fields.into_iter().filter(|(_, v)| !v.is_null());
    Value::Object(known.map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
}

fn cpu(usage: Option<&cri::CpuUsage>) -> Value {
    usage.map_or(Value::Null, |c| {
        object([
            ("time", json!(from_nanos(c.timestamp))),
            ("usageNanoCores", number(c.usage_nano_cores)),
            ("usageCoreNanoSeconds", number(c.usage_core_nano_seconds)),
        ])
    })
}

fn memory(usage: Option<&cri::MemoryUsage>) -> Value {
    usage.map_or(Value::Null, |m| {
        object([
            ("time", json!(from_nanos(m.timestamp))),
            ("availableBytes", number(m.available_bytes)),
            ("usageBytes", number(m.usage_bytes)),
            ("workingSetBytes", number(m.working_set_bytes)),
            ("rssBytes", number(m.rss_bytes)),
            ("pageFaults", number(m.page_faults)),
            ("majorPageFaults", number(m.major_page_faults)),
        ])
    })
}

fn swap(usage: Option<&cri::SwapUsage>) -> Value {
    usage.map_or(Value::Null, |s| {
        object([
            ("time", json!(from_nanos(s.timestamp))),
            ("swapAvailableBytes", number(s.swap_available_bytes)),
            ("swapUsageBytes", number(s.swap_usage_bytes)),
        ])
    })
}

fn interface(i: &cri::NetworkInterfaceUsage) -> Value {
    object([
        ("name", i.name.as_str().into()),
        ("rxBytes", number(i.rx_bytes)),
        ("rxErrors", number(i.rx_errors)),
        ("txBytes", number(i.tx_bytes)),
        ("txErrors", number(i.tx_errors)),
    ])
}

fn network(usage: Option<&cri::NetworkUsage>) -> Value {
    let Some(n) = usage else { return Value::Null };
    let all: Vec<Value> = n.default_interface.iter().chain(&n.interfaces).map(interface).collect();
    let mut out = n.default_interface.as_ref().map_or_else(|| json!({"name": ""}), interface);
    out["time"] = json!(from_nanos(n.timestamp));
    out["interfaces"] = all.into();
    out
}

fn container(state: &State, pod: &PodStats, c: &ContainerStats) -> Value {
    let root = c.cri.writable_layer.as_ref().map_or(Value::Null, |layer| {
        let value = |v: Option<cri::UInt64Value>| v.map_or(0, |v| v.value);
        let used = (value(layer.used_bytes), value(layer.inodes_used));
        node::file_system(&state.shared.config.data_dir, from_nanos(layer.timestamp), Some(used))
    });
    let logs = state.shared.config.log_dir.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid));
    let logs = logs.join(&c.name);
    let now = Timestamp::now();
    let mut used = (0, 0);
    for entry in std::fs::read_dir(&logs).into_iter().flatten().flatten() {
        used.0 += entry.metadata().map_or(0, |m| m.len());
        used.1 += 1;
    }
    object([
        ("name", c.name.as_str().into()),
        ("startTime", json!(c.started)),
        ("cpu", cpu(c.cri.cpu.as_ref())),
        ("memory", memory(c.cri.memory.as_ref())),
        ("rootfs", root),
        ("logs", node::file_system(&logs, now, Some(used))),
        ("swap", swap(c.cri.swap.as_ref())),
    ])
}

fn pod(state: &State, p: &PodStats) -> Value {
    let containers: Vec<Value> = p.containers.iter().map(|c| container(state, p, c)).collect();
    let used =
        |part: &str, field: &str| -> u64 { containers.iter().filter_map(|c| c[part][field].as_u64()).sum() };
    let both = |field: &str| used("rootfs", field) + used("logs", field);
    let ephemeral = (both("usedBytes"), both("inodesUsed"));
    let processes = p.linux.process.as_ref().and_then(|s| s.process_count);
    object([
        ("podRef", json!({"name": p.name, "namespace": p.namespace, "uid": p.uid})),
        ("startTime", json!(p.started)),
        ("cpu", cpu(p.linux.cpu.as_ref())),
        ("memory", memory(p.linux.memory.as_ref())),
        ("network", network(p.linux.network.as_ref())),
        (
            "ephemeral-storage",
            node::file_system(&state.shared.config.data_dir, Timestamp::now(), Some(ephemeral)),
        ),
        ("process_stats", object([("process_count", number(processes))])),
        ("containers", containers.into()),
    ])
}

/// The file systems of images and of containers, as the runtime tells.
async fn runtime(state: &State) -> Value {
    let answer = state.shared.runtime.images().image_fs_info(cri::ImageFsInfoRequest {}).await;
    let Ok(answer) = answer.map(tonic::Response::into_inner) else { return Value::Null };
    let usage = |list: &[cri::FilesystemUsage]| {
        list.first().map_or(Value::Null, |f| {
            let at = f.fs_id.as_ref().map(|id| id.mountpoint.clone()).unwrap_or_default();
            let value = |v: Option<cri::UInt64Value>| v.map_or(0, |v| v.value);
            let used = (value(f.used_bytes), value(f.inodes_used));
            node::file_system(std::path::Path::new(&at), from_nanos(f.timestamp), Some(used))
        })
    };
    let images = usage(&answer.image_filesystems);
    let containers = usage(&answer.container_filesystems);
    let containers = if containers.is_null() { images.clone() } else { containers };
    object([("imageFs", images), ("containerFs", containers)])
}

/// The whole document.
pub(super) async fn document(state: &State, pods: &[PodStats]) -> Value {
    let now = Timestamp::now();
    let usage = NodeUsage::read();
    let started = Timestamp::try_from(state.started).unwrap_or_default();
    let node = object([
        ("nodeName", state.shared.config.node_name.as_str().into()),
        ("startTime", json!(started)),
        ("cpu", usage.cpu(now, usage.rate(&state.cpu))),
        ("memory", usage.memory(now)),
        ("swap", usage.swap(now)),
        ("network", node::network(now)),
        ("fs", node::file_system(&state.shared.config.data_dir, now, None)),
        ("runtime", runtime(state).await),
        ("rlimit", node::processes(now)),
    ]);
    let pods: Vec<Value> = pods.iter().map(|p| pod(state, p)).collect();
    json!({"node": node, "pods": pods})
}
