//! Server-side apply on every row of the kinds table, and through the subresources.

mod common;
#[path = "common/definitions.rs"]
mod definitions;
#[path = "common/samples.rs"]
mod samples;

use common::{Got, Kit};
use hawser_api::kinds::Kind;
use http::Method;
use serde_json::{Value, json};

const APPLY: (&str, &str) = ("content-type", "application/apply-patch+yaml");
const MERGE: (&str, &str) = ("content-type", "application/merge-patch+json");

fn collection(kind: &Kind) -> String {
    let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    if kind.namespaced {
        format!("{root}/{}/namespaces/suite/{}", kind.version, kind.plural)
    } else {
        format!("{root}/{}/{}", kind.version, kind.plural)
    }
}

async fn apply(kit: &Kit, path: &str, query: &str, config: &Value) -> Got {
    kit.send(Method::PATCH, &format!("{path}?{query}"), &[APPLY], Some(config)).await
}

async fn world() -> Kit {
    let kit = Kit::new().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "suite"}});
    kit.post("/api/v1/namespaces", &namespace).await.expect(201);
    kit
}

/// Manager, operation, subresource and fields of the entries.
fn owners(object: &Value) -> Vec<(String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |e: &Value, field: &str| e[field].as_str().unwrap_or_default().to_owned();
    entries
        .iter()
        .map(|e| {
            let name = format!("{} {} {}", text(e, "manager"), text(e, "operation"), text(e, "subresource"));
            (name.trim_end().to_owned(), e["fieldsV1"].clone())
        })
        .collect()
}

fn owns_label(object: &Value, manager: &str, label: &str) -> bool {
    let label = format!("f:{label}");
    owners(object).iter().any(|(m, f)| m == manager && f["f:metadata"]["f:labels"].get(&label).is_some())
}

#[tokio::test]
async fn every_row_is_applied() {
    let kit = world().await;
    // The server writes the status of a definition as soon as it is made, so there "nothing changes" cannot hold.
    let rows: Vec<_> = hawser_api::kinds::builtin()
        .iter()
        .filter(|k| k.on_by_default && k.is_stored() && k.plural != "customresourcedefinitions")
        .cloned()
        .collect();
    assert!(rows.len() > 50);
    for kind in rows {
        println!("{} {}", kind.api_version(), kind.plural);
        applied(&kit, &kind).await;
    }
}

async fn applied(kit: &Kit, kind: &Kind) {
    let one = format!("{}/{}", collection(kind), samples::name(kind, 0));
    let mut config = samples::sample(kind, 0);
    config["metadata"]["name"] = json!(samples::name(kind, 0));
    config["metadata"]["labels"] = json!({"mine": "1", "shared": "a"});

    let refused = apply(kit, &one, "", &config).await;
    assert_eq!((refused.code, &refused.body["reason"]), (422, &json!("Invalid")));
    apply(kit, &one, "fieldManager=one&dryRun=All", &config).await.expect(201);
    assert_eq!(kit.get(&one).await.code, 404, "a dry run stores nothing");
    let made = apply(kit, &one, "fieldManager=one", &config).await.expect(201);
    assert!(owns_label(&made, "one Apply", "mine"), "{made:#}");
    let again = apply(kit, &one, "fieldManager=one", &config).await.expect(200);
    assert_eq!(again, made, "applying the same again changes nothing");

    let meta = |labels: Value| {
        json!({"apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"name": samples::name(kind, 0), "labels": labels}})
    };
    let theirs = meta(json!({"shared": "b", "theirs": "2"}));
    let conflict = apply(kit, &one, "fieldManager=two", &theirs).await;
    assert_eq!((conflict.code, &conflict.body["reason"]), (409, &json!("Conflict")));
    assert_eq!(
        conflict.body["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"",
            "field": ".metadata.labels.shared"}])
    );
    let forced = apply(kit, &one, "fieldManager=two&force=true", &theirs).await.expect(200);
    assert_eq!(forced["metadata"]["labels"]["shared"], "b");
    assert!(owns_label(&forced, "two Apply", "shared") && !owns_label(&forced, "one Apply", "shared"));

    let merge = json!({"metadata": {"labels": {"theirs": "3"}}});
    let refused = kit.send(Method::PATCH, &format!("{one}?force=true"), &[MERGE], Some(&merge)).await;
    assert_eq!(refused.code, 422);
    let edit = kit
        .send(Method::PATCH, &format!("{one}?fieldManager=edit"), &[MERGE], Some(&merge))
        .await
        .expect(200);
    assert!(owns_label(&edit, "edit Update", "theirs") && !owns_label(&edit, "two Apply", "theirs"));
    let conflict = apply(kit, &one, "fieldManager=two", &theirs).await;
    let message = conflict.body["message"].as_str().unwrap_or_default().to_owned();
    assert!(
        message.ends_with(&format!("\"edit\" using {}: .metadata.labels.theirs", kind.api_version())),
        "{message}"
    );

    let less = apply(kit, &one, "fieldManager=two", &meta(json!({}))).await.expect(200);
    assert_eq!(less["metadata"]["labels"].get("shared"), None, "nobody else wanted it");
    assert_eq!(less["metadata"]["labels"]["theirs"], "3", "another has it now");
    let mut before = made.clone();
    before["metadata"] = less["metadata"].clone();
    assert_eq!(less, before, "nothing but labels has changed");

    let mut stale = meta(json!({"mine": "2"}));
    stale["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    assert_eq!(apply(kit, &one, "fieldManager=one&force=true", &stale).await.code, 409);
    let mut wrong = meta(json!({}));
    wrong["kind"] = json!("Nothing");
    assert_eq!(apply(kit, &one, "fieldManager=one", &wrong).await.code, 400);
    kit.send(Method::DELETE, &format!("{one}?gracePeriodSeconds=0"), &[], None).await;
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test]
async fn scale_and_status_have_managers_of_their_own() {
    let kit = world().await;
    let one = "/apis/apps/v1/namespaces/suite/deployments/d";
    apply(&kit, one, "fieldManager=one", &deployment()).await.expect(201);
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 3}});
    let path = format!("{one}/scale");
    let conflict = apply(&kit, &path, "fieldManager=scaler", &scale).await.expect(409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".spec.replicas");
    let scaled = apply(&kit, &path, "fieldManager=scaler&force=true", &scale).await.expect(200);
    assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    let object = kit.get(one).await.expect(200);
    let entries = owners(&object);
    assert!(
        entries.contains(&("scaler Apply scale".into(), json!({"f:spec": {"f:replicas": {}}}))),
        "{entries:?}"
    );
    assert!(entries.iter().all(|(m, f)| m != "one Apply" || f["f:spec"].get("f:replicas").is_none()));
    let conflict = apply(&kit, one, "fieldManager=one", &deployment()).await.expect(409);
    assert_eq!(
        conflict["details"]["causes"][0]["message"],
        "conflict with \"scaler\" with subresource \"scale\""
    );

    let status = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 9}, "status": {"replicas": 3}});
    let path = format!("{one}/status");
    let after = apply(&kit, &path, "fieldManager=controller", &status).await.expect(200);
    assert_eq!((&after["spec"]["replicas"], &after["status"]["replicas"]), (&json!(3), &json!(3)));
    assert!(
        owners(&after).contains(&("controller Apply status".into(), json!({"f:status": {"f:replicas": {}}})))
    );
    let missing =
        apply(&kit, "/apis/apps/v1/namespaces/suite/deployments/no/status", "fieldManager=a", &status).await;
    assert_eq!(missing.code, 404, "a part of what is not there is not made");
}

#[tokio::test]
async fn versions_of_one_resource() {
    let kit = world().await;
    let spec = json!({"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}});
    let hpa = |version: &str, extra: (&str, Value)| {
        let mut spec = spec.clone();
        spec[extra.0] = extra.1;
        json!({"apiVersion": version, "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": spec})
    };
    let path = |version: &str| format!("/apis/{version}/namespaces/suite/horizontalpodautoscalers/h");
    let v1 = hpa("autoscaling/v1", ("targetCPUUtilizationPercentage", json!(50)));
    apply(&kit, &path("autoscaling/v1"), "fieldManager=one", &v1).await.expect(201);
    let metrics = json!([{"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": 60}}}]);
    let v2 = hpa("autoscaling/v2", ("metrics", metrics));
    let conflict = apply(&kit, &path("autoscaling/v2"), "fieldManager=two", &v2).await.expect(409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".spec.targetCPUUtilizationPercentage");
    apply(&kit, &path("autoscaling/v2"), "fieldManager=two&force=true", &v2).await.expect(200);
    let read = kit.get(&path("autoscaling/v1")).await.expect(200);
    assert_eq!(read["spec"]["targetCPUUtilizationPercentage"], 60);
}

#[tokio::test]
async fn bodies_options_and_duplicates() {
    let kit = world().await;
    let one = "/api/v1/namespaces/suite/configmaps/c";
    let send = |query: &'static str, media: &'static str, text: &'static str| {
        let kit = &kit;
        async move {
            let headers = [("content-type", media)];
            let response =
                kit.raw(Method::PATCH, &format!("{one}?{query}"), &headers, Some(text.into())).await;
            (response.status().as_u16(), response.headers().get("warning").cloned())
        }
    };
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  a: x\n";
    assert_eq!(send("fieldManager=a", APPLY.1, yaml).await.0, 201);
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  a: x\n  a: z\n";
    assert_eq!(send("fieldManager=a&fieldValidation=Strict", APPLY.1, twice).await.0, 400);
    let (code, warning) = send("fieldManager=a", APPLY.1, twice).await;
    assert!(
        code == 200 && warning.is_some_and(|w| w.to_str().is_ok_and(|w| w.contains("already set in map")))
    );
    assert!(send("fieldManager=a&fieldValidation=Ignore", APPLY.1, twice).await.1.is_none());
    assert_eq!(send("fieldManager=a", "application/apply-patch+cbor", yaml).await.0, 415);
    assert_eq!(send("fieldManager=a", APPLY.1, "a: [").await.0, 400);

    let reset = json!({"metadata": {"managedFields": []}});
    let object = kit.send(Method::PATCH, one, &[MERGE], Some(&reset)).await.expect(200);
    assert!(object["metadata"].get("managedFields").is_none(), "{object:#}");
    let edit = json!({"data": {"b": "z"}});
    let object = kit.send(Method::PATCH, one, &[MERGE], Some(&edit)).await.expect(200);
    assert!(object["metadata"].get("managedFields").is_none(), "not tracked again by an update");
}

#[tokio::test]
async fn custom_resources_are_merged_by_their_schema() {
    let kit = world().await;
    let ports = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
        "items": {"type": "object", "required": ["port"], "properties": {
            "port": {"type": "integer"}, "name": {"type": "string"}}}});
    let spec = json!({"type": "object", "properties": {"size": {"type": "integer"}, "ports": ports,
        "tags": {"type": "array", "items": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let schema = json!({"type": "object", "properties": {"spec": spec,
        "status": {"type": "object", "properties": {"ready": {"type": "integer"}}}}});
    let scale = json!({"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.ready"});
    let definition = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "subresources": {"status": {}, "scale": scale}, "schema": {"openAPIV3Schema": schema}}]}});
    definitions::define(&kit, &definition).await;
    let one = "/apis/example.com/v1/namespaces/suite/widgets/w";
    let widget = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    let first = widget(
        json!({"size": 1, "ports": [{"port": 1, "name": "a"}], "tags": ["x"], "free": {"a": {"b": 1}}}),
    );
    let made = apply(&kit, one, "fieldManager=one", &first).await.expect(201);
    assert_eq!(
        owners(&made),
        [(
            "one Apply".into(),
            json!({"f:spec": {"f:size": {}, "f:tags": {}, "f:free": {"f:a": {".": {}, "f:b": {}}},
                "f:ports": {"k:{\"port\":1}": {".": {}, "f:port": {}, "f:name": {}}}}})
        )]
    );
    assert_eq!(apply(&kit, one, "fieldManager=one", &first).await.expect(200), made);
    let second = widget(json!({"ports": [{"port": 2}], "free": {"a": {"c": 2}}}));
    let both = apply(&kit, one, "fieldManager=two", &second).await.expect(200);
    assert_eq!(both["spec"]["ports"], json!([{"port": 1, "name": "a"}, {"port": 2}]));
    assert_eq!(both["spec"]["free"], json!({"a": {"b": 1, "c": 2}}));
    let conflict = apply(&kit, one, "fieldManager=two", &widget(json!({"tags": ["y"]}))).await.expect(409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".spec.tags");
    let less = apply(&kit, one, "fieldManager=one", &widget(json!({"size": 1}))).await.expect(200);
    assert_eq!(less["spec"], json!({"size": 1, "ports": [{"port": 2}], "free": {"a": {"c": 2}}}));
    let odd = apply(&kit, one, "fieldManager=one", &widget(json!({"odd": 1}))).await;
    assert_eq!(odd.code, 500);
    let message = odd.body["message"].as_str().unwrap_or_default();
    assert!(message.ends_with(".spec.odd: field not declared in schema"), "{message}");

    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "w"}, "spec": {"replicas": 3}});
    apply(&kit, &format!("{one}/scale"), "fieldManager=scaler&force=true", &scale).await.expect(200);
    let object = kit.get(one).await.expect(200);
    assert_eq!(object["spec"]["size"], 3);
    assert!(owners(&object).contains(&("scaler Apply scale".into(), json!({"f:spec": {"f:size": {}}}))));
}
