//! What the scheduler keeps of a pod.
//!
//! Pods that were made from one template differ in their names only. What decides where they may go is kept once, in a
//! [`Class`]: it makes the pods of a large cluster small, and tells that what was found out for one pod holds for the
//! next (an equivalence class).

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::{Arc, Weak};

use hawser_api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, PodResourceClaim, PodSpec, PodStatus, Toleration, TopologySpreadConstraint, Volume,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::devices::extended::{self, Asking};
use crate::resources::Amounts;
use crate::selector::{self, Labels, NodeTerm, NodeTerms};

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

/// What the pods of a term must be, and over which label of nodes it speaks.
#[derive(Clone, Debug, PartialEq)]
pub struct AffinityTerm {
    pub namespaces: Vec<Box<str>>,
    /// Further namespaces, by their labels.
    pub namespace_selector: LabelSelector,
    pub selector: LabelSelector,
    pub topology_key: Box<str>,
}

/// A term that is only preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedTerm {
    pub weight: i32,
    pub term: AffinityTerm,
}

/// Affinity to pods, or anti-affinity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodTerms {
    pub required: Vec<AffinityTerm>,
    pub preferred: Vec<WeightedTerm>,
}

/// One topology spread constraint (KEP-895).
#[derive(Clone, Debug, PartialEq)]
pub struct SpreadConstraint {
    pub max_skew: i32,
    pub topology_key: Box<str>,
    /// `DoNotSchedule`; otherwise it only lowers scores.
    pub hard: bool,
    /// The constraint's own selector, with the labels of `matchLabelKeys`.
    pub selector: LabelSelector,
    pub min_domains: i32,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

/// What decides where a pod may go. Shared by all pods of which it is the same.
#[derive(Debug, Default)]
pub struct Class {
    /// Never given twice while the process lives.
    pub id: u64,
    pub namespace: Box<str>,
    pub labels: Labels,
    pub owner: Option<OwnerReference>,
    pub scheduler_name: Box<str>,
    pub priority: i32,
    /// `preemptionPolicy: Never`: no other pod has to go for it.
    pub preempts_never: bool,
    pub gated: bool,
    pub amounts: Amounts,
    pub host_ports: Vec<HostPort>,
    pub tolerations: Vec<Toleration>,
    pub node_selector: BTreeMap<String, String>,
    pub required_affinity: Option<NodeTerms>,
    /// With weights.
    pub preferred_affinity: Vec<(i32, NodeTerm)>,
    pub affinity: PodTerms,
    pub anti_affinity: PodTerms,
    pub spread: Vec<SpreadConstraint>,
    /// Images of containers and init containers, then those of volumes; with a tag.
    pub images: Vec<Box<str>>,
    pub containers: usize,
    /// The volumes that have a say: claims, ephemeral ones, and disks that only one node may have.
    pub volumes: Vec<Volume>,
    /// The PodGroup that the pod belongs to.
    pub group: Option<Box<str>>,
    /// `spec.resourceClaims`.
    pub resource_claims: Vec<PodResourceClaim>,
    /// The containers that ask for resources that may be devices (KEP-5004).
    pub extended: Vec<Asking>,
    /// Features that a node must declare (KEP-5328).
    pub features: Vec<&'static str>,
}

impl Class {
    /// Whether it has any affinity to pods, or anti-affinity.
    pub fn has_pod_affinity(&self) -> bool {
        self.affinity != PodTerms::default() || self.anti_affinity != PodTerms::default()
    }
}

/// An entry of `spec.resourceClaims`, and the claim that was made for it.
pub type GeneratedClaim = (Box<str>, Option<Box<str>>);

/// A pod. Much smaller than the pod itself, since the scheduler holds one for each pod of the cluster.
#[derive(Clone, Debug)]
pub struct PodInfo {
    pub key: PodKey,
    pub class: Arc<Class>,
    /// What it takes while it is being resized; otherwise what its class says.
    pub resized: Option<Box<Amounts>>,
    /// The node on which room is being made for it.
    pub nominated_node: Option<Arc<str>>,
    /// The node it is bound to, or that its spec names.
    pub node_name: Option<Arc<str>>,
    /// When its node took it up.
    pub started: Option<Timestamp>,
    /// Asked to end (`deletionTimestamp`).
    pub deleting: bool,
    /// And that by a scheduler, to make room.
    pub preempted: bool,
    /// Succeeded or Failed: holds no resources any more.
    pub finished: bool,
    pub generation: Option<i64>,
    /// Entries of `spec.resourceClaims` with the claims that were made for them; without one, none was needed.
    pub generated_claims: Box<[GeneratedClaim]>,
    /// Reason and message of its condition PodScheduled=False, if it has one.
    pub condition: Option<Box<(String, String)>>,
}

impl std::ops::Deref for PodInfo {
    type Target = Class;

    fn deref(&self) -> &Class {
        &self.class
    }
}

impl PodInfo {
    /// What it takes of its node.
    pub fn amounts(&self) -> &Amounts {
        self.resized.as_deref().unwrap_or(&self.class.amounts)
    }

    /// The claims that its volumes name, and whether each is made for the pod itself (an ephemeral volume's).
    pub fn claims(&self) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, bool)> {
        self.class.volumes.iter().filter_map(|volume| self.claim_of(volume))
    }

    /// The claim that a volume of it names, and whether it is made for the pod itself.
    pub fn claim_of<'a>(&self, volume: &'a Volume) -> Option<(std::borrow::Cow<'a, str>, bool)> {
        match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some((claim.claim_name.as_str().into(), false)),
            (None, Some(_)) => Some((format!("{}-{}", self.key.name, volume.name).into(), true)),
            (None, None) => None,
        }
    }
}

/// What a class was made of, and the class.
type Known = (Box<[u8]>, Weak<Class>);

/// Makes pods, and their classes once each.
#[derive(Debug, Default)]
pub struct Classes {
    /// By a hash of what the class was made of.
    known: HashMap<u64, Vec<Known>>,
    hasher: std::hash::RandomState,
    next_id: u64,
    /// When to look for classes without pods.
    prune_at: usize,
}

impl Classes {
    /// `None` for a pod without name, namespace, uid or spec, which the API never gives.
    pub fn pod(&mut self, pod: Pod) -> Option<PodInfo> {
        let meta = pod.metadata;
        let mut spec = pod.spec?;
        let status = pod.status.unwrap_or_default();
        let node_name = spec.node_name.take().filter(|n| !n.is_empty());
        let owner = meta.owner_references.into_iter().flatten().find(|o| o.controller == Some(true));
        let namespace = meta.namespace?;
        prune(&mut spec);
        let class = self.class(&namespace, meta.labels.unwrap_or_default(), owner, &spec)?;
        let resizing = node_name.is_some() && has_own_resources(&status);
        let resized = resizing.then(|| Box::new(Amounts::new(&spec, Some(&status))));
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        let disrupted = conditions.iter().find(|c| c.type_ == "DisruptionTarget");
        let generated_claims = generated_claims(&status);
        Some(PodInfo {
            key: PodKey { namespace: namespace.into(), name: meta.name?.into(), uid: meta.uid?.into() },
            resized: resized.filter(|r| **r != class.amounts),
            class,
            nominated_node: status.nominated_node_name.filter(|n| !n.is_empty()).map(Into::into),
            node_name: node_name.map(Into::into),
            started: status.start_time.map(|time| time.0),
            deleting: meta.deletion_timestamp.is_some(),
            preempted: disrupted
                .is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler")),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            generation: meta.generation,
            generated_claims,
            condition: scheduled.map(|c| {
                Box::new((c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default()))
            }),
        })
    }

    fn class(
        &mut self,
        namespace: &str,
        labels: Labels,
        owner: Option<OwnerReference>,
        spec: &PodSpec,
    ) -> Option<Arc<Class>> {
        let parts = (namespace, &labels, owner.as_ref().map(|o| (&o.api_version, &o.kind, &o.name)), spec);
        let bytes = serde_json::to_vec(&parts).ok()?;
        let hash = self.hasher.hash_one(&bytes);
        let known = self.known.entry(hash).or_default();
        if let Some(class) = known.iter().find(|(b, _)| **b == *bytes).and_then(|(_, c)| c.upgrade()) {
            return Some(class);
        }
        self.next_id += 1;
        let class = Arc::new(build(self.next_id, namespace, labels, owner, spec));
        known.retain(|(_, class)| class.strong_count() > 0);
        known.push((bytes.into(), Arc::downgrade(&class)));
        if self.known.len() > self.prune_at {
            self.known.retain(|_, list| list.iter().any(|(_, class)| class.strong_count() > 0));
            self.prune_at = self.known.len() * 2 + 1024;
        }
        Some(class)
    }
}

fn generated_claims(status: &PodStatus) -> Box<[GeneratedClaim]> {
    let statuses = status.resource_claim_statuses.iter().flatten();
    statuses.map(|s| (s.name.as_str().into(), s.resource_claim_name.as_deref().map(Into::into))).collect()
}

fn has_own_resources(status: &PodStatus) -> bool {
    let statuses = status.container_statuses.iter().flatten();
    status.resources.is_some()
        || statuses.chain(status.init_container_statuses.iter().flatten()).any(|s| s.resources.is_some())
}

/// Leaves of a spec what decides where the pod may go.
fn prune(spec: &mut PodSpec) {
    let containers = spec.containers.iter_mut();
    for container in containers.chain(spec.init_containers.iter_mut().flatten()) {
        let full = std::mem::take(container);
        container.name = full.name;
        container.image = full.image;
        container.ports = full.ports.filter(|ports| ports.iter().any(|p| p.host_port.is_some_and(|p| p > 0)));
        container.resources = full.resources;
        container.restart_policy = full.restart_policy;
        container.restart_policy_rules = full.restart_policy_rules;
    }
    let full = std::mem::take(spec);
    *spec = PodSpec {
        containers: full.containers,
        init_containers: full.init_containers,
        affinity: full.affinity,
        node_selector: full.node_selector,
        overhead: full.overhead,
        preemption_policy: full.preemption_policy,
        priority: full.priority,
        resource_claims: full.resource_claims,
        resources: full.resources,
        scheduler_name: full.scheduler_name,
        scheduling_gates: full.scheduling_gates,
        scheduling_group: full.scheduling_group,
        tolerations: full.tolerations,
        topology_spread_constraints: full.topology_spread_constraints,
        host_network: full.host_network,
        host_users: full.host_users,
        volumes: full.volumes.map(|v| v.into_iter().filter(matters).collect()),
        ..PodSpec::default()
    };
}

fn matters(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some()
        || volume.ephemeral.is_some()
        || volume.image.is_some()
        || volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.azure_disk.is_some()
        || volume.cinder.is_some()
        || volume.portworx_volume.is_some()
        || volume.iscsi.is_some()
        || volume.rbd.is_some()
}

fn build(id: u64, namespace: &str, labels: Labels, owner: Option<OwnerReference>, spec: &PodSpec) -> Class {
    let affinity = spec.affinity.clone().unwrap_or_default();
    let of_nodes = affinity.node_affinity.unwrap_or_default();
    let (of_pods, against) =
        (affinity.pod_affinity.unwrap_or_default(), affinity.pod_anti_affinity.unwrap_or_default());
    let terms =
        |required: Option<Vec<PodAffinityTerm>>, preferred: Option<Vec<WeightedPodAffinityTerm>>| PodTerms {
            required: required.iter().flatten().map(|t| affinity_term(namespace, t)).collect(),
            preferred: preferred
                .iter()
                .flatten()
                .map(|t| WeightedTerm {
                    weight: t.weight,
                    term: affinity_term(namespace, &t.pod_affinity_term),
                })
                .collect(),
        };
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let images = containers().map(|c| c.image.as_deref().unwrap_or_default());
    let volumes = spec.volumes.clone().unwrap_or_default();
    let image_volumes =
        volumes.iter().filter_map(|v| v.image.as_ref()).filter_map(|i| i.reference.as_deref());
    Class {
        id,
        owner,
        namespace: namespace.into(),
        scheduler_name: spec.scheduler_name.clone().unwrap_or_default().into(),
        priority: spec.priority.unwrap_or(0),
        preempts_never: spec.preemption_policy.as_deref() == Some("Never"),
        gated: spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
        amounts: Amounts::new(spec, None),
        host_ports: host_ports(spec),
        tolerations: spec.tolerations.clone().unwrap_or_default(),
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        required_affinity: of_nodes
            .required_during_scheduling_ignored_during_execution
            .as_ref()
            .map(NodeTerms::new),
        preferred_affinity: of_nodes
            .preferred_during_scheduling_ignored_during_execution
            .iter()
            .flatten()
            .map(|t| (t.weight, NodeTerm::new(&t.preference)))
            .collect(),
        affinity: terms(
            of_pods.required_during_scheduling_ignored_during_execution,
            of_pods.preferred_during_scheduling_ignored_during_execution,
        ),
        anti_affinity: terms(
            against.required_during_scheduling_ignored_during_execution,
            against.preferred_during_scheduling_ignored_during_execution,
        ),
        spread: spec
            .topology_spread_constraints
            .iter()
            .flatten()
            .map(|c| SpreadConstraint::new(c, &labels))
            .collect(),
        images: images.chain(image_volumes).map(with_tag).collect(),
        containers: containers().count(),
        volumes: volumes.into_iter().filter(|v| v.image.is_none()).collect(),
        group: spec.scheduling_group.as_ref().and_then(|g| g.pod_group_name.as_deref()).map(Into::into),
        resource_claims: spec.resource_claims.clone().unwrap_or_default(),
        extended: extended::asking(spec),
        features: features(spec),
        labels,
    }
}

/// What a node must be able to do for the pod.
fn features(spec: &PodSpec) -> Vec<&'static str> {
    let mut found = Vec::new();
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut rules = containers.flat_map(|c| c.restart_policy_rules.iter().flatten());
    if rules.any(|rule| rule.action == "RestartAllContainers") {
        found.push("RestartAllContainersOnContainerExits");
    }
    if spec.host_network == Some(true) && spec.host_users == Some(false) {
        found.push("UserNamespacesHostNetworkSupport");
    }
    found
}

fn affinity_term(namespace: &str, term: &PodAffinityTerm) -> AffinityTerm {
    let named: Vec<Box<str>> = term.namespaces.iter().flatten().map(|n| Box::from(n.as_str())).collect();
    let own = named.is_empty() && term.namespace_selector.is_none();
    // `matchLabelKeys` are part of the selector already: the API server puts them there.
    AffinityTerm {
        namespaces: if own { vec![namespace.into()] } else { named },
        namespace_selector: selector::compile(term.namespace_selector.as_ref()),
        selector: selector::compile(term.label_selector.as_ref()),
        topology_key: term.topology_key.as_str().into(),
    }
}

impl SpreadConstraint {
    /// Compiles a constraint of a pod with these labels.
    pub fn new(constraint: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let mut compiled = selector::compile(constraint.label_selector.as_ref());
        if !compiled.nothing {
            let keys = constraint.match_label_keys.iter().flatten();
            let own = selector::from_labels(keys.filter_map(|key| labels.get_key_value(key)));
            compiled.requirements.splice(0..0, own.requirements);
        }
        SpreadConstraint {
            max_skew: constraint.max_skew,
            topology_key: constraint.topology_key.as_str().into(),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            selector: compiled,
            min_domains: constraint.min_domains.unwrap_or(1),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

/// An image's name as nodes report it: with the tag `latest` if it has none.
pub fn with_tag(image: &str) -> Box<str> {
    match (image.rfind(':'), image.rfind('/')) {
        (Some(colon), slash) if slash.is_none_or(|slash| colon > slash) => image.into(),
        _ => format!("{image}:latest").into(),
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
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
