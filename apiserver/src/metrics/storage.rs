//! A storage that counts what it is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use dashmap::DashMap;
use hawser_api::exposition::Exposition;
use hawser_api::kinds::Kind;
use hawser_storage::{
    Error, KeyValue, ListOptions, ListResult, Precondition, Revision, Storage, WatchStream,
};

use super::SECONDS;
use super::histogram::Histogram;
use crate::kinds::KindsRegistry;

/// Requests of one operation on one resource.
struct Series {
    /// None for keys of no resource.
    kind: Option<Arc<Kind>>,
    seconds: Histogram,
    errors: AtomicU64,
}

/// Counts and passes on.
pub struct Measured {
    inner: Arc<dyn Storage>,
    kinds: Arc<KindsRegistry>,
    /// By operation and the address of the kind, which the series keeps alive.
    series: DashMap<(&'static str, usize), Arc<Series>>,
}

impl Measured {
    /// Around an engine.
    pub fn new(inner: Arc<dyn Storage>, kinds: Arc<KindsRegistry>) -> Self {
        Self { inner, kinds, series: DashMap::new() }
    }

    async fn count<T>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        let begun = Instant::now();
        let result = work.await;
        let took = begun.elapsed().as_secs_f64();
        let kind = self.kinds.load().cache_of_key(key).map(|c| Arc::clone(c.kind()));
        let address = kind.as_ref().map_or(0, |k| Arc::as_ptr(k) as usize);
        let found = self.series.get(&(operation, address)).map(|s| Arc::clone(&s));
        let series = found.unwrap_or_else(|| {
            let new =
                || Arc::new(Series { kind, seconds: Histogram::new(&SECONDS), errors: AtomicU64::new(0) });
            Arc::clone(&self.series.entry((operation, address)).or_insert_with(new))
        });
        series.seconds.observe(took);
        // A precondition that does not hold is an answer.
        if result.as_ref().is_err_and(|e| !matches!(e, Error::Conflict { .. } | Error::NotFound)) {
            series.errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// The families of requests to storage, named after etcd whatever the engine.
    pub fn write(&self, out: &mut Exposition) {
        let all: Vec<_> = self.series.iter().map(|e| (e.key().0, Arc::clone(e.value()))).collect();
        let labels = |operation: &'static str, s: &Arc<Series>| {
            let (group, resource) =
                s.kind.as_ref().map_or(("", ""), |k| (k.group.as_str(), k.plural.as_str()));
            [
                ("group", group.to_owned()),
                ("operation", operation.to_owned()),
                ("resource", resource.to_owned()),
            ]
        };
        let families: [(&str, &str, &str); 2] = [
            (
                "etcd_request_duration_seconds",
                "histogram",
                "Etcd request latency in seconds for each operation and object type.",
            ),
            (
                "etcd_request_errors_total",
                "counter",
                "Etcd failed request counts for each operation and object type.",
            ),
        ];
        for (name, kind, help) in families {
            out.family(name, kind, help);
            for (operation, series) in &all {
                let labels = labels(operation, series);
                let labels: Vec<(&str, &str)> = labels.iter().map(|(n, v)| (*n, v.as_str())).collect();
                if kind == "histogram" {
                    series.seconds.write(out, name, &labels);
                } else {
                    out.sample(name, &labels, series.errors.load(Ordering::Relaxed));
                }
            }
        }
    }
}

#[async_trait]
impl Storage for Measured {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error> {
        self.count("get", key, self.inner.get(key)).await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult, Error> {
        self.count("list", prefix, self.inner.list(prefix, options)).await
    }

    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<Revision, Error> {
        let operation = if precondition == Precondition::Absent { "create" } else { "update" };
        self.count(operation, key, self.inner.put(key, value, precondition)).await
    }

    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(KeyValue, Revision), Error> {
        self.count("delete", key, self.inner.delete(key, precondition)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        self.inner.watch(prefix, after).await
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.inner.current_revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }
}
