//! A small API server in memory: a tower service for `kube::Client`, with list, watch, the patch types, graceful pod
//! deletion, TokenRequests and reviews. It knows as much of Kubernetes as a kubelet sees.

use bytes::Bytes;
use hawser_api::{kinds, patch, schema, selector::FieldSelector};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast;

type Key = (String, String, String);
pub type Out = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

struct Inner {
    objects: BTreeMap<Key, Value>,
    revision: u64,
    /// Watch events: resource, type, object.
    events: broadcast::Sender<(String, &'static str, Value)>,
    /// Every event since the beginning, with its revision, for watches from a revision.
    history: Vec<(u64, String, &'static str, Value)>,
}

#[derive(Clone)]
pub struct Api(Arc<Mutex<Inner>>);

struct Call {
    resource: String,
    kind: &'static Arc<kinds::Kind>,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
}

impl Api {
    pub fn new() -> Api {
        let events = broadcast::channel(4096).0;
        let inner = Inner { objects: BTreeMap::new(), revision: 1, events, history: Vec::new() };
        let api = Api(Arc::new(Mutex::new(inner)));
        api.put("/api/v1/namespaces/default/services", json!({
            "metadata": {"name": "kubernetes"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}
        }));
        api.put(
            "/api/v1/namespaces/default/configmaps",
            json!({
                "metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "CA"}
            }),
        );
        api
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Creates an object as a client would, and answers with it.
    pub fn put(&self, path: &str, object: Value) -> Value {
        let call = parse(path).unwrap();
        self.create(&call, object).unwrap()
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0.lock().objects.get(&key(resource, namespace, name)).cloned()
    }

    pub fn list(&self, resource: &str) -> Vec<Value> {
        self.0.lock().objects.iter().filter(|(k, _)| k.0 == resource).map(|(_, v)| v.clone()).collect()
    }

    /// Changes an object.
    pub fn edit(&self, resource: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut inner = self.0.lock();
        let mut object = inner.objects[&key(resource, namespace, name)].clone();
        change(&mut object);
        inner.store(resource, "MODIFIED", object);
    }

    pub fn delete(&self, resource: &str, namespace: &str, name: &str, grace: Option<i64>) {
        self.remove(resource, namespace, name, grace);
    }

    /// Waits until a condition holds for an object, for at most 10 s.
    pub async fn wait<T>(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        mut found: impl FnMut(Option<&Value>) -> Option<T>,
    ) -> T {
        let mut events = self.0.lock().events.subscribe();
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let now = self.get(resource, namespace, name);
            if let Some(t) = found(now.as_ref()) {
                return t;
            }
            match tokio::time::timeout_at(deadline, events.recv()).await {
                Ok(_) => {}
                Err(_) => panic!("timed out; {resource} {namespace}/{name} is {now:#?}"),
            }
        }
    }

    /// Every change from now on: resource, type, object.
    pub fn events(&self) -> broadcast::Receiver<(String, &'static str, Value)> {
        self.0.lock().events.subscribe()
    }

    /// The answer to a client that is nobody.
    pub fn forbidden() -> Out {
        failure(401, "Unauthorized", "Unauthorized")
    }

    pub async fn answer(&self, request: Request<Body>) -> Out {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let query: BTreeMap<String, String> =
            url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let Some(call) = parse(head.uri.path()) else {
            return failure(404, "NotFound", head.uri.path());
        };
        let object = || serde_json::from_slice::<Value>(&body).unwrap();
        let content = head.headers.get("content-type").and_then(|c| c.to_str().ok()).unwrap_or_default();
        let done = match (&head.method, &call.name, call.subresource.as_deref()) {
            (&Method::GET, None, _) if query.get("watch").is_some_and(|w| w == "true") => {
                return self.watch(&call, &query);
            }
            (&Method::GET, None, _) => Ok(self.collection(&call, &query)),
            (&Method::GET, Some(name), _) => {
                self.get(&call.resource, &call.namespace, name).ok_or((404, "NotFound".to_owned()))
            }
            (&Method::POST, _, _) => self.create(&call, object()),
            (&Method::PATCH, Some(name), sub) => self.patch(&call, name, sub, content, object()),
            (&Method::PUT, Some(name), _) => self.replace(&call, name, object()),
            (&Method::DELETE, Some(name), _) => {
                let options: Value = serde_json::from_slice(&body).unwrap_or_default();
                let grace = options["gracePeriodSeconds"].as_i64();
                let uid = options["preconditions"]["uid"].as_str().map(str::to_owned);
                let now = self.get(&call.resource, &call.namespace, name);
                match (now, uid) {
                    (None, _) => Err((404, "NotFound".to_owned())),
                    (Some(o), Some(uid)) if o["metadata"]["uid"] != json!(uid) => {
                        Err((409, "Conflict".to_owned()))
                    }
                    _ => Ok(self.remove(&call.resource, &call.namespace, name, grace)),
                }
            }
            other => panic!("{other:?}"),
        };
        match done {
            Ok(value) => respond(200, value),
            Err((code, reason)) => failure(code, &reason, "no"),
        }
    }

    fn create(&self, call: &Call, mut object: Value) -> Result<Value, (u16, String)> {
        match (call.resource.as_str(), call.subresource.as_deref()) {
            ("serviceaccounts", Some("token")) => {
                let name = call.name.clone().unwrap();
                object["status"] = json!({
                    "token": format!("token-of-{name}"), "expirationTimestamp": "2200-01-01T00:00:00Z"});
                return Ok(object);
            }
            ("subjectaccessreviews", _) => {
                let admin =
                    object["spec"]["groups"].as_array().is_some_and(|g| g.contains(&json!("system:masters")));
                object["status"] = json!({"allowed": admin || object["spec"]["user"] == "reader"});
                return Ok(object);
            }
            ("tokenreviews", _) => {
                let good = object["spec"]["token"] == "good";
                object["status"] =
                    json!({"authenticated": good, "user": {"username": "reader", "groups": []}});
                return Ok(object);
            }
            _ => {}
        }
        let mut inner = self.0.lock();
        let name = match object["metadata"]["name"].as_str() {
            Some(n) => n.to_owned(),
            None => format!(
                "{}{}",
                object["metadata"]["generateName"].as_str().unwrap_or_default(),
                inner.revision
            ),
        };
        if inner.objects.contains_key(&key(&call.resource, &call.namespace, &name)) {
            return Err((409, "AlreadyExists".to_owned()));
        }
        let uid = format!("uid-{}-{}", call.resource, inner.revision);
        object["apiVersion"] = json!(call.kind.api_version());
        object["kind"] = json!(call.kind.kind);
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!(call.namespace);
        object["metadata"]["uid"] = json!(uid);
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] = json!(jiff::Timestamp::now().to_string());
        Ok(inner.store(&call.resource, "ADDED", object))
    }

    fn patch(
        &self,
        call: &Call,
        name: &str,
        sub: Option<&str>,
        content: &str,
        change: Value,
    ) -> Result<Value, (u16, String)> {
        let mut inner = self.0.lock();
        let k = key(&call.resource, &call.namespace, name);
        let Some(old) = inner.objects.get(&k).cloned() else { return Err((404, "NotFound".to_owned())) };
        let asked = &change["metadata"]["uid"];
        if !asked.is_null() && *asked != old["metadata"]["uid"] {
            return Err((409, "Conflict".to_owned()));
        }
        let mut new = match content {
            "application/strategic-merge-patch+json" => {
                let ty = schema::of(call.kind).expect("a type for the kind");
                patch::strategic_merge(ty, &old, &change).map_err(|e| (400, e.to_string()))?
            }
            "application/merge-patch+json" => {
                let mut new = old.clone();
                patch::merge(&mut new, &change);
                new
            }
            other => panic!("{other}"),
        };
        if sub == Some("status") {
            let status = new["status"].take();
            new = old;
            new["status"] = status;
        }
        Ok(inner.store(&call.resource, "MODIFIED", new))
    }

    fn replace(&self, call: &Call, name: &str, object: Value) -> Result<Value, (u16, String)> {
        let mut inner = self.0.lock();
        let k = key(&call.resource, &call.namespace, name);
        let Some(old) = inner.objects.get(&k) else { return Err((404, "NotFound".to_owned())) };
        if object["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"] {
            return Err((409, "Conflict".to_owned()));
        }
        Ok(inner.store(&call.resource, "MODIFIED", object))
    }

    fn remove(&self, resource: &str, namespace: &str, name: &str, grace: Option<i64>) -> Value {
        let mut inner = self.0.lock();
        let k = key(resource, namespace, name);
        let mut object = inner.objects[&k].clone();
        let grace = grace.or(object["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
        if resource == "pods" && grace > 0 {
            object["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::now().to_string());
            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            return inner.store(resource, "MODIFIED", object);
        }
        let object = inner.store(resource, "DELETED", object);
        inner.objects.remove(&k);
        object
    }

    fn selector(call: &Call, query: &BTreeMap<String, String>) -> Option<FieldSelector> {
        let text = query.get("fieldSelector").filter(|t| !t.is_empty())?;
        Some(FieldSelector::parse(text, call.kind).unwrap())
    }

    fn collection(&self, call: &Call, query: &BTreeMap<String, String>) -> Value {
        let selector = Api::selector(call, query);
        let inner = self.0.lock();
        let items: Vec<&Value> = inner
            .objects
            .iter()
            .filter(|(k, _)| k.0 == call.resource && (call.namespace.is_empty() || k.1 == call.namespace))
            .map(|(_, v)| v)
            .filter(|v| selector.as_ref().is_none_or(|s| s.matches(v)))
            .collect();
        json!({
            "kind": format!("{}List", call.kind.kind), "apiVersion": call.kind.api_version(),
            "metadata": {"resourceVersion": inner.revision.to_string()}, "items": items
        })
    }

    fn watch(&self, call: &Call, query: &BTreeMap<String, String>) -> Out {
        let from: u64 = query.get("resourceVersion").and_then(|r| r.parse().ok()).unwrap_or(0);
        let selector = Api::selector(call, query);
        let (resource, namespace) = (call.resource.clone(), call.namespace.clone());
        let fits = move |r: &str, o: &Value| {
            r == resource
                && (namespace.is_empty() || o["metadata"]["namespace"] == json!(namespace))
                && selector.as_ref().is_none_or(|s| s.matches(o))
        };
        let line = |t: &str, o: &Value| Bytes::from(json!({"type": t, "object": o}).to_string() + "\n");
        let inner = self.0.lock();
        let old: Vec<Bytes> = inner
            .history
            .iter()
            .filter(|(rev, r, _, o)| *rev > from && fits(r, o))
            .map(|(_, _, t, o)| line(t, o))
            .collect();
        let mut events = inner.events.subscribe();
        drop(inner);
        let (tx, rx) = tokio::sync::mpsc::channel::<Bytes>(256);
        tokio::spawn(async move {
            for b in old {
                if tx.send(b).await.is_err() {
                    return;
                }
            }
            loop {
                let event = tokio::select! { e = events.recv() => e, () = tx.closed() => return };
                let Ok((r, t, o)) = event else { return };
                if fits(&r, &o) && tx.send(line(t, &o)).await.is_err() {
                    return;
                }
            }
        });
        let stream = tokio_stream::wrappers::ReceiverStream::new(rx);
        let frames = futures::StreamExt::map(stream, |b| Ok::<_, Infallible>(Frame::data(b)));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

impl Inner {
    fn store(&mut self, resource: &str, event: &'static str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let text = |f: &str| object["metadata"][f].as_str().unwrap_or_default().to_owned();
        let k = key(resource, &text("namespace"), &text("name"));
        self.objects.insert(k, object.clone());
        self.history.push((self.revision, resource.to_owned(), event, object.clone()));
        let _ = self.events.send((resource.to_owned(), event, object.clone()));
        object
    }
}

fn key(resource: &str, namespace: &str, name: &str) -> Key {
    (resource.to_owned(), namespace.to_owned(), name.to_owned())
}

fn parse(path: &str) -> Option<Call> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (resource, rest) = rest.split_first()?;
    Some(Call {
        kind: kinds::find(group, version, resource)?,
        resource: (*resource).to_owned(),
        namespace: namespace.to_owned(),
        name: rest.first().map(|n| (*n).to_owned()),
        subresource: rest.get(1).map(|n| (*n).to_owned()),
    })
}

fn respond(code: u16, value: Value) -> Out {
    let body = http_body_util::Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn failure(code: u16, reason: &str, message: &str) -> Out {
    respond(
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message}),
    )
}
