//! Declarations from structural schemas, and from the table of built-in types.

use super::decl::{Decl, Field, ListKind, MAX_REQUEST, Shape, escape};
use crate::crd::schema::{Checks, ListType, Schema, Type};

/// What a schema declares. `root` is the root of a resource, whose kind, version and names can always be read. None for
/// what expressions cannot see: data without a type.
pub fn declaration(schema: &Schema, root: bool) -> Option<Decl> {
    let decl = shape(schema, root || schema.embedded_resource)?;
    Some(Decl { nullable: schema.nullable, ..decl })
}

/// What the table says of a built-in type. A type within itself is an object without fields.
pub fn built_in(ty: &'static crate::schema::Type) -> Decl {
    of_struct(ty, &mut Vec::new())
}

fn of_struct(ty: &'static crate::schema::Type, above: &mut Vec<&'static str>) -> Decl {
    if above.contains(&ty.name) {
        return Decl::object(Vec::new());
    }
    above.push(ty.name);
    let mut fields: Vec<Field> = Vec::new();
    for field in &ty.fields {
        if let (Some(name), Some(decl)) = (escape(field.name), of_ty(field.ty, above)) {
            fields.push(Field { name: name.into(), property: field.name.into(), decl });
        }
    }
    above.pop();
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    Decl::scalar(Shape::Object { name: "".into(), fields }, 0, 2)
}

/// None for what has no type: any value.
fn of_ty(ty: crate::schema::Ty, above: &mut Vec<&'static str>) -> Option<Decl> {
    use crate::schema::{Base, Shape as Of};
    Some(match ty.shape() {
        Of::List(item) => Decl::list(of_ty(item, above)?, ListKind::Atomic, None),
        Of::Map(value) => Decl::map(of_ty(value, above)?, None),
        Of::Struct(ty) => of_struct(ty, above),
        Of::Scalar(base) => match base {
            Base::Bool => Decl::scalar(Shape::Bool, 0, 4),
            Base::Int32 | Base::Int64 => Decl::scalar(Shape::Int, 0, 1),
            Base::Number => Decl::scalar(Shape::Double, 0, 1),
            Base::String | Base::Quantity => Decl::scalar(Shape::String, MAX_REQUEST - 2, 2),
            Base::Bytes => Decl::scalar(Shape::Bytes, MAX_REQUEST - 2, 2),
            Base::Time | Base::MicroTime => Decl::scalar(Shape::Timestamp, 32, 21),
            Base::IntOrString => Decl::dynamic(),
            Base::Raw => Decl::object(Vec::new()),
            Base::Any | Base::Struct(_) => return None,
        },
    })
}

fn limit(n: Option<i64>) -> Option<u64> {
    n.map(|n| u64::try_from(n).unwrap_or(0))
}

fn shape(schema: &Schema, root: bool) -> Option<Decl> {
    let none = Checks::default();
    let checks = schema.checks.as_deref().unwrap_or(&none);
    // Lengths are in characters, of up to four bytes.
    let length = limit(checks.max_length).map(|n| n.saturating_mul(4));
    if schema.int_or_string {
        return Some(Decl::scalar(Shape::Dyn, length.unwrap_or(MAX_REQUEST - 2), 1));
    }
    let ty = if root { Some(Type::Object) } else { schema.ty };
    Some(match ty? {
        Type::Boolean => Decl::scalar(Shape::Bool, 0, 4),
        Type::Number => Decl::scalar(Shape::Double, 0, 1),
        Type::Integer => Decl::scalar(Shape::Int, 0, 1),
        Type::String => match checks.format.as_deref() {
            Some("byte") => {
                Decl::scalar(Shape::Bytes, limit(checks.max_length).unwrap_or(MAX_REQUEST - 2), 2)
            }
            Some("duration") => Decl::scalar(Shape::Duration, 32, 3),
            Some("date") => Decl::scalar(Shape::Date, 12, 12),
            Some("date-time") => Decl::scalar(Shape::Timestamp, 32, 21),
            _ => {
                let longest = |values: &[serde_json::Value]| {
                    values.iter().filter_map(|v| v.as_str()).map(str::len).max()
                };
                let of_enum = checks.r#enum.as_deref().map(|values| longest(values).unwrap_or(0) as u64);
                Decl::scalar(Shape::String, length.or(of_enum).unwrap_or(MAX_REQUEST - 2), 2)
            }
        },
        Type::Array => {
            let item = declaration(schema.items.as_deref()?, false)?;
            let kind = match schema.list_type {
                Some(ListType::Set) => ListKind::Set,
                Some(ListType::Map) => ListKind::Map(schema.list_map_keys.to_vec()),
                _ => ListKind::Atomic,
            };
            Decl::list(item, kind, limit(checks.max_items))
        }
        Type::Object => match schema.additional_schema().filter(|_| !root) {
            Some(values) => Decl::map(declaration(values, false)?, limit(checks.max_properties)),
            None => object(schema, checks, root),
        },
    })
}

fn object(schema: &Schema, checks: &Checks, root: bool) -> Decl {
    let mut fields: Vec<Field> = Vec::new();
    let mut min_size = 2;
    let mut add = |property: &str, decl: Decl, filled: bool| {
        // Required fields without a default are there in the shortest JSON.
        if filled {
            min_size += property.len() as u64 + decl.min_size + 4;
        }
        if let Some(name) = escape(property) {
            fields.push(Field { name: name.into(), property: property.into(), decl });
        }
    };
    let required = |name: &str| checks.required.iter().any(|r| **r == *name);
    let typed = |s: Option<&Schema>, ty: Type| s.is_some_and(|s| s.ty == Some(ty));
    let meta = schema.properties.get("metadata");
    let complete = typed(schema.properties.get("kind"), Type::String)
        && typed(schema.properties.get("apiVersion"), Type::String)
        && typed(meta, Type::Object)
        && ["name", "generateName"]
            .iter()
            .all(|f| typed(meta.and_then(|m| m.properties.get(f)), Type::String));
    let given = root && !complete;
    for (property, schema) in schema.properties.iter() {
        if given && matches!(property, "kind" | "apiVersion" | "metadata") {
            continue;
        }
        if let Some(decl) = declaration(schema, false) {
            add(property, decl, required(property) && schema.default.is_none());
        }
    }
    if given {
        let text = || Decl::scalar(Shape::String, MAX_REQUEST - 2, 2);
        for property in ["kind", "apiVersion"] {
            add(property, text(), required(property));
        }
        add(
            "metadata",
            Decl { max_elements: 0, ..Decl::object(vec![("name", text()), ("generateName", text())]) },
            required("metadata"),
        );
    }
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    Decl::scalar(Shape::Object { name: "".into(), fields }, 0, min_size)
}
