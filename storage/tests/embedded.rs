//! The conformance suite on the embedded engine, once with its defaults and once so that every
//! read finds the ring empty and the table in use.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_storage::{
    Storage,
    conformance::Fixture,
    embedded::{Embedded, Options},
};
use tempfile::TempDir;

struct InDirectory {
    store: Option<Embedded>,
    options: Options,
    dir: TempDir,
}

#[async_trait]
impl Fixture for InDirectory {
    fn store(&self) -> Arc<dyn Storage> {
        Arc::new(self.store.clone().expect("the store is open"))
    }

    async fn restart(&mut self) -> bool {
        self.store.take().expect("the store is open").close().await.expect("close");
        self.store = Some(Embedded::open(self.dir.path(), self.options.clone()).await.expect("open again"));
        true
    }
}

async fn make(options: Options) -> InDirectory {
    let dir = TempDir::new().expect("a directory");
    let store = Some(Embedded::open(dir.path(), options.clone()).await.expect("open"));
    InDirectory { store, options, dir }
}

mod defaults {
    use super::*;
    hawser_storage::conformance!(make(Options::default()), 30);
}

mod from_table {
    use super::*;

    fn options() -> Options {
        Options {
            segment_bytes: 4 << 20,
            checkpoint_bytes: 1,
            checkpoint_interval: Duration::ZERO,
            recent_bytes: 0,
            ..Options::default()
        }
    }

    hawser_storage::conformance!(make(options()), 12);
}

/// History beyond what is to be kept goes by itself, and its rows with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_compacted_by_itself() {
    use bytes::Bytes;
    use hawser_storage::{Error, ListOptions, Precondition};

    let options =
        Options { history_revisions: 50, checkpoint_interval: Duration::ZERO, ..Options::default() };
    let mut fixture = make(options).await;
    let store = fixture.store();
    for n in 0..300 {
        store.put("k", Bytes::from(n.to_string()), Precondition::None).await.unwrap();
    }
    let at = |revision| ListOptions { revision: Some(revision), ..ListOptions::default() };
    let compacted = async {
        loop {
            match store.list("", at(200)).await {
                Err(Error::Compacted { compacted }) => break compacted,
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    let compacted = tokio::time::timeout(Duration::from_secs(30), compacted).await.expect("old history goes");
    assert_eq!(compacted, 301 - 50);
    assert_eq!(store.list("", at(compacted)).await.unwrap().items[0].value, Bytes::from("249"));
    drop(store);
    fixture.restart().await;
    assert_eq!(fixture.store().list("", at(compacted)).await.unwrap().items[0].value, Bytes::from("249"));
}
