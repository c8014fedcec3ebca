//! How much of a shared device a request may take (KEP-5075).

use super::given;
use crate::object::ObjectExt as _;
use crate::quantity::Quantity;
use crate::status::{FieldError, Path};
use crate::validation::checks::{Errors, quantity};
use serde_json::Value;

const VALUES_MAX: usize = 10;

/// `value` is the whole capacity.
pub fn policy(value: Option<Quantity>, policy: &Value, at: Path<'_>, e: &mut Errors) {
    let whole = value.unwrap_or_else(|| Quantity::from_int(0));
    let (values, range) = (policy.items_at("validValues"), given(policy, "validRange"));
    let field = match (values.is_empty(), range) {
        (false, Some(_)) => {
            let detail = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            return e.forbidden(at, detail);
        }
        (false, None) => "validValues",
        (true, Some(_)) => "validRange",
        (true, None) => return,
    };
    let Some(default) = quantity(policy.get("default")) else {
        return e.required(at.child("default"), &format!("required when {field} is defined"));
    };
    match range {
        None => discrete(&default, &whole, values, at.child(field), e),
        Some(range) => continuous(&default, &whole, range, at.child(field), e),
    }
}

fn discrete(default: &Quantity, whole: &Quantity, values: &[Value], at: Path<'_>, e: &mut Errors) {
    let values: Vec<Quantity> = values.iter().filter_map(|v| quantity(Some(v))).collect();
    for (i, pair) in values.windows(2).enumerate().filter(|(_, pair)| pair[0] > pair[1]) {
        e.invalid(at.index(i + 1), pair[1].to_string(), "values must be sorted in ascending order");
    }
    if values.len() > VALUES_MAX {
        e.push(FieldError::too_many(at, values.len(), VALUES_MAX));
    } else {
        for (i, value) in values.iter().enumerate().filter(|(_, v)| *v > whole) {
            let detail = format!("option is larger than capacity value: {whole}");
            e.invalid(at.index(i), value.to_string(), detail);
        }
        for (i, value) in values.iter().enumerate() {
            if values[..i].iter().any(|v| v.value() == value.value()) {
                e.duplicate(at.index(i), value.value().to_string());
            }
        }
    }
    if values.len() > VALUES_MAX || !values.contains(default) {
        e.invalid(at, default.to_string(), "default value is not valid according to the requestPolicy");
    }
}

fn continuous(default: &Quantity, whole: &Quantity, range: &Value, at: Path<'_>, e: &mut Errors) {
    let Some(min) = quantity(range.get("min")) else {
        return e.required(at.child("min"), "required when validRange is defined");
    };
    let (max, step) = (quantity(range.get("max")), quantity(range.get("step")));
    if min > *whole {
        let detail = format!("min is larger than capacity value: {whole}");
        e.invalid(at.child("min"), min.to_string(), detail);
    }
    if *default < min {
        e.invalid(at.child("min"), default.to_string(), format!("default is less than min: {min}"));
    }
    if let Some(max) = &max {
        let at = at.child("max");
        if min > *max {
            e.invalid(at, min.to_string(), format!("min is larger than max: {max}"));
        }
        if max > whole {
            e.invalid(at, max.to_string(), format!("max is larger than capacity value: {whole}"));
        }
        if default > max {
            e.invalid(at, default.to_string(), format!("default is more than max: {max}"));
        }
    }
    let Some(step) = step else { return };
    let at = at.child("step");
    let first = min + step;
    if first > *whole {
        let detail = format!("one step {first} is larger than capacity value: {whole}");
        e.invalid(at, step.to_string(), detail);
    }
    for value in std::iter::once(*default).chain(max) {
        let off = value.value().saturating_sub(min.value()).checked_rem(step.value());
        if off != Some(0) {
            let detail = format!("value is not a multiple of a given step ({step}) from ({min})");
            e.invalid(at, value.to_string(), detail);
        }
    }
}
