//! Custom resources whose versions a webhook converts into each other, over real TLS on loopback.

mod common;
#[path = "common/definitions.rs"]
mod definitions;
#[path = "common/hook.rs"]
mod hook;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Kit, version};
use definitions::{DEFINITIONS, define};
use hook::Hook;
use serde_json::{Value, json};

const ONE: &str = "/apis/example.com/v1/namespaces/ns/hosts";
const TWO: &str = "/apis/example.com/v2/namespaces/ns/hosts";

/// v1 has `hostPort` (`a:1`), v2 has `host` and `port`.
fn converted(desired: &str, mut object: Value) -> Result<Value, String> {
    if desired == "example.com/v2" {
        let joined = object["hostPort"].as_str().ok_or("no hostPort")?.to_owned();
        let (host, port) = joined.split_once(':').ok_or("no colon")?;
        (object["host"], object["port"]) = (json!(host), json!(port));
        object.as_object_mut().ok_or("no object")?.remove("hostPort");
    } else {
        let (host, port) =
            (object["host"].as_str().ok_or("no host")?, object["port"].as_str().ok_or("no port")?);
        object["hostPort"] = json!(format!("{host}:{port}"));
        let fields = object.as_object_mut().ok_or("no object")?;
        fields.remove("host");
        fields.remove("port");
    }
    object["apiVersion"] = json!(desired);
    Ok(object)
}

fn answer(review: &Value) -> Value {
    let request = &review["request"];
    let desired = request["desiredAPIVersion"].as_str().unwrap_or_default();
    let objects = request["objects"].as_array().cloned().unwrap_or_default();
    let made: Result<Vec<Value>, String> = objects.into_iter().map(|o| converted(desired, o)).collect();
    let response = match made {
        Ok(made) => json!({"uid": request["uid"], "convertedObjects": made, "result": {"status": "Success"}}),
        Err(why) => json!({"uid": request["uid"], "result": {"status": "Failed", "message": why}}),
    };
    json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response})
}

/// v1 is stored; both are served, and their own fields are selectable.
fn definition(client: &Value) -> Value {
    let selectable = |fields: &[&str]| -> Vec<Value> {
        fields.iter().map(|f| json!({"jsonPath": format!(".{f}")})).collect()
    };
    let schema = |fields: &[&str]| {
        let fields: serde_json::Map<String, Value> =
            fields.iter().map(|f| ((*f).to_owned(), json!({"type": "string"}))).collect();
        json!({"openAPIV3Schema": {"type": "object", "properties": fields}})
    };
    json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "hosts.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "hosts", "kind": "Host"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema(&["hostPort"]),
                    "selectableFields": selectable(&["hostPort"])},
                {"name": "v2", "served": true, "storage": false, "schema": schema(&["host", "port"]),
                    "selectableFields": selectable(&["host", "port"])}],
            "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]}}}})
}

fn one(name: &str, host_port: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Host", "metadata": {"name": name}, "hostPort": host_port})
}

async fn kit() -> Kit {
    let kit = Kit::new().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "ns"}});
    kit.post("/api/v1/namespaces", &namespace).await.expect(201);
    kit
}

#[tokio::test]
async fn every_verb_speaks_both_versions() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let hook = Hook::start(move |path, review| {
        assert_eq!(path, "/convert");
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(answer(&review))
    })
    .await;
    let kit = kit().await;
    define(&kit, &definition(&hook.url("/convert"))).await;
    let made = kit.post(ONE, &one("a", "localhost:80")).await.expect(201);
    assert_eq!(calls.load(Ordering::SeqCst), 0, "the stored version needs no webhook");
    let mut events =
        kit.watch(&format!("{TWO}?watch=1&resourceVersion={}&timeoutSeconds=20", version(&made))).await;

    let read = kit.get(&format!("{TWO}/a")).await.expect(200);
    assert_eq!((&read["host"], &read["port"]), (&json!("localhost"), &json!("80")));
    assert_eq!(read["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(version(&read), version(&made));

    // Written as v2, stored as v1.
    let two = json!({"apiVersion": "example.com/v2", "kind": "Host", "metadata": {"name": "b", "labels": {"l": "m"}},
        "host": "h", "port": "1"});
    let created = kit.post(TWO, &two).await.expect(201);
    assert_eq!((&created["host"], &created["hostPort"]), (&json!("h"), &Value::Null));
    let stored = kit.get(&format!("{ONE}/b")).await.expect(200);
    assert_eq!((&stored["hostPort"], &stored["metadata"]["labels"]), (&json!("h:1"), &json!({"l": "m"})));

    let patched = kit.patch(&format!("{TWO}/a"), "merge", &json!({"port": "443"})).await.expect(200);
    assert_eq!((&patched["apiVersion"], &patched["port"]), (&json!("example.com/v2"), &json!("443")));
    assert_eq!(kit.get(&format!("{ONE}/a")).await.expect(200)["hostPort"], "localhost:443");

    let before = calls.load(Ordering::SeqCst);
    let list = kit.get(TWO).await.expect(200);
    assert_eq!(calls.load(Ordering::SeqCst), before + 1, "one call for a whole list");
    let hosts: Vec<&Value> = list["items"].as_array().expect("items").iter().map(|o| &o["host"]).collect();
    assert_eq!(hosts, [&json!("localhost"), &json!("h")]);
    assert_eq!(list["apiVersion"], "example.com/v2");

    let mut seen = Vec::new();
    for _ in 0..2 {
        let event = events.next().await.expect("an event");
        seen.push((event["type"].clone(), event["object"]["host"].clone(), event["object"]["port"].clone()));
    }
    assert_eq!(
        seen,
        [(json!("ADDED"), json!("h"), json!("1")), (json!("MODIFIED"), json!("localhost"), json!("443"))]
    );

    kit.delete(&format!("{TWO}/b")).await.expect(200);
    let gone = events.next().await.expect("an event");
    assert_eq!((&gone["type"], &gone["object"]["host"]), (&json!("DELETED"), &json!("h")));
    assert_eq!(kit.get(&format!("{ONE}/b")).await.code, 404);
}

#[tokio::test]
async fn what_a_webhook_does_wrong_is_told() {
    let hook = Hook::start(|path, review| {
        let mut good = answer(&review);
        match path {
            "/broken" => return Err("out of order".into()),
            "/uid" => good["response"]["uid"] = json!("other"),
            "/none" => good["response"]["convertedObjects"] = json!([]),
            "/version" => good["response"]["convertedObjects"][0]["apiVersion"] = json!("example.com/v1"),
            "/name" => good["response"]["convertedObjects"][0]["metadata"]["name"] = json!("z"),
            "/failed" => good["response"]["result"] = json!({"status": "Failed", "message": "cannot"}),
            _ => {}
        }
        Ok(good)
    })
    .await;
    let kit = kit().await;
    define(&kit, &definition(&hook.url("/good"))).await;
    kit.post(ONE, &one("a", "x:1")).await.expect(201);
    let head = "conversion webhook for example.com/v1, Kind=Host";
    for (path, why) in [
        (
            "/broken",
            format!(
                "{head} failed: an error on the server (\"out of order\") has prevented the request from succeeding"
            ),
        ),
        ("/none", format!("{head} returned 0 objects, expected 1")),
        (
            "/version",
            format!(
                "{head} returned invalid object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v1)"
            ),
        ),
        ("/name", format!("{head} returned invalid object: must have the same name: a != z")),
        ("/failed", format!("{head} failed: cannot")),
    ] {
        let patch = json!({"spec": {"conversion": {"webhook": {"clientConfig": {"url": format!("https://127.0.0.1:{}{path}", hook.port)}}}}});
        kit.patch(&format!("{DEFINITIONS}/hosts.example.com"), "merge", &patch).await.expect(200);
        let wanted = format!("Internal error occurred: {why}");
        // The definition's own answer does not say when its rows are in place.
        let mut told = String::new();
        for _ in 0..10_000 {
            let got = kit.get(&format!("{TWO}/a")).await;
            told = got.body["message"].as_str().unwrap_or_default().to_owned();
            if got.code == 500 && told == wanted {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(told, wanted, "{path}");
    }
    // The stored version never needs the webhook.
    kit.get(&format!("{ONE}/a")).await.expect(200);
}

#[tokio::test]
async fn a_service_is_called_by_its_name() {
    let hook = Hook::start(|_, review| Ok(answer(&review))).await;
    let kit = kit().await;
    let client = json!({"service": {"namespace": "ns", "name": "hook", "path": "/convert", "port": hook.port}, "caBundle": hook.ca});
    define(&kit, &definition(&client)).await;
    kit.post(ONE, &one("a", "x:1")).await.expect(201);
    let missing = kit.get(&format!("{TWO}/a")).await.expect(500);
    let head = "Internal error occurred: conversion webhook for example.com/v1, Kind=Host failed: Post";
    let url = format!("https://hook.ns.svc:{}/convert", hook.port);
    assert_eq!(missing["message"], format!("{head} \"{url}\": service \"hook\" not found"));
    // Endpoints cannot be on loopback; an external name leads there.
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"},
        "spec": {"type": "ExternalName", "externalName": "127.0.0.1"}});
    kit.post("/api/v1/namespaces/ns/services", &service).await.expect(201);
    assert_eq!(kit.get(&format!("{TWO}/a")).await.expect(200)["host"], "x");
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|o| o["metadata"]["name"].as_str()).collect()
}

#[tokio::test]
async fn selectors_are_about_what_the_webhook_makes() {
    let hook = Hook::start(|_, review| Ok(answer(&review))).await;
    let kit = kit().await;
    define(&kit, &definition(&hook.url("/convert"))).await;
    let first = kit.post(ONE, &one("a", "x:1")).await.expect(201);
    for (name, host_port) in [("b", "y:1"), ("c", "x:2"), ("d", "x:1"), ("e", "y:2")] {
        kit.post(ONE, &one(name, host_port)).await.expect(201);
    }
    for (path, want) in [
        (format!("{TWO}?fieldSelector=host%3Dx"), vec!["a", "c", "d"]),
        (format!("{TWO}?fieldSelector=host%3Dx,port%3D1"), vec!["a", "d"]),
        (format!("{TWO}?fieldSelector=host!%3Dx,metadata.name!%3De"), vec!["b"]),
        (format!("{TWO}?fieldSelector=metadata.name%3Da,port%3D2"), vec![]),
        (format!("{ONE}?fieldSelector=hostPort%3Dx:1"), vec!["a", "d"]),
    ] {
        assert_eq!(names(&kit.get(&path).await.expect(200)), want, "{path}");
    }
    // Pages hold what was asked for, not what was looked at.
    let selected = format!("{TWO}?fieldSelector=host%3Dx&limit=1");
    let (mut seen, mut next) = (Vec::new(), String::new());
    loop {
        let page = kit.get(&format!("{selected}{next}")).await.expect(200);
        assert_eq!(names(&page).len().max(1), 1);
        seen.extend(names(&page).into_iter().map(str::to_owned));
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        next = format!("&continue={token}");
    }
    assert_eq!(seen, ["a", "c", "d"]);

    let from = version(&first);
    let path = |fields: &str| {
        format!("{TWO}?watch=1&resourceVersion={from}&timeoutSeconds=20&fieldSelector={fields}")
    };
    let mut xs = kit.watch(&path("host%3Dx")).await;
    let mut first_ports = kit.watch(&path("host%3Dx,port%3D1")).await;
    let state = format!("{TWO}?watch=1&resourceVersion=0&timeoutSeconds=20&fieldSelector=port%3D2");
    let mut seconds = kit.watch(&state).await;
    kit.patch(&format!("{TWO}/c"), "merge", &json!({"port": "1"})).await.expect(200);
    kit.patch(&format!("{TWO}/d"), "merge", &json!({"host": "z"})).await.expect(200);
    // What a selector of the other version leaves in place, and takes.
    let deleted = kit.delete(&format!("{TWO}?fieldSelector=host%3Dx,port%3D1")).await.expect(200);
    assert_eq!((names(&deleted), &deleted["items"][0]["host"]), (vec!["a", "c"], &json!("x")));
    assert_eq!(names(&kit.get(TWO).await.expect(200)), ["b", "d", "e"]);
    for (events, want) in [
        (
            &mut xs,
            ["ADDED c 2", "ADDED d 1", "MODIFIED c 1", "DELETED d 1", "DELETED a 1", "DELETED c 1"]
                .as_slice(),
        ),
        (&mut first_ports, &["ADDED d 1", "ADDED c 1", "DELETED d 1", "DELETED a 1", "DELETED c 1"]),
        (&mut seconds, &["ADDED c 2", "ADDED e 2", "DELETED c 2"]),
    ] {
        for want in want {
            let event = events.next().await.expect("an event");
            let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
            let (name, port) = (text(&event["object"]["metadata"]["name"]), text(&event["object"]["port"]));
            assert_eq!(format!("{} {name} {port}", text(&event["type"])), *want);
        }
    }
}
