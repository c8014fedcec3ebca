//! Pod conditions and quality of service.

use super::gate;
use super::model::{Input, Observed};
use super::spec::{Role, containers};
use super::status::whole_seconds;
use super::view::{Verdict, View};
use crate::resources::{milli, units};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

struct Draft {
    type_: &'static str,
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Draft {
    fn yes(type_: &'static str) -> Draft {
        Draft { type_, status: true, reason: None, message: None }
    }

    fn completed(type_: &'static str, status: bool) -> Draft {
        Draft { type_, status, reason: Some("PodCompleted"), message: None }
    }

    fn no(type_: &'static str, reason: &'static str, message: Option<String>) -> Draft {
        Draft { type_, status: false, reason: Some(reason), message }
    }
}

/// The pod's conditions: the kubelet's own, computed; every other one as published.
pub(super) fn build(view: &View<'_>, status: &PodStatus, observed: &Observed) -> Vec<PodCondition> {
    let Input { pod, memory, now, .. } = view.input;
    let containers_ready = containers_ready(view, status);
    let ready = ready(view, status, &containers_ready);
    let host = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    let sandbox_up =
        view.ending.is_none() && observed.sandbox().is_some_and(|s| s.ready && (host || !s.ips.is_empty()));
    let drafts = [
        Draft { type_: "PodReadyToStartContainers", status: sandbox_up, reason: None, message: None },
        initialized(view, status),
        ready,
        containers_ready,
    ];
    let old = memory.status.conditions.as_deref().unwrap_or_default();
    let mut list: Vec<PodCondition> = drafts
        .into_iter()
        .map(|d| {
            let value = if d.status { "True" } else { "False" };
            let before = old.iter().find(|c| c.type_ == d.type_ && c.status == value);
            PodCondition {
                type_: d.type_.into(),
                status: value.into(),
                reason: d.reason.map(Into::into),
                message: d.message,
                last_transition_time: before
                    .and_then(|c| c.last_transition_time.clone())
                    .or(Some(Time(whole_seconds(now)))),
                observed_generation: pod.metadata.generation,
                last_probe_time: None,
            }
        })
        .collect();
    let scheduled = PodCondition {
        type_: "PodScheduled".into(),
        status: "True".into(),
        last_transition_time: Some(Time(whole_seconds(now))),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    };
    let others: Vec<_> = old.iter().filter(|o| !list.iter().any(|c| c.type_ == o.type_)).cloned().collect();
    list.extend(others);
    if !list.iter().any(|c| c.type_ == "PodScheduled") {
        list.push(scheduled);
    }
    list
}

fn is(status: &PodStatus, phase: &str) -> bool {
    status.phase.as_deref() == Some(phase)
}

fn initialized(view: &View<'_>, status: &PodStatus) -> Draft {
    let past = view.initialized
        || view.seen.iter().any(|s| s.spec.role == Role::Main && s.last.is_some())
        || view
            .seen
            .iter()
            .any(|s| s.spec.role == Role::Main && s.base.is_some_and(|b| b.container_id.is_some()));
    if is(status, "Succeeded") {
        return Draft::completed("Initialized", true);
    }
    if past {
        return Draft::yes("Initialized");
    }
    let open: Vec<&str> = view
        .seen
        .iter()
        .filter(|s| match s.spec.role {
            Role::Init => s.verdict != Verdict::Done(0),
            Role::Sidecar => !view.started(s),
            _ => false,
        })
        .map(|s| s.spec.name())
        .collect();
    let message = format!("containers with incomplete status: [{}]", open.join(" "));
    Draft::no("Initialized", "ContainersNotInitialized", Some(message))
}

fn containers_ready(view: &View<'_>, status: &PodStatus) -> Draft {
    const TYPE: &str = "ContainersReady";
    if is(status, "Succeeded") {
        return Draft::completed(TYPE, false);
    }
    if is(status, "Failed") {
        return Draft::no(TYPE, "PodFailed", None);
    }
    let unready: Vec<&str> = view
        .seen
        .iter()
        .filter(|s| matches!(s.spec.role, Role::Main | Role::Sidecar) && !view.ready(s))
        .map(|s| s.spec.name())
        .collect();
    if unready.is_empty() {
        return Draft::yes(TYPE);
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    Draft::no(TYPE, "ContainersNotReady", Some(message))
}

fn ready(view: &View<'_>, status: &PodStatus, containers: &Draft) -> Draft {
    let Input { pod, memory, node, .. } = view.input;
    if !containers.status {
        return Draft {
            type_: "Ready",
            status: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let conditions = memory.status.conditions.as_deref().unwrap_or_default();
    let mut missing: Vec<String> = pod
        .spec
        .iter()
        .flat_map(|s| s.readiness_gates.iter().flatten())
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match conditions.iter().find(|c| &c.type_ == name) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate {name:?} does not exist."))
                }
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate {name:?} is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if node.acknowledged && !gate::is_programmed(conditions, status) {
        missing.push("not every node's dataplane has acknowledged that it can reach the pod".to_owned());
    }
    if missing.is_empty() {
        Draft::yes("Ready")
    } else {
        Draft::no("Ready", "ReadinessGatesNotReady", Some(missing.join(", ")))
    }
}

/// Quality of service class: `Guaranteed`, `Burstable` or `BestEffort`, by the cpu and memory of the pod's
/// containers (or of the pod itself where it has resources of its own, KEP-2837).
pub fn qos_class(pod: &Pod) -> &'static str {
    let pod_level = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    let specs = containers(pod);
    let sets: Vec<_> = match pod_level {
        Some(r) if has_any(&r.requests) || has_any(&r.limits) => vec![Some(r)],
        _ => specs
            .iter()
            .filter(|s| s.role != Role::Ephemeral)
            .map(|s| s.container.resources.as_ref())
            .collect(),
    };
    let asks = sets.iter().flatten().any(|r| has_any(&r.requests) || has_any(&r.limits));
    if !asks {
        return "BestEffort";
    }
    let guaranteed = sets.iter().all(|r| {
        let Some(r) = r else { return false };
        ["cpu", "memory"].iter().all(|name| {
            let limit = positive(r.limits.as_ref(), name);
            let request = positive(r.requests.as_ref(), name);
            limit.is_some() && (request.is_none() || request == limit)
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

type Resources = Option<BTreeMap<String, Quantity>>;

fn has_any(list: &Resources) -> bool {
    ["cpu", "memory"].iter().any(|name| positive(list.as_ref(), name).is_some())
}

fn positive(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    let quantity = list.and_then(|l| l.get(name));
    // cpu counts in thousandths, memory in bytes: both compare in thousandths of what they are.
    quantity.and_then(|q| if name == "cpu" { milli(q) } else { units(q) }).filter(|v| *v > 0)
}
