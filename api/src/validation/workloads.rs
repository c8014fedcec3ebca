//! Validation of the kinds that keep pods running.

use super::checks::{Errors, IMMUTABLE, percent, scaled, selector_empty, selector_parses, selects};
use super::{persistent, pods};
use crate::object::{Labels, ObjectExt as _};
use crate::status::{BadValue, FieldError, Path};
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");
const MISMATCH: &str = "`selector` does not match template `labels`";

fn shown_selector(selector: &Value) -> BadValue {
    BadValue::internal("meta.v1.LabelSelector", Some(selector))
}

/// The selector of a workload: there, not empty, well-formed.
fn selector(o: &Value, what: &str, e: &mut Errors) {
    let at = SPEC.child("selector");
    match o.at("spec.selector").filter(|s| !s.is_null()) {
        None => e.required(at, ""),
        Some(selector) => {
            e.selector(at, Some(selector));
            if selector_empty(selector) {
                e.invalid(at, shown_selector(selector), format!("empty selector is invalid for {what}"));
            }
        }
    }
}

/// The template's labels must be selected. The answer is whether the selector was one at all.
fn template(o: &Value, what: &str, e: &mut Errors) {
    let at = SPEC.child("template");
    let wanted = o.at("spec.selector").filter(|s| !s.is_null());
    let labels = o.at("spec.template.metadata.labels");
    match wanted {
        // A daemon set's is told by its fields alone.
        Some(s) if !selector_parses(s) && o.kind() == "DaemonSet" => {}
        Some(s) if !selector_parses(s) => {
            let detail = if o.kind() == "StatefulSet" { "" } else { "invalid label selector" };
            e.invalid(SPEC.child("selector"), shown_selector(s), detail);
            return;
        }
        // An empty selector has been refused already; it would select everything.
        Some(s) if selector_empty(s) => {}
        wanted => {
            if !selects(wanted, labels) {
                let meta = at.child("metadata");
                e.invalid(meta.child("labels"), labels.cloned().unwrap_or(Value::Null), MISMATCH);
            }
        }
    }
    pods::template(o.at("spec.template"), "spec.template", e);
    if let Some(template) = o.at("spec.template").filter(|_| o.kind() == "StatefulSet") {
        // These are judged once more, as in Kubernetes.
        e.label_map(at.child("labels"), template.labels());
        super::meta::annotations(at.child("annotations"), template, e);
    }
    always_restarts(o, what, e);
}

fn always_restarts(o: &Value, what: &str, e: &mut Errors) {
    let at = SPEC.child("template.spec");
    let policy = o.str_at("spec.template.spec.restartPolicy");
    if !matches!(policy, "Always" | "") {
        e.unsupported(at.child("restartPolicy"), policy, &["Always"]);
    }
    if o.at("spec.template.spec.activeDeadlineSeconds").is_some() {
        let detail = format!("activeDeadlineSeconds in {what} is not Supported");
        e.forbidden(at.child("activeDeadlineSeconds"), &detail);
    }
}

fn not_negative(o: &Value, fields: &[&str], e: &mut Errors) {
    if let Some(spec) = o.get("spec") {
        for field in fields {
            e.not_negative(SPEC, spec, field);
        }
    }
}

pub fn replication_controller(o: &Value, e: &mut Errors) {
    not_negative(o, &["minReadySeconds"], e);
    let selector = Labels::new(o.at("spec.selector").and_then(Value::as_object));
    if selector.is_empty() {
        e.required(SPEC.child("selector"), "");
    }
    not_negative(o, &["replicas"], e);
    let at = SPEC.child("template");
    if o.at("spec.template").is_none_or(Value::is_null)
        || o.at("spec.template.spec.containers").is_none() && o.at("spec.template.metadata.labels").is_none()
    {
        e.required(at, "");
        return;
    }
    let labels = Labels::new(o.at("spec.template.metadata.labels").and_then(Value::as_object));
    if !selector.is_empty() && selector.iter().any(|(k, v)| labels.get(k) != Some(v)) {
        let meta = at.child("metadata");
        let value = o.at("spec.template.metadata.labels").cloned().unwrap_or(Value::Null);
        e.invalid(meta.child("labels"), value, MISMATCH);
    }
    pods::template(o.at("spec.template"), "spec.template", e);
    always_restarts(o, "ReplicationController", e);
}

pub fn replica_set(o: &Value, old: Option<&Value>, e: &mut Errors) {
    not_negative(o, &["replicas", "minReadySeconds"], e);
    selector(o, "deployment", e);
    template(o, "ReplicaSet", e);
    immutable_selector(o, old, e);
}

fn immutable_selector(o: &Value, old: Option<&Value>, e: &mut Errors) {
    if let (Some(new), Some(old)) = (o.get("spec"), old.and_then(|o| o.get("spec"))) {
        e.immutable(SPEC, "*meta.v1.LabelSelector", new, old, "selector");
    }
}

pub fn deployment(o: &Value, old: Option<&Value>, e: &mut Errors) {
    not_negative(o, &["replicas"], e);
    selector(o, "deployment", e);
    template(o, "ReplicaSet", e);
    deployment_strategy(o, e);
    not_negative(o, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], e);
    let deadline = o.int_at("spec.progressDeadlineSeconds");
    if let Some(n) = deadline.filter(|n| *n <= o.int_at("spec.minReadySeconds").unwrap_or(0)) {
        e.invalid(SPEC.child("progressDeadlineSeconds"), n, "must be greater than minReadySeconds");
    }
    immutable_selector(o, old, e);
}

fn deployment_strategy(o: &Value, e: &mut Errors) {
    let at = SPEC.child("strategy");
    let rolling = o.at("spec.strategy.rollingUpdate").filter(|r| !r.is_null());
    match o.str_at("spec.strategy.type") {
        "Recreate" => {
            if rolling.is_some() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                e.forbidden(at.child("rollingUpdate"), detail);
            }
        }
        "RollingUpdate" => match rolling {
            None => e.required(at.child("rollingUpdate"), "this should be defaulted and never be nil"),
            Some(rolling) => rolling_deployment(rolling, at.child("rollingUpdate"), e),
        },
        _ => {
            let shown = BadValue::internal("apps.DeploymentStrategy", o.at("spec.strategy"));
            e.push(FieldError::not_supported(at, shown, &["Recreate", "RollingUpdate"]));
        }
    }
}

fn rolling_deployment(rolling: &Value, at: Path<'_>, e: &mut Errors) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    e.int_or_percent(at.child("maxUnavailable"), unavailable);
    e.int_or_percent(at.child("maxSurge"), surge);
    if scaled(unavailable) == Some(0) && scaled(surge) == Some(0) {
        let value = unavailable.cloned().unwrap_or(Value::Null);
        e.invalid(at.child("maxUnavailable"), value, "may not be 0 when `maxSurge` is 0");
    }
    over_hundred(at.child("maxUnavailable"), unavailable, e);
}

fn over_hundred(at: Path<'_>, value: Option<&Value>, e: &mut Errors) {
    if let Some(Value::String(s)) = value
        && percent(s).is_some_and(|n| n > 100)
    {
        e.invalid(at, s.as_str(), "must not be greater than 100%");
    }
}

pub fn daemon_set(o: &Value, old: Option<&Value>, e: &mut Errors) {
    immutable_selector(o, old, e);
    let at = SPEC.child("selector");
    if let Some(s) = o.at("spec.selector").filter(|s| !s.is_null()) {
        e.selector(at, Some(s));
        if selector_empty(s) {
            e.invalid(at, shown_selector(s), "empty selector is invalid for daemonset");
        }
    }
    template(o, "DaemonSet", e);
    not_negative(o, &["minReadySeconds"], e);
    let at = SPEC.child("updateStrategy");
    match o.str_at("spec.updateStrategy.type") {
        "OnDelete" => {}
        "RollingUpdate" => match o.at("spec.updateStrategy.rollingUpdate").filter(|r| !r.is_null()) {
            None => e.required(at.child("rollingUpdate"), ""),
            Some(rolling) => rolling_daemon(rolling, at.child("rollingUpdate"), e),
        },
        _ => {
            let shown = BadValue::internal("apps.DaemonSetUpdateStrategy", o.at("spec.updateStrategy"));
            e.push(FieldError::not_supported(at, shown, &["RollingUpdate", "OnDelete"]));
        }
    }
    not_negative(o, &["revisionHistoryLimit"], e);
}

fn rolling_daemon(rolling: &Value, at: Path<'_>, e: &mut Errors) {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    e.int_or_percent(at.child("maxUnavailable"), unavailable);
    e.int_or_percent(at.child("maxSurge"), surge);
    let (u, s) = (scaled(unavailable).unwrap_or(0), scaled(surge).unwrap_or(0));
    match (u != 0, s != 0) {
        (true, true) => {
            let value = surge.cloned().unwrap_or(Value::Null);
            e.invalid(at.child("maxSurge"), value, "may not be set when maxUnavailable is non-zero");
        }
        (false, false) => e.required(at.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
    over_hundred(at.child("maxUnavailable"), unavailable, e);
    over_hundred(at.child("maxSurge"), surge, e);
}

pub fn stateful_set(o: &Value, old: Option<&Value>, e: &mut Errors) {
    match o.str_at("spec.podManagementPolicy") {
        "" => e.required(SPEC.child("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => e.invalid(SPEC.child("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'"),
    }
    let at = SPEC.child("updateStrategy");
    let rolling = o.at("spec.updateStrategy.rollingUpdate").filter(|r| !r.is_null());
    match o.str_at("spec.updateStrategy.type") {
        "" => e.required(at, ""),
        "OnDelete" => {
            if rolling.is_some() {
                let detail = "only allowed for updateStrategy 'RollingUpdate'";
                e.invalid(
                    at.child("rollingUpdate"),
                    BadValue::internal("*apps.RollingUpdateStatefulSetStrategy", rolling),
                    detail,
                );
            }
        }
        "RollingUpdate" => {
            if let Some(rolling) = rolling {
                let at = at.child("rollingUpdate");
                e.not_negative(at, rolling, "partition");
                let (at, value) = (at.child("maxUnavailable"), rolling.get("maxUnavailable"));
                e.int_or_percent(at, value);
                if let Some(value) = value.filter(|value| scaled(Some(value)) == Some(0)) {
                    e.invalid(at, value.clone(), "cannot be 0");
                }
                over_hundred(at, value, e);
            }
        }
        _ => {
            let shown = BadValue::internal("apps.StatefulSetUpdateStrategy", o.at("spec.updateStrategy"));
            e.invalid(at, shown, "must be 'RollingUpdate' or 'OnDelete'");
        }
    }
    let at = SPEC.child("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        let value = o.at("spec.persistentVolumeClaimRetentionPolicy").map_or("", |p| p.str_at(field));
        e.optional_one_of(at.child(field), value, &["Retain", "Delete"]);
    }
    let list = SPEC.child("volumeClaimTemplates");
    // They never change, so what was accepted once is not judged again.
    let claims = if old.is_none() { o.items_at("spec.volumeClaimTemplates") } else { &[] };
    for (i, claim) in claims.iter().enumerate() {
        let item = list.index(i);
        persistent::claim_spec(claim.get("spec").unwrap_or(&Value::Null), item.child("spec"), e);
    }
    not_negative(o, &["replicas", "minReadySeconds"], e);
    if let Some(n) = o.int_at("spec.ordinals.start").filter(|n| *n < 0) {
        e.invalid(SPEC.child("ordinals.start"), n, super::checks::NOT_NEGATIVE);
    }
    let service = o.str_at("spec.serviceName");
    if !service.is_empty() && old.is_none_or(|old| old.str_at("spec.serviceName") == service) && old.is_none()
    {
        e.all(SPEC.child("serviceName"), service, crate::names::dns1123_label(service));
    }
    selector(o, "statefulset", e);
    template(&with_claims(o), "StatefulSet", e);
    if let Some(old) = old {
        let mutable = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ];
        if !same_but(o.get("spec"), old.get("spec"), &mutable) {
            e.forbidden(SPEC, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
        }
    }
}

/// A set whose template has the volumes that its claim templates will add, and not the names that its pods will get.
fn with_claims(o: &Value) -> Value {
    let mut set = o.clone();
    for field in ["hostname", "subdomain"] {
        set.remove_path(&["spec", "template", "spec", field]);
    }
    let claims: Vec<&str> = o.items_at("spec.volumeClaimTemplates").iter().map(|c| c.name()).collect();
    if claims.is_empty() || o.at("spec.template.spec").is_none() {
        return set;
    }
    let volumes = claims
        .iter()
        .map(|name| serde_json::json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let own = o.items_at("spec.template.spec.volumes").iter();
    let own = own.filter(|v| !claims.contains(&v.str_at("name"))).cloned();
    let all: Vec<Value> = volumes.chain(own).collect();
    set.set_path(&["spec", "template", "spec", "volumes"], all.into());
    set
}

/// Whether two objects are equal but for some fields.
pub fn same_but(new: Option<&Value>, old: Option<&Value>, but: &[&str]) -> bool {
    let (Some(new), Some(old)) = (new.and_then(Value::as_object), old.and_then(Value::as_object)) else {
        return new == old;
    };
    let differs = |k: &String| !but.contains(&k.as_str()) && new.get(k) != old.get(k);
    !new.keys().chain(old.keys()).any(differs)
}

pub fn controller_revision(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let root = Path::ROOT;
    e.not_negative(root, o, "revision");
    if old.is_none() {
        match o.get("data") {
            None | Some(Value::Null) => e.required(root.child("data"), "data is mandatory"),
            Some(Value::Object(_)) => {}
            Some(_) => e.required(root.child("data"), "data must be a valid JSON object"),
        }
    }
    if let Some(old) = old
        && o.get("data") != old.get("data")
    {
        e.invalid(root.child("data"), o.get("data").cloned().unwrap_or(Value::Null), IMMUTABLE);
    }
}
