//! What becomes of a recommendation: windows in which the highest or lowest counts, and how much may change at once. PURE.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// Without a behaviour, an autoscaler may at least double, and go up to this at once.
const SCALE_UP_FACTOR: i32 = 2;
const SCALE_UP_MINIMUM: i32 = 4;

/// What is remembered of one autoscaler.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// What metrics asked for, and when.
    recommendations: Vec<(i32, Timestamp)>,
    /// Replicas added (or, if negative, taken), and when.
    changes: Vec<(i32, Timestamp)>,
    /// The time of the last change that was taken in.
    last_change: Option<Timestamp>,
}

/// Why something is as it is: a condition's status, reason and message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Status of the condition.
    pub status: bool,
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: &'static str,
}

/// The bounds of an autoscaler.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The least replicas.
    pub min: i32,
    /// The most.
    pub max: i32,
}

/// A decision with its conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// Replicas.
    pub replicas: i32,
    /// Condition AbleToScale.
    pub able: Reason,
    /// Condition ScalingLimited.
    pub limited: Reason,
}

const READY: Reason =
    Reason { status: true, reason: "ReadyForNewScale", message: "recommended size matches current size" };
const UP_STABILIZED: Reason = Reason {
    status: true,
    reason: "ScaleUpStabilized",
    message: "recent recommendations were lower than current one, applying the lowest recent recommendation",
};
const DOWN_STABILIZED: Reason = Reason {
    status: true,
    reason: "ScaleDownStabilized",
    message: "recent recommendations were higher than current one, applying the highest recent recommendation",
};
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

fn ago(now: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| now.checked_sub(by).ok()).unwrap_or(Timestamp::MIN)
}

fn seconds(n: i32) -> Duration {
    Duration::from_secs(u64::try_from(n).unwrap_or(0))
}

impl History {
    /// Of an autoscaler that is seen for the first time, what its target has counts as recommended.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((current, now));
        }
    }

    /// Takes a recommendation in; those older than `keep` are forgotten.
    pub fn recommend(&mut self, replicas: i32, now: Timestamp, keep: Duration) {
        let since = ago(now, keep);
        self.recommendations.retain(|(_, at)| *at >= since);
        self.recommendations.push((replicas, now));
    }

    /// Takes in what the autoscaler's status says of its last change: so many replicas more (or fewer) at a time. What
    /// was taken in before is not taken in twice.
    pub fn changed(&mut self, by: i32, at: Timestamp, keep: Duration) {
        if self.last_change.is_some_and(|last| at <= last) {
            return;
        }
        self.last_change = Some(at);
        let since = ago(at, keep);
        self.changes.retain(|(_, at)| *at >= since);
        if by != 0 {
            self.changes.push((by, at));
        }
    }

    /// How many replicas there were at the beginning of a period, if there are `current` now.
    fn at_start(&self, current: i32, period: Duration, now: Timestamp) -> i32 {
        let since = ago(now, period);
        let change: i32 = self.changes.iter().filter(|(_, at)| *at > since).map(|(by, _)| by).sum();
        current.saturating_sub(change)
    }

    /// The highest recommendation since a time, if it is higher than `replicas`.
    fn highest(&self, replicas: i32, since: impl Fn(Timestamp) -> bool) -> i32 {
        self.recommendations.iter().filter(|(_, at)| since(*at)).map(|(n, _)| *n).fold(replicas, i32::max)
    }

    fn lowest(&self, replicas: i32, since: impl Fn(Timestamp) -> bool) -> i32 {
        self.recommendations.iter().filter(|(_, at)| since(*at)).map(|(n, _)| *n).fold(replicas, i32::min)
    }
}

/// The longest time that recommendations and changes matter to an autoscaler.
pub fn memory(behavior: Option<&HorizontalPodAutoscalerBehavior>, window: Duration) -> Duration {
    let rules = behavior.into_iter().flat_map(|b| b.scale_up.iter().chain(&b.scale_down));
    let longest = rules.flat_map(|r| {
        let periods = r.policies.iter().flatten().map(|p| p.period_seconds);
        periods.chain(r.stabilization_window_seconds)
    });
    longest.map(seconds).fold(window, Duration::max)
}

/// What is done about a recommendation. `window` is the stabilisation of scaling down where nothing else is said.
pub fn limit(
    history: &History,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    bounds: Bounds,
    (current, recommended): (i32, i32),
    window: Duration,
    now: Timestamp,
) -> Limited {
    let (stable, able) = match behavior {
        None => {
            let since = ago(now, window);
            let stable = history.highest(recommended, |at| at >= since);
            (stable, if stable == recommended { READY } else { DOWN_STABILIZED })
        }
        Some(behavior) => stabilize(history, behavior, (current, recommended), window, now),
    };
    let (replicas, (reason, message)) = match behavior {
        None => plain(current, stable, bounds),
        Some(behavior) => paced(history, behavior, bounds, (current, stable), now),
    };
    Limited { replicas, able, limited: Reason { status: replicas != stable, reason, message } }
}

fn stabilize(
    history: &History,
    behavior: &HorizontalPodAutoscalerBehavior,
    (current, recommended): (i32, i32),
    window: Duration,
    now: Timestamp,
) -> (i32, Reason) {
    let stated =
        |rules: &Option<HPAScalingRules>| rules.as_ref().and_then(|r| r.stabilization_window_seconds);
    let up = ago(now, stated(&behavior.scale_up).map_or(Duration::ZERO, seconds));
    let down = ago(now, stated(&behavior.scale_down).map_or(window, seconds));
    let least = history.lowest(recommended, |at| at > up);
    let most = history.highest(recommended, |at| at > down);
    let stable = current.max(least).min(most);
    let reason = match (stable == recommended, recommended >= current) {
        (true, _) => READY,
        (false, true) => UP_STABILIZED,
        (false, false) => DOWN_STABILIZED,
    };
    (stable, reason)
}

fn plain(current: i32, wanted: i32, bounds: Bounds) -> (i32, (&'static str, &'static str)) {
    let at_once = current.saturating_mul(SCALE_UP_FACTOR).max(SCALE_UP_MINIMUM);
    let (most, why) = if bounds.max > at_once { (at_once, UP_LIMIT) } else { (bounds.max, TOO_MANY) };
    if wanted < bounds.min {
        (bounds.min, TOO_FEW)
    } else if wanted > most {
        (most, why)
    } else {
        (wanted, WITHIN)
    }
}

/// As far as the policies let it go.
fn paced(
    history: &History,
    behavior: &HorizontalPodAutoscalerBehavior,
    bounds: Bounds,
    (current, wanted): (i32, i32),
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    if wanted > current {
        let pace = up_to(history, behavior.scale_up.as_ref(), current, now).max(current);
        let (most, why) = if bounds.max > pace { (pace, UP_LIMIT) } else { (bounds.max, TOO_MANY) };
        if wanted > most {
            return (most, why);
        }
    } else if wanted < current {
        let pace = down_to(history, behavior.scale_down.as_ref(), current, now).min(current);
        let (least, why) = if bounds.min < pace { (pace, DOWN_LIMIT) } else { (bounds.min, TOO_FEW) };
        if wanted < least {
            return (least, why);
        }
    }
    (wanted, WITHIN)
}

/// Which of several policies counts.
fn select(rules: Option<&HPAScalingRules>) -> &str {
    rules.and_then(|r| r.select_policy.as_deref()).unwrap_or("Max")
}

fn up_to(history: &History, rules: Option<&HPAScalingRules>, current: i32, now: Timestamp) -> i32 {
    let proposals = rules.into_iter().flat_map(|r| r.policies.iter().flatten()).map(|policy| {
        let start = history.at_start(current, seconds(policy.period_seconds), now);
        match policy.type_.as_str() {
            "Pods" => start.saturating_add(policy.value),
            // Rounded up, or a few replicas would never become more.
            _ => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
        }
    });
    match select(rules) {
        "Disabled" => current,
        "Min" => proposals.min().unwrap_or(i32::MAX),
        _ => proposals.max().unwrap_or(i32::MAX),
    }
}

fn down_to(history: &History, rules: Option<&HPAScalingRules>, current: i32, now: Timestamp) -> i32 {
    let proposals = rules.into_iter().flat_map(|r| r.policies.iter().flatten()).map(|policy| {
        let start = history.at_start(current, seconds(policy.period_seconds), now);
        match policy.type_.as_str() {
            "Pods" => start.saturating_sub(policy.value),
            _ => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
        }
    });
    match select(rules) {
        "Disabled" => current,
        "Min" => proposals.max().unwrap_or(i32::MIN),
        _ => proposals.min().unwrap_or(i32::MIN),
    }
}
