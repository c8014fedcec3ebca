//! Bad input against the whole request path: an API server in process, requests made of arbitrary bytes, and what every
//! answer must be. Both the coverage-guided targets in `fuzz/targets` (nightly, cargo-fuzz) and the loop of
//! `hawser-fuzz` (stable) call [`Harness::run`].
#![forbid(unsafe_code)]

pub mod mutate;
mod requests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use hawser_apiserver::access::UserInfo;
use hawser_apiserver::body::Body;
use hawser_apiserver::bootstrap::AccessConfig;
use hawser_apiserver::in_process::InProcessService;
use hawser_apiserver::pki::{Pki, PkiConfig};
use hawser_apiserver::{ApiServer, Config};
use hawser_storage::memory::Memory;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

/// What the bytes are made into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// Method, URL, query and headers
    Request,
    /// JSON bodies
    Json,
    /// YAML bodies
    Yaml,
    /// Kubernetes' protobuf
    Protobuf,
    /// JSON, merge and strategic patches, server-side apply
    Patch,
    /// Label and field selectors, continue tokens, resourceVersions
    Selector,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Request, Self::Json, Self::Yaml, Self::Protobuf, Self::Patch, Self::Selector];

    /// Name of its corpus.
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Json => "json",
            Self::Yaml => "yaml",
            Self::Protobuf => "protobuf",
            Self::Patch => "patch",
            Self::Selector => "selector",
        }
    }
}

/// How long an answer may take to begin and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the first event of a watch is waited for.
const PEEK: Duration = Duration::from_millis(1);
/// Largest answer that is read.
const MAX_ANSWER: usize = 64 << 20;

/// A server with the real admission and validation over a store in memory.
pub struct Harness {
    runtime: Runtime,
    _server: ApiServer,
    service: InProcessService,
    _keys: tempfile::TempDir,
}

impl Harness {
    /// Starts a server and puts the objects in place that patches are sent to.
    ///
    /// # Errors
    /// When the server does not start.
    pub fn new() -> Result<Self> {
        let keys = tempfile::tempdir()?;
        let pki = Arc::new(Pki::load_or_create(&PkiConfig::new(keys.path()), SystemTime::now())?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = Config::new(Arc::new(AccessConfig::new(pki)));
        let server = runtime.block_on(ApiServer::start(config, Arc::new(Memory::new())))?;
        let service = server.in_process(UserInfo::new("fuzz", ["system:masters"]));
        let harness = Harness { runtime, _server: server, service, _keys: keys };
        for (path, object) in requests::seeds() {
            let request = Request::post(path)
                .header("content-type", "application/json")
                .body(Body::from(object.to_string()))?;
            let code = harness.send(request).context("no answer")?;
            anyhow::ensure!(code == 201, "{path}: {code}");
        }
        Ok(harness)
    }

    /// Makes a request of the bytes and checks its answer. Bytes that are no request pass. The answer is the status.
    ///
    /// # Panics
    /// When the answer is not what bad input must get, and when the server panics: that is a finding.
    pub fn run(&self, target: Target, data: &[u8]) -> Option<u16> {
        self.send(requests::of(target, data)?)
    }

    fn send(&self, request: Request<Body>) -> Option<u16> {
        let line = format!("{} {}", request.method(), request.uri());
        let service = self.service.clone();
        self.runtime.block_on(async move {
            let answered = tokio::time::timeout(PATIENCE, service.oneshot(request)).await;
            let Ok(Ok(response)) = answered else { panic!("{line}: no answer within {PATIENCE:?}") };
            Some(judge(&line, response).await)
        })
    }
}

async fn judge(line: &str, response: Response<Body>) -> u16 {
    let code = response.status().as_u16();
    // A watch has no end of its own.
    if matches!(response.body(), Body::Stream(_)) {
        let mut body = response.into_body();
        if let Ok(Some(Err(e))) = tokio::time::timeout(PEEK, body.frame()).await {
            panic!("{line}: {e}");
        }
        return code;
    }
    let json =
        response.headers().get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    let body = text(response).await;
    if json {
        let value: Result<Value, _> = serde_json::from_str(&body);
        let value = value.unwrap_or_else(|e| panic!("{line}: {code} with broken JSON: {e}: {body}"));
        assert!(code != 500 || deliberate(&value), "{line}: 500: {body}");
        if code >= 400 {
            let told = value["message"].as_str().is_some_and(|m| !m.is_empty());
            assert!(told && value["kind"] == "Status", "{line}: {code} without a reason: {body}");
            assert_eq!(value["code"], code, "{line}: {body}");
        }
    } else {
        assert!(code != 500, "{line}: 500: {body}");
    }
    code
}

/// The 500s that kube-apiserver itself gives to bad input.
const AS_KUBERNETES: &str = include_str!("../as_kubernetes.txt");

/// Whether a 500 is one of those.
fn deliberate(status: &Value) -> bool {
    let message = status["message"].as_str().unwrap_or_default();
    let fits = |form: &str| {
        let mut parts = form.split('*');
        let Some(mut rest) = parts.next().and_then(|begin| message.strip_prefix(begin)) else { return false };
        if !form.contains('*') {
            return rest.is_empty();
        }
        parts.all(|part| match rest.find(part) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    };
    AS_KUBERNETES.lines().any(|form| !form.starts_with('#') && fits(form))
}

async fn text(response: Response<Body>) -> String {
    let read = tokio::time::timeout(PATIENCE, response.into_body().collect(MAX_ANSWER)).await;
    match read {
        Ok(Ok(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(Err(e)) => panic!("the answer breaks off: {e}"),
        Err(_) => panic!("the answer does not end within {PATIENCE:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_kubernetes_own_errors_are_no_findings() {
        for (message, want) in [
            ("map: map[image:a:2] does not contain declared merge key: name", true),
            ("unknown patch type: odd in map: map[$patch:odd]", true),
            ("resourceVersion should not be set on objects to be created", true),
            ("resourceVersion should not be set on objects to be created, or so", false),
            ("Internal error occurred: the store is gone", false),
            ("", false),
        ] {
            assert_eq!(deliberate(&json!({"message": message})), want, "{message}");
        }
    }
}
