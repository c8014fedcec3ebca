//! From arbitrary bytes to requests.

use hawser_apiserver::body::Body;
use http::{Method, Request};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::{Value, json};

use crate::Target;

/// Collections that bodies are posted to; a body's first byte chooses.
const COLLECTIONS: &[&str] = &[
    "/api/v1/namespaces/default/configmaps",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces/default/services",
    "/apis/apps/v1/namespaces/default/deployments",
    "/apis/batch/v1/namespaces/default/cronjobs",
    "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
    "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
    "/api/v1/namespaces/default/events",
    "/api/v1/nodes",
    "/api/v1/namespaces/default/secrets",
    "/apis/authorization.k8s.io/v1/subjectaccessreviews",
    "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
];

/// Ways that fields are checked.
const VALIDATION: &[&str] = &["Strict", "Warn", "Ignore"];

/// Objects that patches are sent to.
const PATCHED: &[&str] = &[
    "/api/v1/namespaces/default/configmaps/seed",
    "/api/v1/namespaces/default/pods/seed",
    "/api/v1/namespaces/default/services/seed",
    "/apis/apps/v1/namespaces/default/deployments/seed",
    "/apis/apps/v1/namespaces/default/deployments/seed/scale",
    "/api/v1/namespaces/default/pods/seed/status",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/seeds.fuzz.test",
];

const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// The objects of [`PATCHED`] and where they are posted.
pub fn seeds() -> Vec<(&'static str, Value)> {
    let template = json!({"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}});
    vec![
        (
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}}),
        ),
        (
            COLLECTIONS[0],
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "seed"}, "data": {"a": "b"}}),
        ),
        (
            COLLECTIONS[1],
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "seed"}, "spec": template["spec"]}),
        ),
        (
            COLLECTIONS[2],
            json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "seed"},
                "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}}),
        ),
        (
            COLLECTIONS[3],
            json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "seed"},
                "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}),
        ),
        (
            COLLECTIONS[7],
            json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
                "metadata": {"name": "seeds.fuzz.test"},
                "spec": {"group": "fuzz.test", "scope": "Namespaced", "names": {"plural": "seeds", "kind": "Seed"},
                    "versions": [{"name": "v1", "served": true, "storage": true,
                        "schema": {"openAPIV3Schema": {"type": "object",
                            "x-kubernetes-preserve-unknown-fields": true}}}]}}),
        ),
    ]
}

fn choose<'a>(from: &[&'a str], by: u8) -> &'a str {
    from.get(usize::from(by) % from.len().max(1)).copied().unwrap_or_default()
}

/// The request that the bytes make; None when they make none.
pub fn of(target: Target, data: &[u8]) -> Option<Request<Body>> {
    match target {
        Target::Request => request(data),
        Target::Json => body(data, "application/json"),
        Target::Yaml => body(data, "application/yaml"),
        Target::Protobuf => body(data, "application/vnd.kubernetes.protobuf"),
        Target::Patch => patch(data),
        Target::Selector => selector(data),
    }
}

/// A request as on the wire: `METHOD URL`, lines of headers, an empty line, the body.
fn request(data: &[u8]) -> Option<Request<Body>> {
    let mut rest = data;
    let mut line = || {
        let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        line
    };
    let first = line();
    let space = first.iter().position(|b| *b == b' ')?;
    let (method, uri) = first.split_at(space);
    let mut request = Request::builder().method(Method::from_bytes(method).ok()?).uri(uri.get(1..)?);
    loop {
        let header = line();
        if header.is_empty() {
            break;
        }
        let colon = header.iter().position(|b| *b == b':')?;
        let (name, value) = header.split_at(colon);
        request = request.header(name, value.get(1..)?.trim_ascii());
    }
    request.body(Body::from(rest.to_vec())).ok()
}

/// A dry run, so that nothing piles up.
fn body(data: &[u8], content_type: &str) -> Option<Request<Body>> {
    let (which, body) = data.split_first()?;
    let path = choose(COLLECTIONS, *which);
    let validation = choose(VALIDATION, which / 16);
    Request::post(format!("{path}?dryRun=All&fieldValidation={validation}"))
        .header("content-type", content_type)
        .body(Body::from(body.to_vec()))
        .ok()
}

fn patch(data: &[u8]) -> Option<Request<Body>> {
    let (which, body) = data.split_first()?;
    let path = choose(PATCHED, which / 4);
    let validation = choose(VALIDATION, which / 32);
    Request::patch(format!("{path}?dryRun=All&fieldManager=fuzz&force=true&fieldValidation={validation}"))
        .header("content-type", choose(PATCHES, *which))
        .body(Body::from(body.to_vec()))
        .ok()
}

/// Lines: label selector, field selector, continue token, resourceVersion and its match.
fn selector(data: &[u8]) -> Option<Request<Body>> {
    let (which, rest) = data.split_first()?;
    let names =
        ["labelSelector", "fieldSelector", "continue", "resourceVersion", "resourceVersionMatch", "limit"];
    let mut query = String::new();
    for (name, value) in names.iter().zip(rest.split(|b| *b == b'\n')) {
        // Revisions to come would only be waited for.
        let to_come = std::str::from_utf8(value).is_ok_and(|v| v.parse::<u64>().is_ok_and(|v| v > 1_000));
        if !value.is_empty() && !to_come {
            query += &format!("&{name}={}", percent_encode(value, NON_ALPHANUMERIC));
        }
    }
    let watch = if which % 2 == 0 { "" } else { "&watch=1&timeoutSeconds=1" };
    let path = choose(COLLECTIONS, which / 2);
    Request::get(format!("{path}?a=b{watch}{query}")).body(Body::Empty).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_requests() {
        let got = of(Target::Request, b"GET /api/v1/pods?watch=1\naccept: x\n\nbody").expect("a request");
        assert_eq!((got.method(), got.uri().query()), (&Method::GET, Some("watch=1")));
        assert_eq!(got.headers()["accept"], "x");
        assert!(of(Target::Request, b"\xff").is_none());
        let got = of(Target::Patch, b"\x03{}").expect("a request");
        assert_eq!(got.headers()["content-type"], "application/apply-patch+yaml");
        let got = of(Target::Selector, b"\x01a=b\n\nx").expect("a request");
        assert!(got.uri().query().is_some_and(|q| q.ends_with("labelSelector=a%3Db&continue=x")));
    }
}
