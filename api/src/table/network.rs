//! The rows of services, endpoints, ingresses and network policies.

use super::cells::Cx;
use crate::kinds::Kind;
use crate::object::ObjectExt as _;
use serde_json::{Value, json};

/// Most items of a list that a cell shows.
const MAX_ITEMS: usize = 3;

pub fn cells(kind: &Kind, cx: &Cx<'_>) -> Option<Vec<Value>> {
    let o = cx.o;
    Some(match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Service") => vec![
            cx.name(),
            cx.text("spec.type"),
            cx.text_or("spec.clusterIP", "<none>"),
            json!(external_ip(o)),
            json!(service_ports(o)),
            cx.age(),
            cx.labels("spec.selector"),
        ],
        ("", "Endpoints") => vec![cx.name(), json!(endpoints(o)), cx.age()],
        ("discovery.k8s.io", "EndpointSlice") => {
            let ports: Vec<String> = o
                .items_at("ports")
                .iter()
                .map(|p| p.int_at("port").map_or("*".to_owned(), |n| n.to_string()))
                .collect();
            let addresses: Vec<String> = o
                .items_at("endpoints")
                .iter()
                .flat_map(|e| e.items_at("addresses"))
                .filter_map(|a| a.as_str().map(str::to_owned))
                .collect();
            vec![
                cx.name(),
                cx.text("addressType"),
                json!(shortened(&ports, "<unset>")),
                json!(shortened(&addresses, "<unset>")),
                cx.age(),
            ]
        }
        ("networking.k8s.io", "Ingress") => ingress(cx),
        ("networking.k8s.io", "IngressClass") => {
            let parameters = match o.at("spec.parameters") {
                Some(p) if !p.is_null() => {
                    let kind = match p.str_at("apiGroup") {
                        "" => p.str_at("kind").to_owned(),
                        group => format!("{}.{group}", p.str_at("kind")),
                    };
                    format!("{kind}/{}", p.str_at("name"))
                }
                _ => "<none>".to_owned(),
            };
            vec![cx.name(), cx.text("spec.controller"), json!(parameters), cx.age()]
        }
        ("networking.k8s.io", "NetworkPolicy") => vec![cx.name(), cx.selector("spec.podSelector"), cx.age()],
        ("networking.k8s.io", "IPAddress") => {
            let parent = match o.at("spec.parentRef") {
                Some(p) if !p.is_null() => {
                    let resource = match p.str_at("group") {
                        "" => p.str_at("resource").to_owned(),
                        group => format!("{}.{group}", p.str_at("resource")),
                    };
                    match p.str_at("namespace") {
                        "" => format!("{resource}/{}", p.str_at("name")),
                        ns => format!("{resource}/{ns}/{}", p.str_at("name")),
                    }
                }
                _ => String::new(),
            };
            vec![cx.name(), json!(parent), cx.age()]
        }
        ("networking.k8s.io", "ServiceCIDR") => {
            let cidrs: Vec<&str> = o.items_at("spec.cidrs").iter().filter_map(Value::as_str).collect();
            vec![cx.name(), json!(cidrs.join(",")), cx.age()]
        }
        _ => return None,
    })
}

/// At most [`MAX_ITEMS`] items, and how many more there are.
fn shortened(items: &[String], empty: &str) -> String {
    if items.is_empty() {
        return empty.to_owned();
    }
    let shown = items.len().min(MAX_ITEMS);
    let text = items[..shown].join(",");
    match items.len() - shown {
        0 => text,
        more => format!("{text} + {more} more..."),
    }
}

fn balancer_addresses(o: &Value) -> Vec<String> {
    let mut out: Vec<String> = o
        .items_at("status.loadBalancer.ingress")
        .iter()
        .map(|i| if i.str_at("ip").is_empty() { i.str_at("hostname") } else { i.str_at("ip") })
        .filter(|a| !a.is_empty())
        .map(str::to_owned)
        .collect();
    out.sort();
    out.dedup();
    out
}

fn external_ip(o: &Value) -> String {
    let given = o.items_at("spec.externalIPs").iter().filter_map(|i| i.as_str().map(str::to_owned));
    let mut given: Vec<String> = given.collect();
    match o.str_at("spec.type") {
        "ExternalName" => return o.str_at("spec.externalName").to_owned(),
        "LoadBalancer" => {
            let mut all = balancer_addresses(o);
            all.append(&mut given);
            return if all.is_empty() { "<pending>".into() } else { all.join(",") };
        }
        _ => {}
    }
    if given.is_empty() { "<none>".into() } else { given.join(",") }
}

fn service_ports(o: &Value) -> String {
    let ports = o.items_at("spec.ports");
    if ports.is_empty() {
        return "<none>".into();
    }
    let text = ports.iter().map(|p| {
        let (port, protocol) = (p.int_at("port").unwrap_or(0), p.str_at("protocol"));
        match p.int_at("nodePort").unwrap_or(0) {
            0 => format!("{port}/{protocol}"),
            node => format!("{port}:{node}/{protocol}"),
        }
    });
    text.collect::<Vec<_>>().join(",")
}

fn endpoints(o: &Value) -> String {
    let mut all = Vec::new();
    for subset in o.items_at("subsets") {
        let addresses: Vec<&str> = subset.items_at("addresses").iter().map(|a| a.str_at("ip")).collect();
        let ports = subset.items_at("ports");
        if ports.is_empty() {
            all.extend(addresses.iter().map(|a| (*a).to_owned()));
        }
        for port in ports {
            let number = port.int_at("port").unwrap_or(0);
            all.extend(
                addresses.iter().map(|a| {
                    if a.contains(':') { format!("[{a}]:{number}") } else { format!("{a}:{number}") }
                }),
            );
        }
    }
    shortened(&all, "<none>")
}

fn ingress(cx: &Cx<'_>) -> Vec<Value> {
    let o = cx.o;
    let hosts: Vec<String> = o
        .items_at("spec.rules")
        .iter()
        .map(|r| r.str_at("host"))
        .filter(|h| !h.is_empty())
        .map(str::to_owned)
        .collect();
    let ports = if o.items_at("spec.tls").is_empty() { "80" } else { "80, 443" };
    vec![
        cx.name(),
        cx.text_or("spec.ingressClassName", "<none>"),
        json!(shortened(&hosts, "*")),
        json!(balancer_addresses(o).join(",")),
        json!(ports),
        cx.age(),
    ]
}
