//! The control plane without nodes: access, every component alone, etcd in the place of the embedded store, and a
//! server that is killed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use hawser_tests::etcd::Etcd;
use hawser_tests::pods::wait;
use hawser_tests::server::Server;
use http::{Method, Request, StatusCode};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// A component's process, ended when dropped.
struct Component(Child);

impl Component {
    fn start(binary: &Path, arguments: &[&str], kubeconfig: &Path) -> Result<Self> {
        let child = Command::new(binary)
            .args(arguments)
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Component(child))
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn temporary() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("hawser-test-").tempdir()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn components_alone_run_a_deployment() -> Result<()> {
    let (binary, directory) = (hawser_tests::hawser_binary()?, temporary()?);
    let server = Server::start(&binary, "apiserver", directory.path(), &[]).await?;
    let mode = std::fs::metadata(server.kubeconfig())?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the administrator's kubeconfig has mode {mode:o}");
    let _scheduler = Component::start(&binary, &["scheduler"], &server.kubeconfig())?;
    let _controllers =
        Component::start(&binary, &["controller-manager", "--no-leader-elect"], &server.kubeconfig())?;
    let client = hawser_tests::cluster::client(&server.kubeconfig()).await?;
    deploy(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_in_the_place_of_the_embedded_store() -> Result<()> {
    let (binary, directory) = (hawser_tests::hawser_binary()?, temporary()?);
    let etcd = Etcd::start(&directory.path().join("etcd"))?;
    let flags = [format!("--etcd-endpoints={}", etcd.url)];
    let server = Server::start(&binary, "server", directory.path(), &flags).await?;
    let client = hawser_tests::cluster::client(&server.kubeconfig()).await?;
    deploy(&client).await
}

/// A Deployment on a node that only exists in the API: its pods must be made and bound.
async fn deploy(client: &Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({
        "metadata": {"name": "paper"},
        "status": {
            "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
            "capacity": {"cpu": "8", "memory": "16Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2030-01-01T00:00:00Z",
                            "lastTransitionTime": "2020-01-01T00:00:00Z", "reason": "KubeletReady", "message": ""}],
        },
    });
    let tolerations = json!([{"operator": "Exists"}]);
    nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "x"}], "tolerations": tolerations},
            },
        },
    });
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    wait(&deployments, "web", "three updated replicas", |deployment| {
        deployment.and_then(|d| d.status.as_ref()).and_then(|s| s.updated_replicas) == Some(3)
    })
    .await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    for pod in pods.list(&ListParams::default().labels("app=web")).await? {
        let name = pod.metadata.name.context("a pod without name")?;
        wait(&pods, &name, "bound", |pod| {
            pod.and_then(|p| p.spec.as_ref()).and_then(|s| s.node_name.as_deref()) == Some("paper")
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_unless_let_in() -> Result<()> {
    let (binary, directory) = (hawser_tests::hawser_binary()?, temporary()?);
    let server = Server::start(&binary, "server", directory.path(), &[]).await?;
    let admin = hawser_tests::cluster::client(&server.kubeconfig()).await?;

    let nobody = with_token(&server, None).await?;
    for open in ["/version", "/healthz", "/livez", "/readyz"] {
        ensure!(get(&nobody, open).await?.0 == StatusCode::OK, "{open} must answer without credentials");
    }
    for closed in
        ["/api", "/api/v1/pods", "/apis/apps/v1/deployments", "/metrics", "/openapi/v3", "/nonsense"]
    {
        let (status, body) = get(&nobody, closed).await?;
        ensure!(
            status == StatusCode::UNAUTHORIZED && body["reason"] == "Unauthorized",
            "{closed}: {status} {body}"
        );
    }
    let (status, _) = get(&with_token(&server, Some("nonsense")).await?, "/api/v1/pods").await?;
    ensure!(status == StatusCode::UNAUTHORIZED, "a bad token: {status}");

    let account = json!({"metadata": {"name": "robot"}});
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::default_namespaced(admin.clone());
    accounts.create(&PostParams::default(), &serde_json::from_value(account)?).await?;
    let request: Request<Vec<u8>> = Request::builder()
        .method(Method::POST)
        .uri("/api/v1/namespaces/default/serviceaccounts/robot/token")
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&json!({"spec": {}}))?)?;
    let answer: Value = admin.request(request).await?;
    let token = answer["status"]["token"].as_str().context("no token")?;
    let robot = with_token(&server, Some(token)).await?;
    let (status, body) = get(&robot, "/api/v1/namespaces/default/configmaps").await?;
    ensure!(status == StatusCode::FORBIDDEN && body["reason"] == "Forbidden", "unbound: {status} {body}");

    for (path, object) in [
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
            json!({"metadata": {"name": "reader"},
                   "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]}),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            json!({"metadata": {"name": "reader"},
                   "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
                   "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}]}),
        ),
    ] {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&object)?)?;
        let _: Value = admin.request(request).await?;
    }
    let allowed = tokio::time::timeout(hawser_tests::pods::TIMEOUT, async {
        while get(&robot, "/api/v1/namespaces/default/configmaps").await?.0 != StatusCode::OK {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    });
    allowed.await.context("the binding does not take effect")??;
    let (status, _) = get(&robot, "/api/v1/namespaces/default/secrets").await?;
    ensure!(status == StatusCode::FORBIDDEN, "what was not granted: {status}");
    Ok(())
}

/// A client that trusts the server's CA and has only a token, or nothing.
async fn with_token(server: &Server, token: Option<&str>) -> Result<Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(server.kubeconfig())?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    config.auth_info =
        kube::config::AuthInfo { token: token.map(|t| t.to_owned().into()), ..Default::default() };
    Ok(Client::try_from(config)?)
}

async fn get(client: &Client, path: &str) -> Result<(StatusCode, Value)> {
    let request = Request::builder().uri(path).body(kube::client::Body::empty())?;
    let answer = client.send(request).await?;
    let status = answer.status();
    let bytes = http_body_util::BodyExt::collect(answer.into_body()).await?.to_bytes();
    Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_a_killed_server() -> Result<()> {
    let (binary, directory) = (hawser_tests::hawser_binary()?, temporary()?);
    let mut written: Vec<String> = Vec::new();
    for round in 0..3 {
        let mut server = Server::start(&binary, "apiserver", directory.path(), &[]).await?;
        let client = hawser_tests::cluster::client(&server.kubeconfig()).await?;
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        for name in &written {
            maps.get(name).await.with_context(|| format!("{name} was acknowledged and is lost"))?;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let maps = maps.clone();
            tasks.spawn(async move {
                let mut made = Vec::new();
                for number in 0..10_000 {
                    let name = format!("map-{round}-{task}-{number}");
                    let map = ConfigMap {
                        metadata: kube::core::ObjectMeta { name: Some(name.clone()), ..Default::default() },
                        ..Default::default()
                    };
                    if maps.create(&PostParams::default(), &map).await.is_err() {
                        break;
                    }
                    made.push(name);
                }
                made
            });
        }
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        server.kill()?;
        while let Some(made) = tasks.join_next().await {
            written.extend(made?);
        }
        ensure!(!written.is_empty(), "nothing was written before the kill");
    }
    let server = Server::start(&binary, "apiserver", directory.path(), &[]).await?;
    let maps: Api<ConfigMap> =
        Api::default_namespaced(hawser_tests::cluster::client(&server.kubeconfig()).await?);
    let names: std::collections::HashSet<String> =
        maps.list(&ListParams::default()).await?.items.into_iter().filter_map(|m| m.metadata.name).collect();
    for name in &written {
        ensure!(names.contains(name), "{name} was acknowledged and is lost");
    }
    Ok(())
}
