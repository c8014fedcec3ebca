//! The entries of `metadata.managedFields`: who owns which fields, through which version of the API, since when.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::set::FieldSet;
use crate::object::ObjectExt as _;

/// Most managers of plain updates; the oldest are merged (as kube-apiserver).
pub const MAX_UPDATERS: usize = 10;
/// The manager that merged ones become.
pub const ANCIENT: &str = "ancient-changes";

/// How fields came to be owned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    /// As an entry writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What makes a manager one and the same. Who applies does so in whatever version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub manager: String,
    pub operation: Operation,
    /// `apiVersion` of an updater; empty of an applier.
    pub version: String,
    pub subresource: String,
}

impl Identity {
    /// Who updates, or applies.
    pub fn new(manager: &str, operation: Operation, version: &str, subresource: &str) -> Self {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        Self {
            manager: manager.to_owned(),
            operation,
            version: if operation == Operation::Apply { String::new() } else { version.to_owned() },
            subresource: subresource.to_owned(),
        }
    }
}

/// What a manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    pub fields: FieldSet,
    /// `apiVersion` that the fields are of.
    pub version: String,
    /// RFC 3339; who has only tried to apply what is there has none.
    pub time: Option<String>,
}

/// All managers of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Managed(pub BTreeMap<Identity, Owned>);

/// Entries that say nothing that can be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    #[error("operation must be `Apply` or `Update`")]
    Operation,
    #[error("apiVersion must not be empty")]
    Version,
    #[error("missing fieldsType in managed fields entry {0}")]
    NoType(usize),
    #[error("invalid fieldsType {0:?} in managed fields entry {1}")]
    Type(String, usize),
    #[error("error decoding set of managed fields entry {0}")]
    Fields(usize),
}

impl Managed {
    /// Reads the entries of a list (`metadata.managedFields`).
    ///
    /// # Errors
    /// When one of them is malformed.
    pub fn parse(entries: &[Value]) -> Result<Self, BadEntry> {
        let mut out = BTreeMap::new();
        for (i, entry) in entries.iter().enumerate() {
            let operation = match entry.str_at("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err(BadEntry::Operation),
            };
            let version = entry.api_version();
            if version.is_empty() {
                return Err(BadEntry::Version);
            }
            match entry.str_at("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(BadEntry::NoType(i)),
                other => return Err(BadEntry::Type(other.to_owned(), i)),
            }
            let fields = match entry.get("fieldsV1").filter(|f| !f.is_null()) {
                Some(fields) => FieldSet::parse(fields).map_err(|_| BadEntry::Fields(i))?,
                None => FieldSet::default(),
            };
            let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
            let (manager, subresource) = (entry.str_at("manager"), entry.str_at("subresource"));
            let version = version.to_owned();
            let identity = Identity {
                manager: manager.to_owned(),
                ..Identity::new(manager, operation, &version, subresource)
            };
            out.insert(identity, Owned { fields, version, time });
        }
        Ok(Self(out))
    }

    /// The list of entries: by operation and time, then by name. None when there is nobody.
    pub fn to_value(&self) -> Option<Value> {
        let mut entries: Vec<(&Identity, &Owned)> = self.0.iter().collect();
        entries.sort_by(|(a, x), (b, y)| {
            (a.operation, &x.time, &a.manager, &x.version, &a.subresource).cmp(&(
                b.operation,
                &y.time,
                &b.manager,
                &y.version,
                &b.subresource,
            ))
        });
        let items: Vec<Value> = entries.into_iter().map(|(identity, owned)| entry(identity, owned)).collect();
        (!items.is_empty()).then_some(Value::Array(items))
    }

    /// Merges the oldest updaters when there are too many: those of one version into one.
    pub fn cap(&mut self) {
        let mut updaters: Vec<Identity> =
            self.0.keys().filter(|i| i.operation == Operation::Update).cloned().collect();
        let mut left = updaters.len();
        if left <= MAX_UPDATERS {
            return;
        }
        updaters.sort_by_cached_key(|i| (self.0.get(i).and_then(|o| o.time.clone()), i.clone()));
        let mut first_of_version: BTreeMap<String, Identity> = BTreeMap::new();
        for identity in updaters {
            if left <= MAX_UPDATERS {
                break;
            }
            let Some(version) = self.0.get(&identity).map(|o| o.version.clone()) else { continue };
            let Some(first) = first_of_version.get(&version).cloned() else {
                first_of_version.insert(version, identity);
                continue;
            };
            let bucket = Identity::new(ANCIENT, Operation::Update, &version, "");
            if !self.0.contains_key(&bucket)
                && let Some(owned) = self.0.remove(&first)
            {
                self.0.insert(bucket.clone(), owned);
            }
            if let Some(owned) = self.0.remove(&identity)
                && let Some(all) = self.0.get_mut(&bucket)
            {
                all.fields.union(owned.fields);
                all.time = owned.time;
                left -= 1;
            }
        }
    }

    /// Whether two lists of entries say the same but for their times.
    pub fn same_but_times(a: &[Value], b: &[Value]) -> bool {
        let without = |v: &Value| {
            let mut map = v.as_object().cloned().unwrap_or_default();
            map.remove("time");
            map
        };
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || without(a) == without(b))
    }
}

fn entry(identity: &Identity, owned: &Owned) -> Value {
    let mut out = json!({"manager": identity.manager, "operation": identity.operation.name(),
        "apiVersion": owned.version, "fieldsType": "FieldsV1", "fieldsV1": owned.fields.to_value()});
    if let Some(time) = &owned.time {
        out["time"] = json!(time);
    }
    if !identity.subresource.is_empty() {
        out["subresource"] = json!(identity.subresource);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_written_in_order() {
        let entry = |m: &str, op: &str, time: &str| {
            json!({"manager": m, "operation": op, "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1",
                "fieldsV1": {"f:data": {format!("f:{m}"): {}}}})
        };
        let (a, b, c) = (entry("a", "Update", "2"), entry("b", "Update", "1"), entry("c", "Apply", "3"));
        let managed = Managed::parse(&[a.clone(), b.clone(), c.clone()]).expect("entries");
        assert_eq!(managed.to_value(), Some(json!([c, b, a])));
        assert_eq!(Managed::default().to_value(), None);
    }

    #[test]
    fn malformed_entries() {
        let good =
            json!({"manager": "m", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1"});
        for (field, value, want) in [
            ("operation", json!("Odd"), "operation must be `Apply` or `Update`"),
            ("apiVersion", json!(""), "apiVersion must not be empty"),
            ("fieldsType", json!(""), "missing fieldsType in managed fields entry 0"),
            ("fieldsType", json!("V2"), "invalid fieldsType \"V2\" in managed fields entry 0"),
            ("fieldsV1", json!({"x": 1}), "error decoding set of managed fields entry 0"),
        ] {
            let mut entry = good.clone();
            entry[field] = value;
            assert_eq!(Managed::parse(&[entry]).expect_err("malformed").to_string(), want);
        }
    }

    #[test]
    fn the_oldest_updaters_of_a_version_are_merged() {
        let mut managed = Managed::default();
        for n in 0..14 {
            let (name, version) = (format!("m{n:02}"), if n % 2 == 0 { "v1" } else { "v2" });
            let owned = Owned {
                fields: FieldSet::of(&["data", &name]),
                version: version.into(),
                time: Some(format!("t{n:02}")),
            };
            managed.0.insert(Identity::new(&name, Operation::Update, version, ""), owned);
        }
        managed.cap();
        assert_eq!(managed.0.len(), MAX_UPDATERS);
        let merged = |version: &str| {
            let owned = &managed.0[&Identity::new(ANCIENT, Operation::Update, version, "")];
            (owned.fields.to_value(), owned.time.clone())
        };
        assert_eq!(
            merged("v1"),
            (json!({"f:data": {"f:m00": {}, "f:m02": {}, "f:m04": {}}}), Some("t04".into()))
        );
        assert_eq!(
            merged("v2"),
            (json!({"f:data": {"f:m01": {}, "f:m03": {}, "f:m05": {}}}), Some("t05".into()))
        );
    }
}
