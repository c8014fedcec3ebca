//! The scheduler: API server, store and scheduler in one process, nodes that are objects only.
//!
//! A cluster is prepared by an API server without a scheduler, and then served by one that has it, so that pods can
//! wait for it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use hawser_tests::server::Server;
use hawser_tests::wire::Endpoint;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::api::spread;
use crate::report::{Report, Target, ms, percentile};

const NODES: usize = 5000;
const ZONES: usize = 10;
const PODS: usize = 10_000;
const UNSCHEDULABLE: usize = 50_000;
const PREEMPTORS: usize = 1000;
const ALONE: usize = 200;
/// Of pods that wait for the scheduler's start, the first one in so many are not measured.
const WARM_UP: usize = 10;
/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(300);
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
/// Events of pods from their binding on.
const BOUND: &str = "/api/v1/namespaces/default/pods?watch=1&fieldSelector=spec.nodeName%21%3D";
/// Events of pods that have no node.
const UNBOUND: &str = "/api/v1/namespaces/default/pods?watch=1&fieldSelector=spec.nodeName%3D";

/// A cluster without kubelets.
struct Cluster {
    server: Server,
    endpoint: Endpoint,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// An API server with nodes of so much CPU.
    async fn prepare(binary: &Path, cpu: &'static str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hawser-bench-").tempdir()?;
        let server = Server::start(binary, "apiserver", directory.path(), &[]).await?;
        let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
        let account = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        endpoint.connect().await?.create(accounts, Bytes::from_static(account.as_bytes())).await?;
        spread(&endpoint, NODES, move |mut wire, number| async move {
            let name = format!("node-{number}");
            wire.create("/api/v1/nodes", node(&name, number % ZONES, cpu)).await?;
            // New nodes are tainted until a controller finds them ready, which none does here.
            let untainted = Bytes::from_static(br#"{"spec":{"taints":null}}"#);
            let path = format!("/api/v1/nodes/{name}");
            wire.expect(Method::PATCH, &path, "application/merge-patch+json", untainted).await?;
            Ok(wire)
        })
        .await?;
        Ok(Cluster { server, endpoint, directory })
    }

    /// Creates pods; so many in a second.
    async fn create(&self, count: usize, pod: fn(usize) -> Value) -> Result<f64> {
        let (_, took) = spread(&self.endpoint, count, move |mut wire, number| async move {
            wire.create(PODS_PATH, pod(number).to_string().into()).await?;
            Ok(wire)
        })
        .await?;
        Ok(count as f64 / took.as_secs_f64())
    }

    /// From here on there is a scheduler.
    async fn schedule(mut self, binary: &Path) -> Result<Self> {
        self.server.stop()?;
        let more = ["--controllers=serviceaccount".to_owned(), "--no-dns".to_owned()];
        self.server = Server::start(binary, "server", self.directory.path(), &more).await?;
        self.endpoint = Endpoint::from_kubeconfig(&self.server.kubeconfig())?;
        Ok(self)
    }

    async fn watch(&self, path: &str, holding: &'static str) -> Result<Events> {
        let body = self.endpoint.connect().await?.open(path).await?;
        Ok(Events { body, holding, begun: Vec::new(), seen: 0 })
    }
}

fn node(name: &str, zone: usize, cpu: &str) -> Bytes {
    let amounts = json!({"cpu": cpu, "memory": "32Gi", "pods": "110"});
    let labels =
        json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{zone}")});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "status": {"allocatable": amounts, "capacity": amounts}});
    Bytes::from(node.to_string())
}

/// A watch whose events, each of them a line, are only counted.
struct Events {
    body: Incoming,
    /// Only lines that hold this count.
    holding: &'static str,
    /// Of the line that has not ended.
    begun: Vec<u8>,
    seen: usize,
}

impl Events {
    /// Waits until so many have come in all.
    async fn until(&mut self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.seen < count {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = tokio::time::timeout(left, self.body.frame());
            let frame = frame.await.with_context(|| format!("{} of {count} pods", self.seen))?;
            let frame = frame.context("the watch ended")??;
            for part in frame.data_ref().map_or(&[][..], |data| data).split_inclusive(|b| *b == b'\n') {
                self.begun.extend_from_slice(part);
                if part.ends_with(b"\n") {
                    self.seen += usize::from(contains(&self.begun, self.holding.as_bytes()));
                    self.begun.clear();
                }
            }
        }
        Ok(())
    }
}

fn contains(line: &[u8], what: &[u8]) -> bool {
    what.is_empty() || line.windows(what.len()).any(|part| part == what)
}

fn pod(name: String, labels: Value, more: Value) -> Value {
    let mut spec = json!({"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "app:1",
        "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
}

fn plain(number: usize) -> Value {
    pod(format!("p{number}"), json!({"app": "plain"}), json!({}))
}

fn even(number: usize) -> Value {
    let constraint = json!({"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
        "topologyKey": "topology.kubernetes.io/zone", "labelSelector": {"matchLabels": {"app": "spread"}}});
    pod(format!("p{number}"), json!({"app": "spread"}), json!({"topologySpreadConstraints": [constraint]}))
}

fn apart(number: usize) -> Value {
    let term = json!({"topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"app": "apart"}}});
    let affinity = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
    pod(format!("p{number}"), json!({"app": "apart"}), json!({"affinity": affinity}))
}

fn nowhere(number: usize) -> Value {
    pod(format!("nowhere{number}"), json!({}), json!({"nodeSelector": {"there": "none"}}))
}

/// What almost fills a node.
fn filling() -> Value {
    json!([{"name": "c", "image": "app:1", "resources": {"requests": {"cpu": "900m"}}}])
}

fn low(number: usize) -> Value {
    let more = json!({"nodeName": format!("node-{number}"), "terminationGracePeriodSeconds": 0,
        "containers": filling()});
    pod(format!("low{number}"), json!({}), more)
}

fn high(number: usize) -> Value {
    let more = json!({"priorityClassName": "high", "containers": filling()});
    pod(format!("high{number}"), json!({}), more)
}

/// How many of the pods that wait for the scheduler it binds in a second. `before` pods have nodes already.
async fn drain(binary: &Path, cluster: Cluster, before: usize, waiting: usize) -> Result<f64> {
    let cluster = cluster.schedule(binary).await?;
    let mut bound = cluster.watch(BOUND, "").await?;
    let first = waiting / WARM_UP;
    bound.until(before + first).await?;
    let (from, begun) = (bound.seen, Instant::now());
    bound.until(before + waiting).await?;
    Ok((before + waiting - from) as f64 / begun.elapsed().as_secs_f64())
}

/// The same from an empty cluster.
async fn rate(binary: &Path, count: usize, object: fn(usize) -> Value) -> Result<f64> {
    let cluster = Cluster::prepare(binary, "32").await?;
    cluster.create(count, object).await?;
    drain(binary, cluster, 0, count).await
}

/// Measures.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let what = "plain pods that wait for the scheduler bound, 5,000 nodes";
    report.add(what, rate(binary, PODS, plain).await?, "/s", Target::AtLeast(5000.0));
    report.add("with topology spreading", rate(binary, PODS, even).await?, "/s", Target::AtLeast(3000.0));
    report.add("with anti-affinity", rate(binary, NODES, apart).await?, "/s", Target::AtLeast(1000.0));
    preemption(binary, report).await?;
    let alone = created(binary, 0, report).await?;
    let beside = created(binary, UNSCHEDULABLE, report).await?;
    let what = "the same with 50,000 unschedulable ones, to without";
    report.add(what, beside / alone, "x", Target::AtLeast(0.9));
    latency(binary, report).await
}

/// Plain pods created while the scheduler runs, beside others that fit nowhere: created and bound in a second.
async fn created(binary: &Path, unschedulable: usize, report: &mut Report) -> Result<f64> {
    let cluster = Cluster::prepare(binary, "32").await?;
    if unschedulable > 0 {
        let creates = cluster.create(unschedulable, nowhere).await?;
        report.note("pods created without a scheduler", creates, "/s");
    }
    let cluster = cluster.schedule(binary).await?;
    // Each is told once why it waits; that is not what is measured.
    cluster.watch(UNBOUND, r#""reason":"Unschedulable""#).await?.until(unschedulable).await?;
    let mut bound = cluster.watch(BOUND, "").await?;
    cluster.create(1, |_| pod("first".into(), json!({}), json!({}))).await?;
    bound.until(1).await?;
    let begun = Instant::now();
    // At the same time: the server ends a watch that nobody reads.
    tokio::try_join!(cluster.create(PODS, plain), bound.until(1 + PODS))?;
    let rate = PODS as f64 / begun.elapsed().as_secs_f64();
    report.add("plain pods created and bound", rate, "/s", Target::None);
    Ok(rate)
}

/// Pods for each of which another one has to make room.
async fn preemption(binary: &Path, report: &mut Report) -> Result<()> {
    let cluster = Cluster::prepare(binary, "1").await?;
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": "high"}, "value": 1000});
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    cluster.endpoint.connect().await?.create(classes, class.to_string().into()).await?;
    cluster.create(NODES, low).await?;
    cluster.create(PREEMPTORS, high).await?;
    let rate = drain(binary, cluster, NODES, PREEMPTORS).await?;
    report.add("pods bound by preemption", rate, "/s", Target::AtLeast(500.0));
    Ok(())
}

/// One pod after the other on an idle cluster.
async fn latency(binary: &Path, report: &mut Report) -> Result<()> {
    let cluster = Cluster::prepare(binary, "32").await?.schedule(binary).await?;
    let mut bound = cluster.watch(BOUND, "").await?;
    let mut wire = cluster.endpoint.connect().await?;
    let mut times = Vec::with_capacity(ALONE);
    // The first one waits until the scheduler has read the cluster.
    for number in 0..=ALONE {
        let body = pod(format!("alone{number}"), json!({}), json!({})).to_string().into();
        let begun = Instant::now();
        wire.create(PODS_PATH, body).await?;
        bound.until(number + 1).await?;
        if number > 0 {
            times.push(begun.elapsed());
        }
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
