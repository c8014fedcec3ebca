//! Expressions of admission policies and match conditions: each is compiled as it will run.

use serde_json::Value;

use super::checks::Errors;
use crate::cel::Type;
use crate::cel::policy::{Compiler, Features};
use crate::names;
use crate::object::ObjectExt as _;
use crate::status::Path;

const SPEC: Path<'static> = Path::new("spec");
const MAX_CONDITIONS: usize = 64;
const MAX_ANNOTATIONS: usize = 20;
const MAX_ANNOTATION_EXPRESSION: usize = 5 * 1024;

/// Judges the expressions of one policy, in the order of its fields.
pub struct Policy<'o> {
    object: &'o Value,
    compiler: Compiler,
    params: bool,
}

impl<'o> Policy<'o> {
    /// Begins with match conditions and variables.
    pub fn begin(object: &'o Value, e: &mut Errors) -> Self {
        let params = object.at("spec.paramKind").is_some_and(|p| !p.is_null());
        match_conditions(object.items_at("spec.matchConditions"), SPEC.child("matchConditions"), params, e);
        let mut policy = Self { object, compiler: Compiler::new(), params };
        let features = policy.features();
        let list = SPEC.child("variables");
        for (i, variable) in object.items_at("spec.variables").iter().enumerate() {
            let item = list.index(i);
            let (name, expression) = (variable.str_at("name"), variable.str_at("expression"));
            if name.trim().is_empty() {
                e.required(item.child("name"), "name is not specified");
            } else if !is_identifier(name) {
                e.invalid(item.child("name"), name, "must be a valid CEL identifier");
            }
            if expression.trim().is_empty() {
                e.required(item.child("expression"), "expression is not specified");
            } else if let Err(why) = policy.compiler.variable(name, expression, features) {
                e.invalid(item.child("expression"), expression, why);
            }
        }
        policy
    }

    fn features(&self) -> Features {
        Features { params: self.params, authorizer: true, patches: false }
    }

    /// `validations` and `auditAnnotations`.
    pub fn validations(&self, e: &mut Errors) {
        let list = SPEC.child("validations");
        for (i, v) in self.object.items_at("spec.validations").iter().enumerate() {
            let item = list.index(i);
            let expression = v.str_at("expression");
            if expression.trim().is_empty() {
                e.required(item.child("expression"), "expression is not specified");
            } else {
                self.judge(item.child("expression"), expression, self.features(), &[Type::Bool], e);
            }
            let (message, text) = (v.str_at("message"), v.str_at("messageExpression"));
            if !text.is_empty() && text.trim().is_empty() {
                e.invalid(item.child("messageExpression"), text, "must be non-empty if specified");
            } else if !text.is_empty() {
                let features = Features { authorizer: false, ..self.features() };
                self.judge(item.child("messageExpression"), text, features, &[Type::String], e);
            }
            if !message.is_empty() && message.trim().is_empty() {
                e.invalid(item.child("message"), message, "must be non-empty if specified");
            } else if message.trim().contains(['\n', '\r']) {
                e.invalid(item.child("message"), message, "must not contain line breaks");
            }
            let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
            e.known(item.child("reason"), v.get("reason"), &reasons);
        }
        self.annotations(e);
    }

    fn annotations(&self, e: &mut Errors) {
        let list = SPEC.child("auditAnnotations");
        let annotations = self.object.items_at("spec.auditAnnotations");
        if annotations.len() > MAX_ANNOTATIONS {
            let detail = format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations");
            e.invalid(list, self.object["spec"]["auditAnnotations"].clone(), detail);
        }
        let mut seen = Vec::new();
        for (i, annotation) in annotations.iter().enumerate() {
            let item = list.index(i);
            let (key, expression) = (annotation.str_at("key"), annotation.str_at("valueExpression"));
            let name = self.object.name();
            if name.is_empty() {
                e.invalid(item.child("key"), key, "requires metadata.name be non-empty");
            } else {
                let whole = format!("{name}/{key}");
                e.all(item.child("key"), &whole, names::qualified_name(&whole));
            }
            let at = item.child("valueExpression");
            if expression.trim().is_empty() {
                e.required(at, "valueExpression is not specified");
            } else if expression.trim().len() > MAX_ANNOTATION_EXPRESSION {
                e.required(at, &format!("must not exceed {MAX_ANNOTATION_EXPRESSION} bytes in length"));
            } else {
                self.judge(at, expression.trim(), self.features(), &[Type::String, Type::Null], e);
            }
            if seen.contains(&key) {
                e.duplicate(item.child("key"), key);
            }
            seen.push(key);
        }
    }

    /// `mutations`.
    pub fn mutations(&self, e: &mut Errors) {
        let list = SPEC.child("mutations");
        for (i, mutation) in self.object.items_at("spec.mutations").iter().enumerate() {
            let item = list.index(i);
            let kinds = [
                ("JSONPatch", "jsonPatch", Type::list(Type::object("JSONPatch"))),
                ("ApplyConfiguration", "applyConfiguration", Type::object("Object")),
            ];
            let wanted = mutation.str_at("patchType");
            if !kinds.iter().any(|(ty, ..)| *ty == wanted) {
                e.one_of(item.child("patchType"), wanted, &["ApplyConfiguration", "JSONPatch"]);
                continue;
            }
            let there = |field: &str| mutation.get(field).is_some_and(|v| !v.is_null());
            for (ty, field, result) in &kinds {
                let at = item.child(field);
                if *ty != wanted {
                    continue;
                }
                if !there(field) {
                    e.required(at, &format!("must be specified when patchType is {ty}"));
                    continue;
                }
                let expression = mutation[*field].str_at("expression").trim();
                if expression.is_empty() {
                    e.required(at.child("expression"), "");
                } else {
                    let features = Features { patches: true, ..self.features() };
                    self.judge(at.child("expression"), expression, features, std::slice::from_ref(result), e);
                }
            }
            for (_, field, _) in kinds.iter().filter(|(ty, field, _)| *ty != wanted && there(field)) {
                let detail = format!("must not be specified when patchType is {wanted}");
                e.invalid(item.child(field), format!("{{{field}}}"), detail);
            }
        }
    }

    fn judge(&self, at: Path<'_>, source: &str, features: Features, wanted: &[Type], e: &mut Errors) {
        if let Err(why) = self.compiler.compile(source, features, wanted) {
            e.invalid(at, source, why);
        }
    }
}

/// `matchConditions` of policies and webhooks.
pub fn match_conditions(conditions: &[Value], at: Path<'_>, params: bool, e: &mut Errors) {
    if conditions.len() > MAX_CONDITIONS {
        e.push(crate::status::FieldError::too_many(at, conditions.len(), MAX_CONDITIONS));
    }
    let mut seen = Vec::new();
    for (i, condition) in conditions.iter().enumerate() {
        let item = at.index(i);
        let (name, expression) = (condition.str_at("name"), condition.str_at("expression").trim());
        if expression.is_empty() {
            e.required(item.child("expression"), "");
        } else {
            let features = Features { params, authorizer: true, patches: false };
            if let Err(why) = Compiler::new().compile(expression, features, &[Type::Bool]) {
                e.invalid(item.child("expression"), expression, why);
            }
        }
        if name.is_empty() {
            e.required(item.child("name"), "");
            continue;
        }
        e.all(item.child("name"), name, names::qualified_name(name));
        if seen.contains(&name) {
            e.duplicate(item.child("name"), name);
        }
        seen.push(name);
    }
}

/// Whether expressions can use a name as it is.
fn is_identifier(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let reserved = matches!(
        name,
        "as" | "break"
            | "const"
            | "continue"
            | "else"
            | "false"
            | "for"
            | "function"
            | "if"
            | "import"
            | "in"
            | "let"
            | "loop"
            | "namespace"
            | "null"
            | "package"
            | "return"
            | "true"
            | "var"
            | "void"
            | "while"
    );
    letters && !reserved && !name.starts_with(|c: char| c.is_ascii_digit())
}
