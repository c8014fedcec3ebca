//! Selectors against cached entries, without decoding them.
//!
//! Where a webhook converts what is stored to what is asked for, selectors are about what it makes: [`Filter::matches`]
//! then knows only names, and [`Filter::agrees`] says the rest of the converted object.

use hawser_api::kinds::Kind;
use hawser_api::object::{Labels, ObjectExt as _};
use hawser_api::selector::{FieldSelector, LabelSelector, Operator, Requirement};
use serde_json::Value;

use super::Scope;
use super::entry::{Entry, Facts};
use crate::crd::convert::webhook;

#[derive(Debug, Clone)]
enum Source {
    Name,
    Namespace,
    /// Position among the stored kind's selectable fields.
    Fact(usize),
    /// A field that only this version selects by: the object has to be decoded.
    Decoded,
}

/// Which entries a webhook has to convert before selectors can be asked of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Foreign {
    #[default]
    None,
    /// Those that were stored in another version than the one stored now, which is asked for.
    Old,
    All,
}

/// What a list or watch shows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    namespace: Option<Box<str>>,
    labels: LabelSelector,
    fields: FieldSelector,
    sources: Vec<Source>,
    foreign: Foreign,
}

impl Filter {
    /// Compiles selectors for the objects of a resource in the version of `kind`; `stored` is the row of its stored
    /// version. The namespace is None for cluster scope and for all namespaces.
    pub fn new(
        kind: &Kind,
        stored: &Kind,
        namespace: Option<&str>,
        labels: LabelSelector,
        fields: FieldSelector,
    ) -> Self {
        let sources: Vec<Source> = fields
            .terms
            .iter()
            .map(|term| match term.field.label.as_str() {
                "metadata.name" => Source::Name,
                "metadata.namespace" => Source::Namespace,
                _ => match stored
                    .selectable_fields
                    .iter()
                    .position(|f| f.paths == term.field.paths && f.default == term.field.default)
                {
                    Some(i) => Source::Fact(i),
                    None => Source::Decoded,
                },
            })
            .collect();
        let by_name = |source: &Source| matches!(source, Source::Name | Source::Namespace);
        let foreign = match webhook(kind) {
            None => Foreign::None,
            // No webhook changes names.
            Some(_) if labels.is_everything() && sources.iter().all(by_name) => Foreign::None,
            Some(_) if kind.version == stored.version => Foreign::Old,
            Some(_) => Foreign::All,
        };
        Self { namespace: namespace.map(Into::into), labels, fields, sources, foreign }
    }

    /// The namespace that is looked at; None for all.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether a selector leaves anything out.
    pub fn selects(&self) -> bool {
        !self.labels.is_everything() || !self.fields.is_everything()
    }

    /// Whether [`Filter::agrees`] has to be asked of what matches.
    pub fn is_about_converted(&self) -> bool {
        self.foreign != Foreign::None
    }

    fn is_foreign(&self, entry: &Entry) -> bool {
        match self.foreign {
            Foreign::None => false,
            Foreign::Old => entry.stored_as.is_some(),
            Foreign::All => true,
        }
    }

    /// Whether what a webhook made of an entry that matches is shown.
    pub fn agrees(&self, entry: &Entry, converted: &Entry) -> bool {
        !self.is_foreign(entry)
            || converted.decode().is_ok_and(|object| {
                let labels = Labels::new(object.at("metadata.labels").and_then(Value::as_object));
                self.labels.matches(labels) && self.fields.matches(&object)
            })
    }

    /// Whether an entry of the right namespace is shown, or could be once it is converted.
    pub fn matches(&self, entry: &Entry) -> bool {
        if let Some(ns) = self.namespace()
            && entry.namespace_and_name().0 != ns
        {
            return false;
        }
        if self.labels.nothing {
            return false;
        }
        let foreign = self.is_foreign(entry);
        (foreign || self.labels.requirements.iter().all(|r| meets(r, &entry.facts)))
            && self.fields.terms.iter().zip(&self.sources).all(|(term, source)| {
                let equal = match source {
                    Source::Name => entry.namespace_and_name().1 == term.value,
                    Source::Namespace => entry.namespace_and_name().0 == term.value,
                    Source::Fact(_) | Source::Decoded if foreign => return true,
                    Source::Fact(i) => entry.facts.field(*i) == term.value,
                    Source::Decoded => {
                        entry.decode().is_ok_and(|object| term.field.value(&object) == term.value)
                    }
                };
                equal != term.negated
            })
    }

    /// The one key that can match, if the selectors demand a name.
    pub fn exact_key(&self, namespaced: bool) -> Option<String> {
        let name = self.fields.exact("metadata.name")?;
        if !namespaced {
            return Some(name.to_owned());
        }
        let ns = self.namespace().or_else(|| self.fields.exact("metadata.namespace"))?;
        Some(format!("{ns}/{name}"))
    }

    /// Whether everything in a scope is shown, which [`Filter::scope`] has answered: then all who ask so see the same.
    pub fn is_scope(&self, scope: &Scope) -> bool {
        let terms = match scope {
            Scope::All | Scope::Namespace(_) => 0,
            Scope::Object(_) => 1,
            Scope::Field(_) if self.namespace.is_some() => return false,
            Scope::Field(_) => 1,
        };
        self.labels.is_everything() && self.fields.terms.len() == terms
    }

    /// The smallest scope whose events are enough. `indexed` is the position of the indexed field.
    pub fn scope(&self, namespaced: bool, indexed: Option<usize>) -> Scope {
        if let Some(key) = self.exact_key(namespaced) {
            return Scope::Object(key.into());
        }
        if let Some(indexed) = indexed {
            for (term, source) in self.fields.terms.iter().zip(&self.sources) {
                if matches!(source, Source::Fact(i) if *i == indexed) && !term.negated {
                    return Scope::Field(term.value.as_str().into());
                }
            }
        }
        match self.namespace() {
            Some(ns) => Scope::Namespace(ns.into()),
            None => Scope::All,
        }
    }
}

fn meets(requirement: &Requirement, facts: &Facts) -> bool {
    let value = facts.label(&requirement.key);
    let listed = |v: &str| requirement.values.iter().any(|x| x == v);
    match requirement.operator {
        Operator::In | Operator::Equals => value.is_some_and(listed),
        Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
        Operator::GreaterThan | Operator::LessThan => {
            let number = |v: Option<&str>| v.and_then(|v| v.parse::<i64>().ok());
            match (number(value), number(requirement.values.first().map(String::as_str))) {
                (Some(left), Some(right)) if requirement.operator == Operator::GreaterThan => left > right,
                (Some(left), Some(right)) => left < right,
                _ => false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::Head;
    use hawser_api::kinds::find;
    use serde_json::json;

    #[test]
    fn agrees_with_the_selectors_on_values() {
        let kind = find("", "v1", "pods").expect("pods");
        let head = Head::new(kind);
        let objects = [
            json!({"metadata": {"name": "a", "namespace": "x", "labels": {"l": "1"}}, "spec": {"nodeName": "n"}}),
            json!({"metadata": {"name": "b", "namespace": "x", "labels": {"l": "20", "m": ""}}}),
            json!({"metadata": {"name": "a", "namespace": "y"}, "spec": {"hostNetwork": true}}),
        ];
        let labels = ["", "l=1", "l!=1", "l in (1,20)", "l notin (1)", "m", "!m", "l>5", "l<5"];
        let fields = [
            "",
            "metadata.name=a",
            "metadata.name!=a",
            "spec.nodeName=n",
            "spec.nodeName=",
            "spec.hostNetwork=true",
            "metadata.namespace=x",
        ];
        for object in &objects {
            let (ns, name) = (&object["metadata"]["namespace"], &object["metadata"]["name"]);
            let key = format!("{}/{}", ns.as_str().unwrap_or(""), name.as_str().unwrap_or(""));
            let entry = Entry::load(kind, &head, key.as_str().into(), 1, head.encode(object)).expect("entry");
            for l in labels {
                for f in fields {
                    let label = LabelSelector::parse(l).expect("labels");
                    let field = FieldSelector::parse(f, kind).expect("fields");
                    let meta = object["metadata"]["labels"].as_object();
                    let want = label.matches(Labels::new(meta)) && field.matches(object);
                    let filter = Filter::new(kind, kind, None, label, field);
                    assert_eq!(filter.matches(&entry), want, "{l} {f} {object}");
                }
            }
        }
    }

    #[test]
    fn scopes() {
        let kind = find("", "v1", "pods").expect("pods");
        let indexed = kind.selectable_fields.iter().position(|f| f.label == "spec.nodeName");
        for (ns, fields, want, whole) in [
            (None, "", Scope::All, true),
            (Some("x"), "", Scope::Namespace("x".into()), true),
            (Some("x"), "status.phase=Failed", Scope::Namespace("x".into()), false),
            (Some("x"), "metadata.name=a", Scope::Object("x/a".into()), true),
            (Some("x"), "metadata.name=a,status.phase=Failed", Scope::Object("x/a".into()), false),
            (Some("x"), "metadata.name=a,metadata.namespace=y", Scope::Object("x/a".into()), false),
            (None, "metadata.name=a,metadata.namespace=y", Scope::Object("y/a".into()), false),
            (None, "metadata.name=a", Scope::All, false),
            (None, "spec.nodeName=n", Scope::Field("n".into()), true),
            (Some("x"), "spec.nodeName=n", Scope::Field("n".into()), false),
            (None, "spec.nodeName!=n", Scope::All, false),
        ] {
            let fields = FieldSelector::parse(fields, kind).expect("fields");
            let filter = Filter::new(kind, kind, ns, LabelSelector::everything(), fields);
            let scope = filter.scope(true, indexed);
            assert_eq!(scope, want);
            assert_eq!(filter.is_scope(&scope), whole, "{scope:?}");
            let labels = LabelSelector::parse("a=b").expect("labels");
            assert!(!Filter { labels, ..filter }.is_scope(&scope));
        }
    }
}
