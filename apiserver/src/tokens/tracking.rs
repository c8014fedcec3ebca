//! Since when the use of tokens in Secrets is recorded: the ConfigMap that tells whoever cleans them up (KEP-2799).

use std::sync::Arc;

use futures::StreamExt;
use hawser_api::object::ObjectExt;
use http::Method;
use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::legacy::day;
use crate::access::{Change, GroupResource, LocalApi, ObjectReader, ObjectRef, UserInfo};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";
const COLLECTION: &str = "/api/v1/namespaces/kube-system/configmaps";

/// A write: method, path, body.
type Write = (Method, String, Value);

/// What to write, given what there is; None where that is right.
fn correction(held: Option<&Value>, today: Date) -> Option<Write> {
    let data = json!({"since": today.to_string()});
    let Some(held) = held else {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": NAMESPACE}, "data": data});
        return Some((Method::POST, COLLECTION.to_owned(), map));
    };
    if held.str_at("data.since").parse::<Date>().is_ok_and(|d| d.to_string() == held.str_at("data.since")) {
        return None;
    }
    let mut map = held.clone();
    map.set_path(&["data", "since"], data["since"].clone());
    Some((Method::PUT, format!("{COLLECTION}/{NAME}"), map))
}

fn ours(object: &ObjectRef) -> bool {
    &*object.namespace == NAMESPACE && &*object.name == NAME
}

/// The ConfigMap after a change; None where the change is about others.
fn after(change: Change) -> Option<Option<Value>> {
    match change {
        Change::Reset(all) => Some(all.iter().find(|o| ours(o)).and_then(|o| o.decode().ok())),
        Change::Applied(object) if ours(&object) => Some(object.decode().ok()),
        Change::Deleted(object) if ours(&object) => Some(None),
        Change::Applied(_) | Change::Deleted(_) => None,
    }
}

/// Keeps the ConfigMap until `stop`.
pub async fn run(reader: Arc<dyn ObjectReader>, local: Arc<dyn LocalApi>, stop: CancellationToken) {
    let mut changes = match reader.changes(&GroupResource::new("", "configmaps")) {
        Ok(changes) => changes,
        Err(error) => {
            tracing::warn!(%error, "since when the use of tokens is recorded cannot be told");
            return;
        }
    };
    let user = Arc::new(UserInfo::apiserver());
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        let Some(held) = after(change) else { continue };
        let Some((method, path, body)) = correction(held.as_ref(), day(Timestamp::now())) else { continue };
        // Another server may have been first; a namespace that is not there yet makes this wait for the next change.
        if let Err(status) = local.call(Arc::clone(&user), method, &path, Some(body), None).await
            && !status.is_not_found()
            && status.code != 409
        {
            tracing::warn!(error = %status, "since when the use of tokens is recorded cannot be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_kept_and_mended() {
        let today = jiff::civil::date(2026, 7, 1);
        let (method, path, body) = correction(None, today).expect("a write");
        assert_eq!((method, path.as_str()), (Method::POST, COLLECTION));
        assert_eq!(body["data"], json!({"since": "2026-07-01"}));
        assert_eq!(correction(Some(&body), jiff::civil::date(2027, 1, 1)), None);
        for since in ["", "yesterday", "2026-7-1", "2026-07-01T00:00:00Z"] {
            let held = json!({"metadata": {"name": NAME, "resourceVersion": "7"},
                "data": {"since": since, "other": "x"}});
            let (method, path, body) = correction(Some(&held), today).expect("a write");
            assert_eq!((method, path), (Method::PUT, format!("{COLLECTION}/{NAME}")), "{since}");
            assert_eq!(body["data"], json!({"since": "2026-07-01", "other": "x"}));
            assert_eq!(body["metadata"]["resourceVersion"], "7");
        }
    }
}
