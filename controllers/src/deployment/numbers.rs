//! How many pods a rollout may have, and must have. All counts are of `spec.replicas` unless said.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// How a Deployment replaces pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Step by step, within surge and unavailability.
    Rolling,
    /// All old pods end before the first new one starts.
    Recreate,
}

/// The Deployment's strategy.
pub fn strategy(deployment: &Deployment) -> Strategy {
    let kind = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref());
    if kind == Some("Recreate") { Strategy::Recreate } else { Strategy::Rolling }
}

/// The wanted number of pods.
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0)
}

/// An absolute number, or a percentage of `total` rounded up or down.
pub fn resolve(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.max(0).saturating_mul(i64::from(total.max(0)));
            let share = if up { product.saturating_add(99) / 100 } else { product / 100 };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

/// Surge and unavailability that the strategy allows; never both zero.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let spec = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    let rolling = spec.and_then(|s| s.rolling_update.clone()).unwrap_or_default();
    let quarter = IntOrString::String("25%".to_owned());
    let total = replicas(deployment);
    let surge = resolve(&rolling.max_surge.unwrap_or_else(|| quarter.clone()), total, true);
    let unavailable = resolve(&rolling.max_unavailable.unwrap_or(quarter), total, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// How many pods beyond the wanted number there may be.
pub fn max_surge(deployment: &Deployment) -> i32 {
    match strategy(deployment) {
        Strategy::Rolling => fenceposts(deployment).0,
        Strategy::Recreate => 0,
    }
}

/// How many of the wanted pods may be unavailable.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    match strategy(deployment) {
        Strategy::Rolling => fenceposts(deployment).1.min(replicas(deployment)),
        Strategy::Recreate => 0,
    }
}

/// A ReplicaSet's wanted pods.
pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// A ReplicaSet's available pods.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// The pods that a ReplicaSet has.
pub fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

/// The sum of a count over sets.
pub fn sum<'a>(
    sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>,
    count: impl Fn(&ReplicaSet) -> i32,
) -> i32 {
    sets.into_iter().map(|set| count(set)).fold(0, i32::saturating_add)
}

/// How large the newest set may be now, given the size of all sets together.
pub fn new_set_size(deployment: &Deployment, current: i32, all: i32) -> i32 {
    let wanted = replicas(deployment);
    match strategy(deployment) {
        Strategy::Recreate => wanted,
        Strategy::Rolling => {
            let room = wanted.saturating_add(max_surge(deployment)).saturating_sub(all);
            if room <= 0 { current } else { current + room.min(wanted - current) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};

    #[test]
    fn percentages_round_as_documented_and_never_block() {
        let text = |s: &str| IntOrString::String(s.into());
        let cases = [
            // replicas, surge, unavailable -> surge, unavailable
            (10, text("25%"), text("25%"), 3, 2),
            (1, text("25%"), text("25%"), 1, 0),
            (3, IntOrString::Int(0), text("10%"), 0, 1),
            (4, IntOrString::Int(0), IntOrString::Int(0), 0, 1),
            (2, IntOrString::Int(5), IntOrString::Int(9), 5, 2),
            (0, text("50%"), text("50%"), 0, 0),
        ];
        for (replicas, surge, unavailable, want_surge, want_unavailable) in cases {
            let d = Deployment {
                spec: Some(DeploymentSpec {
                    replicas: Some(replicas),
                    strategy: Some(DeploymentStrategy {
                        type_: Some("RollingUpdate".into()),
                        rolling_update: Some(RollingUpdateDeployment {
                            max_surge: Some(surge),
                            max_unavailable: Some(unavailable),
                        }),
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            };
            assert_eq!((max_surge(&d), max_unavailable(&d)), (want_surge, want_unavailable), "{replicas}");
        }
    }
}
