//! A node that falls silent: how long its pods are missed, once their time on it is over.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use hawser_tests::server::Server;
use hawser_tests::wire::Endpoint;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use crate::controllers::{make_nodes, wait_for_account};
use crate::report::{Report, Target};

/// Pods of the node, and how long they tolerate that it is unreachable.
const PODS: usize = 110;
const TOLERATED: i64 = 3;
/// The node's silence that is noticed, and how often the others give a sign of life.
const GRACE: &str = "--node-monitor-grace-period=5";
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How many writes of the stand-in kubelet are under way at once.
const WRITES: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(120);

/// Measures with one process that is the whole control plane, and three nodes that are objects only.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("hawser-bench-").tempdir()?;
    let more = [GRACE.to_owned(), "--no-dns".to_owned()];
    let server = Server::start(binary, "server", directory.path(), &more).await?;
    let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
    let client = hawser_tests::cluster::client(&server.kubeconfig()).await?;
    wait_for_account(&client).await?;
    // The node that will fail is the only one, so every pod is on it.
    make_nodes(&endpoint, 0..1).await?;
    let failing = AbortOnDropHandle::new(tokio::spawn(beat(client.clone(), vec!["node-0".to_owned()])));
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut events = pods.watch(&WatchParams::default().labels("app=many"), "0").await?.boxed();
    let tolerate = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATED});
    let tolerations = [tolerate("node.kubernetes.io/unreachable"), tolerate("node.kubernetes.io/not-ready")];
    let deployment = json!({"metadata": {"name": "many"}, "spec": {"replicas": PODS,
        "selector": {"matchLabels": {"app": "many"}}, "template": {"metadata": {"labels": {"app": "many"}},
            "spec": {"automountServiceAccountToken": false, "tolerations": tolerations,
                "containers": [{"name": "c", "image": "none", "resources": {"requests": {"cpu": "10m"}}}]}}}});
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    let mut running = HashSet::new();
    serve(&pods, &mut events, &mut running, |node| node == "node-0").await?;
    make_nodes(&endpoint, 1..3).await?;
    let _others = ["node-1", "node-2"]
        .map(|node| AbortOnDropHandle::new(tokio::spawn(beat(client.clone(), vec![node.to_owned()]))));
    drop(failing);
    running.clear();
    serve(&pods, &mut events, &mut running, |node| node != "node-0").await?;
    let now = Timestamp::now();
    let node = Api::<Node>::all(client.clone()).get("node-0").await?;
    let taints = node.spec.and_then(|s| s.taints).unwrap_or_default();
    let taint = taints.iter().find(|t| t.effect == "NoExecute").context("the node is not tainted")?;
    let added = taint.time_added.as_ref().context("a taint without its time")?.0;
    // The taint's time is in whole seconds, rounded down: what is told is too long by up to one.
    let late = now.duration_since(added) - SignedDuration::from_secs(TOLERATED);
    let what = "a failed node's 110 pods are running elsewhere, after their time on it is over";
    report.add(what, late.as_secs_f64(), "s", Target::Below(5.0));
    Ok(())
}

/// Signs of life of nodes, until dropped.
async fn beat(client: Client, nodes: Vec<String>) {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let mut tick = tokio::time::interval(HEARTBEAT);
    loop {
        tick.tick().await;
        for node in &nodes {
            let renewed = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node},
                "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": renewed}});
            let apply = PatchParams::apply("bench").force();
            // A beat that is missed is followed by the next one.
            let _ = leases.patch(node, &apply, &Patch::Apply(lease)).await;
        }
    }
}

type Events = futures::stream::BoxStream<'static, kube::Result<WatchEvent<Pod>>>;

/// What kubelets do: says of every pod on a node of `mine` that it runs, until [`PODS`] of them do.
async fn serve(
    pods: &Api<Pod>,
    events: &mut Events,
    running: &mut HashSet<String>,
    mine: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut writes = tokio::task::JoinSet::new();
    while running.len() < PODS {
        let event = tokio::time::timeout(TIMEOUT, events.next()).await;
        let event =
            event.with_context(|| format!("{} pods run", running.len()))?.context("the watch ended")??;
        let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else { continue };
        let name = pod.metadata.name.context("a pod without a name")?;
        if !pod.spec.and_then(|s| s.node_name).is_some_and(|node| mine(&node)) {
            continue;
        }
        if pod.status.and_then(|s| s.phase).as_deref() == Some("Running") {
            running.insert(name);
            continue;
        }
        while writes.len() >= WRITES {
            writes.join_next().await.context("no write")???;
        }
        let pods = pods.clone();
        writes.spawn(async move {
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let status = json!({"status": {"phase": "Running", "startTime": now, "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": now}]}});
            pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
            anyhow::Ok(())
        });
    }
    while let Some(written) = writes.join_next().await {
        written??;
    }
    ensure!(running.len() == PODS, "{} pods run", running.len());
    Ok(())
}
