//! The stream a watch answers.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, stream::BoxStream};

use crate::{Error, WatchItem};

/// A watch: a stream of [`WatchItem`]s. An error is its last item. Dropping it ends the watch.
pub struct WatchStream {
    items: BoxStream<'static, Result<WatchItem, Error>>,
    progress: ProgressHandle,
}

impl WatchStream {
    /// A watch that yields `items`; `request` is called when somebody wants progress.
    pub fn new(
        items: BoxStream<'static, Result<WatchItem, Error>>,
        request: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        WatchStream { items, progress: ProgressHandle(Arc::new(request)) }
    }

    /// What to ask for progress with, from any task.
    pub fn progress_handle(&self) -> ProgressHandle {
        self.progress.clone()
    }
}

impl Stream for WatchStream {
    type Item = Result<WatchItem, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.items.as_mut().poll_next(cx)
    }
}

/// Asks a watch to yield [`WatchItem::Progress`] once it has yielded everything up to the
/// store's revision at that time or later. Cheap, never blocks; requests are merged.
#[derive(Clone)]
pub struct ProgressHandle(Arc<dyn Fn() + Send + Sync>);

impl ProgressHandle {
    pub fn request(&self) {
        (self.0)();
    }
}
