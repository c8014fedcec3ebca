//! Questions to the authorizer: `authorizer.group('').resource('pods').check('get').allowed()`.

use std::fmt;
use std::sync::Arc;

use crate::cel::error::EvalError;
use crate::cel::value::{Outcome, Value};

/// Who answers. Called while an expression runs: must not wait.
pub trait Authorize: Send + Sync {
    /// Whether the request's user, or the named service account, may do that.
    fn authorize(&self, question: &Question) -> Answer;
}

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// Namespace and name; the request's user when there is none.
    pub service_account: Option<(String, String)>,
    pub verb: String,
    /// Empty for resources.
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

/// What was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub allowed: bool,
    pub reason: String,
    /// Empty when there was none.
    pub error: String,
}

/// How far a question has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
}

/// An authorizer, a question to one, or its answer.
#[derive(Clone)]
pub enum Check<'a> {
    /// Being asked.
    Asking(Asking<'a>),
    Answered(Answer),
}

/// A question being put together.
#[derive(Clone)]
pub struct Asking<'a> {
    authorizer: &'a (dyn Authorize + 'a),
    stage: Stage,
    question: Question,
}

impl<'a> Check<'a> {
    /// The variable `authorizer`.
    pub fn new(authorizer: &'a (dyn Authorize + 'a)) -> Self {
        Self::Asking(Asking { authorizer, stage: Stage::Authorizer, question: Question::default() })
    }

    /// The variable `authorizer.requestResource`: the question about the request's own resource.
    pub fn resource(authorizer: &'a (dyn Authorize + 'a), question: Question) -> Self {
        Self::Asking(Asking { authorizer, stage: Stage::Resource, question })
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Asking(a) => match a.stage {
                Stage::Authorizer => "kubernetes.authorization.Authorizer",
                Stage::Path => "kubernetes.authorization.PathCheck",
                Stage::Group => "kubernetes.authorization.GroupCheck",
                Stage::Resource => "kubernetes.authorization.ResourceCheck",
            },
            Self::Answered(_) => "kubernetes.authorization.Decision",
        }
    }
}

impl PartialEq for Check<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Asking(a), Self::Asking(b)) => a.stage == b.stage && a.question == b.question,
            (Self::Answered(a), Self::Answered(b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Debug for Check<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_name())
    }
}

/// The question at a stage with one text, changed.
fn with<'a>(
    args: &[Value<'a>],
    from: Stage,
    to: Stage,
    change: impl FnOnce(&mut Question, &str) -> Result<(), EvalError>,
) -> Outcome<'a> {
    let [Value::Check(check), Value::String(text)] = args else { return Err(EvalError::NoSuchOverload) };
    let Check::Asking(asking) = &**check else { return Err(EvalError::NoSuchOverload) };
    if asking.stage != from {
        return Err(EvalError::NoSuchOverload);
    }
    let mut asking = Asking { stage: to, ..asking.clone() };
    change(&mut asking.question, text)?;
    Ok(Value::Check(Arc::new(Check::Asking(asking))))
}

pub fn path<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    with(args, Stage::Authorizer, Stage::Path, |q, text| {
        if text.is_empty() {
            return Err(EvalError::value("path must not be empty"));
        }
        q.path = text.to_owned();
        Ok(())
    })
}

pub fn group<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    with(args, Stage::Authorizer, Stage::Group, |q, text| {
        q.group = text.to_owned();
        Ok(())
    })
}

pub fn service_account<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [check, Value::String(namespace), name] = args else { return Err(EvalError::NoSuchOverload) };
    with(&[check.clone(), name.clone()], Stage::Authorizer, Stage::Authorizer, |q, name| {
        if !crate::names::dns1123_subdomain(name).is_empty() {
            return Err(EvalError::value("Invalid service account name"));
        }
        if !crate::names::dns1123_label(namespace).is_empty() {
            return Err(EvalError::value("Invalid service account namespace"));
        }
        q.service_account = Some((namespace.to_string(), name.to_owned()));
        Ok(())
    })
}

pub fn resource<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    with(args, Stage::Group, Stage::Resource, |q, text| {
        if text.is_empty() {
            return Err(EvalError::value("resource must not be empty"));
        }
        q.resource = text.to_owned();
        Ok(())
    })
}

fn refine<'a>(args: &[Value<'a>], change: impl FnOnce(&mut Question, String)) -> Outcome<'a> {
    with(args, Stage::Resource, Stage::Resource, |q, text| {
        change(q, text.to_owned());
        Ok(())
    })
}

pub fn subresource<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    refine(args, |q, text| q.subresource = text)
}
pub fn namespace<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    refine(args, |q, text| q.namespace = text)
}
pub fn name<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    refine(args, |q, text| q.name = text)
}
pub fn field_selector<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    refine(args, |q, text| q.field_selector = text)
}
pub fn label_selector<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    refine(args, |q, text| q.label_selector = text)
}

pub fn check<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::Check(check), Value::String(verb)] = args else { return Err(EvalError::NoSuchOverload) };
    match &**check {
        Check::Asking(a) if matches!(a.stage, Stage::Path | Stage::Resource) => {
            let question = Question { verb: verb.to_string(), ..a.question.clone() };
            Ok(Value::Check(Arc::new(Check::Answered(a.authorizer.authorize(&question)))))
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn answer<'a>(args: &[Value<'a>], of: impl FnOnce(&Answer) -> Value<'a>) -> Outcome<'a> {
    match args {
        [Value::Check(check)] => match &**check {
            Check::Answered(answer) => Ok(of(answer)),
            Check::Asking(_) => Err(EvalError::NoSuchOverload),
        },
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn errored<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    answer(args, |a| Value::Bool(!a.error.is_empty()))
}
pub fn error<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    answer(args, |a| Value::string(a.error.as_str()))
}
pub fn allowed<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    answer(args, |a| Value::Bool(a.allowed))
}
pub fn reason<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    answer(args, |a| Value::string(a.reason.as_str()))
}
