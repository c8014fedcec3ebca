//! Label and field selectors: the string forms of requests, `LabelSelector` objects, matching.

mod fields;
mod parser;

pub use fields::{FieldSelector, FieldTerm};

use crate::names;
use crate::object::{Labels, ObjectExt as _};
use crate::status::{FieldError, Status};
use serde_json::Value;
use std::fmt;

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    /// `=` and `==`; compares like `In` with one value.
    Equals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted.
    pub values: Vec<String>,
}

/// A conjunction of requirements; without any it selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    /// Selects nothing, whatever the requirements (an absent `LabelSelector` object).
    pub nothing: bool,
}

/// A selector that cannot be understood; the text is Kubernetes'.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl From<SelectorError> for Status {
    fn from(e: SelectorError) -> Status {
        Status::bad_request(e.0)
    }
}

impl Requirement {
    /// Whether the labels meet the requirement.
    pub fn matches(&self, labels: Labels<'_>) -> bool {
        self.holds(labels.get(&self.key))
    }

    /// Whether a label with this value, or without one, meets the requirement.
    pub fn holds(&self, value: Option<&str>) -> bool {
        let has = |v: &str| self.values.iter().any(|x| x == v);
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(has),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(has),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let (Some(left), Some(right)) = (
                    value.and_then(|v| v.parse::<i64>().ok()),
                    self.values.first().and_then(|v| v.parse().ok()),
                ) else {
                    return false;
                };
                if self.operator == Operator::GreaterThan { left > right } else { left < right }
            }
        }
    }

    /// Makes a requirement after checking it.
    fn checked(
        key: String,
        operator: Operator,
        mut values: Vec<String>,
    ) -> Result<Requirement, SelectorError> {
        values.sort();
        values.dedup();
        let mut errs: Vec<FieldError> = Vec::new();
        let list = || Value::from(values.clone());
        match operator {
            Operator::GreaterThan | Operator::LessThan
                if values.iter().any(|v| v.parse::<i64>().is_err()) =>
            {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                let bad = values.iter().position(|v| v.parse::<i64>().is_err()).unwrap_or(0);
                errs.push(FieldError::invalid(format!("values[{bad}]"), values[bad].clone(), detail));
            }
            Operator::In | Operator::NotIn if values.is_empty() => {
                let detail = "for 'in', 'notin' operators, values set can't be empty";
                errs.push(FieldError::invalid("values", list(), detail));
            }
            _ => {}
        }
        for (i, v) in values.iter().enumerate() {
            let msgs = names::label_value(v);
            if !msgs.is_empty() {
                errs.push(FieldError::invalid(format!("values[{i}][{key}]"), v.clone(), msgs.join("; ")));
            }
        }
        if errs.is_empty() {
            return Ok(Requirement { key, operator, values });
        }
        Err(SelectorError(format!("unable to parse requirement: {}", crate::status::aggregate(&errs))))
    }
}

impl LabelSelector {
    /// Selects everything.
    pub fn everything() -> LabelSelector {
        LabelSelector::default()
    }

    /// Selects nothing.
    pub fn none() -> LabelSelector {
        LabelSelector { nothing: true, ..LabelSelector::default() }
    }

    /// Whether every object is selected.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Parses the string form.
    ///
    /// # Errors
    /// With the texts of `labels.Parse`.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        parser::Parser::new(text).parse()
    }

    /// Reads a `LabelSelector` object. `None` (absent) selects nothing, the empty object everything.
    ///
    /// # Errors
    /// For an unknown operator or values that do not fit it.
    pub fn from_object(selector: Option<&Value>) -> Result<LabelSelector, SelectorError> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else {
            return Ok(LabelSelector::none());
        };
        let mut requirements = Vec::new();
        for (key, value) in Labels::new(selector.get("matchLabels").and_then(Value::as_object)).iter() {
            let values = vec![value.to_owned()];
            requirements.push(Requirement { key: key.to_owned(), operator: Operator::Equals, values });
        }
        for e in selector.items_at("matchExpressions") {
            let operator = match e.str_at("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!(
                        "{} is not a valid label selector operator",
                        crate::text::quote(other)
                    )));
                }
            };
            let values = e.items_at("values").iter().filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::checked(e.str_at("key").to_owned(), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// Reads a plain map of labels that must all be there (a Service's or ReplicationController's selector).
    pub fn from_map(map: Option<&Value>) -> LabelSelector {
        let labels = Labels::new(map.and_then(Value::as_object));
        let requirements = labels
            .iter()
            .map(|(k, v)| Requirement { key: k.into(), operator: Operator::Equals, values: vec![v.into()] })
            .collect();
        LabelSelector { requirements, nothing: false }
    }

    /// Whether labels are selected.
    pub fn matches(&self, labels: Labels<'_>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }
}

/// The string form, as `labels.Selector.String` prints it.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let (key, values) = (&r.key, r.values.join(","));
            match r.operator {
                Operator::In => write!(f, "{key} in ({values})")?,
                Operator::NotIn => write!(f, "{key} notin ({values})")?,
                Operator::Equals => write!(f, "{key}={values}")?,
                Operator::NotEquals => write!(f, "{key}!={values}")?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan => write!(f, "{key}>{values}")?,
                Operator::LessThan => write!(f, "{key}<{values}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn select(selector: &str, labels: Value) -> Result<bool, String> {
        let object = json!({"metadata": {"labels": labels}});
        LabelSelector::parse(selector).map(|s| s.matches(object.labels())).map_err(|e| e.0)
    }

    #[test]
    fn label_selectors_match() {
        for (selector, want) in [
            ("", true),
            ("a=1", true),
            ("a==1", true),
            ("a=2", false),
            ("a!=2", true),
            ("z!=2", true),
            ("a", true),
            ("!a", false),
            ("!z", true),
            ("a in (1,2)", true),
            ("a in (2,3)", false),
            ("a notin (2)", true),
            ("a notin (1)", false),
            ("z notin (1)", true),
            ("n>5", true),
            ("n<5", false),
            ("a=1,b=x", true),
            ("a=1, b = y", false),
            ("e=", true),
            ("e in (,x)", true),
            ("a in (,)", false),
            ("a,n>50", false),
            ("in in (in)", true),
            ("a in ()", false),
            ("e in ()", true),
        ] {
            let got = select(selector, json!({"a": "1", "b": "x", "n": "10", "e": "", "in": "in"}));
            assert_eq!(got, Ok(want), "{selector}");
        }
    }

    #[test]
    fn label_selector_errors() {
        for (selector, want) in [
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            ("a odd b", "unable to parse requirement: found 'odd', expected: in, notin, =, ==, !=, gt, lt"),
            ("a,", "found '', expected: identifier after ','"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(select(selector, json!({})), Err(want.to_owned()), "{selector}");
        }
        let e = select("-bad=x", json!({})).expect_err("bad key");
        assert!(e.starts_with(
            "unable to parse requirement: <nil>: Invalid value: \"-bad\": name part must consist"
        ));
    }

    #[test]
    fn selector_objects() {
        let o = json!({"metadata": {"labels": {"app": "x", "t": "1"}}});
        for (selector, want) in [
            (json!({}), true),
            (Value::Null, false),
            (json!({"matchLabels": {"app": "x"}}), true),
            (
                json!({"matchExpressions": [{"key": "t", "operator": "In", "values": ["1", "2"]}, {"key": "q", "operator": "DoesNotExist"}]}),
                true,
            ),
            (json!({"matchExpressions": [{"key": "t", "operator": "NotIn", "values": ["1"]}]}), false),
        ] {
            assert_eq!(LabelSelector::from_object(Some(&selector)).map(|s| s.matches(o.labels())), Ok(want));
        }
        assert!(
            LabelSelector::from_object(Some(&json!({"matchExpressions": [{"key": "t", "operator": "Odd"}]})))
                .is_err()
        );
    }

    #[test]
    fn field_selectors() {
        let pods = crate::kinds::find("", "v1", "pods").expect("pods");
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "x,y"}, "status": {"phase": "Running"}});
        for (text, want) in [
            ("metadata.name=a", Ok(true)),
            ("metadata.name!=a", Ok(false)),
            ("status.phase==Running,metadata.namespace=n", Ok(true)),
            ("spec.nodeName=x\\,y", Ok(true)),
            ("", Ok(true)),
            ("spec.hostNetwork=false", Ok(true)),
            ("spec.nodeName=", Ok(false)),
            ("spec.hostname=a", Err("field label not supported: spec.hostname".to_owned())),
            ("nonsense", Err("invalid selector: 'nonsense'; can't understand 'nonsense'".to_owned())),
        ] {
            assert_eq!(
                FieldSelector::parse(text, pods).map(|s| s.matches(&pod)).map_err(|e| e.0),
                want,
                "{text}"
            );
        }
        let s = FieldSelector::parse("metadata.name=a,spec.nodeName!=b", pods).expect("selector");
        assert_eq!((s.exact("metadata.name"), s.exact("spec.nodeName")), (Some("a"), None));
    }

    proptest! {
        #[test]
        fn printed_selectors_parse_to_the_same(text in "[a-c]( in \\([x-z],[x-z]\\)|=[x-z]|!=[x-z]|>[1-9])?(,![d-f])?") {
            let s = LabelSelector::parse(&text).expect("selector");
            prop_assert_eq!(LabelSelector::parse(&s.to_string()).expect("printed"), s);
        }

        #[test]
        fn any_text_is_survived(text in ".{0,40}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text, crate::kinds::find("", "v1", "pods").expect("pods"));
        }
    }
}
