//! Validation of pods and pod templates.

use super::checks::Errors;
use super::{containers, contexts, meta, platform, scheduling, volumes};
use crate::names;
use crate::object::{Labels, ObjectExt as _};
use crate::status::{BadValue, Path};
use serde_json::Value;

/// A pod that is to be created.
pub fn pod(o: &Value, e: &mut Errors) {
    let at = Path::new("spec");
    let empty = Value::Null;
    let s = o.get("spec").unwrap_or(&empty);
    of_pod(o, e);
    if !s.items_at("ephemeralContainers").is_empty() {
        e.forbidden(at.child("ephemeralContainers"), "cannot be set on create");
    }
    if !s.items_at("schedulingGates").is_empty() && !s.str_at("nodeName").is_empty() {
        e.forbidden(at.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
}

/// The spec of a pod, new or changed.
pub fn of_pod(o: &Value, e: &mut Errors) {
    let at = Path::new("spec");
    let empty = Value::Null;
    let s = o.get("spec").unwrap_or(&empty);
    spec(s, at, Some(o.name()), e);
    only_in_pods(s, at, e);
}

/// What is refused in a pod and let pass in a template.
fn only_in_pods(s: &Value, at: Path<'_>, e: &mut Errors) {
    if s.str_at("serviceAccountName").is_empty() {
        let volumes = at.child("volumes");
        for (i, volume) in s.items_at("volumes").iter().enumerate() {
            let item = volumes.index(i);
            let sources = item.child("projected.sources");
            for (j, source) in volume.items_at("projected.sources").iter().enumerate() {
                if source.get("serviceAccountToken").is_some_and(|t| !t.is_null()) {
                    let item = sources.index(j);
                    e.forbidden(
                        item.child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    );
                }
            }
        }
    }
    for field in ["containers", "initContainers"] {
        let list = at.child(field);
        for (i, c) in s.items_at(field).iter().enumerate() {
            containers::image_padding(c, list.index(i), e);
        }
    }
}

/// A pod template: labels, annotations and spec.
pub fn template(template: Option<&Value>, name: &str, e: &mut Errors) {
    let at = Path::new(name);
    let Some(template) = template.filter(|t| !t.is_null()) else {
        e.required(at, "");
        return;
    };
    // Kubernetes leaves "metadata" out.
    e.label_map(at.child("labels"), template.labels());
    meta::annotations(at.child("annotations"), template, e);
    let empty = Value::Null;
    let s = template.get("spec").unwrap_or(&empty);
    spec(s, at.child("spec"), None, e);
    if !s.items_at("ephemeralContainers").is_empty() {
        let spec_at = at.child("spec");
        e.forbidden(spec_at.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// A pod's spec; `pod` is the pod's name, `None` in a template.
fn spec(s: &Value, at: Path<'_>, pod: Option<&str>, e: &mut Errors) {
    let is_pod = pod.is_some();
    if s.int_at("terminationGracePeriodSeconds").is_none() {
        e.required(at.child("terminationGracePeriodSeconds"), "");
    }
    let names = volumes::volumes(s, at, is_pod, pod.unwrap_or(""), e);
    resource_claims(s, at.child("resourceClaims"), e);
    containers::all(s, at, &names, e);
    containers::ephemeral(s, at, e);
    pod_resources(s, at.child("resources"), e);
    platform::host_ports(s, at, is_pod, e);
    e.one_of(at.child("restartPolicy"), s.str_at("restartPolicy"), &["Always", "OnFailure", "Never"]);
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    e.one_of(at.child("dnsPolicy"), s.str_at("dnsPolicy"), &dns);
    e.label_map(at.child("nodeSelector"), Labels::new(s.get("nodeSelector").and_then(Value::as_object)));
    contexts::security_context(s, at.child("securityContext"), e);
    scheduling::affinity(s, at.child("affinity"), e);
    dns_config(s, at, e);
    let list = at.child("readinessGates");
    for (i, gate) in s.items_at("readinessGates").iter().enumerate() {
        let ty = gate.str_at("conditionType");
        e.all(list.index(i).child("conditionType"), ty, names::qualified_name(ty));
    }
    scheduling_gates(s, at, e);
    scheduling::spread(s, at, e);
    platform::host_process(s, at, e);
    platform::host_users(s, at, e);
    platform::hostname_override(s, at, e);
    subdomain(s, at, "serviceAccountName", e);
    subdomain(s, at, "nodeName", e);
    if let Some(n) = s.int_at("activeDeadlineSeconds").filter(|n| !(1..=i64::from(i32::MAX)).contains(n)) {
        e.invalid(at.child("activeDeadlineSeconds"), n, "must be between 1 and 2147483647, inclusive");
    }
    for field in ["hostname", "subdomain"] {
        let value = s.str_at(field);
        if !value.is_empty() {
            e.all(at.child(field), value, names::dns1123_label(value));
        }
    }
    scheduling::tolerations(s, at, e);
    let aliases = at.child("hostAliases");
    for (i, alias) in s.items_at("hostAliases").iter().enumerate() {
        let item = aliases.index(i);
        e.ip(item.child("ip"), alias.str_at("ip"));
        let hosts = item.child("hostnames");
        for (j, host) in alias.items_at("hostnames").iter().filter_map(Value::as_str).enumerate() {
            e.all(hosts.index(j), host, names::dns1123_subdomain(host));
        }
    }
    subdomain(s, at, "priorityClassName", e);
    if let Some(class) = s.get("runtimeClassName").and_then(Value::as_str) {
        e.all(at.child("runtimeClassName"), class, names::dns1123_subdomain(class));
    }
    if let Some(policy) = s.get("preemptionPolicy").and_then(Value::as_str) {
        e.one_of(at.child("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
    }
    if let Some(overhead) = s.get("overhead").filter(|o| !o.is_null()) {
        let limits = serde_json::json!({"limits": overhead});
        super::handlers::requirements(&limits, at.child("overhead"), None, e);
    }
    platform::os(s, at, e);
    platform::env_files(s, at, e);
}

/// A name that is a DNS subdomain, when there is one.
fn subdomain(s: &Value, at: Path<'_>, field: &str, e: &mut Errors) {
    let value = s.str_at(field);
    if !value.is_empty() {
        e.all(at.child(field), value, names::dns1123_subdomain(value));
    }
}

/// The claims for devices that containers may use.
fn resource_claims(s: &Value, list: Path<'_>, e: &mut Errors) {
    let mut seen = Vec::new();
    for (i, claim) in s.items_at("resourceClaims").iter().enumerate() {
        let item = list.index(i);
        let name = claim.str_at("name");
        if name.is_empty() {
            e.required(item.child("name"), "");
        } else if seen.contains(&name) {
            e.duplicate(item.child("name"), name);
        } else {
            e.all(item.child("name"), name, names::dns1123_label(name));
            seen.push(name);
        }
        let given = |f: &str| claim.get(f).and_then(Value::as_str);
        let sources = ["resourceClaimName", "resourceClaimTemplateName"];
        match sources.iter().filter(|f| given(f).is_some()).count() {
            0 => {
                let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                e.invalid(item, BadValue::internal("core.PodResourceClaim", Some(claim)), detail);
            }
            1 => {}
            _ => {
                let detail =
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                e.invalid(item, BadValue::internal("core.PodResourceClaim", Some(claim)), detail);
            }
        }
        for field in sources {
            if let Some(name) = given(field) {
                e.all(item.child(field), name, names::dns1123_subdomain(name));
            }
        }
    }
}

/// Requests and limits of a pod as a whole (KEP-2837).
fn pod_resources(s: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(resources) = s.get("resources").filter(|r| !r.is_null()) else { return };
    if s.str_at("os.name") == "windows" {
        e.forbidden(at, "may not be set for a windows pod");
        return;
    }
    if resources.get("claims").is_some_and(|c| !c.is_null()) {
        e.forbidden(at.child("claims"), "claims may not be set for Resources at pod-level");
    }
    let claims = s.items_at("resourceClaims").iter().map(|c| c.str_at("name")).filter(|n| !n.is_empty());
    super::handlers::pod_requirements(resources, at, &claims.collect::<Vec<_>>(), e);
    let sums = |half| {
        let mut bare = serde_json::json!({"spec": s});
        bare.remove_path(&["spec", "resources"]);
        crate::resources::of_pod(&bare, half)
    };
    let requests = at.child("requests");
    let whole = crate::resources::list(resources.get("requests"));
    for (name, sum) in sums(crate::resources::Half::Requests) {
        if let Some(own) = whole.get(&name).filter(|own| **own < sum) {
            let detail = format!("must be greater than or equal to aggregate container requests of {sum}");
            e.invalid(requests.key(&name), own.to_string(), detail);
        }
    }
    let limits = at.child("limits");
    let whole = crate::resources::list(resources.get("limits"));
    for field in ["containers", "initContainers"] {
        for c in s.items_at(field) {
            for (name, limit) in crate::resources::list(c.at("resources.limits")) {
                if let Some(own) = whole.get(&name).filter(|own| **own < limit) {
                    let detail =
                        format!("must be greater than or equal to individual container limits of {limit}");
                    e.invalid(limits.key(&name), own.to_string(), detail);
                }
            }
        }
    }
}

fn scheduling_gates(s: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("schedulingGates");
    let mut seen = Vec::new();
    for (i, gate) in s.items_at("schedulingGates").iter().enumerate() {
        let name = gate.str_at("name");
        e.all(list.index(i), name, names::qualified_name(name));
        if seen.contains(&name) {
            e.duplicate(list.index(i), name);
        }
        seen.push(name);
    }
}

fn dns_config(s: &Value, at: Path<'_>, e: &mut Errors) {
    let config = at.child("dnsConfig");
    let Some(dns) = s.get("dnsConfig").filter(|d| !d.is_null()) else {
        if s.str_at("dnsPolicy") == "None" {
            e.required(config, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let servers = dns.items_at("nameservers");
    if s.str_at("dnsPolicy") == "None" && servers.is_empty() {
        e.required(
            config.child("nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    let list = config.child("nameservers");
    if servers.len() > 3 {
        e.invalid(list, dns["nameservers"].clone(), "must not have more than 3 nameservers");
    }
    for (i, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        e.ip(list.index(i), server);
    }
    let list = config.child("searches");
    let searches: Vec<&str> = dns.items_at("searches").iter().filter_map(Value::as_str).collect();
    if searches.len() > 32 {
        e.invalid(list, dns["searches"].clone(), "must not have more than 32 search paths");
    }
    if searches.join(" ").len() > 2048 {
        let detail = "must not have more than 2048 characters (including spaces) in the search list";
        e.invalid(list, dns["searches"].clone(), detail);
    }
    for (i, search) in searches.into_iter().filter(|s| *s != ".").enumerate() {
        let search = search.strip_suffix('.').unwrap_or(search);
        e.all(list.index(i), search, names::search_path(search));
    }
    let list = config.child("options");
    for (i, option) in dns.items_at("options").iter().enumerate() {
        if option.str_at("name").is_empty() {
            e.required(list.index(i), "must not be empty");
        }
    }
}
