//! OpenAPI validation of values against a schema, with the words and the reasons that Kubernetes' clients see.
//!
//! An update is judged leniently where nothing changed (KEP-4008, ratcheting): a node that is as it was is not blamed.

use serde_json::{Number, Value};

use super::formats;
use super::schema::{Additional, Checks, ListType, Schema, Type};
use crate::status::FieldError;
use crate::text::quote;

/// Largest integer that a float holds without loss.
const SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

/// What is wrong with a value. `base` is the position of the value in the object (empty for the object itself);
/// `old` is what was there before, if anything.
pub fn validate(base: &str, schema: &Schema, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let walk = Walk { base };
    walk.ratcheted("", schema, value, old).errors
}

#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    /// How many checks were made: of several alternatives the one that came farthest tells why it failed.
    checks: usize,
}

impl Outcome {
    fn merge(&mut self, other: Self) {
        self.errors.extend(other.errors);
        self.checks += other.checks;
    }

    fn valid(&self) -> bool {
        self.errors.is_empty()
    }
}

struct Walk<'a> {
    base: &'a str,
}

/// The type of a JSON value, and its format where a number has one.
fn type_of(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(n) if n.is_f64() => ("number", "float64"),
        Value::Number(_) => ("integer", "int64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

fn whole(f: f64) -> bool {
    f.fract() == 0.0 && f.abs() <= SAFE_INTEGER
}

fn float(n: &Number) -> f64 {
    n.as_f64().unwrap_or_default()
}

/// A float as Go's `%v` writes it.
pub(super) fn go_float(f: f64) -> String {
    let magnitude = f.abs();
    if magnitude != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        let text = format!("{f:e}");
        let Some((mantissa, exponent)) = text.split_once('e') else { return text };
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    f.to_string()
}

impl Schema {
    /// Names of the types that a value may have.
    fn type_names(&self) -> &'static [&'static str] {
        match self.ty {
            _ if self.int_or_string => &["integer", "string"],
            Some(Type::Object) => &["object"],
            Some(Type::Array) => &["array"],
            Some(Type::String) => &["string"],
            Some(Type::Integer) => &["integer"],
            Some(Type::Number) => &["number"],
            Some(Type::Boolean) => &["boolean"],
            None => &[],
        }
    }

    /// The format, where Kubernetes knows it for the type; unknown ones are ignored.
    fn known_format(&self) -> &str {
        let Some(format) = self.checks.as_ref().and_then(|c| c.format.as_deref()) else { return "" };
        if formats::is_known(self.type_names(), format) { format } else { "" }
    }
}

impl Walk<'_> {
    fn at(&self, name: &str) -> String {
        let name = name.strip_prefix('.').unwrap_or(name);
        match (self.base, name) {
            ("", "") => "<nil>".into(),
            ("", name) => name.into(),
            (base, "") => base.into(),
            (base, name) => format!("{base}.{name}"),
        }
    }

    fn invalid(&self, name: &str, value: Value, text: &str) -> FieldError {
        FieldError::invalid(self.at(name), value, format!("{name} in body {text}"))
    }

    fn type_error(&self, name: &str, wanted: &str, found: &str) -> FieldError {
        let text = format!("{name} in body must be of type {wanted}: {}", quote(found));
        FieldError::type_invalid(self.at(name), found, text)
    }

    /// An error that Kubernetes gives without a field.
    fn bare(&self, text: String) -> FieldError {
        let field = if self.base.is_empty() { "<nil>" } else { self.base };
        FieldError::invalid(field, "", text)
    }

    /// A node with what was there before: what did not change is not blamed.
    fn ratcheted(&self, name: &str, schema: &Schema, value: &Value, old: Option<&Value>) -> Outcome {
        let mut outcome = self.node(name, schema, value, old);
        if !outcome.valid() && old == Some(value) {
            outcome.errors.clear();
        }
        outcome
    }

    fn node(&self, name: &str, schema: &Schema, value: &Value, old: Option<&Value>) -> Outcome {
        let mut out = Outcome::default();
        let types = schema.type_names();
        let format = schema.known_format();
        let typed = !types.is_empty() || !format.is_empty();
        if value.is_null() {
            if !types.is_empty() && !schema.nullable {
                out.errors.push(self.type_error(name, &types.join(","), "null"));
            }
            self.enumeration(name, schema, value, &mut out);
            return out;
        }
        if typed {
            match wrong_type(types, format, value) {
                Some((wanted, found)) => out.errors.push(self.type_error(name, &wanted, found)),
                None => out.checks += 1,
            }
            out.checks += 1;
        }
        if let Some(checks) = schema.checks.as_deref() {
            self.junctors(name, checks, value, old, &mut out);
            out.checks += 1;
            match value {
                Value::String(text) => self.string(name, checks, format, text, &mut out),
                Value::Number(n) => self.number(name, schema, checks, n, &mut out),
                _ => {}
            }
        }
        if let Value::Array(items) = value {
            self.list(name, schema, items, old, &mut out);
        }
        self.enumeration(name, schema, value, &mut out);
        if value.is_object() {
            self.object(name, schema, value, old, &mut out);
        }
        out.checks += 1;
        out
    }

    fn enumeration(&self, name: &str, schema: &Schema, value: &Value, out: &mut Outcome) {
        let Some(allowed) = schema.checks.as_ref().and_then(|c| c.r#enum.as_deref()) else { return };
        out.checks += 1;
        let same = |a: &Value| match (a, value) {
            (Value::Null, _) | (_, Value::Null) => false,
            (Value::Number(a), Value::Number(b)) => a == b || float(a) == float(b),
            (a, b) => a == b,
        };
        if !allowed.iter().any(same) {
            let texts: Vec<String> =
                allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            out.errors.push(FieldError::not_supported(self.at(name), value.clone(), &texts));
        }
    }

    fn string(&self, name: &str, checks: &Checks, format: &str, text: &str, out: &mut Outcome) {
        let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        out.checks += 1;
        if let Some(max) = checks.max_length.filter(|max| length > *max) {
            out.errors.push(FieldError::too_long(self.at(name), usize::try_from(max).unwrap_or(0)));
        } else if let Some(min) = checks.min_length.filter(|min| length < *min) {
            let why = format!("should be at least {min} chars long");
            out.errors.push(self.invalid(name, text.into(), &why));
        } else if let Some(pattern) = checks.pattern.as_ref().filter(|p| !p.matches(text)) {
            let why = format!("should match '{}'", pattern.text());
            out.errors.push(self.invalid(name, text.into(), &why));
        }
        if !format.is_empty() && !formats::matches(format, text) {
            out.errors.push(self.type_error(name, format, text));
        }
    }

    fn number(&self, name: &str, schema: &Schema, checks: &Checks, n: &Number, out: &mut Outcome) {
        let (ty, format) = match (schema.type_names(), checks.format.as_deref().unwrap_or_default()) {
            (["integer"], f @ ("int32" | "int64")) => ("integer", f),
            (["integer"], _) => ("integer", ""),
            (["number"], f @ ("float" | "double")) => ("number", f),
            (["number"], _) => ("number", ""),
            _ => ("", ""),
        };
        let range = |n: &Number, what: &str| -> Option<FieldError> {
            if in_range(n, ty, format) {
                return None;
            }
            let format = if format.is_empty() {
                "(default format)".to_owned()
            } else {
                format!("with format {format}")
            };
            Some(self.bare(format!("{what} value must be of type {ty} {format} in {name}")))
        };
        out.errors.extend(range(n, "Checked"));
        let value = Value::Number(n.clone());
        let integral = !n.is_f64();
        if let Some(factor) = &checks.multiple_of {
            let unfit = range(factor, "MultipleOf");
            let truncated = integral && unfit.is_none();
            out.errors.extend(unfit);
            let factor = if truncated { float(factor).trunc() } else { float(factor) };
            if factor <= 0.0 {
                let text =
                    format!("factor MultipleOf declared for {name} must be positive: {}", go_float(factor));
                out.errors.push(FieldError::invalid(self.at(name), number_value(factor), text));
            } else if !is_multiple(n, factor, truncated) {
                let why = format!("should be a multiple of {}", go_float(factor));
                out.errors.push(self.invalid(name, value.clone(), &why));
            }
        }
        if let Some(min) = &checks.minimum {
            let unfit = range(min, "Minimum boundary");
            let bound = if integral && unfit.is_none() { float(min).trunc() } else { float(min) };
            out.errors.extend(unfit);
            let below = if checks.exclusive_minimum { float(n) <= bound } else { float(n) < bound };
            if below {
                let word = if checks.exclusive_minimum { "greater than" } else { "greater than or equal to" };
                out.errors.push(self.invalid(
                    name,
                    value.clone(),
                    &format!("should be {word} {}", go_float(bound)),
                ));
            }
        }
        if let Some(max) = &checks.maximum {
            let unfit = range(max, "Maximum boundary");
            let bound = if integral && unfit.is_none() { float(max).trunc() } else { float(max) };
            out.errors.extend(unfit);
            let above = if checks.exclusive_maximum { float(n) >= bound } else { float(n) > bound };
            if above {
                let word = if checks.exclusive_maximum { "less than" } else { "less than or equal to" };
                out.errors.push(self.invalid(name, value, &format!("should be {word} {}", go_float(bound))));
            }
        }
        out.checks += 2;
    }

    fn list(&self, name: &str, schema: &Schema, items: &[Value], old: Option<&Value>, out: &mut Outcome) {
        if let Some(below) = schema.items.as_deref() {
            let before = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            for (i, item) in items.iter().enumerate() {
                out.merge(self.ratcheted(
                    &format!("{name}[{i}]"),
                    below,
                    item,
                    counterpart(schema, before, item),
                ));
            }
        }
        out.checks += 1;
        let Some(checks) = schema.checks.as_deref() else { return };
        let size = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(min) = checks.min_items.filter(|min| size < *min) {
            out.errors.push(self.invalid(name, size.into(), &format!("should have at least {min} items")));
        }
        if let Some(max) = checks.max_items.filter(|max| size > *max) {
            let max = usize::try_from(max).unwrap_or(0);
            out.errors.push(FieldError::too_many(self.at(name), items.len(), max));
        }
        if checks.unique_items && items.iter().enumerate().any(|(i, v)| items[..i].contains(v)) {
            out.errors.push(self.invalid(name, "".into(), "shouldn't contain duplicates"));
        }
    }

    fn object(&self, name: &str, schema: &Schema, value: &Value, old: Option<&Value>, out: &mut Outcome) {
        let Some(map) = value.as_object() else { return };
        out.checks += 1;
        let size = i64::try_from(map.len()).unwrap_or(i64::MAX);
        let checks = schema.checks.as_deref();
        if let Some(min) = checks.and_then(|c| c.min_properties).filter(|min| size < *min) {
            out.errors.push(self.invalid(
                name,
                size.into(),
                &format!("should have at least {min} properties"),
            ));
        }
        if let Some(max) = checks.and_then(|c| c.max_properties).filter(|max| size > *max) {
            let max = usize::try_from(max).unwrap_or(0);
            out.errors.push(FieldError::too_many(self.at(name), map.len(), max));
        }
        let before = |field: &str| {
            // What type an object is of is never as it was: both are shown in the same version.
            let type_meta = name.is_empty() && self.base.is_empty() && matches!(field, "apiVersion" | "kind");
            old.and_then(|o| o.get(field)).filter(|_| !type_meta)
        };
        match schema.additional_properties.as_deref() {
            Some(Additional::Any(false)) => {
                for key in map.keys().filter(|k| schema.properties.get(k).is_none()) {
                    let text = format!("{name}.{key} in body is a forbidden property");
                    out.errors.push(FieldError::invalid(self.at(name), key.as_str(), text));
                }
            }
            Some(Additional::Schema(below)) => {
                for (key, value) in map.iter().filter(|(k, _)| schema.properties.get(k).is_none()) {
                    out.merge(self.ratcheted(&format!("{name}.{key}"), below, value, before(key)));
                }
            }
            Some(Additional::Any(true)) | None => {}
        }
        for (field, below) in schema.properties.iter() {
            if let Some(value) = map.get(field) {
                let path = if name.is_empty() { field.to_owned() } else { format!("{name}.{field}") };
                out.merge(self.ratcheted(&path, below, value, before(field)));
            }
        }
        for field in checks.map(|c| &*c.required).unwrap_or_default() {
            if !map.contains_key(&**field) {
                out.errors.push(FieldError::required(self.at(&format!("{name}.{field}")), ""));
            }
        }
    }

    fn junctors(&self, name: &str, checks: &Checks, value: &Value, old: Option<&Value>, out: &mut Outcome) {
        let name_quoted = quote(name);
        if !checks.any_of.is_empty() {
            match self.alternatives(name, &checks.any_of, value, old) {
                (0, best) => {
                    out.errors
                        .push(self.bare(format!("{name_quoted} must validate at least one schema (anyOf)")));
                    out.merge(best);
                }
                (_, first) => out.merge(first),
            }
        }
        if !checks.one_of.is_empty() {
            let one = |why: &str| {
                self.bare(format!("{name_quoted} must validate one and only one schema (oneOf). {why}"))
            };
            match self.alternatives(name, &checks.one_of, value, old) {
                (0, best) => {
                    out.errors.push(one("Found none valid"));
                    out.merge(best);
                }
                (1, first) => out.merge(first),
                (n, _) => out.errors.push(one(&format!("Found {n} valid alternatives"))),
            }
        }
        if !checks.all_of.is_empty() {
            let mut valid = 0;
            for schema in &checks.all_of {
                let outcome = self.node(name, schema, value, old);
                valid += usize::from(outcome.valid());
                out.merge(outcome);
            }
            if valid < checks.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                out.errors
                    .push(self.bare(format!("{name_quoted} must validate all the schemas (allOf){none}")));
            }
        }
        if let Some(not) = checks.not.as_deref()
            && self.node(name, not, value, old).valid()
        {
            out.errors.push(self.bare(format!("{name_quoted} must not validate the schema (not)")));
        }
    }

    /// How many alternatives hold, with the outcome of the first that does, or of the failure that came farthest.
    fn alternatives(
        &self,
        name: &str,
        schemas: &[Schema],
        value: &Value,
        old: Option<&Value>,
    ) -> (usize, Outcome) {
        let (mut valid, mut kept): (usize, Option<Outcome>) = (0, None);
        for schema in schemas {
            let outcome = self.node(name, schema, value, old);
            if outcome.valid() {
                valid += 1;
                if valid == 1 {
                    kept = Some(outcome);
                }
            } else if valid == 0 && kept.as_ref().is_none_or(|k| outcome.checks > k.checks) {
                kept = Some(outcome);
            }
        }
        (valid, kept.unwrap_or_default())
    }
}

/// The item of an earlier list that an item of a list map was; items of other lists are not told apart.
fn counterpart<'o>(schema: &Schema, old: &'o [Value], item: &Value) -> Option<&'o Value> {
    if schema.list_type != Some(ListType::Map) {
        return None;
    }
    old.iter().find(|o| schema.list_map_keys.iter().all(|k| o.get(&**k) == item.get(&**k)))
}

/// What was wanted and what was found, when a value has the wrong type.
fn wrong_type(types: &[&str], format: &str, value: &Value) -> Option<(String, &'static str)> {
    let (found, found_format) = type_of(value);
    let has = |t: &str| types.contains(&t);
    let float_integer = found == "number" && value.as_f64().is_some_and(whole) && has("integer");
    let integer_float = found == "integer" && has("number");
    let textual = matches!(found, "string" | "array");
    let fits = has(found) || float_integer || integer_float;
    if !format.is_empty() {
        // A format decides for texts and lists, a number's format stands for its type.
        if textual {
            if !has("number") && !has("integer") {
                return None;
            }
        } else if !fits && found_format != format {
            return Some((format.to_owned(), found_format));
        }
    }
    (!fits).then(|| (types.join(","), found))
}

/// Whether a number fits a type and format.
fn in_range(n: &Number, ty: &str, format: &str) -> bool {
    let f = float(n);
    match (ty, format) {
        ("integer", "int32") => f.fract() == 0.0 && f.abs() <= 2_147_483_648.0 && f < 2_147_483_648.0,
        ("integer", _) => n.is_i64() || (n.is_f64() && f.fract() == 0.0 && f.abs() < 9.3e18),
        (_, "float") => f.abs() <= f64::from(f32::MAX),
        _ => true,
    }
}

fn is_multiple(n: &Number, factor: f64, integral: bool) -> bool {
    if let (true, Some(value)) = (integral, n.as_i64()) {
        let factor = factor as i64;
        return factor != 0 && value % factor == 0;
    }
    let value = float(n);
    whole(if factor < 1.0 { 1.0 / factor * value } else { value / factor })
}

fn number_value(f: f64) -> Value {
    if whole(f) { Value::from(f as i64) } else { Value::from(f) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(schema: &Value, value: &Value, old: Option<&Value>) -> Vec<String> {
        let schema = Schema::parse(schema).expect("schema");
        validate("", &schema, value, old).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn messages() {
        let schema = json!({"type": "object", "properties": {"s": {"type": "object", "required": ["r"], "properties": {
            "i": {"type": "integer", "minimum": 1, "maximum": 10, "multipleOf": 2},
            "f": {"type": "number", "exclusiveMinimum": true, "minimum": 0.5},
            "t": {"type": "string", "maxLength": 3, "minLength": 2, "pattern": "^[a-z]*$"},
            "e": {"type": "string", "enum": ["a", "b"]}, "n": {"type": "string", "nullable": true},
            "p": {"x-kubernetes-int-or-string": true}, "w": {"type": "string", "format": "date-time"},
            "l": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string"}},
            "m": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "integer"}},
            "o": {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"}}}}});
        for (value, want) in [
            (json!({"r": 1}), vec![]),
            (json!({}), vec!["s.r: Required value"]),
            (
                json!({"r": 1, "i": 12}),
                vec!["s.i: Invalid value: 12: s.i in body should be less than or equal to 10"],
            ),
            (json!({"r": 1, "i": 3}), vec!["s.i: Invalid value: 3: s.i in body should be a multiple of 2"]),
            (json!({"r": 1, "i": 4.0}), vec![]),
            (
                json!({"r": 1, "i": 3.5}),
                vec![
                    "s.i: Invalid value: \"number\": s.i in body must be of type integer: \"number\"",
                    "<nil>: Invalid value: \"\": Checked value must be of type integer (default format) in s.i",
                    "s.i: Invalid value: 3.5: s.i in body should be a multiple of 2",
                ],
            ),
            (
                json!({"r": 1, "f": 0.5}),
                vec!["s.f: Invalid value: 0.5: s.f in body should be greater than 0.5"],
            ),
            (json!({"r": 1, "t": "abcd"}), vec!["s.t: Too long: may not be more than 3 bytes"]),
            (
                json!({"r": 1, "t": "a"}),
                vec!["s.t: Invalid value: \"a\": s.t in body should be at least 2 chars long"],
            ),
            (
                json!({"r": 1, "t": "AB"}),
                vec!["s.t: Invalid value: \"AB\": s.t in body should match '^[a-z]*$'"],
            ),
            (
                json!({"r": 1, "e": "c"}),
                vec!["s.e: Unsupported value: \"c\": supported values: \"a\", \"b\""],
            ),
            (json!({"r": 1, "n": null, "p": 1}), vec![]),
            (json!({"r": 1, "p": "x"}), vec![]),
            (
                json!({"r": 1, "p": true}),
                vec![
                    "s.p: Invalid value: \"boolean\": s.p in body must be of type integer,string: \"boolean\"",
                ],
            ),
            (
                json!({"r": 1, "e": null}),
                vec![
                    "s.e: Invalid value: \"null\": s.e in body must be of type string: \"null\"",
                    "s.e: Unsupported value: null: supported values: \"a\", \"b\"",
                ],
            ),
            (
                json!({"r": 1, "w": "x"}),
                vec!["s.w: Invalid value: \"x\": s.w in body must be of type date-time: \"x\""],
            ),
            (
                json!({"r": 1, "l": []}),
                vec!["s.l: Invalid value: 0: s.l in body should have at least 1 items"],
            ),
            (
                json!({"r": 1, "l": ["a", 1, "b"]}),
                vec![
                    "s.l[1]: Invalid value: \"integer\": s.l[1] in body must be of type string: \"integer\"",
                    "s.l: Too many: 3: must have at most 2 items",
                ],
            ),
            (
                json!({"r": 1, "m": {"a": "x"}}),
                vec!["s.m.a: Invalid value: \"string\": s.m.a in body must be of type integer: \"string\""],
            ),
            (
                json!({"r": 1, "o": {"a": 1, "b": 1}}),
                vec![
                    "<nil>: Invalid value: \"\": \"s.o\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
                ],
            ),
            (
                json!({"r": 1, "o": {}}),
                vec![
                    "<nil>: Invalid value: \"\": \"s.o\" must validate one and only one schema (oneOf). Found none valid",
                    "s.o.a: Required value",
                ],
            ),
        ] {
            assert_eq!(texts(&schema, &json!({"s": value.clone()}), None), want, "{value}");
        }
    }

    #[test]
    fn what_did_not_change_is_not_blamed() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "integer", "maximum": 3}, "b": {"type": "integer", "maximum": 3},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 3}}}}}});
        let old = json!({"a": 5, "b": 1, "l": [{"k": "x", "v": 9}]});
        let new = json!({"a": 5, "b": 2, "l": [{"k": "y", "v": 1}, {"k": "x", "v": 9, "w": 1}]});
        assert!(texts(&schema, &new, Some(&old)).is_empty());
        let new = json!({"a": 6, "b": 1, "l": [{"k": "y", "v": 9}]});
        assert_eq!(texts(&schema, &new, Some(&old)).len(), 2);
    }

    #[test]
    fn floats_are_written_as_go_does() {
        for (f, want) in [(10.0, "10"), (0.5, "0.5"), (1e21, "1e+21"), (1e-7, "1e-07"), (-2.5e30, "-2.5e+30")]
        {
            assert_eq!(go_float(f), want);
        }
    }
}
