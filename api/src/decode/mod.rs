//! Decoding: from bytes to a JSON value, and from any JSON value to a well-typed object of a kind.
//!
//! [`normalize`] does what Kubernetes' decoding into a Go struct and encoding it again does to an object:
//! wrong types are errors, unknown fields are dropped (and reported), nulls and empty optional collections
//! vanish, quantities and timestamps take their canonical form, and fields that are always written appear.

mod json;
mod order;
mod yaml;

pub use json::parse_json;
pub use order::in_document_order;
pub use yaml::{Yaml, duplicates_error, parse_yaml};

use crate::quantity::Quantity;
use crate::schema::{Base, Field, Presence, Shape, Ty, Type};
use crate::status::{BadValue, FieldError};
use crate::text::{json_type, quote};
use crate::time;
use serde_json::{Map, Value};

/// Most nesting that a document may have.
const MAX_DEPTH: usize = 120;

/// What decoding dropped: the strict mode of `fieldValidation` refuses it, `Warn` warns about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dropped {
    /// `duplicate field "spec.replicas"` or `unknown field "spec.foo"`, in Kubernetes' words.
    pub messages: Vec<String>,
    /// What a YAML document has twice: `line 5: key "a" already set in map`. Told before the messages.
    pub lines: Vec<String>,
    /// Lists and maps that were sent empty and are written as if they were absent: where, and how they read. Messages
    /// show them as they were sent.
    pub empties: Vec<(String, &'static str)>,
    /// The way to a number that does not fit its field. The value may have lost digits; see [`number_as_sent`].
    misfit: Option<Vec<json::Step>>,
}

/// Puts lists and maps that were sent empty into messages that would say that they are absent.
pub fn as_sent(errors: &mut [FieldError], empties: &[(String, &'static str)]) {
    for error in errors {
        let absent = match &error.value {
            Some(BadValue::Api(value)) => value.is_null(),
            Some(BadValue::Internal(text)) => text == "null",
            None => false,
        };
        if let Some((_, text)) = empties.iter().find(|(path, _)| absent && *path == error.field) {
            error.value = Some(BadValue::Internal((*text).to_owned()));
        }
    }
}

/// A document that is not what it has to be; the text is Go's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// Makes a JSON value a well-typed, canonical object of the type, in place.
///
/// # Errors
/// With the text of the Go decoder when a value has a wrong type.
pub fn normalize(ty: &'static Type, object: &mut Value, dropped: &mut Dropped) -> Result<(), DecodeError> {
    normalize_from(Source::Json, ty, object, dropped)
}

/// What Go's decoder reads from, which decides what its errors say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A JSON document.
    Json,
    /// A map in memory, as strategic merge leaves it.
    Map,
}

/// [`normalize`] with the errors of a source.
///
/// # Errors
/// With the text of the Go decoder when a value has a wrong type.
pub fn normalize_from(
    source: Source,
    ty: &'static Type,
    object: &mut Value,
    dropped: &mut Dropped,
) -> Result<(), DecodeError> {
    let mut n = Normalizer { path: Vec::new(), dropped, source };
    match object {
        Value::Object(map) => n.fields(ty, map),
        other => {
            let name = ty.name.split_once('.').map_or(ty.name, |(_, rest)| rest);
            Err(DecodeError(format!(
                "json: cannot unmarshal {} into Go value of type {name}",
                json_type(other)
            )))
        }
    }
}

/// The empty value of a type whose fields are all absent: the fields that are always written.
pub fn empty(ty: &'static Type) -> Value {
    let mut map = Map::new();
    fill(ty, &mut map, 0);
    Value::Object(map)
}

/// Adds the fields that are always written and are not there.
fn fill(ty: &'static Type, map: &mut Map<String, Value>, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    for field in ty.always() {
        if !map.contains_key(field.name) {
            let value =
                if field.presence == Presence::AlwaysNull { Value::Null } else { zero(field.ty, depth) };
            map.insert(field.name.to_owned(), value);
        }
    }
}

/// The zero value of a type.
fn zero(ty: Ty, depth: usize) -> Value {
    match ty.shape() {
        Shape::List(_) | Shape::Map(_) => Value::Null,
        Shape::Struct(t) => {
            let mut map = Map::new();
            fill(t, &mut map, depth + 1);
            Value::Object(map)
        }
        Shape::Scalar(base) => match base {
            Base::Bool => Value::Bool(false),
            Base::Int32 | Base::Int64 | Base::Number | Base::IntOrString => Value::from(0),
            Base::String => Value::String(String::new()),
            Base::Quantity => Value::String("0".into()),
            _ => Value::Null,
        },
    }
}

/// Puts the digits of the document into the message about a number that does not fit its field: Go shows what was
/// written (`1e3`, `99999999999999999999`), where a parsed number would show what it became.
pub fn number_as_sent(bytes: &[u8], dropped: &Dropped, error: &mut DecodeError) {
    let Some((path, (before, after))) = dropped.misfit.as_deref().zip(error.0.split_once(NUMBER)) else {
        return;
    };
    if let (Some(digits), Some((_, after))) = (json::raw_at(bytes, path), after.split_once(' ')) {
        error.0 = format!("{before}{NUMBER}{digits} {after}");
    }
}

/// What goes before the digits of a number that does not fit.
const NUMBER: &str = "cannot unmarshal number ";

struct Normalizer<'a> {
    path: Vec<PathStep>,
    dropped: &'a mut Dropped,
    source: Source,
}

#[derive(Clone, Copy)]
enum PathStep {
    Field(&'static str),
    Index(usize),
}

impl PathStep {
    fn owned(&self) -> json::Step {
        match self {
            Self::Field(name) => json::Step::Field((*name).to_owned()),
            Self::Index(i) => json::Step::Index(*i),
        }
    }
}

impl Normalizer<'_> {
    fn unknown(&mut self, key: &str) {
        let mut out = self.here();
        if !out.is_empty() {
            out.push('.');
        }
        out.push_str(key);
        self.dropped.messages.push(json::unknown(&out));
    }

    /// The place that the path leads to: `spec.containers[0].name`.
    fn here(&self) -> String {
        let mut out = String::new();
        for step in &self.path {
            match step {
                PathStep::Field(name) if out.is_empty() => out.push_str(name),
                PathStep::Field(name) => {
                    out.push('.');
                    out.push_str(name);
                }
                PathStep::Index(i) => out.push_str(&format!("[{i}]")),
            }
        }
        out
    }

    /// Go's text for a value of the wrong type in the field that the path ends with.
    fn mismatch(&mut self, owner: &Type, ty: Ty, value: &Value) -> DecodeError {
        if self.source == Source::Map {
            return DecodeError(map_mismatch(ty, value));
        }
        let fields: Vec<&str> = self
            .path
            .iter()
            .filter_map(|s| match s {
                PathStep::Field(name) => Some(*name),
                PathStep::Index(_) => None,
            })
            .collect();
        let found = match value {
            Value::Number(n) if matches!(ty.shape(), Shape::Scalar(Base::Int32 | Base::Int64)) => {
                self.dropped.misfit = Some(self.path.iter().map(PathStep::owned).collect());
                format!("number {n}")
            }
            other => json_type(other).to_owned(),
        };
        let wanted = match ty.shape() {
            Shape::Scalar(Base::Time | Base::MicroTime) => "string".to_owned(),
            _ => ty.go_name(),
        };
        DecodeError(format!(
            "json: cannot unmarshal {found} into Go struct field {}.{} of type {wanted}",
            owner.go_name(),
            fields.join("."),
        ))
    }

    fn fields(&mut self, ty: &'static Type, map: &mut Map<String, Value>) -> Result<(), DecodeError> {
        if self.path.len() > MAX_DEPTH {
            return Err(DecodeError("exceeded max depth".into()));
        }
        let mut result = Ok(());
        map.retain(|key, value| {
            if result.is_err() {
                return true;
            }
            let Some(field) = ty.field(key) else {
                self.unknown(key);
                return false;
            };
            self.path.push(PathStep::Field(field.name));
            let kept = self.value(ty, field.ty, value);
            let vanishes = vanishes(field, value);
            if vanishes && let Some(text) = empty_text(value) {
                let here = self.here();
                self.dropped.empties.push((here, text));
            }
            self.path.pop();
            match kept {
                Ok(present) => present && !vanishes,
                Err(e) => {
                    result = Err(e);
                    true
                }
            }
        });
        result?;
        fill(ty, map, self.path.len());
        Ok(())
    }

    /// Normalizes a value; answers whether it is set (null is not).
    fn value(&mut self, owner: &'static Type, ty: Ty, value: &mut Value) -> Result<bool, DecodeError> {
        if value.is_null() {
            return Ok(false);
        }
        match (ty.shape(), &mut *value) {
            (Shape::Struct(t), Value::Object(map)) => self.fields(t, map)?,
            (Shape::List(inner), Value::Array(items)) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.path.push(PathStep::Index(i));
                    let set = self.value(owner, inner, item);
                    self.path.pop();
                    if !set? {
                        *item = zero(inner, self.path.len());
                    }
                }
            }
            (Shape::Map(inner), Value::Object(map)) => {
                for item in map.values_mut() {
                    if !self.value(owner, inner, item)? {
                        *item = zero(inner, self.path.len());
                    }
                }
            }
            (Shape::Scalar(base), _) => self.scalar(owner, ty, base, value)?,
            _ => return Err(self.mismatch(owner, ty, value)),
        }
        Ok(true)
    }

    fn scalar(&mut self, owner: &Type, ty: Ty, base: Base, value: &mut Value) -> Result<(), DecodeError> {
        let good = match (base, &*value) {
            (Base::Any, _)
            | (Base::Raw, Value::Object(_))
            | (Base::Bool, Value::Bool(_))
            | (Base::String, Value::String(_))
            | (Base::Number, Value::Number(_)) => true,
            (Base::Int32, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            (Base::Int64, Value::Number(n)) => n.is_i64(),
            (Base::IntOrString, Value::String(_)) => true,
            (Base::IntOrString, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            // A Raw field may hold any JSON; RawExtension keeps it as it came.
            (Base::Raw, _) => true,
            (Base::Bytes, Value::String(s)) => {
                check_base64(s)?;
                true
            }
            (Base::Quantity, Value::String(_) | Value::Number(_)) => {
                let text = match &*value {
                    Value::String(s) => s.trim().to_owned(),
                    other => other.to_string(),
                };
                let q = Quantity::parse(&text).map_err(|e| DecodeError(e.to_string()))?;
                *value = Value::String(q.to_string());
                return Ok(());
            }
            (Base::Time | Base::MicroTime, Value::String(s)) => {
                let t = time::parse(s).ok_or_else(|| bad_time(s, base))?;
                let canonical = if base == Base::Time { time::rfc3339(t) } else { time::rfc3339_micro(t) };
                if canonical != *s {
                    *value = Value::String(canonical);
                }
                return Ok(());
            }
            _ => false,
        };
        if good { Ok(()) } else { Err(self.mismatch(owner, ty, value)) }
    }
}

/// The text of apimachinery's converter from maps for a value of the wrong type.
fn map_mismatch(ty: Ty, value: &Value) -> String {
    let kind = match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    };
    match ty.shape() {
        Shape::List(_) => format!("cannot restore slice from {kind}"),
        Shape::Map(_) => format!("cannot restore map from {kind}"),
        Shape::Struct(_) => format!("cannot restore struct from: {kind}"),
        // Go converts numbers to one another and integers to text, if not here.
        Shape::Scalar(Base::String) if kind == "int64" => "cannot convert int64 to string".into(),
        Shape::Scalar(Base::Int32 | Base::Int64) if kind == "float64" => {
            format!("cannot convert float64 to {}", ty.go_name())
        }
        Shape::Scalar(Base::Time | Base::MicroTime) => {
            format!("json: cannot unmarshal {} into Go value of type string", json_type(value))
        }
        Shape::Scalar(Base::IntOrString) => match value {
            Value::Number(n) => format!("json: cannot unmarshal number {n} into Go value of type int32"),
            other => format!("json: cannot unmarshal {} into Go value of type int32", json_type(other)),
        },
        Shape::Scalar(_) => format!("unrecognized type: {}", ty.go_name()),
    }
}

fn bad_time(s: &str, base: Base) -> DecodeError {
    let layout =
        if base == Base::Time { "2006-01-02T15:04:05Z07:00" } else { "2006-01-02T15:04:05.000000Z07:00" };
    let text = quote(s);
    DecodeError(format!("parsing time {text} as \"{layout}\": cannot parse {text} as \"2006\""))
}

fn check_base64(s: &str) -> Result<(), DecodeError> {
    use base64::DecodeError as B64;
    use base64::Engine as _;
    // Go's decoder skips line breaks.
    let joined;
    let text = if s.contains(['\n', '\r']) {
        joined = s.replace(['\n', '\r'], "");
        &joined
    } else {
        s
    };
    let at = match base64::engine::general_purpose::STANDARD.decode(text) {
        Ok(_) => return Ok(()),
        Err(B64::InvalidByte(i, _) | B64::InvalidLastSymbol(i, _)) => i,
        Err(B64::InvalidLength(_) | B64::InvalidPadding) => text.len() & !3,
    };
    Err(DecodeError(format!("illegal base64 data at input byte {at}")))
}

/// How an empty list or map reads.
fn empty_text(value: &Value) -> Option<&'static str> {
    match value {
        Value::Array(_) => Some("[]"),
        Value::Object(_) => Some("{}"),
        _ => None,
    }
}

/// Whether a set value is written as if it were absent.
fn vanishes(field: &Field, value: &Value) -> bool {
    match value {
        // An always written list keeps "[]"; others vanish when empty, as do maps, but not objects.
        Value::Array(a) => a.is_empty() && field.presence != Presence::AlwaysNull,
        Value::Object(m) => m.is_empty() && matches!(field.ty.shape(), Shape::Map(_)),
        Value::String(s) => s.is_empty() && field.presence == Presence::WhenNotZero,
        Value::Bool(b) => !b && field.presence == Presence::WhenNotZero,
        Value::Number(n) => n.as_i64() == Some(0) && field.presence == Presence::WhenNotZero,
        Value::Null => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn norm(api_version: &str, kind: &str, mut v: Value) -> Result<(Value, Vec<String>), String> {
        let ty = crate::schema::find_kind(api_version, kind).expect("type");
        let mut dropped = Dropped::default();
        normalize(ty, &mut v, &mut dropped).map_err(|e| e.0)?;
        Ok((v, dropped.messages))
    }

    #[test]
    fn canonical_forms() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {}, "creationTimestamp": null},
            "spec": {"hostNetwork": false, "priority": 0, "tolerations": null, "volumes": [{"name": "e", "emptyDir": {}}], "x": 1,
                "containers": [{"name": "c", "env": [], "y": 2, "command": [], "resources": {"requests": {"cpu": 0.5, "memory": "1024Mi"}}}]}});
        let (pod, unknown) = norm("v1", "Pod", pod).expect("pod");
        assert_eq!(
            pod,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"priority": 0, "volumes": [{"name": "e", "emptyDir": {}}],
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}]}, "status": {}})
        );
        assert_eq!(unknown, ["unknown field \"spec.containers[0].y\"", "unknown field \"spec.x\""]);
        let (role, _) = norm("rbac.authorization.k8s.io/v1", "Role", json!({})).expect("role");
        assert_eq!(role, json!({"metadata": {}, "rules": null}));
        let (lease, _) = norm(
            "coordination.k8s.io/v1",
            "Lease",
            json!({"spec": {"renewTime": "2024-01-02T03:04:05+01:00"}}),
        )
        .expect("lease");
        assert_eq!(lease["spec"]["renewTime"], "2024-01-02T02:04:05.000000Z");
        let (ds, _) = norm("apps/v1", "DaemonSet", json!({"spec": {"selector": {}}})).expect("daemonset");
        assert_eq!(ds["status"]["numberReady"], 0);
    }

    #[test]
    fn wrong_types_speak_go() {
        for (version, kind, object, want) in [
            (
                "v1",
                "ConfigMap",
                json!({"metadata": {"name": true}}),
                "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string",
            ),
            (
                "v1",
                "ConfigMap",
                json!({"metadata": {"generation": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field ObjectMeta.metadata.generation of type int64",
            ),
            (
                "v1",
                "ConfigMap",
                json!({"data": {"a": 1}}),
                "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
            ),
            (
                "v1",
                "ConfigMap",
                json!({"metadata": "x"}),
                "json: cannot unmarshal string into Go struct field ConfigMap.metadata of type v1.ObjectMeta",
            ),
            (
                "apps/v1",
                "Deployment",
                json!({"spec": {"replicas": "x"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "v1",
                "Pod",
                json!({"metadata": {"labels": {"a": 1}}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                "v1",
                "Pod",
                json!({"spec": {"containers": [{"ports": [{"containerPort": "80"}]}]}}),
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
            ),
            ("v1", "Secret", json!({"data": {"a": "!"}}), "illegal base64 data at input byte 0"),
            (
                "coordination.k8s.io/v1",
                "Lease",
                json!({"spec": {"renewTime": "yesterday"}}),
                "parsing time \"yesterday\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"yesterday\" as \"2006\"",
            ),
        ] {
            assert_eq!(norm(version, kind, object).map(|_| ()), Err(want.to_owned()));
        }
    }

    #[test]
    fn maps_have_errors_of_their_own() {
        for (object, want) in [
            (json!({"spec": {"replicas": "x"}}), "unrecognized type: int32"),
            (json!({"spec": {"replicas": 1.5}}), "cannot convert float64 to int32"),
            (json!({"spec": {"paused": "x"}}), "unrecognized type: bool"),
            (json!({"spec": {"strategy": {"type": 1}}}), "cannot convert int64 to string"),
            (json!({"spec": "x"}), "cannot restore struct from: string"),
            (json!({"metadata": {"labels": []}}), "cannot restore map from slice"),
            (json!({"metadata": {"finalizers": {}}}), "cannot restore slice from map"),
            (
                json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": true}}}}),
                "json: cannot unmarshal bool into Go value of type int32",
            ),
        ] {
            let ty = crate::schema::find_kind("apps/v1", "Deployment").expect("type");
            let mut sent = object.clone();
            let error = normalize_from(Source::Map, ty, &mut sent, &mut Dropped::default());
            assert_eq!(error, Err(DecodeError(want.into())), "{object}");
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_shown_as_written() {
        for (body, digits) in [
            (r#"{"metadata":{"generation":99999999999999999999}}"#, "99999999999999999999"),
            (r#"{"metadata":{"generation":1.50}}"#, "1.50"),
            (r#"{"metadata":{"g\u0065neration":1e3}}"#, "1e3"),
        ] {
            let ty = crate::schema::find_kind("v1", "ConfigMap").expect("type");
            let mut dropped = Dropped::default();
            let mut object = parse_json(body.as_bytes(), &mut dropped).expect("json");
            let mut error = normalize(ty, &mut object, &mut dropped).expect_err(body);
            number_as_sent(body.as_bytes(), &dropped, &mut error);
            let want = format!(
                "json: cannot unmarshal number {digits} into Go struct field ObjectMeta.metadata.generation of type int64"
            );
            assert_eq!(error.0, want);
        }
        let mut dropped = Dropped::default();
        let mut list = json!({"spec": {"containers": [{}, {"ports": [{"containerPort": 2.0}]}]}});
        let ty = crate::schema::find_kind("v1", "Pod").expect("type");
        let mut error = normalize(ty, &mut list, &mut dropped).expect_err("not an integer");
        let body = r#"{"spec":{"containers":[{},{"ports":[{"containerPort":2.0e0}]}]}}"#;
        number_as_sent(body.as_bytes(), &dropped, &mut error);
        assert!(error.0.contains("number 2.0e0 into"), "{}", error.0);
    }

    #[test]
    fn duplicates_and_syntax() {
        let mut dropped = Dropped::default();
        let v = parse_json(br#"{"a":{"b":[{"c":1,"c":2}],"x":1,"x":3}}"#, &mut dropped).expect("json");
        assert_eq!(v, json!({"a": {"b": [{"c": 2}], "x": 3}}));
        assert_eq!(dropped.messages, ["duplicate field \"a.b[0].c\"", "duplicate field \"a.x\""]);
        for (text, want) in [
            ("{x", "invalid character 'x' looking for beginning of object key string"),
            ("data: {b: c}\n", "invalid character 'd' looking for beginning of value"),
            ("{\"a\":1} x", "invalid character 'x' after top-level value"),
            ("{\"a\":", "unexpected end of JSON input"),
            ("", "unexpected end of JSON input"),
            ("\u{feff}{}", "invalid character '\\ufeff' looking for beginning of value"),
        ] {
            assert_eq!(
                parse_json(text.as_bytes(), &mut Dropped::default()),
                Err(DecodeError(want.into())),
                "{text}"
            );
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z0-9]{0,5}".prop_map(Value::from)
        ];
        let keys = prop::sample::select(vec![
            "metadata",
            "spec",
            "containers",
            "name",
            "labels",
            "env",
            "resources",
            "limits",
            "volumes",
            "q",
            "status",
            "ports",
        ]);
        leaf.prop_recursive(5, 40, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect()))
            ]
        })
    }

    proptest! {
        #[test]
        fn normalizing_is_idempotent(v in any_json()) {
            if let Ok((once, _)) = norm("v1", "Pod", v) {
                let (twice, unknown) = norm("v1", "Pod", once.clone()).expect("normal objects are well-typed");
                prop_assert_eq!(twice, once);
                prop_assert!(unknown.is_empty());
            }
        }
    }
}
