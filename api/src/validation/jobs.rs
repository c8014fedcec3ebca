//! Validation of jobs and cron jobs.

use super::checks::{Errors, NOT_NEGATIVE, selects};
use super::{cron, pods};
use crate::object::ObjectExt as _;
use crate::status::Path;
use serde_json::{Value, json};

const SPEC: Path<'static> = Path::new("spec");

pub fn job(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let empty = Value::Null;
    let spec = o.get("spec").unwrap_or(&empty);
    job_spec(spec, SPEC, "spec.template", e);
    let labels = o.at("spec.template.metadata.labels");
    let selector = o.at("spec.selector").filter(|s| !s.is_null());
    let generated = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": o.uid()}});
    match selector {
        None => e.required(SPEC.child("selector"), ""),
        Some(s) => {
            e.selector(SPEC.child("selector"), Some(s));
            let manual = o.bool_at("spec.manualSelector") == Some(true);
            let old_style = json!({"matchLabels": {"controller-uid": o.uid()}});
            if !manual && *s != generated && *s != old_style && old.is_none() {
                e.invalid(SPEC.child("selector"), s.clone(), "`selector` not auto-generated");
            }
            if !selects(selector, labels) {
                let at = SPEC.child("template.metadata.labels");
                let value = labels.cloned().unwrap_or(Value::Null);
                e.invalid(at, value, "`selector` does not match template `labels`");
            }
        }
    }
    if let Some(old) = old {
        job_update(o, old, e);
    }
}

/// What a job's update may not change.
fn job_update(o: &Value, old: &Value, e: &mut Errors) {
    let (Some(new), Some(before)) = (o.get("spec"), old.get("spec")) else { return };
    let indexed = o.str_at("spec.completionMode") == "Indexed";
    let elastic = indexed
        && new.at("completions") == new.at("parallelism")
        && before.at("completions") == before.at("parallelism");
    if !elastic {
        e.immutable(SPEC, new, before, "completions");
    }
    e.immutable(SPEC, new, before, "selector");
    // A suspended job that never started may still get its scheduling directives.
    let suspended = before.bool_at("suspend") == Some(true) && old.at("status.startTime").is_none();
    if !suspended {
        e.immutable(SPEC, new, before, "template");
    }
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        if field != "managedBy" || !suspended {
            e.immutable(SPEC, new, before, field);
        }
    }
}

/// A job's spec, of a job or of a cron job's template.
fn job_spec(spec: &Value, at: Path<'_>, template: &str, e: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        e.not_negative(at, spec, field);
    }
    let mode = spec.str_at("completionMode");
    let indexed = mode == "Indexed";
    e.optional_one_of(at.child("completionMode"), mode, &["Indexed", "NonIndexed"]);
    if indexed && spec.int_at("completions").is_none() {
        let detail = format!("when completion mode is {mode}");
        e.required(at.child("completions"), &detail);
    }
    let given = |field: &str| spec.get(field).filter(|v| !v.is_null());
    for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
        if let Some(value) = given(field).filter(|_| !indexed) {
            e.invalid(at.child(field), value.clone(), "requires indexed completion mode");
        }
    }
    if let Some(policy) = given("podFailurePolicy") {
        failure_policy(policy, at.child("podFailurePolicy"), e);
        if spec.str_at("template.spec.restartPolicy") != "Never" {
            let at = at.child("template.spec.restartPolicy");
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            e.invalid(at, spec.str_at("template.spec.restartPolicy"), detail);
        }
    }
    if let Some(policy) = given("successPolicy") {
        if indexed {
            success_policy(policy, at.child("successPolicy"), e);
        } else {
            e.invalid(at.child("successPolicy"), policy.clone(), "requires indexed completion mode");
        }
    }
    let replacement = spec.str_at("podReplacementPolicy");
    if given("podFailurePolicy").is_some() {
        e.optional_one_of(at.child("podReplacementPolicy"), replacement, &["Failed"]);
    } else {
        e.optional_one_of(at.child("podReplacementPolicy"), replacement, &["Failed", "TerminatingOrFailed"]);
    }
    pods::template(spec.get("template"), template, e);
    let policy = spec.str_at("template.spec.restartPolicy");
    let policy_at = at.child("template.spec.restartPolicy");
    match policy {
        "" | "Always" => e.required(policy_at, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" | "Never" => {}
        other => e.unsupported(policy_at, other, &["OnFailure", "Never"]),
    }
}

fn failure_policy(policy: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("rules");
    for (i, rule) in policy.items_at("rules").iter().enumerate() {
        let item = list.index(i);
        let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
        e.one_of(item.child("action"), rule.str_at("action"), &actions);
        let codes = rule.get("onExitCodes").filter(|c| !c.is_null());
        let conditions = rule.items_at("onPodConditions");
        if let Some(codes) = codes {
            let codes_at = item.child("onExitCodes");
            let operator = codes.str_at("operator");
            e.one_of(codes_at.child("operator"), operator, &["In", "NotIn"]);
            let values = codes_at.child("values");
            let mut seen = Vec::new();
            if codes.items_at("values").is_empty() {
                e.invalid(values, json!([]), "at least one value is required");
            }
            for (j, n) in codes.items_at("values").iter().filter_map(Value::as_i64).enumerate() {
                if operator == "In" && n == 0 {
                    e.invalid(values.index(j), 0, "must not be 0 for the In operator");
                }
                if seen.contains(&n) {
                    e.duplicate(values.index(j), n);
                }
                seen.push(n);
            }
        }
        match (codes.is_some(), conditions.is_empty()) {
            (true, false) => {
                e.invalid(
                    item,
                    rule.clone(),
                    "specifying both OnExitCodes and OnPodConditions is not supported",
                );
            }
            (false, true) => {
                e.invalid(item, rule.clone(), "specifying one of OnExitCodes and OnPodConditions is required")
            }
            _ => {}
        }
    }
}

fn success_policy(policy: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("rules");
    let rules = policy.items_at("rules");
    if rules.is_empty() {
        e.required(list, "at least one rules must be specified when the successPolicy is specified");
    }
    for (i, rule) in rules.iter().enumerate() {
        let item = list.index(i);
        if rule.get("succeededCount").is_none() && rule.get("succeededIndexes").is_none() {
            e.required(item, "at least one of succeededCount or succeededIndexes must be specified");
        }
        if let Some(n) = rule.int_at("succeededCount").filter(|n| *n < 0) {
            e.invalid(item.child("succeededCount"), n, NOT_NEGATIVE);
        }
    }
}

pub fn cron_job(o: &Value, e: &mut Errors) {
    if o.name().len() > 52 {
        let at = Path::new("metadata");
        e.invalid(at.child("name"), o.name(), "must be no more than 52 characters");
    }
    let schedule = o.str_at("spec.schedule");
    let at = SPEC.child("schedule");
    if schedule.is_empty() {
        e.required(at, "");
    } else if schedule.contains("TZ") {
        e.invalid(at, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    } else if let Err(why) = cron::check(schedule) {
        e.invalid(at, schedule, why);
    }
    if let Some(zone) = o.at("spec.timeZone").and_then(Value::as_str) {
        let at = SPEC.child("timeZone");
        if zone.is_empty() || zone.eq_ignore_ascii_case("local") {
            e.invalid(
                at,
                zone,
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            );
        } else if jiff::tz::TimeZone::get(zone).is_err() {
            e.invalid(at, zone, format!("unknown time zone {zone}"));
        }
    }
    let empty = Value::Null;
    let spec = o.get("spec").unwrap_or(&empty);
    e.not_negative(SPEC, spec, "startingDeadlineSeconds");
    e.one_of(
        SPEC.child("concurrencyPolicy"),
        spec.str_at("concurrencyPolicy"),
        &["Allow", "Forbid", "Replace"],
    );
    let template = o.at("spec.jobTemplate.spec").unwrap_or(&empty);
    job_spec(template, Path::new("spec.jobTemplate.spec"), "spec.jobTemplate.spec.template", e);
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        e.not_negative(SPEC, spec, field);
    }
}
