//! The schema of one version of a custom resource, in the form that every request works with.
//!
//! A [`Schema`] is read once from the definition's `openAPIV3Schema` and shared. Documentation (`description`, `title`,
//! `example`, `externalDocs`) is not kept: who publishes it reads the definition. The same type stands for a node of the
//! structure and for a value validation nested in `allOf`, `anyOf`, `oneOf` and `not`.
//!
//! Shape of the rules: KEP-1693's structural schemas and the API documentation of `JSONSchemaProps`.

use serde_json::{Map, Number, Value};

use super::pattern::Pattern;

/// Deepest nesting of schemas that is read.
pub const MAX_DEPTH: usize = 100;

/// `type` of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Type {
    /// The type of that name in OpenAPI.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    /// Its name in OpenAPI.
    pub fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// `x-kubernetes-list-type`; atomic when absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// `x-kubernetes-map-type`; granular when absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapType {
    Granular,
    Atomic,
}

/// One node of a schema.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Schema {
    /// None where the value may be of any type, or an integer or a string.
    pub ty: Option<Type>,
    /// Whether null is a value.
    pub nullable: bool,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve_unknown_fields: bool,
    /// `x-kubernetes-embedded-resource`: an object with `apiVersion`, `kind` and `metadata` of its own.
    pub embedded_resource: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`.
    pub list_type: Option<ListType>,
    /// `x-kubernetes-map-type`.
    pub map_type: Option<MapType>,
    /// `x-kubernetes-list-map-keys`, in the order of the definition.
    pub list_map_keys: Box<[Box<str>]>,
    /// What an absent field becomes.
    pub default: Option<Box<Value>>,
    /// Fields of an object.
    pub properties: Properties,
    /// The items of a list.
    pub items: Option<Box<Schema>>,
    /// Values of a map's keys.
    pub additional_properties: Option<Box<Additional>>,
    /// What a value must satisfy besides its type; None when nothing.
    pub checks: Option<Box<Checks>>,
    /// `x-kubernetes-validations`.
    pub rules: Box<[Rule]>,
}

/// `additionalProperties`.
#[derive(Debug, Clone, PartialEq)]
pub enum Additional {
    /// `true` allows anything, `false` nothing.
    Any(bool),
    /// Every value is of this schema.
    Schema(Schema),
}

/// Fields of an object, sorted by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Properties(Box<[(Box<str>, Schema)]>);

impl Properties {
    /// The schema of a field.
    pub fn get(&self, name: &str) -> Option<&Schema> {
        let at = self.0.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        self.0.get(at).map(|(_, s)| s)
    }

    /// All fields, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Schema)> {
        self.0.iter().map(|(n, s)| (&**n, s))
    }

    /// Whether no field is specified.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Value validations of a node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checks {
    pub format: Option<Box<str>>,
    pub maximum: Option<Number>,
    pub exclusive_maximum: bool,
    pub minimum: Option<Number>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<Number>,
    /// Characters, as are [`Checks::min_length`].
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Pattern>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub unique_items: bool,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    /// None when every value is allowed.
    pub r#enum: Option<Box<[Value]>>,
    pub required: Box<[Box<str>]>,
    pub all_of: Box<[Schema]>,
    pub any_of: Box<[Schema]>,
    pub one_of: Box<[Schema]>,
    pub not: Option<Box<Schema>>,
}

/// One of `x-kubernetes-validations` (KEP-2876), as written; what it is compiled to is kept elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The CEL expression.
    pub rule: Box<str>,
    /// Empty when there is none.
    pub message: Box<str>,
    /// CEL expression of the message; empty when there is none.
    pub message_expression: Box<str>,
    /// `FieldValueInvalid` when empty.
    pub reason: Box<str>,
    /// Path of the field to blame, relative to the node; empty for the node itself.
    pub field_path: Box<str>,
    /// `optionalOldSelf`.
    pub optional_old_self: Option<bool>,
}

/// A schema that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A part of OpenAPI that structural schemas do not have.
    #[error("OpenAPIV3Schema '{0}' is not supported")]
    Unsupported(&'static str),
    /// `items` is a list of schemas.
    #[error("OpenAPIV3Schema 'items' must be a schema, but is an array")]
    ItemsArray,
    /// `x-kubernetes-preserve-unknown-fields: false`.
    #[error("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined")]
    PreserveFalse,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("OpenAPIV3Schema is nested too deeply")]
    TooDeep,
}

impl Schema {
    /// Reads the `openAPIV3Schema` of a definition.
    ///
    /// # Errors
    /// When it has parts that no structural schema may have.
    pub fn parse(props: &Value) -> Result<Self, SchemaError> {
        parse(props, 0)
    }

    /// The schema of a field of an object, its map's values included.
    pub fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or_else(|| self.additional_schema())
    }

    /// The schema of a map's values.
    pub fn additional_schema(&self) -> Option<&Self> {
        match self.additional_properties.as_deref() {
            Some(Additional::Schema(s)) => Some(s),
            _ => None,
        }
    }

    /// Whether a predicate holds for this node of the structure or one below it.
    pub fn any(&self, holds: &mut impl FnMut(&Self) -> bool) -> bool {
        holds(self)
            || self.properties.iter().any(|(_, s)| s.any(holds))
            || self.items.as_ref().is_some_and(|s| s.any(holds))
            || self.additional_schema().is_some_and(|s| s.any(holds))
    }
}

/// Parts of OpenAPI that have no place in a structural schema, in the order in which Kubernetes looks at them.
const UNSUPPORTED: [(&str, &str); 7] = [
    ("id", "id"),
    ("$schema", "schema"),
    ("$ref", "$ref"),
    ("patternProperties", "patternProperties"),
    ("dependencies", "dependencies"),
    ("additionalItems", "additionalItems"),
    ("definitions", "definitions"),
];

fn parse(props: &Value, depth: usize) -> Result<Schema, SchemaError> {
    if depth > MAX_DEPTH {
        return Err(SchemaError::TooDeep);
    }
    let Some(map) = props.as_object() else { return Ok(Schema::default()) };
    for (field, name) in UNSUPPORTED {
        if map.get(field).is_some_and(is_set) {
            return Err(SchemaError::Unsupported(name));
        }
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        return Err(SchemaError::PreserveFalse);
    }
    let items = match map.get("items") {
        Some(Value::Array(_)) => return Err(SchemaError::ItemsArray),
        Some(schema @ Value::Object(_)) => Some(Box::new(parse(schema, depth + 1)?)),
        _ => None,
    };
    let mut properties = Vec::new();
    for (name, schema) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        properties.push((name.as_str().into(), parse(schema, depth + 1)?));
    }
    properties.sort_by(|(a, _): &(Box<str>, Schema), (b, _)| a.cmp(b));
    let additional_properties = match map.get("additionalProperties") {
        Some(Value::Bool(any)) => Some(Box::new(Additional::Any(*any))),
        Some(schema @ Value::Object(_)) => Some(Box::new(Additional::Schema(parse(schema, depth + 1)?))),
        _ => None,
    };
    let checks = parse_checks(map, depth)?;
    Ok(Schema {
        ty: Type::parse(text(map, "type")),
        nullable: flag(map, "nullable"),
        preserve_unknown_fields: flag(map, "x-kubernetes-preserve-unknown-fields"),
        embedded_resource: flag(map, "x-kubernetes-embedded-resource"),
        int_or_string: flag(map, "x-kubernetes-int-or-string"),
        list_type: match text(map, "x-kubernetes-list-type") {
            "atomic" => Some(ListType::Atomic),
            "set" => Some(ListType::Set),
            "map" => Some(ListType::Map),
            _ => None,
        },
        map_type: match text(map, "x-kubernetes-map-type") {
            "granular" => Some(MapType::Granular),
            "atomic" => Some(MapType::Atomic),
            _ => None,
        },
        list_map_keys: texts(map, "x-kubernetes-list-map-keys"),
        default: map.get("default").filter(|d| !d.is_null()).map(|d| Box::new(d.clone())),
        properties: Properties(properties.into_boxed_slice()),
        items,
        additional_properties,
        checks: (checks != Checks::default()).then(|| Box::new(checks)),
        rules: list(map, "x-kubernetes-validations").iter().map(parse_rule).collect(),
    })
}

fn parse_checks(map: &Map<String, Value>, depth: usize) -> Result<Checks, SchemaError> {
    let all = |field: &str| -> Result<Box<[Schema]>, SchemaError> {
        list(map, field).iter().map(|s| parse(s, depth + 1)).collect()
    };
    Ok(Checks {
        format: Some(text(map, "format")).filter(|f| !f.is_empty()).map(Into::into),
        maximum: number(map, "maximum"),
        exclusive_maximum: flag(map, "exclusiveMaximum"),
        minimum: number(map, "minimum"),
        exclusive_minimum: flag(map, "exclusiveMinimum"),
        multiple_of: number(map, "multipleOf"),
        max_length: integer(map, "maxLength"),
        min_length: integer(map, "minLength"),
        pattern: Some(text(map, "pattern")).filter(|p| !p.is_empty()).map(Pattern::new),
        max_items: integer(map, "maxItems"),
        min_items: integer(map, "minItems"),
        unique_items: flag(map, "uniqueItems"),
        max_properties: integer(map, "maxProperties"),
        min_properties: integer(map, "minProperties"),
        r#enum: Some(list(map, "enum")).filter(|e| !e.is_empty()).map(Into::into),
        required: texts(map, "required"),
        all_of: all("allOf")?,
        any_of: all("anyOf")?,
        one_of: all("oneOf")?,
        not: match map.get("not") {
            Some(schema @ Value::Object(_)) => Some(Box::new(parse(schema, depth + 1)?)),
            _ => None,
        },
    })
}

fn parse_rule(rule: &Value) -> Rule {
    let empty = Map::new();
    let map = rule.as_object().unwrap_or(&empty);
    Rule {
        rule: text(map, "rule").into(),
        message: text(map, "message").into(),
        message_expression: text(map, "messageExpression").into(),
        reason: text(map, "reason").into(),
        field_path: text(map, "fieldPath").into(),
        optional_old_self: map.get("optionalOldSelf").and_then(Value::as_bool),
    }
}

/// Whether a field of `JSONSchemaProps` is there and not empty.
pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::Number(_) => true,
    }
}

fn text<'a>(map: &'a Map<String, Value>, field: &str) -> &'a str {
    map.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn flag(map: &Map<String, Value>, field: &str) -> bool {
    map.get(field).and_then(Value::as_bool).unwrap_or_default()
}

fn number(map: &Map<String, Value>, field: &str) -> Option<Number> {
    map.get(field)?.as_number().cloned()
}

fn integer(map: &Map<String, Value>, field: &str) -> Option<i64> {
    map.get(field)?.as_i64()
}

fn list<'a>(map: &'a Map<String, Value>, field: &str) -> &'a [Value] {
    map.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn texts(map: &Map<String, Value>, field: &str) -> Box<[Box<str>]> {
    list(map, field).iter().filter_map(Value::as_str).map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_that_counts_is_read() {
        let schema = Schema::parse(&json!({"type": "object", "description": "dropped", "properties": {
            "b": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string", "default": ""}}}},
            "a": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "m": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 3, "nullable": true}}},
            "x-kubernetes-validations": [{"rule": "true", "reason": "FieldValueForbidden", "optionalOldSelf": true}]}))
        .expect("a schema");
        assert_eq!(schema.properties.iter().map(|(n, _)| n).collect::<Vec<_>>(), ["a", "b", "m"]);
        assert!(schema.checks.is_none());
        assert_eq!(schema.rules[0].optional_old_self, Some(true));
        let b = schema.properties.get("b").expect("b");
        assert_eq!((b.list_type, &*b.list_map_keys), (Some(ListType::Map), &["k".into()] as &[Box<str>]));
        let items = b.items.as_ref().expect("items");
        assert_eq!(items.checks.as_ref().map(|c| c.required.len()), Some(1));
        assert_eq!(items.properties.get("k").and_then(|k| k.default.as_deref()), Some(&json!("")));
        let a = schema.properties.get("a").expect("a");
        assert_eq!(a.checks.as_ref().map(|c| c.any_of.len()), Some(2));
        let value = schema.properties.get("m").and_then(|m| m.field("any")).expect("a value");
        assert!(value.nullable && value.checks.as_ref().is_some_and(|c| c.max_length == Some(3)));
    }

    #[test]
    fn what_is_not_structural_is_refused() {
        for (schema, want) in [
            (json!({"properties": {"x": {"$ref": "#/a"}}}), "OpenAPIV3Schema '$ref' is not supported"),
            (json!({"items": [{}]}), "OpenAPIV3Schema 'items' must be a schema, but is an array"),
            (
                json!({"allOf": [{"definitions": {"a": {}}}]}),
                "OpenAPIV3Schema 'definitions' is not supported",
            ),
        ] {
            assert_eq!(Schema::parse(&schema).map_err(|e| e.to_string()), Err(want.to_owned()));
        }
        let mut deep = json!({});
        for _ in 0..=MAX_DEPTH {
            deep = json!({"items": deep});
        }
        assert_eq!(Schema::parse(&deep), Err(SchemaError::TooDeep));
    }
}
