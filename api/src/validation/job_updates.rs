//! What an update of a job may change, and what its status may say.

use super::checks::{Errors, IMMUTABLE, NOT_NEGATIVE};
use super::jobs;
use crate::internal;
use crate::object::ObjectExt as _;
use crate::status::{BadValue, Path};
use serde_json::Value;

const SPEC: Path<'static> = Path::new("spec");
const STATUS: Path<'static> = Path::new("status");

/// Fields that stay as they are, and their internal types.
const FIXED: [(&str, &str); 5] = [
    ("completionMode", "*string"),
    ("podFailurePolicy", "*batch.PodFailurePolicy"),
    ("backoffLimitPerIndex", "*int"),
    ("managedBy", "*string"),
    ("successPolicy", "*batch.SuccessPolicy"),
];

pub fn update(o: &Value, old: &Value, e: &mut Errors) {
    let empty = Value::Null;
    let (new, before) = (o.get("spec").unwrap_or(&empty), old.get("spec").unwrap_or(&empty));
    completions(new, before, e);
    e.immutable(SPEC, "*meta.v1.LabelSelector", new, before, "selector");
    template(new, old, before, e);
    for (field, ty) in FIXED {
        e.immutable(SPEC, ty, new, before, field);
    }
}

/// The number of completions is fixed but in an indexed job, where it goes with the parallelism (KEP-3715).
fn completions(new: &Value, before: &Value, e: &mut Errors) {
    if new.str_at("completionMode") != "Indexed" {
        return e.immutable(SPEC, "*int", new, before, "completions");
    }
    let (now, was) = (new.int_at("completions"), before.int_at("completions"));
    if let Some(n) = now.filter(|_| now != was && now != new.int_at("parallelism")) {
        e.invalid(SPEC.child("completions"), n, "can only be modified in tandem with spec.parallelism");
    }
}

/// While a job is suspended and runs nothing, what places its pods and what they ask for may change (KEP-2926, KEP-5440).
fn template(new: &Value, old: &Value, before: &Value, e: &mut Errors) {
    const TYPE: &str = "*core.PodTemplateSpec";
    let suspended = before.bool_at("suspend") == Some(true);
    let idle = old.int_at("status.active").unwrap_or(0) == 0
        && (old.at("status.startTime").is_none() || is(old, "Suspended", "True"));
    if !(suspended && idle) {
        return e.immutable(SPEC, TYPE, new, before, "template");
    }
    let mut was = before.get("template").cloned().unwrap_or(Value::Null);
    let now = new.get("template").cloned().unwrap_or(Value::Null);
    affinity(&mut was, &now);
    for path in [&["spec", "nodeSelector"][..], &["spec", "tolerations"], &["spec", "schedulingGates"]] {
        copy(&mut was, &now, path);
    }
    for list in ["containers", "initContainers"] {
        let wanted = now.items_at(&format!("spec.{list}")).to_vec();
        let Some(Value::Array(items)) = crate::object::get_path_mut(&mut was, &["spec", list]) else {
            continue;
        };
        if items.len() == wanted.len() {
            for (item, want) in items.iter_mut().zip(&wanted) {
                if item.str_at("name") == want.str_at("name") {
                    copy(item, want, &["resources"]);
                }
            }
        }
    }
    let (now, was) = (now.get("spec"), was.get("spec"));
    if !internal::same("core.PodSpec", now, was) {
        let shown = BadValue::internal("core.PodSpec", now);
        e.invalid(SPEC.child("template.spec"), shown, IMMUTABLE);
    }
}

/// Lets the affinity to nodes be what it is now.
fn affinity(was: &mut Value, now: &Value) {
    let node = ["spec", "affinity", "nodeAffinity"];
    let others = ["podAffinity", "podAntiAffinity"];
    let given = |o: &Value| o.at("spec.affinity").is_some_and(|a| !a.is_null());
    match (given(now), given(was)) {
        (false, true) => {
            was.remove_path(&node);
            let affinity = was.at("spec.affinity");
            if others.iter().all(|f| affinity.and_then(|a| a.get(f)).is_none_or(Value::is_null)) {
                was.remove_path(&["spec", "affinity"]);
            }
        }
        (true, false) => {
            was.set_path(&["spec", "affinity"], serde_json::json!({}));
            copy(was, now, &node);
        }
        (true, true) => copy(was, now, &node),
        (false, false) => {}
    }
}

fn copy(to: &mut Value, from: &Value, path: &[&str]) {
    match from.get_path(path) {
        Some(v) => to.set_path(path, v.clone()),
        None => {
            to.remove_path(path);
        }
    }
}

fn is(o: &Value, condition: &str, status: &str) -> bool {
    let matches = |c: &Value| c.str_at("type") == condition && c.str_at("status") == status;
    o.items_at("status.conditions").iter().any(matches)
}

fn has(o: &Value, condition: &str) -> bool {
    is(o, condition, "True")
}

fn finished(o: &Value) -> bool {
    has(o, "Complete") || has(o, "Failed")
}

/// Conditions that exclude each other.
fn conditions(new: &Value, changed: &dyn Fn(&str) -> bool, e: &mut Errors) {
    let (complete, failed) = (has(new, "Complete"), has(new, "Failed"));
    let target = has(new, "FailureTarget");
    let at = STATUS.child("conditions");
    for (wrong, text) in [
        (
            complete && failed && (changed("Complete") || changed("Failed")),
            "cannot set Complete=True and Failed=true conditions",
        ),
        (
            complete && target && (changed("Complete") || changed("FailureTarget")),
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
    ] {
        if wrong {
            e.bare(at, text);
        }
    }
}

/// An update of the status: only what changes is judged (KEP-4368).
pub fn status(new: &Value, old: &Value, e: &mut Errors) {
    let empty = Value::Null;
    let (s, b) = (new.get("status").unwrap_or(&empty), old.get("status").unwrap_or(&empty));
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        if let Some(n) = s.int_at(field).filter(|n| *n < 0) {
            e.invalid(STATUS.child(field), n, NOT_NEGATIVE);
        }
    }
    uncounted(s, e);
    let changed = |condition: &str| has(new, condition) != has(old, condition);
    let differs =
        |field: &str| s.get(field).filter(|v| !v.is_null()) != b.get(field).filter(|v| !v.is_null());
    let number = |o: &Value, field: &str| o.int_at(field).unwrap_or(0);
    let given = |field: &str| s.get(field).filter(|v| !v.is_null());
    let ended = finished(new);
    let ended_now = ended != finished(old);
    conditions(new, &changed, e);
    let (complete, at) = (has(new, "Complete"), STATUS.child("completionTime"));
    let (start, completion) = (s.str_at("startTime"), s.str_at("completionTime"));
    if changed("Complete") || differs("completionTime") {
        if !completion.is_empty() && !complete {
            e.invalid(
                at,
                shown_time(completion),
                "cannot set completionTime when there is no Complete=True condition",
            );
        }
        if completion.is_empty() && complete {
            e.required(at, "completionTime is required for Complete jobs");
        }
    }
    if (differs("startTime") || differs("completionTime"))
        && !start.is_empty()
        && !completion.is_empty()
        && completion < start
    {
        e.invalid(at, shown_time(completion), "must be equal to or after `startTime`");
    }
    let list = STATUS.child("conditions");
    if (changed("Failed") || differs("failedIndexes")) && has(new, "Failed") && !has(new, "FailureTarget") {
        e.bare(list, "cannot set Failed=True condition without the FailureTarget=true condition");
    }
    if (changed("Complete") || changed("SuccessCriteriaMet")) && complete && !has(new, "SuccessCriteriaMet") {
        e.bare(list, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition");
    }
    let active = number(s, "active");
    if (ended_now || active != number(b, "active")) && active > 0 && ended {
        e.invalid(STATUS.child("active"), active, "active>0 is invalid for finished job");
    }
    let nothing_to_do =
        new.bool_at("spec.suspend") == Some(true) && new.int_at("spec.completions") == Some(0);
    if (ended_now || differs("startTime")) && !nothing_to_do && start.is_empty() && ended {
        e.required(STATUS.child("startTime"), "startTime is required for finished job");
    }
    const UNCOUNTED: &str = "*batch.UncountedTerminatedPods";
    let pods = given("uncountedTerminatedPods");
    let some = pods.is_some_and(|p| ["failed", "succeeded"].iter().any(|f| !p.items_at(f).is_empty()));
    let other = !internal::same(UNCOUNTED, pods, b.get("uncountedTerminatedPods"));
    if (ended_now || other) && ended && some {
        let shown = BadValue::internal(UNCOUNTED, pods);
        e.invalid(STATUS.child("uncountedTerminatedPods"), shown, "must be empty for finished job");
    }
    indexes(new, s, [differs("completedIndexes"), differs("failedIndexes")], e);
    let terminating = number(s, "terminating");
    if (ended_now || differs("terminating")) && terminating > 0 && ended {
        e.invalid(STATUS.child("terminating"), terminating, "terminating>0 is invalid for finished job");
    }
    let ready = number(s, "ready");
    if (differs("ready") || active != number(b, "active")) && ready > active {
        e.invalid(STATUS.child("ready"), ready, "cannot set more ready pods than active");
    }
    success(new, e);
    transitions(new, old, s, b, e);
}

fn shown_time(text: &str) -> BadValue {
    Value::from(text).into()
}

/// Pods that ended and are not counted yet: each once.
fn uncounted(s: &Value, e: &mut Errors) {
    let at = STATUS.child("uncountedTerminatedPods");
    let mut seen: Vec<&str> = Vec::new();
    for field in ["succeeded", "failed"] {
        let list = at.child(field);
        let uids = s.items_at(&format!("uncountedTerminatedPods.{field}"));
        for (i, uid) in uids.iter().filter_map(Value::as_str).enumerate() {
            if uid.is_empty() {
                e.invalid(list.index(i), uid, "must not be empty");
            } else if seen.contains(&uid) {
                e.duplicate(list.index(i), uid);
            }
            seen.push(uid);
        }
    }
}

/// The texts that list indexes, `1,3-5`.
fn indexes(new: &Value, s: &Value, [completed_changed, failed_changed]: [bool; 2], e: &mut Errors) {
    let completed = s.str_at("completedIndexes");
    let failed = s.get("failedIndexes").and_then(Value::as_str);
    let (at, failed_at) = (STATUS.child("completedIndexes"), STATUS.child("failedIndexes"));
    let completions = new.int_at("spec.completions");
    let limited = new.int_at("spec.backoffLimitPerIndex").is_some();
    if let Some(n) = completions {
        if completed_changed && let Err(why) = jobs::count_indexes(completed, n) {
            e.invalid(at, completed, format!("error parsing completedIndexes: {why}"));
        }
        if failed_changed
            && limited
            && let Some(text) = failed
            && let Err(why) = jobs::count_indexes(text, n)
        {
            e.invalid(failed_at, text, format!("error parsing failedIndexes: {why}"));
        }
    }
    if completed_changed && !completed.is_empty() && new.str_at("spec.completionMode") != "Indexed" {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        e.invalid(at, completed, detail);
    }
    if failed_changed
        && !limited
        && let Some(text) = failed
    {
        e.invalid(failed_at, text, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    if (completed_changed || failed_changed)
        && let (Some(n), Some(text)) = (completions, failed)
        && let Some(index) = overlap(completed, text, n)
    {
        let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
        e.invalid(failed_at, text, detail);
    }
}

/// The first index that both texts name; intervals that are none are passed over.
fn overlap(completed: &str, failed: &str, completions: i64) -> Option<i64> {
    let read = |text: &str| -> Vec<(i64, i64)> {
        text.split(',').filter_map(|part| jobs::index_interval(part, completions).ok()).collect()
    };
    let (completed, failed) = (read(completed), read(failed));
    let (mut i, mut j) = (0, 0);
    while let (Some(c), Some(f)) = (completed.get(i), failed.get(j)) {
        if c.0 <= f.1 && f.0 <= c.1 {
            return Some(c.0.max(f.0));
        }
        if c.0 <= f.0 { i += 1 } else { j += 1 }
    }
    None
}

/// What goes together with having succeeded.
fn success(new: &Value, e: &mut Errors) {
    let at = STATUS.child("conditions");
    let met = has(new, "SuccessCriteriaMet");
    if met && has(new, "Failed") {
        e.bare(at, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    }
    if met && has(new, "FailureTarget") {
        e.bare(at, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    }
    let policy = new.at("spec.successPolicy").is_some_and(|p| !p.is_null());
    if policy && !met && has(new, "Complete") {
        e.bare(at, "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True");
    }
}

/// What may not be taken back.
fn transitions(new: &Value, old: &Value, s: &Value, b: &Value, e: &mut Errors) {
    let at = STATUS.child("conditions");
    for condition in ["Failed", "Complete", "FailureTarget"] {
        if has(old, condition) && !has(new, condition) {
            e.bare(at, &format!("cannot disable the terminal {condition}=True condition"));
        }
    }
    let number = |o: &Value, field: &str| o.int_at(field).unwrap_or(0);
    let elastic = new.str_at("spec.completionMode") == "Indexed"
        && new.at("spec.completions") == new.at("spec.parallelism");
    for (field, judged) in [("failed", true), ("succeeded", !elastic)] {
        if judged && number(s, field) < number(b, field) {
            let detail = format!("cannot decrease the {field} counter");
            e.invalid(STATUS.child(field), number(s, field), detail);
        }
    }
    let times = |field: &'static str| (s.str_at(field), b.str_at(field));
    let (now, was) = times("completionTime");
    if !now.is_empty() && !was.is_empty() && now != was {
        e.invalid(STATUS.child("completionTime"), shown_time(now), IMMUTABLE);
    }
    let (now, was) = times("startTime");
    let resumed = is(old, "Suspended", "True") && is(new, "Suspended", "False");
    if now != was && !was.is_empty() && !resumed && new.bool_at("spec.suspend") != Some(true) {
        let shown = BadValue::internal("*time", s.get("startTime"));
        e.invalid(STATUS.child("startTime"), shown, "field is immutable for unsuspended job once set");
    }
    let met = has(new, "SuccessCriteriaMet");
    if has(old, "SuccessCriteriaMet") && !met {
        e.bare(at, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if has(old, "Complete") && !has(old, "SuccessCriteriaMet") && met {
        e.bare(at, "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions");
    }
}
