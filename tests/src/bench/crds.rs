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
/// Definitions that are timed.
const TIMED: usize = 100;
/// Longest wait for a definition to be served.
const PATIENCE: Duration = Duration::from_secs(60);
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const ROOT: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Measures definitions on an API server alone.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("hawser-bench-").tempdir()?;
    let server = Server::start(binary, "apiserver", directory.path(), &[]).await?;
    let endpoint = Endpoint::from_kubeconfig(&server.kubeconfig())?;
    let mut wire = endpoint.connect().await?;
    let mut before = probe(&mut wire, "before").await?;

    appearances(&mut wire, "first", "alone", report).await?;

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
    appearances(&mut wire, "last", "with 2,000 others", report).await?;
    let mut after = probe(&mut wire, "after").await?;
    let rate = |times: &[Duration]| PROBES as f64 / times.iter().sum::<Duration>().as_secs_f64();
    let share = rate(&after) / rate(&before);
    report.add("creates of another kind per second, no definitions", rate(&before), "", Target::AtLeast(0.0));
    report.add("rate of these with 2,000 definitions, to that", share, "x", Target::AtLeast(0.9));
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

/// Makes definitions one after the other and adds how long after the answer each is served, discovered and in OpenAPI.
async fn appearances(wire: &mut Wire, prefix: &str, when: &str, report: &mut Report) -> Result<()> {
    let mut all: [Vec<Duration>; 3] = Default::default();
    for number in 0..TIMED {
        wire.create(ROOT, definition(prefix, number)).await?;
        let answered = Instant::now();
        let group = format!("{prefix}-{number}.bench.example.com");
        wait_served(wire, prefix, number).await?;
        all[0].push(answered.elapsed());
        wait_named(wire, "/apis", AGGREGATED, &format!("\"name\":\"{group}\"")).await?;
        all[1].push(answered.elapsed());
        wait_named(wire, "/openapi/v3", "application/json", &format!("\"apis/{group}/v1\"")).await?;
        all[2].push(answered.elapsed());
    }
    for (what, times) in ["served", "discovered", "in OpenAPI"].into_iter().zip(&mut all) {
        for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
            let what = format!("created to {what}, {when}, {name}");
            report.add(&what, ms(percentile(times, share)), "ms", Target::Below(100.0));
        }
    }
    Ok(())
}

/// Asks for a document until it has a text.
async fn wait_named(wire: &mut Wire, path: &str, accept: &str, text: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let body = wire.get_as(path, accept).await?;
        if body.windows(text.len()).any(|w| w == text.as_bytes()) {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("{path} does not name {text}");
        }
    }
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
