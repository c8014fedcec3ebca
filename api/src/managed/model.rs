//! What server-side apply has to know of a type: which maps and lists are merged, and by which keys.
//!
//! A [`Node`] is a place in a schema; [`Node::look`] says how a value at that place is looked at. There are two sources
//! of nodes: the table of the built-in types, and [`Model`], a tree that is made once from the structural schema of a
//! kind defined at run time. What has no schema at all is [`Node::Deduced`]: objects are granular, lists are atomic.
//!
//! The rules are those of KEP-555 and of `x-kubernetes-list-type`, `x-kubernetes-list-map-keys` and
//! `x-kubernetes-map-type` in the documentation of CustomResourceDefinitions.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::schema::{Base, Field, ListType, Presence, Shape, Ty, Type};

/// Deepest nesting of a structural schema that is read; what is deeper is deduced.
const MAX_DEPTH: usize = 128;

/// What a single value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    Numeric,
    String,
    Boolean,
    Untyped,
}

/// A place in a schema.
#[derive(Debug, Clone, Copy)]
pub enum Node<'s> {
    /// An object of a built-in type.
    Struct(&'static Type),
    /// A value of a built-in type.
    Ty(Ty),
    /// A field of a built-in type, with the field's own list and map semantics.
    Field(&'static Field),
    /// A place in the schema of a kind defined at run time.
    Model(&'s Model),
    /// No schema: objects are granular, lists atomic.
    Deduced,
    /// No schema, and the value is one whole.
    Whole,
}

/// How a value is looked at.
#[derive(Debug, Clone, Copy)]
pub enum Look<'s> {
    Scalar(Scalar),
    List(ListLook<'s>),
    Map(MapLook<'s>),
}

/// How a list is merged.
#[derive(Debug, Clone, Copy)]
pub struct ListLook<'s> {
    pub relation: ListType,
    pub item: Node<'s>,
    keys: Keys<'s>,
}

/// How an object is merged.
#[derive(Debug, Clone, Copy)]
pub struct MapLook<'s> {
    /// Replaced as a whole.
    pub atomic: bool,
    fields: Fields<'s>,
    /// What fields that are not declared are; None where there may be none.
    rest: Option<Node<'s>>,
}

#[derive(Debug, Clone, Copy)]
enum Keys<'s> {
    None,
    Table(&'static Field),
    Model(&'s [Box<str>]),
}

#[derive(Debug, Clone, Copy)]
enum Fields<'s> {
    None,
    Struct(&'static Type),
    Model(&'s BTreeMap<Box<str>, ModelField>),
}

/// The schema of a kind defined at run time, as far as server-side apply asks. A value may be of several forms; which
/// one it is shows in the value.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Model {
    scalar: Option<Scalar>,
    list: Option<Box<ModelList>>,
    map: Option<Box<ModelMap>>,
}

#[derive(Debug, Clone, PartialEq)]
struct ModelList {
    relation: ListType,
    keys: Vec<Box<str>>,
    item: ModelNode,
}

#[derive(Debug, Clone, PartialEq)]
struct ModelMap {
    atomic: bool,
    fields: BTreeMap<Box<str>, ModelField>,
    rest: Option<ModelNode>,
}

#[derive(Debug, Clone, PartialEq)]
struct ModelField {
    node: ModelNode,
    /// The default of a key of a list.
    default: Option<Value>,
}

#[derive(Debug, Clone, PartialEq)]
enum ModelNode {
    Model(Model),
    /// `metadata` of an object.
    ObjectMeta,
    Deduced,
    Whole,
}

impl<'s> Node<'s> {
    /// The node of a built-in type, or of anything when there is none.
    pub fn of(ty: Option<&'static Type>) -> Self {
        ty.map_or(Self::Deduced, Self::Struct)
    }

    /// How a value here is looked at. Of several forms that a place allows, the value's own one is taken; an absent or
    /// null value, and one of a form that is not allowed, is taken for an object, a scalar or a list, in this order.
    pub fn look(self, value: Option<&Value>) -> Look<'s> {
        match self {
            Self::Struct(ty) => {
                Look::Map(MapLook { atomic: ty.atomic, fields: Fields::Struct(ty), rest: None })
            }
            Self::Ty(ty) => look_at(ty, value),
            Self::Field(field) => look_at_field(field, value),
            Self::Model(model) => model.look(value),
            Self::Deduced => untyped(value, false),
            Self::Whole => untyped(value, true),
        }
    }
}

/// What has no schema. Its lists are atomic either way.
fn untyped<'s>(value: Option<&Value>, atomic: bool) -> Look<'s> {
    match value {
        Some(Value::Array(_)) => {
            Look::List(ListLook { relation: ListType::Atomic, item: Node::Whole, keys: Keys::None })
        }
        None | Some(Value::Object(_) | Value::Null) => {
            let rest = if atomic { Node::Whole } else { Node::Deduced };
            Look::Map(MapLook { atomic, fields: Fields::None, rest: Some(rest) })
        }
        _ => Look::Scalar(Scalar::Untyped),
    }
}

fn look_at_field<'s>(field: &'static Field, value: Option<&Value>) -> Look<'s> {
    match (field.ty.shape(), field.list) {
        (Shape::List(inner), relation) => {
            let keys = if relation == ListType::Map { Keys::Table(field) } else { Keys::None };
            Look::List(ListLook { relation, item: Node::Ty(inner), keys })
        }
        _ => match look_at(field.ty, value) {
            Look::Map(map) => Look::Map(MapLook { atomic: map.atomic || field.atomic, ..map }),
            other => other,
        },
    }
}

fn look_at<'s>(ty: Ty, value: Option<&Value>) -> Look<'s> {
    match ty.shape() {
        Shape::Struct(ty) => Node::Struct(ty).look(None),
        Shape::Map(inner) => {
            Look::Map(MapLook { atomic: false, fields: Fields::None, rest: Some(Node::Ty(inner)) })
        }
        Shape::List(inner) => {
            Look::List(ListLook { relation: ListType::Atomic, item: Node::Ty(inner), keys: Keys::None })
        }
        Shape::Scalar(Base::Raw) => untyped(value, true),
        Shape::Scalar(Base::Any) => untyped(value, false),
        Shape::Scalar(base) => Look::Scalar(match base {
            Base::Bool => Scalar::Boolean,
            Base::Int32 | Base::Int64 | Base::Number => Scalar::Numeric,
            Base::String => Scalar::String,
            _ => Scalar::Untyped,
        }),
    }
}

impl<'s> ListLook<'s> {
    /// The names of the keys of items, and the default that stands for an absent one.
    pub fn keys(&self) -> Vec<(&'s str, Option<Value>)> {
        match self.keys {
            Keys::None => Vec::new(),
            Keys::Table(field) => field.keys().map(|name| (name, table_default(field, name))).collect(),
            Keys::Model(names) => {
                let fields = match self.item {
                    Node::Model(Model { map: Some(map), .. }) => Some(&map.fields),
                    _ => None,
                };
                names
                    .iter()
                    .map(|name| (&**name, fields.and_then(|f| f.get(name)).and_then(|f| f.default.clone())))
                    .collect()
            }
        }
    }
}

/// The default of a key of a built-in type: the schema's own, or the zero value of what is always written.
fn table_default(list: &'static Field, name: &str) -> Option<Value> {
    let field = list.ty.inner_struct()?.field(name)?;
    if let Some(text) = field.default {
        return Some(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())));
    }
    if field.presence != Presence::Always {
        return None;
    }
    match look_at(field.ty, None) {
        Look::Scalar(Scalar::String) => Some("".into()),
        Look::Scalar(Scalar::Numeric) => Some(0.into()),
        Look::Scalar(Scalar::Boolean) => Some(false.into()),
        _ => None,
    }
}

impl<'s> MapLook<'s> {
    /// What a declared field is.
    pub fn declared(&self, name: &str) -> Option<Node<'s>> {
        match self.fields {
            Fields::None => None,
            Fields::Struct(ty) => ty.field(name).map(Node::Field),
            Fields::Model(fields) => fields.get(name).map(|f| f.node.node()),
        }
    }

    /// What a field is, declared or not; None where it may not be.
    pub fn child(&self, name: &str) -> Option<Node<'s>> {
        self.declared(name).or(self.rest)
    }
}

impl ModelNode {
    fn node(&self) -> Node<'_> {
        match self {
            Self::Model(model) => Node::Model(model),
            Self::ObjectMeta => Node::of(crate::schema::object_meta()),
            Self::Deduced => Node::Deduced,
            Self::Whole => Node::Whole,
        }
    }
}

impl Model {
    /// Reads the structural schema of a version of a kind defined at run time (`openAPIV3Schema`).
    /// `preserve` says that the definition keeps unknown fields everywhere.
    pub fn of_kind(schema: &Value, preserve: bool) -> Self {
        let mut model = Self::read(schema, preserve, 0);
        model.add_type_meta();
        model
    }

    fn read(schema: &Value, preserve: bool, depth: usize) -> Self {
        let flag = |name: &str| schema.get(name) == Some(&Value::Bool(true));
        let preserve = preserve || flag("x-kubernetes-preserve-unknown-fields");
        let list = || Some(Box::new(ModelList::read(schema, preserve, depth)));
        let map = || Some(Box::new(ModelMap::read(schema, preserve, depth)));
        let scalar = |s| Self { scalar: Some(s), ..Self::default() };
        let mut model = match schema.get("type").and_then(Value::as_str) {
            _ if flag("x-kubernetes-int-or-string") => scalar(Scalar::Untyped),
            Some("object") => Self { map: map(), ..Self::default() },
            Some("array") => Self { list: list(), ..Self::default() },
            Some("integer" | "number") => scalar(Scalar::Numeric),
            Some("boolean") => scalar(Scalar::Boolean),
            Some("string") => match schema.get("format").and_then(Value::as_str) {
                Some("int-or-string" | "byte" | "bytes" | "date-time") => scalar(Scalar::Untyped),
                _ => scalar(Scalar::String),
            },
            // Anything: the value shows what it is.
            _ => Self { scalar: Some(Scalar::Untyped), list: list(), map: map() },
        };
        if flag("x-kubernetes-embedded-resource") {
            model.add_type_meta();
        }
        model
    }

    /// Declares what every object has.
    fn add_type_meta(&mut self) {
        let Some(map) = &mut self.map else { return };
        for name in ["apiVersion", "kind"] {
            let node = ModelNode::Model(Self { scalar: Some(Scalar::String), ..Self::default() });
            map.fields.insert(name.into(), ModelField { node, default: None });
        }
        map.fields.insert("metadata".into(), ModelField { node: ModelNode::ObjectMeta, default: None });
    }

    fn look(&self, value: Option<&Value>) -> Look<'_> {
        let map = || {
            self.map.as_ref().map(|m| {
                let fields = if m.fields.is_empty() { Fields::None } else { Fields::Model(&m.fields) };
                Look::Map(MapLook { atomic: m.atomic, fields, rest: m.rest.as_ref().map(ModelNode::node) })
            })
        };
        let list = || {
            self.list.as_ref().map(|l| {
                let keys = if l.keys.is_empty() { Keys::None } else { Keys::Model(&l.keys) };
                Look::List(ListLook { relation: l.relation, item: l.item.node(), keys })
            })
        };
        let scalar = || self.scalar.map(Look::Scalar);
        let own = match value {
            Some(Value::Object(_)) => map(),
            Some(Value::Array(_)) => list(),
            Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) => scalar(),
            None | Some(Value::Null) => None,
        };
        own.or_else(map).or_else(scalar).or_else(list).unwrap_or(Look::Scalar(Scalar::Untyped))
    }
}

impl ModelList {
    fn read(schema: &Value, preserve: bool, depth: usize) -> Self {
        let item = match schema.get("items") {
            Some(items) if depth < MAX_DEPTH => ModelNode::Model(Model::read(items, preserve, depth + 1)),
            _ => ModelNode::Whole,
        };
        let (relation, keys) = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => (ListType::Set, Vec::new()),
            Some("map") => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                let keys: Vec<Box<str>> =
                    keys.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect();
                (ListType::Map, keys)
            }
            _ => (ListType::Atomic, Vec::new()),
        };
        Self { relation, keys, item }
    }
}

impl ModelMap {
    fn read(schema: &Value, preserve: bool, depth: usize) -> Self {
        let read = |schema: &Value| {
            if depth < MAX_DEPTH {
                ModelNode::Model(Model::read(schema, preserve, depth + 1))
            } else {
                ModelNode::Deduced
            }
        };
        let properties = schema.get("properties").and_then(Value::as_object);
        let fields: BTreeMap<Box<str>, ModelField> = properties
            .into_iter()
            .flatten()
            .map(|(name, s)| {
                let default = s.get("default").filter(|d| !d.is_null()).cloned();
                (name.as_str().into(), ModelField { node: read(s), default })
            })
            .collect();
        let rest = match schema.get("additionalProperties") {
            Some(Value::Bool(true)) => Some(ModelNode::Deduced),
            Some(s @ Value::Object(_)) => Some(read(s)),
            Some(Value::Bool(false)) => None,
            _ if preserve || fields.is_empty() => Some(ModelNode::Deduced),
            _ => None,
        };
        let atomic = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
        Self { atomic, fields, rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map<'s>(look: Look<'s>) -> MapLook<'s> {
        match look {
            Look::Map(map) => map,
            other => panic!("{other:?} is no map"),
        }
    }

    #[test]
    fn structural_schemas() {
        let model = Model::of_kind(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "ports": {"type": "array", "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["port", "protocol"],
                    "items": {"type": "object", "properties": {
                        "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}},
                "selector": {"type": "object", "x-kubernetes-map-type": "atomic",
                    "additionalProperties": {"type": "string"}},
                "size": {"x-kubernetes-int-or-string": true},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}),
            false,
        );
        let top = map(Node::Model(&model).look(None));
        assert!(top.child("status").is_none());
        assert!(map(top.child("metadata").expect("metadata").look(None)).declared("labels").is_some());
        let spec = map(top.child("spec").expect("spec").look(None));
        let Look::List(ports) = spec.child("ports").expect("ports").look(None) else { panic!("no list") };
        assert_eq!(ports.relation, ListType::Map);
        assert_eq!(ports.keys(), [("port", None), ("protocol", Some(json!("TCP")))]);
        assert!(map(spec.child("selector").expect("selector").look(None)).atomic);
        assert!(matches!(
            spec.child("size").expect("size").look(Some(&json!(1))),
            Look::Scalar(Scalar::Untyped)
        ));
        let free = map(spec.child("free").expect("free").look(None));
        assert!(matches!(free.child("x"), Some(Node::Deduced)) && free.declared("x").is_none());
    }

    #[test]
    fn built_in_types() {
        let pod = map(Node::of(crate::schema::find_kind("v1", "Pod")).look(None));
        let spec = map(pod.child("spec").expect("spec").look(None));
        let Look::List(containers) = spec.child("containers").expect("containers").look(None) else {
            panic!("no list")
        };
        assert_eq!(containers.keys(), [("name", Some(json!("")))]);
        let container = map(containers.item.look(None));
        let Look::List(ports) = container.child("ports").expect("ports").look(None) else {
            panic!("no list")
        };
        assert_eq!(ports.keys(), [("containerPort", Some(json!(0))), ("protocol", Some(json!("TCP")))]);
        assert!(pod.child("nope").is_none());
        let revision = map(Node::of(crate::schema::find_kind("apps/v1", "ControllerRevision")).look(None));
        let data = revision.child("data").expect("data");
        assert!(map(data.look(Some(&json!({"a": 1})))).atomic, "raw data is one whole");
        assert!(matches!(data.look(Some(&json!("text"))), Look::Scalar(Scalar::Untyped)));
    }

    #[test]
    fn without_a_schema_the_value_shows() {
        assert!(matches!(Node::Deduced.look(Some(&json!(1))), Look::Scalar(Scalar::Untyped)));
        assert!(
            matches!(Node::Deduced.look(Some(&json!([]))), Look::List(l) if l.relation == ListType::Atomic)
        );
        assert!(!map(Node::Deduced.look(None)).atomic);
        assert!(map(Node::Whole.look(Some(&json!({})))).atomic);
    }
}
