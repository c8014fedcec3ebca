//! A server in process with the memory engine, whose access control allows everything: for tests only.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hawser_apiserver::access::{
    Access, AccessBuilder, Admission, Attributes, Authenticator, AuthnError, Authorization, Authorizer,
    Decision, Host, Identity, UserInfo,
};
use hawser_apiserver::admission;
use hawser_apiserver::authz::follow::{follow_nodes, follow_rbac};
use hawser_apiserver::authz::node::NodeAuthorizer;
use hawser_apiserver::authz::{Authorizers, RbacAuthorizer};
use hawser_apiserver::body::Body;
use hawser_apiserver::bootstrap::objects::bootstrap_objects;
use hawser_apiserver::in_process::InProcessService;
use hawser_apiserver::{ApiServer, Config};
use hawser_storage::Storage;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tower::ServiceExt as _;

struct Everybody;

#[async_trait]
impl Authenticator for Everybody {
    fn connection(&self, _: &[CertificateDer<'static>]) -> Option<Arc<UserInfo>> {
        None
    }
    async fn authenticate(
        &self,
        _: &http::HeaderMap,
        _: Option<&Arc<UserInfo>>,
    ) -> Result<Option<Identity>, AuthnError> {
        Ok(None)
    }
}

#[async_trait]
impl Authorizer for Everybody {
    async fn authorize(&self, _: &Attributes<'_>) -> Authorization {
        Authorization::new(Decision::Allow, "a test")
    }
}

/// Access control that allows everything and admits everything.
pub struct AllowAll;

#[async_trait]
impl AccessBuilder for AllowAll {
    async fn build(&self, _: Host) -> Result<Access, String> {
        Ok(everything(Vec::new()))
    }
}

fn everything(admission: Vec<Arc<dyn Admission>>) -> Access {
    Access {
        authenticator: Arc::new(Everybody),
        anonymous: true,
        authorizer: Arc::new(Everybody),
        admission,
        virtuals: Vec::new(),
        connectors: Vec::new(),
        usage: None,
        documents: Vec::new(),
        bootstrap: Vec::new(),
    }
}

/// Access control that allows everything, with all of admission.
pub struct Admitting;

#[async_trait]
impl AccessBuilder for Admitting {
    async fn build(&self, host: Host) -> Result<Access, String> {
        let (index, ready) = follow_rbac(&*host.reader, &host.stop).map_err(|e| e.to_string())?;
        let followed = follow_nodes(&*host.reader, &host.stop).map_err(|e| e.to_string())?;
        let node = NodeAuthorizer { followed, rules: Arc::from([]) };
        let authorizers = Arc::new(Authorizers { node, rbac: RbacAuthorizer { index, ready } });
        let bootstrap = bootstrap_objects("", false).map_err(|e| e.to_string())?;
        Ok(Access { bootstrap, ..everything(admission::plugins(&host, &authorizers)) })
    }
}

/// A server and a client of it.
pub struct Kit {
    pub server: ApiServer,
    pub service: InProcessService,
}

/// An answer.
#[derive(Debug)]
pub struct Got {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Got {
    /// The body, which must have come with this code.
    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{:#}", self.body);
        self.body
    }
}

impl Kit {
    pub async fn new() -> Self {
        Self::with(Arc::new(hawser_storage::memory::Memory::new()), &[]).await
    }

    /// A server over some storage that also serves these group versions.
    pub async fn with(storage: Arc<dyn Storage>, versions: &[String]) -> Self {
        let mut config = Config::new(Arc::new(AllowAll));
        config.runtime_config = versions.to_vec();
        Self::start(config, storage).await
    }

    /// A server with all of admission.
    pub async fn admitting() -> Self {
        let storage = Arc::new(hawser_storage::memory::Memory::new());
        Self::start(Config::new(Arc::new(Admitting)), storage).await
    }

    async fn start(config: Config, storage: Arc<dyn Storage>) -> Self {
        let server = ApiServer::start(config, storage).await.expect("the server starts");
        let service = server.in_process(UserInfo::new("tester", ["system:masters"]));
        Self { server, service }
    }

    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map_or(Body::Empty, Body::from);
        let request = request.body(body).expect("a request");
        let Ok(response) = self.service.clone().oneshot(request).await;
        response
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Got {
        let bytes = body.map(|b| serde_json::to_vec(b).expect("json"));
        let response = self.raw(method, path, headers, bytes).await;
        let (code, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.into_body().collect(1 << 26).await.expect("a body");
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        Got { code, headers, body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) }
    }

    pub async fn get(&self, path: &str) -> Got {
        self.send(Method::GET, path, &[], None).await
    }
    pub async fn get_as(&self, path: &str, accept: &str) -> Got {
        self.send(Method::GET, path, &[("accept", accept)], None).await
    }
    pub async fn post(&self, path: &str, body: &Value) -> Got {
        self.send(Method::POST, path, &[("content-type", "application/json")], Some(body)).await
    }
    pub async fn put(&self, path: &str, body: &Value) -> Got {
        self.send(Method::PUT, path, &[("content-type", "application/json")], Some(body)).await
    }
    pub async fn delete(&self, path: &str) -> Got {
        self.send(Method::DELETE, path, &[], None).await
    }
    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Got {
        let media = format!("application/{kind}-patch+json");
        self.send(Method::PATCH, path, &[("content-type", &media)], Some(body)).await
    }
    pub async fn watch(&self, path: &str) -> Events {
        let response = self.raw(Method::GET, path, &[], None).await;
        assert_eq!(response.status(), 200, "{path}");
        Events { body: response.into_body(), rest: Vec::new(), waiting: Default::default() }
    }
}

/// The events of a watch.
pub struct Events {
    body: Body,
    rest: Vec<u8>,
    waiting: std::collections::VecDeque<Value>,
}

impl Events {
    /// The next event; None at the end. A watch that stays quiet for ten seconds is a failure.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame());
            let frame: Bytes = match frame.await.expect("an event in time")? {
                Ok(frame) => frame.into_data().expect("data"),
                Err(e) => panic!("{e}"),
            };
            self.rest.extend_from_slice(&frame);
            while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                self.waiting.push_back(serde_json::from_slice(&line).expect("an event"));
            }
        }
    }

    /// Type, name and resourceVersion of the next event.
    pub async fn brief(&mut self) -> Option<(String, String, String)> {
        self.next().await.map(|e| brief(&e))
    }

    /// All events up to the end.
    pub async fn all(mut self) -> Vec<(String, String, String)> {
        let mut out = Vec::new();
        while let Some(event) = self.brief().await {
            out.push(event);
        }
        out
    }
}

/// Type, name and resourceVersion of an event.
pub fn brief(event: &Value) -> (String, String, String) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let meta = &event["object"]["metadata"];
    (text(&event["type"]), text(&meta["name"]), text(&meta["resourceVersion"]))
}

/// An object's resourceVersion.
pub fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).expect("a resourceVersion")
}
