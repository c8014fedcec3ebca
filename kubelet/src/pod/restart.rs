//! Restart policies and crash-loop back-off.

use super::after;
use super::model::{Exit, Instance, State};
use super::spec::{Role, Spec};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

/// First wait of the crash loop, in seconds.
pub const BACKOFF_FIRST: i64 = 10;
/// Longest wait of the crash loop, in seconds.
pub const BACKOFF_MAX: i64 = 300;
/// A container that ran for so many seconds starts over with no wait.
pub const BACKOFF_RESET: i64 = 600;

/// Whether a container that ended with `code` is to run again.
///
/// The container's own rules and policy (KEP-5307) come before the pod's. Init containers of a pod that always
/// restarts are retried on failure only.
pub fn restarts(pod: &Pod, spec: &Spec<'_>, code: i32) -> bool {
    if spec.role == Role::Sidecar {
        return true;
    }
    if spec.role == Role::Ephemeral {
        return false;
    }
    for rule in spec.container.restart_policy_rules.iter().flatten() {
        let Some(on) = &rule.exit_codes else { continue };
        let listed = on.values.iter().flatten().any(|v| *v == code);
        if (on.operator == "In") == listed && rule.action == "Restart" {
            return true;
        }
    }
    let pod_policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    let policy = spec.container.restart_policy.as_deref().unwrap_or(pod_policy);
    match (policy, spec.role) {
        ("Never", _) => false,
        ("OnFailure", _) | (_, Role::Init) => code != 0,
        _ => true,
    }
}

/// The wait that applies to the restart after `last`, in seconds, and the moment it is over.
pub fn ready_at(last: &Instance, exit: &Exit) -> (i64, Timestamp) {
    let wait = effective_wait(last, exit);
    (wait, after(exit.finished_at, wait))
}

/// The back-off to write on the instance that follows `last`.
pub fn next_backoff(last: Option<&Instance>) -> i64 {
    let Some(last) = last else { return 0 };
    match &last.state {
        State::Exited(exit) => match effective_wait(last, exit) {
            0 => BACKOFF_FIRST,
            wait => wait.saturating_mul(2).min(BACKOFF_MAX),
        },
        _ => last.backoff.max(BACKOFF_FIRST),
    }
}

fn effective_wait(last: &Instance, exit: &Exit) -> i64 {
    let ran = exit.started_at.map_or(0, |s| exit.finished_at.duration_since(s).as_secs());
    if ran >= BACKOFF_RESET { 0 } else { last.backoff.clamp(0, BACKOFF_MAX) }
}
