//! The rows of the kinds that run pods, and of what scales and protects them.

use super::cells::Cx;
use crate::kinds::Kind;
use crate::object::{ObjectExt as _, split_api_version};
use crate::time;
use serde_json::{Value, json};

pub fn cells(kind: &Kind, cx: &Cx<'_>) -> Option<Vec<Value>> {
    let template = "spec.template.spec.containers";
    let mut out = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "PodTemplate") => {
            let [names, images] = cx.containers("template.spec.containers");
            return Some(vec![cx.name(), names, images, cx.labels("template.metadata.labels")]);
        }
        ("", "ReplicationController") | ("apps", "ReplicaSet") => vec![
            cx.name(),
            cx.int("spec.replicas"),
            cx.int("status.replicas"),
            cx.int("status.readyReplicas"),
            cx.age(),
        ],
        ("apps", "Deployment") => vec![
            cx.name(),
            ready(cx),
            cx.int("status.updatedReplicas"),
            cx.int("status.availableReplicas"),
            cx.age(),
        ],
        ("apps", "StatefulSet") => {
            let [names, images] = cx.containers(template);
            return Some(vec![cx.name(), ready(cx), cx.age(), names, images]);
        }
        ("apps", "DaemonSet") => vec![
            cx.name(),
            cx.int("status.desiredNumberScheduled"),
            cx.int("status.currentNumberScheduled"),
            cx.int("status.numberReady"),
            cx.int("status.updatedNumberScheduled"),
            cx.int("status.numberAvailable"),
            cx.labels("spec.template.spec.nodeSelector"),
            cx.age(),
        ],
        ("apps", "ControllerRevision") => {
            return Some(vec![cx.name(), controller(cx.o), cx.int("revision"), cx.age()]);
        }
        ("batch", "Job") => job(cx),
        ("batch", "CronJob") => return Some(cron_job(cx)),
        ("autoscaling", "HorizontalPodAutoscaler") => return Some(autoscaler(kind, cx)),
        ("policy", "PodDisruptionBudget") => {
            let value = |path: &str| match cx.o.at(path) {
                Some(Value::String(s)) => json!(s),
                Some(Value::Number(n)) => json!(n.to_string()),
                _ => json!("N/A"),
            };
            return Some(vec![
                cx.name(),
                value("spec.minAvailable"),
                value("spec.maxUnavailable"),
                cx.int("status.disruptionsAllowed"),
                cx.age(),
            ]);
        }
        _ => return None,
    };
    out.extend(cx.containers(template));
    out.push(match kind.kind.as_str() {
        "ReplicationController" => cx.labels("spec.selector"),
        _ => cx.selector("spec.selector"),
    });
    Some(out)
}

fn ready(cx: &Cx<'_>) -> Value {
    let n = |path: &str| cx.o.int_at(path).unwrap_or(0);
    json!(format!("{}/{}", n("status.readyReplicas"), n("spec.replicas")))
}

/// The controller that owns an object, `statefulset.apps/web`.
fn controller(o: &Value) -> Value {
    let Some(owner) = o.controller_ref() else { return json!("<none>") };
    let (group, _) = split_api_version(&owner.api_version);
    let kind = owner.kind.to_lowercase();
    let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
    json!(format!("{kind}/{}", owner.name))
}

fn job(cx: &Cx<'_>) -> Vec<Value> {
    let o = cx.o;
    let succeeded = o.int_at("status.succeeded").unwrap_or(0);
    let completions = match (o.int_at("spec.completions"), o.int_at("spec.parallelism").unwrap_or(0)) {
        (Some(n), _) => format!("{succeeded}/{n}"),
        (None, p) if p > 1 => format!("{succeeded}/1 of {p}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let duration = match time::from_value(o.at("status.startTime")) {
        None => String::new(),
        Some(start) => {
            let end = time::from_value(o.at("status.completionTime")).unwrap_or(cx.now);
            time::human_duration(time::seconds_between(start, end))
        }
    };
    let status = if cx.condition_true("Complete") {
        "Complete"
    } else if cx.condition_true("Failed") {
        "Failed"
    } else if o.deletion_timestamp().is_some() {
        "Terminating"
    } else if cx.condition_true("Suspended") {
        "Suspended"
    } else if cx.condition_true("FailureTarget") {
        "FailureTarget"
    } else if cx.condition_true("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    vec![cx.name(), json!(status), json!(completions), json!(duration), cx.age()]
}

fn cron_job(cx: &Cx<'_>) -> Vec<Value> {
    let suspend = match cx.o.bool_at("spec.suspend") {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let [names, images] = cx.containers("spec.jobTemplate.spec.template.spec.containers");
    vec![
        cx.name(),
        cx.text("spec.schedule"),
        cx.text_or("spec.timeZone", "<none>"),
        json!(suspend),
        json!(cx.count("status.active")),
        json!(cx.since("status.lastScheduleTime").unwrap_or_else(|| "<none>".into())),
        cx.age(),
        names,
        images,
        cx.selector("spec.jobTemplate.spec.selector"),
    ]
}

fn autoscaler(kind: &Kind, cx: &Cx<'_>) -> Vec<Value> {
    let o = cx.o;
    let reference =
        format!("{}/{}", o.str_at("spec.scaleTargetRef.kind"), o.str_at("spec.scaleTargetRef.name"));
    let targets = if kind.version == "v1" { targets_v1(o) } else { targets(o) };
    let minimum = o.int_at("spec.minReplicas").map_or("<unset>".to_owned(), |n| n.to_string());
    vec![
        cx.name(),
        json!(reference),
        json!(targets),
        json!(minimum),
        cx.int("spec.maxReplicas"),
        cx.int("status.currentReplicas"),
        cx.age(),
    ]
}

fn targets_v1(o: &Value) -> String {
    let percent = |path: &str| o.int_at(path).map_or("<unknown>".to_owned(), |n| format!("{n}%"));
    match o.int_at("spec.targetCPUUtilizationPercentage") {
        Some(n) => format!("cpu: {}/{n}%", percent("status.currentCPUUtilizationPercentage")),
        None => "<none>".into(),
    }
}

/// Most metrics that a row shows.
const MAX_METRICS: usize = 2;

fn targets(o: &Value) -> String {
    let specs = o.items_at("spec.metrics");
    if specs.is_empty() {
        return "<none>".into();
    }
    let current = o.items_at("status.currentMetrics");
    let shown: Vec<String> =
        specs.iter().take(MAX_METRICS).enumerate().map(|(i, m)| metric(m, current.get(i))).collect();
    let text = shown.join(", ");
    match specs.len() - shown.len() {
        0 => text,
        more => format!("{text} + {more} more..."),
    }
}

fn metric(spec: &Value, status: Option<&Value>) -> String {
    let unknown = "<unknown>".to_owned();
    let (source, resource) = match spec.str_at("type") {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".into(),
    };
    let target = spec.at(&format!("{source}.target")).unwrap_or(&Value::Null);
    let now = status.and_then(|s| s.at(&format!("{source}.current")));
    let now_text = |field: &str| {
        now.and_then(|n| n.get(field)).and_then(Value::as_str).map_or(unknown.clone(), str::to_owned)
    };
    if resource {
        let name = spec.str_at(&format!("{source}.name"));
        let average = target.str_at("averageValue");
        if !average.is_empty() {
            return format!("{name}: {}/{average}", now_text("averageValue"));
        }
        let percent = |v: Option<&Value>| match v.and_then(|v| v.int_at("averageUtilization")) {
            Some(n) => format!("{n}%"),
            None => unknown.clone(),
        };
        return format!(
            "{name}: {}/{}",
            percent(now),
            match target.int_at("averageUtilization") {
                Some(n) => format!("{n}%"),
                None => "<auto>".into(),
            }
        );
    }
    let average = target.str_at("averageValue");
    match (source, average) {
        ("pods", average) => format!("{}/{average}", now_text("averageValue")),
        (_, "") => format!("{}/{}", now_text("value"), target.str_at("value")),
        (_, average) => format!("{}/{average} (avg)", now_text("averageValue")),
    }
}
