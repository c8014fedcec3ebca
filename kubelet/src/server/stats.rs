//! Statistics and metrics, from what CRI tells of pods and containers.

use super::{Body, State, respond, text};
use crate::cri::{from_nanos, keys};
use http::{Response, StatusCode};
use k8s_cri::v1 as cri;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

/// Prometheus' text format.
pub(super) const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

type PodKey = (String, String, String);

async fn container_stats(
    state: &State,
) -> Result<BTreeMap<PodKey, Vec<(String, cri::ContainerStats)>>, tonic::Status> {
    let request = cri::ListContainerStatsRequest { filter: None };
    let answer = state.shared.runtime.runtime().list_container_stats(request).await?;
    let mut out: BTreeMap<PodKey, Vec<_>> = BTreeMap::new();
    for s in answer.into_inner().stats {
        let Some(a) = &s.attributes else { continue };
        let label = |k: &str| a.labels.get(k).cloned().unwrap_or_default();
        let pod = (label(keys::POD_NAMESPACE), label(keys::POD_NAME), label(keys::POD_UID));
        let name = label(keys::CONTAINER_NAME);
        out.entry(pod).or_default().push((name, s));
    }
    Ok(out)
}

fn cpu(c: &cri::ContainerStats) -> Value {
    let Some(c) = &c.cpu else { return Value::Null };
    json!({
        "time": from_nanos(c.timestamp),
        "usageNanoCores": c.usage_nano_cores.map(|v| v.value),
        "usageCoreNanoSeconds": c.usage_core_nano_seconds.map(|v| v.value)
    })
}

fn memory(c: &cri::ContainerStats) -> Value {
    let Some(m) = &c.memory else { return Value::Null };
    json!({
        "time": from_nanos(m.timestamp),
        "workingSetBytes": m.working_set_bytes.map(|v| v.value),
        "usageBytes": m.usage_bytes.map(|v| v.value),
        "rssBytes": m.rss_bytes.map(|v| v.value),
        "availableBytes": m.available_bytes.map(|v| v.value),
        "pageFaults": m.page_faults.map(|v| v.value),
        "majorPageFaults": m.major_page_faults.map(|v| v.value)
    })
}

/// `/stats/summary`.
pub(super) async fn summary(state: &State) -> Response<Body> {
    let all = match container_stats(state).await {
        Ok(all) => all,
        Err(e) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", e.message())),
    };
    let pods: Vec<Value> = all
        .iter()
        .map(|((namespace, name, uid), containers)| {
            let list: Vec<Value> = containers
                .iter()
                .map(|(n, c)| json!({"name": n, "cpu": cpu(c), "memory": memory(c)}))
                .collect();
            json!({"podRef": {"name": name, "namespace": namespace, "uid": uid}, "containers": list})
        })
        .collect();
    let node = json!({
        "nodeName": state.shared.config.node_name,
        "startTime": jiff::Timestamp::try_from(state.started).unwrap_or_default(),
        "memory": {"availableBytes": state.shared.node_memory}
    });
    respond(StatusCode::OK, "application/json", json!({"node": node, "pods": pods}).to_string())
}

/// `/metrics/resource`.
pub(super) async fn resource_metrics(state: &State) -> Response<Body> {
    let all = match container_stats(state).await {
        Ok(all) => all,
        Err(e) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", e.message())),
    };
    let (mut cpu, mut memory) = (String::new(), String::new());
    for ((namespace, pod, _), containers) in &all {
        for (name, c) in containers {
            let labels = format!("container=\"{name}\",namespace=\"{namespace}\",pod=\"{pod}\"");
            if let Some(v) = c.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds) {
                #[allow(clippy::cast_precision_loss)] // nanoseconds of a container's life fit
                let seconds = v.value as f64 / 1e9;
                put(&mut cpu, &format!("container_cpu_usage_seconds_total{{{labels}}} {seconds}"));
            }
            if let Some(v) = c.memory.as_ref().and_then(|m| m.working_set_bytes) {
                put(&mut memory, &format!("container_memory_working_set_bytes{{{labels}}} {}", v.value));
            }
        }
    }
    let out = format!(
        "# HELP container_cpu_usage_seconds_total Cumulative cpu time consumed by the container in core-seconds\n\
         # TYPE container_cpu_usage_seconds_total counter\n{cpu}\
         # HELP container_memory_working_set_bytes Current working set of the container in bytes\n\
         # TYPE container_memory_working_set_bytes gauge\n{memory}"
    );
    respond(StatusCode::OK, TEXT_FORMAT, out)
}

fn put(out: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{line}");
}

/// `/metrics`: the kubelet's own.
pub(super) fn metrics(state: &State) -> Response<Body> {
    let views = state.pods.all();
    let running_pods = views.iter().filter(|v| v.observed.any_running()).count();
    let mut by_state: BTreeMap<&str, usize> = BTreeMap::new();
    for c in views.iter().flat_map(|v| &v.observed.containers) {
        use crate::pod::State;
        let name = match c.state {
            State::Created => "created",
            State::Running(_) => "running",
            State::Exited(_) => "exited",
            State::Unknown => "unknown",
        };
        *by_state.entry(name).or_default() += 1;
    }
    let mut out = String::new();
    put(&mut out, "# HELP kubelet_running_pods Number of pods that have a running pod sandbox");
    put(&mut out, "# TYPE kubelet_running_pods gauge");
    put(&mut out, &format!("kubelet_running_pods {running_pods}"));
    put(&mut out, "# HELP kubelet_running_containers Number of containers by their state");
    put(&mut out, "# TYPE kubelet_running_containers gauge");
    for (name, count) in by_state {
        put(&mut out, &format!("kubelet_running_containers{{container_state=\"{name}\"}} {count}"));
    }
    put(&mut out, "# HELP kubelet_desired_pods The number of pods the kubelet is being instructed to run");
    put(&mut out, "# TYPE kubelet_desired_pods gauge");
    put(&mut out, &format!("kubelet_desired_pods {}", views.len()));
    let started = state.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    put(&mut out, "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.");
    put(&mut out, "# TYPE process_start_time_seconds gauge");
    put(&mut out, &format!("process_start_time_seconds {:.3}", started.as_secs_f64()));
    respond(StatusCode::OK, TEXT_FORMAT, out)
}
