//! The API server: start, memory, and durable creates over TLS with the client on the same cores.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use hawser_tests::server::{Server, resident};
use hawser_tests::wire::Endpoint;

use crate::report::{Report, Target, ms, percentile};

const CLIENTS: usize = 32;
const RUN: Duration = Duration::from_secs(5);
const SINGLE_CREATES: usize = 2000;
const STARTS: usize = 5;
/// How long a server is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(5);

/// Measures the control plane without nodes.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("hawser-bench-").tempdir()?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let server = Server::start(binary, "server", directory.path(), &[]).await?;
        starts.push(server.ready_after);
    }
    report.add("server start to ready, median", ms(percentile(&mut starts, 0.5)), "ms", Target::Below(300.0));

    let server = Server::start(binary, "server", directory.path(), &[]).await?;
    // A fixed time, since being idle is what is measured.
    tokio::time::sleep(IDLE).await;
    let idle = resident(server.pid())? as f64 / f64::from(1 << 20);
    report.add("idle memory of the control plane", idle, "MiB", Target::Below(60.0));

    let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
    let mut single = Vec::with_capacity(SINGLE_CREATES);
    let mut wire = endpoint.connect().await?;
    for number in 0..SINGLE_CREATES {
        let body = configmap("single", number);
        let started = Instant::now();
        wire.create("/api/v1/namespaces/default/configmaps", body).await?;
        single.push(started.elapsed());
    }
    report.add("create, 1 client, p50", ms(percentile(&mut single, 0.5)), "ms", Target::Below(0.7));

    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let mut wire = endpoint.connect().await?;
        clients.spawn(async move {
            let mut latencies = Vec::new();
            while started.elapsed() < RUN {
                let body = configmap(&format!("client-{client}"), latencies.len());
                let begun = Instant::now();
                wire.create("/api/v1/namespaces/default/configmaps", body).await?;
                latencies.push(begun.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = clients.join_next().await {
        latencies.extend(done??);
    }
    let rate = latencies.len() as f64 / started.elapsed().as_secs_f64();
    report.add("durable creates, 32 clients", rate, "/s", Target::AtLeast(8000.0));
    report.add("create, 32 clients, p99", ms(percentile(&mut latencies, 0.99)), "ms", Target::Below(50.0));
    Ok(())
}

fn configmap(prefix: &str, number: usize) -> Bytes {
    let body = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{prefix}-{number}"}},"data":{{"key":"value-{number}"}}}}"#
    );
    Bytes::from(body)
}
