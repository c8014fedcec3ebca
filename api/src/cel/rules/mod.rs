//! `x-kubernetes-validations` (KEP-2876): rules of a schema, compiled, judged when a definition is written
//! ([`definition`]) and run when an instance is ([`instance`]).

mod definition;
mod instance;

use std::sync::Arc;

use super::cost;
use super::decl::Decl;
use super::env::{Env, Program};
use super::schema::declaration;
use super::types::Type;
use crate::crd::schema::{Rule, Schema};

pub use definition::validate_definition;
pub use instance::{Verdict, usable_message};

/// A rule made ready; the texts are what is wrong with it.
#[derive(Debug)]
struct Compiled {
    rule: Rule,
    /// None when the rule is empty.
    program: Option<Result<Program, String>>,
    message: Option<Result<Program, String>>,
    uses_old_self: bool,
    /// Estimated cost of one run.
    max_cost: u64,
    message_max_cost: u64,
    /// The field to blame, as paths print it.
    blamed: String,
}

/// The rules of a node of the schema and those below it.
#[derive(Debug, Default)]
struct Node {
    rules: Vec<Compiled>,
    items: Option<Box<Node>>,
    values: Option<Box<Node>>,
    properties: Vec<(Box<str>, Node)>,
    all_of: Vec<Node>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.rules.is_empty()
            && self.items.is_none()
            && self.values.is_none()
            && self.properties.is_empty()
            && self.all_of.is_empty()
    }
}

/// The rules of one version of a custom resource, compiled once.
#[derive(Debug, Default)]
pub struct Rules {
    root: Option<(Node, Decl)>,
}

impl Rules {
    /// Compiles every rule of a resource's schema.
    pub fn compile(schema: &Schema) -> Self {
        Self::compile_at(schema, true)
    }

    /// Compiles every rule of a part of a schema.
    pub fn compile_below(schema: &Schema) -> Self {
        Self::compile_at(schema, false)
    }

    fn compile_at(schema: &Schema, root: bool) -> Self {
        if !has_rules(schema) {
            return Self::default();
        }
        let Some(decl) = declaration(schema, root) else { return Self::default() };
        let decl = decl.named(SELF_TYPE);
        let node = compile_node(schema, schema, &decl);
        Self { root: (!node.is_empty()).then_some((node, decl)) }
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }
}

/// Name of the type of `self`; not one that rules should rely on.
const SELF_TYPE: &str = "selfType";

fn has_rules(schema: &Schema) -> bool {
    schema.any(&mut |s| !s.rules.is_empty() || s.checks.iter().flat_map(|c| &c.all_of).any(has_rules))
}

/// Compiles the rules that `validation` has for the structure of `schema`; both are the same but within `allOf`.
fn compile_node(validation: &Schema, schema: &Schema, decl: &Decl) -> Node {
    let mut node = Node::default();
    if !validation.rules.is_empty() {
        let env = Environments::new(decl);
        node.rules = validation.rules.iter().map(|rule| env.compile(rule, schema)).collect();
    }
    let filled = |node: Node| (!node.is_empty()).then_some(Box::new(node));
    if let (Some(validation), Some(schema), Some(item)) = (&validation.items, &schema.items, decl.item()) {
        node.items = filled(compile_node(validation, schema, item));
    }
    if let (Some(validation), Some(schema), Some(item)) =
        (validation.additional_schema(), schema.additional_schema(), decl.item())
    {
        node.values = filled(compile_node(validation, schema, item));
    }
    for (property, validation) in validation.properties.iter() {
        let Some(schema) = schema.properties.get(property) else { continue };
        let Some(field) = property_decl(decl, property) else { continue };
        let below = compile_node(validation, schema, field);
        if !below.is_empty() {
            node.properties.push((property.into(), below));
        }
    }
    for all_of in validation.checks.iter().flat_map(|c| &c.all_of) {
        let below = compile_node(all_of, schema, decl);
        if !below.is_empty() {
            node.all_of.push(below);
        }
    }
    node
}

/// The declaration of a property; None where expressions cannot see it.
fn property_decl<'d>(decl: &'d Decl, property: &str) -> Option<&'d Decl> {
    decl.field(&super::decl::escape(property)?).map(|f| &f.decl)
}

/// The environments of one node's rules.
struct Environments {
    plain: Env,
    optional: Env,
}

impl Environments {
    fn new(decl: &Decl) -> Self {
        let decl = Arc::new(decl.clone());
        let env = Env::new().declare("self", &decl);
        let plain = env.clone().declare("oldSelf", &decl);
        let optional = env.with("oldSelf", Type::optional(decl.ty()));
        Self { plain, optional }
    }

    fn compile(&self, rule: &Rule, schema: &Schema) -> Compiled {
        let mut compiled = Compiled {
            rule: rule.clone(),
            program: None,
            message: None,
            uses_old_self: false,
            max_cost: 0,
            message_max_cost: 0,
            blamed: String::new(),
        };
        if rule.rule.trim().is_empty() {
            return compiled;
        }
        let env = if rule.optional_old_self == Some(true) { &self.optional } else { &self.plain };
        let program = match env.compile(&rule.rule) {
            Err(issues) => Err(format!("compilation failed: {issues}")),
            Ok(program) if *program.result_type() != Type::Bool => {
                Err("cel expression must evaluate to a bool".to_owned())
            }
            Ok(program) => Ok(program),
        };
        if let Ok(program) = &program {
            compiled.uses_old_self = program.uses("oldSelf");
            compiled.max_cost = env.estimate(program).max;
            if !rule.message_expression.is_empty() {
                let message = match env.compile(&rule.message_expression) {
                    Err(issues) => Err(format!("messageExpression compilation failed: {issues}")),
                    Ok(message) if *message.result_type() != Type::String => {
                        Err("messageExpression must evaluate to a string".to_owned())
                    }
                    Ok(message) => Ok(message),
                };
                compiled.message_max_cost = message.as_ref().map_or(0, |m| env.estimate(m).max);
                compiled.message = Some(message);
            }
            compiled.blamed = blamed(&rule.field_path, schema);
        }
        compiled.program = Some(program);
        compiled
    }
}

/// `fieldPath` as error paths print it; empty when it leads nowhere.
fn blamed(path: &str, schema: &Schema) -> String {
    use crate::crd::field_path::{Step, resolve};
    let mut shown = String::new();
    for step in resolve(path, schema, true).map(|(steps, _)| steps).unwrap_or_default() {
        match step {
            Step::Field(name) if shown.is_empty() => shown = name,
            Step::Field(name) => shown.push_str(&format!(".{name}")),
            Step::Key(key) => shown.push_str(&format!("[{key}]")),
        }
    }
    shown
}

/// How often data of that declaration can be in an object whose lists are not bounded.
fn max_cardinality(decl: &Decl) -> u64 {
    super::decl::MAX_REQUEST / (decl.min_size + 1)
}

/// `baseCost * cardinality`, at most what a number holds.
fn times(cost: u64, cardinality: u64) -> u64 {
    cost.saturating_mul(cardinality)
}

/// What a message says when a cost is beyond a limit.
fn beyond(name: &str, cost: u64, limit: u64) -> Option<String> {
    if cost <= limit {
        return None;
    }
    let factor = cost as f64 / limit as f64;
    let shown = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    Some(format!(
        "{name} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    ))
}

/// Estimates beyond this share of the whole limit are named one by one.
const NOTEWORTHY: u64 = cost::SCHEMA_LIMIT / 100;

#[cfg(test)]
mod tests;
