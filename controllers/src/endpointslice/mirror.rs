//! Mirrors the Endpoints that users keep for Services without a selector into slices, since slices are all that
//! proxies read. One slice per address family and set of ports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::desired::{PortsKey, identity, ports_key};
use super::{MANAGED_BY, SERVICE_NAME};
use crate::cache::{BY_SERVICE, Caches};
use crate::object::{self, Key, Labels};
use crate::plan::{Act, Note, Plan, Step};
use crate::runner::{Controller, Failure, Queue, ViewError};

/// Our value of [`MANAGED_BY`].
pub const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
/// Label with which a user keeps Endpoints from being mirrored.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Where leader elections of old kept their records.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are the Endpoints' own.
const NOT_MIRRORED: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
/// How many addresses of a subset are mirrored at most.
const CAPACITY: usize = 1000;

/// What a decision about a Service's mirrored slices rests on.
pub struct View {
    /// The Endpoints; `None` when they are gone.
    pub endpoints: Option<Arc<Endpoints>>,
    /// The Service of their name.
    pub service: Option<Arc<Service>>,
    /// The mirrored slices.
    pub slices: Vec<Arc<EndpointSlice>>,
}

/// Decides about the mirrored slices of a Service.
pub fn reconcile(view: &View, _now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let mut acts = Vec::new();
    let mut stored: BTreeMap<(String, PortsKey), Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in &view.slices {
        let ports = ports_key(slice.ports.as_deref().unwrap_or_default());
        stored.entry((slice.address_type.clone(), ports)).or_default().push(slice);
    }
    if let Some(endpoints) = mirrored(view) {
        let wanted = Wanted::of(endpoints);
        for ((family, key), group) in wanted.groups {
            let mut existing = stored.remove(&(family.to_owned(), key)).unwrap_or_default();
            let kept = (!existing.is_empty()).then(|| existing.remove(0));
            acts.extend(write(endpoints, family, group, kept));
            acts.extend(existing.into_iter().map(|slice| Act::delete(slice.as_ref())));
        }
        if !acts.is_empty() {
            plan.events.extend(notes(endpoints, wanted.invalid, wanted.skipped));
        }
    }
    acts.extend(stored.into_values().flatten().map(|slice| Act::delete(slice.as_ref())));
    if !acts.is_empty() {
        plan.actions.push(Step::Parallel(acts));
    }
    plan
}

/// The Endpoints, if they are to be mirrored: of a Service that selects nothing.
fn mirrored(view: &View) -> Option<&Endpoints> {
    let endpoints = view.endpoints.as_deref()?;
    let service = view.service.as_deref()?;
    let unwanted = object::label(&endpoints.metadata, SKIP) == Some("true")
        || object::annotation(&endpoints.metadata, LEADER).is_some()
        || object::is_deleting(endpoints)
        || service.spec.as_ref().is_some_and(|s| s.selector.is_some());
    (!unwanted).then_some(endpoints)
}

/// The endpoints of one slice.
struct Group {
    ports: Vec<EndpointPort>,
    /// By identity, so that an address that is listed twice is there once.
    endpoints: BTreeMap<String, Endpoint>,
}

/// What Endpoints come to.
#[derive(Default)]
struct Wanted {
    groups: BTreeMap<(&'static str, PortsKey), Group>,
    invalid: usize,
    skipped: usize,
}

impl Wanted {
    fn of(endpoints: &Endpoints) -> Self {
        let mut wanted = Self::default();
        for subset in endpoints.subsets.iter().flatten() {
            wanted.add(subset);
        }
        wanted
    }

    fn add(&mut self, subset: &EndpointSubset) {
        let ports = ports(subset);
        let key = ports_key(&ports);
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut room = CAPACITY;
        for (address, ready) in ready.chain(not_ready) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                self.invalid += 1;
                continue;
            };
            if room == 0 {
                self.skipped += 1;
                continue;
            }
            room -= 1;
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let group = self
                .groups
                .entry((family, key.clone()))
                .or_insert_with(|| Group { ports: ports.clone(), endpoints: BTreeMap::new() });
            let endpoint = endpoint(address, ip, ready);
            // Ready addresses come first: one that is listed as both counts as ready.
            group.endpoints.entry(identity(&endpoint)).or_insert(endpoint);
        }
    }
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// The write that a slice needs, if any.
fn write(
    endpoints: &Endpoints,
    family: &str,
    group: Group,
    stored: Option<&Arc<EndpointSlice>>,
) -> Option<Act> {
    let mut labels: Labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), object::name(endpoints).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MIRROR.to_owned());
    let mut annotations: Labels = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_MIRRORED.contains(&key.as_str()));
    let mut slice = match stored {
        Some(stored) => EndpointSlice::clone(stored),
        None => EndpointSlice {
            address_type: family.to_owned(),
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", object::name(endpoints))),
                namespace: endpoints.metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            ..EndpointSlice::default()
        },
    };
    slice.metadata.labels = Some(labels);
    slice.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    slice.metadata.owner_references = Some(vec![object::new_controller_ref(endpoints)]);
    slice.ports = Some(group.ports);
    slice.endpoints = Some(group.endpoints.into_values().collect());
    match stored {
        None => Some(Act::create(&slice)),
        Some(stored) => (slice != **stored).then(|| Act::update(&slice)),
    }
}

fn notes(endpoints: &Endpoints, invalid: usize, skipped: usize) -> Vec<Note> {
    let mut notes = Vec::new();
    if invalid > 0 {
        let message = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        notes.push(Note::warning(object::reference(endpoints), "InvalidIPAddress", message));
    }
    if skipped > 0 {
        let message = format!(
            "A max of {CAPACITY} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
            skipped + invalid
        );
        notes.push(Note::warning(object::reference(endpoints), "TooManyAddressesToMirror", message));
    }
    notes
}

/// The controller. Keys are Services, which share their names with their Endpoints.
pub struct Mirror {
    caches: Arc<Caches>,
}

impl Mirror {
    /// A controller on these caches.
    pub fn new(caches: &Arc<Caches>) -> Self {
        Self { caches: caches.clone() }
    }
}

#[async_trait]
impl Controller for Mirror {
    type View = View;

    fn name(&self) -> &'static str {
        "endpointslicemirroring"
    }

    fn component(&self) -> &'static str {
        "endpoint-slice-mirroring-controller"
    }

    fn wire(self: Arc<Self>, queue: &Arc<Queue>) {
        self.caches.services.queue_changed(queue);
        self.caches.endpoints.queue_changed(queue);
        let q = queue.clone();
        self.caches.slices.on_change(move |change| {
            for slice in change.states() {
                let ours = object::label(&slice.metadata, MANAGED_BY) == Some(MIRROR);
                if ours && let Some(service) = object::label(&slice.metadata, SERVICE_NAME) {
                    q.add(Key::new(object::namespace(slice.as_ref()), service));
                }
            }
        });
    }

    async fn view(&self, key: &Key, _prior: Option<&Failure>) -> Result<Option<View>, ViewError> {
        let mut slices = self.caches.slices.by_index(BY_SERVICE, &key.to_string());
        slices.retain(|s| {
            object::label(&s.metadata, MANAGED_BY) == Some(MIRROR) && !object::is_deleting(s.as_ref())
        });
        let endpoints = self.caches.endpoints.get(key);
        let service = self.caches.services.get(key);
        Ok(Some(View { endpoints, service, slices }))
    }

    fn reconcile(&self, view: &View, now: Timestamp) -> Plan {
        reconcile(view, now)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{EndpointPort as OldPort, ServiceSpec};

    use super::*;
    use crate::testing::Harness;

    fn meta() -> ObjectMeta {
        ObjectMeta { name: Some("db".into()), namespace: Some("ns".into()), ..Default::default() }
    }

    fn address(ip: &str) -> EndpointAddress {
        EndpointAddress { ip: ip.into(), ..Default::default() }
    }

    fn subset(ready: &[&str], not_ready: &[&str], port: i32) -> EndpointSubset {
        let all = |ips: &[&str]| Some(ips.iter().map(|ip| address(ip)).collect());
        EndpointSubset {
            addresses: all(ready),
            not_ready_addresses: all(not_ready),
            ports: Some(vec![OldPort { port, ..Default::default() }]),
        }
    }

    fn service(selector: Option<Labels>) -> Service {
        let spec = Some(ServiceSpec { selector, ..Default::default() });
        Service { metadata: meta(), spec, status: None }
    }

    /// Address type, port, and each endpoint with whether it is ready.
    type Shape = (String, i32, Vec<(String, bool)>);

    fn shape(h: &Harness<Mirror>) -> Vec<Shape> {
        let mut all: Vec<_> = h
            .model
            .lock()
            .list::<EndpointSlice>()
            .into_iter()
            .map(|s| {
                let endpoints = s.endpoints.into_iter().flatten().map(|e| {
                    let ready = e.conditions.and_then(|c| c.ready).unwrap_or(false);
                    (e.addresses[0].clone(), ready)
                });
                (s.address_type, s.ports.unwrap()[0].port.unwrap(), endpoints.collect())
            })
            .collect();
        all.sort();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn slices_follow_endpoints_of_a_service_without_selector() {
        let mut h = Harness::new(|caches, _| Mirror::new(caches));
        let put = |h: &Harness<Mirror>, subsets| {
            let mut metadata = meta();
            metadata.annotations = Some([(NOT_MIRRORED[0].to_owned(), "t".to_owned())].into());
            h.model.lock().put(&Endpoints { metadata, subsets: Some(subsets) });
        };
        put(&h, vec![subset(&["10.1.2.3", "fd00::1"], &["10.1.2.3", "10.1.2.4", "nonsense"], 80)]);
        h.settle(50).await;
        assert!(shape(&h).is_empty(), "no Service yet");

        h.model.lock().put(&service(None));
        h.settle(50).await;
        let v4 = vec![("10.1.2.3".to_owned(), true), ("10.1.2.4".to_owned(), false)];
        let v6 = vec![("fd00::1".to_owned(), true)];
        assert_eq!(shape(&h), [("IPv4".to_owned(), 80, v4), ("IPv6".to_owned(), 80, v6)]);
        let slice = h.model.lock().list::<EndpointSlice>().remove(0);
        assert_eq!(object::label(&slice.metadata, MANAGED_BY), Some(MIRROR));
        assert_eq!(object::controller_ref(&slice.metadata).unwrap().kind, "Endpoints");
        assert!(slice.metadata.annotations.is_none());
        assert!(h.notes().iter().any(|n| n.contains("InvalidIPAddress")));
        assert!(h.plan(&Key::new("ns", "db")).await.is_empty(), "at rest nothing is written");

        h.model.lock().edit::<Endpoints>("ns", "db", |e| {
            e.subsets = Some(vec![subset(&["10.9.9.9"], &[], 81)]);
        });
        h.settle(50).await;
        assert_eq!(shape(&h), [("IPv4".to_owned(), 81, vec![("10.9.9.9".to_owned(), true)])]);

        h.model.lock().edit::<Service>("ns", "db", |s| {
            s.spec.as_mut().unwrap().selector = Some([("a".to_owned(), "b".to_owned())].into());
        });
        h.settle(50).await;
        assert!(shape(&h).is_empty(), "a Service with a selector has slices of another controller");
    }

    #[test]
    fn a_subset_is_cut_at_capacity() {
        let ips: Vec<String> = (0..1100).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        let endpoints = Endpoints { metadata: meta(), subsets: Some(vec![subset(&ips, &[], 80)]) };
        let wanted = Wanted::of(&endpoints);
        assert_eq!((wanted.skipped, wanted.invalid), (100, 0));
        assert_eq!(wanted.groups.values().map(|g| g.endpoints.len()).sum::<usize>(), CAPACITY);
    }
}
