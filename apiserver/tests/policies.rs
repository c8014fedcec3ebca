//! Admission policies on a whole server.

mod common;
#[path = "common/definitions.rs"]
mod definitions;

use common::Kit;
use definitions::define;
use http::Method;
use serde_json::{Value, json};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/ns/configmaps";

/// What requests on ConfigMaps of the namespace `ns` a policy is for.
fn constraints() -> Value {
    json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ns"}}, "resourceRules": [
        {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE", "UPDATE"]}]})
}

async fn kit() -> Kit {
    let kit = Kit::admitting().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "ns"}});
    kit.post("/api/v1/namespaces", &namespace).await.expect(201);
    kit
}

/// Makes a policy and a binding, both of one name.
async fn policy(kit: &Kit, sort: &str, name: &str, mut spec: Value, mut binding: Value) {
    if spec["matchConstraints"].is_null() {
        spec["matchConstraints"] = constraints();
    }
    if sort == "Mutating" && spec["reinvocationPolicy"].is_null() {
        spec["reinvocationPolicy"] = json!("Never");
    }
    binding["policyName"] = json!(name);
    let object = |kind: &str, spec: Value| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{sort}AdmissionPolicy{kind}"),
            "metadata": {"name": name}, "spec": spec})
    };
    let path = |what: &str| format!("{GROUP}/{}admissionpolic{what}", sort.to_lowercase());
    kit.post(&path("ies"), &object("", spec)).await.expect(201);
    kit.post(&path("ybindings"), &object("Binding", binding)).await.expect(201);
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// Sends a dry run until the answer is as wanted: policies are taken in a moment after they are written.
async fn until(kit: &Kit, body: &Value, wanted: impl Fn(u16, &Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..10_000 {
        let got = kit.post(&format!("{MAPS}?dryRun=All"), body).await;
        if wanted(got.code, &got.body) {
            return got.body;
        }
        last = got.body;
        tokio::task::yield_now().await;
    }
    panic!("never as wanted: {last:#}");
}

fn message(body: &Value) -> &str {
    body["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn parameters_by_name_and_selector() {
    let kit = kit().await;
    let crd = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "limits.example.com"},
        "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "limits", "kind": "Limit"}, "versions": [
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"max": {"type": "integer"}}}}}]}});
    let spec = json!({"paramKind": {"apiVersion": "example.com/v1", "kind": "Limit"},
        "validations": [{"expression": "size(object.data) <= params.max", "messageExpression": "'at most ' + string(params.max)"}]});
    let binding = json!({"validationActions": ["Deny"], "paramRef": {"selector": {"matchLabels": {"use": "this"}}, "parameterNotFoundAction": "Deny"}});
    policy(&kit, "Validating", "p", spec, binding).await;
    let body = map("a", json!({"x": "1", "y": "2"}));
    let refused = until(&kit, &body, |code, _| code == 422).await;
    assert_eq!(
        message(&refused),
        "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'example.com/v1, Kind=Limit'"
    );
    define(&kit, &crd).await;
    let refused = until(&kit, &body, |_, b| message(b).contains("binding 'p'")).await;
    assert!(message(&refused).ends_with(
        "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
    ));
    let limit = |name: &str, max: i64, label: &str| json!({"apiVersion": "example.com/v1", "kind": "Limit", "metadata": {"name": name, "labels": {"use": label}}, "max": max});
    kit.post("/apis/example.com/v1/limits", &limit("other", 0, "not")).await.expect(201);
    kit.post("/apis/example.com/v1/limits", &limit("three", 3, "this")).await.expect(201);
    until(&kit, &body, |code, _| code == 201).await;
    kit.post("/apis/example.com/v1/limits", &limit("one", 1, "this")).await.expect(201);
    let refused = until(&kit, &body, |code, _| code == 422).await;
    assert!(message(&refused).ends_with("denied request: at most 1"));
    // By name, in the namespace of the request.
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [
        {"expression": "!has(params.data.word) || !(params.data.word in object.data)", "reason": "Forbidden", "message": "no"}]});
    let binding = json!({"validationActions": ["Deny"], "paramRef": {"name": "words", "parameterNotFoundAction": "Allow"}});
    policy(&kit, "Validating", "q", spec, binding).await;
    kit.post(MAPS, &map("words", json!({"word": "bad"}))).await.expect(201);
    let refused = until(&kit, &map("b", json!({"bad": "1"})), |code, _| code == 403).await;
    assert_eq!(refused["reason"], "Forbidden");
}

#[tokio::test]
async fn mutations_see_each_other() {
    let kit = kit().await;
    // The first by name counts the labels; the second adds one, so that the first has to see the object again.
    let count = json!({"reinvocationPolicy": "IfNeeded", "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {
        "expression": "Object{metadata: Object.metadata{annotations: {'labels': string(size(object.metadata.?labels.orValue({})))}}}"}}]});
    policy(&kit, "Mutating", "a-count", count, json!({})).await;
    let add = json!({"variables": [{"name": "key", "expression": "object.metadata.name + '/x'"}],
        "matchConditions": [{"name": "c", "expression": "!has(object.metadata.labels)"}],
        "mutations": [
            {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'one': '1'}}]"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey(variables.key), value: string(size(object.metadata.labels))}]"}}]});
    policy(&kit, "Mutating", "b-add", add, json!({})).await;
    let made = until(&kit, &map("m", json!({})), |_, b| b["metadata"]["labels"].is_object()).await;
    let made = if made["metadata"]["annotations"].is_null() {
        until(&kit, &map("m", json!({})), |_, b| b["metadata"]["annotations"].is_object()).await
    } else {
        made
    };
    assert_eq!(made["metadata"]["labels"], json!({"one": "1", "m/x": "1"}));
    assert_eq!(made["metadata"]["annotations"], json!({"labels": "2"}));
}

#[tokio::test]
async fn a_mutation_that_fails_refuses_the_request() {
    let kit = kit().await;
    let spec = json!({"mutations": [
        {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/data/a', value: object.data.missing}]"}},
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{ownerReferences: [Object.metadata.ownerReferences{uid: 'u'}]}}"}}]});
    policy(&kit, "Mutating", "p", spec, json!({})).await;
    let refused = until(&kit, &map("m", json!({"b": "1"})), |code, _| code == 403).await;
    let head = "policy 'p' with binding 'p' denied request:";
    let first = format!(
        "{head} expression '[JSONPatch{{op: 'add', path: '/data/a', value: object.data.missing}}]' resulted in error: no such key: missing"
    );
    assert_eq!((message(&refused), &refused["reason"]), (first.as_str(), &json!("Invalid")));
    let causes: Vec<&str> = refused["details"]["causes"]
        .as_array()
        .expect("causes")
        .iter()
        .filter_map(|c| c["message"].as_str())
        .collect();
    let second = format!(
        "{head} error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .metadata.ownerReferences[0]"
    );
    assert_eq!(causes, [first, second]);
}

#[tokio::test]
async fn warnings_and_updates_of_custom_resources_in_any_version() {
    let kit = kit().await;
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"size": {"type": "integer"}}}});
    let crd = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"}, "versions": [
            {"name": "v1", "served": true, "storage": true, "schema": schema}, {"name": "v2", "served": true, "storage": false, "schema": schema}]}});
    define(&kit, &crd).await;
    let rules = json!({"resourceRules": [{"apiGroups": ["example.com"], "apiVersions": ["v2"], "resources": ["things"], "operations": ["*"]}]});
    let validate = json!({"matchConstraints": rules, "validations": [
        {"expression": "object == null || object.size < 5", "message": "large"},
        {"expression": "request.operation != 'DELETE' || oldObject.size < 9", "message": "kept"}]});
    policy(&kit, "Validating", "v", validate, json!({"validationActions": ["Warn"]})).await;
    let mutate = json!({"matchConstraints": {"resourceRules": [{"apiGroups": ["example.com"], "apiVersions": ["v2"], "resources": ["things"], "operations": ["CREATE"]}]},
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{size: object.apiVersion == 'example.com/v2' ? 7 : 1}"}}]});
    policy(&kit, "Mutating", "m", mutate, json!({})).await;
    let path = "/apis/example.com/v1/namespaces/ns/things";
    let thing =
        |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}});
    let mut made = None;
    for n in 0..10_000 {
        let got = kit
            .send(
                Method::POST,
                &format!("{path}?dryRun=All"),
                &[("content-type", "application/json")],
                Some(&thing(&format!("t{n}"))),
            )
            .await;
        if got.body["size"] == 7 && got.headers.contains_key("warning") {
            made = Some(got);
            break;
        }
        tokio::task::yield_now().await;
    }
    let made = made.expect("both policies take hold");
    assert_eq!(made.body["apiVersion"], "example.com/v1", "in the version of the request");
    assert_eq!(
        made.headers["warning"],
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'v' with binding 'v': large\""
    );
}
