//! What a pod's life waits for until every node's dataplane has acknowledged it: PURE. See [`hawser_api::dataplane`].

use super::model::NodeFacts;
use hawser_api::dataplane::{DRAINED, PROGRAMMED};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use std::time::Duration;

/// What a container gets at least between SIGTERM and SIGKILL, whatever came before (Kubernetes gives as much after a
/// preStop hook).
pub const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Whether every live node can reach the pod at the addresses that its status names.
pub(super) fn is_programmed(conditions: &[PodCondition], status: &PodStatus) -> bool {
    let addresses: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    conditions
        .iter()
        .find(|c| c.type_ == PROGRAMMED)
        .is_some_and(|c| c.status == "True" && c.message.as_deref() == Some(&addresses.join(",")))
}

/// Whether every live node sends new connections elsewhere.
pub fn is_drained(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == DRAINED && c.status == "True")
}

/// How long the signal that ends a container may wait for the pod to be drained, of a grace period of which `grace` is
/// left. `None`: not at all. A pod that no node was told of has nothing to drain, and neither has one that ends by
/// itself.
pub fn drain_time(pod: &Pod, node: &NodeFacts, grace: Duration) -> Option<Duration> {
    let told = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == PROGRAMMED);
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let time = grace.checked_sub(LEAST_GRACE).filter(|t| !t.is_zero())?;
    (node.acknowledged && told && deleted && !is_drained(pod)).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(deleted: bool, conditions: Value) -> Pod {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [], "terminationGracePeriodSeconds": 30},
            "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "conditions": conditions}
        }))
        .unwrap();
        if deleted {
            pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                jiff::Timestamp::from_second(1_000_000).unwrap(),
            ));
            pod.metadata.deletion_grace_period_seconds = Some(30);
        }
        pod
    }

    #[test]
    fn programmed_for_the_addresses_that_the_pod_has() {
        let cases = [
            (json!([]), false),
            (json!([{"type": PROGRAMMED, "status": "False", "message": "10.0.0.1,fd00::1"}]), false),
            (json!([{"type": PROGRAMMED, "status": "True", "message": "10.0.0.9"}]), false),
            (json!([{"type": PROGRAMMED, "status": "True"}]), false),
            (json!([{"type": PROGRAMMED, "status": "True", "message": "10.0.0.1,fd00::1"}]), true),
        ];
        for (conditions, expected) in cases {
            let status = pod(false, conditions.clone()).status.unwrap();
            let held = status.conditions.clone().unwrap_or_default();
            assert_eq!(is_programmed(&held, &status), expected, "{conditions}");
        }
    }

    #[test]
    fn only_a_deleted_pod_that_nodes_know_drains() {
        let programmed = json!({"type": PROGRAMMED, "status": "True", "message": "10.0.0.1,fd00::1"});
        let drained = json!({"type": DRAINED, "status": "True"});
        let cases = [
            // deleted, conditions, gate on, grace left, wait
            (true, json!([programmed]), true, 30, Some(28)),
            (true, json!([programmed]), true, 5, Some(3)),
            (true, json!([programmed]), true, 2, None),
            (true, json!([programmed]), true, 0, None),
            (true, json!([programmed]), false, 30, None),
            (true, json!([]), true, 30, None),
            (false, json!([programmed]), true, 30, None),
            (true, json!([programmed, drained]), true, 30, None),
        ];
        for (deleted, conditions, acknowledged, grace, wait) in cases {
            let facts = NodeFacts { host_ips: Vec::new(), acknowledged };
            let found = drain_time(&pod(deleted, conditions.clone()), &facts, Duration::from_secs(grace));
            assert_eq!(found, wait.map(Duration::from_secs), "{deleted} {conditions} {acknowledged} {grace}");
        }
    }
}
