//! Rolling updates under steady load: how many requests fail.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_tests::pods::{cluster_ip, is_ready, wait};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{LogParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use xtask::sandbox::node_name;

use crate::nodes::{self, BENCH_IMAGE, NODES, PORT};
use crate::report::{Report, Target};
use crate::steady::Counts;

const REPLICAS: i32 = 20;
/// How long the clients make requests.
const SPAN: Duration = Duration::from_secs(60);
/// How often the bench looks whether it is run itself.
const TICK: Duration = Duration::from_millis(50);

/// Measures with a sandbox of two nodes, a client on each.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    nodes::with_sandbox("rollout", binary, async |sandbox| {
        measure(&hawser_tests::cluster::client(&sandbox.kubeconfig()).await?, report).await
    })
    .await
}

async fn measure(client: &Client, report: &mut Report) -> Result<()> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let service = json!({
        "metadata": {"name": "steady"},
        "spec": {"selector": {"app": "steady"}, "ports": [
            {"name": "tcp", "port": PORT, "protocol": "TCP"}, {"name": "udp", "port": PORT, "protocol": "UDP"},
        ]},
    });
    let service = services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    let deployment = json!({
        "metadata": {"name": "steady"},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": "steady"}},
            "template": {
                "metadata": {"labels": {"app": "steady"}},
                "spec": {"containers": [{
                    "name": "c", "image": BENCH_IMAGE, "args": ["serve", "--port", PORT.to_string()],
                    "resources": {"requests": {"cpu": "50m"}},
                    "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                }]},
            },
        },
    });
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
    rolled_out(&deployments).await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let target = format!("{}:{PORT}", cluster_ip(&service)?);
    let names: Vec<String> = (1..=NODES).map(|number| format!("steady-{number}")).collect();
    for (name, number) in names.iter().zip(1..) {
        let seconds = SPAN.as_secs().to_string();
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": node_name(number), "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": BENCH_IMAGE, "resources": {"requests": {"cpu": "200m"}},
                    "args": ["steady", "--target", target, "--seconds", seconds]}],
            },
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        wait(&pods, name, "Ready", |pod| pod.is_some_and(is_ready)).await?;
    }
    let pause = Arc::new(Mutex::new(Duration::ZERO));
    let watch = tokio::spawn(pauses(pause.clone()));
    let (started, mut updates) = (Instant::now(), 0);
    while started.elapsed() < SPAN {
        updates += 1;
        let again =
            json!({"spec": {"template": {"metadata": {"annotations": {"update": updates.to_string()}}}}});
        deployments.patch("steady", &PatchParams::default(), &Patch::Merge(again)).await?;
        rolled_out(&deployments).await?;
    }
    let (mut done, mut failed) = ([0; 3], [0; 3]);
    for name in &names {
        let counts = counts(&pods, name).await?;
        for text in &counts.texts {
            eprintln!("  {name}: {text}");
        }
        for kind in 0..3 {
            done[kind] += counts.done[kind];
            failed[kind] += counts.failed[kind];
        }
    }
    watch.abort();
    report.add(
        &format!("rolling updates of {REPLICAS} pods under load"),
        f64::from(updates),
        "",
        Target::None,
    );
    for (kind, what) in ["new TCP connections", "requests over kept ones", "UDP requests"].iter().enumerate()
    {
        report.add(&format!("{what} meanwhile"), done[kind] as f64, "", Target::None);
        report.add(&format!("{what} that failed"), failed[kind] as f64, "", Target::Below(1.0));
    }
    let paused = pause.lock().as_secs_f64();
    report.add("longest time the machine did not run the bench itself", paused, "s", Target::None);
    let (done, failed) = (done.iter().sum::<u64>() as f64, failed.iter().sum::<u64>() as f64);
    report.add("failed, of a million requests", failed / done * 1e6, "", Target::Below(1.0));
    Ok(())
}

async fn rolled_out(deployments: &Api<Deployment>) -> Result<()> {
    wait(deployments, "steady", "rolled out", |deployment| {
        let Some(deployment) = deployment else { return false };
        deployment.status.as_ref().is_some_and(|s| {
            s.observed_generation == deployment.metadata.generation
                && s.updated_replicas == Some(REPLICAS)
                && s.available_replicas == Some(REPLICAS)
                && s.replicas == Some(REPLICAS)
        })
    })
    .await
    .map(|_| ())
}

async fn counts(pods: &Api<Pod>, name: &str) -> Result<Counts> {
    let phase = |pod: Option<&Pod>| pod.and_then(|p| p.status.as_ref()?.phase.clone());
    let is_over = |pod: Option<&Pod>| matches!(phase(pod).as_deref(), Some("Succeeded" | "Failed"));
    let ended = wait(pods, name, "ended", is_over).await?;
    let log = pods.logs(name, &LogParams::default()).await?;
    ensure!(phase(ended.as_ref()).as_deref() == Some("Succeeded"), "the client failed: {log}");
    serde_json::from_str(log.trim()).with_context(|| format!("{name} said {log}"))
}

/// Until it is dropped: the longest time for which this process was not run though it wanted to, outside of all pods.
/// On a crowded machine the scheduler can keep a whole group of processes waiting for longer than a request may take.
async fn pauses(longest: Arc<Mutex<Duration>>) {
    loop {
        let asleep = Instant::now();
        tokio::time::sleep(TICK).await;
        let late = asleep.elapsed().saturating_sub(TICK);
        let mut longest = longest.lock();
        *longest = longest.max(late);
    }
}
