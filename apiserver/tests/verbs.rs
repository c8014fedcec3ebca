//! One verb suite over every row of the kinds table.

mod common;
#[path = "common/definitions.rs"]
mod definitions;
#[path = "common/samples.rs"]
mod samples;

use common::{Got, Kit, version};
use hawser_api::kinds::Kind;
use http::Method;
use serde_json::{Value, json};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const PARTIAL: &str = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
const PARTIAL_LIST: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

fn collection(kind: &Kind) -> String {
    let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    if kind.namespaced {
        format!("{root}/{}/namespaces/suite/{}", kind.version, kind.plural)
    } else {
        format!("{root}/{}/{}", kind.version, kind.plural)
    }
}

fn reason(got: &Got) -> &str {
    got.body["reason"].as_str().unwrap_or_default()
}

/// Kinds whose deletion waits for a controller.
fn lingers(kind: &Kind) -> bool {
    kind.kind == "Namespace"
}

#[tokio::test]
async fn every_row_has_its_verbs() {
    let kit = Kit::new().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "suite"}});
    kit.post("/api/v1/namespaces", &namespace).await.expect(201);
    // The server itself writes the status of definitions at once: they have a test of their own.
    let rows: Vec<_> = hawser_api::kinds::builtin()
        .iter()
        .filter(|k| k.on_by_default && k.is_stored() && k.plural != "customresourcedefinitions")
        .cloned()
        .collect();
    assert!(rows.len() > 50);
    suite(&kit, rows).await;
}

#[tokio::test]
async fn every_verb_of_custom_resources() {
    let kit = Kit::new().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "suite"}});
    kit.post("/api/v1/namespaces", &namespace).await.expect(201);
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"color": {"type": "string", "default": "red"}}},
        "status": {"type": "object"}}}});
    let fields = json!([{"jsonPath": ".spec.color"}]);
    let mut rows = Vec::new();
    for (plural, kind, scope) in [("widgets", "Widget", "Namespaced"), ("globs", "Glob", "Cluster")] {
        let crd = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
            "metadata": {"name": format!("{plural}.example.com")},
            "spec": {"group": "example.com", "scope": scope, "names": {"plural": plural, "kind": kind}, "versions": [
                {"name": "v1", "served": true, "storage": false, "schema": schema, "subresources": {"status": {}}},
                {"name": "v2", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}},
                    "selectableFields": fields}]}});
        rows.extend(definitions::define(&kit, &crd).await);
    }
    assert_eq!(rows.len(), 4);
    suite(&kit, rows).await;
}

async fn suite(kit: &Kit, rows: Vec<std::sync::Arc<Kind>>) {
    for kind in rows {
        println!("{} {}", kind.api_version(), kind.plural);
        create_and_read(kit, &kind).await;
        lists(kit, &kind).await;
        writes(kit, &kind).await;
        status(kit, &kind).await;
        deletes(kit, &kind).await;
    }
}

async fn create_and_read(kit: &Kit, kind: &Kind) {
    let (all, object) = (collection(kind), samples::sample(kind, 0));
    let one = format!("{all}/{}", samples::name(kind, 0));
    let missing = kit.get(&one).await;
    assert_eq!((missing.code, reason(&missing)), (404, "NotFound"));
    let dry = kit.post(&format!("{all}?dryRun=All"), &object).await.expect(201);
    assert!(dry["metadata"]["uid"].is_string());
    assert_eq!(kit.get(&one).await.code, 404, "a dry run stores nothing");

    let made = kit.post(&all, &object).await.expect(201);
    assert_eq!((&made["kind"], &made["apiVersion"]), (&object["kind"], &object["apiVersion"]));
    for field in ["uid", "creationTimestamp", "resourceVersion", "managedFields"] {
        if field == "managedFields" && kind.kind == "CertificateSigningRequest" {
            // What is asked for is nobody's: kube-apiserver leaves the spec out.
            continue;
        }
        assert!(!made["metadata"][field].is_null(), "{field} of {made:#}");
    }
    let again = kit.post(&all, &object).await;
    assert_eq!((again.code, reason(&again)), (409, "AlreadyExists"));
    assert_eq!(kit.get(&one).await.expect(200), made, "what was answered is what is read");

    let yaml = kit.get_as(&one, "application/yaml").await;
    let text = yaml.body.as_str().expect("yaml is no JSON");
    assert_eq!(serde_yaml_ng::from_str::<Value>(text).expect("yaml"), made);
    let partial = kit.get_as(&one, PARTIAL).await.expect(200);
    assert_eq!(
        (&partial["kind"], &partial["metadata"]),
        (&json!("PartialObjectMetadata"), &made["metadata"])
    );
    let table = kit.get_as(&one, TABLE).await.expect(200);
    let columns = table["columnDefinitions"].as_array().expect("columns").len();
    let cells = table["rows"][0]["cells"].as_array().expect("cells").len();
    // Kubernetes itself answers a cell too many for these.
    assert_eq!(cells, columns + usize::from(kind.kind == "IPAddress"));
    let protobuf = kit.get_as(&one, "application/vnd.kubernetes.protobuf").await;
    // Kinds defined at run time have no message.
    assert_eq!(protobuf.code, if kind.builtin { 200 } else { 406 });
}

async fn lists(kit: &Kit, kind: &Kind) {
    let (all, name) = (collection(kind), samples::name(kind, 0));
    let list = kit.get(&format!("{all}?labelSelector=suite%3Dyes")).await.expect(200);
    assert_eq!(list["kind"], json!(kind.list_kind));
    let items = list["items"].as_array().expect("items");
    assert_eq!(items.len(), 1, "{items:#?}");
    assert_eq!(items[0]["metadata"]["name"], json!(name));
    assert_eq!(
        items[0].get("kind").is_some(),
        !kind.builtin,
        "items of typed lists do not say what they are"
    );
    let none = kit.get(&format!("{all}?labelSelector=suite%21%3Dyes,suite")).await.expect(200);
    assert_eq!(none["items"], json!([]));
    let named = kit.get(&format!("{all}?fieldSelector=metadata.name%3D{name}")).await.expect(200);
    assert_eq!(named["items"].as_array().expect("items").len(), 1);
    assert_eq!(kit.get(&format!("{all}?fieldSelector=no.such%3Dfield")).await.code, 400);
    for field in &kind.selectable_fields {
        let path = format!("{all}?labelSelector=suite&fieldSelector={}%3Dnothing-has-this", field.label);
        assert_eq!(kit.get(&path).await.expect(200)["items"], json!([]), "{}", field.label);
    }
    let partial = kit.get_as(&format!("{all}?labelSelector=suite"), PARTIAL_LIST).await.expect(200);
    assert_eq!(partial["items"][0]["kind"], "PartialObjectMetadata");
    let table = kit.get_as(&format!("{all}?labelSelector=suite"), TABLE).await.expect(200);
    assert_eq!(table["rows"].as_array().expect("rows").len(), 1);
}

async fn writes(kit: &Kit, kind: &Kind) {
    let all = collection(kind);
    let one = format!("{all}/{}", samples::name(kind, 0));
    let before = kit.get(&one).await.expect(200);
    let from = version(&before);
    let mut events = kit
        .watch(&format!("{all}?watch=1&resourceVersion={from}&labelSelector=suite&timeoutSeconds=20"))
        .await;

    let mut object = before.clone();
    object["metadata"]["annotations"]["step"] = json!("put");
    let put = kit.put(&one, &object).await.expect(200);
    assert!(version(&put) > from);
    let stale = kit.put(&one, &object).await;
    assert_eq!((stale.code, reason(&stale)), (409, "Conflict"));
    assert_eq!(kit.put(&one, &put).await.expect(200), put, "a write without a change writes nothing");

    let merge = json!({"metadata": {"annotations": {"step": "merge"}}});
    let merged = kit.patch(&one, "merge", &merge).await.expect(200);
    assert_eq!(merged["metadata"]["annotations"]["step"], "merge");
    let json_patch = json!([{"op": "replace", "path": "/metadata/annotations/step", "value": "json"}]);
    let patched = kit.patch(&one, "json", &json_patch).await.expect(200);
    assert_eq!(patched["metadata"]["annotations"]["step"], "json");
    let strategic = json!({"metadata": {"annotations": {"step": null}}});
    let cleared = if kind.builtin {
        kit.patch(&one, "strategic-merge", &strategic).await.expect(200)
    } else {
        let refused = kit.patch(&one, "strategic-merge", &strategic).await;
        assert_eq!((refused.code, reason(&refused)), (415, "UnsupportedMediaType"));
        kit.patch(&one, "merge", &strategic).await.expect(200)
    };
    assert!(cleared["metadata"]["annotations"].get("step").is_none());
    let odd = kit.patch(&one, "odd", &merge).await;
    assert_eq!((odd.code, reason(&odd)), (415, "UnsupportedMediaType"));
    for field in ["uid", "creationTimestamp"] {
        assert_eq!(cleared["metadata"][field], before["metadata"][field]);
    }
    let wrong_uid = json!({"metadata": {"uid": "00000000-0000-0000-0000-000000000000"}});
    // Of a patch it is no precondition.
    assert_eq!(kit.patch(&one, "merge", &wrong_uid).await.code, 422);

    let name = samples::name(kind, 0);
    for state in [&put, &merged, &patched, &cleared] {
        let got = events.next().await.expect("an event");
        assert_eq!(got["type"], "MODIFIED");
        assert_eq!(&got["object"], state, "{name}: a watch shows what the writer was answered");
    }
}

async fn status(kit: &Kit, kind: &Kind) {
    let one = format!("{}/{}", collection(kind), samples::name(kind, 0));
    if !kind.has_status() {
        return;
    }
    let before = kit.get(&format!("{one}/status")).await.expect(200);
    let patch = json!({"metadata": {"annotations": {"by": "status"}}, "spec": {"suite": "is no field"}});
    let after = kit.patch(&format!("{one}/status"), "merge", &patch).await.expect(200);
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(kit.delete(&format!("{one}/status")).await.code, 405);
}

async fn deletes(kit: &Kit, kind: &Kind) {
    let all = collection(kind);
    let one = format!("{all}/{}", samples::name(kind, 0));
    let rv = version(&kit.get(&one).await.expect(200));
    let mut events =
        kit.watch(&format!("{all}?watch=1&resourceVersion={rv}&labelSelector=suite&timeoutSeconds=20")).await;
    let condition = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    assert_eq!(kit.send(Method::DELETE, &one, &[], Some(&condition)).await.code, 409);
    kit.delete(&format!("{one}?dryRun=All")).await.expect(200);
    kit.get(&one).await.expect(200);

    let held = json!({"metadata": {"finalizers": ["suite.test/hold"]}});
    kit.patch(&one, "merge", &held).await.expect(200);
    let marked = kit.delete(&one).await.expect(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked:#}");
    kit.get(&one).await.expect(200);
    if lingers(kind) {
        let finalize = format!("{one}/finalize");
        let mut object = kit.get(&one).await.expect(200);
        object["spec"]["finalizers"] = json!([]);
        kit.put(&finalize, &object).await.expect(200);
    }
    let free = json!({"metadata": {"finalizers": null}});
    kit.patch(&one, "merge", &free).await.expect(200);
    assert_eq!(kit.get(&one).await.code, 404, "the last finalizer took the object with it");
    let mut last = None;
    while let Some((kind, _, _)) = events.brief().await {
        if kind == "DELETED" {
            last = Some(kind);
            break;
        }
    }
    assert_eq!(last.as_deref(), Some("DELETED"));

    if kind.has_verb("deletecollection") {
        kit.post(&all, &samples::sample(kind, 1)).await.expect(201);
        let gone =
            kit.delete(&format!("{all}?labelSelector=suite&propagationPolicy=Background")).await.expect(200);
        assert_eq!(gone["items"].as_array().expect("items").len(), 1);
        let left = kit.get(&format!("{all}?labelSelector=suite")).await.expect(200);
        assert_eq!(left["items"], json!([]));
    } else {
        assert_eq!(kit.delete(&all).await.code, 405);
    }
    assert_eq!(kit.send(Method::PUT, &all, &[], None).await.code, 405);
}

#[tokio::test]
async fn one_object_in_two_versions() {
    let kit = Kit::new().await;
    let ns = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let v1 = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "default"}});
    kit.post("/api/v1/namespaces", &namespace).await;
    let object = json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": {"name": "h"},
        "spec": {"maxReplicas": 4, "targetCPUUtilizationPercentage": 60,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let made = kit.post(v1, &object).await.expect(201);
    assert_eq!(made["spec"]["targetCPUUtilizationPercentage"], 60);
    let other = kit.get(&format!("{ns}/h")).await.expect(200);
    assert_eq!(other["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 60);
    assert_eq!(other["metadata"]["uid"], made["metadata"]["uid"]);
    let patch = json!({"spec": {"maxReplicas": 9}});
    kit.patch(&format!("{ns}/h"), "merge", &patch).await.expect(200);
    let list = kit.get(v1).await.expect(200);
    assert_eq!(list["items"][0]["spec"]["maxReplicas"], 9);
}

#[tokio::test]
async fn an_evicted_pod_says_that_it_was_disrupted() {
    let kit = Kit::new().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "n"}});
    kit.post("/api/v1/namespaces", &namespace).await.expect(201);
    let pods = "/api/v1/namespaces/n/pods";
    let pod = json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "p", "finalizers": ["test.example/stay"]},
        "spec": {"containers": [{"name": "c", "image": "registry.test/app:1"}]}});
    let made = kit.post(pods, &pod).await.expect(201);
    let evict = |options: Value| {
        json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p", "namespace": "n"},
            "deleteOptions": options})
    };
    let eviction = format!("{pods}/p/eviction");
    kit.post(&eviction, &evict(json!({"dryRun": ["All"]}))).await.expect(201);
    let other = evict(json!({"preconditions": {"uid": "other"}}));
    assert_eq!(kit.post(&eviction, &other).await.code, 409);
    assert_eq!(
        version(&kit.get(&format!("{pods}/p")).await.expect(200)),
        version(&made),
        "nothing has happened"
    );
    let exact = evict(json!({"preconditions": {"resourceVersion": made["metadata"]["resourceVersion"]}}));
    kit.post(&eviction, &exact).await.expect(201);
    let pod = kit.get(&format!("{pods}/p")).await.expect(200);
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
    let conditions = pod["status"]["conditions"].as_array().expect("conditions");
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").expect("the condition");
    assert_eq!(target["reason"], "EvictionByEvictionAPI");
}
