//! The paths of a row as OpenAPI v3 operations.

use hawser_api::kinds::{Kind, Subresource};
use hawser_api::object::api_version;
use hawser_api::schema;
use serde_json::{Map, Value, json};

use super::parameters::{self, Place};
use super::schemas::{self, PREFIX, type_name};
use crate::hooks;

const ENCODINGS: &[&str] = &["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];
/// Those of kinds defined at run time.
const DEFINED: &[&str] = &["application/json", "application/yaml"];
const STREAMED: &[&str] = &[
    "application/json",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/yaml",
];
const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
/// HTTP methods that reach what is behind a proxy.
const PROXY_METHODS: &[&str] = &["delete", "get", "head", "options", "patch", "post", "put"];

/// A verb on a path: the verb of discovery, HTTP's method, Kubernetes' action, the word in operation names.
type Verb = (&'static str, &'static str, &'static str, &'static str);
const COLLECTION: &[Verb] = &[
    ("deletecollection", "delete", "deletecollection", "delete"),
    ("list", "get", "list", "list"),
    ("create", "post", "post", "create"),
];
const ITEM: &[Verb] = &[
    ("delete", "delete", "delete", "delete"),
    ("get", "get", "get", "read"),
    ("patch", "patch", "patch", "patch"),
    ("create", "post", "post", "create"),
    ("update", "put", "put", "replace"),
];
const WATCH: &[Verb] = &[("watch", "get", "watch", "watch")];
const WATCH_LIST: &[Verb] = &[("watch", "get", "watchlist", "watch")];
const LIST: &[Verb] = &[("list", "get", "list", "list")];

/// One operation on its way into a document.
struct Operation {
    method: &'static str,
    body: Value,
    parameters: Vec<Place>,
}

/// A row's paths: where they begin, and what names are made of.
struct Row<'a> {
    kind: &'a Kind,
    /// `/apis/apps/v1`
    root: String,
    /// `AppsV1`
    camel: String,
    /// `apps_v1`
    tag: String,
}

/// A row's paths.
pub(super) fn of(kind: &Kind) -> Map<String, Value> {
    let mut paths = Map::new();
    let (group, version) = (kind.group.as_str(), kind.version.as_str());
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let row = Row { kind, root, camel: camel(group) + &upper_first(version), tag: tag(group, Some(version)) };
    let (plural, root) = (&kind.plural, &row.root);
    let base = if kind.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() };
    let mut put = |path: String, verbs: &[Verb], has: &[String], sub: Option<&Subresource>| {
        row.add(&mut paths, path, verbs, has, sub);
    };
    put(format!("{base}/{plural}"), COLLECTION, &kind.verbs, None);
    put(format!("{base}/{plural}/{{name}}"), ITEM, &without_create(kind), None);
    for sub in &kind.subresources {
        let path = format!("{base}/{plural}/{{name}}/{}", sub.name);
        put(path.clone(), ITEM, &sub.verbs, Some(sub));
        if sub.name == "proxy" {
            put(path + "/{path}", ITEM, &sub.verbs, Some(sub));
        }
    }
    if kind.namespaced {
        put(format!("{root}/{plural}"), LIST, &kind.verbs, None);
    }
    // Deprecated before there were kinds defined at run time.
    if kind.builtin {
        if kind.namespaced {
            put(format!("{root}/watch/{plural}"), WATCH_LIST, &kind.verbs, None);
        }
        let watch_base = base.replacen(root.as_str(), &format!("{root}/watch"), 1);
        put(format!("{watch_base}/{plural}"), WATCH_LIST, &kind.verbs, None);
        put(format!("{watch_base}/{plural}/{{name}}"), WATCH, &kind.verbs, None);
    }
    paths
}

fn without_create(kind: &Kind) -> Vec<String> {
    kind.verbs.iter().filter(|v| *v != "create").cloned().collect()
}

/// `rbac.authorization.k8s.io` → `RbacAuthorization`
pub(super) fn camel(group: &str) -> String {
    match group.strip_suffix(".k8s.io").unwrap_or(group) {
        "" => "Core".into(),
        group => group.split(['.', '-']).map(upper_first).collect(),
    }
}

/// `rbacAuthorization_v1`
pub(super) fn tag(group: &str, version: Option<&str>) -> String {
    let camel = camel(group);
    let mut chars = camel.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    let mut out: String = first.into_iter().chain(chars).collect();
    if let Some(version) = version {
        out.push('_');
        out.push_str(version);
    }
    out
}

pub(super) fn upper_first(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

/// "a Pod", "an Ingress"; plurals have no article.
fn with_article(noun: &str) -> String {
    if noun.ends_with('s') && !noun.ends_with("ss") {
        return noun.to_owned();
    }
    let vowel = noun.starts_with(['A', 'E', 'I', 'O', 'U']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

/// A reference to a schema of the document.
pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("{PREFIX}{name}")})
}

/// The bodies of an answer or request in all encodings.
pub(super) fn content(schema: &Value, types: &[&str]) -> Value {
    types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

impl Row<'_> {
    fn add(
        &self,
        paths: &mut Map<String, Value>,
        path: String,
        verbs: &[Verb],
        has: &[String],
        sub: Option<&Subresource>,
    ) {
        let mut operations = Vec::new();
        for verb in verbs.iter().filter(|(verb, ..)| has.iter().any(|v| v == verb)) {
            match sub {
                Some(sub) if is_connect(sub) => {}
                _ => operations.push(self.operation(&path, *verb, sub)),
            }
        }
        if let Some(sub) = sub.filter(|s| is_connect(s)) {
            let streams: &[&'static str] = &["get", "post"];
            let methods = if sub.name == "proxy" { PROXY_METHODS } else { streams };
            operations.extend(methods.iter().map(|&method| self.connect(&path, method, sub)));
        }
        if operations.is_empty() {
            return;
        }
        // What all operations have in common stands beside them.
        let mut common = operations[0].parameters.clone();
        common.retain(|p| operations.iter().all(|o| o.parameters.contains(p)));
        let list = |parameters: Vec<Place>| -> Value {
            let mut parameters = parameters;
            parameters.sort_by_key(Place::order);
            parameters.iter().map(Place::to_value).collect()
        };
        let mut item = Map::new();
        for mut operation in operations {
            operation.parameters.retain(|p| !common.contains(p));
            if !operation.parameters.is_empty() {
                operation.body["parameters"] = list(operation.parameters);
            }
            item.insert(operation.method.to_owned(), operation.body);
        }
        if !common.is_empty() {
            item.insert("parameters".into(), list(common));
        }
        paths.insert(path, Value::Object(item));
    }

    /// Group, version and kind of what a path's bodies are.
    fn object_kind<'s>(&'s self, sub: Option<&'s Subresource>) -> (&'s str, &'s str, &'s str) {
        let kind = self.kind;
        let Some(sub) = sub else { return (&kind.group, &kind.version, &kind.kind) };
        match (&sub.group, &sub.version) {
            (Some(group), Some(version)) => (group, version, &sub.kind),
            _ => (&kind.group, &kind.version, &sub.kind),
        }
    }

    /// The schema's name of what a path's bodies are.
    fn object_type(&self, sub: Option<&Subresource>) -> String {
        let (group, version, name) = self.object_kind(sub);
        match schema::find_kind(&api_version(group, version), name) {
            Some(ty) => ty.openapi_name(),
            None => type_name(self.kind),
        }
    }

    fn parameters(&self, path: &str, action: &str, sub: Option<&Subresource>) -> Vec<Place> {
        let query = parameters::of_action(action, self.kind, sub.map_or("", |s| &s.name));
        let mut out: Vec<Place> = query.iter().map(|p| Place::Query(*p)).collect();
        let (_, _, kind) = self.object_kind(sub);
        for (name, text) in [
            ("name", format!("name of the {kind}")),
            ("namespace", "object name and auth scope, such as for teams and projects".to_owned()),
            ("path", "path to the resource".to_owned()),
        ] {
            if path.contains(&format!("{{{name}}}")) {
                out.push(Place::Path(name, text));
            }
        }
        out
    }

    /// `AppsV1NamespacedDeploymentScale`, with a word after the scope or at the end for some actions.
    fn name(&self, path: &str, collection: &str, sub: Option<&Subresource>, suffix: &str) -> String {
        let namespaced = if path.contains("{namespace}") { "Namespaced" } else { "" };
        let everywhere = if self.kind.namespaced && namespaced.is_empty() { "ForAllNamespaces" } else { "" };
        let sub = sub.map(|s| s.name.split('/').map(upper_first).collect::<String>()).unwrap_or_default();
        format!("{}{collection}{namespaced}{}{sub}{suffix}{everywhere}", self.camel, self.kind.kind)
    }

    fn base(&self, action: &str, sub: Option<&Subresource>) -> Value {
        let (group, version, kind) = self.object_kind(sub);
        json!({"tags": [self.tag], "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind}})
    }

    fn connect(&self, path: &str, method: &'static str, sub: &Subresource) -> Operation {
        let mut body = self.base("connect", Some(sub));
        let upper = method.to_ascii_uppercase();
        body["description"] =
            json!(format!("connect {upper} requests to {} of {}", sub.name, self.kind.kind));
        let with_path = if path.ends_with("{path}") { "WithPath" } else { "" };
        let name = self.name(path, "", Some(sub), with_path);
        // The method stands between the version and the scope.
        let name = name.replacen(&self.camel, &format!("{}{}", self.camel, upper_first(method)), 1);
        body["operationId"] = json!(format!("connect{name}"));
        let text = content(&json!({"type": "string"}), &["*/*"]);
        body["responses"] = responses(&[("200", "OK", Some(text))]);
        Operation { method, body, parameters: self.parameters(path, "connect", Some(sub)) }
    }

    fn operation(&self, path: &str, verb: Verb, sub: Option<&Subresource>) -> Operation {
        let (_, method, action, word) = verb;
        let ty = self.object_type(sub);
        let mut body = self.base(action, sub);
        body["description"] = json!(describe(action, self.kind, sub.map(|s| s.name.as_str())));
        let (collection, suffix) = match action {
            "deletecollection" => ("Collection", ""),
            "watchlist" => ("", "List"),
            _ => ("", ""),
        };
        body["operationId"] = json!(format!("{word}{}", self.name(path, collection, sub, suffix)));
        let encodings: Vec<&str> = match action {
            _ if !self.kind.builtin => DEFINED.to_vec(),
            "list" | "watch" | "watchlist" => STREAMED.to_vec(),
            "get" if sub.is_some_and(|s| s.name == "log") => [ENCODINGS, &["text/plain"]].concat(),
            _ => ENCODINGS.to_vec(),
        };
        let answer = match action {
            "list" => reference(&schemas::list_name(self.kind, &ty)),
            "watch" | "watchlist" => reference(schemas::WATCH_EVENT),
            "delete" if hooks::strategy(self.kind).returns_deleted => reference(&ty),
            "delete" | "deletecollection" => reference(schemas::STATUS),
            "get" if sub.is_some_and(|s| s.name == "log") => json!({"type": "string"}),
            _ => reference(&ty),
        };
        let answer = Some(content(&answer, &encodings));
        let codes: &[(&str, &str)] = match action {
            "post" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
            "patch" if !self.kind.builtin => &[("200", "OK")],
            "put" | "patch" => &[("200", "OK"), ("201", "Created")],
            "delete" => &[("200", "OK"), ("202", "Accepted")],
            _ => &[("200", "OK")],
        };
        let answers: Vec<_> = codes.iter().map(|(code, text)| (*code, *text, answer.clone())).collect();
        body["responses"] = responses(&answers);
        match action {
            "deletecollection" if !self.kind.builtin => {}
            "delete" | "deletecollection" => {
                let types = if self.kind.builtin { &["*/*"] } else { DEFINED };
                body["requestBody"] = json!({"content": content(&reference(schemas::DELETE_OPTIONS), types)});
            }
            "patch" => {
                // Strategic merge needs the merge keys of a built-in type.
                let known = |t: &&str| self.kind.builtin || !t.contains("strategic");
                let types: Vec<&str> = PATCHES.iter().copied().filter(known).collect();
                body["requestBody"] =
                    json!({"content": content(&reference(schemas::PATCH), &types), "required": true});
            }
            "post" | "put" => {
                let types: &[&str] = if self.kind.builtin { &["*/*"] } else { DEFINED };
                body["requestBody"] = json!({"content": content(&reference(&ty), types), "required": true});
            }
            _ => {}
        }
        Operation { method, body, parameters: self.parameters(path, action, sub) }
    }
}

fn is_connect(sub: &Subresource) -> bool {
    matches!(sub.name.as_str(), "attach" | "exec" | "portforward" | "proxy")
}

/// Answers by code, the refusal of strangers among them.
pub(super) fn responses(answers: &[(&str, &str, Option<Value>)]) -> Value {
    let mut out = Map::new();
    for (code, text, content) in answers {
        let mut answer = json!({"description": text});
        if let Some(content) = content {
            answer["content"] = content.clone();
        }
        out.insert((*code).to_owned(), answer);
    }
    out.insert("401".into(), json!({"description": "Unauthorized"}));
    Value::Object(out)
}

fn describe(action: &str, kind: &Kind, sub: Option<&str>) -> String {
    let name = &kind.kind;
    let of = sub.map(|s| format!("{s} of ")).unwrap_or_default();
    match action {
        "post" if sub.is_some() => format!("create {of}{}", with_article(name)),
        "post" => format!("create {}", with_article(name)),
        "delete" => format!("delete {}", with_article(name)),
        "deletecollection" => format!("delete collection of {name}"),
        "list" if kind.has_verb("watch") => format!("list or watch objects of kind {name}"),
        "list" => format!("list objects of kind {name}"),
        "get" => format!("read {of}the specified {name}"),
        "patch" => format!("partially update {of}the specified {name}"),
        "put" => format!("replace {of}the specified {name}"),
        "watch" => format!(
            "watch changes to an object of kind {name}. deprecated: use the 'watch' parameter with a list operation \
             instead, filtered to a single item with the 'fieldSelector' parameter."
        ),
        _ => format!(
            "watch individual changes to a list of {name}. deprecated: use the 'watch' parameter with a list \
             operation instead."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_articles() {
        assert_eq!(camel("rbac.authorization.k8s.io"), "RbacAuthorization");
        assert_eq!(tag("rbac.authorization.k8s.io", Some("v1")), "rbacAuthorization_v1");
        assert_eq!(tag("", Some("v1")), "core_v1");
        assert_eq!(camel("stable.example.com"), "StableExampleCom");
        for (noun, want) in [
            ("Pod", "a Pod"),
            ("Ingress", "an Ingress"),
            ("Endpoints", "Endpoints"),
            ("APIService", "an APIService"),
        ] {
            assert_eq!(with_article(noun), want);
        }
    }
}
