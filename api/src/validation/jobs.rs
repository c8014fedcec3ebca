//! Validation of jobs and cron jobs.

use super::checks::{Errors, NOT_NEGATIVE, selector_parses, selects};
use super::{cron, job_updates, pods};
use crate::object::{Labels, ObjectExt as _};
use crate::status::{BadValue, FieldError, Path};
use serde_json::{Value, json};

const SPEC: Path<'static> = Path::new("spec");

/// A job, `old` being the stored one of an update.
pub fn job(o: &Value, old: Option<&Value>, e: &mut Errors) {
    let empty = Value::Null;
    let spec = o.get("spec").unwrap_or(&empty);
    generated_selector(o, spec, old, e);
    whole_spec(spec, e);
    if let Some(old) = old {
        // Kubernetes judges the job by itself, and its spec once more as an update.
        whole_spec(spec, e);
        job_updates::update(o, old, e);
    }
}

/// A job's spec with its selector.
fn whole_spec(spec: &Value, e: &mut Errors) {
    job_spec(spec, SPEC, "spec.template", e);
    let selector = spec.get("selector").filter(|s| !s.is_null());
    match selector {
        None => e.required(SPEC.child("selector"), ""),
        Some(s) => e.selector(SPEC.child("selector"), Some(s)),
    }
    let labels = spec.at("template.metadata.labels");
    if selector.is_none_or(selector_parses) && (selector.is_none() || !selects(selector, labels)) {
        let shown = BadValue::internal("map:string", labels);
        e.invalid(
            SPEC.child("template.metadata.labels"),
            shown,
            "`selector` does not match template `labels`",
        );
    }
}

/// Labels and selector that tell a job's pods from others', unless the user takes care of that.
fn generated_selector(o: &Value, spec: &Value, old: Option<&Value>, e: &mut Errors) {
    let selector = spec.get("selector").filter(|s| !s.is_null());
    if spec.bool_at("manualSelector") == Some(true) || selector.is_none() {
        return;
    }
    let labels =
        |o: &Value| Labels::new(o.at("spec.template.metadata.labels").and_then(Value::as_object)).to_map();
    let own = labels(o);
    const PREFIX: &str = "batch.kubernetes.io/";
    let mut wanted = vec![("controller-uid".to_owned(), o.uid()), ("job-name".to_owned(), o.name())];
    let had = |old: &Value| {
        let old = labels(old);
        ["controller-uid", "job-name"].iter().all(|k| old.contains_key(&format!("{PREFIX}{k}")))
    };
    if old.is_none_or(had) {
        wanted.push((format!("{PREFIX}controller-uid"), o.uid()));
        wanted.push((format!("{PREFIX}job-name"), o.name()));
    }
    let at = SPEC.child("template.metadata.labels");
    for (key, value) in &wanted {
        let detail = format!("must be '{value}'");
        match own.get(key) {
            None => e.required(at.key(key), &detail),
            Some(v) if v != value => {
                let shown = BadValue::internal("map:string", o.at("spec.template.metadata.labels"));
                e.invalid(at.key(key), shown, detail);
            }
            Some(_) => {}
        }
    }
    let generated: Value = wanted.iter().map(|(k, v)| (k.clone(), Value::from(*v))).collect();
    if selector.is_some_and(|s| selector_parses(s) && !selects(Some(s), Some(&generated))) {
        let shown = BadValue::internal("*meta.v1.LabelSelector", selector);
        e.invalid(SPEC.child("selector"), shown, "`selector` not auto-generated");
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
    let given = |field: &str| spec.get(field).filter(|v| !v.is_null());
    if given("maxFailedIndexes").is_some() && given("backoffLimitPerIndex").is_none() {
        e.required(at.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if let Some(manager) = spec.get("managedBy").and_then(Value::as_str) {
        if manager.is_empty() {
            e.required(at.child("managedBy"), "");
        } else {
            super::networking::domain_path(manager, at.child("managedBy"), e);
        }
        if manager.len() > 63 {
            e.push(crate::status::FieldError::too_long(at.child("managedBy"), 63));
        }
    }
    let mode = spec.str_at("completionMode");
    let indexed = mode == "Indexed";
    e.known(at.child("completionMode"), spec.get("completionMode"), &["NonIndexed", "Indexed"]);
    if indexed {
        indexed_job(spec, at, e);
    }
    for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
        if let Some(value) =
            given(field).filter(|_| given("completionMode").is_none_or(|m| m == "NonIndexed"))
        {
            e.invalid(at.child(field), value.clone(), "requires indexed completion mode");
        }
    }
    if let Some(policy) = given("podFailurePolicy") {
        failure_policy(spec, policy, at.child("podFailurePolicy"), e);
    }
    if let Some(policy) = given("successPolicy") {
        if indexed {
            success_policy(spec, policy, at.child("successPolicy"), e);
        } else {
            e.invalid(
                at.child("successPolicy"),
                BadValue::internal("batch.SuccessPolicy", Some(policy)),
                "requires indexed completion mode",
            );
        }
    }
    let replacement = spec.get("podReplacementPolicy");
    if given("podFailurePolicy").is_some() {
        e.known(at.child("podReplacementPolicy"), replacement, &["Failed"]);
    } else {
        e.known(at.child("podReplacementPolicy"), replacement, &["Failed", "TerminatingOrFailed"]);
    }
    pods::template(spec.get("template"), template, e);
    let policy = spec.str_at("template.spec.restartPolicy");
    let policy_at = at.child("template.spec.restartPolicy");
    match policy {
        "" | "Always" => e.required(policy_at, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if given("podFailurePolicy").is_some() => {
            e.invalid(policy_at, policy, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "OnFailure" | "Never" => {}
        other => e.unsupported(policy_at, other, &["OnFailure", "Never"]),
    }
}

/// Indexes that a job may have at once.
const MAX_PARALLEL: i64 = 100_000;
/// Above so many completions a limit per index is kept small (KEP-3850).
const MANY: i64 = 100_000;
const MAX_PARALLEL_OF_MANY: i64 = 10_000;

/// The bounds of a job whose pods have indexes.
fn indexed_job(spec: &Value, at: Path<'_>, e: &mut Errors) {
    let of = |field: &str| spec.int_at(field);
    let (completions, parallelism) = (of("completions"), of("parallelism"));
    if completions.is_none() {
        e.required(at.child("completions"), "when completion mode is Indexed");
    }
    if let Some(n) = parallelism.filter(|n| *n > MAX_PARALLEL) {
        let detail = format!("must be less than or equal to {MAX_PARALLEL} when completion mode is Indexed");
        e.invalid(at.child("parallelism"), n, detail);
    }
    let failed = of("maxFailedIndexes");
    if let Some(n) = failed {
        if completions.is_some_and(|c| n > c) {
            e.invalid(at.child("maxFailedIndexes"), n, "must be less than or equal to completions");
        }
        if n > MAX_PARALLEL {
            e.invalid(
                at.child("maxFailedIndexes"),
                n,
                format!("must be less than or equal to {MAX_PARALLEL}"),
            );
        }
    }
    if completions.is_none_or(|c| c <= MANY) || of("backoffLimitPerIndex").is_none() {
        return;
    }
    if failed.is_none() {
        let detail = format!("must be specified when completions is above {MANY}");
        e.required(at.child("maxFailedIndexes"), &detail);
    }
    for (field, n) in [("parallelism", parallelism), ("maxFailedIndexes", failed)] {
        if let Some(n) = n.filter(|n| *n > MAX_PARALLEL_OF_MANY) {
            let detail = format!(
                "must be less than or equal to {MAX_PARALLEL_OF_MANY} when completions are above {MANY} and used with backoff limit per index"
            );
            e.invalid(at.child(field), n, detail);
        }
    }
}

fn failure_policy(spec: &Value, policy: &Value, at: Path<'_>, e: &mut Errors) {
    let list = at.child("rules");
    let count = policy.items_at("rules").len();
    if count > 20 {
        e.push(crate::status::FieldError::too_many(list, count, 20));
    }
    let containers = ["template.spec.containers", "template.spec.initContainers"];
    let names: Vec<&str> =
        containers.iter().flat_map(|l| spec.items_at(l)).map(|c| c.str_at("name")).collect();
    for (i, rule) in policy.items_at("rules").iter().enumerate() {
        let item = list.index(i);
        let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
        match rule.str_at("action") {
            "" => e.required(
                item.child("action"),
                "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            ),
            "FailIndex" if spec.int_at("backoffLimitPerIndex").is_none() => {
                e.invalid(item.child("action"), "FailIndex", "requires the backoffLimitPerIndex to be set");
            }
            action => e.one_of(item.child("action"), action, &actions),
        }
        let codes = rule.get("onExitCodes").filter(|c| !c.is_null());
        let conditions = rule.items_at("onPodConditions");
        if let Some(codes) = codes {
            let codes_at = item.child("onExitCodes");
            let operator = codes.str_at("operator");
            match operator {
                "" => e.required(codes_at.child("operator"), "valid values: [\"In\" \"NotIn\"]"),
                operator => e.one_of(codes_at.child("operator"), operator, &["In", "NotIn"]),
            }
            if let Some(name) =
                codes.get("containerName").and_then(Value::as_str).filter(|n| !names.contains(n))
            {
                let detail = "must be one of the container or initContainer names in the pod template";
                e.invalid(codes_at.child("containerName"), name, detail);
            }
            let values = codes_at.child("values");
            let numbers: Vec<i64> = codes.items_at("values").iter().filter_map(Value::as_i64).collect();
            if numbers.len() > 255 {
                e.push(crate::status::FieldError::too_many(values, numbers.len(), 255));
            }
            let mut seen = Vec::new();
            if codes.items_at("values").is_empty() {
                e.invalid(
                    values,
                    BadValue::internal("[]int", codes.get("values")),
                    "at least one value is required",
                );
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
            if !numbers.is_sorted() {
                e.invalid(values, json!(numbers), "must be ordered");
            }
        }
        let list = item.child("onPodConditions");
        if conditions.len() > 20 {
            e.push(crate::status::FieldError::too_many(list, conditions.len(), 20));
        }
        for (j, condition) in conditions.iter().enumerate() {
            let at = list.index(j);
            let ty = condition.str_at("type");
            e.all(at.child("type"), ty, crate::names::qualified_name(ty));
            match condition.str_at("status") {
                "" => e.required(at.child("status"), "valid values: [\"False\" \"True\" \"Unknown\"]"),
                status => e.one_of(at.child("status"), status, &["False", "True", "Unknown"]),
            }
        }
        match (codes.is_some(), conditions.is_empty()) {
            (true, false) => {
                e.bare(item, "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (false, true) => {
                e.bare(item, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
    }
}

/// How many indexes `1,3-5` names.
pub fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut last) = (0, None);
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let (from, to) = index_interval(interval, completions)?;
        if let Some(last) = last.filter(|last| from <= *last) {
            return Err(format!("non-increasing order, previous: {last}, current: {from}"));
        }
        total += to - from + 1;
        last = Some(to);
    }
    Ok(total)
}

/// The first and the last index of `1` or `3-5`.
pub fn index_interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let parse = |s: &str| {
        let n: i64 = s.parse().map_err(|_| format!("cannot convert string to integer for index: {s:?}"))?;
        if n < completions { Ok(n) } else { Err(format!("too large index: {s:?}")) }
    };
    match text.split('-').collect::<Vec<&str>>().as_slice() {
        [one] => parse(one).map(|n| (n, n)),
        [from, to] => match (parse(from)?, parse(to)?) {
            (from, to) if from >= to => Err(format!("non-increasing order, previous: {from}, current: {to}")),
            bounds => Ok(bounds),
        },
        _ => Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

fn success_policy(spec: &Value, policy: &Value, at: Path<'_>, e: &mut Errors) {
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
        let completions = spec.int_at("completions").unwrap_or(0);
        let mut most = None;
        if let Some(indexes) = rule.get("succeededIndexes").and_then(Value::as_str) {
            match count_indexes(indexes, completions) {
                Ok(total) => most = Some(total),
                Err(why) => {
                    most = Some(0);
                    let detail = format!("error parsing succeededIndexes: {why}");
                    e.invalid(item.child("succeededIndexes"), indexes, detail);
                }
            }
        }
        if let Some(n) = rule.int_at("succeededCount") {
            let at = item.child("succeededCount");
            if n < 0 {
                e.invalid(at, n, NOT_NEGATIVE);
            }
            if n > completions {
                let detail = format!(
                    "must be less than or equal to {completions} (the number of specified completions)"
                );
                e.invalid(at, n, detail);
            }
            if let Some(most) = most.filter(|most| n > *most) {
                let detail = format!(
                    "must be less than or equal to {most} (the number of indexes in the specified succeededIndexes field)"
                );
                e.invalid(at, n, detail);
            }
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
        if zone.is_empty() {
            e.invalid(at, zone, "timeZone must be nil or non-empty string");
        } else if zone.eq_ignore_ascii_case("local") {
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
    let job_at = Path::new("spec.jobTemplate.spec");
    if let Some(selector) = template.get("selector").filter(|s| !s.is_null()) {
        let shown = BadValue::internal("meta.v1.LabelSelector", Some(selector));
        e.invalid(job_at.child("selector"), shown, "`selector` will be auto-generated");
    }
    if template.bool_at("manualSelector") == Some(true) {
        e.push(FieldError::not_supported(job_at.child("manualSelector"), true, &["nil", "false"]));
    }
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        e.not_negative(SPEC, spec, field);
    }
}
