//! The end of a definition: every instance goes first.
//!
//! A deleted definition is held by a finalizer of the server's own until nothing is left of its resource. Instances may
//! be held by finalizers themselves; they are waited for.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hawser_api::crd::{CLEANUP_FINALIZER, conditions};
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{path, write_status};
use crate::access::{GroupResource, LocalApi, UserInfo};
use crate::cache::{ResourceCache, Scope};
use crate::hooks;
use crate::kinds::Row;
use crate::negotiate::{Accepted, Encoding, Transform};
use crate::options::DeleteOptions;
use crate::registry::{Call, Registry, feed_status, reloading};
use crate::request_info::RequestInfo;

/// Longest pause before what could not be done is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Marks a definition that is to be deleted: it stays until its instances are gone.
pub fn mark(mut crd: Value) -> Value {
    crd.set_meta("deletionTimestamp", json!(hooks::now()));
    crd.set_meta("deletionGracePeriodSeconds", json!(0));
    let mut finalizers: Vec<String> = crd.finalizers().into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|f| f == CLEANUP_FINALIZER) {
        finalizers.push(CLEANUP_FINALIZER.into());
    }
    crd.set_meta("finalizers", json!(finalizers));
    let text = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    let condition = conditions::terminating(true, "InstanceDeletionPending", text);
    let mut status = crd.get("status").cloned().unwrap_or_else(|| json!({}));
    conditions::set(&mut status, condition, &hooks::now());
    crd["status"] = status;
    crd
}

/// Empties the resources of the definitions that come in, until `stop`. Each definition is worked on once at a time.
pub async fn run(
    registry: Arc<Registry>,
    local: Arc<dyn LocalApi>,
    mut deletions: mpsc::UnboundedReceiver<Value>,
    stop: CancellationToken,
) {
    let mut under_way = std::collections::BTreeSet::new();
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(crd) = deletions.recv() => {
                if under_way.insert(crd.uid().to_owned()) {
                    running.push(finish(&registry, &*local, crd));
                }
            }
            Some(uid) = running.next(), if !running.is_empty() => {
                under_way.remove::<String>(&uid);
            }
        }
    }
}

/// Works on one definition until it is gone; answers its UID.
async fn finish(registry: &Registry, local: &dyn LocalApi, crd: Value) -> String {
    let (name, uid) = (crd.name().to_owned(), crd.uid().to_owned());
    loop {
        match attempt(registry, local, &name, &uid).await {
            Ok(()) => return uid,
            Err(e) if e.code == 409 => {}
            Err(e) => {
                tracing::warn!(error = %e, name, "instances of a deleted definition cannot be removed yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn attempt(registry: &Registry, local: &dyn LocalApi, name: &str, uid: &str) -> Result<(), Status> {
    let user = Arc::new(UserInfo::apiserver());
    let read = local.call(user.clone(), Method::GET, &path(name, ""), None, None).await;
    let crd = match read {
        Err(e) if e.is_not_found() => return Ok(()),
        other => other?,
    };
    if crd.uid() != uid || !crd.finalizers().contains(&CLEANUP_FINALIZER) {
        return Ok(());
    }
    let text = "CustomResource deletion is in progress";
    let crd = say(local, crd, conditions::terminating(true, "InstanceDeletionInProgress", text)).await?;
    let (reason, text) = if hawser_api::crd::definition::is_true(&crd, "Established") {
        if let Err(e) = remove_instances(registry, &crd).await {
            let text = format!("could not issue all deletes: {e}");
            say(local, crd, conditions::terminating(true, "InstanceDeletionFailed", &text)).await?;
            return Err(e);
        }
        ("InstanceDeletionCompleted", "removed all instances")
    } else {
        ("NeverEstablished", "resource was never established")
    };
    let crd = say(local, crd, conditions::terminating(false, reason, text)).await?;
    let kept: Vec<&str> = crd.finalizers().into_iter().filter(|f| *f != CLEANUP_FINALIZER).collect();
    let patch = json!({"metadata": {"resourceVersion": crd.resource_version(), "finalizers": kept}});
    let merge = Some("application/merge-patch+json");
    local.call(user, Method::PATCH, &path(name, ""), Some(patch), merge).await.map(drop)
}

/// Writes a condition, unless the definition says so already.
async fn say(local: &dyn LocalApi, crd: Value, condition: Value) -> Result<Value, Status> {
    let mut status = crd.get("status").cloned().unwrap_or_else(|| json!({}));
    conditions::set(&mut status, condition, &hooks::now());
    if crd.get("status") == Some(&status) {
        return Ok(crd);
    }
    write_status(local, crd, status).await
}

/// Deletes every instance and waits until all are gone.
async fn remove_instances(registry: &Registry, crd: &Value) -> Result<(), Status> {
    let resource = GroupResource::new(crd.str_at("spec.group"), crd.str_at("status.acceptedNames.plural"));
    let Some(row) = registry.kinds.snapshot().find_resource(&resource).cloned() else {
        // Never served, or gone already.
        return Ok(());
    };
    let Some(cache) = row.cache.clone() else { return Ok(()) };
    loop {
        registry.feed.consistent(&cache).await.map_err(|e| feed_status(&e))?;
        let ring = cache.ring(&Scope::All, cache.revision());
        let mut changed = std::pin::pin!(ring.changed.notified());
        changed.as_mut().enable();
        let (entries, _) = cache.entries(None).map_err(reloading)?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            let object = entry.decode().map_err(Status::internal)?;
            if object.deletion_timestamp().is_none() {
                delete(registry, &row, &cache, object.namespace(), object.name()).await?;
            }
        }
        let (left, _) = cache.entries(None).map_err(reloading)?;
        if !left.is_empty() {
            // Told of every change; the pause only covers changes that were missed.
            let _ = tokio::time::timeout(RETRY, changed).await;
        }
    }
}

/// Deletes one instance as a request would, admission excepted: a definition's end is not to be stopped by it.
async fn delete(
    registry: &Registry,
    row: &Arc<Row>,
    cache: &ResourceCache,
    namespace: &str,
    name: &str,
) -> Result<(), Status> {
    let user = Arc::new(UserInfo::apiserver());
    let kind = cache.kind();
    let info = RequestInfo {
        is_resource: true,
        verb: "delete",
        group: kind.group.clone(),
        version: row.kind.version.clone(),
        namespace: namespace.to_owned(),
        resource: kind.plural.clone(),
        name: name.to_owned(),
        ..RequestInfo::default()
    };
    let call = Call {
        info: &info,
        user: &user,
        row: row.clone(),
        headers: &HeaderMap::new(),
        accepted: Accepted { encoding: Encoding::Json, transform: Transform::None, pretty: false },
        warnings: Mutex::default(),
        empties: Mutex::default(),
        series: None,
    };
    match registry.delete_one(&call, name, &DeleteOptions::default()).await {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deleted_definition_waits_for_its_instances() {
        let crd = mark(json!({"metadata": {"name": "ws.e.com", "generation": 1}}));
        assert_eq!(crd.finalizers(), [CLEANUP_FINALIZER]);
        assert_eq!(crd.generation(), Some(1));
        assert_eq!(crd["status"]["conditions"][0]["reason"], "InstanceDeletionPending");
    }
}
