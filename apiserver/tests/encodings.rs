//! The forms that answers can be had in: protobuf, lines for people, metadata alone, discovery and OpenAPI.

mod common;

use common::Kit;
use hawser_api::protobuf::{decode, envelope};
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/n/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

async fn kit() -> Kit {
    let kit = Kit::new().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "n"}});
    kit.post("/api/v1/namespaces", &namespace).await.expect(201);
    for name in ["a", "b"] {
        let map =
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"k": name}});
        kit.post(&format!("{MAPS}?fieldManager=test"), &map).await.expect(201);
    }
    kit
}

async fn bytes(kit: &Kit, method: Method, path: &str, accept: &str) -> (u16, String, Vec<u8>) {
    let response = kit.raw(method, path, &[("accept", accept)], None).await;
    let code = response.status().as_u16();
    let content_type = response.headers()["content-type"].to_str().expect("text").to_owned();
    (code, content_type, response.into_body().collect(1 << 24).await.expect("a body").to_vec())
}

/// Whether `part` is somewhere in `whole`.
fn holds(whole: &[u8], part: &[u8]) -> bool {
    whole.windows(part.len()).any(|w| w == part)
}

/// The length-delimited fields of a message, which must have no others.
fn fields(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut out = Vec::new();
    while let Some((key, rest)) = bytes.split_first() {
        assert_eq!(key & 7, 2, "length-delimited");
        let (mut len, mut at) = (0usize, 0);
        loop {
            len |= usize::from(rest[at] & 0x7f) << (7 * at);
            at += 1;
            if rest[at - 1] & 0x80 == 0 {
                break;
            }
        }
        out.push((key >> 3, &rest[at..at + len]));
        bytes = &rest[at + len..];
    }
    out
}

/// The bytes of a field.
fn field(bytes: &[u8], number: u8) -> &[u8] {
    fields(bytes).into_iter().find(|(n, _)| *n == number).map(|(_, bytes)| bytes).expect("the field")
}

#[tokio::test]
async fn objects_and_failures() {
    let kit = kit().await;
    let json = kit.get(&format!("{MAPS}/a")).await.expect(200);
    for _ in 0..2 {
        let (code, content_type, body) = bytes(&kit, Method::GET, &format!("{MAPS}/a"), PROTOBUF).await;
        assert_eq!((code, content_type.as_str()), (200, PROTOBUF));
        assert_eq!(decode(&body, ("", "")).expect("an object"), json);
    }
    let (code, content_type, body) = bytes(&kit, Method::GET, &format!("{MAPS}/none"), PROTOBUF).await;
    assert_eq!((code, content_type.as_str()), (404, PROTOBUF));
    let status = decode(&body, ("", "")).expect("a Status");
    assert_eq!((&status["reason"], &status["details"]["name"]), (&json!("NotFound"), &json!("none")));
    let table = format!("{PROTOBUF};as=Table;v=v1;g=meta.k8s.io");
    assert_eq!(kit.get_as(MAPS, &table).await.code, 406);
    assert_eq!(kit.get_as(MAPS, "application/cbor").await.code, 406);
}

#[tokio::test]
async fn lists() {
    let kit = kit().await;
    let json = kit.get(MAPS).await.expect(200);
    let (code, content_type, body) = bytes(&kit, Method::GET, MAPS, PROTOBUF).await;
    assert_eq!((code, content_type.as_str()), (200, PROTOBUF));
    assert!(body.starts_with(b"k8s\0"));
    let list = field(&body[4..], 2);
    let version = json["metadata"]["resourceVersion"].as_str().expect("text");
    assert_eq!(field(field(list, 1), 2), version.as_bytes());
    let items = fields(list).into_iter().filter(|(n, _)| *n == 2).map(|(_, item)| {
        let mut object = decode(&envelope("v1", "ConfigMap", item), ("", "")).expect("an object");
        let map = object.as_object_mut().expect("an object");
        map.remove("kind");
        map.remove("apiVersion");
        object
    });
    assert_eq!(items.collect::<Value>(), json["items"]);
    let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
    let (code, _, body) = bytes(&kit, Method::GET, MAPS, &partial).await;
    assert_eq!(code, 200);
    assert!(holds(&body, b"PartialObjectMetadataList") && !holds(&body, b"\x12\x01b"));
}

#[tokio::test]
async fn watch_frames() {
    let kit = kit().await;
    let path = format!("{MAPS}?watch=1&timeoutSeconds=2&fieldSelector=metadata.name=a");
    let response = kit.raw(Method::GET, &path, &[("accept", PROTOBUF)], None).await;
    assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
    let mut body = response.into_body();
    let mut got = Vec::new();
    while got.len() < 4 || got.len() < 4 + u32::from_be_bytes(got[..4].try_into().expect("four")) as usize {
        let frame = body.frame().await.expect("more").expect("a frame");
        got.extend_from_slice(&frame.into_data().expect("data"));
    }
    assert!(got[4..].starts_with(b"\x0a\x05ADDED\x12"), "{got:?}");
    let len = u32::from_be_bytes(got[..4].try_into().expect("four")) as usize;
    let object = field(field(&got[4..4 + len], 2), 1);
    let object = decode(object, ("", "")).expect("an object");
    assert_eq!(object, kit.get(&format!("{MAPS}/a")).await.expect(200));
}

#[tokio::test]
async fn lines_for_people() {
    let kit = kit().await;
    let path = format!("{MAPS}/a");
    for (uri, agent, pretty) in [
        (path.clone(), "curl/8", true),
        (path.clone(), "kubectl/1", false),
        (format!("{path}?pretty=true"), "kubectl/1", true),
        (format!("{path}?pretty=false"), "curl/8", false),
    ] {
        let response = kit.raw(Method::GET, &uri, &[("user-agent", agent)], None).await;
        let body = response.into_body().collect(1 << 20).await.expect("a body");
        assert_eq!(body.starts_with(b"{\n  \"kind\": \"ConfigMap\""), pretty, "{uri} {agent}");
        let value: Value = serde_json::from_slice(&body).expect("json");
        assert_eq!(value["data"]["k"], "a");
    }
}

#[tokio::test]
async fn discovery_forms() {
    let kit = kit().await;
    let beta = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
    assert_eq!(kit.get_as("/apis", beta).await.code, 406);
    {
        let version = "v2";
        let accept = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        let found = kit.get_as("/apis", &accept).await;
        assert_eq!(found.headers["content-type"], accept);
        let tag = found.headers["etag"].to_str().expect("text").to_owned();
        assert_eq!(found.expect(200)["apiVersion"], format!("apidiscovery.k8s.io/{version}"));
        let again =
            kit.send(Method::GET, "/apis", &[("accept", &accept), ("if-none-match", &tag)], None).await;
        assert_eq!(again.code, 304);
    }
    let (code, _, body) = bytes(&kit, Method::GET, "/apis/apps", PROTOBUF).await;
    assert_eq!(code, 200);
    assert_eq!(decode(&body, ("", "")).expect("a group")["name"], "apps");
}
