//! Server-side apply: what a manager wants is merged in, what it wanted before and no longer does goes, and what others
//! own it must share, leave or force (KEP-555).

use std::collections::BTreeMap;

use serde_json::Value;

use super::compare::compare;
use super::conflict::{self, Conflict};
use super::managers::{Managed, Operation, Owned};
use super::merge::merge;
use super::model::Node;
use super::path::{json, same};
use super::remove::remove;
use super::set::FieldSet;
use super::typed::{check, field_set};
use super::update::{Difference, Writer, contest, note, settle, strip};
use crate::object::{ObjectExt as _, remove_path, split_api_version};
use crate::status::Status;

/// The annotation in which client-side apply keeps what it has applied.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Who owns what was there before anybody was noted.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager that takes over from client-side apply.
const KUBECTL: &str = "kubectl";
/// Most bytes that annotations may have together.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Why an apply is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplyError {
    /// The patch is none.
    BadRequest(String),
    /// Others own what it would change.
    Conflicts(Vec<Conflict>),
    /// It does not fit the schema, or what is there does not.
    Failed(String),
}

impl From<ApplyError> for Status {
    fn from(e: ApplyError) -> Self {
        match e {
            ApplyError::BadRequest(why) => Self::bad_request(why),
            ApplyError::Conflicts(conflicts) => conflict::status(&conflicts),
            ApplyError::Failed(why) => Self::plain_error(why),
        }
    }
}

/// What came of an apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// As the schema merges it, without managedFields; not yet decoded, nor defaulted.
    pub object: Value,
    /// Who owns what from now on.
    pub managed: Managed,
    /// Whether the object is other than it was.
    pub changed: bool,
}

/// Applies a patch to an object of the request's version. `empty` is an object of the kind with nothing set; `live` is
/// that when there is none yet.
///
/// # Errors
/// See [`ApplyError`].
pub fn apply(
    writer: &Writer<'_>,
    kind: &str,
    live: &Value,
    empty: &Value,
    patch: &Value,
    force: bool,
) -> Result<Applied, ApplyError> {
    check_type(writer, kind, patch)?;
    let managed = Managed::parse(live.items_at("metadata.managedFields"))
        .map_err(|e| ApplyError::Failed(format!("failed to decode managed fields: {e}")))?;
    let mut bare = live.clone();
    remove_path(&mut bare, &["metadata", "managedFields"]);
    let mut managed = managed;
    if managed.0.is_empty() {
        let first = Writer { manager: BEFORE_FIRST_APPLY, ..*writer };
        let difference = compare(writer.node(), empty, &bare)
            .map_err(|e| ApplyError::Failed(format!("failed to create manager for existing fields: {e}")))?;
        note(&first, empty, &bare, difference, &mut managed);
    }
    if patch.at("metadata.managedFields").is_some_and(Value::is_array) {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".into()));
    }
    let applied = match once(writer, &bare, patch, managed.clone(), force) {
        Err(ApplyError::Conflicts(conflicts)) if writer.manager == KUBECTL => {
            let Some(allowed) = from_client_side(writer, &bare) else {
                return Err(ApplyError::Conflicts(conflicts));
            };
            let left: Vec<Conflict> = conflicts.into_iter().filter(|c| !allowed.contains(&c.path)).collect();
            if !left.is_empty() {
                return Err(ApplyError::Conflicts(left));
            }
            once(writer, &bare, patch, managed, true)
        }
        other => other,
    };
    let mut applied = applied?;
    if writer.manager == KUBECTL {
        keep_last_applied(&mut applied.object, patch);
    }
    Ok(applied)
}

fn check_type(writer: &Writer<'_>, kind: &str, patch: &Value) -> Result<(), ApplyError> {
    if patch.api_version() == writer.api_version && patch.kind() == kind {
        return Ok(());
    }
    Err(ApplyError::BadRequest(format!("invalid object type: {}", shown_type(patch))))
}

/// `group/version, Kind=kind`, as Go prints it.
fn shown_type(object: &Value) -> String {
    if object.api_version().matches('/').count() > 1 {
        return "/, Kind=".into();
    }
    let (group, version) = split_api_version(object.api_version());
    format!("{group}/{version}, Kind={}", object.kind())
}

fn shown_object(object: &Value) -> String {
    format!("{}/{}; {}", object.namespace(), object.name(), shown_type(object))
}

/// One try, without looking at client-side apply.
fn once(
    writer: &Writer<'_>,
    live: &Value,
    patch: &Value,
    mut managed: Managed,
    force: bool,
) -> Result<Applied, ApplyError> {
    let node = writer.node();
    let failed = |what: &str, object: &Value, why: &dyn std::fmt::Display| {
        ApplyError::Failed(format!("{what} ({}): {why}", shown_object(object)))
    };
    check(node, patch, false).map_err(|e| failed("failed to create typed patch object", patch, &e))?;
    check(node, live, true).map_err(|e| failed("failed to create typed live object", live, &e))?;
    settle(writer.versions, &mut managed);
    let merged =
        merge(node, live, patch).map_err(|e| ApplyError::Failed(format!("failed to merge config: {e}")))?;
    let identity = writer.identity(Operation::Apply);
    let mut wanted = field_set(node, patch);
    writer.reset.filter(&mut wanted);
    let last = managed.0.remove(&identity);
    let owned = Owned {
        fields: wanted,
        version: writer.api_version.to_owned(),
        time: last.as_ref().and_then(|l| l.time.clone()),
    };
    managed.0.insert(identity.clone(), owned);
    let object = match last {
        Some(last) if !last.fields.is_empty() => prune(writer, merged, &managed, &last),
        _ => merged,
    };
    let difference = compare(node, live, &object)
        .map_err(|e| ApplyError::Failed(format!("failed to compare objects: {e}")))?;
    let difference = Difference::filtered(difference, writer.reset);
    contest(writer, live, &object, difference, &mut managed, Some(&identity), force)
        .map_err(ApplyError::Conflicts)?;
    let changed = !same(live, &object);
    if let Some(mine) = managed.0.get_mut(&identity) {
        strip(&mut mine.fields);
        if changed {
            mine.time = Some(writer.now.to_owned());
        }
        if mine.fields.is_empty() {
            managed.0.remove(&identity);
        }
    }
    Ok(Applied { object, managed, changed })
}

/// Takes out what the manager applied last time, does not apply now, and nobody else owns.
fn prune(writer: &Writer<'_>, merged: Value, managed: &Managed, last: &Owned) -> Value {
    let versions = writer.versions;
    let Some(node) = versions.node(&last.version) else { return merged };
    let Some(whole) = converted(writer, &merged, &last.version) else { return merged };
    let gone = last.fields.with_named_fields(node);
    let mut pruned = remove(node, whole.clone(), &gone);

    let mut by_version: BTreeMap<&str, FieldSet> = BTreeMap::new();
    for owned in managed.0.values() {
        by_version.entry(&owned.version).or_default().union(owned.fields.clone());
    }
    // That version first: other versions may need what has been taken out.
    let mut versions_of: Vec<(&str, FieldSet)> = Vec::new();
    versions_of.extend(by_version.remove_entry(last.version.as_str()));
    versions_of.extend(by_version);
    let mut all = whole.clone();
    for (version, owned) in versions_of {
        let Some(node) = versions.node(version) else { continue };
        let (Some(a), Some(p)) = (converted(writer, &all, version), converted(writer, &pruned, version))
        else {
            continue;
        };
        let mut kept = named(node, &p);
        kept.union(owned.with_named_fields(node));
        let mut gone = named(node, &a);
        gone.subtract(&kept);
        pruned = remove(node, a.clone(), &gone);
        all = a;
    }

    // Only what the manager itself owned goes.
    let Some(pruned) = converted(writer, &pruned, &last.version) else { return merged };
    let mut lost = named(node, &whole);
    lost.subtract(&named(node, &pruned));
    let pruned = remove(node, whole, &lost.intersection(&gone));
    converted(writer, &pruned, writer.api_version).unwrap_or(merged)
}

fn named(node: Node<'_>, value: &Value) -> FieldSet {
    field_set(node, value).with_named_fields(node)
}

fn converted(writer: &Writer<'_>, object: &Value, version: &str) -> Option<Value> {
    if object.api_version() == version {
        return Some(object.clone());
    }
    writer.versions.convert(object, version)
}

/// What client-side apply has applied and nobody has changed since.
fn from_client_side(writer: &Writer<'_>, live: &Value) -> Option<FieldSet> {
    let text = live.annotation(LAST_APPLIED).filter(|t| !t.is_empty())?;
    let node = writer.node();
    check(node, live, false).ok()?;
    let last: Value = serde_json::from_str(text).ok()?;
    if last.api_version() != writer.api_version {
        return None;
    }
    check(node, &last, false).ok()?;
    let mut set = field_set(node, &last);
    let difference = compare(node, &last, live).ok()?;
    for other in [&difference.modified, &difference.added, &difference.removed] {
        set.subtract(other);
    }
    Some(set)
}

/// Keeps the annotation of client-side apply up to date, where there is one.
fn keep_last_applied(object: &mut Value, patch: &Value) {
    if object.annotation(LAST_APPLIED).is_none_or(str::is_empty) {
        return;
    }
    let mut config = patch.clone();
    remove_path(&mut config, &["metadata", "annotations", LAST_APPLIED]);
    let text = json(&config) + "\n";
    let others: usize =
        object.annotations().iter().filter(|(k, _)| *k != LAST_APPLIED).map(|(k, v)| k.len() + v.len()).sum();
    if others + LAST_APPLIED.len() + text.len() > MAX_ANNOTATIONS {
        remove_path(object, &["metadata", "annotations", LAST_APPLIED]);
    } else {
        object.set_path(&["metadata", "annotations", LAST_APPLIED], text.into());
    }
}
