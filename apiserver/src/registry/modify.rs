//! The loop that every change of an existing object goes through: read, change, admit, validate, write with
//! compare-and-swap, and once more when somebody else was quicker.

use std::sync::Arc;

use hawser_api::managed::update::update;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::{FieldError, Status};
use hawser_storage::{Error as StorageError, Precondition};
use serde_json::Value;

use super::{AdmissionStep, Answer, Call, Registry, storage_status};
use crate::access::Operation;
use crate::cache::entry::{Entry, Facts};
use crate::managed::{self, Served};
use crate::options::WriteOptions;
use crate::{convert, hooks};

/// How often a change is tried when others write the same object.
const ATTEMPTS: usize = 64;
/// Number of queues for writers that have lost a race.
const QUEUES: usize = 64;

/// Lets writers that have lost a race for an object wait for each other instead of racing on. Objects share queues by
/// the hash of their key.
#[derive(Debug)]
pub struct Queues(Vec<tokio::sync::Mutex<()>>);

impl Default for Queues {
    fn default() -> Self {
        Self((0..QUEUES).map(|_| tokio::sync::Mutex::default()).collect())
    }
}

impl Queues {
    async fn wait(&self, key: &str) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        use std::hash::{BuildHasher as _, RandomState};
        static STATE: std::sync::LazyLock<RandomState> = std::sync::LazyLock::new(RandomState::new);
        let hash = usize::try_from(STATE.hash_one(key) % QUEUES as u64).unwrap_or(0);
        Some(self.0.get(hash)?.lock().await)
    }
}

/// How a change differs from a plain update.
#[derive(Debug, Clone, Copy)]
pub struct Manner<'a> {
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// `UpdateOptions` or `PatchOptions`.
    pub options_kind: &'a str,
    /// Whether an object without a resourceVersion overwrites whatever is there.
    pub unconditional: bool,
    /// The server itself makes the change (a binding): fields that clients cannot change may change.
    pub trusted: bool,
    /// The change has noted its managers itself, or nobody is to be noted.
    pub noted: bool,
}

/// What came of one attempt.
enum Attempt {
    /// Written.
    Written(Answer),
    /// There was nothing to write.
    Unchanged(Answer),
    /// The object has changed meanwhile.
    Raced,
}

/// What is there.
pub struct Current {
    /// In the request's version, with its resourceVersion.
    pub object: Value,
    /// As the cache has it.
    pub entry: Arc<Entry>,
}

impl Registry {
    /// Changes an object. `change` is given what is there and answers what is to be there, both in the row's version;
    /// it may run several times.
    ///
    /// # Errors
    /// 404, 409, whatever `change`, admission and validation say.
    pub(crate) async fn modify(
        &self,
        call: &Call<'_>,
        options: &WriteOptions,
        manner: Manner<'_>,
        mut change: impl FnMut(&Current) -> Result<Value, Status>,
    ) -> Result<Answer, Status> {
        let name = &call.info.name;
        let mut turn = None;
        // What the cache has is mostly the newest state, and a write proves it. Only an answer without a write has to
        // be proven otherwise.
        let mut entry = self.known(call, name).await?;
        for _ in 0..ATTEMPTS {
            let (held, proven) = match entry.take() {
                Some(held) => (held, false),
                None => (self.current(call, name).await?, true),
            };
            let key = held.key.clone();
            let mut claimed = false;
            let attempt = async {
                let object = self.converter.object(&call.row, &held).await?;
                let current = Current { object, entry: held };
                let new = change(&current)?;
                claimed = !new.resource_version().is_empty();
                self.try_write(call, options, manner, &current, new).await
            };
            match attempt.await {
                Ok(Attempt::Written(answer)) => return Ok(answer),
                Ok(Attempt::Unchanged(answer)) if proven => return Ok(answer),
                Err(status) if proven => return Err(status),
                Ok(Attempt::Unchanged(_)) | Err(_) => {}
                // Who named the version that is gone has to look again.
                Ok(Attempt::Raced) if claimed && manner.options_kind == "UpdateOptions" => {
                    return Err(call.stale(name));
                }
                Ok(Attempt::Raced) => {
                    if turn.is_none() {
                        turn = self.queues.wait(&key).await;
                    }
                }
            }
        }
        Err(call.stale(name))
    }

    /// An object as the cache has it, which may be behind.
    pub(super) async fn known(&self, call: &Call<'_>, name: &str) -> Result<Option<Arc<Entry>>, Status> {
        let cache = call.cache()?;
        self.feed.ensure(cache).await.map_err(|e| super::feed_status(&e))?;
        cache.get(call.namespace(), name).map_err(super::reloading)
    }

    /// One attempt.
    async fn try_write(
        &self,
        call: &Call<'_>,
        options: &WriteOptions,
        manner: Manner<'_>,
        current: &Current,
        mut new: Value,
    ) -> Result<Attempt, Status> {
        let (cache, kind, name) = (call.cache()?, &call.row.kind, &call.info.name);
        let (stored, judging) = (call.row.stored_kind(), call.row.judging_kind());
        self.check_preconditions(call, manner, current, &new)?;
        if new.resource_version().is_empty() {
            // Who names no version means the one that is there.
            new.set_meta("resourceVersion", current.object.resource_version().into());
        }
        if !manner.noted {
            let (now, manager) = (hooks::now(), call.manager(options));
            let served = Served::new(self.kinds.snapshot(), call.row.clone());
            update(&served.writer(&manager, manner.subresource, &now), &current.object, &mut new);
        }
        let step = AdmissionStep {
            operation: Operation::Update,
            kind: &kind.kind,
            old: Some(&current.object),
            dry_run: options.dry_run,
            options: &options.to_value(manner.options_kind),
        };
        self.admit(call, step, Some(&mut new)).await?;

        let decoded;
        let old_stored = if call.row.is_stored_version() {
            &current.object
        } else {
            decoded = current.entry.decode().map_err(Status::internal)?;
            &decoded
        };
        let old_judged = if call.row.kind.custom.is_some() { &current.object } else { old_stored };
        let mut new = convert::to_judged(&call.row, new);
        let part = if manner.subresource == "scale" { "" } else { manner.subresource };
        if !manner.trusted {
            hooks::prepare_update(judging, part, &mut new, old_judged);
        }
        managed::keep_times(&mut new, old_judged);
        let mut allocation =
            self.allocators.update(judging, part, &mut new, old_judged, options.dry_run).await?;
        // Who overwrites whatever is there overwrites this version.
        if manner.unconditional && matches!(new.resource_version(), "" | "0") {
            new.set_meta("resourceVersion", current.object.resource_version().into());
        }
        let judged = async {
            if !manner.trusted {
                let told = hooks::validate_update(
                    &call.row.kind,
                    judging,
                    part,
                    &new,
                    old_judged,
                    &call.empties.lock(),
                )?;
                told.into_iter().for_each(|w| call.warn(w));
            }
            if part.is_empty() {
                hooks::warnings(judging, &new, Some(old_judged)).into_iter().for_each(|w| call.warn(w));
            }
            if self.admission_wanted(call, Operation::Update) {
                let mut shown = convert::judged_to_row(&call.row, new.clone());
                self.validate_admission(call, step, Some(&mut shown)).await?;
            }
            Ok(())
        };
        if let Err(status) = judged.await {
            // Before anybody tries again.
            allocation.refused().await;
            return Err(status);
        }
        // What a webhook would have to convert back is answered as it is.
        let shown = call.row.needs_webhook().then(|| new.clone());
        if shown.is_some() {
            new = self.converter.convert(stored, vec![new]).await?.pop().unwrap_or_default();
        }
        let mut new = convert::judged_to_stored(&call.row, new);
        let answer = |value: bytes::Bytes, revision: u64| match &shown {
            None => Answer::Stored(200, value, revision),
            Some(object) => {
                let mut object = object.clone();
                object.set_meta("resourceVersion", revision.to_string().into());
                Answer::Object(200, object)
            }
        };
        let value = cache.head().encode(&new);
        let entry = &current.entry;
        if options.dry_run && shown.is_some() {
            return Ok(Attempt::Unchanged(answer(value, entry.revision)));
        }
        if options.dry_run {
            new.set_meta("resourceVersion", entry.revision.to_string().into());
            return Ok(Attempt::Unchanged(Answer::Object(200, convert::from_stored(&call.row, new))));
        }
        let key = cache.storage_key(call.namespace(), name);
        let precondition = Precondition::ModRevision(entry.revision);
        if deletes(stored.as_ref(), &new, old_stored) {
            return match self.feed.delete(&key, precondition).await {
                Ok(_) => {
                    self.allocators.deleted(stored, old_stored).await;
                    Ok(Attempt::Written(answer(value, entry.revision)))
                }
                Err(StorageError::Conflict { .. } | StorageError::NotFound) => Ok(Attempt::Raced),
                Err(e) => Err(storage_status(&e)),
            };
        }
        if value == entry.value && !entry.rewritten {
            return Ok(Attempt::Unchanged(answer(value, entry.revision)));
        }
        let facts = Facts::of(stored, &new);
        allocation.trying();
        match self.feed.put(&key, value.clone(), facts, precondition).await {
            Ok(revision) => {
                allocation.commit().await;
                Ok(Attempt::Written(answer(value, revision)))
            }
            Err(StorageError::Conflict { .. }) => {
                allocation.refused().await;
                Ok(Attempt::Raced)
            }
            Err(e) => Err(storage_status(&e)),
        }
    }

    fn check_preconditions(
        &self,
        call: &Call<'_>,
        manner: Manner<'_>,
        current: &Current,
        new: &Value,
    ) -> Result<(), Status> {
        let (kind, name) = (&call.row.kind, &call.info.name);
        let (sent, there) = (new.uid(), current.object.uid());
        // Of patches the judges of the whole object see that it names another.
        if manner.options_kind == "UpdateOptions" && !sent.is_empty() && sent != there {
            let key = call.cache()?.storage_key(call.namespace(), name);
            return Err(Status::conflict(
                &kind.group,
                &kind.plural,
                name,
                format!(
                    "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: \
                     Precondition failed: UID in precondition: {sent}, UID in object meta: {there}"
                ),
            ));
        }
        match new.resource_version() {
            "" | "0" if manner.unconditional => Ok(()),
            // Named by the resource and not by the kind, as kube-apiserver has it.
            "" | "0" => Err(Status::invalid(
                &kind.group,
                &kind.plural,
                name,
                &[FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update")],
            )),
            version if version == current.object.resource_version() => Ok(()),
            version if version.parse::<u64>().is_err() => {
                let quoted = hawser_api::text::quote(version);
                Err(Status::plain_error(format!("strconv.ParseUint: parsing {quoted}: invalid syntax")))
            }
            _ => Err(call.stale(name)),
        }
    }
}

/// Whether an update took the last thing away that held a deleted object.
fn deletes(kind: &hawser_api::kinds::Kind, new: &Value, old: &Value) -> bool {
    let finalized = new.finalizers().is_empty() && old.deletion_timestamp().is_some();
    if kind.group.is_empty() && kind.plural == "namespaces" {
        return finalized && new.items_at("spec.finalizers").is_empty();
    }
    finalized && old.deletion_grace_period_seconds() == Some(0)
}
