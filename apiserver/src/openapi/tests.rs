//! Whole documents.

use super::*;
use crate::kinds::KindsRegistry;
use std::collections::BTreeSet;

fn table() -> Arc<Table> {
    KindsRegistry::builtin(&[], &[]).snapshot()
}

fn v3(table: &Table, name: &str) -> Value {
    let bytes = documents::write_v3(table, name, Writer::Json(Json::new()));
    serde_json::from_slice(&bytes).expect("json")
}

/// Every `$ref` of a document must lead somewhere.
fn dangling(document: &Value, prefix: &str, schemas: &Map<String, Value>) -> Vec<String> {
    fn walk(value: &Value, out: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    out.insert(target.clone());
                }
                map.values().for_each(|v| walk(v, out));
            }
            Value::Array(items) => items.iter().for_each(|v| walk(v, out)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    walk(document, &mut found);
    found.into_iter().filter(|t| t.strip_prefix(prefix).is_none_or(|n| !schemas.contains_key(n))).collect()
}

#[test]
fn documents_are_whole() {
    let table = table();
    let mut operations = BTreeSet::new();
    for name in documents::hashes(&table).keys() {
        let document = v3(&table, name);
        let schemas = document["components"]["schemas"].as_object().cloned().unwrap_or_default();
        let missing = dangling(&document, schemas::PREFIX, &schemas);
        assert!(missing.is_empty(), "{name}: {missing:?}");
        let paths = document["paths"].as_object().expect("paths");
        assert!(!paths.is_empty(), "{name}");
        let items = paths.values().flat_map(|item| item.as_object().expect("item").values());
        for id in items.filter_map(|operation| operation.get("operationId")?.as_str()) {
            assert!(operations.insert(id.to_owned()), "{id} twice");
        }
    }
    let v2 = documents::write_v2(&table, Writer::Json(Json::new()));
    let v2: Value = serde_json::from_slice(&v2).expect("json");
    let definitions = v2["definitions"].as_object().expect("definitions");
    assert_eq!(dangling(&v2, "#/definitions/", definitions), Vec::<String>::new());
    assert!(
        definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]["items"]["$ref"].is_string()
    );
}

#[test]
fn kubectl_finds_field_validation_and_schemas() {
    let document = v3(&table(), "apis/apps/v1");
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    let parameters = patch["parameters"].as_array().expect("parameters");
    assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"));
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(spec["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(spec["x-kubernetes-patch-merge-key"], "name");
    assert!(spec["description"].as_str().is_some_and(|d| d.starts_with("List of containers")));
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["version"], "v1");
}

/// A table of a definition: a field that is a map-list, one that keeps everything.
fn defined() -> Arc<Table> {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
            "items": {"type": "object", "required": ["port"], "properties": {
                "port": {"type": "integer", "description": "A port.", "default": 80}}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}});
    let crd = json!({"metadata": {"name": "widgets.e.com", "uid": "u", "generation": 1}, "spec": {"group": "e.com",
        "scope": "Namespaced", "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}]},
        "status": {"acceptedNames": {"kind": "Widget", "plural": "widgets", "listKind": "WidgetList"},
            "conditions": [{"type": "Established", "status": "True"}]}});
    let source: hawser_api::crd::custom::Source = Arc::new(crd.to_string().into_bytes());
    let kinds: Vec<_> = hawser_api::crd::rows::rows(&crd, &source).into_iter().map(Arc::new).collect();
    KindsRegistry::new(&kinds).snapshot()
}

#[test]
fn kinds_defined_at_run_time_are_published() {
    let table = defined();
    let document = v3(&table, "apis/e.com/v1");
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    assert_eq!(dangling(&document, schemas::PREFIX, schemas), Vec::<String>::new());
    let paths = document["paths"].as_object().expect("paths");
    let names: Vec<&str> = paths.keys().map(|p| p.trim_start_matches("/apis/e.com/v1/")).collect();
    assert_eq!(
        names,
        [
            "namespaces/{namespace}/widgets",
            "namespaces/{namespace}/widgets/{name}",
            "namespaces/{namespace}/widgets/{name}/status",
            "widgets"
        ]
    );
    let list = &document["paths"]["/apis/e.com/v1/widgets"]["get"]["responses"]["200"]["content"];
    assert_eq!(list["application/json"]["schema"], paths::reference("com.e.v1.WidgetList"));
    assert_eq!(list.as_object().map(Map::len), Some(2), "no protobuf");
    let widget = &schemas["com.e.v1.Widget"];
    assert_eq!(
        widget["x-kubernetes-group-version-kind"],
        json!([{"group": "e.com", "version": "v1", "kind": "Widget"}])
    );
    let v2 = documents::write_v2(&table, Writer::Json(Json::new()));
    let v2: Value = serde_json::from_slice(&v2).expect("json");
    let definitions = v2["definitions"].as_object().expect("definitions");
    assert_eq!(dangling(&v2, "#/definitions/", definitions), Vec::<String>::new());
    let older = &definitions["com.e.v1.Widget"];
    assert_eq!(
        older["properties"]["metadata"]["$ref"],
        "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    );
    for schema in [widget, older] {
        let spec = &schema["properties"]["spec"]["properties"];
        assert_eq!(spec["ports"]["x-kubernetes-list-type"], "map");
        assert_eq!(spec["ports"]["x-kubernetes-list-map-keys"], json!(["port"]));
        assert_eq!(spec["ports"]["items"]["properties"]["port"]["default"], 80);
        assert_eq!(spec["free"]["x-kubernetes-preserve-unknown-fields"], true);
    }
    for (document, dialect) in [("apis/e.com/v1", Dialect::V3), ("", Dialect::V2)] {
        let writer = Writer::Protobuf(gnostic::Writer::new(dialect));
        let bytes = match dialect {
            Dialect::V3 => documents::write_v3(&table, document, writer),
            Dialect::V2 => documents::write_v2(&table, writer),
        };
        let key = b"x-kubernetes-list-map-keys";
        assert!(bytes.windows(key.len()).any(|w| w == key));
    }
}

/// What Kubernetes publishes and this does not, or otherwise; CBOR, which is off by default, is left out as well.
const KNOWN: &[&str] = &[
    // The node's log files are not served.
    "logs: missing",
];

/// Upstream's words for parameters are not copied, and those of lists have no type in the published crate.
fn without_texts(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| !(key == "description" && value.is_string()));
            map.values_mut().for_each(without_texts);
        }
        Value::Array(items) => items.iter_mut().for_each(without_texts),
        _ => {}
    }
}

/// The paths at which two documents differ.
fn differences(ours: &Value, theirs: &Value, at: String, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differences(a, b, format!("{at} {key}"), out),
                    (None, _) => out.push(format!("{at} {key}: missing")),
                    (_, None) => out.push(format!("{at} {key}: unexpected")),
                }
            }
        }
        (a, b) if a == b => {}
        // Required fields are a set; upstream has them in the order of the Go struct.
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() && at.ends_with(" required") => {
            out.extend(a.iter().filter(|v| !b.contains(v)).map(|v| format!("{at}: {v} is not required")));
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, format!("{at} {n}"), out);
            }
        }
        (a, b) => out.push(format!("{at}: {a} and not {b}")),
    }
}

#[test]
fn structure_is_as_kubernetes_publishes_it() {
    use std::io::Read as _;
    let wanted: Vec<String> = hawser_api::kinds::builtin().iter().map(|k| k.api_version()).collect();
    let table = KindsRegistry::builtin(&wanted, &[]).snapshot();
    // A real server's documents, all versions switched on; texts are left out.
    let mut text = String::new();
    let packed = &include_bytes!("../../tests/data/openapi.json.z")[..];
    flate2::read::ZlibDecoder::new(packed).read_to_string(&mut text).expect("zlib");
    let published: Map<String, Value> = serde_json::from_str(&text).expect("json");
    let mut out = Vec::new();
    for (name, theirs) in published {
        if !documents::hashes(&table).contains_key(&name) {
            out.push(format!("{name}: missing"));
            continue;
        }
        let mut ours = v3(&table, &name);
        without_texts(&mut ours);
        for key in ["paths", "components"] {
            differences(&ours[key], &theirs[key], format!("{name} {key}"), &mut out);
        }
    }
    out.retain(|difference| !KNOWN.iter().any(|known| difference.contains(known)));
    assert!(
        out.is_empty(),
        "{} differences, the first:\n{}",
        out.len(),
        out[..out.len().min(300)].join("\n")
    );
}

fn ask(headers: &[(&'static str, &str)], uri: &str) -> Response<Body> {
    let uri = uri.parse().expect("uri");
    let info = RequestInfo::parse(&http::Method::GET, &uri);
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.parse().expect("value"));
    }
    OpenApi::default().answer(&table(), &info, &map).expect("an answer")
}

#[test]
fn negotiation_and_caching() {
    let index = ask(&[], V3);
    let tag = index.headers()[ETAG].to_str().expect("tag").to_owned();
    assert_eq!(ask(&[("if-none-match", &tag)], V3).status(), 304);
    let Body::Full(bytes) = index.into_body() else { panic!("an index") };
    let index: Value = serde_json::from_slice(&bytes).expect("json");
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("url");
    let found = ask(&[], url);
    assert_eq!(found.headers()[CACHE_CONTROL], "public, immutable");
    assert_eq!(ask(&[], "/openapi/v3/apis/apps/v1?hash=0").headers()[LOCATION], *url);
    assert_eq!(ask(&[("accept", "application/xml")], url).status(), 406);
    assert_eq!(ask(&[], "/openapi/v3/apis/none/v1").status(), 404);
    for accept in
        ["com.github.proto-openapi.spec.v3@v1.0+protobuf", "com.github.proto-openapi.spec.v3.v1.0+protobuf"]
    {
        let found = ask(&[("accept", &format!("application/{accept}"))], url);
        assert_eq!(
            found.headers()["content-type"],
            "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
        );
    }
    let v2 = ask(
        &[("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf, application/json")],
        V2,
    );
    assert_eq!(v2.headers()["content-type"], "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
}
