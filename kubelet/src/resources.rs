//! Quantities and the translation of resource requirements to CRI's cgroup parameters.

use crate::pod::{containers, qos_class};
use k8s_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Length of a CFS period, in microseconds.
const CPU_PERIOD: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Pods of this priority and above are critical to the node.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A quantity in whole units, rounded up; `None` if it is not one.
pub(crate) fn units(q: &Quantity) -> Option<i64> {
    hawser_api::quantity::Quantity::parse(&q.0).ok().map(|q| q.value())
}

/// A quantity in thousandths, rounded up; `None` if it is not one.
pub(crate) fn milli(q: &Quantity) -> Option<i64> {
    hawser_api::quantity::Quantity::parse(&q.0).ok().map(|q| q.milli_value())
}

/// Request (else limit) and limit of one resource, in thousandths for cpu and bytes for everything else.
fn pair(r: Option<&ResourceRequirements>, name: &str) -> (Option<i64>, Option<i64>) {
    let read = |q: &Quantity| if name == "cpu" { milli(q) } else { units(q) };
    let limit = r.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(name)).and_then(read);
    let request = r.and_then(|r| r.requests.as_ref()).and_then(|l| l.get(name)).and_then(read);
    (request.or(limit), limit)
}

fn shares(milli_cpu: Option<i64>) -> i64 {
    milli_cpu.map_or(MIN_SHARES, |m| (m.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES))
}

fn quota(milli_cpu: Option<i64>) -> i64 {
    milli_cpu.filter(|m| *m > 0).map_or(0, |m| m.saturating_mul(CPU_PERIOD / 1000).max(1000))
}

/// cgroup parameters and OOM score of a container. `node_memory` is the node's capacity in bytes.
pub(crate) fn container(pod: &Pod, c: &Container, node_memory: i64) -> LinuxContainerResources {
    let (cpu_request, cpu_limit) = pair(c.resources.as_ref(), "cpu");
    let (memory_request, memory_limit) = pair(c.resources.as_ref(), "memory");
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(cpu_limit),
        cpu_shares: shares(cpu_request),
        memory_limit_in_bytes: memory_limit.unwrap_or(0),
        // No swap beyond the memory limit.
        memory_swap_limit_in_bytes: memory_limit.unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, memory_request.unwrap_or(0), node_memory),
        ..LinuxContainerResources::default()
    }
}

/// cgroup parameters of the whole pod: the sum over its main containers and sidecars, or the largest init
/// container; limits only where every container has one.
pub(crate) fn pod(pod: &Pod) -> LinuxContainerResources {
    use crate::pod::Role;
    let specs = containers(pod);
    let own = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    let sum = |name: &str| -> (Option<i64>, Option<i64>) {
        let (own_request, own_limit) = pair(own, name);
        let (mut request, mut limit, mut peak, mut bounded) = (0_i64, 0_i64, (0_i64, 0_i64), true);
        for s in specs.iter().filter(|s| s.role != Role::Ephemeral) {
            let (r, l) = pair(s.container.resources.as_ref(), name);
            bounded &= l.is_some_and(|l| l > 0);
            let (r, l) = (r.unwrap_or(0), l.unwrap_or(0));
            if s.role == Role::Init {
                peak = (peak.0.max(request + r), peak.1.max(limit + l));
            } else {
                (request, limit) = (request.saturating_add(r), limit.saturating_add(l));
            }
        }
        let request = own_request.unwrap_or(request.max(peak.0));
        let limit = own_limit.or(bounded.then_some(limit.max(peak.1)));
        ((request > 0).then_some(request), limit)
    };
    let (cpu_request, cpu_limit) = sum("cpu");
    let (_, memory_limit) = sum("memory");
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(cpu_limit),
        cpu_shares: shares(cpu_request),
        memory_limit_in_bytes: memory_limit.unwrap_or(0),
        ..LinuxContainerResources::default()
    }
}

/// OOM score adjustment: -997 for guaranteed and critical pods, 1000 for best effort, and in between the less the
/// more memory a container requests.
fn oom_score_adj(pod: &Pod, memory_request: i64, node_memory: i64) -> i64 {
    let critical = pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= CRITICAL_PRIORITY);
    match qos_class(pod) {
        _ if critical => -997,
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let share = i128::from(memory_request) * 1000 / i128::from(node_memory.max(1));
            i64::try_from(1000 - share).unwrap_or(0).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory() {
        let c: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}
        }))
        .unwrap();
        let p: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [c]}})).unwrap();
        let r = container(&p, &c, 1 << 30);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.cpu_period), (256, 50_000, 100_000));
        assert_eq!(r.memory_limit_in_bytes, 64 << 20);
        assert_eq!(r.oom_score_adj, 1000 - 62);
        assert_eq!(pod(&p).cpu_quota, 50_000);
    }
}
