//! Defaults of pods and pod templates.

use super::{child, each, ensure, set, text};
use crate::object::Object;
use crate::quantity::Quantity;
use serde_json::{Value, json};

/// Mode of files of configMap, secret, downwardAPI and projected volumes: 0644.
const FILE_MODE: i64 = 0o644;

/// A pod: its spec, plus what only pods (not templates) get.
pub fn pod(o: &mut Object) {
    let Some(spec) = ensure(o, "spec") else { return };
    pod_spec(spec);
    set(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        each(spec, list, |c| {
            if let Some(resources) = child(c, "resources") {
                requests_from_limits(resources);
            }
            if host_network {
                each(c, "ports", |p| {
                    if let Some(port) = p.get("containerPort").cloned() {
                        set(p, "hostPort", port);
                    }
                });
            }
        });
    }
    pod_level_requests(spec);
}

/// A PodTemplate, or anything else with a `template`.
pub fn template(o: &mut Object) {
    if let Some(template) = ensure(o, "template") {
        set(template, "metadata", Object::new());
        if let Some(spec) = ensure(template, "spec") {
            pod_spec(spec);
        }
    }
}

/// The pod template in the spec of a kind that runs pods.
pub fn template_of(o: &mut Object) {
    if let Some(spec) = ensure(o, "spec") {
        template(spec);
    }
}

/// Requests that are not given are the limits.
fn requests_from_limits(resources: &mut Object) {
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    if let Some(requests) = ensure(resources, "requests") {
        for (name, limit) in limits {
            set(requests, &name, limit);
        }
    }
}

/// Pod-level requests: the sum of the containers' where all containers say, else the pod-level limits.
fn pod_level_requests(spec: &mut Object) {
    let sums: Vec<(String, Option<Quantity>)> = match spec.get("resources").and_then(|r| r.get("limits")) {
        Some(Value::Object(limits)) => {
            limits.keys().map(|name| (name.clone(), containers_request(spec, name))).collect()
        }
        _ => return,
    };
    let Some(resources) = child(spec, "resources") else { return };
    let limits = resources.get("limits").cloned();
    let Some(requests) = ensure(resources, "requests") else { return };
    for (name, sum) in sums {
        let value = match sum {
            Some(sum) => Some(Value::String(sum.to_string())),
            None => limits.as_ref().and_then(|l| l.get(&name)).cloned(),
        };
        if let Some(value) = value {
            set(requests, &name, value);
        }
    }
}

/// What the containers request of a resource in all; `None` when none says.
fn containers_request(spec: &Object, name: &str) -> Option<Quantity> {
    let containers = spec.get("containers")?.as_array()?;
    let mut sum: Option<Quantity> = None;
    for c in containers {
        let request = c.get("resources").and_then(|r| r.get("requests")).and_then(|r| r.get(name));
        if let Some(q) = request.and_then(Value::as_str).and_then(|q| Quantity::parse(q).ok()) {
            sum = Some(sum.map_or(q, |s| s + q));
        }
    }
    sum
}

/// A pod's or a template's spec.
pub fn pod_spec(spec: &mut Object) {
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "restartPolicy", "Always");
    set(spec, "securityContext", Object::new());
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "schedulerName", "default-scheduler");
    mirror_service_account(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each(spec, list, container);
    }
    each(spec, "volumes", volume);
    if let Some(overhead) = spec.get_mut("overhead") {
        round_resources(overhead);
    }
    if let Some(resources) = child(spec, "resources") {
        round_requirements(resources);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always shown.
fn mirror_service_account(spec: &mut Object) {
    if text(spec, "serviceAccountName").is_empty() {
        let old = text(spec, "serviceAccount").to_owned();
        if !old.is_empty() {
            spec.insert("serviceAccountName".into(), Value::String(old));
        }
    } else {
        let name = spec["serviceAccountName"].clone();
        spec.insert("serviceAccount".into(), name);
    }
}

fn container(c: &mut Object) {
    set(c, "terminationMessagePath", "/dev/termination-log");
    set(c, "terminationMessagePolicy", "File");
    let policy = image_pull_policy(text(c, "image"));
    set(c, "imagePullPolicy", policy);
    set(c, "resources", Object::new());
    if let Some(resources) = child(c, "resources") {
        round_requirements(resources);
    }
    each(c, "ports", |p| set(p, "protocol", "TCP"));
    each(c, "env", |e| {
        if let Some(from) = child(e, "valueFrom") {
            if let Some(field) = child(from, "fieldRef") {
                set(field, "apiVersion", "v1");
            }
            if let Some(file) = child(from, "fileKeyRef") {
                set(file, "optional", false);
            }
        }
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(c, name) {
            set(probe, "timeoutSeconds", 1);
            set(probe, "periodSeconds", 10);
            set(probe, "successThreshold", 1);
            set(probe, "failureThreshold", 3);
            http_get(probe);
            if let Some(grpc) = child(probe, "grpc") {
                set(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = child(c, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = child(lifecycle, hook) {
                http_get(hook);
            }
        }
    }
}

fn http_get(handler: &mut Object) {
    if let Some(get) = child(handler, "httpGet") {
        set(get, "path", "/");
        set(get, "scheme", "HTTP");
    }
}

/// Whether an image's name is well-formed: `[host[:port]/]path[:tag][@digest]`, the path in lower case and at most 255
/// bytes long.
fn is_reference(image: &str) -> bool {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(r, d)| (r, Some(d)));
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let component = |c: &str| {
        let edge = |b: Option<char>| b.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(c.chars().next())
            && edge(c.chars().next_back())
            && c.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    let host =
        |h: &str| h == "localhost" || h.contains(['.', ':']) || h.chars().any(|c| c.is_ascii_uppercase());
    let path = match name.split_once('/') {
        Some((first, path)) if host(first) => {
            let (domain, port) = match first.rsplit_once(':') {
                Some((domain, port)) if !port.ends_with(']') => (domain, Some(port)),
                _ => (first, None),
            };
            let edge = |b: Option<char>| b.is_some_and(|c| c.is_ascii_alphanumeric());
            let label = |l: &str| {
                edge(l.chars().next())
                    && edge(l.chars().next_back())
                    && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            };
            let ipv6 = domain.strip_prefix('[').and_then(|d| d.strip_suffix(']'));
            let good = match ipv6 {
                Some(ip) => ip.chars().all(|c| c.is_ascii_hexdigit() || c == ':'),
                None => domain.split('.').all(label),
            };
            if !good || port.is_some_and(|p| p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit())) {
                return false;
            }
            path
        }
        _ => name,
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let tagged = |t: &str| {
        t.len() <= 128 && t.starts_with(word) && t.chars().all(|c| word(c) || matches!(c, '.' | '-'))
    };
    // What looks like the identifier of an image is no name.
    let identifier = image.len() == 64 && image.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    !identifier
        && name.len() <= 255
        && path.split('/').all(component)
        && tag.is_none_or(tagged)
        && digest.is_none_or(|d| d.split_once(':').is_some_and(|(a, hex)| !a.is_empty() && hex.len() >= 32))
}

/// `Always` for images tagged `latest` or not at all, `IfNotPresent` for others.
pub fn image_pull_policy(image: &str) -> &'static str {
    if !is_reference(image) {
        return "IfNotPresent";
    }
    let (name, digest) = image.split_once('@').map_or((image, false), |(n, _)| (n, true));
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn volume(v: &mut Object) {
    let has_source = v.iter().any(|(k, value)| k != "name" && !value.is_null());
    if !has_source {
        set(v, "emptyDir", Object::new());
    }
    for name in ["secret", "configMap"] {
        if let Some(source) = child(v, name) {
            set(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(source) = child(v, "downwardAPI") {
        set(source, "defaultMode", FILE_MODE);
        downward_items(source);
    }
    if let Some(projected) = child(v, "projected") {
        set(projected, "defaultMode", FILE_MODE);
        each(projected, "sources", |s| {
            if let Some(token) = child(s, "serviceAccountToken") {
                set(token, "expirationSeconds", 3600);
            }
            if let Some(certificate) = child(s, "podCertificate") {
                set(certificate, "maxExpirationSeconds", 86_400);
            }
            if let Some(downward) = child(s, "downwardAPI") {
                downward_items(downward);
            }
        });
    }
    if let Some(image) = child(v, "image") {
        let policy = image_pull_policy(text(image, "reference"));
        set(image, "pullPolicy", policy);
    }
    if let Some(ephemeral) = child(v, "ephemeral")
        && let Some(claim) = child(ephemeral, "volumeClaimTemplate")
        && let Some(spec) = ensure(claim, "spec")
    {
        super::core::claim_spec(spec);
    }
    volume_source(v);
}

/// Defaults that volumes of pods and persistent volumes share.
pub fn volume_source(v: &mut Object) {
    if let Some(s) = child(v, "hostPath") {
        set(s, "type", "");
    }
    if let Some(s) = child(v, "iscsi") {
        set(s, "iscsiInterface", "default");
    }
    if let Some(s) = child(v, "rbd") {
        set(s, "pool", "rbd");
        set(s, "user", "admin");
        set(s, "keyring", "/etc/ceph/keyring");
    }
    if let Some(s) = child(v, "azureDisk") {
        set(s, "cachingMode", "ReadWrite");
        set(s, "kind", "Shared");
        set(s, "fsType", "ext4");
        set(s, "readOnly", false);
    }
    if let Some(s) = child(v, "scaleIO") {
        set(s, "storageMode", "ThinProvisioned");
        set(s, "fsType", "xfs");
    }
}

fn downward_items(source: &mut Object) {
    each(source, "items", |i| {
        if let Some(field) = child(i, "fieldRef") {
            set(field, "apiVersion", "v1");
        }
    });
}

fn round_requirements(resources: &mut Object) {
    for list in ["limits", "requests"] {
        if let Some(list) = resources.get_mut(list) {
            round_resources(list);
        }
    }
}

/// Amounts of resources are whole thousandths, rounded up.
pub fn round_resources(list: &mut Value) {
    let Value::Object(list) = list else { return };
    for value in list.values_mut() {
        if let Value::String(s) = value
            && let Ok(q) = Quantity::parse(s)
            && !q.is_whole_milli()
        {
            *value = json!(Quantity::from_milli(q.milli_value()).to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("r.example.com:5000/x", "Always"),
            ("r.example.com:5000/x:1", "IfNotPresent"),
            ("x@sha256:0123", "IfNotPresent"),
            ("x:latest@sha256:0123", "IfNotPresent"),
            (concat!("x:latest@sha256:", "0123456789abcdef0123456789abcdef"), "Always"),
            ("Not an image", "IfNotPresent"),
        ] {
            assert_eq!(image_pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn fills_a_pod() {
        let mut o = json!({"spec": {"serviceAccount": "sa", "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "x"}}], "containers": [{"name": "c", "image": "x",
            "livenessProbe": {"httpGet": {"port": 1}}, "ports": [{"containerPort": 1}], "resources": {"limits": {"cpu": "500u"}},
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "B", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]}]}});
        let ty = crate::schema::find_kind("v1", "Pod").expect("type");
        crate::decode::normalize(ty, &mut o, &mut Default::default()).expect("well-typed");
        pod(o.as_object_mut().expect("object"));
        let c = &o["spec"]["containers"][0];
        assert_eq!(c["livenessProbe"]["httpGet"], json!({"port": 1, "path": "/", "scheme": "HTTP"}));
        assert_eq!(c["resources"], json!({"limits": {"cpu": "1m"}, "requests": {"cpu": "1m"}}));
        assert_eq!(c["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(c["env"][1]["valueFrom"]["resourceFieldRef"]["divisor"], "0");
        assert_eq!(o["spec"]["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(o["spec"]["volumes"][1]["configMap"]["defaultMode"], 420);
        assert_eq!(o["spec"]["serviceAccountName"], "sa");
    }
}
