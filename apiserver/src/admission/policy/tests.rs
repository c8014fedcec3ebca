//! Policies over requests.

use hawser_api::cel::{Answer, Authorize, Question};
use serde_json::{Value, json};

use super::compiled::Policy;
use super::mutate::{Fault, mutate, node_of};
use super::scope::{Input, conditions_hold};
use super::validate::judge;

/// Allows `get`.
struct Gets;

impl Authorize for Gets {
    fn authorize(&self, question: &Question) -> Answer {
        Answer { allowed: question.verb == "get", ..Answer::default() }
    }
}

fn policy(spec: Value) -> Policy {
    Policy::read(&json!({"metadata": {"name": "p"}, "spec": spec}))
}

fn with<T>(object: &Value, f: impl FnOnce(Input<'_>) -> T) -> T {
    let request = json!({"operation": "CREATE", "kind": {"kind": "ConfigMap"}, "name": "cm"});
    let namespace = json!({"metadata": {"name": "ns", "labels": {"a": "b"}}});
    let params = json!({"data": {"max": "3"}});
    f(Input {
        object: Some(object),
        old: None,
        request: &request,
        namespace: Some(&namespace),
        params: Some(&params),
        asker: &Gets,
        resource: &Question::default(),
    })
}

#[test]
fn validations() {
    let object = json!({"metadata": {"name": "cm"}, "data": {"bad": "worse"}});
    for (spec, wanted) in [
        (json!({"validations": [{"expression": "'bad' in object.data"}]}), vec![]),
        (
            json!({"validations": [{"expression": "!('bad' in object.data)"}]}),
            vec!["failed expression: !('bad' in object.data)"],
        ),
        (
            json!({"validations": [{"expression": "false", "message": " m "}, {"expression": "false", "messageExpression": "'found ' + object.data.bad"}]}),
            vec!["m", "found worse"],
        ),
        (
            json!({"validations": [{"expression": "object.data.missing == 'x'"}]}),
            vec!["expression 'object.data.missing == 'x'' resulted in error: no such key: missing"],
        ),
        (
            json!({"failurePolicy": "Ignore", "validations": [{"expression": "object.data.missing == 'x'"}, {"expression": "false", "message": "m"}]}),
            vec!["m"],
        ),
        (
            json!({"matchConditions": [{"name": "c", "expression": "request.name != 'cm'"}], "validations": [{"expression": "false"}]}),
            vec![],
        ),
        (
            json!({"variables": [{"name": "n", "expression": "size(object.data)"}, {"name": "twice", "expression": "variables.n * 2"}],
                "validations": [{"expression": "variables.twice == 3", "messageExpression": "string(variables.twice)"}]}),
            vec!["2"],
        ),
        (
            json!({"variables": [{"name": "broken", "expression": "object.nope"}],
                "validations": [{"expression": "true || variables.broken"}, {"expression": "variables.broken == 1"}]}),
            vec![
                "expression 'variables.broken == 1' resulted in error: composited variable \"broken\" fails to evaluate: no such key: nope",
            ],
        ),
        (
            json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [{"expression": "int(params.data.max) < 3", "message": "m"}]}),
            vec!["m"],
        ),
        (
            json!({"validations": [{"expression": "namespaceObject.metadata.labels.a == 'b' && authorizer.group('').resource('pods').check('get').allowed()"},
                {"expression": "authorizer.requestResource.check('list').allowed()", "message": "may not"}]}),
            vec!["may not"],
        ),
    ] {
        let found = with(&object, |input| judge(&policy(spec.clone()), input));
        let messages: Vec<&str> = found.denials.iter().map(|d| d.message.as_str()).collect();
        assert_eq!(messages, wanted, "{spec}");
    }
}

#[test]
fn annotations() {
    let spec = json!({"auditAnnotations": [{"key": "a", "valueExpression": "'v ' + object.metadata.name"}, {"key": "b", "valueExpression": "null"}]});
    let found = with(&json!({"metadata": {"name": "cm"}}), |input| judge(&policy(spec), input));
    assert_eq!(found.annotations, [("a".to_owned(), "v cm".to_owned())]);
}

#[test]
fn budget_of_conditions() {
    let list: Vec<Value> = (0..20)
        .map(|i| json!({"name": format!("c{i}"), "expression": "lists.range(100000).all(a, a >= 0)"}))
        .collect();
    let conditions = super::compiled::conditions(&list, false);
    let error = with(&json!({}), |input| conditions_hold(&conditions, input)).unwrap_err();
    assert_eq!(error, super::scope::OUT_OF_BUDGET);
}

#[test]
fn mutations() {
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"a": "1"}});
    for (mutation, wanted) in [
        (
            json!({"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/data/' + jsonpatch.escapeKey('b/c'), value: object.data.a + '2'}]"}}),
            Ok(json!({"a": "1", "b/c": "12"})),
        ),
        (
            json!({"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'test', path: '/data/a', value: 'x'}, JSONPatch{op: 'remove', path: '/data/a'}]"}}),
            Ok(json!({"a": "1"})),
        ),
        (
            json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{data: {'b': '2'}}"}}),
            Ok(json!({"a": "1", "b": "2"})),
        ),
        (
            json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.wrong{}}"}}),
            Err("type mismatch"),
        ),
        (
            json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{nothing: 1}"}}),
            Err(
                "error applying patch: failed to convert patch object to typed object: .nothing: field not declared in schema",
            ),
        ),
        (
            json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{ownerReferences: [Object.metadata.ownerReferences{uid: 'u'}]}}"}}),
            Err("may not mutate atomic arrays, maps or structs: .metadata.ownerReferences[0]"),
        ),
    ] {
        let policy = policy(json!({"mutations": [mutation]}));
        let mutation = &policy.mutations[0];
        let result = with(&object, |input| mutate(&policy, mutation, node_of(&object), input));
        let result = result.map(|o| o["data"].clone()).map_err(|fault| match fault {
            Fault::Policy(why) => why,
            Fault::Request(status) => status.message,
        });
        match wanted {
            Ok(data) => assert_eq!(result, Ok(data), "{mutation:?}"),
            Err(part) => assert!(result.as_ref().is_err_and(|e| e.contains(part)), "{mutation:?} {result:?}"),
        }
    }
}
