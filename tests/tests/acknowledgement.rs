//! What the API says of endpoints is true on every node: a dataplane that stands still holds up a pod's readiness, and
//! the signal that ends one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use hawser_tests::cluster::Cluster;
use hawser_tests::pods::{exec, is_ready, run_busybox, wait};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// A process that stands still while this lives.
struct Paused(Pid);

impl Paused {
    fn new(cluster: &Cluster, host: &str) -> Result<Self> {
        let daemon = cluster.sandbox().daemon(host)?.with_context(|| format!("{host} does not run"))?;
        let pid = Pid::from_raw(daemon.pid);
        kill(pid, Signal::SIGSTOP)?;
        Ok(Paused(pid))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // The process may have ended; then there is nothing to wake.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataplane_that_stands_still_is_waited_for() -> Result<()> {
    let cluster = Cluster::start("acks", &hawser_tests::hawser_binary()?, 2, &[], None)?;
    let client = cluster.client().await?;
    let result = steps(&cluster, &client).await;
    result.with_context(|| cluster.logs_tail())
}

async fn steps(cluster: &Cluster, client: &Client) -> Result<()> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service =
        json!({"metadata": {"name": "slow"}, "spec": {"selector": {"run": "slow"}, "ports": [{"port": 80}]}});
    services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    // The agents are there, and have acknowledged.
    for node in ["node-1", "node-2"] {
        run_busybox(client, &format!("first-{node}"), json!({"nodeName": node}), "sleep 100000").await?;
    }
    ready_waits(cluster, client).await?;
    the_signal_waits(cluster, client).await
}

/// A pod whose containers are ready is not ready itself while node-2 does not know it.
async fn ready_waits(cluster: &Cluster, client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let paused = Paused::new(cluster, "node-2")?;
    let pod = json!({
        "metadata": {"name": "slow", "labels": {"run": "slow"}},
        "spec": {
            "nodeName": "node-1", "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "main", "image": xtask::images::BUSYBOX, "command": ["sh", "-c",
                "trap 'touch /tmp/signalled; sleep 1; exit 0' TERM; while true; do sleep 0.1; done"]}],
        },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let pod =
        wait(&pods, "slow", "containers ready", |pod| condition(pod, "ContainersReady") == Some("True"))
            .await?;
    // Its endpoint is there, so node-1 has had its turn; only node-2 is missing.
    let said = message(pod.as_ref(), "Ready").unwrap_or_default();
    ensure!(!is_ready(pod.as_ref().context("the pod is gone")?), "ready while node-2 stands still");
    ensure!(said.contains("has acknowledged"), "Ready says {said:?}");
    endpoint(client, |ready, _| !ready).await?;
    drop(paused);
    wait(&pods, "slow", "Ready", |pod| pod.is_some_and(is_ready)).await?;
    endpoint(client, |ready, _| ready).await
}

/// A deleted pod runs on until node-2 knows that it goes.
async fn the_signal_waits(cluster: &Cluster, client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let paused = Paused::new(cluster, "node-2")?;
    pods.delete("slow", &DeleteParams::default()).await?;
    endpoint(client, |_, terminating| terminating).await?;
    // The kubelet of node-1 has had as long as it takes to start and end another pod.
    run_busybox(client, "meanwhile", json!({"nodeName": "node-1"}), "sleep 100000").await?;
    let got = exec(client, "slow", &["ls", "/tmp"]).await?;
    ensure!(
        got.code == 0 && !got.stdout.contains("signalled"),
        "signalled while node-2 stands still: {got:?}"
    );
    drop(paused);
    let resumed = Instant::now();
    wait(&pods, "slow", "gone", |pod| pod.is_none()).await?;
    ensure!(resumed.elapsed() < Duration::from_secs(20), "the pod ran until its grace period was over");
    Ok(())
}

fn find<'a>(pod: Option<&'a Pod>, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod?.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

fn condition<'a>(pod: Option<&'a Pod>, kind: &str) -> Option<&'a str> {
    find(pod, kind).map(|c| c.status.as_str())
}

fn message(pod: Option<&Pod>, kind: &str) -> Option<String> {
    find(pod, kind)?.message.clone()
}

/// Waits until the Service's endpoint is as `wanted` (ready, terminating).
async fn endpoint(client: &Client, wanted: impl Fn(bool, bool) -> bool) -> Result<()> {
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let config = watcher::Config::default().labels("kubernetes.io/service-name=slow");
    let mut events = std::pin::pin!(watcher(slices, config).default_backoff().applied_objects());
    let found = tokio::time::timeout(hawser_tests::pods::TIMEOUT, async {
        while let Some(slice) = events.next().await {
            let Ok(slice) = slice else { continue };
            let mut conditions = slice.endpoints.iter().flatten().filter_map(|e| e.conditions.as_ref());
            if conditions.any(|c| wanted(c.ready == Some(true), c.terminating == Some(true))) {
                return true;
            }
        }
        false
    });
    ensure!(found.await.unwrap_or(false), "the endpoint is not as it should be");
    Ok(())
}
