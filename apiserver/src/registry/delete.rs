//! DELETE: at once, gracefully, or as far as finalizers allow.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hawser_api::decode;
use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::schema;
use hawser_api::status::Status;
use hawser_storage::{Error as StorageError, Precondition};
use serde_json::{Value, json};

use super::{Answer, Call, Registry, storage_status};
use crate::cache::entry::{Entry, Facts};
use crate::hooks;
use crate::options::{DeleteOptions, Propagation};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const ATTEMPTS: usize = 16;

/// What a deletion does to an object.
#[derive(Debug)]
enum Step {
    /// Nothing: it is being deleted already.
    Pending,
    /// The object is marked; it goes later.
    Mark(Value),
    /// The object is marked and goes now.
    MarkAndRemove(Value),
    /// The object goes now.
    Remove,
}

/// What came of it.
pub(crate) enum Deleted {
    /// The object is gone; its last state if the kind answers with it.
    Gone(Value, u64),
    /// The object is still there.
    Kept(Bytes, u64),
}

impl Registry {
    /// Deletes the named object. The body, if any, holds DeleteOptions.
    ///
    /// # Errors
    /// 404, 409 for preconditions that are not met, 422 for options that do not fit.
    pub async fn delete(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let options = self.delete_options(call, &body)?;
        let name = call.info.name.clone();
        // Admission may look at a state that is about to be overtaken; a name that nobody has must be proven.
        let entry = match self.known(call, &name).await? {
            Some(entry) => entry,
            None => self.current(call, &name).await?,
        };
        let shown = self.converter.object(&call.row, &entry).await?;
        self.admit_delete(call, &shown, &options).await?;
        let strategy = hooks::strategy(call.row.stored_kind());
        if strategy.warns_of_orphans && options.propagation.is_none() && options.orphan_dependents.is_none() {
            call.warn(hooks::ORPHAN_WARNING);
        }
        match self.delete_one(call, &name, &options).await? {
            Deleted::Gone(object, revision) if strategy.returns_deleted => {
                let mut object = crate::convert::from_stored(&call.row, object);
                object.set_meta("resourceVersion", revision.to_string().into());
                Ok(Answer::Object(200, object))
            }
            Deleted::Gone(object, _) => {
                let k = &call.row.kind;
                Ok(Answer::Done(Box::new(Status::success(&k.group, &k.plural, &name, object.uid()))))
            }
            Deleted::Kept(value, revision) => {
                // Who asked for dependents to go is told that it takes time.
                let code = if options.orphan_dependents == Some(false) { 202 } else { 200 };
                Ok(Answer::Stored(code, value, revision))
            }
        }
    }

    /// Reads DeleteOptions.
    pub(crate) fn delete_options(&self, call: &Call<'_>, body: &Bytes) -> Result<DeleteOptions, Status> {
        let value = if body.is_empty() {
            None
        } else {
            let mut dropped = hawser_api::decode::Dropped::default();
            let mut value = call.parse(body, "v1", "DeleteOptions", &mut dropped)?;
            if value.is_object()
                && let Some(ty) = schema::find_kind("v1", "DeleteOptions")
            {
                decode::normalize(ty, &mut value, &mut dropped).map_err(|e| Status::bad_request(e.0))?;
            }
            Some(value)
        };
        DeleteOptions::parse(call.info, value.as_ref())
    }

    /// Deletes an object that admission has agreed to let go.
    pub(crate) async fn delete_one(
        &self,
        call: &Call<'_>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let cache = call.cache()?;
        let kind = call.row.stored_kind();
        // What the cache has is mostly the newest state, and the write proves it. What is answered without a write has to
        // be proven otherwise.
        let mut known = self.known(call, name).await?;
        for _ in 0..ATTEMPTS {
            let (entry, proven) = match known.take() {
                Some(entry) => (entry, false),
                None => (self.current(call, name).await?, true),
            };
            let object = entry.decode().map_err(Status::internal)?;
            match check_preconditions(kind, name, &entry, &object, options) {
                Err(_) if !proven => continue,
                checked => checked?,
            }
            let key = cache.storage_key(call.namespace(), name);
            let at = Precondition::ModRevision(entry.revision);
            let (marked, remove) = match plan(kind, object.clone(), options) {
                Step::Pending if !proven => continue,
                Step::Pending => return Ok(Deleted::Kept(entry.value.clone(), entry.revision)),
                Step::Mark(marked) => (Some(marked), false),
                Step::MarkAndRemove(marked) => (Some(marked), true),
                Step::Remove => (None, true),
            };
            if options.dry_run && !proven {
                continue;
            }
            if options.dry_run {
                return Ok(match marked {
                    Some(marked) if !remove => Deleted::Kept(cache.head().encode(&marked), entry.revision),
                    marked => Deleted::Gone(marked.unwrap_or(object), entry.revision),
                });
            }
            let written = match &marked {
                None => Ok((entry.revision, entry.value.clone())),
                Some(marked) => {
                    let value = cache.head().encode(marked);
                    let facts = Facts::of(kind, marked);
                    self.feed.put(&key, value.clone(), facts, at).await.map(|r| (r, value))
                }
            };
            let (revision, value) = match written {
                Ok(written) => written,
                Err(StorageError::Conflict { .. }) => continue,
                Err(e) => return Err(storage_status(&e)),
            };
            if !remove {
                return Ok(Deleted::Kept(value, revision));
            }
            match self.feed.delete(&key, Precondition::ModRevision(revision)).await {
                Ok(revision) => {
                    let gone = marked.unwrap_or(object);
                    self.allocators.deleted(kind, &gone).await;
                    return Ok(Deleted::Gone(gone, revision));
                }
                // Somebody else ended what was marked here.
                Err(StorageError::NotFound) if marked.is_some() => {
                    return Ok(Deleted::Gone(marked.unwrap_or(object), revision));
                }
                // Gone, changed, or made anew since the cache saw it: the next turn looks.
                Err(StorageError::NotFound | StorageError::Conflict { .. }) => {}
                Err(e) => return Err(storage_status(&e)),
            }
        }
        Err(call.stale(name))
    }
}

/// Whether an object is the one that is meant.
///
/// # Errors
/// 409.
pub(super) fn check_preconditions(
    kind: &Arc<Kind>,
    name: &str,
    entry: &Entry,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    if let Some(wanted) = &options.uid
        && wanted != object.uid()
    {
        return Err(Status::conflict(
            &kind.group,
            &kind.kind,
            name,
            format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({}). The object might \
                 have been deleted and then recreated",
                object.uid()
            ),
        ));
    }
    if let Some(wanted) = &options.resource_version
        && *wanted != entry.revision.to_string()
    {
        return Err(Status::conflict(
            &kind.group,
            &kind.kind,
            name,
            format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
                 ({}). The object might have been modified",
                entry.revision
            ),
        ));
    }
    Ok(())
}

/// Decides what a deletion does.
fn plan(kind: &Kind, mut object: Value, options: &DeleteOptions) -> Step {
    if kind.group.is_empty() && kind.plural == "namespaces" {
        return plan_namespace(object, options);
    }
    if kind.builtin && kind.group == "apiextensions.k8s.io" && object.deletion_timestamp().is_none() {
        return Step::Mark(crate::crd::cleanup::mark(object));
    }
    let strategy = hooks::strategy(kind);
    if strategy.graceful && object.deletion_timestamp().is_some() {
        return shorten(object, options);
    }
    let grace = strategy.graceful.then(|| hooks::pod_grace(&object, options.grace_period_seconds));
    let finalizers_changed = set_finalizers(&mut object, options, strategy.orphan_by_default);
    let held = !object.finalizers().is_empty();
    match grace {
        Some(grace) => {
            mark(&mut object, grace);
            if held || grace > 0 { Step::Mark(object) } else { Step::MarkAndRemove(object) }
        }
        None if held => {
            let before = object.clone();
            mark(&mut object, 0);
            if before == object && !finalizers_changed { Step::Pending } else { Step::Mark(object) }
        }
        None => Step::Remove,
    }
}

/// A graceful deletion that is under way can only be made shorter.
fn shorten(mut object: Value, options: &DeleteOptions) -> Step {
    let Some(held) = object.deletion_grace_period_seconds() else { return Step::Remove };
    match options.grace_period_seconds {
        Some(wanted) if wanted < held => {
            let began = hooks::shift(object.deletion_timestamp().unwrap_or_default(), -held);
            object.set_meta("deletionTimestamp", json!(hooks::shift(&began, wanted)));
            object.set_meta("deletionGracePeriodSeconds", json!(wanted));
            if wanted > 0 || !object.finalizers().is_empty() {
                Step::Mark(object)
            } else {
                Step::MarkAndRemove(object)
            }
        }
        // Zero seconds are over: whoever asks again removes what nothing holds.
        Some(0) if held == 0 && object.finalizers().is_empty() => Step::Remove,
        _ => Step::Pending,
    }
}

fn mark(object: &mut Value, grace: i64) {
    if object.deletion_timestamp().is_none() {
        object.set_meta("deletionTimestamp", json!(hooks::now_plus(grace)));
        if let Some(generation) = object.generation().filter(|g| *g > 0) {
            object.set_meta("generation", json!(generation + 1));
        }
        object.set_meta("deletionGracePeriodSeconds", json!(grace));
    } else if object.deletion_grace_period_seconds().is_none_or(|g| g > grace) {
        object.set_meta("deletionGracePeriodSeconds", json!(grace));
    }
}

/// A namespace is emptied by its controller first: `spec.finalizers` hold it.
fn plan_namespace(mut object: Value, options: &DeleteOptions) -> Step {
    if object.deletion_timestamp().is_some() {
        let held = !object.items_at("spec.finalizers").is_empty() || !object.finalizers().is_empty();
        return if held { Step::Pending } else { Step::Remove };
    }
    set_finalizers(&mut object, options, false);
    object.set_meta("deletionTimestamp", json!(hooks::now()));
    object.set_path(&["status", "phase"], json!("Terminating"));
    if object.items_at("spec.finalizers").is_empty() && object.finalizers().is_empty() {
        return Step::MarkAndRemove(object);
    }
    Step::Mark(object)
}

/// Adds and removes the garbage collector's finalizers as the options say. Answers whether anything changed.
fn set_finalizers(object: &mut Value, options: &DeleteOptions, orphan_by_default: bool) -> bool {
    if object.deletion_timestamp().is_some()
        && options.propagation.is_none()
        && options.orphan_dependents.is_none()
    {
        return false;
    }
    let has = |name: &str| object.finalizers().contains(&name);
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation) {
        (Some(orphan), _) => (orphan, has(FOREGROUND) && !orphan),
        (None, Some(Propagation::Orphan)) => (true, false),
        (None, Some(Propagation::Foreground)) => (false, true),
        (None, Some(Propagation::Background)) => (false, false),
        (None, None) if has(ORPHAN) || has(FOREGROUND) => (has(ORPHAN), has(FOREGROUND)),
        (None, None) => (orphan_by_default, false),
    };
    let mut wanted: Vec<String> = object
        .finalizers()
        .into_iter()
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .map(str::to_owned)
        .collect();
    if orphan {
        wanted.push(ORPHAN.into());
    }
    if foreground {
        wanted.push(FOREGROUND.into());
    }
    let mut before: Vec<&str> = object.finalizers();
    before.sort_unstable();
    let mut after: Vec<&str> = wanted.iter().map(String::as_str).collect();
    after.sort_unstable();
    if before == after {
        return false;
    }
    object.set_meta("finalizers", if wanted.is_empty() { Value::Null } else { json!(wanted) });
    true
}

/// Default deadline of a deletecollection.
pub(crate) const COLLECTION_DEADLINE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_api::kinds::find;

    fn step(group: &str, plural: &str, object: &Value, options: &DeleteOptions) -> String {
        let kind = find(group, "v1", plural).expect("row");
        match plan(kind, object.clone(), options) {
            Step::Pending => "pending".into(),
            Step::Remove => "remove".into(),
            Step::Mark(o) => {
                format!("mark {} {:?}", o.deletion_grace_period_seconds().unwrap_or(-1), o.finalizers())
            }
            Step::MarkAndRemove(o) => format!("end {}", o.deletion_grace_period_seconds().unwrap_or(-1)),
        }
    }

    #[test]
    fn what_a_deletion_does() {
        let plain = json!({"metadata": {"name": "a"}});
        let held = json!({"metadata": {"name": "a", "finalizers": ["x/y"]}});
        let scheduled = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let pending = json!({"metadata": {"name": "p"}, "spec": {"terminationGracePeriodSeconds": 30}});
        let dying = json!({"metadata": {"name": "p", "deletionTimestamp": "2024-01-01T00:00:30Z",
            "deletionGracePeriodSeconds": 30}, "spec": {"nodeName": "n"}});
        let none = DeleteOptions::default;
        let grace = |s| DeleteOptions { grace_period_seconds: Some(s), ..none() };
        let policy = |p| DeleteOptions { propagation: Some(p), ..none() };
        for (plural, object, options, want) in [
            ("configmaps", &plain, none(), "remove"),
            ("configmaps", &held, none(), "mark 0 [\"x/y\"]"),
            ("configmaps", &plain, policy(Propagation::Orphan), "mark 0 [\"orphan\"]"),
            ("configmaps", &plain, policy(Propagation::Foreground), "mark 0 [\"foregroundDeletion\"]"),
            ("configmaps", &plain, policy(Propagation::Background), "remove"),
            ("pods", &scheduled, none(), "mark 30 []"),
            ("pods", &scheduled, grace(5), "mark 5 []"),
            ("pods", &scheduled, grace(0), "end 0"),
            ("pods", &pending, none(), "end 0"),
            ("pods", &dying, none(), "pending"),
            ("pods", &dying, grace(60), "pending"),
            ("pods", &dying, grace(5), "mark 5 []"),
            ("pods", &dying, grace(0), "end 0"),
        ] {
            assert_eq!(step("", plural, object, &options), want, "{plural} {object} {options:?}");
        }
    }

    #[test]
    fn a_namespace_waits_for_its_controller() {
        let none = DeleteOptions::default();
        let full = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}});
        let kind = find("", "v1", "namespaces").expect("row");
        let Step::Mark(marked) = plan(kind, full, &none) else { panic!("marked") };
        assert_eq!(marked.str_at("status.phase"), "Terminating");
        assert!(matches!(plan(kind, marked.clone(), &none), Step::Pending));
        let mut empty = marked;
        empty.set_path(&["spec", "finalizers"], json!([]));
        assert!(matches!(plan(kind, empty, &none), Step::Remove));
    }
}
