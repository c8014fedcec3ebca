//! Replays requests and answers recorded from a real Kubernetes 1.36 API server against the pure core: a
//! handful of lines stand in for the server, everything that decides is in the crate.
//!
//! `data/*.jsonl` hold one case per line: requests, and what the server answered. Cases that are about the
//! server alone (content types, admission plugins, allocators) are not among them; fields that such parts fill
//! in are left out of the comparison.

use hawser_api::decode::{Dropped, normalize, parse_json};
use hawser_api::kinds::{self, Kind};
use hawser_api::object::ObjectExt as _;
use hawser_api::patch::{self, JsonPatch};
use hawser_api::status::Status;
use hawser_api::strategy::{self, CreateContext};
use hawser_api::table::{self, IncludeObject};
use hawser_api::{convert, defaults, schema, validation};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// Fields that admission plugins, allocators and the store fill in, as dotted paths by kind (`*` for all).
const NOT_OURS: &[(&str, &[&str])] = &[
    ("*", &["metadata.resourceVersion", "metadata.managedFields"]),
    (
        "Pod",
        &[
            "spec.tolerations",
            "spec.priority",
            "spec.preemptionPolicy",
            "spec.serviceAccount",
            "spec.serviceAccountName",
        ],
    ),
    ("Service", &["spec.clusterIP", "spec.clusterIPs", "spec.ipFamilies", "spec.ipFamilyPolicy"]),
    ("Node", &["spec.taints"]),
    ("PersistentVolume", &["metadata.finalizers"]),
    ("PersistentVolumeClaim", &["metadata.finalizers"]),
];

struct Server {
    objects: HashMap<String, Value>,
    created: usize,
}

struct Target {
    kind: Arc<Kind>,
    namespace: String,
    name: String,
    subresource: String,
}

fn route(path: &str) -> Option<Target> {
    let path = path.split('?').next()?;
    let mut parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let (group, version) = match parts.first()? {
        &"api" => ("", *parts.get(1)?),
        _ => (*parts.get(1)?, *parts.get(2)?),
    };
    parts.drain(..if group.is_empty() { 2 } else { 3 });
    let mut namespace = "";
    if parts.first() == Some(&"namespaces") && parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
        namespace = parts[1];
        parts.drain(..2);
    }
    let kind = kinds::find(group, version, parts.first()?)?;
    Some(Target {
        kind: kind.clone(),
        namespace: namespace.to_owned(),
        name: parts.get(1).unwrap_or(&"").to_string(),
        subresource: parts.get(2).unwrap_or(&"").to_string(),
    })
}

impl Server {
    fn key(t: &Target, name: &str) -> String {
        format!("{}/{}/{}/{name}", t.kind.storage.group, t.kind.plural, t.namespace)
    }

    fn decode(kind: &Kind, mut value: Value) -> Result<Value, Status> {
        let ty = schema::of(kind).expect("built-in kinds have types");
        value.set_api_version_kind(&kind.api_version(), &kind.kind);
        normalize(ty, &mut value, &mut Dropped::default()).map_err(|e| {
            Status::bad_request(format!(
                "{k} in version \"{}\" cannot be handled as a {k}: {e}",
                kind.version,
                k = kind.kind
            ))
        })?;
        defaults::apply(kind, &mut value);
        Ok(value)
    }

    /// Gives a service an address, as the API server's allocator does.
    fn allocate(o: &mut Value) {
        if o.kind() == "Service"
            && o.str_at("spec.type") != "ExternalName"
            && o.str_at("spec.clusterIP").is_empty()
        {
            o.set_path(&["spec", "clusterIP"], json!("10.96.0.7"));
            o.set_path(&["spec", "clusterIPs"], json!(["10.96.0.7"]));
        }
    }

    /// An object of the store in the version of a row.
    fn read(kind: &Kind, stored: &Value) -> Value {
        let mut value = stored.clone();
        let from =
            kinds::find_api_version(stored.api_version(), stored.kind()).expect("stored kinds are built in");
        if from.api_version() != kind.api_version() {
            convert::convert(from, kind, &mut value);
            value = Self::decode(kind, value).expect("converted objects decode");
        }
        value
    }

    fn run(&mut self, step: &Value) -> Option<Result<Value, Status>> {
        let t = route(step.str_at("path"))?;
        let body: Vec<u8> = match step.get("raw").and_then(Value::as_str) {
            Some(raw) => raw.as_bytes().to_vec(),
            None => step.get("body").map(|b| b.to_string().into_bytes()).unwrap_or_default(),
        };
        let now = hawser_api::time::parse("2024-05-06T07:08:09Z").expect("time");
        let kind = &t.kind;
        Some(match step.str_at("method") {
            "POST" if t.subresource.is_empty() => (|| {
                let value =
                    parse_json(&body, &mut Dropped::default()).map_err(|e| Status::bad_request(e.0))?;
                let mut value = Self::decode(kind, value)?;
                self.created += 1;
                let uid = format!("00000000-0000-4000-8000-{:012}", self.created);
                let ctx = CreateContext { now, uid: &uid, suffix: "abcde", namespace: &t.namespace };
                strategy::prepare_for_create(kind, &mut value, &ctx);
                Self::allocate(&mut value);
                let errors = validation::validate_create(kind, &value);
                if let Some(status) = validation::to_status(kind, value.name(), &errors) {
                    return Err(status);
                }
                value.set_meta("resourceVersion", json!("1"));
                self.objects.insert(Self::key(&t, value.name()), value.clone());
                Ok(value)
            })(),
            "PATCH" => {
                let key = Self::key(&t, &t.name);
                let old = match self.objects.get(&key) {
                    Some(old) => old.clone(),
                    None => return Some(Err(Status::not_found(&kind.group, &kind.plural, &t.name))),
                };
                (|| {
                    let mut dropped = Dropped::default();
                    let patched = match step.str_at("type") {
                        "application/json-patch+json" => {
                            JsonPatch::parse(&body, &mut dropped)?.apply(&old)?
                        }
                        "application/merge-patch+json" => {
                            let p = patch::parse_object(&body, &mut dropped)?;
                            let mut target = old.clone();
                            patch::merge(&mut target, &p);
                            target
                        }
                        "application/strategic-merge-patch+json" => {
                            let p = patch::parse_object(&body, &mut dropped)?;
                            patch::strategic_merge(schema::of(kind).expect("type"), &old, &p)?
                        }
                        _ => {
                            return Err(Status::failure(
                                415,
                                "UnsupportedMediaType",
                                "415: Unsupported Media Type",
                            ));
                        }
                    };
                    let mut new = Self::decode(kind, patched.clone())
                        .map_err(|e| patch::undecodable(None, &json!({}), &patched, &e.message))?;
                    if t.subresource.is_empty() {
                        strategy::prepare_for_update(kind, &mut new, &old, now);
                    } else {
                        strategy::prepare_for_subresource_update(kind, &t.subresource, &mut new, &old, now);
                    }
                    let errors = if t.subresource.is_empty() {
                        validation::validate_update(kind, &new, &old)
                    } else {
                        validation::validate_subresource_update(kind, &t.subresource, &new, &old)
                    };
                    if let Some(status) = validation::to_status(kind, &t.name, &errors) {
                        return Err(status);
                    }
                    self.objects.insert(key, new.clone());
                    Ok(new)
                })()
            }
            "DELETE" => {
                let key = Self::key(&t, &t.name);
                let mut o = self.objects.remove(&key)?;
                let running =
                    kind.kind == "Pod" && !matches!(o.str_at("status.phase"), "Succeeded" | "Failed");
                if running && !o.str_at("spec.nodeName").is_empty() {
                    strategy::mark_deleted(&mut o, now, 30);
                    self.objects.insert(key, o.clone());
                }
                Ok(o)
            }
            "GET" if t.subresource.is_empty() => {
                let found: Vec<Value> = if t.name.is_empty() {
                    self.objects.values().cloned().collect()
                } else {
                    vec![Self::read(kind, self.objects.get(&Self::key(&t, &t.name))?)]
                };
                let found: Vec<&Value> = found.iter().collect();
                if !step.to_string().contains("as=Table") {
                    return found.first().filter(|_| !t.name.is_empty()).map(|o| Ok((*o).clone()));
                }
                let include = match step.str_at("path").split_once("includeObject=") {
                    Some((_, include)) => IncludeObject::parse(include),
                    None => Ok(IncludeObject::Metadata),
                };
                include.map(|i| table::render(kind, found, now, i, json!({"resourceVersion": "<rv>"}), true))
            }
            _ => return None,
        })
    }
}

/// In tables the recordings hide ages and what was allocated.
fn comparable_rows(v: &mut Value) {
    let hidden =
        |cell: &Value| matches!(cell.as_str(), Some("<age>" | "<time>" | "<clusterIP>" | "10.96.0.7"));
    let age = |cell: &Value| cell.as_str().is_some_and(|s| s.len() < 8 && s.ends_with(['s', 'd', 'y', 'm']));
    if let Some(Value::Array(rows)) = v.get_mut("rows") {
        for row in rows {
            if let Some(Value::Array(cells)) = row.get_mut("cells") {
                for cell in cells.iter_mut().filter(|c| hidden(c) || age(c)) {
                    *cell = json!("<age>");
                }
            }
            if let Some(object) = row.get_mut("object") {
                comparable_meta(object);
            }
        }
    }
}

fn comparable_meta(v: &mut Value) {
    for field in ["resourceVersion", "managedFields", "finalizers"] {
        v.remove_path(&["metadata", field]);
    }
}

fn drop_messages(v: &mut Value) {
    match v {
        Value::Array(items) => items.iter_mut().for_each(drop_messages),
        Value::Object(map) => {
            map.remove("message");
            map.values_mut().for_each(drop_messages);
        }
        _ => {}
    }
}

/// Columns' descriptions are cut short in the recordings here.
fn shorten(v: &mut Value) {
    if let Some(Value::Array(columns)) = v.get_mut("columnDefinitions") {
        for c in columns {
            let text: String = c.str_at("description").chars().take(20).collect();
            c.set_path(&["description"], json!(text));
        }
    }
}

/// Replaces times and allocated ports as the recordings do, and drops what is not ours.
fn comparable(v: &mut Value) {
    let kind = v.kind().to_owned();
    for (name, paths) in NOT_OURS {
        if *name == "*" || *name == kind {
            for path in *paths {
                let parts: Vec<&str> = path.split('.').collect();
                v.remove_path(&parts);
            }
        }
    }
    if v.kind() == "Service"
        && let Some(Value::Array(ports)) = hawser_api::object::get_path_mut(v, &["spec", "ports"])
    {
        for p in ports {
            p.remove_path(&["nodePort"]);
        }
    }
    times(v);
    shorten(v);
    comparable_rows(v);
}

fn times(v: &mut Value) {
    match v {
        Value::String(s) if s == "2024-05-06T07:08:09Z" => *s = "<time>".into(),
        Value::String(s) => {
            while let Some(at) = s.find("00000000-0000-4000-8000-") {
                let end = s.len().min(at + 36);
                let number = s[end.saturating_sub(12)..end].trim_start_matches('0').to_owned();
                s.replace_range(at..end, &format!("<uid:{number}>"));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(times),
        Value::Object(map) => map.values_mut().for_each(times),
        _ => {}
    }
}

/// The first few paths where two values differ.
fn differences(path: &str, want: &Value, got: &Value, out: &mut Vec<String>) {
    match (want, got) {
        (Value::Object(w), Value::Object(g)) => {
            for key in w.keys().chain(g.keys().filter(|k| !w.contains_key(*k))) {
                let none = json!("<absent>");
                differences(
                    &format!("{path}/{key}"),
                    w.get(key).unwrap_or(&none),
                    g.get(key).unwrap_or(&none),
                    out,
                );
            }
        }
        (Value::Array(w), Value::Array(g)) if w.len() == g.len() => {
            w.iter()
                .zip(g)
                .enumerate()
                .for_each(|(i, (w, g))| differences(&format!("{path}/{i}"), w, g, out));
        }
        _ if want != got => out.push(format!("{path}: want {want}, got {got}")),
        _ => {}
    }
}

/// Plays a file; answers how many cases agree and what the others differ in.
fn play(text: &str) -> (usize, Vec<String>) {
    let (mut agreed, mut failures) = (0, Vec::new());
    for line in text.lines() {
        let case: Value = serde_json::from_str(
            &line.replace("{{ns}}", "ns-1").replace("{{a*1048577}}", &"a".repeat(1_048_577)),
        )
        .expect("a case per line");
        let mut server = Server { objects: HashMap::new(), created: 0 };
        let mut lines = Vec::new();
        for (i, step) in case.items_at("steps").iter().enumerate() {
            let Some(answer) = server.run(step) else { continue };
            let Some(want) = step.get("want") else {
                if let Err(e) = answer {
                    lines.push(format!("step {i}: setup failed: {e}"));
                }
                continue;
            };
            let mut want = want["body"].clone();
            let mut got = match answer {
                Ok(v) => v,
                Err(s) => s.to_value(),
            };
            comparable(&mut want);
            comparable(&mut got);
            if OTHER_TEXT.contains(&case.str_at("case")) {
                drop_messages(&mut want);
                drop_messages(&mut got);
            }
            let mut diff = Vec::new();
            differences("", &want, &got, &mut diff);
            lines.extend(diff.into_iter().take(6).map(|d| format!("step {i} {d}")));
        }
        if lines.is_empty() {
            agreed += 1;
        } else {
            failures.push(format!("{}\n  {}", case.str_at("case"), lines.join("\n  ")));
        }
    }
    (agreed, failures)
}

/// Cases whose messages show Go's internal structs or a diff of them; all but the messages must agree.
const OTHER_TEXT: [&str; 8] = [
    "patch/merge/replace-object-by-string",
    "patch/json/wrong-type",
    "invalid/service/ports-duplicate-number",
    "invalid/job/success-policy-not-indexed",
    "invalid/groups/pdb-both",
    "invalid/immutable/job-template",
    "invalid/immutable/pod-spec",
    "invalid/immutable/pvc-spec",
];

/// Plays a topic's cases, of which there must be at least so many, and demands that all agree.
fn expect(topic: &str, text: &str, at_least: usize) {
    let (agreed, failures) = play(text);
    let list = failures.join("\n");
    assert!(failures.is_empty(), "{topic}: {agreed} agree, {} differ:\n{list}", failures.len());
    assert!(agreed >= at_least, "{topic}: only {agreed} cases");
}

#[test]
fn defaults_agree() {
    expect("defaults", include_str!("data/defaults.jsonl"), 100);
}

#[test]
fn patches_agree() {
    expect("patch", include_str!("data/patch.jsonl"), 40);
}

#[test]
fn tables_agree() {
    expect("tables", include_str!("data/tables.jsonl"), 65);
}

#[test]
fn refusals_agree() {
    expect("invalid", include_str!("data/invalid.jsonl"), 140);
}
