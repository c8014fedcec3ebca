//! The kubelet's server: who may ask, logs, and streams passed through.

use crate::support::{Node, certificates, one};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

struct Client {
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
}

impl Client {
    /// A client with or without the administrator's certificate.
    fn new(address: SocketAddr, ca: &[u8], identity: Option<(&str, &str)>) -> Client {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(ca.to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        Client { address, config: Arc::new(config) }
    }

    async fn send(&self, request: http::request::Builder) -> http::Response<hyper::body::Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = TlsConnector::from(self.config.clone()).connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let request: Request<Empty<Bytes>> = request.header("host", "node").body(Empty::new()).unwrap();
        sender.send_request(request).await.unwrap()
    }

    async fn get(&self, path: &str, token: Option<&str>) -> (u16, String) {
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.send(request).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

async fn start() -> (Node, Client, Client) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let mut made = None;
    let node = Node::start_with(|dir, config| {
        let (tls, ca, cert, key) = certificates(dir);
        config.tls = Some(tls);
        config.listen = vec![address];
        made = Some((ca, cert, key));
    })
    .await;
    let (ca, cert, key) = made.unwrap();
    node.pod("p", one());
    node.wait_ready("p").await;
    let admin = Client::new(address, &ca, Some((&cert, &key)));
    (node, admin, Client::new(address, &ca, None))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_who_may_are_answered() {
    let (_node, admin, nobody) = start().await;
    assert_eq!(admin.get("/healthz", None).await, (200, "ok".into()));
    assert_eq!(nobody.get("/healthz", None).await.0, 401);
    assert_eq!(nobody.get("/pods", Some("bad")).await.0, 401);
    assert_eq!(nobody.get("/pods", Some("good")).await.0, 200);
    assert_eq!(admin.get("/nothing", None).await.0, 404);
    let (_, pods) = admin.get("/pods", None).await;
    let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
    assert_eq!(pods["items"][0]["status"]["phase"], "Running");
    let (code, running) = admin.get("/runningpods/", None).await;
    assert!(code == 200 && running.contains("\"c\""), "{running}");
    let (_, metrics) = admin.get("/metrics", None).await;
    assert!(metrics.contains("kubelet_running_pods 1"), "{metrics}");
    assert_eq!(admin.get("/configz", None).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs() {
    let (node, admin, _) = start().await;
    let path = node.cri.state.lock().containers.values().next().unwrap().1.log_path.clone();
    std::fs::write(&path, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stdout F two\n").unwrap();
    assert_eq!(admin.get("/containerLogs/default/p/c", None).await, (200, "one\ntwo\n".into()));
    assert_eq!(admin.get("/containerLogs/default/p/c?tailLines=1", None).await, (200, "two\n".into()));
    assert_eq!(admin.get("/containerLogs/default/p/x", None).await.0, 400);
    assert_eq!(admin.get("/containerLogs/default/x/c", None).await.0, 404);
    let (code, text) = admin.get("/containerLogs/default/p/c?previous=true", None).await;
    assert_eq!((code, text.as_str()), (400, "previous terminated container \"c\" in pod \"p\" not found\n"));
    // Following ends with the container; its log and that of its successor stay apart.
    let mut following = admin.send(Request::get("/containerLogs/default/p/c?follow=true")).await.into_body();
    let first = following.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "one\ntwo\n");
    node.cri.exit("c", 1);
    assert!(following.frame().await.is_none());
    node.wait_pod("p", |p| {
        p.filter(|p| p["status"]["containerStatuses"][0]["restartCount"] == 1).map(|_| ())
    })
    .await;
    assert_eq!(admin.get("/containerLogs/default/p/c?previous=true", None).await, (200, "one\ntwo\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_is_passed_through() {
    let (node, admin, _) = start().await;
    let url = crate::support::cri::echo_server().await;
    node.cri.state.lock().streaming = url;
    let request = Request::get("/exec/default/p/c?command=sh&command=-c&input=1&output=1&tty=1")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("authorization", "Bearer x");
    let mut response = admin.send(request).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    io.write_all(b"anything at all").await.unwrap();
    let mut back = [0; 15];
    io.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"anything at all");
    assert!(node.cri.state.lock().calls.contains(&"exec sh -c tty=true".to_owned()));
    assert_eq!(admin.get("/exec/default/p/c?command=x", None).await.0, 400);
    assert_eq!(admin.get("/exec/default/p/nope?command=x&output=1", None).await.0, 404);
}
