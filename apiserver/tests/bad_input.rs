//! Bodies that no client should send: each is refused with a reason, none is an error of the server.

mod common;

use common::Kit;
use http::Method;
use serde_json::Value;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";

async fn post(kit: &Kit, path: &str, content_type: &str, body: Vec<u8>) -> (u16, Value) {
    let response = kit.raw(Method::POST, path, &[("content-type", content_type)], Some(body)).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect(1 << 26).await.expect("a body");
    (code, serde_json::from_slice(&bytes).expect("a Status"))
}

/// A YAML text whose aliases would grow to gigabytes.
fn laughs() -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let refs = vec![format!("*a{}", n - 1); 10].join(", ");
        text += &format!("a{n}: &a{n} [{refs}]\n");
    }
    text + "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
}

#[tokio::test]
async fn bad_bodies_are_refused_with_a_reason() {
    let kit = Kit::new().await;
    let deep = |open: &str, close: &str, n: usize| open.repeat(n) + &close.repeat(n);
    let map =
        |rest: &str| format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a"}}{rest}}}"#);
    let cases: Vec<(&str, &str, &str, Vec<u8>, &[u16])> = vec![
        ("deep arrays", MAPS, JSON, map(&format!(r#","data":{}"#, deep("[", "]", 100_000))).into(), &[400]),
        ("deep objects", MAPS, JSON, deep(r#"{"a":"#, "}", 100_000).into(), &[400]),
        ("unclosed", MAPS, JSON, "[".repeat(1_000_000).into(), &[400]),
        ("deep YAML", MAPS, YAML, format!("a: {}", deep("[", "]", 50_000)).into(), &[400]),
        ("deep YAML blocks", MAPS, YAML, (0..2_000).map(|n| " ".repeat(n) + "a:\n").collect::<String>().into(), &[400]),
        ("aliases", MAPS, YAML, laughs().into(), &[400]),
        ("huge", MAPS, JSON, map(&format!(r#","data":{{"a":"{}"}}"#, "x".repeat(4 << 20))).into(), &[413]),
        ("too large to store", MAPS, JSON, map(&format!(r#","data":{{"a":"{}"}}"#, "x".repeat(2 << 20))).into(), &[413, 422]),
        ("not UTF-8", MAPS, JSON, b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"\xff\"}}".to_vec(), &[400]),
        ("not UTF-8 YAML", MAPS, YAML, b"kind: \xff\xfe".to_vec(), &[400]),
        ("a NUL", MAPS, JSON, b"\0".to_vec(), &[400]),
        ("wrong types", PODS, JSON, br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":{"a":1}}}"#.to_vec(), &[400]),
        ("wrong type of metadata", MAPS, JSON, br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":[]}"#.to_vec(), &[400]),
        ("no object", MAPS, JSON, b"[]".to_vec(), &[400]),
        ("a number", MAPS, JSON, b"1e400".to_vec(), &[400]),
        ("a huge number", PODS, JSON, br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"terminationGracePeriodSeconds":1e30,"containers":[]}}"#.to_vec(), &[400, 422]),
        ("empty", MAPS, JSON, Vec::new(), &[400]),
        ("duplicate keys, strictly", "/api/v1/namespaces/default/configmaps?fieldValidation=Strict", JSON,
            map(r#","data":{"a":"1","a":"2"}"#).into(), &[400]),
        ("unknown type", MAPS, "text/plain", map("").into(), &[415]),
        ("no protobuf", MAPS, "application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff\xff\xff".to_vec(), &[400]),
        ("protobuf without its mark", MAPS, "application/vnd.kubernetes.protobuf", b"abc".to_vec(), &[400]),
        ("protobuf that claims to be long", MAPS, "application/vnd.kubernetes.protobuf",
            b"k8s\0\x0a\xff\xff\xff\xff\x0f".to_vec(), &[400]),
    ];
    for (what, path, content_type, body, want) in cases {
        let (code, status) = post(&kit, path, content_type, body).await;
        assert!(want.contains(&code), "{what}: {code}: {status}");
        assert_eq!(status["kind"], "Status", "{what}");
        for field in ["message", "reason"] {
            assert!(status[field].as_str().is_some_and(|t| !t.is_empty()), "{what}: no {field}: {status}");
        }
    }
    // And the server goes on.
    kit.post(MAPS, &serde_json::from_str(&map("")).expect("json")).await.expect(201);
}

#[tokio::test]
async fn bad_patches_are_refused_with_a_reason() {
    let kit = Kit::new().await;
    let map = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "b"}});
    kit.post(MAPS, &map).await.expect(201);
    let copies = |n: usize| {
        // Each doubles what is there.
        let add = r#"{"op":"copy","from":"/data","path":"/data/x"}"#;
        format!("[{}]", vec![add; n].join(",")).into_bytes()
    };
    for (what, kind, body, want) in [
        ("growing copies", "application/json-patch+json", copies(40), &[400u16, 413, 422][..]),
        ("too many operations", "application/json-patch+json", copies(10_001), &[400, 413, 422]),
        (
            "a path to nowhere",
            "application/json-patch+json",
            br#"[{"op":"remove","path":"/x/y/z"}]"#.to_vec(),
            &[422],
        ),
        (
            "no operation",
            "application/json-patch+json",
            br#"[{"op":"dance","path":"/"}]"#.to_vec(),
            &[400, 422],
        ),
        ("not a list", "application/json-patch+json", b"{}".to_vec(), &[400]),
        ("a scalar", "application/merge-patch+json", b"1".to_vec(), &[400, 422]),
        ("not UTF-8", "application/merge-patch+json", b"{\"data\":{\"a\":\"\xff\"}}".to_vec(), &[400]),
        (
            "deep",
            "application/merge-patch+json",
            [r#"{"a":"#.repeat(50_000), "}".repeat(50_000)].concat().into(),
            &[400],
        ),
        // As kube-apiserver, which passes this error on without a reason.
        (
            "a wrong directive",
            "application/strategic-merge-patch+json",
            br#"{"$patch":"dance"}"#.to_vec(),
            &[500],
        ),
        ("apply without a kind", "application/apply-patch+yaml", b"{}".to_vec(), &[400, 422]),
        ("unknown", "application/x-patch", b"{}".to_vec(), &[415]),
    ] {
        let path = format!("{MAPS}/a?fieldManager=m");
        let response = kit.raw(Method::PATCH, &path, &[("content-type", kind)], Some(body)).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect(1 << 26).await.expect("a body");
        let status: Value = serde_json::from_slice(&bytes).expect("a Status");
        assert!(want.contains(&code), "{what}: {code}: {}", status["message"]);
        assert!(status["message"].as_str().is_some_and(|m| !m.is_empty()), "{what}: {status}");
    }
}
