//! The controllers: a Deployment of 10,000 pods made and bound, a node that fails, and what all of them hold in a large
//! cluster.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::StreamExt;
use hawser_tests::server::{Server, resident};
use hawser_tests::wire::Endpoint;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{NotUsed, WatchEvent, WatchParams};
use kube::core::Object;
use kube::discovery::ApiResource;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::json;

use crate::api::spread;
use crate::report::{Report, Target};

/// Nodes and pods of the Deployment.
const NODES: usize = 1_000;
const REPLICAS: usize = 10_000;
/// Nodes and pods of the large cluster.
const MANY_NODES: usize = 5_000;
const MANY_PODS: usize = 100_000;
/// Stand-in nodes give no sign of life: their health is not looked at while this lasts.
const GRACE: &str = "--node-monitor-grace-period=3600";
/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How long memory must have stayed within a hundredth to be read.
const CALM: Duration = Duration::from_secs(5);

/// What is read of a pod.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Placed {
    node_name: Option<String>,
}

fn node(number: usize) -> Bytes {
    let now = now();
    let amounts = json!({"cpu": "64", "memory": "256Gi", "pods": "110"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{number}")},
        "status": {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True",
            "reason": "StandIn", "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
    Bytes::from(node.to_string())
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Makes nodes that are objects only.
pub async fn make_nodes(endpoint: &Endpoint, numbers: Range<usize>) -> Result<()> {
    let first = numbers.start;
    spread(endpoint, numbers.len(), move |mut wire, number| async move {
        wire.create("/api/v1/nodes", node(first + number)).await?;
        Ok(wire)
    })
    .await
    .map(|_| ())
}

/// Waits until the namespace `default` has its ServiceAccount: no pods can be made before.
pub async fn wait_for_account(client: &Client) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let there = await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some());
    tokio::time::timeout(TIMEOUT, there).await.context("no default ServiceAccount")??;
    Ok(())
}

/// Measures all of it.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    scale_out(binary, report).await?;
    crate::failover::run(binary, report).await?;
    large_cluster(binary, report).await
}

/// One process with everything, as `hawser server` is.
async fn scale_out(binary: &Path, report: &mut Report) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("hawser-bench-").tempdir()?;
    let more = [GRACE.to_owned(), "--no-dns".to_owned()];
    let server = Server::start(binary, "server", directory.path(), &more).await?;
    let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
    make_nodes(&endpoint, 0..NODES).await?;
    let client = hawser_tests::cluster::client(&server.kubeconfig()).await?;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "many"}}, "template": {
            "metadata": {"labels": {"app": "many"}},
            "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "none",
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    wait_for_account(&client).await?;
    let mut wire = endpoint.connect().await?;
    wire.create(path, Bytes::from(deployment.to_string())).await?;
    let pods: Api<Object<Placed, NotUsed>> =
        Api::namespaced_with(client.clone(), "default", &ApiResource::erase::<Pod>(&()));
    let mut events = pods.watch(&WatchParams::default(), "0").await?.boxed();
    let begun = Instant::now();
    scale(&client, REPLICAS).await?;
    let (mut made, mut bound) = (HashSet::new(), HashSet::new());
    let mut all_made = None;
    while bound.len() < REPLICAS {
        let event = tokio::time::timeout(TIMEOUT, events.next()).await?.context("the watch ended")??;
        match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                let name = pod.metadata.name.context("a pod without a name")?;
                if pod.spec.node_name.is_some() {
                    bound.insert(name.clone());
                }
                made.insert(name);
            }
            WatchEvent::Error(error) => anyhow::bail!("watch: {error:?}"),
            _ => {}
        }
        if made.len() == REPLICAS {
            all_made.get_or_insert_with(|| begun.elapsed());
        }
    }
    let all_made = all_made.context("bound before they were made")?.as_secs_f64();
    report.add("a Deployment scaled from 0 to 10,000: all pods made", all_made, "s", Target::None);
    let what = "the same: all bound to 1,000 stand-in nodes";
    report.add(what, begun.elapsed().as_secs_f64(), "s", Target::Below(5.0));
    Ok(())
}

async fn scale(client: &Client, replicas: usize) -> Result<()> {
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::default_namespaced(client.clone());
    let patch = kube::api::Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch("many", &kube::api::PatchParams::default(), &patch).await?;
    Ok(())
}

/// A process that is ended when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pod(number: usize) -> Bytes {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "labels": {"app": format!("app-{}", number % 500),
            "pod-template-hash": "5d5f6d8c9"}},
        "spec": {"nodeName": format!("node-{}", number % MANY_NODES), "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "registry.example/app:1.0",
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                "ports": [{"containerPort": 8080}], "env": [{"name": "A", "value": "b"}]}]}});
    Bytes::from(pod.to_string())
}

/// The controllers alone in a process, so that their memory can be read.
async fn large_cluster(binary: &Path, report: &mut Report) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("hawser-bench-").tempdir()?;
    let server = Server::start(binary, "apiserver", directory.path(), &[]).await?;
    let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
    let account = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    endpoint.connect().await?.create(accounts, Bytes::from_static(account.as_bytes())).await?;
    make_nodes(&endpoint, 0..MANY_NODES).await?;
    spread(&endpoint, MANY_PODS, |mut wire, number| async move {
        wire.create("/api/v1/namespaces/default/pods", pod(number)).await?;
        Ok(wire)
    })
    .await?;
    let log = std::fs::File::create(directory.path().join("controllers.log"))?;
    let manager = Command::new(binary)
        .args(["controller-manager", "--no-leader-elect", GRACE, "--kubeconfig"])
        .arg(server.kubeconfig())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let manager = Ended(manager);
    let (mut peak, mut last, mut since) = (0.0f64, 0.0f64, Instant::now());
    let deadline = Instant::now() + TIMEOUT;
    // Memory is no event: it is read until it does not move any more.
    while since.elapsed() < CALM {
        ensure!(Instant::now() < deadline, "the controllers' memory does not come to rest");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let held = resident(manager.0.id())? as f64 / f64::from(1 << 20);
        if (held - last).abs() > last / 100.0 {
            (last, since) = (held, Instant::now());
        }
        peak = peak.max(held);
    }
    let what = "memory of all controllers with 5,000 nodes and 100,000 pods";
    report.add(what, last, "MiB", Target::Below(300.0));
    report.add("the same at its peak, while they start", peak, "MiB", Target::None);
    Ok(())
}
