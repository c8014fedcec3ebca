//! The pod state machine: PURE.
//!
//! [`decide`] takes what the API wants ([`Input::pod`]), what the runtime shows ([`Observed`]), what this
//! kubelet remembers about work in flight ([`Memory`]) and the time, and answers with the next actions, the
//! status to publish and the moment to look again. It does no input or output and reads no clock, so the tests
//! drive it against a model of a runtime that fails, lags and dies.
//!
//! Everything that must survive a kubelet's death is kept where the kubelet finds it again: restart counts,
//! back-off and spec hashes in the labels and annotations of containers, the rest in the pod's API status.
//!
//! Invariants:
//! - at most one instance of a container is created per attempt, and never while another one runs;
//! - an operation that is in flight is never issued twice (a stop may be repeated with a shorter grace period);
//! - a finished pod (phase Succeeded or Failed) never starts a container again.

pub(crate) mod admit;
mod conditions;
pub(crate) mod gate;
mod memory;
mod model;
mod plan;
mod restart;
mod spec;
mod status;
mod view;

#[cfg(test)]
mod converge;
#[cfg(test)]
mod tests;

pub use conditions::qos_class;
pub use memory::{Failure, Memory, Op, Outcome, ProbeResults};
pub use model::{Action, Decision, Exit, Input, Instance, NodeFacts, Observed, Sandbox, State};
pub use plan::decide;
pub use spec::{Role, Spec, containers, grace_period, spec_hash};

use jiff::{SignedDuration, Timestamp};

/// `t` plus `seconds`, saturating at the end of time.
pub(crate) fn after(t: Timestamp, seconds: i64) -> Timestamp {
    t.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}
