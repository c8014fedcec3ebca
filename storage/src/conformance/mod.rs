//! One suite that every engine passes (feature `conformance`).
//!
//! An engine's tests make a [`Fixture`] and expand [`conformance!`](crate::conformance!) with the expression
//! that makes it; each case gets a store of its own.

mod history;
mod lists;
mod model;
mod watches;
mod writes;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;

use crate::{Error, Event, ListOptions, ListResult, Precondition, Revision, Storage, WatchItem, WatchStream};

pub use history::{closed_store_answers_errors, compaction, restart};
pub use lists::{list_at_revision, list_pages, paging_while_writing};
pub use model::model;
pub use watches::{
    progress_on_request, slow_watch_is_cut_off, watch_bounds, watch_events, watch_prefix_isolation,
    watch_under_concurrent_writes,
};
pub use writes::{fresh_store, limits, precondition_matrix, races};

/// A store to test.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The store as it is now.
    fn store(&self) -> Arc<dyn Storage>;

    /// Stops the engine (or its server) and starts it again on the same data.
    /// Answers whether the engine can do that.
    async fn restart(&mut self) -> bool;
}

/// Expands to one test per case. The argument is an expression whose value is a future of a [`Fixture`];
/// the second is how many cases the comparison with a model tries.
#[macro_export]
macro_rules! conformance {
    ($make:expr, $model_cases:expr) => {
        $crate::conformance!(@cases $make,
            fresh_store precondition_matrix races limits
            list_at_revision list_pages paging_while_writing
            watch_events watch_bounds watch_prefix_isolation watch_under_concurrent_writes
            slow_watch_is_cut_off progress_on_request
            compaction restart closed_store_answers_errors
        );
        #[test]
        fn model() {
            $crate::conformance::model(|| Box::pin(async { Box::new($make.await) as Box<_> }), $model_cases);
        }
    };
    (@cases $make:expr, $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let mut fixture = $make.await;
                $crate::conformance::$case(&mut fixture).await;
            }
        )*
    };
}

/// No case waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn value(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn create(store: &dyn Storage, key: &str, text: &str) -> Revision {
    store.put(key, value(text), Precondition::Absent).await.expect("create")
}

async fn list(store: &dyn Storage, prefix: &str) -> ListResult {
    store.list(prefix, ListOptions::default()).await.expect("list")
}

fn at(revision: Revision) -> ListOptions {
    ListOptions { revision: Some(revision), ..ListOptions::default() }
}

/// Keys and values of a list.
fn pairs(list: &ListResult) -> Vec<(String, String)> {
    list.items
        .iter()
        .map(|kv| (kv.key.to_string(), String::from_utf8_lossy(&kv.value).into_owned()))
        .collect()
}

/// The events of a watch up to revision `upto`; panics at an error.
async fn events_upto(watch: &mut WatchStream, upto: Revision) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while events.last().is_none_or(|e| e.revision() < upto) {
        match next(watch).await {
            Some(Ok(WatchItem::Events(more))) => events.extend(more),
            Some(Ok(WatchItem::Progress(_))) => {}
            other => panic!("watch ended at {:?} before revision {upto}: {other:?}", events.last()),
        }
    }
    events
}

/// The next item, which must come in reasonable time.
async fn next(watch: &mut WatchStream) -> Option<Result<WatchItem, Error>> {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch yields something")
}

/// What a watch after a compacted revision answers, be it at once or as the first item.
async fn watch_error(store: &dyn Storage, prefix: &str, after: Revision) -> Option<Error> {
    match store.watch(prefix, after).await {
        Err(error) => Some(error),
        Ok(mut watch) => match next(&mut watch).await {
            Some(Err(error)) => Some(error),
            _ => None,
        },
    }
}
