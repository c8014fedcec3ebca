//! What the statuses of workloads and other kinds may say: numbers, their relations, addresses of load balancers.

use super::checks::Errors;
use super::{addresses, conditions};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::Value;

const STATUS: Path<'static> = Path::new("status");

/// The numbers of one kind's status.
struct Counts {
    kind: &'static str,
    /// None of them is negative.
    fields: &'static [&'static str],
    /// None of them is above `replicas`.
    within: &'static [&'static str],
    /// What an available replica has to be, as the refusal names it.
    ready: &'static str,
}

const COUNTS: [Counts; 7] = [
    Counts {
        kind: "Deployment",
        fields: &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ],
        within: &["updatedReplicas", "readyReplicas", "availableReplicas"],
        ready: "readyReplicas",
    },
    Counts { kind: "ReplicaSet", fields: REPLICAS, within: LABELED, ready: "readyReplicas" },
    Counts { kind: "ReplicationController", fields: REPLICAS, within: LABELED, ready: "readyReplicas" },
    Counts {
        kind: "StatefulSet",
        fields: &[
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ],
        within: &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
        ready: "status.readyReplicas",
    },
    Counts {
        kind: "DaemonSet",
        fields: &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ],
        within: &[],
        ready: "",
    },
    Counts {
        kind: "HorizontalPodAutoscaler",
        fields: &["currentReplicas", "desiredReplicas"],
        within: &[],
        ready: "",
    },
    Counts {
        kind: "PodDisruptionBudget",
        fields: &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"],
        within: &[],
        ready: "",
    },
];

const REPLICAS: &[&str] = &[
    "replicas",
    "fullyLabeledReplicas",
    "readyReplicas",
    "availableReplicas",
    "observedGeneration",
    "terminatingReplicas",
];
const LABELED: &[&str] = &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];

/// An update of the status of a kind that has no rules of its own elsewhere.
pub fn judge(kind: &str, new: &Value, old: &Value, e: &mut Errors) {
    let empty = Value::Null;
    let (s, before) = (new.get("status").unwrap_or(&empty), old.get("status").unwrap_or(&empty));
    if kind == "PodDisruptionBudget" {
        conditions::judge(s.items_at("conditions"), STATUS.child("conditions"), e);
    }
    if let Some(counts) = COUNTS.iter().find(|c| c.kind == kind) {
        numbers(counts, s, before, e);
    }
    match kind {
        "Service" => {
            if new.str_at("spec.type") == "LoadBalancer" {
                balancer(s, before, true, e);
            } else if !s.items_at("loadBalancer.ingress").is_empty() {
                let at = STATUS.child("loadBalancer.ingress");
                e.forbidden(at, "may only be used when `spec.type` is 'LoadBalancer'");
            }
        }
        "Ingress" => balancer(s, before, false, e),
        "Namespace" => phase(new, s, e),
        "Node" => super::core::node_resources(new, e),
        _ => {}
    }
}

fn numbers(counts: &Counts, s: &Value, before: &Value, e: &mut Errors) {
    let of = |o: &Value, field: &str| o.int_at(field).unwrap_or(0);
    for field in counts.fields {
        e.not_negative(STATUS, s, field);
    }
    for field in counts.within.iter().filter(|f| of(s, f) > of(s, "replicas")) {
        e.invalid(STATUS.child(field), of(s, field), "cannot be greater than status.replicas");
    }
    let available = of(s, "availableReplicas");
    if !counts.ready.is_empty() && available > of(s, "readyReplicas") {
        let detail = format!("cannot be greater than {}", counts.ready);
        e.invalid(STATUS.child("availableReplicas"), available, detail);
    }
    let collisions = of(s, "collisionCount");
    if counts.fields.contains(&"collisionCount") && collisions < of(before, "collisionCount") {
        e.invalid(STATUS.child("collisionCount"), collisions, "cannot be decremented");
    }
}

/// Where a load balancer is reached; addresses that were there before are let be.
fn balancer(s: &Value, before: &Value, modes: bool, e: &mut Errors) {
    let at = STATUS.child("loadBalancer.ingress");
    let known: Vec<&str> = before.items_at("loadBalancer.ingress").iter().map(|i| i.str_at("ip")).collect();
    for (i, ingress) in s.items_at("loadBalancer.ingress").iter().enumerate() {
        let item = at.index(i);
        let (ip, host) = (ingress.str_at("ip"), ingress.str_at("hostname"));
        if !ip.is_empty() && !known.contains(&ip) {
            addresses::ip(item.child("ip"), ip, e);
        }
        if modes {
            let at = item.child("ipMode");
            match ingress.get("ipMode").and_then(Value::as_str) {
                None if !ip.is_empty() => e.required(at, "must be specified when `ip` is set"),
                None => {}
                Some(_) if ip.is_empty() => {
                    e.forbidden(at, "may not be specified when `ip` is not set");
                }
                mode => e.known(at, mode.map(Value::from).as_ref(), &["Proxy", "VIP"]),
            }
        }
        if !host.is_empty() {
            e.all(item.child("hostname"), host, names::dns1123_subdomain(host));
            if addresses::sloppy(host).is_some() {
                e.invalid(item.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}

/// The phase of a namespace follows from its being deleted.
fn phase(new: &Value, s: &Value, e: &mut Errors) {
    let phase = s.str_at("phase");
    // Kubernetes writes the field with a capital.
    let at = STATUS.child("Phase");
    match new.deletion_timestamp() {
        None if phase != "Active" => {
            e.invalid(at, phase, "may only be 'Active' if `deletionTimestamp` is empty");
        }
        Some(_) if phase != "Terminating" => {
            e.invalid(at, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
        }
        _ => {}
    }
}
