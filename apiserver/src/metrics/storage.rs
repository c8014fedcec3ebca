//! A storage that counts what it is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use dashmap::DashMap;
use hawser_api::exposition::Exposition;
use hawser_storage::{
    Error, KeyValue, ListOptions, ListResult, Precondition, Revision, Storage, WatchStream,
};

use super::SECONDS;
use super::histogram::Histogram;
use crate::kinds::KindsRegistry;

/// Requests of one operation on one resource.
struct Series {
    operation: &'static str,
    /// Empty, as the resource is, for keys of no resource.
    group: Box<str>,
    resource: Box<str>,
    seconds: Histogram,
    errors: AtomicU64,
}

/// Counts and passes on.
pub struct Measured {
    inner: Arc<dyn Storage>,
    kinds: Arc<KindsRegistry>,
    /// By operation, group and resource.
    series: DashMap<String, Arc<Series>>,
}

impl Measured {
    /// Around an engine.
    pub fn new(inner: Arc<dyn Storage>, kinds: Arc<KindsRegistry>) -> Self {
        Self { inner, kinds, series: DashMap::new() }
    }

    fn series(&self, operation: &'static str, key: &str) -> Arc<Series> {
        let table = self.kinds.load();
        let kind = table.cache_of_key(key).map(|cache| cache.kind());
        let (group, resource) = kind.map_or(("", ""), |k| (k.group.as_str(), k.plural.as_str()));
        let name = [operation, group, resource].join(" ");
        if let Some(series) = self.series.get(&name) {
            return Arc::clone(&series);
        }
        let new = || Series {
            operation,
            group: group.into(),
            resource: resource.into(),
            seconds: Histogram::new(&SECONDS),
            errors: AtomicU64::new(0),
        };
        Arc::clone(&self.series.entry(name).or_insert_with(|| Arc::new(new())))
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
        let series = self.series(operation, key);
        series.seconds.observe(took);
        // A precondition that does not hold is an answer.
        if result.as_ref().is_err_and(|e| !matches!(e, Error::Conflict { .. } | Error::NotFound)) {
            series.errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// The families of requests to storage, named after etcd whatever the engine.
    pub fn write(&self, out: &mut Exposition) {
        let all: Vec<_> = self.series.iter().map(|e| Arc::clone(e.value())).collect();
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
            for series in &all {
                let labels = [
                    ("group", &*series.group),
                    ("operation", series.operation),
                    ("resource", &*series.resource),
                ];
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
