//! The errors found so far, and the checks that many fields share.

use crate::internal;
use crate::names;
use crate::object::{Labels, ObjectExt as _};
use crate::quantity::Quantity;
use crate::selector::LabelSelector;
use crate::status::{BadValue, FieldError, Path};
use serde_json::Value;

pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const IMMUTABLE: &str = "field is immutable";

/// The errors found so far.
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    /// How many there are by now.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
    pub fn extend(&mut self, errors: Vec<FieldError>) {
        self.0.extend(errors);
    }
    pub fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Forgets what was found.
    pub fn clear(&mut self) {
        self.0.clear();
    }
    pub fn required(&mut self, at: Path<'_>, detail: &str) {
        self.push(FieldError::required(at, detail));
    }
    pub fn invalid(&mut self, at: Path<'_>, value: impl Into<BadValue>, detail: impl Into<String>) {
        self.push(FieldError::invalid(at, value, detail));
    }
    /// `Invalid` with a value that is printed without quotes.
    pub fn bare_value(&mut self, at: Path<'_>, value: &str, detail: &str) {
        self.invalid(at, BadValue::Internal(value.to_owned()), detail);
    }
    /// `Invalid` without the value.
    pub fn bare(&mut self, at: Path<'_>, detail: &str) {
        self.push(FieldError { value: None, ..FieldError::invalid(at, Value::Null, detail) });
    }
    pub fn forbidden(&mut self, at: Path<'_>, detail: &str) {
        self.push(FieldError::forbidden(at, detail));
    }
    pub fn duplicate(&mut self, at: Path<'_>, value: impl Into<BadValue>) {
        self.push(FieldError::duplicate(at, value));
    }
    pub fn unsupported(&mut self, at: Path<'_>, value: &str, supported: &[&str]) {
        self.push(FieldError::not_supported(at, value, supported));
    }

    /// One `Invalid` per message.
    pub fn all(&mut self, at: Path<'_>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(at, value, message);
        }
    }

    /// A string that has to be one of several; `Required` when it is empty.
    pub fn one_of(&mut self, at: Path<'_>, value: &str, supported: &[&str]) {
        if value.is_empty() {
            self.required(at, "");
        } else if !supported.contains(&value) {
            self.unsupported(at, value, supported);
        }
    }

    /// A string that, when it is there, has to be one of several.
    pub fn optional_one_of(&mut self, at: Path<'_>, value: &str, supported: &[&str]) {
        if !value.is_empty() && !supported.contains(&value) {
            self.unsupported(at, value, supported);
        }
    }

    /// A field that, when it is there at all, has to be one of several; empty is none of them.
    pub fn known(&mut self, at: Path<'_>, value: Option<&Value>, supported: &[&str]) {
        if let Some(value) = value.and_then(Value::as_str).filter(|v| !supported.contains(v)) {
            self.unsupported(at, value, supported);
        }
    }

    /// An integer field that may not be negative.
    pub fn not_negative(&mut self, at: Path<'_>, o: &Value, field: &str) {
        if let Some(n) = o.int_at(field).filter(|n| *n < 0) {
            self.invalid(at.child(field), n, NOT_NEGATIVE);
        }
    }

    /// A label selector object.
    pub fn selector(&mut self, at: Path<'_>, selector: Option<&Value>) {
        let Some(selector) = selector.filter(|s| !s.is_null()) else { return };
        let matched = Labels::new(selector.get("matchLabels").and_then(Value::as_object));
        self.label_map(at.child("matchLabels"), matched);
        let list = at.child("matchExpressions");
        for (i, expression) in selector.items_at("matchExpressions").iter().enumerate() {
            self.selector_expression(list.index(i), expression);
        }
    }

    fn selector_expression(&mut self, at: Path<'_>, expression: &Value) {
        let values = expression.items_at("values");
        match expression.str_at("operator") {
            "In" | "NotIn" if values.is_empty() => {
                self.required(at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                self.forbidden(at.child("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => self.invalid(at.child("operator"), other, "not a valid selector operator"),
        }
        let key = expression.str_at("key");
        self.all(at.child("key"), key, names::qualified_name(key));
        let list = at.child("values");
        for (i, value) in values.iter().filter_map(Value::as_str).enumerate() {
            self.all(list.index(i), value, names::label_value(value));
        }
    }

    /// The keys and values of labels, all reported at the same field.
    pub fn label_map(&mut self, at: Path<'_>, labels: Labels<'_>) {
        for (key, value) in labels.iter() {
            self.all(at, key, names::qualified_name(key));
            self.all(at, value, names::label_value(value));
        }
    }

    /// A field that an update may not change.
    ///
    /// `ty` is its internal type (see [`crate::internal`]).
    pub fn immutable(&mut self, at: Path<'_>, ty: &'static str, new: &Value, old: &Value, field: &str) {
        let (new, old) = (new.at(field), old.at(field));
        if !internal::same(ty, new, old) {
            self.invalid(at.child(field), BadValue::internal(ty, new), IMMUTABLE);
        }
    }

    /// An IP address.
    pub fn ip(&mut self, at: Path<'_>, value: &str) {
        super::addresses::ip(at, value, self);
    }

    /// A port given as a number or a name.
    pub fn port_or_name(&mut self, at: Path<'_>, port: Option<&Value>) {
        match port {
            Some(Value::String(name)) => self.all(at, name, names::port_name(name)),
            Some(Value::Number(n)) => {
                for message in names::port_number(n.as_i64().unwrap_or(0)) {
                    self.invalid(at, n.as_i64().unwrap_or(0), message);
                }
            }
            _ => self.invalid(at, 0, "must be between 1 and 65535, inclusive"),
        }
    }

    /// A number that is not negative, or a percentage.
    pub fn int_or_percent(&mut self, at: Path<'_>, value: Option<&Value>) {
        match value {
            Some(Value::String(s)) if percent(s).is_none() => {
                self.invalid(at, s.as_str(), PERCENT);
            }
            Some(Value::Number(n)) if n.as_i64().is_some_and(|n| n < 0) => {
                self.invalid(at, n.as_i64().unwrap_or(0), NOT_NEGATIVE);
            }
            _ => {}
        }
    }
}

const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// The number of a percentage, `25%`.
pub fn percent(s: &str) -> Option<i64> {
    let digits = s.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The number of an int-or-percent value, without regard to which it is.
pub fn scaled(v: Option<&Value>) -> Option<i64> {
    match v? {
        Value::Number(n) => n.as_i64(),
        Value::String(s) => percent(s),
        _ => None,
    }
}

/// The quantity in a JSON string.
pub fn quantity(v: Option<&Value>) -> Option<Quantity> {
    Quantity::parse(v?.as_str()?).ok()
}

/// Whether labels of a template meet a workload's selector; a selector that is no selector meets nothing.
pub fn selects(selector: Option<&Value>, labels: Option<&Value>) -> bool {
    let labels = Labels::new(labels.and_then(Value::as_object));
    LabelSelector::from_object(selector).is_ok_and(|s| s.matches(labels))
}

/// Whether a selector is well-formed.
pub fn selector_parses(selector: &Value) -> bool {
    let labels = Labels::new(selector.get("matchLabels").and_then(Value::as_object));
    let good = |key: &str| names::qualified_name(key).is_empty();
    LabelSelector::from_object(Some(selector)).is_ok()
        && labels.iter().all(|(k, v)| good(k) && names::label_value(v).is_empty())
        && selector.items_at("matchExpressions").iter().all(|x| good(x.str_at("key")))
        && selector.items_at("matchExpressions").iter().all(|x| {
            !matches!(x.str_at("operator"), "Exists" | "DoesNotExist") || x.items_at("values").is_empty()
        })
}

/// Whether a selector has no requirements.
pub fn selector_empty(selector: &Value) -> bool {
    let empty = |field: &str| match selector.get(field) {
        Some(Value::Object(m)) => m.is_empty(),
        Some(Value::Array(a)) => a.is_empty(),
        _ => true,
    };
    empty("matchLabels") && empty("matchExpressions")
}
