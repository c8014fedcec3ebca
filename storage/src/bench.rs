//! Measures an engine through its trait. `cargo xtask bench` and `examples/bench.rs` print it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::try_join_all;

use crate::{Error, Precondition, Storage};

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Tasks that write one after the other.
    pub writers: usize,
    /// Bytes of each value.
    pub value_bytes: usize,
    pub duration: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub writers: usize,
    /// Acknowledged creates.
    pub creates: usize,
    /// Acknowledged creates per second.
    pub rate: f64,
    /// Latencies of a create.
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>3} writers: {:>8.0} creates/s, p50 {:>7.3} ms, p99 {:>7.3} ms, max {:>7.3} ms",
            self.writers,
            self.rate,
            self.p50.as_secs_f64() * 1e3,
            self.p99.as_secs_f64() * 1e3,
            self.max.as_secs_f64() * 1e3,
        )
    }
}

/// Creates keys below `prefix`, which must be new to the store, as fast as the store acknowledges them.
///
/// # Errors
/// The first write that fails.
pub async fn creates(store: Arc<dyn Storage>, prefix: &str, load: Load) -> Result<Figures, Error> {
    let value = Bytes::from(vec![b'v'; load.value_bytes]);
    let start = Instant::now();
    let tasks = (0..load.writers.max(1)).map(|writer| {
        let (store, value, prefix) = (store.clone(), value.clone(), prefix.to_owned());
        let task = async move {
            let mut latencies = Vec::new();
            while start.elapsed() < load.duration {
                let key = format!("{prefix}{writer:03}/{:08}", latencies.len());
                let begin = Instant::now();
                store.put(&key, value.clone(), Precondition::Absent).await?;
                latencies.push(begin.elapsed());
            }
            Ok(latencies)
        };
        async { tokio::spawn(task).await.unwrap_or_else(|e| Err(Error::Unavailable(e.to_string()))) }
    });
    let mut latencies: Vec<Duration> = try_join_all(tasks).await?.into_iter().flatten().collect();
    let elapsed = start.elapsed();
    latencies.sort_unstable();
    let at = |part: f64| {
        let n = (latencies.len() as f64 * part) as usize;
        latencies.get(n.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    Ok(Figures {
        writers: load.writers,
        creates: latencies.len(),
        rate: latencies.len() as f64 / elapsed.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        max: at(1.0),
    })
}
