//! Selectors over labels, compiled once for each class of pods.

use std::collections::BTreeMap;

use hawser_api::selector::{LabelSelector, Operator, Requirement};
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Compiles a selector of the API; `None` selects nothing, the empty one everything. The API server refuses what cannot
/// be compiled; such a selector selects nothing.
pub fn compile(selector: Option<&ApiSelector>) -> LabelSelector {
    let value = selector.and_then(|s| serde_json::to_value(s).ok());
    LabelSelector::from_object(value.as_ref()).unwrap_or_else(|_| LabelSelector::none())
}

/// A selector for labels that must all be there.
pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> LabelSelector {
    let requirement = |(key, value): (&String, &String)| Requirement {
        key: key.clone(),
        operator: Operator::Equals,
        values: vec![value.clone()],
    };
    LabelSelector { requirements: labels.into_iter().map(requirement).collect(), nothing: false }
}

/// Whether labels are selected.
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    !selector.nothing && selector.requirements.iter().all(|r| r.holds(labels.get(&r.key).map(String::as_str)))
}

/// A node selector of the API: terms of which one must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeTerms(Vec<NodeTerm>);

/// One term: everything in it must hold. A term without any requirement matches nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    /// On `metadata.name`, the only field there is.
    name: Vec<Requirement>,
    /// Names a field that nodes do not have, or an operator that does not exist.
    never: bool,
}

impl NodeTerms {
    /// Compiles a node selector.
    pub fn new(selector: &NodeSelector) -> Self {
        NodeTerms(selector.node_selector_terms.iter().map(NodeTerm::new).collect())
    }

    /// Whether one of the terms holds for a node.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.0.iter().any(|term| term.matches(name, labels))
    }

    /// The terms.
    pub fn terms(&self) -> &[NodeTerm] {
        &self.0
    }
}

impl NodeTerm {
    /// Compiles a term.
    pub fn new(term: &NodeSelectorTerm) -> Self {
        let mut never = false;
        let mut compile = |list: &Option<Vec<NodeSelectorRequirement>>, fields: bool| {
            let mut compiled = Vec::new();
            for requirement in list.iter().flatten() {
                match node_requirement(requirement) {
                    Some(r) if !fields || requirement.key == "metadata.name" => compiled.push(r),
                    _ => never = true,
                }
            }
            compiled
        };
        let (labels, name) = (compile(&term.match_expressions, false), compile(&term.match_fields, true));
        NodeTerm { labels, name, never }
    }

    /// Whether the term holds for a node.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let says_something = !self.labels.is_empty() || !self.name.is_empty();
        !self.never
            && says_something
            && self.name.iter().all(|r| r.holds(Some(name)))
            && self.labels.iter().all(|r| r.holds(labels.get(&r.key).map(String::as_str)))
    }

    /// The names of nodes that the term allows, if it names any: the intersection of its `In` requirements.
    pub fn node_names(&self) -> Option<Vec<&str>> {
        let mut lists = self.name.iter().filter(|r| r.operator == Operator::In);
        let first = lists.next()?;
        let mut names: Vec<&str> = first.values.iter().map(String::as_str).collect();
        for other in lists {
            names.retain(|name| other.values.iter().any(|v| v == name));
        }
        Some(names)
    }
}

fn node_requirement(requirement: &NodeSelectorRequirement) -> Option<Requirement> {
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return None,
    };
    let values = requirement.values.clone().unwrap_or_default();
    Some(Requirement { key: requirement.key.clone(), operator, values })
}
