//! Warnings that go with an accepted object: what is deprecated, does nothing, or will surprise.

mod pods;

use super::addresses::{cidr_warnings, ip_warning};
use crate::kinds::Kind;
use crate::names;
use crate::object::ObjectExt as _;
use crate::quantity::Quantity;
use crate::status::Path;
use crate::text::quote;
use serde_json::Value;

const ROOT: Path<'static> = Path::ROOT;
const SPEC: Path<'static> = Path::new("spec");

/// Labels of nodes that have other names by now.
const LABELS: [(&str, &str); 8] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

/// Sources of persistent volumes that do nothing any more: the field, how it is told, since when.
const DEAD_VOLUMES: [(&str, &str, &str); 6] = [
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

/// What is said about a new object, or about an update of `old`.
pub fn of(kind: &Kind, o: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    let changed = old.is_none_or(|old| old.generation() != o.generation());
    match (kind.group.as_str(), kind.kind.as_str()) {
        // People do not update pods.
        ("", "Pod") if old.is_some() => {}
        ("", "Pod") => {
            label_name(o, "the Pod's hostname", &mut out);
            pods::of(o, ROOT, false, &mut out);
        }
        ("", "PodTemplate") if changed => template(o, "template", &mut out),
        ("", "ReplicationController") | ("apps", "Deployment" | "ReplicaSet") | ("batch", "Job") => {
            if old.is_none() {
                label_name(o, "Pod names and hostnames", &mut out);
            }
            if changed {
                indexed(o.get("spec"), SPEC, &mut out);
                template(o, "spec.template", &mut out);
            }
        }
        ("apps", "DaemonSet") if changed => template(o, "spec.template", &mut out),
        ("apps", "StatefulSet") => stateful_set(o, old, changed, &mut out),
        ("batch", "CronJob") => cron_job(o, old, changed, &mut out),
        ("", "Service") => service(o, &mut out),
        ("", "Endpoints") => endpoints(o, &mut out),
        ("", "Node") => node(o, &mut out),
        ("", "PersistentVolume") => persistent_volume(o, &mut out),
        ("", "PersistentVolumeClaim") => {
            if o.annotation(CLASS).is_some() {
                out.push(format!(
                    "metadata.annotations[{CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
                ));
            }
            claim_spec(o.get("spec").unwrap_or(&Value::Null), SPEC, &mut out);
        }
        ("", "Secret") if o.str_at("type") == "kubernetes.io/tls" => out.extend(key_pair(o)),
        ("", "ResourceQuota") if old.is_none() => quota(o, &mut out),
        ("networking.k8s.io", "NetworkPolicy") => network_policy(o, &mut out),
        ("networking.k8s.io", "Ingress") if old.is_none() => {
            const INGRESS: &str = "kubernetes.io/ingress.class";
            if o.annotation(INGRESS).is_some() && o.at("spec.ingressClassName").is_none() {
                out.push(format!(
                    "annotation {} is deprecated, please use 'spec.ingressClassName' instead",
                    quote(INGRESS)
                ));
            }
        }
        ("discovery.k8s.io", "EndpointSlice") => slice(o, old, &mut out),
        ("node.k8s.io", "RuntimeClass") => {
            for (key, _) in o.at("scheduling.nodeSelector").and_then(Value::as_object).into_iter().flatten() {
                out.extend(deprecated_label(key).map(|why| format!("scheduling.nodeSelector: {why}")));
            }
        }
        ("storage.k8s.io", "StorageClass") if old.is_none() => topologies(o, &mut out),
        ("storage.k8s.io", "CSIDriver") => {
            let requests = o.items_at("spec.tokenRequests");
            let same = old.is_some_and(|old| old.items_at("spec.tokenRequests") == requests);
            if !requests.is_empty() && !same && o.bool_at("spec.serviceAccountTokenInSecrets").is_none() {
                out.push("spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".into());
            }
        }
        ("storage.k8s.io", "CSIStorageCapacity") => node_selector(o, &mut out),
        ("resource.k8s.io", name) => out.extend(super::devices::warnings(name, o)),
        _ => {}
    }
    out
}

/// A name that is no DNS label, where pods' names and hostnames are made of it.
fn label_name(o: &Value, of: &str, out: &mut Vec<String>) {
    let messages = names::dns1123_label(o.name());
    if !messages.is_empty() {
        out.push(format!(
            "metadata.name: this is used in {of}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            messages.join(" ")
        ));
    }
}

fn template(o: &Value, at: &str, out: &mut Vec<String>) {
    if let Some(template) = o.at(at) {
        pods::of(template, Path::new(at), true, out);
    }
}

/// Indexed jobs of more completions and parallelism than can be tracked.
fn indexed(spec: Option<&Value>, at: Path<'_>, out: &mut Vec<String>) {
    let Some(spec) = spec.filter(|s| s.str_at("completionMode") == "Indexed") else { return };
    if spec.int_at("completions").unwrap_or(0) > 100_000 && spec.int_at("parallelism").unwrap_or(0) > 10_000 {
        out.push(format!("{at}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"));
    }
}

fn stateful_set(o: &Value, old: Option<&Value>, changed: bool, out: &mut Vec<String>) {
    if changed {
        template(o, "spec.template", out);
    }
    let list = SPEC.child("volumeClaimTemplates");
    for (i, claim) in o.items_at("spec.volumeClaimTemplates").iter().enumerate() {
        let item = list.index(i);
        let at = if old.is_some() { item.child("Spec") } else { item };
        claim_spec(claim.get("spec").unwrap_or(&Value::Null), at, out);
    }
    if o.int_at("spec.revisionHistoryLimit").is_some_and(|n| n < 0) {
        out.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".into());
    }
}

fn cron_job(o: &Value, old: Option<&Value>, changed: bool, out: &mut Vec<String>) {
    if old.is_none() {
        label_name(o, "Pod names and hostnames", out);
    }
    if changed {
        indexed(o.at("spec.jobTemplate.spec"), Path::new("spec.jobTemplate.spec"), out);
        template(o, "spec.jobTemplate.spec.template", out);
    }
    if old.is_some() && o.str_at("spec.schedule").contains("TZ") {
        out.push("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".into());
    }
}

/// What a label that has another name by now should be.
fn deprecated_label(key: &str) -> Option<&'static str> {
    LABELS.iter().find(|(k, _)| *k == key).map(|(_, why)| *why)
}

/// A term of a node selector; of preferred ones the values are judged too.
fn node_term(term: &Value, at: Path<'_>, values: bool, out: &mut Vec<String>) {
    let list = at.child("matchExpressions");
    for (i, x) in term.items_at("matchExpressions").iter().enumerate() {
        let item = list.index(i);
        let key = x.str_at("key");
        if let Some(why) = deprecated_label(key) {
            out.push(format!("{}: {key} is {why}", item.child("key")));
        }
        let list = item.child("values");
        for (j, value) in x.items_at("values").iter().filter_map(Value::as_str).enumerate().filter(|_| values)
        {
            for why in names::label_value(value) {
                out.push(format!("{}: {value} is invalid, {why}", list.index(j)));
            }
        }
    }
}

/// An amount of bytes with a fraction.
fn fractional(amounts: Option<&Value>, name: &str, at: Path<'_>, out: &mut Vec<String>) {
    let amount = amounts.and_then(|a| a.get(name)).and_then(Value::as_str);
    if let Some(q) = amount.and_then(|a| Quantity::parse(a).ok()).filter(|q| q.milli_value() % 1000 != 0) {
        out.push(format!(
            "{}: fractional byte value {} is invalid, must be an integer",
            at.key(name),
            quote(&q.to_string())
        ));
    }
}

fn claim_spec(spec: &Value, at: Path<'_>, out: &mut Vec<String>) {
    let at = at.child("resources");
    for list in ["requests", "limits"] {
        fractional(spec.get("resources").and_then(|r| r.get(list)), "storage", at.child(list), out);
    }
}

fn service(o: &Value, out: &mut Vec<String>) {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    if o.annotation(HINTS).is_some() {
        out.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let ty = o.str_at("spec.type");
    let headless = ty == "ClusterIP" && o.str_at("spec.clusterIP") == "None";
    let external = o.items_at("spec.externalIPs");
    let addresses = |field: &str, out: &mut Vec<String>| {
        let list = SPEC.child(field);
        let all = o.get("spec").map_or(&[][..], |s| s.items_at(field));
        for (i, ip) in all.iter().filter_map(Value::as_str).enumerate() {
            out.extend(ip_warning(list.index(i), ip));
        }
    };
    addresses("clusterIPs", out);
    if headless {
        if !o.str_at("spec.loadBalancerIP").is_empty() {
            out.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        if !external.is_empty() {
            out.push("spec.externalIPs is ignored for headless services".into());
        }
        if o.str_at("spec.sessionAffinity") != "None" {
            out.push("spec.SessionAffinity is ignored for headless services".into());
        }
    }
    addresses("externalIPs", out);
    if !external.is_empty() && !headless && ty != "ExternalName" {
        out.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    out.extend(ip_warning(SPEC.child("loadBalancerIP"), o.str_at("spec.loadBalancerIP")));
    let list = SPEC.child("loadBalancerSourceRanges");
    for (i, cidr) in o.items_at("spec.loadBalancerSourceRanges").iter().filter_map(Value::as_str).enumerate()
    {
        out.extend(cidr_warnings(list.index(i), cidr));
    }
    if ty == "ExternalName" && !external.is_empty() {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if ty != "ExternalName" && !o.str_at("spec.externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if o.str_at("spec.trafficDistribution") == "PreferClose" {
        out.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
}

fn endpoints(o: &Value, out: &mut Vec<String>) {
    let subsets = ROOT.child("subsets");
    for (i, subset) in o.items_at("subsets").iter().enumerate() {
        let item = subsets.index(i);
        for field in ["addresses", "notReadyAddresses"] {
            let list = item.child(field);
            for (j, address) in subset.items_at(field).iter().enumerate() {
                let at = list.index(j);
                out.extend(ip_warning(at.child("ip"), address.str_at("ip")));
            }
        }
    }
}

fn node(o: &Value, out: &mut Vec<String>) {
    if o.at("spec.configSource").is_some_and(|c| !c.is_null()) {
        out.push("spec.configSource: the feature is removed".into());
    }
    if !o.str_at("spec.externalID").is_empty() {
        out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
    }
    let list = SPEC.child("podCIDRs");
    for (i, cidr) in o.items_at("spec.podCIDRs").iter().filter_map(Value::as_str).enumerate() {
        out.extend(cidr_warnings(list.index(i), cidr));
    }
}

fn persistent_volume(o: &Value, out: &mut Vec<String>) {
    for (key, why) in [
        (CLASS, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
        (MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
    ] {
        if o.annotation(key).is_some() {
            out.push(format!("metadata.annotations[{key}]: {why}"));
        }
    }
    if o.str_at("spec.persistentVolumeReclaimPolicy") == "Recycle" {
        out.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
    }
    const TERMS: &str = "spec.nodeAffinity.required.nodeSelectorTerms";
    let list = Path::new(TERMS);
    for (i, term) in o.items_at(TERMS).iter().enumerate() {
        node_term(term, list.index(i), false, out);
    }
    for (field, shown, why) in DEAD_VOLUMES {
        if o.get("spec").and_then(|s| s.get(field)).is_some_and(|s| !s.is_null()) {
            out.push(format!("spec.{shown}: {why}"));
        }
    }
}

/// A certificate or key that cannot be one.
fn key_pair(o: &Value) -> Option<String> {
    use base64::Engine as _;
    let pem = |key: &str| {
        let text = o.get("data").and_then(|d| d.get(key)).and_then(Value::as_str).unwrap_or("");
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let input = |pem: &str, what: &str| {
        (!pem.contains("-----BEGIN ")).then(|| format!("tls: failed to find any PEM data in {what} input"))
    };
    input(&pem("tls.crt"), "certificate").or_else(|| input(&pem("tls.key"), "key"))
}

fn quota(o: &Value, out: &mut Vec<String>) {
    let hard = crate::resources::list(o.at("spec.hard"));
    for name in ["cpu", "memory", "ephemeral-storage"] {
        let bare = (name != "ephemeral-storage").then(|| (name.to_owned(), hard.get(name)));
        let full = format!("requests.{name}");
        let request = hard.get(&full).map(|q| (full, q)).or_else(|| bare.and_then(|(n, q)| Some((n, q?))));
        let limit = format!("limits.{name}");
        if let (Some((request, asked)), Some(most)) = (request, hard.get(&limit))
            && asked > most
        {
            out.push(format!("ResourceQuota {request} ({asked}) should be less than {limit} ({most})"));
        }
    }
}

fn network_policy(o: &Value, out: &mut Vec<String>) {
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules = SPEC.child(direction);
        for (i, rule) in o.get("spec").map_or(&[][..], |s| s.items_at(direction)).iter().enumerate() {
            let at = rules.index(i);
            let list = at.child(peers);
            for (j, peer) in rule.items_at(peers).iter().enumerate() {
                let Some(block) = peer.get("ipBlock").filter(|b| !b.is_null()) else { continue };
                let item = list.index(j);
                let at = item.child("ipBlock");
                out.extend(cidr_warnings(at.child("cidr"), block.str_at("cidr")));
                let list = at.child("except");
                for (k, except) in block.items_at("except").iter().filter_map(Value::as_str).enumerate() {
                    out.extend(cidr_warnings(list.index(k), except));
                }
            }
        }
    }
}

fn slice(o: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    if old.is_none() && o.str_at("addressType") == "FQDN" {
        out.push("spec.addressType: FQDN endpoints are deprecated".into());
    }
    let by = o.label("endpointslice.kubernetes.io/managed-by").unwrap_or("");
    if matches!(by, "endpointslice-controller.k8s.io" | "endpointslicemirroring-controller.k8s.io") {
        return;
    }
    let list = ROOT.child("endpoints");
    for (i, endpoint) in o.items_at("endpoints").iter().enumerate() {
        let item = list.index(i);
        let addresses = item.child("addresses");
        for (j, ip) in endpoint.items_at("addresses").iter().filter_map(Value::as_str).enumerate() {
            out.extend(ip_warning(addresses.index(j), ip));
        }
    }
}

fn topologies(o: &Value, out: &mut Vec<String>) {
    for (i, term) in o.items_at("allowedTopologies").iter().enumerate() {
        for (j, x) in term.items_at("matchLabelExpressions").iter().enumerate() {
            if let Some(why) = deprecated_label(x.str_at("key")) {
                out.push(format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key: {why}"));
            }
        }
    }
}

fn node_selector(o: &Value, out: &mut Vec<String>) {
    for (i, x) in o.items_at("nodeTopology.matchExpressions").iter().enumerate() {
        let key = x.str_at("key");
        if let Some(why) = deprecated_label(key) {
            out.push(format!("nodeTopology.matchExpressions[{i}].key: {key} is {why}"));
        }
    }
    for (key, _) in o.at("nodeTopology.matchLabels").and_then(Value::as_object).into_iter().flatten() {
        out.extend(deprecated_label(key).map(|why| format!("nodeTopology.matchLabels.{key}: {why}")));
    }
}
