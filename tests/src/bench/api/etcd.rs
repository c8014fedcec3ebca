//! The etcd engine against etcd itself: the same values, put by the same number of clients, in turns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use hawser_storage::bench::{Load, creates};
use hawser_storage::etcd::{Etcd as Engine, Options};
use hawser_tests::etcd::Etcd;

use super::{CLIENTS, directory};
use crate::report::{Report, Target};

const ROUNDS: usize = 4;
const VALUE_BYTES: usize = 700;
const SPAN: Duration = Duration::from_secs(3);

/// Measures the engine without an API server above it.
pub async fn run(report: &mut Report) -> Result<()> {
    let directory = directory()?;
    let etcd = Etcd::start(directory.path())?;
    let options = Options { endpoints: vec![etcd.url.clone()], ..Options::default() };
    let engine: Arc<Engine> = Arc::new(Engine::connect(options).await?);
    let client = etcd_client::Client::connect([etcd.url.as_str()], None).await?;
    let mut ratios = Vec::new();
    let mut fastest = 0f64;
    // One round to warm up, which does not count.
    for round in 0..=ROUNDS {
        let own = own_rate(&client, round).await?;
        let load = Load { writers: CLIENTS, value_bytes: VALUE_BYTES, duration: SPAN };
        let ours = creates(engine.clone(), &format!("/registry/bench/{round}/"), load).await?.rate;
        if round > 0 {
            ratios.push(ours / own);
            fastest = fastest.max(ours);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    report.add("creates through the etcd engine over etcd's own puts", median, "", Target::AtLeast(0.9));
    report.add("creates through the etcd engine, 32 clients", fastest, "/s", Target::AtLeast(1_000.0));
    Ok(())
}

/// Plain puts per second with the published client.
async fn own_rate(client: &etcd_client::Client, round: usize) -> Result<f64> {
    let begun = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..CLIENTS {
        let mut kv = client.kv_client();
        writers.spawn(async move {
            let mut done = 0usize;
            while begun.elapsed() < SPAN {
                let key = format!("/own/{round}/{writer:03}/{done:08}");
                kv.put(key, vec![b'v'; VALUE_BYTES], None).await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(writer) = writers.join_next().await {
        done += writer??;
    }
    Ok(super::rate(done, begun.elapsed()))
}
