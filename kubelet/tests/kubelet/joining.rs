//! A machine becomes a node: the join token against a TLS server, and back again from disk.

use crate::support::api::Api;
use hawser_kubelet::bootstrap::{Bootstrap, BootstrapError, bootstrap};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Node;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::net::TcpListener;

/// A cluster that signs what it is asked to sign.
struct Cluster {
    api: Api,
    url: String,
    ca_digest: String,
}

async fn cluster() -> Cluster {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "cluster-ca");
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca_cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![leaf.der().clone(), ca_cert.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let api = Api::new();
    let served = api.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, api) = (acceptor.clone(), served.clone());
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(stream).await else { return };
                let known = tls.get_ref().1.peer_certificates().is_some();
                let service = hyper::service::service_fn(move |r: http::Request<hyper::body::Incoming>| {
                    let api = api.clone();
                    let token = r
                        .headers()
                        .get("authorization")
                        .is_some_and(|t| t == "Bearer abcdef.0123456789abcdef");
                    async move {
                        if !known && !token {
                            return Ok::<_, std::convert::Infallible>(Api::forbidden());
                        }
                        let (head, body) = r.into_parts();
                        let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
                        Ok(api.answer(http::Request::from_parts(head, kube::client::Body::from(body))).await)
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tls), service)
                    .await;
            });
        }
    });
    let signed = api.clone();
    tokio::spawn(async move { sign_all(signed, issuer).await });
    Cluster { api, url, ca_digest: hex::encode(Sha256::digest(ca_cert.der())) }
}

/// Signs every request as it comes.
async fn sign_all(api: Api, issuer: Issuer<'static, KeyPair>) {
    let mut events = api.events();
    loop {
        let Ok((resource, _, object)) = events.recv().await else { return };
        let open = object["status"]["certificate"].is_null();
        if resource != "certificatesigningrequests" || !open {
            continue;
        }
        let text = |v: &Value| -> String {
            let bytes: k8s_openapi::ByteString = serde_json::from_value(v.clone()).unwrap();
            String::from_utf8(bytes.0).unwrap()
        };
        let request = CertificateSigningRequestParams::from_pem(&text(&object["spec"]["request"])).unwrap();
        let certificate = request.signed_by(&issuer).unwrap().pem();
        let certificate = serde_json::to_value(k8s_openapi::ByteString(certificate.into_bytes())).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        api.edit("certificatesigningrequests", "", &name, |o| {
            o["status"] = json!({"certificate": certificate})
        });
    }
}

fn ask(c: &Cluster, dir: &std::path::Path, token: &str) -> Bootstrap {
    Bootstrap {
        server: c.url.clone(),
        token: token.to_owned(),
        node_name: "n1".into(),
        node_ips: vec!["127.0.0.1".parse().unwrap()],
        data_dir: dir.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_once_and_stays() {
    use std::os::unix::fs::PermissionsExt;
    let c = cluster().await;
    let dir = tempfile::tempdir().unwrap();
    let token = format!("K10{}::abcdef.0123456789abcdef", c.ca_digest);
    let identity = bootstrap(ask(&c, dir.path(), &token)).await.unwrap();
    let requests = c.api.list("certificatesigningrequests");
    let signers: Vec<&str> = requests.iter().filter_map(|r| r["spec"]["signerName"].as_str()).collect();
    assert_eq!(signers, ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"]);
    for file in ["kubelet.kubeconfig", "pki/kubelet-client.pem", "pki/kubelet-server.pem"] {
        let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // Both ways of using it work: the file with kube's own client, and the client that follows renewals.
    let kubeconfig = kube::config::Kubeconfig::read_from(&identity.kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    c.api.put("/api/v1/nodes", json!({"metadata": {"name": "n1"}}));
    for client in [kube::Client::try_from(config).unwrap(), identity.client().unwrap()] {
        let node = kube::Api::<Node>::all(client).get("n1").await.unwrap();
        assert_eq!(node.metadata.name.as_deref(), Some("n1"));
    }
    // A second start needs nothing new, not even a token that is still good.
    let spent = format!("K10{}::zzzzzz.0123456789abcdef", c.ca_digest);
    bootstrap(ask(&c, dir.path(), &spent)).await.unwrap();
    assert_eq!(c.api.list("certificatesigningrequests").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_is_refused_before_the_secret_is_sent() {
    let c = cluster().await;
    let dir = tempfile::tempdir().unwrap();
    let token = format!("K10{}::abcdef.0123456789abcdef", "00".repeat(32));
    let error = bootstrap(ask(&c, dir.path(), &token)).await.err().unwrap();
    assert!(matches!(error, BootstrapError::Server(_)), "{error}");
    let token = format!("K10{}::zzzzzz.0123456789abcdef", c.ca_digest);
    let error = bootstrap(ask(&c, dir.path(), &token)).await.err().unwrap();
    assert!(matches!(error, BootstrapError::Refused(_)), "{error}");
    assert!(!dir.path().join("kubelet.kubeconfig").exists());
}
