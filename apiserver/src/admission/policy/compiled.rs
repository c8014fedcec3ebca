//! Policies and bindings as configured, expressions compiled once. Pure.

use hawser_api::cel::policy::{Compiler, Features};
use hawser_api::cel::{Program, Type};
use hawser_api::object::ObjectExt as _;
use hawser_api::selector::LabelSelector;
use serde_json::Value;

use super::criteria::Criteria;

/// An expression made ready, or why it could not be.
#[derive(Debug)]
pub struct Expression {
    pub source: String,
    pub program: Result<Program, String>,
}

/// An expression with a name: a variable, a match condition, an audit annotation.
#[derive(Debug)]
pub struct Named {
    pub name: String,
    pub expression: Expression,
}

/// One of `validations`.
#[derive(Debug)]
pub struct Validation {
    pub expression: Expression,
    pub message: String,
    pub message_expression: Option<Expression>,
    /// `Invalid` when the policy names none.
    pub reason: String,
}

/// One of `mutations`.
#[derive(Debug)]
pub struct Mutation {
    /// JSONPatch, or else ApplyConfiguration.
    pub json_patch: bool,
    pub expression: Expression,
}

/// `paramKind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamKind {
    pub api_version: String,
    pub kind: String,
}

/// A policy, validating or mutating.
#[derive(Debug)]
pub struct Policy {
    pub name: String,
    pub criteria: Criteria,
    pub ignores_failure: bool,
    pub param_kind: Option<ParamKind>,
    pub conditions: Vec<Named>,
    pub variables: Vec<Named>,
    pub validations: Vec<Validation>,
    pub annotations: Vec<Named>,
    pub mutations: Vec<Mutation>,
    /// Whether a mutating policy wants to see what later ones changed.
    pub reinvoked: bool,
}

impl Policy {
    /// Reads and compiles a policy.
    pub fn read(o: &Value) -> Self {
        let param_kind = o.at("spec.paramKind").filter(|p| !p.is_null()).map(|p| ParamKind {
            api_version: p.str_at("apiVersion").to_owned(),
            kind: p.str_at("kind").to_owned(),
        });
        let features = Features { params: param_kind.is_some(), authorizer: true, patches: false };
        let mut compiler = Compiler::new();
        let variables = o.items_at("spec.variables").iter().map(|v| {
            let (name, source) = (v.str_at("name"), v.str_at("expression"));
            let program = compiler.variable(name, source, features);
            Named { name: name.to_owned(), expression: Expression { source: source.to_owned(), program } }
        });
        let variables: Vec<Named> = variables.collect();
        let expression = |source: &str, features: Features, wanted: &[Type]| Expression {
            source: source.to_owned(),
            program: compiler.compile(source, features, wanted),
        };
        let validations = o.items_at("spec.validations").iter().map(|v| {
            let text = v.str_at("messageExpression");
            let message_features = Features { authorizer: false, ..features };
            Validation {
                expression: expression(v.str_at("expression"), features, &[Type::Bool]),
                message: v.str_at("message").to_owned(),
                message_expression: (!text.is_empty())
                    .then(|| expression(text, message_features, &[Type::String])),
                reason: v.str_at("reason").to_owned(),
            }
        });
        let annotations = o.items_at("spec.auditAnnotations").iter().map(|a| Named {
            name: a.str_at("key").to_owned(),
            expression: expression(a.str_at("valueExpression").trim(), features, &[Type::String, Type::Null]),
        });
        let patches = Features { patches: true, ..features };
        let mutations = o.items_at("spec.mutations").iter().map(|m| {
            let json_patch = m.str_at("patchType") == "JSONPatch";
            let (field, ty) = if json_patch {
                ("jsonPatch", Type::list(Type::object("JSONPatch")))
            } else {
                ("applyConfiguration", Type::object("Object"))
            };
            let source = m.get(field).map_or("", |p| p.str_at("expression")).trim();
            Mutation { json_patch, expression: expression(source, patches, &[ty]) }
        });
        Self {
            name: o.name().to_owned(),
            criteria: Criteria::read(o.at("spec.matchConstraints").unwrap_or(&Value::Null)),
            ignores_failure: o.str_at("spec.failurePolicy") == "Ignore",
            validations: validations.collect(),
            annotations: annotations.collect(),
            mutations: mutations.collect(),
            conditions: conditions(o.items_at("spec.matchConditions"), param_kind.is_some()),
            reinvoked: o.str_at("spec.reinvocationPolicy") == "IfNeeded",
            variables,
            param_kind,
        }
    }
}

/// Match conditions made ready; they see no variables.
pub fn conditions(list: &[Value], params: bool) -> Vec<Named> {
    let features = Features { params, authorizer: true, patches: false };
    let one = |c: &Value| {
        let source = c.str_at("expression").trim();
        let program = Compiler::new().compile(source, features, &[Type::Bool]);
        Named {
            name: c.str_at("name").to_owned(),
            expression: Expression { source: source.to_owned(), program },
        }
    };
    list.iter().map(one).collect()
}

/// `paramRef`.
#[derive(Debug)]
pub struct ParamRef {
    pub name: String,
    pub namespace: String,
    /// None when the parameter is named.
    pub selector: Option<Result<LabelSelector, String>>,
    /// Whether a request is refused for want of parameters.
    pub denies_without: bool,
}

/// A binding.
#[derive(Debug)]
pub struct Binding {
    pub name: String,
    pub policy: String,
    pub criteria: Criteria,
    pub param_ref: Option<ParamRef>,
    /// Deny, Warn, Audit.
    pub actions: Vec<String>,
}

impl Binding {
    /// Reads a binding.
    pub fn read(o: &Value) -> Self {
        let selector = |r: &Value| {
            let selector = r.get("selector").filter(|s| !s.is_null())?;
            Some(LabelSelector::from_object(Some(selector)).map_err(|e| e.0))
        };
        Self {
            name: o.name().to_owned(),
            policy: o.str_at("spec.policyName").to_owned(),
            criteria: Criteria::read(o.at("spec.matchResources").unwrap_or(&Value::Null)),
            param_ref: o.at("spec.paramRef").filter(|r| !r.is_null()).map(|r| ParamRef {
                name: r.str_at("name").to_owned(),
                namespace: r.str_at("namespace").to_owned(),
                selector: selector(r),
                denies_without: r.str_at("parameterNotFoundAction") == "Deny",
            }),
            actions: o
                .items_at("spec.validationActions")
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        }
    }
}
