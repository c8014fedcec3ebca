//! Paths of fields as `fieldPath` of a rule and `jsonPath` of a selectable field write them: `.spec.map['a.b'].c`.

use super::schema::Schema;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A specified field.
    Field(String),
    /// A key of a map.
    Key(String),
}

/// The steps of a path and the schema it leads to.
///
/// # Errors
/// With Kubernetes' text when the path cannot be read, or leads nowhere.
pub fn resolve<'s>(
    path: &str,
    schema: &'s Schema,
    brackets: bool,
) -> Result<(Vec<Step>, &'s Schema), String> {
    let mut tokens = Tokens { rest: path };
    let (mut steps, mut at) = (Vec::new(), schema);
    while let Some(token) = tokens.next() {
        let name = match token {
            "." => tokens.next().ok_or("unexpected end of JSON path")?.to_owned(),
            "[" => {
                if !brackets {
                    return Err("array notation is not allowed".into());
                }
                let quoted = tokens.next().ok_or("unexpected end of JSON path")?;
                let inner =
                    quoted.strip_prefix('\'').and_then(|q| q.strip_suffix('\'')).filter(|_| quoted.len() > 1);
                let Some(inner) = inner else {
                    return Err(format!("expected single quoted string but got {quoted}"));
                };
                let name = unescape(inner)?;
                match tokens.next() {
                    Some("]") => name,
                    Some(other) => return Err(format!("expected ] but got {other}")),
                    None => return Err("unexpected end of JSON path".into()),
                }
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let nowhere = || "does not refer to a valid field".to_owned();
        if at.properties.is_empty() {
            at = at.additional_schema().ok_or_else(nowhere)?;
            steps.push(Step::Key(name));
        } else {
            at = at.properties.get(&name).ok_or_else(nowhere)?;
            steps.push(Step::Field(name));
        }
    }
    Ok((steps, at))
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some(c @ ('\\' | '\'')) => out.push(c),
            _ => return Err("invalid string literal: invalid syntax".into()),
        }
    }
    Ok(out)
}

/// Splits a path at `.`, `[` and `]`, which are tokens themselves; quoted text is one token.
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let quoted = self.rest.starts_with('\'');
        let (mut end, mut before) = (self.rest.len(), ' ');
        for (i, c) in self.rest.char_indices() {
            if quoted && i > 0 && c == '\'' && before != '\\' {
                end = i + 1;
                break;
            }
            if !quoted && matches!(c, '.' | '[' | ']') {
                end = if i == 0 { 1 } else { i };
                break;
            }
            before = c;
        }
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_to_fields() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {"a": {"type": "object", "properties": {
            "b.c": {"type": "string"}, "m": {"type": "object", "additionalProperties": {"type": "integer"}}}}}}))
        .expect("schema");
        let ty = |path: &str| resolve(path, &schema, true).map(|(_, s)| s.ty.map(|t| t.name()));
        assert_eq!(ty(".a['b.c']"), Ok(Some("string")));
        assert_eq!(ty(".a.m.any"), Ok(Some("integer")));
        for (path, want) in [
            ("a", "expected [ or . but got: a"),
            (".a.x", "does not refer to a valid field"),
            (".a.", "unexpected end of JSON path"),
            (".a[b]", "expected single quoted string but got b"),
            (".a['m'", "unexpected end of JSON path"),
        ] {
            assert_eq!(ty(path), Err(want.to_owned()), "{path}");
        }
        assert_eq!(
            resolve(".a['m']", &schema, false).map(|_| ()),
            Err("array notation is not allowed".into())
        );
    }
}
