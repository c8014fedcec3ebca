//! A node in a test: a fake API, a fake runtime, and the real kubelet between them.

pub mod api;
pub mod cri;

use api::Api;
use cri::Cri;
use hawser_kubelet::{Config, Kubelet, TlsPaths};
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub struct Node {
    pub api: Api,
    pub cri: Cri,
    pub dir: tempfile::TempDir,
    pub config: Config,
    kubelet: Option<(JoinHandle<()>, CancellationToken)>,
    _cri: tokio_util::task::AbortOnDropHandle<()>,
}

impl Node {
    pub async fn start() -> Node {
        Node::start_with(|_, _| {}).await
    }

    /// Starts a node after `prepare` had a look at its directory and configuration.
    pub async fn start_with(prepare: impl FnOnce(&std::path::Path, &mut Config)) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let (api, cri) = (Api::new(), Cri::new());
        let socket = dir.path().join("cri.sock");
        let serving = cri.serve(&socket);
        let mut config = Config::new("node", dir.path().join("data"));
        config.cri_socket = socket;
        config.log_dir = dir.path().join("logs");
        config.node_ips = vec!["127.0.0.1".parse().unwrap()];
        // Tests mount nothing.
        config.tmpfs = false;
        prepare(dir.path(), &mut config);
        let mut node = Node { api, cri, dir, config, kubelet: None, _cri: serving };
        node.boot();
        node
    }

    /// Starts a kubelet.
    pub fn boot(&mut self) {
        let kubelet = Kubelet::new(self.config.clone(), self.api.client()).unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move { kubelet.run(token).await.unwrap() });
        self.kubelet = Some((task, stop));
    }

    /// Ends the kubelet in the middle of whatever it does.
    pub async fn kill(&mut self) {
        let (task, stop) = self.kubelet.take().unwrap();
        task.abort();
        stop.cancel();
        let _ = task.await;
    }

    pub fn pod(&self, name: &str, spec: Value) -> Value {
        let mut spec = spec;
        spec["nodeName"] = json!("node");
        self.api.put("/api/v1/namespaces/default/pods", json!({"metadata": {"name": name}, "spec": spec}))
    }

    pub async fn wait_pod<T>(&self, name: &str, found: impl FnMut(Option<&Value>) -> Option<T>) -> T {
        self.api.wait("pods", "default", name, found).await
    }

    pub async fn wait_ready(&self, name: &str) -> Value {
        self.wait_pod(name, |p| p.filter(|p| condition(p, "Ready") == Some("True")).cloned()).await
    }

    pub async fn wait_gone(&self, name: &str) {
        self.wait_pod(name, |p| p.is_none().then_some(())).await;
    }

    /// Waits until an event with a reason was recorded; answers with its message.
    pub async fn wait_event(&self, reason: &str) -> String {
        for _ in 0..500 {
            if let Some(e) = self.api.list("events").iter().find(|e| e["reason"] == reason) {
                return e["message"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("no event {reason} in {:#?}", self.api.list("events"));
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

pub fn condition<'a>(pod: &'a Value, type_: &str) -> Option<&'a str> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == type_)?["status"].as_str()
}

pub fn waiting(pod: &Value) -> Option<&str> {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str()
}

pub fn one() -> Value {
    json!({"containers": [{"name": "c", "image": "img", "imagePullPolicy": "IfNotPresent"}]})
}

/// A CA with a serving certificate for 127.0.0.1 and a client certificate of an administrator, as files.
pub fn certificates(dir: &std::path::Path) -> (TlsPaths, Vec<u8>, String, String) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let key = KeyPair::generate().unwrap();
    let serving =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let client_key = KeyPair::generate().unwrap();
    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, "admin");
    client.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let client = client.signed_by(&client_key, &issuer).unwrap();
    let paths = TlsPaths {
        cert: write("serving.crt", &serving.pem()),
        key: write("serving.key", &key.serialize_pem()),
        client_ca: Some(write("ca.crt", &ca_cert.pem())),
    };
    (paths, ca_cert.der().to_vec(), client.pem(), client_key.serialize_pem())
}

/// Waits until something holds that no event tells of.
pub async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("it never came to be");
}
