//! One rule of a Role: what it allows, what it covers, how messages print it. Pure.

use std::collections::BTreeMap;

use hawser_api::text::quote;
use serde::{Deserialize, Serialize};

use crate::access::Attributes;

/// Matches everything.
const ALL: &str = "*";

/// `rbac.authorization.k8s.io/v1` PolicyRule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// Groups of the resources; `""` is the core group.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub api_groups: Vec<String>,
    /// `pods`, `pods/log`, `*/scale`, `*`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub resources: Vec<String>,
    /// Paths that are no resources; `/healthz/*` covers what is below.
    #[serde(
        rename = "nonResourceURLs",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_empty"
    )]
    pub non_resource_urls: Vec<String>,
    /// Names of single objects; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub resource_names: Vec<String>,
    /// Verbs; always written, since it is a required field.
    #[serde(deserialize_with = "null_as_empty")]
    pub verbs: Vec<String>,
}

/// Objects written by Go hold `null` where a list is empty.
pub(super) fn null_as_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|i| i == item)
}

/// Whether a pattern of `nonResourceURLs` covers a path (or a narrower pattern).
fn url_covers(pattern: &str, path: &str) -> bool {
    pattern == ALL
        || pattern == path
        || pattern.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// Whether an entry of `resources` covers `resource` or `resource/subresource`.
fn resource_covers(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == ALL {
        return true;
    }
    match pattern.split_once('/') {
        None => subresource.is_empty() && pattern == resource,
        Some((of, sub)) => !subresource.is_empty() && sub == subresource && (of == ALL || of == resource),
    }
}

impl PolicyRule {
    /// Whether the rule allows a request.
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        if !(has(&self.verbs, ALL) || has(&self.verbs, request.verb)) {
            return false;
        }
        if !request.resource_request {
            return self.non_resource_urls.iter().any(|pattern| url_covers(pattern, request.path));
        }
        (has(&self.api_groups, ALL) || has(&self.api_groups, request.api_group))
            && self
                .resources
                .iter()
                .any(|pattern| resource_covers(pattern, request.resource, request.subresource))
            && (self.resource_names.is_empty() || has(&self.resource_names, request.name))
    }

    /// The rule taken apart: each part has one group, resource and verb (and name), or one path and verb.
    fn parts(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            let verbs = vec![verb.clone()];
            for group in &self.api_groups {
                for resource in &self.resources {
                    let part = |resource_names| Self {
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        verbs: verbs.clone(),
                        resource_names,
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        parts.push(part(Vec::new()));
                    }
                    parts.extend(self.resource_names.iter().map(|name| part(vec![name.clone()])));
                }
            }
            parts.extend(self.non_resource_urls.iter().map(|url| Self {
                non_resource_urls: vec![url.clone()],
                verbs: verbs.clone(),
                ..Self::default()
            }));
        }
        parts
    }

    /// Whether everything that `part` (see [`PolicyRule::parts`]) allows is allowed by this rule.
    fn covers(&self, part: &Self) -> bool {
        let within =
            |mine: &[String], theirs: &[String]| has(mine, ALL) || theirs.iter().all(|t| has(mine, t));
        let resources = part.resources.iter().all(|wanted| {
            let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
            // A literal `*` as a wish is only covered by the literal `*`.
            self.resources
                .iter()
                .any(|pattern| pattern == wanted || resource_covers(pattern, resource, subresource))
        });
        let names = self.resource_names.is_empty()
            || (!part.resource_names.is_empty()
                && part.resource_names.iter().all(|n| has(&self.resource_names, n)));
        let urls = part
            .non_resource_urls
            .iter()
            .all(|url| self.non_resource_urls.iter().any(|mine| url_covers(mine, url)));
        within(&self.verbs, &part.verbs)
            && within(&self.api_groups, &part.api_groups)
            && resources
            && names
            && urls
    }

    /// How messages print the rule: `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
    pub fn describe(&self) -> String {
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let fields: Vec<_> = fields
            .iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(name, values)| format!("{name}:{}", quoted_list(values)))
            .collect();
        format!("{{{}}}", fields.join(", "))
    }
}

/// `["a" "b"]`, as Go prints a quoted list.
pub(crate) fn quoted_list(values: &[String]) -> String {
    let values: Vec<_> = values.iter().map(|v| quote(v)).collect();
    format!("[{}]", values.join(" "))
}

/// What of `wanted` is not covered by `held`, taken apart and put together again for people, sorted.
/// Empty when everything is covered.
pub fn uncovered(held: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let mut verbs_of: BTreeMap<PolicyRule, Vec<String>> = BTreeMap::new();
    for part in wanted.iter().flat_map(PolicyRule::parts) {
        if held.iter().any(|rule| rule.covers(&part)) {
            continue;
        }
        // Parts that differ only in their verb become one rule again; those on paths stay apart.
        let mut key = part;
        let verbs = if key.resources.is_empty() { Vec::new() } else { std::mem::take(&mut key.verbs) };
        let known = verbs_of.entry(key).or_default();
        for verb in verbs {
            if !has(known, &verb) {
                known.push(verb);
            }
        }
    }
    let mut rules: Vec<_> = verbs_of
        .into_iter()
        .map(|(mut rule, verbs)| {
            rule.verbs.extend(verbs);
            rule
        })
        .collect();
    rules.sort_by_cached_key(PolicyRule::describe);
    rules
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::access::UserInfo;

    /// A rule from `groups`, `resources`, `names`, `verbs`, each separated by spaces; `-` is the core group.
    pub(crate) fn rule(groups: &str, resources: &str, names: &str, verbs: &str) -> PolicyRule {
        let list =
            |text: &str| text.split_whitespace().map(|w| if w == "-" { "" } else { w }.to_owned()).collect();
        PolicyRule {
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            verbs: list(verbs),
            ..PolicyRule::default()
        }
    }

    fn urls(urls: &str, verbs: &str) -> PolicyRule {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        PolicyRule { non_resource_urls: list(urls), verbs: list(verbs), ..PolicyRule::default() }
    }

    /// Attributes from `verb group/resource/subresource name`; the core group is empty.
    pub(crate) fn request<'a>(
        user: &'a UserInfo,
        verb: &'a str,
        what: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        let mut parts = what.split(':');
        let api_group = parts.next().unwrap_or("");
        let resource = parts.next().unwrap_or("");
        Attributes {
            user,
            verb,
            resource_request: true,
            api_group,
            api_version: "v1",
            resource,
            subresource: parts.next().unwrap_or(""),
            namespace,
            name,
            path: "",
            field_selector: "",
        }
    }

    #[test]
    fn resource_rules() {
        let user = UserInfo::default();
        let cases = [
            (rule("-", "pods", "", "get list"), "get", ":pods", "a", true),
            (rule("-", "pods", "", "get list"), "watch", ":pods", "a", false),
            (rule("-", "pods", "", "get"), "get", ":pods:log", "a", false),
            (rule("-", "pods/log", "", "get"), "get", ":pods:log", "a", true),
            (rule("-", "pods/log", "", "get"), "get", ":pods", "a", false),
            (rule("-", "*", "", "*"), "get", ":pods:log", "a", true),
            (rule("*", "*/scale", "", "get"), "get", "apps:deployments:scale", "a", true),
            (rule("*", "*/scale", "", "get"), "get", "apps:deployments", "a", false),
            (rule("apps", "deployments", "", "get"), "get", ":deployments", "a", false),
            (rule("-", "configmaps", "only", "get list"), "get", ":configmaps", "only", true),
            (rule("-", "configmaps", "only", "get list"), "get", ":configmaps", "other", false),
            (rule("-", "configmaps", "only", "get list"), "list", ":configmaps", "", false),
        ];
        for (rule, verb, what, name, allowed) in cases {
            assert_eq!(
                rule.allows(&request(&user, verb, what, "ns", name)),
                allowed,
                "{verb} {what} {name} by {rule:?}"
            );
        }
    }

    #[test]
    fn path_rules() {
        let user = UserInfo::default();
        for (rule, path, allowed) in [
            (urls("/healthz", "get"), "/healthz", true),
            (urls("/healthz", "get"), "/healthz/etcd", false),
            (urls("/healthz/*", "get"), "/healthz/etcd", true),
            (urls("/healthz/*", "get"), "/healthz", false),
            (urls("*", "get"), "/metrics", true),
            (rule("*", "*", "", "*"), "/metrics", false),
        ] {
            let mut request = request(&user, "get", "", "", "");
            request.resource_request = false;
            request.path = path;
            assert_eq!(rule.allows(&request), allowed, "{path} by {rule:?}");
        }
    }

    #[test]
    fn escalation_prints_what_is_missing() {
        let held = [rule("-", "pods", "", "get")];
        let texts = |wanted: &[PolicyRule]| {
            uncovered(&held, wanted).iter().map(PolicyRule::describe).collect::<Vec<_>>()
        };
        assert!(texts(&[rule("-", "pods", "", "get")]).is_empty());
        assert!(texts(&[rule("-", "pods", "a b", "get")]).is_empty());
        assert_eq!(
            texts(&[rule("-", "secrets", "", "get list")]),
            [r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}"#]
        );
        assert_eq!(
            texts(&[rule("*", "*", "", "*"), urls("*", "*")]),
            [r#"{APIGroups:["*"], Resources:["*"], Verbs:["*"]}"#, r#"{NonResourceURLs:["*"], Verbs:["*"]}"#]
        );
        assert_eq!(
            texts(&[rule("-", "pods pods/log", "", "get delete")]),
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#,
                r#"{APIGroups:[""], Resources:["pods/log"], Verbs:["get" "delete"]}"#
            ]
        );
    }

    #[test]
    fn names_and_wildcards_in_coverage() {
        for (held, wanted, covered) in [
            (rule("-", "pods", "a", "get"), rule("-", "pods", "a", "get"), true),
            (rule("-", "pods", "a", "get"), rule("-", "pods", "", "get"), false),
            (rule("-", "pods", "a", "get"), rule("-", "pods", "a b", "get"), false),
            (rule("-", "*", "", "*"), rule("-", "pods/exec", "", "create"), true),
            (rule("-", "*", "", "get"), rule("-", "*", "", "*"), false),
            (rule("-", "pods secrets", "", "*"), rule("-", "*", "", "get"), false),
            (rule("*", "*/status", "", "*"), rule("apps", "deployments/status", "", "patch"), true),
            (rule("-", "pods", "", "get"), rule("*", "pods", "", "get"), false),
        ] {
            assert_eq!(
                uncovered(std::slice::from_ref(&held), std::slice::from_ref(&wanted)).is_empty(),
                covered,
                "{held:?} {wanted:?}"
            );
        }
    }
}
