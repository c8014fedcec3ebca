//! The row of a pod.

use super::Row;
use crate::object::ObjectExt as _;
use crate::time;
use jiff::Timestamp;
use serde_json::{Value, json};

fn condition_true(pod: &Value, ty: &str) -> bool {
    pod.items_at("status.conditions").iter().any(|c| c.str_at("type") == ty && c.str_at("status") == "True")
}

/// `Reason`, `Signal:N` or `ExitCode:N` of a container that ended.
fn terminated(state: &Value) -> String {
    let t = state.get("terminated").unwrap_or(&Value::Null);
    match (t.str_at("reason"), t.int_at("signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", t.int_at("exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// Restarts of containers, and when the last of them ended before.
#[derive(Default, Clone, Copy)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status.int_at("restartCount").unwrap_or(0);
        let ended = time::from_value(status.at("lastState.terminated.finishedAt"));
        self.last = self.last.max(ended);
    }
}

/// What the init containers say while they are not done; `None` when they are.
fn initializing(
    pod: &Value,
    sidecar: &dyn Fn(&str) -> bool,
    all: &mut Restarts,
    sidecars: &mut Restarts,
    ready: &mut usize,
) -> Option<String> {
    let total = pod.items_at("spec.initContainers").len();
    for (i, status) in pod.items_at("status.initContainerStatuses").iter().enumerate() {
        all.add(status);
        let restartable = sidecar(status.str_at("name"));
        if restartable {
            sidecars.add(status);
        }
        let state = status.get("state").unwrap_or(&Value::Null);
        let ended = state.get("terminated");
        if ended.is_some_and(|t| t.int_at("exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if restartable && status.bool_at("started") == Some(true) {
            *ready += usize::from(status.bool_at("ready") == Some(true));
            continue;
        }
        let waiting = state.str_at("waiting.reason");
        return Some(if ended.is_some() {
            format!("Init:{}", terminated(state))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{total}")
        });
    }
    None
}

/// The row of a pod.
pub fn row(pod: &Value, now: Timestamp) -> Row {
    let sidecar = |name: &str| {
        let mut all = pod.items_at("spec.initContainers").iter();
        all.any(|c| c.str_at("name") == name && c.str_at("restartPolicy") == "Always")
    };
    let phase = pod.str_at("status.phase");
    let mut reason = match pod.str_at("status.reason") {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
    let gated = |c: &Value| c.str_at("type") == "PodScheduled" && c.str_at("reason") == "SchedulingGated";
    if pod.items_at("status.conditions").iter().any(gated) {
        reason = "SchedulingGated".into();
    }
    let (mut restarts, mut sidecars, mut ready) = (Restarts::default(), Restarts::default(), 0);
    let starting = initializing(pod, &sidecar, &mut restarts, &mut sidecars, &mut ready);
    let done = starting.is_none();
    if let Some(text) = starting {
        reason = text;
    }
    if done || condition_true(pod, "Initialized") {
        restarts = sidecars;
        let mut running = false;
        for status in pod.items_at("status.containerStatuses").iter().rev() {
            restarts.add(status);
            let state = status.get("state").unwrap_or(&Value::Null);
            let waiting = state.str_at("waiting.reason");
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if state.get("terminated").is_some() {
                reason = terminated(state);
            } else if status.bool_at("ready") == Some(true) && state.get("running").is_some() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            reason = if condition_true(pod, "Ready") { "Running" } else { "NotReady" }.into();
        }
    }
    let finished = matches!(phase, "Succeeded" | "Failed");
    if pod.deletion_timestamp().is_some() && pod.str_at("status.reason") == "NodeLost" {
        reason = "Unknown".into();
    } else if pod.deletion_timestamp().is_some() && !finished {
        reason = "Terminating".into();
    }
    let sidecar_count =
        pod.items_at("spec.initContainers").iter().filter(|c| c.str_at("restartPolicy") == "Always").count();
    let total = pod.items_at("spec.containers").len() + sidecar_count;
    let restarts = match (restarts.count, restarts.last) {
        (n, Some(at)) if n != 0 => {
            format!("{n} ({} ago)", time::human_duration(time::seconds_between(at, now)))
        }
        (n, _) => n.to_string(),
    };
    let or_none = |s: &str| if s.is_empty() { json!("<none>") } else { json!(s) };
    let ip = match pod.items_at("status.podIPs").first() {
        Some(first) => first.str_at("ip"),
        None => pod.str_at("status.podIP"),
    };
    let cells = vec![
        json!(pod.name()),
        json!(format!("{ready}/{total}")),
        json!(reason),
        json!(restarts),
        json!(time::age(pod.at("metadata.creationTimestamp"), now)),
        or_none(ip),
        or_none(pod.str_at("spec.nodeName")),
        or_none(pod.str_at("status.nominatedNodeName")),
        gates(pod),
    ];
    Row { cells, conditions: completed(phase) }
}

/// How many readiness gates are open, of how many.
fn gates(pod: &Value) -> Value {
    let gates = pod.items_at("spec.readinessGates");
    if gates.is_empty() {
        return json!("<none>");
    }
    let open = gates.iter().filter(|g| condition_true(pod, g.str_at("conditionType"))).count();
    json!(format!("{open}/{}", gates.len()))
}

/// A finished pod's row says so, for clients that hide such rows.
fn completed(phase: &str) -> Vec<Value> {
    let (reason, message) = match phase {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(pod: Value) -> Vec<String> {
        let now = time::parse("2024-01-01T01:00:00Z").expect("time");
        row(&pod, now).cells.into_iter().take(5).filter_map(|c| c.as_str().map(str::to_owned)).collect()
    }

    #[test]
    fn states() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}]});
        let running =
            |name: &str| json!({"name": name, "ready": true, "restartCount": 0, "state": {"running": {}}});
        let meta = json!({"name": "p", "creationTimestamp": "2024-01-01T00:00:00Z"});
        let ended = json!({"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let side =
            json!({"name": "s", "ready": true, "started": true, "restartCount": 1, "state": {"running": {}}});
        let pod = |status: Value| json!({"metadata": meta, "spec": spec, "status": status});
        assert_eq!(
            cells(pod(
                json!({"phase": "Running", "initContainerStatuses": [side, ended], "containerStatuses": [running("a"), running("b")]})
            )),
            ["p", "3/3", "Running", "1", "60m"]
        );
        assert_eq!(
            cells(pod(
                json!({"phase": "Pending", "initContainerStatuses": [side, {"name": "i", "state": {"running": {}}}]})
            ))[2],
            "Init:1/2"
        );
        let restarted = json!({"name": "a", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2024-01-01T00:59:00Z"}}});
        let got = cells(
            json!({"metadata": meta, "spec": {"containers": [{}]}, "status": {"phase": "Running", "containerStatuses": [restarted]}}),
        );
        assert_eq!(got[1..4], ["0/1", "CrashLoopBackOff", "2 (60s ago)"]);
        let gated = pod(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated", "status": "False"}]}),
        );
        assert_eq!(cells(gated)[2], "SchedulingGated");
    }
}
