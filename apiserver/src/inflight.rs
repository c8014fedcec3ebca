//! How many requests may be worked on at once: reads and writes have limits of their own (`--max-requests-inflight`,
//! `--max-mutating-requests-inflight` of kube-apiserver), and a bounded number of further ones waits for a while. What
//! goes on for long (watches, streams, proxies) is not limited, and what the cluster runs on (`system:masters`, the
//! server's own requests) is never turned away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hawser_api::exposition::Exposition;
use http::Response;
use http::header::{HeaderValue, RETRY_AFTER};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::body::Body;
use crate::request_info::RequestInfo;
use crate::respond;

/// How long a request waits for its turn: a quarter of the time that requests have, as in API priority and fairness.
const PATIENCE: Duration = Duration::from_secs(15);
/// Requests that wait, for each that is worked on.
const WAITING_FACTOR: usize = 8;

/// How many requests are worked on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Reads.
    pub read_only: usize,
    /// Everything else.
    pub mutating: usize,
}

impl Default for Limits {
    /// Those of kube-apiserver.
    fn default() -> Self {
        Self { read_only: 400, mutating: 200 }
    }
}

#[derive(Debug)]
struct Gate {
    limit: usize,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Counts one that waits, also when its client goes away meanwhile.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    fn new(limit: usize) -> Self {
        Self { limit, permits: Arc::new(Semaphore::new(limit)), waiting: AtomicUsize::new(0) }
    }

    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.limit * WAITING_FACTOR {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let _waiting = Waiting(&self.waiting);
        let turn = Arc::clone(&self.permits).acquire_owned();
        tokio::time::timeout(PATIENCE, turn).await.ok()?.ok()
    }

    fn working(&self) -> usize {
        self.limit.saturating_sub(self.permits.available_permits())
    }
}

/// The requests that are being worked on.
#[derive(Debug)]
pub struct Inflight {
    read_only: Gate,
    mutating: Gate,
}

/// Whether a request changes nothing.
pub fn is_read_only(info: &RequestInfo) -> bool {
    matches!(info.verb, "get" | "list" | "watch" | "head")
}

/// Whether a request goes on for as long as its client likes.
pub fn is_long_running(info: &RequestInfo) -> bool {
    let streams = ["attach", "exec", "proxy", "log", "portforward"];
    info.is_resource && (info.verb == "watch" || streams.contains(&info.subresource.as_str()))
}

impl Inflight {
    /// Nothing is going on.
    pub fn new(limits: Limits) -> Self {
        Self { read_only: Gate::new(limits.read_only), mutating: Gate::new(limits.mutating) }
    }

    /// Waits for a request's turn; None when there are too many.
    pub async fn enter(&self, info: &RequestInfo) -> Option<OwnedSemaphorePermit> {
        let gate = if is_read_only(info) { &self.read_only } else { &self.mutating };
        gate.enter().await
    }

    /// Writes the gauges.
    pub fn write(&self, out: &mut Exposition) {
        let gates = [("mutating", &self.mutating), ("readOnly", &self.read_only)];
        let name = "apiserver_current_inflight_requests";
        let help = "Maximal number of currently used inflight request limit of this apiserver per request kind in \
                    last second.";
        out.family(name, "gauge", help);
        for (kind, gate) in gates {
            out.sample(name, &[("request_kind", kind)], gate.working());
        }
        let name = "apiserver_current_inqueue_requests";
        let help = "Maximal number of queued requests in this apiserver per request kind in last second.";
        out.family(name, "gauge", help);
        for (kind, gate) in gates {
            out.sample(name, &[("request_kind", kind)], gate.waiting.load(Ordering::Relaxed));
        }
    }
}

/// What a request that is turned away gets.
pub fn too_many() -> Response<Body> {
    let mut response = respond::text(429, "Too many requests, please try again later.\n");
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn info(method: Method, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method, &uri.parse().expect("uri"))
    }

    #[test]
    fn kinds_of_requests() {
        let pods = "/api/v1/namespaces/a/pods";
        for (method, uri, read_only, long) in [
            (Method::GET, format!("{pods}/p"), true, false),
            (Method::GET, pods.to_owned(), true, false),
            (Method::GET, format!("{pods}?watch=1"), true, true),
            (Method::GET, format!("{pods}/p/log"), true, true),
            (Method::POST, format!("{pods}/p/exec"), false, true),
            (Method::POST, pods.to_owned(), false, false),
            (Method::DELETE, pods.to_owned(), false, false),
            (Method::GET, "/readyz".to_owned(), true, false),
        ] {
            let info = info(method, &uri);
            assert_eq!((is_read_only(&info), is_long_running(&info)), (read_only, long), "{uri}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn some_wait_and_the_rest_is_turned_away() {
        let inflight = Arc::new(Inflight::new(Limits { read_only: 1, mutating: 1 }));
        let write = info(Method::POST, "/api/v1/namespaces/a/pods");
        let first = inflight.enter(&write).await.expect("the first");
        // Reads have a limit of their own.
        assert!(inflight.enter(&info(Method::GET, "/api/v1/namespaces/a/pods")).await.is_some());
        let waiting: Vec<_> = (0..WAITING_FACTOR)
            .map(|_| {
                let (inflight, write) = (Arc::clone(&inflight), write.clone());
                tokio::spawn(async move { inflight.enter(&write).await.is_some() })
            })
            .collect();
        while inflight.mutating.waiting.load(Ordering::Relaxed) < WAITING_FACTOR {
            tokio::task::yield_now().await;
        }
        assert!(inflight.enter(&write).await.is_none());
        drop(first);
        for waiter in waiting {
            assert!(waiter.await.expect("task"), "its turn came");
        }
        // And nobody waits for ever.
        let _held = inflight.enter(&write).await.expect("free again");
        assert!(inflight.enter(&write).await.is_none());
        assert_eq!(inflight.mutating.waiting.load(Ordering::Relaxed), 0);
    }
}
