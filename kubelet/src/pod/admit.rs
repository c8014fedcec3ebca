//! Whether the node can take a pod that somebody put on it without asking the scheduler: PURE.

use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use std::sync::Arc;

/// Why a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// CamelCase reason: the scheduler's name for the rule.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
}

/// Refuses a pod that wants a port of the node which another one has. `others` gives the pods of this node that are not
/// over; it is asked only for a pod that wants some.
pub fn refusal(pod: &Pod, others: impl FnOnce() -> Vec<Arc<Pod>>) -> Option<Refusal> {
    // Once it was taken, what came later gives way.
    let known = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
    if known || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let wanted: Vec<Claim<'_>> = claims(pod).collect();
    let taken = |other: &Pod| claims(other).any(|held| wanted.iter().any(|claim| claim.conflicts(&held)));
    let conflict = !wanted.is_empty() && others().iter().any(|other| taken(other));
    conflict.then(|| Refusal {
        reason: "NodePorts",
        message: "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
            .into(),
    })
}

/// A port of the node, at one of its addresses or at all.
struct Claim<'a> {
    address: Option<&'a str>,
    protocol: &'a str,
    port: i32,
}

impl Claim<'_> {
    fn conflicts(&self, other: &Claim<'_>) -> bool {
        let same_address = self.address.is_none() || other.address.is_none() || self.address == other.address;
        self.port == other.port && self.protocol == other.protocol && same_address
    }
}

fn claims(pod: &Pod) -> impl Iterator<Item = Claim<'_>> {
    let containers = pod.spec.iter().flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always")))
    });
    containers.flat_map(|c| c.ports.iter().flatten()).filter_map(claim)
}

fn claim(port: &ContainerPort) -> Option<Claim<'_>> {
    let everywhere = |ip: &&str| !ip.is_empty() && *ip != "0.0.0.0" && *ip != "::";
    Some(Claim {
        address: port.host_ip.as_deref().filter(everywhere),
        protocol: port.protocol.as_deref().unwrap_or("TCP"),
        port: port.host_port.filter(|p| *p > 0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(ports: Value, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "ports": ports}]},
            "status": status
        }))
        .unwrap()
    }

    #[test]
    fn a_port_of_the_node_has_one_pod() {
        let at = |ip: &str, protocol: &str, port: i32| json!([{"containerPort": 1, "hostIP": ip, "protocol": protocol, "hostPort": port}]);
        let cases = [
            (at("", "TCP", 80), at("", "TCP", 80), true),
            (at("10.0.0.1", "TCP", 80), at("0.0.0.0", "TCP", 80), true),
            (at("10.0.0.1", "TCP", 80), at("10.0.0.2", "TCP", 80), false),
            (at("", "TCP", 80), at("", "UDP", 80), false),
            (at("", "TCP", 80), at("", "TCP", 81), false),
            (json!([{"containerPort": 80}]), json!([{"containerPort": 80}]), false),
        ];
        let others = |ports: &Value| vec![Arc::new(pod(ports.clone(), json!({})))];
        for (wanted, held, refused) in cases {
            let found = refusal(&pod(wanted.clone(), json!({})), || others(&held));
            assert_eq!(found.map(|r| r.reason), refused.then_some("NodePorts"), "{wanted} {held}");
        }
        let taken = pod(at("", "TCP", 80), json!({"startTime": "2026-01-01T00:00:00Z"}));
        assert_eq!(refusal(&taken, || others(&at("", "TCP", 80))), None, "it was here before");
    }
}
