//! The Node's status. PURE.

use crate::config::Config;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

/// What the runtime says of itself: `None` is fine, else why it is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub problem: Option<String>,
}

/// What the status is made of, besides the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub capacity: BTreeMap<String, Quantity>,
    pub info: NodeSystemInfo,
    pub images: Vec<ContainerImage>,
    pub health: Health,
}

/// Builds the status; conditions keep their transition times from `old`.
pub(crate) fn build(config: &Config, facts: &Facts, old: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
    let mut addresses: Vec<NodeAddress> = config
        .node_ips
        .iter()
        .map(|ip| NodeAddress { address: ip.to_string(), type_: "InternalIP".into() })
        .collect();
    addresses.push(NodeAddress { address: config.node_name.clone(), type_: "Hostname".into() });
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(facts.capacity.clone()),
        allocatable: Some(facts.capacity.clone()),
        conditions: Some(conditions(facts, old, now)),
        daemon_endpoints: config.listen.first().map(|l| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(l.port()) }),
        }),
        node_info: Some(facts.info.clone()),
        images: Some(facts.images.clone()),
        ..NodeStatus::default()
    }
}

fn conditions(facts: &Facts, old: Option<&NodeStatus>, now: Timestamp) -> Vec<NodeCondition> {
    let (ready, reason, message) = match &facts.health.problem {
        None => ("True", "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(problem) => ("False", "KubeletNotReady", problem.clone()),
    };
    let fine = |type_: &'static str, reason: &'static str, message: &str| {
        (type_, "False", reason, message.to_owned())
    };
    let drafts = [
        fine("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        fine("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        fine("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", ready, reason, message),
    ];
    let old = old.and_then(|o| o.conditions.as_deref()).unwrap_or_default();
    drafts
        .into_iter()
        .map(|(type_, status, reason, message)| {
            let before = old.iter().find(|c| c.type_ == type_ && c.status == status);
            NodeCondition {
                type_: type_.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
            }
        })
        .collect()
}

/// Whether two statuses say the same, heartbeats aside.
pub(crate) fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let quiet = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
        }
        s
    };
    quiet(a) == quiet(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions() {
        let mut config = Config::new("n", "/d");
        config.node_ips = vec!["10.0.0.1".parse().unwrap()];
        let t = |s| Timestamp::from_second(s).unwrap();
        let mut facts = Facts {
            capacity: BTreeMap::new(),
            info: NodeSystemInfo::default(),
            images: Vec::new(),
            health: Health { problem: None },
        };
        let first = build(&config, &facts, None, t(1));
        let second = build(&config, &facts, Some(&first), t(2));
        assert!(same(&first, &second));
        let ready =
            |s: &NodeStatus| s.conditions.iter().flatten().find(|c| c.type_ == "Ready").cloned().unwrap();
        assert_eq!(ready(&second).last_transition_time, Some(Time(t(1))));
        assert_eq!(ready(&second).last_heartbeat_time, Some(Time(t(2))));
        facts.health.problem = Some("no network".into());
        let third = build(&config, &facts, Some(&second), t(3));
        assert!(!same(&second, &third));
        assert_eq!(ready(&third).status, "False");
        assert_eq!(ready(&third).last_transition_time, Some(Time(t(3))));
    }
}
