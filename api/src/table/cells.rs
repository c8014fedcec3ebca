//! The cells of the kinds: dispatch, the small kinds, and what all share.

use super::{network, preview, storage, workloads};
use crate::kinds::Kind;
use crate::object::{Labels, ObjectExt as _};
use crate::selector::LabelSelector;
use crate::time;
use jiff::Timestamp;
use serde_json::{Value, json};

/// What computing a cell may look at.
pub struct Cx<'a> {
    pub o: &'a Value,
    pub now: Timestamp,
}

impl<'a> Cx<'a> {
    pub fn name(&self) -> Value {
        json!(self.o.name())
    }
    pub fn age(&self) -> Value {
        json!(time::age(self.o.at("metadata.creationTimestamp"), self.now))
    }
    /// The string at a path, empty when absent.
    pub fn text(&self, path: &str) -> Value {
        json!(self.o.str_at(path))
    }
    /// The string at a path, or something else when it is empty.
    pub fn text_or(&self, path: &str, other: &str) -> Value {
        match self.o.str_at(path) {
            "" => json!(other),
            s => json!(s),
        }
    }
    /// The integer at a path, 0 when absent.
    pub fn int(&self, path: &str) -> Value {
        json!(self.o.int_at(path).unwrap_or(0))
    }
    pub fn bool(&self, path: &str) -> Value {
        json!(self.o.bool_at(path).unwrap_or(false))
    }
    /// How many items a list or map has.
    pub fn count(&self, path: &str) -> usize {
        match self.o.at(path) {
            Some(Value::Array(a)) => a.len(),
            Some(Value::Object(m)) => m.len(),
            _ => 0,
        }
    }
    /// How long ago the time at a path was.
    pub fn since(&self, path: &str) -> Option<String> {
        let at = time::from_value(self.o.at(path))?;
        Some(time::human_duration(time::seconds_between(at, self.now)))
    }
    /// The status of a condition.
    pub fn condition(&self, ty: &str) -> Option<&'a Value> {
        self.o.items_at("status.conditions").iter().find(|c| c.str_at("type") == ty)
    }
    pub fn condition_true(&self, ty: &str) -> bool {
        self.condition(ty).is_some_and(|c| c.str_at("status") == "True")
    }
    /// Names and images of a pod template's containers.
    pub fn containers(&self, path: &str) -> [Value; 2] {
        let containers = self.o.items_at(path);
        let join = |field: &str| containers.iter().map(|c| c.str_at(field)).collect::<Vec<_>>().join(",");
        [json!(join("name")), json!(join("image"))]
    }
    /// A `LabelSelector` object as text.
    pub fn selector(&self, path: &str) -> Value {
        json!(selector(self.o.at(path)))
    }
    /// A map of labels as text.
    pub fn labels(&self, path: &str) -> Value {
        json!(labels(self.o.at(path)))
    }
}

/// A `LabelSelector` object as text; `<none>` when it has no requirements.
pub fn selector(v: Option<&Value>) -> String {
    match LabelSelector::from_object(v) {
        Ok(s) if s.requirements.is_empty() => "<none>".into(),
        Ok(s) => s.to_string(),
        Err(_) => "<error>".into(),
    }
}

/// A map of labels as text; `<none>` when it is empty.
pub fn labels(v: Option<&Value>) -> String {
    let map = Labels::new(v.and_then(Value::as_object)).to_map();
    if map.is_empty() {
        return "<none>".into();
    }
    map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// The cells of a kind that has columns of its own.
pub fn of(kind: &Kind, o: &Value, now: Timestamp) -> Option<Vec<Value>> {
    let cx = Cx { o, now };
    workloads::cells(kind, &cx)
        .or_else(|| network::cells(kind, &cx))
        .or_else(|| storage::cells(kind, &cx))
        .or_else(|| small(kind, &cx))
        .or_else(|| preview::cells(kind, &cx))
}

fn small(kind: &Kind, cx: &Cx<'_>) -> Option<Vec<Value>> {
    let o = cx.o;
    Some(match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ConfigMap") => vec![cx.name(), json!(cx.count("data") + cx.count("binaryData")), cx.age()],
        ("", "Secret") => vec![cx.name(), cx.text("type"), json!(cx.count("data")), cx.age()],
        ("", "ServiceAccount") => vec![cx.name(), cx.age()],
        ("", "Namespace") => vec![cx.name(), cx.text("status.phase"), cx.age()],
        ("", "ResourceQuota") => quota(cx),
        ("", "Node") => node(cx),
        ("", "ComponentStatus") => component(cx),
        ("", "Event") => event(cx, false),
        ("events.k8s.io", "Event") => event(cx, true),
        ("scheduling.k8s.io", "PriorityClass") => {
            vec![cx.name(), cx.int("value"), cx.bool("globalDefault"), cx.age(), cx.text("preemptionPolicy")]
        }
        ("node.k8s.io", "RuntimeClass") => vec![cx.name(), cx.text("handler"), cx.age()],
        ("coordination.k8s.io", "Lease") => vec![cx.name(), cx.text("spec.holderIdentity"), cx.age()],
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => binding(cx),
        ("certificates.k8s.io", "CertificateSigningRequest") => signing_request(cx),
        ("apiregistration.k8s.io", "APIService") => api_service(cx),
        ("admissionregistration.k8s.io", name) => admission(name, cx)?,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => {
            let dangling = cx.condition("Dangling").map_or("?", |c| c.str_at("status"));
            vec![
                cx.name(),
                cx.text("spec.priorityLevelConfiguration.name"),
                cx.int("spec.matchingPrecedence"),
                cx.text_or("spec.distinguisherMethod.type", "<none>"),
                cx.age(),
                json!(dangling),
            ]
        }
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            let value = |path: &str| o.int_at(path).map_or(json!("<none>"), |n| json!(n));
            let shares = o
                .at("spec.limited.nominalConcurrencyShares")
                .or(o.at("spec.exempt.nominalConcurrencyShares"))
                .cloned();
            vec![
                cx.name(),
                cx.text("spec.type"),
                shares.unwrap_or(json!("<none>")),
                value("spec.limited.limitResponse.queuing.queues"),
                value("spec.limited.limitResponse.queuing.handSize"),
                value("spec.limited.limitResponse.queuing.queueLengthLimit"),
                cx.age(),
            ]
        }
        ("resource.k8s.io", "ResourceClaim") => vec![cx.name(), json!(claim_state(o)), cx.age()],
        ("resource.k8s.io", "ResourceClaimTemplate" | "DeviceClass") => vec![cx.name(), cx.age()],
        ("resource.k8s.io", "ResourceSlice") => vec![
            cx.name(),
            cx.text_or("spec.nodeName", "<unset>"),
            cx.text("spec.driver"),
            cx.text("spec.pool.name"),
            cx.age(),
        ],
        _ => return None,
    })
}

fn quota(cx: &Cx<'_>) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    let hard = Labels::new(cx.o.at("status.hard").and_then(Value::as_object)).to_map();
    let used = Labels::new(cx.o.at("status.used").and_then(Value::as_object));
    for (name, hard) in &hard {
        let text = format!("{name}: {}/{hard}", used.get(name).unwrap_or("0"));
        if name.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
    }
    vec![cx.name(), json!(requests.join(", ")), json!(limits.join(", ")), cx.age()]
}

fn node(cx: &Cx<'_>) -> Vec<Value> {
    let o = cx.o;
    let mut status = match cx.condition("Ready") {
        Some(c) if c.str_at("status") == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if o.bool_at("spec.unschedulable") == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = o
        .labels()
        .iter()
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if k == "kubernetes.io/role" => Some(v),
            None => None,
        })
        .filter(|r| !r.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |ty: &str| {
        let found = o.items_at("status.addresses").iter().find(|a| a.str_at("type") == ty);
        json!(found.map_or("<none>", |a| a.str_at("address")))
    };
    let kernel = match (o.str_at("status.nodeInfo.kernelVersion"), o.str_at("status.nodeInfo.architecture")) {
        ("", _) => "<unknown>".to_owned(),
        (k, "") => k.to_owned(),
        (k, a) => format!("{k} ({a})"),
    };
    vec![
        cx.name(),
        json!(status),
        json!(if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }),
        cx.age(),
        cx.text("status.nodeInfo.kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        cx.text_or("status.nodeInfo.osImage", "<unknown>"),
        json!(kernel),
        cx.text_or("status.nodeInfo.containerRuntimeVersion", "<unknown>"),
    ]
}

fn component(cx: &Cx<'_>) -> Vec<Value> {
    let healthy = cx.o.items_at("conditions").iter().find(|c| c.str_at("type") == "Healthy");
    let status = match healthy.map(|c| c.str_at("status")) {
        Some("True") => "Healthy",
        Some("False") => "Unhealthy",
        _ => "Unknown",
    };
    let text = |field: &str| json!(healthy.map_or("", |c| c.str_at(field)));
    vec![cx.name(), json!(status), text("message"), text("error"), cx.age()]
}

/// Events of both groups; the fields have other names in `events.k8s.io`.
fn event(cx: &Cx<'_>, new_group: bool) -> Vec<Value> {
    let o = cx.o;
    let pick = |old: &'static str, new: &'static str| if new_group { new } else { old };
    let first =
        cx.since(pick("firstTimestamp", "deprecatedFirstTimestamp")).or_else(|| cx.since("eventTime"));
    let first = first.unwrap_or_else(|| "<unknown>".into());
    let mut last =
        cx.since(pick("lastTimestamp", "deprecatedLastTimestamp")).unwrap_or_else(|| first.clone());
    let mut count = o.int_at(pick("count", "deprecatedCount")).unwrap_or(0);
    if o.at("series").is_some_and(|s| !s.is_null()) {
        last = cx.since("series.lastObservedTime").unwrap_or_else(|| "<unknown>".into());
        count = o.int_at("series.count").unwrap_or(0);
    } else if count == 0 {
        count = 1;
    }
    let about = o.at(pick("involvedObject", "regarding")).unwrap_or(&Value::Null);
    let kind = about.str_at("kind").to_lowercase();
    let target = match about.str_at("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = o.at(pick("source", "deprecatedSource")).unwrap_or(&Value::Null);
    let component = match source.str_at("component") {
        "" => o.str_at(pick("reportingComponent", "reportingController")),
        c => c,
    };
    let host = match source.str_at("host") {
        "" => o.str_at("reportingInstance"),
        h => h,
    };
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        json!(last),
        cx.text("type"),
        cx.text("reason"),
        json!(target),
        json!(about.str_at("fieldPath")),
        json!(source),
        json!(o.str_at(pick("message", "note")).trim()),
        json!(first),
        json!(count),
        cx.name(),
    ]
}

fn binding(cx: &Cx<'_>) -> Vec<Value> {
    let subjects = |kind: &str| {
        let of_kind = cx.o.items_at("subjects").iter().filter(|s| s.str_at("kind") == kind);
        let names = of_kind.map(|s| match (kind, s.str_at("namespace")) {
            ("ServiceAccount", ns) => format!("{ns}/{}", s.str_at("name")),
            _ => s.str_at("name").to_owned(),
        });
        json!(names.collect::<Vec<_>>().join(", "))
    };
    let role = format!("{}/{}", cx.o.str_at("roleRef.kind"), cx.o.str_at("roleRef.name"));
    vec![cx.name(), json!(role), cx.age(), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}

fn signing_request(cx: &Cx<'_>) -> Vec<Value> {
    let has = |ty: &str| cx.condition(ty).is_some();
    let mut condition = if has("Denied") {
        "Denied".to_owned()
    } else if has("Approved") {
        "Approved".to_owned()
    } else {
        "Pending".to_owned()
    };
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !cx.o.str_at("status.certificate").is_empty() {
        condition.push_str(",Issued");
    }
    let duration = cx.o.int_at("spec.expirationSeconds").map_or("<none>".to_owned(), time::human_duration);
    vec![
        cx.name(),
        cx.age(),
        cx.text_or("spec.signerName", "<none>"),
        cx.text("spec.username"),
        json!(duration),
        json!(condition),
    ]
}

fn api_service(cx: &Cx<'_>) -> Vec<Value> {
    let service = match cx.o.at("spec.service") {
        Some(s) if !s.is_null() => format!("{}/{}", s.str_at("namespace"), s.str_at("name")),
        _ => "Local".to_owned(),
    };
    let available = match cx.condition("Available") {
        Some(c) if c.str_at("status") == "True" => "True".to_owned(),
        Some(c) => format!("{} ({})", c.str_at("status"), c.str_at("reason")),
        None => "Unknown".to_owned(),
    };
    vec![cx.name(), json!(service), json!(available), cx.age()]
}

fn admission(name: &str, cx: &Cx<'_>) -> Option<Vec<Value>> {
    let param_kind = || match cx.o.at("spec.paramKind") {
        Some(p) if !p.is_null() => json!(format!("{}/{}", p.str_at("apiVersion"), p.str_at("kind"))),
        _ => json!("<unset>"),
    };
    Some(match name {
        "ValidatingAdmissionPolicy" => {
            vec![cx.name(), json!(cx.count("spec.validations")), param_kind(), cx.age()]
        }
        "MutatingAdmissionPolicy" => {
            vec![cx.name(), json!(cx.count("spec.mutations")), param_kind(), cx.age()]
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => {
            let reference = match cx.o.at("spec.paramRef") {
                Some(r) if !r.is_null() => match (r.str_at("namespace"), r.str_at("name")) {
                    ("", "") => selector(r.at("selector")),
                    ("", name) => name.to_owned(),
                    (ns, "") => format!("{ns}/{}", selector(r.at("selector"))),
                    (ns, name) => format!("{ns}/{name}"),
                },
                _ => "<unset>".to_owned(),
            };
            vec![cx.name(), cx.text("spec.policyName"), json!(reference), cx.age()]
        }
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            vec![cx.name(), json!(cx.count("webhooks")), cx.age()]
        }
        _ => return None,
    })
}

fn claim_state(o: &Value) -> String {
    let mut states = Vec::new();
    let deleted = o.deletion_timestamp().is_some();
    if deleted {
        states.push("deleted");
    }
    if o.at("status.allocation").is_none_or(Value::is_null) {
        if !deleted {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !o.items_at("status.reservedFor").is_empty() {
            states.push("reserved");
        }
    }
    states.join(",")
}
