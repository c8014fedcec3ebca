//! The kinds table: one row per resource and version, built in (`data/kinds.txt`) or defined at run time.

use crate::object::ObjectExt as _;
use serde_json::Value;
use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

/// The verbs of an ordinary stored resource, sorted as discovery prints them.
pub const ALL_VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// One resource in one version: a row of the kinds table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: String,
    pub version: String,
    /// The kind's name, `Pod`.
    pub kind: String,
    /// `PodList`; empty for kinds that cannot be listed.
    pub list_kind: String,
    /// The resource's name in paths, `pods`.
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Sorted.
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// Field selectors besides `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Vec<SelectableField>,
    /// Printer columns of a kind defined at run time; built-in kinds have theirs in [`crate::table`].
    pub columns: Vec<Column>,
    /// Where and in which version objects are stored; equal for all versions of one resource.
    pub storage: StorageLocation,
    /// Served unless switched off. Alpha and beta versions are off by default.
    pub on_by_default: bool,
    /// Position of this version within its group's preference order, 0 first.
    pub preference: u32,
    /// False for kinds defined at run time (CRDs).
    pub builtin: bool,
    /// `storageVersionHash` as discovery publishes it, where it does not follow from `storage`.
    pub storage_version_hash: Option<String>,
    /// Features that are off by default and on for this row.
    pub features: Vec<crate::strategy::Feature>,
    /// Schema, conversion and the like of a kind defined at run time.
    pub custom: Option<Arc<crate::crd::Custom>>,
}

/// A subresource of a row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subresource {
    /// `status`, `scale`, `log`, ….
    pub name: String,
    pub verbs: Vec<String>,
    /// The kind of its objects, when discovery names a group and version of its own (`autoscaling/v1 Scale`).
    pub group: Option<String>,
    pub version: Option<String>,
    /// The kind of its objects; the row's own kind for `status`.
    pub kind: String,
}

/// A field that `fieldSelector` accepts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SelectableField {
    /// The name in the selector.
    pub label: String,
    /// Dotted paths into the stored version; the first that is not empty counts.
    pub paths: Vec<String>,
    /// The value of an object without the field.
    pub default: String,
}

/// A printer column of a kind defined at run time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub r#type: String,
    pub format: String,
    pub description: String,
    /// 0 is shown always, others with `-o wide`.
    pub priority: i32,
    /// JSON path of the value, with its leading dot.
    pub json_path: String,
}

/// Where the versions of one resource are stored together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct StorageLocation {
    pub group: String,
    pub plural: String,
    /// The version objects are encoded in.
    pub version: String,
}

impl Kind {
    /// `group/version`, or `version` in the core group.
    pub fn api_version(&self) -> String {
        crate::object::api_version(&self.group, &self.version)
    }

    /// `plural.group`, or `plural` in the core group: how messages name the resource.
    pub fn group_resource(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    /// `Kind.group`, or `Kind` in the core group: how messages name the kind.
    pub fn group_kind(&self) -> String {
        qualified(&self.kind, &self.group)
    }

    /// Whether the resource itself has a verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether only the `status` subresource writes the status.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether objects of the kind are kept (reviews, bindings and component statuses are not).
    pub fn is_stored(&self) -> bool {
        self.has_verb("list") && self.has_verb("create")
    }

    /// Whether this row's version is the stored one (and of the storage's group).
    pub fn is_storage_version(&self) -> bool {
        self.storage.version == self.version && self.storage.group == self.group
    }

    /// The selectable field of that label, `metadata.name` and `metadata.namespace` included.
    pub fn selectable(&self, label: &str) -> Option<Cow<'_, SelectableField>> {
        if label == "metadata.name" || label == "metadata.namespace" {
            return Some(Cow::Owned(SelectableField {
                label: label.to_owned(),
                paths: vec![label.to_owned()],
                default: String::new(),
            }));
        }
        self.selectable_fields.iter().find(|f| f.label == label).map(Cow::Borrowed)
    }

    /// What discovery's `storageVersionHash` is the hash of: `group/version/kind` of the stored version.
    pub fn storage_version_identity(&self) -> String {
        format!("{}/{}/{}", self.storage.group, self.storage.version, self.kind)
    }

    /// The directory of the resource in the store, like etcd's: `pods`, `services/specs`,
    /// `apps.example.com/widgets` for a kind defined at run time.
    ///
    /// Follows kube-apiserver, whose keys carry no group for the built-in kinds but a few.
    pub fn storage_prefix(&self) -> String {
        let s = &self.storage;
        match (s.group.as_str(), s.plural.as_str()) {
            ("", "services") => "services/specs".into(),
            ("", "endpoints") => "services/endpoints".into(),
            ("", "nodes") => "minions".into(),
            ("", "replicationcontrollers") => "controllers".into(),
            ("networking.k8s.io", "ingresses") => "ingress".into(),
            ("apiregistration.k8s.io" | "apiextensions.k8s.io", p) => format!("{}/{p}", s.group),
            (g, p) if !self.builtin => format!("{g}/{p}"),
            (_, p) => p.to_owned(),
        }
    }
}

impl SelectableField {
    /// The field's value in a stored object, as selectors compare it.
    pub fn value<'a>(&'a self, stored: &'a Value) -> Cow<'a, str> {
        for path in &self.paths {
            match stored.at(path) {
                Some(Value::String(s)) if !s.is_empty() => return Cow::Borrowed(s),
                Some(Value::Bool(b)) => return Cow::Borrowed(if *b { "true" } else { "false" }),
                Some(Value::Number(n)) => return Cow::Owned(n.to_string()),
                _ => {}
            }
        }
        Cow::Borrowed(&self.default)
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

static BUILTIN: LazyLock<Vec<Arc<Kind>>> = LazyLock::new(|| parse(include_str!("../data/kinds.txt")));

/// Every built-in row, in discovery order: groups, then versions by preference, then names.
pub fn builtin() -> &'static [Arc<Kind>] {
    &BUILTIN
}

/// Whether built-in resources are of a group.
pub fn is_builtin_group(group: &str) -> bool {
    BUILTIN.iter().any(|kind| kind.group == group)
}

/// The built-in row of a resource.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Kind>> {
    BUILTIN.iter().find(|k| k.plural == plural && k.version == version && k.group == group)
}

/// The built-in row of a kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Arc<Kind>> {
    BUILTIN.iter().find(|k| k.kind == kind && k.version == version && k.group == group)
}

/// The built-in row of `apiVersion` and `kind`.
pub fn find_api_version(api_version: &str, kind: &str) -> Option<&'static Arc<Kind>> {
    let (group, version) = crate::object::split_api_version(api_version);
    find_kind(group, version, kind)
}

/// Reads the table; its format is described at its head. Malformed lines cannot pass the tests below.
fn parse(text: &str) -> Vec<Arc<Kind>> {
    let mut rows: Vec<Kind> = Vec::new();
    let (mut group, mut version, mut on, mut preference) = ("", "", true, 0);
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match (line.starts_with(' '), words.as_slice()) {
            (false, ["group", name]) => {
                group = if *name == "-" { "" } else { name };
                preference = 0;
            }
            (false, ["version", name, state]) => {
                version = name;
                on = *state == "on";
                preference += 1;
            }
            (false, [plural, kind, scope, options @ ..]) => {
                rows.push(parse_row(group, version, plural, kind, scope, options));
                if let Some(row) = rows.last_mut() {
                    row.on_by_default = on;
                    row.preference = preference - 1;
                }
            }
            (true, [name, verbs, rest @ ..]) => {
                if let Some(row) = rows.last_mut() {
                    let gv = rest.first().and_then(|w| w.split_once('/'));
                    let kind = rest.last().filter(|w| !w.contains('/')).map_or(row.kind.as_str(), |w| w);
                    let sub = Subresource {
                        name: (*name).to_owned(),
                        verbs: list(verbs),
                        group: gv.map(|(g, _)| g.to_owned()),
                        version: gv.map(|(_, v)| v.to_owned()),
                        kind: kind.to_owned(),
                    };
                    row.subresources.push(sub);
                }
            }
            _ => {}
        }
    }
    rows.into_iter().map(Arc::new).collect()
}

fn parse_row(group: &str, version: &str, plural: &str, kind: &str, scope: &str, options: &[&str]) -> Kind {
    let mut row = Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        namespaced: scope == "namespaced",
        verbs: ALL_VERBS.iter().map(|v| (*v).to_owned()).collect(),
        storage: StorageLocation {
            group: group.to_owned(),
            plural: plural.to_owned(),
            version: version.to_owned(),
        },
        builtin: true,
        ..Kind::default()
    };
    for option in options {
        match option.split_once('=') {
            Some(("short", v)) => row.short_names = list(v),
            Some(("categories", v)) => row.categories = list(v),
            Some(("verbs", v)) => row.verbs = list(v),
            Some(("singular", v)) => row.singular = v.to_owned(),
            Some(("hash", v)) => row.storage_version_hash = Some(v.to_owned()),
            Some(("store", v)) => {
                let (g, ver) = v.split_once('/').unwrap_or(("-", v));
                row.storage.group = if g == "-" { String::new() } else { g.to_owned() };
                row.storage.version = ver.to_owned();
            }
            Some(("fields", v)) => row.selectable_fields = v.split(',').map(parse_field).collect(),
            _ => {}
        }
    }
    if row.has_verb("list") {
        row.list_kind = format!("{kind}List");
    }
    row
}

fn parse_field(text: &str) -> SelectableField {
    let (text, default) = text.split_once(':').unwrap_or((text, ""));
    let (label, paths) = text.split_once('=').unwrap_or((text, text));
    SelectableField {
        label: label.to_owned(),
        paths: paths.split('|').map(str::to_owned).collect(),
        default: default.to_owned(),
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_line_of_the_table_is_read() {
        let text = include_str!("../data/kinds.txt");
        let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', ' ']));
        let rows = lines.filter(|l| !l.starts_with("group ") && !l.starts_with("version ")).count();
        assert_eq!(builtin().len(), rows);
        let subs = text.lines().filter(|l| l.starts_with(' ')).count();
        assert_eq!(builtin().iter().map(|k| k.subresources.len()).sum::<usize>(), subs);
        for k in builtin() {
            assert!(k.verbs.iter().all(|v| ALL_VERBS.contains(&v.as_str())), "{}", k.plural);
            assert!(find(&k.storage.group, &k.storage.version, &k.storage.plural).is_some(), "{}", k.plural);
            assert!(!k.version.is_empty());
        }
        assert!(rows > 80);
    }

    #[test]
    fn rows_carry_their_facts() {
        let pods = find("", "v1", "pods").expect("pods");
        assert_eq!(pods.short_names, ["po"]);
        assert_eq!(pods.subresource("eviction").map(|s| s.group.as_deref()), Some(Some("policy")));
        assert_eq!(pods.subresource("log").map(|s| s.kind.as_str()), Some("Pod"));
        assert_eq!(pods.subresource("binding").map(|s| s.kind.as_str()), Some("Binding"));
        let scale = find("apps", "v1", "deployments").and_then(|k| k.subresource("scale")).expect("scale");
        assert_eq!((scale.version.as_deref(), scale.kind.as_str()), (Some("v1"), "Scale"));
        let hpa = find("autoscaling", "v1", "horizontalpodautoscalers").expect("hpa");
        assert_eq!(
            (hpa.storage.version.as_str(), hpa.preference, hpa.is_storage_version()),
            ("v2", 1, false)
        );
        assert_eq!(find("", "v1", "services").map(|k| k.storage_prefix()), Some("services/specs".into()));
        assert!(!find("resource.k8s.io", "v1beta1", "resourceclaims").expect("claims").on_by_default);
    }

    #[test]
    fn selectable_values() {
        let pods = find("", "v1", "pods").expect("pods");
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}});
        let value = |label: &str| pods.selectable(label).map(|f| f.value(&pod).into_owned());
        assert_eq!(value("metadata.name").as_deref(), Some("a"));
        assert_eq!(value("spec.nodeName").as_deref(), Some("n"));
        assert_eq!(value("spec.hostNetwork").as_deref(), Some("false"));
        assert_eq!(value("spec.hostname"), None);
        let events = find("", "v1", "events").expect("events");
        let source = events.selectable("source").expect("source").into_owned();
        assert_eq!(source.value(&json!({"reportingComponent": "x"})), "x");
        assert_eq!(source.value(&json!({"source": {"component": "y"}, "reportingComponent": "x"})), "y");
    }
}
