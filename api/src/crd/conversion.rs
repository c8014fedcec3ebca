//! ConversionReview: what a conversion webhook is sent, and what its answer must be (KEP-598).

use serde_json::{Map, Value, json};

use super::custom::Webhook;
use crate::names;
use crate::object::ObjectExt as _;

/// The review that asks for objects in another version; `uid` is fresh.
///
/// # Errors
/// When the webhook understands no version of ConversionReview that is spoken here.
pub fn request(webhook: &Webhook, uid: &str, api_version: &str, objects: &[Value]) -> Result<Value, String> {
    let known = webhook.review_versions.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1"));
    let version = known.ok_or("no supported conversion review versions")?;
    Ok(json!({"kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects}}))
}

/// The converted objects of an answer. Metadata but labels and annotations stays what it was.
///
/// # Errors
/// With Kubernetes' text for what is wrong with the answer.
pub fn response(sent: &Value, answer: &Value, originals: &[Value]) -> Result<Vec<Value>, String> {
    let subject = originals.first().map_or_else(String::new, |o| {
        let (group, version) = crate::object::split_api_version(o.api_version());
        format!("{group}/{version}, Kind={}", o.kind())
    });
    let failed = |why: String| format!("conversion webhook for {subject} failed: {why}");
    let objects = converted(sent, answer).map_err(failed)?;
    if objects.len() != originals.len() {
        let (got, wanted) = (objects.len(), originals.len());
        return Err(format!("conversion webhook for {subject} returned {got} objects, expected {wanted}"));
    }
    let api_version = sent.str_at("request.desiredAPIVersion");
    let mut out = Vec::with_capacity(objects.len());
    // A single object is named less exactly.
    let alone = originals.len() == 1;
    for (i, (object, original)) in objects.iter().zip(originals).enumerate() {
        let returned = |what: &str, why: String| {
            format!("conversion webhook for {subject} returned invalid {what}: {why}")
        };
        let of_type = |why: String| {
            let converted = if alone { "" } else { "converted " };
            returned(&format!("{converted}object at index {i}"), why)
        };
        let (expected, received) = (api_version, object.api_version());
        if expected != received {
            return Err(of_type(format!("invalid groupVersion (expected {expected}, received {received})")));
        }
        if object.kind() != original.kind() {
            let (expected, received) = (original.kind(), object.kind());
            return Err(of_type(format!("invalid kind (expected {expected}, received {received})")));
        }
        let at =
            |what: &str, single: &str| if alone { single.to_owned() } else { format!("{what} at index {i}") };
        same(original, object).map_err(|why| returned(&at("converted object", "object"), why))?;
        let metadata =
            restored(original, object).map_err(|why| returned(&at("metadata in object", "metadata"), why))?;
        let mut object = object.clone();
        object["metadata"] = metadata;
        out.push(object);
    }
    Ok(out)
}

fn converted<'v>(sent: &Value, answer: &'v Value) -> Result<&'v [Value], String> {
    let response = answer.get("response").filter(|r| r.is_object()).ok_or("no response provided")?;
    if sent.api_version() == "apiextensions.k8s.io/v1" {
        if answer.api_version() != sent.api_version() || answer.kind() != sent.kind() {
            let (group, version) = crate::object::split_api_version(answer.api_version());
            return Err(format!(
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {group}/{version}, Kind={}",
                answer.kind()
            ));
        }
        let (expected, got) = (sent.str_at("request.uid"), response.str_at("uid"));
        if expected != got {
            return Err(format!("expected response.uid={expected:?}, got {got:?}"));
        }
    }
    let (status, message) = (response.str_at("result.status"), response.str_at("result.message"));
    if status == "Success" {
        Ok(response.items_at("convertedObjects"))
    } else if message.is_empty() {
        Err(format!("response.result.status was '{status}', not 'Success'"))
    } else {
        Err(message.to_owned())
    }
}

fn same(original: &Value, object: &Value) -> Result<(), String> {
    for (what, a, b) in [
        ("name", original.name(), object.name()),
        ("namespace", original.namespace(), object.namespace()),
        ("UID", original.uid(), object.uid()),
    ] {
        if a != b {
            return Err(format!("must have the same {what}: {a} != {b}"));
        }
    }
    Ok(())
}

/// The metadata of the original with labels and annotations of the converted object.
fn restored(original: &Value, object: &Value) -> Result<Value, String> {
    let found = object.get("metadata").ok_or("missing metadata in converted object")?;
    let found = found.as_object().ok_or("invalid metadata in converted object")?;
    let mut out = original.get("metadata").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    for field in ["labels", "annotations"] {
        match found.get(field) {
            None | Some(Value::Null) => {
                out.as_object_mut().and_then(|m| m.remove(field));
            }
            Some(Value::Object(map)) => {
                for (key, value) in map {
                    let Some(text) = value.as_str() else {
                        return Err(format!("metadata.{field}[{key}] must be a string in converted object"));
                    };
                    let mut wrong = names::qualified_name(key);
                    if field == "labels" {
                        wrong.extend(names::label_value(text));
                    }
                    let changed = original.at("metadata").and_then(|m| m.get(field)?.get(key)) != Some(value);
                    if let (true, Some(why)) = (changed, wrong.first()) {
                        return Err(format!("metadata.{field}: Invalid value: {key:?}: {why}"));
                    }
                }
                out[field] = Value::Object(map.clone());
            }
            Some(_) => return Err(format!("invalid metadata.{field} in converted object")),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(versions: &[&str]) -> Webhook {
        Webhook {
            url: "https://localhost/".into(),
            service: None,
            ca_bundle: Vec::new(),
            review_versions: versions.iter().map(|v| (*v).to_owned()).collect(),
        }
    }

    #[test]
    fn answers_are_checked() {
        let original = json!({"apiVersion": "e.com/v1", "kind": "W", "metadata": {"name": "a", "uid": "u", "labels": {"x": "y"},
            "resourceVersion": "3"}, "spec": {"a": 1}});
        let sent = request(&webhook(&["v2", "v1"]), "id", "e.com/v2", std::slice::from_ref(&original))
            .expect("a review");
        assert_eq!(sent["apiVersion"], "apiextensions.k8s.io/v1");
        assert!(request(&webhook(&["v9"]), "id", "e.com/v2", &[]).is_err());
        let mut good = original.clone();
        good["apiVersion"] = json!("e.com/v2");
        good["spec"] = json!({"b": 1});
        good["metadata"] = json!({"name": "a", "uid": "u", "annotations": {"k": "v"}});
        let answer = |uid: &str, objects: Value| {
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
                "response": {"uid": uid, "result": {"status": "Success"}, "convertedObjects": objects}})
        };
        let judge = |a: &Value| response(&sent, a, std::slice::from_ref(&original));
        let out = judge(&answer("id", json!([good]))).expect("converted");
        assert_eq!(out[0]["spec"], json!({"b": 1}));
        assert_eq!(
            out[0]["metadata"],
            json!({"name": "a", "uid": "u", "annotations": {"k": "v"}, "resourceVersion": "3"})
        );
        let mut renamed = good.clone();
        renamed["metadata"]["name"] = json!("b");
        for (bad, want) in [
            (
                answer("other", json!([good])),
                "conversion webhook for e.com/v1, Kind=W failed: expected response.uid=\"id\", got \"other\"",
            ),
            (
                answer("id", json!([])),
                "conversion webhook for e.com/v1, Kind=W returned 0 objects, expected 1",
            ),
            (
                answer("id", json!([original])),
                "conversion webhook for e.com/v1, Kind=W returned invalid object at index 0: invalid groupVersion (expected e.com/v2, received e.com/v1)",
            ),
            (
                answer("id", json!([renamed])),
                "conversion webhook for e.com/v1, Kind=W returned invalid object: must have the same name: a != b",
            ),
            (
                json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {"uid": "id", "result": {"status": "Failed", "message": "no"}}}),
                "conversion webhook for e.com/v1, Kind=W failed: no",
            ),
        ] {
            assert_eq!(judge(&bad), Err(want.to_owned()));
        }
    }
}
