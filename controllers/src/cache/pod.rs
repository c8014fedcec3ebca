//! What controllers read of a pod. Clusters have more pods than all else, and most pods are copies of a template: what
//! is the same for all of them is kept once, and what no controller reads is not kept.
//!
//! A held pod cannot be written back: controllers patch pods, delete them, and make new ones from templates.

use std::ops::Deref;
use std::sync::Arc;

use hawser_watch::LeanPod;
use k8s_openapi::api::core::v1::{
    ContainerStatus, Pod as Wire, PodCondition, PodResourceClaimStatus, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde::Serialize;

use super::held::{Held, Metadata};
use super::pool::Pool;
use crate::object::Labels;

/// The annotations of pods that some controller reads.
const ANNOTATIONS: [&str; 3] =
    [crate::pods::DELETION_COST, crate::job::COMPLETION_INDEX, crate::job::INDEX_FAILURES];

/// A pod, as it is held.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Metadata.
    pub metadata: Meta,
    /// What it is to be, but for the node: see [`Pod::node_name`]. Of containers there are names, images, ports,
    /// resources and restart policies, of volumes those with claims.
    pub spec: Option<Arc<PodSpec>>,
    /// The node it is on, empty when it is on none.
    pub node_name: Arc<str>,
    /// What has become of it.
    pub status: Status,
}

/// What pods of one template have in common in their metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Common {
    /// Labels.
    pub labels: Option<Labels>,
    /// Owners.
    pub owner_references: Option<Vec<OwnerReference>>,
    /// Finalizers.
    pub finalizers: Option<Vec<String>>,
}

/// Metadata of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// Name.
    pub name: Box<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Uid.
    pub uid: Box<str>,
    /// Version.
    pub resource_version: Option<Box<str>>,
    /// When it was made.
    pub creation_timestamp: Option<Time>,
    /// When its deletion was to end.
    pub deletion_timestamp: Option<Time>,
    /// How long that was to take.
    pub deletion_grace_period_seconds: Option<i64>,
    annotations: Option<Arc<Labels>>,
    common: Arc<Common>,
}

impl Deref for Meta {
    type Target = Common;

    fn deref(&self) -> &Common {
        &self.common
    }
}

impl Metadata for Meta {
    fn name(&self) -> &str {
        &self.name
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn uid(&self) -> &str {
        &self.uid
    }

    fn resource_version(&self) -> Option<&str> {
        self.resource_version.as_deref()
    }

    fn labels(&self) -> &Option<Labels> {
        &self.common.labels
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn owner_references(&self) -> &[OwnerReference] {
        self.common.owner_references.as_deref().unwrap_or_default()
    }

    fn finalizers(&self) -> &[String] {
        self.common.finalizers.as_deref().unwrap_or_default()
    }

    fn deletion_timestamp(&self) -> Option<&Time> {
        self.deletion_timestamp.as_ref()
    }
}

/// What has become of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Its phase, empty when unset.
    pub phase: Arc<str>,
    /// Why it is in that phase.
    pub reason: Option<Arc<str>>,
    /// Its addresses.
    pub ips: Box<[Box<str>]>,
    /// When its node took it.
    pub start_time: Option<Time>,
    /// All of its conditions.
    pub conditions: Box<[Condition]>,
    /// Its init containers, then its containers.
    pub containers: Box<[Container]>,
    /// Which claims were made for it.
    pub resource_claim_statuses: Option<Arc<Vec<PodResourceClaimStatus>>>,
    /// The claim that the scheduler made for its extended resources.
    pub extended_resource_claim: Option<Box<str>>,
}

/// A condition: what it says is the same for many pods, its times are not.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    said: Arc<PodCondition>,
    /// When it was looked at.
    pub last_probe_time: Option<Time>,
    /// Since when it is so.
    pub last_transition_time: Option<Time>,
}

impl Deref for Condition {
    type Target = PodCondition;

    fn deref(&self) -> &PodCondition {
        &self.said
    }
}

/// A container's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it runs before the pod's work, or beside it.
    pub is_init: bool,
    /// How often it was started again.
    pub restart_count: i32,
    /// The code that it ended with, and when.
    pub ended: Option<(i32, Option<Time>)>,
}

/// Where pods' equal parts are.
#[derive(Default)]
pub struct Pools {
    strings: Pool<str>,
    commons: Pool<Common>,
    annotations: Pool<Labels>,
    specs: Pool<PodSpec>,
    conditions: Pool<PodCondition>,
    claims: Pool<Vec<PodResourceClaimStatus>>,
}

impl Pod {
    /// A pod by itself.
    pub fn of(pod: Wire) -> Self {
        Self::hold(pod, &Pools::default())
    }

    /// Whether labels, owners and finalizers of both are the same.
    pub fn have_in_common(a: &Self, b: &Self) -> bool {
        Arc::ptr_eq(&a.metadata.common, &b.metadata.common) || a.metadata.common == b.metadata.common
    }

    /// Its conditions, as they are written.
    pub fn conditions(&self) -> Vec<PodCondition> {
        let whole = |condition: &Condition| PodCondition {
            last_probe_time: condition.last_probe_time.clone(),
            last_transition_time: condition.last_transition_time.clone(),
            ..(*condition.said).clone()
        };
        self.status.conditions.iter().map(whole).collect()
    }
}

impl Held for Pod {
    type Wire = Wire;
    type Read = LeanPod;
    type Meta = Meta;
    type Pool = Pools;

    fn hold(pod: Wire, pool: &Pools) -> Self {
        let meta = pod.metadata;
        let string = |text: Option<String>| pool.strings.share(text.as_deref().unwrap_or_default());
        let mut annotations = meta.annotations.unwrap_or_default();
        annotations.retain(|name, _| ANNOTATIONS.contains(&name.as_str()));
        let metadata = Meta {
            name: meta.name.unwrap_or_default().into(),
            namespace: string(meta.namespace),
            uid: meta.uid.unwrap_or_default().into(),
            resource_version: meta.resource_version.map(Into::into),
            creation_timestamp: meta.creation_timestamp,
            deletion_timestamp: meta.deletion_timestamp,
            deletion_grace_period_seconds: meta.deletion_grace_period_seconds,
            annotations: (!annotations.is_empty()).then(|| pool.annotations.share(annotations)),
            common: pool.commons.share(Common {
                labels: meta.labels,
                owner_references: meta.owner_references,
                finalizers: meta.finalizers,
            }),
        };
        let mut spec = pod.spec;
        let node_name = string(spec.as_mut().and_then(|s| s.node_name.take()));
        let spec = spec.map(|mut spec| {
            trim(&mut spec);
            if !node_name.is_empty() {
                // It said where the pod may go: that of daemons' pods is another one for each of them.
                spec.affinity = None;
            }
            pool.specs.share(spec)
        });
        Self { metadata, spec, node_name, status: status(pod.status.unwrap_or_default(), pool) }
    }

    fn held_meta(&self) -> &Meta {
        &self.metadata
    }
}

/// Keeps of a pod's spec what controllers read.
fn trim(spec: &mut PodSpec) {
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container.command = None;
        container.args = None;
        container.env = None;
        container.env_from = None;
        container.volume_mounts = None;
        container.liveness_probe = None;
        container.readiness_probe = None;
        container.startup_probe = None;
        container.lifecycle = None;
        container.security_context = None;
    }
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some());
        volumes.shrink_to_fit();
    }
    spec.containers.shrink_to_fit();
    spec.security_context = None;
    spec.topology_spread_constraints = None;
    spec.dns_config = None;
}

fn status(status: PodStatus, pool: &Pools) -> Status {
    let string = |text: &str| pool.strings.share(text);
    let listed: Vec<String> = status.pod_ips.into_iter().flatten().map(|ip| ip.ip).collect();
    let ips = if listed.is_empty() { status.pod_ip.into_iter().collect() } else { listed };
    let conditions = status.conditions.into_iter().flatten().map(|mut condition| Condition {
        last_probe_time: condition.last_probe_time.take(),
        last_transition_time: condition.last_transition_time.take(),
        said: pool.conditions.share(condition),
    });
    let container = |is_init: bool| {
        move |status: ContainerStatus| Container {
            name: string(&status.name),
            is_init,
            restart_count: status.restart_count,
            ended: status.state.and_then(|s| s.terminated).map(|t| (t.exit_code, t.finished_at)),
        }
    };
    let init = status.init_container_statuses.into_iter().flatten().map(container(true));
    Status {
        phase: string(status.phase.as_deref().unwrap_or_default()),
        reason: status.reason.as_deref().map(string),
        ips: ips.into_iter().filter(|ip| !ip.is_empty()).map(Into::into).collect(),
        start_time: status.start_time,
        conditions: conditions.collect(),
        containers: init
            .chain(status.container_statuses.into_iter().flatten().map(container(false)))
            .collect(),
        resource_claim_statuses: status
            .resource_claim_statuses
            .filter(|claims| !claims.is_empty())
            .map(|claims| pool.claims.share(claims)),
        extended_resource_claim: status.extended_resource_claim_status.map(|s| s.resource_claim_name.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wire(name: &str, node: &str) -> Wire {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "resourceVersion": "7",
                "labels": {"app": "web"}, "annotations": {"cni.example/ip": node,
                    "controller.kubernetes.io/pod-deletion-cost": "3"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u",
                    "controller": true}]},
            "spec": {"nodeName": node, "containers": [{"name": "c", "command": ["x"],
                "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [
                {"type": "Ready", "status": "True", "message": "m", "observedGeneration": 2,
                    "lastProbeTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-02T00:00:00Z"}],
                "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 4}]}
        }))
        .unwrap()
    }

    #[test]
    fn pods_of_one_template_share_what_is_the_same() {
        let pool = Pools::default();
        let (a, b) = (Pod::hold(wire("a", "n1"), &pool), Pod::hold(wire("b", "n2"), &pool));
        assert!(Arc::ptr_eq(a.spec.as_ref().unwrap(), b.spec.as_ref().unwrap()));
        assert!(Arc::ptr_eq(&a.metadata.common, &b.metadata.common));
        assert!(Arc::ptr_eq(&a.status.conditions[0].said, &b.status.conditions[0].said));
        assert_eq!((&*a.node_name, &*b.node_name), ("n1", "n2"));
        assert_eq!(a.metadata.annotation(crate::pods::DELETION_COST), Some("3"));
        assert_eq!(a.metadata.annotation("cni.example/ip"), None, "nobody reads it");
    }

    #[test]
    fn conditions_are_written_as_they_were_read() {
        let pod = wire("a", "n1");
        assert_eq!(Some(Pod::of(pod.clone()).conditions()), pod.status.unwrap().conditions);
    }

    /// Memory per pod is the measure of large clusters: what one costs by itself must not grow unseen.
    #[test]
    fn a_pod_is_small() {
        assert!(size_of::<Pod>() <= 328, "{}", size_of::<Pod>());
        assert!(size_of::<Condition>() <= 56, "{}", size_of::<Condition>());
    }
}
