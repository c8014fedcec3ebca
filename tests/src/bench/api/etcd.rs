//! The etcd engine against etcd itself: the same values, put by the same number of clients, in turns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
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
    let (mut over_puts, mut over_transactions) = (Vec::new(), Vec::new());
    let mut fastest = 0f64;
    // One round to warm up, which does not count.
    for round in 0..=ROUNDS {
        let puts = own_rate(&client, &format!("/put/{round}"), false).await?;
        let transactions = own_rate(&client, &format!("/txn/{round}"), true).await?;
        let load = Load { writers: CLIENTS, value_bytes: VALUE_BYTES, duration: SPAN };
        let ours = creates(engine.clone(), &format!("/registry/bench/{round}/"), load).await?;
        if round > 0 {
            over_puts.push(ours.rate / puts);
            over_transactions.push(ours.rate / transactions);
            fastest = fastest.max(ours.rate);
        }
    }
    report.add(
        "creates through the etcd engine over etcd's own guarded puts",
        median(over_transactions),
        "",
        Target::AtLeast(0.9),
    );
    report.add("the same over puts that overwrite what is there", median(over_puts), "", Target::None);
    report.add("creates through the etcd engine, 32 clients", fastest, "/s", Target::AtLeast(1_000.0));
    Ok(())
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or_default()
}

/// Puts per second with the published client: plain ones, or guarded ones, each in a transaction that creates its key, as
/// every create of an API server is.
async fn own_rate(client: &etcd_client::Client, prefix: &str, create: bool) -> Result<f64> {
    let begun = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..CLIENTS {
        let mut kv = client.kv_client();
        let prefix = prefix.to_owned();
        writers.spawn(async move {
            let mut done = 0usize;
            while begun.elapsed() < SPAN {
                let key = format!("{prefix}/{writer:03}/{done:08}");
                let value = vec![b'v'; VALUE_BYTES];
                if create {
                    let absent = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
                    let put = TxnOp::put(key, value, None);
                    kv.txn(Txn::new().when([absent]).and_then([put])).await?;
                } else {
                    kv.put(key, value, None).await?;
                }
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
