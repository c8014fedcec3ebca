//! PURE reference model of the load balancer, for ClusterIP.
//!
//! Written from the rules of the Service API (Kubernetes documentation: "Service", "EndpointSlices",
//! "Virtual IPs and Service Proxies", "Service Internal Traffic Policy"; KEP-1669) and not from the
//! dataplane's code, which it judges. It is as slow and as plain as it can be: no index, no state, no
//! update; a question is answered by looking at every object.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// `spec.type`, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceType {
    /// ClusterIP, and the types that include one.
    ClusterIp,
    /// A name in DNS and nothing else.
    ExternalName,
}

/// `protocol` of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, which Hawser does not translate.
    Sctp,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Type.
    pub kind: ServiceType,
    /// `spec.clusterIPs`; `None` in place of "None".
    pub cluster_ip: Option<Ipv4Addr>,
    /// Ports: name, port, protocol.
    pub ports: Vec<(String, u16, Protocol)>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// The label `service.kubernetes.io/service-proxy-name` is there.
    pub other_proxy: bool,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// The label `service.kubernetes.io/headless` is there.
    pub headless: bool,
    /// Ports: name, port, protocol.
    pub ports: Vec<(String, Option<u16>, Protocol)>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint of a slice. An absent condition is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses, which are all the same endpoint.
    pub addresses: Vec<Ipv4Addr>,
    /// Condition `ready`.
    pub ready: Option<bool>,
    /// Condition `serving`.
    pub serving: Option<bool>,
    /// Condition `terminating`.
    pub terminating: Option<bool>,
    /// The node it is on.
    pub node: Option<String>,
}

/// Everything that the API holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    /// Services.
    pub services: Vec<Service>,
    /// EndpointSlices.
    pub slices: Vec<Slice>,
}

/// What must become of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is not to a Service: leave it alone.
    NotAService,
    /// The Service has nobody to answer: refuse.
    Refuse,
    /// It goes to one of these.
    OneOf(BTreeSet<(Ipv4Addr, u16)>),
}

impl World {
    /// Decides about a connection that a process on `node` opens.
    pub fn decide(&self, node: &str, address: Ipv4Addr, port: u16, protocol: Protocol) -> Decision {
        if protocol == Protocol::Sctp {
            return Decision::NotAService;
        }
        // Two Services can claim one address only for a moment; then the smaller name is right.
        let mut claims: Vec<(&Service, &str)> = Vec::new();
        for service in &self.services {
            if service.kind == ServiceType::ExternalName || service.other_proxy {
                continue;
            }
            if service.cluster_ip != Some(address) {
                continue;
            }
            for (name, number, proto) in &service.ports {
                if *number == port && *proto == protocol {
                    claims.push((service, name));
                    break;
                }
            }
        }
        claims.sort_by_key(|(service, _)| format!("{}/{}", service.namespace, service.name));
        let Some((service, port_name)) = claims.first() else { return Decision::NotAService };

        let mut ready = BTreeSet::new();
        let mut terminating = BTreeSet::new();
        for slice in &self.slices {
            let belongs = slice.namespace == service.namespace
                && slice.service.as_deref() == Some(&service.name)
                && !slice.headless;
            if !belongs {
                continue;
            }
            for (name, target, proto) in &slice.ports {
                let Some(target) = target else { continue };
                if name != port_name || *proto != protocol {
                    continue;
                }
                for endpoint in &slice.endpoints {
                    let Some(address) = endpoint.addresses.first() else { continue };
                    if service.internal_local && endpoint.node.as_deref() != Some(node) {
                        continue;
                    }
                    if endpoint.is_ready() {
                        ready.insert((*address, *target));
                    } else if endpoint.is_serving() && endpoint.is_terminating() {
                        terminating.insert((*address, *target));
                    }
                }
            }
        }
        if !ready.is_empty() {
            Decision::OneOf(ready)
        } else if !terminating.is_empty() {
            Decision::OneOf(terminating)
        } else {
            Decision::Refuse
        }
    }
}

impl Endpoint {
    /// "A nil value should be interpreted as true" (EndpointConditions.ready).
    fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// "If nil, consumers should defer to the ready condition" (EndpointConditions.serving).
    fn is_serving(&self) -> bool {
        self.serving.unwrap_or(self.is_ready())
    }

    /// "A nil value should be interpreted as false" (EndpointConditions.terminating).
    fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
    const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);

    fn world(change: impl FnOnce(&mut Service, &mut Slice)) -> World {
        let mut service = Service {
            namespace: "default".into(),
            name: "web".into(),
            kind: ServiceType::ClusterIp,
            cluster_ip: Some(VIP),
            ports: vec![("http".into(), 80, Protocol::Tcp)],
            internal_local: false,
            other_proxy: false,
        };
        let mut slice = Slice {
            namespace: "default".into(),
            name: "web-1".into(),
            service: Some("web".into()),
            headless: false,
            ports: vec![("http".into(), Some(8080), Protocol::Tcp)],
            endpoints: vec![Endpoint {
                addresses: vec![POD],
                ready: None,
                serving: None,
                terminating: None,
                node: Some("n1".into()),
            }],
        };
        change(&mut service, &mut slice);
        World { services: vec![service], slices: vec![slice] }
    }

    #[test]
    fn rules() {
        type Change = fn(&mut Service, &mut Slice);
        let to_pod = || Decision::OneOf([(POD, 8080)].into());
        let cases: [(&str, Change, Decision); 11] = [
            ("a ready endpoint", |_, _| {}, to_pod()),
            ("not ready", |_, slice| slice.endpoints[0].ready = Some(false), Decision::Refuse),
            (
                "terminating, but serving, and the only one",
                |_, slice| {
                    slice.endpoints[0].ready = Some(false);
                    slice.endpoints[0].serving = Some(true);
                    slice.endpoints[0].terminating = Some(true);
                },
                to_pod(),
            ),
            ("port name differs", |_, slice| slice.ports[0].0 = "dns".into(), Decision::Refuse),
            ("port protocol differs", |_, slice| slice.ports[0].2 = Protocol::Udp, Decision::Refuse),
            ("another namespace", |_, slice| slice.namespace = "other".into(), Decision::Refuse),
            ("local, and it is here", |service, _| service.internal_local = true, to_pod()),
            (
                "local, and it is elsewhere",
                |service, slice| {
                    service.internal_local = true;
                    slice.endpoints[0].node = Some("n2".into());
                },
                Decision::Refuse,
            ),
            ("another proxy's", |service, _| service.other_proxy = true, Decision::NotAService),
            ("headless", |service, _| service.cluster_ip = None, Decision::NotAService),
            ("ExternalName", |service, _| service.kind = ServiceType::ExternalName, Decision::NotAService),
        ];
        for (what, change, expected) in cases {
            assert_eq!(world(change).decide("n1", VIP, 80, Protocol::Tcp), expected, "{what}");
        }
        assert_eq!(world(|_, _| {}).decide("n1", VIP, 81, Protocol::Tcp), Decision::NotAService);
        assert_eq!(world(|_, _| {}).decide("n1", VIP, 80, Protocol::Udp), Decision::NotAService);
    }
}
