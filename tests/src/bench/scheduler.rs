//! The scheduler: API server and scheduler as processes of their own, nodes that are objects only.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hawser_tests::server::Server;
use hawser_tests::wire::Endpoint;
use serde_json::{Value, json};

use crate::report::{Report, Target, ms, percentile};

const NODES: usize = 5000;
const ZONES: usize = 10;
const PODS: usize = 10_000;
const UNSCHEDULABLE: usize = 50_000;
const PREEMPTORS: usize = 1000;
const ALONE: usize = 200;
const CLIENTS: usize = 16;
/// The longest that a part may take.
const PATIENCE: Duration = Duration::from_secs(300);
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
const UNBOUND: &str =
    "/api/v1/pods?fieldSelector=spec.nodeName%3D,spec.schedulerName%3Ddefault-scheduler&limit=1";

/// A cluster without kubelets.
struct Cluster {
    _directory: tempfile::TempDir,
    server: Server,
    endpoint: Endpoint,
    scheduler: Option<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Cluster {
    async fn new(binary: &Path, cpu: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hawser-bench-").tempdir()?;
        let server = Server::start(binary, "apiserver", directory.path(), &[]).await?;
        let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
        let cluster = Cluster { _directory: directory, server, endpoint, scheduler: None };
        let node = |n: usize| {
            let name = format!("node-{n}");
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": format!("zone-{}", n % ZONES)}},
                "status": {"allocatable": {"cpu": cpu, "memory": "32Gi", "pods": "110"},
                    "capacity": {"cpu": cpu, "memory": "32Gi", "pods": "110"}}})
        };
        cluster.create("/api/v1/nodes", NODES, node).await?;
        Ok(cluster)
    }

    /// Creates objects from several connections at once.
    async fn create(&self, path: &'static str, count: usize, object: impl Fn(usize) -> Value) -> Result<()> {
        let mut bodies: Vec<Vec<Bytes>> = vec![Vec::new(); CLIENTS];
        for n in 0..count {
            bodies[n % CLIENTS].push(object(n).to_string().into());
        }
        let mut clients = tokio::task::JoinSet::new();
        for bodies in bodies {
            let mut wire = self.endpoint.connect().await?;
            clients.spawn(async move {
                for body in bodies {
                    wire.create(path, body).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = clients.join_next().await {
            done??;
        }
        Ok(())
    }

    fn start(&mut self, binary: &Path) -> Result<()> {
        let mut command = Command::new(binary);
        command.arg("scheduler").arg("--kubeconfig").arg(self.server.kubeconfig());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.scheduler = Some(command.spawn().context("starting the scheduler")?);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.scheduler.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until no more than `left` pods are without a node.
    async fn bound(&self, left: usize) -> Result<()> {
        let begun = Instant::now();
        let mut wire = self.endpoint.connect().await?;
        loop {
            let list: Value = serde_json::from_slice(&wire.get(UNBOUND).await?)?;
            let more = list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0) as usize;
            let cut = list["metadata"]["continue"].as_str().is_some_and(|c| !c.is_empty());
            let unbound = list["items"].as_array().map_or(0, Vec::len) + more;
            // A list by fields does not tell how many are left: then there are some.
            if unbound <= left && !cut {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{unbound} pods or more are without a node");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn pod(name: String, labels: Value, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "app:1",
        "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    json!({"metadata": {"name": name, "labels": labels}, "spec": spec})
}

/// Pods that are there before the scheduler starts, and how many of them it binds in a second.
async fn rate(binary: &Path, count: usize, object: impl Fn(usize) -> Value) -> Result<f64> {
    let mut cluster = Cluster::new(binary, "32").await?;
    // The scheduler reads the cluster first; one pod tells that it has.
    cluster.start(binary)?;
    cluster.create(PODS_PATH, 1, |_| pod("first".into(), json!({}), json!({}))).await?;
    cluster.bound(0).await?;
    let begun = Instant::now();
    cluster.create(PODS_PATH, count, object).await?;
    cluster.bound(0).await?;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Measures.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let plain = |n: usize| pod(format!("p{n}"), json!({"app": "plain"}), json!({}));
    let alone = rate(binary, PODS, plain).await?;
    report.add("plain pods created and bound, 5,000 nodes", alone, "/s", Target::AtLeast(5000.0));
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
        "topologyKey": "topology.kubernetes.io/zone", "labelSelector": {"matchLabels": {"app": "spread"}}}]});
    let with = rate(binary, PODS, |n| pod(format!("p{n}"), json!({"app": "spread"}), spread.clone())).await?;
    report.add("with topology spreading", with, "/s", Target::AtLeast(3000.0));
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "apart"}}}]}}});
    let with = rate(binary, NODES, |n| pod(format!("p{n}"), json!({"app": "apart"}), apart.clone())).await?;
    report.add("with anti-affinity", with, "/s", Target::AtLeast(1000.0));
    crowded(binary, alone, report).await?;
    preemption(binary, report).await?;
    latency(binary, report).await
}

/// Plain pods beside many that fit nowhere.
async fn crowded(binary: &Path, alone: f64, report: &mut Report) -> Result<()> {
    let mut cluster = Cluster::new(binary, "32").await?;
    let nowhere =
        |n: usize| pod(format!("nowhere{n}"), json!({}), json!({"nodeSelector": {"there": "none"}}));
    cluster.create(PODS_PATH, UNSCHEDULABLE, nowhere).await?;
    cluster.start(binary)?;
    let mut wire = cluster.endpoint.connect().await?;
    // Each is told once why it waits; that is not what is measured.
    for n in (0..UNSCHEDULABLE).rev().take(CLIENTS) {
        until(&mut wire, &format!("nowhere{n}"), |pod| pod["status"]["conditions"].is_array()).await?;
    }
    let begun = Instant::now();
    cluster.create(PODS_PATH, PODS, |n| pod(format!("p{n}"), json!({"app": "plain"}), json!({}))).await?;
    for n in (0..PODS).rev().take(CLIENTS) {
        wait_for(&mut wire, &format!("p{n}")).await?;
    }
    let rate = PODS as f64 / begun.elapsed().as_secs_f64();
    report.add(
        "plain pods with 50,000 unschedulable ones, to without",
        rate / alone,
        "x",
        Target::AtLeast(0.9),
    );
    Ok(())
}

/// Waits until a pod has a node.
async fn wait_for(wire: &mut hawser_tests::wire::Wire, name: &str) -> Result<()> {
    until(wire, name, |pod| pod["spec"]["nodeName"].is_string()).await
}

/// Waits until something is true of a pod.
async fn until(wire: &mut hawser_tests::wire::Wire, name: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let pod: Value = serde_json::from_slice(&wire.get(&format!("{PODS_PATH}/{name}")).await?)?;
        if is(&pod) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "pod {name} is still waited for");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

/// Pods each of which another one has to make room for.
async fn preemption(binary: &Path, report: &mut Report) -> Result<()> {
    let mut cluster = Cluster::new(binary, "1").await?;
    let filler = |n: usize| {
        let spec = json!({"nodeName": format!("node-{n}"), "terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": "app:1", "resources": {"requests": {"cpu": "900m"}}}]});
        pod(format!("low{n}"), json!({}), spec)
    };
    cluster.create(PODS_PATH, NODES, filler).await?;
    let class = json!({"metadata": {"name": "high"}, "value": 1000});
    cluster.create("/apis/scheduling.k8s.io/v1/priorityclasses", 1, |_| class.clone()).await?;
    cluster.start(binary)?;
    let preemptor = |n: usize| {
        let spec = json!({"priorityClassName": "high", "containers": [
            {"name": "c", "image": "app:1", "resources": {"requests": {"cpu": "900m"}}}]});
        pod(format!("high{n}"), json!({}), spec)
    };
    let begun = Instant::now();
    cluster.create(PODS_PATH, PREEMPTORS, preemptor).await?;
    cluster.bound(0).await?;
    let rate = PREEMPTORS as f64 / begun.elapsed().as_secs_f64();
    report.add("pods bound by preemption, scheduler's start included", rate, "/s", Target::AtLeast(500.0));
    Ok(())
}

/// One pod after the other on an idle cluster.
async fn latency(binary: &Path, report: &mut Report) -> Result<()> {
    let mut cluster = Cluster::new(binary, "32").await?;
    cluster.start(binary)?;
    cluster.create(PODS_PATH, 1, |_| pod("first".into(), json!({}), json!({}))).await?;
    cluster.bound(0).await?;
    let mut wire = cluster.endpoint.connect().await?;
    let mut times = Vec::with_capacity(ALONE);
    for n in 0..ALONE {
        let name = format!("alone{n}");
        let body = pod(name.clone(), json!({}), json!({})).to_string().into();
        let begun = Instant::now();
        wire.create(PODS_PATH, body).await?;
        wait_for(&mut wire, &name).await?;
        times.push(begun.elapsed());
    }
    report.add("one pod on an idle cluster, p50", ms(percentile(&mut times, 0.5)), "ms", Target::None);
    report.add(
        "one pod on an idle cluster, p99",
        ms(percentile(&mut times, 0.99)),
        "ms",
        Target::Below(10.0),
    );
    Ok(())
}
