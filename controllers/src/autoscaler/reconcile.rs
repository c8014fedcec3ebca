//! Decides about an autoscaler. PURE.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Settings;
use super::limits::{self, Bounds, History};
use super::propose::Proposal;
use super::target::Scaled;
use crate::object;
use crate::plan::{Act, Action, Note, Plan, Target};
use crate::runner::Failure;

/// What a decision rests on.
pub struct View {
    /// The autoscaler.
    pub hpa: Arc<HorizontalPodAutoscaler>,
    /// What it scales, or why that cannot be told.
    pub target: Result<Scaled, String>,
    /// What the metrics ask for, where they are asked (see [`needs_metrics`]).
    pub proposal: Option<Proposal>,
    /// What was asked for and done before.
    pub history: History,
    /// Settings.
    pub settings: Settings,
    /// What failed of the plan before.
    pub prior: Option<Failure>,
}

/// The bounds of an autoscaler.
pub fn bounds(hpa: &HorizontalPodAutoscaler) -> Bounds {
    Bounds { min: hpa.spec.min_replicas.unwrap_or(1), max: hpa.spec.max_replicas }
}

/// Whether metrics decide: not where there are no replicas (that turns an autoscaler off), nor more or fewer than there
/// may be.
pub fn needs_metrics(current: i32, bounds: Bounds) -> bool {
    current != 0 && current <= bounds.max && current >= bounds.min
}

/// Sets a condition. Its time changes with its status only.
fn set(
    status: &mut HorizontalPodAutoscalerStatus,
    now: Timestamp,
    kind: &str,
    (on, reason, message): (bool, &str, &str),
) {
    let conditions = status.conditions.get_or_insert_default();
    let at = conditions.iter().position(|c| c.type_ == kind);
    let at = at.unwrap_or_else(|| {
        let type_ = kind.to_owned();
        conditions.push(HorizontalPodAutoscalerCondition { type_, ..Default::default() });
        conditions.len() - 1
    });
    let condition = &mut conditions[at];
    let value = if on { "True" } else { "False" };
    if condition.status != value {
        condition.status = value.to_owned();
        condition.last_transition_time = Some(Time(object::time(now).0));
    }
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message.to_owned());
}

/// Decides about an autoscaler.
pub fn reconcile(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::new();
    let hpa = view.hpa.as_ref();
    if object::is_deleting(hpa) {
        return plan;
    }
    plan.requeue(view.settings.sync_period);
    let about = || object::reference(hpa);
    let mut updated = hpa.clone();
    let status = updated.status.get_or_insert_default();
    let target = match &view.target {
        Ok(target) => target,
        Err(error) => {
            plan.events.push(Note::warning(about(), "FailedGetScale", error.clone()));
            let message = format!("the HPA controller was unable to get the target's current scale: {error}");
            set(status, now, "AbleToScale", (false, "FailedGetScale", &message));
            write_status(&mut plan, hpa, &updated);
            return plan;
        }
    };
    let got = "the HPA controller was able to get the target's current scale";
    set(status, now, "AbleToScale", (true, "SucceededGetScale", got));
    let (current, bounds) = (target.replicas(), bounds(hpa));
    let decided = decide(view, (current, bounds), status, &mut plan, now);
    status.current_replicas = Some(current);
    status.current_metrics =
        view.proposal.as_ref().map(|p| p.statuses.clone()).filter(|statuses| !statuses.is_empty());
    let Some((desired, reason)) = decided else {
        write_status(&mut plan, hpa, &updated);
        return plan;
    };
    if desired == current {
        status.desired_replicas = current;
        write_status(&mut plan, hpa, &updated);
        return plan;
    }
    if let Some(failure) = view.prior.as_ref().filter(|f| is_scaling(f, target)) {
        let message =
            format!("the HPA controller was unable to update the target scale: {}", failure.message);
        set(status, now, "AbleToScale", (false, "FailedUpdateScale", &message));
        write_status(&mut plan, hpa, &updated);
        return plan;
    }
    let done = format!("the HPA controller was able to update the target scale to {desired}");
    set(status, now, "AbleToScale", (true, "SucceededRescale", &done));
    status.desired_replicas = desired;
    status.last_scale_time = Some(object::time(now));
    let note = format!("New size: {desired}; reason: {reason}");
    plan.push(
        rescale(target, desired)
            .ok(Note::normal(about(), "SuccessfulRescale", note.clone()))
            .err(Note::warning(about(), "FailedRescale", format!("{note}; error: {{error}}"))),
    );
    // A step, and not the plan's status: that would be written also when the scale is refused.
    plan.push(status_write(&updated));
    plan
}

/// The write of a status; that it failed is told.
fn status_write(updated: &HorizontalPodAutoscaler) -> Act {
    let note = Note::warning(object::reference(updated), "FailedUpdateStatus", "{error}");
    Act::update_sub(updated, "status").err(note)
}

/// Sets the plan's status write if there is anything new.
fn write_status(plan: &mut Plan, hpa: &HorizontalPodAutoscaler, updated: &HorizontalPodAutoscaler) {
    if hpa != updated {
        plan.status = Some(Box::new(status_write(updated)));
    }
}

/// Replicas and why, or none when nothing can be told.
fn decide(
    view: &View,
    (current, bounds): (i32, Bounds),
    status: &mut HorizontalPodAutoscalerStatus,
    plan: &mut Plan,
    now: Timestamp,
) -> Option<(i32, String)> {
    let active = "ScalingActive";
    if current == 0 {
        let why = "scaling is disabled since the replica count of the target is zero";
        set(status, now, active, (false, "ScalingDisabled", why));
        return Some((0, String::new()));
    }
    if current > bounds.max {
        return Some((bounds.max, "Current number of replicas above Spec.MaxReplicas".to_owned()));
    }
    if current < bounds.min {
        return Some((bounds.min, "Current number of replicas below Spec.MinReplicas".to_owned()));
    }
    let proposal = view.proposal.as_ref()?;
    let about = || object::reference(view.hpa.as_ref());
    for trouble in &proposal.troubles {
        plan.events.push(Note::warning(about(), trouble.event.0, trouble.event.1.clone()));
    }
    let Some((wanted, metric)) = &proposal.replicas else {
        if let Some(trouble) = proposal.troubles.first() {
            set(status, now, active, (false, trouble.reason, &trouble.message));
        }
        if let Some(error) = &proposal.error {
            plan.events.push(Note::warning(about(), "FailedComputeMetricsReplicas", error.clone()));
        }
        return None;
    };
    let found = format!("the HPA was able to successfully calculate a replica count from {metric}");
    set(status, now, active, (true, "ValidMetricFound", &found));
    let reason = if *wanted > current {
        format!("{metric} above target")
    } else {
        "All metrics below target".to_owned()
    };
    let behavior = view.hpa.spec.behavior.as_ref();
    let window = view.settings.downscale_stabilization;
    let limited = limits::limit(&view.history, behavior, bounds, (current, *wanted), window, now);
    for (kind, why) in [("AbleToScale", limited.able), ("ScalingLimited", limited.limited)] {
        set(status, now, kind, (why.status, why.reason, why.message));
    }
    Some((limited.replicas, reason))
}

fn rescale(target: &Scaled, replicas: i32) -> Act {
    let mut scale = target.scale.clone();
    scale.spec.get_or_insert_default().replicas = Some(replicas);
    Act::new(Action::Update {
        target: Target {
            resource: target.resource.clone(),
            namespace: scale.metadata.namespace.clone().unwrap_or_default(),
            name: scale.metadata.name.clone().unwrap_or_default(),
        },
        subresource: Some("scale"),
        body: serde_json::to_value(&scale).unwrap_or_default(),
    })
}

/// Whether what failed was the write of the target's scale.
fn is_scaling(failure: &Failure, target: &Scaled) -> bool {
    failure.plural == target.resource.plural && Some(&failure.key.name) == target.scale.metadata.name.as_ref()
}
