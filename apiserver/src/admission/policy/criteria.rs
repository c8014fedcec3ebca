//! Which requests a policy or a binding is for (`MatchResources`).

use hawser_api::object::{Labels, ObjectExt as _};
use serde_json::Value;

use super::super::webhooks::hook::{Gvr, Match, Rule, Selector, narrowing, own_labels, selector};
use super::super::{Lookup, Versions, name_in};
use crate::access::{AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

/// A rule with the names of the objects it is for; all objects when there is none.
type NamedRule = (Rule, Vec<String>);

/// `matchConstraints` or `matchResources`.
#[derive(Debug)]
pub struct Criteria {
    rules: Vec<NamedRule>,
    excluded: Vec<NamedRule>,
    equivalent: bool,
    namespaces: Selector,
    objects: Selector,
}

impl Criteria {
    /// Reads a `MatchResources`; an absent one is for everything.
    pub fn read(o: &Value) -> Self {
        let names = |r: &Value| -> Vec<String> {
            r.items_at("resourceNames").iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let rules = |field: &str| -> Vec<NamedRule> {
            o.items_at(field).iter().map(|r| (Rule::read(r), names(r))).collect()
        };
        Self {
            rules: rules("resourceRules"),
            excluded: rules("excludeResourceRules"),
            equivalent: o.str_at("matchPolicy") != "Exact",
            namespaces: selector(o, "namespaceSelector"),
            objects: selector(o, "objectSelector"),
        }
    }

    /// The resources that the rules name, `*` included; `*` alone when there is no rule.
    pub fn resources(&self) -> Vec<&str> {
        if self.rules.is_empty() {
            return vec!["*"];
        }
        self.rules.iter().flat_map(|(rule, _)| rule.resources()).collect()
    }

    /// Whether the rules may be for a request; names and selectors are not asked.
    pub fn concern(&self, versions: &Versions, operation: Operation, info: &RequestInfo) -> bool {
        self.matched(versions, operation, info, None).is_some()
    }

    /// In which version the rules are for a request.
    fn matched(
        &self,
        versions: &Versions,
        operation: Operation,
        info: &RequestInfo,
        name: Option<&str>,
    ) -> Option<Match> {
        if self.rules.is_empty() {
            return Some(Match::Exact);
        }
        self.any(&self.rules, versions, operation, info, name)
    }

    fn any(
        &self,
        rules: &[NamedRule],
        versions: &Versions,
        operation: Operation,
        info: &RequestInfo,
        name: Option<&str>,
    ) -> Option<Match> {
        let fits = |gvr: &Gvr<'_>| {
            rules.iter().any(|(rule, names)| {
                rule.matches(operation, gvr, info)
                    && name.is_none_or(|name| names.is_empty() || names.iter().any(|n| n == name))
            })
        };
        if fits(&Gvr::of(info)) {
            return Some(Match::Exact);
        }
        if !self.equivalent || rules.is_empty() {
            return None;
        }
        let mut others = versions.equivalents(info).into_iter();
        others
            .find(|k| fits(&Gvr { group: &k.group, version: &k.version, resource: &k.plural }))
            .map(Match::Equivalent)
    }

    /// Whether the criteria select a request, and in which version they see it.
    ///
    /// # Errors
    /// When a selector cannot be read, or the request's namespace is not there.
    pub async fn select(
        &self,
        reader: &Lookup,
        versions: &Versions,
        request: &AdmissionRequest<'_>,
    ) -> Result<Option<Match>, String> {
        let (operation, info, name) = (request.operation, request.info, name_in(request));
        let in_namespace = self.in_namespace(reader, request).await;
        let selects = self.selects(request);
        if in_namespace == Ok(false) || selects == Ok(false) {
            return Ok(None);
        }
        if self.any(&self.excluded, versions, operation, info, Some(&name)).is_some() {
            return Ok(None);
        }
        let Some(how) = self.matched(versions, operation, info, Some(&name)) else { return Ok(None) };
        // Selectors that fail matter to what the rules are for, and to nothing else.
        in_namespace.and(selects).map(|_| Some(how))
    }

    fn selects(&self, request: &AdmissionRequest<'_>) -> Result<bool, String> {
        let Some(selector) = narrowing(&self.objects)? else { return Ok(true) };
        let fits = |o: &Value| o.get("metadata").is_some() && selector.matches(o.labels());
        Ok([request.object.as_deref(), request.old_object].into_iter().flatten().any(fits))
    }

    async fn in_namespace(&self, reader: &Lookup, request: &AdmissionRequest<'_>) -> Result<bool, String> {
        let Some(selector) = narrowing(&self.namespaces)? else { return Ok(true) };
        let info = request.info;
        if let Some(labels) = own_labels(request.operation, info, request.object.as_deref()) {
            return Ok(selector.matches(labels));
        }
        if info.namespace.is_empty() {
            return Ok(true);
        }
        let namespace = reader.get("", "namespaces", "", &info.namespace).await.map_err(|s| s.message)?;
        let namespace = namespace.ok_or_else(|| format!("namespaces {:?} not found", info.namespace))?;
        Ok(selector.matches(Labels::new(namespace.at("metadata.labels").and_then(Value::as_object))))
    }
}
