//! Webhooks over real TLS on loopback.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::super::testing::{World, authorizers};
use super::*;

/// A webhook server whose answer depends on the path; counts connections.
struct Server {
    port: u16,
    ca: String,
    connections: Arc<AtomicUsize>,
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.expect("body").to_bytes();
    let review: Value = serde_json::from_slice(&body).expect("a review");
    let asked = &review["request"];
    let patch = |patch: Value| json!({"uid": asked["uid"], "allowed": true, "patchType": "JSONPatch", "patch": base64(patch.to_string().as_bytes())});
    let response = match path.as_str() {
        "/allow" => {
            json!({"uid": asked["uid"], "allowed": true, "warnings": [format!("saw {}", asked["kind"]["version"])]})
        }
        "/deny" => {
            json!({"uid": asked["uid"], "allowed": false, "status": {"message": "never", "code": 403, "reason": "Forbidden"}})
        }
        "/label" => {
            patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"seen": asked["name"]}}]))
        }
        "/count" => {
            let n = asked["object"]["data"]["n"].as_str().unwrap_or("0").parse::<u32>().expect("number") + 1;
            patch(json!([{"op": "add", "path": "/data", "value": {"n": n.to_string()}}]))
        }
        "/stranger" => json!({"uid": "other", "allowed": true}),
        _ => {
            let mut response = Response::new(Full::new(Bytes::from("broken")));
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(response);
        }
    };
    let review = json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response});
    Ok(Response::new(Full::new(Bytes::from(review.to_string()))))
}

impl Server {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("certificate");
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
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counted) = (acceptor.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    counted.fetch_add(1, Ordering::SeqCst);
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
                });
            }
        });
        Self { port, ca: base64(made.cert.pem().as_bytes()), connections }
    }

    fn hook(&self, name: &str, path: &str, more: Value) -> Value {
        let mut hook = json!({"name": name, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.ca},
            "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "operations": ["*"]}]});
        hook.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        hook
    }
}

fn caller(world: &World, mutating: bool, hooks: Value) -> Caller {
    let configuration = json!({"metadata": {"name": "c"}, "webhooks": hooks});
    let hooks = Hook::read(&configuration).into_iter().map(Arc::new).collect();
    let index = Index::new(&BTreeMap::from([("c".to_owned(), hooks)]));
    Caller {
        reader: world.lookup(),
        client: Arc::new(Client::new(world.lookup())),
        authorizers: authorizers(),
        versions: Versions::builtin(),
        index: Arc::new(ArcSwap::from_pointee(index)),
        ready: Ready::now(),
        mutating,
    }
}

fn config_map() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm", "namespace": "a"}})
}

const PATH: &str = "/api/v1/namespaces/a/configmaps";

#[tokio::test]
async fn judgements() {
    let (world, server) = (World::new(), Server::start().await);
    for (path, more, expected) in [
        ("/allow", json!({}), "ok"),
        ("/deny", json!({}), "admission webhook \"w\" denied the request: never"),
        ("/deny", json!({"objectSelector": {"matchLabels": {"a": "b"}}}), "ok"),
        ("/broken", json!({"failurePolicy": "Ignore"}), "ok"),
        (
            "/broken",
            json!({}),
            "Internal error occurred: failed calling webhook \"w\": failed to call webhook: an error on the server (\"broken\") has prevented the request from succeeding",
        ),
        (
            "/deny",
            json!({"matchConditions": [{"name": "c", "expression": "object.metadata.name != 'cm'"}]}),
            "ok",
        ),
        (
            "/allow",
            json!({"matchConditions": [{"name": "c", "expression": "object.nothing == 1"}]}),
            "configmaps \"cm\" is forbidden: expression 'object.nothing == 1' resulted in error: no such key: nothing",
        ),
        (
            "/deny",
            json!({"failurePolicy": "Ignore", "matchConditions": [{"name": "c", "expression": "object.nothing == 1"}]}),
            "ok",
        ),
        (
            "/allow",
            json!({"admissionReviewVersions": ["v3"]}),
            "Internal error occurred: failed calling webhook \"w\": could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)",
        ),
    ] {
        let plugin = ValidatingWebhooks(caller(&world, false, json!([server.hook("w", path, more)])));
        assert_eq!(world.post(PATH, config_map()).answer(&plugin).await, expected, "{path}");
    }
    let plugin = ValidatingWebhooks(caller(&world, false, json!([server.hook("w", "/stranger", json!({}))])));
    let answer = world.post(PATH, config_map()).answer(&plugin).await;
    assert!(answer.contains("received invalid webhook response: expected response.uid="), "{answer}");
}

#[tokio::test]
async fn connections_are_kept_and_strangers_refused() {
    let (world, server) = (World::new(), Server::start().await);
    let plugin = ValidatingWebhooks(caller(&world, false, json!([server.hook("w", "/allow", json!({}))])));
    for _ in 0..3 {
        assert_eq!(world.post(PATH, config_map()).answer(&plugin).await, "ok");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    let other = Server::start().await;
    let client = json!({"clientConfig": {"url": format!("https://127.0.0.1:{}/allow", server.port), "caBundle": other.ca}});
    let plugin = ValidatingWebhooks(caller(&world, false, json!([server.hook("w", "/allow", client)])));
    let answer = world.post(PATH, config_map()).answer(&plugin).await;
    assert!(answer.ends_with("x509: certificate signed by unknown authority"), "{answer}");
}

#[tokio::test]
async fn services_without_endpoints() {
    let world = World::new();
    let client = json!({"clientConfig": {"service": {"namespace": "a", "name": "hook", "path": "/v"}, "caBundle": ""}});
    let hook = Server { port: 1, ca: String::new(), connections: Arc::default() }.hook("w", "", client);
    let plugin = ValidatingWebhooks(caller(&world, false, json!([hook])));
    let head = "Internal error occurred: failed calling webhook \"w\": failed to call webhook: Post \"https://hook.a.svc:443/v?timeout=10s\": ";
    let answer = world.post(PATH, config_map()).answer(&plugin).await;
    assert_eq!(answer, format!("{head}service \"hook\" not found"));
    world.put(
        "",
        "services",
        json!({"metadata": {"name": "hook", "namespace": "a"}, "spec": {"ports": [{"port": 443}]}}),
    );
    let answer = world.post(PATH, config_map()).answer(&plugin).await;
    assert_eq!(answer, format!("{head}no endpoints available for service \"hook\""));
}

#[tokio::test]
async fn changes() {
    let (world, server) = (World::new(), Server::start().await);
    let plugin = MutatingWebhooks(caller(&world, true, json!([server.hook("w", "/label", json!({}))])));
    let changed = world.post(PATH, config_map()).admit(&plugin).await.expect("admitted");
    assert_eq!(changed["metadata"]["labels"], json!({"seen": "cm"}));
    // What an equivalent version is asked about comes back in the version of the request.
    let rules = json!({"rules": [{"apiGroups": ["autoscaling"], "apiVersions": ["v1"], "resources": ["*"], "operations": ["*"]}]});
    let plugin = MutatingWebhooks(caller(&world, true, json!([server.hook("w", "/label", rules)])));
    let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h", "namespace": "a"},
        "spec": {"maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
    let path = "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers";
    let changed = world.post(path, scaler).admit(&plugin).await.expect("admitted");
    assert_eq!(
        (changed["apiVersion"].as_str(), &changed["metadata"]["labels"]),
        (Some("autoscaling/v2"), &json!({"seen": "h"}))
    );
}

#[tokio::test]
async fn earlier_hooks_see_later_changes_once() {
    let (world, server) = (World::new(), Server::start().await);
    let hooks = json!([
        server.hook("first", "/count", json!({"reinvocationPolicy": "IfNeeded"})),
        server.hook("second", "/label", json!({}))
    ]);
    let plugin = MutatingWebhooks(caller(&world, true, hooks));
    let (user, options) = (world.user.clone(), json!({}));
    let info = RequestInfo::parse(&http::Method::POST, &PATH.parse().expect("path"));
    let mut object = config_map();
    let mut request = AdmissionRequest {
        user: &user,
        operation: Operation::Create,
        info: &info,
        kind: "ConfigMap",
        object: Some(&mut object),
        old_object: None,
        dry_run: false,
        options: &options,
        warnings: parking_lot::Mutex::default(),
        reinvocation: crate::access::Reinvocation::default(),
    };
    plugin.admit(&mut request).await.expect("admitted");
    assert!(request.reinvocation.wanted);
    request.reinvocation.second = true;
    plugin.admit(&mut request).await.expect("admitted");
    assert_eq!(object["data"]["n"], "2");
}
