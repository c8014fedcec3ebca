//! Checks of literals after the types are known: durations, timestamps and regular expressions that could never work.

use super::ast::{Expr, Kind, Literal};
use super::error::{Issue, Issues};
use super::lib;

/// Looks at the literals of a checked expression.
///
/// # Errors
/// For each literal argument that its function would refuse.
pub fn validate(source: &str, expr: &Expr) -> Result<(), Issues> {
    let mut issues = Vec::new();
    walk(expr, &mut issues);
    if issues.is_empty() { Ok(()) } else { Err(Issues::new(source, issues)) }
}

fn walk(e: &Expr, issues: &mut Vec<Issue>) {
    if let Kind::Call(call) = &e.kind {
        // A receiver is no argument; `matches` has its pattern last in both forms.
        let argument = call.args.last().map(|a| (a.at, &a.kind));
        if let Some((at, Kind::Literal(Literal::String(text)))) = argument {
            let wrong = match &*call.function {
                "duration" => lib::time::parse_duration(text).is_none(),
                "timestamp" => lib::time::parse_timestamp(text).is_none(),
                "matches" => lib::regex::compile(text).is_err(),
                _ => false,
            };
            if wrong {
                issues.push(Issue { at, message: format!("invalid {} argument", call.function) });
            }
        }
    }
    for child in e.children() {
        walk(child, issues);
    }
}
