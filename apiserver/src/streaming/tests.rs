//! The connectors against a backend that speaks TLS with a certificate of the cluster's CA, on loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use futures::stream::BoxStream;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::access::{Change, ObjectRef, ReadError, UserInfo};
use crate::authz::RbacAuthorizer;
use crate::authz::follow::{FollowedGraph, Ready};
use crate::authz::node::NodeAuthorizer;
use crate::authz::node::graph::NodeGraph;
use crate::body::Body;
use crate::pki::{PkiConfig, server_config};
use crate::request_info::RequestInfo;

#[derive(Default)]
struct Objects(BTreeMap<(&'static str, &'static str), Value>);

#[async_trait::async_trait]
impl ObjectReader for Objects {
    async fn get(
        &self,
        r: &GroupResource,
        ns: &str,
        name: &str,
        _: bool,
    ) -> Result<Option<ObjectRef>, ReadError> {
        let found = self.0.iter().find(|((resource, n), _)| *resource == r.resource && *n == name);
        Ok(found.map(|(_, object)| ObjectRef {
            namespace: ns.into(),
            name: name.into(),
            resource_version: 1,
            json: object.to_string().into(),
        }))
    }

    async fn list(&self, r: &GroupResource, _: Option<&str>, _: bool) -> Result<Vec<ObjectRef>, ReadError> {
        Err(ReadError::NoResource(r.clone()))
    }

    fn changes(&self, r: &GroupResource) -> Result<BoxStream<'static, Change>, ReadError> {
        Err(ReadError::NoResource(r.clone()))
    }
}

/// A kubelet that tells what it was asked, and echoes upgraded connections.
async fn kubelet(
    request: Request<Incoming>,
) -> Result<Response<Full<bytes::Bytes>>, std::convert::Infallible> {
    let told = format!("{} {}", request.method(), request.uri());
    if request.uri().path().ends_with("/broken") {
        let mut response =
            Response::new(Full::from("container \"broken\" in pod \"p\" is waiting to start\n"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    }
    let asked =
        |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
    match request.uri().path() {
        "/headers" => {
            let names = ["authorization", "x-forwarded-uri", "x-forwarded-for", "x-own"];
            return Ok(Response::new(Full::from(names.map(asked).join(" "))));
        }
        "/redirect" => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert("location", "/there?x=1".parse().expect("value"));
            return Ok(response);
        }
        "/page" => {
            let mut response = Response::new(Full::from("<a href=\"/x\">x</a>"));
            response.headers_mut().insert("content-type", "text/html".parse().expect("value"));
            return Ok(response);
        }
        _ => {}
    }
    if !request.headers().contains_key("upgrade") {
        return Ok(Response::new(Full::from(told)));
    }
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.expect("upgrade");
        let mut stream = TokioIo::new(upgraded);
        stream.write_all(told.as_bytes()).await.expect("write");
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer).await.expect("read") {
                0 => break,
                n => stream.write_all(&buffer[..n]).await.expect("write"),
            }
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("upgrade", "websocket".parse().expect("value"));
    response.headers_mut().insert("connection", "Upgrade".parse().expect("value"));
    response.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().expect("value"));
    Ok(response)
}

struct World {
    connectors: Vec<Arc<dyn Connector>>,
    _dir: tempfile::TempDir,
}

/// `trusted` says whether the backend's certificate is of the cluster's own CA.
async fn world(trusted: bool) -> World {
    let dir = tempfile::tempdir().expect("tempdir");
    let pki = |name: &str| {
        Pki::load_or_create(&PkiConfig::new(dir.path().join(name)), SystemTime::now()).expect("pki")
    };
    let (own, other) = (pki("own"), pki("other"));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let address: SocketAddr = listener.local_addr().expect("address");
    let mut tls = server_config(if trusted { &own } else { &other }).expect("tls");
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let http = hyper::server::conn::http1::Builder::new();
                let _ =
                    http.serve_connection(TokioIo::new(stream), service_fn(kubelet)).with_upgrades().await;
            });
        }
    });
    let node = json!({"metadata": {"name": "n"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}}}});
    let containers = json!([{"name": "c"}, {"name": "broken"}]);
    let pod = |node: &str| json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"nodeName": node, "containers": containers}});
    let objects = Objects(BTreeMap::from([
        (("nodes", "n"), node),
        (("pods", "p"), pod("n")),
        (("pods", "waiting"), pod("")),
        (
            ("nodes", "off"),
            json!({"metadata": {"name": "off"}, "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}}),
        ),
        (("pods", "local"), json!({"metadata": {"name": "local"}, "status": {"podIP": "127.0.0.1"}})),
    ]));
    let rbac = RbacAuthorizer { index: Arc::default(), ready: Ready::now() };
    let node = NodeAuthorizer { followed: FollowedGraph::fixed(NodeGraph::default()), rules: Arc::from([]) };
    let shared = Shared {
        reader: Arc::new(objects),
        kubelet_tls: Arc::new(kubelet_client_config(&own).expect("tls")),
        unverified_tls: Arc::new(unverified_client_config().expect("tls")),
    };
    let authorizers = Arc::new(Authorizers { node, rbac });
    let connectors: Vec<Arc<dyn Connector>> = vec![
        Arc::new(kubelet::PodStreams { shared: shared.clone(), authorizers }),
        Arc::new(proxy::HttpProxy { shared }),
    ];
    World { connectors, _dir: dir }
}

impl World {
    async fn ask(&self, user: &UserInfo, request: Request<Body>) -> Result<Response<Body>, Status> {
        let info = RequestInfo::parse(request.method(), request.uri());
        let connector =
            self.connectors.iter().find(|c| c.handles(&info.group, &info.resource, &info.subresource));
        connector.expect("connector").connect(user, &info, request).await
    }

    async fn get(&self, uri: &str) -> Result<String, String> {
        let request = Request::builder().uri(uri).body(Body::Empty).expect("request");
        match self.ask(&UserInfo::apiserver(), request).await {
            Ok(response) => {
                let body = response.into_body().collect(1 << 20).await.expect("body");
                Ok(String::from_utf8(body.to_vec()).expect("utf-8"))
            }
            Err(status) => Err(format!("{} {}", status.code, status.message)),
        }
    }
}

#[tokio::test]
async fn logs_come_from_the_pods_kubelet() {
    let world = world(true).await;
    let base = "/api/v1/namespaces/ns/pods";
    let cases = [
        ("p/log?container=c&follow=true", Ok("GET /containerLogs/ns/p/c?follow=true")),
        ("p/log", Err("400 a container name must be specified for pod p, choose one of: [c broken]")),
        ("p/log?container=x", Err("400 container x is not valid for pod p")),
        ("p/log?container=broken", Err("400 container \"broken\" in pod \"p\" is waiting to start")),
        ("waiting/log?container=c", Ok("")),
        ("nope/log", Err("404 pods \"nope\" not found")),
        ("p/exec?command=ls&container=c", Err("400 Upgrade request required")),
    ];
    for (path, expected) in cases {
        let got = world.get(&format!("{base}/{path}")).await;
        assert_eq!(got.as_deref().map_err(String::as_str), expected, "{path}");
    }
    let metrics = world.get("/api/v1/nodes/n/proxy/metrics/cadvisor?a=b%20c").await;
    assert_eq!(metrics, Ok("GET /metrics/cadvisor?a=b%20c".to_owned()));
    assert_eq!(world.get(&format!("{base}/local/proxy/x")).await, Err("400 address not allowed".to_owned()));
}

#[tokio::test]
async fn a_kubelet_with_a_foreign_certificate_is_not_spoken_to() {
    let world = world(false).await;
    let error = world.get("/api/v1/namespaces/ns/pods/p/log?container=c").await.expect_err("refused");
    assert!(error.starts_with("500 error dialing backend: tls 127.0.0.1:"), "{error}");
}

fn exec(container: &str) -> Request<Body> {
    Request::builder()
        .uri(format!(
            "/api/v1/namespaces/ns/pods/p/exec?command=sh&stdin=true&tty=true&container={container}"
        ))
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-protocol", "v5.channel.k8s.io")
        .body(Body::Empty)
        .expect("request")
}

#[tokio::test]
async fn a_websocket_needs_the_right_to_create() {
    let world = world(true).await;
    let bob = UserInfo::new("bob", Vec::<String>::new());
    let status = world.ask(&bob, exec("c")).await.err().expect("refused");
    assert_eq!(
        status.message,
        "pods \"p\" is forbidden: User \"bob\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"ns\""
    );
}

#[tokio::test]
async fn upgraded_connections_pass_byte_for_byte() {
    let world = Arc::new(world(true).await);
    // The API server's own side: one connection in memory, served by hyper as the real one is.
    let (client, server) = tokio::io::duplex(1 << 16);
    let serving = Arc::clone(&world);
    tokio::spawn(async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let world = Arc::clone(&serving);
            async move {
                Ok::<_, std::convert::Infallible>(
                    world.ask(&UserInfo::apiserver(), request.map(Body::new)).await.expect("answer"),
                )
            }
        });
        let http = hyper::server::conn::http1::Builder::new();
        http.serve_connection(TokioIo::new(server), service).with_upgrades().await.expect("serve");
    });
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(client)).await.expect("handshake");
    tokio::spawn(connection.with_upgrades());
    let response = sender
        .send_request(exec("c").map(|_| http_body_util::Empty::<bytes::Bytes>::new()))
        .await
        .expect("answer");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.expect("upgrade"));
    let told = b"GET /exec/ns/p/c?input=1&output=1&tty=1&command=sh";
    let mut got = vec![0; told.len()];
    stream.read_exact(&mut got).await.expect("read");
    assert_eq!(got, told);
    let sent: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let (mut reading, mut writing) = tokio::io::split(stream);
    let to_send = sent.clone();
    let writer = tokio::spawn(async move {
        writing.write_all(&to_send).await.expect("write");
        writing
    });
    let mut echoed = vec![0; sent.len()];
    reading.read_exact(&mut echoed).await.expect("read");
    assert_eq!(echoed, sent);
    drop(writer.await.expect("writer"));
}

#[tokio::test]
async fn bodies_stream_through_the_proxy() {
    let world = world(true).await;
    let request = Request::builder()
        .method("POST")
        .uri("/api/v1/nodes/n/proxy/echo")
        .body(Body::from("x"))
        .expect("request");
    let response = world.ask(&UserInfo::apiserver(), request).await.expect("answer");
    let body = response.into_body().collect(1024).await.expect("body");
    assert_eq!(body, "POST /echo");
}

#[tokio::test]
async fn what_comes_back_leads_through_the_proxy() {
    let world = world(true).await;
    let base = "/api/v1/nodes/n/proxy";
    assert_eq!(
        world.get(&format!("{base}/page")).await.as_deref(),
        Ok("<a href=\"/api/v1/nodes/n/proxy/x\">x</a>")
    );
    let ask = async |request: http::request::Builder| {
        let request = request.body(Body::Empty).expect("request");
        world.ask(&UserInfo::apiserver(), request).await.expect("answer")
    };
    let response = ask(Request::builder().uri(format!("{base}/redirect"))).await;
    assert_eq!(response.status(), 302);
    assert_eq!(response.headers()["location"], format!("{base}/there?x=1"));
    let response = ask(Request::builder().uri(format!("{base}?a=b"))).await;
    assert_eq!(response.status(), 301);
    assert_eq!(response.headers()["location"], format!("{base}/?a=b"));
    let request = Request::builder()
        .uri(format!("{base}/headers"))
        .header("authorization", "Bearer secret")
        .header("x-forwarded-for", "192.0.2.7")
        .header("x-own", "mine")
        .extension(crate::pipeline::Peer("192.0.2.9:1".parse().expect("address")));
    let body = ask(request).await.into_body().collect(1024).await.expect("body");
    assert_eq!(String::from_utf8_lossy(&body), format!("- {base}/headers 192.0.2.7, 192.0.2.9 mine"));
    for method in ["DELETE", "HEAD", "OPTIONS", "PATCH", "PUT"] {
        let response = ask(Request::builder().method(method).uri(format!("{base}/some/path"))).await;
        assert_eq!(response.status(), 200, "{method}");
    }
    let error = world.get("/api/v1/nodes/off/proxy/x").await.expect_err("nobody listens");
    assert_eq!(error, "503 error trying to reach service: dial tcp 127.0.0.1:1: connect: connection refused");
}
