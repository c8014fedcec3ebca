//! Which requests a policy or a binding is for (`MatchResources`).

use std::sync::Arc;

use hawser_api::kinds::Kind;
use hawser_api::object::{Labels, ObjectExt as _};
use hawser_api::status::Status;
use serde_json::Value;

use super::super::webhooks::hook::{
    Gvr, Match, Rule, Selector, equivalents, narrowing, own_labels, selector,
};
use super::super::{Lookup, name_in};
use crate::access::{AdmissionRequest, Operation};
use crate::request_info::RequestInfo;

/// `matchConstraints` or `matchResources`.
#[derive(Debug)]
pub struct Criteria {
    /// Rules with the names of the objects they are for; all objects when there is none.
    rules: Vec<(Rule, Vec<String>)>,
    excluded: Vec<(Rule, Vec<String>)>,
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
        let rules = |field: &str| -> Vec<(Rule, Vec<String>)> {
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

    /// The resources that the rules name, `*` included.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(|(rule, _)| rule.resources())
    }

    /// Whether the rules are for a request, names not asked; and in which version.
    pub fn resource(&self, operation: Operation, info: &RequestInfo) -> Option<Match> {
        self.any(&self.rules, operation, info, None)
    }

    fn any(
        &self,
        rules: &[(Rule, Vec<String>)],
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
        let gvr = Gvr::of(info);
        if fits(&gvr) {
            return Some(Match::Exact);
        }
        if !self.equivalent {
            return None;
        }
        let other = |kind: &&Arc<Kind>| {
            fits(&Gvr { group: &kind.group, version: &kind.version, resource: &kind.plural })
        };
        equivalents(&gvr).find(other).map(|kind| Match::Equivalent(Arc::clone(kind)))
    }

    /// Whether the criteria select a request, and in which version they see it.
    ///
    /// # Errors
    /// When the request's namespace is not there.
    pub async fn select(
        &self,
        reader: &Lookup,
        request: &AdmissionRequest<'_>,
    ) -> Result<Option<Match>, Status> {
        let name = name_in(request);
        let how = if self.rules.is_empty() {
            Some(Match::Exact)
        } else {
            self.any(&self.rules, request.operation, request.info, Some(&name))
        };
        let Some(how) = how else { return Ok(None) };
        if self.any(&self.excluded, request.operation, request.info, Some(&name)).is_some() {
            return Ok(None);
        }
        let objects = narrowing(&self.objects).map_err(Status::internal)?;
        if let Some(selector) = objects {
            let fits = |o: &Value| o.get("metadata").is_some() && selector.matches(o.labels());
            if ![request.object.as_deref(), request.old_object].into_iter().flatten().any(fits) {
                return Ok(None);
            }
        }
        Ok(self.in_namespace(reader, request).await?.then_some(how))
    }

    async fn in_namespace(&self, reader: &Lookup, request: &AdmissionRequest<'_>) -> Result<bool, Status> {
        let Some(selector) = narrowing(&self.namespaces).map_err(Status::internal)? else { return Ok(true) };
        let info = request.info;
        if let Some(labels) = own_labels(request.operation, info, request.object.as_deref()) {
            return Ok(selector.matches(labels));
        }
        if info.namespace.is_empty() {
            return Ok(true);
        }
        let namespace = reader.get("", "namespaces", "", &info.namespace).await?;
        let namespace = namespace.ok_or_else(|| Status::not_found("", "namespaces", &info.namespace))?;
        Ok(selector.matches(Labels::new(namespace.at("metadata.labels").and_then(Value::as_object))))
    }
}
