//! Validation of services and endpoints.

use super::addresses;
use super::checks::{Errors, IMMUTABLE};
use crate::names;
use crate::object::{Labels, ObjectExt as _};
use crate::status::{BadValue, Path};
use serde_json::{Value, json};

const SPEC: Path<'static> = Path::new("spec");
const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub fn service(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let empty = Value::Null;
    let s = o.get("spec").unwrap_or(&empty);
    if let Some(old) = old {
        update(o, s, old, e);
    }
    let kind = s.str_at("type");
    let headless = s.str_at("clusterIP") == "None";
    let ports = s.items_at("ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        e.required(SPEC.child("ports"), "");
    }
    if headless && matches!(kind, "LoadBalancer" | "NodePort") {
        let list = SPEC.child("clusterIPs");
        e.invalid(list.index(0), "None", format!("may not be set to 'None' for {kind} services"));
    }
    if kind == "ExternalName" {
        for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let given = match s.get(field) {
                Some(Value::Array(list)) => !list.is_empty(),
                Some(Value::String(_)) => true,
                _ => false,
            };
            if given {
                e.forbidden(SPEC.child(field), "may not be set for ExternalName services");
            }
        }
        match s.str_at("externalName").trim_end_matches('.') {
            "" => e.required(SPEC.child("externalName"), ""),
            name => e.all(SPEC.child("externalName"), name, names::dns1123_subdomain(name)),
        }
    }
    service_ports(s, e);
    e.label_map(SPEC.child("selector"), Labels::new(s.get("selector").and_then(Value::as_object)));
    affinity(s, e);
    cluster_ips(s, old, e);
    let list = SPEC.child("externalIPs");
    for (i, ip) in s.items_at("externalIPs").iter().filter_map(Value::as_str).enumerate() {
        if let Some(address) = addresses::ip(list.index(i), ip, e)
            && ip.parse::<std::net::IpAddr>().is_ok()
        {
            special_address(address, ip, list.index(i), e);
        }
    }
    e.one_of(SPEC.child("type"), kind, &TYPES);
    pairs_of_ports(s, e);
    let list = SPEC.child("LoadBalancerSourceRanges");
    let ranges = s.items_at("loadBalancerSourceRanges");
    if !ranges.is_empty() && kind != "LoadBalancer" {
        e.forbidden(list, ONLY_BALANCED);
    }
    for (i, range) in ranges.iter().filter_map(Value::as_str).enumerate() {
        addresses::cidr(list.index(i), range.trim(), e);
    }
    const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    if let Some(text) = o.annotation(RANGES).filter(|_| ranges.is_empty()) {
        let at = Path::new("metadata.annotations");
        if kind != "LoadBalancer" {
            e.forbidden(at.key(RANGES), ONLY_BALANCED);
        }
        let same = old.is_some_and(|old| old.annotation(RANGES) == Some(text));
        for range in text.split(',').map(str::trim).filter(|_| !same && !text.trim().is_empty()) {
            addresses::cidr(at.key(RANGES), range, e);
        }
    }
    if s.get("allocateLoadBalancerNodePorts").is_some_and(|v| !v.is_null()) && kind != "LoadBalancer" {
        e.forbidden(SPEC.child("allocateLoadBalancerNodePorts"), ONLY_BALANCED);
    }
    load_balancer_class(s, e);
    traffic(s, kind, e);
    const MODE: &str = "service.kubernetes.io/topology-mode";
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    if let (Some(mode), Some(hints)) = (o.annotation(MODE), o.annotation(HINTS))
        && mode != hints
    {
        let at = Path::new("metadata.annotations");
        e.invalid(at.key(MODE), mode, format!("must match annotations[{HINTS}] when both are specified"));
    }
}

const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";

fn load_balancer_class(s: &Value, e: &mut Errors) {
    let at = SPEC.child("loadBalancerClass");
    match s.get("loadBalancerClass").and_then(Value::as_str) {
        Some(class) if s.str_at("type") == "LoadBalancer" => e.all(at, class, names::qualified_name(class)),
        Some(_) => e.forbidden(at, ONLY_BALANCED),
        None => {}
    }
}

/// Whether endpoints are the API server's own, which may serve its own machine alone.
fn is_own(o: &Value) -> bool {
    let service = o.label("kubernetes.io/service-name").unwrap_or_else(|| o.name());
    o.namespace() == "default" && service == "kubernetes"
}

/// An endpoint's address; `own` lets loopback pass.
fn endpoint_address(own: bool, ip: std::net::IpAddr, text: &str, at: Path<'_>, e: &mut Errors) {
    if !(own && ip.is_loopback()) {
        special_address(ip, text, at, e);
    }
}

/// Addresses that mean something of their own and cannot be those of endpoints.
fn special_address(ip: std::net::IpAddr, text: &str, at: Path<'_>, e: &mut Errors) {
    let local_multicast = match ip {
        std::net::IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        std::net::IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let link_local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    if ip.is_unspecified() {
        e.invalid(at, text, format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        e.invalid(at, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        e.invalid(at, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if local_multicast {
        e.invalid(at, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

fn service_ports(s: &Value, e: &mut Errors) {
    let list = SPEC.child("ports");
    let ports = s.items_at("ports");
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let item = list.index(i);
        let name = port.str_at("name");
        if name.is_empty() {
            if ports.len() > 1 {
                e.required(item.child("name"), "");
            }
        } else {
            e.all(item.child("name"), name, names::dns1123_label(name));
            if seen.contains(&name) {
                e.duplicate(item.child("name"), name);
            }
            seen.push(name);
        }
        e.port_or_name(item.child("port"), port.get("port"));
        e.one_of(item.child("protocol"), port.str_at("protocol"), &PROTOCOLS);
        e.port_or_name(item.child("targetPort"), port.get("targetPort"));
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            e.all(item.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

/// What ports may not be together: protocol and number, and protocol and node port, are unique.
fn pairs_of_ports(s: &Value, e: &mut Errors) {
    let list = SPEC.child("ports");
    let ports = || s.items_at("ports").iter().enumerate();
    let node_port = |port: &Value| port.int_at("nodePort").unwrap_or(0);
    for (i, _) in ports().filter(|(_, p)| node_port(p) != 0 && s.str_at("type") == "ClusterIP") {
        let item = list.index(i);
        e.forbidden(item.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
    }
    let mut node_ports = Vec::new();
    for (i, port) in ports() {
        let item = list.index(i);
        let node_port = node_port(port);
        if node_port != 0 {
            let key = (port.str_at("protocol"), node_port);
            if node_ports.contains(&key) {
                e.duplicate(item.child("nodePort"), node_port);
            }
            node_ports.push(key);
        }
    }
    let mut pairs = Vec::new();
    for (i, port) in ports() {
        let item = list.index(i);
        let pair = (port.str_at("protocol"), port.int_at("port"));
        if pairs.contains(&pair) {
            // What does not tell ports apart is not shown.
            let shown = json!({"protocol": pair.0, "port": pair.1});
            e.duplicate(item, BadValue::internal("core.ServicePort", Some(&shown)));
        }
        pairs.push(pair);
    }
}

fn affinity(s: &Value, e: &mut Errors) {
    let value = s.str_at("sessionAffinity");
    e.one_of(SPEC.child("sessionAffinity"), value, &["ClientIP", "None"]);
    let config = SPEC.child("sessionAffinityConfig");
    let given = s.get("sessionAffinityConfig").filter(|c| !c.is_null());
    if value == "ClientIP" {
        let client = config.child("clientIP");
        match given.and_then(|c| c.int_at("clientIP.timeoutSeconds")) {
            None => e.required(client, "when session affinity type is ClientIP"),
            Some(n) if !(1..=86_400).contains(&n) => {
                e.invalid(client.child("timeoutSeconds"), n, "must be greater than 0 and less than 86400");
            }
            Some(_) => {}
        }
    } else if value == "None" && given.is_some() {
        e.forbidden(config, "must not be set when session affinity is None");
    }
}

/// What is wrong with the addresses and families that a service asks for, before any is given out.
pub fn addresses_wanted(o: &Value, old: Option<&Value>) -> Vec<crate::status::FieldError> {
    let mut e = Errors::default();
    cluster_ips(o.get("spec").unwrap_or(&Value::Null), old, &mut e);
    e.into_vec()
}

fn cluster_ips(s: &Value, old: Option<&Value>, e: &mut Errors) {
    if s.str_at("type") == "ExternalName" {
        return;
    }
    let list = SPEC.child("clusterIPs");
    let all = s.items_at("clusterIPs");
    let shown = || s.get("clusterIPs").cloned().unwrap_or(Value::Null);
    let one = s.str_at("clusterIP");
    match all.first() {
        None if !one.is_empty() => e.required(list, ""),
        Some(_) if one.is_empty() => {
            e.invalid(list, shown(), "must be empty when `clusterIP` is not specified")
        }
        Some(first) if first != one => e.invalid(list, shown(), "first value must match `clusterIP`"),
        _ => {}
    }
    let families_at = SPEC.child("ipFamilies");
    let families: Vec<&str> = s.items_at("ipFamilies").iter().filter_map(Value::as_str).collect();
    for (i, family) in families.iter().enumerate() {
        if !matches!(*family, "IPv4" | "IPv6") {
            e.unsupported(families_at.index(i), family, &["IPv4", "IPv6"]);
        }
        if families[..i].contains(family) {
            e.duplicate(families_at.index(i), *family);
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    e.known(SPEC.child("ipFamilyPolicy"), s.get("ipFamilyPolicy"), &policies);
    let before = old.map(|o| o.items_at("spec.clusterIPs")).unwrap_or_default();
    let mut wrong = false;
    let mut parsed = Vec::new();
    for (i, ip) in all.iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        if i == 0 && text == "None" {
            if all.len() > 1 {
                wrong = true;
                e.invalid(list, shown(), "'None' must be the first and only value");
            }
        } else if before.contains(ip) {
            // What was let in once stays.
            parsed.extend(addresses::sloppy(text));
        } else {
            let told = e.count();
            parsed.extend(addresses::ip(list.index(i), text, e));
            wrong |= e.count() > told;
        }
    }
    if all.len() > 2 {
        e.invalid(list, shown(), "may only hold up to 2 values");
    }
    if wrong {
        return;
    }
    if all.len() > 1 && parsed.iter().all(|ip| ip.is_ipv4() == parsed[0].is_ipv4()) {
        e.invalid(list, shown(), "may specify no more than one IP for each IP family");
    }
    if one == "None" {
        return;
    }
    for (i, (ip, family)) in parsed.iter().zip(&families).enumerate() {
        let own = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if own != *family && matches!(*family, "IPv4" | "IPv6") {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            e.invalid(list.index(i), all[i].clone(), detail);
        }
    }
}

fn traffic(s: &Value, kind: &str, e: &mut Errors) {
    let external = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !s.items_at("externalIPs").is_empty());
    let policy = s.str_at("externalTrafficPolicy");
    let at = SPEC.child("externalTrafficPolicy");
    if external {
        e.one_of(at, policy, &["Cluster", "Local"]);
    } else if !policy.is_empty() {
        e.invalid(at, policy, "may only be set for externally-accessible services");
    }
    let port = s.int_at("healthCheckNodePort").unwrap_or(0);
    let at = SPEC.child("healthCheckNodePort");
    if kind == "LoadBalancer" && policy == "Local" {
        if port == 0 {
            e.required(at, "");
        } else {
            super::containers::port_number(at, port, e);
        }
    } else if port != 0 {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        e.invalid(at, port, detail);
    }
    let internal = s.str_at("internalTrafficPolicy");
    if s.get("internalTrafficPolicy").and_then(Value::as_str) == Some("") {
        e.unsupported(SPEC.child("internalTrafficPolicy"), "", &["Cluster", "Local"]);
    } else if internal.is_empty() {
        // A type that is none was reported; nothing is known about what it needs.
        if TYPES.contains(&kind) && kind != "ExternalName" {
            e.required(SPEC.child("internalTrafficPolicy"), "");
        }
    } else {
        e.one_of(SPEC.child("internalTrafficPolicy"), internal, &["Cluster", "Local"]);
    }
    let all = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    e.known(SPEC.child("trafficDistribution"), s.get("trafficDistribution"), &all);
}

/// The addresses of a load balancer.
pub fn status(o: &Value, e: &mut Errors) {
    let list = Path::new("status");
    let list = list.child("loadBalancer");
    let list = list.child("ingress");
    let ingress = o.items_at("status.loadBalancer.ingress");
    if o.str_at("spec.type") != "LoadBalancer" && !ingress.is_empty() {
        return e.forbidden(list, "may only be used when `spec.type` is 'LoadBalancer'");
    }
    for (i, one) in ingress.iter().enumerate() {
        let item = list.index(i);
        let (ip, host) = (one.str_at("ip"), one.str_at("hostname"));
        if !ip.is_empty() {
            addresses::ip(item.child("ip"), ip, e);
        }
        match one.get("ipMode").and_then(Value::as_str) {
            None if !ip.is_empty() => e.required(item.child("ipMode"), "must be specified when `ip` is set"),
            None => {}
            Some(_) if ip.is_empty() => {
                e.forbidden(item.child("ipMode"), "may not be specified when `ip` is not set");
            }
            mode => e.known(item.child("ipMode"), mode.map(Value::from).as_ref(), &["Proxy", "VIP"]),
        }
        if !host.is_empty() {
            e.all(item.child("hostname"), host, names::dns1123_subdomain(host));
            if addresses::sloppy(host).is_some() {
                e.invalid(item.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}

/// What an update may not change.
fn update(o: &Value, s: &Value, old: &Value, e: &mut Errors) {
    let balanced = |o: &Value| o.str_at("spec.type") == "LoadBalancer";
    kept(o, old, e);
    if balanced(o) && balanced(old) && o.at("spec.loadBalancerClass") != old.at("spec.loadBalancerClass") {
        let value = o.at("spec.loadBalancerClass").cloned().unwrap_or(Value::Null);
        e.invalid(SPEC.child("loadBalancerClass"), value, "may not change once set");
    }
    load_balancer_class(s, e);
    let checked = |o: &Value| balanced(o) && o.str_at("spec.externalTrafficPolicy") == "Local";
    let port = |o: &Value| o.int_at("spec.healthCheckNodePort").unwrap_or(0);
    if checked(o) && checked(old) && port(o) != port(old) {
        e.forbidden(SPEC.child("healthCheckNodePort"), IMMUTABLE);
    }
}

/// The first address and the first family stay; the second ones may come, and go with the policy.
fn kept(o: &Value, old: &Value, e: &mut Errors) {
    let external = |o: &Value| o.str_at("spec.type") == "ExternalName";
    let headless = |o: &Value| o.items_at("spec.clusterIPs").first().is_some_and(|ip| ip == "None");
    if external(o) || external(old) || (headless(o) && headless(old)) {
        return;
    }
    let shown = |path: &str| o.at(path).cloned().unwrap_or(Value::Null);
    let single = o.str_at("spec.ipFamilyPolicy") == "SingleStack";
    let policy = |what: &str, e: &mut Errors| {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        e.invalid(SPEC.child("ipFamilyPolicy"), shown("spec.ipFamilyPolicy"), detail);
    };
    const CHANGED: &str = "may not change once set";
    let (ips, before) = (o.items_at("spec.clusterIPs"), old.items_at("spec.clusterIPs"));
    let list = SPEC.child("clusterIPs");
    if ips.len() == before.len() {
        for i in (0..ips.len()).filter(|i| ips[*i] != before[*i]) {
            e.invalid(list.index(i), shown("spec.clusterIPs"), CHANGED);
        }
    } else {
        if ips.is_empty() {
            e.invalid(list.index(0), shown("spec.clusterIPs"), "primary clusterIP can not be unset");
        } else if !before.is_empty() && ips[0] != before[0] {
            e.invalid(list.index(0), shown("spec.clusterIPs"), CHANGED);
        }
        if before.len() > ips.len() && ips.len() == 1 && !single {
            policy("clusterIP", e);
        }
    }
    if headless(o) || headless(old) {
        return;
    }
    let (families, before) = (o.items_at("spec.ipFamilies"), old.items_at("spec.ipFamilies"));
    let first = SPEC.child("ipFamilies");
    let first = first.index(0);
    if families.len() == before.len() {
        for _ in (0..families.len()).filter(|i| families[*i] != before[*i]) {
            e.invalid(first, shown("spec.ipFamilies"), CHANGED);
        }
    } else {
        if before.len() > families.len() && ips.is_empty() {
            e.invalid(first, shown("spec.ipFamilies"), "primary ipFamily can not be unset");
        }
        if !before.is_empty() && families.first().is_some_and(|f| *f != before[0]) {
            // The addresses are shown here, as kube-apiserver has it.
            e.invalid(first, shown("spec.clusterIPs"), CHANGED);
        }
        if before.len() > families.len() && families.len() == 1 && !single {
            policy("ipFamily", e);
        }
    }
}

pub fn endpoints(o: &Value, e: &mut Errors) {
    let subsets = Path::new("subsets");
    for (i, subset) in o.items_at("subsets").iter().enumerate() {
        let item = subsets.index(i);
        if subset.items_at("addresses").is_empty() && subset.items_at("notReadyAddresses").is_empty() {
            e.required(item, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            let list = item.child(field);
            for (j, address) in subset.items_at(field).iter().enumerate() {
                let at = list.index(j);
                let ip = address.str_at("ip");
                let host = address.str_at("hostname");
                if !host.is_empty() {
                    e.all(at.child("hostname"), host, names::dns1123_label(host));
                }
                if let Some(node) = address.get("nodeName").and_then(Value::as_str) {
                    e.all(at.child("nodeName"), node, names::dns1123_subdomain(node));
                }
                match addresses::ip(at.child("ip"), ip, e) {
                    Some(parsed) => endpoint_address(is_own(o), parsed, ip, at.child("ip"), e),
                    None => e.invalid(at.child("ip"), ip, "must be a valid IP address"),
                }
            }
        }
        let list = item.child("ports");
        let ports = subset.items_at("ports");
        for (j, port) in ports.iter().enumerate() {
            let at = list.index(j);
            match port.str_at("name") {
                "" if ports.len() > 1 => e.required(at.child("name"), ""),
                "" => {}
                name => e.all(at.child("name"), name, names::dns1123_label(name)),
            }
            e.port_or_name(at.child("port"), port.get("port"));
            e.one_of(at.child("protocol"), port.str_at("protocol"), &PROTOCOLS);
            if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
                e.all(at.child("appProtocol"), protocol, names::qualified_name(protocol));
            }
        }
    }
}

/// The zones and nodes that an endpoint is meant for.
fn hint_zones(hints: &Value, at: Path<'_>, e: &mut Errors) {
    for (field, check) in [
        ("forZones", names::label_value as fn(&str) -> Vec<String>),
        ("forNodes", names::dns1123_subdomain as fn(&str) -> Vec<String>),
    ] {
        let list = at.child(field);
        let all = hints.items_at(field);
        if all.len() > 8 {
            e.push(crate::status::FieldError::too_many(list, all.len(), 8));
            continue;
        }
        for (i, hint) in all.iter().enumerate() {
            let item = list.index(i);
            let name = hint.str_at("name");
            if all[..i].iter().any(|h| h.str_at("name") == name) {
                e.duplicate(item.child("name"), name);
            }
            e.all(item.child("name"), name, check(name));
        }
    }
}

/// A fully qualified domain name: one of at least two labels.
fn fqdn(name: &str, at: Path<'_>, e: &mut Errors) {
    let name = name.strip_suffix('.').unwrap_or(name);
    let messages = names::dns1123_subdomain(name);
    if !messages.is_empty() {
        return e.all(at, name, messages);
    }
    if !name.contains('.') {
        e.invalid(at, name, "should be a domain with at least two segments separated by dots");
    }
    for label in name.split('.') {
        e.all(at, label, names::dns1123_label(label));
    }
}

pub fn endpoint_slice(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let root = Path::ROOT;
    let family = o.str_at("addressType");
    e.one_of(root.child("addressType"), family, &["FQDN", "IPv4", "IPv6"]);
    slice_ports(o, e);
    // What is stored may stay, whatever it is.
    if old.is_none_or(|old| old.items_at("endpoints") != o.items_at("endpoints")) {
        slice_endpoints(o, family, e);
    }
    if let Some(old) = old
        && old.str_at("addressType") != family
    {
        e.invalid(root.child("addressType"), family, IMMUTABLE);
    }
}

fn slice_ports(o: &Value, e: &mut Errors) {
    let list = Path::new("ports");
    if o.items_at("ports").len() > 20_000 {
        return e.push(crate::status::FieldError::too_many(list, o.items_at("ports").len(), 20_000));
    }
    let mut seen = Vec::new();
    for (i, port) in o.items_at("ports").iter().enumerate() {
        let item = list.index(i);
        let name = port.str_at("name");
        if !name.is_empty() {
            e.all(item.child("name"), name, names::dns1123_label(name));
        }
        if seen.contains(&name) {
            e.duplicate(item.child("name"), name);
        }
        seen.push(name);
        match port.get("protocol").and_then(Value::as_str) {
            None => e.required(item.child("protocol"), ""),
            given => e.known(item.child("protocol"), given.map(Value::from).as_ref(), &PROTOCOLS),
        }
        if let Some(protocol) = port.get("appProtocol").and_then(Value::as_str) {
            e.all(item.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn slice_endpoints(o: &Value, family: &str, e: &mut Errors) {
    let (list, endpoints) = (Path::new("endpoints"), o.items_at("endpoints"));
    if endpoints.len() > 1000 {
        return e.push(crate::status::FieldError::too_many(list, endpoints.len(), 1000));
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let item = list.index(i);
        let addresses = item.child("addresses");
        match endpoint.items_at("addresses").len() {
            0 => e.required(addresses, "must contain at least 1 address"),
            n if n > 100 => e.push(crate::status::FieldError::too_many(addresses, n, 100)),
            _ => {}
        }
        for (j, address) in endpoint.items_at("addresses").iter().filter_map(Value::as_str).enumerate() {
            match (family, address.parse::<std::net::IpAddr>()) {
                ("FQDN", _) => fqdn(address, addresses.index(j), e),
                ("IPv4", Ok(ip)) if ip.is_ipv4() => {
                    endpoint_address(is_own(o), ip, address, addresses.index(j), e)
                }
                ("IPv6", Ok(ip)) if ip.is_ipv6() => {
                    endpoint_address(is_own(o), ip, address, addresses.index(j), e)
                }
                ("IPv4" | "IPv6", Err(_)) => e.ip(addresses.index(j), address),
                ("IPv4", Ok(ip)) => {
                    e.invalid(addresses, address, "must be an IPv4 address");
                    special_address(ip, address, addresses.index(j), e);
                }
                ("IPv6", Ok(ip)) => {
                    e.invalid(addresses, address, "must be an IPv6 address");
                    special_address(ip, address, addresses.index(j), e);
                }
                _ => {}
            }
        }
        if let Some(node) = endpoint.get("nodeName").and_then(Value::as_str) {
            e.all(item.child("nodeName"), node, names::dns1123_subdomain(node));
        }
        if let Some(host) = endpoint.get("hostname").and_then(Value::as_str) {
            e.all(item.child("hostname"), host, names::dns1123_label(host));
        }
        if let Some(hints) = endpoint.get("hints").filter(|h| !h.is_null()) {
            hint_zones(hints, item.child("hints"), e);
        }
    }
}
