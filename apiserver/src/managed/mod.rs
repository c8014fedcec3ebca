//! Where the registry meets [`hawser_api::managed`]: the versions of a row, what a new object is compared with, and
//! writes that change nothing but times.

use std::sync::Arc;

use hawser_api::decode;
use hawser_api::kinds::Kind;
use hawser_api::managed::managers::Managed;
use hawser_api::managed::model::Node;
use hawser_api::managed::reset;
use hawser_api::managed::update::{Versions, Writer};
use hawser_api::object::ObjectExt as _;
use hawser_api::schema;
use serde_json::{Map, Value, json};

use crate::convert;
use crate::kinds::{Row, Table};

/// The served versions of a row's resource.
pub struct Served {
    table: Arc<Table>,
    row: Arc<Row>,
    api_version: String,
}

impl Served {
    /// Of a row of a table.
    pub fn new(table: Arc<Table>, row: Arc<Row>) -> Self {
        let api_version = row.kind.api_version();
        Self { table, row, api_version }
    }

    fn row(&self, api_version: &str) -> Option<&Arc<Row>> {
        if api_version == self.api_version {
            return Some(&self.row);
        }
        self.table
            .find_kind(api_version, &self.row.kind.kind)
            .filter(|row| row.kind.storage == self.row.kind.storage)
    }

    /// A writer to the object, or to a part of it that is of the row's own kind.
    pub fn writer<'a>(&'a self, manager: &'a str, subresource: &'a str, now: &'a str) -> Writer<'a> {
        Writer {
            manager,
            api_version: &self.api_version,
            subresource,
            now,
            reset: reset::of(&self.row.kind, subresource),
            versions: self,
        }
    }

    /// The versions of the resource that are served.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> + '_ {
        self.table.versions_of(&self.row).into_iter().map(|r| &*r.kind)
    }
}

/// How objects of a row are merged.
pub fn node(row: &Row) -> Node<'_> {
    match &row.kind.custom {
        Some(custom) => Node::Model(&custom.compiled().model),
        None => Node::of(schema::of(&row.kind)),
    }
}

impl Versions for Served {
    fn node(&self, api_version: &str) -> Option<Node<'_>> {
        self.row(api_version).map(|row| node(row))
    }

    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        let (from, to) = (self.row(object.api_version())?, self.row(api_version)?);
        if Arc::ptr_eq(from, to) {
            return Some(object.clone());
        }
        Some(convert::from_stored(to, convert::to_stored(from, object.clone())))
    }
}

/// A kind that has one version, and is none of the table's rows (`Scale`, what reviews are made of).
pub struct Single<'a> {
    /// `apiVersion`.
    pub api_version: &'a str,
    /// Its name.
    pub kind: &'a str,
}

impl Versions for Single<'_> {
    fn node(&self, api_version: &str) -> Option<Node<'_>> {
        (api_version == self.api_version).then(|| Node::of(schema::find_kind(self.api_version, self.kind)))
    }

    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        (api_version == self.api_version).then(|| object.clone())
    }
}

/// What a new object is compared with: an object of the kind with nothing set.
pub fn nothing(api_version: &str, kind: &str) -> Value {
    let ty = schema::find_kind(api_version, kind);
    let mut out = ty.map_or_else(|| Value::Object(Map::new()), decode::empty);
    out.set_api_version_kind(api_version, kind);
    out
}

/// The empty object of a row.
pub fn nothing_of(kind: &Kind) -> Value {
    nothing(&kind.api_version(), &kind.kind)
}

/// An empty list of managers asks for them to be forgotten, and would vanish in decoding: one empty entry says the
/// same.
pub fn keep_reset(object: &mut Value) {
    if let Some(Value::Array(entries)) = object.pointer_mut("/metadata/managedFields")
        && entries.is_empty()
    {
        entries.push(json!({}));
    }
}

/// Puts the times of the managers back when they are all that a write changes: such a write is none.
pub fn keep_times(new: &mut Value, old: &Value) {
    let (now, before) = (new.items_at("metadata.managedFields"), old.items_at("metadata.managedFields"));
    if now == before || !Managed::same_but_times(now, before) {
        return;
    }
    let (Some(a), Some(b)) = (new.as_object(), old.as_object()) else { return };
    let same = |a: &Map<String, Value>, b: &Map<String, Value>, but: &[&str]| {
        let all = a.keys().chain(b.keys()).filter(|k| !but.contains(&k.as_str()));
        all.into_iter().all(|k| a.get(k) == b.get(k))
    };
    let meta =
        |o: &'_ Map<String, Value>| o.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    if same(a, b, &["metadata"]) && same(&meta(a), &meta(b), &["managedFields", "resourceVersion"]) {
        let before = before.to_vec();
        new.set_meta("managedFields", Value::Array(before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_alone_are_no_change() {
        let object = |time: &str, data: &str| {
            json!({"metadata": {"name": "a", "resourceVersion": time, "managedFields": [{"manager": "m", "time": time}]},
                "data": {"k": data}})
        };
        let old = object("1", "x");
        let mut new = object("2", "x");
        keep_times(&mut new, &old);
        assert_eq!(new["metadata"]["managedFields"], old["metadata"]["managedFields"]);
        let mut new = object("2", "y");
        keep_times(&mut new, &old);
        assert_eq!(new["metadata"]["managedFields"][0]["time"], "2");
    }

    #[test]
    fn versions_of_a_row() {
        let table = crate::kinds::KindsRegistry::builtin(&[], &[]).snapshot();
        let row = table.find("autoscaling", "v1", "horizontalpodautoscalers").cloned().expect("row");
        let served = Served::new(table.clone(), row);
        let mut versions: Vec<String> = served.kinds().map(Kind::api_version).collect();
        versions.sort();
        assert_eq!(versions, ["autoscaling/v1", "autoscaling/v2"]);
        let v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50, "scaleTargetRef": {"kind": "K", "name": "n"}}});
        let v2 = served.convert(&v1, "autoscaling/v2").expect("served");
        assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
        assert!(served.node("autoscaling/v2").is_some() && served.node("apps/v1").is_none());
    }
}
