//! Tables: the columns of every kind and the cells of an object's row, as `kubectl get` shows them.
//!
//! The columns of built-in kinds are data (`data/columns.txt`); their cells are computed here, per kind.
//! Kinds defined at run time bring JSON paths with them.

mod cells;
mod jsonpath;
mod network;
mod pods;
mod preview;
mod storage;
mod workloads;

use crate::kinds::Kind;
use crate::object::ObjectExt as _;
use crate::time;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::LazyLock;

/// A column's definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDefinition {
    pub name: String,
    pub r#type: String,
    /// `name` marks the column that names the object.
    pub format: String,
    pub description: String,
    /// 0 is shown always, others with `-o wide`.
    pub priority: i32,
}

impl ColumnDefinition {
    /// As JSON, all fields present.
    pub fn to_value(&self) -> Value {
        json!({"name": self.name, "type": self.r#type, "format": self.format,
            "description": self.description, "priority": self.priority})
    }
}

/// An object's row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    /// One value per column.
    pub cells: Vec<Value>,
    /// What the row says about itself (that a pod has completed).
    pub conditions: Vec<Value>,
}

/// How much of each object a table carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    None,
    /// As PartialObjectMetadata.
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// Parses the `includeObject` query parameter.
    ///
    /// # Errors
    /// With the text of the 400 that Kubernetes answers.
    pub fn parse(text: &str) -> Result<IncludeObject, crate::status::Status> {
        match text {
            "" | "Metadata" => Ok(IncludeObject::Metadata),
            "None" => Ok(IncludeObject::None),
            "Object" => Ok(IncludeObject::Object),
            other => Err(crate::status::Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
                crate::text::quote(other)
            ))),
        }
    }
}

static COLUMNS: LazyLock<HashMap<&'static str, Vec<ColumnDefinition>>> =
    LazyLock::new(|| parse(include_str!("../../data/columns.txt")));

fn parse(text: &'static str) -> HashMap<&'static str, Vec<ColumnDefinition>> {
    let mut out: HashMap<&'static str, Vec<ColumnDefinition>> = HashMap::new();
    let (mut name, mut age, mut kind) = ("", "", "");
    for line in text.lines() {
        if let Some(text) = line.strip_prefix("name ") {
            name = text;
        } else if let Some(text) = line.strip_prefix("age ") {
            age = text;
        } else if let Some(text) = line.strip_prefix("kind ") {
            kind = text;
        } else if let Some(line) = line.strip_prefix(' ') {
            let parts: Vec<&str> = line.splitn(4, " | ").collect();
            let [column, ty, priority, description] = parts.as_slice() else { continue };
            let (ty, format) = ty.split_once(' ').unwrap_or((ty, ""));
            let description = match *description {
                "@name" => name,
                "@age" => age,
                other => other,
            };
            out.entry(kind).or_default().push(ColumnDefinition {
                name: (*column).to_owned(),
                r#type: ty.to_owned(),
                format: format.to_owned(),
                description: description.replace("\\n", "\n"),
                priority: priority.trim().parse().unwrap_or(0),
            });
        }
    }
    out
}

fn builtin_columns(kind: &Kind) -> Option<&'static [ColumnDefinition]> {
    let group = match kind.group.as_str() {
        "" => "-",
        "events.k8s.io" => "-",
        group => group,
    };
    COLUMNS.get(format!("{group}/{}", kind.kind).as_str()).map(Vec::as_slice)
}

/// The columns of a kind.
pub fn columns(kind: &Kind) -> Vec<ColumnDefinition> {
    if kind.builtin {
        return builtin_columns(kind).map_or_else(fallback_columns, <[_]>::to_vec);
    }
    let mut out = vec![name_column()];
    if kind.columns.is_empty() {
        let mut age = fallback_columns().remove(1);
        "Age".clone_into(&mut age.name);
        out.push(age);
    }
    out.extend(kind.columns.iter().map(|c| ColumnDefinition {
        name: c.name.clone(),
        r#type: c.r#type.clone(),
        format: c.format.clone(),
        description: if c.description.is_empty() {
            format!("Custom resource definition column (in JSONPath format): {}", c.json_path)
        } else {
            c.description.clone()
        },
        priority: c.priority,
    }));
    out
}

fn name_column() -> ColumnDefinition {
    let limits = COLUMNS.get("-/LimitRange").and_then(|c| c.first()).cloned();
    limits.unwrap_or(ColumnDefinition {
        name: "Name".into(),
        r#type: "string".into(),
        format: "name".into(),
        description: String::new(),
        priority: 0,
    })
}

/// Name and Created At: the columns of kinds without columns of their own.
fn fallback_columns() -> Vec<ColumnDefinition> {
    COLUMNS.get("-/LimitRange").cloned().unwrap_or_else(|| vec![name_column(), name_column()])
}

/// The row of an object in the row's version.
pub fn row(kind: &Kind, object: &Value, now: Timestamp) -> Row {
    if !kind.builtin {
        return custom_row(kind, object, now);
    }
    if (kind.group.as_str(), kind.kind.as_str()) == ("", "Pod") {
        return pods::row(object, now);
    }
    let cells = cells::of(kind, object, now)
        .unwrap_or_else(|| vec![json!(object.name()), json!(object.creation_timestamp())]);
    Row { cells, conditions: Vec::new() }
}

fn custom_row(kind: &Kind, object: &Value, now: Timestamp) -> Row {
    let mut cells = vec![json!(object.name())];
    if kind.columns.is_empty() {
        cells.push(json!(time::age(object.at("metadata.creationTimestamp"), now)));
    }
    for column in &kind.columns {
        cells.push(jsonpath::cell(object, &column.json_path, &column.r#type, now));
    }
    Row { cells, conditions: Vec::new() }
}

/// An object's metadata alone.
pub fn partial_metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({}))})
}

/// A whole Table. `list_metadata` is the list's metadata, or `{"resourceVersion": …}` of a single object.
/// `with_columns` is false for all but the first event of a watch.
pub fn render<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    now: Timestamp,
    include: IncludeObject,
    list_metadata: Value,
    with_columns: bool,
) -> Value {
    let rows: Vec<Value> = objects.into_iter().map(|o| row_value(kind, o, now, include)).collect();
    let definitions = if with_columns {
        columns(kind).iter().map(ColumnDefinition::to_value).collect()
    } else {
        Value::Null
    };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata,
        "columnDefinitions": definitions, "rows": rows})
}

/// One row of a Table as JSON.
pub fn row_value(kind: &Kind, object: &Value, now: Timestamp, include: IncludeObject) -> Value {
    let row = row(kind, object, now);
    let carried = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => {
            let mut partial = partial_metadata(object);
            // Kubernetes takes a table's metadata from its internal types, which hold this one elsewhere.
            partial.remove_path(&["metadata", "annotations", crate::defaults::TEMPLATE_GENERATION]);
            if partial.annotations().is_empty() {
                partial.remove_path(&["metadata", "annotations"]);
            }
            partial
        }
        IncludeObject::Object => object.clone(),
    };
    let mut out = json!({"cells": row.cells, "object": carried});
    if !row.conditions.is_empty() {
        out["conditions"] = Value::Array(row.conditions);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{Column, builtin};

    fn now() -> Timestamp {
        time::parse("2024-01-02T00:00:00Z").expect("time")
    }

    #[test]
    fn every_kind_has_a_cell_per_column() {
        for kind in builtin().iter().filter(|k| k.has_verb("list")) {
            let ty = crate::schema::of(kind).expect("type");
            let mut object = crate::decode::empty(ty);
            crate::defaults::apply(kind, &mut object);
            let got = row(kind, &object, now()).cells.len();
            // IPAddress shows an age without a column for it, as Kubernetes does.
            let extra = usize::from(kind.kind == "IPAddress");
            assert_eq!(got, columns(kind).len() + extra, "{}", kind.group_kind());
        }
    }

    #[test]
    fn custom_kinds_bring_columns() {
        let column = |name: &str, ty: &str, path: &str| Column {
            name: name.into(),
            r#type: ty.into(),
            json_path: path.into(),
            ..Column::default()
        };
        let kind = Kind {
            columns: vec![
                column("Size", "integer", ".spec.size"),
                column("Made", "date", ".metadata.creationTimestamp"),
                column("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].status"),
                column("All", "string", ".spec.list[*].a"),
                column("None", "string", ".spec.none"),
            ],
            ..Kind::default()
        };
        let object = json!({"metadata": {"name": "w", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"size": 3, "list": [{"a": "x"}, {"a": "y"}]}, "status": {"conditions": [{"type": "X", "status": "no"}, {"type": "Ready", "status": "True"}]}});
        assert_eq!(
            row(&kind, &object, now()).cells,
            [json!("w"), json!(3), json!("24h"), json!("True"), json!("x"), Value::Null]
        );
        assert_eq!(columns(&kind).len(), 6);
    }
}
