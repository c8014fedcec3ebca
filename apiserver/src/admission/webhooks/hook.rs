//! A webhook as configured, and which requests it is for. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::kinds::Kind;
use hawser_api::object::{Labels, ObjectExt as _};
use hawser_api::selector::LabelSelector;
use serde_json::Value;

use super::super::policy::{Named, conditions};
use super::super::versions::Versions;
use crate::access::Operation;
use crate::request_info::RequestInfo;
use crate::webhook::ClientConfig;

/// Timeout of a webhook that names none, in seconds (`admissionregistration.k8s.io/v1`).
const TIMEOUT: i64 = 10;

/// One entry of a webhook configuration.
#[derive(Debug)]
pub struct Hook {
    /// `configuration/name/place`, the same as long as the configuration stays.
    pub id: String,
    /// Name of the webhook.
    pub name: String,
    /// Where it is.
    pub client: ClientConfig,
    /// Whether a call that fails lets the request pass.
    pub ignores_failure: bool,
    /// How long a call may take.
    pub timeout: Duration,
    /// Whether the webhook may be called for a dry run.
    pub allows_dry_run: bool,
    /// Whether a mutating webhook wants to see what later ones changed.
    pub reinvoked: bool,
    /// `v1` or `v1beta1`, the first that both sides know.
    pub review_version: Option<&'static str>,
    /// `matchConditions`.
    pub conditions: Vec<Named>,
    rules: Vec<Rule>,
    equivalent: bool,
    namespaces: Selector,
    objects: Selector,
}

/// A selector, or why it cannot be read.
pub type Selector = Result<LabelSelector, String>;

/// One of `rules`: operations on resources.
#[derive(Debug)]
pub struct Rule {
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    operations: Vec<String>,
    scope: String,
}

/// A resource in a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gvr<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
}

impl<'a> Gvr<'a> {
    /// The resource of a request.
    pub fn of(info: &'a RequestInfo) -> Self {
        Self { group: &info.group, version: &info.version, resource: &info.resource }
    }
}

/// How a hook is for a request.
#[derive(Debug, Clone)]
pub enum Match {
    /// As the request came.
    Exact,
    /// In another version of the same resource, into which objects are converted.
    Equivalent(Arc<Kind>),
}

/// The selector in a field; one that is absent selects everything.
pub fn selector(o: &Value, field: &str) -> Selector {
    LabelSelector::from_object(Some(o.get(field).unwrap_or(&EMPTY))).map_err(|e| e.0)
}

fn strings(o: &Value, at: &str) -> Vec<String> {
    o.items_at(at).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

/// The word of the API for an operation.
pub fn word(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

impl Rule {
    /// Reads a `RuleWithOperations`.
    pub fn read(r: &Value) -> Self {
        Self {
            groups: strings(r, "apiGroups"),
            versions: strings(r, "apiVersions"),
            resources: strings(r, "resources"),
            operations: strings(r, "operations"),
            scope: r.str_at("scope").to_owned(),
        }
    }

    /// The resources that the rule names, `*` included; the first part of each.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.resources.iter().map(|p| p.split_once('/').map_or(p.as_str(), |(resource, _)| resource))
    }

    /// Whether the rule is for an operation on a resource.
    pub fn matches(&self, operation: Operation, gvr: &Gvr<'_>, info: &RequestInfo) -> bool {
        let is_namespace = gvr.group.is_empty() && gvr.resource == "namespaces";
        let scope = match self.scope.as_str() {
            "Namespaced" => !is_namespace && !info.namespace.is_empty(),
            "Cluster" => is_namespace || info.namespace.is_empty(),
            _ => true,
        };
        scope
            && has(&self.operations, word(operation))
            && has(&self.groups, gvr.group)
            && has(&self.versions, gvr.version)
            && self.resources.iter().any(|pattern| {
                let (resource, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
                (resource == "*" || resource == gvr.resource) && (sub == "*" || sub == info.subresource)
            })
    }
}

impl Hook {
    /// The hooks of a configuration, in their order.
    pub fn read(configuration: &Value) -> Vec<Self> {
        let mut seen = BTreeSet::new();
        let hooks = configuration.items_at("webhooks").iter();
        hooks
            .map(|o| {
                let mut id = format!("{}/{}", configuration.name(), o.str_at("name"));
                while !seen.insert(id.clone()) {
                    id.push('+');
                }
                Self::one(id, o)
            })
            .collect()
    }

    fn one(id: String, o: &Value) -> Self {
        let selector = |field: &str| selector(o, field);
        let seconds = o.int_at("timeoutSeconds").unwrap_or(TIMEOUT);
        let rules = o.items_at("rules").iter().map(Rule::read);
        let versions = strings(o, "admissionReviewVersions");
        Self {
            id,
            name: o.str_at("name").to_owned(),
            client: ClientConfig::read(o.get("clientConfig").unwrap_or(&Value::Null)),
            ignores_failure: o.str_at("failurePolicy") == "Ignore",
            timeout: Duration::from_secs(u64::try_from(seconds).unwrap_or(1).clamp(1, 30)),
            allows_dry_run: matches!(o.str_at("sideEffects"), "None" | "NoneOnDryRun"),
            reinvoked: o.str_at("reinvocationPolicy") == "IfNeeded",
            review_version: versions
                .iter()
                .find_map(|v| ["v1", "v1beta1"].into_iter().find(|known| known == v)),
            conditions: conditions(o.items_at("matchConditions"), false),
            rules: rules.collect(),
            equivalent: o.str_at("matchPolicy") != "Exact",
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
        }
    }

    /// Whether the rules are for a request, and in which version. Selectors are not asked.
    pub fn matches(&self, versions: &Versions, operation: Operation, info: &RequestInfo) -> Option<Match> {
        let gvr = Gvr::of(info);
        if self.rules.iter().any(|r| r.matches(operation, &gvr, info)) {
            return Some(Match::Exact);
        }
        if !self.equivalent {
            return None;
        }
        let fits = |kind: &Arc<Kind>| {
            let other = Gvr { group: &kind.group, version: &kind.version, resource: &kind.plural };
            self.rules.iter().any(|r| r.matches(operation, &other, info))
        };
        versions.equivalents(info).into_iter().find(fits).map(Match::Equivalent)
    }

    /// The resources that the rules name, `*` included; the first part of each, and of all their versions.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(Rule::resources)
    }

    /// The selector of namespaces, when it is not all of them.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn namespaces(&self) -> Result<Option<&LabelSelector>, &str> {
        narrowing(&self.namespaces)
    }

    /// Whether the object, or the object before, has the labels asked for.
    ///
    /// # Errors
    /// When the selector cannot be read.
    pub fn selects(&self, object: Option<&Value>, old: Option<&Value>) -> Result<bool, &str> {
        let Some(selector) = narrowing(&self.objects)? else { return Ok(true) };
        let fits = |o: &Value| o.get("metadata").is_some() && selector.matches(o.labels());
        Ok([object, old].into_iter().flatten().any(fits))
    }
}

static EMPTY: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| serde_json::json!({}));

/// A selector that leaves something out.
///
/// # Errors
/// When it cannot be read.
pub fn narrowing(selector: &Selector) -> Result<Option<&LabelSelector>, &str> {
    let selector = selector.as_ref().map_err(String::as_str)?;
    Ok((!selector.is_everything()).then_some(selector))
}

/// What namespace selectors look at for a request: the labels of a Namespace that is being written itself.
pub fn own_labels<'a>(
    operation: Operation,
    info: &RequestInfo,
    object: Option<&'a Value>,
) -> Option<Labels<'a>> {
    let writes = matches!(operation, Operation::Create | Operation::Update);
    let is_namespace = info.group.is_empty() && info.resource == "namespaces" && info.subresource.is_empty();
    object.filter(|_| writes && is_namespace).map(|o| o.labels())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use serde_json::json;

    fn hook(rule: Value, more: Value) -> Hook {
        let mut o = json!({"name": "h", "rules": [rule], "clientConfig": {"url": "https://x"}});
        o.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Hook::read(&json!({"metadata": {"name": "c"}, "webhooks": [o]})).remove(0)
    }

    fn how(hook: &Hook, path: &str) -> &'static str {
        let info = RequestInfo::parse(&Method::POST, &path.parse().unwrap());
        match hook.matches(&Versions::builtin(), Operation::Create, &info) {
            None => "no",
            Some(Match::Exact) => "exact",
            Some(Match::Equivalent(_)) => "equivalent",
        }
    }

    #[test]
    fn rules() {
        let rule = |group: &str, version: &str, resource: &str| json!({"apiGroups": [group], "apiVersions": [version], "resources": [resource], "operations": ["CREATE"]});
        let pods = "/api/v1/namespaces/a/pods";
        for (rule, more, path, expected) in [
            (rule("", "v1", "pods"), json!({}), pods, "exact"),
            (rule("*", "*", "*"), json!({}), pods, "exact"),
            (rule("*", "*", "*"), json!({}), "/api/v1/namespaces/a/pods/p/eviction", "no"),
            (rule("*", "*", "*/*"), json!({}), "/api/v1/namespaces/a/pods/p/eviction", "exact"),
            (rule("apps", "v1", "pods"), json!({}), pods, "no"),
            (
                rule("autoscaling", "v1", "horizontalpodautoscalers"),
                json!({}),
                "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers",
                "equivalent",
            ),
            (
                rule("autoscaling", "v1", "horizontalpodautoscalers"),
                json!({"matchPolicy": "Exact"}),
                "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers",
                "no",
            ),
            (rule("", "v1", "events"), json!({}), "/apis/events.k8s.io/v1/namespaces/a/events", "equivalent"),
        ] {
            assert_eq!(how(&hook(rule.clone(), more), path), expected, "{rule} {path}");
        }
        let mut scoped = rule("*", "*", "*");
        scoped["scope"] = json!("Cluster");
        let scoped = hook(scoped, json!({}));
        assert_eq!(
            (how(&scoped, pods), how(&scoped, "/api/v1/namespaces"), how(&scoped, "/api/v1/nodes")),
            ("no", "exact", "exact")
        );
    }

    #[test]
    fn selectors() {
        let hook =
            hook(json!({}), json!({"objectSelector": {"matchLabels": {"a": "b"}}, "namespaceSelector": {}}));
        let object = json!({"metadata": {"labels": {"a": "b"}}});
        assert_eq!(hook.selects(Some(&json!({"metadata": {}})), Some(&object)), Ok(true));
        assert_eq!(hook.selects(Some(&json!({"metadata": {}})), None), Ok(false));
        assert!(hook.namespaces().unwrap().is_none());
    }
}
