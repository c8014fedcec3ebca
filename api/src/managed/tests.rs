//! Updates and applies together, by cases and by laws.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::apply::{Applied, ApplyError, LAST_APPLIED, apply};
use super::model::Node;
use super::reset::{self, Reset};
use super::update::{Versions, Writer, update};
use crate::object::ObjectExt as _;
use crate::schema;

/// One version, and `old/v0` in which `spec.size` was `spec.count`.
struct Served(&'static str, &'static str);

impl Served {
    fn node_here(&self) -> Node<'static> {
        Node::of(schema::find_kind(self.0, self.1))
    }
}

impl Versions for Served {
    fn node(&self, version: &str) -> Option<Node<'_>> {
        match version {
            "old/v0" => Some(Node::Deduced),
            v => (v == self.0).then(|| self.node_here()),
        }
    }

    fn convert(&self, object: &Value, version: &str) -> Option<Value> {
        self.node(version)?;
        let mut out = object.clone();
        if out.api_version() != version {
            let (from, to) = if version == "old/v0" { ("size", "count") } else { ("count", "size") };
            if let Some(value) = out.remove_path(&["spec", from]) {
                out.set_path(&["spec", to], value);
            }
        }
        out.set_api_version_kind(version, self.1);
        Some(out)
    }
}

static DEPLOYMENTS: Served = Served("apps/v1", "Deployment");
static CONFIG_MAPS: Served = Served("v1", "ConfigMap");
static WIDGETS: Served = Served("example.com/v1", "Widget");

fn writer<'a>(versions: &'a Served, manager: &'a str, now: &'a str) -> Writer<'a> {
    Writer { manager, api_version: versions.0, subresource: "", now, reset: Reset::default(), versions }
}

fn empty(versions: &Served) -> Value {
    let mut out = schema::find_kind(versions.0, versions.1).map_or_else(|| json!({}), crate::decode::empty);
    out.set_api_version_kind(versions.0, versions.1);
    out
}

/// An apply, decoded and noted as the registry does it.
fn applied(
    writer: &Writer<'_>,
    versions: &Served,
    live: &Value,
    patch: &Value,
    force: bool,
) -> Result<Value, ApplyError> {
    let Applied { mut object, managed, .. } =
        apply(writer, versions.1, live, &empty(versions), patch, force)?;
    if let Some(ty) = schema::find_kind(versions.0, versions.1) {
        crate::decode::normalize(ty, &mut object, &mut Default::default()).expect("typed");
    }
    if let Some(entries) = managed.to_value() {
        object.set_meta("managedFields", entries);
    }
    object.set_meta("uid", json!("u"));
    Ok(object)
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    let entries = object.items_at("metadata.managedFields").iter();
    entries
        .map(|e| (format!("{} {}", e.str_at("manager"), e.str_at("operation")), e["fieldsV1"].clone()))
        .collect()
}

fn owner(name: &str, fields: Value) -> (String, Value) {
    (name.to_owned(), fields)
}

fn config(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn by(manager: &'static str) -> Writer<'static> {
    writer(&CONFIG_MAPS, manager, "2020-01-01T00:00:00Z")
}

fn put(manager: &'static str, live: &Value, data: Value) -> Value {
    let mut new = config(data);
    if new["data"] == json!({}) {
        // Decoding leaves an empty map out.
        new.remove_path(&["data"]);
    }
    new.set_meta("uid", live.at("metadata.uid").cloned().unwrap_or(json!("u")));
    update(&by(manager), live, &mut new);
    new
}

fn send(manager: &'static str, live: &Value, data: Value, force: bool) -> Result<Value, ApplyError> {
    applied(&by(manager), &CONFIG_MAPS, live, &config(data), force)
}

#[test]
fn ownership_moves_with_changes() {
    let kind = crate::kinds::find("apps", "v1", "deployments").expect("row");
    let writer = |manager, now, sub| Writer {
        reset: reset::of(kind, sub),
        subresource: sub,
        ..writer(&DEPLOYMENTS, manager, now)
    };
    let mut one = json!({"metadata": {"name": "d", "labels": {"a": "1"}}, "spec": {"replicas": 1,
        "minReadySeconds": 3, "selector": {}, "template": {"metadata": {}, "spec": {"containers": null}}}});
    update(&writer("a", "t1", ""), &empty(&DEPLOYMENTS), &mut one);
    let labels = json!({"f:labels": {".": {}, "f:a": {}}});
    let spec = json!({"f:replicas": {}, "f:minReadySeconds": {}, "f:selector": {}});
    assert_eq!(owners(&one), [owner("a Update", json!({"f:metadata": labels, "f:spec": spec}))]);
    let mut two = one.clone();
    two["spec"]["replicas"] = json!(2);
    two["spec"].as_object_mut().expect("spec").remove("minReadySeconds");
    update(&writer("b", "t2", ""), &one, &mut two);
    assert_eq!(
        owners(&two),
        [
            owner("a Update", json!({"f:metadata": labels, "f:spec": {"f:selector": {}}})),
            owner("b Update", json!({"f:spec": {"f:replicas": {}}}))
        ]
    );
    let mut three = two.clone();
    update(&writer("c", "t3", ""), &two, &mut three);
    assert_eq!(three, two, "a write without a change changes nothing");
    two["status"] = json!({});
    let mut status = two.clone();
    status["status"] = json!({"replicas": 2});
    status["spec"]["replicas"] = json!(7);
    update(&writer("c", "t3", "status"), &two, &mut status);
    assert_eq!(owners(&status)[2], owner("c Update", json!({"f:status": {"f:replicas": {}}})));
    assert_eq!(owners(&status)[1], owners(&two)[1], "a status write takes nothing of the spec");
}

#[test]
fn managers_that_are_forgotten_come_back_with_the_first_apply() {
    let one = put("a", &empty(&CONFIG_MAPS), json!({"a": "1", "b": "1"}));
    assert_eq!(owners(&one).len(), 1);
    for reset in [json!([{}]), json!([])] {
        let mut new = one.clone();
        new.set_meta("managedFields", reset);
        update(&by("b"), &one, &mut new);
        assert!(new.at("metadata.managedFields").is_none());
    }
    let mut bare = one.clone();
    bare.remove_path(&["metadata", "managedFields"]);
    let two = put("b", &bare, json!({"a": "2", "b": "1"}));
    assert!(owners(&two).is_empty(), "not tracked");
    let three = send("c", &two, json!({"c": "1"}), false).expect("applied");
    let fields = |f: Value| json!({ "f:data": f });
    assert_eq!(
        owners(&three),
        [
            owner("c Apply", fields(json!({"f:c": {}}))),
            owner("before-first-apply Update", fields(json!({".": {}, "f:a": {}, "f:b": {}})))
        ]
    );
    assert!(send("d", &two, json!({"a": "3"}), false).is_err());
}

#[test]
fn conflicts_shared_fields_and_force() {
    let one = send("one", &empty(&CONFIG_MAPS), json!({"a": "1", "b": "2"}), false).expect("created");
    let Err(ApplyError::Conflicts(conflicts)) = send("two", &one, json!({"a": "other", "c": "3"}), false)
    else {
        panic!("no conflict")
    };
    assert_eq!((conflicts.len(), conflicts[0].owner.manager.as_str()), (1, "one"));
    let shared = send("two", &one, json!({"a": "1", "c": "3"}), false).expect("shared");
    assert_eq!(shared["data"], json!({"a": "1", "b": "2", "c": "3"}));
    let forced = send("two", &shared, json!({"a": "x", "b": "x", "c": "3"}), true).expect("forced");
    assert_eq!(owners(&forced), [owner("two Apply", json!({"f:data": {"f:a": {}, "f:b": {}, "f:c": {}}}))]);
    let nothing = send("one", &forced, json!({}), false).expect("nothing");
    assert_eq!(nothing["data"], forced["data"]);
    assert_eq!(owners(&nothing)[0], owner("one Apply", json!({"f:data": {}})));
    assert!(nothing["metadata"]["managedFields"][0].get("time").is_none(), "nothing was changed");
    let less = send("two", &nothing, json!({"c": "3"}), false).expect("less");
    assert_eq!(less["data"], json!({"c": "3"}));
}

#[test]
fn what_others_own_stays() {
    let one = send("one", &empty(&CONFIG_MAPS), json!({"a": "1", "b": "2"}), false).expect("created");
    let two = put("edit", &one, json!({"a": "1", "b": "2", "u": "9"}));
    let three = send("one", &two, json!({"b": "2"}), false).expect("applied");
    assert_eq!(three["data"], json!({"b": "2", "u": "9"}));
    let taken = put("edit", &three, json!({"b": "3", "u": "9"}));
    let gone = send("one", &taken, json!({}), false).expect("applied");
    assert_eq!(gone["data"], json!({"b": "3", "u": "9"}), "the updater has taken it over");
}

#[test]
fn from_client_side_apply() {
    let last = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"annotations":{},"name":"c"},"data":{"a":"1","b":"2"}}"#;
    let mut one = config(json!({"a": "1", "b": "2"}));
    one.set_path(&["metadata", "annotations", LAST_APPLIED], json!(last));
    one.set_meta("uid", json!("u"));
    update(&by("kubectl-client-side-apply"), &empty(&CONFIG_MAPS), &mut one);
    let two = send("kubectl", &one, json!({"a": "new"}), false).expect("taken over");
    assert_eq!(two["data"], json!({"a": "new", "b": "2"}));
    assert_eq!(
        two.annotation(LAST_APPLIED),
        Some(
            "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"new\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"c\"}}\n"
        )
    );
    let changed = put("edit", &one, json!({"a": "edited", "b": "2"}));
    assert!(
        send("kubectl", &changed, json!({"a": "new"}), false).is_err(),
        "what was edited since is another's"
    );
    assert!(send("somebody", &one, json!({"a": "new"}), false).is_err());
}

#[test]
fn lists_with_keys() {
    let deployment = |containers: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
            "spec": {"selector": {}, "template": {"spec": {"containers": containers}}}})
    };
    let by = |m| writer(&DEPLOYMENTS, m, "t");
    let create = deployment(json!([{"name": "a", "image": "1"}]));
    let one = applied(&by("one"), &DEPLOYMENTS, &empty(&DEPLOYMENTS), &create, false).expect("created");
    let sidecar = deployment(json!([{"name": "b", "image": "2", "ports": [{"containerPort": 80}]}]));
    let two = applied(&by("two"), &DEPLOYMENTS, &one, &sidecar, false).expect("added");
    let names = |o: &Value| -> Vec<String> {
        o.items_at("spec.template.spec.containers").iter().map(|c| c.str_at("name").to_owned()).collect()
    };
    assert_eq!(names(&two), ["a", "b"]);
    let without = deployment(json!([]));
    let three = applied(&by("one"), &DEPLOYMENTS, &two, &without, false).expect("removed");
    assert_eq!(names(&three), ["b"]);
}

#[test]
fn patches_that_are_refused() {
    let live = empty(&CONFIG_MAPS);
    let refuse = |patch: Value, want: &str| match apply(&by("a"), "ConfigMap", &live, &live, &patch, false) {
        Err(ApplyError::BadRequest(why) | ApplyError::Failed(why)) => assert_eq!(why, want),
        other => panic!("{other:?}"),
    };
    refuse(json!({"kind": "ConfigMap"}), "invalid object type: /, Kind=ConfigMap");
    refuse(json!({"apiVersion": "v1"}), "invalid object type: /v1, Kind=");
    let mut patch = config(json!({}));
    patch.set_meta("managedFields", json!([{}]));
    refuse(patch, "metadata.managedFields must be nil");
    refuse(
        config(json!(["a"])),
        "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .data: expected map, got &{[a]}",
    );
}

#[test]
fn managers_of_other_versions() {
    let widget = |version: &str, spec: Value| json!({"apiVersion": version, "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    let new = |m| writer(&WIDGETS, m, "t");
    let old = |m| Writer { api_version: "old/v0", ..writer(&WIDGETS, m, "t") };
    let empty_old = json!({"apiVersion": "old/v0", "kind": "Widget"});
    let made = apply(
        &old("a"),
        "Widget",
        &empty_old,
        &empty_old,
        &widget("old/v0", json!({"count": 1, "x": 1})),
        false,
    )
    .expect("created");
    let mut live = WIDGETS.convert(&made.object, "example.com/v1").expect("served");
    live.set_meta("managedFields", made.managed.to_value().expect("owned"));
    let change = widget("example.com/v1", json!({"size": 2}));
    let Err(ApplyError::Conflicts(conflicts)) = applied(&new("b"), &WIDGETS, &live, &change, false) else {
        panic!("no conflict")
    };
    assert_eq!(conflicts[0].path.iter().map(ToString::to_string).collect::<String>(), ".spec.count");
    let forced = applied(&new("b"), &WIDGETS, &live, &change, true).expect("forced");
    assert_eq!(forced["spec"], json!({"size": 2, "x": 1}));
    // Who applied through the old version now applies through the new one, and less.
    let moved = applied(&new("a"), &WIDGETS, &live, &widget("example.com/v1", json!({"x": 1})), false)
        .expect("moved");
    assert_eq!(moved["spec"], json!({"x": 1}));
    assert_eq!(owners(&moved), [owner("a Apply", json!({"f:spec": {".": {}, "f:x": {}}}))]);
}

fn data() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", "[xy]", 0..4).prop_map(|m| json!(m))
}

/// Any Deployment's worth of labels, keyed items and atomic values.
fn pod_specs() -> impl Strategy<Value = Value> {
    let container =
        ("[ab]", prop::option::of("[xy]"), prop::option::of(1..3i32)).prop_map(|(name, image, port)| {
            let mut c = json!({"name": name});
            if let Some(image) = image {
                c["image"] = json!(image);
            }
            if let Some(port) = port {
                c["ports"] = json!([{"containerPort": port}]);
            }
            c
        });
    (prop::collection::vec(container, 0..3), prop::option::of(data()), data()).prop_map(|(mut containers, nodes, labels)| {
        containers.sort_by_key(|c| c.str_at("name").to_owned());
        containers.dedup_by_key(|c| c.str_at("name").to_owned());
        let mut out = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": labels},
            "spec": {"template": {"spec": {"containers": containers}}}});
        if let Some(nodes) = nodes {
            out["spec"]["template"]["spec"]["nodeSelector"] = nodes;
        }
        out
    })
}

fn bare(object: &Value) -> Value {
    let mut out = object.clone();
    out.remove_path(&["metadata", "managedFields"]);
    out
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(first in pod_specs(), second in pod_specs()) {
        let by = |m, t| writer(&DEPLOYMENTS, m, t);
        let one = applied(&by("a", "t1"), &DEPLOYMENTS, &empty(&DEPLOYMENTS), &first, false).expect("created");
        let two = applied(&by("b", "t2"), &DEPLOYMENTS, &one, &second, true).expect("forced");
        let again = apply(&by("b", "t3"), "Deployment", &two, &empty(&DEPLOYMENTS), &second, false).expect("no conflict");
        let mut object = again.object;
        crate::decode::normalize(schema::find_kind("apps/v1", "Deployment").expect("type"), &mut object, &mut Default::default()).expect("typed");
        prop_assert_eq!(object, bare(&two));
    }

    #[test]
    fn what_is_no_longer_applied_is_gone(first in data(), second in data(), less in data()) {
        let one = send("a", &empty(&CONFIG_MAPS), first.clone(), false).expect("created");
        let two = send("b", &one, second.clone(), true).expect("forced");
        let three = send("b", &two, less.clone(), true).expect("forced");
        let keys = |v: &Value| v.as_object().map(|o| o.keys().cloned().collect::<std::collections::BTreeSet<_>>()).unwrap_or_default();
        // Of b's first apply only what a still shares, or b still wants, is left; all of a's own stays.
        for key in keys(&second) {
            let shared = first.get(&key) == second.get(&key);
            let wanted = less.get(&key).is_some();
            prop_assert_eq!(three["data"].get(&key).is_some(), shared || wanted, "{}", key);
        }
        for key in keys(&first).difference(&keys(&second)) {
            prop_assert!(three["data"].get(key).is_some(), "{}", key);
        }
        for (key, value) in less.as_object().into_iter().flatten() {
            prop_assert_eq!(three["data"].get(key), Some(value));
        }
    }

    #[test]
    fn un_applying_leaves_what_was_there(there in data(), mine in data()) {
        let one = put("edit", &empty(&CONFIG_MAPS), there.clone());
        let two = send("me", &one, mine.clone(), true).expect("forced");
        let three = send("me", &two, json!({}), false).expect("nothing left to conflict");
        for (key, value) in there.as_object().into_iter().flatten() {
            let kept = mine.get(key).is_none_or(|m| m == value);
            prop_assert_eq!(three["data"].get(key).is_some(), kept, "{}", key);
        }
        for key in mine.as_object().into_iter().flatten().map(|(k, _)| k) {
            prop_assert!(there.get(key).is_some() || three["data"].get(key).is_none(), "{}", key);
        }
    }

    #[test]
    fn every_field_of_an_update_has_one_updater(a in data(), b in data(), c in data()) {
        // An object that nobody owns anything of is not tracked.
        prop_assume!(a != json!({}) && b != json!({}));
        let one = put("a", &empty(&CONFIG_MAPS), a);
        let two = put("b", &one, b);
        let three = put("c", &two, c);
        let mut seen = std::collections::BTreeSet::new();
        for (_, fields) in owners(&three) {
            for key in fields["f:data"].as_object().into_iter().flatten().map(|(k, _)| k) {
                prop_assert!(seen.insert(key.clone()), "{} has two owners", key);
            }
        }
        for key in three["data"].as_object().into_iter().flatten().map(|(k, _)| k) {
            prop_assert!(seen.contains(&format!("f:{key}")), "{} has no owner", key);
        }
    }
}
