//! What the metrics of an autoscaler ask for, with the status that tells it. PURE.

use std::sync::Arc;

use hawser_api::quantity::{Format, Quantity as Number};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler, MetricIdentifier,
    MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
    ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::metrics::Reading;
use super::replicas::{self, Aim, Asked, Samples, Tolerances};
use super::{Settings, words};
use crate::cache::Pod;

/// A condition that is false, with the event that goes with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trouble {
    /// Of the event.
    pub event: (&'static str, String),
    /// Reason of the condition ScalingActive.
    pub reason: &'static str,
    /// Its message.
    pub message: String,
}

/// What the metrics ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proposal {
    /// Replicas, and the metric that wants them; none if they cannot be told.
    pub replicas: Option<(i32, String)>,
    /// The metrics as they are now, in the order of the spec.
    pub statuses: Vec<MetricStatus>,
    /// What is wrong with which metrics.
    pub troubles: Vec<Trouble>,
    /// The error of all of it.
    pub error: Option<String>,
}

/// What is known of the pods and metrics of an autoscaler.
pub struct Inputs<'a> {
    /// The autoscaler.
    pub hpa: &'a HorizontalPodAutoscaler,
    /// Replicas that are asked for, and that there are.
    pub replicas: (i32, i32),
    /// The pods that the target selects.
    pub pods: &'a [Arc<Pod>],
    /// One reading per metric.
    pub readings: &'a [Result<Reading, String>],
    /// Settings.
    pub settings: &'a Settings,
    /// The time.
    pub now: Timestamp,
}

/// The specified metrics.
pub fn specs(hpa: &HorizontalPodAutoscaler) -> &[MetricSpec] {
    hpa.spec.metrics.as_deref().unwrap_or_default()
}

fn tolerances(hpa: &HorizontalPodAutoscaler, default: f64) -> Tolerances {
    let behavior = hpa.spec.behavior.as_ref();
    let of = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        let quantity = rules.and_then(|r| r.tolerance.as_ref())?;
        Number::parse(&quantity.0).ok().map(|q| q.as_f64())
    };
    Tolerances {
        down: of(behavior.and_then(|b| b.scale_down.as_ref())).unwrap_or(default),
        up: of(behavior.and_then(|b| b.scale_up.as_ref())).unwrap_or(default),
    }
}

/// Why the selector of the target is of no use: it is missing, cannot be read, or others select the same pods.
pub fn unselected(event: &'static str, message: String, condition: String) -> Proposal {
    let reason = if event == "SelectorRequired" { "InvalidSelector" } else { event };
    let trouble = Trouble { event: (event, message.clone()), reason, message: condition };
    Proposal { troubles: vec![trouble], error: Some(message), ..Proposal::default() }
}

/// What all metrics together ask for: the most that one of them does. Metrics that cannot be read do not keep it from
/// becoming more.
pub fn propose(inputs: &Inputs<'_>) -> Proposal {
    let specs = specs(inputs.hpa);
    let mut proposal = Proposal::default();
    let mut best: Option<(i32, String)> = None;
    let mut first = None;
    for (spec, reading) in specs.iter().zip(inputs.readings) {
        match metric(inputs, spec, reading) {
            Ok((replicas, name, status)) => {
                proposal.statuses.push(status);
                if best.as_ref().is_none_or(|(most, _)| *most == 0 || replicas > *most) {
                    best = Some((replicas, name));
                }
            }
            Err((trouble, error)) => {
                // As Kubernetes shows a metric that it has no value of.
                proposal.statuses.push(MetricStatus::default());
                proposal.troubles.push(trouble);
                first.get_or_insert(error);
            }
        }
    }
    let bad = proposal.troubles.len();
    proposal.error = first.map(|first| {
        format!("invalid metrics ({bad} invalid out of {}), first error is: {first}", specs.len())
    });
    let fewer = best.as_ref().is_none_or(|(most, _)| *most < inputs.replicas.0);
    if bad < specs.len() && !(bad > 0 && fewer) {
        proposal.replicas = best;
    }
    proposal
}

type Measured = (i32, String, MetricStatus);

fn trouble(reason: &'static str, error: &str) -> Trouble {
    let message = format!("the HPA was unable to compute the replica count: {error}");
    Trouble { event: (reason, error.to_owned()), reason, message }
}

fn milli(quantity: Option<&Quantity>) -> Option<i64> {
    Some(Number::parse(&quantity?.0).ok()?.milli_value())
}

fn quantity(milli: i64) -> Quantity {
    Quantity(Number::from_milli(milli).to_string())
}

/// Of memory with binary suffixes.
fn quantity_of(resource: &str, milli: i64) -> Quantity {
    if resource == "memory" && milli % 1000 == 0 {
        let bytes = Number::from_bytes(milli / 1000);
        debug_assert_eq!(bytes.format(), Format::BinarySi);
        return Quantity(bytes.to_string());
    }
    quantity(milli)
}

fn samples(reading: &Reading) -> Samples {
    match reading {
        Reading::Pods(samples) => samples.clone(),
        Reading::Whole(_) => Samples::new(),
    }
}

fn sum(reading: &Reading) -> i64 {
    match reading {
        Reading::Whole(values) => values.iter().fold(0, |sum: i64, v| sum.saturating_add(*v)),
        Reading::Pods(_) => 0,
    }
}

fn metric(
    inputs: &Inputs<'_>,
    spec: &MetricSpec,
    reading: &Result<Reading, String>,
) -> Result<Measured, (Trouble, String)> {
    if let Some(source) = &spec.resource {
        let done = resource(inputs, &source.target, &source.name, None, reading);
        let failed = |e: String| {
            let error = format!("failed to get {} resource metric value: {e}", source.name);
            (trouble("FailedGetResourceMetric", &e), error)
        };
        let (replicas, name, current) = done.map_err(failed)?;
        let status = ResourceMetricStatus { name: source.name.clone(), current };
        let status = MetricStatus { type_: "Resource".into(), resource: Some(status), ..Default::default() };
        return Ok((replicas, name, status));
    }
    if let Some(source) = &spec.container_resource {
        let done = resource(inputs, &source.target, &source.name, Some(&source.container), reading);
        let failed = |e: String| {
            let error = format!("failed to get {} container metric value: {e}", source.container);
            (trouble("FailedGetContainerResourceMetric", &e), error)
        };
        let (replicas, name, current) = done.map_err(failed)?;
        let (container, resource) = (source.container.clone(), source.name.clone());
        let status = ContainerResourceMetricStatus { container, current, name: resource };
        let status = MetricStatus {
            type_: "ContainerResource".into(),
            container_resource: Some(status),
            ..Default::default()
        };
        return Ok((replicas, name, status));
    }
    if let Some(source) = &spec.pods {
        let name = &source.metric.name;
        let target = milli(source.target.average_value.as_ref()).unwrap_or(0);
        let done = reading
            .as_ref()
            .map_err(|e| format!("unable to get metric {name}: {e}"))
            .and_then(|r| of_pods(inputs, &Aim::Average(target), samples(r), false));
        let asked = done.map_err(|e| {
            let error = format!("failed to get pods metric value: {e}");
            (trouble("FailedGetPodsMetric", &e), error)
        })?;
        let current = MetricValueStatus { average_value: Some(quantity(asked.usage)), ..Default::default() };
        let status = PodsMetricStatus { current, metric: source.metric.clone() };
        let status = MetricStatus { type_: "Pods".into(), pods: Some(status), ..Default::default() };
        return Ok((asked.replicas, format!("pods metric {name}"), status));
    }
    if spec.object.is_some() {
        return object(inputs, spec, reading);
    }
    external(inputs, spec, reading)
}

fn of_pods(inputs: &Inputs<'_>, aim: &Aim<'_>, samples: Samples, cpu: bool) -> Result<Asked, String> {
    let tolerances = tolerances(inputs.hpa, inputs.settings.tolerance);
    let time = (inputs.settings.startup, inputs.now);
    replicas::of_pods(aim, inputs.replicas.0, samples, (inputs.pods, cpu), tolerances, time)
}

fn resource(
    inputs: &Inputs<'_>,
    target: &MetricTarget,
    resource: &str,
    container: Option<&str>,
    reading: &Result<Reading, String>,
) -> Result<(i32, String, MetricValueStatus), String> {
    let read = || {
        reading
            .as_ref()
            .map(samples)
            .map_err(|e| format!("unable to get metrics for resource {resource}: {e}"))
    };
    let cpu = resource == "cpu";
    if let Some(average) = milli(target.average_value.as_ref()) {
        let asked = read().and_then(|s| of_pods(inputs, &Aim::Average(average), s, cpu));
        let asked = asked.map_err(|e| format!("failed to get {resource} usage: {e}"))?;
        let current = MetricValueStatus {
            average_value: Some(quantity_of(resource, asked.usage)),
            ..Default::default()
        };
        return Ok((asked.replicas, format!("{resource} resource"), current));
    }
    let Some(percent) = target.average_utilization else {
        let why = "invalid resource metric source: neither an average utilization target nor an average value (usage) \
                   target was set";
        return Err(why.to_owned());
    };
    let aim = Aim::Utilization { percent, resource, container };
    let asked = read().and_then(|s| of_pods(inputs, &aim, s, cpu));
    let asked = asked.map_err(|e| format!("failed to get {resource} utilization: {e}"))?;
    let of = if container.is_some() { "container resource" } else { "resource" };
    let name = format!("{resource} {of} utilization (percentage of request)");
    let current = MetricValueStatus {
        average_utilization: asked.utilization,
        average_value: Some(quantity_of(resource, asked.usage)),
        value: None,
    };
    Ok((asked.replicas, name, current))
}

fn identifier(metric: &MetricIdentifier) -> String {
    format!("external metric {}({})", metric.name, words::selector(metric.selector.as_ref()))
}

fn object(
    inputs: &Inputs<'_>,
    spec: &MetricSpec,
    reading: &Result<Reading, String>,
) -> Result<Measured, (Trouble, String)> {
    let failed = |e: String| {
        let error = format!("failed to get object metric value: {e}");
        (trouble("FailedGetObjectMetric", &e), error)
    };
    let Some(source) = &spec.object else { return Err(failed("no object".to_owned())) };
    let (metric, described, target) = (&source.metric, &source.described_object, &source.target);
    let namespace = crate::object::namespace(inputs.hpa);
    // The order of the words is Kubernetes'.
    let read = || {
        reading.as_ref().map(sum).map_err(|e| {
            format!(
                "unable to get metric {}: {} on {namespace} {}/{e}",
                metric.name, described.kind, described.name
            )
        })
    };
    let tolerances = tolerances(inputs.hpa, inputs.settings.tolerance);
    let (asked, name, current) = match (target.type_.as_str(), milli(target.value.as_ref())) {
        ("Value", Some(wanted)) => {
            let asked = read().and_then(|value| {
                replicas::of_whole(value, wanted, inputs.replicas.0, inputs.pods, tolerances)
            });
            let asked = asked.map_err(failed)?;
            let current = MetricValueStatus { value: Some(quantity(asked.usage)), ..Default::default() };
            (asked, format!("{} metric {}", described.kind, metric.name), current)
        }
        _ => {
            let Some(wanted) =
                milli(target.average_value.as_ref()).filter(|_| target.type_ == "AverageValue")
            else {
                let why = "invalid object metric source: neither a value target nor an average value target was set";
                return Err(failed(why.to_owned()));
            };
            let value = read().map_err(|e| {
                let (t, _) = failed(e.clone());
                let error = format!("failed to get {} object metric: {e}", metric.name);
                (t, format!("failed to get object metric value: {error}"))
            })?;
            let asked = replicas::of_share(value, wanted, inputs.replicas.1, tolerances);
            let current =
                MetricValueStatus { average_value: Some(quantity(asked.usage)), ..Default::default() };
            (asked, identifier(metric), current)
        }
    };
    let status = ObjectMetricStatus { current, described_object: described.clone(), metric: metric.clone() };
    let status = MetricStatus { type_: "Object".into(), object: Some(status), ..Default::default() };
    Ok((asked.replicas, name, status))
}

fn external(
    inputs: &Inputs<'_>,
    spec: &MetricSpec,
    reading: &Result<Reading, String>,
) -> Result<Measured, (Trouble, String)> {
    let Some(source) = &spec.external else {
        let error = format!("unknown metric source type {:?}", spec.type_);
        return Err((trouble("InvalidMetricSourceType", &error), error));
    };
    let (metric, target) = (&source.metric, &source.target);
    let namespace = crate::object::namespace(inputs.hpa);
    // The condition tells the cause, the error of the whole names the metric once more.
    let failed = |e: String, how: String| {
        let error = format!("failed to get {} external metric value: {how}", metric.name);
        (trouble("FailedGetExternalMetric", &e), error)
    };
    let read = || {
        reading.as_ref().map(sum).map_err(|e| {
            let selector = words::selector(metric.selector.as_ref());
            format!("unable to get external metric {namespace}/{}/{selector}: {e}", metric.name)
        })
    };
    let tolerances = tolerances(inputs.hpa, inputs.settings.tolerance);
    let (asked, current) = if let Some(wanted) = milli(target.average_value.as_ref()) {
        let value = read().map_err(|e| {
            let how = format!("failed to get {} external metric: {e}", metric.name);
            failed(e, how)
        })?;
        let asked = replicas::of_share(value, wanted, inputs.replicas.1, tolerances);
        let current = MetricValueStatus { average_value: Some(quantity(asked.usage)), ..Default::default() };
        (asked, current)
    } else if let Some(wanted) = milli(target.value.as_ref()) {
        let asked = read()
            .and_then(|value| replicas::of_whole(value, wanted, inputs.replicas.0, inputs.pods, tolerances))
            .map_err(|e| {
                let how = format!("failed to get external metric {}: {e}", metric.name);
                failed(e, how)
            })?;
        let current = MetricValueStatus { value: Some(quantity(asked.usage)), ..Default::default() };
        (asked, current)
    } else {
        let why =
            "invalid external metric source: neither a value target nor an average value target was set";
        return Err(failed(why.to_owned(), why.to_owned()));
    };
    let status = ExternalMetricStatus { current, metric: metric.clone() };
    let status = MetricStatus { type_: "External".into(), external: Some(status), ..Default::default() };
    Ok((asked.replicas, identifier(metric), status))
}
