//! What expressions see of a request, and the budget they run on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt as _;
use hawser_api::cel::cost::{MATCH_CONDITIONS_BUDGET, PER_CALL_LIMIT};
use hawser_api::cel::{
    Answer, Authorize, Check, EvalError, Fields, Map, Outcome, Question, Value, Variables, policy,
};
use hawser_api::object::ObjectExt as _;
use parking_lot::Mutex;
use serde_json::Value as Json;

use super::super::webhooks::hook::{Gvr, Match};
use super::super::webhooks::review;
use super::compiled::{Expression, Named};
use crate::access::{AdmissionRequest, Attributes, Authorizer, Decision, UserInfo};
use crate::authz::Authorizers;
use crate::request_info::RequestInfo;

/// Told when the expressions of a policy have used up what they may cost together.
pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// Answers `authorizer` for the user of a request.
pub struct Asker<'a> {
    pub authorizers: &'a Authorizers,
    pub user: &'a UserInfo,
}

impl Authorize for Asker<'_> {
    fn authorize(&self, q: &Question) -> Answer {
        let account;
        let user = match &q.service_account {
            Some((namespace, name)) => {
                let groups =
                    ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
                account = UserInfo::new(format!("system:serviceaccount:{namespace}:{name}"), groups);
                &account
            }
            None => self.user,
        };
        let attributes = Attributes {
            user,
            verb: &q.verb,
            resource_request: q.path.is_empty(),
            api_group: &q.group,
            api_version: "*",
            resource: &q.resource,
            subresource: &q.subresource,
            namespace: &q.namespace,
            name: &q.name,
            path: &q.path,
            field_selector: &q.field_selector,
        };
        // Authorizers wait for nothing once their caches have started.
        match self.authorizers.authorize(&attributes).now_or_never() {
            Some(answer) => Answer {
                allowed: answer.decision == Decision::Allow,
                reason: answer.reason,
                error: answer.error,
            },
            None => Answer { error: "the authorizer is not ready".into(), ..Answer::default() },
        }
    }
}

/// The variable `request`: the AdmissionRequest without the objects.
pub fn request_json(request: &AdmissionRequest<'_>, how: &Match) -> Json {
    let (resource, kind) = match how {
        Match::Exact => (Gvr::of(request.info), request.kind),
        Match::Equivalent(kind) => {
            (Gvr { group: &kind.group, version: &kind.version, resource: &kind.plural }, kind.kind.as_str())
        }
    };
    let question =
        review::Question { uid: "", version: "v1", request, resource, kind, object: None, old: None };
    let mut json = question.to_value();
    let mut asked = json.get_mut("request").map(Json::take).unwrap_or_default();
    if let Some(fields) = asked.as_object_mut() {
        for field in ["uid", "object", "oldObject"] {
            fields.remove(field);
        }
    }
    asked
}

/// What `authorizer.requestResource` asks about.
pub fn request_resource(info: &RequestInfo) -> Question {
    Question {
        group: info.group.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        ..Question::default()
    }
}

/// The data of one run.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub object: Option<&'a Json>,
    pub old: Option<&'a Json>,
    pub request: &'a Json,
    pub namespace: Option<&'a Json>,
    pub params: Option<&'a Json>,
    pub asker: &'a (dyn Authorize + 'a),
    pub resource: &'a Question,
}

/// The variables of a policy: computed when first read, each at most once.
pub struct Lazy<'a> {
    input: Input<'a>,
    variables: &'a [Named],
    known: Mutex<HashMap<String, Outcome<'a>>>,
    spent: AtomicU64,
}

impl<'a> Lazy<'a> {
    /// Variables over an input.
    pub fn new(input: Input<'a>, variables: &'a [Named]) -> Self {
        Self { input, variables, known: Mutex::default(), spent: AtomicU64::new(0) }
    }
}

impl<'a> Fields<'a> for Lazy<'a> {
    fn field(&'a self, name: &str) -> Option<Outcome<'a>> {
        if let Some(known) = self.known.lock().get(name) {
            return Some(known.clone());
        }
        let variable = self.variables.iter().find(|v| v.name == name)?;
        let outcome = match &variable.expression.program {
            Err(why) => {
                Err(EvalError::value(format!("composited variable {name:?} fails to compile: {why}")))
            }
            Ok(program) => {
                let run =
                    program.evaluate(&Scope { input: self.input, variables: Some(self) }, PER_CALL_LIMIT);
                self.spent.fetch_add(run.cost, Ordering::Relaxed);
                run.result.map_err(|e| match e {
                    EvalError::CostLimit => e,
                    e => EvalError::value(format!("composited variable {name:?} fails to evaluate: {e}")),
                })
            }
        };
        self.known.lock().insert(name.to_owned(), outcome.clone());
        Some(outcome)
    }
}

/// Variables as expressions name them.
pub struct Scope<'a> {
    pub input: Input<'a>,
    /// None for match conditions.
    pub variables: Option<&'a Lazy<'a>>,
}

impl<'a> Variables<'a> for Scope<'a> {
    fn get(&self, name: &str) -> Option<Value<'a>> {
        let input = &self.input;
        let json = |o: Option<&'a Json>| o.map_or(Value::Null, Value::dynamic);
        Some(match name {
            "object" => json(input.object),
            "oldObject" => json(input.old),
            "params" => json(input.params),
            "request" => Value::dynamic(input.request),
            "namespaceObject" => match input.namespace {
                Some(namespace) => {
                    Value::declared(namespace, Some(policy::namespace())).unwrap_or(Value::Null)
                }
                None => Value::Null,
            },
            "authorizer" => Value::Check(Arc::new(Check::new(input.asker))),
            "authorizer.requestResource" => {
                Value::Check(Arc::new(Check::resource(input.asker, input.resource.clone())))
            }
            "variables" => Value::Map(Map::Lazy(self.variables?)),
            _ => return None,
        })
    }
}

/// Why an expression has no value.
#[derive(Debug)]
pub enum Failure {
    /// It went wrong; others may run.
    Expression(String),
    /// Nothing more can run.
    Budget,
}

/// Runs one expression on what is left of a budget.
pub fn run<'a>(expression: &Expression, scope: &Scope<'a>, budget: &mut u64) -> Result<Value<'a>, Failure> {
    let program = match &expression.program {
        Ok(program) => program,
        Err(why) => return Err(Failure::Expression(format!("compilation error: {why}"))),
    };
    let run = program.evaluate(scope, PER_CALL_LIMIT);
    let variables = scope.variables.map_or(0, |v| v.spent.swap(0, Ordering::Relaxed));
    let spent = run.cost.saturating_add(variables);
    *budget = budget.checked_sub(spent).ok_or(Failure::Budget)?;
    run.result.map_err(|e| {
        Failure::Expression(format!("expression '{}' resulted in error: {e}", expression.source))
    })
}

/// Whether all match conditions hold. One that is false decides; else one that fails is an error.
///
/// # Errors
/// Why it cannot be told.
pub fn conditions_hold(conditions: &[Named], input: Input<'_>) -> Result<bool, String> {
    let scope = Scope { input, variables: None };
    let mut budget = MATCH_CONDITIONS_BUDGET;
    let mut errors: Vec<String> = Vec::new();
    for condition in conditions {
        match run(&condition.expression, &scope, &mut budget) {
            Ok(Value::Bool(false)) => return Ok(false),
            Ok(_) => {}
            Err(Failure::Expression(why)) => errors.push(why),
            Err(Failure::Budget) => return Err(OUT_OF_BUDGET.into()),
        }
    }
    match errors.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        more => Err(format!("[{}]", more.join(", "))),
    }
}

/// A namespace as expressions see it.
pub fn shown_namespace(mut namespace: Json) -> Json {
    if let Some(meta) = namespace.get_mut("metadata").and_then(Json::as_object_mut) {
        meta.remove("managedFields");
        meta.remove("ownerReferences");
    }
    debug_assert!(!namespace.name().is_empty(), "a namespace without a name");
    namespace
}
