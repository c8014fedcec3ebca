//! What must come true of a claim's devices before its pod is bound (KEP-5007): a fabric attaches them first, or cannot.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceRequestAllocationResult, ResourceClaim,
};

use super::inventory::allocation;

/// How it is with a claim's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    /// Something has not come true yet.
    Pending,
    /// A device will not be there; with what is told of it.
    Failed(String),
}

fn results(allocation: &AllocationResult) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten())
}

fn conditions(result: &DeviceRequestAllocationResult) -> &[String] {
    result.binding_conditions.as_deref().unwrap_or_default()
}

/// Whether a pod with these devices may have to wait.
pub fn any(allocation: &AllocationResult) -> bool {
    results(allocation).any(|result| !conditions(result).is_empty())
}

/// How it is with the devices of a claim, from what drivers wrote into its status.
pub fn state(claim: &ResourceClaim) -> State {
    let Some(allocation) = allocation(claim) else { return State::Pending };
    let said = claim.status.iter().flat_map(|status| status.devices.iter().flatten());
    for result in results(allocation).filter(|result| !conditions(result).is_empty()) {
        let of = |s: &&AllocatedDeviceStatus| {
            (&s.driver, &s.pool, &s.device) == (&result.driver, &result.pool, &result.device)
        };
        let Some(status) = said.clone().find(of) else { return State::Pending };
        let came_true = |name: &String| {
            status.conditions.iter().flatten().find(|c| c.type_ == *name).filter(|c| c.status == "True")
        };
        if let Some(failure) = result.binding_failure_conditions.iter().flatten().find_map(came_true) {
            return State::Failed(format!(
                "device binding failed: claim={}, reason={}, message={}",
                claim.metadata.name.as_deref().unwrap_or_default(),
                failure.reason,
                hawser_api::text::quote(&failure.message)
            ));
        }
        if !conditions(result).iter().all(|name| came_true(name).is_some()) {
            return State::Pending;
        }
    }
    State::Ready
}

/// How long it may still take; `None`: too long already.
pub fn time_left(allocation: &AllocationResult, longest: Duration, now: Timestamp) -> Option<Duration> {
    let Some(since) = allocation.allocation_timestamp.as_ref() else { return Some(longest) };
    let passed = now.duration_since(since.0);
    match Duration::try_from(passed) {
        Ok(passed) => longest.checked_sub(passed),
        // The clock of who wrote it is ahead.
        Err(_) => Some(longest.saturating_add(passed.unsigned_abs())),
    }
}

/// Whether a claim's devices keep it from being used: they failed, or are not there in time.
pub fn is_lost(claim: &ResourceClaim, longest: Duration, now: Timestamp) -> bool {
    let late = |a: &AllocationResult| any(a) && time_left(a, longest, now).is_none();
    match state(claim) {
        State::Ready => false,
        State::Pending => allocation(claim).is_some_and(late),
        State::Failed(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(conditions: Value) -> ResourceClaim {
        serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {}, "status": {
            "allocation": {"allocationTimestamp": "2026-01-01T00:00:00Z", "devices": {"results": [
                {"request": "r", "driver": "d", "pool": "p", "device": "plain"},
                {"request": "r", "driver": "d", "pool": "p", "device": "far",
                    "bindingConditions": ["attached", "ready"], "bindingFailureConditions": ["broken"]}]}},
            "devices": [{"driver": "d", "pool": "p", "device": "far", "conditions": conditions}]}}))
        .unwrap()
    }

    fn condition(name: &str, status: &str) -> Value {
        json!({"type": name, "status": status, "reason": "Why", "message": "so \"it\" is",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn all_must_come_true_and_no_failure() {
        assert_eq!(state(&claim(json!([]))), State::Pending);
        assert_eq!(state(&claim(json!([condition("attached", "True")]))), State::Pending);
        let both = [condition("attached", "True"), condition("ready", "True")];
        assert_eq!(state(&claim(json!(both))), State::Ready);
        let no = [condition("attached", "True"), condition("ready", "False")];
        assert_eq!(state(&claim(json!(no))), State::Pending);
        let failed = [both[0].clone(), both[1].clone(), condition("broken", "True")];
        let text = r#"device binding failed: claim=c, reason=Why, message="so \"it\" is""#;
        assert_eq!(state(&claim(json!(failed))), State::Failed(text.into()));
    }

    #[test]
    fn who_waits_too_long_has_lost_it() {
        let (claim, longest) = (claim(json!([])), Duration::from_secs(600));
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(!is_lost(&claim, longest, at("2026-01-01T00:10:00Z")));
        assert!(is_lost(&claim, longest, at("2026-01-01T00:10:01Z")));
        let left = |now| time_left(allocation(&claim).unwrap(), longest, at(now));
        assert_eq!(left("2026-01-01T00:09:00Z"), Some(Duration::from_secs(60)));
        assert_eq!(left("2025-12-31T23:59:50Z"), Some(Duration::from_secs(610)));
    }
}
