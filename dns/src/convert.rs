//! PURE: API objects → the few fields that names are made of. Everything else is dropped at once.

use hawser_watch::{ObjectName, SERVICE_NAME};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::ResourceExt;

use crate::records::{Endpoint, Port, Protocol, Service, Slice, Target};

/// A Service; `None` while it has no address yet and is not headless.
pub fn service(object: &core::Service) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    let target = if spec.type_.as_deref() == Some("ExternalName") {
        Target::External(spec.external_name.as_deref()?.into())
    } else if spec.cluster_ip.as_deref() == Some("None") {
        Target::Headless
    } else {
        let all = spec.cluster_ips.iter().flatten();
        // A Service of before dual stack has the single field only.
        let single = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.as_ref().is_none_or(Vec::is_empty));
        let addresses: Box<[_]> = all.chain(single).filter_map(|ip| ip.parse().ok()).collect();
        if addresses.is_empty() {
            return None;
        }
        Target::Cluster(addresses)
    };
    let ports = spec.ports.iter().flatten();
    Some(Service {
        target,
        ports: ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port)).collect(),
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
    })
}

/// An EndpointSlice; `None` when it belongs to no Service or holds names instead of addresses.
pub fn slice(object: &discovery::EndpointSlice) -> Option<Slice> {
    let service = object.labels().get(SERVICE_NAME)?;
    let namespace = object.namespace()?;
    if object.address_type == "FQDN" {
        return None;
    }
    let ports = object.ports.iter().flatten();
    let endpoints = object.endpoints.iter().flatten().flat_map(|endpoint| {
        // An absent condition means ready (EndpointConditions).
        let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
        let hostname = endpoint.hostname.as_deref().filter(|name| !name.is_empty());
        endpoint.addresses.iter().filter_map(move |address| {
            let hostname = hostname.map(|name| name.to_ascii_lowercase().into());
            Some(Endpoint { address: address.parse().ok()?, hostname, ready })
        })
    });
    Some(Slice {
        service: ObjectName::from(format!("{namespace}/{service}")),
        ports: ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port?)).collect(),
        endpoints: endpoints.collect(),
    })
}

fn port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_ascii_lowercase().into(),
        protocol: Protocol::from_api(protocol)?,
        number: u16::try_from(number).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service_of(spec: Value) -> Option<Service> {
        service(&serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).expect("a Service"))
    }

    #[test]
    fn targets() {
        let cases = [
            (
                json!({"type": "ExternalName", "externalName": "a.example"}),
                Some(Target::External("a.example".into())),
            ),
            (json!({"type": "ExternalName"}), None),
            (json!({"clusterIP": "None", "clusterIPs": ["None"]}), Some(Target::Headless)),
            (
                json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"]}),
                Some(Target::Cluster(
                    ["10.96.0.9".parse().expect("v4"), "fd00::9".parse().expect("v6")].into(),
                )),
            ),
            (
                json!({"clusterIP": "10.96.0.9"}),
                Some(Target::Cluster(["10.96.0.9".parse().expect("v4")].into())),
            ),
            (json!({}), None),
        ];
        for (spec, target) in cases {
            assert_eq!(service_of(spec.clone()).map(|s| s.target), target, "{spec}");
        }
    }

    #[test]
    fn slices_keep_addresses_names_and_readiness() {
        let object = json!({
            "metadata": {"name": "s-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4",
            "ports": [{"name": "HTTP", "port": 80}, {"name": "any"}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "hostname": "Web-0"},
                {"addresses": ["10.0.0.2", "10.0.0.3"], "conditions": {"ready": false}},
            ],
        });
        let slice = slice(&serde_json::from_value(object).expect("a slice")).expect("kept");
        assert_eq!(&*slice.service, "ns/s");
        assert_eq!(slice.ports.iter().map(|p| (&*p.name, p.number)).collect::<Vec<_>>(), [("http", 80)]);
        let endpoints: Vec<_> = slice.endpoints.iter().map(|e| (e.label(), e.ready)).collect();
        assert_eq!(
            endpoints,
            [("web-0".to_owned(), true), ("10-0-0-2".to_owned(), false), ("10-0-0-3".to_owned(), false)]
        );
    }
}
