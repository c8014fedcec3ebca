//! Custom resources in number: what each definition costs, and that the others do not notice.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use hawser_tests::server::{Server, resident};
use hawser_tests::wire::{Endpoint, Wire};
use serde_json::{Value, json};

use crate::report::{Report, Target, ms, percentile};

const DEFINITIONS: usize = 2000;
const CLIENTS: usize = 16;
const PROBES: usize = 500;
/// Longest wait for a definition to be served.
const PATIENCE: Duration = Duration::from_secs(60);
const ROOT: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Measures definitions on an API server alone.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("hawser-bench-").tempdir()?;
    let server = Server::start(binary, "apiserver", directory.path(), &[]).await?;
    let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
    let mut wire = endpoint.connect().await?;
    let mut before = probe(&mut wire, "before").await?;

    let mut served = Vec::new();
    for number in 0..20 {
        served.push(define(&mut wire, "first", number).await?);
    }
    report.add(
        "definition to served, worst of 20",
        ms(percentile(&mut served, 1.0)),
        "ms",
        Target::Below(100.0),
    );

    let held = resident(server.pid())?;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let mut wire = endpoint.connect().await?;
        clients.spawn(async move {
            for number in 0..DEFINITIONS / CLIENTS {
                wire.create(ROOT, definition(&format!("client{client}"), number)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    for client in 0..CLIENTS {
        wait_served(&mut wire, &format!("client{client}"), DEFINITIONS / CLIENTS - 1).await?;
    }
    let each = (resident(server.pid())?.saturating_sub(held)) as f64 / DEFINITIONS as f64 / 1024.0;
    report.add("memory per definition, 2,000 of them", each, "KiB", Target::Below(64.0));
    let mut after = probe(&mut wire, "after").await?;
    let slower = ms(percentile(&mut after, 0.5)) / ms(percentile(&mut before, 0.5));
    report.add("create of another kind with 2,000 definitions, to without", slower, "x", Target::Below(1.5));
    Ok(())
}

/// Times creates of a built-in kind.
async fn probe(wire: &mut Wire, prefix: &str) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(PROBES);
    for number in 0..PROBES {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{prefix}-{number}")}});
        let begun = Instant::now();
        wire.create("/api/v1/namespaces/default/configmaps", Bytes::from(body.to_string())).await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// Makes a definition; answers how long it took until it was served.
async fn define(wire: &mut Wire, prefix: &str, number: usize) -> Result<Duration> {
    let begun = Instant::now();
    wire.create(ROOT, definition(prefix, number)).await?;
    wait_served(wire, prefix, number).await?;
    Ok(begun.elapsed())
}

async fn wait_served(wire: &mut Wire, prefix: &str, number: usize) -> Result<()> {
    let path = format!("/apis/{prefix}-{number}.bench.example.com/v1/widgets");
    let begun = Instant::now();
    loop {
        let (status, _) = wire.send(http::Method::GET, &path, "application/json", Bytes::new()).await?;
        if status.is_success() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("{path} is not served: {status}");
        }
    }
}

/// A definition of ordinary size: some twenty fields, in a group of its own.
fn definition(prefix: &str, number: usize) -> Bytes {
    let group = format!("{prefix}-{number}.bench.example.com");
    let fields: serde_json::Map<String, Value> = (0..20)
        .map(|n| {
            let description =
                "A field with the words that fields of real definitions come with, which nobody reads.";
            (
                format!("field{n}"),
                json!({"type": "string", "maxLength": 63, "description": description, "pattern": "^[a-z]*$"}),
            )
        })
        .collect();
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("widgets.{group}")},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": fields}, "status": {"type": "object"}}}}}]}});
    Bytes::from(crd.to_string())
}
