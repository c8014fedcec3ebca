//! `/metrics/resource` (KEP-727) and `/metrics/cadvisor`, whose names many dashboards know. Pure but for the node's
//! own numbers.

use hawser_api::exposition::Exposition;
use jiff::Timestamp;
use k8s_cri::v1 as cri;

use super::node::NodeUsage;
use super::pods::{ContainerStats, PodStats};

fn value(v: Option<cri::UInt64Value>) -> Option<u64> {
    v.map(|v| v.value)
}

#[expect(clippy::cast_precision_loss, reason = "seconds for people and graphs")]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn cpu(usage: Option<&cri::CpuUsage>) -> Option<f64> {
    usage.and_then(|c| value(c.usage_core_nano_seconds)).map(seconds)
}

fn memory(usage: Option<&cri::MemoryUsage>) -> Option<u64> {
    usage.and_then(|m| value(m.working_set_bytes))
}

fn swap(usage: Option<&cri::SwapUsage>) -> Option<u64> {
    usage.and_then(|s| value(s.swap_usage_bytes))
}

fn started(at: Option<Timestamp>) -> Option<String> {
    at.map(|t| format!("{:.3}", t.as_duration().as_secs_f64()))
}

/// Writes a family with a sample for each container that has one.
fn containers<T: std::fmt::Display>(
    out: &mut Exposition,
    pods: &[PodStats],
    (name, kind, help): (&str, &str, &str),
    sample: impl Fn(&ContainerStats) -> Option<T>,
) {
    out.family(name, kind, help);
    for (pod, c) in pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c))) {
        if let Some(v) = sample(c) {
            let labels = [("container", &*c.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
            out.sample(name, &labels, v);
        }
    }
}

/// Likewise for each pod.
fn of_pods<T: std::fmt::Display>(
    out: &mut Exposition,
    pods: &[PodStats],
    (name, kind, help): (&str, &str, &str),
    sample: impl Fn(&PodStats) -> Option<T>,
) {
    out.family(name, kind, help);
    for pod in pods {
        if let Some(v) = sample(pod) {
            out.sample(name, &[("namespace", &*pod.namespace), ("pod", &*pod.name)], v);
        }
    }
}

/// `/metrics/resource`; without pods when the runtime does not answer, which is told as an error.
pub(super) fn resource(pods: Option<&[PodStats]>) -> Exposition {
    let mut out = Exposition::default();
    let error = u8::from(pods.is_none());
    let pods = pods.unwrap_or_default();
    let node = NodeUsage::read();
    let family = |name, help| (name, "counter", help);
    let gauge = |name, help| (name, "gauge", help);
    containers(
        &mut out,
        pods,
        family(
            "container_cpu_usage_seconds_total",
            "Cumulative cpu time consumed by the container in core-seconds",
        ),
        |c| cpu(c.cri.cpu.as_ref()),
    );
    containers(
        &mut out,
        pods,
        gauge("container_memory_working_set_bytes", "Current working set of the container in bytes"),
        |c| memory(c.cri.memory.as_ref()),
    );
    containers(
        &mut out,
        pods,
        gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds"),
        |c| started(c.started),
    );
    containers(
        &mut out,
        pods,
        gauge(
            "container_swap_usage_bytes",
            "Current amount of the container swap usage in bytes. Reported only on non-windows systems",
        ),
        |c| swap(c.cri.swap.as_ref()),
    );
    out.single(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        seconds(node.cpu_ns),
    );
    out.single(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        node.working_set(),
    );
    out.single(
        "node_swap_usage_bytes",
        "gauge",
        "Current swap usage of the node in bytes. Reported only on non-windows systems",
        node.swap_total.saturating_sub(node.swap_free),
    );
    of_pods(
        &mut out,
        pods,
        family("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds"),
        |p| cpu(p.linux.cpu.as_ref()),
    );
    of_pods(
        &mut out,
        pods,
        gauge("pod_memory_working_set_bytes", "Current working set of the pod in bytes"),
        |p| memory(p.linux.memory.as_ref()),
    );
    for name in ["resource_scrape_error", "scrape_error"] {
        out.single(
            name,
            "gauge",
            "1 if there was an error while getting container metrics, 0 otherwise",
            error,
        );
    }
    out
}

/// A sample of one container, and the labels it has beyond those of all.
type Rule = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    fn(&ContainerStats) -> Option<f64>,
);

#[expect(clippy::cast_precision_loss, reason = "numbers for people and graphs")]
fn float(v: Option<u64>) -> Option<f64> {
    v.map(|v| v as f64)
}

fn of_memory(c: &ContainerStats, field: fn(&cri::MemoryUsage) -> Option<cri::UInt64Value>) -> Option<f64> {
    float(c.cri.memory.as_ref().and_then(field).map(|v| v.value))
}

const CONTAINERS: &[Rule] = &[
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
        &[("cpu", "total")],
        |c| cpu(c.cri.cpu.as_ref()),
    ),
    ("container_fs_inodes_total", "gauge", "Number of Inodes", &[], |c| {
        float(c.cri.writable_layer.as_ref().and_then(|l| value(l.inodes_used)))
    }),
    (
        "container_fs_usage_bytes",
        "gauge",
        "Number of bytes that are consumed by the container on this filesystem.",
        &[],
        |c| float(c.cri.writable_layer.as_ref().and_then(|l| value(l.used_bytes))),
    ),
    (
        "container_memory_failures_total",
        "counter",
        "Cumulative count of memory allocation failures.",
        &[("failure_type", "pgfault"), ("scope", "container")],
        |c| of_memory(c, |m| m.page_faults),
    ),
    (
        "container_memory_failures_total",
        "counter",
        "Cumulative count of memory allocation failures.",
        &[("failure_type", "pgmajfault"), ("scope", "container")],
        |c| of_memory(c, |m| m.major_page_faults),
    ),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", &[], |c| of_memory(c, |m| m.rss_bytes)),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", &[], |c| {
        float(swap(c.cri.swap.as_ref()))
    }),
    (
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        &[],
        |c| of_memory(c, |m| m.usage_bytes),
    ),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", &[], |c| {
        of_memory(c, |m| m.working_set_bytes)
    }),
    (
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds.",
        &[],
        |c| c.started.map(|t| t.as_duration().as_secs_f64()),
    ),
];

/// One counter of an interface.
type NetworkRule = (&'static str, &'static str, fn(&cri::NetworkInterfaceUsage) -> Option<cri::UInt64Value>);

const NETWORK: &[NetworkRule] = &[
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.rx_bytes),
    (
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |i| i.rx_errors,
    ),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.tx_bytes),
    (
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |i| i.tx_errors,
    ),
];

/// `/metrics/cadvisor`.
pub(super) fn cadvisor(pods: &[PodStats]) -> Exposition {
    let mut out = Exposition::default();
    let mut before = "";
    for (name, kind, help, more, sample) in CONTAINERS {
        if *name != before {
            out.family(name, kind, help);
            before = name;
        }
        for (pod, c) in pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c))) {
            if let Some(v) = sample(c) {
                let mut labels = vec![
                    ("container", &*c.name),
                    ("id", &*c.id),
                    ("image", &*c.image),
                    ("namespace", &*pod.namespace),
                    ("pod", &*pod.name),
                ];
                labels.extend(more.iter().copied());
                labels.sort_unstable();
                out.sample(name, &labels, v);
            }
        }
    }
    for (name, help, sample) in NETWORK {
        out.family(name, "counter", help);
        for pod in pods {
            let network = pod.linux.network.iter();
            for i in network.flat_map(|n| n.default_interface.iter().chain(&n.interfaces)) {
                if let Some(v) = sample(i) {
                    let labels =
                        [("interface", &*i.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
                    out.sample(name, &labels, v.value);
                }
            }
        }
    }
    out.family("container_processes", "gauge", "Number of processes running inside the container.");
    for pod in pods {
        if let Some(n) = pod.linux.process.as_ref().and_then(|p| value(p.process_count)) {
            out.sample("container_processes", &[("namespace", &*pod.namespace), ("pod", &*pod.name)], n);
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    out.single("machine_cpu_cores", "gauge", "Number of logical CPU cores.", cores);
    out.single(
        "machine_memory_bytes",
        "gauge",
        "Amount of memory installed on the machine.",
        NodeUsage::read().total,
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Vec<PodStats> {
        let some = |value| Some(cri::UInt64Value { value });
        let container = cri::ContainerStats {
            cpu: Some(cri::CpuUsage { usage_core_nano_seconds: some(1_500_000_000), ..Default::default() }),
            memory: Some(cri::MemoryUsage { working_set_bytes: some(4096), ..Default::default() }),
            ..Default::default()
        };
        let interface =
            cri::NetworkInterfaceUsage { name: "eth0".into(), rx_bytes: some(7), ..Default::default() };
        let network = cri::NetworkUsage { default_interface: Some(interface), ..Default::default() };
        vec![PodStats {
            namespace: "ns".into(),
            name: "p".into(),
            uid: "u".into(),
            started: None,
            linux: cri::LinuxPodSandboxStats {
                cpu: container.cpu,
                network: Some(network),
                ..Default::default()
            },
            containers: vec![ContainerStats {
                name: "c".into(),
                id: "i".into(),
                image: "img".into(),
                started: Timestamp::from_second(100).ok(),
                cri: container,
            }],
        }]
    }

    #[test]
    fn resource_metrics_have_kubernetes_names() {
        let text = resource(Some(&pods())).finish();
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"ns\",pod=\"p\"} 1.5\n",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"ns\",pod=\"p\"} 4096\n",
            "container_start_time_seconds{container=\"c\",namespace=\"ns\",pod=\"p\"} 100.000\n",
            "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\"} 1.5\n",
            "resource_scrape_error 0\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(resource(None).finish().contains("resource_scrape_error 1\n"));
    }

    #[test]
    fn cadvisor_metrics() {
        let text = cadvisor(&pods()).finish();
        let labels = "container=\"c\",cpu=\"total\",id=\"i\",image=\"img\",namespace=\"ns\",pod=\"p\"";
        for line in [
            format!("container_cpu_usage_seconds_total{{{labels}}} 1.5\n"),
            "container_network_receive_bytes_total{interface=\"eth0\",namespace=\"ns\",pod=\"p\"} 7\n"
                .to_owned(),
        ] {
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert_eq!(text.matches("# TYPE container_memory_failures_total").count(), 1);
    }
}
