//! What a validating policy says of a request. Pure.

use hawser_api::cel::Value;
use hawser_api::cel::cost::OBJECT_BUDGET;
use hawser_api::cel::rules::usable_message;

use super::compiled::{Policy, Validation};
use super::scope::{Failure, Input, Lazy, OUT_OF_BUDGET, Scope, conditions_hold, run};

/// A reason to refuse a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Denial {
    /// Position of the validation.
    pub at: usize,
    pub message: String,
    /// `Invalid` when empty.
    pub reason: String,
}

/// What a policy found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Broken validations, which the binding's actions apply to.
    pub denials: Vec<Denial>,
    /// Audit annotations that could not be computed: these always refuse.
    pub errors: Vec<Denial>,
    /// Audit annotations: key and text.
    pub annotations: Vec<(String, String)>,
}

/// Runs a policy over one input.
pub fn judge(policy: &Policy, input: Input<'_>) -> Findings {
    let mut found = Findings::default();
    let fail = |found: &mut Findings, at: usize, message: String| {
        if !policy.ignores_failure {
            found.denials.push(Denial { at, message, ..Denial::default() });
        }
    };
    match conditions_hold(&policy.conditions, input) {
        Ok(true) => {}
        Ok(false) => return found,
        Err(why) => {
            fail(&mut found, 0, why);
            return found;
        }
    }
    let variables = Lazy::new(input, &policy.variables);
    let scope = Scope { input, variables: Some(&variables) };
    let mut budget = OBJECT_BUDGET;
    let mut broken = Vec::new();
    for (at, validation) in policy.validations.iter().enumerate() {
        match run(&validation.expression, &scope, &mut budget) {
            Ok(Value::Bool(true)) => {}
            Ok(_) => broken.push((at, Ok(validation))),
            Err(Failure::Expression(why)) => broken.push((at, Err(why))),
            Err(Failure::Budget) => {
                // Nothing is known of the others: one refusal stands for all.
                fail(&mut found, 0, OUT_OF_BUDGET.into());
                return found;
            }
        }
    }
    for (at, one) in broken {
        match one {
            Err(why) => fail(&mut found, at, why),
            Ok(validation) => match message(validation, &scope, &mut budget) {
                Some(message) => {
                    found.denials.push(Denial { at, message, reason: validation.reason.clone() });
                }
                None => fail(&mut found, at, format!("failed messageExpression: {OUT_OF_BUDGET}")),
            },
        }
    }
    let mut budget = OBJECT_BUDGET;
    for annotation in &policy.annotations {
        match run(&annotation.expression, &scope, &mut budget) {
            Ok(Value::String(text)) if !text.trim().is_empty() => {
                found.annotations.push((annotation.name.clone(), text.trim().to_owned()));
            }
            Ok(_) => {}
            Err(_) if policy.ignores_failure => {}
            Err(Failure::Expression(message)) => {
                found.errors.push(Denial { message, ..Denial::default() });
            }
            Err(Failure::Budget) => {
                found.errors.push(Denial { message: OUT_OF_BUDGET.into(), ..Denial::default() });
                break;
            }
        }
    }
    found
}

/// The text of a broken validation; None when the budget ends.
fn message(validation: &Validation, scope: &Scope<'_>, budget: &mut u64) -> Option<String> {
    let computed = match &validation.message_expression {
        None => None,
        Some(expression) => match run(expression, scope, budget) {
            Ok(Value::String(text)) => usable_message(&text),
            Ok(_) | Err(Failure::Expression(_)) => None,
            Err(Failure::Budget) => return None,
        },
    };
    Some(computed.unwrap_or_else(|| match validation.message.trim() {
        "" => format!("failed expression: {}", validation.expression.source.trim()),
        message => message.to_owned(),
    }))
}
