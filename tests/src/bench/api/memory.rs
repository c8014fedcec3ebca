//! 100,000 pods: what they cost to hold, and how long a server needs to start with them.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use hawser_tests::server::{Server, resident};
use hawser_tests::wire::Endpoint;

use super::{fresh, rate, spread};
use crate::report::{Report, Target};

const PODS: usize = 100_000;
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";

fn pod(number: usize) -> Bytes {
    let body = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "labels": {"app": format!("app-{}", number % 500)}},
        "spec": {
            "nodeName": format!("node-{}", number % 1000),
            "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "registry.example/app:1.0",
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                "ports": [{"containerPort": 8080}], "env": [{"name": "A", "value": "b"}]}],
        },
    });
    Bytes::from(body.to_string())
}

/// Measures a full store.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let (directory, mut server, endpoint) = fresh(binary).await?;
    let account = r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}"#;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    endpoint.connect().await?.create(accounts, Bytes::from_static(account.as_bytes())).await?;
    let (_, elapsed) = spread(&endpoint, PODS, |mut wire, number| async move {
        wire.create(PODS_PATH, pod(number)).await?;
        Ok(wire)
    })
    .await?;
    report.add("durable creates of pods, 32 clients", rate(PODS, elapsed), "/s", Target::AtLeast(2_000.0));
    let held = resident(server.pid())? as f64 / f64::from(1 << 20);
    report.add("memory with 100,000 pods, right after creating them", held, "MiB", Target::Below(1024.0));

    let address = server.address();
    for (how, kill) in [("after a stop", false), ("after a kill", true)] {
        if kill {
            server.kill()?;
        } else {
            server.stop()?;
        }
        let begun = Instant::now();
        server = Server::start_at(binary, "apiserver", directory.path(), address, &[]).await?;
        let ready = server.ready_after.as_secs_f64();
        let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
        endpoint.connect().await?.get(&format!("{PODS_PATH}?limit=1")).await?;
        let listed = begun.elapsed().as_secs_f64();
        report.add(&format!("start to ready with 100,000 pods, {how}"), ready, "s", Target::Below(3.0));
        report.add(&format!("start to the first page of pods, {how}"), listed, "s", Target::Below(3.0));
    }
    let held = resident(server.pid())? as f64 / f64::from(1 << 20);
    report.add("memory with 100,000 pods, after a restart", held, "MiB", Target::Below(1024.0));
    Ok(())
}
