//! The schema table as OpenAPI schemas.

use std::collections::BTreeMap;

use hawser_api::crd::publish::{self, Dialect};
use hawser_api::kinds::Kind;
use hawser_api::schema::{self, Base, Field, ListType, Presence, Shape, Ty, Type};
use serde_json::{Map, Value, json};

const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Collects the types that some kinds need.
#[derive(Default)]
pub(super) struct Collector {
    types: BTreeMap<String, &'static Type>,
    kinds: BTreeMap<String, Vec<Value>>,
    lists: Vec<(String, String, Value)>,
    custom: Vec<Kind>,
}

impl Collector {
    /// Adds a kind, its list, and everything that they are made of.
    pub(super) fn add_kind(&mut self, kind: &Kind) {
        if kind.custom.is_some() {
            for name in ["meta.v1.ObjectMeta", "meta.v1.ListMeta"] {
                schema::find(name).into_iter().for_each(|ty| self.add(ty));
            }
            self.add_subresources(kind);
            self.custom.push(kind.clone());
            return;
        }
        let Some(ty) = schema::of(kind) else { return };
        let gvk = |kind_name: &str| json!({"group": kind.group, "version": kind.version, "kind": kind_name});
        self.add(ty);
        self.kinds.entry(ty.openapi_name()).or_default().push(gvk(&kind.kind));
        if !kind.list_kind.is_empty() {
            let name = ty.openapi_name();
            let list = format!("{}List", name);
            if let Some(meta) = schema::find("meta.v1.ListMeta") {
                self.add(meta);
            }
            self.lists.push((list, name, gvk(&kind.list_kind)));
        }
        self.add_subresources(kind);
    }

    fn add_subresources(&mut self, kind: &Kind) {
        for sub in &kind.subresources {
            let (group, version) = match (&sub.group, &sub.version) {
                (Some(g), Some(v)) => (g.as_str(), v.as_str()),
                _ => (kind.group.as_str(), kind.version.as_str()),
            };
            if let Some(ty) = schema::find_kind(&hawser_api::object::api_version(group, version), &sub.kind) {
                self.add(ty);
            }
        }
    }

    fn add(&mut self, ty: &'static Type) {
        if self.types.insert(ty.openapi_name(), ty).is_some() {
            return;
        }
        for field in &ty.fields {
            if let Some(inner) = field.ty.inner_struct() {
                self.add(inner);
            }
        }
    }

    /// All schemas by name; references begin with `prefix`.
    pub(super) fn finish(self, prefix: &str) -> Value {
        let mut out = Map::new();
        for (name, ty) in &self.types {
            let mut schema = object(ty, prefix);
            if let Some(kinds) = self.kinds.get(name) {
                schema["x-kubernetes-group-version-kind"] = json!(kinds);
            }
            out.insert(name.clone(), schema);
        }
        let list_meta = out.contains_key(LIST_META);
        for (list, item, gvk) in self.lists {
            let metadata = if list_meta {
                json!({"$ref": format!("{prefix}{LIST_META}")})
            } else {
                json!({"type": "object"})
            };
            out.insert(
                list,
                json!({"type": "object", "required": ["items"], "x-kubernetes-group-version-kind": [gvk],
                    "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
                        "metadata": metadata,
                        "items": {"type": "array", "items": {"$ref": format!("{prefix}{item}")}}}}),
            );
        }
        let dialect = if prefix == "#/definitions/" { Dialect::V2 } else { Dialect::V3 };
        for kind in &self.custom {
            out.extend(publish::schemas(kind, prefix, dialect));
        }
        for (name, schema) in scalars() {
            out.insert(name.to_owned(), schema);
        }
        Value::Object(out)
    }
}

fn scalars() -> [(&'static str, Value); 5] {
    [
        (TIME, json!({"type": "string", "format": "date-time"})),
        (MICRO_TIME, json!({"type": "string", "format": "date-time"})),
        (QUANTITY, json!({"oneOf": [{"type": "string"}, {"type": "number"}]})),
        (
            INT_OR_STRING,
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        ),
        (RAW, json!({"type": "object"})),
    ]
}

fn object(ty: &'static Type, prefix: &str) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in &ty.fields {
        properties.insert(field.name.to_owned(), property(field, prefix));
        if field.required {
            required.push(field.name);
        }
    }
    let mut out = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    if ty.atomic {
        out["x-kubernetes-map-type"] = json!("atomic");
    }
    out
}

fn property(field: &Field, prefix: &str) -> Value {
    let mut out = of_type(field.ty, prefix);
    let is_list = matches!(field.ty.shape(), Shape::List(_));
    if is_list {
        let list = match field.list {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        };
        out["x-kubernetes-list-type"] = json!(list);
        let keys: Vec<&str> = field.keys().collect();
        if !keys.is_empty() {
            out["x-kubernetes-list-map-keys"] = json!(keys);
        }
    }
    let strategies: Vec<&str> =
        ["merge", "retainKeys", "replace"].into_iter().filter(|s| field.has_patch_strategy(s)).collect();
    if !strategies.is_empty() {
        out["x-kubernetes-patch-strategy"] = json!(strategies.join(","));
    }
    if !field.merge_key.is_empty() {
        out["x-kubernetes-patch-merge-key"] = json!(field.merge_key);
    }
    if field.atomic && !is_list {
        out["x-kubernetes-map-type"] = json!("atomic");
    }
    let default = match field.default {
        Some(text) => Some(serde_json::from_str(text).unwrap_or_else(|_| json!(text))),
        None if field.presence == Presence::Always && matches!(field.ty.shape(), Shape::Struct(_)) => {
            Some(json!({}))
        }
        None => None,
    };
    if let Some(default) = default {
        // A reference has no room for more beside it.
        if let Some(target) = out.as_object_mut().and_then(|o| o.remove("$ref")) {
            out["allOf"] = json!([{"$ref": target}]);
        }
        out["default"] = default;
    }
    out
}

fn of_type(ty: Ty, prefix: &str) -> Value {
    let reference = |name: &str| json!({"$ref": format!("{prefix}{name}")});
    match ty.shape() {
        Shape::List(inner) => json!({"type": "array", "items": of_type(inner, prefix)}),
        Shape::Map(inner) => json!({"type": "object", "additionalProperties": of_type(inner, prefix)}),
        Shape::Struct(t) => reference(&t.openapi_name()),
        Shape::Scalar(base) => match base {
            Base::Bool => json!({"type": "boolean"}),
            Base::Int32 => json!({"type": "integer", "format": "int32"}),
            Base::Int64 => json!({"type": "integer", "format": "int64"}),
            Base::Number => json!({"type": "number", "format": "double"}),
            Base::String | Base::Struct(_) => json!({"type": "string"}),
            Base::Bytes => json!({"type": "string", "format": "byte"}),
            Base::Time => reference(TIME),
            Base::MicroTime => reference(MICRO_TIME),
            Base::Quantity => reference(QUANTITY),
            Base::IntOrString => reference(INT_OR_STRING),
            Base::Raw => reference(RAW),
            Base::Any => json!({}),
        },
    }
}
