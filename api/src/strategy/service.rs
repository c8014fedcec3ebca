//! Services: what an update keeps of what was allocated, and what a change of type makes void.

use crate::object::ObjectExt as _;
use serde_json::{Value, json};

fn needs_cluster_ip(o: &Value) -> bool {
    matches!(o.str_at("spec.type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_port(o: &Value) -> bool {
    match o.str_at("spec.type") {
        "NodePort" => true,
        "LoadBalancer" => o.bool_at("spec.allocateLoadBalancerNodePorts") != Some(false),
        _ => false,
    }
}

fn needs_health_check(o: &Value) -> bool {
    o.str_at("spec.type") == "LoadBalancer" && o.str_at("spec.externalTrafficPolicy") == "Local"
}

/// `clusterIP` and the first of `clusterIPs` say the same: whichever the request gave or changed counts.
pub fn align_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let one = new.str_at("spec.clusterIP").to_owned();
    let Some(old) = old else {
        if !one.is_empty() && new.items_at("spec.clusterIPs").is_empty() {
            new.set_path(&["spec", "clusterIPs"], json!([one]));
        }
        return;
    };
    let (before, list) = (old.str_at("spec.clusterIP"), old.items_at("spec.clusterIPs"));
    if before == one {
        if !list.is_empty() && new.items_at("spec.clusterIPs").is_empty() {
            new.set_path(&["spec", "clusterIPs"], Value::Array(list.to_vec()));
        }
    } else if new.items_at("spec.clusterIPs") == list {
        if one.is_empty() {
            new.remove_path(&["spec", "clusterIPs"]);
        } else {
            new.set_path(&["spec", "clusterIPs"], json!([one]));
        }
    }
}

/// An update that leaves out an allocated address or port keeps it.
pub fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if new.str_at("spec.clusterIP").is_empty() && !old.str_at("spec.clusterIP").is_empty() {
            new.set_path(&["spec", "clusterIP"], json!(old.str_at("spec.clusterIP")));
        }
        let list = old.items_at("spec.clusterIPs");
        if new.items_at("spec.clusterIPs").is_empty() && !list.is_empty() {
            new.set_path(&["spec", "clusterIPs"], Value::Array(list.to_vec()));
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let used = node_ports(new);
        // Ports are known by their names.
        let before: Vec<(String, i64)> = old
            .items_at("spec.ports")
            .iter()
            .map(|p| (p.str_at("name").to_owned(), p.int_at("nodePort").unwrap_or(0)))
            .collect();
        if let Some(Value::Array(ports)) = crate::object::get_path_mut(new, &["spec", "ports"]) {
            for port in ports.iter_mut().filter(|p| p.int_at("nodePort").unwrap_or(0) == 0) {
                let had = before.iter().rev().find(|(name, _)| name == port.str_at("name"));
                if let Some((_, n)) = had.filter(|(_, n)| *n != 0 && !used.contains(n)) {
                    port.set_path(&["nodePort"], json!(n));
                }
            }
        }
    }
    if needs_health_check(old)
        && needs_health_check(new)
        && new.int_at("spec.healthCheckNodePort").unwrap_or(0) == 0
        && let Some(port) = old.at("spec.healthCheckNodePort")
    {
        new.set_path(&["spec", "healthCheckNodePort"], port.clone());
    }
}

/// Drops what the service's new type has no use for, when the request only repeats what was there.
pub fn drop_unused(new: &mut Value, old: &Value) {
    let same = |new: &Value, path: &str| new.at(path) == old.at(path);
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if same(new, "spec.clusterIP") && same(new, "spec.clusterIPs") {
            drop(new, &["clusterIP", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if same(new, &format!("spec.{field}")) {
                drop(new, &[field]);
            }
        }
    }
    let has_node_ports = |o: &Value| matches!(o.str_at("spec.type"), "NodePort" | "LoadBalancer");
    let before = node_ports(old);
    if has_node_ports(old)
        && !has_node_ports(new)
        && node_ports(new).iter().all(|n| before.contains(n))
        && let Some(Value::Array(ports)) = crate::object::get_path_mut(new, &["spec", "ports"])
    {
        for port in ports {
            port.remove_path(&["nodePort"]);
        }
    }
    if needs_health_check(old) && !needs_health_check(new) && same(new, "spec.healthCheckNodePort") {
        drop(new, &["healthCheckNodePort"]);
    }
    if old.str_at("spec.type") == "LoadBalancer" && new.str_at("spec.type") != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(new, &format!("spec.{field}")) {
                drop(new, &[field]);
            }
        }
    }
    let external = |o: &Value| {
        has_node_ports(o)
            || (o.str_at("spec.type") == "ClusterIP" && !o.items_at("spec.externalIPs").is_empty())
    };
    if external(old) && !external(new) && same(new, "spec.externalTrafficPolicy") {
        drop(new, &["externalTrafficPolicy"]);
    }
    if new.str_at("spec.type") != "LoadBalancer" {
        new.set_path(&["status", "loadBalancer"], json!({}));
    }
}

/// Whatever an ExternalName Service says of traffic inside the cluster is nothing.
pub fn drop_internal_policy(new: &mut Value) {
    let known = matches!(new.str_at("spec.internalTrafficPolicy"), "Cluster" | "Local");
    if known && new.str_at("spec.type") == "ExternalName" {
        drop(new, &["internalTrafficPolicy"]);
    }
}

fn node_ports(o: &Value) -> Vec<i64> {
    o.items_at("spec.ports").iter().filter_map(|p| p.int_at("nodePort")).filter(|n| *n != 0).collect()
}

fn drop(o: &mut Value, fields: &[&str]) {
    for field in fields {
        o.remove_path(&["spec", field]);
    }
}
