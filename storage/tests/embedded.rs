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

    hawser_storage::conformance!(make(options()), 30);
}
