//! A tiny API server in memory: lists and watches, which is all that the agent asks for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

type Body = UnsyncBoxBody<tonic::codegen::Bytes, Infallible>;

/// Objects by path of their collection, and everything that ever happened to them.
#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    version: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    log: Vec<(u64, String, Value)>,
}

fn kind_of(collection: &str) -> (&'static str, &'static str) {
    match collection {
        "services" => ("v1", "Service"),
        "nodes" => ("v1", "Node"),
        "endpointslices" => ("discovery.k8s.io/v1", "EndpointSlice"),
        other => panic!("no such collection: {other}"),
    }
}

impl FakeApi {
    /// An empty one.
    pub fn new() -> Self {
        Self { state: Arc::default(), version: Arc::new(watch::Sender::new(0)) }
    }

    /// Creates or replaces an object.
    pub fn put(&self, collection: &str, mut object: Value) {
        let mut state = self.state.lock();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let (api_version, kind) = kind_of(collection);
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        let name = object["metadata"]["name"].as_str().expect("a name").to_string();
        let old = state.objects.insert((collection.to_string(), name), object.clone());
        let event = if old.is_some() { "MODIFIED" } else { "ADDED" };
        state.log.push((version, collection.to_string(), json!({"type": event, "object": object})));
        drop(state);
        self.version.send_replace(version);
    }

    /// Deletes an object.
    pub fn delete(&self, collection: &str, name: &str) {
        let mut state = self.state.lock();
        state.version += 1;
        let version = state.version;
        let mut object =
            state.objects.remove(&(collection.to_string(), name.to_string())).expect("an object");
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        state.log.push((version, collection.to_string(), json!({"type": "DELETED", "object": object})));
        drop(state);
        self.version.send_replace(version);
    }

    /// Everything that is there, with its collection.
    pub fn objects(&self) -> Vec<(String, Value)> {
        let state = self.state.lock();
        state.objects.iter().map(|((collection, _), object)| (collection.clone(), object.clone())).collect()
    }

    /// A client of it.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(&request)) }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, request: &Request<kube::client::Body>) -> Response<Body> {
        let collection = request.uri().path().rsplit('/').next().unwrap_or_default().to_string();
        let query = request.uri().query().unwrap_or_default();
        let body = if query.contains("watch=true") {
            let version = query
                .split('&')
                .find_map(|part| part.strip_prefix("resourceVersion="))
                .and_then(|version| version.parse().ok())
                .unwrap_or(0);
            self.watch(collection, version)
        } else {
            self.list(&collection)
        };
        Response::builder().header("content-type", "application/json").body(body).expect("a response")
    }

    fn list(&self, collection: &str) -> Body {
        let state = self.state.lock();
        let (api_version, kind) = kind_of(collection);
        let items: Vec<&Value> =
            state.objects.iter().filter(|((c, _), _)| c == collection).map(|(_, o)| o).collect();
        let list = json!({
            "apiVersion": api_version,
            "kind": format!("{kind}List"),
            "metadata": {"resourceVersion": state.version.to_string()},
            "items": items,
        });
        Full::new(list.to_string().into()).boxed_unsync()
    }

    fn watch(&self, collection: String, from: u64) -> Body {
        let state = self.state.clone();
        let versions = self.version.subscribe();
        let stream = futures::stream::unfold((from, versions), move |(seen, mut versions)| {
            let state = state.clone();
            let collection = collection.clone();
            async move {
                loop {
                    let next = {
                        let state = state.lock();
                        let start = state.log.partition_point(|(version, _, _)| *version <= seen);
                        state.log[start..]
                            .iter()
                            .find(|(_, c, _)| *c == collection)
                            .map(|(v, _, e)| (*v, format!("{e}\n")))
                    };
                    if let Some((version, event)) = next {
                        return Some((Ok::<_, Infallible>(Frame::data(event.into())), (version, versions)));
                    }
                    versions.changed().await.ok()?;
                }
            }
        });
        StreamBody::new(stream).boxed_unsync()
    }
}
