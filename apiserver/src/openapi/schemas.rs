//! The schema table as OpenAPI v3 schemas, with upstream's descriptions.

use std::collections::{BTreeMap, BTreeSet};

use hawser_api::crd::publish::{self, Dialect};
use hawser_api::kinds::Kind;
use hawser_api::object::split_api_version;
use hawser_api::schema::{self, Base, Field, ListType, Presence, Shape, Ty, Type};
use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;

/// What references begin with.
pub(super) const PREFIX: &str = "#/components/schemas/";

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const FIELDS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const CRD: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const WATCH_EVENT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// The schema's name of a row's objects: for a kind defined at run time the group backwards, `com.example.v1.Widget`.
pub(super) fn type_name(kind: &Kind) -> String {
    match schema::of(kind) {
        Some(ty) => ty.openapi_name(),
        None => publish::name(kind, &kind.kind),
    }
}

/// The schema's name of a row's lists.
pub(super) fn list_name(kind: &Kind, ty: &str) -> String {
    match ty.strip_suffix(kind.kind.as_str()) {
        Some(package) => format!("{package}{}", kind.list_kind),
        None => format!("{ty}List"),
    }
}

/// Makes the schemas that a document refers to.
pub(super) struct Schemas<'a> {
    texts: &'a Descriptions,
    /// Groups and versions of the document; options and events are of each.
    groups: Vec<(&'a str, &'a str)>,
    /// What is defined at run time, by name.
    defined: BTreeMap<String, Value>,
}

impl<'a> Schemas<'a> {
    /// For the document of some group versions.
    pub(super) fn new(texts: &'a Descriptions, groups: Vec<(&'a str, &'a str)>) -> Self {
        Self { texts, groups, defined: BTreeMap::new() }
    }

    /// Adds a kind defined at run time, as it is published in a dialect.
    pub(super) fn define(&mut self, kind: &Kind, dialect: Dialect) {
        self.defined.extend(publish::schemas(kind, PREFIX, dialect));
    }

    /// Whether a schema is that of a kind defined at run time, or of its list.
    pub(super) fn is_defined(&self, name: &str) -> bool {
        self.defined.contains_key(name)
    }

    /// A list's schema.
    fn list(&self, item: &str, description: &str) -> Value {
        let pod = self.texts.of("io.k8s.api.core.v1.Pod");
        let meta = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
        let metadata = json!({"allOf": [reference(LIST_META)], "default": {}, "description": meta});
        json!({"type": "object", "description": description, "required": ["items"], "properties": {
            "apiVersion": {"type": "string", "description": pod.get("apiVersion")},
            "kind": {"type": "string", "description": pod.get("kind")},
            "metadata": metadata,
            "items": {"type": "array", "items": reference(item), "description": "List of objects."}}})
    }

    /// All that paths refer to (`wanted`), and what that refers to, one after the other.
    pub(super) fn each(&self, wanted: BTreeSet<String>, mut put: impl FnMut(String, Value)) {
        let mut known = wanted.clone();
        let mut open: Vec<String> = wanted.into_iter().collect();
        while let Some(name) = open.pop() {
            let schema = self.schema(&name);
            let mut more = BTreeSet::new();
            references(&schema, &mut more);
            open.extend(more.into_iter().filter(|name| known.insert(name.clone())));
            put(name, schema);
        }
    }

    fn schema(&self, name: &str) -> Value {
        if let Some(schema) = self.defined.get(name) {
            return schema.clone();
        }
        if let Some(ty) = schema::find_openapi(name) {
            return self.object(ty);
        }
        if let Some(schema) = self.scalar(name) {
            return schema;
        }
        let item =
            name.strip_suffix("List").and_then(schema::find_openapi).and_then(|ty| Some((ty, ty.kind?)));
        let Some((ty, kind)) = item else { return json!({"type": "object"}) };
        let (api_version, kind) = kind.rsplit_once('/').unwrap_or(("", kind));
        let (group, version) = split_api_version(api_version);
        let list = format!("{kind}List");
        let mut schema = self.list(&ty.openapi_name(), &format!("{list} is a list of {kind} objects."));
        schema["x-kubernetes-group-version-kind"] =
            json!([{"group": group, "version": version, "kind": list}]);
        schema
    }

    /// What is a scalar or a free value in the schema table and a named schema here.
    fn scalar(&self, name: &str) -> Option<Value> {
        let mut schema = match name {
            TIME | MICRO_TIME => json!({"type": "string", "format": "date-time"}),
            QUANTITY => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            INT_OR_STRING => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            RAW | FIELDS | PATCH => json!({"type": "object"}),
            name if name.strip_prefix(CRD).is_some_and(|n| n.starts_with("JSON")) => json!({}),
            _ => return None,
        };
        if let Some(text) = self.texts.of(name).get("") {
            schema["description"] = json!(text);
        }
        Some(schema)
    }

    fn object(&self, ty: &'static Type) -> Value {
        let name = ty.openapi_name();
        let texts = self.texts.of(&name);
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in &ty.fields {
            let text = texts.get(field.name).or_else(|| own_text(ty, field.name));
            properties.insert(field.name.to_owned(), property(ty, field, text));
            if field.required {
                required.push(field.name);
            }
        }
        let mut out = json!({"type": "object"});
        if !properties.is_empty() {
            out["properties"] = properties.into();
        }
        if let Some(text) = texts.get("") {
            out["description"] = json!(text);
        }
        if !required.is_empty() {
            out["required"] = json!(required);
        }
        if ty.atomic {
            out["x-kubernetes-map-type"] = json!("atomic");
        }
        if let Some((_, discriminator, choices)) = UNIONS.iter().find(|(name, ..)| *name == ty.name) {
            let fields: Map<String, Value> =
                choices.iter().map(|c| ((*c).to_owned(), json!(super::paths::upper_first(c)))).collect();
            let mut union = json!({"fields-to-discriminateBy": fields});
            if !discriminator.is_empty() {
                union["discriminator"] = json!(discriminator);
            }
            out["x-kubernetes-unions"] = json!([union]);
        }
        if let Some((api_version, kind)) = ty.kind.and_then(|k| k.rsplit_once('/')) {
            let (group, version) = split_api_version(api_version);
            let mut kinds = vec![json!({"group": group, "version": version, "kind": kind})];
            let everywhere = matches!(name.strip_prefix(META), Some("DeleteOptions" | "WatchEvent"));
            for (other, its_version) in self.groups.iter().filter(|g| everywhere && **g != (group, version)) {
                kinds.push(json!({"group": other, "version": its_version, "kind": kind}));
            }
            out["x-kubernetes-group-version-kind"] = json!(kinds);
        }
        out
    }
}

/// What the schema table has no word for: type, field, keyword and value; null takes a keyword away.
const PARTICULARS: &[(&str, &str, &str, Option<&str>)] = &[
    ("apiregistration.v1.APIServiceSpec", "caBundle", "x-kubernetes-list-type", Some("atomic")),
    (
        "core.v1.PersistentVolumeClaimStatus",
        "allocatedResourceStatuses",
        "x-kubernetes-map-type",
        Some("granular"),
    ),
    ("core.v1.PersistentVolumeSpec", "claimRef", "x-kubernetes-map-type", Some("granular")),
    ("meta.v1.APIResource", "verbs", "x-kubernetes-list-type", None),
];

/// Types of which one field is set: the field that says which, if there is one, and the choices.
const UNIONS: &[(&str, &str, &[&str])] = &[
    ("core.v1.AppArmorProfile", "type", &["localhostProfile"]),
    ("core.v1.PodSchedulingGroup", "", &["podGroupName"]),
    ("core.v1.SeccompProfile", "type", &["localhostProfile"]),
    ("flowcontrol.v1.LimitResponse", "type", &["queuing"]),
    ("flowcontrol.v1.PriorityLevelConfigurationSpec", "type", &["exempt", "limited"]),
    ("flowcontrol.v1.Subject", "kind", &["group", "serviceAccount", "user"]),
    ("scheduling.v1alpha2.PodGroupSchedulingPolicy", "", &["basic", "gang"]),
    ("scheduling.v1alpha2.PodGroupTemplateReference", "", &["workload"]),
];

/// The words for the event of a watch, which is no struct in the crate that has the others.
fn own_text(ty: &Type, field: &str) -> Option<String> {
    let text = match (ty.name, field) {
        ("meta.v1.WatchEvent", "type") => "What happened: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.",
        ("meta.v1.WatchEvent", "object") => {
            "The object after what happened, or its last state when it is deleted; of a BOOKMARK only kind, \
             apiVersion and resourceVersion are set; of an ERROR it is a Status."
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("{PREFIX}{name}")})
}

/// The names of the schemas that a value refers to.
pub(super) fn references(value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(target) if key == "$ref" => {
                        out.extend(target.strip_prefix(PREFIX).map(str::to_owned));
                    }
                    value => references(value, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}

fn property(ty: &Type, field: &Field, description: Option<String>) -> Value {
    let mut out = of_field(ty, field);
    let is_list = matches!(field.ty.shape(), Shape::List(_));
    if is_list {
        let list = match field.list {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        };
        out["x-kubernetes-list-type"] = json!(list);
    }
    let keys: Vec<&str> = field.keys().collect();
    if !keys.is_empty() {
        out["x-kubernetes-list-map-keys"] = json!(keys);
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
    for (_, _, keyword, value) in PARTICULARS.iter().filter(|p| (p.0, p.1) == (ty.name, field.name)) {
        match (value, out.as_object_mut()) {
            (Some(value), Some(map)) => drop(map.insert((*keyword).to_owned(), json!(value))),
            (None, Some(map)) => drop(map.remove(*keyword)),
            (_, None) => {}
        }
    }
    if let Some(default) = default_of(field) {
        out["default"] = default;
    }
    if let Some(text) = description {
        out["description"] = json!(text);
    }
    // A reference has no room for more beside it.
    if let Some(map) = out.as_object_mut().filter(|m| m.len() > 1)
        && let Some(target) = map.remove("$ref")
    {
        map.insert("allOf".into(), json!([{"$ref": target}]));
    }
    out
}

/// The schema's own default: what is written, or the zero value of what is written also when empty.
fn default_of(field: &Field) -> Option<Value> {
    if let Some(text) = field.default {
        return Some(serde_json::from_str(text).unwrap_or_else(|_| json!(text)));
    }
    if field.presence != Presence::Always {
        return None;
    }
    Some(match field.ty.shape() {
        Shape::Struct(_) => json!({}),
        Shape::Scalar(Base::String) => json!(""),
        Shape::Scalar(Base::Bool) => json!(false),
        Shape::Scalar(Base::Int32 | Base::Int64 | Base::Number) => json!(0),
        _ => return None,
    })
}

fn of_field(ty: &Type, field: &Field) -> Value {
    // The unions in the schema of custom resources have names of their own.
    if ty.name == "apiextensions.v1.JSONSchemaProps" {
        let union = |name: &str| reference(&format!("{CRD}{name}"));
        match field.name {
            "default" | "example" => return union("JSON"),
            "enum" => return json!({"type": "array", "items": union("JSON")}),
            "items" => return union("JSONSchemaPropsOrArray"),
            "additionalItems" | "additionalProperties" => return union("JSONSchemaPropsOrBool"),
            "dependencies" => {
                return json!({"type": "object", "additionalProperties": union("JSONSchemaPropsOrStringArray")});
            }
            _ => {}
        }
    }
    if field.name == "fieldsV1" {
        return reference(FIELDS);
    }
    of_type(field.ty)
}

fn of_type(ty: Ty) -> Value {
    match ty.shape() {
        Shape::List(inner) => json!({"type": "array", "items": of_type(inner)}),
        Shape::Map(inner) => json!({"type": "object", "additionalProperties": of_type(inner)}),
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
