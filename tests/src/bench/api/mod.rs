//! The API server: start, memory, rates and latencies over TLS with the client on the same cores.

mod etcd;
mod lists;
mod memory;
mod requests;
mod watches;

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use hawser_tests::server::{Server, resident};
use hawser_tests::wire::{Endpoint, Wire};
use tempfile::TempDir;

use crate::report::{Report, Target, ms, percentile};

pub use {etcd::run as etcd, lists::run as lists, memory::run as memory};
pub use {requests::run as requests, watches::run as watches};

/// Clients at the same time where more than one is asked for.
const CLIENTS: usize = 32;
const STARTS: usize = 5;
/// How long a server is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(5);
const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const JSON: &str = "application/json";

/// Measures start and idle memory of the whole control plane.
pub async fn start(binary: &Path, report: &mut Report) -> Result<()> {
    let directory = directory()?;
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
    Ok(())
}

/// A directory for a server's data, on the disk that `TMPDIR` names.
fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("hawser-bench-").tempdir()?)
}

/// An API server alone, with nothing in it, and how to reach it.
pub async fn fresh(binary: &Path) -> Result<(TempDir, Server, Endpoint)> {
    let directory = directory()?;
    let server = Server::start(binary, "apiserver", directory.path(), &[]).await?;
    let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
    Ok((directory, server, endpoint))
}

/// A ConfigMap of the smallest size.
fn configmap(name: &str, value: &str) -> Bytes {
    let body = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"key":"value-{value}"}}}}"#
    );
    Bytes::from(body)
}

/// Runs `one` with the numbers from 0 to `total` on [`CLIENTS`] connections, each its share, and answers all
/// latencies and the whole time.
pub async fn spread<F>(
    endpoint: &Endpoint,
    total: usize,
    one: impl Fn(Wire, usize) -> F + Copy + Send + 'static,
) -> Result<(Vec<Duration>, Duration)>
where
    F: Future<Output = Result<Wire>> + Send,
{
    let mut wires = Vec::new();
    for _ in 0..CLIENTS {
        wires.push(endpoint.connect().await?);
    }
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for (client, mut wire) in wires.into_iter().enumerate() {
        clients.spawn(async move {
            let mut latencies = Vec::new();
            for number in (client..total).step_by(CLIENTS) {
                let begun = Instant::now();
                wire = one(wire, number).await?;
                latencies.push(begun.elapsed());
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = clients.join_next().await {
        latencies.extend(done??);
    }
    Ok((latencies, started.elapsed()))
}

/// Creates ConfigMaps `PREFIX-0` to `PREFIX-(total - 1)`.
async fn create_many(
    endpoint: &Endpoint,
    prefix: &'static str,
    total: usize,
) -> Result<(Vec<Duration>, Duration)> {
    spread(endpoint, total, move |mut wire, number| async move {
        wire.create(CONFIGMAPS, configmap(&format!("{prefix}-{number}"), "x")).await?;
        Ok(wire)
    })
    .await
}

fn rate(count: usize, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}
