//! `metadata.managedFields`: who set which field (KEP-555), for writes that are no server-side apply.
//!
//! A write makes its manager the owner of every field that it adds or changes, and takes those from all others.

pub mod compare;
pub mod fieldset;

use hawser_api::object::{ObjectExt as _, remove_path};
use hawser_api::schema::Type;
use serde_json::{Map, Value, json};

use self::compare::compare;
use self::fieldset::FieldSet;

/// Most managers of plain updates; the oldest are merged (as kube-apiserver).
const MAX_UPDATERS: usize = 10;
/// The manager that merged ones become.
const ANCIENT: &str = "ancient-changes";

/// Fields of metadata that nobody owns.
const UNOWNED: &[&str] = &[
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:selfLink",
    "f:uid",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
];

/// Who writes, and how.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// Name of the manager.
    pub manager: &'a str,
    /// `apiVersion` of the request.
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// RFC 3339; None leaves the time out (the scale subresource).
    pub now: Option<&'a str>,
    /// Whether the kind has a status subresource, which alone owns `status`.
    pub has_status: bool,
}

/// One entry of managedFields.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: Option<String>,
    fields: FieldSet,
}

impl Entry {
    fn parse(value: &Value) -> Option<Self> {
        Some(Self {
            manager: value.str_at("manager").to_owned(),
            operation: Some(value.str_at("operation"))
                .filter(|o| matches!(*o, "Update" | "Apply"))?
                .to_owned(),
            api_version: value.str_at("apiVersion").to_owned(),
            subresource: value.str_at("subresource").to_owned(),
            time: value.at("time").and_then(Value::as_str).map(str::to_owned),
            fields: match value.get("fieldsV1") {
                Some(fields) => FieldSet::parse(fields)?,
                None => FieldSet::default(),
            },
        })
    }

    fn to_value(&self) -> Value {
        let mut out = json!({"manager": self.manager, "operation": self.operation,
            "apiVersion": self.api_version, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_value()});
        if let Some(time) = &self.time {
            out["time"] = json!(time);
        }
        if !self.subresource.is_empty() {
            out["subresource"] = json!(self.subresource);
        }
        out
    }

    fn is_of(&self, writer: &Writer<'_>) -> bool {
        self.operation == "Update"
            && self.manager == writer.manager
            && self.api_version == writer.api_version
            && self.subresource == writer.subresource
    }
}

fn entries(object: &Value) -> Option<Vec<Entry>> {
    let items = object.at("metadata.managedFields")?.as_array()?;
    items.iter().map(Entry::parse).collect()
}

/// Writes `metadata.managedFields` of `new`. `live` is the object as it is stored, in the same version; an empty
/// object of the kind (with the fields that are always written) for a creation.
pub fn update(ty: Option<&'static Type>, live: &Value, new: &mut Value, writer: &Writer<'_>) {
    let reset = new.items_at("metadata.managedFields") == [json!({})];
    let mut entries = match entries(new) {
        // A client may change the list itself; one that sends none leaves it as it is.
        Some(sent) if !sent.is_empty() && !reset => sent,
        _ if reset => Vec::new(),
        _ => entries(live).unwrap_or_default(),
    };
    remove_path(new, &["metadata", "managedFields"]);
    if reset {
        return;
    }
    let bare;
    let live = if live.at("metadata.managedFields").is_some() {
        let mut copy = live.clone();
        remove_path(&mut copy, &["metadata", "managedFields"]);
        bare = copy;
        &bare
    } else {
        live
    };
    let difference = compare(ty, live, new);
    let (mut changed, mut removed) = (difference.modified, difference.removed);
    changed.union(difference.added);
    disown(&mut changed);
    // What the registry will put back is neither taken nor lost.
    for set in [&mut changed, &mut removed] {
        match (writer.has_status, writer.subresource) {
            (true, "status") => set.keep(&["f:status", "f:metadata"]),
            (true, _) => set.prune(&["f:status"]),
            (false, _) => {}
        }
    }
    for entry in &mut entries {
        entry.fields.subtract(&removed);
        if !entry.is_of(writer) {
            entry.fields.subtract(&changed);
        }
    }
    own(&mut entries, changed, writer);
    entries.retain(|e| !e.fields.is_empty());
    cap(&mut entries);
    write(new, &entries);
}

/// Gives a set of fields to a writer, and takes them from all others; nothing else of the object is looked at.
pub fn take(object: &mut Value, fields: FieldSet, writer: &Writer<'_>) {
    let mut entries = entries(object).unwrap_or_default();
    for entry in entries.iter_mut().filter(|e| !e.is_of(writer)) {
        entry.fields.subtract(&fields);
    }
    own(&mut entries, fields, writer);
    entries.retain(|e| !e.fields.is_empty());
    write(object, &entries);
}

fn own(entries: &mut Vec<Entry>, fields: FieldSet, writer: &Writer<'_>) {
    if fields.is_empty() {
        return;
    }
    let time = writer.now.map(str::to_owned);
    match entries.iter_mut().find(|e| e.is_of(writer)) {
        Some(mine) => {
            let before = mine.fields.clone();
            mine.fields.union(fields);
            if mine.fields != before {
                mine.time = time;
            }
        }
        None => entries.push(Entry {
            manager: writer.manager.to_owned(),
            operation: "Update".into(),
            api_version: writer.api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
            time,
            fields,
        }),
    }
}

fn disown(set: &mut FieldSet) {
    set.member = false;
    set.prune(&["f:kind"]);
    set.prune(&["f:apiVersion"]);
    for field in UNOWNED {
        set.prune(&["f:metadata", field]);
    }
    if let Some(meta) = set.children.get_mut("f:metadata") {
        meta.member = false;
    }
}

/// Merges the oldest updaters when there are too many.
fn cap(entries: &mut Vec<Entry>) {
    let updaters = entries.iter().filter(|e| e.operation == "Update").count();
    if updaters <= MAX_UPDATERS {
        return;
    }
    sort(entries);
    let mut surplus = updaters - MAX_UPDATERS;
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    // One entry per version takes the place of all that are merged.
    let mut merged: Vec<Entry> = Vec::new();
    for entry in entries.drain(..) {
        if entry.operation != "Update" || surplus == 0 {
            kept.push(entry);
            continue;
        }
        match merged.iter_mut().find(|m| m.api_version == entry.api_version) {
            Some(m) => {
                m.fields.union(entry.fields);
                m.time = entry.time.or(m.time.take());
                surplus -= 1;
            }
            None => merged.push(Entry { manager: ANCIENT.into(), subresource: String::new(), ..entry }),
        }
    }
    merged.append(&mut kept);
    *entries = merged;
}

fn sort(entries: &mut [Entry]) {
    entries.sort_by(|a, b| {
        (&a.operation, &a.time, &a.manager, &a.api_version, &a.subresource).cmp(&(
            &b.operation,
            &b.time,
            &b.manager,
            &b.api_version,
            &b.subresource,
        ))
    });
}

fn write(object: &mut Value, entries: &[Entry]) {
    let mut entries = entries.to_vec();
    sort(&mut entries);
    let items: Vec<Value> = entries.iter().map(Entry::to_value).collect();
    if items.is_empty() {
        remove_path(object, &["metadata", "managedFields"]);
    } else {
        object.set_meta("managedFields", Value::Array(items));
    }
}

/// What a creation is compared with: an object of the kind with nothing set.
pub fn nothing(ty: Option<&'static Type>) -> Value {
    ty.map_or_else(|| Value::Object(Map::new()), hawser_api::decode::empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer<'a>(manager: &'a str, subresource: &'a str, now: &'a str) -> Writer<'a> {
        Writer { manager, api_version: "apps/v1", subresource, now: Some(now), has_status: true }
    }

    fn ty() -> Option<&'static Type> {
        hawser_api::schema::find_kind("apps/v1", "Deployment")
    }

    fn owners(object: &Value) -> Vec<(String, Value)> {
        object
            .items_at("metadata.managedFields")
            .iter()
            .map(|e| (e.str_at("manager").to_owned(), e["fieldsV1"].clone()))
            .collect()
    }

    #[test]
    fn ownership_moves_with_changes() {
        let mut one = json!({"metadata": {"name": "d", "labels": {"a": "1"}}, "spec": {"replicas": 1,
            "minReadySeconds": 3, "selector": {}, "template": {"metadata": {}, "spec": {"containers": null}}}});
        update(ty(), &nothing(ty()), &mut one, &writer("a", "", "t1"));
        let labels = json!({"f:labels": {".": {}, "f:a": {}}});
        assert_eq!(
            owners(&one),
            [(
                "a".into(),
                json!({"f:metadata": labels, "f:spec": {"f:replicas": {}, "f:minReadySeconds": {},
                "f:selector": {}}})
            )]
        );
        let mut two = one.clone();
        two["spec"]["replicas"] = json!(2);
        if let Some(spec) = two["spec"].as_object_mut() {
            spec.remove("minReadySeconds");
        }
        update(ty(), &one, &mut two, &writer("b", "", "t2"));
        assert_eq!(
            owners(&two),
            [
                ("a".into(), json!({"f:metadata": labels, "f:spec": {"f:selector": {}}})),
                ("b".into(), json!({"f:spec": {"f:replicas": {}}}))
            ]
        );
        let mut three = two.clone();
        update(ty(), &two, &mut three, &writer("c", "", "t3"));
        assert_eq!(three, two, "a write without a change changes nothing");
        two["status"] = json!({});
        let mut status = two.clone();
        status["status"] = json!({"replicas": 2});
        update(ty(), &two, &mut status, &writer("c", "status", "t3"));
        assert_eq!(owners(&status).last(), Some(&("c".into(), json!({"f:status": {"f:replicas": {}}}))));
    }

    #[test]
    fn an_empty_entry_resets() {
        let mut one = json!({"metadata": {"name": "d", "managedFields": [{}]}, "spec": {"replicas": 1}});
        update(ty(), &nothing(ty()), &mut one, &writer("a", "", "t1"));
        assert!(one.at("metadata.managedFields").is_none());
    }

    #[test]
    fn many_updaters_are_merged() {
        let mut object = json!({"metadata": {"name": "d"}});
        for n in 0..15 {
            let live = object.clone();
            object["metadata"]["labels"][format!("l{n}")] = json!("x");
            let (manager, now) = (format!("m{n:02}"), format!("t{n:02}"));
            update(ty(), &live, &mut object, &writer(&manager, "", &now));
        }
        let owners = owners(&object);
        assert_eq!(owners.len(), MAX_UPDATERS);
        assert!(owners.iter().any(|(m, _)| m == ANCIENT));
    }
}
