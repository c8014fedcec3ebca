//! What must be there before the server is ready: the objects of a fresh cluster, made or put right at start.

use std::net::IpAddr;
use std::sync::Arc;

use futures::TryStreamExt as _;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use http::Method;
use serde_json::{Map, Value, json};

use crate::access::{BootstrapObject, BootstrapPolicy, LocalApi, UserInfo};
use crate::authz::rule::{PolicyRule, uncovered};
use crate::kinds::Table;

/// Objects that are made at the same time: their writes share commits.
const CONCURRENT: usize = 128;
/// How often an object is tried that another server puts in place at the same time.
const ROUNDS: u32 = 5;
/// Pause for the other server to end what it has begun.
const ROUND_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);
/// Who makes them, in managedFields.
const MANAGER: &str = "fieldManager=kube-apiserver";

/// Where the API server is reached from inside the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// Address of the `kubernetes` Service.
    pub service: IpAddr,
    /// Address that the Service leads to.
    pub address: IpAddr,
    /// Port that it leads to.
    pub port: u16,
}

/// The `kubernetes` Service with its Endpoints and EndpointSlice, and the service CIDR.
pub fn own_objects(endpoint: Endpoint, cidrs: &[ipnet::IpNet]) -> Vec<BootstrapObject> {
    let Endpoint { service, address, port } = endpoint;
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let meta = |labels: Value| json!({"name": "kubernetes", "namespace": "default", "labels": labels});
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let keep = |object| BootstrapObject { object, policy: BootstrapPolicy::CreateOnly };
    let put = |object| BootstrapObject { object, policy: BootstrapPolicy::ReconcileSpec };
    vec![
        keep(json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs.iter().map(|c| c.trunc().to_string()).collect::<Vec<_>>()}})),
        keep(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": meta(json!({"component": "apiserver", "provider": "kubernetes"})),
            "spec": {"type": "ClusterIP", "clusterIP": service.to_string(), "sessionAffinity": "None",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]}})),
        put(json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": meta(json!({"endpointslice.kubernetes.io/skip-mirror": "true"})),
            "subsets": [{"addresses": [{"ip": address.to_string()}], "ports": ports}]})),
        put(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": meta(json!({"kubernetes.io/service-name": "kubernetes"})),
            "addressType": family, "ports": ports,
            "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}]})),
    ]
}

/// Adds the second family to the cluster's own range, and says that the range is ready. One that is not the one of the
/// flags is left as it is.
///
/// # Errors
/// The first refusal.
pub async fn ready_range(local: &dyn LocalApi, cidrs: &[ipnet::IpNet]) -> Result<(), Status> {
    let user = Arc::new(UserInfo::apiserver());
    let path = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    let mut held = local.call(user.clone(), Method::GET, path, None, None).await?;
    let wanted: Vec<Value> = cidrs.iter().map(|c| json!(c.trunc().to_string())).collect();
    if held.items_at("spec.cidrs") == &wanted[..1] && wanted.len() == 2 {
        held.set_path(&["spec", "cidrs"], Value::Array(wanted.clone()));
        held = local.call(user.clone(), Method::PUT, &format!("{path}?{MANAGER}"), Some(held), None).await?;
    }
    let said = held.items_at("status.conditions").iter().any(|c| c.str_at("type") == "Ready");
    if held.items_at("spec.cidrs") != wanted || said || held.deletion_timestamp().is_some() {
        return Ok(());
    }
    let now = hawser_api::time::rfc3339(jiff::Timestamp::now());
    let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": now, "reason": "",
        "message": "Kubernetes default Service CIDR is ready"}]);
    held.set_path(&["status", "conditions"], ready);
    match local.call(user, Method::PUT, &format!("{path}/status?{MANAGER}"), Some(held), None).await {
        // Another server or the controllers have said it.
        Err(status) if !status.is_conflict() => Err(status),
        _ => Ok(()),
    }
}

/// Group, priority of the group, priority of the version: how kube-aggregator orders what is built in.
const PRIORITIES: &[(&str, &str, i64, i64)] = &[
    ("", "v1", 18000, 1),
    ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("apiextensions.k8s.io", "v1", 16700, 15),
    ("apps", "v1", 17800, 15),
    ("authentication.k8s.io", "v1", 17700, 15),
    ("authorization.k8s.io", "v1", 17600, 15),
    ("autoscaling", "v1", 17500, 15),
    ("autoscaling", "v2", 17500, 30),
    ("batch", "v1", 17400, 15),
    ("certificates.k8s.io", "v1", 17300, 15),
    ("coordination.k8s.io", "v1", 16500, 15),
    ("discovery.k8s.io", "v1", 16200, 15),
    ("events.k8s.io", "v1", 17750, 15),
    ("flowcontrol.apiserver.k8s.io", "v1", 16100, 21),
    ("metrics.k8s.io", "v1beta1", 100, 100),
    ("networking.k8s.io", "v1", 17200, 15),
    ("node.k8s.io", "v1", 16300, 15),
    ("policy", "v1", 17100, 15),
    ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("resource.k8s.io", "v1", 16200, 21),
    ("scheduling.k8s.io", "v1", 16600, 15),
    ("storage.k8s.io", "v1", 16800, 15),
];

/// One APIService for each built-in group version that is served.
pub fn api_services(table: &Table) -> Vec<BootstrapObject> {
    PRIORITIES
        .iter()
        .filter(|(group, version, ..)| table.has_version(group, version))
        .map(|(group, version, group_priority, version_priority)| {
            let mut spec = json!({"version": version, "groupPriorityMinimum": group_priority,
                "versionPriority": version_priority});
            if !group.is_empty() {
                spec["group"] = json!(group);
            }
            let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": format!("{version}.{group}"),
                    "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"}},
                "spec": spec});
            BootstrapObject { object, policy: BootstrapPolicy::CreateOnly }
        })
        .collect()
}

/// Puts objects in place: namespaces first, then all others at once.
///
/// # Errors
/// The first refusal.
pub async fn reconcile(
    local: &dyn LocalApi,
    table: &Table,
    objects: Vec<BootstrapObject>,
) -> Result<(), Status> {
    let user = Arc::new(UserInfo::apiserver());
    let (namespaces, others): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|o| o.object.kind() == "Namespace");
    for phase in [namespaces, others] {
        futures::stream::iter(phase.iter().map(Ok))
            .try_for_each_concurrent(CONCURRENT, |wanted| place(local, table, &user, wanted))
            .await?;
    }
    Ok(())
}

async fn place(
    local: &dyn LocalApi,
    table: &Table,
    user: &Arc<UserInfo>,
    wanted: &BootstrapObject,
) -> Result<(), Status> {
    let object = &wanted.object;
    let Some(row) = table.find_kind(object.api_version(), object.kind()) else {
        return Err(Status::internal(format!("no resource for {} {}", object.api_version(), object.kind())));
    };
    let kind = &row.kind;
    let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let collection = if kind.namespaced {
        format!("{root}/{}/namespaces/{}/{}", kind.version, object.namespace(), kind.plural)
    } else {
        format!("{root}/{}/{}", kind.version, kind.plural)
    };
    let path = format!("{collection}/{}", object.name());
    // A few rounds, in case another server does the same.
    for round in 0..ROUNDS {
        let held = match local.call(user.clone(), Method::GET, &path, None, None).await {
            Ok(held) => held,
            Err(status) if status.is_not_found() => {
                let create = format!("{collection}?{MANAGER}");
                match local.call(user.clone(), Method::POST, &create, Some(object.clone()), None).await {
                    Err(status) if status.is_already_exists() => continue,
                    // The other server has claimed the Service's address and is about to write the Service.
                    Err(status) if status.code == 422 && round + 1 < ROUNDS => {
                        tokio::time::sleep(ROUND_PAUSE).await;
                        continue;
                    }
                    other => return other.map(drop),
                }
            }
            Err(status) => return Err(status),
        };
        let fixed = match wanted.policy {
            BootstrapPolicy::CreateOnly => return Ok(()),
            BootstrapPolicy::ReconcileSpec => with_spec(&held, object),
            BootstrapPolicy::ReconcileRbac => with_rbac(&held, object)?,
        };
        if fixed == held {
            return Ok(());
        }
        if held.kind().ends_with("Binding") && held.get("roleRef") != fixed.get("roleRef") {
            // The role of a binding cannot change: it is made anew.
            local.call(user.clone(), Method::DELETE, &path, None, None).await?;
            continue;
        }
        let update = format!("{path}?{MANAGER}");
        match local.call(user.clone(), Method::PUT, &update, Some(fixed), None).await {
            Err(status) if status.is_conflict() => {}
            other => return other.map(drop),
        }
    }
    Err(Status::conflict(&kind.group, &kind.plural, object.name(), "it does not stop changing"))
}

/// The held object with every desired field of the wanted one, unless its owner has switched that off.
fn with_spec(held: &Value, wanted: &Value) -> Value {
    if held.annotation("apf.kubernetes.io/autoupdate-spec") == Some("false") {
        return held.clone();
    }
    let mut fixed = held.clone();
    for (key, value) in wanted.as_object().into_iter().flatten() {
        if matches!(key.as_str(), "metadata" | "kind" | "apiVersion") {
            continue;
        }
        let slot = fixed.get(key);
        if !slot.is_some_and(|there| contains(there, value)) {
            fixed.set_path(&[key], value.clone());
        }
    }
    fixed
}

/// Whether everything that `wanted` says is in `there` too (which has defaults besides).
fn contains(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(t), Value::Object(w)) => {
            w.iter().all(|(k, v)| t.get(k).is_some_and(|t| contains(t, v)))
        }
        (Value::Array(t), Value::Array(w)) => {
            t.len() == w.len() && t.iter().zip(w).all(|(t, w)| contains(t, w))
        }
        _ => there == wanted,
    }
}

/// The held role or binding with what it misses.
fn with_rbac(held: &Value, wanted: &Value) -> Result<Value, Status> {
    if held.annotation("rbac.authorization.kubernetes.io/autoupdate") == Some("false") {
        return Ok(held.clone());
    }
    let mut fixed = held.clone();
    for map in ["labels", "annotations"] {
        let more = wanted.get_path(&["metadata", map]).and_then(Value::as_object);
        for (key, value) in more.into_iter().flatten() {
            if fixed.get_path(&["metadata", map, key]).is_none() {
                fixed.set_path(&["metadata", map, key], value.clone());
            }
        }
    }
    if let Some(rule) = wanted.get("aggregationRule") {
        // The rules are then the aggregation's.
        fixed.set_path(&["aggregationRule"], rule.clone());
        return Ok(fixed);
    }
    if let Some(rules) = wanted.get("rules") {
        let parse = |v: Option<&Value>| -> Result<Vec<PolicyRule>, Status> {
            match v {
                None | Some(Value::Null) => Ok(Vec::new()),
                Some(v) => serde_json::from_value(v.clone()).map_err(Status::internal),
            }
        };
        let missing = uncovered(&parse(fixed.get("rules"))?, &parse(Some(rules))?);
        if !missing.is_empty() {
            let mut all = fixed.items_at("rules").to_vec();
            for rule in &missing {
                all.push(serde_json::to_value(rule).map_err(Status::internal)?);
            }
            fixed.set_path(&["rules"], Value::Array(all));
        }
    }
    if let Some(role) = wanted.get("roleRef") {
        fixed.set_path(&["roleRef"], role.clone());
        let mut subjects = fixed.items_at("subjects").to_vec();
        for subject in wanted.items_at("subjects") {
            if !subjects.iter().any(|held| same_subject(held, subject)) {
                subjects.push(subject.clone());
            }
        }
        if !subjects.is_empty() {
            fixed.set_path(&["subjects"], Value::Array(subjects));
        }
    }
    Ok(fixed)
}

fn same_subject(a: &Value, b: &Value) -> bool {
    let empty = Map::new();
    let (a, b) = (a.as_object().unwrap_or(&empty), b.as_object().unwrap_or(&empty));
    ["kind", "name", "namespace"].iter().all(|k| a.get(*k) == b.get(*k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_misses_is_put_back() {
        let wanted = json!({"kind": "FlowSchema", "spec": {"a": 1, "list": [{"x": 1}]}});
        let held = json!({"kind": "FlowSchema", "metadata": {"name": "f"}, "spec": {"a": 1, "list": [{"x": 1, "y": 2}], "d": 3}});
        assert_eq!(with_spec(&held, &wanted), held);
        let mut broken = held.clone();
        broken["spec"]["a"] = json!(2);
        assert_eq!(with_spec(&broken, &wanted)["spec"], wanted["spec"]);
        broken["metadata"]["annotations"] = json!({"apf.kubernetes.io/autoupdate-spec": "false"});
        assert_eq!(with_spec(&broken, &wanted), broken);
    }

    #[test]
    fn roles_get_back_what_they_lost() {
        let rule = |verb: &str| json!({"apiGroups": [""], "resources": ["pods"], "verbs": [verb]});
        let wanted = json!({"kind": "ClusterRole", "metadata": {"labels": {"a": "b"}}, "rules": [rule("get"), rule("list")]});
        let held =
            json!({"kind": "ClusterRole", "metadata": {"name": "r"}, "rules": [rule("get"), rule("watch")]});
        let fixed = with_rbac(&held, &wanted).expect("rules");
        assert_eq!(fixed.items_at("rules").len(), 3);
        assert_eq!(fixed.label("a"), Some("b"));
        assert_eq!(with_rbac(&fixed, &wanted).expect("rules"), fixed);
        let binding = json!({"roleRef": {"name": "r"}, "subjects": [{"kind": "User", "name": "a"}]});
        let held =
            json!({"roleRef": {"name": "r"}, "subjects": [{"kind": "User", "name": "b", "apiGroup": "x"}]});
        assert_eq!(with_rbac(&held, &binding).expect("subjects").items_at("subjects").len(), 2);
    }
}
