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

/// A quantity in billionths; `None` if it is not a number.
pub(crate) fn nano(q: &Quantity) -> Option<i128> {
    let s = q.0.trim();
    let split = s.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(s.len());
    let (number, suffix) = s.split_at(split);
    let (sign, digits) = match number.strip_prefix('-') {
        Some(d) => (-1, d),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() > 24 || fraction.len() > 24 {
        return None;
    }
    // The value is mantissa * scale / 10^places.
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = u32::try_from(fraction.len()).ok()?;
    let binary = |power: u32| Some((1_i128 << (10 * power)) * 1_000_000_000);
    let decimal = |exponent: i32| u32::try_from(exponent + 9).ok().and_then(|e| 10_i128.checked_pow(e));
    let scale = match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            decimal(exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|e| (-9..19).contains(e))?)
        }
    }?;
    let value = mantissa.checked_mul(scale)?;
    let divisor = 10_i128.checked_pow(places)?;
    // Kubernetes rounds up what it cannot represent.
    let rounded = value / divisor + i128::from(value % divisor != 0);
    Some(sign * rounded)
}

/// A quantity in whole units, rounded up.
pub(crate) fn units(q: &Quantity) -> Option<i64> {
    let n = nano(q)?;
    i64::try_from(n.div_euclid(1_000_000_000) + i128::from(n.rem_euclid(1_000_000_000) != 0)).ok()
}

/// A quantity in thousandths, rounded up.
pub(crate) fn milli(q: &Quantity) -> Option<i64> {
    let n = nano(q)?;
    i64::try_from(n.div_euclid(1_000_000) + i128::from(n.rem_euclid(1_000_000) != 0)).ok()
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
    fn quantities() {
        let n = |s: &str| nano(&Quantity(s.into()));
        for (text, want) in [
            ("1", Some(1_000_000_000)),
            ("100m", Some(100_000_000)),
            ("0.5", Some(500_000_000)),
            ("1.5Gi", Some(1_610_612_736 * 1_000_000_000)),
            ("1e3", Some(1_000 * 1_000_000_000)),
            ("2E", Some(2_000_000_000_000_000_000 * 1_000_000_000)),
            ("-1k", Some(-1_000 * 1_000_000_000)),
            ("1n", Some(1)),
            ("0.1n", Some(1)),
            ("", None),
            (".", None),
            ("1Zi", None),
            ("abc", None),
        ] {
            assert_eq!(n(text), want, "{text}");
        }
        assert_eq!(milli(&Quantity("1".into())), Some(1000));
        assert_eq!(units(&Quantity("1001m".into())), Some(2));
    }

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
