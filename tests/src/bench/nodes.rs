//! The node: from an API create to a running pod, and from the write of an EndpointSlice to the kernel's maps.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use hawser_tests::pods::{cluster_ip, wait};
use hawser_tests::server::resident;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use xtask::images::BUSYBOX;
use xtask::sandbox::{Sandbox, node_name};
use xtask::{build, images};

use crate::report::{Report, Target, ms, percentile};

/// Nodes of the sandbox.
pub const NODES: u8 = 2;
const PODS: usize = 60;
/// How long the agents are left alone before their idle memory is read: more than the 10 s between two heartbeats, because
/// with a heartbeat an agent gives back what its start needed.
const IDLE: Duration = Duration::from_secs(15);
/// Port of the load generator's server.
pub const PORT: u16 = 9000;
/// Changes of an EndpointSlice that are timed.
const MAP_CHANGES: usize = 200;
/// Image of the load generator: this very program.
pub const BENCH_IMAGE: &str = "hawser.local/bench/load:1";

/// Measures with a sandbox of two nodes.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    with_sandbox("nodes", binary, async |sandbox| measure(sandbox, report).await).await
}

/// Starts a sandbox that knows the load generator's image, does `work` in it, and removes it.
pub async fn with_sandbox(
    name: &str,
    binary: &Path,
    work: impl AsyncFnOnce(&Started<'_>) -> Result<()>,
) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("hawser-bench-").tempdir()?;
    let name = format!("{name}-{}", std::process::id());
    let sandbox = Sandbox::new(&name, &directory.path().join("sandbox"), binary);
    let result = async {
        let mut archives = images::build_demo(&build::demo_images_dir())?;
        let load = directory.path().join("load.tar");
        images::build_program(BENCH_IMAGE, &std::env::current_exe()?, &load)?;
        archives.push(load);
        let begun = Instant::now();
        sandbox.start(NODES, &archives, &|_| {})?;
        work(&Started { sandbox: &sandbox, took: begun.elapsed() }).await
    };
    let result = result.await;
    sandbox.remove()?;
    result
}

/// A sandbox that runs.
pub struct Started<'a> {
    sandbox: &'a Sandbox,
    /// How long it took to come up.
    took: Duration,
}

impl std::ops::Deref for Started<'_> {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        self.sandbox
    }
}

async fn measure(sandbox: &Started<'_>, report: &mut Report) -> Result<()> {
    let took = sandbox.took.as_secs_f64();
    report.add("`up` on a built tree to both nodes Ready", took, "s", Target::Below(3.0));
    let client = hawser_tests::cluster::client(&sandbox.kubeconfig()).await?;

    tokio::time::sleep(IDLE).await;
    agents_memory(sandbox, "idle memory of the agent of", Target::Below(30.0), report)?;
    pod_start(&client, report).await?;
    agents_memory(sandbox, &format!("the same right after {PODS} pods,"), Target::None, report)?;
    map_latency(sandbox, &client, report).await
}

fn agents_memory(sandbox: &Sandbox, what: &str, target: Target, report: &mut Report) -> Result<()> {
    for number in 1..=NODES {
        let name = node_name(number);
        let agent = sandbox.daemon(&name)?.context("no agent")?;
        let memory = resident(u32::try_from(agent.pid)?)? as f64 / f64::from(1 << 20);
        report.add(&format!("{what} {name}"), memory, "MiB", target);
    }
    Ok(())
}

async fn pod_start(client: &Client, report: &mut Report) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut latencies = Vec::with_capacity(PODS);
    // One to warm up, which does not count.
    for number in 0..=PODS {
        let name = format!("start-{number}");
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": BUSYBOX, "command": ["sleep", "100000"]}],
            },
        });
        let params = kube::api::WatchParams::default().fields(&format!("metadata.name={name}"));
        let version = pods.list(&kube::api::ListParams::default().limit(1)).await?.metadata.resource_version;
        let mut events = pods.watch(&params, &version.context("no resourceVersion")?).await?.boxed();
        let started = Instant::now();
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        loop {
            let event = tokio::time::timeout(hawser_tests::pods::TIMEOUT, events.next()).await?;
            let event = event.context("the watch ended")??;
            if let kube::api::WatchEvent::Modified(pod) = event
                && pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
            {
                break;
            }
        }
        if number > 0 {
            latencies.push(started.elapsed());
        }
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await?;
        wait(&pods, &name, "gone", |pod| pod.is_none()).await?;
    }
    report.add("pod create to Running, p50", ms(percentile(&mut latencies, 0.5)), "ms", Target::Below(150.0));
    report.add(
        "pod create to Running, p99",
        ms(percentile(&mut latencies, 0.99)),
        "ms",
        Target::Below(500.0),
    );
    Ok(())
}

/// From the write of an EndpointSlice to the kernel's maps of all nodes, each asked without a pause.
async fn map_latency(sandbox: &Sandbox, client: &Client, report: &mut Report) -> Result<()> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service = json!({"metadata": {"name": "latency"}, "spec": {"ports": [{"port": 80}]}});
    let service = services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    let address = cluster_ip(&service)?;
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let slice = |number: usize| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "latency", "labels": {"kubernetes.io/service-name": "latency"}},
            "addressType": "IPv4",
            "ports": [{"port": 80, "protocol": "TCP"}],
            "endpoints": [{"addresses": [endpoint(number)], "conditions": {"ready": true}}],
        })
    };
    slices.create(&PostParams::default(), &serde_json::from_value(slice(0))?).await?;
    let mut latencies = Vec::with_capacity(MAP_CHANGES);
    for number in 1..=MAP_CHANGES {
        let wanted = endpoint(number);
        let started = Instant::now();
        let mut nodes = tokio::task::JoinSet::new();
        for node in 1..=NODES {
            let socket = sandbox.node_run_dir(node).join("proxy.sock");
            let (address, wanted) = (address.clone(), wanted.clone());
            nodes.spawn(async move { until_in_map(&socket, &address, 80, &wanted).await });
        }
        slices.patch("latency", &PatchParams::default(), &Patch::Merge(slice(number))).await?;
        let mut last = Duration::ZERO;
        while let Some(seen) = nodes.join_next().await {
            last = last.max(seen??.duration_since(started));
        }
        latencies.push(last);
    }
    services.delete("latency", &DeleteParams::default()).await?;
    slices.delete("latency", &DeleteParams::default()).await?;
    let what = "EndpointSlice write to the maps of both nodes";
    report.add(&format!("{what}, p50"), ms(percentile(&mut latencies, 0.5)), "ms", Target::Below(20.0));
    report.add(&format!("{what}, p99"), ms(percentile(&mut latencies, 0.99)), "ms", Target::Below(20.0));
    Ok(())
}

/// An address that no other test uses.
fn endpoint(number: usize) -> String {
    format!("10.244.250.{}", number + 1)
}

/// When a node's map first holds a backend of a frontend.
pub async fn until_in_map(socket: &Path, frontend: &str, port: u16, backend: &str) -> Result<Instant> {
    let mut inspect = hawser_cli::connect(socket).await?;
    let deadline = Instant::now() + hawser_tests::pods::TIMEOUT;
    while Instant::now() < deadline {
        let address = hawser_cli::proto::L4Addr {
            address: frontend.to_string(),
            port: port.into(),
            protocol: "TCP".to_string(),
        };
        let request = hawser_cli::proto::GetLbRequest { address: Some(address) };
        let has = |b: &hawser_cli::proto::Backend| b.address.as_ref().is_some_and(|a| a.address == backend);
        let found = match inspect.get_lb(request).await {
            Ok(found) => found.into_inner(),
            // The Service itself is on its way, too.
            Err(status) if status.code() == tonic::Code::NotFound => continue,
            Err(status) => return Err(status.into()),
        };
        if found.backends.iter().any(has) {
            return Ok(Instant::now());
        }
    }
    anyhow::bail!("{backend} does not reach the map at {}", socket.display())
}
