//! POST: a new object.

use bytes::Bytes;
use hawser_api::managed::reset::Reset;
use hawser_api::managed::update::{Writer, update};
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use hawser_api::strategy::generated_name;
use hawser_storage::{Error as StorageError, Precondition};
use rand::Rng as _;
use serde_json::{Value, json};

use super::{AdmissionStep, Answer, Call, Registry, storage_status};
use crate::access::{Operation, VirtualRequest};
use crate::cache::entry::Facts;
use crate::managed::{self, Served, Single};
use crate::negotiate::Transform;
use crate::options::WriteOptions;
use crate::{convert, hooks};

/// Random names that are tried before a generated one is given up (KEP-4420).
const NAME_ATTEMPTS: usize = 8;
/// What random suffixes are made of: no vowels, nothing that looks alike.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;

impl Registry {
    /// Creates an object from a body.
    ///
    /// # Errors
    /// Whatever is wrong with the body, and 409 for a name that is taken.
    pub async fn create(&self, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
        let options = WriteOptions::parse(call.info, "CreateOptions")?;
        let kind = call.row.kind.clone();
        let mut object = call.decode(&body, &kind, options.field_validation)?;
        hooks::defaults(&kind, &mut object);
        self.set_namespace(call, &mut object)?;
        if call.row.cache.is_none() {
            self.own(call, &mut object, &options);
            return self.create_virtual(call, object, options.dry_run).await;
        }
        self.create_object(call, object, &options).await
    }

    /// Creates a decoded object of the row's kind, defaults filled in.
    pub(crate) async fn create_object(
        &self,
        call: &Call<'_>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        wipe(&mut object);
        self.own(call, &mut object, options);
        self.place(call, object, options).await
    }

    /// Creates an object whose managers are noted.
    pub(super) async fn place(
        &self,
        call: &Call<'_>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        let kind = &call.row.kind;
        if kind.custom.as_ref().is_some_and(|c| c.terminating) {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(Status::forbidden(&kind.group, &kind.plural, object.name(), why));
        }
        self.feed.ensure(call.cache()?).await.map_err(|e| super::feed_status(&e))?;
        wipe(&mut object);
        let step = AdmissionStep {
            operation: Operation::Create,
            kind: &kind.kind,
            old: None,
            dry_run: options.dry_run,
            options: &options.to_value("CreateOptions"),
        };
        self.admit(call, step, Some(&mut object)).await?;
        self.insert(call, object, step).await
    }

    /// Notes the writer of a new object.
    fn own(&self, call: &Call<'_>, object: &mut Value, options: &WriteOptions) {
        let (now, manager) = (hooks::now(), call.manager(options));
        let served = Served::new(self.kinds.snapshot(), call.row.clone());
        update(&served.writer(&manager, "", &now), &managed::nothing_of(&call.row.kind), object);
    }

    /// The registry's part: names, strategy, validation, storage.
    async fn insert(
        &self,
        call: &Call<'_>,
        object: Value,
        step: AdmissionStep<'_>,
    ) -> Result<Answer, Status> {
        let cache = call.cache()?;
        let (stored, judging) = (call.row.stored_kind(), call.row.judging_kind());
        let mut object = convert::to_judged(&call.row, object);
        let versioned = !object.resource_version().is_empty();
        let generated = object.name().is_empty() && !object.generate_name().is_empty();
        let prefix = object.generate_name().to_owned();
        hooks::prepare_create(judging, &mut object, call.namespace(), &suffix());
        let mut allocation = self.allocators.create(judging, &mut object, step.dry_run).await?;
        let judged = async {
            hooks::validate_create(&call.row.kind, judging, &object, &call.empties.lock())?;
            hooks::warnings(judging, &object, None).into_iter().for_each(|w| call.warn(w));
            if self.admission_wanted(call, Operation::Create) {
                let mut shown = convert::judged_to_row(&call.row, object.clone());
                self.validate_admission(call, step, Some(&mut shown)).await?;
            }
            if versioned {
                return Err(Status::plain_error(
                    "resourceVersion should not be set on objects to be created",
                ));
            }
            Ok(())
        };
        if let Err(status) = judged.await {
            // Before anybody tries again.
            allocation.refused().await;
            return Err(status);
        }
        // What a webhook would have to convert back is answered as it is.
        let mut shown = call.row.needs_webhook().then(|| object.clone());
        if shown.is_some() {
            object = self.converter.convert(stored, vec![object]).await?.pop().unwrap_or_default();
        }
        let mut object = convert::judged_to_stored(&call.row, object);
        let mut attempts = if generated { NAME_ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            let name = object.name().to_owned();
            let taken = || {
                let k = &call.row.kind;
                if generated {
                    Status::generate_name_conflict(&k.group, &k.plural, &name)
                } else {
                    Status::already_exists(&k.group, &k.plural, &name)
                }
            };
            if step.dry_run {
                self.consistent(call).await?;
                if cache.get(call.namespace(), &name).map_err(super::reloading)?.is_some() {
                    return Err(taken());
                }
                let shown = shown.unwrap_or_else(|| convert::from_stored(&call.row, object));
                return Ok(Answer::Object(201, shown));
            }
            let value = cache.head().encode(&object);
            let facts = Facts::of(stored, &object);
            let key = cache.storage_key(call.namespace(), &name);
            allocation.trying();
            match self.feed.put(&key, value.clone(), facts, Precondition::Absent).await {
                Ok(revision) => {
                    allocation.commit().await;
                    return Ok(match shown {
                        None => Answer::Stored(201, value, revision),
                        Some(mut object) => {
                            object.set_meta("resourceVersion", revision.to_string().into());
                            Answer::Object(201, object)
                        }
                    });
                }
                Err(StorageError::Conflict { .. }) if attempts > 0 => {
                    let name = json!(generated_name(&prefix, &suffix()));
                    if let Some(shown) = &mut shown {
                        shown.set_meta("name", name.clone());
                    }
                    object.set_meta("name", name);
                    allocation.rename(&object).await?;
                }
                Err(StorageError::Conflict { .. }) => {
                    allocation.refused().await;
                    return Err(taken());
                }
                Err(e) => return Err(storage_status(&e)),
            }
        }
    }

    /// A subresource that is answered, not stored (`serviceaccounts/token`).
    pub(crate) async fn create_virtual_sub(
        &self,
        call: &Call<'_>,
        mut object: Value,
        api_version: &str,
        kind: &str,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        hooks::subresource_defaults(kind, &mut object);
        let (now, manager) = (hooks::now(), call.manager(options));
        let writer = Writer {
            manager: &manager,
            api_version,
            subresource: &call.info.subresource,
            now: &now,
            reset: Reset::default(),
            versions: &Single { api_version, kind },
        };
        update(&writer, &managed::nothing(api_version, kind), &mut object);
        self.create_virtual(call, object, options.dry_run).await
    }

    /// Reviews and the like: answered, not stored.
    pub(crate) async fn create_virtual(
        &self,
        call: &Call<'_>,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Answer, Status> {
        let info = call.info;
        if matches!(call.accepted.transform, Transform::Table(_)) {
            // Reviews have no rows.
            return Err(Status::not_acceptable());
        }
        if self.admission_wanted(call, Operation::Create) {
            // NodeRestriction judges the tokens that nodes ask for.
            let kind = object.kind().to_owned();
            let step = AdmissionStep {
                operation: Operation::Create,
                kind: &kind,
                old: None,
                dry_run,
                options: &Value::Null,
            };
            self.admit(call, step, Some(&mut object)).await?;
            self.validate_admission(call, step, Some(&mut object)).await?;
        }
        for virtual_resource in &self.access.virtuals {
            if virtual_resource.handles(&info.group, &info.resource, &info.subresource) {
                let request = VirtualRequest { user: call.user, info, object, dry_run };
                return virtual_resource.create(request).await.map(|o| Answer::Object(201, o));
            }
        }
        Err(Status::method_not_allowed())
    }

    /// Puts the request's namespace into an object, or refuses another one.
    pub(crate) fn set_namespace(&self, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
        let wanted = call.namespace();
        let sent = object.namespace();
        if sent.is_empty() {
            object.set_meta("namespace", json!(wanted));
            return Ok(());
        }
        if sent != wanted {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Ok(())
    }
}

/// Takes away what only the server sets, before anybody is noted as its owner.
fn wipe(object: &mut Value) {
    for field in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "uid"] {
        object.set_meta(field, Value::Null);
    }
}

/// Five random characters.
fn suffix() -> String {
    let mut rng = rand::rng();
    (0..SUFFIX).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// The name that a body must have is the URL's.
///
/// # Errors
/// 400 when it is another one, or none can be told.
pub(crate) fn check_name(object: &mut Value, name: &str) -> Result<(), Status> {
    let sent = object.name();
    if sent.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    if sent != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({sent}) does not match the name on the URL ({name})"
        )));
    }
    Ok(())
}
