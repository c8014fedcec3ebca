//! Plain writes: who writes a field owns it, and takes it from all others.

use std::collections::BTreeMap;

use serde_json::Value;

use super::compare::{Comparison, compare};
use super::conflict::Conflict;
use super::managers::{Identity, Managed, Operation, Owned};
use super::model::Node;
use super::path::Element;
use super::reset::Reset;
use super::set::FieldSet;
use super::typed::check;
use crate::object::{ObjectExt as _, remove_path};

/// Fields of metadata that nobody owns, besides `apiVersion` and `kind`.
const UNOWNED: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// The versions of a resource. Field sets are of the version that they were written through.
pub trait Versions: Sync {
    /// How objects of a version are merged; None for one that is not served.
    fn node(&self, api_version: &str) -> Option<Node<'_>>;
    /// An object of any version in another one; None where that cannot be.
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value>;
}

/// Who writes, and how.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// Name of the manager.
    pub manager: &'a str,
    /// `apiVersion` of the request.
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// RFC 3339.
    pub now: &'a str,
    /// What such a write leaves alone.
    pub reset: Reset,
    /// The versions of the resource.
    pub versions: &'a dyn Versions,
}

impl Writer<'_> {
    pub(super) fn identity(&self, operation: Operation) -> Identity {
        Identity::new(self.manager, operation, self.api_version, self.subresource)
    }

    pub(super) fn node(&self) -> Node<'_> {
        self.versions.node(self.api_version).unwrap_or(Node::Deduced)
    }
}

/// Writes `metadata.managedFields` of `new`, an object that takes the place of `live`. Both are of the request's
/// version; of a new object `live` is an empty one of the kind.
pub fn update(writer: &Writer<'_>, live: &Value, new: &mut Value) {
    let sent = remove_path(new, &["metadata", "managedFields"]);
    let held = live.items_at("metadata.managedFields");
    // Nobody changes the list itself through a subresource.
    let sent = sent.as_ref().and_then(Value::as_array).filter(|_| writer.subresource.is_empty());
    // What does not fit its schema, as only objects of kinds defined at run time may, is not tracked any more.
    let misfit = |object: &Value| check(writer.node(), object, true).is_err();
    if matches!(writer.node(), Node::Model(_)) && (misfit(new) || misfit(live)) {
        return;
    }
    // What cannot be compared is not tracked.
    let Ok(mut difference) = compare(writer.node(), live, new) else { return };
    difference.removed.prune(&["metadata", "managedFields"]);
    if difference.is_empty() && sent.is_none_or(|s| s.as_slice() == held) {
        if !held.is_empty() {
            new.set_meta("managedFields", Value::Array(held.to_vec()));
        }
        return;
    }
    let sent_managers = || sent.and_then(|s| Managed::parse(s).ok()).filter(|m| !m.0.is_empty());
    let mut managed = if sent.is_some_and(|s| is_reset(s)) {
        Managed::default()
    } else {
        sent_managers().or_else(|| Managed::parse(held).ok()).unwrap_or_default()
    };
    // An object whose managers were reset is tracked again from the first apply on.
    if !managed.0.is_empty() || live.uid().is_empty() {
        note(writer, live, new, difference, &mut managed);
    }
    if let Some(entries) = managed.to_value() {
        new.set_meta("managedFields", entries);
    }
}

/// One empty entry, or none at all, asks for the managers to be forgotten.
fn is_reset(entries: &[Value]) -> bool {
    match entries {
        [] => true,
        [one] => one.as_object().is_some_and(|o| o.values().all(|v| v.is_null() || v.as_str() == Some(""))),
        _ => false,
    }
}

/// Moves what differs to its writer.
pub(super) fn note(
    writer: &Writer<'_>,
    live: &Value,
    new: &Value,
    difference: Comparison,
    managed: &mut Managed,
) {
    settle(writer.versions, managed);
    let difference = Difference::filtered(difference, writer.reset);
    let mut mine = if managed.0.is_empty() {
        // There is nobody to take anything from.
        difference.changed
    } else {
        let mine = difference.changed.clone();
        // Forced: nothing is in conflict.
        let _ = contest(writer, live, new, difference, managed, None, true);
        mine
    };
    strip(&mut mine);
    if !mine.is_empty() {
        let identity = writer.identity(Operation::Update);
        if let Some(previous) = managed.0.remove(&identity) {
            mine.union(previous.fields);
        }
        let owned =
            Owned { fields: mine, version: writer.api_version.to_owned(), time: Some(writer.now.to_owned()) };
        managed.0.insert(identity, owned);
    }
    managed.cap();
}

/// Takes away what nobody owns.
pub(super) fn strip(set: &mut FieldSet) {
    let named =
        |element: &Element, names: &[&str]| matches!(element, Element::Field(n) if names.contains(&&**n));
    set.children.retain(|element, child| {
        if named(element, &["apiVersion", "kind", "metadata"]) {
            child.member = false;
        }
        if named(element, &["metadata"]) {
            child.children.retain(|element, child| {
                child.member &= !named(element, UNOWNED);
                !child.is_empty()
            });
        }
        !child.is_empty()
    });
}

/// Forgets who wrote through versions that are gone, and lets field sets follow a schema that has changed.
pub(super) fn settle(versions: &dyn Versions, managed: &mut Managed) {
    managed.0.retain(|_, owned| match versions.node(&owned.version) {
        Some(node) => {
            owned.fields.settle(node);
            true
        }
        None => false,
    });
}

/// What a write does to fields, in one version.
#[derive(Default)]
pub(super) struct Difference {
    changed: FieldSet,
    removed: FieldSet,
}

impl Difference {
    pub(super) fn filtered(comparison: Comparison, reset: Reset) -> Self {
        let Comparison { added, modified: mut changed, mut removed } = comparison;
        changed.union(added);
        reset.filter(&mut changed);
        reset.filter(&mut removed);
        Self { changed, removed }
    }
}

/// Takes from all managers but `own` what a write changes or removes.
///
/// # Errors
/// What others own, unless the write is forced. Then nothing is taken.
pub(super) fn contest(
    writer: &Writer<'_>,
    live: &Value,
    new: &Value,
    difference: Difference,
    managed: &mut Managed,
    own: Option<&Identity>,
    force: bool,
) -> Result<(), Vec<Conflict>> {
    let mut by_version: BTreeMap<String, Option<Difference>> = BTreeMap::new();
    for owned in managed.0.values() {
        if owned.version != writer.api_version && !by_version.contains_key(&owned.version) {
            let other = between(writer, live, new, &owned.version);
            by_version.insert(owned.version.clone(), other);
        }
    }
    by_version.insert(writer.api_version.to_owned(), Some(difference));
    let of = |owned: &Owned| by_version.get(&owned.version).and_then(Option::as_ref);
    managed.0.retain(|identity, owned| own == Some(identity) || of(owned).is_some());
    let others = || managed.0.iter().filter(|(identity, _)| own != Some(*identity));
    if !force {
        let mut conflicts = Vec::new();
        for (identity, owned) in others() {
            let Some(difference) = of(owned) else { continue };
            owned.fields.intersection(&difference.changed).each(&mut |path| {
                conflicts.push(Conflict { owner: identity.clone(), path: path.to_vec() });
            });
        }
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
    }
    for (_, owned) in managed.0.iter_mut().filter(|(identity, _)| own != Some(*identity)) {
        if let Some(difference) = by_version.get(&owned.version).and_then(Option::as_ref) {
            owned.fields.subtract(&difference.changed);
            owned.fields.subtract(&difference.removed);
        }
    }
    managed.0.retain(|_, owned| !owned.fields.is_empty());
    Ok(())
}

/// What a write does to fields of another version.
fn between(writer: &Writer<'_>, live: &Value, new: &Value, version: &str) -> Option<Difference> {
    let node = writer.versions.node(version)?;
    let (live, new) = (writer.versions.convert(live, version)?, writer.versions.convert(new, version)?);
    let comparison = compare(node, &live, &new).ok()?;
    Some(Difference::filtered(comparison, writer.reset))
}
