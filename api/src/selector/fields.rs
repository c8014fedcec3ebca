//! Field selectors.

use super::SelectorError;
use crate::kinds::{Kind, SelectableField};
use serde_json::Value;

/// One term of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: SelectableField,
    pub value: String,
    /// `!=`.
    pub negated: bool,
}

/// A conjunction of comparisons with fields of the stored object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Parses the string form for a kind.
    ///
    /// # Errors
    /// For malformed terms and labels that the kind does not select by.
    pub fn parse(text: &str, kind: &Kind) -> Result<FieldSelector, SelectorError> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let Some((label, operator, value)) = split_term(&part) else {
                return Err(SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            let value = unescape(value).ok_or_else(|| {
                SelectorError(format!("invalid field selector: invalid escape in '{value}'"))
            })?;
            let field = kind.selectable(label).ok_or_else(|| {
                let quoted = crate::text::quote(label);
                SelectorError(match (kind.group.as_str(), kind.kind.as_str()) {
                    _ if kind.selectable_fields.is_empty() => format!(
                        "{quoted} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    ),
                    ("batch", "Job") => format!("field label {quoted} not supported for Job"),
                    ("resource.k8s.io", name) => {
                        format!("field label not supported for {}, Kind={name}: {label}", kind.api_version())
                    }
                    _ => format!("field label not supported: {label}"),
                })
            })?;
            terms.push(FieldTerm { field: field.into_owned(), value, negated: operator == "!=" });
        }
        Ok(FieldSelector { terms })
    }

    /// Whether every object is selected.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether an object in its stored version is selected.
    pub fn matches(&self, stored: &Value) -> bool {
        self.terms.iter().all(|t| (t.field.value(stored) == t.value) != t.negated)
    }

    /// The value that the selector demands of a field, if it does: `metadata.name=x` selects one object,
    /// `spec.nodeName=x` may use an index.
    pub fn exact(&self, label: &str) -> Option<&str> {
        self.terms.iter().find(|t| !t.negated && t.field.label == label).map(|t| t.value.as_str())
    }
}

/// Splits at commas that are not escaped.
fn split_terms(text: &str) -> Vec<String> {
    let (mut parts, mut part, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        if !escaped && c == ',' {
            parts.push(std::mem::take(&mut part));
            continue;
        }
        escaped = !escaped && c == '\\';
        part.push(c);
    }
    parts.push(part);
    parts
}

/// Splits a term at its operator, the longest first.
fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    for (i, _) in term.char_indices() {
        let rest = &term[i..];
        for operator in ["!=", "==", "="] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..i], operator, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}
