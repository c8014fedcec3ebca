//! Defaults of services and endpoints. Addresses and node ports are allocated by the API server, not here.

use super::{child, each, ensure, set, text};
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

pub fn endpoints(o: &mut Object) {
    each(o, "subsets", |s| each(s, "ports", |p| set(p, "protocol", "TCP")));
}

pub fn endpoint_slice(o: &mut Object) {
    each(o, "ports", |p| {
        set(p, "name", "");
        set(p, "protocol", "TCP");
    });
    each(o, "endpoints", |e| set(e, "conditions", Object::new()));
}
