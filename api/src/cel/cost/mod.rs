//! What expressions cost, in Kubernetes' units: estimated from declared sizes before, counted while they run.
//!
//! The figures are part of the API: a definition that 1.36 accepts must be accepted, and the other way round. They are
//! cel-go's for the standard functions and Kubernetes' own for its libraries.

mod estimate;
mod runtime;

pub use estimate::{Estimate, estimate};
pub use runtime::{Meter, call as runtime_call};

/// What one evaluation may cost.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// What all rules may cost for one object.
pub const OBJECT_BUDGET: u64 = 10_000_000;
/// What all match conditions of one policy or webhook may cost for one request.
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;
/// Highest estimate of one rule in a schema.
pub const RULE_LIMIT: u64 = 10_000_000;
/// Highest sum of estimates in a schema.
pub const SCHEMA_LIMIT: u64 = 100_000_000;
/// Longest text that a message expression may give, in bytes.
pub const MESSAGE_LIMIT: usize = 5 * 1024;

/// Reading a variable or a field.
const SELECT: u64 = 1;
const NEW_LIST: u64 = 10;
const NEW_MAP: u64 = 30;
const NEW_OBJECT: u64 = 40;
/// Walking over one character.
const TRAVERSAL: f64 = 0.1;
/// One character of a regular expression, for each unit of text.
const REGEX: f64 = 0.25;
/// One question to the authorizer: two fit into a call.
const AUTHORIZATION: u64 = 350_000;
/// Longest pattern behind a named format.
const FORMAT_REGEX: u64 = 128;

/// Functions of a nominal cost of one.
const NOMINAL: [&str; 38] = [
    "serviceAccount",
    "path",
    "group",
    "resource",
    "subresource",
    "namespace",
    "name",
    "allowed",
    "reason",
    "error",
    "errored",
    "masked",
    "prefixLength",
    "family",
    "isUnspecified",
    "isLoopback",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isGlobalUnicast",
    "format.named",
    "sign",
    "asInteger",
    "isInteger",
    "asApproximateFloat",
    "isGreaterThan",
    "isLessThan",
    "compareTo",
    "add",
    "sub",
    "major",
    "minor",
    "patch",
    "getScheme",
    "getHostname",
    "getHost",
    "getPort",
    "getEscapedPath",
    "getQuery",
];

/// `n` units at `factor` each, rounded up.
fn scaled(n: u64, factor: f64) -> u64 {
    let product = (n as f64 * factor).ceil();
    if product >= u64::MAX as f64 { u64::MAX } else { product as u64 }
}
