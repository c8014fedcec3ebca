//! Where a pod's kubelet is, and which of a pod's containers is meant. Pure.

use std::net::IpAddr;

use hawser_api::object::ObjectExt;
use hawser_api::status::Status;
use serde_json::Value;

/// The kubelet's port when the node does not tell.
const KUBELET_PORT: u16 = 10250;
/// Kinds of node addresses, the best first. `InternalIP` is what every node of this cluster has.
const ADDRESS_TYPES: [&str; 5] = ["InternalIP", "Hostname", "InternalDNS", "ExternalDNS", "ExternalIP"];

/// Host and port of a node's kubelet.
///
/// # Errors
/// When the node tells no address yet.
pub(super) fn kubelet_address(node: &Value) -> Result<(String, u16), Status> {
    let addresses = node.items_at("status.addresses");
    let found = ADDRESS_TYPES.iter().find_map(|wanted| {
        addresses
            .iter()
            .find(|a| a.str_at("type") == *wanted)
            .map(|a| a.str_at("address"))
            .filter(|a| !a.is_empty())
    });
    let Some(host) = found else {
        let why = format!("no preferred addresses found; known addresses: [] of node {}", node.name());
        return Err(Status::internal(why));
    };
    let port = node.int_at("status.daemonEndpoints.kubeletEndpoint.Port");
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(KUBELET_PORT);
    Ok((host.to_owned(), port))
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    pod.items_at(list).iter().map(|c| c.str_at("name").to_owned()).collect()
}

/// The container that is meant.
///
/// # Errors
/// 400 with Kubernetes' texts when it cannot be told or is not there.
pub(super) fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let containers = names(pod, "spec.containers");
    let init = names(pod, "spec.initContainers");
    let name = pod.name();
    if !asked.is_empty() {
        let known = containers.iter().chain(&init).any(|c| c == asked)
            || names(pod, "spec.ephemeralContainers").iter().any(|c| c == asked);
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
        };
    }
    match containers.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
        several => {
            let several = several.join(" ");
            let mut text =
                format!("a container name must be specified for pod {name}, choose one of: [{several}]");
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(text))
        }
    }
}

/// `[scheme:]name[:port]`, as the names of proxied objects are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProxyName<'a> {
    pub(super) scheme: &'a str,
    pub(super) name: &'a str,
    /// A number or the name of a port.
    pub(super) port: &'a str,
}

impl<'a> ProxyName<'a> {
    /// None for anything else.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme @ ("" | "http" | "https"), name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        (!name.is_empty()).then_some(Self { scheme, name, port })
    }
}

/// Whether the API server connects to such an address for others. Its own loopback and its link are its own.
pub(super) fn is_proxyable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kubelets_are_found_by_their_node() {
        let node = |status: Value| json!({"metadata": {"name": "n"}, "status": status});
        let address = |kind: &str, address: &str| json!({"type": kind, "address": address});
        let both = json!([address("Hostname", "h"), address("InternalIP", "192.0.2.1")]);
        let port = json!({"kubeletEndpoint": {"Port": 10400}});
        for (status, expected) in [
            (json!({"addresses": both, "daemonEndpoints": port}), Some(("192.0.2.1", 10400))),
            (json!({"addresses": both}), Some(("192.0.2.1", 10250))),
            (json!({"addresses": [address("Hostname", "h")]}), Some(("h", 10250))),
            (json!({"addresses": []}), None),
        ] {
            let got = kubelet_address(&node(status)).ok();
            assert_eq!(got, expected.map(|(h, p)| (h.to_owned(), p)));
        }
    }

    #[test]
    fn containers_are_chosen_with_kubernetes_texts() {
        let pod = |containers: &[&str], init: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
            json!({"metadata": {"name": "p"}, "spec": {"containers": list(containers), "initContainers": list(init)}})
        };
        let text = |pod: &Value, asked: &str| container(pod, asked).unwrap_or_else(|status| status.message);
        assert_eq!(text(&pod(&["a"], &[]), ""), "a");
        assert_eq!(text(&pod(&["a"], &["i"]), "i"), "i");
        assert_eq!(text(&pod(&["a"], &[]), "x"), "container x is not valid for pod p");
        assert_eq!(text(&pod(&[], &[]), ""), "a container name must be specified for pod p");
        assert_eq!(
            text(&pod(&["a", "b"], &[]), ""),
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        assert_eq!(
            text(&pod(&["a", "b"], &["i"]), ""),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }

    #[test]
    fn proxy_names_and_addresses() {
        let parse = |text| ProxyName::parse(text).map(|n| (n.scheme, n.name, n.port));
        assert_eq!(parse("web"), Some(("", "web", "")));
        assert_eq!(parse("web:80"), Some(("", "web", "80")));
        assert_eq!(parse("https:web:443"), Some(("https", "web", "443")));
        assert_eq!(parse("http:web:"), Some(("http", "web", "")));
        for bad in ["", "ftp:web:1", "a:b:c:d", ":80"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        for (address, allowed) in [
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("::1", false),
            ("fe80::1", false),
            ("0.0.0.0", false),
        ] {
            assert_eq!(is_proxyable(address.parse().expect("address")), allowed, "{address}");
        }
    }
}
