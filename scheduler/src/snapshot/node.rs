//! A node as the scheduler keeps it, with what its pods take of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Taint};

use super::Slot;
use crate::pod::{HostPort, PodInfo};
use crate::resources::Resources;
use crate::selector::Labels;

/// A node and what its pods take of it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    pub slot: Slot,
    pub name: Arc<str>,
    pub labels: Arc<Labels>,
    pub taints: Arc<Vec<Taint>>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub allowed_pods: i64,
    /// Sizes of the images that are there, in bytes, by name.
    pub images: Arc<BTreeMap<Arc<str>, i64>>,
    /// `status.declaredFeatures`.
    pub features: Arc<Vec<String>>,
    /// Sum over the pods here.
    pub requested: Resources,
    /// CPU (thousandths) and memory, with stand-ins where a container asks for nothing.
    pub counted: (i64, i64),
    pub used_ports: BTreeMap<HostPort, u32>,
    /// When it, or a pod on it, changed last.
    pub changed: u64,
    /// The pods here.
    pub(super) residents: Vec<Arc<PodInfo>>,
    /// How many of them have affinity to pods, or anti-affinity, and how many require the latter.
    pub(super) with_affinity: (u32, u32),
}

impl NodeInfo {
    /// The node without pods.
    pub fn new(node: &Node) -> Self {
        let mut info = NodeInfo::default();
        info.update(node);
        info
    }

    fn update(&mut self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if *self.name != *name {
            self.name = name.into();
        }
        self.labels = Arc::new(node.metadata.labels.clone().unwrap_or_default());
        let spec = node.spec.clone().unwrap_or_default();
        self.taints = Arc::new(spec.taints.unwrap_or_default());
        self.unschedulable = spec.unschedulable.unwrap_or(false);
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        self.allocatable = allocatable.map(Resources::from_list).unwrap_or_default();
        self.allowed_pods = allocatable
            .and_then(|list| list.get("pods"))
            .and_then(|q| q.0.parse::<Quantity>().ok())
            .map_or(0, |q| q.value());
        self.features = Arc::new(status.and_then(|s| s.declared_features.clone()).unwrap_or_default());
        let images = status.and_then(|s| s.images.as_ref());
        let named = images.into_iter().flatten().flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (Arc::from(name.as_str()), size))
        });
        let named: BTreeMap<Arc<str>, i64> = named.collect();
        if *self.images != named {
            self.images = Arc::new(named);
        }
    }

    /// Whether anything that decides a placement differs; status heartbeats do not.
    pub(super) fn differs(&self, other: &NodeInfo) -> bool {
        self.labels != other.labels
            || self.taints != other.taints
            || self.unschedulable != other.unschedulable
            || self.allocatable != other.allocatable
            || self.allowed_pods != other.allowed_pods
            || self.features != other.features
            || self.images != other.images
    }

    /// The pods here, in no order.
    pub fn residents(&self) -> &[Arc<PodInfo>] {
        &self.residents
    }

    /// The pods here that have affinity to pods, or anti-affinity.
    pub fn with_affinity(&self) -> impl Iterator<Item = &Arc<PodInfo>> {
        let any = self.with_affinity.0 > 0;
        self.residents.iter().filter(move |pod| any && pod.has_pod_affinity())
    }

    /// Counts a pod.
    pub(crate) fn add_pod(&mut self, pod: &Arc<PodInfo>) {
        let amounts = pod.amounts();
        self.requested.add(&amounts.requests);
        self.counted.0 = self.counted.0.saturating_add(amounts.counted.0);
        self.counted.1 = self.counted.1.saturating_add(amounts.counted.1);
        self.with_affinity.0 += u32::from(pod.has_pod_affinity());
        self.with_affinity.1 += u32::from(!pod.anti_affinity.required.is_empty());
        for port in &pod.host_ports {
            *self.used_ports.entry(port.clone()).or_default() += 1;
        }
        self.residents.push(pod.clone());
    }

    /// Counts a pod no longer. It must have been counted.
    pub(crate) fn remove_pod(&mut self, pod: &PodInfo) {
        let amounts = pod.amounts();
        self.requested.subtract(&amounts.requests);
        self.counted.0 -= amounts.counted.0;
        self.counted.1 -= amounts.counted.1;
        self.with_affinity.0 -= u32::from(pod.has_pod_affinity());
        self.with_affinity.1 -= u32::from(!pod.anti_affinity.required.is_empty());
        if let Some(at) = self.residents.iter().position(|other| other.key.uid == pod.key.uid) {
            self.residents.swap_remove(at);
        }
        for port in &pod.host_ports {
            if let Some(count) = self.used_ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.used_ports.remove(port);
                }
            }
        }
    }
}
