//! What is wrong with the rules of a schema: compilation, types, and costs.

use serde_json::{Value, json};

use super::{Environments, NOTEWORTHY, SELF_TYPE, beyond, max_cardinality, property_decl, times};
use crate::cel::cost::{RULE_LIMIT, SCHEMA_LIMIT};
use crate::cel::decl::Decl;
use crate::cel::schema::declaration;
use crate::crd::schema::{Additional, ListType, Rule, Schema, Type};
use crate::status::{FieldError, Path};

/// What is wrong with the rules of a definition's schema. Asked only when nothing else is wrong with the schema.
///
/// `old` is the schema of the same version before an update: its rules keep working even where they cost too much.
pub fn validate_definition(at: Path<'_>, schema: &Schema, old: Option<&Schema>) -> Vec<FieldError> {
    if !super::has_rules(schema) {
        return Vec::new();
    }
    let Some(decl) = declaration(schema, true) else { return Vec::new() };
    let decl = decl.named(SELF_TYPE);
    // Costs of a schema that was too dear before are not judged again.
    let lenient = old.is_some_and(|old| old == schema);
    let mut judge = Judge { lenient, errors: Vec::new(), total: 0, dear: Vec::new() };
    let node = At { path: &at, cardinality: Some(1), uncorrelatable: None };
    judge.node(&node, schema, Some(&decl));
    judge.finish(&at)
}

/// Where the judge is.
struct At<'p> {
    path: &'p Path<'p>,
    /// How often the node can be in an object; None without a bound.
    cardinality: Option<u64>,
    /// The list or map above whose old and new items cannot be told to be the same.
    uncorrelatable: Option<String>,
}

struct Judge {
    lenient: bool,
    errors: Vec<FieldError>,
    total: u64,
    /// Rules that take a large part of what a schema may cost.
    dear: Vec<(u64, String)>,
}

impl Judge {
    fn node(&mut self, at: &At<'_>, schema: &Schema, decl: Option<&Decl>) {
        let factor = match schema.ty {
            Some(Type::Array) => limit(schema, |c| c.max_items),
            Some(Type::Object) if schema.additional_properties.is_some() => {
                limit(schema, |c| c.max_properties)
            }
            _ => Some(1),
        };
        let below = at.cardinality.zip(factor).map(|(a, b)| times(a, b));
        if let Some(Additional::Schema(values)) = schema.additional_properties.as_deref() {
            let path = at.path.child("additionalProperties");
            let at = At { path: &path, cardinality: below, uncorrelatable: at.uncorrelatable.clone() };
            self.below(&at, values, decl.and_then(Decl::item));
        }
        let properties = at.path.child("properties");
        for (name, property) in schema.properties.iter() {
            let path = properties.key(name);
            let at = At { path: &path, cardinality: below, uncorrelatable: at.uncorrelatable.clone() };
            self.below(&at, property, decl.and_then(|d| property_decl(d, name)));
        }
        let all_of = at.path.child("allOf");
        for (i, nested) in schema.checks.iter().flat_map(|c| &c.all_of).enumerate() {
            let path = all_of.index(i);
            self.rules(
                &At { path: &path, cardinality: at.cardinality, uncorrelatable: at.uncorrelatable.clone() },
                nested,
                schema,
                decl,
            );
        }
        if let Some(items) = &schema.items {
            let path = at.path.child("items");
            let uncorrelatable = at
                .uncorrelatable
                .clone()
                .or_else(|| (schema.list_type != Some(ListType::Map)).then(|| at.path.to_string()));
            let at = At { path: &path, cardinality: below, uncorrelatable };
            self.below(&at, items, decl.and_then(Decl::item));
        }
        self.rules(at, schema, schema, decl);
    }

    fn below(&mut self, at: &At<'_>, schema: &Schema, decl: Option<&Decl>) {
        if super::has_rules(schema) {
            // What expressions above cannot see can still have rules of its own.
            let own =
                if decl.is_none() { declaration(schema, false).map(|d| d.named(SELF_TYPE)) } else { None };
            self.node(at, schema, decl.or(own.as_ref()));
        }
    }

    fn rules(&mut self, at: &At<'_>, validation: &Schema, schema: &Schema, decl: Option<&Decl>) {
        if validation.rules.is_empty() {
            return;
        }
        let list = at.path.child("x-kubernetes-validations");
        let Some(decl) = decl else {
            let why = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
            self.errors.push(FieldError::internal(list, why));
            return;
        };
        let env = Environments::new(decl);
        for (i, rule) in validation.rules.iter().enumerate() {
            let item = list.index(i);
            let compiled = env.compile(rule, schema);
            let cost = times(compiled.max_cost, at.cardinality.unwrap_or_else(|| max_cardinality(decl)));
            self.cost(&item.child("rule").to_string(), "estimated rule cost", cost);
            if let Some(Err(why)) = &compiled.program {
                self.errors.push(invalid_rule(item.child("rule"), rule, why));
            }
            match &compiled.message {
                Some(Err(why)) => self.errors.push(invalid_rule(item.child("messageExpression"), rule, why)),
                Some(Ok(_)) => {
                    let path = item.child("messageExpression").to_string();
                    self.cost(&path, "estimated messageExpression cost", compiled.message_max_cost);
                }
                None => {}
            }
            if compiled.uses_old_self {
                if let Some(list) = &at.uncorrelatable {
                    let why = format!(
                        "oldSelf cannot be used on the uncorrelatable portion of the schema within {list}"
                    );
                    self.errors.push(FieldError::invalid(item.child("rule"), &*rule.rule, why));
                }
            } else if let Some(optional) = rule.optional_old_self {
                let why = "may not be set if oldSelf is not used in rule";
                self.errors.push(FieldError::invalid(item.child("optionalOldSelf"), optional, why));
            }
        }
    }

    fn cost(&mut self, path: &str, name: &str, cost: u64) {
        if let Some(why) = beyond(name, cost, RULE_LIMIT).filter(|_| !self.lenient) {
            self.errors.push(FieldError::forbidden(path, why));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= NOTEWORTHY {
            self.dear.push((cost, path.to_owned()));
        }
    }

    fn finish(mut self, at: &Path<'_>) -> Vec<FieldError> {
        let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        if let Some(why) = beyond(name, self.total, SCHEMA_LIMIT).filter(|_| !self.lenient) {
            self.dear.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            for (_, path) in self.dear.into_iter().take(4) {
                let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
                self.errors.push(FieldError::forbidden(path, why));
            }
            self.errors.push(FieldError::forbidden(at, why));
        }
        self.errors
    }
}

fn limit(schema: &Schema, of: impl Fn(&crate::crd::schema::Checks) -> Option<i64>) -> Option<u64> {
    schema.checks.as_deref().and_then(of).map(|n| u64::try_from(n).unwrap_or(0))
}

/// The whole rule is the value at fault, with the names of its fields in Go.
fn invalid_rule(at: Path<'_>, rule: &Rule, why: &str) -> FieldError {
    let text = |s: &str| json!(s).to_string();
    let reason = if rule.reason.is_empty() { "null".to_owned() } else { text(&rule.reason) };
    let optional = rule.optional_old_self.map_or(Value::Null, Value::Bool);
    let shown = format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{reason},\"FieldPath\":{},\"OptionalOldSelf\":{optional}}}",
        text(&rule.rule),
        text(&rule.message),
        text(&rule.message_expression),
        text(&rule.field_path),
    );
    // The text has the order of Go's fields, which a JSON value would not keep.
    let mut error = FieldError::invalid(at, Value::Null, format!("{shown}: {why}"));
    error.value = None;
    error
}
