//! What an update of a pod may change, and what its subresources `ephemeralcontainers` and `resize` may.

use super::checks::Errors;
use super::{pods, scheduling};
use crate::internal;
use crate::object::{Labels, ObjectExt as _};
use crate::status::{BadValue, Path};
use crate::strategy::qos_class;
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");

/// The fields of a pod's spec that an update may change, as the refusal lists them.
const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

const MIRROR: &str = "kubernetes.io/config.mirror";

/// The lists of containers that a pod has from its beginning.
const LISTS: [&str; 2] = ["containers", "initContainers"];

/// An update of the pod itself.
pub fn update(o: &Value, stored: &Value, e: &mut Errors) {
    pods::of_pod(o, e);
    annotations(o, stored, e);
    let empty = Value::Null;
    let (new, old) = (o.get("spec").unwrap_or(&empty), stored.get("spec").unwrap_or(&empty));
    if !same_containers(new, old, e) || !deadline(new, old, e) {
        return;
    }
    tolerations(new, old, e);
    gates(new, old, e);
    if new == old {
        return;
    }
    let mut masked = new.clone();
    for list in LISTS {
        let images = old.items_at(list).iter().map(|c| c.get("image"));
        if let Some(Value::Array(items)) = masked.get_mut(list) {
            for (item, image) in items.iter_mut().zip(images) {
                put(item, "image", image);
            }
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        put(&mut masked, field, old.get(field));
    }
    let grace = "terminationGracePeriodSeconds";
    if old.int_at(grace).is_some_and(|n| n < 0) && new.int_at(grace) == Some(1) {
        put(&mut masked, grace, old.get(grace));
    }
    if !old.items_at("schedulingGates").is_empty() {
        gated(&mut masked, old, e);
    }
    if !internal::same("core.PodSpec", Some(&masked), Some(old)) {
        let changed = internal::difference("core.PodSpec", Some(old), Some(&masked));
        e.forbidden(SPEC, &format!("{MUTABLE}\n{changed}"));
    }
}

fn put(o: &mut Value, field: &str, value: Option<&Value>) {
    match value {
        Some(v) => o.set_path(&[field], v.clone()),
        None => {
            o.remove_path(&[field]);
        }
    }
}

/// Annotations that mean something to the node and are fixed with the pod.
pub fn annotations(o: &Value, stored: &Value, e: &mut Errors) {
    const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
    let (new, old) = (o.annotations(), stored.annotations());
    let at = Path::new("metadata.annotations");
    let mut judge = |key: &str, apparmor: &str, mirror: &str| {
        if key.starts_with(APPARMOR) {
            e.forbidden(at.key(key), apparmor);
        }
        if key == MIRROR {
            e.forbidden(at.key(key), mirror);
        }
    };
    for (key, value) in old.iter() {
        if new.get(key) != Some(value) {
            judge(
                key,
                "may not remove or update AppArmor annotations",
                "may not remove or update mirror pod annotation",
            );
        }
    }
    for (key, _) in new.iter().filter(|(key, _)| old.get(key).is_none()) {
        judge(key, "may not add AppArmor annotations", "may not add mirror pod annotation");
    }
}

/// Whether there are as many containers as before.
fn same_containers(new: &Value, old: &Value, e: &mut Errors) -> bool {
    for list in LISTS {
        let path = SPEC.child(list);
        let (a, b) = (new.items_at(list), old.items_at(list));
        if a.len() != b.len() {
            e.forbidden(path, "pod updates may not add or remove containers");
            return false;
        }
        for (i, _) in a.iter().enumerate().filter(|(_, c)| c.str_at("image").is_empty()) {
            e.required(path.index(i).child("image"), "");
        }
    }
    true
}

/// A deadline may come, or come nearer.
fn deadline(new: &Value, old: &Value, e: &mut Errors) -> bool {
    let at = SPEC.child("activeDeadlineSeconds");
    match (new.int_at("activeDeadlineSeconds"), old.int_at("activeDeadlineSeconds")) {
        (Some(a), _) if !(0..=i64::from(i32::MAX)).contains(&a) => {
            e.invalid(at, a, "must be between 0 and 2147483647, inclusive");
            false
        }
        (Some(a), Some(b)) if a > b => {
            e.invalid(at, a, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            e.invalid(at, Value::Null, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

/// Tolerations may be added, and their seconds changed.
fn tolerations(new: &Value, old: &Value, e: &mut Errors) {
    let bare = |t: &Value| {
        let mut t = t.clone();
        t.remove_path(&["tolerationSeconds"]);
        t
    };
    let kept: Vec<Value> = new.items_at("tolerations").iter().map(bare).collect();
    if old.items_at("tolerations").iter().any(|t| !kept.contains(&bare(t))) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        e.forbidden(SPEC.child("tolerations"), detail);
        return;
    }
    scheduling::tolerations(new, SPEC, e);
}

/// Scheduling gates may only go.
fn gates(new: &Value, old: &Value, e: &mut Errors) {
    let list = SPEC.child("schedulingGates");
    let name = |g: &Value| g.str_at("name").to_owned();
    let before: Vec<String> = old.items_at("schedulingGates").iter().map(name).collect();
    for (i, gate) in new.items_at("schedulingGates").iter().map(name).enumerate() {
        if !before.contains(&gate) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{gate}'");
            e.forbidden(list.index(i).child("name"), &detail);
        }
    }
}

/// Pods that are not to be scheduled yet may be narrowed to fewer nodes.
fn gated(masked: &mut Value, old: &Value, e: &mut Errors) {
    if masked.get("nodeSelector") != old.get("nodeSelector") {
        let selector = |s: &Value| s.get("nodeSelector").cloned();
        let (new, before) = (selector(masked), selector(old));
        let now = Labels::new(new.as_ref().and_then(Value::as_object));
        let lost = |(k, v): (&str, &str)| now.get(k) != Some(v);
        if Labels::new(before.as_ref().and_then(Value::as_object)).iter().any(lost) {
            let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            e.invalid(SPEC.child("nodeSelector"), new.unwrap_or(Value::Null), detail);
        }
        put(masked, "nodeSelector", old.get("nodeSelector"));
    }
    let affinity = |s: &Value| s.at("affinity.nodeAffinity").filter(|a| !a.is_null()).cloned();
    let (new, before) = (affinity(masked), affinity(old));
    if internal::same("*core.NodeAffinity", new.as_ref(), before.as_ref()) {
        return;
    }
    narrowed(new.as_ref(), before.as_ref(), e);
    let had = old.get("affinity").is_some_and(|a| !a.is_null());
    let others = ["podAffinity", "podAntiAffinity"];
    match (masked.get("affinity").filter(|a| !a.is_null()), before) {
        (None, None) => {}
        (None, Some(before)) => masked.set_path(&["affinity"], serde_json::json!({"nodeAffinity": before})),
        (Some(now), _) if !had && others.iter().all(|f| now.get(f).is_none_or(Value::is_null)) => {
            masked.remove_path(&["affinity"]);
        }
        (Some(_), Some(before)) => masked.set_path(&["affinity", "nodeAffinity"], before),
        (Some(_), None) => {
            masked.remove_path(&["affinity", "nodeAffinity"]);
        }
    }
}

/// Required terms of node affinity may only get further requirements.
fn narrowed(new: Option<&Value>, old: Option<&Value>, e: &mut Errors) {
    const TERMS: &str = "requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let Some(before) = old.map(|o| o.items_at(TERMS)).filter(|t| !t.is_empty()) else { return };
    let now = new.map_or(&[][..], |n| n.items_at(TERMS));
    let affinity = SPEC.child("affinity.nodeAffinity");
    let at = affinity.child(TERMS);
    if now.len() != before.len() {
        let shown = BadValue::internal("[]core.NodeSelectorTerm", new.and_then(|n| n.at(TERMS)));
        e.invalid(at, shown, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
        return;
    }
    let lists = ["matchExpressions", "matchFields"];
    for (i, (now, before)) in now.iter().zip(before).enumerate() {
        let matched_none = lists.iter().all(|f| before.items_at(f).is_empty());
        let matches = lists.iter().any(|f| !now.items_at(f).is_empty());
        let grew = lists.iter().all(|f| now.items_at(f).starts_with(before.items_at(f)));
        if matched_none && matches || !grew {
            let shown = BadValue::internal("core.NodeSelectorTerm", Some(now));
            e.invalid(at.index(i), shown, "only additions are allowed (no mutations or deletions)");
        }
    }
}

/// Ephemeral containers may be added, and never changed or removed.
pub fn ephemeral(new: &Value, old: &Value, e: &mut Errors) {
    pods::of_pod(new, e);
    annotations(new, old, e);
    if static_pod(old, "static pods do not support ephemeral containers", e) {
        return;
    }
    let at = SPEC.child("ephemeralContainers");
    let now = new.items_at("spec.ephemeralContainers");
    for c in old.items_at("spec.ephemeralContainers") {
        let name = crate::text::quote(c.str_at("name"));
        const TYPE: &str = "core.EphemeralContainer";
        match now.iter().find(|n| n.str_at("name") == c.str_at("name")) {
            None => e.forbidden(at, &format!("existing ephemeral containers {name} may not be removed\n")),
            Some(n) if !internal::same(TYPE, Some(c), Some(n)) => {
                let changed = internal::difference(TYPE, Some(c), Some(n));
                e.forbidden(
                    at,
                    &format!("existing ephemeral containers {name} may not be changed\n{changed}"),
                );
            }
            Some(_) => {}
        }
    }
}

/// Pods that a node runs by itself have a copy in the API that is not to be changed; other errors go unsaid.
fn static_pod(old: &Value, detail: &str, e: &mut Errors) -> bool {
    let is = old.annotations().get(MIRROR).is_some();
    if is {
        e.clear();
        e.forbidden(Path::new(""), detail);
    }
    is
}

/// CPU and memory of containers, and of the pod as a whole, may change while it runs (KEP-1287, KEP-5419).
pub fn resize(new: &Value, old: &Value, e: &mut Errors) {
    pods::of_pod(new, e);
    if static_pod(old, "static pods cannot be resized", e) {
        return;
    }
    if old.str_at("spec.os.name") == "windows" {
        e.clear();
        return e.forbidden(Path::new(""), "windows pods cannot be resized");
    }
    let class = |pod: &Value| match pod.str_at("status.qosClass") {
        "" => qos_class(pod).to_owned(),
        class => class.to_owned(),
    };
    if class(old) != qos_class(new) {
        let shown = new.str_at("status.qosClass");
        e.invalid(SPEC, shown, "Pod QOS Class may not change as a result of resizing");
    }
    let running = |c: &&Value| c.at("state.running").is_some_and(|s| !s.is_null());
    let first = old.items_at("status.containerStatuses").iter().find(running);
    if first.is_some_and(|c| c.get("resources").is_none_or(Value::is_null)) {
        e.forbidden(SPEC, "Pod running on node without support for resize");
    }
    let mut rest = new.get("spec").cloned().unwrap_or(Value::Null);
    let empty = Value::Null;
    let before = old.get("spec").unwrap_or(&empty);
    whole_resources(&mut rest, before, e);
    if !old.items_at("status.nodeAllocatableResourceClaimStatuses").is_empty() {
        e.forbidden(SPEC, "pods with node allocatable resource claims cannot be resized");
    }
    if !in_order(&rest, before, e) {
        return;
    }
    for list in ["initContainers", "containers"] {
        let at = SPEC.child(list);
        for (i, (now, was)) in rest.items_at(list).iter().zip(before.items_at(list)).enumerate() {
            let item = at.index(i);
            for half in ["requests", "limits"] {
                let path = format!("resources.{half}");
                if removed(now.at(&path), was.at(&path)) {
                    let name = half.trim_end_matches('s');
                    let detail = format!("resource {name}s cannot be removed");
                    e.forbidden(item.child("resources").child(half), &detail);
                }
            }
        }
    }
    for list in LISTS {
        let init = list == "initContainers";
        let at = SPEC.child(list);
        let Some(Value::Array(items)) = rest.get_mut(list) else { continue };
        for (i, (now, was)) in items.iter_mut().zip(before.items_at(list)).enumerate() {
            let changed = now != was;
            let container = |v: &Value| internal::same("core.Container", Some(v), Some(was));
            mask(now, was);
            // Claims are compared with none, as Kubernetes does it.
            now.remove_path(&["resources", "claims"]);
            let policies = now.items_at("resizePolicy");
            let restarts = policies.iter().any(|p| p.str_at("restartPolicy") == "RestartContainer");
            match init {
                false if !container(now) => e.forbidden(SPEC, "only cpu and memory resources are mutable"),
                true if !container(now) => e.forbidden(
                    at.index(i),
                    "only cpu and memory resources for init or sidecar containers are mutable",
                ),
                _ => {}
            }
            if init && changed && restarts && now.str_at("restartPolicy") != "Always" {
                e.forbidden(
                    at.index(i),
                    "non-sidecar init containers with a resize policy of RestartContainer cannot be resized",
                );
            }
        }
    }
    if e.is_empty() && !internal::same("core.PodSpec", Some(&rest), Some(before)) {
        e.forbidden(SPEC, "only cpu and memory resources are mutable");
    }
}

/// The resources of the pod as a whole; what may change is put back.
fn whole_resources(new: &mut Value, old: &Value, e: &mut Errors) {
    let halves = ["resources.requests", "resources.limits"];
    let set =
        |s: &Value| halves.iter().any(|h| s.at(h).and_then(Value::as_object).is_some_and(|m| !m.is_empty()));
    if !set(new) && !set(old) {
        return;
    }
    let at = SPEC.child("resources");
    let given = |s: &Value| s.get("resources").is_some_and(|r| !r.is_null());
    if given(old) && !given(new) {
        return e.forbidden(at, "pod-level resources cannot be removed");
    }
    if given(old) {
        for (path, half) in halves.iter().zip(["requests", "limits"]) {
            if removed(new.at(path), old.at(path)) {
                e.forbidden(at.child(half), &format!("pod-level resource {half} cannot be removed"));
            }
        }
    }
    mask(new, old);
    let empty = |o: &Value, f: &str| o.at(f).and_then(Value::as_object).is_none_or(|m| m.is_empty());
    let bare = halves.iter().all(|h| empty(new, h)) && new.items_at("resources.claims").is_empty();
    if !given(old) && bare {
        new.remove_path(&["resources"]);
    }
    if !internal::same("*core.ResourceRequirements", new.get("resources"), old.get("resources")) {
        e.forbidden(SPEC, "only cpu and memory resources are mutable at pod-level");
    }
}

/// Whether a resource that was asked for is asked for no more.
fn removed(new: Option<&Value>, old: Option<&Value>) -> bool {
    let old = old.and_then(Value::as_object);
    let new = new.and_then(Value::as_object);
    old.is_some_and(|old| old.keys().any(|k| new.is_none_or(|n| !n.contains_key(k))))
}

/// Puts the old amounts of CPU and memory back.
fn mask(new: &mut Value, old: &Value) {
    for half in ["requests", "limits"] {
        for name in ["cpu", "memory"] {
            match old.get_path(&["resources", half, name]) {
                Some(amount) => new.set_path(&["resources", half, name], amount.clone()),
                None => {
                    new.remove_path(&["resources", half, name]);
                }
            }
        }
    }
}

/// Whether the containers are the same ones in the same order.
fn in_order(new: &Value, old: &Value, e: &mut Errors) -> bool {
    let mut same = true;
    for list in LISTS {
        let at = SPEC.child(list);
        let (now, was) = (new.items_at(list), old.items_at(list));
        if now.len() != was.len() {
            e.forbidden(at, &format!("{list} may not be added or removed on resize"));
            same = false;
            continue;
        }
        for (i, (now, was)) in now.iter().zip(was).enumerate() {
            if now.str_at("name") != was.str_at("name") {
                let detail = format!("{list} may not be renamed or reordered on resize");
                e.forbidden(at.index(i).child("name"), &detail);
                same = false;
            }
        }
    }
    same
}
