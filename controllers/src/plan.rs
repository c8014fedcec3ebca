//! What a reconciler returns: data, to be carried out by the runner.
//!
//! A [`Plan`] holds steps in their order, a status write that follows them, events and the time of
//! the next look. Writes are compare-and-swap: an [`Action::Update`] carries the resourceVersion that
//! the reconciler saw, a delete carries the uid.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::discovery::ApiResource;
use serde_json::Value;

use crate::object::{self, Held, Object};

/// The object that an action is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Group, version, kind and plural.
    pub resource: ApiResource,
    /// Namespace, empty for cluster scope.
    pub namespace: String,
    /// Name, empty when the server is to make one up.
    pub name: String,
}

impl Target {
    /// The target that `object` is.
    pub fn of<K: Held>(object: &K) -> Self {
        Self {
            resource: ApiResource::erase::<K::Wire>(&()),
            namespace: object::namespace(object).to_owned(),
            name: object::name(object).to_owned(),
        }
    }
}

/// How a deletion treats the object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// The object goes first, the garbage collector follows.
    Background,
    /// Dependents go first.
    Foreground,
    /// Dependents stay and lose the reference.
    Orphan,
}

/// Preconditions and manner of a deletion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteOptions {
    /// Delete only the object with this uid.
    pub uid: Option<String>,
    /// Delete only at this resourceVersion.
    pub resource_version: Option<String>,
    /// What happens to dependents; `None` leaves the kind's default.
    pub propagation: Option<Propagation>,
    /// Seconds of grace; `None` leaves the object's own.
    pub grace_seconds: Option<u32>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Creates `body`.
    Create {
        /// Where.
        target: Target,
        /// The whole object.
        body: Value,
    },
    /// Replaces the object (or its subresource) if it is still at the body's resourceVersion.
    Update {
        /// Which object.
        target: Target,
        /// `status`, `finalize`, `approval`; `None` for the object itself.
        subresource: Option<&'static str>,
        /// The whole object.
        body: Value,
    },
    /// A JSON merge patch.
    Patch {
        /// Which object.
        target: Target,
        /// Subresource, if any.
        subresource: Option<&'static str>,
        /// The patch; a `metadata.uid` or `metadata.resourceVersion` in it is a precondition.
        patch: Value,
    },
    /// Deletes the object.
    Delete {
        /// Which object.
        target: Target,
        /// Preconditions and manner.
        options: DeleteOptions,
    },
    /// Deletes everything of a kind in a namespace (`target.name` is empty).
    DeleteCollection {
        /// Kind and namespace.
        target: Target,
    },
}

impl Action {
    /// The object the action is about.
    pub fn target(&self) -> &Target {
        match self {
            Self::Create { target, .. }
            | Self::Update { target, .. }
            | Self::Patch { target, .. }
            | Self::Delete { target, .. }
            | Self::DeleteCollection { target } => target,
        }
    }

    /// The verb as RBAC names it, for messages.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Update { .. } => "update",
            Self::Patch { .. } => "patch",
            Self::Delete { .. } => "delete",
            Self::DeleteCollection { .. } => "deletecollection",
        }
    }
}

/// An event to be recorded. In `message`, `{name}` stands for the name of the object written (as the
/// server named it) and `{error}` for the server's refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// The object that the event is about.
    pub about: ObjectReference,
    /// `true` for type Warning, `false` for Normal.
    pub warning: bool,
    /// Machine-readable reason.
    pub reason: &'static str,
    /// Human-readable message.
    pub message: String,
}

impl Note {
    /// An event of type Normal.
    pub fn normal(about: ObjectReference, reason: &'static str, message: impl Into<String>) -> Self {
        Self { about, warning: false, reason, message: message.into() }
    }

    /// An event of type Warning.
    pub fn warning(about: ObjectReference, reason: &'static str, message: impl Into<String>) -> Self {
        Self { about, warning: true, reason, message: message.into() }
    }
}

/// One write with what follows from its outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Act {
    /// The write.
    pub action: Action,
    /// An existing object satisfies a create.
    pub may_exist: bool,
    /// An absent object satisfies an update, patch or delete. Always true for deletes.
    pub may_be_absent: bool,
    /// A write of somebody else's satisfies an update or patch that was to find the object as it was.
    pub may_have_changed: bool,
    /// Recorded on success.
    pub on_success: Option<Note>,
    /// Recorded on failure.
    pub on_failure: Option<Note>,
}

impl Act {
    /// An act with no tolerance beyond the verb's own and no events.
    pub fn new(action: Action) -> Self {
        let may_be_absent = matches!(action, Action::Delete { .. } | Action::DeleteCollection { .. });
        Self {
            action,
            may_exist: false,
            may_be_absent,
            may_have_changed: false,
            on_success: None,
            on_failure: None,
        }
    }

    /// Creates `object`.
    pub fn create<K: Object>(object: &K) -> Self {
        Self::new(Action::Create { target: Target::of(object), body: body(object) })
    }

    /// Replaces the object as it is after a change.
    pub fn update<K: Object>(object: &K) -> Self {
        Self::new(Action::Update { target: Target::of(object), subresource: None, body: body(object) })
    }

    /// Replaces a subresource with the object as it is after a change.
    pub fn update_sub<K: Object>(object: &K, subresource: &'static str) -> Self {
        Self::new(Action::Update {
            target: Target::of(object),
            subresource: Some(subresource),
            body: body(object),
        })
    }

    /// Applies a merge patch to `object`, on the condition that it is still the same (by uid).
    pub fn patch<K: Held>(object: &K, subresource: Option<&'static str>, mut patch: Value) -> Self {
        if subresource.is_none() {
            patch["metadata"]["uid"] = Value::from(object::uid(object));
        }
        Self::new(Action::Patch { target: Target::of(object), subresource, patch })
    }

    /// Deletes `object`, on the condition that it is still the same (by uid).
    pub fn delete<K: Held>(object: &K) -> Self {
        Self::delete_with(
            Target::of(object),
            DeleteOptions { uid: object::known_uid(object), ..DeleteOptions::default() },
        )
    }

    /// Deletes a target.
    pub fn delete_with(target: Target, options: DeleteOptions) -> Self {
        Self::new(Action::Delete { target, options })
    }

    /// An existing object satisfies this create.
    pub fn may_exist(mut self) -> Self {
        self.may_exist = true;
        self
    }

    /// An absent object satisfies this write.
    pub fn may_be_absent(mut self) -> Self {
        self.may_be_absent = true;
        self
    }

    /// Somebody else's write satisfies this one.
    pub fn may_have_changed(mut self) -> Self {
        self.may_have_changed = true;
        self
    }

    /// Sets the event of success.
    pub fn ok(mut self, note: Note) -> Self {
        self.on_success = Some(note);
        self
    }

    /// Sets the event of failure.
    pub fn err(mut self, note: Note) -> Self {
        self.on_failure = Some(note);
        self
    }
}

/// So many of an object's dependents are made at once when that many were made a moment ago (`first` of
/// [`Step::SlowStart`]); more would be too many refused writes where a quota has come to its end.
const WARM: usize = 64;

impl Step {
    /// Batches of 1, 2, 4, …: nothing is known.
    pub fn slow_start(acts: Vec<Arc<Act>>) -> Self {
        Self::SlowStart { acts, first: 1 }
    }

    /// The same, when so many writes of the kind have succeeded a moment ago.
    pub fn warm_start(acts: Vec<Arc<Act>>, succeeded: usize) -> Self {
        Self::SlowStart { acts, first: succeeded.clamp(1, WARM) }
    }
}

/// How a group of writes is carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// One write; its failure ends the plan's actions.
    One(Box<Act>),
    /// Batches in parallel, each twice as large as the one before; the first batch with a failure is the last one.
    SlowStart {
        /// The writes, many of which may be the same.
        acts: Vec<Arc<Act>>,
        /// The first batch's size, at least 1: as many as are known to succeed.
        first: usize,
    },
    /// All at once; every one is tried.
    Parallel(Vec<Act>),
}

/// What a reconciler wants done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Writes, in order. The first failing step ends them.
    pub actions: Vec<Step>,
    /// The status write. Made after the actions, also when they failed.
    pub status: Option<Box<Act>>,
    /// Events that do not hang on one write; recorded when the actions succeeded.
    pub events: Vec<Note>,
    /// Look again after this time even if nothing changes.
    pub requeue_after: Option<Duration>,
}

impl Plan {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the plan writes nothing.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty() && self.status.is_none() && self.events.is_empty()
    }

    /// Appends one write.
    pub fn push(&mut self, act: Act) {
        self.actions.push(Step::One(Box::new(act)));
    }

    /// Appends an update if `new` differs from `old`; tells whether it does.
    pub fn update<K: Object>(&mut self, old: &K, new: &K) -> bool {
        let changed = old != new;
        if changed {
            self.push(Act::update(new));
        }
        changed
    }

    /// Sets the status write if `new` differs from `old`; tells whether it does.
    pub fn update_status<K: Object>(&mut self, old: &K, new: &K) -> bool {
        let changed = old != new;
        if changed {
            self.status = Some(Box::new(Act::update_sub(new, "status")));
        }
        changed
    }

    /// Asks for another look after `after`, or earlier if that was asked for before.
    pub fn requeue(&mut self, after: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(after, |before| before.min(after)));
    }

    /// All acts in order, the status write last.
    pub fn acts(&self) -> impl Iterator<Item = &Act> {
        fn of_step(step: &Step) -> impl Iterator<Item = &Act> {
            let (shared, own): (&[Arc<Act>], &[Act]) = match step {
                Step::One(act) => (&[], std::slice::from_ref::<Act>(act)),
                Step::SlowStart { acts, .. } => (acts, &[]),
                Step::Parallel(acts) => (&[], acts),
            };
            shared.iter().map(Arc::as_ref).chain(own)
        }
        self.actions.iter().flat_map(of_step).chain(self.status.as_deref())
    }
}

/// The object as JSON. The types of Kubernetes always serialise; were one not to, the server would
/// refuse the `null`.
fn body<K: Object>(object: &K) -> Value {
    serde_json::to_value(object).unwrap_or(Value::Null)
}
