//! Costs counted while an expression runs.

use super::{AUTHORIZATION, FORMAT_REGEX, NOMINAL, REGEX, TRAVERSAL, scaled};
use crate::cel::error::EvalError;
use crate::cel::value::Value;

/// Counts up to a limit.
#[derive(Debug)]
pub struct Meter {
    spent: u64,
    limit: u64,
}

impl Meter {
    /// A meter that stops beyond `limit`.
    pub fn new(limit: u64) -> Self {
        Self { spent: 0, limit }
    }

    /// What has been spent.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// Spends.
    ///
    /// # Errors
    /// When that is more than the limit.
    pub fn spend(&mut self, cost: u64) -> Result<(), EvalError> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit { Err(EvalError::CostLimit) } else { Ok(()) }
    }

    pub fn select(&mut self) -> Result<(), EvalError> {
        self.spend(super::SELECT)
    }
    pub fn new_list(&mut self) -> Result<(), EvalError> {
        self.spend(super::NEW_LIST)
    }
    pub fn new_map(&mut self) -> Result<(), EvalError> {
        self.spend(super::NEW_MAP)
    }
    pub fn new_object(&mut self) -> Result<(), EvalError> {
        self.spend(super::NEW_OBJECT)
    }
}

fn size(value: &Value<'_>) -> u64 {
    match value {
        Value::Optional(Some(inner)) => size(inner),
        other => other.size().unwrap_or(1),
    }
}

/// What a call cost: `args` begin with the receiver.
pub fn call(function: &str, args: &[Value<'_>], result: Option<&Value<'_>>) -> u64 {
    let size_of = |i: usize| args.get(i).map_or(1, size);
    let walk = |i: usize| scaled(size_of(i), TRAVERSAL);
    let text = |i: usize| matches!(args.get(i), Some(Value::String(_) | Value::Bytes(_)));
    match function {
        name if NOMINAL.contains(&name) => 1,
        "check" => AUTHORIZATION,
        "fieldSelector" | "labelSelector" => selector(size_of(1)),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => args.first().map_or(0, traversal),
        "startsWith"
        | "endsWith"
        | "strings.quote"
        | "format"
        | "url"
        | "isURL"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => walk(0),
        "ip" if matches!(args.first(), Some(Value::Cidr(_))) => 1,
        "ip" => walk(0),
        "replace" | "split" | "ip.isCanonical" => scaled(size_of(0), 2.0 * TRAVERSAL),
        "join" => scaled(result.map_or(1, size), 2.0 * TRAVERSAL),
        "matches" | "find" | "findAll" => {
            scaled(size_of(0) + 1, TRAVERSAL).saturating_mul(scaled(size_of(1), REGEX))
        }
        "contains" => walk(0).saturating_mul(walk(1)),
        "validate" => scaled(size_of(1) + 1, TRAVERSAL).saturating_mul(scaled(FORMAT_REGEX, REGEX)),
        "containsIP" | "containsCIDR" => {
            let mut cost = scaled(size_of(0) * 2, TRAVERSAL);
            if function == "containsCIDR" {
                cost += walk(0) + 1;
            }
            if text(1) { cost + walk(1) } else { cost }
        }
        "bytes" | "string" if text(0) => match (function, &args[0]) {
            ("bytes", Value::String(_)) | ("string", Value::Bytes(_)) => walk(0),
            _ => 1,
        },
        "@in" if matches!(args.get(1), Some(Value::List(_))) => size_of(1),
        "_==_" | "_!=_"
            if matches!(
                args.first(),
                Some(Value::Quantity(_) | Value::Ip(_) | Value::Cidr(_) | Value::Format(_))
            ) =>
        {
            1
        }
        "_==_" | "_!=_" => scaled(size_of(0).min(size_of(1)), TRAVERSAL),
        "_<_" | "_<=_" | "_>_" | "_>=_" if text(0) => scaled(size_of(0).min(size_of(1)), TRAVERSAL),
        "_+_" if text(0) => scaled(size_of(0) + size_of(1), TRAVERSAL),
        _ => 1,
    }
}

/// Reading a selector text and making its requirements.
fn selector(length: u64) -> u64 {
    let requirements = scaled(length, 0.5);
    let each = (super::NEW_LIST + super::NEW_OBJECT) as f64;
    super::NEW_LIST + scaled(length, TRAVERSAL) + scaled(requirements, each)
}

/// Walking over a value with all its parts.
fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::String(s) => (s.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(b) => (b.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => list.iter().filter_map(Result::ok).map(|v| traversal(&v)).sum(),
        Value::Map(map) => map
            .keys()
            .iter()
            .map(|k| traversal(&k.value()) + map.get(k).and_then(Result::ok).map_or(0, |v| traversal(&v)))
            .sum(),
        _ => 1,
    }
}
