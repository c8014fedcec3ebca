//! Access control end to end: a server on loopback with TLS, asked with certificates and tokens.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hawser_apiserver::bootstrap::AccessConfig;
use hawser_apiserver::encryption::{Envelope, KeyRing, Transformer as _};
use hawser_apiserver::pki::{Identity, Pki, PkiConfig, server_config};
use hawser_apiserver::tokens::node_token::NodeToken;
use hawser_apiserver::{ApiServer, Config};
use hawser_storage::Storage;
use hawser_storage::memory::Memory;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

struct Server {
    pki: Arc<Pki>,
    address: SocketAddr,
    storage: Arc<Memory>,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start_in(dir: &Path, storage: Arc<Memory>) -> (Arc<Pki>, SocketAddr, CancellationToken) {
    start_with(dir, storage, true).await
}

async fn start_with(
    dir: &Path,
    storage: Arc<Memory>,
    anonymous: bool,
) -> (Arc<Pki>, SocketAddr, CancellationToken) {
    let pki = Pki::load_or_create(&PkiConfig::new(dir.join("pki")), SystemTime::now()).expect("pki");
    let pki = Arc::new(pki);
    let node_token_file = Some(dir.join("node-token"));
    let access = AccessConfig { node_token_file, anonymous, ..AccessConfig::new(Arc::clone(&pki)) };
    let mut config = Config::new(Arc::new(access));
    config.listen.push(SocketAddr::from(([127, 0, 0, 1], 0)));
    config.tls = Some(Arc::new(server_config(&pki).expect("tls")));
    config.seal = Some(Arc::new(Envelope::new(&pki.encryption).expect("envelope")));
    let server = ApiServer::start(config, storage).await.expect("start");
    let address = server.addresses()[0];
    let stop = CancellationToken::new();
    tokio::spawn(server.run(stop.clone()));
    (pki, address, stop)
}

impl Server {
    async fn start() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(anonymous: bool) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let storage = Arc::new(Memory::new());
        let (pki, address, stop) = start_with(dir.path(), storage.clone(), anonymous).await;
        Self { pki, address, storage, stop, dir }
    }

    fn client(&self) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.pki.ca.cert_der().expect("der")).expect("root");
        Client { address: self.address, roots, identity: None, token: None, headers: Vec::new() }
    }

    fn admin(&self) -> Client {
        Client { identity: Some(self.pki.admin.clone()), ..self.client() }
    }

    /// A client with a certificate of the cluster's CA for any subject.
    fn certified(&self, user: &str, group: &str) -> Client {
        Client { identity: Some(leaf(&self.pki.ca, user, group)), ..self.client() }
    }
}

fn leaf(ca: &Identity, user: &str, group: &str) -> Identity {
    let issuer =
        Issuer::from_ca_cert_pem(&ca.cert_pem, KeyPair::from_pem(&ca.key_pem).expect("key")).expect("issuer");
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    let cert = params.signed_by(&key, &issuer).expect("certificate");
    Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() }
}

#[derive(Clone)]
struct Client {
    address: SocketAddr,
    roots: RootCertStore,
    identity: Option<Identity>,
    token: Option<String>,
    headers: Vec<(&'static str, String)>,
}

impl Client {
    fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), identity: None, ..self.clone() }
    }

    fn acting_as(&self, user: &str, groups: &[&str]) -> Self {
        let mut client = self.clone();
        client.headers.push(("impersonate-user", user.to_owned()));
        client.headers.extend(groups.iter().map(|g| ("impersonate-group", (*g).to_owned())));
        client
    }

    async fn connect(&self) -> Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(self.roots.clone());
        let config = match &self.identity {
            Some(id) => config
                .with_client_auth_cert(vec![id.cert_der().expect("der")], id.key_der().expect("der"))
                .expect("identity"),
            None => config.with_no_client_auth(),
        };
        let stream = tokio::net::TcpStream::connect(self.address).await.expect("connect");
        let name = ServerName::from(self.address.ip());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())
    }

    async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(u16, Value), String> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = body.map_or_else(Bytes::new, |b| b.to_string().into());
        let request =
            request.header("content-type", "application/json").body(Full::new(body)).expect("request");
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok((code, serde_json::from_slice(&bytes).unwrap_or(Value::String(text))))
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        self.try_send(method, path, body).await.expect("answer")
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Creates what a test needs.
    async fn make(&self, path: &str, body: Value) -> Value {
        let (code, answer) = self.post(path, body).await;
        assert_eq!(code, 201, "{path}: {answer}");
        answer
    }

    /// Asks until the code comes: rights follow their objects by the watch cache.
    async fn until(&self, path: &str, code: u16) {
        for _ in 0..200 {
            if self.get(path).await.0 == code {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{path} never answered {code}: {:?}", self.get(path).await);
    }
}

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn without_anonymous_requests_only_health_and_version_are_open() {
    let server = Server::start_with(false).await;
    let nobody = server.client();
    for (path, code) in [("/healthz", 200), ("/version", 200), ("/api", 401), ("/metrics", 401)] {
        assert_eq!(nobody.get(path).await.0, code, "{path}");
    }
    let (code, status) = nobody.get(PODS).await;
    assert_eq!(
        (code, &status["reason"], &status["message"]),
        (401, &json!("Unauthorized"), &json!("Unauthorized"))
    );
}

#[tokio::test]
async fn who_is_let_in() {
    let server = Server::start().await;
    let nobody = server.client();
    for (path, code) in [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/livez", 200),
        ("/version", 200),
        ("/api", 403),
        (PODS, 403),
        ("/metrics", 403),
    ] {
        assert_eq!(nobody.get(path).await.0, code, "{path}");
    }
    let (_, status) = nobody.get(PODS).await;
    let text = "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the \
                namespace \"default\"";
    assert_eq!((&status["reason"], &status["message"]), (&json!("Forbidden"), &json!(text)));
    for token in ["garbage", "abcdef.0123456789abcdef", "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0.AAAA"] {
        assert_eq!(nobody.with_token(token).get("/healthz").await.0, 401, "{token}");
    }
    assert_eq!(server.admin().get(PODS).await.0, 200);
    let (code, status) = server.certified("bob", "staff").get(PODS).await;
    assert_eq!(code, 403);
    let text = "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!(status["message"], text);
    // A certificate of another CA opens nothing, whatever it says.
    let other = tempfile::tempdir().expect("tempdir");
    let other = Pki::load_or_create(&PkiConfig::new(other.path()), SystemTime::now()).expect("pki");
    let stranger = Client { identity: Some(other.admin), ..server.client() };
    assert!(stranger.try_send(Method::GET, "/healthz", None).await.is_err());
}

#[tokio::test]
async fn service_accounts_can_do_nothing_until_bound() {
    let server = Server::start().await;
    let admin = server.admin();
    admin.make("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "app"}})).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/app/token";
    let answer = admin
        .make(path, json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}))
        .await;
    let token = answer["status"]["token"].as_str().expect("token").to_owned();
    let app = server.client().with_token(&token);
    let whoami = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let (code, me) = app.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", whoami).await;
    assert_eq!(
        (code, &me["status"]["userInfo"]["username"]),
        (201, &json!("system:serviceaccount:default:app")),
        "{me}"
    );
    assert_eq!(app.get(PODS).await.0, 403);
    let can_i = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"namespace": "default", "verb": "list", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(app.post(reviews, can_i.clone()).await.1["status"]["allowed"], false);
    let binding = json!({"metadata": {"name": "app"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "app", "namespace": "default"}]});
    admin.make("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await;
    app.until(PODS, 200).await;
    assert_eq!(app.post(reviews, can_i).await.1["status"]["allowed"], true);
    assert_eq!(app.get("/api/v1/namespaces/default/secrets").await.0, 403, "view does not show secrets");
    assert_eq!(app.get("/api/v1/namespaces/kube-system/pods").await.0, 403);
    // Tampered, and gone with its account.
    let tampered = format!("{}x{}", &token[..token.len() - 10], &token[token.len() - 9..]);
    assert_eq!(server.client().with_token(&tampered).get(PODS).await.0, 401);
    assert_eq!(
        admin.send(Method::DELETE, "/api/v1/namespaces/default/serviceaccounts/app", None).await.0,
        200
    );
    app.until(PODS, 401).await;
}

#[tokio::test]
async fn a_node_joins_with_its_token_and_touches_only_its_own() {
    let server = Server::start().await;
    let admin = server.admin();
    let token = std::fs::read_to_string(server.dir.path().join("node-token")).expect("node-token");
    let token: NodeToken = token.parse().expect("join token");
    assert_eq!(token.ca_digest, server.pki.ca_digest().expect("digest"));
    let joining = server.client().with_token(&token.token.bearer());
    let csr = |user: &str| {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        let pem = params.serialize_request(&key).expect("csr").pem().expect("pem");
        json!({"metadata": {"name": user.replace(':', "-")}, "spec": {
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "request": STANDARD.encode(pem),
            "usages": ["digital signature", "client auth"]}})
    };
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let made = joining.make(csrs, csr("system:node:a")).await;
    assert_eq!(made["spec"]["username"], format!("system:bootstrap:{}", token.token.id));
    assert!(made["spec"]["groups"].as_array().expect("groups").contains(&json!("system:bootstrappers")));
    assert_eq!(joining.get("/api/v1/nodes").await.0, 403);

    let node = server.certified("system:node:a", "system:nodes");
    let other = server.certified("system:node:b", "system:nodes");
    for (client, name) in [(&node, "a"), (&other, "b")] {
        client.make("/api/v1/nodes", json!({"metadata": {"name": name}})).await;
        let lease = json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
        client.make("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", lease).await;
    }
    admin.make("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    for secret in ["mine", "unrelated"] {
        admin
            .make(
                "/api/v1/namespaces/default/secrets",
                json!({"metadata": {"name": secret}, "stringData": {"a": "b"}}),
            )
            .await;
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "secret": {"secretName": "mine"}}]}});
    let pod = admin.make(PODS, pod).await;

    let secret = |name: &str| format!("/api/v1/namespaces/default/secrets/{name}");
    node.until(&secret("mine"), 200).await;
    for (client, path, code) in [
        (&node, secret("unrelated"), 403),
        (&other, secret("mine"), 403),
        (&node, "/api/v1/namespaces/default/secrets".to_owned(), 403),
        (&node, "/api/v1/nodes/a".to_owned(), 200),
        (&node, "/api/v1/nodes/b".to_owned(), 403),
        (&node, "/api/v1/pods?fieldSelector=spec.nodeName%3Da".to_owned(), 200),
        (&node, "/api/v1/pods?fieldSelector=spec.nodeName%3Db".to_owned(), 403),
        (&node, "/api/v1/pods".to_owned(), 403),
        (&node, format!("{PODS}/p"), 200),
        (&other, format!("{PODS}/p"), 403),
        (&other, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a".to_owned(), 403),
        (&node, "/api/v1/services".to_owned(), 200),
    ] {
        let (got, answer) = client.get(&path).await;
        assert_eq!(got, code, "{path}: {answer}");
    }
    assert_eq!(other.send(Method::DELETE, &format!("{PODS}/p"), None).await.0, 403);
    assert_eq!(other.post("/api/v1/nodes", json!({"metadata": {"name": "c"}})).await.0, 403);
    // Tokens only for pods of its own, bound to them.
    let token_path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let request = |bound: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": bound}});
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod["metadata"]["uid"]});
    assert_eq!(node.post(token_path, request(bound.clone())).await.0, 201);
    assert_eq!(node.post(token_path, request(Value::Null)).await.0, 403);
    assert_eq!(other.post(token_path, request(bound)).await.0, 403);
    // The dataplane's identity, bound to the node.
    let dataplane = "/api/v1/namespaces/kube-system/serviceaccounts/hawser-dataplane/token";
    let answer =
        node.make(dataplane, request(json!({"kind": "Node", "apiVersion": "v1", "name": "a"}))).await;
    let dataplane_client = server.client().with_token(answer["status"]["token"].as_str().expect("token"));
    assert_eq!(dataplane_client.get("/apis/discovery.k8s.io/v1/endpointslices").await.0, 200);
    assert_eq!(dataplane_client.get("/api/v1/nodes").await.0, 200);
    assert_eq!(dataplane_client.get("/api/v1/secrets").await.0, 403);
    let dns = "/api/v1/namespaces/kube-system/serviceaccounts/hawser-dns/token";
    let answer = node.make(dns, request(json!({"kind": "Node", "apiVersion": "v1", "name": "a"}))).await;
    let dns_client = server.client().with_token(answer["status"]["token"].as_str().expect("token"));
    for (path, code) in [
        ("/apis/discovery.k8s.io/v1/endpointslices", 200),
        ("/api/v1/services", 200),
        ("/api/v1/namespaces", 200),
        ("/api/v1/nodes", 403),
        ("/api/v1/secrets", 403),
    ] {
        assert_eq!(dns_client.get(path).await.0, code, "{path}");
    }
    assert_eq!(
        node.post(dataplane, request(json!({"kind": "Node", "apiVersion": "v1", "name": "b"}))).await.0,
        403
    );
}

#[tokio::test]
async fn rights_are_not_made_from_nothing() {
    let server = Server::start().await;
    let admin = server.admin();
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings", "clusterrolebindings"], "verbs": ["create", "get", "update"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    ]);
    admin
        .make(&format!("{rbac}/clusterroles"), json!({"metadata": {"name": "rbacker"}, "rules": rules}))
        .await;
    let role_ref =
        |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
    let user = |name: &str| json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]);
    let binding = |name: &str, role: &str, subject: &str| json!({"metadata": {"name": name}, "roleRef": role_ref(role), "subjects": user(subject)});
    admin.make(&format!("{rbac}/clusterrolebindings"), binding("rbacker", "rbacker", "mallory")).await;
    let mallory = admin.acting_as("mallory", &[]);
    mallory.until(&format!("{rbac}/namespaces/default/roles/none"), 404).await;
    let role = |name: &str, resource: &str| json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]});
    let roles = format!("{rbac}/namespaces/default/roles");
    assert_eq!(mallory.post(&roles, role("ok", "pods")).await.0, 201);
    let (code, status) = mallory.post(&roles, role("bad", "secrets")).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "roles.rbac.authorization.k8s.io \"bad\" is forbidden: user \"mallory\" (groups=[\"system:authenticated\"]) is attempting to grant \
         RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"
    );
    let (code, _) =
        mallory.post(&format!("{rbac}/clusterrolebindings"), binding("me", "cluster-admin", "mallory")).await;
    assert_eq!(code, 403);
    // Acting as others is a right of its own.
    let bob = server.certified("bob", "staff").acting_as("kubernetes-admin", &["system:masters"]);
    assert_eq!(bob.get(PODS).await.0, 403);
}

#[tokio::test]
async fn secrets_are_not_readable_in_the_store_and_a_restart_keeps_everything() {
    let server = Server::start().await;
    let admin = server.admin();
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "correct horse"}});
    admin.make("/api/v1/namespaces/default/secrets", secret).await;
    let encoded = STANDARD.encode("correct horse");
    let stored = server.storage.list("", hawser_storage::ListOptions::default()).await.expect("list");
    let holds = |value: &Bytes, needle: &str| value.windows(needle.len()).any(|w| w == needle.as_bytes());
    assert!(stored.items.len() > 150);
    assert!(!stored.items.iter().any(|kv| holds(&kv.value, &encoded) || holds(&kv.value, "correct horse")));
    assert!(stored.items.iter().any(|kv| holds(&kv.value, "system:basic-user")));

    let (_, address, stop) = start_in(server.dir.path(), server.storage.clone()).await;
    let again = Client { address, ..server.admin() };
    let (code, secret) = again.get("/api/v1/namespaces/default/secrets/s").await;
    assert_eq!((code, &secret["data"]["password"]), (200, &json!(encoded)));
    let (_, roles) = again.get("/apis/rbac.authorization.k8s.io/v1/clusterroles").await;
    assert!(roles["items"].as_array().is_some_and(|items| items.len() >= 70));
    stop.cancel();
}

/// A write of the same Secret is no idle one while the key that it is stored under is not today's; afterwards it is.
#[tokio::test]
async fn a_write_brings_a_secret_under_the_key_of_today() {
    let server = Server::start().await;
    let (all, one) = ("/api/v1/namespaces/default/secrets", "/api/v1/namespaces/default/secrets/s");
    server.admin().make(all, json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}})).await;
    let stored = async || {
        let list = server.storage.list("/registry/secrets/default/s", hawser_storage::ListOptions::default());
        list.await.expect("list").items.remove(0).value
    };
    let file = server.dir.path().join("pki/encryption.keys");
    let old = std::fs::read_to_string(&file).expect("keys");
    let new = KeyRing::generate().expect("a key").to_text().replace("key1:", "newer:");
    // As the administrator rotates it: the new key first, then the old one below.
    std::fs::write(&file, new.clone() + &old).expect("written");
    let (_, address, stop) = start_in(server.dir.path(), server.storage.clone()).await;
    let again = Client { address, ..server.admin() };
    let (_, secret) = again.get(one).await;
    let before = stored().await;
    let (code, written) = again.send(Method::PUT, one, Some(secret.clone())).await;
    assert_eq!(code, 200, "{written}");
    assert_ne!(written["metadata"]["resourceVersion"], secret["metadata"]["resourceVersion"]);
    let after = stored().await;
    assert_ne!(before, after);
    let (_, idle) = again.send(Method::PUT, one, Some(written.clone())).await;
    assert_eq!(idle["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]);
    assert_eq!(stored().await, after);
    stop.cancel();
    // The old key is needed no longer for it.
    let only_new = Envelope::new(&KeyRing::parse(&new).expect("keys")).expect("envelope");
    let key = b"/registry/secrets/default/s";
    assert!(only_new.decrypt(key, after).is_ok() && only_new.decrypt(key, before).is_err());
}

/// A kubelet that wants the API server's certificate, tells logs, and echoes what is sent to exec.
async fn kubelet(pki: &Pki) -> u16 {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(pki).expect("tls")));
    let answer = |mut request: Request<hyper::body::Incoming>| async move {
        let told = format!("{} {}", request.method(), request.uri());
        let upgrade = request.headers().contains_key("upgrade");
        let mut response =
            http::Response::new(Full::new(Bytes::from(if upgrade { String::new() } else { told })));
        if upgrade {
            *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
            for header in ["connection", "upgrade"] {
                response.headers_mut().insert(header, request.headers()[header].clone());
            }
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded.await.expect("upgrade")));
                tokio::io::copy(&mut read, &mut write).await.expect("echo");
            });
        }
        Ok::<_, std::convert::Infallible>(response)
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            // Whoever comes must be the API server.
            assert!(stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty()));
            let http = hyper::server::conn::http1::Builder::new();
            let service = hyper::service::service_fn(answer);
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
        }
    });
    port
}

#[tokio::test]
async fn logs_and_exec_pass_through_to_the_kubelet() {
    let server = Server::start().await;
    let admin = server.admin();
    let port = kubelet(&server.pki).await;
    admin.make("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let status = json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": status});
    assert_eq!(admin.send(Method::PUT, "/api/v1/nodes/n/status", Some(node)).await.0, 200);
    admin.make("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let spec = json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}]});
    admin.make(PODS, json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let (code, log) = admin.get(&format!("{PODS}/p/log?tailLines=1")).await;
    assert_eq!((code, log), (200, json!("GET /containerLogs/default/p/c?tailLines=1")));

    let stream = admin.connect().await.expect("connect");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!("{PODS}/p/exec?command=cat&stdin=true"))
        .header("host", "localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Full::new(Bytes::new()))
        .expect("request");
    let response = sender.send_request(request).await.expect("answer");
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.expect("upgrade"));
    let sent = [7u8; 5000];
    stream.write_all(&sent).await.expect("write");
    let mut echoed = [0u8; 5000];
    stream.read_exact(&mut echoed).await.expect("read");
    assert_eq!(echoed, sent);
}
