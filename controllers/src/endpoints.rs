//! Endpoints: the old, single-object form of a Service's addresses, for clients that still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::cache::{Caches, Pod};
use crate::object::{self, Key, Labels};
use crate::plan::{Act, Note, Plan};
use crate::pods;
use crate::runner::{Controller, Failure, Queue, ViewError};
use crate::services;

/// Annotation that says that addresses were left out.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Label that says who keeps the object.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
/// Where the leader elections of old kept their records: not ours.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// How many addresses the object holds at most.
const CAPACITY: usize = 1000;

/// What a decision about a Service's Endpoints rests on.
pub struct View {
    /// The Service's name.
    pub key: Key,
    /// The Service; `None` when it is gone.
    pub service: Option<Arc<Service>>,
    /// The pods that it selects.
    pub pods: Vec<Arc<Pod>>,
    /// What is stored.
    pub stored: Option<Arc<Endpoints>>,
}

/// Decides about a Service's Endpoints.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let Some(service) = view.service.as_deref() else {
        // Objects that were never a Service's (a leader election's, a user's) are not ours to delete.
        let orphan =
            view.stored.as_deref().filter(|e| object::label(&e.metadata, MANAGED_BY) == Some(MANAGER));
        if let Some(stored) = orphan {
            plan.push(Act::delete(stored));
        }
        return plan;
    };
    if services::selector(service).is_none() || object::is_deleting(service) {
        return plan;
    }
    let mut subsets = subsets(service, &view.pods);
    let truncated = truncate(&mut subsets);
    let mut new = match view.stored.as_deref() {
        Some(stored) if object::annotation(&stored.metadata, LEADER).is_some() => return plan,
        Some(stored) => stored.clone(),
        None => Endpoints {
            metadata: ObjectMeta {
                name: service.metadata.name.clone(),
                namespace: service.metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            subsets: None,
        },
    };
    let mut labels: Labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(services::HEADLESS);
    if services::is_headless(service) {
        labels.insert(services::HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    new.metadata.labels = Some(labels);
    new.subsets = (!subsets.is_empty()).then_some(subsets);
    if truncated {
        object::set_annotation(&mut new.metadata, OVER_CAPACITY, "truncated");
    } else if let Some(annotations) = &mut new.metadata.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    match view.stored.as_deref() {
        Some(stored) => {
            let message = format!("Failed to update endpoint {}: {{error}}", view.key);
            if *stored != new {
                let note = Note::warning(object::reference(stored), "FailedToUpdateEndpoint", message);
                plan.push(Act::update(&new).err(note));
            }
        }
        None => {
            let about = object::reference(service);
            let message = format!("Failed to create endpoint for service {}: {{error}}", view.key);
            plan.push(Act::create(&new).may_exist().err(Note::warning(
                about,
                "FailedToCreateEndpoint",
                message,
            )));
        }
    }
    plan
}

/// Addresses grouped by their ports, in a canonical order.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    #[derive(Default)]
    struct Group {
        ready: Vec<EndpointAddress>,
        not_ready: Vec<EndpointAddress>,
    }
    type PortKey = (String, i32, String, Option<String>);
    let mut groups: BTreeMap<Vec<PortKey>, Group> = BTreeMap::new();
    let publish = services::publishes_not_ready(service);
    for pod in pods {
        let leaving = object::is_deleting(pod.as_ref());
        if pods::is_terminal(pod) || leaving && !publish {
            continue;
        }
        let Some(ip) = address(service, pod) else { continue };
        let address = EndpointAddress {
            ip,
            hostname: services::hostname(pod, service),
            node_name: Some(pods::node(pod).to_owned()).filter(|n| !n.is_empty()),
            target_ref: Some(services::pod_reference(pod)),
        };
        let mut ports: Vec<PortKey> = service
            .spec
            .iter()
            .flat_map(|s| s.ports.iter().flatten())
            .filter_map(|port| {
                let number = services::target_port(pod, port)?;
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                Some((port.name.clone().unwrap_or_default(), number, protocol, port.app_protocol.clone()))
            })
            .collect();
        ports.sort();
        let declared = service.spec.as_ref().and_then(|s| s.ports.as_ref()).is_some_and(|p| !p.is_empty());
        if ports.is_empty() && (declared || !services::is_headless(service)) {
            continue;
        }
        let group = groups.entry(ports).or_default();
        if publish || pods::is_ready(pod) {
            group.ready.push(address);
        } else {
            group.not_ready.push(address);
        }
    }
    let sorted = |mut list: Vec<EndpointAddress>| {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
        (!list.is_empty()).then_some(list)
    };
    groups
        .into_iter()
        .map(|(ports, group)| EndpointSubset {
            addresses: sorted(group.ready),
            not_ready_addresses: sorted(group.not_ready),
            ports: (!ports.is_empty()).then(|| {
                ports
                    .into_iter()
                    .map(|(name, port, protocol, app_protocol)| EndpointPort {
                        name: Some(name).filter(|n| !n.is_empty()),
                        port,
                        protocol: Some(protocol),
                        app_protocol,
                    })
                    .collect()
            }),
        })
        .collect()
}

/// The pod's address in the Service's first family.
fn address(service: &Service, pod: &Pod) -> Option<String> {
    let first = service.spec.as_ref().and_then(|s| s.ip_families.as_ref()).and_then(|f| f.first());
    let v6 = first.is_some_and(|f| f == "IPv6");
    let ips = services::ips(pod);
    match first {
        Some(_) => ips.into_iter().find(|ip| ip.contains(':') == v6),
        None => ips.into_iter().next(),
    }
}

/// Cuts to capacity, ready addresses first; tells whether something was cut.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let mut room = CAPACITY;
    let mut cut = false;
    let mut take = |list: &mut Option<Vec<EndpointAddress>>| {
        let Some(addresses) = list else { return };
        cut |= addresses.len() > room;
        addresses.truncate(room);
        room -= addresses.len();
        if addresses.is_empty() {
            *list = None;
        }
    };
    for subset in subsets.iter_mut() {
        take(&mut subset.addresses);
    }
    for subset in subsets.iter_mut() {
        take(&mut subset.not_ready_addresses);
    }
    cut
}

/// The controller. Keys are Services.
pub struct EndpointsController {
    caches: Arc<Caches>,
}

impl EndpointsController {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for EndpointsController {
    type View = View;

    fn name(&self) -> &'static str {
        "endpoints"
    }

    fn component(&self) -> &'static str {
        "endpoint-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        services::wire(&self.caches, queue);
        self.caches.endpoints.queue_changed(queue);
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let service = self.caches.services.get(key);
        let stored = self.caches.endpoints.get(key);
        if service.is_none() && stored.is_none() {
            return Ok(None);
        }
        let pods = service.as_deref().map(|s| services::pods_of(&self.caches, s)).unwrap_or_default();
        Ok(Some(View { key: key.clone(), service, pods, stored }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::refused_update;
    use crate::testing::{Harness, held};
    use k8s_openapi::api::core::v1::{
        Pod, PodCondition, PodIP, PodSpec, PodStatus, ServicePort, ServiceSpec,
    };
    use proptest::prelude::*;

    fn meta(name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.into()),
            namespace: Some("ns".into()),
            labels: Some([("app".to_string(), "web".to_string())].into()),
            ..Default::default()
        }
    }

    fn service() -> Service {
        let port = |name: &str, port| ServicePort { name: Some(name.into()), port, ..Default::default() };
        Service {
            metadata: meta("web"),
            spec: Some(ServiceSpec {
                selector: meta("").labels,
                ports: Some(vec![port("b", 443), port("a", 80)]),
                ..Default::default()
            }),
            status: None,
        }
    }

    fn pod(n: usize, ready: bool) -> Pod {
        Pod {
            metadata: meta(&format!("p{n}")),
            spec: Some(PodSpec { node_name: Some("n1".into()), ..Default::default() }),
            status: Some(PodStatus {
                phase: Some("Running".into()),
                pod_ips: Some(vec![PodIP { ip: format!("10.0.{}.{}", n / 250, n % 250) }]),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ready_and_unready_addresses_share_a_subset() {
        let mut h = Harness::new(|caches, _| EndpointsController::new(caches));
        h.model.lock().put(&service());
        h.model.lock().put(&pod(1, true));
        h.model.lock().put(&pod(2, false));
        h.settle(50).await;
        let e: Endpoints = h.model.lock().get("ns", "web").unwrap();
        let subsets = e.subsets.unwrap();
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.0.0.2");
        assert_eq!(subsets[0].ports.as_ref().unwrap()[0].name.as_deref(), Some("a"));
        h.model.lock().delete_as_user::<Service>("ns", "web");
        h.settle(50).await;
        assert!(h.model.lock().get::<Endpoints>("ns", "web").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_update_is_told() {
        let mut h = Harness::new(|caches, _| EndpointsController::new(caches));
        h.model.lock().put(&service());
        h.settle(50).await;
        h.model.lock().faults.push(refused_update("endpoints"));
        h.model.lock().put(&pod(1, true));
        h.settle(50).await;
        let told = "Warning FailedToUpdateEndpoint Failed to update endpoint ns/web: ";
        assert!(h.notes().iter().any(|note| note.starts_with(told)), "{:?}", h.notes());
        let e: Endpoints = h.model.lock().get("ns", "web").unwrap();
        assert_eq!(e.subsets.unwrap().len(), 1, "and tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_service_made_is_left_alone() {
        let mut h = Harness::new(|caches, _| EndpointsController::new(caches));
        h.model.lock().put(&Endpoints { metadata: meta("mine"), subsets: None });
        h.settle(50).await;
        assert!(h.model.lock().get::<Endpoints>("ns", "mine").is_some());
    }

    #[test]
    fn too_many_addresses_are_cut_and_marked() {
        let pods = (0..1200).map(|n| Arc::new(held(&pod(n, n >= 600)))).collect();
        let view =
            View { key: Key::new("ns", "web"), service: Some(Arc::new(service())), pods, stored: None };
        let plan = reconcile(&view, Timestamp::UNIX_EPOCH);
        let acts: Vec<_> = plan.acts().collect();
        let crate::plan::Action::Create { body, .. } = &acts[0].action else { panic!() };
        assert_eq!(body["metadata"]["annotations"][OVER_CAPACITY], "truncated");
        assert_eq!(body["subsets"][0]["addresses"].as_array().unwrap().len(), 600);
        assert_eq!(body["subsets"][0]["notReadyAddresses"].as_array().unwrap().len(), 400);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// In the end every pod's address is there once, and a second plan is empty.
        #[test]
        fn addresses_follow_pods(ops in proptest::collection::vec((0..12usize, 0..3u8), 1..30)) {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            rt.block_on(async move {
                let mut h = Harness::new(|caches, _| EndpointsController::new(caches));
                h.model.lock().put(&service());
                for (n, op) in ops {
                    let name = format!("p{n}");
                    {
                    let mut model = h.model.lock();
                    match (op, model.get::<Pod>("ns", &name).is_some()) {
                        (0, true) => model.delete_as_user::<Pod>("ns", &name),
                        (_, true) => model.edit::<Pod>("ns", &name, |p| p.status = pod(n, op == 1).status),
                        (_, false) => drop(model.put(&pod(n, op == 1))),
                    }
                    }
                    h.settle(100).await;
                }
                let e: Endpoints = h.model.lock().get("ns", "web").unwrap();
                let mut got: Vec<String> = e.subsets.into_iter().flatten()
                    .flat_map(|s| s.addresses.into_iter().chain(s.not_ready_addresses)).flatten()
                    .map(|a| a.ip).collect();
                got.sort();
                let mut want: Vec<String> = h.model.lock().list::<Pod>().iter().flat_map(|p| services::ips(&held(p))).collect();
                want.sort();
                prop_assert_eq!(got, want);
                prop_assert!(h.plan(&Key::new("ns", "web")).await.is_empty());
                Ok(())
            })?;
        }
    }
}
