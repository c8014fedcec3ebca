//! What the scheduler keeps of a pod.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeSelector, Pod, PreferredSchedulingTerm, Toleration};
use std::collections::BTreeMap;

use crate::resources::{Resources, pod_requests};

/// A pod's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// A new pod with an old one's name is another pod.
    pub uid: Arc<str>,
}

/// A port of the node that a pod wants for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `0.0.0.0` stands for every address.
    pub ip: Box<str>,
    pub protocol: Box<str>,
    pub port: i32,
}

/// The parts of a pod that decide where it may go. Much smaller than the pod itself, since the scheduler holds one
/// for each pod of the cluster.
#[derive(Clone, Debug)]
pub struct PodInfo {
    pub key: PodKey,
    pub resource_version: Box<str>,
    pub priority: i32,
    /// `preemptionPolicy: Never`: no other pod has to go for it.
    pub preempts_never: bool,
    /// The node on which room is being made for it.
    pub nominated_node: Option<Box<str>>,
    /// When its node took it up.
    pub started: Option<Timestamp>,
    pub scheduler_name: Box<str>,
    /// The node it is bound to, or that its spec names.
    pub node_name: Option<Box<str>>,
    pub gated: bool,
    /// Asked to end (`deletionTimestamp`).
    pub deleting: bool,
    /// Succeeded or Failed: holds no resources any more.
    pub finished: bool,
    pub requests: Resources,
    /// Requests with stand-ins where none are given, for scoring.
    pub scoring_requests: Resources,
    pub host_ports: Vec<HostPort>,
    pub tolerations: Vec<Toleration>,
    pub node_selector: BTreeMap<String, String>,
    pub required_affinity: Option<NodeSelector>,
    pub preferred_affinity: Vec<PreferredSchedulingTerm>,
    pub generation: Option<i64>,
    /// The message of its condition PodScheduled=False, if it has one with reason Unschedulable.
    pub unschedulable_message: Option<Box<str>>,
}

impl PodInfo {
    /// `None` for a pod without name, namespace, uid or spec, which the API never gives.
    pub fn new(pod: Pod) -> Option<Self> {
        let meta = pod.metadata;
        let spec = pod.spec?;
        let (requests, scoring_requests) = pod_requests(&spec);
        let host_ports = host_ports(&spec);
        let affinity = spec.affinity.and_then(|a| a.node_affinity);
        let (required_affinity, preferred_affinity) = affinity.map_or((None, Vec::new()), |a| {
            (
                a.required_during_scheduling_ignored_during_execution,
                a.preferred_during_scheduling_ignored_during_execution.unwrap_or_default(),
            )
        });
        let status = pod.status.unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let unschedulable_message = status
            .conditions
            .into_iter()
            .flatten()
            .find(|c| {
                c.type_ == "PodScheduled"
                    && c.status == "False"
                    && c.reason.as_deref() == Some("Unschedulable")
            })
            .map(|c| c.message.unwrap_or_default().into());
        Some(PodInfo {
            key: PodKey { namespace: meta.namespace?.into(), name: meta.name?.into(), uid: meta.uid?.into() },
            resource_version: meta.resource_version.unwrap_or_default().into(),
            priority: spec.priority.unwrap_or(0),
            preempts_never: spec.preemption_policy.as_deref() == Some("Never"),
            nominated_node: status.nominated_node_name.filter(|n| !n.is_empty()).map(Into::into),
            started: status.start_time.map(|time| time.0),
            scheduler_name: spec.scheduler_name.unwrap_or_default().into(),
            node_name: spec.node_name.filter(|n| !n.is_empty()).map(Into::into),
            gated: spec.scheduling_gates.is_some_and(|gates| !gates.is_empty()),
            deleting: meta.deletion_timestamp.is_some(),
            finished: phase == "Succeeded" || phase == "Failed",
            requests,
            scoring_requests,
            host_ports,
            tolerations: spec.tolerations.unwrap_or_default(),
            node_selector: spec.node_selector.unwrap_or_default(),
            required_affinity,
            preferred_affinity,
            generation: meta.generation,
            unschedulable_message,
        })
    }
}

fn host_ports(spec: &k8s_openapi::api::core::v1::PodSpec) -> Vec<HostPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|p| *p > 0)?;
            let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
            Some(HostPort {
                ip: ip.into(),
                protocol: port.protocol.as_deref().unwrap_or("TCP").into(),
                port: number,
            })
        })
        .collect()
}
