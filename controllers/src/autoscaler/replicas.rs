//! How many replicas a metric asks for. PURE.
//!
//! Values are thousandths of the metric's unit, as Kubernetes computes them. The rules are those of the documentation of
//! the HorizontalPodAutoscaler ("Algorithm details"): pods that are ending or failed do not count, pods that are not ready
//! yet count as using nothing when there would be more of them, pods without a sample count against the change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

use crate::cache::Pod;
use crate::object;
use crate::pods;

/// One pod's sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Thousandths.
    pub value: i64,
    /// When it was taken.
    pub at: Timestamp,
    /// Over which time.
    pub window: Duration,
}

/// Samples by the pods' names.
pub type Samples = BTreeMap<String, Sample>;

/// How far the ratio may be off before anything is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    /// Below 1.
    pub down: f64,
    /// Above 1.
    pub up: f64,
}

impl Tolerances {
    fn hold(self, ratio: f64) -> bool {
        1.0 - self.down <= ratio && ratio <= 1.0 + self.up
    }
}

/// How new pods' CPU samples are taken.
#[derive(Clone, Copy, Debug)]
pub struct Startup {
    /// For so long after its start a pod's sample counts only if the pod was ready for all of the sample's window.
    pub cpu_initialization: Duration,
    /// A pod that became unready for the last time within this time after its start was never ready.
    pub initial_readiness: Duration,
}

/// What a pod's samples are measured against.
#[derive(Clone, Debug)]
pub enum Aim<'a> {
    /// So many percent of what its containers (or one of them) request of a resource.
    Utilization {
        /// Percent.
        percent: i32,
        /// The resource.
        resource: &'a str,
        /// One container, or all.
        container: Option<&'a str>,
    },
    /// So much for each pod.
    Average(i64),
}

/// What a metric asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Replicas.
    pub replicas: i32,
    /// Percent of the requests, where these are the measure.
    pub utilization: Option<i32>,
    /// The average (or the whole) in thousandths.
    pub usage: i64,
}

/// The pods by what their samples are good for.
#[derive(Debug, Default, PartialEq)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn after(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

fn is_unready(pod: &Pod, sample: &Sample, startup: Startup, now: Timestamp) -> bool {
    let started = pod.status.start_time.as_ref();
    let (Some(ready), Some(started)) = (pods::condition(pod, "Ready"), started) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    if after(started.0, startup.cpu_initialization) > now {
        return ready.status == "False" || sample.at < after(changed, sample.window);
    }
    ready.status == "False" && after(started.0, startup.initial_readiness) > changed
}

fn group(pods: &[Arc<Pod>], samples: &Samples, cpu: bool, startup: Startup, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let name = object::name(pod.as_ref()).to_owned();
        let phase = pods::phase(pod);
        if object::is_deleting(pod.as_ref()) || phase == "Failed" {
            groups.ignored.insert(name);
        } else if phase == "Pending" {
            groups.unready.insert(name);
        } else {
            match samples.get(&name) {
                None => drop(groups.missing.insert(name)),
                Some(sample) if cpu && is_unready(pod, sample, startup, now) => {
                    groups.unready.insert(name);
                }
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

/// Ratio of what is used to what is aimed at, with what the status shows of it.
struct Measured {
    ratio: f64,
    utilization: Option<i32>,
    usage: i64,
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

/// Rounded up; beyond an `i32` it is the largest.
fn whole(n: f64) -> i32 {
    // Casts from floating point saturate.
    n.ceil() as i32
}

/// Requests by pod, in thousandths.
type Requests = BTreeMap<String, i64>;

fn measure(aim: &Aim<'_>, requests: &Requests, samples: &Samples) -> Result<Measured, String> {
    match aim {
        Aim::Average(target) => {
            let total: i128 = samples.values().map(|s| i128::from(s.value)).sum();
            let usage = clamp(total / samples.len().max(1) as i128);
            Ok(Measured { ratio: usage as f64 / *target as f64, utilization: None, usage })
        }
        Aim::Utilization { percent, .. } => {
            let known = samples.iter().filter_map(|(pod, s)| Some((s.value, *requests.get(pod)?)));
            let (mut used, mut requested, mut count) = (0i128, 0i128, 0i128);
            for (value, request) in known {
                used += i128::from(value);
                requested += i128::from(request);
                count += 1;
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
            let ratio = f64::from(utilization) / f64::from(*percent);
            Ok(Measured { ratio, utilization: Some(utilization), usage: clamp(used / count) })
        }
    }
}

/// The replicas that samples of pods ask for. `current` is what is asked for now; `cpu` says whether the samples are of
/// CPU, which is used most while a pod starts.
///
/// # Errors
/// When there is nothing to go by; the text is Kubernetes'.
pub fn of_pods(
    aim: &Aim<'_>,
    current: i32,
    mut samples: Samples,
    (pods, cpu): (&[Arc<Pod>], bool),
    tolerances: Tolerances,
    (startup, now): (Startup, Timestamp),
) -> Result<Asked, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, &samples, cpu, startup, now);
    samples.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match aim {
        Aim::Utilization { resource, container, .. } => requests(pods, *container, resource)?,
        Aim::Average(_) => Requests::new(),
    };
    let first = measure(aim, &requests, &samples)?;
    let answer = |replicas| Asked { replicas, utilization: first.utilization, usage: first.usage };
    let with_unready = !groups.unready.is_empty() && first.ratio > 1.0;
    if !with_unready && groups.missing.is_empty() {
        if tolerances.hold(first.ratio) {
            return Ok(answer(current));
        }
        return Ok(answer(whole(first.ratio * groups.ready as f64)));
    }
    let assumed = |value| Sample { value, at: now, window: Duration::ZERO };
    for pod in &groups.missing {
        let value = if first.ratio < 1.0 {
            match aim {
                Aim::Average(target) => *target,
                Aim::Utilization { percent, .. } => {
                    let request = requests.get(pod).copied().unwrap_or(0);
                    clamp(i128::from(request) * i128::from((*percent).max(100)) / 100)
                }
            }
        } else if first.ratio > 1.0 {
            0
        } else {
            continue;
        };
        samples.insert(pod.clone(), assumed(value));
    }
    if with_unready {
        samples.extend(groups.unready.iter().map(|pod| (pod.clone(), assumed(0))));
    }
    let second = measure(aim, &requests, &samples)?.ratio;
    let turned = (first.ratio < 1.0 && second > 1.0) || (first.ratio > 1.0 && second < 1.0);
    if tolerances.hold(second) || turned {
        return Ok(answer(current));
    }
    let replicas = whole(second * samples.len() as f64);
    let against = (second < 1.0 && replicas > current) || (second > 1.0 && replicas < current);
    Ok(answer(if against { current } else { replicas }))
}

/// The replicas that one value for all of them asks for, of which `target` is the right amount.
///
/// # Errors
/// When there are no pods to count.
pub fn of_whole(
    value: i64,
    target: i64,
    current: i32,
    pods: &[Arc<Pod>],
    tolerances: Tolerances,
) -> Result<Asked, String> {
    let ratio = value as f64 / target as f64;
    let asked = |replicas| Asked { replicas, utilization: None, usage: value };
    if current == 0 {
        return Ok(asked(whole(ratio)));
    }
    if tolerances.hold(ratio) {
        return Ok(asked(current));
    }
    if pods.is_empty() {
        let why =
            "unable to calculate ready pods: no pods returned by selector while calculating replica count";
        return Err(why.to_owned());
    }
    let ready = pods.iter().filter(|p| pods::phase(p) == "Running" && pods::is_ready(p)).count();
    Ok(asked(whole(ratio * ready as f64)))
}

/// The replicas that one value for all of them asks for, of which each is to have `target`. `status` is how many there are.
pub fn of_share(value: i64, target: i64, status: i32, tolerances: Tolerances) -> Asked {
    let ratio = value as f64 / (target as f64 * f64::from(status));
    let replicas = if tolerances.hold(ratio) { status } else { whole(value as f64 / target as f64) };
    // Of no replicas each has infinitely much; casts saturate.
    let usage = (value as f64 / f64::from(status)).ceil() as i64;
    Asked { replicas, utilization: None, usage }
}

fn request_of(container: &Container, resource: &str) -> Option<i64> {
    let requests = container.resources.as_ref()?.requests.as_ref()?;
    Some(Quantity::parse(&requests.get(resource)?.0).ok()?.milli_value())
}

/// What each pod requests: of one container, else of the pod as a whole if it says so, else the sum of its containers'
/// and sidecars'.
fn requests(pods: &[Arc<Pod>], container: Option<&str>, resource: &str) -> Result<Requests, String> {
    pods.iter()
        .map(|pod| Ok((object::name(pod.as_ref()).to_owned(), requests_of(pod, container, resource)?)))
        .collect()
}

fn requests_of(pod: &Pod, only: Option<&str>, resource: &str) -> Result<i64, String> {
    let name = object::name(pod);
    let Some(spec) = &pod.spec else { return Ok(0) };
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).filter(|r| !r.is_empty());
    if let (Some(whole), None) = (whole, only)
        && let Some(quantity) = whole.get(resource)
    {
        return Ok(Quantity::parse(&quantity.0).map_or(0, |q| q.milli_value()));
    }
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut sum = 0i64;
    let mut found = only.is_none();
    for container in spec.containers.iter().chain(sidecars) {
        if only.is_some_and(|only| only != container.name) {
            continue;
        }
        found = true;
        let Some(request) = request_of(container, resource) else {
            return Err(format!(
                "missing request for {resource} in container {} of Pod {name}",
                container.name
            ));
        };
        sum = sum.saturating_add(request);
    }
    match only {
        Some(only) if !found => Err(format!("container {only} not found in Pod {name}")),
        _ => Ok(sum),
    }
}
