//! Errors of compilation and evaluation, with Kubernetes' texts.

use std::fmt;

/// One error at a place in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// Character offset.
    pub at: u32,
    pub message: String,
}

/// What is wrong with an expression. Printed as everywhere: position, message, the line and a mark below it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Issues {
    text: String,
}

/// Most errors that are printed.
const MAX_ISSUES: usize = 100;
/// Longest line that is shown.
const MAX_SNIPPET: usize = 16_384;

impl Issues {
    /// Renders errors of `source`, by position.
    pub fn new(source: &str, mut issues: Vec<Issue>) -> Self {
        issues.sort_by_key(|i| i.at);
        let mut text: Vec<String> = issues.iter().take(MAX_ISSUES).map(|i| render(source, i)).collect();
        if issues.len() > MAX_ISSUES {
            text.push(format!("{} more errors were truncated", issues.len() - MAX_ISSUES));
        }
        Self { text: text.join("\n") }
    }
}

fn render(source: &str, issue: &Issue) -> String {
    let at = issue.at as usize;
    let before: String = source.chars().take(at).collect();
    let line = before.matches('\n').count();
    let column = before.chars().rev().take_while(|c| *c != '\n').count();
    let snippet = source.split('\n').nth(line).unwrap_or_default().replace('\t', " ");
    // Nothing at all ends before its first character.
    let shown = column + usize::from(!source.is_empty());
    let mut text = format!("ERROR: <input>:{}:{shown}: {}", line + 1, issue.message);
    if snippet.len() <= MAX_SNIPPET {
        // Wide marks keep the last one below a wide character.
        let wide = |c: Option<char>| c.is_some_and(|c| c.len_utf8() > 1);
        let mut chars = snippet.chars();
        let dots: String =
            chars.by_ref().take(column).map(|c| if wide(Some(c)) { '\u{ff0e}' } else { '.' }).collect();
        let mark = if wide(chars.next()) { '\u{ff3e}' } else { '^' };
        text.push_str(&format!("\n | {snippet}\n | {dots}{mark}"));
    }
    text
}

/// Why an evaluation has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A part of the expression has no value: `no such key: x`, `division by zero`.
    #[error("{0}")]
    Value(String),
    /// No operator or function takes values of these types.
    #[error("no such overload")]
    NoSuchOverload,
    /// It cost more than a call may.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostLimit,
}

impl EvalError {
    /// A [`EvalError::Value`].
    pub fn value(message: impl fmt::Display) -> Self {
        Self::Value(message.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_shown() {
        let issue = |at| Issue { at, message: "m".into() };
        let shown = Issues::new("a &&\n\té b", vec![issue(8), issue(6)]).to_string();
        assert_eq!(
            shown,
            "ERROR: <input>:2:2: m\n |  é b\n | .\u{ff3e}\nERROR: <input>:2:4: m\n |  é b\n | .\u{ff0e}.^"
        );
    }
}
