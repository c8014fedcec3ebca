//! A webhook on loopback, over TLS.
#![allow(dead_code, reason = "each test file uses its part")]

use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What answers: the path and the review in, the answer out. An error is a 500 with that text.
pub type Answer = dyn Fn(&str, Value) -> Result<Value, String> + Send + Sync;

/// A webhook that runs until the test's runtime ends.
pub struct Hook {
    pub port: u16,
    /// PEM of its certificate, base64.
    pub ca: String,
}

impl Hook {
    /// Serves under the names `127.0.0.1` and `hook.ns.svc`.
    pub async fn start(
        answer: impl Fn(&str, Value) -> Result<Value, String> + Send + Sync + 'static,
    ) -> Self {
        let names = ["127.0.0.1".to_owned(), "hook.ns.svc".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("certificate");
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("tls");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let port = listener.local_addr().expect("address").port();
        let answer: Arc<Answer> = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let http = hyper::server::conn::http1::Builder::new();
                    let service = service_fn(move |request| serve(answer.clone(), request));
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        let ca = base64::engine::general_purpose::STANDARD.encode(made.cert.pem());
        Self { port, ca }
    }

    /// A client configuration with a URL.
    pub fn url(&self, path: &str) -> Value {
        json!({"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.ca})
    }
}

async fn serve(answer: Arc<Answer>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().to_string();
    let body = request.into_body().collect().await.expect("body").to_bytes();
    let review = serde_json::from_slice(&body).expect("a review");
    let (code, text) = match answer(&path, review) {
        Ok(value) => (200, value.to_string()),
        Err(text) => (500, text),
    };
    let response = Response::builder().status(code).body(Full::new(Bytes::from(text)));
    Ok(response.expect("a response"))
}
