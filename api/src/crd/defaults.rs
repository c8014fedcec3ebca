//! Validation of a schema's defaults: each must be a value that the schema allows, with no unknown field.

use serde_json::{Value, json};

use super::embedded::{self, Malformed};
use super::schema::Schema;
use super::{prune, rules, values};
use crate::status::{FieldError, Path};

/// Steps from the nearest resource to a default: what is built around it to judge metadata.
enum Around<'a> {
    Field(&'a str),
    Item,
}

/// What is wrong with the defaults of a schema.
pub fn validate(at: Path<'_>, schema: &Schema, pruned: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut walk = Walk { pruned, resource: schema, around: Vec::new(), errors: &mut errors };
    walk.node(at, schema, true, false);
    errors
}

struct Walk<'s, 'e> {
    pruned: bool,
    /// The nearest resource.
    resource: &'s Schema,
    around: Vec<Around<'s>>,
    errors: &'e mut Vec<FieldError>,
}

impl<'s> Walk<'s, '_> {
    fn node(&mut self, at: Path<'_>, s: &'s Schema, root: bool, inside_meta: bool) {
        let resource = root || s.embedded_resource;
        let inside_meta = inside_meta && !resource;
        let outer = (self.resource, resource.then(|| std::mem::take(&mut self.around)));
        if resource {
            self.resource = s;
        }
        if let Some(default) = s.default.as_deref() {
            let here = at.child("default");
            let found = if inside_meta {
                self.in_metadata(here, s, default)
            } else {
                self.plain(here, s, default, root)
            };
            self.errors.extend(found);
        }
        if let Some(items) = s.items.as_deref() {
            self.around.push(Around::Item);
            self.node(at.child("items"), items, false, inside_meta);
            self.around.pop();
        }
        let properties = at.child("properties");
        for (name, property) in s.properties.iter() {
            let meta = inside_meta || (resource && prune::META_FIELDS.contains(&name));
            self.around.push(Around::Field(name));
            self.node(properties.key(name), property, false, meta);
            self.around.pop();
        }
        self.resource = outer.0;
        if let Some(around) = outer.1 {
            self.around = around;
        }
    }

    fn plain(&self, at: Path<'_>, s: &Schema, default: &Value, root: bool) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let resource = root || s.embedded_resource;
        if self.pruned {
            let mut copy = default.clone();
            prune::prune(&mut copy, s, resource);
            if copy != *default {
                errors.push(FieldError::invalid(at, default.clone(), "must not have unknown fields"));
            }
        }
        let mut coerced = default.clone();
        let found = match embedded::coerce(&mut coerced, s, resource, Malformed::Refuse) {
            Err(e) => vec![FieldError { field: format!("{at}.{}", e.field), ..e }],
            Ok(_) => embedded::validate(at, default, s, resource),
        };
        errors.extend(if found.is_empty() { judge(at, s, default) } else { found });
        errors
    }

    /// A default of metadata is judged within a resource that is made around it.
    fn in_metadata(&self, at: Path<'_>, s: &Schema, default: &Value) -> Vec<FieldError> {
        let mut object = self.around.iter().rev().fold(default.clone(), |inner, step| match step {
            Around::Field(name) => json!({*name: inner}),
            Around::Item => json!([inner]),
        });
        if let Some(map) = object.as_object_mut() {
            map.entry("apiVersion").or_insert_with(|| json!("validation/v1"));
            map.entry("kind").or_insert_with(|| json!("Validation"));
        }
        let bad = |why: String| {
            vec![FieldError::invalid(at, default.clone(), format!("must result in valid metadata: {why}"))]
        };
        if let Err(e) = embedded::coerce(&mut object, self.resource, true, Malformed::Refuse) {
            return bad(e.to_string());
        }
        let found = embedded::validate(Path::ROOT, &object, self.resource, true);
        match found.as_slice() {
            [] => judge(at, s, default),
            [one] => bad(one.to_string()),
            many => bad(format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))),
        }
    }
}

fn judge(at: Path<'_>, s: &Schema, default: &Value) -> Vec<FieldError> {
    let errors = values::validate(&at.to_string(), s, default, None);
    if !errors.is_empty() {
        return errors;
    }
    let rules = rules::Rules::compile_below(s);
    if rules.is_empty() {
        return errors;
    }
    let mut errors = rules.validate(s, default, None);
    for error in &mut errors {
        error.field = if error.field == "<nil>" { at.to_string() } else { format!("{at}.{}", error.field) };
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(schema: &Value) -> Vec<String> {
        let schema = Schema::parse(schema).expect("schema");
        validate(Path::new("s"), &schema, true).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_judged() {
        for (property, want) in [
            (json!({"type": "integer", "maximum": 10, "default": 5}), vec![]),
            (
                json!({"type": "integer", "maximum": 10, "default": 50}),
                vec![
                    "s.properties[p].default: Invalid value: 50:  in body should be less than or equal to 10",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "default": {"b": 1}}),
                vec!["s.properties[p].default: Invalid value: {\"b\":1}: must not have unknown fields"],
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "default": {"a": 1}}),
                vec![
                    "s.properties[p].default.a: Invalid value: \"integer\": a in body must be of type string: \"integer\"",
                ],
            ),
            (
                json!({"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"metadata": {"type": "object",
                    "properties": {"name": {"type": "string", "default": "Bad/Name"}}}}}),
                vec![
                    "s.properties[p].properties[metadata].properties[name].default: Invalid value: \"Bad/Name\": must result in \
                      valid metadata: metadata.name: Invalid value: \"Bad/Name\": may not contain '/'",
                ],
            ),
        ] {
            let schema = json!({"type": "object", "properties": {"p": property}});
            assert_eq!(texts(&schema), want, "{schema}");
        }
    }
}
