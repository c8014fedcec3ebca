//! The model as a `tower` service below a real [`kube::Client`].

use std::convert::Infallible;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio_stream_lite::unfold_log;

use super::model::{Kind, Model, Refusal, Shared};
use crate::object::Key;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The kinds that discovery shows: group, version, plural, kind, namespaced.
pub const KINDS: &[(&str, &str, &str, &str, bool)] = &[
    ("", "v1", "pods", "Pod", true),
    ("", "v1", "nodes", "Node", false),
    ("", "v1", "namespaces", "Namespace", false),
    ("", "v1", "configmaps", "ConfigMap", true),
    ("", "v1", "secrets", "Secret", true),
    ("", "v1", "services", "Service", true),
    ("", "v1", "endpoints", "Endpoints", true),
    ("", "v1", "events", "Event", true),
    ("", "v1", "serviceaccounts", "ServiceAccount", true),
    ("", "v1", "replicationcontrollers", "ReplicationController", true),
    ("apps", "v1", "replicasets", "ReplicaSet", true),
    ("apps", "v1", "deployments", "Deployment", true),
    ("apps", "v1", "statefulsets", "StatefulSet", true),
    ("apps", "v1", "daemonsets", "DaemonSet", true),
    ("batch", "v1", "jobs", "Job", true),
    ("batch", "v1", "cronjobs", "CronJob", true),
    ("coordination.k8s.io", "v1", "leases", "Lease", true),
    ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", false),
    ("certificates.k8s.io", "v1", "certificatesigningrequests", "CertificateSigningRequest", false),
];

/// A client of the model.
pub fn client(model: Shared) -> kube::Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let model = model.clone();
        async move { Ok::<_, Infallible>(serve(&model, request).await) }
    });
    kube::Client::new(service, "default")
}

async fn serve(model: &Shared, request: Request<Body>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let accept = parts.headers.get("accept").and_then(|a| a.to_str().ok()).unwrap_or_default();
    let meta_only = accept.contains("PartialObjectMetadata");
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let param =
        |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str()).unwrap_or_default();

    let path: Vec<&str> = parts.uri.path().split('/').filter(|s| !s.is_empty()).collect();
    if let Some(list) = discovery(&path) {
        return reply(200, &list);
    }
    let Some((kind, key, sub)) = route(&path) else {
        return refusal(&(404, "NotFound", "no such path".into()));
    };
    if param("watch") == "true" {
        return watch(model, kind, &key, param, meta_only);
    }
    let mut model = model.lock();
    let result = match (&parts.method, key.name.is_empty()) {
        (&Method::GET, true) => list(&mut model, &kind, &key, param, meta_only),
        (&Method::GET, false) => model
            .fault("get", &kind.1)
            .and_then(|()| model.read_sub(&kind, &key, &sub))
            .map(|o| shown(&o, meta_only)),
        (&Method::POST, _) => {
            model.fault("create", &kind.1).and_then(|()| model.create(&kind, &key.namespace, body))
        }
        (&Method::PUT, _) => {
            model.fault("update", &kind.1).and_then(|()| model.update(&kind, &key, &sub, body))
        }
        (&Method::PATCH, _) => {
            model.fault("patch", &kind.1).and_then(|()| model.patch(&kind, &key, &sub, &body))
        }
        (&Method::DELETE, false) => {
            model.fault("delete", &kind.1).and_then(|()| model.delete(&kind, &key, &body))
        }
        (&Method::DELETE, true) => {
            let keys: Vec<Key> =
                model.raw(&kind).map(|(k, _)| k.clone()).filter(|k| k.namespace == key.namespace).collect();
            for key in keys {
                let _ = model.delete(&kind, &key, &body);
            }
            Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
        }
        _ => Err((405, "MethodNotAllowed", String::new())),
    };
    match result {
        Ok(object) => reply(200, &object),
        Err(refused) => refusal(&refused),
    }
}

fn route(path: &[&str]) -> Option<(Kind, Key, String)> {
    let (group, rest) = match path {
        ["api", _, rest @ ..] => (String::new(), rest),
        ["apis", group, _, rest @ ..] => ((*group).to_owned(), rest),
        _ => return None,
    };
    let own = |s: &str| s.to_owned();
    match rest {
        ["namespaces", name, sub @ ("finalize" | "status")] => {
            Some(((group, own("namespaces")), Key::cluster(*name), own(sub)))
        }
        ["namespaces", namespace, plural, rest @ ..] => {
            let name = rest.first().copied().unwrap_or_default();
            Some(((group, own(plural)), Key::new(*namespace, name), own(rest.get(1).unwrap_or(&""))))
        }
        [plural, rest @ ..] => {
            let name = rest.first().copied().unwrap_or_default();
            Some(((group, own(plural)), Key::cluster(name), own(rest.get(1).unwrap_or(&""))))
        }
        [] => None,
    }
}

/// Whether an object is in a collection's namespace and matches the field selectors that caches use.
fn selected(kind: &Kind, key: &Key, fields: &str, object_key: &Key, object: &Value) -> bool {
    let _ = kind;
    (key.namespace.is_empty() || key.namespace == object_key.namespace)
        && fields.split(',').filter(|f| !f.is_empty()).all(|field| match field.split_once('=') {
            Some(("metadata.name", v)) => object_key.name == v,
            Some(("metadata.namespace", v)) => object_key.namespace == v,
            Some((top, v)) => object[top] == v,
            None => false,
        })
}

fn list<'a>(
    model: &mut Model,
    kind: &Kind,
    key: &Key,
    param: impl Fn(&str) -> &'a str,
    meta_only: bool,
) -> Result<Value, Refusal> {
    model.fault("list", &kind.1)?;
    let items: Vec<Value> = model
        .raw(kind)
        .filter(|(k, o)| selected(kind, key, param("fieldSelector"), k, o))
        .map(|(_, o)| shown(o, meta_only))
        .collect();
    let list_kind = KINDS.iter().find(|k| k.2 == kind.1).map_or("List".into(), |k| format!("{}List", k.3));
    Ok(json!({
        "apiVersion": "v1", "kind": list_kind, "items": items,
        "metadata": {"resourceVersion": model.version().to_string()},
    }))
}

fn watch<'a>(
    model: &Shared,
    kind: Kind,
    key: &Key,
    param: impl Fn(&str) -> &'a str,
    meta_only: bool,
) -> Answer {
    let from: usize = param("resourceVersion").parse().unwrap_or(0);
    let (fields, key) = (param("fieldSelector").to_owned(), key.clone());
    let lines = unfold_log(model.clone(), from).filter_map(move |event| {
        let name = |f: &str| event.object["metadata"][f].as_str().unwrap_or_default().to_owned();
        let object_key = Key::new(name("namespace"), name("name"));
        let wanted = event.kind == kind && selected(&kind, &key, &fields, &object_key, &event.object);
        let line = wanted.then(|| {
            let event = json!({"type": event.what, "object": shown(&event.object, meta_only)});
            Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(format!("{event}\n"))))
        });
        std::future::ready(line)
    });
    Response::builder()
        .header("content-type", "application/json")
        .body(StreamBody::new(lines).boxed_unsync())
        .expect("a response")
}

fn shown(object: &Value, meta_only: bool) -> Value {
    if !meta_only {
        return object.clone();
    }
    json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"],
    })
}

fn discovery(path: &[&str]) -> Option<Value> {
    let core = match path {
        ["api"] => true,
        ["apis"] => false,
        _ => return None,
    };
    let mut groups: Vec<Value> = Vec::new();
    for (group, version, plural, kind, namespaced) in KINDS.iter().filter(|k| k.0.is_empty() == core) {
        let resource = json!({
            "resource": plural, "singularResource": kind.to_lowercase(),
            "responseKind": {"group": group, "version": version, "kind": kind},
            "scope": if *namespaced { "Namespaced" } else { "Cluster" },
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        });
        match groups.iter_mut().find(|g| g["metadata"]["name"] == *group) {
            Some(g) => {
                if let Some(resources) = g["versions"][0]["resources"].as_array_mut() {
                    resources.push(resource);
                }
            }
            None => groups.push(json!({
                "metadata": {"name": group},
                "versions": [{"version": version, "freshness": "Current", "resources": [resource]}],
            })),
        }
    }
    Some(json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": groups}))
}

fn reply(code: u16, object: &Value) -> Answer {
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(object.to_string())).boxed_unsync())
        .expect("a response")
}

fn refusal((code, reason, message): &Refusal) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    reply(*code, &status)
}

mod tokio_stream_lite {
    //! The model's log as a stream that waits for what comes.

    use crate::testing::model::{Logged, Shared};
    use futures::Stream;

    pub fn unfold_log(model: Shared, from: usize) -> impl Stream<Item = Logged> + Send {
        let progress = model.lock().progress.subscribe();
        futures::stream::unfold((model, progress, from), |(model, mut progress, next)| async move {
            loop {
                let event = model.lock().log.get(next).cloned();
                match event {
                    Some(event) => return Some((event, (model, progress, next + 1))),
                    None => progress.changed().await.ok()?,
                }
            }
        })
    }
}
