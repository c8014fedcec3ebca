//! PURE: which of the cluster's things a name asks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

use crate::records::Protocol;
use crate::zone::Zone;

/// What a name below the cluster's domain stands for. Names are in lower case; whether the thing exists is not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The domain itself.
    Apex,
    /// `svc`, `pod` or `dns`: there are names below it.
    Branch,
    /// `dns-version`.
    Version,
    /// `ns.dns`: the name server.
    NameServer,
    /// `NAMESPACE.svc` or `NAMESPACE.pod`.
    Namespace(String),
    /// `SERVICE.NAMESPACE.svc`.
    Service(String, String),
    /// `_PROTOCOL.SERVICE.NAMESPACE.svc`.
    Transport(String, String, Protocol),
    /// `_PORT._PROTOCOL.SERVICE.NAMESPACE.svc`.
    Port(String, String, Protocol, String),
    /// `ENDPOINT.SERVICE.NAMESPACE.svc`.
    Endpoint(String, String, String),
    /// `1-2-3-4.NAMESPACE.pod`.
    Pod(String, IpAddr),
    /// Nothing that there can be.
    Nothing,
}

/// The place of a name; `None` when it is not below the cluster's domain.
pub fn place(zone: &Zone, name: &Name) -> Option<Place> {
    if !zone.origin.zone_of(name) {
        return None;
    }
    let count = usize::from(name.num_labels() - zone.origin.num_labels());
    let labels: Option<Vec<String>> = name
        .iter()
        .take(count)
        .map(|label| Some(std::str::from_utf8(label).ok()?.to_ascii_lowercase()))
        .collect();
    let Some(labels) = labels else { return Some(Place::Nothing) };
    let mut labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    labels.reverse();
    Some(match labels.as_slice() {
        [] => Place::Apex,
        ["svc" | "pod" | "dns"] => Place::Branch,
        ["dns-version"] => Place::Version,
        ["dns", "ns"] => Place::NameServer,
        ["svc" | "pod", namespace] => Place::Namespace((*namespace).to_owned()),
        ["pod", namespace, pod] => {
            pod_address(pod).map_or(Place::Nothing, |address| Place::Pod((*namespace).to_owned(), address))
        }
        ["svc", namespace, service, rest @ ..] => below_service(namespace, service, rest),
        _ => Place::Nothing,
    })
}

fn below_service(namespace: &str, service: &str, rest: &[&str]) -> Place {
    let (namespace, service) = (namespace.to_owned(), service.to_owned());
    let transport = |label: &str| Protocol::from_api(Some(&label.strip_prefix('_')?.to_ascii_uppercase()));
    match rest {
        [] => Place::Service(namespace, service),
        [label] => match transport(label) {
            Some(protocol) => Place::Transport(namespace, service, protocol),
            None => Place::Endpoint(namespace, service, (*label).to_owned()),
        },
        [label, port] => match (transport(label), port.strip_prefix('_')) {
            (Some(protocol), Some(port)) if !port.is_empty() => {
                Place::Port(namespace, service, protocol, port.to_owned())
            }
            _ => Place::Nothing,
        },
        _ => Place::Nothing,
    }
}

/// `10-1-2-3`, or an IPv6 address with dashes for its colons.
fn pod_address(label: &str) -> Option<IpAddr> {
    if label.matches('-').count() == 3 && !label.contains("--") {
        return label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_places() {
        let zone = Zone {
            origin: Name::from_ascii("cluster.local.").expect("name"),
            reverse: Vec::new(),
            servers: Vec::new(),
        };
        let (ns, svc) = ("ns".to_owned(), "web".to_owned());
        let own = |text: &str| text.to_owned();
        let v4 = |text: &str| text.parse().expect("address");
        let cases = [
            ("cluster.local.", Some(Place::Apex)),
            ("CLUSTER.Local.", Some(Place::Apex)),
            ("svc.cluster.local.", Some(Place::Branch)),
            ("dns.cluster.local.", Some(Place::Branch)),
            ("dns-version.cluster.local.", Some(Place::Version)),
            ("ns.dns.cluster.local.", Some(Place::NameServer)),
            ("ns.svc.cluster.local.", Some(Place::Namespace(ns.clone()))),
            ("ns.pod.cluster.local.", Some(Place::Namespace(ns.clone()))),
            ("Web.ns.SVC.cluster.local.", Some(Place::Service(ns.clone(), svc.clone()))),
            ("web-0.web.ns.svc.cluster.local.", Some(Place::Endpoint(ns.clone(), svc.clone(), own("web-0")))),
            (
                "_tcp.web.ns.svc.cluster.local.",
                Some(Place::Transport(ns.clone(), svc.clone(), Protocol::Tcp)),
            ),
            (
                "_http._UDP.web.ns.svc.cluster.local.",
                Some(Place::Port(ns.clone(), svc.clone(), Protocol::Udp, own("http"))),
            ),
            ("http._udp.web.ns.svc.cluster.local.", Some(Place::Nothing)),
            ("_http._ftp.web.ns.svc.cluster.local.", Some(Place::Nothing)),
            ("a._http._udp.web.ns.svc.cluster.local.", Some(Place::Nothing)),
            ("10-1-2-3.ns.pod.cluster.local.", Some(Place::Pod(ns.clone(), v4("10.1.2.3")))),
            ("fd00--1.ns.pod.cluster.local.", Some(Place::Pod(ns.clone(), v4("fd00::1")))),
            ("10-1-2-300.ns.pod.cluster.local.", Some(Place::Nothing)),
            ("x.10-1-2-3.ns.pod.cluster.local.", Some(Place::Nothing)),
            ("other.cluster.local.", Some(Place::Nothing)),
            ("example.com.", None),
            ("xcluster.local.", None),
            ("local.", None),
            (".", None),
        ];
        for (name, wanted) in cases {
            let name = Name::from_ascii(name).expect("name");
            assert_eq!(place(&zone, &name), wanted, "{name}");
        }
    }
}
