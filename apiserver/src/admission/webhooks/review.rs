//! AdmissionReview: what a webhook is asked, and what it answers. Pure.

use base64::Engine as _;
use hawser_api::object::{api_version, split_api_version};
use hawser_api::status::Status;
use hawser_api::text::quote;
use serde::Deserialize;
use serde_json::{Value, json};

use super::hook::{Gvr, word};
use crate::access::AdmissionRequest;

/// A question to one webhook: the request in the version that its rules name.
pub struct Question<'a> {
    pub uid: &'a str,
    /// `v1` or `v1beta1`.
    pub version: &'a str,
    pub request: &'a AdmissionRequest<'a>,
    /// The resource and kind as the webhook sees them.
    pub resource: Gvr<'a>,
    pub kind: &'a str,
    pub object: Option<&'a Value>,
    pub old: Option<&'a Value>,
}

impl Question<'_> {
    /// The AdmissionReview as JSON.
    pub fn to_value(&self) -> Value {
        let (request, info) = (self.request, self.request.info);
        // The body says of what kind it is; what has no body is of the resource's kind.
        let body = request.object.as_deref().or(request.old_object);
        let named = body.and_then(|o| Some((o.get("apiVersion")?.as_str()?, o.get("kind")?.as_str()?)));
        let (group, version) =
            named.map_or((info.group.as_str(), info.version.as_str()), |(v, _)| split_api_version(v));
        let request_kind = json!({"group": group, "version": version,
            "kind": named.map_or(request.kind, |(_, kind)| kind)});
        let converted = self.resource != Gvr::of(info);
        let kind = if converted {
            json!({"group": self.resource.group, "version": self.resource.version, "kind": self.kind})
        } else {
            request_kind.clone()
        };
        let resource =
            |gvr: &Gvr<'_>| json!({"group": gvr.group, "version": gvr.version, "resource": gvr.resource});
        let mut asked = json!({
            "uid": self.uid,
            "kind": kind,
            "resource": resource(&self.resource),
            "requestKind": request_kind,
            "requestResource": resource(&Gvr::of(info)),
            "operation": word(request.operation),
            "userInfo": request.user,
            "object": self.object,
            "oldObject": self.old,
            "dryRun": request.dry_run,
            "options": request.options,
        });
        let texts = [
            ("name", super::super::name_in(request)),
            ("namespace", info.namespace.clone()),
            ("subResource", info.subresource.clone()),
            ("requestSubResource", info.subresource.clone()),
        ];
        for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            asked[field] = text.into();
        }
        json!({"kind": "AdmissionReview", "apiVersion": api_version(GROUP, self.version), "request": asked})
    }
}

const GROUP: &str = "admission.k8s.io";

/// A webhook's answer, as sent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Review {
    api_version: String,
    kind: String,
    response: Option<Response>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Response {
    uid: String,
    allowed: bool,
    status: Option<Value>,
    patch: Option<String>,
    patch_type: Option<String>,
    warnings: Option<Vec<String>>,
}

/// A webhook's answer, understood.
#[derive(Debug)]
pub struct Verdict {
    pub allowed: bool,
    /// Why not.
    pub status: Option<Value>,
    /// A JSON patch; empty without one.
    pub patch: Vec<u8>,
    pub patch_type: String,
    pub warnings: Vec<String>,
}

/// Reads an answer.
///
/// # Errors
/// Why it is no answer to the question.
pub fn read(bytes: &[u8], uid: &str, version: &str, mutating: bool) -> Result<Verdict, String> {
    let review: Review =
        serde_json::from_slice(bytes).map_err(|e| format!("couldn't decode the response: {e}"))?;
    let response = review.response.ok_or("webhook response was absent")?;
    let (has_patch, kind) = (response.patch.as_ref().is_some_and(|p| !p.is_empty()), response.patch_type);
    if version == "v1" {
        if response.uid != uid {
            return Err(format!("expected response.uid={}, got {}", quote(uid), quote(&response.uid)));
        }
        let (group, got) = split_api_version(&review.api_version);
        if (group, got, review.kind.as_str()) != (GROUP, "v1", "AdmissionReview") {
            return Err(format!(
                "expected webhook response of {GROUP}/v1, Kind=AdmissionReview, got {group}/{got}, Kind={}",
                review.kind
            ));
        }
        match (mutating, has_patch, &kind) {
            (true, true, None) => {
                return Err("webhook returned response.patch but not response.patchType".into());
            }
            (true, false, Some(_)) => {
                return Err("webhook returned response.patchType but not response.patch".into());
            }
            (true, _, Some(kind)) if kind.is_empty() => {
                return Err("webhook returned invalid response.patchType of \"\"".into());
            }
            (false, true, _) => return Err("validating webhook may not return response.patch".into()),
            (false, _, Some(_)) => return Err("validating webhook may not return response.patchType".into()),
            _ => {}
        }
    }
    let patch = response.patch.filter(|_| mutating && has_patch).unwrap_or_default();
    let patch = base64::engine::general_purpose::STANDARD
        .decode(patch)
        .map_err(|e| format!("couldn't decode the response's patch: {e}"))?;
    // The older version said nothing that could be relied on about the kind of its patch.
    let patch_type = if version == "v1" { kind.unwrap_or_default() } else { "JSONPatch".to_owned() };
    Ok(Verdict {
        allowed: response.allowed,
        status: response.status,
        patch,
        patch_type,
        warnings: response.warnings.unwrap_or_default(),
    })
}

/// The answer to a request that a webhook has refused.
pub fn refusal(webhook: &str, status: Option<Value>) -> Status {
    let denied = format!("admission webhook {} denied the request", quote(webhook));
    let status = status.and_then(|s| serde_json::from_value::<Status>(s).ok());
    let mut status = status.unwrap_or_else(|| Status::failure(0, "", ""));
    status.code = status.code.max(400);
    if matches!(status.status.as_str(), "" | "Success") {
        status.status = "Failure".into();
    }
    status.message = match (status.message.as_str(), status.reason.as_str()) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value) -> Result<Verdict, String> {
        let review =
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        read(review.to_string().as_bytes(), "u", "v1", true)
    }

    #[test]
    fn answers() {
        assert!(answer(json!({"uid": "u", "allowed": true})).unwrap().allowed);
        for (response, why) in [
            (Value::Null, "webhook response was absent"),
            (json!({"uid": "x"}), "expected response.uid=\"u\", got \"x\""),
            (
                json!({"uid": "u", "patch": "W10="}),
                "webhook returned response.patch but not response.patchType",
            ),
            (
                json!({"uid": "u", "patchType": "JSONPatch"}),
                "webhook returned response.patchType but not response.patch",
            ),
        ] {
            assert_eq!(answer(response).unwrap_err(), why);
        }
        assert_eq!(
            answer(json!({"uid": "u", "patch": "W10=", "patchType": "JSONPatch"})).unwrap().patch,
            b"[]"
        );
        assert!(read(b"no", "u", "v1", true).is_err());
        let beta = json!({"response": {"allowed": true}}).to_string();
        assert!(read(beta.as_bytes(), "u", "v1beta1", false).unwrap().allowed);
    }

    #[test]
    fn refusals() {
        assert_eq!(
            refusal("w", None).message,
            "admission webhook \"w\" denied the request without explanation"
        );
        let status = refusal("w", Some(json!({"message": "no", "code": 403, "reason": "Forbidden"})));
        assert_eq!(
            (status.message.as_str(), status.code, status.status.as_str()),
            ("admission webhook \"w\" denied the request: no", 403, "Failure")
        );
        assert_eq!(refusal("w", Some(json!({"code": 200}))).code, 400);
    }
}
