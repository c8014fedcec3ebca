//! Type checks of validating policies: what expressions would not compile if objects had the types that the policy's
//! rules name. The warnings are told in `status.typeChecking` and change nothing.
//!
//! Source: KEP-3488, "Type checking".

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::decl::Decl;
use super::policy::{Compiler, Features};
use super::schema::{built_in, declaration};
use crate::crd::schema::Schema;
use crate::object::{ObjectExt as _, split_api_version};
use crate::schema;

/// Most types that a policy is checked against.
const MAX_TYPES: usize = 10;

/// A resource that a rule names: group, version, plural.
pub type Resource = (String, String, String);

/// A type that is known.
#[derive(Debug, Clone)]
pub struct Known {
    pub api_version: String,
    pub kind: String,
    decl: Arc<Decl>,
}

impl Known {
    /// A built-in type.
    pub fn built_in(api_version: &str, kind: &str) -> Option<Self> {
        schema::find_kind(api_version, kind).map(|ty| Self::of(api_version, kind, built_in(ty)))
    }

    /// A type by its published schema, metadata excepted; None for what is not structural.
    pub fn published(api_version: &str, kind: &str, schema: &Value) -> Option<Self> {
        let mut schema = schema.clone();
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            // Every resource has these; as published they refer to other documents.
            for name in ["apiVersion", "kind", "metadata"] {
                properties.remove(name);
            }
        }
        let decl = declaration(&Schema::parse(&schema).ok()?, true)?;
        Some(Self::of(api_version, kind, decl))
    }

    fn of(api_version: &str, kind: &str, decl: Decl) -> Self {
        Self { api_version: api_version.into(), kind: kind.into(), decl: Arc::new(decl.named(kind)) }
    }

    fn shown(&self) -> String {
        let (group, version) = split_api_version(&self.api_version);
        format!("{group}/{version}, Kind={}", self.kind)
    }
}

/// The resources whose types a policy is checked against: those that rules name without wildcards.
pub fn resources(policy: &Value) -> Vec<Resource> {
    let mut found = BTreeSet::new();
    for rule in policy.items_at("spec.matchConstraints.resourceRules") {
        let texts = |field: &str| -> BTreeSet<String> {
            rule.items_at(field).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups.iter().chain(&versions).any(|t| t.contains('*')) {
            continue;
        }
        for group in &groups {
            for version in &versions {
                for resource in texts("resources").iter().filter(|r| !r.contains(['*', '/'])) {
                    found.insert((group.clone(), version.clone(), resource.clone()));
                }
            }
        }
    }
    found.into_iter().take(MAX_TYPES).collect()
}

/// The `expressionWarnings` of a policy, for the types of its objects and of its parameters.
pub fn check(policy: &Value, types: &[Known], params: Option<&Known>) -> Vec<Value> {
    let mut types: Vec<&Known> = types.iter().collect();
    types.sort_by_key(|t| (split_api_version(&t.api_version), &t.kind));
    let has_params = policy.at("spec.paramKind").is_some_and(Value::is_object);
    let features = Features { params: has_params, authorizer: true, patches: false };
    let compilers: Vec<(&Known, Compiler)> = types
        .into_iter()
        .map(|ty| {
            let mut compiler = Compiler::typed(&ty.decl, params.map(|p| &p.decl));
            for variable in policy.items_at("spec.variables") {
                // One that does not compile is told where it is used.
                let _ = compiler.variable(variable.str_at("name"), variable.str_at("expression"), features);
            }
            (ty, compiler)
        })
        .collect();
    let mut warnings = Vec::new();
    for (i, validation) in policy.items_at("spec.validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let source = validation.str_at(field);
            if source.is_empty() {
                continue;
            }
            let told = compilers.iter().filter_map(|(ty, compiler)| {
                let issues = compiler.parse(source, features).err()?;
                Some(format!("{}: {issues}\n", ty.shown()))
            });
            let told: Vec<String> = told.collect();
            if !told.is_empty() {
                warnings.push(
                    json!({"fieldRef": format!("spec.validations[{i}].{field}"), "warning": told.join("\n")}),
                );
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(validations: Value) -> Value {
        json!({"spec": {"matchConstraints": {"resourceRules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments", "deployments/status"]},
                {"apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["pods"]}]},
            "variables": [{"name": "n", "expression": "object.spec.replicas"}], "validations": validations}})
    }

    #[test]
    fn wrong_types_are_told() {
        let policy = policy(json!([
            {"expression": "object.spec.replicas > 1 && variables.n < 3 && object.metadata.labels['a'] == 'b'"},
            {"expression": "object.spec.replicas > '1'", "messageExpression": "object.nothing"},
            {"expression": "object.spec.template.spec.containers.all(c, c.image.startsWith('x'))"},
        ]));
        assert_eq!(resources(&policy), [("apps".to_owned(), "v1".to_owned(), "deployments".to_owned())]);
        let deployment = Known::built_in("apps/v1", "Deployment").expect("a type");
        let warnings = check(&policy, &[deployment], None);
        assert_eq!(
            warnings,
            [
                json!({"fieldRef": "spec.validations[1].expression", "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n"}),
                json!({"fieldRef": "spec.validations[1].messageExpression", "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'nothing'\n | object.nothing\n | ......^\n"}),
            ]
        );
    }

    #[test]
    fn every_built_in_type_has_a_declaration() {
        for kind in crate::kinds::builtin() {
            assert!(Known::built_in(&kind.api_version(), &kind.kind).is_some(), "{}", kind.kind);
        }
    }

    #[test]
    fn published_types_and_parameters() {
        let schema = json!({"type": "object", "properties": {"metadata": {"$ref": "#/x"}, "spec": {"type": "object",
            "properties": {"size": {"type": "integer"}}}}});
        let thing = Known::published("e.com/v1", "Thing", &schema).expect("a type");
        let mut policy = policy(
            json!([{"expression": "object.spec.size > params.spec.size && object.metadata.name != ''"},
            {"expression": "object.spec.color == 'red'"}, {"expression": "params.spec.size == 'x'"}]),
        );
        policy["spec"]["paramKind"] = json!({"apiVersion": "e.com/v1", "kind": "Thing"});
        policy["spec"]["variables"] = json!([]);
        let fields: Vec<String> = check(&policy, std::slice::from_ref(&thing), Some(&thing))
            .iter()
            .map(|w| w.str_at("fieldRef").to_owned())
            .collect();
        assert_eq!(fields, ["spec.validations[1].expression", "spec.validations[2].expression"]);
    }
}
