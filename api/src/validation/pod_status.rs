//! What a pod's status may say.

use super::addresses;
use super::checks::Errors;
use super::pod_updates;
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::{BadValue, FieldError, Path};
use serde_json::Value;
use std::net::IpAddr;

const STATUS: Path<'static> = Path::new("status");

/// The lists of containers' states and the spec's lists that they speak of.
const LISTS: [(&str, &str); 3] = [
    ("containerStatuses", "containers"),
    ("initContainerStatuses", "initContainers"),
    ("ephemeralContainerStatuses", "ephemeralContainers"),
];

/// Longest message of a resource's health, longest reference of an image (bytes).
const MAX_HEALTH_MESSAGE: usize = 1024;
const MAX_IMAGE_REF: usize = 256;

/// An update of the status.
pub fn status(new: &Value, old: &Value, e: &mut Errors) {
    pod_updates::annotations(new, old, e);
    conditions(new, e);
    nominated(new, old, e);
    if let Some(n) = new.int_at("status.observedGeneration").filter(|n| *n < 0) {
        e.invalid(STATUS.child("observedGeneration"), n, "must be a non-negative integer");
    }
    let (class, before) = (new.str_at("status.qosClass"), old.str_at("status.qosClass"));
    if class != before {
        e.invalid(STATUS.child("qosClass"), class, super::checks::IMMUTABLE);
    }
    for (list, containers) in LISTS {
        transitions(new, old, list, containers, e);
    }
    claims(new, e);
    extended_claim(new, e);
    pod_ips(new, old, e);
    host_ips(new, old, e);
    for (list, _) in LISTS {
        users(new, list, e);
    }
    for (list, containers) in LISTS {
        allocated(new, list, containers, e);
    }
    for (list, _) in LISTS {
        images(new, list, e);
    }
}

fn conditions(new: &Value, e: &mut Errors) {
    let list = STATUS.child("conditions");
    for (i, c) in new.items_at("status.conditions").iter().enumerate() {
        let at = list.index(i);
        if let Some(n) = c.int_at("observedGeneration").filter(|n| *n < 0) {
            e.invalid(at.child("observedGeneration"), n, "must be a non-negative integer");
        }
        let ty = c.str_at("type");
        if !matches!(ty, "PodScheduled" | "Ready" | "Initialized") {
            // Kubernetes writes the field with a capital.
            e.all(at.child("Type"), ty, names::qualified_name(ty));
        }
    }
}

fn nominated(new: &Value, old: &Value, e: &mut Errors) {
    let at = STATUS.child("nominatedNodeName");
    let (name, before) = (new.str_at("status.nominatedNodeName"), old.str_at("status.nominatedNodeName"));
    if name.is_empty() || name == before {
        return;
    }
    e.all(at, name, names::dns1123_subdomain(name));
    if !old.str_at("spec.nodeName").is_empty() {
        e.forbidden(at, "may not be set on pods that are already bound to a node");
    }
}

/// A container that has ended stays so unless its policy starts it again.
fn transitions(new: &Value, old: &Value, list: &str, containers: &str, e: &mut Errors) {
    let spec = old.get("spec").cloned().unwrap_or(Value::Null);
    let ephemeral = containers == "ephemeralContainers";
    let restarts_all = |c: &Value| {
        c.items_at("restartPolicyRules").iter().any(|r| r.str_at("action") == "RestartAllContainers")
    };
    let mut all = spec.items_at("containers").iter().chain(spec.items_at("initContainers"));
    if !ephemeral && all.any(restarts_all) {
        return;
    }
    let path = format!("status.{list}");
    let terminated = |s: &Value| s.at("state.terminated").is_some_and(|t| !t.is_null());
    for (i, before) in old.items_at(&path).iter().enumerate().filter(|(_, s)| terminated(s)) {
        let name = before.str_at("name");
        let Some(_) = new.items_at(&path).iter().find(|s| s.str_at("name") == name && !terminated(s)) else {
            continue;
        };
        let code = before.int_at("state.terminated.exitCode").unwrap_or(0);
        let container = spec.items_at(containers).iter().find(|c| c.str_at("name") == name);
        let restarts = !ephemeral && container.is_some_and(|c| restarts(c, &spec, code));
        if !restarts {
            let at = STATUS.child(list);
            e.forbidden(at.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

/// Whether a container that ended with this code is started again (KEP-5307).
fn restarts(container: &Value, spec: &Value, code: i64) -> bool {
    let policy = container.str_at("restartPolicy");
    let matches = |rule: &&Value| {
        let listed = rule.items_at("exitCodes.values").iter().any(|v| v.as_i64() == Some(code));
        match rule.str_at("exitCodes.operator") {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    };
    let rule = container.items_at("restartPolicyRules").iter().find(matches);
    if !policy.is_empty() && rule.is_some_and(|r| r.str_at("action") == "Restart") {
        return true;
    }
    match if policy.is_empty() { spec.str_at("restartPolicy") } else { policy } {
        "OnFailure" => code != 0,
        "Never" => false,
        _ => true,
    }
}

fn claims(new: &Value, e: &mut Errors) {
    let list = STATUS.child("resourceClaimStatuses");
    let statuses = new.items_at("status.resourceClaimStatuses");
    for (i, status) in statuses.iter().enumerate() {
        let at = list.index(i);
        let name = status.str_at("name");
        if !new.items_at("spec.resourceClaims").iter().any(|c| c.str_at("name") == name) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            e.invalid(at.child("name"), name, detail);
        }
        if statuses[..i].iter().any(|s| s.str_at("name") == name) {
            e.duplicate(at.child("name"), name);
        }
        if let Some(claim) = status.get("resourceClaimName").and_then(Value::as_str) {
            e.all(at.child("resourceClaimName"), claim, names::dns1123_subdomain(claim));
        }
    }
}

/// The claim that stands for extended resources (KEP-5004).
fn extended_claim(new: &Value, e: &mut Errors) {
    let Some(status) = new.at("status.extendedResourceClaimStatus").filter(|s| !s.is_null()) else { return };
    let at = STATUS.child("extendedResourceClaimStatus");
    let list = at.child("requestMappings");
    let mappings = status.items_at("requestMappings");
    if mappings.is_empty() {
        e.required(list, "at least one request mapping is required");
    }
    for (i, mapping) in mappings.iter().enumerate() {
        let item = list.index(i);
        let (container, resource, request) =
            (mapping.str_at("containerName"), mapping.str_at("resourceName"), mapping.str_at("requestName"));
        let lists = ["spec.initContainers", "spec.containers"];
        let found = lists.iter().flat_map(|l| new.items_at(l)).find(|c| c.str_at("name") == container);
        match found {
            Some(c) if c.get_path(&["resources", "requests", resource]).is_none() => e.invalid(
                item.child("resourceName"),
                resource,
                "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests",
            ),
            Some(_) => {}
            None => e.invalid(
                item.child("containerName"),
                container,
                "must match the name of an entry in spec.initContainers.name or spec.containers.name",
            ),
        }
        e.all(at.child("requestName"), request, names::dns1123_label(request));
        let fields = ["containerName", "resourceName", "requestName"];
        if mappings[..i].iter().any(|m| fields.iter().all(|f| m.str_at(f) == mapping.str_at(f))) {
            for field in fields {
                e.duplicate(item.child(field), mapping.str_at(field));
            }
        }
    }
    let claim = at.child("resourceClaimName");
    match status.str_at("resourceClaimName") {
        "" => e.required(claim, ""),
        name => e.all(claim, name, names::dns1123_subdomain(name)),
    }
}

/// At most one address of each family; bad ones only where they were before.
fn pod_ips(new: &Value, old: &Value, e: &mut Errors) {
    addresses_of("podIPs", "[]core.PodIP", new, old, e);
}

fn host_ips(new: &Value, old: &Value, e: &mut Errors) {
    let Some(first) = new.items_at("status.hostIPs").first().map(|a| a.str_at("ip")) else { return };
    if new.str_at("status.hostIP") != first {
        let at = STATUS.child("hostIPs");
        e.invalid(at.index(0).child("ip"), first, "must be equal to `hostIP`");
    }
    addresses_of("hostIPs", "[]core.HostIP", new, old, e);
}

fn addresses_of(field: &str, ty: &'static str, new: &Value, old: &Value, e: &mut Errors) {
    let at = STATUS.child(field);
    let path = format!("status.{field}");
    let texts =
        |o: &Value| -> Vec<String> { o.items_at(&path).iter().map(|a| a.str_at("ip").to_owned()).collect() };
    let (now, before) = (texts(new), texts(old));
    for (i, text) in now.iter().enumerate() {
        if !before.contains(text) {
            addresses::ip(at.index(i), text, e);
        }
    }
    if now.len() < 2 {
        return;
    }
    let parsed: Option<Vec<IpAddr>> = now.iter().map(|t| addresses::sloppy(t)).collect();
    match parsed {
        None => {
            let bad = now.iter().find(|t| addresses::sloppy(t).is_none()).map_or("", String::as_str);
            e.push(FieldError::internal(
                at,
                format!(
                    "failed to check for dual stack with error:invalid IP[{}]: <nil>",
                    index_of(&now, bad)
                ),
            ));
            e.invalid(at, BadValue::internal(ty, new.at(&path)), ONE_PER_FAMILY);
        }
        Some(ips) => {
            let dual = ips.iter().any(IpAddr::is_ipv4) && ips.iter().any(IpAddr::is_ipv6);
            if !dual || ips.len() > 2 {
                e.invalid(at, BadValue::internal(ty, new.at(&path)), ONE_PER_FAMILY);
            }
        }
    }
}

const ONE_PER_FAMILY: &str = "may specify no more than one IP for each IP family";

fn index_of(texts: &[String], text: &str) -> usize {
    texts.iter().position(|t| t == text).unwrap_or(0)
}

fn users(new: &Value, list: &str, e: &mut Errors) {
    let at = STATUS.child(list);
    let os = new.str_at("spec.os.name");
    for (i, status) in new.items_at(&format!("status.{list}")).iter().enumerate() {
        let Some(user) = status.at("user.linux").filter(|u| !u.is_null()) else { continue };
        let item = at.index(i);
        let path = item.child("user.linux");
        if os == "windows" {
            e.forbidden(path, "cannot be set for a windows pod");
            continue;
        }
        if !matches!(os, "" | "linux") {
            continue;
        }
        let mut id = |at: Path<'_>, n: i64| {
            if !(0..=i64::from(i32::MAX)).contains(&n) {
                e.invalid(at, n, "must be between 0 and 2147483647, inclusive");
            }
        };
        for field in ["uid", "gid"] {
            id(path.child(field), user.int_at(field).unwrap_or(0));
        }
        let groups = path.child("supplementalGroups");
        for (j, group) in user.items_at("supplementalGroups").iter().enumerate() {
            id(groups.index(j), group.as_i64().unwrap_or(0));
        }
    }
}

/// Health of devices that containers have (KEP-4680).
fn allocated(new: &Value, list: &str, containers: &str, e: &mut Errors) {
    let at = STATUS.child(list);
    for (i, status) in new.items_at(&format!("status.{list}")).iter().enumerate() {
        let item = at.index(i);
        let all = item.child("allocatedResourcesStatus");
        let given = status.items_at("allocatedResourcesStatus");
        if containers == "ephemeralContainers" {
            if !given.is_empty() {
                e.forbidden(all, "must not be specified in container status");
            }
            continue;
        }
        let named = |c: &&Value| c.str_at("name") == status.str_at("name");
        let container = new.items_at(&format!("spec.{containers}")).iter().find(named);
        for (j, resource) in given.iter().enumerate() {
            let one = all.index(j);
            let name = resource.str_at("name");
            if let Some(container) = container
                && let Some(detail) = unasked(container, name)
            {
                e.invalid(one.child("name"), name, detail);
            }
            health(resource, one, e);
        }
    }
}

/// Why a container cannot have what is reported for it.
fn unasked(container: &Value, name: &str) -> Option<&'static str> {
    if !name.starts_with("claim:") {
        let asked = container.get_path(&["resources", "requests", name]).is_some();
        return (!asked).then_some("must match one of the container's resource requests");
    }
    let is = |c: &Value| {
        let request = c.str_at("request");
        let slash = if request.is_empty() { "" } else { "/" };
        format!("claim:{}{slash}{request}", c.str_at("name")) == name
    };
    let asked = container.items_at("resources.claims").iter().any(is);
    (!asked).then_some("must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty")
}

fn health(resource: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("resources");
    let devices = resource.items_at("resources");
    for (i, device) in devices.iter().enumerate() {
        let item = list.index(i);
        let health = device.str_at("health");
        let known = ["Healthy", "Unhealthy", "Unknown"];
        if !known.contains(&health) {
            e.unsupported(item.child("health"), health, &known);
        }
        if let Some(message) = device.get("message").and_then(Value::as_str) {
            if message.is_empty() {
                e.required(item.child("message"), "must be non-empty if specified");
            } else if message.len() > MAX_HEALTH_MESSAGE {
                e.push(FieldError::too_long(item.child("message"), MAX_HEALTH_MESSAGE));
            }
        }
        let id = device.str_at("resourceID");
        if devices[..i].iter().any(|d| d.str_at("resourceID") == id) {
            e.duplicate(item.child("resourceID"), id);
        }
    }
}

/// Images that are mounted as volumes (KEP-4639).
fn images(new: &Value, list: &str, e: &mut Errors) {
    let at = STATUS.child(list);
    for (i, status) in new.items_at(&format!("status.{list}")).iter().enumerate() {
        let item = at.index(i);
        let mounts = item.child("volumeMounts");
        for (j, mount) in status.items_at("volumeMounts").iter().enumerate() {
            let Some(image) = mount.at("volumeStatus.image").filter(|v| !v.is_null()) else { continue };
            let one = mounts.index(j);
            let place = one.child("volumeStatus.imageVolumeStatus.imageRef");
            match image.str_at("imageRef") {
                "" => e.required(place, "imageRef must not be empty"),
                text if text.len() > MAX_IMAGE_REF => {
                    e.push(FieldError::too_long(place, MAX_IMAGE_REF));
                }
                _ => {}
            }
        }
    }
}
