//! Running the rules over an object, with ratcheting (KEP-4008): what was wrong before an update and is unchanged only
//! warns.

use serde_json::Value as Json;

use super::{Compiled, Node, Rules, property_decl};
use crate::cel::cost::{MESSAGE_LIMIT, OBJECT_BUDGET, PER_CALL_LIMIT};
use crate::cel::decl::Decl;
use crate::cel::env::Variables;
use crate::cel::error::EvalError;
use crate::cel::value::Value;
use crate::crd::schema::{ListType, Rule, Schema, Type};
use crate::status::{FieldError, Path};

/// What the rules say of an object.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Every rule that the object breaks.
    pub errors: Vec<FieldError>,
    /// What it breaks in parts that an update left alone.
    pub warnings: Vec<String>,
}

impl Rules {
    /// Runs all rules. `old` is what was there before an update.
    pub fn judge(&self, schema: &Schema, object: &Json, old: Option<&Json>) -> Verdict {
        let Some((node, decl)) = &self.root else { return Verdict::default() };
        let mut run = Run { budget: OBJECT_BUDGET, stopped: false, verdict: Verdict::default() };
        let ratchet = Ratchet { current: old.map(|old| (old, object)), parent: None };
        run.node(node, schema, decl, Path::ROOT, object, old, ratchet);
        run.verdict
    }

    /// The same without the warnings.
    pub fn validate(&self, schema: &Schema, object: &Json, old: Option<&Json>) -> Vec<FieldError> {
        self.judge(schema, object, old).errors
    }
}

/// The old and the new value of a node, and of the nearest node above that has both.
#[derive(Clone, Copy)]
struct Ratchet<'j> {
    current: Option<(&'j Json, &'j Json)>,
    parent: Option<(&'j Json, &'j Json)>,
}

impl<'j> Ratchet<'j> {
    /// For the value of a field or key.
    fn key(self, name: &str) -> Self {
        let Some((old, new)) = self.current else { return self };
        if self.parent.is_none() && matches!(name, "apiVersion" | "kind") {
            return Self { current: None, parent: None };
        }
        Self { current: old.get(name).zip(new.get(name)), parent: self.current }
    }

    /// For an item of a list.
    fn item(self, old: Option<&'j Json>, new: &'j Json) -> Self {
        if self.current.is_none() {
            return self;
        }
        Self { current: old.map(|old| (old, new)), parent: self.current }
    }

    fn unchanged(self) -> bool {
        self.current.or(self.parent).is_some_and(|(old, new)| old == new)
    }
}

struct Run {
    /// What all rules together may still cost.
    budget: u64,
    /// Whether no further rule is run.
    stopped: bool,
    verdict: Verdict,
}

/// `self` and, where there is one, `oldSelf`.
struct Selves<'a> {
    this: Value<'a>,
    old: Option<Value<'a>>,
}

impl<'a> Variables<'a> for Selves<'a> {
    fn get(&self, name: &str) -> Option<Value<'a>> {
        match name {
            "self" => Some(self.this.clone()),
            "oldSelf" => self.old.clone(),
            _ => None,
        }
    }
}

impl Run {
    #[allow(clippy::too_many_arguments, reason = "the schema, the data before and after, and where they are")]
    fn node<'j>(
        &mut self,
        node: &Node,
        schema: &Schema,
        decl: &Decl,
        at: Path<'_>,
        new: &'j Json,
        old: Option<&'j Json>,
        ratchet: Ratchet<'j>,
    ) {
        if new.is_null() || self.stopped {
            return;
        }
        self.rules(node, schema, decl, at, new, old.filter(|o| !o.is_null()), ratchet);
        for all_of in &node.all_of {
            let ratchet = Ratchet { current: None, parent: ratchet.parent };
            self.node(all_of, schema, decl, at, new, old, ratchet);
        }
        match new {
            Json::Array(items) => {
                let (Some(below), Some(item), Some(item_decl)) = (&node.items, &schema.items, decl.item())
                else {
                    return;
                };
                let before = Correlated::new(schema, old);
                for (i, value) in items.iter().enumerate() {
                    let old = before.find(value);
                    self.node(below, item, item_decl, at.index(i), value, old, ratchet.item(old, value));
                }
            }
            Json::Object(fields) => {
                let before = |name: &str| old.and_then(|old| old.get(name));
                if let (Some(below), Some(values), Some(value_decl)) =
                    (&node.values, schema.additional_schema(), decl.item())
                {
                    for (name, value) in fields {
                        self.node(
                            below,
                            values,
                            value_decl,
                            at.key(name),
                            value,
                            before(name),
                            ratchet.key(name),
                        );
                    }
                }
                for (name, below) in &node.properties {
                    let (Some(value), Some(schema), Some(decl)) =
                        (fields.get(&**name), schema.properties.get(name), property_decl(decl, name))
                    else {
                        continue;
                    };
                    self.node(below, schema, decl, at.child(name), value, before(name), ratchet.key(name));
                }
            }
            _ => {}
        }
    }

    #[allow(clippy::too_many_arguments, reason = "as above")]
    fn rules<'j>(
        &mut self,
        node: &Node,
        schema: &Schema,
        decl: &Decl,
        at: Path<'_>,
        new: &'j Json,
        old: Option<&'j Json>,
        ratchet: Ratchet<'j>,
    ) {
        if node.rules.is_empty() || self.stopped {
            return;
        }
        let ty = schema.ty.map_or("", Type::name);
        let wrong = |why: String| FieldError::invalid(at, ty, why);
        let (this, before) = match (
            Value::declared(new, Some(decl)),
            old.map(|old| Value::declared(old, Some(decl))).transpose(),
        ) {
            (Ok(this), Ok(before)) => (this, before),
            (Err(e), _) | (_, Err(e)) => {
                self.verdict.errors.push(wrong(e.to_string()));
                return;
            }
        };
        let optional = Value::Optional(before.clone().map(std::sync::Arc::new));
        let plain = Selves { this: this.clone(), old: before };
        let optional = Selves { this, old: Some(optional) };
        for compiled in &node.rules {
            let rule = &compiled.rule;
            let program = match &compiled.program {
                None => continue,
                Some(Err(why)) => {
                    self.verdict.errors.push(wrong(format!("rule compile error: {why}")));
                    continue;
                }
                Some(Ok(program)) => program,
            };
            let with_optional = rule.optional_old_self == Some(true);
            if compiled.uses_old_self && old.is_none() && !with_optional {
                continue;
            }
            if self.budget == 0 {
                self.stop(wrong(OUT_OF_BUDGET.into()));
                return;
            }
            let variables = if with_optional { &optional } else { &plain };
            let run = program.evaluate(variables, PER_CALL_LIMIT);
            let Some(rest) = self.budget.checked_sub(run.cost) else {
                self.stop(wrong(OUT_OF_BUDGET.into()));
                return;
            };
            self.budget = rest;
            let shown = shown(rule);
            match run.result {
                Ok(Value::Bool(true)) => {}
                Ok(_) => self.broken(compiled, variables, schema, at, new, ratchet),
                Err(EvalError::NoSuchOverload) => self.verdict.errors.push(wrong(format!(
                    "'no such overload': call arguments did not match a supported operator, function or macro signature for rule: {shown}"
                ))),
                Err(e @ EvalError::CostLimit) => self.stop(wrong(format!(
                    "'{e}': no further validation rules will be run due to call cost exceeds limit for rule: {shown}"
                ))),
                Err(e) => self.verdict.errors.push(wrong(format!("{e} evaluating rule: {shown}"))),
            }
            if self.stopped {
                return;
            }
        }
    }

    fn stop(&mut self, error: FieldError) {
        self.verdict.errors.push(error);
        self.stopped = true;
    }

    /// A rule is false.
    fn broken(
        &mut self,
        compiled: &Compiled,
        variables: &Selves<'_>,
        schema: &Schema,
        at: Path<'_>,
        new: &Json,
        ratchet: Ratchet<'_>,
    ) {
        let rule = &compiled.rule;
        let mut field = at.to_string();
        if !compiled.blamed.is_empty() {
            field = at.child(&compiled.blamed).to_string();
        }
        let detail = match self.message(compiled, variables) {
            Ok(Some(message)) => message,
            Ok(None) if rule.message.is_empty() => format!("failed rule: {}", shown(rule)),
            Ok(None) => rule.message.trim().to_owned(),
            Err(why) => {
                let ty = schema.ty.map_or("", Type::name);
                self.add(compiled, ratchet, FieldError::invalid(field, ty, why));
                self.stopped = true;
                return;
            }
        };
        let error = match &*rule.reason {
            "FieldValueForbidden" => FieldError::forbidden(field, detail),
            "FieldValueRequired" => FieldError::required(field, detail),
            "FieldValueDuplicate" => {
                let mut error = FieldError::duplicate(field, new.clone());
                if new.is_object() || new.is_array() {
                    error.value = None;
                }
                error
            }
            _ => {
                let mut error = FieldError::invalid(field, Json::Null, detail);
                error.value =
                    (!matches!(schema.ty, Some(Type::Object | Type::Array))).then(|| new.clone().into());
                error
            }
        };
        self.add(compiled, ratchet, error);
    }

    fn add(&mut self, compiled: &Compiled, ratchet: Ratchet<'_>, error: FieldError) {
        if !compiled.uses_old_self && ratchet.unchanged() {
            self.verdict.warnings.push(error.to_string());
        } else {
            self.verdict.errors.push(error);
        }
    }

    /// The message expression's text; None when there is no usable one, an error when nothing more can be run.
    fn message(&mut self, compiled: &Compiled, variables: &Selves<'_>) -> Result<Option<String>, String> {
        let Some(Ok(program)) = &compiled.message else { return Ok(None) };
        let run = program.evaluate(variables, PER_CALL_LIMIT);
        let Some(rest) = self.budget.checked_sub(run.cost) else {
            return Err("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".into());
        };
        self.budget = rest;
        match run.result {
            Err(EvalError::CostLimit) => Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                compiled.rule.message_expression
            )),
            Ok(Value::String(text)) => Ok(usable_message(&text)),
            _ => Ok(None),
        }
    }
}

/// A message expression's text, trimmed, if it is one line of a fair length.
pub fn usable_message(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && text.len() <= MESSAGE_LIMIT && !text.contains('\n')).then(|| text.to_owned())
}

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// How messages name a rule.
fn shown(rule: &Rule) -> &str {
    if rule.message.is_empty() { rule.rule.trim() } else { rule.message.trim() }
}

/// The old items of a list of type map, by their keys. Items of other lists have no counterpart.
struct Correlated<'j, 's> {
    keys: &'s [Box<str>],
    items: std::collections::HashMap<String, &'j Json>,
}

impl<'j, 's> Correlated<'j, 's> {
    fn new(schema: &'s Schema, old: Option<&'j Json>) -> Self {
        let keys: &[Box<str>] =
            if schema.list_type == Some(ListType::Map) { &schema.list_map_keys } else { &[] };
        let mut found = Self { keys, items: std::collections::HashMap::new() };
        if !keys.is_empty() {
            for item in old.and_then(Json::as_array).into_iter().flatten() {
                found.items.insert(found.key(item), item);
            }
        }
        found
    }

    fn key(&self, item: &Json) -> String {
        let parts = self.keys.iter().map(|k| item.get(&**k).map(Json::to_string).unwrap_or_default());
        parts.collect::<Vec<_>>().join("\u{0}")
    }

    fn find(&self, item: &Json) -> Option<&'j Json> {
        if self.keys.is_empty() { None } else { self.items.get(&self.key(item)).copied() }
    }
}
