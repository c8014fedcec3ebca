//! Parameters of policies: objects of a kind that the policy names and the binding picks.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hawser_api::kinds;
use hawser_api::object::{ObjectExt as _, split_api_version};
use serde_json::Value;

use super::super::Lookup;
use super::compiled::{Binding, ParamKind, ParamRef};
use crate::access::{Change, GroupResource};

/// Where objects of custom kinds are: group and kind to plural and whether they are namespaced.
pub type CustomKinds = ArcSwap<HashMap<(String, String), (String, bool)>>;

/// Notes a change of a CustomResourceDefinition.
pub fn note(kinds: &CustomKinds, change: &Change) {
    let entry = |o: &crate::access::ObjectRef| {
        let crd: Value = o.decode().ok()?;
        let key = (crd.str_at("spec.group").to_owned(), crd.str_at("spec.names.kind").to_owned());
        Some((key, (crd.str_at("spec.names.plural").to_owned(), crd.str_at("spec.scope") == "Namespaced")))
    };
    let mut table = match change {
        Change::Reset(_) => HashMap::new(),
        _ => (**kinds.load()).clone(),
    };
    match change {
        Change::Reset(all) => table.extend(all.iter().filter_map(entry)),
        Change::Applied(o) => table.extend(entry(o)),
        Change::Deleted(o) => {
            if let Some((key, _)) = entry(o) {
                table.remove(&key);
            }
        }
    }
    kinds.store(Arc::new(table));
}

/// The parameters with which a policy runs for a binding; one None when it has none.
///
/// # Errors
/// When the binding's reference cannot be followed.
pub async fn collect(
    reader: &Lookup,
    custom: &CustomKinds,
    kind: Option<&ParamKind>,
    binding: &Binding,
    namespace: &str,
) -> Result<Vec<Option<Value>>, String> {
    let (Some(kind), Some(param)) = (kind, &binding.param_ref) else { return Ok(vec![None]) };
    let unknown = || format!("paramKind kind `{}, Kind={}` not known", kind.api_version, kind.kind);
    let (group, _) = split_api_version(&kind.api_version);
    let (plural, namespaced) = match kinds::find_api_version(&kind.api_version, &kind.kind) {
        Some(kind) => (kind.plural.clone(), kind.namespaced),
        None => custom.load().get(&(group.to_owned(), kind.kind.clone())).cloned().ok_or_else(unknown)?,
    };
    let namespace = match (namespaced, param.namespace.as_str(), namespace) {
        (false, "", _) => "",
        (false, ..) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
        }
        (true, "", "") => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        (true, "", own) => own,
        (true, given, _) => given,
    };
    let found = find(reader, &GroupResource::new(group, &plural), param, namespace).await?;
    if found.is_empty() && param.denies_without {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    let typed = |mut o: Value| {
        o["apiVersion"] = kind.api_version.as_str().into();
        o["kind"] = kind.kind.as_str().into();
        Some(o)
    };
    Ok(found.into_iter().map(typed).collect())
}

async fn find(
    reader: &Lookup,
    resource: &GroupResource,
    param: &ParamRef,
    namespace: &str,
) -> Result<Vec<Value>, String> {
    let Some(selector) = &param.selector else {
        let found = reader.get(&resource.group, &resource.resource, namespace, &param.name).await;
        return found.map(|o| o.into_iter().collect()).map_err(|s| s.message);
    };
    let selector = selector.as_ref().map_err(Clone::clone)?;
    let all = if namespace.is_empty() {
        reader.list(&resource.group, &resource.resource).await
    } else {
        reader.list_in(&resource.group, &resource.resource, namespace).await
    };
    let all = all.map_err(|s| s.message)?;
    Ok(all.into_iter().filter(|o| selector.matches(o.labels())).collect())
}
