//! Rules of definitions and of instances.

use serde_json::{Value, json};

use super::{Rules, validate_definition};
use crate::crd::schema::Schema;
use crate::status::Path;

fn schema(spec: Value) -> Schema {
    Schema::parse(&json!({"type": "object", "properties": {"spec": spec}})).expect("a schema")
}

fn definition(spec: Value) -> Vec<String> {
    let errors = validate_definition(Path::new("s"), &schema(spec), None);
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn definitions_are_judged() {
    let rule = |rule: &str| json!([{"rule": rule}]);
    let at = "s.properties[spec].x-kubernetes-validations[0].rule";
    let list = |rules: Value| json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}, "x-kubernetes-validations": rules});
    for (spec, wanted) in [
        (json!({"type": "object", "properties": {"n": {"type": "integer"}}, "x-kubernetes-validations": rule("self.n > 1")}), vec![]),
        (
            json!({"type": "object", "x-kubernetes-validations": rule("'a'")}),
            vec![format!("{at}: Invalid value: {{\"Rule\":\"'a'\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}}: cel expression must evaluate to a bool")],
        ),
        (
            json!({"type": "object", "x-kubernetes-validations": rule("self.x == 1")}),
            vec![format!("{at}: Invalid value: {{\"Rule\":\"self.x == 1\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}}: compilation failed: ERROR: <input>:1:5: undefined field 'x'\n | self.x == 1\n | ....^")],
        ),
        (
            list(rule("self.all(a, a.all(b, self.all(c, c.all(d, d == b))))")),
            vec![
                format!("{at}: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"),
                format!("{at}: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"),
                "s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)".to_owned(),
            ],
        ),
        (
            json!({"type": "object", "x-kubernetes-validations": [{"rule": "true", "optionalOldSelf": true}]}),
            vec!["s.properties[spec].x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule".to_owned()],
        ),
    ] {
        assert_eq!(definition(spec.clone()), wanted, "{spec}");
    }
}

/// What rules of `spec` say of it, before and after an update.
fn instance(spec: Value, new: Value, old: Option<Value>) -> (Vec<String>, usize) {
    let schema = schema(spec);
    let rules = Rules::compile(&schema);
    let (new, old) = (json!({"spec": new}), old.map(|old| json!({"spec": old})));
    let verdict = rules.judge(&schema, &new, old.as_ref());
    (verdict.errors.iter().map(ToString::to_string).collect(), verdict.warnings.len())
}

#[test]
fn instances_are_judged() {
    let object = |rules: Value| {
        json!({"type": "object", "properties": {"low": {"type": "integer"}, "high": {"type": "integer"},
            "namespace": {"type": "string"}, "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}},
            "x-kubernetes-validations": rules})
    };
    let low = json!({"low": 5, "high": 3});
    for (rules, new, old, wanted) in [
        (
            json!([{"rule": "self.low <= self.high"}]),
            low.clone(),
            None,
            vec!["spec: Invalid value: failed rule: self.low <= self.high"],
        ),
        (
            json!([{"rule": "self.low <= self.high", "message": "too low", "reason": "FieldValueForbidden", "fieldPath": ".low"}]),
            low.clone(),
            None,
            vec!["spec.low: Forbidden: too low"],
        ),
        (
            json!([{"rule": "self.low <= self.high", "messageExpression": "'low is ' + string(self.low)"}]),
            low.clone(),
            None,
            vec!["spec: Invalid value: low is 5"],
        ),
        (json!([{"rule": "self.low == oldSelf.low", "message": "immutable"}]), low.clone(), None, vec![]),
        (
            json!([{"rule": "self.low == oldSelf.low", "message": "immutable"}]),
            low.clone(),
            Some(json!({"low": 4})),
            vec!["spec: Invalid value: immutable"],
        ),
        (
            json!([{"rule": "oldSelf.hasValue() || self.low < 5", "optionalOldSelf": true, "message": "new"}]),
            low.clone(),
            None,
            vec!["spec: Invalid value: new"],
        ),
        (json!([{"rule": "self.__namespace__ == 'a'"}]), json!({"namespace": "a"}), None, vec![]),
        (json!([{"rule": "self.tags == ['b', 'a']"}]), json!({"tags": ["a", "b"]}), None, vec![]),
        (
            json!([{"rule": "(self.tags + ['a', 'c']).size() == 3"}]),
            json!({"tags": ["a", "b"]}),
            None,
            vec![],
        ),
        (
            json!([{"rule": "self.low > 1"}]),
            json!({}),
            None,
            vec!["spec: Invalid value: \"object\": no such key: low evaluating rule: self.low > 1"],
        ),
        // What was wrong before and is unchanged only warns.
        (json!([{"rule": "self.low <= self.high"}]), low.clone(), Some(low.clone()), vec![]),
    ] {
        let (errors, _) = instance(object(rules.clone()), new, old);
        assert_eq!(errors, wanted, "{rules}");
    }
    let (_, warnings) = instance(object(json!([{"rule": "self.low <= self.high"}])), low.clone(), Some(low));
    assert_eq!(warnings, 1);
}

#[test]
fn items_of_map_lists_know_their_old_selves() {
    let spec = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "may only grow"}]}});
    let old = json!([{"k": "a", "v": 1}, {"k": "b", "v": 5}]);
    let new = json!([{"k": "b", "v": 4}, {"k": "c", "v": 0}, {"k": "a", "v": 2}]);
    let (errors, _) = instance(spec, new, Some(old));
    assert_eq!(errors, ["spec[0]: Invalid value: may only grow"]);
}
