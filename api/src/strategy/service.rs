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
    let unchanged = match old {
        None => new.items_at("spec.clusterIPs").is_empty(),
        Some(old) => {
            old.str_at("spec.clusterIP") != one
                && old.items_at("spec.clusterIPs") == new.items_at("spec.clusterIPs")
        }
    };
    if unchanged && one.is_empty() {
        new.remove_path(&["spec", "clusterIPs"]);
    } else if unchanged {
        new.set_path(&["spec", "clusterIPs"], json!([one]));
    }
}

/// An update that leaves out an allocated address or port keeps it.
pub fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if new.str_at("spec.clusterIP").is_empty() && new.items_at("spec.clusterIPs").is_empty() {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(v) = old.get_path(&["spec", field]) {
                    new.set_path(&["spec", field], v.clone());
                }
            }
        }
        // The first family belongs to the address and stays with it.
        if new.str_at("spec.clusterIP") == old.str_at("spec.clusterIP") {
            for field in ["ipFamilies", "ipFamilyPolicy"] {
                if new.get_path(&["spec", field]).is_none()
                    && let Some(v) = old.get_path(&["spec", field])
                {
                    new.set_path(&["spec", field], v.clone());
                }
            }
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let used: Vec<i64> = new.items_at("spec.ports").iter().filter_map(|p| p.int_at("nodePort")).collect();
        let old_ports = old.items_at("spec.ports").to_vec();
        if let Some(Value::Array(ports)) = crate::object::get_path_mut(new, &["spec", "ports"]) {
            for port in ports.iter_mut().filter(|p| p.int_at("nodePort").unwrap_or(0) == 0) {
                let before = old_ports.iter().find(|o| {
                    o.int_at("port") == port.int_at("port") && o.str_at("protocol") == port.str_at("protocol")
                });
                if let Some(n) = before.and_then(|b| b.int_at("nodePort")).filter(|n| !used.contains(n)) {
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
pub fn drop_unused(new: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
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
        if same(new, "spec.internalTrafficPolicy") {
            drop(new, &["internalTrafficPolicy"]);
        }
    }
    if needs_node_port(old)
        && !needs_node_port(new)
        && node_ports(new) == node_ports(old)
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
        matches!(o.str_at("spec.type"), "NodePort" | "LoadBalancer")
            || (o.str_at("spec.type") == "ClusterIP" && !o.items_at("spec.externalIPs").is_empty())
    };
    if external(old) && !external(new) && same(new, "spec.externalTrafficPolicy") {
        drop(new, &["externalTrafficPolicy"]);
    }
}

fn node_ports(o: &Value) -> Vec<i64> {
    o.items_at("spec.ports").iter().map(|p| p.int_at("nodePort").unwrap_or(0)).collect()
}

fn drop(o: &mut Value, fields: &[&str]) {
    for field in fields {
        o.remove_path(&["spec", field]);
    }
}
