//! Defaults of the kinds that run pods.

use super::{absent, child, each, ensure, set, text};
use crate::object::Object;
use crate::strategy::Feature;
use serde_json::{Value, json};

pub fn deployment(o: &mut Object) {
    super::pod::template_of(o);
    let Some(spec) = ensure(o, "spec") else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = ensure(spec, "strategy") {
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = ensure(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", "25%");
            set(rolling, "maxSurge", "25%");
        }
    }
}

pub fn replica_set(o: &mut Object) {
    super::pod::template_of(o);
    if let Some(spec) = ensure(o, "spec") {
        set(spec, "replicas", 1);
    }
}

/// Labels and selector of a controller without any are its template's labels.
pub fn replication_controller(o: &mut Object) {
    super::pod::template_of(o);
    let Some(spec) = ensure(o, "spec") else { return };
    set(spec, "replicas", 1);
    let labels = spec.get("template").and_then(|t| t.get("metadata")).and_then(|m| m.get("labels")).cloned();
    if let Some(labels) = labels.filter(|l| l.as_object().is_some_and(|l| !l.is_empty())) {
        set(spec, "selector", labels.clone());
        labels_default(o, labels);
    }
}

fn labels_default(o: &mut Object, labels: Value) {
    if let Some(meta) = ensure(o, "metadata")
        && meta.get("labels").and_then(Value::as_object).is_none_or(Object::is_empty)
    {
        meta.insert("labels".into(), labels);
    }
}

pub fn stateful_set(o: &mut Object, features: &[Feature]) {
    super::pod::template_of(o);
    let Some(spec) = ensure(o, "spec") else { return };
    set(spec, "podManagementPolicy", "OrderedReady");
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = ensure(spec, "updateStrategy") {
        let unset = absent(strategy, "type");
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && (unset || !absent(strategy, "rollingUpdate"))
            && let Some(rolling) = ensure(strategy, "rollingUpdate")
        {
            set(rolling, "partition", 0);
            if features.contains(&Feature::MaxUnavailableStatefulSet) {
                set(rolling, "maxUnavailable", 1);
            }
        }
    }
    if let Some(retention) = ensure(spec, "persistentVolumeClaimRetentionPolicy") {
        set(retention, "whenDeleted", "Retain");
        set(retention, "whenScaled", "Retain");
    }
    each(spec, "volumeClaimTemplates", |claim| {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        super::core::persistent_volume_claim(claim);
    });
}

/// The annotation that counts the changes of a DaemonSet's template.
pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub fn daemon_set(o: &mut Object) {
    super::pod::template_of(o);
    if let Some(annotations) = ensure(o, "metadata").and_then(|m| ensure(m, "annotations")) {
        set(annotations, TEMPLATE_GENERATION, "0");
    }
    let Some(spec) = ensure(o, "spec") else { return };
    set(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = ensure(spec, "updateStrategy") {
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = ensure(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", 1);
            set(rolling, "maxSurge", 0);
        }
    }
}

/// A job without completions and parallelism runs once. Its labels are its template's.
/// Conditions of pods that a Job's failure policy looks at are true unless it says otherwise.
fn failure_policy(spec: &mut Object) {
    let Some(policy) = child(spec, "podFailurePolicy") else { return };
    each(policy, "rules", |rule| {
        each(rule, "onPodConditions", |c| {
            if text(c, "status").is_empty() {
                c.insert("status".into(), json!("True"));
            }
        });
    });
}

pub fn job(o: &mut Object) {
    super::pod::template_of(o);
    let Some(spec) = ensure(o, "spec") else { return };
    if absent(spec, "completions") && absent(spec, "parallelism") {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    if absent(spec, "backoffLimit") {
        let per_index = !absent(spec, "backoffLimitPerIndex");
        set(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    }
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    failure_policy(spec);
    let failing = !absent(spec, "podFailurePolicy");
    set(spec, "podReplacementPolicy", if failing { "Failed" } else { "TerminatingOrFailed" });
    // A job that is still to get labels of its own passes all of them on when it has got them.
    let manual = spec.get("manualSelector") == Some(&json!(true));
    let labels = spec.get("template").and_then(|t| t.get("metadata")).and_then(|m| m.get("labels")).cloned();
    let done = |l: &Object| !l.is_empty() && (manual || l.contains_key("controller-uid"));
    if let Some(labels) = labels.filter(|l| l.as_object().is_some_and(done)) {
        labels_default(o, labels);
    }
}

/// Only the pod template within the job template gets defaults; the job gets its own when it is made.
pub fn cron_job(o: &mut Object) {
    let Some(spec) = ensure(o, "spec") else { return };
    set(spec, "concurrencyPolicy", "Allow");
    set(spec, "suspend", false);
    set(spec, "successfulJobsHistoryLimit", 3);
    set(spec, "failedJobsHistoryLimit", 1);
    if let Some(template) = ensure(spec, "jobTemplate") {
        set(template, "metadata", json!({}));
        super::pod::template_of(template);
        if let Some(job) = child(template, "spec") {
            failure_policy(job);
        }
    }
}
