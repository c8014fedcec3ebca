//! The downward API: a pod's own fields and resources as text. PURE.

use crate::resources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What the kubelet knows beyond the pod object.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts<'a> {
    /// The pod's addresses, primary first.
    pub pod_ips: &'a [String],
    /// The node's addresses, primary first.
    pub host_ips: &'a [String],
    /// The node's allocatable resources: what an absent limit means.
    pub allocatable: Option<&'a BTreeMap<String, Quantity>>,
}

/// The value of a field path.
pub(crate) fn field(pod: &Pod, path: &str, facts: &Facts<'_>) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let text = |o: &Option<String>| o.clone().unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec.map(|s| text(&s.node_name)).unwrap_or_default(),
        "spec.serviceAccountName" => spec.map(|s| text(&s.service_account_name)).unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `a.b['key']` as (`a.b`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// `key="value"` lines, sorted, the value quoted as Go's `%q` does.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let quoted = |v: &str| {
        let mut out = String::from('"');
        for ch in v.chars() {
            match ch {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
                c => out.push(c),
            }
        }
        out.push('"');
        out
    };
    let all: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", quoted(v))).collect();
    all.join("\n")
}

/// The value of a container's resource, divided by the selector's divisor and rounded up. A limit that is not set
/// is the node's allocatable amount.
pub(crate) fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    facts: &Facts<'_>,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let spec = pod.spec.as_ref();
    let all = || spec.into_iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let container = match named {
        Some(name) => all().find(|c| c.name == name).ok_or_else(|| format!("container {name} not found"))?,
        None => own.ok_or("container name required for a resource field")?,
    };
    let (kind, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported resource: {}", selector.resource))?;
    let resources = container.resources.as_ref();
    let list = match kind {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let fallback = || facts.allocatable.filter(|_| kind == "limits");
    let value = list.and_then(|l| l.get(name)).or_else(|| fallback().and_then(|a| a.get(name)));
    // cpu has fractions, everything else is whole.
    let (read, one): (fn(&Quantity) -> Option<i64>, i64) =
        if name == "cpu" { (resources::milli, 1000) } else { (resources::units, 1) };
    let value = value.and_then(read).unwrap_or(0);
    let divisor = selector.divisor.as_ref().and_then(read).filter(|d| *d > 0).unwrap_or(one);
    Ok((value.div_euclid(divisor) + i64::from(value.rem_euclid(divisor) != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": {"b": "x\"y", "a": "1\n2"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}}]}
        }))
        .unwrap();
        let ips = ["10.0.0.1".to_owned(), "fd00::1".to_owned()];
        let facts = Facts { pod_ips: &ips, ..Facts::default() };
        let f = |p: &str| field(&pod, p, &facts);
        assert_eq!(f("metadata.name").as_deref(), Ok("p"));
        assert_eq!(f("metadata.annotations").as_deref(), Ok("a=\"1\\n2\"\nb=\"x\\\"y\""));
        assert_eq!(f("metadata.annotations['b']").as_deref(), Ok("x\"y"));
        assert_eq!(f("status.podIPs").as_deref(), Ok("10.0.0.1,fd00::1"));
        assert!(f("spec.containers").is_err());
        let c = &pod.spec.as_ref().unwrap().containers[0];
        let r = |res: &str, div: &str| {
            let s: ResourceFieldSelector =
                serde_json::from_value(json!({"resource": res, "divisor": div})).unwrap();
            resource(&pod, Some(c), &s, &facts)
        };
        assert_eq!(r("limits.cpu", "0").as_deref(), Ok("2"));
        assert_eq!(r("limits.cpu", "1m").as_deref(), Ok("1500"));
        assert_eq!(r("limits.memory", "1Mi").as_deref(), Ok("64"));
        assert_eq!(r("requests.cpu", "1").as_deref(), Ok("0"));
        assert!(r("cpu", "1").is_err());
    }
}
