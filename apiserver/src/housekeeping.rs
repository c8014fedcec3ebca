//! What nobody asks for and must happen: old history is given up, old events go.

use std::sync::Arc;
use std::time::Duration;

use hawser_api::object::ObjectExt as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::access::GroupResource;
use crate::registry::Registry;
use hawser_storage::Precondition;

/// How often history is given up, and how much of it is kept (as kube-apiserver).
const COMPACT_EVERY: Duration = Duration::from_secs(300);
/// How long an event is kept after it was last seen (as kube-apiserver).
const EVENT_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// How often old events are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// How often the claims of Services are looked through.
const REPAIR_EVERY: Duration = Duration::from_secs(180);
/// Most events that one look deletes.
const EXPIRE_MOST: usize = 5_000;

/// Keeps house until `stop`.
pub async fn run(registry: Arc<Registry>, stop: CancellationToken) {
    let mut compact = tokio::time::interval_at(tokio::time::Instant::now() + COMPACT_EVERY, COMPACT_EVERY);
    let mut expire = tokio::time::interval_at(tokio::time::Instant::now() + EXPIRE_EVERY, EXPIRE_EVERY);
    let mut repair = tokio::time::interval_at(tokio::time::Instant::now() + REPAIR_EVERY, REPAIR_EVERY);
    // History before this is given up at the next turn.
    let mut horizon = registry.feed.seen();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = compact.tick() => {
                let now = registry.feed.seen();
                if let Err(e) = registry.feed.compact(horizon).await {
                    tracing::warn!(error = %e, revision = horizon, "history cannot be given up");
                }
                horizon = now;
            }
            _ = repair.tick() => repair_claims(&registry).await,
            _ = expire.tick() => {
                let gone = expire_events(&registry, Timestamp::now()).await;
                if gone > 0 {
                    tracing::debug!(gone, "old events deleted");
                }
            }
        }
    }
}

/// Puts the claims of Services right.
async fn repair_claims(registry: &Registry) {
    let table = registry.kinds.snapshot();
    let services = table.find_resource(&GroupResource::new("", "services")).and_then(|row| row.cache.clone());
    let Some(services) = services else { return };
    if let Err(e) = registry.allocators.repair(&registry.feed, &services, Timestamp::now()).await {
        tracing::warn!(error = %e.message, "claims of Services cannot be looked through");
    }
}

/// When an event was last seen.
fn last_seen(event: &Value) -> Option<Timestamp> {
    ["series.lastObservedTime", "lastTimestamp", "eventTime", "metadata.creationTimestamp"]
        .iter()
        .filter_map(|path| hawser_api::time::from_value(event.at(path)))
        .max()
}

/// Deletes events that are over. Answers how many.
pub async fn expire_events(registry: &Registry, now: Timestamp) -> usize {
    let table = registry.kinds.snapshot();
    let Some(cache) =
        table.find_resource(&GroupResource::new("", "events")).and_then(|row| row.cache.clone())
    else {
        return 0;
    };
    if registry.feed.consistent(&cache).await.is_err() {
        // Storage's own troubles are told elsewhere; the next turn looks again.
        return 0;
    }
    let mut old = Vec::new();
    let Ok((entries, _)) = cache.entries(None) else { return 0 };
    for entry in entries {
        let Ok(event) = entry.decode() else { continue };
        if last_seen(&event).is_some_and(|seen| now.duration_since(seen) > EVENT_LIFE) {
            old.push(entry);
        }
        if old.len() == EXPIRE_MOST {
            break;
        }
    }
    let mut gone = 0;
    for entry in old {
        let (namespace, name) = entry.namespace_and_name();
        let key = cache.storage_key(namespace, name);
        // One that was written meanwhile is not old.
        if registry.feed.delete(&key, Precondition::ModRevision(entry.revision)).await.is_ok() {
            gone += 1;
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_latest_time_counts() {
        let event = json!({"metadata": {"creationTimestamp": "2024-01-01T00:00:00Z"}, "lastTimestamp": null,
            "eventTime": "2024-01-01T00:10:00.000000Z", "series": {"lastObservedTime": "2024-01-01T02:00:00.000000Z"}});
        assert_eq!(last_seen(&event).map(|t| t.to_string()).as_deref(), Some("2024-01-01T02:00:00Z"));
        assert_eq!(last_seen(&json!({})), None);
    }
}
