//! What the server does when storage fails: errors are told, never taken for emptiness, and caches come back whole.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{Kit, version};
use futures::StreamExt as _;
use hawser_storage::memory::Memory;
use hawser_storage::{
    Error, KeyValue, ListOptions, ListResult, Precondition, Revision, Storage, WatchItem, WatchStream,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// A store whose watch can be broken and whose reads can fail.
#[derive(Default)]
struct Faulty {
    inner: Memory,
    broken: Arc<Notify>,
    down: AtomicBool,
}

impl Faulty {
    fn up(&self) -> Result<(), Error> {
        if self.down.load(Ordering::Acquire) { Err(Error::Unavailable("a test".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Storage for Faulty {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision), Error> {
        self.up()?;
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult, Error> {
        self.up()?;
        self.inner.list(prefix, options).await
    }
    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<Revision, Error> {
        self.up()?;
        self.inner.put(key, value, precondition).await
    }
    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(KeyValue, Revision), Error> {
        self.up()?;
        self.inner.delete(key, precondition).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, Error> {
        let stream = self.inner.watch(prefix, after).await?;
        let progress = stream.progress_handle();
        let broken = self.broken.clone();
        let end = async move {
            broken.notified().await;
            Err(Error::Compacted { compacted: u64::MAX })
        };
        let end = futures::stream::once(end);
        let mixed: futures::stream::BoxStream<'static, Result<WatchItem, Error>> =
            futures::stream::select(stream, end).boxed();
        Ok(WatchStream::new(mixed, move || progress.request()))
    }
    async fn current_revision(&self) -> Result<Revision, Error> {
        self.up()?;
        self.inner.current_revision().await
    }
    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }
    async fn close(&self) -> Result<(), Error> {
        self.inner.close().await
    }
}

fn node(name: &str) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}})
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().filter_map(|i| i["metadata"]["name"].as_str()).collect()
}

#[tokio::test]
async fn lost_history_is_read_anew_and_watchers_are_told() {
    let storage = Arc::new(Faulty::default());
    let kit = Kit::with(storage.clone(), &[]).await;
    kit.post("/api/v1/nodes", &node("a")).await.expect(201);
    let mut all = kit.watch("/api/v1/nodes?watch=1&timeoutSeconds=30").await;
    let mut one = kit.watch("/api/v1/nodes?watch=1&timeoutSeconds=30&fieldSelector=metadata.name%3Da").await;
    for events in [&mut all, &mut one] {
        assert_eq!(events.brief().await.map(|e| e.0).as_deref(), Some("ADDED"));
    }
    storage.broken.notify_waiters();
    let end = one.next().await.expect("the end is told");
    assert_eq!((end["type"].as_str(), end["object"]["code"].as_u64()), (Some("ERROR"), Some(410)));
    assert!(one.next().await.is_none());
    kit.post("/api/v1/nodes", &node("b")).await.expect(201);
    // Who had seen everything up to the new start may go on; nobody goes on with a gap.
    let next = all.next().await.expect("an event");
    assert!(next["type"] == "ERROR" || next["object"]["metadata"]["name"] == "b", "{next}");
    let list = kit.get("/api/v1/nodes").await.expect(200);
    assert_eq!(names(&list), ["a", "b"]);
    // Watches work again, from the list on.
    let from = version(&list);
    let mut events =
        kit.watch(&format!("/api/v1/nodes?watch=1&resourceVersion={from}&timeoutSeconds=30")).await;
    kit.delete("/api/v1/nodes/a").await.expect(200);
    assert_eq!(events.brief().await.map(|e| (e.0, e.1)), Some(("DELETED".into(), "a".into())));
}

#[tokio::test]
async fn an_error_is_never_an_empty_list() {
    let storage = Arc::new(Faulty::default());
    let kit = Kit::with(storage.clone(), &[]).await;
    kit.post("/api/v1/nodes", &node("a")).await.expect(201);
    kit.get("/api/v1/nodes").await.expect(200);
    storage.down.store(true, Ordering::Release);
    for path in ["/api/v1/nodes", "/api/v1/nodes/a", "/api/v1/nodes/none", "/api/v1/persistentvolumes"] {
        let got = kit.get(path).await;
        assert_eq!((got.code, got.body["reason"].as_str()), (503, Some("ServiceUnavailable")), "{path}");
    }
    assert_eq!(kit.post("/api/v1/nodes", &node("b")).await.code, 503);
    assert_eq!(kit.get("/readyz").await.code, 500);
    // What does not have to be the newest is still there.
    assert_eq!(names(&kit.get("/api/v1/nodes?resourceVersion=0").await.expect(200)), ["a"]);
    storage.down.store(false, Ordering::Release);
    assert_eq!(names(&kit.get("/api/v1/nodes").await.expect(200)), ["a"]);
    assert_eq!(kit.get("/api/v1/persistentvolumes").await.expect(200)["items"], json!([]));
    assert_eq!(kit.get("/readyz").await.code, 200);
}

#[tokio::test]
async fn values_that_cannot_be_read_are_an_error() {
    let storage = Arc::new(Memory::new());
    storage
        .put("/registry/minions/broken", Bytes::from_static(b"no json"), Precondition::Absent)
        .await
        .expect("stored");
    let kit = Kit::with(storage.clone(), &[]).await;
    let got = kit.get("/api/v1/nodes").await;
    assert_eq!((got.code, got.body["reason"].as_str()), (500, Some("InternalError")));
    storage.delete("/registry/minions/broken", Precondition::None).await.expect("deleted");
    tokio::time::timeout(Duration::from_secs(5), async {
        while kit.get("/api/v1/nodes").await.code != 200 {}
    })
    .await
    .expect("readable again");
}
