//! Custom resources at run time: what a definition makes of a server, and how it ends.

mod common;
#[path = "common/definitions.rs"]
mod definitions;

use common::{Kit, version};
use definitions::{DEFINITIONS, define, wait};
use hawser_api::crd::definition::is_true;
use serde_json::{Value, json};

const WIDGETS: &str = "/apis/example.com/v1/namespaces/ns/widgets";

fn definition(plural: &str, kind: &str, schema: Value) -> Value {
    json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind, "shortNames": [format!("{plural}x")]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

fn widget(name: &str, spec: &Value) -> Value {
    json!({"kind": "Widget", "apiVersion": "example.com/v1", "metadata": {"name": name}, "spec": spec})
}

fn size_schema(default: i64) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer", "default": default, "maximum": 10}, "name": {"type": "string"}}}}})
}

async fn kit() -> Kit {
    let kit = Kit::new().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "ns"}});
    kit.post("/api/v1/namespaces", &namespace).await.expect(201);
    kit
}

#[tokio::test]
async fn a_definition_is_served_discovered_and_published() {
    let kit = kit().await;
    assert_eq!(kit.get(WIDGETS).await.code, 404);
    define(&kit, &definition("widgets", "Widget", size_schema(3))).await;
    let made = kit.post(WIDGETS, &widget("a", &json!({"odd": 1}))).await.expect(201);
    assert_eq!(made["spec"], json!({"size": 3}), "defaulted and pruned");
    let strict =
        kit.post(&format!("{WIDGETS}?fieldValidation=Strict"), &widget("b", &json!({"odd": 1}))).await;
    assert_eq!(strict.code, 400);
    assert!(strict.body["message"].as_str().is_some_and(|m| m.ends_with("unknown field \"spec.odd\"")));
    let invalid = kit.post(WIDGETS, &widget("b", &json!({"size": 11}))).await.expect(422);
    assert_eq!(invalid["details"]["causes"][0]["field"], "spec.size");

    let resources = kit.get("/apis/example.com/v1").await.expect(200);
    assert_eq!(resources["resources"][0]["shortNames"], json!(["widgetsx"]));
    let groups = kit.get("/apis").await.expect(200);
    let names: Vec<_> =
        groups["groups"].as_array().expect("groups").iter().map(|g| g["name"].clone()).collect();
    assert!(names.contains(&json!("example.com")));
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = kit.get_as("/apis", aggregated).await.expect(200);
    let group =
        all["items"].as_array().expect("items").iter().find(|g| g["metadata"]["name"] == "example.com");
    assert_eq!(group.expect("the group")["versions"][0]["resources"][0]["resource"], "widgets");
    let openapi = kit.get("/openapi/v3/apis/example.com/v1").await.expect(200);
    let schema = &openapi["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["type"], "integer");
}

#[tokio::test]
async fn a_new_schema_counts_for_what_is_stored_already() {
    let kit = kit().await;
    define(&kit, &definition("widgets", "Widget", size_schema(3))).await;
    kit.post(WIDGETS, &widget("a", &json!({"size": 5, "name": "x"}))).await.expect(201);
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer"}, "color": {"type": "string", "default": "red"}}}}});
    let patch =
        json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": schema}]);
    kit.patch(&format!("{DEFINITIONS}/widgets.example.com"), "json", &patch).await.expect(200);
    // The definition's own answer does not say when rows are in place; what is read does, soon.
    let mut read = Value::Null;
    for _ in 0..1000 {
        read = kit.get(&format!("{WIDGETS}/a")).await.body;
        if read["spec"]["color"] == "red" {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(read["spec"], json!({"size": 5, "color": "red"}));
    let list = kit.get(WIDGETS).await.expect(200);
    assert_eq!(list["items"][0]["spec"], read["spec"]);
}

#[tokio::test]
async fn names_are_given_once() {
    let kit = kit().await;
    define(&kit, &definition("widgets", "Widget", size_schema(1))).await;
    let mut second = definition("others", "Widget", size_schema(1));
    second["spec"]["names"]["listKind"] = json!("OtherList");
    let made = kit.post(DEFINITIONS, &second).await.expect(201);
    let refused = wait(&kit, &made, |crd| !crd["status"]["conditions"].is_null()).await;
    let condition = &refused["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["reason"]), (&json!("NamesAccepted"), &json!("KindConflict")));
    assert_eq!(condition["message"], "\"Widget\" is already in use");
    assert!(!is_true(&refused, "Established"));
    assert_eq!(kit.get("/apis/example.com/v1/namespaces/ns/others").await.code, 404);
    // Once the first one is gone, its names are free.
    kit.delete(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    wait(&kit, &refused, |crd| is_true(crd, "Established")).await;
    kit.get("/apis/example.com/v1/namespaces/ns/others").await.expect(200);
}

#[tokio::test]
async fn a_deleted_definition_takes_its_instances_along() {
    let kit = kit().await;
    define(&kit, &definition("widgets", "Widget", size_schema(1))).await;
    let made = kit.post(WIDGETS, &widget("free", &json!({}))).await.expect(201);
    let mut held = widget("held", &json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    kit.post(WIDGETS, &held).await.expect(201);
    let mut events =
        kit.watch(&format!("{WIDGETS}?watch=1&resourceVersion={}&timeoutSeconds=20", version(&made))).await;
    let marked = kit.delete(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    assert_eq!(marked["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let mut deleted = Vec::new();
    let mut dying = false;
    while deleted.is_empty() || !dying {
        let event = events.next().await.expect("an event");
        dying |= event["object"]["metadata"]["deletionTimestamp"].is_string();
        if event["type"] == "DELETED" {
            deleted.push(event["object"]["metadata"]["name"].clone());
        }
    }
    assert_eq!(deleted, ["free"]);
    let refused = kit.post(WIDGETS, &widget("late", &json!({}))).await;
    assert_eq!(refused.code, 403);
    kit.get(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    let path = format!(
        "{DEFINITIONS}?watch=1&fieldSelector=metadata.name%3Dwidgets.example.com&resourceVersion={}&timeoutSeconds=20",
        version(&marked)
    );
    let mut definitions = kit.watch(&path).await;
    let free = json!({"metadata": {"finalizers": null}});
    kit.patch(&format!("{WIDGETS}/held"), "merge", &free).await.expect(200);
    while definitions.next().await.expect("an event")["type"] != "DELETED" {}
    assert_eq!(kit.get(&format!("{DEFINITIONS}/widgets.example.com")).await.code, 404);
}

#[tokio::test]
async fn several_versions_of_one_object() {
    let kit = kit().await;
    let mut crd = definition("widgets", "Widget", size_schema(3));
    let other = json!({"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object",
        "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"},
            "color": {"type": "string", "default": "red"}}}}}}});
    crd["spec"]["versions"].as_array_mut().expect("versions").push(other);
    define(&kit, &crd).await;
    kit.post(WIDGETS, &widget("a", &json!({"name": "n"}))).await.expect(201);
    let two = "/apis/example.com/v2/namespaces/ns/widgets";
    let read = kit.get(&format!("{two}/a")).await.expect(200);
    assert_eq!(
        (&read["apiVersion"], &read["spec"]),
        (&json!("example.com/v2"), &json!({"size": 3, "color": "red"}))
    );
    let list = kit.get(two).await.expect(200);
    assert_eq!(list["items"][0], read);
    let patched = kit.patch(&format!("{two}/a"), "merge", &json!({"spec": {"size": 20}})).await.expect(200);
    assert_eq!(patched["spec"]["size"], 20, "the other version has no maximum");
}

#[tokio::test]
async fn instances_of_versions_that_are_not_served_are_removed_too() {
    let kit = kit().await;
    define(&kit, &definition("widgets", "Widget", size_schema(1))).await;
    kit.post(WIDGETS, &widget("a", &json!({}))).await.expect(201);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let off = json!([{"op": "replace", "path": "/spec/versions/0/served", "value": false}]);
    let crd = kit.patch(&path, "json", &off).await.expect(200);
    until(&kit, WIDGETS, |code, _| code == 404).await;
    kit.delete(&path).await.expect(200);
    let name = "fieldSelector=metadata.name%3Dwidgets.example.com&timeoutSeconds=20";
    let watched = format!("{DEFINITIONS}?watch=1&{name}&resourceVersion={}", version(&crd));
    let mut definitions = kit.watch(&watched).await;
    let gone = loop {
        let event = definitions.next().await.expect("an event");
        if event["type"] == "DELETED" {
            break event["object"].clone();
        }
    };
    let said = |c: &&Value| c["type"] == "Terminating";
    let condition = gone["status"]["conditions"].as_array().and_then(|all| all.iter().find(said)).cloned();
    assert_eq!(condition.unwrap_or_default()["reason"], "InstanceDeletionCompleted");
    // A definition of the same name finds nothing left.
    define(&kit, &definition("widgets", "Widget", size_schema(1))).await;
    assert_eq!(kit.get(WIDGETS).await.expect(200)["items"], json!([]));
}

/// Asks until the answer is as wanted: rows change a moment after the definition.
async fn until(kit: &Kit, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
    for _ in 0..10_000 {
        let got = kit.get(path).await;
        if wanted(got.code, &got.body) {
            return got.body;
        }
        tokio::task::yield_now().await;
    }
    panic!("{path} never is as wanted")
}

#[tokio::test]
async fn an_idle_write_moves_an_object_to_the_new_storage_version() {
    let kit = kit().await;
    let mut crd = definition("widgets", "Widget", size_schema(3));
    let schema = crd["spec"]["versions"][0]["schema"].clone();
    let other = json!({"name": "v2", "served": true, "storage": false, "schema": schema});
    crd["spec"]["versions"].as_array_mut().expect("versions").push(other);
    define(&kit, &crd).await;
    kit.post(WIDGETS, &widget("a", &json!({}))).await.expect(201);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let switch = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    let crd = kit.patch(&path, "json", &switch).await.expect(200);
    assert_eq!(crd["status"]["storedVersions"], json!(["v1", "v2"]));
    let two = "/apis/example.com/v2/namespaces/ns/widgets/a";
    let read = until(&kit, two, |code, _| code == 200).await;
    // Until the new rows are in place the write is idle; while their cache begins it is told to come back.
    let mut written = read.clone();
    for _ in 0..10_000 {
        let got = kit.put(two, &read).await;
        if got.code != 429 {
            written = got.expect(200);
        }
        if version(&written) > version(&read) {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(version(&written) > version(&read), "the write counts");
    let again = kit.put(two, &written).await.expect(200);
    assert_eq!(version(&again), version(&written), "what is stored as it should be is not written again");
}

#[tokio::test]
async fn rules_that_were_broken_before_warn() {
    let kit = kit().await;
    define(&kit, &definition("widgets", "Widget", size_schema(3))).await;
    kit.post(WIDGETS, &widget("a", &json!({"size": 5, "name": "x"}))).await.expect(201);
    let rule = json!([{"rule": "self == 'y'", "message": "must be y"}]);
    let patch = json!([{"op": "add", "value": rule,
        "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/name/x-kubernetes-validations"}]);
    kit.patch(&format!("{DEFINITIONS}/widgets.example.com"), "json", &patch).await.expect(200);
    let change = |size: i64| json!({"spec": {"size": size}});
    let media = [("content-type", "application/merge-patch+json")];
    let mut warned = None;
    for n in 0..10_000 {
        let got = kit.send(http::Method::PATCH, &format!("{WIDGETS}/a"), &media, Some(&change(n % 9))).await;
        assert!(matches!(got.code, 200 | 429), "{:#}", got.body);
        if let Some(warning) = got.headers.get("warning") {
            warned = Some(warning.clone());
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(warned.expect("a warning"), "299 - \"spec.name: Invalid value: \\\"x\\\": must be y\"");
    let wrong = kit.patch(&format!("{WIDGETS}/a"), "merge", &json!({"spec": {"name": "z"}})).await;
    assert_eq!(wrong.code, 422);
}
