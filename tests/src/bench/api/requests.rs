//! Creates, merge patches, gets and deletes, each durable before it is answered.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use hawser_tests::server::{Server, cpu};
use http::Method;

use super::{CONFIGMAPS, JSON, configmap, create_many, fresh, rate, spread};
use crate::report::{Report, Target, ms, percentile};

const SINGLE: usize = 2000;
/// Objects of each run with many clients: some seconds' worth.
const MANY: usize = 60_000;
const GETS: usize = 120_000;
const MERGE_PATCH: &str = "application/merge-patch+json";

/// The server's processor time, which tells what a rate on a busy machine does not.
struct Used {
    pid: u32,
    before: Duration,
}

impl Used {
    fn since(server: &Server) -> Result<Self> {
        let (user, system) = cpu(server.pid())?;
        Ok(Self { pid: server.pid(), before: user + system })
    }

    /// Tells what each of `count` requests took since the last call.
    fn note(&mut self, report: &Report, count: usize) -> Result<()> {
        let (user, system) = cpu(self.pid)?;
        let used = (user + system).saturating_sub(self.before);
        self.before = user + system;
        report.note("processor time of the server for each", used.as_secs_f64() * 1e6 / count as f64, "µs");
        Ok(())
    }
}

/// Measures requests on single objects.
pub async fn run(binary: &Path, report: &mut Report) -> Result<()> {
    let (_directory, server, endpoint) = fresh(binary).await?;
    let mut used = Used::since(&server)?;
    let mut wire = endpoint.connect().await?;
    let mut single = Vec::with_capacity(SINGLE);
    for number in 0..SINGLE {
        let body = configmap(&format!("single-{number}"), "x");
        let begun = Instant::now();
        wire.create(CONFIGMAPS, body).await?;
        single.push(begun.elapsed());
    }
    report.add("create, 1 client, p50", ms(percentile(&mut single, 0.5)), "ms", Target::Below(0.6));
    used.note(report, SINGLE)?;

    let (mut latencies, elapsed) = create_many(&endpoint, "many", MANY).await?;
    report.add("durable creates, 32 clients", rate(MANY, elapsed), "/s", Target::AtLeast(12_000.0));
    report.add("create, 32 clients, p99", ms(percentile(&mut latencies, 0.99)), "ms", Target::Below(50.0));
    used.note(report, MANY)?;

    let (_, elapsed) = spread(&endpoint, MANY, |mut wire, number| async move {
        let path = format!("{CONFIGMAPS}/many-{number}");
        let patch = format!(r#"{{"data":{{"key":"patched-{number}"}}}}"#);
        wire.expect(Method::PATCH, &path, MERGE_PATCH, patch.into()).await?;
        Ok(wire)
    })
    .await?;
    report.add("merge patches, 32 clients", rate(MANY, elapsed), "/s", Target::AtLeast(8_000.0));
    used.note(report, MANY)?;

    let (_, elapsed) = spread(&endpoint, GETS, |mut wire, number| async move {
        wire.get(&format!("{CONFIGMAPS}/many-{}", number % MANY)).await?;
        Ok(wire)
    })
    .await?;
    report.add("gets, 32 clients", rate(GETS, elapsed), "/s", Target::AtLeast(25_000.0));
    used.note(report, GETS)?;

    let (_, elapsed) = spread(&endpoint, MANY, |mut wire, number| async move {
        let path = format!("{CONFIGMAPS}/many-{number}");
        wire.expect(Method::DELETE, &path, JSON, Bytes::new()).await?;
        Ok(wire)
    })
    .await?;
    report.add("deletes, 32 clients", rate(MANY, elapsed), "/s", Target::AtLeast(8_000.0));
    used.note(report, MANY)?;
    Ok(())
}
