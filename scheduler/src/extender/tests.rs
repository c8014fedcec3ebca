//! Extenders over TLS: a server of the test's own on loopback, which asks for a certificate of the same CA.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::config::Config;
use crate::plugins::Registry;
use crate::plugins::tests::{node, pod};
use crate::snapshot::Cache;

/// The name in the server's certificate; it is reached by its address.
const NAME: &str = "extender.test";

/// A CA, and certificates with keys of it, all in PEM.
struct Authority {
    ca: String,
    server: (String, String),
    client: (String, String),
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("a CA").pem();
        let issuer = Issuer::new(params, key);
        let signed = |name: &str, usage| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new([name.to_owned()]).expect("parameters");
            params.extended_key_usages = vec![usage];
            (params.signed_by(&key, &issuer).expect("a certificate").pem(), key.serialize_pem())
        };
        let server = signed(NAME, ExtendedKeyUsagePurpose::ServerAuth);
        let client = signed("scheduler", ExtendedKeyUsagePurpose::ClientAuth);
        Authority { ca, server, client }
    }

    fn server_config(&self) -> rustls::ServerConfig {
        let ca = CertificateDer::from_pem_slice(self.ca.as_bytes()).expect("the CA");
        let certificate = CertificateDer::from_pem_slice(self.server.0.as_bytes()).expect("the certificate");
        let key = PrivateKeyDer::from_pem_slice(self.server.1.as_bytes()).expect("the key");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).expect("a root");
        let clients =
            rustls::server::WebPkiClientVerifier::builder(roots.into()).build().expect("a verifier");
        let config = rustls::ServerConfig::builder().with_client_cert_verifier(clients);
        config.with_single_cert(vec![certificate], key).expect("a configuration")
    }
}

type Answer = fn(&str, &Value) -> Value;

/// Serves over TLS, and tells of each request its path and body. Answers the port.
async fn serve(authority: &Authority, answer: Answer) -> (u16, Receiver<(String, Value)>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(authority.server_config()));
    let (told, asked) = channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, told) = (acceptor.clone(), told.clone());
            tokio::spawn(async move {
                // Who is not trusted goes away.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request| reply(request, answer, told.clone()));
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (port, asked)
}

async fn reply(
    request: http::Request<hyper::body::Incoming>,
    answer: Answer,
    told: Sender<(String, Value)>,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let answer = answer(&path, &body);
    // The test may have seen enough.
    let _ = told.send((path, body));
    let mut response = http::Response::new(Full::new(Bytes::from(answer.to_string())));
    if answer.is_null() {
        *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
    }
    Ok(response)
}

/// An API server that has a pod of any name.
fn api() -> Client {
    let service = tower::service_fn(|request: http::Request<Body>| async move {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "uid": format!("uid-{name}")}});
        Ok::<_, Infallible>(http::Response::new(Body::from(Bytes::from(pod.to_string()))))
    });
    Client::new(service, "default")
}

/// As a configuration says it, with data in base64.
fn configured(port: u16, authority: &Authority, more: Value) -> Vec<Extender> {
    let data =
        |pem: &str| serde_json::to_value(k8s_openapi::ByteString(pem.as_bytes().to_vec())).expect("base64");
    let mut extender = json!({
        "urlPrefix": format!("https://127.0.0.1:{port}/scheduler/"), "enableHTTPS": true,
        "filterVerb": "filter", "prioritizeVerb": "prioritize", "weight": 3, "preemptVerb": "preempt",
        "bindVerb": "bind", "nodeCacheCapable": true, "httpTimeout": "10s",
        "tlsConfig": {"serverName": NAME, "caData": data(&authority.ca), "certData": data(&authority.client.0),
            "keyData": data(&authority.client.1)},
    });
    for (key, value) in more.as_object().expect("fields") {
        extender[key] = value.clone();
    }
    let document = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "extenders": [extender]});
    Config::read(document, &Registry::new()).map(|config| config.extenders).expect("a configuration")
}

fn extenders(list: Vec<Extender>) -> Extenders {
    // Other tests of this process may have said it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Extenders::new(list, api()).expect("extenders")
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ordinary(path: &str, _: &Value) -> Value {
    match path {
        "/scheduler/filter" => {
            json!({"NodeNames": ["a", "b"], "FailedNodes": {"c": "no room", "d": "too far"},
            "FailedAndUnresolvableNodes": {"d": "never"}, "Error": ""})
        }
        "/scheduler/prioritize" => json!([{"Host": "a", "Score": 2}, {"Host": "b", "Score": 10}]),
        "/scheduler/preempt" => json!({"NodeNameToMetaVictims": {"b": {"Pods": [{"UID": "uid-low-b"}],
            "NumPDBViolations": 1}}}),
        "/scheduler/bind" => json!({"Error": ""}),
        _ => Value::Null,
    }
}

#[tokio::test]
async fn every_verb_over_tls_with_a_certificate() {
    let authority = Authority::new();
    let (port, asked) = serve(&authority, ordinary).await;
    let extenders = extenders(configured(port, &authority, json!({})));
    let pod = pod("p", json!({}));
    assert!(extenders.concern(&pod) && extenders.judge_victims(&pod));

    let answers = extenders.ask(&pod, names(&["a", "b", "c", "d", "e"])).await.expect("answers");
    assert_eq!(answers.scores, HashMap::from([("a".into(), 2 * 3 * SCALE), ("b".into(), 10 * 3 * SCALE)]));
    let against = |node: &str| answers.rejected.get(node).cloned();
    assert_eq!(against("c"), Some(Rejection::resolvable("no room")));
    assert_eq!(against("d"), Some(Rejection::lasting("never")));
    assert_eq!(against("e"), Some(Rejection::resolvable("")));
    assert_eq!(against("a"), None);
    let (path, body) = asked.recv().expect("a request");
    assert_eq!(path, "/scheduler/filter");
    assert_eq!((&body["Pod"]["metadata"]["uid"], &body["Nodes"]), (&json!("uid-p"), &Value::Null));
    assert_eq!(body["NodeNames"], json!(["a", "b", "c", "d", "e"]));
    assert_eq!(asked.recv().expect("a request").1["NodeNames"], json!(["a", "b"]));

    let mut cache = Cache::default();
    let mut candidates = Vec::new();
    for name in ["a", "b"] {
        cache.set_node(&node(name, json!({})));
        let low = Arc::new(crate::plugins::tests::pod(&format!("low-{name}"), json!({"nodeName": name})));
        cache.set_pod(low.clone());
        candidates.push(Candidate { node: name.into(), victims: vec![low], violations: 0 });
    }
    let judged = extenders.judge(&pod, candidates, cache.snapshot()).await.expect("candidates");
    let [Candidate { node, victims, violations: 1 }] = &judged[..] else { panic!("{judged:?}") };
    assert_eq!((&**node, &*victims[0].key.name), ("b", "low-b"));
    let told = asked.recv().expect("a request").1;
    assert_eq!(
        told["NodeNameToMetaVictims"]["a"],
        json!({"Pods": [{"UID": "uid-low-a"}], "NumPDBViolations": 0})
    );
    assert_eq!(told["NodeNameToVictims"], Value::Null);

    assert_eq!(extenders.bind(&pod, "b").await, Some(Ok(())));
    let bound = json!({"PodName": "p", "PodNamespace": "default", "PodUID": "uid-p", "Node": "b"});
    assert_eq!(asked.recv().expect("a request"), ("/scheduler/bind".to_owned(), bound));
}

#[tokio::test]
async fn whole_nodes_and_victims_for_those_that_know_none() {
    let authority = Authority::new();
    let answer: Answer = |path, _| match path {
        "/scheduler/filter" => json!({"Nodes": {"items": [{"metadata": {"name": "a"}}]}, "NodeNames": null}),
        _ => json!({"NodeNameToMetaVictims": {}}),
    };
    let (port, asked) = serve(&authority, answer).await;
    let extenders = extenders(configured(port, &authority, json!({"nodeCacheCapable": false})));
    extenders.note_node(&node("a", json!({"labels": {"disk": "fast"}})));
    extenders.note_node(&node("b", json!({})));
    extenders.note_node(&node("gone", json!({})));
    extenders.forget_node("gone");
    let pod = pod("p", json!({}));
    let answers = extenders.ask(&pod, names(&["a", "b"])).await.expect("answers");
    assert_eq!(answers.rejected.keys().collect::<Vec<_>>(), ["b"]);
    // One node is left, so nobody is asked which is better.
    let (path, body) = asked.recv().expect("a request");
    assert_eq!((path.as_str(), &body["NodeNames"]), ("/scheduler/filter", &Value::Null));
    let items = body["Nodes"]["items"].as_array().expect("nodes");
    assert_eq!((items.len(), &items[0]["metadata"]["labels"]["disk"]), (2, &json!("fast")));

    let mut cache = Cache::default();
    cache.set_node(&node("a", json!({})));
    let low = Arc::new(crate::plugins::tests::pod("low", json!({"nodeName": "a"})));
    cache.set_pod(low.clone());
    let candidate = Candidate { node: "a".into(), victims: vec![low], violations: 2 };
    let judged = extenders.judge(&pod, vec![candidate], cache.snapshot()).await.expect("candidates");
    assert!(judged.is_empty());
    let told = asked.recv().expect("a request").1;
    assert_eq!(told["NodeNameToVictims"]["a"]["Pods"][0]["metadata"]["uid"], "uid-low");
    assert_eq!(told["NodeNameToVictims"]["a"]["NumPDBViolations"], 2);
}

#[tokio::test]
async fn failures_end_the_attempt_unless_the_extender_is_ignorable() {
    let authority = Authority::new();
    let (port, _asked) = serve(&authority, |path, _| match path {
        "/scheduler/filter" => json!({"Error": "out of order"}),
        _ => Value::Null,
    })
    .await;
    let pod = pod("p", json!({}));
    let strict = extenders(configured(port, &authority, json!({})));
    assert_eq!(strict.ask(&pod, names(&["a"])).await.expect_err("an error"), "out of order");
    let failed =
        format!("failed bind with extender at URL https://127.0.0.1:{port}/scheduler/bind, code 500");
    assert_eq!(strict.bind(&pod, "a").await, Some(Err(failed)));

    let lenient = extenders(configured(port, &authority, json!({"ignorable": true})));
    assert!(lenient.ask(&pod, names(&["a"])).await.expect("answers").rejected.is_empty());
    assert_eq!(lenient.bind(&pod, "a").await, None);

    // A pod that asks for nothing that the extender manages is none of its concern.
    let managed = json!({"managedResources": [{"name": "example.com/gpu"}]});
    let managing = extenders(configured(port, &authority, managed));
    assert!(!managing.concern(&pod) && !managing.judge_victims(&pod));
    assert_eq!(managing.bind(&pod, "a").await, None);
    let gpu = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]});
    assert!(managing.concern(&crate::plugins::tests::pod("q", gpu)));
}

#[tokio::test]
async fn nobody_is_trusted_without_proof() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (port, _asked) = serve(&authority, ordinary).await;
    let pod = pod("p", json!({}));
    let refused = async |list: Vec<Extender>| extenders(list).ask(&pod, names(&["a", "b"])).await.is_err();
    // The server's CA is another one; the server's name is another one; we have no certificate, or one of another CA.
    let tls = |change: fn(&mut Tls, &Authority)| {
        let mut list = configured(port, &authority, json!({}));
        change(&mut list[0].tls, &other);
        list
    };
    assert!(refused(tls(|tls, other| tls.ca = Some(data(&other.ca)))).await);
    assert!(refused(tls(|tls, _| tls.server_name = None)).await);
    assert!(refused(tls(|tls, _| tls.identity = None)).await);
    assert!(
        refused(tls(|tls, other| tls.identity = Some((data(&other.client.0), data(&other.client.1))))).await
    );
    assert!(!refused(tls(|_, _| {})).await);
    // `insecure` looks at no certificate of the server.
    let insecure = tls(|tls, _| *tls = Tls { insecure: true, ca: None, server_name: None, ..tls.clone() });
    assert!(!refused(insecure).await);

    // Files, too.
    let directory = std::env::temp_dir().join(format!("hawser-extender-{}-{port}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let files = json!({"tlsConfig": {"serverName": NAME, "caFile": file("ca", &authority.ca),
        "certFile": file("cert", &authority.client.0), "keyFile": file("key", &authority.client.1)}});
    assert!(!refused(configured(port, &authority, files.clone())).await);
    std::fs::remove_dir_all(&directory).expect("removed");
    let gone = Extenders::new(configured(port, &authority, files), api()).err().expect("an error");
    assert!(gone.contains("tlsConfig.caFile") && gone.contains("No such file"), "{gone}");
}

fn data(text: &str) -> Pem {
    Pem::Data(k8s_openapi::ByteString(text.as_bytes().to_vec()))
}
