//! Defaults of services and endpoints. Addresses and node ports are allocated by the API server, not here.

use super::{absent, child, each, ensure, set, text};
use crate::object::Object;
use serde_json::{Value, json};

/// Seconds that a client stays with its backend under `sessionAffinity: ClientIP`.
const AFFINITY_SECONDS: i64 = 10_800;

pub fn service(o: &mut Object) {
    if let Some(spec) = ensure(o, "spec") {
        set(spec, "sessionAffinity", "None");
        if text(spec, "sessionAffinity") == "ClientIP"
            && let Some(config) = ensure(spec, "sessionAffinityConfig")
            && let Some(client) = ensure(config, "clientIP")
        {
            set(client, "timeoutSeconds", AFFINITY_SECONDS);
        }
        if text(spec, "sessionAffinity") == "None" {
            spec.remove("sessionAffinityConfig");
        }
        set(spec, "type", "ClusterIP");
        let kind = text(spec, "type").to_owned();
        each(spec, "ports", |p| {
            set(p, "protocol", "TCP");
            let target = p.get("targetPort");
            if target.is_none_or(|t| t.is_null() || *t == json!(0) || *t == json!(""))
                && let Some(port) = p.get("port").cloned()
            {
                p.insert("targetPort".into(), port);
            }
        });
        let external = kind == "NodePort"
            || kind == "LoadBalancer"
            || (kind == "ClusterIP"
                && spec.get("externalIPs").and_then(Value::as_array).is_some_and(|a| !a.is_empty()));
        if external {
            set(spec, "externalTrafficPolicy", "Cluster");
        }
        if kind == "ClusterIP" || kind == "NodePort" || kind == "LoadBalancer" {
            set(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set(spec, "allocateLoadBalancerNodePorts", true);
        }
        mirror_cluster_ip(spec);
    }
    if let Some(status) = child(o, "status")
        && let Some(balancer) = child(status, "loadBalancer")
    {
        let balanced = "VIP";
        each(balancer, "ingress", |i| {
            if !text(i, "ip").is_empty() {
                set(i, "ipMode", balanced);
            }
        });
    }
}

/// `clusterIP` and the first of `clusterIPs` say the same; on their own they imply each other.
fn mirror_cluster_ip(spec: &mut Object) {
    let one = text(spec, "clusterIP").to_owned();
    let many = spec.get("clusterIPs").and_then(Value::as_array);
    if !one.is_empty() && many.is_none_or(Vec::is_empty) {
        spec.insert("clusterIPs".into(), json!([one]));
    }
}

pub fn endpoints(o: &mut Object) {
    each(o, "subsets", |s| each(s, "ports", |p| set(p, "protocol", "TCP")));
}

pub fn endpoint_slice(o: &mut Object) {
    each(o, "ports", |p| {
        set(p, "name", "");
        set(p, "protocol", "TCP");
    });
    each(o, "endpoints", |e| set(e, "conditions", Object::new()));
    // The ports of a slice are a Go slice that is written as null when it is empty.
    if o.get("ports").and_then(Value::as_array).is_some_and(Vec::is_empty) || absent(o, "ports") {
        o.insert("ports".into(), Value::Null);
    }
}
