//! The Service of the cluster's DNS, and where it leads: every node's own server answers for the node's pods.
//!
//! One slice per node and address family, so that a change of a node costs that node's slice. An endpoint is ready as
//! long as its Node is there, also while the node's agent is silent: the server outlives the agent, and only its own
//! node asks it.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cache::Caches;
use crate::endpointslice::{MANAGED_BY, SERVICE_NAME};
use crate::object::{self, Key};
use crate::plan::{Act, Plan};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// Our value of [`MANAGED_BY`].
pub const MANAGER: &str = "cluster-dns-controller.hawser";
const NAMESPACE: &str = "kube-system";
/// The name that every cluster's DNS has, whatever serves it.
const SERVICE: &str = "kube-dns";
/// Port name, protocol and number of the Service; the last is the metrics'.
const PORTS: [(&str, &str, i32); 3] = [("dns", "UDP", 53), ("dns-tcp", "TCP", 53), ("metrics", "TCP", 9153)];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// What the nodes' DNS is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDns {
    /// Addresses of the Service.
    pub addresses: Vec<IpAddr>,
    /// Port of the servers, on their nodes' addresses.
    pub port: u16,
    /// Port of their metrics.
    pub metrics_port: u16,
}

/// Keeps the Service and its slices. Keys are nodes, and that of the Service.
pub struct Controlled {
    caches: Arc<Caches>,
    config: Arc<ClusterDns>,
}

/// What a decision rests on.
pub struct View {
    /// What the nodes' DNS is.
    pub config: Arc<ClusterDns>,
    /// The Service.
    pub service: Option<Arc<Service>>,
    /// The node that it is about, and its slice per family; `None` when it is about the Service.
    pub node: Option<NodeView>,
}

/// One node.
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// The Node; `None` when it is gone.
    pub node: Option<Arc<Node>>,
    /// Its slices, in the order of [`FAMILIES`].
    pub slices: [Option<Arc<EndpointSlice>>; 2],
}

fn number(port: &str, config: &ClusterDns) -> i32 {
    i32::from(if port == "metrics" { config.metrics_port } else { config.port })
}

fn wanted_service(config: &ClusterDns) -> Service {
    let addresses: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
    let ports = PORTS.map(|(name, protocol, port)| ServicePort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port,
        target_port: Some(IntOrString::Int(number(name, config))),
        ..ServicePort::default()
    });
    let labels =
        [("k8s-app", SERVICE), ("kubernetes.io/cluster-service", "true"), ("kubernetes.io/name", "CoreDNS")];
    Service {
        metadata: ObjectMeta {
            name: Some(SERVICE.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: addresses.first().cloned(),
            ip_family_policy: (addresses.len() > 1).then(|| "RequireDualStack".to_owned()),
            cluster_ips: Some(addresses),
            ports: Some(ports.into()),
            // Each node's pods ask its own server, which lives as long as they do.
            internal_traffic_policy: Some("Local".to_owned()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Whether the Service is the one that leads to the nodes: another DNS, brought by its user, selects its pods.
fn is_ours(service: &Service, config: &ClusterDns) -> bool {
    let spec = service.spec.as_ref();
    let address = spec.and_then(|s| s.cluster_ip.as_deref()).and_then(|ip| ip.parse().ok());
    let selects = spec.and_then(|s| s.selector.as_ref()).is_some_and(|pairs| !pairs.is_empty());
    !selects && !object::is_deleting(service) && config.addresses.first().copied() == address
}

fn slice_name(family: &str, node: &str) -> String {
    let name = format!("{SERVICE}-{}-{node}", family.to_lowercase());
    // Names end at 253 characters (RFC 1123); a node's own may be as long.
    if name.len() <= 253 {
        name
    } else {
        format!("{}-{}", &name[..240], crate::hash::content_hash(&name, None))
    }
}

fn wanted_slice(service: &Service, node: &Node, family: &str, config: &ClusterDns) -> Option<EndpointSlice> {
    let of_family = |ip: &IpAddr| ip.is_ipv4() == (family == FAMILIES[0]);
    let families = service.spec.as_ref().and_then(|s| s.cluster_ips.as_deref()).unwrap_or_default();
    if !families.iter().filter_map(|ip| ip.parse().ok()).any(|ip| of_family(&ip)) {
        return None;
    }
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut internal = addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok());
    let address: IpAddr = internal.find(of_family)?;
    let node = object::name(node);
    let labels = [(SERVICE_NAME, SERVICE), (MANAGED_BY, MANAGER), ("k8s-app", SERVICE)];
    Some(EndpointSlice {
        metadata: ObjectMeta {
            name: Some(slice_name(family, node)),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![object::new_controller_ref(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![address.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            node_name: Some(node.to_owned()),
            hints: Some(EndpointHints {
                for_nodes: Some(vec![ForNode { name: node.to_owned() }]),
                ..EndpointHints::default()
            }),
            ..Endpoint::default()
        }]),
        ports: Some(
            PORTS
                .map(|(name, protocol, _)| EndpointPort {
                    name: Some(name.to_owned()),
                    protocol: Some(protocol.to_owned()),
                    port: Some(number(name, config)),
                    ..EndpointPort::default()
                })
                .into(),
        ),
    })
}

/// Decides about the Service, or about a node's slices.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let Some(of_node) = &view.node else {
        if view.service.is_none() {
            plan.push(Act::create(&wanted_service(&view.config)).may_exist());
        }
        return plan;
    };
    let service = view.service.as_deref().filter(|service| is_ours(service, &view.config));
    let node = of_node.node.as_deref().filter(|node| !object::is_deleting(*node));
    for (family, stored) in FAMILIES.into_iter().zip(&of_node.slices) {
        let wanted =
            service.zip(node).and_then(|(service, node)| wanted_slice(service, node, family, &view.config));
        match (wanted, stored.as_deref()) {
            (None, None) => {}
            (None, Some(stored)) => plan.push(Act::delete(stored).may_be_absent()),
            (Some(wanted), None) => plan.push(Act::create(&wanted).may_exist()),
            (Some(wanted), Some(stored)) => {
                let mut new = stored.clone();
                new.metadata.labels = wanted.metadata.labels;
                new.metadata.owner_references = wanted.metadata.owner_references;
                (new.endpoints, new.ports) = (wanted.endpoints, wanted.ports);
                plan.update(stored, &new);
            }
        }
    }
    plan
}

impl Controlled {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>, config: ClusterDns) -> Self {
        Self { caches: caches.clone(), config: Arc::new(config) }
    }
}

fn service_key() -> Key {
    Key::new(NAMESPACE, SERVICE)
}

#[async_trait]
impl Controller for Controlled {
    type View = View;

    fn name(&self) -> &'static str {
        "cluster-dns"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        let q = queue.clone();
        self.caches.namespaces.on_change(move |change| {
            if change.key.name == NAMESPACE {
                q.add(service_key());
            }
        });
        let (q, caches) = (queue.clone(), self.caches.clone());
        self.caches.services.on_change(move |change| {
            if *change.key == service_key() {
                q.add(change.key.clone());
                for node in caches.nodes.all() {
                    q.add(Key::cluster(object::name(node.as_ref())));
                }
            }
        });
        let q = queue.clone();
        self.caches.nodes.on_change(move |change| {
            let facts = |node: &Node| {
                let addresses = node.status.as_ref().and_then(|status| status.addresses.clone());
                (addresses, object::is_deleting(node))
            };
            if change.old.map(|n| facts(n)) != change.new.map(|n| facts(n)) {
                q.add(change.key.clone());
            }
        });
        let q = queue.clone();
        self.caches.slices.on_change(move |change| {
            for slice in change.states().filter(|s| object::label(&s.metadata, MANAGED_BY) == Some(MANAGER)) {
                for node in slice.endpoints.iter().flatten().filter_map(|e| e.node_name.as_deref()) {
                    q.add(Key::cluster(node));
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let service = self.caches.services.get(&service_key());
        let node = (*key != service_key()).then(|| NodeView {
            name: key.name.clone(),
            node: self.caches.nodes.get(key),
            slices: FAMILIES
                .map(|family| self.caches.slices.get(&Key::new(NAMESPACE, slice_name(family, &key.name)))),
        });
        Ok(Some(View { config: self.config.clone(), service, node }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Harness, lag};
    use proptest::prelude::*;
    use serde_json::json;

    fn harness() -> Harness<Controlled> {
        let config =
            ClusterDns { addresses: vec!["10.96.0.10".parse().unwrap()], port: 10053, metrics_port: 10054 };
        let h = Harness::new(|caches, _| Controlled::new(caches, config));
        h.model.lock().put(
            &serde_json::from_value::<k8s_openapi::api::core::v1::Namespace>(
                json!({"metadata": {"name": NAMESPACE}}),
            )
            .unwrap(),
        );
        h
    }

    fn node(name: &str, address: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {"addresses": [
                {"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address},
                {"type": "InternalIP", "address": "fd00::1"}]},
        }))
        .unwrap()
    }

    fn slices(h: &Harness<Controlled>) -> Vec<(String, String)> {
        let mut found: Vec<_> = h
            .model
            .lock()
            .list::<EndpointSlice>()
            .iter()
            .map(|s| {
                let endpoint = &s.endpoints.as_ref().unwrap()[0];
                (endpoint.node_name.clone().unwrap(), endpoint.addresses[0].clone())
            })
            .collect();
        found.sort();
        found
    }

    #[tokio::test(start_paused = true)]
    async fn every_node_has_its_slice() {
        let mut h = harness();
        h.settle(50).await;
        let service: Service = h.model.lock().get(NAMESPACE, SERVICE).expect("made");
        assert_eq!(service.spec.as_ref().unwrap().cluster_ip.as_deref(), Some("10.96.0.10"));
        h.model.lock().put(&node("a", "192.0.2.1"));
        h.model.lock().put(&node("b", "192.0.2.2"));
        h.settle(50).await;
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(slices(&h), [pair("a", "192.0.2.1"), pair("b", "192.0.2.2")]);
        h.model.lock().edit::<Node>("", "a", |n| {
            *n = {
                let mut new = node("a", "192.0.2.9");
                new.metadata = n.metadata.clone();
                new
            }
        });
        h.model.lock().delete_as_user::<Node>("", "b");
        h.settle(50).await;
        assert_eq!(slices(&h), [pair("a", "192.0.2.9")]);
        h.model.lock().delete_as_user::<EndpointSlice>(NAMESPACE, "kube-dns-ipv4-a");
        h.settle(50).await;
        assert_eq!(slices(&h), [pair("a", "192.0.2.9")]);
        h.model.lock().delete_as_user::<Service>(NAMESPACE, SERVICE);
        h.settle(50).await;
        assert!(h.model.lock().get::<Service>(NAMESPACE, SERVICE).is_some(), "it comes back");
    }

    #[tokio::test(start_paused = true)]
    async fn another_dns_is_left_alone() {
        let mut h = harness();
        let mut theirs = wanted_service(&h.controller.config);
        theirs.spec.as_mut().unwrap().selector = Some([("k8s-app".to_owned(), "kube-dns".to_owned())].into());
        h.model.lock().put(&theirs);
        h.model.lock().put(&node("a", "192.0.2.1"));
        h.settle(50).await;
        assert_eq!(slices(&h), []);
        let kept: Service = h.model.lock().get(NAMESPACE, SERVICE).expect("kept");
        assert!(kept.spec.unwrap().selector.is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However nodes come, go and move, while caches lag and the process ends: every node has one slice with its
        /// address, nobody else has one, and those of others stay.
        #[test]
        fn slices_follow_nodes(
            ops in proptest::collection::vec((0..4u8, 0..4u8, any::<bool>()), 1..30),
            seed in any::<u64>(),
        ) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = harness();
                let mut random = lag(seed);
                let theirs = json!({"metadata": {"name": "theirs", "namespace": NAMESPACE,
                    "labels": {SERVICE_NAME: SERVICE, MANAGED_BY: "somebody"}}, "addressType": "IPv4", "endpoints": [
                    {"addresses": ["198.51.100.1"], "nodeName": "n0"}]});
                h.model.lock().put(&serde_json::from_value::<EndpointSlice>(theirs).unwrap());
                for (n, to, crash) in ops {
                    let (name, address) = (format!("n{n}"), format!("192.0.2.{}", 10 * n + to));
                    {
                        let mut model = h.model.lock();
                        match (model.get::<Node>("", &name).is_some(), to) {
                            (false, _) => drop(model.put(&node(&name, &address))),
                            (true, 0) => model.delete_as_user::<Node>("", &name),
                            (true, _) => model.edit::<Node>("", &name, |n| n.status = node(&name, &address).status),
                        }
                    }
                    if crash {
                        let config = ClusterDns::clone(&h.controller.config);
                        h.restart(|caches, _| Controlled::new(caches, config));
                    }
                    h.work_some(random(4), |n| random(n + 1)).await;
                }
                h.settle_lagging(500, |n| random(n + 1)).await;
                h.settle(100).await;
                let nodes = h.model.lock().list::<Node>();
                let mut wanted: Vec<_> = nodes
                    .iter()
                    .map(|n| {
                        let addresses = n.status.as_ref().unwrap().addresses.as_ref().unwrap();
                        (object::name(n).to_owned(), addresses[1].address.clone())
                    })
                    .collect();
                wanted.push(("n0".to_owned(), "198.51.100.1".to_owned()));
                wanted.sort();
                prop_assert_eq!(slices(&h), wanted);
                for node in nodes {
                    prop_assert!(h.plan(&Key::of(&node)).await.is_empty());
                }
                Ok(())
            })?;
        }
    }

    #[test]
    fn names_are_short_enough() {
        let long = "n".repeat(253);
        assert!(slice_name("IPv4", &long).len() <= 253);
        assert_ne!(slice_name("IPv4", &long), slice_name("IPv6", &long));
        assert_eq!(slice_name("IPv4", "a"), "kube-dns-ipv4-a");
    }
}
