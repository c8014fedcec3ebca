//! Validation of ingresses, network policies and address ranges.

use super::addresses;
use super::checks::Errors;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{BadValue, Path};
use serde_json::{Value, json};

const SPEC: Path<'static> = Path::new("spec");

pub fn kind(kind: &str, o: &Value, old: Option<&Value>, e: &mut Errors) {
    let fixed = match kind {
        "IngressClass" => Some(("controller", "string")),
        "IPAddress" => Some(("parentRef", "*networking.ParentReference")),
        _ => None,
    };
    if let (Some(new), Some(old)) = (o.get("spec"), old.and_then(|o| o.get("spec")))
        && let Some((field, ty)) = fixed.filter(|_| kind != "IPAddress")
    {
        e.immutable(SPEC, ty, new, old, field);
    }
    match kind {
        "Ingress" => {
            ingress(o, e);
            let class = o.str_at("spec.ingressClassName");
            if let Some(annotated) =
                o.annotation(CLASS).filter(|a| old.is_none() && !class.is_empty() && *a != class)
            {
                let at = Path::new("annotations");
                e.invalid(
                    at.child(CLASS),
                    annotated,
                    "must match `ingressClassName` when both are specified",
                );
            }
        }
        "NetworkPolicy" => network_policy(o, e),
        "IngressClass" => ingress_class(o, e),
        "ServiceCIDR" => match old {
            None => service_cidr(o, e),
            Some(old) => service_cidr_update(o, old, e),
        },
        "IPAddress" => {
            let at = SPEC.child("parentRef");
            match o.at("spec.parentRef").filter(|p| !p.is_null()) {
                None => e.required(at, ""),
                Some(parent) => {
                    let group = parent.str_at("group");
                    if !group.is_empty() {
                        e.all(at.child("group"), group, names::dns1123_subdomain(group));
                    }
                    for field in ["resource", "name", "namespace"] {
                        match parent.str_at(field) {
                            "" if field == "namespace" => {}
                            "" => e.required(at.child(field), ""),
                            text => e.all(at.child(field), text, names::path_segment(text)),
                        }
                    }
                }
            }
        }
        _ => {}
    }
    if let (Some(new), Some(old)) = (o.get("spec"), old.and_then(|o| o.get("spec")))
        && let Some((field, ty)) = fixed.filter(|_| kind == "IPAddress")
    {
        e.immutable(SPEC, ty, new, old, field);
    }
}

const CLASS: &str = "kubernetes.io/ingress.class";

fn ingress_class(o: &Value, e: &mut Errors) {
    let controller = o.str_at("spec.controller");
    let at = SPEC.child("controller");
    if controller.len() > 250 {
        e.push(crate::status::FieldError::too_long(at, 250));
    }
    if controller.is_empty() {
        e.required(at, "");
    } else {
        domain_path(controller, at, e);
    }
    let Some(params) = o.at("spec.parameters").filter(|p| !p.is_null()) else { return };
    let at = SPEC.child("parameters");
    if let Some(group) = params.get("apiGroup").and_then(Value::as_str) {
        e.all(at.child("apiGroup"), group, names::dns1123_subdomain(group));
    }
    for field in ["kind", "name"] {
        match params.str_at(field) {
            "" => e.required(at.child(field), ""),
            text => e.all(at.child(field), text, names::path_segment(text)),
        }
    }
    let namespace = params.get("namespace").and_then(Value::as_str);
    if params.get("scope").is_none_or(Value::is_null) {
        e.required(at.child("scope"), "");
    }
    match (params.str_at("scope"), namespace) {
        ("Namespace", None) => e.required(at.child("namespace"), "`parameters.scope` is set to 'Namespace'"),
        ("Namespace", Some(name)) => e.all(at.child("namespace"), name, names::dns1123_label(name)),
        ("Cluster", Some(_)) => e.forbidden(at.child("namespace"), "`parameters.scope` is set to 'Cluster'"),
        ("Cluster", None) => {}
        (other, _) => e.unsupported(at.child("scope"), other, &["Cluster", "Namespace"]),
    }
}

/// `example.com/name`: a domain and a path.
pub fn domain_path(text: &str, at: Path<'_>, e: &mut Errors) {
    let Some((domain, path)) = text.split_once('/').filter(|(d, p)| !d.is_empty() && !p.is_empty()) else {
        e.invalid(at, text, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        return;
    };
    for message in names::dns1123_subdomain(domain) {
        e.invalid(at, domain, message);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/%:@._-~!$&'()*+,;=".contains(c);
    if !path.chars().all(plain) {
        e.invalid(
            at,
            path,
            "Invalid path (regex used for validation is '^[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+$')",
        );
    }
}

/// The ranges stay, but a second one may be added (the step to two families).
fn service_cidr_update(o: &Value, old: &Value, e: &mut Errors) {
    let at = SPEC.child("cidrs");
    let (now, before) = (o.items_at("spec.cidrs"), old.items_at("spec.cidrs"));
    let grown = before.len() == 1 && now.len() == 2;
    if !grown && now.len() != before.len() {
        return e.invalid(at, BadValue::internal("[]string", o.at("spec.cidrs")), super::checks::IMMUTABLE);
    }
    for (i, (now, _)) in now.iter().zip(before).enumerate().filter(|(_, (a, b))| a != b) {
        e.invalid(at.index(i), now.clone(), super::checks::IMMUTABLE);
    }
    if grown {
        service_cidr(o, e);
    }
}

fn service_cidr(o: &Value, e: &mut Errors) {
    let at = SPEC.child("cidrs");
    let cidrs: Vec<&str> = o.items_at("spec.cidrs").iter().filter_map(Value::as_str).collect();
    if cidrs.is_empty() {
        e.required(at, "at least one CIDR required");
    }
    if cidrs.len() > 2 {
        return e.invalid(at, json!({"CIDRs": cidrs}), "may only hold up to 2 values");
    }
    let mut families = Vec::new();
    for (i, text) in cidrs.iter().enumerate() {
        match text.parse::<ipnet::IpNet>() {
            Err(_) => e.invalid(
                at.index(i),
                *text,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ),
            Ok(net) => {
                if net.addr() != net.network() {
                    e.invalid(at.index(i), *text, "must not have bits set beyond the prefix length");
                }
                families.push(net.network().is_ipv4());
            }
        }
    }
    let twice = families.iter().filter(|f| **f).count() > 1 || families.iter().filter(|f| !**f).count() > 1;
    if twice {
        let detail =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        e.invalid(at, json!(cidrs), detail);
    }
}

fn ingress(o: &Value, e: &mut Errors) {
    let rules = o.items_at("spec.rules");
    let default = o.at("spec.defaultBackend").filter(|b| !b.is_null());
    if rules.is_empty() && default.is_none() {
        e.invalid(
            SPEC,
            o.at("spec.rules").cloned().unwrap_or(Value::Null),
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if let Some(backend) = default {
        ingress_backend(backend, SPEC.child("defaultBackend"), e);
    }
    let list = SPEC.child("rules");
    for (i, rule) in rules.iter().enumerate() {
        let item = list.index(i);
        let host = rule.str_at("host");
        if host.parse::<std::net::IpAddr>().is_ok() {
            e.invalid(item.child("host"), host, "must be a DNS name, not an IP address");
        }
        if !host.is_empty() {
            host_name(host, item.child("host"), e);
        }
        let Some(http) = rule.get("http").filter(|h| !h.is_null()) else { continue };
        let http_at = item.child("http");
        let paths = http_at.child("paths");
        if http.items_at("paths").is_empty() {
            e.required(paths, "");
        }
        for (j, path) in http.items_at("paths").iter().enumerate() {
            ingress_path(path, paths.index(j), e);
        }
    }
    let list = SPEC.child("tls");
    for (i, tls) in o.items_at("spec.tls").iter().enumerate() {
        let item = list.index(i);
        let hosts = item.child("hosts");
        for (j, host) in tls.items_at("hosts").iter().filter_map(Value::as_str).enumerate() {
            host_name(host, hosts.index(j), e);
        }
        let secret = tls.str_at("secretName");
        if !secret.is_empty() {
            e.all(item.child("secretName"), secret, names::dns1123_subdomain(secret));
        }
    }
    let class = o.str_at("spec.ingressClassName");
    if o.at("spec.ingressClassName").is_some_and(Value::is_string) {
        e.all(SPEC.child("ingressClassName"), class, names::dns1123_subdomain(class));
    }
}

fn host_name(host: &str, at: Path<'_>, e: &mut Errors) {
    let messages =
        if host.contains('*') { names::wildcard_subdomain(host) } else { names::dns1123_subdomain(host) };
    e.all(at, host, messages);
}

fn ingress_path(path: &Value, at: Path<'_>, e: &mut Errors) {
    let text = path.str_at("path");
    match path.str_at("pathType") {
        "" if path.get("pathType").is_none_or(Value::is_null) => {
            e.required(at.child("pathType"), "pathType must be specified");
            return;
        }
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                e.invalid(at.child("path"), text, "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|b| text.contains(b)) {
                e.invalid(at.child("path"), text, format!("must not contain '{bad}'"));
            }
            for bad in ["/..", "/."].into_iter().filter(|b| text.ends_with(b)) {
                e.invalid(at.child("path"), text, format!("cannot end with '{bad}'"));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                e.invalid(at.child("path"), text, "must be an absolute path");
            }
        }
        other => e.unsupported(at.child("pathType"), other, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    ingress_backend(path.get("backend").unwrap_or(&Value::Null), at.child("backend"), e);
}

fn ingress_backend(backend: &Value, at: Path<'_>, e: &mut Errors) {
    let present = |name: &str| backend.get(name).filter(|v| !v.is_null());
    match (present("service"), present("resource")) {
        (Some(_), Some(_)) => e.invalid(at, "", "cannot set both resource and service backends"),
        (None, None) => e.invalid(at, "", "resource or service backend is required"),
        (None, Some(resource)) => {
            let at = at.child("resource");
            if let Some(group) = resource.get("apiGroup").and_then(Value::as_str) {
                e.all(at.child("apiGroup"), group, names::dns1123_subdomain(group));
            }
            for field in ["kind", "name"] {
                match resource.str_at(field) {
                    "" => e.required(at.child(field), ""),
                    text => e.all(at.child(field), text, names::path_segment(text)),
                }
            }
        }
        (Some(service), None) => {
            let backend_at = at;
            let at = at.child("service");
            match service.str_at("name") {
                "" => e.required(at.child("name"), ""),
                name => e.all(at.child("name"), name, names::dns1123_label(name)),
            }
            let (name, number) = (service.str_at("port.name"), service.int_at("port.number").unwrap_or(0));
            match (name.is_empty(), number) {
                (false, n) if n != 0 => {
                    e.invalid(backend_at, "", "cannot set both port name & port number");
                }
                (false, _) => e.all(at.child("port.name"), name, names::port_name(name)),
                (true, 0) => e.required(backend_at, "port name or number is required"),
                (true, n) => {
                    for message in names::port_number(n) {
                        e.invalid(at.child("port.number"), n, message);
                    }
                }
            }
        }
    }
}

fn network_policy(o: &Value, e: &mut Errors) {
    e.selector(SPEC.child("podSelector"), o.at("spec.podSelector"));
    for (direction, side) in [("ingress", "from"), ("egress", "to")] {
        let list = SPEC.child(direction);
        for (i, rule) in o.at("spec").map_or(&[][..], |s| s.items_at(direction)).iter().enumerate() {
            let item = list.index(i);
            let ports = item.child("ports");
            for (j, port) in rule.items_at("ports").iter().enumerate() {
                policy_port(port, ports.index(j), e);
            }
            let peers = item.child(side);
            for (j, peer) in rule.items_at(side).iter().enumerate() {
                policy_peer(peer, peers.index(j), e);
            }
        }
    }
    let list = SPEC.child("policyTypes");
    let types = o.items_at("spec.policyTypes");
    if types.len() > 2 {
        e.invalid(list, o["spec"]["policyTypes"].clone(), "may not specify more than two policyTypes");
        return;
    }
    for (i, ty) in types.iter().filter_map(Value::as_str).enumerate() {
        if !matches!(ty, "Ingress" | "Egress") {
            e.unsupported(list.index(i), ty, &["Ingress", "Egress"]);
        }
    }
}

fn policy_port(port: &Value, at: Path<'_>, e: &mut Errors) {
    e.known(at.child("protocol"), port.get("protocol"), &["TCP", "UDP", "SCTP"]);
    let (end, end_at) = (port.int_at("endPort"), at.child("endPort"));
    let number = port.get("port").filter(|p| !p.is_null());
    let start = number.and_then(Value::as_i64);
    match (number, start, end) {
        (Some(_), None, Some(end)) => {
            e.invalid(end_at, end, "may not be specified when `port` is non-numeric");
        }
        (None, _, Some(end)) => {
            e.invalid(end_at, end, "may not be specified when `port` is not specified");
        }
        _ => {}
    }
    if number.is_some() {
        e.port_or_name(at.child("port"), number);
    }
    if let (Some(start), Some(end)) = (start, end) {
        if end < start {
            e.invalid(end_at, start, "must be greater than or equal to `port`");
        }
        super::containers::port_number(end_at, end, e);
    }
}

fn policy_peer(peer: &Value, at: Path<'_>, e: &mut Errors) {
    let present = |name: &str| peer.get(name).filter(|v| !v.is_null());
    let mut count = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = present(field) {
            count += 1;
            e.selector(at.child(field), Some(selector));
        }
    }
    if let Some(block) = present("ipBlock") {
        ip_block(block, at.child("ipBlock"), e);
        if count > 0 {
            e.forbidden(at, "may not specify both ipBlock and another peer");
        }
        count += 1;
    }
    if count == 0 {
        e.required(at, "must specify a peer");
    }
}

fn ip_block(block: &Value, at: Path<'_>, e: &mut Errors) {
    let text = block.str_at("cidr");
    if text.is_empty() {
        return e.required(at.child("cidr"), "");
    }
    addresses::cidr(at.child("cidr"), text, e);
    let Ok(whole) = text.parse::<ipnet::IpNet>() else { return };
    let list = at.child("except");
    for (i, except) in block.items_at("except").iter().filter_map(Value::as_str).enumerate() {
        addresses::cidr(list.index(i), except, e);
        let inside =
            |part: ipnet::IpNet| whole.contains(&part.network()) && part.prefix_len() > whole.prefix_len();
        if except.parse::<ipnet::IpNet>().is_ok_and(|part| !inside(part)) {
            e.invalid(list.index(i), except, "must be a strict subset of `cidr`");
        }
    }
}
